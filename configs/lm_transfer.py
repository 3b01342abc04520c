"""Goes on training a run in one of its languages, and watches what the others gain or forget.

    python -m imbalance_jax.main --config=configs/lm_transfer.py:run=runs/90_10,language=en2 \\
        --workdir=runs/90_10_then_en2

It begins with the newest weights of `run`, or with those of a step, run=runs/90_10@1000; with a
new optimizer, at a tenth of the run's peak learning rate, and with as many tokens as `steps`
updates have. All languages are evaluated at step 0 and from then on; report.html has the
difference of each. Any field can be set, such as --config.optimizer.peak_lr=1e-4.
"""

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.runs.run_directory import run_and_step


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = config_lib.parse_arg(arg, run="", language="", steps="200")
    if not choice.run:
        raise ValueError("run= is missing. Write lm_transfer.py:run=runs/90_10,language=en2.")
    if not choice.steps.isdecimal():
        raise ValueError(f"steps={choice.steps}: it must be a whole number of updates.")
    before, _ = run_and_step(choice.run)
    return config_lib.continued(before.config(), choice.run, choice.language, int(choice.steps))
