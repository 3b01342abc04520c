"""The prepared format: a source's text as ids, written once and opened at every start.

A prepared source is a directory that TFDS reads:

    dataset_info.json, features.json, <name>-<split>.array_record-*    the ids
    tokenizer.model                                                    SentencePiece
    counts.npy      how often each id occurs in the text to train on
    source.json     fingerprint of text and tokenizer, counts and digests of each split, and
                    what the config says that they are (prepared.py reads that)

A record holds many windows: a record costs about 30 us of Python, a window of a memory map
next to nothing. Opening a split therefore yields a flat memory-mapped array of ids, and a
table of its documents, kept in a local cache under the source's fingerprint. A file of it
that is absent, or not as it was made, is made again from the records; records that are not
as they were written are refused. A directory in an object store is written to local disk and
then copied there, and its records are copied back to be read.

Besides datasets.py, which reads what others prepared, only this file knows TFDS. Neither writing
nor reading needs TensorFlow.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import tempfile
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from imbalance_jax import storage
from imbalance_jax.data import flat
from imbalance_jax.data.text import SPLITS
from imbalance_jax.languages import Pieces

if TYPE_CHECKING:
    import sentencepiece

FORMAT = 3  # part of every fingerprint: raise it when directories are written otherwise
# A row of a split's table of documents: where it begins, and a hash of its id.
DOCUMENT = np.dtype([("start", np.int64), ("id", np.uint64)])

MARKER = "source.json"  # what a directory has when it is whole
_RECORD = 1 << 18  # ids in one record
_SHARD = 256  # records in one file: 128 MB of 16-bit ids


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared source on disk."""

    name: str
    path: epath.Path
    cache: pathlib.Path
    about: Mapping[str, Any]  # source.json

    @property
    def fingerprint(self) -> str:
        """Stands for the text and the tokenizer together."""
        return self.about["fingerprint"]

    @functools.cached_property
    def pieces(self) -> Pieces:
        content = (self.path / "counts.npy").read_bytes() if self._has_counts() else b""
        if hashlib.sha256(content).hexdigest() != self.about["counts"]:
            raise ValueError(
                f"{self.path / 'counts.npy'} is not as it was written. Delete the directory; the "
                "next run prepares it again."
            )
        return pieces_of(self.tokenizer, np.load(io.BytesIO(content)))

    def _has_counts(self) -> bool:
        return (self.path / "counts.npy").exists()

    @functools.cached_property
    def model(self) -> bytes:
        """The SentencePiece model.

        Raises:
          ValueError: it is not the one that the text was prepared with.
        """
        model = (self.path / "tokenizer.model").read_bytes()
        if hashlib.sha256(model).hexdigest() != self.about["tokenizer"]:
            raise ValueError(
                f"{self.path / 'tokenizer.model'} is not the tokenizer that the ids beside it "
                "were made with. Put that one back, or delete the directory: the next run "
                f"prepares it again. For another tokenizer set config.sources.{self.name}."
                "tokenizer.path."
            )
        return model

    @functools.cached_property
    def tokenizer(self) -> "sentencepiece.SentencePieceProcessor":
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

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
        known = self.cached(f"{split}.records")
        if touched and (not known.exists() or known.read_text() != touched):
            # Never seen, or touched since: read them all, though a copy may be here.
            self._flatten(split, files)
            known.write_text(touched)
        elif not flat.is_whole(files[what], size, digest):
            self._flatten(split, files)
        return np.memmap(files[what], dtype=dtype, mode="r")

    def _records_status(self, split: str) -> str:
        """Returns the sizes and times of change of the records' files; "" where none is there."""
        files = sorted(self.path.glob(f"*-{split}.array_record-*"))
        status = [(file.name, file.stat()) for file in files]
        return "".join(f"{name} {stat.length} {stat.mtime}\n" for name, stat in status)

    def cached(self, name: str) -> pathlib.Path:
        """Returns the file of the cache for something that follows from this source."""
        return self.cache / f"{self.name}-{self.fingerprint[:16]}-{name}"

    def _flatten(self, split: str, files: Mapping[str, pathlib.Path]) -> None:
        """Writes a split's ids and documents, checked against their digests."""
        with contextlib.ExitStack() as stack:
            written = {
                name: stack.enter_context(flat.Unfinished(path)) for name, path in files.items()
            }
            for tokens, documents in self._records(split):
                documents["start"] += written["tokens"].size // tokens.itemsize
                written["documents"].write(documents)
                written["tokens"].write(tokens)
            for name, file in written.items():
                if file.digest.hexdigest() != self.about["digests"][split][name]:
                    raise ValueError(
                        f"{self.path}: split {split} does not hold what was written to it. "
                        "Delete the directory; the next run prepares it again."
                    )
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
                    yield record["tokens"], documents
        # Whatever TFDS and ArrayRecord raise for damaged files (they have no common class).
        except Exception as error:
            raise ValueError(
                f"{self.path}: split {split} cannot be read ({error}). "
                "Delete the directory; the next run prepares it again."
            ) from error

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


