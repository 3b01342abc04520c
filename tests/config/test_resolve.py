"""Behaviours of config/resolve.py."""

import dataclasses
import json

import ml_collections
import pytest
from made_configs import (
    resolved,
    spoken,
    stages,
    toys,
)

from imbalance_jax import config as config_lib
from imbalance_jax.runs import run_directory as runs


def test_nothing_writes_to_a_config():
    config = resolved()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 5
    with pytest.raises(TypeError):
        config.mixture.ratio["en1"] = 5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixture__stages": stages(0, 10), "mixture__sampler": "bernoulli"},
        {"sources__en__packages": ("json", "email"), "languages__en2__anchors": 0.1},
        {"optimizer__peak_lr": 1, "seed": 7},
        {"mixture__stages": stages(0, 0.1, 1 / 3), "mixture__same_total_as": stages(0)},
        {"vocabulary__layout": "joint", "vocabulary__mix": {"en": 3}},
        {"made": spoken, "parallel__en_fr__fields": ("english", "french")},
        {"made": toys, "sources__toy1__synthetic__overlap": 0.25},
    ],
)
def test_a_config_read_back_from_its_run_is_the_same(tmp_path, changes):
    config = resolved(**changes)
    run = runs.RunDirectory(tmp_path / "run")
    run.check(config)
    run.claim(config)
    assert run.config() == config
    assert config_lib.build_run_identity(run.config()) == config_lib.build_run_identity(config)
    plain = json.loads((tmp_path / "run" / "config.json").read_text())
    del plain["crc32"]
    assert plain == config_lib.to_dict(config)
    assert config_lib.hash_plain_values(plain) == config_lib.hash_plain_values(
        config_lib.to_dict(run.config())
    )
    run.check(config)


def test_every_field_has_a_default_that_can_be_set_from_the_command_line():
    def check(kind, group):
        for field in dataclasses.fields(kind):
            assert field.name in group and group[field.name] is not None
            if isinstance(group[field.name], ml_collections.ConfigDict) and group[field.name]:
                check(type(field.default), group[field.name])

    check(config_lib.Config, config_lib.default())
    for kind in (config_lib.SourceConfig, config_lib.LanguageConfig, config_lib.ParallelConfig):
        check(kind, config_lib.declared(kind))
