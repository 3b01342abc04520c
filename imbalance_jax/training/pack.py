"""Runs of one shape that train as one program: a pack.

Its members differ in data, seed and course of the learning rate. Their states, batches and id
maps are stacked, in a first dimension E; one program updates them all, and one compilation
serves them. All else is each member's own, so that it leaves an ordinary run directory, which
`python -m imbalance_jax.main --workdir=` goes on with alone.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imbalance_jax import config as config_lib
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import sharding, tuning
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.checkpoint import Checkpoints, remove_unfinished_checkpoints
from imbalance_jax.config import pack_shape
from imbalance_jax.evaluation.perplexity import PerplexityEvaluator
from imbalance_jax.runs.progress import Progress
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training.experiment import Experiment
from imbalance_jax.training.loop import (
    PeerLost,
    Preempted,
    RunProgress,
    explain_error,
    explain_out_of_memory,
    record_run_start,
)
from imbalance_jax.training.recorder import RunTimer


@dataclasses.dataclass(frozen=True)
class PackMember:
    """A run of a pack. Its trainer is on the mesh `sharding.of_one_member`."""

    name: str
    trainer: Experiment
    run: RunDirectory

    @functools.cached_property
    def start(self) -> int:
        """The step of its newest checkpoint, when that is first asked for."""
        begun = bool(distributed.broadcast_from_process_0(np.bool_(self.run.checkpoints.exists())))
        if not begun:
            return 0
        checkpoints = Checkpoints(self.run.checkpoints)
        try:
            return max(checkpoints.steps(), default=0)
        finally:
            checkpoints.close()


class Pack:
    """Runs that are stacked, and the programs that work on the stack."""

    def __init__(self, members: Sequence[PackMember], mesh: Mesh, way: str = "") -> None:
        """Args:
        members: one or more runs.
        mesh: of all devices; its axis `member` shares the runs out.
        way: how a device takes its members, scan or vmap; otherwise what tuning.py says.

        Raises:
          ValueError: the runs cannot be stacked, or their batches cut over the devices.
        """
        self.members, self.mesh = tuple(members), mesh
        self.first = members[0].trainer
        _check_members_alike(members)
        sharding.check_batch(self.first.config, mesh)
        self.way = way or tuning.choose_packing(mesh)
        # Places in the stack: where members do not divide over their axis, the last ones are
        # copies of the first member that never train.
        each = mesh.shape["member"]
        self.size = -(-len(members) // each) * each
        self._given = step_lib.make_step_input_shardings(mesh)
        # Worked out one by one, as a run alone does.
        steps_S = np.arange(self.first.stream.steps)
        self._rates_ES = np.stack(
            [_compute_learning_rates(member.trainer, steps_S) for member in self._places()]
        )

    @property
    def steps(self) -> int:
        return self.first.stream.steps

    def _places(self) -> tuple[PackMember, ...]:
        return self.members + self.members[:1] * (self.size - len(self.members))

    def abstract_state(self) -> step_lib.TrainState:
        """Returns the shapes and shardings of the stacked state."""
        config, vocab_size = self.first.config, self.first.vocabulary.size
        return stack_shapes(step_lib.make_abstract_state(config, vocab_size, self.mesh), self.size)

    def compile_step(self, state_E: step_lib.TrainState) -> jax.stages.Compiled:
        """Returns the compiled step for states of these shapes and shardings."""
        step = step_lib.jit_packed_step(self.first.config, self.mesh, state_E, self.way)
        given_E = self.place(0, np.ones(self.size, bool))
        return step.lower(state_E, given_E, self.map_EGU()).compile()

    def stack(self, states: Callable[[PackMember], step_lib.TrainState]) -> step_lib.TrainState:
        """Returns the stacked state of members' states, which are made one at a time."""
        shapes = self.abstract_state()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        zeros = functools.partial(jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype))
        state_E = jax.jit(lambda: zeros(shapes), out_shardings=shardings)()
        insert = jax.jit(_insert_member_state, out_shardings=shardings, donate_argnums=0)
        for place, member in enumerate(self.members):
            state_E = insert(state_E, states(member), place)
        return state_E

    def init_state(self) -> step_lib.TrainState:
        """Returns the stacked state before the first update: each member's as it is alone."""
        trainer = self.first
        make = step_lib.jit_init_state(trainer.config, trainer.vocabulary.size, trainer.mesh)
        return self.stack(lambda member: member.trainer.init_state(make))

    def take(self, state_E: step_lib.TrainState, place: int) -> step_lib.TrainState:
        """Returns one member's state, on all devices in the way of a run alone."""
        return self._take(state_E, place)

    @functools.cached_property
    def _take(self) -> jax.stages.Wrapped:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.first.abstract_state())
        return jax.jit(_take_member_state, out_shardings=shardings)

    def map_EGU(self) -> jax.Array:
        maps = np.stack([member.trainer.vocabulary.map_GU for member in self._places()])
        return distributed.place_whole_arrays(maps, self._given.alive)

    def place(self, step: int, alive_E: np.ndarray) -> step_lib.StepInput:
        """Returns on the devices what the members that are alive train on in a step."""
        batches = {
            place: member.trainer.stream.batch(step)
            for place, member in enumerate(self.members)
            if alive_E[place]
        }
        anything = next(iter(batches.values()))
        stacked = [batches.get(place, anything) for place in range(self.size)]
        batch = step_lib.Batch(
            np.stack([batch.ids_BW for batch in stacked]),
            np.stack([batch.language_B for batch in stacked]),
        )
        given_E = step_lib.StepInput(batch, self._rates_ES[:, step], alive_E)
        return distributed.place_whole_arrays(given_E, self._given)

    def about(self, member: PackMember) -> dict[str, Any]:
        """Returns a member's provenance, with whom it was packed and how."""
        others = [other.name for other in self.members if other is not member]
        packed = {"with": others, "on_a_device": self.way}
        found = member.trainer.provenance(self.mesh) | {"packed": packed}
        at_once = self.size // self.mesh.shape["member"]
        if self.way == "vmap" and at_once > 1:
            found["conditions"] |= {"members_at_once": at_once}
        return found


