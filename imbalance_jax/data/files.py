"""Text in files of one's own.

A `.txt` file is one document, a `.jsonl` file has one in every line, and a `.parquet` file in
every row. The first two may be compressed with gzip (`.gz`) or Zstandard (`.zst`). All but
`.txt` are streamed: a corpus needs no more memory than its longest lines, or largest pages of
a Parquet column (by default, a megabyte or a thousand rows).
"""

import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from imbalance_jax import storage
from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import SPLITS, Document, Reading

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

_COMPRESSED = (".gz", ".zst")
ENDINGS = tuple(
    kind + compression for kind in (".txt", ".jsonl") for compression in ("", *_COMPRESSED)
) + (".parquet",)

# The share of documents that a split carved out of train gets.
_SHARE = 0.01
# Prose is about a third of its size when compressed.
_EXPANSION = 3
# Parquet: rows that are decoded at once, and bytes that are read at once of each column.
_ROWS = 64
_BUFFER = 1 << 20


def read(name: str, source: SourceConfig, report: Callable[[float], None]) -> Reading:
    """Returns the documents of all files, those of train first.

    Args:
      name: of the source in config.sources, for messages.
      source: which files to read, and the fields of text and id.
      report: called now and then with how much of the files is read, from 0 to 1.

    Raises:
      ValueError: as `check`; and from the documents: a file cannot be read as what its ending
        says, naming file and line or row.
    """
    files = _split_files(name, source)
    carved = [split for split in SPLITS if not _patterns(getattr(source, split))]
    return Reading(_documents(name, source, files, report), carved, _SHARE)


def check(name: str, source: SourceConfig) -> None:
    """Finds what is wrong with a source without reading its text.

    Raises:
      ValueError: a pattern matches nothing that could be read, a file is in two splits, or a
        Parquet file has not the columns that it should have.
    """
    for _, path in _split_files(name, source):
        if path.endswith(".parquet"):
            with _open_parquet(path) as table:
                _columns(name, source, path, table)


def key(name: str, source: SourceConfig, cache: pathlib.Path | None) -> list[object]:
    """Returns what the text follows from: the names and bytes of the files, in their order.

    Args:
      name: of the source in config.sources, for messages.
      source: which files they are.
      cache: as of `digests`.

    Raises:
      ValueError: a pattern matches nothing that could be read, or a file is in two splits.
    """
    files = _split_files(name, source)
    known = digests([path for _, path in files], cache)
    return [
        source.field,
        source.id_field,
        *([split, os.path.basename(path), known[path]] for split, path in files),
    ]


def size(source: SourceConfig) -> int:
    """Returns about how many bytes of text there are to train on."""
    paths = [path for pattern in _patterns(source.train) for path in _matches(pattern)]
    return sum(_text_size(source, path) for path in paths)


def is_here(name: str, source: SourceConfig) -> bool:
    """Whether any pattern of a source matches a file of this machine."""
    return any(_matches(pattern) for pattern in patterns_of(source))


def patterns_of(source: SourceConfig) -> list[str]:
    """Returns the paths and patterns of all splits of a source."""
    return [pattern for split in SPLITS for pattern in _patterns(getattr(source, split))]


def _text_size(source: SourceConfig, path: str) -> int:
    if path.endswith(".parquet"):
        return _column_size(path, source.field)
    return os.path.getsize(path) * (_EXPANSION if path.endswith(_COMPRESSED) else 1)


def _documents(
    name: str,
    source: SourceConfig,
    files: list[tuple[str, str]],
    report: Callable[[float], None],
) -> Iterator[tuple[str, Document]]:
    total = sum(os.path.getsize(path) for _, path in files)
    before = 0
    for split, path in files:
        read_file = _read_parquet if path.endswith(".parquet") else _read_lines
        for consumed, document in read_file(name, source, path):
            report((before + consumed) / total)
            yield split, document
        before += os.path.getsize(path)


# Which files


def _patterns(field: str) -> list[str]:
    return [pattern.strip() for pattern in field.split(",") if pattern.strip()]


def _matches(pattern: str) -> list[str]:
    path = os.path.expanduser(pattern)
    # A file whose name has brackets in it is a file all the same.
    return [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))


