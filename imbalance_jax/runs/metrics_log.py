"""The metrics of a run: one JSON object a line, with "step", in order of step.

On a file system they are one file, metrics.jsonl, and a line is there once it is logged. The
objects of a store cannot be appended to, so there the metrics are segments: metrics-00000.jsonl
and so on. The newest segment is kept in memory; its object is written anew every few seconds and
by `flush`.

Both forms are read everywhere, because a run may have been copied from one place to the other.
A line ends in its CRC-32, as JSON files do: see damaged_files.py.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from etils import epath

from imbalance_jax.runs import damaged_files, storage
from imbalance_jax.runs.damaged_files import NUMBER, DamagedFileError

Record = dict[str, Any]

_WHOLE = "metrics.jsonl"
_SEGMENTS = "metrics-*.jsonl"
_BLOCK = 1 << 16  # bytes that are read at once from the end of a file
_SHAPE = {"step": int, "*": (*NUMBER, str)}
_REMEDY = "Copy the file back, or delete the line from it, with which what it records is lost."


class MetricsLog(Protocol):
    def read(self) -> Iterator[Record]:
        """Yields all records, including those that are not written out yet."""

    def read_backwards(self) -> Iterator[Record]:
        """Yields all records, the newest first; reads about as much as is asked for."""

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


def _read_records(file: epath.Path) -> Iterator[tuple[bytes, Record]]:
    """Yields the lines of a file, and the record that each is."""
    content = damaged_files.read_file(file, _REMEDY)
    for line, record in damaged_files.read_json_lines(content, file, _REMEDY, _SHAPE):
        yield line, _convert_record(record, file)


def _convert_record(record: Record, file: epath.Path) -> Record:
    """Returns a record with NaN for null, which is written for a number that is not finite."""
    for name, value in record.items():
        if value is None:
            record[name] = math.nan
        # Whatever is counted and drawn; a hash is text.
        elif isinstance(value, str) and name.startswith(("train/", "eval/", "time/", "perf/")):
            problem = f"at step {record['step']}, has {value!r} as {name}, not a number"
            raise DamagedFileError(file, problem, _REMEDY)
    return record


def _read_records_backwards(path: epath.Path) -> Iterator[Record]:
    """Yields the records of a file from its end, which is read block by block."""
    damaged_files.check_regular_file(path, _REMEDY)
    for number, line in enumerate(_read_lines_backwards(path)):
        # What follows the last line end is half a line, but where an editor left that end out.
        if number or line.endswith(b"}"):
            where = f", line {number} from its end" if number else ", the last line"
            record = damaged_files.parse_line(line, path, _REMEDY, _SHAPE, where)
            yield _convert_record(record, path)


def _read_lines_backwards(path: epath.Path) -> Iterator[bytes]:
    """Yields the lines of a file from the last on, which is empty where the file ends in one."""
    with path.open("rb") as file:
        begin, rest = file.seek(0, os.SEEK_END), b""
        while begin:
            end, begin = begin, max(0, begin - _BLOCK)
            file.seek(begin)
            rest, *lines = (file.read(end - begin) + rest).split(b"\n")
            yield from reversed(lines)
        yield rest


def _format_record(record: Mapping[str, Any]) -> str:
    return damaged_files.format_checked_json(record, indent=None)


def _join_lines(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


class MetricsFile:
    """One file that grows by a line at a time."""

    def __init__(self, directory: epath.Path) -> None:
        self._directory = directory

    def read(self) -> Iterator[Record]:
        for file in _list_metrics_files(self._directory):
            for _, record in _read_records(file):
                yield record

    def read_backwards(self) -> Iterator[Record]:
        for file in reversed(_list_metrics_files(self._directory)):
            yield from _read_records_backwards(file)

    def append(self, record: Mapping[str, Any]) -> None:
        path = self._directory / _WHOLE
        with storage.name_file_in_errors(path), path.open("a") as file:
            file.write(_format_record(record))

    def flush(self) -> None:
        """Every line was written when it was logged."""

    def truncate(self, step: int) -> None:
        files = _list_metrics_files(self._directory)
        lines = (pair for file in files for pair in _read_records(file))
        kept = _join_lines(line for line, record in lines if record["step"] <= step)
        storage.write_file_atomically(self._directory / _WHOLE, kept)
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
                for _, record in _read_records(file):
                    yield record
        yield from self._read_newest()

    def _read_newest(self) -> Iterator[Record]:
        for line in self._text.splitlines():
            path = self._directory / _WHOLE
            yield _convert_record(damaged_files.parse_json(line, path, _REMEDY), path)

    def read_backwards(self) -> Iterator[Record]:
        yield from reversed(list(self._read_newest()))
        for file in reversed(_list_metrics_files(self._directory)):
            if file != self._object:
                yield from _read_records_backwards(file)

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
            lines = list(_read_records(file))
            kept = [line for line, record in lines if record["step"] <= step]
            if not kept:
                file.unlink()
            elif len(kept) < len(lines):
                file.write_bytes(_join_lines(kept))
