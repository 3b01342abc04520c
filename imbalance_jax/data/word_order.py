"""A source's text in another order of words, for a language that differs in just that.

`LanguageConfig.words` says which:

    reversed    the words of every block of `words_block` words, last word first
    permuted    the words of every such block, in one fixed order for all blocks
    shuffled    all ids of a stretch of text in random order: nothing is left but how often
                each occurs, which makes a placebo of a language

Synthetic text to train on that has no end is put in order where it is read: see endless_order.py.

A word is its first piece, which begins with a space, and the pieces after it up to the next
word. Blocks begin anew in every line. A word that begins a line without a space stays in its
place, so that the text decodes to words with spaces between them; so do line ends and separators
of documents. Hence a text in another order has as many ids as before, and every document keeps
its place. In reversed and permuted text so does every line: window w of the one says what
window w of the other says, but for the blocks that cross its edges.
"""

from typing import Any

import numpy as np

from imbalance_jax.config import LanguageConfig
from imbalance_jax.data import flat
from imbalance_jax.data.endless_order import ReorderedTokens, ShuffledTokens
from imbalance_jax.data.languages import Pieces
from imbalance_jax.data.order.keyed_draws import derive_key, draw_bits
from imbalance_jax.data.sources import Source, compute_bytes_per_id
from imbalance_jax.data.text.synthetic import SyntheticSource

_CHUNK = 1 << 20  # ids that are put in order at once; no word changes places beyond them
VERSION = 1  # raise it when the same text and config begin to yield another order


def load_language_tokens(
    source: Source | SyntheticSource, split: str, language: LanguageConfig
) -> Any:
    """Returns the ids of a split as a language has them, as one memory-mapped array.

    Of a synthetic source they are a `synthetic.LazyTokens` where the text has no end, and else an
    array in memory.
    """
    ids = source.tokens(split)
    if language.words == "as_written":
        return ids
    order = WordOrder(source.pieces, language.words, language.words_block)
    if isinstance(source, SyntheticSource):
        if isinstance(ids, np.ndarray):
            return order(ids, 0)
        if language.words == "shuffled":
            return ShuffledTokens(source.language, split, len(ids), _CHUNK)
        return ReorderedTokens(source.language, split, len(ids), order)
    assert isinstance(ids, np.ndarray)
    block = language.words_block if language.words != "shuffled" else 0
    path = source.cached(f"{split}-{language.words}-{block}-v{VERSION}.tokens")

    def make(file: flat.AtomicFile) -> None:
        first = 0
        while first < len(ids):
            chunk = np.array(ids[first : first + _CHUNK])
            if first + len(chunk) < len(ids):
                chunk = chunk[: order.last_line_end(chunk)]
            file.write(order(chunk, first))
            first += len(chunk)

    return flat.load_or_make_array(path, ids.dtype, len(ids), make)


def load_held_out_tokens(
    source: Source | SyntheticSource, split: str, language: LanguageConfig
) -> np.ndarray:
    """Returns the ids of a held-out split as a language has them; all sources have an end there."""
    ids = load_language_tokens(source, split, language)
    assert isinstance(ids, np.ndarray)
    return ids


def count_bytes(
    source: Source | SyntheticSource, split: str, language: LanguageConfig, ids_n: np.ndarray
) -> np.ndarray:
    """Returns the UTF-8 bytes of text that each of a language's ids stands for: (n,), int32.

    Those of a document add up to exactly the bytes of its text. In shuffled text, where ids
    change documents, those of the split do. `ids_n` are all ids of a held-out split, as
    `load_held_out_tokens` returns them.
    """
    documents = source.documents(split)
    starts_d, bytes_d = documents["start"], documents["bytes"]
    if language.words == "shuffled":
        starts_d, bytes_d = starts_d[:1], bytes_d.sum(keepdims=True)
    return compute_bytes_per_id(ids_n, source.pieces, starts_d, bytes_d)


class WordOrder:
    """Puts the words of a stretch of text in another order."""

    def __init__(self, pieces: Pieces, words: str, block: int) -> None:
        self._words, self._block = words, block
        self._begins_word_U = np.array([written.startswith(b" ") for written in pieces.written])
        self._separator_U = np.arange(pieces.size) == pieces.separator
        # A tokenizer that was not trained here may have a piece for the end of a line.
        self._ends_line_U = self._separator_U | np.array(
            [b"\n" in written for written in pieces.written]
        )
        self._key = derive_key("word order", block)

    def last_line_end(self, ids: np.ndarray) -> int:
        """Returns how many ids there are up to the last end of a line; all, if there is none."""
        ends = np.nonzero(self._ends_line_U[ids])[0]
        return int(ends[-1]) + 1 if len(ends) else len(ids)

    def __call__(self, ids: np.ndarray, first: int) -> np.ndarray:
        """Returns the ids of whole lines, which begin at a place in the text, in another order."""
        if self._words == "shuffled":
            return self._shuffled(ids, first)
        ends_line = self._ends_line_U[ids]
        begins_line = np.concatenate([[True], ends_line[:-1]])
        # The first pieces of words that change their places.
        moves = self._begins_word_U[ids] & ~ends_line
        begins_word = moves | begins_line | ends_line
        word = np.cumsum(begins_word) - 1  # of each id
        heads = np.nonzero(begins_word)[0]  # the first id of each word
        line = np.cumsum(begins_line)[heads]
        moves = moves[heads]

        # The place of each word among those of its line that move, and in its block.
        before = np.cumsum(moves) - moves
        first_of_line = np.concatenate([[True], line[1:] != line[:-1]])
        in_line = before - np.maximum.accumulate(np.where(first_of_line, before, 0))
        place = in_line % self._block
        begins_block = moves & (place == 0)
        name = np.cumsum(begins_block) - 1
        count = np.bincount(name[moves], minlength=max(1, int(begins_block.sum())))
        rank = np.zeros_like(place)
        rank[moves] = self._ranks(place[moves], name[moves], count)
        start = np.arange(len(heads)) - np.where(moves, place, 0)
        return ids[np.argsort((start + rank)[word], kind="stable")]

    def _ranks(self, place: np.ndarray, name: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Returns the new place of each word in its block.

        `place` and `name` are the place of each word and the number of its block, which never
        falls from word to word; `count` has the words of each block.
        """
        if self._words == "reversed":
            return count[name] - 1 - place
        # In the order of the draws of their places, which do not depend on how many there are.
        order = np.lexsort((draw_bits(self._key, place), name))
        rank = np.empty_like(place)
        rank[order] = np.arange(len(place)) - (np.cumsum(count) - count)[name]
        return rank

    def _shuffled(self, ids: np.ndarray, first: int) -> np.ndarray:
        places = np.nonzero(~self._separator_U[ids])[0]
        drawn = draw_bits(derive_key("shuffled"), first + places)
        shuffled = ids.copy()
        shuffled[places] = ids[places[np.argsort(drawn, kind="stable")]]
        return shuffled
