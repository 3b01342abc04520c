"""Two clones whose ratio changes during the run, and is balanced over all of it.

    python -m imbalance_jax.main --config=configs/schedule.py --workdir=runs/schedule
    python -m imbalance_jax.main --config=configs/schedule.py:stages=0.0_1.0,scale=small
    python -m imbalance_jax.main --config=configs/schedule.py:rule=cosine,count=50 --dry_run

stages is the share of en2 in each of equally long stages. With rule=linear or rule=cosine it is the
first and the last share of a gradual change, in count stages of whole percent. The reference study
has 0.1_0.9, 0.0_1.0, 0.1_0.9_0.5_0.5 and 0.05_0.65_0.65_0.65; stages whose total is not that of a
balanced run are refused (same_total_as in the config). scale is as in configs/90_10.py.
"""

import ml_collections

from imbalance_jax import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = config_lib.parse_arg(arg, scale="demo", stages="0.1_0.9", rule="steps", count="20")
    config = config_lib.cloned(scale=choice.scale, ratio="50:50")
    if choice.rule == "steps":
        config.mixture.stages = config_lib.equal_stages(choice.stages, "en1", "en2")
    else:
        if not choice.count.isdecimal():
            raise ValueError(f"count={choice.count}: write a whole number of stages, such as 20.")
        config.mixture.stages = config_lib.changing_stages(
            choice.rule, choice.stages, "en1", "en2", count=int(choice.count)
        )
    config.mixture.same_total_as = ((0, {"en1": 1, "en2": 1}),)
    return config