def pieces_of(
    tokenizer: "sentencepiece.SentencePieceProcessor", counts_U: np.ndarray | None = None
) -> Pieces:
    """Returns what languages.py needs to know of a tokenizer, and of how it is used."""
    size = tokenizer.get_piece_size()
    separator = separator_id(tokenizer)
    bytes_U = np.zeros(size, np.int32)
    for piece_id in range(size):
        if tokenizer.is_byte(piece_id):
            bytes_U[piece_id] = 1
        elif not (tokenizer.is_control(piece_id) or tokenizer.is_unknown(piece_id)):
            # SentencePiece writes a space as U+2581, which is three bytes.
            piece = tokenizer.id_to_piece(piece_id).replace("\u2581", " ")
            bytes_U[piece_id] = len(piece.encode())
    bytes_U[separator] = 0
    specials = (tokenizer.unk_id(), separator)
    strings = tuple(tokenizer.id_to_piece(piece_id) for piece_id in range(size))
    return Pieces(size, tokenizer.pad_id(), specials, bytes_U, strings, counts_U)


def separator_id(tokenizer: "sentencepiece.SentencePieceProcessor") -> int:
    """Returns the id that is put after each document.

    Raises:
      ValueError: the tokenizer has neither a `<D>` nor an end of sentence.
    """
    separator = tokenizer.piece_to_id("<D>")
    if separator != tokenizer.unk_id():
        return separator
    if tokenizer.eos_id() >= 0:
        return tokenizer.eos_id()
    raise ValueError(
        "The tokenizer has no piece to separate documents: neither <D> nor an end of "
        "sentence. Train it with user_defined_symbols='<D>'."
    )


def cache_dir(data_dir: str) -> pathlib.Path:
    """Returns where flat token arrays are kept: beside the data, if that is local.

    The environment variable IMBALANCE_JAX_CACHE names another place.
    """
    chosen = os.environ.get("IMBALANCE_JAX_CACHE")
    if chosen:
        return pathlib.Path(chosen)
    # gs:// and read-only mounts: the user's own cache.
    if not storage.is_store(data_dir) and os.access(
        data_dir if os.path.exists(data_dir) else ".", os.W_OK
    ):
        return pathlib.Path(data_dir) / "cache"
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "imbalance_jax"


def is_prepared(path: epath.Path) -> bool:
    """Whether `write` made a directory."""
    return storage.find(path, MARKER) is not None


def open_source(name: str, path: epath.PathLike, cache: pathlib.Path) -> Source:
    """Opens a directory that `write` made.

    Raises:
      ValueError: it is damaged.
    """
    path = storage.find(epath.Path(path), MARKER) or epath.Path(path)
    try:
        about = json.loads((path / MARKER).read_text())
    except ValueError as error:
        raise ValueError(
            f"{path / MARKER} cannot be read ({error}). Delete the directory; the next run "
            "prepares it again."
        ) from error
    return Source(name, path, cache, about)


