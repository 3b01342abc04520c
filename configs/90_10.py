"""Nine sequences of English to one of its clone: the reference imbalance.

    python -m imbalance_jax.main --config=configs/90_10.py --workdir=runs/90_10
    python -m imbalance_jax.main --config=configs/90_10.py:scale=small,ratio=95:5

scale is demo, pico, mini, small or medium; the last three are the reference study's. ratio has a
part for English and one for each clone of it: 8:1:1 has two clones, and 1 is English alone. With
joins=0.5 the last language has no sequence in the first half of the run, and joins the others at
its ratio in the second.
"""

import ml_collections

from imbalance_jax import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = config_lib.parse_arg(arg, scale="demo", ratio="90:10", joins="")
    config = config_lib.cloned(scale=choice.scale, ratio=choice.ratio)
    if choice.joins:
        config.mixture.stages = config_lib.joining_stages(choice.joins, config.mixture.ratio)
    return config
