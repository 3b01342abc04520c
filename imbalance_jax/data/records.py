"""Records of prepared text: the ids of a split, cut into examples of a TFDS dataset.

A record holds many windows, as sources.py says, and the documents that begin in it. Besides
text/tfds_datasets.py, which reads what others prepared, only this file and the reader of records
in sources.py know TFDS. Neither writing nor reading needs TensorFlow.
"""

import hashlib
import os
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from imbalance_jax.data.text.documents import SPLITS

# A row of a split's table of documents: where it begins, a hash of its id, and the UTF-8 bytes
# of its text.
DOCUMENT = np.dtype([("start", np.int64), ("id", np.uint64), ("bytes", np.int64)])

_RECORD = 1 << 18  # ids in one record
_SHARD = 256  # records in one file: 128 MB of 16-bit ids


class EncodedDocument(NamedTuple):
    """A document as `write_source` takes it."""

    split: str
    id: str
    ids: np.ndarray  # with the separator at their end
    bytes: int  # UTF-8, of its text
    lost: int = 0  # of these, such as do not come back from the ids
    text_hash: int = 0  # stands for its text; is not written


def hash_document_id(document_id: str) -> int:
    """Returns 64 bits that stand for the identity of a `documents.Document`.

    Equal ids have equal bits in all sources. Whether that means the same document is said by
    `ids` of the sources, and by nothing in the prepared text.
    """
    digest = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


class RecordWriter:
    """Cuts the ids of each split into records, in order."""

    def __init__(
        self, path: epath.Path, name: str, dtype: np.dtype, vocab_size: int, version: str
    ) -> None:
        import tensorflow_datasets as tfds

        self._name, self._dtype = name, dtype

        def array(kind: np.dtype | type) -> Any:
            return tfds.features.Tensor(shape=(None,), dtype=kind, encoding="bytes")

        features = tfds.features.FeaturesDict(
            {
                "tokens": array(dtype),
                "documents": array(np.int32),  # where in the record documents begin
                "document_ids": array(np.uint64),  # hashes of the ids of those
                "document_bytes": array(np.int64),  # UTF-8 bytes of their texts
                "language": tfds.features.Text(),
            }
        )
        info = tfds.core.DatasetInfo(
            builder=tfds.core.dataset_info.DatasetIdentity(
                name=name,
                version=tfds.core.Version(version),
                data_dir=os.fspath(path),
                module_name="imbalance_jax.data.sources",
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
        self.lost_bytes = dict.fromkeys(SPLITS, 0)
        self.counts_U = np.zeros(vocab_size, np.int64)
        self._digests = {
            split: {"tokens": hashlib.sha256(), "documents": hashlib.sha256()} for split in SPLITS
        }
        self._pending: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self._begun: dict[str, list[tuple[int, int, int]]] = {split: [] for split in SPLITS}
        self._pending_size = dict.fromkeys(SPLITS, 0)

    def add(self, document: EncodedDocument) -> None:
        split, ids = document.split, document.ids
        row = (self.tokens[split], hash_document_id(document.id), document.bytes)
        self._begun[split].append(row)
        self.documents[split] += 1
        self.tokens[split] += len(ids)
        self.bytes[split] += document.bytes
        self.lost_bytes[split] += document.lost
        self._pending[split].append(ids.astype(self._dtype))
        self._pending_size[split] += len(ids)
        while self._pending_size[split] >= _RECORD:
            self._flush(split)

    def close(self) -> None:
        for split in SPLITS:
            if self._pending_size[split]:
                self._flush(split)
        self._writer.close_all()

    def hex_digests(self) -> dict[str, dict[str, str]]:
        """Returns the sha256 of the ids and of the table of documents of each split."""
        return {
            split: {name: digest.hexdigest() for name, digest in digests.items()}
            for split, digests in self._digests.items()
        }

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
            "document_bytes": begun["bytes"],
            "language": self._name,
        }
        self._writer.add_examples({split: [example]})
        self._digests[split]["tokens"].update(record.tobytes())
        self._digests[split]["documents"].update(begun.tobytes())
        if split == "train":
            self.counts_U += np.bincount(record, minlength=len(self.counts_U))
        self._pending[split], self._pending_size[split] = [rest], len(rest)
        self._begun[split] = []
