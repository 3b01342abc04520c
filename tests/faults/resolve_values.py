"""Resolves a config from JSON and asks it everything that follows from it without text.

python resolve_values.py '{"seed": 0, ...}'
"""

import json

import numpy as np

from imbalance_jax import cli
from imbalance_jax import config as config_lib


def main(names: list[str]) -> int:
    config = config_lib.resolve_config(json.loads(names[0]))
    rows = config_lib.list_field_rows(config)
    for row in rows:
        config_lib.format_field_value(row.value)
    assert config_lib.resolve_config(config_lib.to_dict(config)) == config
    assert json.loads(json.dumps(config_lib.to_dict(config), allow_nan=False))
    config_lib.build_run_identity(config)
    if not config.mixture.follows_text:
        config_lib.list_stages(config)
        config_lib.compute_sequence_totals(config)
    for t in (1, config.steps // 2 + 1, config.steps):
        rate = config_lib.compute_learning_rate(config.optimizer, config.steps, t, np)
        assert 0 <= rate < float("inf"), f"the learning rate of update {t} is {rate}"
    return cli.DONE


if __name__ == "__main__":
    cli.run_command(main, names=True)
