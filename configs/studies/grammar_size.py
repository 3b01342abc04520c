"""How often, and when, clones of a toy language meet: by width of the model, length and ratio.

    python -m imbalance_jax.study run --config=configs/studies/grammar_size.py --pack=10

50:50 and 90:10 at each of the widths, such as widths=16+32+64, with a learning rate that stays
where it is after its warm-up: so a run of 1,500 steps is at step 600 what a run of 600 steps is at
its end, and one run says of every length up to its own whether its languages have met by then. A
cell has 20 seeds, as it is the odds that are asked for. All other choices are those of
configs/studies/grammar.py.
"""

import ml_collections

from imbalance_jax.study import grid, study_presets

RATIOS = ("50:50", "90:10")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse_grammar(arg, widths="16+32+64", seeds="20")
    widths = [study_presets.whole("widths", text) for text in study_presets.listed(choice.widths)]
    unit = study_presets.grammatical(choice, "50:50")
    study = grid.Grid("Clones of a toy language, by width of the model and ratio.", unit=unit)
    for width in widths:
        for ratio in RATIOS:
            config = study_presets.grammatical(choice, ratio, D=width)
            config.optimizer.schedule = "constant"
            cell = f"d{width}_{study_presets.ratio_cell(ratio)}"
            study.add(cell, config, seeds=choice.seeds)
        _claim_width(study, choice, f"d{width}", width)
    return study.to_config()


def _claim_width(study: grid.Grid, choice: study_presets.Choice, cell: str, width: int) -> None:
    uneven, even = (f"{cell}_{study_presets.ratio_cell(ratio)}" for ratio in ("90:10", "50:50"))
    study.claim(
        f"{cell}_meets",
        f"At width {width} the clones meet sooner at 90:10 than at 50:50.",
        measure="steps_to",
        bar=choice.meets,
        cell=uneven,
        against=even,
        language="toy1-toy2",
        smallest=choice.soon,
    )
    for language, role in (("toy1", "dominant"), ("toy2", "rare")):
        study.claim(
            f"{cell}_hastens_{role}",
            f"At width {width} the {role} clone finds the grammar sooner at 90:10 than at 50:50.",
            measure="steps_to",
            bar=choice.bar,
            cell=uneven,
            against=even,
            language=language,
            smallest=choice.soon,
        )