def stack_shapes(shapes: Any, size: int) -> Any:
    """Returns the shapes and shardings of so many stacked, of those of one on the same mesh."""
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

    def of(leaf_E: jax.Array, leaf: jax.Array) -> jax.Array:
        return jnp.where(_make_place_mask(leaf_E, place), leaf[None], leaf_E)

    return jax.tree.map(of, state_E, state)


def _take_member_state(state_E: step_lib.TrainState, place: jax.Array) -> step_lib.TrainState:
    """Takes a member's state out of a stack: a sum over places, all others zero.

    An index would gather the whole stack on every device. Bits are summed, not numbers, so that
    a negative zero stays one.
    """

    def of(leaf_E: jax.Array) -> jax.Array:
        bits_E = jax.lax.bitcast_convert_type(leaf_E, jnp.uint32)
        bits = jnp.sum(
            jnp.where(_make_place_mask(leaf_E, place), bits_E, 0), axis=0, dtype=jnp.uint32
        )
        return jax.lax.bitcast_convert_type(bits, leaf_E.dtype)

    return jax.tree.map(of, state_E)


def _make_place_mask(leaf_E: jax.Array, place: jax.Array) -> jax.Array:
    return (jnp.arange(leaf_E.shape[0]) == place).reshape(-1, *(1,) * (leaf_E.ndim - 1))


def _compute_learning_rates(trainer: Experiment, steps_S: np.ndarray) -> np.ndarray:
    """Returns the learning rate of every step, one at a time as in the step of a run alone."""
    rate = step_lib.learning_rate(trainer.config.optimizer, len(steps_S))
    return np.asarray(jax.jit(functools.partial(jax.lax.map, rate))(steps_S))


def _check_members_alike(members: Sequence[PackMember]) -> None:
    """Raises ValueError if two runs cannot be stacked, naming what differs."""
    first, *others = members
    for member in members:
        alone = pack_shape.find_packing_obstacle(member.trainer.config)
        if alone:
            raise ValueError(f"{member.name}: {alone}")
    for other in others:
        for field, ours, theirs in config_lib.find_differences(
            _get_member_shape(first), _get_member_shape(other)
        ):
            raise ValueError(
                f"{first.name} and {other.name} cannot train in one program: {field} is {ours!r} "
                f"in {first.name} and {theirs!r} in {other.name}. Set them equal, or list the "
                "two in --members of different commands."
            )


