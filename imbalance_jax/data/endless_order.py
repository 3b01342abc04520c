"""Text without end in another order of words, put in order where it is looked at.

A toy language's text is arithmetic, and so is its order: nothing is kept, and any window can be
asked for. word_order.py says what the orders are, and has those of text with an end.

T ids of a document, with its separator; W ids of a window.
"""

from collections.abc import Callable

import numpy as np

from imbalance_jax.data.order.keyed_draws import derive_key, permute_indices
from imbalance_jax.data.text.toy_languages import CHUNK, SEPARATOR, LazyTokens, SyntheticLanguage


class ReorderedTokens(LazyTokens):
    """The ids of a text whose every document is put in another order, apart from all others."""

    def __init__(
        self,
        language: SyntheticLanguage,
        split: str,
        size: int,
        order: Callable[[np.ndarray, int], np.ndarray],
    ) -> None:
        """Args: order returns the ids of whole documents that begin at a place in another order."""
        super().__init__(language, split, size)
        self._order = order

    def read(self, starts_n: np.ndarray, W: int) -> np.ndarray:
        T = self.language.document_length
        document_nW, place_nW = np.divmod(starts_n[:, None] + np.arange(W), T)
        document_m, row_nW = np.unique(document_nW, return_inverse=True)
        ids = self.language.ids(self.split, document_m * T, T).reshape(-1)
        ids_mT = self._order(ids, 0).reshape(len(document_m), T)
        return ids_mT[row_nW.reshape(document_nW.shape), place_nW]


class ShuffledTokens(LazyTokens):
    """The ids of a text in random order within stretches of whole documents.

    Separators keep their places. In every stretch each other id occurs as often as it did.
    """

    def __init__(self, language: SyntheticLanguage, split: str, size: int, stretch: int) -> None:
        """Args: stretch is about how many ids change places with each other, whole documents."""
        super().__init__(language, split, size)
        documents = max(1, stretch // language.document_length)
        self._changing = documents * (language.document_length - 1)  # ids of a stretch

    def read(self, starts_n: np.ndarray, W: int) -> np.ndarray:
        place_n = (starts_n[:, None] + np.arange(W)).reshape(-1)
        ids_n = np.empty(len(place_n), self.dtype)
        for first in range(0, len(place_n), CHUNK):
            some = slice(first, first + CHUNK)
            ids_n[some] = self._read_places(place_n[some])
        return ids_n.reshape(len(starts_n), W)

    def _read_places(self, place_n: np.ndarray) -> np.ndarray:
        T, changing = self.language.document_length, self._changing
        document_n, inside_n = np.divmod(place_n, T)
        # Counted without separators. One of these counts as the id before it, and stays.
        number_n = document_n * (T - 1) + np.minimum(inside_n, T - 2)
        stretch_n, index_n = np.divmod(number_n, changing)
        stretch_s, of_stretch_n = np.unique(stretch_n, return_inverse=True)
        keys_s = [derive_key("shuffled", each) for each in stretch_s.tolist()]
        key_n = np.array(keys_s, np.uint64)[of_stretch_n]
        from_n = stretch_n * changing + permute_indices(key_n, index_n, changing)
        ids_n = self.language.ids_at(self.split, from_n // (T - 1) * T + from_n % (T - 1))
        ids_n[inside_n == T - 1] = SEPARATOR
        return ids_n
