"""Reads what a program left on disk, and names a file that is damaged.

There is one reader for each format. Each raises `DamagedFileError` where a file is not what was
written: the path stands in front, then what is wrong, then `remedy`, the way out. That of a file
which is absent is a FileNotFoundError too.

The objects that JSON files and the lines of JSON Lines hold end in `crc32`, the CRC-32 of the bytes
before it. Those of earlier versions have none, and are read all the same.
"""

import csv
import io
import json
import os
import stat
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from imbalance_jax.runs import storage
from imbalance_jax.runs.json_text import format_json

if TYPE_CHECKING:
    import numpy as np

# What a JSON value has to be: a type; a mapping from the keys that an object has to have ("name?"
# where it may lack one, "*" for all keys) to their shapes; or ANY.
Shape = Any
ANY: Shape = object()
# A number that was not finite is null.
NUMBER: Shape = (int, float, type(None))

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_TYPES = {dict: "an object", str: "text", int: "a whole number", list: "a list", bool: "a boolean"}


class DamagedFileError(ValueError):
    """A file that is not what was written there."""

    def __init__(self, path: epath.PathLike, problem: str, remedy: str) -> None:
        super().__init__(f"{os.fspath(path)} {problem}. {remedy}".rstrip())
        self.path, self.problem = path, problem


class MissingFileError(DamagedFileError, FileNotFoundError):
    """A file that was written and is gone."""


def describe_special_file(path: epath.PathLike) -> str:
    """Returns what a path is if it is no regular file, such as "a directory"; "" if it is one.

    Reading a pipe or a device may never end.
    """
    if storage.is_store(path):
        return ""
    return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "")


def read_file(path: epath.Path, remedy: str) -> bytes:
    """Returns the bytes of a file.

    Raises:
      MissingFileError: there is none.
      DamagedFileError: it is no regular file.
    """
    try:
        check_regular_file(path, remedy)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(path, "is missing", remedy) from error


def check_regular_file(path: epath.PathLike, remedy: str) -> None:
    """Raises DamagedFileError if a path is no file that can be read to its end."""
    special = describe_special_file(path)
    if special:
        raise DamagedFileError(path, f"is {special}, not a file", remedy)


def read_text(path: epath.Path, remedy: str) -> str:
    """Returns the text of a file in UTF-8."""
    return _decode(read_file(path, remedy), path, remedy)


