"""The training loop of a pack; a run alone is a pack of one.

`train_members` is the setup, and `TrainingLoop` the order of things. What a member does besides
its updates is in run_progress.py, and how several states are updated as one in pack.py.
"""

import contextlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.checkpoint import (
    Checkpoints,
    DamagedCheckpoint,
    remove_unfinished_checkpoints,
)
from imbalance_jax.evaluation.perplexity import PerplexityEvaluator
from imbalance_jax.runs.progress import Progress
from imbalance_jax.training.ends import (
    CheckpointSetAside,
    MemberRefused,
    PeerLost,
    Preempted,
    explain_error,
    explain_out_of_memory,
)
from imbalance_jax.training.pack import Pack
from imbalance_jax.training.recorder import RunTimer, describe_newest_records
from imbalance_jax.training.run_progress import RunProgress, record_run_start


class TrainingLoop:
    """Updates the members of a pack to their ends, and knows which of them still train.

    `runs` are the members, which have had the same number of updates, and `state` that of all.
    """

    def __init__(
        self,
        pack: Pack,
        runs: Sequence[RunProgress],
        times: RunTimer,
        interrupts: distributed.SharedInterrupts,
        update: jax.stages.Compiled,
        state: step_lib.TrainState,
    ) -> None:
        self._pack, self._runs, self._times, self._interrupts = pack, runs, times, interrupts
        self._update, self._state, self._done = update, state, runs[0].done
        self._alive_E = np.arange(pack.size) < len(runs)
        self._failed: dict[str, str] = {}
        self._pending: tuple[int, step_lib.Metrics] | None = None
        self._progress: Progress

    def run(self) -> dict[str, str]:
        """Trains; returns what went wrong, by the names of the members that failed.

        Raises:
          Preempted: it was asked to stop, and every member that still trains has saved its state.
          PeerLost: another process has gone.
        """
        work = self._runs[0].work
        with Progress("Training", work.total, start=work.after(self._done)) as self._progress:
            try:
                self._train()
            except (Preempted, PeerLost):
                raise
            except Exception as error:  # of what all members share
                for run in self._living():
                    self._drop(run, error)
        return self._failed

    def _train(self) -> None:
        pack, work, maps = self._pack, self._runs[0].work, self._pack.map_EGU()
        try:
            self._for_each(lambda run, state: run.begin(state, self._progress))
            for done in range(self._done + 1, pack.steps + 1):
                if not self._living():
                    return
                with (
                    jax.profiler.StepTraceAnnotation("train", step_num=done),
                    jax.transfer_guard("disallow"),  # a step moves nothing but what is named here
                ):
                    with self._times("data"), jax.transfer_guard("allow"):
                        batch = pack.place(done - 1, self._alive_E)
                    self._state, metrics = self._update(self._state, batch, maps)
                    self._count(done)
                    # One step late, so that the devices always have the next step to work on.
                    self._read_metrics()
                    self._pending = (done, metrics)
                newest = [run.recorder.newest for run in self._living()]
                self._progress.show(work.before_evaluation(done), describe_newest_records(newest))
                if any(run.is_due for run in self._living()):
                    self._read_metrics()
                    self._for_each(RunProgress.measure)
                if self._interrupts.poll():
                    raise Preempted(done)
            self._for_each(RunProgress.score_and_finish)
        except Preempted:
            self._read_metrics()  # what is logged of the step that is saved
            self._for_each(RunProgress.save_and_wait)
            if self._living():
                with contextlib.suppress(Exception):  # all is saved, and the run stops in any case
                    self._look_ahead()
                raise

    def _look_ahead(self) -> None:
        """Makes one more update, for a resume to be held against; its result is dropped."""
        pack, done = self._pack, self._done
        if done == pack.steps:
            return
        batch = pack.place(done, self._alive_E)
        self._state, metrics = self._update(self._state, batch, pack.map_EGU())
        values = jax.device_get(metrics)
        for run in self._living():
            run.look_ahead(done + 1, pack.take_metrics(values, run.place))

    def _count(self, done: int) -> None:
        self._done = done
        for run in self._runs:
            run.done = done

    def _read_metrics(self) -> None:
        """Gives each member its metrics of the newest step, which fails one that diverges."""
        if self._pending is None:
            return
        (done, metrics), self._pending = self._pending, None
        values = jax.device_get(metrics)
        for run in self._living():
            try:
                run.read(done, self._pack.take_metrics(values, run.place))
            except Exception as error:
                self._drop(run, error)

    def _for_each(self, act: Callable[[RunProgress, step_lib.TrainState], None]) -> None:
        """Does something for every member that trains; one that it fails for is left behind.

        What process 0 alone could not do is an error in all of them: they go on with the same
        members.
        """
        for run in self._living():
            try:
                act(run, self._pack.take(self._state, run.place))
                run.agree_on_errors()
            except (Preempted, PeerLost):
                raise
            except Exception as error:
                self._drop(run, error)

    def _drop(self, run: RunProgress, error: Exception) -> None:
        """Leaves a member behind, as it is, and writes down why."""
        if distributed.is_lost_peer(error) and not run.has_failed_elsewhere():
            raise PeerLost(self._done) from error
        self._alive_E = self._alive_E.copy()  # the devices may still read the one before
        self._alive_E[run.place] = False
        self._failed[run.name] = run.fail(error)
        if run.name:
            self._progress.line(f"{run.name} failed: {self._failed[run.name]}")

    def _living(self) -> list[RunProgress]:
        return [run for run in self._runs if self._alive_E[run.place]]


