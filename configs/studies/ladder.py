"""From a toy language towards text, one change a rung: where does the rare clone's gain end?

    python -m imbalance_jax.study run --config=configs/studies/ladder.py --pack=3
    python -m imbalance_jax.study run --config=configs/studies/ladder.py:rungs=text360,steps=3000

On every rung the rare clone at 90:10 stands beside the same language alone with as many tokens and
updates. rungs is all, or some of these with + between them:

    words256    the toy language of configs/grammar.py
    words1024   four times as many words
    deep3       words1024 in sentences of seven words
    deep4       words1024 in sentences of fifteen words
    text360     English prose, near characters: 360 pieces
    text512     512 pieces
    text2048    2,048 pieces

scales=2 doubles blocks and width on every rung, steps=2400 the length. The text is the English
documentation inside the Python standard library and the installed packages; files=DIR reads
DIR/en.train.jsonl.gz and DIR/en.test.jsonl.gz in its place. The other choices are those of
configs/studies/grammar.py.
"""

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.study import grid, study_presets

TOYS = {
    "words256": {},
    "words1024": {"lemmas": 1024},
    "deep3": {"lemmas": 1024, "depth": 3},
    "deep4": {"lemmas": 1024, "depth": 4},
}
PIECES = {"text360": 360, "text512": 512, "text2048": 2048}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse_grammar(arg, rungs="all", files="", scales="1")
    scale = study_presets.number("scales", choice.scales)
    unit = study_presets.grammatical(choice, "90:10")
    study = grid.Grid("A rare clone, from a toy language towards text.", unit=unit)
    for rung in study_presets.chosen("rungs", choice.rungs, (*TOYS, *PIECES)):
        if rung in TOYS:
            config = study_presets.grammatical(choice, "90:10", **TOYS[rung])
        else:
            config = _make_english_clones(choice, unit, PIECES[rung])
        config = study_presets.resized(config, scale)
        study.add(rung, config, seeds=choice.seeds)
        tag = "en1" if rung in PIECES else "toy1"
        baseline = grid.make_baseline(config, tag, 0.1, "matched")
        study.add(f"alone_{rung}", baseline, seeds=choice.seeds, kind="matched")
        study.claim(
            f"{rung}_gains",
            f"On the rung {rung} the rare clone has a lower loss than alone with as many updates "
            "and tokens.",
            cell=rung,
            against=f"alone_{rung}",
            language=f"{tag[:-1]}2",
            against_language=tag,
            smallest=0.05,
        )
    return study.to_config()


def _make_english_clones(
    choice: study_presets.Choice, unit: ml_collections.ConfigDict, pieces: int
) -> ml_collections.ConfigDict:
    """Returns the run of the toy language with English and its clone in its place."""
    config = config_lib.cloned(scale="demo", ratio="90:10")
    config.sources.en.update(
        study_presets.make_text_fields("en", choice.files, otherwise="docstrings")
    )
    config.sources.en.tokenizer.vocab_size = pieces
    for name in ("steps", "batch_size", "model", "optimizer", "evaluation", "checkpoint", "mesh"):
        config[name] = unit[name]
    return config
