"""The zero-shot transfer of GLUE between clones (Figure 1 right).

    python -m imbalance_jax.study run --config=configs/paper/e5_glue.py

It costs 6 runs, 7.2 billion tokens and 4.95e18 FLOPs.

These are the six models that fine-tuning starts from, the same runs as those of e2_ratio.py. Each
is then fine-tuned and scored by

    python -m imbalance_jax.transfer --workdir=studies/e5_glue/runs/RUN --tasks=all

and `report` and `study check` read what that leaves in the run. Its FLOPs are not in the above.

The reference: mean accuracy 0.71 in the language fine-tuned in at 95:5 and 90:10, and in the
other one, never fine-tuned in, 0.64 at 95:5.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e2_ratio.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("Six ratios of clones to fine-tune.", choice)
    paper_presets.add_ratio_sweep(study, choice, "Figure 1 right")
    return study.to_config()