def _get_member_shape(member: PackMember) -> dict[str, Any]:
    """Returns what the members of a pack have in common, by field."""
    trainer = member.trainer
    # What follows from text and tokenizers, by the field that a user would look at.
    return pack_shape.extract_pack_shape(trainer.config) | {
        "steps": trainer.stream.steps,  # fewer than the config's where the text ends
        "vocabulary": {
            "size": trainer.vocabulary.size,
            "largest_source": trainer.vocabulary.map_GU.shape[1],
            "dtype_of_ids": str(trainer.stream.batch(0).ids_BW.dtype),
        },
    }


def train_members(
    pack: Pack, times: RunTimer, interrupts: distributed.SharedInterrupts
) -> dict[str, str]:
    """Trains the members of a pack to their ends, from the step that all have reached.

    Args:
      pack: members with the same `start`.
      times: where the time of all goes.
      interrupts: what asks them to stop.

    Returns:
      What went wrong, by the names of the members that failed.

    Raises:
      ValueError: the states do not fit the config or the devices; nothing is written.
      Preempted: it was asked to stop, and every member has saved the same step.
    """
    print(f"Compiling for {len(pack.members)} runs together", flush=True)
    with times("compile"), distributed.propagate_errors():
        update, evaluator = _compile_pack(pack)
    if interrupts.poll():
        raise Preempted(None)
    start = pack.members[0].start
    assert all(member.start == start for member in pack.members)
    with explain_out_of_memory(pack.first.config, pack.mesh.shape):
        state_E = None if start else pack.init_state()
    with distributed.propagate_errors():
        if distributed.is_writer():
            for member in pack.members:
                member.run.claim(member.trainer.config)
                remove_unfinished_checkpoints(member.run.checkpoints)
    with contextlib.ExitStack() as stack:
        checkpoints = {}
        for member in pack.members:
            keep = member.trainer.config.checkpoint.keep
            checkpoints[member.name] = Checkpoints(member.run.checkpoints, keep=keep)
            stack.callback(checkpoints[member.name].close)
            stack.callback(member.run.release)
        if start:
            print(f"Going on from step {start:,}", flush=True)
            like = pack.first.abstract_state()
            with explain_out_of_memory(pack.first.config, pack.mesh.shape):
                state_E = pack.stack(lambda member: checkpoints[member.name].restore(start, like))
        with distributed.propagate_errors():
            begun = [record_run_start(m.trainer, m.run, start, pack.about(m)) for m in pack.members]
        for line in filter(None, dict.fromkeys(each.change for each in begun)):
            print(line, flush=True)  # once, where it is the same for all
        before = [member.run.newest("time/") for member in pack.members]
        times.go_on(max(before, key=lambda record: record.get("time/total", 0.0)))
        courses: list[RunProgress] = []
        for place, member in enumerate(pack.members):
            alignment = courses[0].alignment if courses else None
            course = RunProgress(
                member.trainer,
                member.run,
                times,
                interrupts,
                checkpoints[member.name],
                evaluator.of(member.trainer.vocabulary),
                start,
                sent=begun[place].sent,
                name=member.name,
                place=place,
                together=len(pack.members),
                programs=alignment.programs if alignment else None,
            )
            courses.append(course)
            stack.callback(course.recorder.close)
        assert state_E is not None
        try:
            failed = _PackLoop(pack, courses, times, update, state_E).run()
        except Preempted:
            raise
        except Exception:  # others may be gone, of whom closing would wait
            distributed.skip_stack_cleanup(stack)
            raise
        return failed


def _compile_pack(pack: Pack) -> tuple[jax.stages.Compiled, PerplexityEvaluator]:
    evaluator, config = pack.first.evaluator(), pack.first.config
    try:
        evaluator.compile(pack.first.abstract_state().params, config.model.L)
        return pack.compile_step(pack.abstract_state()), evaluator
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(explain_error(config, error, pack.mesh.shape)) from error


def _save_member_checkpoint(course: RunProgress, state: step_lib.TrainState) -> None:
    course.save(state)
    course.checkpoints.wait()


