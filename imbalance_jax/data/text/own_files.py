"""Text in files of one's own, in the formats of formats.py.

A `.txt` file is one document unless the config says otherwise; other formats have one in every
line, row or unit. Files of lines may be compressed with gzip, Zstandard, xz or bzip2. All but a
`.txt` that is one document are streamed: a corpus needs no more memory than its longest documents,
or largest pages of a Parquet column (by default, a megabyte or a thousand rows).

What a string of JSON or of a column says is text, carriage returns included; a line of `.jsonl`
ends at a line feed alone. A byte order mark that begins a file is no text, nor is one that begins a
line of `.jsonl`: files that were joined have it there.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import columns, formats, patterns
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text import files as files_lib
from imbalance_jax.data.text.conditions import Condition, parse_conditions
from imbalance_jax.data.text.documents import (
    SPLITS,
    DigestFiles,
    Document,
    RawDocuments,
    Record,
    SourceFile,
    print_once,
)
from imbalance_jax.data.text.fields import WantedField
from imbalance_jax.data.text.formats import OnBadLine, raise_bad_line
from imbalance_jax.data.text.selection import Selection
from imbalance_jax.runs import damaged_files, storage

# Prose is about a third of its size when compressed.
_EXPANSION = 3
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
    _note_clean_and_noisy(name, files)
    begun: set[tuple[str, str]] = set()  # splits and formats of which a document was read
    for file in files:
        file_format = formats.find_format(file.path, source.format)
        if file_format in columns.KINDS:
            wanted = _list_wanted_fields(name, source, file_format)
            found = columns.find_columns(file.path, file_format, wanted)
            for field in wanted:
                if field.kind == "value" and field.name not in found:
                    has = fields_lib.format_field_names(
                        columns.list_columns(file.path, file_format)
                    )
                    raise ValueError(
                        f"{file.path}: has no column {field.name!r}; it has: {has}. "
                        f"Set {field.setting}."
                    )
        elif file_format == "text" and not files_lib.split_compression(file.path)[1]:
            formats.check_beginning(file.path, file_format)
        # The columns of a table say all but what is compared in them.
        is_told = file_format == "text" or (file_format in columns.KINDS and not source.where)
        if not is_told and (file.split, file_format) not in begun:
            # A field that is not there is found before another source is worked on for hours.
            begun.add((file.split, file_format))
            records = _read_one_file(name, source, file, Selection())
            next(records, None)
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
        *(
            [field, getattr(source, field)]
            for field in ("format", "documents")
            if getattr(source, field) != getattr(SourceConfig, field)
        ),
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
    file_format = formats.find_format(path, source.format)
    if file_format in columns.KINDS:
        return columns.measure_column_bytes(path, file_format, source.field)
    return os.path.getsize(path) * (_EXPANSION if files_lib.split_compression(path)[1] else 1)


# From files to documents


def _list_wanted_fields(name: str, source: SourceConfig, file_format: str) -> list[WantedField]:
    # Plain text has no fields to choose from, also beside files which have.
    text = SourceConfig.field if file_format == "text" else source.field
    return [
        WantedField(text, f"config.sources.{name}.field"),
        WantedField(source.id_field, f"config.sources.{name}.id_field", "id"),
        *(
            WantedField(condition.field, condition.setting, "value")
            for condition in parse_conditions(name, source.where)
        ),
    ]


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
        for consumed, document in _read_one_file(name, source, file, selection):
            report((before + consumed) / total)
            if document:
                yield file.split, document
            if file.split in selection.ended:
                break
        before += os.path.getsize(file.path)


def _read_one_file(
    name: str, source: SourceConfig, file: SourceFile, selection: Selection
) -> Iterator[tuple[int, Document | None]]:
    """Yields (bytes of the file consumed so far, document); None in place of one to leave out."""
    file_format = formats.find_format(file.path, source.format)
    wanted = _list_wanted_fields(name, source, file_format)
    conditions = parse_conditions(name, source.where)
    on_bad_line = _choose_bad_line_handler(source, selection)
    for record in formats.read_records(
        file.path, file_format, source.documents, wanted, on_bad_line
    ):
        try:
            meets_all = not conditions or _meets_all(conditions, record, file, file_format)
            document = None
            if meets_all:
                document = _make_document(name, record, file, file_format, wanted)
        except ValueError as error:
            on_bad_line(error)
            continue
        selection.readable += 1
        if document is None:
            selection.left_out["where"] += 1
        yield record.consumed, document


def _choose_bad_line_handler(source: SourceConfig, selection: Selection) -> OnBadLine:
    return selection.leave_out if source.on_bad_line == "skip" else raise_bad_line


def _meets_all(
    conditions: Sequence[Condition], record: Record, file: SourceFile, file_format: str
) -> bool:
    place = formats.describe_place(file.path, file_format, record.number)
    typed = file_format not in formats.UNTYPED
    # A list, and not a generator: a field that is not there is found whatever the others say.
    return all([each.is_met(record.values, place, typed=typed) for each in conditions])


def _make_document(
    name: str,
    record: Record,
    file: SourceFile,
    file_format: str,
    wanted: Sequence[WantedField],
) -> Document:
    text, document_id = (
        formats.get_wanted_value(record, field, file.path, file_format) for field in wanted[:2]
    )
    if document_id in fields_lib.NO_IDS:
        return file.document(name, text, record.number)
    return Document(str(document_id), text)


# Which files


def _list_source_files(name: str, source: SourceConfig) -> list[SourceFile]:
    """Returns every file, in the order in which they are read."""
    files: dict[str, SourceFile] = {}  # by real path
    for split in SPLITS:
        value = getattr(source, split)
        field = f"config.sources.{name}.{split}={value!r}"
        listed = patterns.split_patterns(value)
        if split == "train" and not listed:
            raise ValueError(f"{field} is empty. Name a file or a pattern.")
        for number, pattern in enumerate(listed, start=1):
            storage.check_local_path(field, pattern)
            # Two patterns may match files whose paths are alike from there on.
            which = "" if (split, number) == ("train", 1) else f"//{split}{number}"
            for path in _find_pattern_paths(name, source, field, pattern):
                place = patterns.strip_fixed_directories(pattern, path) + which
                file = files.setdefault(os.path.realpath(path), SourceFile(split, path, place))
                if file.split != split:
                    raise ValueError(
                        f"{field}: {path} is also in config.sources.{name}.{file.split}. A file "
                        "can be in one split only: narrow one of the two patterns."
                    )
    return list(files.values())


def _find_pattern_paths(name: str, source: SourceConfig, field: str, pattern: str) -> Iterator[str]:
    for alternative, paths in patterns.match_pattern(pattern):
        if not paths:
            where = os.path.abspath(os.path.expanduser(alternative))
            raise ValueError(
                f"{field}: {alternative} matches no file (looked for {where}). Correct the path; "
                "** matches any number of directories, {a,b} either of two names, and [,] a comma "
                "in a name."
            )
        for path in paths:
            _check_file(name, source, field, path)
            yield path


def _check_file(name: str, source: SourceConfig, field: str, path: str) -> None:
    if os.path.isdir(path):
        raise ValueError(
            f"{field}: {path} is a directory. Write which of its files to read, such as "
            f"{os.path.join(path, '*.txt')}."
        )
    file_format = formats.find_format(path, source.format)
    if not file_format:
        raise ValueError(
            f"{field}: {path} does not end in one of {formats.describe_endings()}. Say what it is: "
            f"config.sources.{name}.format=text with documents=line, blank_line or file for plain "
            "text, or format=jsonl, tsv or wiki_extractor. Or convert it, or narrow the pattern."
        )
    if file_format in columns.KINDS and files_lib.split_compression(path)[1]:
        raise ValueError(
            f"{field}: {path} is compressed, and a {columns.KINDS[file_format]} file is read from "
            f"any place in it. Write {formats.format_reading_command(path)} > "
            f"{files_lib.split_compression(path)[0]}"
        )
    special = damaged_files.describe_special_file(path)
    if special:
        raise ValueError(f"{field}: {path} is {special}, not a file. Write its text into a file.")
    if not os.path.getsize(path):
        raise ValueError(f"{field}: {path} is empty (0 bytes). Remove it, or write it again.")


def _note_clean_and_noisy(name: str, files: Sequence[SourceFile]) -> None:
    """Prints a line where a source reads a corpus once with and once without its noise."""
    bases = [os.path.basename(file.path) for file in files]
    counts = {word: sum(word in base for base in bases) for word in ("clean", "noisy")}
    if all(counts.values()):
        said = " and ".join(f"{count:,} files named {word}" for word, count in counts.items())
        print_once(
            f"config.sources.{name} has {said}, which corpora such as MADLAD-400 have in one "
            "folder. Write *clean* or *noisy* in the pattern to read one of the two."
        )


# Fields


def _check_named_fields(name: str, source: SourceConfig, files: Sequence[SourceFile]) -> None:
    """Raises ValueError if the config names a field that no file can have, or no document has."""
    stated = [
        f"{which}={getattr(source, which)!r}"
        for which in ("field", "id_field", "ids")
        if getattr(source, which) != getattr(SourceConfig, which)
    ]
    found = {formats.find_format(file.path, source.format) for file in files}
    if stated and found == {"text"}:
        raise ValueError(
            f"config.sources.{name}.{stated[0]}: the files of the source are .txt or other plain "
            f"text, which has no fields. Leave it out, or set config.sources.{name}.train to "
            ".jsonl or .parquet files."
        )
    if source.where and "text" in found:
        raise ValueError(
            f"config.sources.{name}.where={source.where!r}: the source has files of plain text, "
            f"which has no fields. Leave it out, or set config.sources.{name}.train to other files."
        )
    if source.documents != SourceConfig.documents and "text" not in found:
        raise ValueError(
            f"config.sources.{name}.documents={source.documents!r} is for plain text, and the "
            f"files of the source are {', '.join(sorted(found))}. Leave it out, or set "
            f"config.sources.{name}.format=text."
        )
    if source.names_ids:
        _check_id_field(name, source, files)


def _check_id_field(name: str, source: SourceConfig, files: Iterable[SourceFile]) -> None:
    """Raises ValueError if no first document has an id in the field of ids."""
    has: Mapping[str, Any] = {}
    on_bad_line = _choose_bad_line_handler(source, Selection())
    for file in files:
        file_format = formats.find_format(file.path, source.format)
        wanted = _list_wanted_fields(name, source, file_format)
        if file_format in columns.KINDS:
            if source.id_field in columns.find_columns(file.path, file_format, wanted):
                return
            has = has or columns.list_columns(file.path, file_format)
        elif file_format != "text":
            records = formats.read_records(
                file.path, file_format, source.documents, wanted, on_bad_line
            )
            for record in itertools.islice(records, _PEEKED):
                value = fields_lib.find_field_value(record.values, source.id_field)
                if value is not fields_lib.ABSENT and value not in fields_lib.NO_IDS:
                    return
                has = has or record.values
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
