"""What the rare clone of a toy language gains, as one dial after the other is turned.

    python -m imbalance_jax.study run --config=configs/studies/grammar_dials.py --pack=3
    python -m imbalance_jax.study run --config=configs/studies/grammar_dials.py:dials=lr --pack=3

At each value of a dial the rare clone at 90:10 stands beside the same language alone with as many
tokens and updates. dials is all, or some of these with + between them:

    lemmas     128, 512, 1024, 4096 words
    zipf       exponents 0, 1 of the words' frequencies
    rules      1 and 4 ways in which a topic chooses the next, where each rank has its own in base
    depth      sentences of 7 and of 15 words
    lr         half of the peak rate, and twice it
    batch      20 and 80 sequences an update
    clones     2, 4 and 9 rare clones, each with a tenth of the tokens
    anchors    1, 5 and 20 % of the ids shared
    separator  one separator of documents for both
    world      another world, with all else as it was

The cell `base` is configs/grammar.py as it is. seeds and the other choices are those of
configs/studies/grammar.py.
"""

from collections.abc import Iterator

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.study import grid, study_presets

Choice = study_presets.Choice
VALUES = {
    "lemmas": (128, 512, 1024, 4096),
    "zipf": (0, 1),
    "rules": (1, 4),
    "depth": (3, 4),
    "lr": (0.5, 2),
    "batch": (20, 80),
}
DIALS = (*VALUES, "clones", "anchors", "separator", "world")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse_grammar(arg, dials="all")
    base = study_presets.grammatical(choice, "90:10")
    study = grid.Grid("A rare clone of a toy language, a dial at a time.", unit=base)
    alone: dict[str, str] = {}  # a baseline's hash -> its cell: many dials leave it as it is
    _add_cell(study, choice, "base", base, alone)
    for dial in study_presets.chosen("dials", choice.dials, DIALS):
        for name, config in _turn_dial(choice, base, dial):
            _add_cell(study, choice, name, config, alone)
    return study.to_config()


def _turn_dial(
    choice: Choice, base: ml_collections.ConfigDict, dial: str
) -> Iterator[tuple[str, ml_collections.ConfigDict]]:
    """Yields a name and a config for each value of a dial."""
    for value in VALUES.get(dial, ()):
        changed = value * float(choice.lr) if dial == "lr" else value
        config = study_presets.grammatical(choice, "90:10", **{dial: changed})
        yield f"{dial}{grid.percent(value / 100)}", config
    if dial == "clones":
        for rare in (2, 4, 9):
            ratio = ":".join([str(100 - 10 * rare), *["10"] * rare])
            yield f"clones{rare}", study_presets.grammatical(choice, ratio)
    elif dial == "anchors":
        for share in (0.01, 0.05, 0.2):
            yield f"anchors{grid.percent(share)}", grid.anchored(base, "toy2", share)
    elif dial == "separator":
        config = ml_collections.ConfigDict(base.to_dict())
        config.vocabulary.separator = "shared"
        yield "separator", config
    elif dial == "world":
        world = int(choice.world) + 1
        yield f"world{world}", study_presets.grammatical(choice, "90:10", world=world)


def _add_cell(
    study: grid.Grid,
    choice: Choice,
    name: str,
    config: ml_collections.ConfigDict,
    alone: dict[str, str],
) -> None:
    study.add(name, config, seeds=choice.seeds)
    baseline = grid.make_baseline(config, "toy1", 0.1, "matched")
    matched = alone.setdefault(config_lib.hash_plain_values(baseline.to_dict()), f"alone_{name}")
    study.add(matched, baseline, seeds=choice.seeds, kind="matched")
    study.claim(
        f"{name}_gains",
        f"With {name} the rare clone has a lower loss than alone with as many updates and tokens.",
        cell=name,
        against=matched,
        language="toy2",
        against_language="toy1",
        smallest=0.1,
    )
