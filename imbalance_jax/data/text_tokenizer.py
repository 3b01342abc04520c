"""What a tokenizer of any kind does: text to ids and back, and which bytes each id writes.

    data/sentencepiece_tokenizer.py    SentencePiece models
    data/fast_tokenizer.py             tokenizer.json of the package tokenizers
    data/byte_tokenizer.py             the bytes of UTF-8

For each of them a text that is not lost comes back exactly, and only we end its documents: no text
can spell the separator. `parse_tokenizer` of data/tokenizer.py opens each kind by its content.
"""

import abc
import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, Literal, TypeVar

import numpy as np

from imbalance_jax.data.languages import Pieces

# Characters encoded in one call, on all cores.
_BATCH_CHARACTERS = 4_000_000

Item = TypeVar("Item")


class TextTokenizer(abc.ABC):
    """A tokenizer, as this project reads and writes text with it."""

    # How `content` is read: as a SentencePiece model, or as a tokenizer.json. That of bytes is a
    # tokenizer.json too.
    kind: ClassVar[Literal["sentencepiece", "fast", "bytes"]]

    content: bytes  # what the tokenizer is made of, as it is kept on disk
    size: int  # pieces in all
    separator: int  # the id that ends a document
    unknown: int  # the id of what has no piece; -1 if there is none
    pad_id: int  # the id of padding; -1 if there is none
    # Whether a piece writes the same wherever it stands.
    has_surfaces = True

    # Where the tokenizer puts a space that is not in the text.
    _dummy_prefix = False
    _dummy_at_end = False
    # Whether any text comes back, so that it need not be read back.
    _keeps_everything = False

    @functools.cached_property
    @abc.abstractmethod
    def strings(self) -> tuple[str, ...]:
        """The pieces, as the tokenizer's own library names them."""

    @functools.cached_property
    @abc.abstractmethod
    def written(self) -> tuple[bytes, ...]:
        """What each piece writes; nothing for the unknown piece and the separator."""

    @abc.abstractmethod
    def encode_arrays(self, texts: Sequence[str], num_threads: int = -1) -> list[np.ndarray]:
        """Returns what `encode_all` does, as arrays: an eighth of the memory of a long text."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; none of them is the separator."""
        return self.encode_all([text], num_threads=1)[0]

    def encode_all(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """Returns the ids of each of several texts; -1 threads are as many as there are cores."""
        return [ids.tolist() for ids in self.encode_arrays(texts, num_threads)]

    def pieces(self, counts_U: np.ndarray | None = None) -> Pieces:
        """Returns what languages.py needs to know of the tokenizer, and of how it is used."""
        return Pieces(
            size=self.size,
            pad_id=self.pad_id,
            special_ids=(*([self.unknown] if self.unknown >= 0 else []), self.separator),
            bytes_U=np.array([len(piece) for piece in self.written], np.int32),
            strings=self.strings,
            counts_U=counts_U,
            written=self.written,
            has_surfaces=self.has_surfaces,
        )

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids: for those of `encode`, the text itself if nothing is lost.

        A separator shows as its string, and an unknown piece and bytes that are not UTF-8 as
        U+FFFD.
        """
        documents: list[list[int]] = [[]]
        for id_ in map(int, ids):
            if id_ == self.separator:
                documents.append([])
            else:
                documents[-1].append(id_)
        texts = [self._write(document, self._shown) for document in documents]
        return self.strings[self.separator].join(text.decode(errors="replace") for text in texts)

    def lost_bytes(self, text: str, ids: Sequence[int] | np.ndarray) -> int:
        """Returns how many UTF-8 bytes of a text's characters do not come back from its ids.

        Lost is what is unknown, and what the tokenizer's normalization takes away or replaces.
        """
        if self._keeps_everything:
            return 0
        whole = text.encode()
        written = self._write(np.asarray(ids).tolist(), self.written)
        if written == whole:
            return 0
        left = collections.Counter(text) - collections.Counter(written.decode(errors="replace"))
        return sum(count * len(character.encode()) for character, count in left.items())

    def _write(self, ids: Sequence[int], written: Sequence[bytes]) -> bytes:
        """Returns the text of a document's ids; `written` is what each piece writes."""
        text = b"".join(map(written.__getitem__, ids))
        if not self._dummy_prefix:
            return text
        return text.removesuffix(b" ") if self._dummy_at_end else text.removeprefix(b" ")

    @functools.cached_property
    def _shown(self) -> tuple[bytes, ...]:
        """What each piece shows as."""
        shown = list(self.written)
        if self.unknown >= 0:
            shown[self.unknown] = "\ufffd".encode()
        return tuple(shown)


def batch_texts(
    items: Iterable[Item], count_characters: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Yields what is to be encoded in one call, in order."""
    batch: list[Item] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += count_characters(item)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def count_bytes(text: str) -> int:
    """Returns the UTF-8 bytes of a text, without a copy of a long one."""
    parts = range(0, len(text), _BATCH_CHARACTERS)
    return sum(len(text[start : start + _BATCH_CHARACTERS].encode()) for start in parts)
