"""The records of a run's steps, and the time of its parts."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imbalance_jax.compute import hardware
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.data.order.audit import MixtureTable, OrderAudit
from imbalance_jax.runs import mirrors
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training.experiment import Experiment


class RunTimer:
    """Seconds spent in each part of a run, over all its starts."""

    PARTS = ("setup", "compile", "data", "evaluate", "align", "checkpoint")

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._total_before = 0.0
        self.seconds = dict.fromkeys(self.PARTS, 0.0)

    def add_earlier_starts(self, before: Mapping[str, float]) -> None:
        """Adds the seconds of earlier starts of the run, from their last record."""
        self._total_before = before.get("time/total", 0.0)
        for part in self.PARTS:
            self.seconds[part] += before.get(f"time/{part}", 0.0)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] += time.monotonic() - began

    def shift(self, part: str, other: str, seconds: float) -> None:
        """Counts seconds of one part as those of another."""
        self.seconds[part] -= seconds
        self.seconds[other] += seconds

    @property
    def total(self) -> float:
        return self._total_before + time.monotonic() - self._began

    @property
    def running(self) -> float:
        """Seconds of everything but setup and compilation."""
        return max(self.total - self.seconds["setup"] - self.seconds["compile"], 1e-9)

    @property
    def training(self) -> float:
        """Seconds that no part claims."""
        return self.total - sum(self.seconds.values())

    def metrics(self) -> dict[str, float]:
        """Returns time/<part>; seconds that no part claims are training."""
        seconds = self.seconds | {"train": self.training, "total": self.total}
        return {f"time/{part}": round(value, 3) for part, value in seconds.items()}


class MetricsRecorder:
    """Adds up the metrics of a run's steps, and writes a record every `config.log_every` steps.

    `start`, `sent`: as for `RunProgress`. `errors` keeps those of writing.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: RunDirectory,
        times: RunTimer,
        start: int,
        sent: int,
        errors: distributed.WriterErrors,
    ) -> None:
        self._trainer, self._run, self._times, self._errors = experiment, run, times, errors
        self._audit = OrderAudit(experiment.config, experiment.stream)
        self.mixture = MixtureTable(experiment.config, experiment.stream)
        names = experiment.config.mirrors if distributed.is_writer() else ()
        self._peak = hardware.get_peak_flops(experiment.settled_model().dtype).value
        with distributed.propagate_errors():
            if distributed.is_writer():
                # Once through what was logged: a save must not read all of it again.
                self._audit.resume(self.mixture.follow(run.metrics()), start)
            self._mirrors = mirrors.Mirrors(names, run, experiment.config, start, sent)
            skipped = _read_skipped_updates(run, start) if distributed.is_writer() else (0, 0)
        counts = distributed.broadcast_from_process_0(np.array(skipped, np.int32))
        self._skipped, self._in_a_row = counts.tolist()
        self.newest: dict[str, Any] = {}  # the newest record of training
        self.proved = start - 1  # updates of the newest state whose loss and gradient are finite
        self._reset()

    def _reset(self) -> None:
        G = len(self._trainer.config.tags)
        self._loss_G, self._tokens_G, self._steps = np.zeros(G), np.zeros(G), 0
        self._began, self._parts = time.monotonic(), dict(self._times.seconds)

    def read(self, done: int, values: Mapping[str, Any]) -> None:
        """Adds up the metrics of a step, which are on the host.

        Raises:
          FloatingPointError: its loss or gradient is not finite, and too many updates in a row
            have been left out for it.
        """
        with self._errors.kept():
            if distributed.is_writer():
                self._audit.follow()
        if np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"]):
            self.proved, self._in_a_row = done - 1, 0
            self._loss_G += values["loss_G"]
            self._tokens_G += values["tokens_G"]
        else:
            self._note_skipped_update(done, values)
        self._steps += 1
        if is_step_due(done, self._trainer.config.log_every) or done == self._trainer.stream.steps:
            self.newest = self._record(values)
            self.write(done, self.newest)
            self._reset()

    @property
    def is_skipping(self) -> bool:
        """Whether the newest update was left out."""
        return self._in_a_row > 0

    def _note_skipped_update(self, done: int, values: Mapping[str, Any]) -> None:
        """Counts a step that changed nothing, or raises FloatingPointError."""
        most = self._trainer.config.optimizer.skip_nonfinite
        if self._in_a_row == most:
            before = f" {most} updates before it were left out." if most else ""
            raise FloatingPointError(
                f"The loss of step {done} is {values['loss']}, its gradient norm "
                f"{values['grad_norm']}.{before}"
            )
        self._skipped += 1
        self._in_a_row += 1
        # At once, so that a run that goes on from here knows it.
        skipped = {"train/skipped": self._skipped, "train/skipped_in_a_row": self._in_a_row}
        self.write(done, skipped)

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Writes a record to the run directory and its mirrors, from one process."""
        with self._errors.kept():
            if distributed.is_writer():
                self._run.log(step, record)
                self.mixture.add(step, record)
        numbers = {name: value for name, value in record.items() if not isinstance(value, str)}
        self._mirrors.log(step, numbers)

    def close(self) -> None:
        self._mirrors.close()

    def _record(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the metrics of the steps since the last record; losses are their means."""
        tags, L = self._trainer.config.tags, self._trainer.config.model.L
        tokens = float(self._tokens_G.sum())
        parts = {part: s - self._parts[part] for part, s in self._times.seconds.items()}
        away = sum(parts[name] for name in ("evaluate", "align", "checkpoint", "compile"))
        elapsed = max(time.monotonic() - self._began - away, 1e-9)
        flops = self._trainer.flops_per_step() * self._steps
        # Where all updates were left out, no loss is known.
        record = {"train/loss": float(self._loss_G.sum()) / tokens if tokens else math.nan}
        if self._trainer.config.optimizer.skip_nonfinite:
            record["train/skipped"] = self._skipped
        for g, tag in enumerate(tags):
            if self._tokens_G[g]:
                record[f"train/loss/{tag}"] = float(self._loss_G[g] / self._tokens_G[g])
            record[f"train/tokens/{tag}"] = int(values["trained_G"][g]) * L
        return record | {
            "train/grad_norm": float(values["grad_norm"]),
            "train/learning_rate": float(values["learning_rate"]),
            "perf/tokens_per_second": tokens / elapsed,
            "perf/mfu": flops / elapsed / self._peak,
            "perf/data_wait_fraction": parts["data"] / elapsed,
            **self._audit.metrics(),
            **self._times.metrics(),
        }


def _read_skipped_updates(run: RunDirectory, start: int) -> tuple[int, int]:
    """Returns the updates that a run has left out up to a step, and those in a row just before."""
    in_a_row = [record.get("train/skipped_in_a_row", 0) for record in run.records_of(start)]
    return run.newest_with("train/skipped").get("train/skipped", 0), max(in_a_row, default=0)


def describe_newest_records(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the newest records of training of one member or of several, in a few words."""
    if not records or not all(records):
        return ""
    speed = sum(record["perf/tokens_per_second"] for record in records)
    if len(records) > 1:
        losses = [record["train/loss"] for record in records]
        return (
            f"loss {min(losses):.3f} to {max(losses):.3f}   {len(records)} runs   "
            f"{speed:,.0f} tokens/s together"
        )
    (record,) = records
    prefix = "train/loss/"
    losses = [
        f"{name.removeprefix(prefix)} {value:.3f}"
        for name, value in record.items()
        if name.startswith(prefix)
    ]
    return f"loss {'  '.join(losses)}   {speed:,.0f} tokens/s   MFU {record['perf/mfu']:.0%}"


def is_step_due(done: int, every: int) -> bool:
    """Whether a step is one of every `every`; with 0 none is."""
    return every > 0 and done % every == 0
