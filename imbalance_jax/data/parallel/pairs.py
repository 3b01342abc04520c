"""The files of a set of parallel text, and the pairs of texts in them.

One file has both sides of a pair in each of its records. Or each of two sources has a file, of
plain lines or of records with one field, and what says the same has the same number or id.
"""

import itertools
import os
from collections.abc import Callable, Iterator

from imbalance_jax.config import ParallelConfig
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text import formats, patterns
from imbalance_jax.data.text.documents import Record
from imbalance_jax.data.text.fields import WantedField
from imbalance_jax.runs import damaged_files, storage

# Formats of which each source may have a file of its own; others are plain lines there.
_OF_RECORDS = ("jsonl", "tsv", "parquet", "arrow")


def are_files_here(parallel: ParallelConfig) -> bool:
    """Whether any file of a set is on this machine; synthetic pairs need none."""
    return not parallel.path or any(map(os.path.exists, find_paths(parallel)))


def find_paths(parallel: ParallelConfig) -> list[str]:
    """Returns the files of a set: one with both sides, or one of each source in their order."""
    return patterns.find_paths(parallel.pattern)


def find_format(parallel: ParallelConfig, path: str, *, of_two: bool) -> str:
    """Returns the format of a file of a set; "" is one that has no fields for both sides."""
    file_format = formats.find_format(path, parallel.format)
    if of_two:
        return file_format if file_format in _OF_RECORDS else "text"
    return file_format if file_format in (*_OF_RECORDS, "tmx") else ""


def list_fields(parallel: ParallelConfig, *, of_two: bool = False) -> tuple[str, ...]:
    """Returns the fields that hold the two texts."""
    if of_two:
        return (parallel.fields or ("text",)) * (2 if len(parallel.fields) < 2 else 1)
    return parallel.fields or parallel.sources


def check_files(name: str, parallel: ParallelConfig) -> None:
    """Finds what is wrong with the files of a set without reading more than their first records.

    Raises:
      ValueError: a file is missing, empty, named twice or of an unknown ending, or both
        sides are one field, or one of them is not there.
    """
    paths = find_paths(parallel)
    of_two = len(paths) == 2
    fields = list_fields(parallel)
    if not of_two and len(set(fields)) != 2:
        raise ValueError(
            f"config.parallel.{name}.fields={fields!r} are one and the same. Name the fields of "
            f"{' and '.join(parallel.sources)}."
        )
    field = f"config.parallel.{name}.path={parallel.path!r}"
    if parallel.path and len(paths) not in (1, 2):
        raise ValueError(
            f"{field} names {len(paths)} files. Name one .jsonl file, or two files of lines."
        )
    for path in paths:
        _check_file(field, path)
        _check_format(field, parallel, path, of_two=of_two)
    lines = not paths or (of_two and find_format(parallel, paths[0], of_two=True) == "text")
    stated = {"fields": parallel.fields, "join": "" if parallel.join == "line" else parallel.join}
    for which, value in stated.items():
        if value and (lines or (which == "join" and not of_two)):
            what = "one file with both sides has" if len(paths) == 1 else "two files of lines have"
            what = what if paths else "synthetic sources have"
            of = "records" if which == "join" else "a .jsonl file"
            raise ValueError(
                f"config.parallel.{name}.{which}={value!r} is of {of}, and {what} none. Leave "
                f"{which} out."
            )
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise ValueError(
            f"{field} names one file twice. Name that of {' and that of '.join(parallel.sources)}."
        )
    if paths and not lines:
        next(_read_texts(name, parallel, paths, {}), None)


def _check_file(field: str, path: str) -> None:
    storage.check_local_path(field, path)
    if not os.path.exists(path):
        raise ValueError(
            f"{field}: there is no file {path} (looked for {os.path.abspath(path)}). "
            "Correct the path."
        )
    if os.path.isdir(path):
        raise ValueError(f"{field}: {path} is a directory. Name the file in it to read.")
    special = damaged_files.describe_special_file(path)
    if special:
        raise ValueError(f"{field}: {path} is {special}, not a file. Write its text into a file.")
    if not os.path.getsize(path):
        raise ValueError(f"{field}: {path} is empty (0 bytes). Write it again.")


def _check_format(field: str, parallel: ParallelConfig, path: str, *, of_two: bool) -> None:
    file_format = find_format(parallel, path, of_two=of_two)
    if of_two and file_format != "text" and not parallel.fields and parallel.join == "line":
        raise ValueError(
            f"{field}: {path} has both sides of a pair on each line. Name it alone, or two "
            "files of plain lines. If each of two files has one side, name the field of the text "
            "in fields, such as ('text',), and that of the ids in join."
        )
    if not file_format:
        raise ValueError(
            f"{field}: {path} does not end in one of {formats.describe_endings(_OF_RECORDS)} or "
            ".tmx. Set format to what it is, convert it to one of these, or name two files of "
            "lines with a comma between them, such as 'a.en,a.fr'."
        )


