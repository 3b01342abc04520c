"""From two languages to ten: equal parts, one that dominates, and ratios by temperature.

    python -m imbalance_jax.study run --config=configs/studies/languages.py
    python -m imbalance_jax.study plan --config=configs/studies/languages.py:parts=equal,counts=2+10

parts is all or some of these with + between them:

    equal        as many clones of English as counts says, each with the same part
    dominant     the same, where en1 has dominant % and the clones share the rest
    temperature  four toy languages whose texts are of different length, each with half the
                 tokens of the one before: sampled by size to the power 1/T for each T

A temperature weighs languages by the size of their own text, and clones share one, so that it
needs languages that differ: those of the third part are made up (see configs/toy.py), and are
not to be compared with English. The longest of their texts has as many tokens as the run.

scale, seeds, steps, batch and files are as in configs/studies/ratio.py; files is for English.
"""

import types

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.study import grid, study_presets

PARTS = ("equal", "dominant", "temperature")
TOYS = ("toy0", "toy1", "toy2", "toy3")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(
        arg, parts="all", counts="2+3+5+10", dominant="50", temperatures="1+2+5+100"
    )
    parts = study_presets.chosen("parts", choice.parts, PARTS)
    counts = [study_presets.whole("counts", n) for n in study_presets.listed(choice.counts)]
    dominant = study_presets.whole("dominant", choice.dominant)
    if min(counts) < 2 or dominant > 99:
        raise ValueError(
            f"counts={choice.counts}, dominant={dominant}: write 2 languages or more, and a "
            "percentage below 100."
        )
    even = study_presets.clones(choice, "50:50")
    study = grid.Grid("Two to ten languages, by how they share the run.", unit=even)
    for count in counts:
        if "equal" in parts:
            study.add(f"equal_{count}", _clones(choice, [1] * count), seeds=choice.seeds)
        others = [100 - dominant] * (count - 1)
        # With two languages half for one is an equal part again.
        if "dominant" in parts and (count, dominant) != (2, 50):
            config = _clones(choice, [dominant * (count - 1), *others])
            study.add(f"dominant_{count}", config, seeds=choice.seeds)
    if parts != ["temperature"]:
        _baselines(study, even, "en1", (0.05, 0.1, 0.25, 0.5, 1), choice.seeds)
        _claims(study, parts, max(counts))
    if "temperature" in parts:
        temperatures = study_presets.numbers("temperatures", choice.temperatures)
        toys = _toys(choice)
        for temperature in temperatures:
            config = ml_collections.ConfigDict(toys.to_dict())
            config.mixture.temperature = temperature
            study.add(f"temperature_{temperature:g}", config, seeds=choice.seeds)
        for tag in (TOYS[0], TOYS[-1]):
            _baselines(study, toys, tag, (0.05, 0.1, 0.25, 0.5), choice.seeds)
    return study.to_config()


def _baselines(
    study: grid.Grid,
    config: ml_collections.ConfigDict,
    tag: str,
    fractions: tuple[float, ...],
    seeds: range,
) -> None:
    study.baselines(config, tag, fractions=fractions, seeds=seeds, kinds=("monolingual",))
    parts = [fraction for fraction in fractions if fraction in (0.1, 0.25, 0.5)]
    study.baselines(config, tag, fractions=parts, seeds=seeds, kinds=("matched",))


def _clones(choice: types.SimpleNamespace, parts: list[int]) -> ml_collections.ConfigDict:
    config = study_presets.clones(choice, ":".join(str(part) for part in parts))
    # Two clones stand for all of them: pairs of ten would be 45.
    config.evaluation.alignment.languages = ("en1", "en2")
    return config


def _toys(choice: types.SimpleNamespace) -> ml_collections.ConfigDict:
    """Returns a run on the toy languages in equal parts."""
    sources = {}
    for index, name in enumerate(TOYS):
        sources[name] = config_lib.declared(config_lib.SourceConfig, kind="synthetic")
        sources[name].synthetic.language = index
    config = config_lib.spoken(sources, scale=choice.scale, ratio=":".join("1" * len(TOYS)))
    study_presets.sized(config, choice)
    tokens = config.steps * config.batch_size * config.model.L
    for index, name in enumerate(TOYS):
        config.sources[name].synthetic.tokens = tokens // 2**index
    # All say the same things, so each is parallel to the first.
    for name in TOYS[1:]:
        config.parallel[f"{TOYS[0]}_{name}"] = config_lib.declared(
            config_lib.ParallelConfig, sources=(TOYS[0], name)
        )
    return config


def _claims(study: grid.Grid, parts: list[str], most: int) -> None:
    if "equal" in parts:
        study.claim(
            "many_generalise",
            f"{most} equal clones need fewer tokens each than a monolingual model.",
            measure="log_teff",
            cell=f"equal_{most}",
            language="en2",
            direction="higher",
            smallest=0.05,
        )
    if {"equal", "dominant"} <= set(parts) and most > 2:
        study.claim(
            "dominance_helps_many",
            f"Of {most} clones a rare one gains more where one dominates than in equal parts.",
            measure="log_teff",
            cell=f"dominant_{most}",
            against=f"equal_{most}",
            language="en2",
            direction="higher",
            smallest=0.05,
        )
