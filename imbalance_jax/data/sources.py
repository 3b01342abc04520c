"""The prepared format: a source's text as ids, written once and opened at every start.

A prepared source is a directory that TFDS reads:

    dataset_info.json, features.json, <name>-<split>.array_record-*    the ids
    tokenizer.model                                    SentencePiece, or a tokenizer.json
    counts.npy      how often each id occurs in the text to train on
    source.json     fingerprint of text, tokenizer and ids, counts and digests of each split, how
                    many documents are left out, and what the config says that they are
                    (prepared.py reads that)

A record holds many windows: a record costs about 30 us of Python, a window of a memory map
next to nothing. Opening a split therefore yields a flat memory-mapped array of ids, and a
table of its documents, kept in a local cache under the source's fingerprint. A file of it
that is absent, or not as it was made, is made again from the records; records that are not
as they were written are refused. A directory in an object store is written to local disk and
then copied there, and its records are copied back to be read.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import tempfile
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.data import flat
from imbalance_jax.data.languages import Pieces
from imbalance_jax.data.records import DOCUMENT, EncodedDocument, RecordWriter
from imbalance_jax.data.text.documents import SPLITS
from imbalance_jax.data.text_tokenizer import TextTokenizer
from imbalance_jax.data.tokenizer import parse_tokenizer
from imbalance_jax.runs import damaged_files, storage
from imbalance_jax.runs.damaged_files import DamagedFileError, MissingFileError

FORMAT = 3  # part of every fingerprint: raise it when directories are written otherwise
MARKER = "source.json"  # what a directory has when it is whole
_REMEDY = "Delete the directory; the next run prepares it again."
_DIGESTS = {"tokens": str, "documents": str}
_SHAPE = {
    **dict.fromkeys(("fingerprint", "text", "tokenizer", "counts", "dtype"), str),
    **{name: dict.fromkeys(SPLITS, int) for name in ("tokens", "documents", "bytes")},
    "lost_bytes?": {"*": int},
    "digests": dict.fromkeys(SPLITS, _DIGESTS),
    "made_of?": {"text?": str, "stated?": list},
    "left_out?": {"*": int},
    "duplicates?": {"*": int},
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared source on disk."""

    name: str
    path: epath.Path
    cache: pathlib.Path
    about: Mapping[str, Any]  # source.json

    @property
    def fingerprint(self) -> str:
        """Stands for the text, the tokenizer and the ids that they gave."""
        return self.about["fingerprint"]

    @functools.cached_property
    def pieces(self) -> Pieces:
        path = self.path / "counts.npy"
        content = damaged_files.read_file(path, _REMEDY)
        if hashlib.sha256(content).hexdigest() != self.about["counts"]:
            raise DamagedFileError(path, "is not as it was written", _REMEDY)
        return self.tokenizer.pieces(damaged_files.parse_array(content, path, _REMEDY))

    @functools.cached_property
    def model(self) -> bytes:
        """What the tokenizer is made of: `content` of it.

        Raises:
          ValueError: it is not the one that the text was prepared with.
        """
        model = damaged_files.read_file(self.path / "tokenizer.model", _REMEDY)
        if hashlib.sha256(model).hexdigest() != self.about["tokenizer"]:
            raise ValueError(
                f"{self.path / 'tokenizer.model'} is not the tokenizer that the ids beside it "
                "were made with. Put that one back, or delete the directory: the next run "
                f"prepares it again. For another tokenizer set config.sources.{self.name}."
                "tokenizer.path."
            )
        return model

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        return parse_tokenizer(self.model)

    def count(self, split: str) -> int:
        """Returns the number of ids in a split, separators included."""
        return self.about["tokens"][split]

    def tokens(self, split: str) -> np.ndarray:
        """Returns all ids of a split as one memory-mapped array.

        Raises:
          ValueError: the records on disk are not those that were written.
        """
        return self._cached(split, "tokens", np.dtype(self.about["dtype"]))

    def documents(self, split: str) -> np.ndarray:
        """Returns a split's table of documents, of dtype DOCUMENT, in order of their starts.

        A document ends, with its separator, where the next one begins.

        Raises:
          ValueError: as `tokens`.
        """
        return self._cached(split, "documents", DOCUMENT)

    def _cached(self, split: str, what: str, dtype: np.dtype) -> np.ndarray:
        """Returns an array of the cache, made from the records where it is not there."""
        count = self.about[what][split]
        if count == 0:
            return np.zeros(0, dtype)
        files = {name: self.cached(f"{split}.{name}") for name in ("tokens", "documents")}
        size, digest = count * dtype.itemsize, self.about["digests"][split][what]
        touched = self._records_status(split)
        seen = self.cached(f"{split}.records")
        if touched and (not seen.exists() or seen.read_bytes() != touched.encode()):
            # Never seen, or touched since: read them all, though a copy may be here.
            self._flatten(split, files)
            with storage.name_file_in_errors(seen):
                seen.write_bytes(touched.encode())
        elif not flat.is_file_intact(files[what], size, digest):
            self._flatten(split, files)
        return np.memmap(files[what], dtype=dtype, mode="r")

    def find_damage(self) -> list[str]:
        """Returns a line on each file that is not what was written; all bytes are read."""
        arrays = flat.find_damaged_arrays(self.cached(""))
        damage = [
            f"{path} is not as it was written. Delete it; it is made again." for path in arrays
        ]
        for read in (lambda: self.model, lambda: self.pieces):
            try:
                read()
            except (ValueError, OSError) as error:
                damage.append(str(error))
        for split in SPLITS:
            try:
                self._check_records(split)
            except ValueError as error:
                damage.append(str(error))
        return list(dict.fromkeys(damage))

    def _check_records(self, split: str) -> None:
        """Raises DamagedFileError if the records of a split are not those that were written."""
        digests = {name: hashlib.sha256() for name in ("tokens", "documents")}
        before = 0
        for tokens, documents in self._records(split) if self.count(split) else ():
            documents["start"] += before
            before += len(tokens)
            digests["tokens"].update(tokens.tobytes())
            digests["documents"].update(documents.tobytes())
        self._check_digests(split, digests)

    def _check_digests(self, split: str, digests: Mapping[str, "hashlib._Hash"]) -> None:
        for name, digest in digests.items():
            if digest.hexdigest() != self.about["digests"][split][name]:
                where = f"{self.path}: split {split}"
                raise DamagedFileError(where, "does not hold what was written to it", _REMEDY)

    def _records_status(self, split: str) -> str:
        """Returns what tells the records' files from changed ones; "" where none is there."""
        files = sorted(self.path.glob(f"*-{split}.array_record-*"))
        return "".join(f"{file.name} {self._file_status(file)}\n" for file in files)

    def _file_status(self, file: epath.Path) -> str:
        if not storage.is_store(file):
            return storage.format_file_status(os.stat(file))
        status = file.stat()  # an object that takes the place of another has a later time
        return f"{status.length} {status.mtime}"

    def cached(self, name: str) -> pathlib.Path:
        """Returns the file of the cache for something that follows from this source."""
        return self.cache / f"{self.name}-{self.fingerprint[:16]}-{name}"

    def _flatten(self, split: str, files: Mapping[str, pathlib.Path]) -> None:
        """Writes a split's ids and documents, checked against their digests."""
        check_cache_writable(self.cache)
        with contextlib.ExitStack() as stack:
            written = {
                name: stack.enter_context(flat.AtomicFile(path)) for name, path in files.items()
            }
            for tokens, documents in self._records(split):
                documents["start"] += written["tokens"].size // tokens.itemsize
                written["documents"].write(documents)
                written["tokens"].write(tokens)
            self._check_digests(split, {name: file.digest for name, file in written.items()})
            for file in written.values():
                file.keep()

    def _records(self, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the ids and the documents of each record; starts are within the record."""
        import tensorflow_datasets as tfds

        try:
            with self._local(split) as path:
                records = tfds.builder_from_directory(path).as_data_source(split=split)
                for index in range(len(records)):
                    record = records[index]
                    documents = np.empty(len(record["documents"]), DOCUMENT)
                    documents["start"] = record["documents"]
                    documents["id"] = record["document_ids"]
                    documents["bytes"] = record["document_bytes"]
                    yield record["tokens"], documents
        # Whatever TFDS and ArrayRecord raise for damaged files (they have no common class).
        except Exception as error:
            if system := storage.find_os_error(error, self.path):
                raise system from error
            where, problem = f"{self.path}: split {split}", f"cannot be read ({error})"
            raise DamagedFileError(where, problem, _REMEDY) from error

    @contextlib.contextmanager
    def _local(self, split: str) -> Iterator[epath.Path]:
        """Yields a directory on a file system, the only place that ArrayRecord reads from."""
        if not storage.is_store(self.path):
            yield self.path
            return
        with tempfile.TemporaryDirectory(dir=self.cache) as folder:
            for pattern in ("*.json", f"*-{split}.array_record-*"):
                for file in self.path.glob(pattern):
                    file.copy(epath.Path(folder) / file.name)
            yield epath.Path(folder)


def compute_bytes_per_id(
    ids_n: np.ndarray, pieces: Pieces, starts_d: np.ndarray, bytes_d: np.ndarray
) -> np.ndarray:
    """Returns the UTF-8 bytes of text that each id stands for: (n,), int32.

    Those of a document add up to exactly the bytes of its text. Where the tokenizer loses no
    text these are the bytes of the pieces. Where it does, unknown pieces share what is missing,
    and without those all pieces are scaled. A separator stands for none.

    Args:
      ids_n: of whole documents.
      starts_d: where each document begins; ids of the first one are first.
      bytes_d: of the text of each.
    """
    if not len(ids_n):
        return np.zeros(0, np.int32)
    bytes_n = pieces.bytes_U[ids_n]
    found_d = np.add.reduceat(bytes_n, starts_d, dtype=np.int64)
    if np.array_equal(found_d, bytes_d):
        return bytes_n
    lengths_d = np.diff(starts_d, append=len(ids_n))
    unknown_n = ids_n == pieces.unknown
    unknown_d = np.add.reduceat(unknown_n, starts_d, dtype=np.int64)
    each_d = np.maximum(bytes_d - found_d, 0) / np.maximum(unknown_d, 1)
    weight_n = np.where(unknown_n, np.repeat(each_d, lengths_d), bytes_n)
    weight_d = np.add.reduceat(weight_n, starts_d)
    # Text of which nothing is left is put on what there is.
    weight_n += np.repeat(weight_d == 0, lengths_d)
    before_n = np.cumsum(weight_n) - weight_n
    in_document_n = before_n - np.repeat(before_n[starts_d], lengths_d) + weight_n
    total_n = np.repeat(in_document_n[starts_d + lengths_d - 1], lengths_d)
    ends_n = np.rint(in_document_n / total_n * np.repeat(bytes_d, lengths_d)).astype(np.int64)
    begins_n = np.concatenate([[0], ends_n[:-1]])
    begins_n[starts_d] = 0
    return (ends_n - begins_n).astype(np.int32)


def resolve_data_cache_dir(data_dir: str) -> pathlib.Path:
    """Returns where flat token arrays are kept: beside the data, if that is local.

    The environment variable IMBALANCE_JAX_CACHE names another place.
    """
    chosen = os.environ.get("IMBALANCE_JAX_CACHE")
    if chosen:
        return pathlib.Path(chosen)
    # gs:// and read-only mounts: the user's own cache.
    if not storage.is_store(data_dir):
        parent = storage.find_existing_parent(data_dir)
        if parent.is_dir() and os.access(parent, os.W_OK):
            return pathlib.Path(data_dir) / "cache"
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "imbalance_jax"


def check_cache_writable(cache: pathlib.Path) -> None:
    """Raises ValueError if ids cannot be written to a directory of `resolve_data_cache_dir`."""
    named = "IMBALANCE_JAX_CACHE" in os.environ
    field = "IMBALANCE_JAX_CACHE" if named else "the cache of config.data_dir"
    storage.check_directory_writable(field, cache)


def is_prepared(path: epath.Path) -> bool:
    """Whether `write_source` made a directory.

    Raises:
      MissingFileError: it made one that has lost its file `source.json`.
    """
    if storage.find_complete_directory(path, MARKER) is not None:
        return True
    # A directory of a file system has its name when it is whole. Another process may have made it
    # since the line above.
    lost = not storage.is_store(path) and path.exists() and any(path.iterdir())
    if lost and not (path / MARKER).exists():
        raise MissingFileError(path / MARKER, "is missing", _REMEDY)
    return (path / MARKER).exists()


def open_source(name: str, path: epath.PathLike, cache: pathlib.Path) -> Source:
    """Opens a directory that `write_source` made.

    Raises:
      ValueError: it is damaged.
    """
    path = storage.find_complete_directory(epath.Path(path), MARKER) or epath.Path(path)
    about = damaged_files.read_json(path / MARKER, _REMEDY, {"format": int})
    if about["format"] != FORMAT:
        raise ValueError(
            f"{path} was prepared in format {about['format']}, and this version reads format "
            f"{FORMAT}. Delete the directory, or set another config.data_dir; the next run "
            "prepares the text again."
        )
    damaged_files.check_shape(about, _SHAPE, path / MARKER, _REMEDY)
    return Source(name, path, cache, about)


def write_source(
    path: epath.PathLike,
    *,
    name: str,
    text: str,
    tokenizer: bytes,
    documents: Iterable[EncodedDocument],
    key: str = "",
    made_of: Mapping[str, Any] = types.MappingProxyType({}),
    reading_counts: Mapping[str, Mapping[str, int]] = types.MappingProxyType({}),
) -> None:
    """Writes a prepared source, whole or not at all.

    Its fingerprint follows from what was made, not from what was asked for, so that sources
    of one fingerprint have the same ids.

    Args:
      path: the directory to make; it appears when everything is in it.
      text: stands for the text.
      tokenizer: what it is made of; `content` of it.
      key: stands for what was asked for.
      made_of: plain values by which a machine without the text finds what was made of it; see
        prepared.py.
      reading_counts: is written as it is once all documents are: how many are left out, and why.

    Raises:
      ValueError: there is nothing to train on.
    """
    size = parse_tokenizer(tokenizer).size
    dtype = np.dtype(np.uint16 if size <= 1 << 16 else np.uint32)
    with storage.make_directory_atomically(epath.Path(path), MARKER) as directory:
        writer = RecordWriter(directory, name, dtype, size, f"{FORMAT}.0.0")
        for document in documents:
            writer.add(EncodedDocument(*document))
        writer.close()
        counts = io.BytesIO()
        np.save(counts, writer.counts_U)
        (directory / "tokenizer.model").write_bytes(tokenizer)
        (directory / "counts.npy").write_bytes(counts.getvalue())
        results = {
            "format": FORMAT,
            "tokenizer": hashlib.sha256(tokenizer).hexdigest(),
            "digests": writer.hex_digests(),
        }
        about = {
            "name": name,
            "key": key,
            "text": text,
            "fingerprint": config_lib.hash_plain_values({"text": text} | results),
            "counts": hashlib.sha256(counts.getvalue()).hexdigest(),
            "vocab_size": size,
            "dtype": dtype.name,
            "documents": writer.documents,
            "tokens": writer.tokens,
            "bytes": writer.bytes,
            "lost_bytes": writer.lost_bytes,
            "made_of": dict(made_of),
            **reading_counts,
        }
        (directory / MARKER).write_text(damaged_files.format_checked_json(about | results))
        if not writer.tokens["train"]:
            raise ValueError(f"config.sources.{name}: no document of its text is left to train on.")
