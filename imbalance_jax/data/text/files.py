"""Text in files of one's own.

A `.txt` file is one document, a `.jsonl` file has one in every line, and a `.parquet` file in
every row. The first two may be compressed with gzip (`.gz`) or Zstandard (`.zst`). All but
`.txt` are streamed: a corpus needs no more memory than its longest lines, or largest pages of
a Parquet column (by default, a megabyte or a thousand rows).

Lines of a `.txt` file end as those of any text file do, at a line feed, a carriage return or both,
and are kept with a line feed. What a string of JSON or Parquet says is text, carriage returns
included; a line of `.jsonl` ends at a line feed alone. A byte order mark that begins a file is no
text, nor is one that begins a line of `.jsonl`: files that were joined have it there.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import os
import pathlib
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text import patterns
from imbalance_jax.data.text.documents import SPLITS, Document, RawDocuments
from imbalance_jax.runs import storage

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
# Documents of each file that are searched for a field of ids before all are read.
_PEEKED = 1000
# Nanoseconds by which the clock of a file system may lag: a file that has changed since may
# change again without another time to show it. FAT counts in twos of seconds.
_CLOCK = 2_000_000_000
_SAMPLE = 4096  # bytes of a file's beginning, middle and end


def read_raw_documents(
    name: str, source: SourceConfig, report: Callable[[float], None]
) -> RawDocuments:
    """Returns the documents of all files, those of train first.

    Args:
      name: of the source in config.sources, for messages.
      source: which files to read, and the fields of text and id.
      report: called now and then with how much of the files is read, from 0 to 1.

    Raises:
      ValueError: as `check_source`; and from the documents: a file cannot be read as what its
        ending says, naming file and line or row.
    """
    files = _list_source_files(name, source)
    _check_named_fields(name, source, files)
    carved = [split for split in SPLITS if not patterns.split_patterns(getattr(source, split))]
    return RawDocuments(_read_file_documents(name, source, files, report), carved, _SHARE)


def check_source(name: str, source: SourceConfig) -> None:
    """Finds what is wrong with a source without reading more than its first documents.

    Raises:
      ValueError: a pattern matches nothing that could be read, a file is in two splits, a
        file has not the fields that it should have, or none has a field that the config
        names.
    """
    files = _list_source_files(name, source)
    begun: dict[str, object] = {}  # splits with a .jsonl file
    for file in files:
        if file.path.endswith(".parquet"):
            with _open_parquet(file.path) as table:
                _find_parquet_columns(name, source, file.path, table)
        elif ".jsonl" in _find_file_ending(file.path) and file.split not in begun:
            # A field that is not there is found before another source is worked on for hours.
            begun[file.split] = next(_read_text_documents(name, source, file), None)
    _check_named_fields(name, source, files)


def list_fingerprint_parts(
    name: str, source: SourceConfig, cache: pathlib.Path | None
) -> list[object]:
    """Returns what the text follows from: the places and bytes of the files, in their order.

    Args:
      name: of the source in config.sources, for messages.
      source: which files they are.
      cache: as of `compute_file_digests`.

    Raises:
      ValueError: a pattern matches nothing that could be read, or a file is in two splits.
    """
    files = _list_source_files(name, source)
    known = compute_file_digests([file.path for file in files], cache)
    return [
        source.field,
        source.id_field,
        *([file.split, file.place, known[file.path]] for file in files),
    ]


def estimate_source_bytes(source: SourceConfig) -> int:
    """Returns about how many bytes of text there are to train on."""
    return sum(_estimate_file_bytes(source, path) for path in patterns.find_paths(source.train))


def is_source_here(name: str, source: SourceConfig) -> bool:
    """Whether any pattern of a source matches a file of this machine."""
    matched = (patterns.match_pattern(pattern) for pattern in list_source_patterns(source))
    return any(paths for alternatives in matched for _, paths in alternatives)


def list_source_patterns(source: SourceConfig) -> list[str]:
    """Returns the paths and patterns of all splits of a source."""
    return [p for split in SPLITS for p in patterns.split_patterns(getattr(source, split))]


def _estimate_file_bytes(source: SourceConfig, path: str) -> int:
    if path.endswith(".parquet"):
        return _measure_column_bytes(path, source.field)
    return os.path.getsize(path) * (_EXPANSION if path.endswith(_COMPRESSED) else 1)


def _read_file_documents(
    name: str,
    source: SourceConfig,
    files: list["_SourceFile"],
    report: Callable[[float], None],
) -> Iterator[tuple[str, Document]]:
    total = sum(os.path.getsize(file.path) for file in files)
    before = 0
    for file in files:
        read_file = (
            _read_parquet_documents if file.path.endswith(".parquet") else _read_text_documents
        )
        for consumed, document in read_file(name, source, file):
            report((before + consumed) / total)
            yield file.split, document
        before += os.path.getsize(file.path)


# Which files


@dataclasses.dataclass(frozen=True)
class _SourceFile:
    """A file of a source. Documents without an id of their own are named after its place."""

    split: str
    path: str
    place: str  # of no other file of the source; the same wherever the corpus lies

    def document(self, name: str, text: str, number: int | None = None) -> Document:
        """Returns a text without an id as a document, which is all of the file or a part."""
        made_up = self.place if number is None else f"{self.place}:{number}"
        return Document(made_up, text, named_by=name)


def _list_source_files(name: str, source: SourceConfig) -> list[_SourceFile]:
    """Returns every file, in the order in which they are read."""
    files: dict[str, _SourceFile] = {}  # by real path
    for split in SPLITS:
        value = getattr(source, split)
        field = f"config.sources.{name}.{split}={value!r}"
        listed = patterns.split_patterns(value)
        if split == "train" and not listed:
            raise ValueError(f"{field} is empty. Set it to a {', '.join(ENDINGS)} file or pattern.")
        for number, pattern in enumerate(listed, start=1):
            storage.check_local_path(field, pattern)
            # Two patterns may match files whose paths are alike from there on.
            which = "" if (split, number) == ("train", 1) else f"//{split}{number}"
            for path in _find_pattern_paths(field, pattern):
                place = patterns.strip_fixed_directories(pattern, path) + which
                file = files.setdefault(os.path.realpath(path), _SourceFile(split, path, place))
                if file.split != split:
                    raise ValueError(
                        f"{field}: {path} is also in config.sources.{name}.{file.split}. A file "
                        "can be in one split only: narrow one of the two patterns."
                    )
    return list(files.values())


def _find_pattern_paths(field: str, pattern: str) -> Iterator[str]:
    for alternative, paths in patterns.match_pattern(pattern):
        if not paths:
            where = os.path.abspath(os.path.expanduser(alternative))
            raise ValueError(
                f"{field}: {alternative} matches no file (looked for {where}). Correct the path; "
                "** matches any number of directories, {a,b} either of two names, and [,] a comma "
                "in a name."
            )
        for path in paths:
            _check_file(field, path)
            yield path


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


# Fields


def _check_named_fields(name: str, source: SourceConfig, files: Sequence[_SourceFile]) -> None:
    """Raises ValueError if the config names a field that no file can have, or no document has."""
    stated = [
        f"{which}={getattr(source, which)!r}"
        for which in ("field", "id_field", "ids")
        if getattr(source, which) != getattr(SourceConfig, which)
    ]
    if stated and all(".txt" in _find_file_ending(file.path) for file in files):
        raise ValueError(
            f"config.sources.{name}.{stated[0]}: the files of the source are .txt, which have no "
            f"fields. Leave it out, or set config.sources.{name}.train to .jsonl or .parquet files."
        )
    if source.names_ids:
        _check_id_field(name, source, files)


def _check_id_field(name: str, source: SourceConfig, files: Iterable[_SourceFile]) -> None:
    """Raises ValueError if no first document has an id in the field of ids."""
    has: Mapping[str, Any] = {}
    for file in files:
        if file.path.endswith(".parquet"):
            with _open_parquet(file.path) as table:
                schema = fields_lib.list_column_types(table.schema_arrow)
            if fields_lib.find_field_value(schema, source.id_field) is not fields_lib.ABSENT:
                return
            has = has or schema
        elif ".jsonl" in _find_file_ending(file.path):
            for values in itertools.islice(_parse_json_lines(source, file.path), _PEEKED):
                value = fields_lib.find_field_value(values, source.id_field)
                if value is not fields_lib.ABSENT and value not in fields_lib.NO_IDS:
                    return
                has = has or values
    stated = "ids='shared'"
    if source.id_field != SourceConfig.id_field:
        stated = f"id_field={source.id_field!r}"
    raise ValueError(
        f"config.sources.{name}.{stated}: none of the first {_PEEKED:,} documents of each file has "
        f"a field {source.id_field!r} with an id; the first has: "
        f"{fields_lib.format_field_names(has)}. Set "
        f"config.sources.{name}.id_field to the field of the ids, with dots to a nested one, or "
        "leave id_field and ids out."
    )


def _parse_json_lines(source: SourceConfig, path: str) -> Iterator[Mapping[str, Any]]:
    for number, (_, line) in enumerate(read_file_lines(path), start=1):
        if line.strip():
            example = f'{{"{source.field}": "..."}}'
            yield parse_json_object(line, path, number, example)


# Plain text and JSON lines


def _read_text_documents(
    name: str, source: SourceConfig, file: _SourceFile
) -> Iterator[tuple[int, Document]]:
    """Yields (bytes of the file consumed so far, document)."""
    path = file.path
    if ".txt" in _find_file_ending(path):
        text = decode_utf8(b"".join(line for _, line in read_file_lines(path)), path, of="file")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield os.path.getsize(path), file.document(name, text)
        return
    for number, (consumed, line) in enumerate(read_file_lines(path), start=1):
        if line.strip():
            yield consumed, _parse_json_document(name, source, line, file, number)


def _find_file_ending(path: str) -> str:
    return next(ending for ending in ENDINGS if path.endswith(ending))


def read_file_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (bytes of the file consumed so far, line), decompressed if it ends in .gz or .zst.

    Raises:
      ValueError: the compressed data is truncated or corrupt, naming the file and how many
        lines of it could be read.
    """
    number = 0
    with open(path, "rb") as file:
        try:
            for number, line in enumerate(_decompress_file(file, path), start=1):  # noqa: B007
                yield file.tell(), line
        except (EOFError, OSError, zlib.error) as error:
            if getattr(error, "errno", None):  # not of the data, but of the disk
                raise
            raise _make_damaged_file_error(path, f"after line {number}", error) from error


