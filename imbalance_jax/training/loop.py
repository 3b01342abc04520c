"""The training loop: setup above, one short loop below.

A `RunProgress` is what a run does besides its updates, alone or in a pack (pack.py).
"""

import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from imbalance_jax.compute import conditions, hardware
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.checkpoint import Checkpoints, remove_unfinished_checkpoints
from imbalance_jax.config import Config, mesh_shape
from imbalance_jax.data.order.audit import build_mixture_rows
from imbalance_jax.evaluation import alignment as alignment_lib
from imbalance_jax.evaluation import perplexity
from imbalance_jax.evaluation.programs import MeasurementPrograms
from imbalance_jax.runs import storage
from imbalance_jax.runs.progress import Progress, RunWork
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training.cadence import Cadence
from imbalance_jax.training.experiment import Experiment
from imbalance_jax.training.recorder import MetricsRecorder, RunTimer, is_step_due


class Preempted(Exception):
    """The run was asked to stop, and has saved the state after `step`, if it had one yet."""

    def __init__(self, step: int | None) -> None:
        super().__init__("stopped" if step is None else f"stopped after step {step}")
        self.step = step


class PeerLost(Exception):
    """Another process of the run has gone, for no reason that FAILED.json would give."""

    def __init__(self, step: int) -> None:
        super().__init__(f"another process was lost after step {step}")
        self.step = step


class RunFailed(Exception):
    """The run ended with an error after its first step began; FAILED.json says which."""


def train_single_run(
    trainer: Experiment,
    run: RunDirectory,
    times: RunTimer,
    interrupts: distributed.SharedInterrupts,
) -> None:
    """Trains a run to its end, from its newest checkpoint if it has one.

    Raises:
      ValueError: the state does not fit the config or the device; nothing is written.
      Preempted: it was asked to stop.
      Failed: an error after the first step began.
    """
    print("Compiling", flush=True)
    with times("compile"), distributed.propagate_errors():
        update, evaluator = compile_programs(trainer)
    if interrupts.poll():
        raise Preempted(None)
    # Before anything is written: it may not fit the device, or its config.
    begun = bool(distributed.broadcast_from_process_0(np.bool_(run.checkpoints.exists())))
    with explain_out_of_memory(trainer.config, trainer.mesh.shape):
        state = None if begun else trainer.init_state()
    with distributed.propagate_errors():
        if distributed.is_writer():
            run.claim(trainer.config)
            remove_unfinished_checkpoints(run.checkpoints)
    checkpoints = Checkpoints(run.checkpoints, keep=trainer.config.checkpoint.keep)
    with contextlib.ExitStack() as stack:
        stack.callback(run.release)
        stack.callback(checkpoints.close)
        saved = checkpoints.steps()
        start = int(distributed.broadcast_from_process_0(np.int32(saved[-1] if saved else 0)))
        with explain_out_of_memory(trainer.config, trainer.mesh.shape):
            if start:
                state = checkpoints.restore(start, trainer.abstract_state())
                print(f"Going on from step {start:,}", flush=True)
            state = state or trainer.init_state()
        with distributed.propagate_errors():
            before = record_run_start(trainer, run, start, trainer.provenance())
        if before.change:
            print(before.change, flush=True)
        times.go_on(run.newest("time/"))
        course = RunProgress(
            trainer, run, times, interrupts, checkpoints, evaluator, start, sent=before.sent
        )
        try:
            _train_or_record_failure(course, times, update, state)
        except Preempted:
            raise
        except Exception:  # others may be gone, of whom closing would wait
            distributed.skip_stack_cleanup(stack)
            raise


def compile_programs(
    trainer: Experiment,
) -> tuple[jax.stages.Compiled, perplexity.PerplexityEvaluator]:
    state = trainer.abstract_state()
    evaluator = trainer.evaluator()
    try:
        evaluator.compile(state.params, trainer.config.model.L)
        return trainer.compile_step(state), evaluator
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(explain_error(trainer.config, error, trainer.mesh.shape)) from error


@contextlib.contextmanager
def explain_out_of_memory(config: Config, mesh: Mapping[str, int]) -> Iterator[None]:
    """Raises ValueError where memory runs out before the first step."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not hardware.is_out_of_memory(error):
            raise
        raise ValueError(explain_error(config, error, mesh)) from error


def _train_or_record_failure(
    course: "RunProgress", times: RunTimer, update: jax.stages.Compiled, state: step_lib.TrainState
) -> None:
    """Trains a state to the run's end, and writes what the run leaves behind, however it ends."""
    try:
        _train_and_finish(course, times, update, state)
    except Preempted:
        raise
    except Exception as error:
        if distributed.is_lost_peer(error) and not course.failed_elsewhere():
            raise PeerLost(course.done) from error
        raise RunFailed(course.fail(error)) from error
    finally:
        course.recorder.close()


