"""How alike the embeddings of clones are, by frequency of the piece (Figure 7).

    python -m imbalance_jax.study run --config=configs/paper/e8_frequency.py
    python -m imbalance_jax.evaluate --workdir=studies/e8_frequency/runs/r50_50_small_1x_s0

It costs 6 runs, 7.2 billion tokens and 4.95e18 FLOPs.

The second command, once for each run, counts the pieces in the text and measures the table of
the last step. The runs are those of e2_ratio.py.

The reference: at 95:5 the cosine rises from 0 below 100 occurrences to 0.76 to 0.80 above ten
million; at 50:50 it stays below 0.05 up to 10^5.75 and is 0.30 for the most frequent pieces.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e2_ratio.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("Embeddings of clones by frequency.", choice)
    paper_presets.add_ratio_sweep(study, choice, "Figure 7")
    return study.to_config()
