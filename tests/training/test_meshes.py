"""Every mesh of eight devices trains the same run.

The shapes with members are packs. What differs is the order in which fp32 sums are added up:
over the devices of an axis, and in matrix products over the parts of a dimension.
"""

import dataclasses
import itertools
import pathlib

import jax
import numpy as np
import pytest
from helpers import tiny_config

from imbalance_jax.bench import topology
from imbalance_jax.compute import sharding
from imbalance_jax.compute import step as step_lib
from imbalance_jax.config import Config, MeshConfig
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import experiment, pack

STEPS = 20
AXES = sharding.AXES
SHAPES = [shape for shape in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(shape) == 8]
# In the loss of 20 steps.
TOLERANCE = 1e-5
# Those that have most axes cut; the others take as long each.
ALWAYS = [(1, 2, 2, 2), (2, 1, 2, 2)]


def make_config(data_dir: pathlib.Path, seed: int = 0, **mesh: int) -> Config:
    # Every dimension divides by eight, so that any axis may have all devices.
    model = {"model__N": 1, "model__H": 8, "model__K": 4, "model__F": 32}
    sizes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    return tiny_config(data_dir, seed=seed, steps=STEPS, **model, **sizes)


@pytest.fixture(scope="module")
def alone(data_dir, english) -> list[list[float]]:
    """The losses of seeds on one device."""
    curves = []
    config = make_config(data_dir)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    update = make = None
    for seed in range(8):
        seeded = dataclasses.replace(config, seed=seed)
        trainer = experiment.Experiment.make(seeded, {"en": english}, mesh)
        make = make or step_lib.jit_init_state(config, trainer.vocabulary.size, mesh)
        state = trainer.init_state(make)
        update = update or trainer.compile_step(state)
        losses = []
        map_GU = trainer.map_GU()
        for step in range(STEPS):
            state, metrics = update(state, trainer.batch(step), map_GU)
            losses.append(float(metrics["loss"]))
        curves.append(losses)
    return curves


def curves_on(shape: tuple[int, ...], data_dir: pathlib.Path, english) -> list[list[float]]:
    """Returns the losses of as many seeds as a mesh has members."""
    sizes = dict(zip(AXES, shape, strict=True))
    config = make_config(data_dir, **sizes)
    mesh = sharding.make_mesh(config.mesh, jax.devices(), packed=True)
    members = [
        pack.PackMember(
            f"seed{seed}",
            experiment.Experiment.make(
                make_config(data_dir, seed, **sizes),
                {"en": english},
                sharding.make_one_member_mesh(mesh),
                training=False,
            ),
            RunDirectory("unused"),
        )
        for seed in range(sizes["member"])
    ]
    if len(members) > 1:
        packed = pack.Pack(members, mesh)
        state_E, alive_E, losses_SE = packed.init_state(), np.ones(packed.size, bool), []
        update = packed.compile_step(packed.abstract_state())
        for step in range(STEPS):
            state_E, metrics_E = update(state_E, packed.place(step, alive_E), packed.map_EGU())
            losses_SE.append(np.asarray(metrics_E["loss"]))
        return np.transpose(losses_SE).tolist()
    trainer, losses = members[0].experiment, []
    state = trainer.init_state()
    step_of = trainer.compile_step(state)
    for step in range(STEPS):
        state, metrics = step_of(state, trainer.batch(step), trainer.map_GU())
        losses.append(float(metrics["loss"]))
    return [losses]


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, marks=[] if shape in ALWAYS else pytest.mark.slow, id=str(shape))
        for shape in SHAPES
    ],
)
def test_a_mesh_has_the_losses_of_one_device(shape, alone, data_dir, english):
    found = curves_on(shape, data_dir, english)
    assert len(found) == shape[0]
    for mine, theirs in zip(found, alone, strict=False):
        assert theirs[-1] < theirs[0] - 0.1  # it learns, so that a wrong update would show
        np.testing.assert_allclose(mine, theirs, rtol=TOLERANCE)


@pytest.mark.slow
def test_positions_of_languages_compile_beside_members_that_are_cut_both_ways(data_dir):
    # XLA's partitioner ends the process where it cannot cut such a look-up.
    dials = {"model__documents": "apart", "model__position_tables": "per_language"}
    config = tiny_config(data_dir, model__N=1, batch_size=8, model__dropout=0.1, **dials)
    sizes = MeshConfig(member=2, fsdp=2, tensor=2)
    mesh = sharding.make_mesh(sizes, jax.devices(), packed=True)
    topology.trace_step(config, 64, mesh, members=4).lower().compile()
