"""English and its clone in equal parts: the balance that 90_10 is compared with.

    python -m imbalance_jax.main --config=configs/50_50.py --workdir=runs/50_50

It takes scale= as configs/90_10.py does.
"""

import ml_collections

from imbalance_jax import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = config_lib.parse_arg(arg, scale="demo")
    return config_lib.cloned(scale=choice.scale, ratio="50:50")