def _split_files(name: str, source: SourceConfig) -> list[tuple[str, str]]:
    """Returns (split, path) of every file, in the order in which they are read."""
    files: dict[str, tuple[str, str]] = {}  # by real path
    for split in SPLITS:
        value = getattr(source, split)
        field = f"config.sources.{name}.{split}={value!r}"
        if split == "train" and not _patterns(value):
            raise ValueError(f"{field} is empty. Set it to a {', '.join(ENDINGS)} file or pattern.")
        for pattern in _patterns(value):
            storage.check_local(field, pattern)
            paths = _matches(pattern)
            if not paths:
                where = os.path.abspath(os.path.expanduser(pattern))
                raise ValueError(
                    f"{field}: {pattern} matches no file (looked for {where}). "
                    "Correct the path; ** matches any number of directories."
                )
            for path in paths:
                _check_file(field, path)
                real = os.path.realpath(path)
                other, _ = files.setdefault(real, (split, path))
                if other != split:
                    raise ValueError(
                        f"{field}: {path} is also in config.sources.{name}.{other}. A file "
                        "can be in one split only: narrow one of the two patterns."
                    )
    return list(files.values())


def _check_file(field: str, path: str) -> None:
    if os.path.isdir(path):
        raise ValueError(
            f"{field}: {path} is a directory. Write which of its files to read, such as "
            f"{os.path.join(path, '*.txt')}."
        )
    if not path.endswith(ENDINGS):
        raise ValueError(
            f"{field}: {path} does not end in one of {', '.join(ENDINGS)}. Convert it to one "
            "of these, or narrow the pattern."
        )
    if not os.path.getsize(path):
        raise ValueError(f"{field}: {path} is empty (0 bytes). Remove it, or write it again.")


# Plain text and JSON lines


def _read_lines(name: str, source: SourceConfig, path: str) -> Iterator[tuple[int, Document]]:
    """Yields (bytes of the file consumed so far, document)."""
    if ".txt" in _ending(path):
        text = decode(b"".join(line for _, line in lines(path)), path, of="file")
        yield os.path.getsize(path), Document(os.path.basename(path), text)
        return
    for number, (consumed, line) in enumerate(lines(path), start=1):
        if line.strip():
            yield consumed, _parse(name, source, line, path, number)


def _ending(path: str) -> str:
    return next(ending for ending in ENDINGS if path.endswith(ending))


def lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (bytes of the file consumed so far, line), decompressed if it ends in .gz or .zst.

    Raises:
      ValueError: the compressed data is truncated or corrupt, naming the file and how many
        lines of it could be read.
    """
    number = 0
    with open(path, "rb") as file:
        try:
            for number, line in enumerate(_decompressed(file, path), start=1):  # noqa: B007
                yield file.tell(), line
        except (EOFError, OSError, zlib.error) as error:
            if getattr(error, "errno", None):  # not of the data, but of the disk
                raise
            raise _damaged(path, f"after line {number}", error) from error


def _decompressed(file: BinaryIO, path: str) -> Iterable[bytes]:
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if path.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
    return file


def _damaged(path: str, where: str, error: Exception) -> ValueError:
    kind = {".gz": "gzip", ".zst": "zstd"}.get(os.path.splitext(path)[1], "Parquet")
    reason = str(error).rstrip(".") or type(error).__name__
    return ValueError(
        f"{path}, {where}: the {kind} data is truncated or corrupt ({reason}). "
        f"Copy or {'write' if kind == 'Parquet' else 'compress'} the file again."
    )


def decode(data: bytes, path: str, line: int = 1, *, of: str = "line") -> str:
    """Returns text from UTF-8, without the byte order mark that may begin a file.

    Args:
      data: a line of a file, or all of it.
      path: of the file, for messages.
      line: where in the file the data begins, from 1 on.
      of: line | file: what the data is.

    Raises:
      ValueError: it is not UTF-8, naming file, line and byte.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}: is not UTF-8 text (byte 0x{data[error.start]:02x}, at offset "
            f"{error.start} of the {of}). Convert the file to UTF-8."
        ) from error
    return text.removeprefix("\ufeff") if line == 1 else text


def _parse(name: str, source: SourceConfig, data: bytes, path: str, number: int) -> Document:
    where = f"{path}, line {number}"
    text = decode(data, path, number)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: is not valid JSON ({error}). Write one JSON object a line."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{where}: is a JSON {_json_type(values)}, not an object. Write one JSON object a "
            f'line, such as {{"{source.field}": "..."}}.'
        )
    if source.field not in values:
        raise ValueError(
            f"{where}: has no field {source.field!r}; it has: "
            f"{', '.join(values) or 'none'}. Set config.sources.{name}.field."
        )
    for field, kinds in (("field", str), ("id_field", str | int | None)):
        value = values.get(getattr(source, field))
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(
                f"{where}: its field {getattr(source, field)!r} is a JSON {_json_type(value)}, "
                f"not a string. Set config.sources.{name}.{field}."
            )
    document_id = values.get(source.id_field)
    if document_id is None:
        document_id = f"{os.path.basename(path)}:{number}"
    return Document(_whole_characters(str(document_id)), _whole_characters(values[source.field]))