def _train_and_finish(
    course: "RunProgress", times: RunTimer, update: jax.stages.Compiled, state: step_lib.TrainState
) -> None:
    trainer, stream = course.trainer, course.trainer.stream
    map_GU = trainer.map_GU()
    try:
        with Progress("Training", course.work.total, start=course.work.after(course.done)) as bar:
            course.begin(state, bar)
            for done in range(course.done + 1, stream.steps + 1):
                with times("data"):
                    batch = trainer.batch(done - 1)
                state, metrics = update(state, batch, map_GU)
                course.done = done
                course.recorder.note(done, metrics)
                bar.show(course.work.before_evaluation(done), course.recorder.text)
                course.measure(state)
                course.poll()
            course.score(state)
    except Preempted:
        # This may fail as any other save may: the newest step's loss may not be finite.
        course.save(state)
        course.checkpoints.wait()
        raise
    course.finish()


class RunProgress:
    """What a run does besides its updates: it is measured, saved, and ended in its directory.

    `done` is the number of updates that the states given to its methods have had.
    """

    def __init__(
        self,
        trainer: Experiment,
        run: RunDirectory,
        times: RunTimer,
        interrupts: distributed.SharedInterrupts,
        checkpoints: Checkpoints,
        evaluator: perplexity.PerplexityEvaluator,
        start: int,
        *,
        sent: int = -1,
        name: str = "",
        place: int = 0,
        together: int = 1,
        programs: MeasurementPrograms | None = None,
    ) -> None:
        """Args:
        trainer: of the run.
        run: its directory, after `record_run_start`.
        times: where its time goes.
        interrupts: what asks it to stop.
        checkpoints: its own.
        evaluator: a compiled one.
        start: updates that it has had.
        sent: the newest step that it had logged before it went on from `start`; -1 is none.
        name: what its lines begin with, where other runs write some too.
        place: its number among the runs that take turns.
        together: how many these are, whose time `times` counts.
        programs: of alignment, of a run of the same shapes.
        """
        self.trainer, self.run, self.checkpoints, self.name = trainer, run, checkpoints, name
        self.done = start
        self._writer_errors = distributed.WriterErrors()
        self.recorder = MetricsRecorder(trainer, run, times, start, sent, self._writer_errors)
        self._times, self._interrupts, self._evaluator = times, interrupts, evaluator
        self._place, self._together = place, together
        self._validation = trainer.validation_windows()
        self.alignment, self._cadence = _build_alignment(trainer, run, programs)
        self.work = RunWork(
            steps=trainer.stream.steps,
            every=trainer.config.evaluation.every,
            evaluation=trainer.cost_of_scoring(self._validation),
            scoring=sum(map(trainer.cost_of_scoring, trainer.scored_windows())),
        )
        self._progress: Progress

    def poll(self, share: float = 1.0) -> None:
        """Raises Preempted if the run was asked to stop."""
        if self._interrupts.poll():
            raise Preempted(self.done)

    def _show_and_poll(self, begun: float, cost: float, text: str, share: float) -> None:
        """Shows how far a part of the run's work is, which may be one of several runs' part."""
        self._progress.show(begun + (self._place + share) / self._together * cost, text)
        self.poll()

    def begin(self, state: step_lib.TrainState, progress: Progress) -> None:
        """Makes up for what was not measured of the first state; lines go to `progress`."""
        self._progress = progress
        missed = self.done == 0 or self._evaluation_is_due
        evaluated, aligned = distributed.broadcast_from_process_0(
            np.array([self.run.has(self.done, name) for name in ("eval/", "align/")])
        )
        if missed and not evaluated:
            self._evaluate(state)
        if self._cadence.due(self.done) and not aligned:
            self._align(state)
        notes = (*self.alignment.notes, *self.alignment.skipped.values()) if self.alignment else ()
        for line in notes:
            self._line(line)

    @property
    def _is_last(self) -> bool:
        return self.done == self.trainer.stream.steps

    @property
    def _evaluation_is_due(self) -> bool:
        return self._is_last or is_step_due(self.done, self.trainer.config.evaluation.every)

    @property
    def _saving_is_due(self) -> bool:
        return self._is_last or is_step_due(self.done, self.trainer.config.checkpoint.every)

    @property
    def is_due(self) -> bool:
        """Whether `measure` has something to do."""
        return self._evaluation_is_due or self._saving_is_due or self._cadence.due(self.done)

    def measure(self, state: step_lib.TrainState) -> None:
        """Evaluates, aligns and saves a state, as far as each is due."""
        if not self.is_due:
            return
        if self._evaluation_is_due:
            self._evaluate(state)
        if self._cadence.due(self.done):
            self._align(state)
        if self._saving_is_due:
            self.save(state)
        self._writer_errors.agree()

    def _evaluate(self, state: step_lib.TrainState) -> None:
        begun = self.work.before_evaluation(self.done)
        poll = functools.partial(self._show_and_poll, begun, self.work.evaluation, "evaluating")
        with self._times("evaluate"):
            self.recorder.flush()
            found = self._evaluator(state.params, self._validation, poll)
        self._line(_describe_evaluation(self.done, found))
        self.recorder.write(self.done, _make_evaluation_record(found) | self._times.metrics())

    def _align(self, state: step_lib.TrainState) -> None:
        times, alignment, cadence = self._times, self.alignment, self._cadence
        assert alignment is not None
        if not alignment.programs.compile_seconds:
            self._line("Compiling what measures alignment")
        with times("align"):
            self.recorder.flush()
            before, began = alignment.programs.compile_seconds, time.monotonic()
            found = alignment.watch(state, self.trainer.stream, self.poll)
            compiling = alignment.programs.compile_seconds - before
            # The other runs of a pack are measured as often.
            cost = (time.monotonic() - began - compiling) * self._together
        times.shift("align", "compile", compiling)
        news = cadence.settle(
            self.done,
            cost=cost,
            spent=times.seconds["align"],
            elapsed=times.running,
            seconds_per_step=times.training / self.done,
        )
        if news:
            self._line(cadence.describe(cost))
        share = times.seconds["align"] / times.running
        shares = {"align/every": cadence.every, "align/share": round(share, 5)}
        self.recorder.write(self.done, found | shares | times.metrics())

    def save(self, state: step_lib.TrainState) -> None:
        with self._times("checkpoint"):
            self.recorder.flush()
            with self._writer_errors.kept():
                if distributed.is_writer():
                    self.run.flush()  # a run resumed there needs all that was logged before
            self.checkpoints.save(state)
        with self._writer_errors.kept():
            if distributed.is_writer():
                _write_mixture(self.trainer, self.run)

    def score(self, state: step_lib.TrainState) -> None:
        """Scores the last state on the test split, and writes the results."""
        begun, cost = self.work.after(self.done), self.work.scoring
        text = "scoring the test split" + f" of {self.name}" * bool(self.name)
        poll = functools.partial(self._show_and_poll, begun, cost, text)
        with self._times("evaluate"):
            results = self.trainer.score(state, poll, self._evaluator)
            self._line(_describe_evaluation(self.done, results["languages"], "test"))
            for name, scores in results["parallel"].items():
                self._line(_describe_parallel_scores(name, scores))
        with self._writer_errors.kept():
            if distributed.is_writer():
                self.run.write_results({"step": self.done, **results})
        self._writer_errors.agree()

    def failed_elsewhere(self) -> bool:
        """Whether the process that was lost has written down why; it may still be at it."""
        return distributed.wait_for_condition((self.run.path / "FAILED.json").exists)

    def fail(self, error: Exception) -> str:
        """Writes down why the run ended, where another process has not done so, and returns it."""
        message = explain_error(self.trainer.config, error, self.trainer.mesh.shape)
        if jax.process_count() == 1:
            self.checkpoints.close()
            remove_unfinished_checkpoints(self.checkpoints.path)
        elsewhere = isinstance(error, distributed.ElsewhereError)
        if not elsewhere and not (self.run.path / "FAILED.json").exists():
            try:
                self.run.fail(self.done, error, message)
            except OSError as unwritten:
                print(f"error: {storage.describe_os_error(unwritten)}", file=sys.stderr)
        return message

    def finish(self) -> None:
        """Says that the run is done, when all that it leaves behind is on disk."""
        with self._times("checkpoint"):
            self.checkpoints.wait()
        with self._writer_errors.kept():
            if distributed.is_writer():
                self.run.log(self.done, self._times.metrics())
                # Whoever was killed after the last checkpoint may not have written it.
                _write_mixture(self.trainer, self.run)
                self.run.finish()
        self._writer_errors.agree()

    def _line(self, text: str) -> None:
        self._progress.line(f"{self.name}: {text}" if self.name else text)


