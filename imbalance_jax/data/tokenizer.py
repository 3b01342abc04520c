"""Text to ids and back: what a text says comes back, and only we end its documents.

SentencePiece alone does not promise either. It writes a space as U+2581, so a real U+2581
would come back as a space. A space without a piece of its own falls back to the bytes of
U+2581. A separator that its trainer was given as a user-defined symbol is found in any text
that spells it. All encoding and decoding goes through `TextTokenizer`, which mends the three:

    a U+2581 of the text     the byte pieces E2 96 81
    a space without a piece  the byte piece 20
    the separator's string   the pieces of its characters
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from etils import epath

from imbalance_jax.data.languages import Pieces
from imbalance_jax.data.text_cuts import TextCutter
from imbalance_jax.runs import damaged_files, storage

if TYPE_CHECKING:
    import sentencepiece

_SPACE = "\u2581"  # how SentencePiece writes a space
# What stands for a U+2581 of the text in what SentencePiece reads: a character that is in
# neither. Characters that Unicode gives to no one come first.
_STAND_INS = (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
# Characters encoded in one call, on all cores.
_BATCH_CHARACTERS = 4_000_000
# A longer text is encoded in parts. A shorter one is not: SentencePiece adds up the scores of a
# unigram model in 32 bits, so two ways to write a word that score the same are told apart by the
# rounding of all that stands before them.
_WHOLE_CHARACTERS = 4_000_000

Item = TypeVar("Item")


class TextTokenizer:
    """A SentencePiece model, as this project reads and writes text with it."""

    def __init__(self, model: bytes) -> None:
        """Raises RuntimeError if it is no model, and ValueError if it has no separator."""
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        processor = sentencepiece.SentencePieceProcessor()
        if not model or not processor.load_from_serialized_proto(model):
            raise RuntimeError("This is no SentencePiece model.")
        self.separator = _find_separator(processor)
        # Protobuf makes its classes when the module is imported.
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
        # No text can spell a control symbol.
        piece = proto.pieces[self.separator]
        if piece.type != piece.CONTROL:
            piece.type = piece.CONTROL
            processor.load_from_serialized_proto(proto.SerializeToString())
        self.processor = processor
        self.size: int = processor.get_piece_size()
        rules, trained = proto.normalizer_spec, proto.trainer_spec
        self._spaces_escaped = rules.escape_whitespaces
        self._dummy_prefix = rules.add_dummy_prefix
        self._dummy_at_end = trained.treat_whitespace_as_suffix
        self._of_words = trained.model_type == trained.WORD
        self._proto = proto
        changes = rules.precompiled_charsmap or rules.remove_extra_whitespaces
        # Of such a text, a part by itself is normalized as it is within the text.
        self._reads_characters = not changes and not rules.add_dummy_prefix
        # As with ours: a text that need not be read back is prepared a tenth faster.
        bytes_known = trained.byte_fallback and bool(self.byte_ids)
        self._keeps_everything = bytes_known and self._reads_characters

    @property
    def pad_id(self) -> int:
        """The id of padding; -1 if there is none."""
        return self.processor.pad_id()

    @property
    def unknown(self) -> int:
        """The id of what has no piece."""
        return self.processor.unk_id()

    @functools.cached_property
    def strings(self) -> tuple[str, ...]:
        """The pieces."""
        return tuple(self.processor.id_to_piece(index) for index in range(self.size))

    @functools.cached_property
    def byte_ids(self) -> dict[int, int]:
        """The ids of the byte pieces by their bytes: of all 256, or there are none."""
        is_byte = self.processor.is_byte
        ids = {int(s[3:5], 16): i for i, s in enumerate(self.strings) if is_byte(i)}
        return ids if len(ids) == 256 else {}

    @functools.cached_property
    def written(self) -> tuple[bytes, ...]:
        """What each piece writes: UTF-8, but for byte pieces; nothing for specials."""
        processor, written = self.processor, []
        for index, string in enumerate(self.strings):
            if processor.is_byte(index):
                written.append(bytes([int(string[3:5], 16)]))
            elif processor.is_control(index) or processor.is_unknown(index):
                written.append(b"")
            else:
                spaced = string.replace(_SPACE, " ") if self._spaces_escaped else string
                written.append(spaced.encode())
        return tuple(written)

    def pieces(self, counts_U: np.ndarray | None = None) -> Pieces:
        """Returns what languages.py needs to know of the tokenizer, and of how it is used."""
        return Pieces(
            size=self.size,
            pad_id=self.pad_id,
            special_ids=(self.unknown, self.separator),
            bytes_U=np.array([len(piece) for piece in self.written], np.int32),
            strings=self.strings,
            counts_U=counts_U,
        )

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; none of them is the separator."""
        return self.encode_all([text], num_threads=1)[0]

    def encode_all(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """Returns the ids of each of several texts; -1 threads are as many as there are cores."""
        return [ids.tolist() for ids in self.encode_arrays(texts, num_threads)]

    def encode_arrays(self, texts: Sequence[str], num_threads: int = -1) -> list[np.ndarray]:
        """Returns what `encode_all` does, as arrays: an eighth of the memory of a long text."""
        stand_ins = [self._stand_in(one) for one in texts]
        read = [
            one.replace(_SPACE, stand_in) if stand_in else one
            for one, stand_in in zip(texts, stand_ins, strict=True)
        ]
        short = [one for one in read if len(one) <= _WHOLE_CHARACTERS]
        encoded = iter(self.processor.encode(short, num_threads=num_threads))
        return [
            self._write_spaces(next(encoded), stand_in)
            if len(one) <= _WHOLE_CHARACTERS
            else self._encode_in_parts(one, stand_in, num_threads)
            for one, stand_in in zip(read, stand_ins, strict=True)
        ]

    def _encode_in_parts(self, text: str, stand_in: str, num_threads: int) -> np.ndarray:
        """Returns the ids of a text that is too long for one call, in bounded memory.

        A model that changes more than single characters normalizes the text in one call first.
        """
        processor = self.processor
        if not self._reads_characters:
            text, processor = processor.normalize(text), self._of_normalized
        return np.concatenate(
            [
                self._write_spaces(ids, stand_in)
                for parts in batch_texts(self._cutter.cut(text), len)
                for ids in processor.encode(parts, num_threads=num_threads)
            ]
        )

    @functools.cached_property
    def _cutter(self) -> TextCutter:
        return TextCutter(self._proto, normalized=not self._reads_characters)

    @functools.cached_property
    def _of_normalized(self) -> "sentencepiece.SentencePieceProcessor":
        """Encodes text that is normalized already."""
        import sentencepiece

        proto = type(self._proto).FromString(self._proto.SerializeToString())
        rules = proto.normalizer_spec
        rules.name, rules.precompiled_charsmap = "identity", b""
        rules.add_dummy_prefix = rules.remove_extra_whitespaces = rules.escape_whitespaces = False
        processor = sentencepiece.SentencePieceProcessor()
        processor.load_from_serialized_proto(proto.SerializeToString())
        return processor

    def _write_spaces(self, ids: list[int], stand_in: str) -> np.ndarray:
        """Returns ids of SentencePiece with the bytes of spaces and of U+2581 as we write them."""
        if self._spaces_in_bytes is not None:
            ids = self._replaced(ids, _SPACE, self._spaces_in_bytes)
        ids = self._replaced(ids, stand_in, self._bytes_of(_SPACE)) if stand_in else ids
        return np.array(ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids: for those of `encode`, the text itself if nothing is lost.

        A separator shows as its string, and an unknown piece and bytes that are not UTF-8 as
        U+FFFD.
        """
        documents: list[list[bytes]] = [[]]
        for id_ in map(int, ids):
            if id_ == self.separator:
                documents.append([])
            else:
                unknown = id_ == self.unknown
                documents[-1].append("\ufffd".encode() if unknown else self.written[id_])
        texts = [self._without_dummy(b"".join(parts)) for parts in documents]
        return self.strings[self.separator].join(text.decode(errors="replace") for text in texts)

    def lost_bytes(self, text: str, ids: Sequence[int] | np.ndarray) -> int:
        """Returns how many UTF-8 bytes of a text's characters do not come back from its ids.

        Lost is what is unknown, and what the model's normalization takes away or replaces.
        """
        if self._keeps_everything:
            return 0
        whole = text.encode()
        written = self._without_dummy(b"".join(map(self.written.__getitem__, ids)))
        if written == whole:
            return 0
        left = collections.Counter(text) - collections.Counter(written.decode(errors="replace"))
        return sum(count * len(character.encode()) for character, count in left.items())

    def _without_dummy(self, written: bytes) -> bytes:
        """Returns text without the space that the model's normalization puts at its edge."""
        if not self._dummy_prefix:
            return written
        return written.removesuffix(b" ") if self._dummy_at_end else written.removeprefix(b" ")

    @functools.cached_property
    def _spaces_in_bytes(self) -> list[int] | None:
        """The ids of a space in place of the bytes of U+2581; None where those do not occur."""
        has_piece = self.processor.piece_to_id(_SPACE) != self.unknown
        # A model of words writes the whole of an unknown one in bytes, with its space.
        if not self._spaces_escaped or (has_piece and not self._of_words):
            return None
        return self._bytes_of(" ") or None

    def _bytes_of(self, text: str) -> list[int]:
        """Returns the byte pieces of a text; none if the model has no byte pieces."""
        return [self.byte_ids[byte] for byte in text.encode()] if self.byte_ids else []

    def _stand_in(self, text: str) -> str:
        """Returns a character in place of U+2581 in a text; "" where there is none to replace."""
        if _SPACE not in text or not self._spaces_escaped:
            return ""
        taken = self._characters.union(text)
        return next(filter(lambda one: one not in taken, map(chr, _STAND_INS)))

    @functools.cached_property
    def _characters(self) -> frozenset[str]:
        return frozenset("".join(self.strings))

    def _replaced(self, ids: list[int], text: str, by: list[int]) -> list[int]:
        """Returns ids with others in the places of a text's byte pieces."""
        old = self._bytes_of(text)
        replaced: list[int] = []
        rest = 0
        # The first byte of a character is never a later one of another.
        for place in [n for n, id_ in enumerate(ids) if old and id_ == old[0]]:
            if ids[place : place + len(old)] == old:
                replaced += [*ids[rest:place], *by]
                rest = place + len(old)
        return replaced + ids[rest:]


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
    parts = range(0, len(text), _WHOLE_CHARACTERS)
    return sum(len(text[start : start + _WHOLE_CHARACTERS].encode()) for start in parts)


def check_tokenizer_path(field: str, path: str) -> None:
    """Raises ValueError if a tokenizer's path, where there is one, cannot be used."""
    if not path:
        return
    file = storage.parse_path(path)
    field = f"{field}={path!r}"
    if not file.exists() or file.is_dir():
        raise ValueError(f"{field}: there is no such file.")
    try:
        TextTokenizer(read_tokenizer_file(path))
    except RuntimeError as error:
        raise ValueError(f"{field} is not a SentencePiece model. Name a .model file.") from error
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def read_tokenizer_file(path: str) -> bytes:
    """Returns the bytes of a file that a config names as a tokenizer."""
    remedy = "Name a .model file as tokenizer.path."
    return damaged_files.read_file(storage.parse_path(path), remedy)


def open_tokenizer(model: bytes, path: epath.PathLike, remedy: str) -> TextTokenizer:
    """Returns the tokenizer of a SentencePiece model that this program wrote into a file.

    Raises:
      DamagedFileError: it is none, or has no separator.
    """
    try:
        return TextTokenizer(model)
    # Protobuf raises an error of its own.
    except Exception as error:
        problem = "is not a SentencePiece model that this program wrote"
        raise damaged_files.DamagedFileError(path, problem, remedy) from error


def _find_separator(processor: "sentencepiece.SentencePieceProcessor") -> int:
    """Returns the id that is put after each document.

    Raises:
      ValueError: the tokenizer has neither a `<D>` nor an end of sentence.
    """
    separator = processor.piece_to_id("<D>")
    if separator != processor.unk_id():
        return separator
    if processor.eos_id() >= 0:
        return processor.eos_id()
    raise ValueError(
        "The tokenizer has no piece to separate documents: neither <D> nor an end of "
        "sentence. Train it with control_symbols='<D>'."
    )
