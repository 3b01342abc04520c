"""The files of a set of parallel text: one of JSON objects with both sides, or two of lines."""

import itertools
import os
from collections.abc import Callable, Iterator

from imbalance_jax.config import ParallelConfig
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text import files as files_lib
from imbalance_jax.data.text import patterns
from imbalance_jax.runs import damaged_files, storage
from imbalance_jax.runs.json_text import format_json

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def are_files_here(parallel: ParallelConfig) -> bool:
    """Whether any file of a set is on this machine; synthetic pairs need none."""
    return not parallel.path or any(
        os.path.exists(path) for path in patterns.find_paths(parallel.path)
    )


def list_fields(parallel: ParallelConfig) -> tuple[str, ...]:
    """Returns the fields of an object that hold the two texts."""
    return parallel.fields or parallel.sources


def check_files(name: str, parallel: ParallelConfig) -> None:
    """Finds what is wrong with the files of a set without reading more than their first line.

    Raises:
      ValueError: a file is missing, empty, named twice or of an unknown ending, or both
        sides are one field, or one of them is not there.
    """
    fields = list_fields(parallel)
    if len(set(fields)) != 2:
        raise ValueError(
            f"config.parallel.{name}.fields={fields!r} are one and the same. Name the fields of "
            f"{' and '.join(parallel.sources)}."
        )
    paths = patterns.find_paths(parallel.path)
    if parallel.fields and len(paths) != 1:
        what = "two files of lines have" if paths else "synthetic sources have"
        raise ValueError(
            f"config.parallel.{name}.fields={fields!r} are of a {ENDINGS[0]} file, and {what} "
            "none. Leave fields out."
        )
    field = f"config.parallel.{name}.path={parallel.path!r}"
    if parallel.path and len(paths) not in (1, 2):
        raise ValueError(
            f"{field} names {len(paths)} files. Name one {ENDINGS[0]} file, or two files of lines."
        )
    for path in paths:
        _check_file(field, path, of_two=len(paths) == 2)
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise ValueError(
            f"{field} names one file twice. Name that of {' and that of '.join(parallel.sources)}."
        )
    if len(paths) == 1:
        next(_read_json_texts(name, parallel, paths[0]), None)


def _check_file(field: str, path: str, *, of_two: bool) -> None:
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
    if of_two and path.endswith(ENDINGS):
        raise ValueError(
            f"{field}: {path} has both sides of a pair on each line. Name it alone, or two "
            "files of plain lines."
        )
    if not of_two and not path.endswith(ENDINGS):
        raise ValueError(
            f"{field}: {path} does not end in one of {', '.join(ENDINGS)}. Convert it to one "
            "of these, or name two files of lines with a comma between them, such as 'a.en,a.fr'."
        )


def read_pairs(
    name: str, parallel: ParallelConfig, report: Callable[[float], None]
) -> Iterator[tuple[str, str]]:
    """Yields every pair of texts in the order of the lines.

    `report` is called with the share of the first file that has been read.

    Raises:
      ValueError: a file cannot be read as what it should be, naming file and line.
    """
    paths = patterns.find_paths(parallel.path)
    read = (
        _read_json_texts(name, parallel, paths[0])
        if len(paths) == 1
        else _read_line_texts(name, paths[0], paths[1])
    )
    size, reported = os.path.getsize(paths[0]), 0.0
    for consumed, texts in read:
        if consumed / size >= reported + 0.002:
            reported = consumed / size
            report(reported)
        yield texts
    report(1.0)


def _read_json_texts(
    name: str, parallel: ParallelConfig, path: str
) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yields (bytes of the file consumed so far, texts)."""
    fields = list_fields(parallel)
    example = f'{{"{fields[0]}": "...", "{fields[1]}": "..."}}'
    for number, (consumed, line) in enumerate(files_lib.read_file_lines(path), start=1):
        if not line.strip():
            continue
        values = files_lib.parse_json_object(line, path, number, example)
        texts = []
        for field in fields:
            text = fields_lib.find_field_value(values, field)
            if text is fields_lib.ABSENT:
                raise ValueError(
                    f"{path}, line {number}: has no field {field!r}; it has: "
                    f"{fields_lib.format_field_names(values)}. "
                    f"Set config.parallel.{name}.fields."
                )
            if not isinstance(text, str):
                raise ValueError(
                    f"{path}, line {number}: its field {field!r} is {format_json(text)[:40]}, not "
                    f"a string. Set config.parallel.{name}.fields."
                )
            texts.append(files_lib.replace_lone_surrogates(text))
        yield consumed, (texts[0], texts[1])


def _read_line_texts(
    name: str, path: str, other_path: str
) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yields (bytes of the first file consumed so far, texts)."""
    lines, other_lines = files_lib.read_file_lines(path), files_lib.read_file_lines(other_path)
    for number, (line, other) in enumerate(itertools.zip_longest(lines, other_lines), start=1):
        if line is None or other is None:
            count = number - (line is None) + sum(1 for _ in lines)
            other_count = number - (other is None) + sum(1 for _ in other_lines)
            raise ValueError(
                f"config.parallel.{name}.path: {path} has {count:,} lines and {other_path} has "
                f"{other_count:,}. A line of one must stand for a line of the other, so the two "
                "must be of equal length."
            )
        texts = (_decode_line(line[1], path, number), _decode_line(other[1], other_path, number))
        yield line[0], texts


def _decode_line(data: bytes, path: str, number: int) -> str:
    return files_lib.decode_utf8(data.removesuffix(b"\n").removesuffix(b"\r"), path, number)
