"""Gradients of clones, in equal parts and with a dominant one (Figure 11).

    python -m imbalance_jax.study run --config=configs/paper/e10_gradients.py
    python -m imbalance_jax.evaluate --workdir=studies/e10_gradients/runs/r90_10_small_1x_s0 \
        --pairs=500

It costs 2 runs, 2.4 billion tokens and 1.65e18 FLOPs.

The second command, once for each run, measures the gradients by parameter and layer. The runs
are those of e9_hidden.py.

The reference: the mean cosine over 16 parameters of 12 layers is 0.072 at 50:50 and 0.534 at
90:10. The biases of keys are part of it, whose gradient is 0 but for rounding; ours is
measured without them too.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e2_ratio.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("Gradients of two clones.", choice)
    for split in ("50/50", "90/10"):
        paper_presets.add_clones(study, choice, "Figure 11", split)
    return study.to_config()
