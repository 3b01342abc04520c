"""How few ids two clones must share to be one language to the model.

    python -m imbalance_jax.study run --config=configs/studies/anchors.py
    python -m imbalance_jax.study plan --config=configs/studies/anchors.py:measure=tokens

50:50 where en2 keeps these shares of en1's ids, chosen at random as in the reference study, or
the most frequent, or the rarest: choices is some of reference+frequent+rare. With
measure=tokens anchors are the share of the text that such ids make up, so that frequent and
rare ids are matched in how much of the text is shared. fractions are shares from 0 to 1.

scale, seeds, steps, batch and files are as in configs/studies/ratio.py.
"""

import ml_collections

from imbalance_jax.study import grid, study_presets

CHOICES = ("reference", "frequent", "rare")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(
        arg,
        ratio="50:50",
        fractions="0+0.05+0.1+0.25+0.5+1",
        choices="all",
        measure="ids",
    )
    choices = study_presets.chosen("choices", choice.choices, CHOICES)
    mixture = study_presets.clones(choice, choice.ratio)
    study = grid.Grid("Two clones of English that share some of their ids.", unit=mixture)
    for fraction in study_presets.numbers("fractions", choice.fractions):
        if fraction in (0, 1):
            # Nothing is left to choose.
            kind = "anchored" if fraction else "mixture"
            config = grid.anchored(mixture, "en2", fraction)
            study.add(f"anchors_{grid.percent(fraction)}", config, seeds=choice.seeds, kind=kind)
            continue
        for which in choices:
            config = grid.anchored(mixture, "en2", fraction)
            config.languages.en2.anchor_choice = which
            config.languages.en2.anchor_measure = choice.measure
            cell = f"anchors_{which}_{grid.percent(fraction)}"
            study.add(cell, config, seeds=choice.seeds)
    for kind, fractions in (("monolingual", (0.1, 0.25, 0.5, 0.75, 1)), ("matched", (0.5,))):
        study.baselines(mixture, "en1", fractions=fractions, seeds=choice.seeds, kinds=(kind,))
    cells = {run.cell for run in study.to_config().runs.values()}
    if {"anchors_0", "anchors_reference_5"} <= cells:
        study.claim(
            "few_suffice",
            "Sharing one id in twenty lowers the loss of the second clone.",
            cell="anchors_reference_5",
            against="anchors_0",
            language="en2",
            smallest=0.02,
        )
    if {"anchors_frequent_5", "anchors_rare_5"} <= cells:
        study.claim(
            "frequent_suffice",
            "Frequent ids as anchors lower the loss of the second clone more than rare ones.",
            cell="anchors_frequent_5",
            against="anchors_rare_5",
            language="en2",
        )
    return study.to_config()
