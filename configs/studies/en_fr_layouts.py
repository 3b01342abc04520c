"""English and French by how much of their vocabularies they share: does French gain?

    python -m imbalance_jax.study run --config=configs/studies/en_fr_layouts.py:files=DIR --pack=3
    python -m imbalance_jax.study plan --config=configs/studies/en_fr_layouts.py:layouts=joint

90:10 and 50:50 of English to French, each beside French alone with as many tokens and updates.
layouts is all, or some of these with + between them:

    disjoint    two tokenizers, and no id in common
    merged      two tokenizers, and equal pieces have one id, as in the reference study
    joint       one tokenizer for both languages

A loss compares with one of the same tokenizer only: disjoint and merged have one baseline, joint
has its own. The text is that of configs/studies/en_fr.py, as are scale, seeds, steps, batch, test
and files; laws of token efficiency are its business.
"""

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.study import grid, study_presets

LAYOUTS = ("disjoint", "merged", "joint")
RATIOS = {"90:10": 0.1, "50:50": 0.5}  # of French


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(arg, layouts="all")
    unit = study_presets.spoken(choice, "50:50", layout="disjoint")
    study = grid.Grid("English and French by how much of their vocabularies they share.", unit=unit)
    alone: dict[str, str] = {}  # a baseline's hash -> its cell: layouts may leave it as it is
    for layout in study_presets.chosen("layouts", choice.layouts, LAYOUTS):
        for ratio, share in RATIOS.items():
            config = study_presets.spoken(choice, ratio, layout=layout)
            cell = f"{layout}_{study_presets.ratio_cell(ratio)}"
            study.add(cell, config, seeds=choice.seeds)
            baseline = grid.make_baseline(config, "fr", share, "matched")
            if layout == "merged":  # a language alone has no other's pieces to share
                baseline.vocabulary.layout = "disjoint"
            name = f"alone_{layout}_{grid.percent(share)}"
            name = alone.setdefault(config_lib.hash_plain_values(baseline.to_dict()), name)
            study.add(name, baseline, seeds=choice.seeds, kind="matched")
            _claim_gain(study, layout, ratio, cell, name)
        _claim_alignment(study, layout)
    return study.to_config()


def _claim_gain(study: grid.Grid, layout: str, ratio: str, cell: str, alone: str) -> None:
    study.claim(
        f"{cell}_gains",
        f"At {ratio} with {layout} ids French has a lower loss than alone with as many updates and "
        "tokens.",
        cell=cell,
        against=alone,
        language="fr",
        smallest=0.05,
    )


def _claim_alignment(study: grid.Grid, layout: str) -> None:
    uneven, even = (f"{layout}_{study_presets.ratio_cell(ratio)}" for ratio in RATIOS)
    study.claim(
        f"{layout}_imbalance_aligns",
        f"With {layout} ids 90:10 aligns hidden states of sentences and their translations more "
        "than 50:50 does.",
        measure="alignment",
        cell=uneven,
        against=even,
        language="en-fr",
        direction="higher",
        smallest=0.02,
    )