def write(
    path: epath.PathLike,
    *,
    name: str,
    fingerprint: str,
    tokenizer: bytes,
    documents: Iterable[tuple[str, str, np.ndarray, int]],
    made_of: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    """Writes a prepared source, whole or not at all.

    Args:
      path: the directory to make; it appears when everything is in it.
      tokenizer: the SentencePiece model.
      documents: (split, id of the document, its ids with the separator at their end, UTF-8
        bytes of its text).
      made_of: plain values that its text is found by where that is not on the machine; see
        prepared.py.

    Raises:
      ValueError: there is nothing to train on.
    """
    import sentencepiece

    size = sentencepiece.SentencePieceProcessor(model_proto=tokenizer).get_piece_size()
    dtype = np.dtype(np.uint16 if size <= 1 << 16 else np.uint32)
    with storage.made_whole(epath.Path(path), MARKER) as made:
        writer = _Writer(made, name, dtype, size)
        for split, document_id, ids, num_bytes in documents:
            writer.add(split, document_id, ids, num_bytes)
        writer.close()
        (made / "tokenizer.model").write_bytes(tokenizer)
        counts = io.BytesIO()
        np.save(counts, writer.counts_U)
        (made / "counts.npy").write_bytes(counts.getvalue())
        about = {
            "name": name,
            "format": FORMAT,
            "fingerprint": fingerprint,
            "tokenizer": hashlib.sha256(tokenizer).hexdigest(),
            "counts": hashlib.sha256(counts.getvalue()).hexdigest(),
            "vocab_size": size,
            "dtype": dtype.name,
            "documents": writer.documents,
            "tokens": writer.tokens,
            "bytes": writer.bytes,
            "digests": {
                split: {name: digest.hexdigest() for name, digest in digests.items()}
                for split, digests in writer.digests.items()
            },
            "made_of": dict(made_of),
        }
        (made / MARKER).write_text(json.dumps(about, indent=2) + "\n")
        if not writer.tokens["train"]:
            raise ValueError(f"config.sources.{name}: no document of its text is left to train on.")


def document_hash(document_id: str) -> int:
    """Returns 64 bits that stand for a document's id, equal in every source that has it."""
    digest = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


class _Writer:
    """Cuts the ids of each split into records, in order."""

    def __init__(self, path: epath.Path, name: str, dtype: np.dtype, vocab_size: int) -> None:
        import tensorflow_datasets as tfds

        self._name, self._dtype = name, dtype

        def array(kind: np.dtype | type) -> Any:
            return tfds.features.Tensor(shape=(None,), dtype=kind, encoding="bytes")

        features = tfds.features.FeaturesDict(
            {
                "tokens": array(dtype),
                "documents": array(np.int32),  # where in the record documents begin
                "document_ids": array(np.uint64),  # hashes of the ids of those
                "language": tfds.features.Text(),
            }
        )
        info = tfds.core.DatasetInfo(
            builder=tfds.core.dataset_info.DatasetIdentity(
                name=name,
                version=tfds.core.Version("2.0.0"),
                data_dir=os.fspath(path),
                module_name=__name__,
            ),
            description="Ids of a text in document order, a separator after each document.",
            features=features,
            disable_shuffling=True,
        )
        self._writer = tfds.core.SequentialWriter(
            info, max_examples_per_shard=_SHARD, file_format="array_record"
        )
        self._writer.initialize_splits(list(SPLITS))
        self.documents = dict.fromkeys(SPLITS, 0)
        self.tokens = dict.fromkeys(SPLITS, 0)
        self.bytes = dict.fromkeys(SPLITS, 0)
        self.counts_U = np.zeros(vocab_size, np.int64)
        self.digests = {
            split: {"tokens": hashlib.sha256(), "documents": hashlib.sha256()} for split in SPLITS
        }
        self._pending: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self._begun: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
        self._pending_size = dict.fromkeys(SPLITS, 0)

    def add(self, split: str, document_id: str, ids: np.ndarray, num_bytes: int) -> None:
        self._begun[split].append((self.tokens[split], document_hash(document_id)))
        self.documents[split] += 1
        self.tokens[split] += len(ids)
        self.bytes[split] += num_bytes
        self._pending[split].append(ids.astype(self._dtype))
        self._pending_size[split] += len(ids)
        while self._pending_size[split] >= _RECORD:
            self._flush(split)

    def close(self) -> None:
        for split in SPLITS:
            if self._pending_size[split]:
                self._flush(split)
        self._writer.close_all()

    def _flush(self, split: str) -> None:
        tokens = np.concatenate(self._pending[split])
        record, rest = tokens[:_RECORD], tokens[_RECORD:]
        first = self.tokens[split] - len(tokens)
        # Less than a record was left before the newest document, so all of them begin in it.
        begun = np.array(self._begun[split], DOCUMENT)
        example = {
            "tokens": record,
            "documents": (begun["start"] - first).astype(np.int32),
            "document_ids": begun["id"],
            "language": self._name,
        }
        self._writer.add_examples({split: [example]})
        self.digests[split]["tokens"].update(record.tobytes())
        self.digests[split]["documents"].update(begun.tobytes())
        if split == "train":
            self.counts_U += np.bincount(record, minlength=len(self.counts_U))
        self._pending[split], self._pending_size[split] = [rest], len(rest)
        self._begun[split] = []