def _decode(content: bytes, path: epath.PathLike, remedy: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at offset {error.start}"
        raise DamagedFileError(path, f"is not UTF-8 text ({byte})", remedy) from error


# JSON


def format_checked_json(value: Mapping[str, Any], indent: int | None = 2) -> str:
    """Returns a JSON object as `parse_json` reads it, with its CRC-32 and a line end."""
    text = format_json(value, indent=indent)
    if not value:
        return text + "\n"
    body, between, end = text.removesuffix("}").rstrip(), ", ", "}"
    if indent:
        between, end = ",\n" + " " * indent, "\n}"
    return f'{body}{between}"crc32": "{_compute_check(body)}"{end}\n'


def _compute_check(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def read_json(path: epath.Path, remedy: str, shape: Shape = dict) -> Any:
    """Returns a JSON object of a file, without its CRC-32."""
    return parse_json(read_text(path, remedy), path, remedy, shape)


def parse_json(
    text: str, path: epath.PathLike, remedy: str, shape: Shape = dict, where: str = ""
) -> Any:
    """Returns a JSON object, without its CRC-32.

    Args:
      text: of the object.
      path: of its file.
      where: in the file, such as ", line 3".

    Raises:
      DamagedFileError: it is no JSON, another one than was written, or not of the shape.
    """
    if not text.strip():
        raise DamagedFileError(f"{path}{where}", "is empty", remedy)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = f"is not valid JSON, or not all of it ({error})"
        raise DamagedFileError(f"{path}{where}", problem, remedy) from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path}{where}", "is not a JSON object", remedy)
    if "crc32" in value:
        body = text[: text.rfind('"crc32"')].rstrip().removesuffix(",")
        if value["crc32"] != _compute_check(body):
            raise DamagedFileError(
                f"{path}{where}",
                "was damaged or changed by hand: its crc32 does not fit",
                f"{remedy} If the change is meant, delete the key crc32 from it.",
            )
        del value["crc32"]
    check_shape(value, shape, f"{path}{where}", remedy)
    return value


def check_shape(value: Any, shape: Shape, path: epath.PathLike, remedy: str) -> None:
    """Raises DamagedFileError if a value of a JSON file is not of a shape."""
    problem = _find_wrong_shape(value, shape, "")
    if problem:
        raise DamagedFileError(path, problem, remedy)


def _find_wrong_shape(value: Any, shape: Shape, key: str) -> str:
    """Returns in which key a value is not of a shape; "" where it is."""
    if shape is ANY:
        return ""
    if not isinstance(shape, Mapping):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        # A boolean is an int to Python.
        if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
            return ""
        return f"has no {_TYPES.get(kinds[0], 'number')} as its key {key}, but {_quote(value)}"
    if not isinstance(value, Mapping):
        return f"has no object as its key {key}, but {_quote(value)}"
    for name, inner in shape.items():
        required = name.removesuffix("?")
        if name != "*" and required not in value:
            if required == name:
                return f"lacks the key {_join(key, name)}"
            continue
        for each in value if name == "*" else (required,):
            if isinstance(inner, tuple) and type(value[each]) in inner:
                continue  # most values of metrics.jsonl, of which there are millions
            problem = _find_wrong_shape(value[each], inner, _join(key, each))
            if problem:
                return problem
    return ""


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _quote(value: Any) -> str:
    text = format_json(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


# JSON lines


def read_json_lines(
    content: bytes, path: epath.PathLike, remedy: str, shape: Shape
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields each line, and the JSON object that it is.

    A program that was killed while it wrote leaves a last line without an end, which is left out.
    """
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        yield line, parse_line(line, path, remedy, shape, f", line {number}")
    if rest.endswith(b"}"):  # whole but for its end, as an editor may leave it
        yield rest, parse_line(rest, path, remedy, shape, f", line {len(lines) + 1}")


def parse_line(
    line: bytes, path: epath.PathLike, remedy: str, shape: Shape, where: str
) -> dict[str, Any]:
    """Returns the JSON object of a line; `where` it is in its file, such as ", line 3"."""
    text = _decode(line, f"{path}{where}", remedy)
    return parse_json(text, path, remedy, shape, where)


# CSV


def parse_csv(
    text: str,
    path: epath.PathLike,
    remedy: str,
    *,
    required: Collection[str] = (),
    words: Collection[str] = (),
) -> list[dict[str, str]]:
    """Returns the rows of a CSV table.

    Args:
      required: columns that it has to have.
      words: columns that hold text. The cells of all others are numbers; those of columns that are
        not required may be empty.

    Raises:
      DamagedFileError: it is cut off, lacks a column or a cell, or a cell is no number.
    """
    if not text.endswith("\n"):
        raise DamagedFileError(path, "is cut off: its last line has no end", remedy)
    lines = text.splitlines()
    try:
        table = list(csv.reader(lines, strict=True))
    except csv.Error as error:
        raise DamagedFileError(path, f"is not a CSV table ({error})", remedy) from error
    header = table[0] if table else []
    for column in required:
        if column not in header:
            raise DamagedFileError(path, f"lacks the column {column}", remedy)
    rows = []
    for number, cells in enumerate(table[1:], start=2):
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            problem = f"has {len(cells)} cells, and the table has {len(header)} columns"
            raise DamagedFileError(where, problem, remedy)
        for column, cell in zip(header, cells, strict=True):
            expected = (cell or column in required) and column not in words
            if expected and not _is_number(cell):
                raise DamagedFileError(where, f"has {cell!r} as {column}, not a number", remedy)
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# Arrays


def parse_array(content: bytes, path: epath.PathLike, remedy: str) -> "np.ndarray":
    """Returns the array that the bytes of an .npy file hold."""
    import numpy as np

    return _load_arrays(content, path, remedy, lambda loaded: np.asarray(loaded))


def parse_arrays(
    content: bytes, path: epath.PathLike, remedy: str, names: Iterable[str]
) -> "dict[str, np.ndarray]":
    """Returns arrays of the bytes of an .npz file, by name."""
    return _load_arrays(
        content, path, remedy, lambda loaded: {name: loaded[name] for name in names}
    )


def _load_arrays(content: bytes, path: epath.PathLike, remedy: str, take: Any) -> Any:
    import numpy as np

    try:
        return take(np.load(io.BytesIO(content), allow_pickle=False))
    # NumPy and zipfile raise errors of no common class for damaged files.
    except Exception as error:
        # After its first sentence NumPy advises to unpickle the file.
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}".rstrip(".: ")
        raise DamagedFileError(path, f"cannot be read as arrays ({reason})", remedy) from error
