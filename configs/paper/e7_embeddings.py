"""How alike the embeddings of clones are, by ratio (Figure 6).

    python -m imbalance_jax.study run --config=configs/paper/e7_embeddings.py
    python -m imbalance_jax.evaluate --workdir=studies/e7_embeddings/runs/r50_50_small_1x_s0
    python -m imbalance_jax.word2vec --workdir=studies/e7_embeddings/runs/r50_50_small_1x_s0

It costs 6 runs, 7.2 billion tokens and 4.95e18 FLOPs.

The second command, once for each run, measures the tables of the last step as the figure needs
them; the third makes the other half of the figure, word2vec on the same tokens. The runs are
those of e2_ratio.py.

The reference: the mean cosine of input embeddings of clones falls from 0.276 at 95:5 over
0.202, 0.105, 0.042 to 0.027 at 50:50, that of output embeddings from 0.384 to 0.273; of all
pairs 0.006 and 0.21 to 0.25. Those of word2vec are 0 or less, and 0.95 for output
vectors as for all pairs.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e2_ratio.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("Embeddings of clones at six ratios.", choice)
    paper_presets.add_ratio_sweep(study, choice, "Figure 6")
    return study.to_config()
