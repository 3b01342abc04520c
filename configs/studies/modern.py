"""The ratio sweep of the reference study in a block of today, beside the reference's own.

    python -m imbalance_jax.study plan --config=configs/studies/modern.py:scale=small
    python -m imbalance_jax.study run --config=configs/studies/modern.py --pack=3

Two clones of English at six ratios, with the language alone on 5, 10, 25, 50 and 100 % of the
tokens, as in the reference, under each preset of config.model: presets=gpt2+modern. SwiGLU gets two
thirds of the width of a feed-forward layer, so that the presets have as many parameters.
ratios=50:50+90:10 takes these only. The other choices are those of configs/studies/ratio.py.
"""

import ml_collections

from imbalance_jax.study import grid, study_presets

RATIOS = "50:50+60:40+70:30+80:20+90:10+95:5"
PRESETS = ("gpt2", "llama", "modern")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(arg, presets="gpt2+modern", ratios=RATIOS)
    presets = study_presets.chosen("presets", choice.presets, PRESETS)
    even = study_presets.clones(choice, "50:50")
    study = grid.Grid("Two clones of English by ratio, in blocks of then and of today.", unit=even)
    for preset in presets:
        cells = []
        for ratio in study_presets.listed(choice.ratios):
            cells.append(f"{preset}_{study_presets.ratio_cell(ratio)}")
            config = _reshape(study_presets.clones(choice, ratio), preset)
            study.add(cells[-1], config, seeds=choice.seeds)
        study.baselines(
            _reshape(even, preset),
            "en1",
            fractions=(0.05, 0.1, 0.25, 0.5, 1),
            seeds=choice.seeds,
            prefix=f"{preset}_",
        )
        if f"{preset}_r90_10" in cells:
            _claim(study, preset, aligned=f"{preset}_r50_50" in cells)
    return study.to_config()


def _reshape(config: ml_collections.ConfigDict, preset: str) -> ml_collections.ConfigDict:
    """Returns a run in the block of a preset, with about as many parameters."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.model.preset = preset
    if preset != "gpt2":
        config.model.F = max(8, round(config.model.F * 2 / 3 / 8) * 8)
    return config


def _claim(study: grid.Grid, preset: str, *, aligned: bool) -> None:
    study.claim(
        f"{preset}_rare_gains",
        f"In {preset} the rare clone has a lower loss at 90:10 than alone with as many updates.",
        cell=f"{preset}_r90_10",
        against=f"{preset}_matched_en1_10",
        language="en2",
        against_language="en1",
        smallest=0.02,
    )
    if aligned:
        study.claim(
            f"{preset}_aligns",
            f"In {preset} the hidden states of the clones are more alike at 90:10 than at 50:50.",
            measure="alignment",
            cell=f"{preset}_r90_10",
            against=f"{preset}_r50_50",
            language="en1-en2",
            direction="higher",
            smallest=0.05,
        )
