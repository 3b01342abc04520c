"""Runs that train as one program: each must be what it is alone, and leave what it leaves alone."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from conftest import tiny_config

from imbalance_jax import config as config_lib
from imbalance_jax import distributed, pack, sharding, train, tuning
from imbalance_jax.checkpoint import Checkpoints
from imbalance_jax.config import Config, MeshConfig
from imbalance_jax.runs import RunDirectory

# What members may differ in: ratio, stages, seed, anchors, and all of the learning rate.
MEMBERS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "constant": {
        "seed": 3,
        "mixture__ratio": {"en1": 1, "en2": 1},
        "optimizer__schedule": "constant",
        "optimizer__peak_lr": 1e-3,
    },
    "decaying": {
        "seed": 4,
        "mixture__stages": ((0, {"en1": 1, "en2": 0}), (0.5, {"en1": 0, "en2": 1})),
        "optimizer__schedule": "warmup_stable_decay",
        "optimizer__warmup": 3.0,
        "languages__en2__anchors": 0.5,
    },
}
COMMON = {"steps": 12, "evaluation__every": 8, "checkpoint__every": 4, "model__scan_layers": True}
COMMON |= {"model__N": 1, "log_every": 4}


def make_config(data_dir: pathlib.Path, **changes: Any) -> Config:
    return tiny_config(data_dir, **COMMON | changes)


def make_pack(
    configs: dict[str, Config], english: Any, root: pathlib.Path, devices: int = 1
) -> pack.Pack:
    mesh_config = next(iter(configs.values())).mesh
    mesh = sharding.make_mesh(mesh_config, jax.devices()[:devices], packed=True)
    alone = sharding.of_one_member(mesh)
    return pack.Pack(
        [
            pack.Member(
                name,
                train.Trainer.make(config, {"en": english}, alone, training=False),
                RunDirectory(root / name),
            )
            for name, config in configs.items()
        ],
        mesh,
    )


def train_pack(made: pack.Pack) -> dict[str, str]:
    return pack.train(made, train.Clock(), distributed.Interrupts())


def train_alone(config: Config, english: Any, path: pathlib.Path) -> None:
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    trainer = train.Trainer.make(config, {"en": english}, mesh)
    train.train(trainer, RunDirectory(path), train.Clock(), distributed.Interrupts())


def saved(path: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint, whatever wrote it."""
    checkpoints = Checkpoints(path / "checkpoints")
    try:
        state = checkpoints._manager.restore(step)
    finally:
        checkpoints.close()
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(where): np.asarray(leaf) for where, leaf in leaves}


def records(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns a run's metrics, without what a clock says."""
    return [
        {name: v for name, v in record.items() if name[:5] not in ("time/", "perf/")}
        for record in RunDirectory(path).metrics()
    ]
