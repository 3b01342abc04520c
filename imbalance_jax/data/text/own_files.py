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

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text import files as files_lib
from imbalance_jax.data.text import parquet, patterns
from imbalance_jax.data.text.documents import (
    SPLITS,
    DigestFiles,
    Document,
    RawDocuments,
    SourceFile,
)
from imbalance_jax.data.text.selection import Selection
from imbalance_jax.runs import damaged_files, storage

_COMPRESSED = (".gz", ".zst")
ENDINGS = tuple(
    kind + compression for kind in (".txt", ".jsonl") for compression in ("", *_COMPRESSED)
) + (".parquet",)

# Prose is about a third of its size when compressed.
_EXPANSION = 3
_BEGINNING = 1 << 16  # bytes of a .txt file that are looked at before it is read
# Documents of each file that are searched for a field of ids before all are read.
_PEEKED = 1000


def read_raw_documents(
    name: str, source: SourceConfig, report: Callable[[float], None], selection: Selection
) -> RawDocuments:
    """Returns the documents of all files, those of train first.

    Raises:
      ValueError: as `check_source`; and from the documents: a file cannot be read as what its
        ending says, naming file and line or row.
    """
    files = _list_source_files(name, source)
    _check_named_fields(name, source, files)
    carved = [split for split in SPLITS if not patterns.split_patterns(getattr(source, split))]
    documents = _read_file_documents(name, source, files, report, selection)
    return RawDocuments(documents, carved)


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
            with parquet.open_parquet(file.path) as table:
                parquet.find_parquet_columns(name, source, file.path, table)
        elif ".jsonl" in _find_file_ending(file.path) and file.split not in begun:
            # A field that is not there is found before another source is worked on for hours.
            begun[file.split] = next(_read_text_documents(name, source, file), None)
        elif file.path.endswith(".txt"):
            with open(file.path, "rb") as begins:
                _check_no_nul(begins.read(_BEGINNING), file.path)
    _check_named_fields(name, source, files)


def list_fingerprint_parts(
    name: str, source: SourceConfig, digest_files: DigestFiles
) -> list[object]:
    """Returns what the text follows from: the places and bytes of the files, in their order.

    Raises:
      ValueError: a pattern matches nothing that could be read, or a file is in two splits.
    """
    files = _list_source_files(name, source)
    digests = digest_files([file.path for file in files])
    return [
        source.field,
        source.id_field,
        *([file.split, file.place, digests[file.path]] for file in files),
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
        return parquet.measure_column_bytes(path, source.field)
    return os.path.getsize(path) * (_EXPANSION if path.endswith(_COMPRESSED) else 1)


def _read_file_documents(
    name: str,
    source: SourceConfig,
    files: Sequence[SourceFile],
    report: Callable[[float], None],
    selection: Selection,
) -> Iterator[tuple[str, Document]]:
    total = sum(os.path.getsize(file.path) for file in files)
    before = 0
    for file in files:
        if file.split in selection.ended:
            continue
        selection.opened.append(file.path)
        is_parquet = file.path.endswith(".parquet")
        read_file = parquet.read_parquet_documents if is_parquet else _read_text_documents
        for consumed, document in read_file(name, source, file):
            report((before + consumed) / total)
            yield file.split, document
            if file.split in selection.ended:
                break
        before += os.path.getsize(file.path)


# Which files


def _list_source_files(name: str, source: SourceConfig) -> list[SourceFile]:
    """Returns every file, in the order in which they are read."""
    files: dict[str, SourceFile] = {}  # by real path
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
                file = files.setdefault(os.path.realpath(path), SourceFile(split, path, place))
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
    special = damaged_files.describe_special_file(path)
    if special:
        raise ValueError(f"{field}: {path} is {special}, not a file. Write its text into a file.")
    if not os.path.getsize(path):
        raise ValueError(f"{field}: {path} is empty (0 bytes). Remove it, or write it again.")


# Fields


def _check_named_fields(name: str, source: SourceConfig, files: Sequence[SourceFile]) -> None:
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


def _check_id_field(name: str, source: SourceConfig, files: Iterable[SourceFile]) -> None:
    """Raises ValueError if no first document has an id in the field of ids."""
    has: Mapping[str, Any] = {}
    for file in files:
        if file.path.endswith(".parquet"):
            with parquet.open_parquet(file.path) as table:
                schema = parquet.list_column_types(table.schema_arrow)
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
    for number, (_, line) in enumerate(files_lib.read_file_lines(path), start=1):
        if line.strip():
            example = f'{{"{source.field}": "..."}}'
            yield files_lib.parse_json_object(line, path, number, example)


# Plain text and JSON lines


def _read_text_documents(
    name: str, source: SourceConfig, file: SourceFile
) -> Iterator[tuple[int, Document]]:
    """Yields (bytes of the file consumed so far, document)."""
    path = file.path
    if ".txt" in _find_file_ending(path):
        data = b"".join(line for _, line in files_lib.read_file_lines(path))
        _check_no_nul(data, path)
        text = files_lib.decode_utf8(data, path, of="file")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield os.path.getsize(path), file.document(name, text)
        return
    for number, (consumed, line) in enumerate(files_lib.read_file_lines(path), start=1):
        if line.strip():
            yield consumed, _parse_json_document(name, source, line, file, number)


def _check_no_nul(data: bytes, path: str) -> None:
    """Raises ValueError if the beginning of a file has a NUL byte, as UTF-16 and binaries have."""
    place = data.find(b"\0")
    if place >= 0:
        line = data.count(b"\n", 0, place) + 1
        raise ValueError(
            f"{path}, line {line}: has a NUL byte (at offset {place} of the file), so it is no "
            "text in UTF-8. Convert the file to UTF-8, or remove what is no text."
        )


def _find_file_ending(path: str) -> str:
    return next(ending for ending in ENDINGS if path.endswith(ending))


def _parse_json_document(
    name: str, source: SourceConfig, data: bytes, file: SourceFile, number: int
) -> Document:
    where = f"{file.path}, line {number}"
    values = files_lib.parse_json_object(data, file.path, number, f'{{"{source.field}": "..."}}')
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
                f"{where}: its field {getattr(source, field)!r} is a JSON "
                f"{files_lib.name_json_type(value)}, not a string. Set "
                f"config.sources.{name}.{field}."
            )
    text = files_lib.replace_lone_surrogates(text)
    if document_id in fields_lib.NO_IDS:
        return file.document(name, text, number)
    return Document(files_lib.replace_lone_surrogates(str(document_id)), text)
