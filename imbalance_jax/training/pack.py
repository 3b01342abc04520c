"""Runs that train as one program: one alone, or several of one shape, stacked.

Members differ in data, seed and course of the learning rate. The states, batches and id maps of
several are stacked, in a first dimension E; one program updates them all, and one compilation
serves them. A run alone is a pack of one, whose program has no such dimension. All else is each
member's own, so that it leaves an ordinary run directory, which
`python -m imbalance_jax.main --workdir=` goes on with alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imbalance_jax import config as config_lib
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import sharding, tuning
from imbalance_jax.compute import step as step_lib
from imbalance_jax.config import pack_shape
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class PackMember:
    """A run of a pack. Its experiment is on the mesh `sharding.make_one_member_mesh`."""

    name: str  # empty for a run alone
    experiment: Experiment
    run: RunDirectory

    def find_start(self) -> int:
        """Returns the step of its newest checkpoint, or 0, as process 0 sees it."""
        newest = np.int32(self.run.newest_checkpoint())
        return int(distributed.broadcast_from_process_0(newest))


class Pack:
    """Members and the programs that work on their states: stacked, or that of a run alone.

    Args:
      members: one or more runs.
      mesh: of all devices; its axis `member` shares the runs out.
      way: how a device takes stacked members, scan or vmap; by default what tuning.py says,
        or nothing for a run alone, which is not stacked.

    Raises:
      ValueError: the runs cannot be stacked, or their batches cut over the devices.
    """

    def __init__(self, members: Sequence[PackMember], mesh: Mesh, way: str = "") -> None:
        self.members, self.mesh = tuple(members), mesh
        self.first = members[0].experiment
        _check_members_alike(members)
        sharding.check_batch(self.first.config, mesh)
        # Places in the stack: where members do not divide over their axis, the last ones are
        # copies of the first member that never train.
        each = mesh.shape["member"]
        self.size = -(-len(members) // each) * each
        self.way = way or ("" if self.size == 1 else tuning.choose_packing(mesh))

    @property
    def steps(self) -> int:
        return self.first.stream.steps

    def find_start(self) -> int:
        """Returns the step that all members go on from.

        Raises:
          ValueError: they have not come equally far.
        """
        starts = {member.name: member.find_start() for member in self.members}
        if len(set(starts.values())) > 1:
            steps = ", ".join(f"{name} {step:,}" for name, step in starts.items())
            raise ValueError(
                f"Another process trained some of these runs meanwhile, and they have saved other "
                f"steps: {steps}. Start this command again."
            )
        return next(iter(starts.values()))

    def _places(self) -> tuple[PackMember, ...]:
        return self.members + self.members[:1] * (self.size - len(self.members))

    def abstract_state(self) -> step_lib.TrainState:
        """Returns the shapes and shardings of the members' state."""
        config, vocab_size = self.first.config, self.first.vocabulary.size
        state = step_lib.make_abstract_state(config, vocab_size, self.mesh)
        return stack_shapes(state, self.size) if self.way else state

    def compile_step(self, state: step_lib.TrainState) -> jax.stages.Compiled:
        """Returns the compiled step for states of these shapes and shardings."""
        step = step_lib.jit_step(self.first.config, self.steps, self.mesh, state, self.way)
        given = self.place(0, np.ones(self.size, bool))
        return step.lower(state, given, self.map_EGU()).compile()

    def stack(self, states: Callable[[PackMember], step_lib.TrainState]) -> step_lib.TrainState:
        """Returns the stacked state of members' states, which are made one at a time."""
        if not self.way:
            return states(self.members[0])
        shapes = self.abstract_state()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        zeros = functools.partial(jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype))
        state_E = jax.jit(lambda: zeros(shapes), out_shardings=shardings)()
        insert = jax.jit(_insert_member_state, out_shardings=shardings, donate_argnums=0)
        for place, member in enumerate(self.members):
            state_E = insert(state_E, states(member), place)
        return state_E

    def init_state(self) -> step_lib.TrainState:
        """Returns the state before the first update: each member's as it is alone."""
        first = self.first
        make = step_lib.jit_init_state(first.config, first.vocabulary.size, first.mesh)
        return self.stack(lambda member: member.experiment.init_state(make))

    def take(self, state: step_lib.TrainState, place: int) -> step_lib.TrainState:
        """Returns one member's state, on all devices in the way of a run alone."""
        return self._take(state, place) if self.way else state

    @functools.cached_property
    def _take(self) -> jax.stages.Wrapped:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.first.abstract_state())
        return jax.jit(_take_member_state, out_shardings=shardings)

    def take_metrics(self, metrics: step_lib.Metrics, place: int) -> step_lib.Metrics:
        """Returns one member's metrics of a step."""
        return {name: values[place] for name, values in metrics.items()} if self.way else metrics

    def map_EGU(self) -> jax.Array:
        """Returns the members' id maps on the devices; (G, U) for a run alone."""
        if not self.way:
            return self.first.map_GU()
        maps = np.stack([member.experiment.vocabulary.map_GU for member in self._places()])
        return distributed.place_whole_arrays(maps, self._shardings.alive)

    @functools.cached_property
    def _shardings(self) -> step_lib.StepInput:
        return step_lib.make_step_input_shardings(self.mesh)

    @functools.cached_property
    def _rates_ES(self) -> np.ndarray:
        """The learning rates of all steps, worked out one at a time as a run alone does."""
        steps_S = np.arange(self.steps)

        def compute(experiment: Experiment) -> np.ndarray:
            rate = step_lib.learning_rate(experiment.config.optimizer, self.steps)
            return np.asarray(jax.jit(functools.partial(jax.lax.map, rate))(steps_S))

        return np.stack([compute(member.experiment) for member in self._places()])

    @functools.cached_property
    def _rows_E(self) -> list[np.ndarray]:
        """The rows of each member's batch that devices of this process hold."""
        placed = self._shardings.batch
        held_EB = np.zeros((self.size, self.first.config.batch_size), bool)
        for index in placed.addressable_devices_indices_map(held_EB.shape).values():
            held_EB[index] = True
        return [np.flatnonzero(held_B) for held_B in held_EB]

    @functools.cached_property
    def _one_row(self) -> step_lib.Batch:
        return self.first.host_batch(0, slice(1))

    def place(self, step: int, alive_E: np.ndarray) -> step_lib.StepInput | step_lib.Batch:
        """Returns the inputs of a step for the members that are alive, on the devices.

        This process reads the rows that its devices hold, and leaves the others zero.
        """
        if not self.way:
            return self.first.batch(step)
        stack = (self.size, self.first.config.batch_size)
        batch_E = jax.tree.map(lambda x: np.zeros((*stack, *x.shape[1:]), x.dtype), self._one_row)
        for place, member in enumerate(self.members):
            rows = self._rows_E[place]
            if alive_E[place] and len(rows):
                batch = member.experiment.host_batch(step, rows)
                for all_rows, read in zip(*map(jax.tree.leaves, (batch_E, batch)), strict=True):
                    all_rows[place, rows] = read
        given_E = step_lib.StepInput(batch_E, self._rates_ES[:, step], alive_E)
        return distributed.place_whole_arrays(given_E, self._shardings)

    def provenance(self, member: PackMember) -> dict[str, Any]:
        """Returns a member's provenance, with whom it was packed and how."""
        record = member.experiment.provenance(self.mesh)
        if self.way:
            others = [other.name for other in self.members if other is not member]
            record |= {"packed": {"with": others, "on_a_device": self.way}}
        at_once = self.size // self.mesh.shape["member"]
        if self.way == "vmap" and at_once > 1:
            record["conditions"] |= {"members_at_once": at_once}
        return record


