"""English and French at a glance: ratios, vocabularies, schedules (Table 3).

    python -m imbalance_jax.study run --config=configs/paper/e12_en_fr_overview.py

It costs 44 runs, 51.7 billion tokens and 3.44e19 FLOPs; with baselines=none 20 runs, 27.8
billion tokens and 1.90e19 FLOPs.

The reference, perplexity of EN/FR: ids apart 90:10 22.47/31.89, 50:50 26.44/19.39, 10:90
43.51/16.45; equal pieces shared 22.48/29.04, 25.97/19.01, 39.51/16.48, and under schedules
28.90/19.33 (0.1_0.9), 26.37/18.48 (0.1_0.9_0.5_0.5) and 26.30/18.67 (0.05_0.65_0.65_0.65).
The row of 0.1_0.9 at 3x is not known; its run is here all the same.

baselines=none leaves out all monolingual runs but the six of the table.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e1_laws.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets

BILINGUAL = "bilingual (merged or disjoint not stated)"
SCHEDULES = (
    ("disjoint", "1x", "0.1_0.9"),
    ("merged", "1x", "0.05_0.65_0.65_0.65"),
    ("merged", "1x", "0.1_0.9"),
    ("merged", "1x", "0.1_0.9_0.5_0.5"),
    ("merged", "2x", "0.1_0.9"),
    ("merged", "3x", "0.1_0.9"),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("An overview of English and French.", choice)
    figures = ["Table 3"]
    for tag, split, vocab in (
        ("en", "100/0", paper_presets.ENGLISH_ONLY),
        ("fr", "0/100 (p_l2=1)", BILINGUAL),
    ):
        for tokens in (0.1, 0.5, 1):
            reference = paper_presets.setting(tag.upper(), split, vocab, tokens=f"{tokens}x")
            paper_presets.add_alone(
                study, choice, tag, tokens, figures=figures, reference=reference
            )
    for layout in paper_presets.LAYOUTS:
        for split in ("90/10", "50/50", "10/90"):
            paper_presets.add_pair(study, choice, figures, split, layout=layout)
    for length in ("2x", "3x"):
        paper_presets.add_pair(study, choice, figures, "50/50", length=length)
    for layout, length, schedule in SCHEDULES:
        paper_presets.add_pair(
            study, choice, figures, "50/50", layout=layout, length=length, schedule=schedule
        )
    paper_presets.add_laws(study, choice, ["en", "fr"], ["small"])
    return study.to_config()
