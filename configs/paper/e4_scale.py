"""Clones by length and size of the model: small 1x to 4x, mini, medium (Figures 2 and 9).

    python -m imbalance_jax.study run --config=configs/paper/e4_scale.py

It costs 46 runs, 68.8 billion tokens and 7.29e19 FLOPs; with baselines=none 16 runs, 35.7
billion tokens and 3.41e19 FLOPs.

The reference: EN2 of 90:10 meets a clone of 50:50 at 3x (22.27 against 22.17), is better at 4x
(21.36 against 21.49), and already at 1x in medium (22.30 against 22.96; at 2.4x 18.00 against
19.25); never in mini (41.0 against 36.0 at 1x). Of 50:50 it shows EN1 alone.

baselines=none leaves the monolingual runs of the laws out.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e2_ratio.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets

LENGTHS = {"small": ("1x", "2x", "3x", "4x"), "mini": ("0.5x", "1x"), "medium": ("1x", "2.4x")}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("Clones of English by size and length.", choice)
    for size, lengths in LENGTHS.items():
        for length in lengths:
            for split in ("50/50", "90/10"):
                paper_presets.add_clones(
                    study, choice, "Figure 2/Figure 9", split, size=size, length=length
                )
    paper_presets.add_laws(study, choice, ["en1"], list(LENGTHS))
    for size, length in (("small", "4x"), ("medium", "1x")):
        study.claim(
            f"overtakes_{size}",
            f"In {size} at {length} the rare clone of 90:10 has a lower loss than one of 50:50.",
            cell=paper_presets.cell_of("90/10", size=size, length=length),
            against=paper_presets.cell_of("50/50", size=size, length=length),
            language="en2",
        )
    return study.to_config()
