"""Nine sequences of English to one of its clone: the reference imbalance.

    python -m imbalance_jax.main --config=configs/90_10.py --workdir=runs/90_10
    python -m imbalance_jax.main --config=configs/90_10.py:scale=small,ratio=95:5

scale is demo, pico, mini, small or medium; the last three are the reference study's.
"""

import ml_collections

from imbalance_jax import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = config_lib.parse_arg(arg, scale="demo", ratio="90:10")
    return config_lib.cloned(scale=choice.scale, ratio=choice.ratio)