def _score_and_finish_member(course: RunProgress, state: step_lib.TrainState) -> None:
    course.score(state)
    course.finish()


class _PackLoop:
    """The training loop of a pack, and which of its members are still in it."""

    def __init__(
        self,
        pack: Pack,
        courses: Sequence[RunProgress],
        times: RunTimer,
        update: jax.stages.Compiled,
        state_E: step_lib.TrainState,
    ) -> None:
        self._pack, self._courses, self._times = pack, courses, times
        self._update, self._state_E = update, state_E
        self._alive_E = np.arange(pack.size) < len(courses)
        self._failed: dict[str, str] = {}
        self._pending: tuple[int, step_lib.Metrics] | None = None
        self._progress: Progress

    def run(self) -> dict[str, str]:
        """Trains; returns what went wrong, by the names of members."""
        work = self._courses[0].work
        begun = work.after(self._courses[0].done)
        with Progress("Training", work.total, start=begun) as self._progress:
            try:
                self._train()
                self._each(_score_and_finish_member)
            except Preempted:
                self._flush()  # what is logged of the step that is saved
                self._each(_save_member_checkpoint)
                raise
        return self._failed

    def _train(self) -> None:
        pack, start = self._pack, self._courses[0].done
        map_EGU, work = pack.map_EGU(), self._courses[0].work
        self._each(lambda course, state: course.begin(state, self._progress))
        for done in range(start + 1, pack.steps + 1):
            if not self._alive_E.any():
                return
            try:
                with self._times("data"):
                    given_E = pack.place(done - 1, self._alive_E)
                self._state_E, metrics_E = self._update(self._state_E, given_E, map_EGU)
            except Exception as error:  # of the program that they share
                for place, _ in self._living():
                    self._drop(place, error)
                return
            for course in self._courses:
                course.done = done
            self._note(done, metrics_E)
            self._progress.show(work.before_evaluation(done), self._text())
            if any(course.is_due for _, course in self._living()):
                self._flush()
                self._each(lambda course, state: course.measure(state))
            self._courses[0].poll()

    def _living(self) -> list[tuple[int, RunProgress]]:
        """Returns the members that are alive, with their places in the stack."""
        return [(i, course) for i, course in enumerate(self._courses) if self._alive_E[i]]

    def _each(self, act: Callable[[RunProgress, step_lib.TrainState], None]) -> None:
        """Does something for every member that is alive; one that it fails for is left behind."""
        for place, course in self._living():
            try:
                act(course, self._pack.take(self._state_E, place))
            except (Preempted, PeerLost):
                raise
            except Exception as error:
                self._drop(place, error)

    def _note(self, done: int, metrics_E: step_lib.Metrics) -> None:
        """Takes a step's metrics and reads those of the step before, as `Recorder.note` does."""
        self._flush()
        self._pending = (done, metrics_E)

    def _flush(self) -> None:
        if self._pending is None:
            return
        (done, metrics_E), self._pending = self._pending, None
        values_E: Mapping[str, np.ndarray] = jax.device_get(metrics_E)
        for place, course in self._living():
            mine = {name: values[place] for name, values in values_E.items()}
            try:
                course.recorder.read(done, mine)
            except Exception as error:
                self._drop(place, error)

    def _drop(self, place: int, error: Exception) -> None:
        """Leaves a member behind, as it is."""
        course = self._courses[place]
        if distributed.is_lost_peer(error) and not course.failed_elsewhere():
            raise PeerLost(course.done) from error
        self._alive_E = self._alive_E.copy()  # the devices may still read the one before
        self._alive_E[place] = False
        self._failed[course.name] = course.fail(error)
        self._progress.line(f"{course.name} failed: {self._failed[course.name]}")

    def _text(self) -> str:
        newest = [course.recorder.newest for _, course in self._living()]
        if not newest or not all(newest):
            return ""
        losses = [record["train/loss"] for record in newest]
        speed = sum(record["perf/tokens_per_second"] for record in newest)
        return (
            f"loss {min(losses):.3f} to {max(losses):.3f}   {len(newest)} runs   "
            f"{speed:,.0f} tokens/s together"
        )
