"""The config of a run that has begun, as a config file: --config=.../run_config.py:runs/90_10.

A command uses it where --workdir names such a run and there is no --config, so that
--config.steps=3000 changes the config that the run was started with. More steps leave its stages
where they are.
"""

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.runs.run_directory import RunDirectory


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config of a run, by its directory, in which no stage is a fraction of its steps.

    Raises:
      FileNotFoundError: the directory holds no run.
    """
    return config_lib.build_config_dict(config_lib.resolve_stage_steps(RunDirectory(arg).config()))
