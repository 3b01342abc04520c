"""Cuts a long text into parts that SentencePiece encodes to the ids of the whole.

SentencePiece needs about 47 bytes of memory for each byte of a text that it encodes in one call,
and ends the process where it does not get them. A part therefore has a bounded size.

A BPE or unigram model decides on both sides of a place for itself if no piece reaches across it. A
piece that does has the two characters beside the place next to each other. So a text may be cut
between two characters that are neighbours in no piece. Where a piece ends at each space, each
space is such a place. Runs of unknown characters become one id, so one of the two must be known.

A text without such a place is one part, however long it is, and so is every text of a model of
words, which takes any word as a piece.
"""

import itertools
from collections.abc import Iterator
from typing import Any

_PART_CHARACTERS = 1 << 16  # SentencePiece takes three times as long per character of a larger one

_SPACE = "\u2581"  # how SentencePiece writes a space


class TextCutter:
    """Knows between which characters a model's texts may be cut."""

    def __init__(self, proto: Any, *, normalized: bool) -> None:
        """Reads the pieces of a model.

        Args:
          proto: the model, as a message of protobuf, which makes its classes when it is imported.
          normalized: whether the texts are normalized already, so that a space is a U+2581.
        """
        unescape = proto.normalizer_spec.escape_whitespaces and not normalized
        self._neighbours: set[str] = set()  # two characters that follow each other in a piece
        self._known: set[str] = set()
        for piece in proto.pieces:
            if piece.type in (piece.CONTROL, piece.UNKNOWN, piece.BYTE):
                continue  # no text spells these
            string = piece.piece.replace(_SPACE, " ") if unescape else piece.piece
            self._neighbours.update(map("".join, zip(string, string[1:], strict=False)))
            if len(string) == 1 and piece.type != piece.UNUSED:
                self._known.add(string)
        trained = proto.trainer_spec
        self._in_bytes = trained.byte_fallback  # an unknown character has ids of its own
        self._whole_only = trained.model_type == trained.WORD

    def cut(self, text: str) -> Iterator[str]:
        """Yields parts of a text, in order; their ids one after another are those of the text."""
        start = 0
        while len(text) - start > _PART_CHARACTERS and not self._whole_only:
            end = self._find_place(text, start)
            yield text[start:end]
            start = end
        yield text[start:]

    def _find_place(self, text: str, start: int) -> int:
        """Returns the last place of a part that is not too long, or else the first one after it."""
        most = start + _PART_CHARACTERS
        for place in itertools.chain(range(most, start, -1), range(most + 1, len(text))):
            if self._may_cut(text[place - 1], text[place]):
                return place
        return len(text)

    def _may_cut(self, before: str, after: str) -> bool:
        if before + after in self._neighbours:
            return False
        return self._in_bytes or before in self._known or after in self._known