def read_pairs(
    name: str,
    parallel: ParallelConfig,
    report: Callable[[float], None],
    counts: dict[str, int] | None = None,
) -> Iterator[tuple[str, str]]:
    """Yields every pair of texts in the order of the first file.

    `report` is called with the share of the first file that has been read. Where ids join two
    files, counts["unjoined"] becomes the number of texts whose id the other file lacks.

    Raises:
      ValueError: a file cannot be read as what it should be, naming file and line.
    """
    paths = find_paths(parallel)
    read = _read_texts(name, parallel, paths, {} if counts is None else counts)
    size, reported = os.path.getsize(paths[0]), 0.0
    for consumed, texts in read:
        if consumed / size >= reported + 0.002:
            reported = consumed / size
            report(reported)
        yield texts
    report(1.0)


def _read_texts(
    name: str, parallel: ParallelConfig, paths: list[str], counts: dict[str, int]
) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yields (bytes of the first file consumed so far, texts)."""
    if len(paths) == 1:
        yield from _read_table(name, parallel, paths[0])
        return
    fields = list_fields(parallel, of_two=True)
    one, other = (
        _Side(name, parallel, path, field) for path, field in zip(paths, fields, strict=True)
    )
    yield from (
        _join_lines(name, one, other)
        if parallel.join == "line"
        else _join_ids(name, one, other, counts)
    )


def _read_table(
    name: str, parallel: ParallelConfig, path: str
) -> Iterator[tuple[int, tuple[str, str]]]:
    file_format = find_format(parallel, path, of_two=False)
    setting = f"config.parallel.{name}.fields"
    first, second = (WantedField(field, setting) for field in list_fields(parallel))
    for record in formats.read_records(path, file_format, "line", [first, second]):
        if file_format == "tmx" and not {first.name, second.name} <= set(record.values):
            continue  # a unit of other languages
        texts = (
            formats.get_wanted_value(record, first, path, file_format),
            formats.get_wanted_value(record, second, path, file_format),
        )
        yield record.consumed, texts


class _Side:
    """The texts of one source, in a file of its own."""

    def __init__(self, name: str, parallel: ParallelConfig, path: str, field: str) -> None:
        self.path = path
        self._format = find_format(parallel, path, of_two=True)
        self.unit = "lines" if self._format == "text" else "records"
        self._text = WantedField(field, f"config.parallel.{name}.fields")
        self._id = WantedField(parallel.join, f"config.parallel.{name}.join", "id")

    def read_records(self) -> Iterator[Record]:
        wanted = [self._text, self._id]
        return formats.read_records(self.path, self._format, "line", wanted)

    def get_text(self, record: Record) -> str:
        return formats.get_wanted_value(record, self._text, self.path, self._format)

    def add_id(self, record: Record, known: dict[str, str], text: str) -> str:
        """Returns the id of a record, and adds it and a text to those that are known."""
        value = formats.get_wanted_value(record, self._id, self.path, self._format)
        if value in fields_lib.NO_IDS:
            place = formats.describe_place(self.path, self._format, record.number)
            raise ValueError(
                f"{place}: has no id in its field {self._id.name!r}; it has: "
                f"{fields_lib.format_field_names(record.values)}. Set {self._id.setting}."
            )
        if str(value) in known:
            place = formats.describe_place(self.path, self._format, record.number)
            raise ValueError(
                f"{place}: the id {value!r} is that of another text of the file. Set "
                f"{self._id.setting} to a field with an id for each text."
            )
        known[str(value)] = text
        return str(value)


def _join_lines(name: str, one: _Side, other: _Side) -> Iterator[tuple[int, tuple[str, str]]]:
    records, other_records = one.read_records(), other.read_records()
    both = itertools.zip_longest(records, other_records)
    for number, (record, other_record) in enumerate(both, start=1):
        if record is None or other_record is None:
            count = number - (record is None) + sum(1 for _ in records)
            other_count = number - (other_record is None) + sum(1 for _ in other_records)
            raise ValueError(
                f"config.parallel.{name}.path: {one.path} has {count:,} {one.unit} and "
                f"{other.path} has {other_count:,}. A line of one must stand for a line of the "
                "other, so the two must be of equal length. If both have a field of ids, name it "
                "in join."
            )
        yield record.consumed, (one.get_text(record), other.get_text(other_record))


def _join_ids(
    name: str, one: _Side, other: _Side, counts: dict[str, int]
) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yields texts of equal ids, in the order of the first file; the second is kept in memory."""
    texts: dict[str, str] = {}
    for record in other.read_records():
        other.add_id(record, texts, other.get_text(record))
    seen: dict[str, str] = {}
    alone = 0
    for record in one.read_records():
        text_id = one.add_id(record, seen, "")
        if text_id in texts:
            yield record.consumed, (one.get_text(record), texts[text_id])
        else:
            alone += 1
    other_alone = len(texts.keys() - seen)
    counts["unjoined"] = alone + other_alone
    if alone == len(seen):
        raise ValueError(
            f"config.parallel.{name}.join: no id of {one.path} is in {other.path}. Set join to a "
            "field whose ids mean the same in both."
        )
