"""Documents of a source, as they are before any tokenizer sees them.

`read_documents` yields them one by one, each with its split; `check_source_text` finds what is
wrong with a source before a byte of it is read, and `compute_text_fingerprint` stands for all that
would be yielded.

Each kind of source is read by a module of its own: own_files.py, docstrings.py (the embedded text)
and tfds.py (TFDS). What they have in common is here: which documents are held out where a
source says nothing of it, and what markup becomes.
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import docstrings, files, own_files, tfds
from imbalance_jax.data.text.documents import (
    SPLITS,
    DigestFiles,
    Document,
    RawDocuments,
    print_once,
)
from imbalance_jax.data.text.selection import (
    USUAL_BYTES_A_TOKEN,
    Selection,
    has_cap,
    hash_text,
)
from imbalance_jax.runs.json_text import format_json
from imbalance_jax.runs.progress import Progress

# Part of every fingerprint: raise it when the same input begins to yield other text.
_VERSION = 2
# Progress is reported again when this much more of the input is read.
_PROGRESS = 0.002
# What separates the parts of an article of wiki40b. Line breaks stand around all but the last.
_WIKI40B = re.compile(r"_START_ARTICLE_|_START_SECTION_|_START_PARAGRAPH_|_NEWLINE_|\n")
_PEEKED = 2000  # documents that tell the size of a text of which a part is taken
_ARTICLE = "_START_ARTICLE_"  # every article begins with it
_LOOKED_AT = 1000  # documents that are searched for line ends which are spelled out
_UNMARKED = 1000  # documents without a marker after which a text is refused


class _SourceReader(Protocol):
    """The functions of the module of a kind; they are described here, by their namesakes."""

    def read_raw_documents(
        self,
        name: str,
        source: SourceConfig,
        report: Callable[[float], None],
        selection: Selection,
    ) -> RawDocuments: ...

    def check_source(self, name: str, source: SourceConfig) -> None: ...

    def list_fingerprint_parts(
        self, name: str, source: SourceConfig, digest_files: DigestFiles
    ) -> list[object]: ...

    def estimate_source_bytes(self, source: SourceConfig) -> int: ...

    def is_source_here(self, name: str, source: SourceConfig) -> bool: ...


def _select_source_reader(source: SourceConfig) -> _SourceReader:
    kinds: dict[str, _SourceReader] = {"docstrings": docstrings, "files": own_files, "tfds": tfds}
    assert source.kind in kinds, f"text of kind {source.kind} is not read here"
    return kinds[source.kind]


def read_documents(
    name: str,
    source: SourceConfig,
    progress: Callable[[float], None] | None = None,
    selection: Selection | None = None,
) -> Iterator[tuple[str, Document]]:
    """Yields (split, document) in an order that depends on the text alone.

    A split without text of its own gets documents of train, chosen by a hash of their ids
    and nothing else: documents of equal id are in the same split, whatever their source.
    Documents without text are left out. A line is printed of how many lack an id that others
    have, or that the config asks for.

    Args:
      progress: is called now and then with how much of the input is read, from 0 to 1.
      selection: is filled in with what is taken of the text and what is left out.

    Raises:
      ValueError: something cannot be read as what it is said to be, naming file and line or
        dataset and record; no document has the markup or a field that the config names; or
        whatever `check_source_text` raises.
    """
    count, with_id, spelled, marked = 0, 0, 0, source.markup == "none"
    reported = 0.0
    selection = selection or Selection()

    def report(fraction: float) -> None:
        nonlocal reported
        fraction = max(fraction, selection.compute_progress(source))
        if progress and fraction >= reported + _PROGRESS:
            reported = min(1.0, fraction)
            progress(reported)

    if source.held_out_duplicates == "remove" and selection.removed is None:
        selection.removed = _collect_held_out_texts(name, source, progress)
    reading = _select_source_reader(source).read_raw_documents(name, source, report, selection)
    selection.carved = ("train", *reading.carved)
    for own, document in reading.documents:
        count += 1
        with_id += not document.named_by
        marked = marked or _ARTICLE in document.text
        if count <= _LOOKED_AT:
            spelled += "\\n" in document.text and "\n" not in document.text
            if count == _LOOKED_AT:
                _report_spelled_line_ends(name, spelled, count)
        if count == _UNMARKED and not marked:
            raise _make_markup_error(name, source, f"none of the first {count:,} documents has")
        if source.markup == "wiki40b":
            document = dataclasses.replace(document, text=_strip_wiki40b_markup(document.text))
        if not document.text.strip():
            selection.left_out["empty"] += 1
            continue
        split = own
        if own == "train":
            split = _assign_split(document.id, reading.carved, reading.share)
        selection.count(source, own, split, document.text)
        if split == "train" and selection.removed and hash_text(document.text) in selection.removed:
            selection.left_out["held_out_duplicates"] += 1
        else:
            yield split, document
    if selection.first_error and not selection.readable:
        raise selection.first_error
    if count and not marked:
        raise _make_markup_error(name, source, "no document has")
    _report_missing_ids(name, source, count, with_id)
    if count < _LOOKED_AT:
        _report_spelled_line_ends(name, spelled, count)
    if progress:
        progress(1.0)


def _collect_held_out_texts(
    name: str, source: SourceConfig, progress: Callable[[float], None] | None
) -> frozenset[int]:
    """Returns what stands for the texts that are held out, after a pass over all of the text."""
    keeping = dataclasses.replace(source, held_out_duplicates="keep")
    documents = read_documents(name, keeping, progress)
    return frozenset(hash_text(document.text) for split, document in documents if split != "train")


def _make_markup_error(name: str, source: SourceConfig, what: str) -> ValueError:
    return ValueError(
        f"config.sources.{name}.markup={source.markup!r}: {what} its marker {_ARTICLE}. Set "
        f"config.sources.{name}.markup=none, or read text that still has its markup."
    )


def _report_spelled_line_ends(name: str, spelled: int, count: int) -> None:
    r"""Prints how many of the first documents have `\n` as two characters and no line end."""
    if spelled > count / 2:
        print_once(
            f"config.sources.{name}: {spelled:,} of the first {count:,} documents have the two "
            r"characters \n and no line end. They are kept as they are. Corpora such as MADLAD-400 "
            "have them in place of line ends: put these in before, if this is so here."
        )


def _report_missing_ids(name: str, source: SourceConfig, count: int, with_id: int) -> None:
    """Prints how many documents have no id of their own, where any is expected."""
    field = f"config.sources.{name}.id_field={source.id_field!r}"
    if source.names_ids and count and not with_id:
        raise ValueError(
            f"{field}: no document has an id there. Set it to the field of the ids, or leave "
            "id_field and ids out."
        )
    if 0 < with_id < count:
        print_once(
            f"{field}: {count - with_id:,} of {count:,} documents have no id there and are told "
            "apart by their places, as documents of no other source."
        )


def check_source_text(name: str, source: SourceConfig) -> None:
    """Finds what is wrong with a source without reading more than its first documents.

    Raises:
      ValueError: a file, package, dataset or split is not there or not of a kind that can be
        read, or text is in two splits; naming the field, its value and the fix.
    """
    _select_source_reader(source).check_source(name, source)


def compute_text_fingerprint(
    name: str, source: SourceConfig, cache: pathlib.Path | None = None
) -> str:
    """Returns hex digits that stand for the text which `read_documents` would yield.

    For files and datasets they follow from the bytes, not from where or how old a file is (and
    from where files lie within a pattern, which documents without ids are named after). For
    docstrings they follow from the versions of Python and of the packages, so they differ
    between environments, as the text does. With a cap they follow from the documents that are
    read up to it, and files are read no further.

    `cache` is a JSON file that remembers the digests of files, as `files.compute_file_digests`
    does. With it, a corpus that does not change is read once.

    Raises:
      ValueError: as `check_source_text`; with a cap, as `read_documents`.
    """
    reader = _select_source_reader(source)
    stated = [
        [field, getattr(source, field)]
        for field in ("markup", "where", "held_out_duplicates")
        if getattr(source, field) != getattr(SourceConfig, field)
    ]
    if not has_cap(source):
        digest_files = functools.partial(files.compute_file_digests, cache=cache)
        key = reader.list_fingerprint_parts(name, source, digest_files)
        return _hash_parts(source, [*key, *stated])
    capped = [[field, getattr(source, field)] for field in ("max_documents", "max_tokens")]
    listed = reader.list_fingerprint_parts(name, source, lambda paths: {p: p for p in paths})
    digest = files.compute_reading_digest(
        _hash_parts(source, [*listed, *stated, *capped, source.on_bad_line]),
        lambda: _hash_documents(name, source),
        cache,
    )
    return _hash_parts(source, [digest, *stated, *capped])


def _hash_parts(source: SourceConfig, parts: Sequence[object]) -> str:
    return hashlib.sha256(format_json([_VERSION, source.kind, parts]).encode()).hexdigest()


def _hash_documents(name: str, source: SourceConfig) -> tuple[str, list[str]]:
    """Returns a digest of the documents that are read up to a cap, and the files they are in."""
    digest, selection = hashlib.sha256(), Selection()
    keeping = dataclasses.replace(source, held_out_duplicates="keep")
    with Progress(f"Reading {name} up to its cap", 1) as progress:
        for split, document in read_documents(name, keeping, progress.show, selection):
            for part in (split, document.identity, document.text):
                encoded = part.encode("utf-8", "surrogatepass")
                digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest(), selection.opened


def estimate_text_bytes(source: SourceConfig) -> int:
    """Returns about how many bytes of text there are to train on; 0 if that is not known."""
    whole = _select_source_reader(source).estimate_source_bytes(source)
    if not (source.where or has_cap(source)):
        return whole
    # What the first documents have, and how much of the input they take.
    size, count, read = 0, 0, 0.0

    def report(fraction: float) -> None:
        nonlocal read
        read = fraction

    reading = _select_source_reader(source).read_raw_documents("*", source, report, Selection())
    for _, document in itertools.islice(reading.documents, _PEEKED):
        size, count = size + len(document.text.encode()), count + 1
    bounds = [int(size / read) if read else whole]
    if source.max_documents:
        bounds.append(source.max_documents * size // max(1, count))
    if source.max_tokens:
        bounds.append(source.max_tokens * USUAL_BYTES_A_TOKEN)
    return min(bounds)


def is_any_text_here(name: str, source: SourceConfig) -> bool:
    """Whether this machine has any of the text of a source, as far as that shows unread.

    Where it has only some, `check_source_text` says what is missing.
    """
    return _select_source_reader(source).is_source_here(name, source)


def _assign_split(document_id: str, splits: Sequence[str], share: float) -> str:
    """Returns which of the splits, of `share` each, a document of train goes to, if any."""
    digest = hashlib.blake2b(
        document_id.encode("utf-8", "surrogatepass"), digest_size=8, key=b"imbalance_jax split"
    ).digest()
    place = int.from_bytes(digest, "big") / 2**64
    # Each split has a range of its own, so it does not matter which others are carved.
    for index, split in enumerate(SPLITS[1:]):
        if split in splits and index * share <= place < (index + 1) * share:
            return split
    return "train"


def _strip_wiki40b_markup(text: str) -> str:
    """Returns the title, the titles of sections and the paragraphs of an article, one a line."""
    lines = (line.strip() for line in _WIKI40B.split(text))
    return "\n".join(line for line in lines if line)
