"""The metrics of a run: one JSON object a line, with "step", in order of step.

On a file system they are one file, metrics.jsonl, and a line is there once it is logged. The
objects of a store cannot be appended to, so there the metrics are segments: metrics-00000.jsonl
and so on. The newest segment is kept in memory; its object is written anew every few seconds and
by `flush`.

Both forms are read everywhere, because a run may have been copied from one place to the other.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from etils import epath

from imbalance_jax.runs import storage
from imbalance_jax.runs.json_text import format_json

Record = dict[str, Any]

_WHOLE = "metrics.jsonl"
_SEGMENTS = "metrics-*.jsonl"


class MetricsLog(Protocol):
    def read(self) -> Iterator[Record]:
        """Yields all records, including those that are not written out yet."""

    def append(self, record: Mapping[str, Any]) -> None: ...

    def flush(self) -> None:
        """Returns when other processes can read all records."""

    def truncate(self, step: int) -> None:
        """Drops the records after a step."""


def open_metrics_log(directory: epath.Path) -> MetricsLog:
    """Returns the metrics of a run directory."""
    return MetricsSegments(directory) if storage.is_store(directory) else MetricsFile(directory)


def _list_metrics_files(directory: epath.Path) -> list[epath.Path]:
    whole = directory / _WHOLE
    return [whole] * whole.exists() + sorted(directory.glob(_SEGMENTS))


def _parse_records(text: str) -> Iterator[Record]:
    for line in text.splitlines():
        # A run killed while it wrote leaves half a line behind.
        if line.endswith("}"):
            record = json.loads(line)
            # null is written for a number that is not finite.
            yield {name: math.nan if value is None else value for name, value in record.items()}


def _format_record(record: Mapping[str, Any]) -> str:
    return format_json(record) + "\n"


class MetricsFile:
    """One file that grows by a line at a time."""

    def __init__(self, directory: epath.Path) -> None:
        self._directory = directory

    def read(self) -> Iterator[Record]:
        for file in _list_metrics_files(self._directory):
            yield from _parse_records(file.read_text())

    def append(self, record: Mapping[str, Any]) -> None:
        path = self._directory / _WHOLE
        with storage.name_file_in_errors(path), path.open("a") as file:
            file.write(_format_record(record))

    def flush(self) -> None:
        """Every line was written when it was logged."""

    def truncate(self, step: int) -> None:
        kept = "".join(_format_record(record) for record in self.read() if record["step"] <= step)
        storage.write_file_atomically(self._directory / _WHOLE, kept.encode())
        for segment in self._directory.glob(_SEGMENTS):
            segment.unlink()


class MetricsSegments:
    """Objects of a store; the newest is kept in memory while it grows.

    Args:
      directory: of the run.
      seconds: between two writes of the newest segment, if it is not flushed.
      size: characters of a segment, after which it is closed.
      now: returns the time in seconds.
    """

    def __init__(
        self,
        directory: epath.Path,
        *,
        seconds: float = 10.0,
        size: int = 1 << 22,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory, self._seconds, self._size, self._now = directory, seconds, size, now
        self._written_at = now()
        self._close()

    def _close(self) -> None:
        """Begins a segment, which gets its number when it is first written."""
        self._object: epath.Path | None = None
        self._text = ""  # of the newest segment
        self._written = 0  # characters of it that its object has

    def read(self) -> Iterator[Record]:
        for file in _list_metrics_files(self._directory):
            if file != self._object:
                yield from _parse_records(file.read_text())
        yield from _parse_records(self._text)

    def append(self, record: Mapping[str, Any]) -> None:
        self._text += _format_record(record)
        full = len(self._text) >= self._size
        if full or self._now() - self._written_at >= self._seconds:
            self.flush()
        if full:
            self._close()

    def flush(self) -> None:
        if self._written < len(self._text):
            self._object = self._object or self._next()
            self._object.write_bytes(self._text.encode())
            self._written, self._written_at = len(self._text), self._now()

    def _next(self) -> epath.Path:
        segments = sorted(self._directory.glob(_SEGMENTS))
        number = int(segments[-1].stem.partition("-")[2]) + 1 if segments else 0
        return self._directory / _SEGMENTS.replace("*", f"{number:05}")

    def truncate(self, step: int) -> None:
        self.flush()
        self._close()
        # From the end on, so that a kill leaves no gap.
        for file in reversed(_list_metrics_files(self._directory)):
            records = list(_parse_records(file.read_text()))
            kept = [record for record in records if record["step"] <= step]
            if not kept:
                file.unlink()
            elif len(kept) < len(records):
                file.write_bytes("".join(map(_format_record, kept)).encode())