def stack_shapes(shapes: Any, size: int) -> Any:
    """Returns the shapes and shardings of a stack, given those of one on the same mesh."""
    shardings = sharding.stack_shardings(jax.tree.map(lambda leaf: leaf.sharding, shapes))
    return jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype, sharding=placed),
        shapes,
        shardings,
    )


def _insert_member_state(
    state_E: step_lib.TrainState, state: step_lib.TrainState, place: jax.Array
) -> step_lib.TrainState:
    """Puts a member's state into a stack: a choice at every place, which needs no other device."""

    def insert(leaf_E: jax.Array, leaf: jax.Array) -> jax.Array:
        return jnp.where(_make_place_mask(leaf_E, place), leaf[None], leaf_E)

    return jax.tree.map(insert, state_E, state)


def _take_member_state(state_E: step_lib.TrainState, place: jax.Array) -> step_lib.TrainState:
    """Takes a member's state out of a stack: a sum over places, all others zero.

    An index would gather the whole stack on every device. Bits are summed, not numbers, so that
    a negative zero stays one.
    """

    def take(leaf_E: jax.Array) -> jax.Array:
        bits_E = jax.lax.bitcast_convert_type(leaf_E, jnp.uint32)
        bits = jnp.sum(
            jnp.where(_make_place_mask(leaf_E, place), bits_E, 0), axis=0, dtype=jnp.uint32
        )
        return jax.lax.bitcast_convert_type(bits, leaf_E.dtype)

    return jax.tree.map(take, state_E)


def _make_place_mask(leaf_E: jax.Array, place: jax.Array) -> jax.Array:
    return (jnp.arange(leaf_E.shape[0]) == place).reshape(-1, *(1,) * (leaf_E.ndim - 1))


def _check_members_alike(members: Sequence[PackMember]) -> None:
    """Raises ValueError if two runs cannot be stacked, naming the field that differs."""
    first, *others = members
    for member in members if others else ():
        obstacle = pack_shape.find_packing_obstacle(member.experiment.config)
        if obstacle:
            raise ValueError(f"{member.name}: {obstacle}")
    for other in others:
        for field, ours, theirs in config_lib.find_differences(
            _describe_member_shape(first), _describe_member_shape(other)
        ):
            raise ValueError(
                f"{first.name} and {other.name} cannot train in one program: {field} is {ours!r} "
                f"in {first.name} and {theirs!r} in {other.name}. Set them equal, or list the "
                "two in --members of different commands."
            )


def _describe_member_shape(member: PackMember) -> dict[str, Any]:
    experiment = member.experiment
    return pack_shape.describe_pack_shape(
        experiment.config,
        steps=experiment.stream.steps,
        vocab_size=experiment.vocabulary.size,
        largest_source=experiment.vocabulary.map_GU.shape[1],
        id_dtype=str(_find_id_dtype(experiment)),
    )


def _find_id_dtype(experiment: Experiment) -> np.dtype:
    return experiment.stream.batch(0, slice(1)).ids_BW.dtype