def _build_alignment(
    trainer: Experiment, run: RunDirectory, programs: MeasurementPrograms | None
) -> tuple[alignment_lib.AlignmentEvaluator | None, Cadence]:
    """Returns what measures alignment while the run trains, and how often."""
    config = trainer.config.evaluation.alignment
    every = config.every if len(trainer.config.tags) > 1 else 0
    name = "align/every"
    chosen = int(distributed.broadcast_from_process_0(np.int32(run.newest(name).get(name, -1))))
    cadence = Cadence(every, config.budget, trainer.stream.steps, chosen if chosen >= 0 else None)
    measure = trainer.alignment("validation", config.pairs, programs) if every else None
    return measure, cadence


class EarlierStarts(NamedTuple):
    """What `record_run_start` finds of the starts of a run before this one."""

    sent: int = -1  # the newest step that was logged, which may be after that of the checkpoint
    change: str = ""  # the conditions that changed, in a line


def record_run_start(
    trainer: Experiment, run: RunDirectory, start: int, provenance: Mapping[str, Any]
) -> EarlierStarts:
    """Writes what a run records of itself before its first step, or its first after `start`."""
    if not distributed.is_writer():
        return EarlierStarts()
    for line in run.keep_results(trainer.stream.steps):
        print(line)
    before = (run.read_json("provenance.json") or {}) if start else {}
    sent = max((record["step"] for record in run.metrics()), default=-1)
    run.truncate_metrics(start)
    run.write_json("provenance.json", provenance)
    run.write_bytes("vocabulary.npz", trainer.vocabulary.to_bytes())
    for name, source in trainer.sources.items():
        run.write_bytes(f"tokenizer-{name}.model", source.model)
    change = conditions.describe_change(before.get("conditions", {}), provenance["conditions"])
    return EarlierStarts(sent, change)


