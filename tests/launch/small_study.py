"""A study that is read in no time: the two runs of made_plans.py."""

import ml_collections
from made_plans import small_grid

from imbalance_jax import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config_lib.parse_arg(arg)
    return small_grid()
