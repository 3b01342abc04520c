"""Clones at a glance: ratios, ten languages, schedules, two and three times the data (Table 1).

    python -m imbalance_jax.study run --config=configs/paper/e3_overview.py

It costs 28 runs, 41.7 billion tokens and 2.89e19 FLOPs; with baselines=none 15 runs, 27.1
billion tokens and 1.99e19 FLOPs.

The reference, perplexity of EN1/EN2: 50:50 26.13/26.14, 90:10 22.46/32.81; ten equal clones
35.5/35.7 (TEff 1.69/1.67), half for EN1 24.6/33.4 (1.15/3.56); 0.1_0.9 26.53/24.44, at 2x
22.78/20.42 against 23.35/23.36 of 50:50; 0.0_1.0 9.15e10/31.39.

Of ten languages the reference scored EN1 and EN2 alone. baselines=none leaves out all
monolingual runs but the three of the table.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e2_ratio.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets

SCHEDULES = {"1x": ("0.1_0.9", "0.0_1.0"), "2x": ("0.1_0.9",), "3x": ("0.1_0.9",)}
# What EN1 has of ten languages, in sequences of 18, and how the table calls it.
TEN = {
    "ten_equal": ("1:1:1:1:1:1:1:1:1:1", "10x10 (p_clone=0.9)"),
    "ten_dominant": ("9:1:1:1:1:1:1:1:1:1", "50 + 9x5.56 (p_clone=0.5)"),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("An overview of clones of English.", choice)
    for tokens in (0.1, 0.5, 1):
        reference = paper_presets.setting(
            "EN1", "100/0", paper_presets.ENGLISH_ONLY, tokens=f"{tokens}x"
        )
        paper_presets.add_alone(
            study, choice, "en1", tokens, figures=("Table 1",), reference=reference
        )
    for length, schedules in SCHEDULES.items():
        for split in ("50/50", "90/10"):
            paper_presets.add_clones(study, choice, "Table 1", split, length=length)
        for schedule in schedules:
            paper_presets.add_clones(
                study, choice, "Table 1", "50/50", length=length, schedule=schedule
            )
    for cell, (ratio, split) in TEN.items():
        config = paper_presets.clones(choice, ratio)
        # Pairs of ten would be 45.
        config.evaluation.alignment.languages = ("en1", "en2")
        study.add(
            cell,
            config,
            seeds=choice.seeds,
            figures=("Table 1",),
            reference=paper_presets.setting("EN1..EN10", split, "cloned 10x16384"),
        )
    paper_presets.add_laws(study, choice, ["en1"], ["small"])
    for length in ("2x", "3x"):
        for language in ("en1", "en2"):
            study.claim(
                f"schedule_helps_{language}_{length}",
                f"At {length} 0.1_0.9 gives {language} a lower loss than 50:50.",
                cell=f"s10_90_small_{length}",
                against=f"r50_50_small_{length}",
                language=language,
            )
    return study.to_config()