def _decompress_file(file: BinaryIO, path: str) -> Iterable[bytes]:
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if path.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
    return file


def _make_damaged_file_error(path: str, where: str, error: Exception) -> ValueError:
    kind = {".gz": "gzip", ".zst": "zstd"}.get(os.path.splitext(path)[1], "Parquet")
    reason = str(error).rstrip(".") or type(error).__name__
    return ValueError(
        f"{path}, {where}: the {kind} data is truncated or corrupt ({reason}). "
        f"Copy or {'write' if kind == 'Parquet' else 'compress'} the file again."
    )


def decode_utf8(data: bytes, path: str, line: int = 1, *, of: str = "line") -> str:
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


def parse_json_object(data: bytes, path: str, number: int, example: str) -> dict[str, Any]:
    """Returns a line of a file as a JSON object.

    Args:
      data: the line.
      path: of the file, for messages.
      number: of the line, from 1 on.
      example: of such an object, for messages.

    Raises:
      ValueError: it is not UTF-8 or not an object, naming file and line.
    """
    where = f"{path}, line {number}"
    text = decode_utf8(data, path, number).removeprefix("\ufeff")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError alone: a number of 5,000 digits
        marked = "}\ufeff" in text
        raise ValueError(
            f"{where}: is not valid JSON ({error}). "
            + "There is a byte order mark in it, where files were joined of which the first does "
            "not end in a line end: put one there. " * marked + "Write one JSON object a line."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{where}: is a JSON {_json_type(values)}, not an object. Write one JSON object a "
            f"line, such as {example}."
        )
    return values


