"""A member of a pack besides its updates: its measurements, its checkpoints, its end."""

import contextlib
import functools
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from imbalance_jax.compute import conditions
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.checkpoint import Checkpoints, remove_unfinished_checkpoints
from imbalance_jax.evaluation import alignment as alignment_lib
from imbalance_jax.evaluation import perplexity
from imbalance_jax.evaluation.minimal_pairs import describe_accuracies
from imbalance_jax.evaluation.programs import MeasurementPrograms
from imbalance_jax.runs import divergence, storage
from imbalance_jax.runs.progress import Progress, RunWork
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import scoring
from imbalance_jax.training.cadence import Cadence
from imbalance_jax.training.ends import Preempted, explain_divergence, explain_error
from imbalance_jax.training.experiment import Experiment
from imbalance_jax.training.pack import Pack
from imbalance_jax.training.recorder import MetricsRecorder, RunTimer, is_step_due
from imbalance_jax.training.resumption import FirstUpdates


class RunProgress:
    """Measures, saves and ends a member of a pack; the loop updates it.

    `done` is the number of updates that the states given to its methods have had.

    Args:
      pack: that it is a member of, whose members take turns at being measured.
      place: its number among them.
      evaluator: a compiled one, of its vocabulary.
      start: updates that it has had.
      sent: the newest step that it had logged before it went on from `start`; -1 is none.
      programs: those that measure alignment for another member.
    """

    def __init__(
        self,
        pack: Pack,
        place: int,
        times: RunTimer,
        interrupts: distributed.SharedInterrupts,
        checkpoints: Checkpoints,
        evaluator: perplexity.PerplexityEvaluator,
        start: int,
        *,
        sent: int = -1,
        programs: MeasurementPrograms | None = None,
    ) -> None:
        member = pack.members[place]
        self.name, self.experiment, self.run = member.name, member.experiment, member.run
        self.place, self.done = place, start
        self._pack, self._times, self._interrupts = pack, times, interrupts
        self._checkpoints, self._evaluator = checkpoints, evaluator
        self._writer_errors = distributed.WriterErrors()
        self.recorder = MetricsRecorder(
            self.experiment, self.run, times, start, sent, self._writer_errors
        )
        self._first_updates = distributed.is_writer() and FirstUpdates(
            self.run,
            self.experiment.config.tags,
            start,
            checkpoints.fingerprints.get(start, ""),
        )
        self._validation = self.experiment.validation_windows()
        self.alignment, self._cadence = _build_alignment(self.experiment, self.run, programs)
        self.work = RunWork(
            steps=self.experiment.stream.steps,
            every=self.experiment.config.evaluation.every,
            evaluation=scoring.estimate_scoring_cost(self.experiment, self._validation),
            scoring=sum(
                scoring.estimate_scoring_cost(self.experiment, windows)
                for windows in scoring.list_scored_windows(self.experiment)
            ),
        )
        self._progress: Progress

    def _poll(self, share: float = 1.0) -> None:
        """Raises Preempted if the run was asked to stop."""
        if self._interrupts.poll():
            raise Preempted(self.done)

    def _show_and_poll(self, begun: float, cost: float, text: str, share: float) -> None:
        """Shows how far a part of the run's work is, which may be one of several runs' part."""
        self._progress.show(begun + (self.place + share) / len(self._pack.members) * cost, text)
        self._poll()

    def begin(self, state: step_lib.TrainState, progress: Progress) -> None:
        """Makes the measurements of the first state that are missing; lines go to `progress`."""
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
    def _evaluation_is_due(self) -> bool:
        return self._is_due(self.experiment.config.evaluation.every)

    @property
    def _saving_is_due(self) -> bool:
        return self._is_due(self.experiment.config.checkpoint.every)

    def _is_due(self, every: int) -> bool:
        return self.done == self.experiment.stream.steps or is_step_due(self.done, every)

    @property
    def is_due(self) -> bool:
        """Whether `measure` has something to do."""
        return self._evaluation_is_due or self._saving_is_due or self._cadence.due(self.done)

    def measure(self, state: step_lib.TrainState) -> None:
        """Evaluates, aligns and saves a state, if each is due."""
        if self._evaluation_is_due:
            self._evaluate(state)
        if self._cadence.due(self.done):
            self._align(state)
        # After an update that was left out, the state may be spoilt, and would displace a good one.
        spoilt = self.recorder.is_skipping and self.done < self.experiment.stream.steps
        if self._saving_is_due and not spoilt:
            self._save(state)

    def read(self, done: int, values: step_lib.Metrics) -> None:
        """Takes the metrics of a step, which are on the host.

        Raises:
          FloatingPointError: its loss or gradient is not finite.
        """
        self.recorder.read(done, values)
        self.look_ahead(done, values)

    def look_ahead(self, done: int, values: step_lib.Metrics) -> None:
        """Holds an update that is the first after a checkpoint against other starts of the run."""

        def compare() -> None:
            assert self._first_updates
            line = self._first_updates.read(done, values)
            if line:
                self._line(line)
            self._first_updates.write(self._checkpoints.is_whole)

        self._write(compare)

    def _evaluate(self, state: step_lib.TrainState) -> None:
        begun = self.work.before_evaluation(self.done)
        poll = functools.partial(self._show_and_poll, begun, self.work.evaluation, "evaluating")
        with self._times("evaluate"):
            losses = self._evaluator(state.params, self._validation, poll)
        self._line(_describe_evaluation(self.done, losses))
        self.recorder.write(self.done, _make_evaluation_record(losses) | self._times.metrics())
        self._check_finite("validation", losses)

    def _align(self, state: step_lib.TrainState) -> None:
        times, alignment, cadence = self._times, self.alignment, self._cadence
        assert alignment is not None
        if not alignment.programs.compile_seconds:
            self._line("Compiling what measures alignment")
        with times("align"):
            before, began = alignment.programs.compile_seconds, time.monotonic()
            with warnings.catch_warnings():  # NumPy's, of a model that has diverged
                warnings.simplefilter("ignore", RuntimeWarning)
                values = alignment.watch(state, self.experiment.stream, self._poll)
            compiling = alignment.programs.compile_seconds - before
            # The other runs of a pack are measured as often.
            cost = (time.monotonic() - began - compiling) * len(self._pack.members)
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
        self.recorder.write(self.done, values | shares | times.metrics())

    def _save(self, state: step_lib.TrainState) -> None:
        with self._times("checkpoint"):
            self._write(self.run.flush)  # a run resumed there needs all that was logged before
            self._checkpoints.save(state)
        if self._first_updates:
            self._first_updates.note_save(self.done, self._checkpoints.fingerprints[self.done])
        self._write(self._write_mixture)

    def save_and_wait(self, state: step_lib.TrainState) -> None:
        """Saves a state, and returns when it is on disk.

        It fails as any other save may: the newest step's loss may not be finite.
        """
        self._save(state)
        self._checkpoints.wait()

    def score_and_finish(self, state: step_lib.TrainState) -> None:
        """Scores the last state on the test split, writes the results, and ends the run."""
        self._score(state)
        self.agree_on_errors()  # a run whose results could not be written is not done
        self._finish()

    def agree_on_errors(self) -> None:
        """Raises an error of writing that process 0 had, in every process; all call it as often."""
        self._writer_errors.agree()

    def _score(self, state: step_lib.TrainState) -> None:
        begun, cost = self.work.after(self.done), self.work.scoring
        text = "scoring the test split" + f" of {self.name}" * bool(self.name)
        poll = functools.partial(self._show_and_poll, begun, cost, text)
        with self._times("evaluate"):
            results = scoring.score_state(self.experiment, state, poll, self._evaluator)
            self._line(_describe_evaluation(self.done, results["languages"], "test"))
            for name, scores in results["parallel"].items():
                self._line(_describe_parallel_scores(name, scores))
            if "minimal_pairs" in results:
                self._line(describe_accuracies(results["minimal_pairs"]))
        self._check_finite("test", results["languages"])
        for name, scores in results["parallel"].items():
            self._check_finite(f"parallel {name}", scores["languages"])
        self._write(lambda: self.run.write_results({"step": self.done, **results}))

    def _check_finite(self, what: str, languages: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises FloatingPointError if a loss of the state is not finite."""
        found = divergence.find_nonfinite_loss(languages)
        if found:
            raise FloatingPointError(f"The {what} {found} after step {self.done}.")

    def has_failed_elsewhere(self) -> bool:
        """Whether the process that was lost has written down why; it may still be at it."""
        return distributed.wait_for_condition((self.run.path / "FAILED.json").exists)

    def fail(self, error: Exception) -> str:
        """Writes down why the run ended, where another process has not done so, and returns it."""
        config = self.experiment.config
        message = explain_error(config, error, self._pack.mesh.shape)
        if isinstance(error, FloatingPointError):  # in all processes, as all have the same numbers
            with contextlib.suppress(Exception):  # of an earlier save; this error ends the run
                self._checkpoints.wait()
                if distributed.is_writer():
                    for step in self._checkpoints.steps():
                        if step > self.recorder.proved:
                            self._checkpoints.set_aside(step, "diverged")
            message = explain_divergence(message, config, self.run)
        if jax.process_count() == 1:
            self._checkpoints.close()
            remove_unfinished_checkpoints(self._checkpoints.path)
        elsewhere = isinstance(error, distributed.ElsewhereError)
        if not elsewhere and not (self.run.path / "FAILED.json").exists():
            try:
                self.run.fail(self.done, error, message)
            except OSError as unwritten:
                print(f"error: {storage.describe_os_error(unwritten)}", file=sys.stderr)
        return message

    def _finish(self) -> None:
        """Says that the run is done, when all that it leaves behind is on disk."""
        with self._times("checkpoint"):
            self._checkpoints.wait()
            self._checkpoints.remove_all_but(self.experiment.config.checkpoint.keep)
        if self._first_updates:
            first_updates = self._first_updates
            self._write(lambda: first_updates.write(self._checkpoints.is_whole))
        self._write(lambda: self.run.log(self.done, self._times.metrics()))
        # A run that was killed after its last checkpoint may not have written it.
        self._write(self._write_mixture)
        self.agree_on_errors()
        self._write(self.run.finish)

    def _line(self, text: str) -> None:
        # Process 0 alone has an output, which may be full.
        self._write(lambda: self._progress.line(f"{self.name}: {text}" if self.name else text))

    def _write(self, act: Callable[[], None]) -> None:
        """Writes something in process 0 alone; an error is kept until all agree on it."""
        with self._writer_errors.kept():
            if distributed.is_writer():
                act()

    def _write_mixture(self) -> None:
        rows = self.recorder.mixture.build_rows()
        if rows:
            self.run.write_csv("mixture.csv", rows)


def _build_alignment(
    experiment: Experiment, run: RunDirectory, programs: MeasurementPrograms | None
) -> tuple[alignment_lib.AlignmentEvaluator | None, Cadence]:
    """Returns the evaluator of alignment while the run trains, and its cadence."""
    config = experiment.config.evaluation.alignment
    every = config.every if len(experiment.config.tags) > 1 else 0
    recorded = run.newest_with("align/every").get("align/every", -1)
    chosen = int(distributed.broadcast_from_process_0(np.int32(recorded)))
    cadence = Cadence(
        every, config.budget, experiment.stream.steps, chosen if chosen >= 0 else None
    )
    measure = experiment.alignment("validation", config.pairs, programs) if every else None
    return measure, cadence


class EarlierStarts(NamedTuple):
    """The traces of a run's earlier starts in its directory."""

    sent: int = -1  # the newest step that was logged, which may be after that of the checkpoint
    change: str = ""  # the conditions that changed, in a line


def record_run_start(
    experiment: Experiment, run: RunDirectory, start: int, provenance: Mapping[str, Any]
) -> EarlierStarts:
    """Writes config, provenance, vocabulary and tokenizers before the first step from `start`."""
    if not distributed.is_writer():
        return EarlierStarts()
    for line in run.keep_results(experiment.stream.steps):
        print(line)
    diverged = sorted(run.checkpoints.glob("*.diverged")) if run.checkpoints.exists() else []
    if diverged and not start:
        print(f"{diverged[-1]} is of no use, and no other is left: the run begins anew.")
    before = (run.read_json("provenance.json") or {}) if start else {}
    sent = run.newest_step()
    if start and sent < start - start % experiment.config.log_every:
        ends = f"ends at step {sent:,}" if sent >= 0 else "is missing or empty"
        print(
            f"{run.path / 'metrics.jsonl'} {ends}: what was logged from there to step {start:,} is "
            "lost, and mixture.csv has what comes after it."
        )
    run.truncate_metrics(start)
    run.start(experiment.config)
    resumes = {"resumes": before["resumes"]} if "resumes" in before else {}
    run.write_json("provenance.json", {**provenance, **resumes})
    run.write_bytes("vocabulary.npz", experiment.vocabulary.to_bytes())
    for name, source in experiment.sources.items():
        run.write_bytes(f"tokenizer-{name}.model", source.model)
    change = conditions.describe_change(before.get("conditions", {}), provenance["conditions"])
    return EarlierStarts(sent, change)


def _describe_parallel_scores(name: str, scores: Mapping[str, Any]) -> str:
    parts = [f"{tag} {values['nats_per_pair']:.1f}" for tag, values in scores["languages"].items()]
    return f"parallel {name}, {scores['pairs']:,} pairs: nats a pair  {'   '.join(parts)}"


def _make_evaluation_record(losses: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    names = ("loss", "ppl", "bits_per_byte", "language_nats", "loss_own", "leak", "top1")
    return {
        f"eval/{name}/{tag}": losses[tag][name]
        for name in names
        for tag in losses
        # A language that has all ids for itself, as with a joint vocabulary, leaks nothing.
        if name in losses[tag]
    }


def _describe_evaluation(
    done: int, losses: Mapping[str, Mapping[str, float]], split: str = "held-out"
) -> str:
    parts = [
        f"{tag} {values['loss']:.3f} (ppl {values['ppl']:,.1f})" for tag, values in losses.items()
    ]
    return f"step {done:>6}  {split} loss  {'   '.join(parts)}"