def _whole_characters(text: str) -> str:
    r"""Replaces halves of surrogate pairs: JSON can spell them as \ud800, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _json_type(value: object) -> str:
    names = {str: "string", list: "array", dict: "object", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


# Parquet


def _read_parquet(name: str, source: SourceConfig, path: str) -> Iterator[tuple[int, Document]]:
    """Yields (bytes of the file consumed so far, document)."""
    import pyarrow

    basename, file_size, row = os.path.basename(path), os.path.getsize(path), 0
    with _open_parquet(path) as table:
        columns = _columns(name, source, path, table)
        try:
            for batch in table.iter_batches(_ROWS, columns=columns, use_threads=False):
                values = {column: _values(batch.column(column), path, row) for column in columns}
                texts = values[source.field]
                ids = values.get(source.id_field, [None] * len(texts))
                for text, document_id in zip(texts, ids, strict=True):
                    row += 1
                    if text is None:
                        raise _not_a_string(name, path, row, "field", source.field, "null")
                    if document_id is None:
                        document_id = f"{basename}:{row}"
                    consumed = file_size * row // table.metadata.num_rows
                    yield consumed, Document(str(document_id), text)
        except (pyarrow.ArrowException, OSError) as error:
            if getattr(error, "errno", None):  # not of the data, but of the disk
                raise
            raise _damaged(path, f"after row {row}", error) from error


def _open_parquet(path: str) -> "parquet.ParquetFile":
    import pyarrow
    from pyarrow import parquet

    try:
        # Buffers, but none for a whole group of rows: that may be the whole file.
        return parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise _damaged(path, "at its end", error) from error


def _columns(name: str, source: SourceConfig, path: str, table: "parquet.ParquetFile") -> list[str]:
    """Returns the column of the text and, if there is one, that of the ids."""
    from pyarrow import types

    schema = table.schema_arrow
    if source.field not in schema.names:
        raise ValueError(
            f"{path}: has no column {source.field!r}; it has: "
            f"{', '.join(schema.names) or 'none'}. Set config.sources.{name}.field."
        )
    fields = {"field": source.field}
    if source.id_field in schema.names:
        fields["id_field"] = source.id_field
    for which, column in fields.items():
        kind = schema.field(column).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        strings = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        integers = which == "id_field" and types.is_integer(kind)
        if not (strings or integers or types.is_null(kind)) and table.metadata.num_rows:
            raise _not_a_string(name, path, 1, which, column, str(kind))
    return list(dict.fromkeys(fields.values()))


def _not_a_string(name: str, path: str, row: int, which: str, column: str, kind: str) -> ValueError:
    return ValueError(
        f"{path}, row {row}: its column {column!r} is a Parquet {kind}, not a string. "
        f"Set config.sources.{name}.{which}."
    )


def _values(column: "pyarrow.Array", path: str, before: int) -> list[Any]:
    """Returns the values of some rows, after as many others."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        for row, value in enumerate(column, start=before + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, row {row}: is not UTF-8 text (byte 0x{error.object[error.start]:02x}"
                    f", at offset {error.start} of the value). Write the file again, in UTF-8."
                ) from error
        raise


def _column_size(path: str, column: str) -> int:
    """Returns the bytes of a column's values."""
    with _open_parquet(path) as table:
        metadata = table.metadata
        chunks = [
            metadata.row_group(group).column(index)
            for group in range(metadata.num_row_groups)
            for index in range(metadata.num_columns)
        ]
        return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == column)


# Digests


def digests(paths: Iterable[str], cache: pathlib.Path | None) -> dict[str, str]:
    """Returns the sha256 of each file; what the cache knows is not read."""
    known = _load_cache(cache)
    found, fresh = {}, {}
    for path in paths:
        status = os.stat(path)
        key = f"{os.path.abspath(path)}:{status.st_size}:{status.st_mtime_ns}"
        if key not in known:
            with open(path, "rb") as file:
                fresh[key] = known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        found[path] = known[key]
    if cache is not None and fresh:
        # Hashing may have taken long, and other runs add to the same file.
        _save_cache(cache, _load_cache(cache) | fresh)
    return found


def _load_cache(cache: pathlib.Path | None) -> dict[str, str]:
    if cache is None:
        return {}
    try:
        known = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)}


def _save_cache(cache: pathlib.Path, known: dict[str, str]) -> None:
    # Only a shortcut: where it cannot be written, the next run hashes again.
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(dir=cache.parent, prefix=f".{cache.name}.")
        try:
            with open(descriptor, "w") as file:
                json.dump(known, file, indent=1)
            os.replace(unfinished, cache)
        except BaseException:
            os.unlink(unfinished)
            raise