def _parse_json_document(
    name: str, source: SourceConfig, data: bytes, file: _SourceFile, number: int
) -> Document:
    where = f"{file.path}, line {number}"
    values = parse_json_object(data, file.path, number, f'{{"{source.field}": "..."}}')
    text = fields_lib.find_field_value(values, source.field)
    if text is fields_lib.ABSENT:
        raise ValueError(
            f"{where}: has no field {source.field!r}; it has: "
            f"{fields_lib.format_field_names(values)}. "
            f"Set config.sources.{name}.field."
        )
    document_id = fields_lib.find_field_value(values, source.id_field)
    if document_id is fields_lib.ABSENT:
        document_id = None
    for field, value, kinds in (
        ("field", text, str),
        ("id_field", document_id, str | int | None),
    ):
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(
                f"{where}: its field {getattr(source, field)!r} is a JSON {_json_type(value)}, "
                f"not a string. Set config.sources.{name}.{field}."
            )
    text = replace_lone_surrogates(text)
    if document_id in fields_lib.NO_IDS:
        return file.document(name, text, number)
    return Document(replace_lone_surrogates(str(document_id)), text)


def replace_lone_surrogates(text: str) -> str:
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


def _read_parquet_documents(
    name: str, source: SourceConfig, file: _SourceFile
) -> Iterator[tuple[int, Document]]:
    """Yields (bytes of the file consumed so far, document)."""
    import pyarrow

    path, file_size, row = file.path, os.path.getsize(file.path), 0
    with _open_parquet(path) as table:
        columns = _find_parquet_columns(name, source, path, table)
        leaves = [".".join(column) for column in columns.values()]
        try:
            for batch in table.iter_batches(_ROWS, columns=leaves, use_threads=False):
                values = {
                    which: _decode_column_values(
                        fields_lib.select_nested_column(batch, column), path, row
                    )
                    for which, column in columns.items()
                }
                texts = values["field"]
                ids = values.get("id_field", [None] * len(texts))
                for text, document_id in zip(texts, ids, strict=True):
                    row += 1
                    if text is None:
                        raise _make_column_type_error(
                            name, path, row, "field", source.field, "null"
                        )
                    document = file.document(name, text, row)
                    if document_id not in fields_lib.NO_IDS:
                        document = Document(str(document_id), text)
                    yield file_size * row // table.metadata.num_rows, document
        except (pyarrow.ArrowException, OSError) as error:
            if getattr(error, "errno", None):  # not of the data, but of the disk
                raise
            raise _make_damaged_file_error(path, f"after row {row}", error) from error


