"""The prepared format: a source's text as ids, written once and opened at every start.

A prepared source is a directory that TFDS reads:

    dataset_info.json, features.json, <name>-<split>.array_record-*    the ids
    tokenizer.model                                                    SentencePiece
    source.json     fingerprint of text and tokenizer, counts and a digest of each split

A record holds many windows: a record costs about 30 us of Python, a window of a memory map
next to nothing. Opening a split therefore yields a flat memory-mapped array of ids, kept in
a local cache under the source's fingerprint and rebuilt from the records where it is absent.

This is the only file that knows TFDS. Neither writing nor reading needs TensorFlow.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from imbalance_jax.data.text import SPLITS
from imbalance_jax.languages import Pieces

if TYPE_CHECKING:
    import sentencepiece

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
        return pieces_of(self.tokenizer)

    @functools.cached_property
    def tokenizer(self) -> "sentencepiece.SentencePieceProcessor":
        import sentencepiece

        model = (self.path / "tokenizer.model").read_bytes()
        return sentencepiece.SentencePieceProcessor(model_proto=model)

    def count(self, split: str) -> int:
        """Returns the number of ids in a split, separators included."""
        return self.about["tokens"][split]

    def tokens(self, split: str) -> np.ndarray:
        """Returns all ids of a split as one memory-mapped array.

        Raises:
          ValueError: the records on disk are not those that were written.
        """
        dtype = np.dtype(self.about["dtype"])
        flat = self.cache / f"{self.name}-{self.fingerprint[:16]}-{split}.{dtype.name}"
        size = self.count(split) * dtype.itemsize
        if not flat.exists() or flat.stat().st_size != size:
            self._flatten(split, flat)
        if size == 0:
            return np.zeros(0, dtype)
        return np.memmap(flat, dtype=dtype, mode="r")

    def _flatten(self, split: str, flat: pathlib.Path) -> None:
        flat.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=flat.parent, delete=False) as file:
            try:
                for tokens in self._records(split):
                    digest.update(tokens.tobytes())
                    file.write(tokens.tobytes())
                if digest.hexdigest() != self.about["digests"][split]:
                    raise ValueError(
                        f"{self.path}: split {split} does not hold what was written to it. "
                        "Delete the directory; the next run prepares it again."
                    )
                os.replace(file.name, flat)
            except BaseException:
                os.unlink(file.name)
                raise

    def _records(self, split: str) -> Iterator[np.ndarray]:
        if not self.count(split):
            return
        import tensorflow_datasets as tfds

        try:
            records = tfds.builder_from_directory(self.path).as_data_source(split=split)
            for index in range(len(records)):
                yield records[index]["tokens"]
        # Whatever TFDS and ArrayRecord raise for damaged files (they have no common class).
        except Exception as error:
            raise ValueError(
                f"{self.path}: split {split} cannot be read ({error}). "
                "Delete the directory; the next run prepares it again."
            ) from error


def pieces_of(tokenizer: "sentencepiece.SentencePieceProcessor") -> Pieces:
    """Returns what languages.py needs to know of a tokenizer."""
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
    return Pieces(size, tokenizer.pad_id(), (tokenizer.unk_id(), separator), bytes_U)


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
    local = "://" not in data_dir
    if local and os.access(data_dir if os.path.exists(data_dir) else ".", os.W_OK):
        return pathlib.Path(data_dir) / "cache"
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "imbalance_jax"


def open_source(name: str, path: epath.PathLike, cache: pathlib.Path) -> Source:
    """Opens a directory that `write` made."""
    path = epath.Path(path)
    return Source(name, path, cache, json.loads((path / "source.json").read_text()))


def write(
    path: epath.PathLike,
    *,
    name: str,
    fingerprint: str,
    tokenizer: bytes,
    documents: Iterable[tuple[str, np.ndarray, int]],
) -> None:
    """Writes a prepared source, whole or not at all.

    Args:
      path: the directory to make; it appears when everything is in it.
      tokenizer: the SentencePiece model.
      documents: (split, ids with the separator at their end, UTF-8 bytes of the text).

    Raises:
      ValueError: there is nothing to train on.
    """
    import sentencepiece

    path = epath.Path(path)
    size = sentencepiece.SentencePieceProcessor(model_proto=tokenizer).get_piece_size()
    dtype = np.dtype(np.uint16 if size <= 1 << 16 else np.uint32)
    # Not the process id: it comes back, in containers above all, and would meet the rest of
    # a preparation that was killed.
    unfinished = path.parent / f".{path.name}.{secrets.token_hex(4)}.unfinished"
    unfinished.mkdir(parents=True)
    try:
        writer = _Writer(unfinished, name, dtype)
        for split, ids, num_bytes in documents:
            writer.add(split, ids, num_bytes)
        writer.close()
        (unfinished / "tokenizer.model").write_bytes(tokenizer)
        about = {
            "name": name,
            "fingerprint": fingerprint,
            "vocab_size": size,
            "dtype": dtype.name,
            "documents": writer.documents,
            "tokens": writer.tokens,
            "bytes": writer.bytes,
            "digests": {split: digest.hexdigest() for split, digest in writer.digests.items()},
        }
        (unfinished / "source.json").write_text(json.dumps(about, indent=2) + "\n")
        if not writer.tokens["train"]:
            raise ValueError(f"config.sources.{name}: no document of its text is left to train on.")
        try:
            unfinished.rename(path)
        except OSError:
            # Another run that prepared the same text was faster; its directory serves.
            if not (path / "source.json").exists():
                raise
            shutil.rmtree(unfinished, ignore_errors=True)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


class _Writer:
    """Cuts the ids of each split into records, in order."""

    def __init__(self, path: epath.Path, name: str, dtype: np.dtype) -> None:
        import tensorflow_datasets as tfds

        self._name, self._dtype = name, dtype
        features = tfds.features.FeaturesDict(
            {
                "tokens": tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes"),
                # Where in the record documents begin.
                "documents": tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding="bytes"),
                "language": tfds.features.Text(),
            }
        )
        info = tfds.core.DatasetInfo(
            builder=tfds.core.dataset_info.DatasetIdentity(
                name=name,
                version=tfds.core.Version("1.0.0"),
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
        self.digests = {split: hashlib.sha256() for split in SPLITS}
        self._pending: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self._starts: dict[str, list[int]] = {split: [] for split in SPLITS}
        self._pending_size = dict.fromkeys(SPLITS, 0)

    def add(self, split: str, ids: np.ndarray, num_bytes: int) -> None:
        self.documents[split] += 1
        self.tokens[split] += len(ids)
        self.bytes[split] += num_bytes
        self._starts[split].append(self._pending_size[split])
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
        starts = np.array(self._starts[split], np.int32)
        example = {
            "tokens": record,
            "documents": starts[starts < len(record)],
            "language": self._name,
        }
        self._writer.add_examples({split: [example]})
        self.digests[split].update(record.tobytes())
        self._pending[split], self._pending_size[split] = [rest], len(rest)
        self._starts[split] = (starts[starts >= len(record)] - len(record)).tolist()