def _write_mixture(trainer: Experiment, run: RunDirectory) -> None:
    rows = build_mixture_rows(trainer.config, trainer.stream, list(run.metrics()))
    if rows:
        run.write_csv("mixture.csv", rows)


def _describe_parallel_scores(name: str, scores: Mapping[str, Any]) -> str:
    parts = [f"{tag} {values['nats_per_pair']:.1f}" for tag, values in scores["languages"].items()]
    return f"parallel {name}, {scores['pairs']:,} pairs: nats a pair  {'   '.join(parts)}"


def _make_evaluation_record(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    names = ("loss", "ppl", "bits_per_byte", "language_nats", "loss_own", "leak", "top1")
    return {
        f"eval/{name}/{tag}": found[tag][name]
        for name in names
        for tag in found
        # A language that has all ids for itself, as with a joint vocabulary, leaks nothing.
        if name in found[tag]
    }


def _describe_evaluation(
    done: int, found: Mapping[str, Mapping[str, float]], split: str = "held-out"
) -> str:
    parts = [
        f"{tag} {values['loss']:.3f} (ppl {values['ppl']:,.1f})" for tag, values in found.items()
    ]
    return f"step {done:>6}  {split} loss  {'   '.join(parts)}"


def explain_error(config: Config, error: Exception, mesh: Mapping[str, int]) -> str:
    """Returns an error's message, with what to do about it where that is known.

    Args:
      config: of the run.
      error: what ended it.
      mesh: the sizes of the mesh of its updates.
    """
    if isinstance(error, MemoryError):
        return f"This machine is out of memory: {error or 'it does not say for what'}."
    if isinstance(error, OSError):
        return storage.describe_os_error(error)
    if not hardware.is_out_of_memory(error):
        return str(error) or type(error).__name__
    possible = mesh_shape.list_micro_batch_counts(config.batch_size, mesh)
    more = [k for k in possible if k > config.optimizer.accumulate]
    ways = [f"--accumulate={more[0]} (the same update in smaller parts)"] if more else []
    ways += ["--remat=full (less is kept for the backward pass)"] * (config.model.remat != "full")
    help_ = f"Start it again with {' or '.join(ways)}." if ways else "Use more devices."
    return f"Out of memory: {str(error).splitlines()[0]} {help_}"
