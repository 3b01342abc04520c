"""Hidden states and gradients of English and French (Table 4, Figures 12 and 13).

    python -m imbalance_jax.study run --config=configs/paper/e14_en_fr_alignment.py:files=DIR
    python -m imbalance_jax.evaluate --pairs=500 \
        --workdir=studies/e14_en_fr_alignment/runs/r90_10_disjoint_small_1x_s0

It costs 4 runs, 4.8 billion tokens and 3.30e18 FLOPs.

The second command, once for each run, measures both on sentences that say the same, which need
files=DIR with DIR/parallel.jsonl.gz. Which of Figures 12 and 13 has ids apart is not settled;
12 here.

The reference: almost no change between 50:50 and 90:10. Mean cosine of gradients 0.045 and
0.051 with ids apart, 0.170 and 0.138 with equal pieces shared; hidden states after layer 6 are
0.86 and 0.86, 0.88 and 0.87. Its pairs of positions are matched so as to maximise the cosine,
which biases it upwards.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e1_laws.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets

GRADIENTS = {"disjoint": "Figure 12", "merged": "Figure 13"}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("Alignment of English and French.", choice)
    for layout, gradients in GRADIENTS.items():
        for split in ("50/50", "90/10"):
            paper_presets.add_pair(study, choice, ["Table 4", gradients], split, layout=layout)
    return study.to_config()
