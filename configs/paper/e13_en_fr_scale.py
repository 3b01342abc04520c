"""English and French by length and size of the model (Figures 4 and 10).

    python -m imbalance_jax.study run --config=configs/paper/e13_en_fr_scale.py

It costs 69 runs, 79.2 billion tokens and 8.80e19 FLOPs; with baselines=none 14 runs, 26.1
billion tokens and 2.75e19 FLOPs.

The reference: unlike with clones, the TEff of rare French falls with the data (small 1.27, 0.89
and 0.72 at 1x, 2x and 3x; medium 2.00 and 1.38 at 1x and 2.4x), and French of 90:10 never has
a lower perplexity than that of 50:50.

baselines=none leaves the monolingual runs of the laws out.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e1_laws.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets

LENGTHS = {"small": ("1x", "2x", "3x"), "mini": ("0.5x", "1x"), "medium": ("1x", "2.4x")}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("English and French by size and length.", choice)
    for size, lengths in LENGTHS.items():
        for length in lengths:
            for split in ("50/50", "90/10"):
                paper_presets.add_pair(
                    study, choice, ["Figure 4/Figure 10"], split, size=size, length=length
                )
    paper_presets.add_laws(study, choice, ["en", "fr"], list(LENGTHS))
    study.claim(
        "stays_behind",
        "In small at 3x French of 90:10 has a higher loss than that of 50:50.",
        cell=paper_presets.cell_of("90/10", length="3x", layout="merged"),
        against=paper_presets.cell_of("50/50", length="3x", layout="merged"),
        language="fr",
        direction="higher",
    )
    return study.to_config()
