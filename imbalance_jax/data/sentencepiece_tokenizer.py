"""SentencePiece models: what a text says comes back, and only we end its documents.

SentencePiece alone does not promise either. It writes a space as U+2581, so a real U+2581
would come back as a space. A space without a piece of its own falls back to the bytes of
U+2581. A separator that its trainer was given as a user-defined symbol is found in any text
that spells it. `SentencePieceTokenizer` mends the three:

    a U+2581 of the text     the byte pieces E2 96 81
    a space without a piece  the byte piece 20
    the separator's string   the pieces of its characters
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imbalance_jax.data.text_cuts import TextCutter
from imbalance_jax.data.text_tokenizer import TextTokenizer, batch_texts

if TYPE_CHECKING:
    import sentencepiece

_SPACE = "\u2581"  # how SentencePiece writes a space
# What stands for a U+2581 of the text in what SentencePiece reads: a character that is in
# neither. Characters that Unicode gives to no one come first.
_STAND_INS = (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
# A longer text is encoded in parts. A shorter one is not: SentencePiece adds up the scores of a
# unigram model in 32 bits, so two ways to write a word that score the same are told apart by the
# rounding of all that stands before them.
_WHOLE_CHARACTERS = 4_000_000


class SentencePieceTokenizer(TextTokenizer):
    """A SentencePiece model, as this project reads and writes text with it."""

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        """Raises RuntimeError if it is no model, and ValueError if it has no separator."""
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        processor = sentencepiece.SentencePieceProcessor()
        if not model or not processor.load_from_serialized_proto(model):
            raise RuntimeError("This is no SentencePiece model.")
        self.content = model
        self.separator = _find_separator(processor)
        # Protobuf makes its classes when the module is imported.
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
        # No text can spell a control symbol.
        piece = proto.pieces[self.separator]
        if piece.type != piece.CONTROL:
            piece.type = piece.CONTROL
            processor.load_from_serialized_proto(proto.SerializeToString())
        self.processor = processor
        self.size = processor.get_piece_size()
        self.pad_id, self.unknown = processor.pad_id(), processor.unk_id()
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

    @functools.cached_property
    def strings(self) -> tuple[str, ...]:
        return tuple(self.processor.id_to_piece(index) for index in range(self.size))

    @functools.cached_property
    def byte_ids(self) -> dict[int, int]:
        """The ids of the byte pieces by their bytes: of all 256, or there are none."""
        is_byte = self.processor.is_byte
        ids = {int(s[3:5], 16): i for i, s in enumerate(self.strings) if is_byte(i)}
        return ids if len(ids) == 256 else {}

    @functools.cached_property
    def written(self) -> tuple[bytes, ...]:
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

    def encode_arrays(self, texts: Sequence[str], num_threads: int = -1) -> list[np.ndarray]:
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