def train_members(
    pack: Pack, times: RunTimer, interrupts: distributed.SharedInterrupts
) -> dict[str, str]:
    """Trains the members of a pack to their ends, from the newest step that all have saved.

    Returns what went wrong, by the names of the members that failed.

    Raises:
      ValueError: the states do not fit the config or the devices, and nothing is written; or the
        members have not come equally far.
      Preempted: it was asked to stop, and every member has saved the same step.
      CheckpointSetAside: a member has to go on from an older checkpoint, for which this can be
        called again.
      MemberRefused: a member cannot go on; this can be called again for the others.
      PeerLost: another process has gone.
    """
    together = f" for {len(pack.members)} runs together" if len(pack.members) > 1 else ""
    print(f"Compiling{together}", flush=True)
    with times("compile"), distributed.propagate_errors():
        update, evaluator = compile_programs(pack)
    if interrupts.poll():
        raise Preempted(None)
    # Before anything is written: the state may not fit the devices.
    with explain_out_of_memory(pack.first.config, pack.mesh.shape):
        state = None if pack.find_start() else pack.init_state()
    with distributed.propagate_errors():
        if distributed.is_writer():
            for member in pack.members:
                member.run.claim(member.experiment.config)
                remove_unfinished_checkpoints(member.run.checkpoints)
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as recorders:
        checkpoints: dict[str, Checkpoints] = {}
        for member in pack.members:
            stack.callback(member.run.release)
            keep = member.experiment.config.checkpoint.keep
            checkpoints[member.name] = Checkpoints(member.run.checkpoints, keep=keep)
            stack.callback(checkpoints[member.name].close)
        start = pack.find_start()  # nobody else trains in the directories from here on
        with explain_out_of_memory(pack.first.config, pack.mesh.shape):
            if start:
                like = pack.first.abstract_state()
                state = pack.stack(
                    lambda member: _restore_member(
                        checkpoints[member.name], start, like, member.name
                    )
                )
                print(f"Going on from step {start:,}", flush=True)
                if any(start in saved.unchecked for saved in checkpoints.values()):
                    print(
                        "An earlier version saved it, without digests that it could be checked by.",
                        flush=True,
                    )
            state = state or pack.init_state()
        for saved in checkpoints.values():
            for line in saved.open():
                print(line, flush=True)
        with distributed.propagate_errors():
            earlier = [
                record_run_start(member.experiment, member.run, start, pack.provenance(member))
                for member in pack.members
            ]
        for line in filter(None, dict.fromkeys(starts.change for starts in earlier)):
            print(line, flush=True)  # once, where it is the same for all
        records = [member.run.newest_with("time/total") for member in pack.members]
        times.add_earlier_starts(max(records, key=lambda record: record.get("time/total", 0.0)))
        runs: list[RunProgress] = []
        for place, member in enumerate(pack.members):
            alignment = runs[0].alignment if runs else None
            run = RunProgress(
                pack,
                place,
                times,
                interrupts,
                checkpoints[member.name],
                evaluator.of(member.experiment.vocabulary) if place else evaluator,
                start,
                sent=earlier[place].sent,
                programs=alignment.programs if alignment else None,
            )
            recorders.callback(run.recorder.close)
            runs.append(run)
        failed: dict[str, str] | None = None
        try:
            failed = TrainingLoop(pack, runs, times, interrupts, update, state).run()
            return failed
        except Preempted:
            failed = {}
            raise
        finally:
            if failed is None or len(failed) == len(runs):
                distributed.skip_stack_cleanup(stack)  # it would wait for processes that are gone


def _restore_member(
    checkpoints: Checkpoints, step: int, like: step_lib.TrainState, name: str
) -> step_lib.TrainState:
    """Returns the state of the newest checkpoint, at a step, of a member of some name.

    Raises:
      CheckpointSetAside: it is damaged and was renamed, and there is an older one.
      DamagedCheckpoint: it is damaged, and there is none. It is left as it is.
      MemberRefused: the same, of one of several members.
    """
    try:
        return checkpoints.restore(step, like)
    except DamagedCheckpoint:
        try:
            state, damaged = checkpoints.restore_newest(like)
        except DamagedCheckpoint as error:
            if not name:
                raise
            raise MemberRefused(name, str(error)) from error
    if not damaged:  # the second attempt read it: the storage, not the checkpoint, had a fault
        return state
    with distributed.propagate_errors():
        for newer, line in damaged.items() if distributed.is_writer() else ():
            aside = checkpoints.set_aside(newer)
            print(f"{line} It is kept as {aside.name}.", flush=True)
    print(f"{name or 'The run'} goes on from step {int(state.step):,} instead.", flush=True)
    raise CheckpointSetAside


def compile_programs(pack: Pack) -> tuple[jax.stages.Compiled, PerplexityEvaluator]:
    """Returns the compiled step of a pack, and the compiled evaluator of its first member.

    Raises:
      ValueError: they do not fit the devices.
    """
    config, evaluator = pack.first.config, pack.first.evaluator()
    try:
        evaluator.compile(pack.first.abstract_state().params, config.model.L)
        return pack.compile_step(pack.abstract_state()), evaluator
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(explain_error(config, error, pack.mesh.shape)) from error