def _open_parquet(path: str) -> "parquet.ParquetFile":
    import pyarrow
    from pyarrow import parquet

    try:
        # Buffers, but none for a whole group of rows: that may be the whole file.
        return parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise _make_damaged_file_error(path, "at its end", error) from error


def _find_parquet_columns(
    name: str, source: SourceConfig, path: str, table: "parquet.ParquetFile"
) -> dict[str, tuple[str, ...]]:
    """Returns where the text is and, if they are there, the ids: names from the outside in."""
    from pyarrow import types

    schema = fields_lib.list_column_types(table.schema_arrow)
    columns = {}
    for which in ("field", "id_field"):
        column = getattr(source, which)
        kind = fields_lib.find_field_value(schema, column)
        if kind is fields_lib.ABSENT:
            if which == "id_field":
                continue
            raise ValueError(
                f"{path}: has no column {column!r}; it has: "
                f"{fields_lib.format_field_names(schema)}. Set "
                f"config.sources.{name}.field."
            )
        columns[which] = fields_lib.find_field_path(schema, column)
        if isinstance(kind, Mapping):
            raise _make_column_type_error(name, path, 1, which, column, "struct")
        if types.is_dictionary(kind):
            kind = kind.value_type
        strings = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        integers = which == "id_field" and types.is_integer(kind)
        if not (strings or integers or types.is_null(kind)) and table.metadata.num_rows:
            raise _make_column_type_error(name, path, 1, which, column, str(kind))
    return columns


def _make_column_type_error(
    name: str, path: str, row: int, which: str, column: str, kind: str
) -> ValueError:
    return ValueError(
        f"{path}, row {row}: its column {column!r} is a Parquet {kind}, not a string. "
        f"Set config.sources.{name}.{which}."
    )


def _decode_column_values(column: "pyarrow.Array", path: str, before: int) -> list[Any]:
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


def _measure_column_bytes(path: str, column: str) -> int:
    """Returns the bytes of a column's values."""
    with _open_parquet(path) as table:
        metadata = table.metadata
        names = fields_lib.find_field_path(fields_lib.list_column_types(table.schema_arrow), column)
        chunks = [
            metadata.row_group(group).column(index)
            for group in range(metadata.num_row_groups)
            for index in range(metadata.num_columns)
        ]
        return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == ".".join(names))


# Digests


def compute_file_digests(paths: Iterable[str], cache: pathlib.Path | None) -> dict[str, str]:
    """Returns the sha256 of each file; what the cache knows is not read.

    A file is known by `storage.file_status` and a sample of its bytes. One that has changed
    within the last seconds is hashed, and not remembered. So a change is missed only on a file
    system that does not keep the time of change itself, if size, time of modification and inode
    stay as well, and only where the sample is not.
    """
    known = _load_digest_cache(cache)
    found, fresh = {}, {}
    for path in paths:
        with open(path, "rb") as file:
            now, before = time.time_ns(), os.fstat(file.fileno())
            status = storage.format_file_status(before)
            key = f"{os.path.abspath(path)}:{status}:{_hash_file_sample(file)}"
            found[path] = known.get(key) or hashlib.file_digest(file, "sha256").hexdigest()
            unchanged = storage.format_file_status(os.fstat(file.fileno())) == status
            if key not in known and unchanged and before.st_ctime_ns <= now - _CLOCK:
                fresh[key] = found[path]
    if cache is not None and fresh:
        # Hashing may have taken long, and other runs add to the same file.
        _save_digest_cache(cache, _load_digest_cache(cache) | fresh)
    return found


def _hash_file_sample(file: BinaryIO) -> str:
    """Returns a digest of the beginning, the middle and the end of a file, left at its start."""
    size = os.fstat(file.fileno()).st_size
    sample = hashlib.blake2b(digest_size=8)
    for start in (0, (size - _SAMPLE) // 2, size - _SAMPLE):
        file.seek(max(0, start))
        sample.update(file.read(_SAMPLE))
    file.seek(0)
    return sample.hexdigest()


def _load_digest_cache(cache: pathlib.Path | None) -> dict[str, str]:
    if cache is None:
        return {}
    try:
        known = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)}


def _save_digest_cache(cache: pathlib.Path, known: dict[str, str]) -> None:
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
