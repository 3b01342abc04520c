"""Hidden states of clones, in equal parts and with a dominant one (Table 2).

    python -m imbalance_jax.study run --config=configs/paper/e9_hidden.py
    python -m imbalance_jax.evaluate --workdir=studies/e9_hidden/runs/r90_10_small_1x_s0 --pairs=500

It costs 2 runs, 2.4 billion tokens and 1.65e18 FLOPs.

Without the second command, once for each run, `study check` takes what the run logged at its
end, on fewer sequences of the validation split.

The reference, mean cosine after layers 1 to 12 over 500 sequences: 50:50 0.55 0.79 0.83 0.88
0.85 0.83 0.78 0.66 0.56 0.46 0.25 -0.21, 90:10 0.86 0.93 0.96 0.96 0.96 0.96 0.96 0.95 0.94
0.90 0.67 0.11. What the cosine of shuffled pairs is was not reported; ours is measured beside.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e2_ratio.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("Hidden states of two clones.", choice)
    for split in ("50/50", "90/10"):
        paper_presets.add_clones(study, choice, "Table 2", split)
    study.claim(
        "aligns",
        "90:10 aligns the hidden states of the clones more than 50:50 does.",
        measure="alignment",
        cell="r90_10_small_1x",
        against="r50_50_small_1x",
        language="en1-en2",
        direction="higher",
        smallest=0.05,
    )
    return study.to_config()
