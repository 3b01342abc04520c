"""Vectors of pieces that know only their neighbours: gensim's word2vec on the stream of a run.

CBOW and skip-gram with negative sampling (Mikolov et al. 2013). gensim trains with one worker, so
that the same tokens, settings and seed give the same vectors.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

METHODS = ("cbow", "skipgram")
# gensim cuts longer sentences off; their rest becomes a sentence of its own.
_LONGEST_SENTENCE = 10_000

Sentences = Callable[[], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Word2VecSettings:
    """How vectors are made; the defaults are the reference study's."""

    method: str = "cbow"  # or skipgram
    dimension: int = 768
    window: int = 5  # ids on either side, at most
    negatives: int = 20  # for each position
    exponent: float = 0.75  # of the counts that negatives are drawn by
    sample: float = 1e-3  # ids with a larger share of the tokens are left out at times; 0 is never
    min_count: int = 1  # rarer ids are left out
    epochs: int = 1
    start_rate: float = 0.025
    end_rate: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"--method={self.method}: choose {' or '.join(METHODS)}.")
        for name in ("dimension", "window", "negatives", "min_count", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}={getattr(self, name)}: it must be 1 or more.")
        for name in ("sample", "exponent"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name}={getattr(self, name)}: it must be 0 or more.")
        if not 0 <= self.end_rate <= self.start_rate < math.inf:
            raise ValueError(
                f"--start_rate={self.start_rate} and --end_rate={self.end_rate}: the rate falls "
                "from the first to the second, which must be 0 or more."
            )
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"--seed={self.seed}: it must be from 0 to 2^32 - 1.")


@dataclasses.dataclass(frozen=True)
class PieceVectors:
    """What was learnt of each id; 0 for ids that were not trained on."""

    input_VD: np.ndarray  # of an id in a context
    output_VD: np.ndarray  # of an id that is predicted
    kept: int  # positions that were trained on, over all epochs


def import_gensim() -> Any:
    """Returns gensim's models.

    Raises:
      ValueError: gensim is not installed.
    """
    try:
        import gensim.models
    except ImportError as error:
        raise ValueError(
            "gensim trains word2vec, and it is not installed. Install it with: pip install gensim"
        ) from error
    return gensim.models


def count_ids(sentences: Sentences, size: int) -> np.ndarray:
    """Returns how often each of `size` ids occurs: (V,)."""
    count_V = np.zeros(size, np.int64)
    for ids_BL in sentences():
        count_V += np.bincount(ids_BL.ravel(), minlength=size)
    return count_V


def train_vectors(
    sentences: Sentences,
    count_V: np.ndarray,
    settings: Word2VecSettings,
    poll: Callable[[float], None] = lambda share: None,
) -> PieceVectors:
    """Returns the vectors that a stream makes.

    Args:
      sentences: each call returns the same blocks of ids, (B, L) each; a row is a sentence,
        which no window leaves.
      count_V: of `count_ids`.
      settings: of the vectors.
      poll: called after each block with the share done.

    Raises:
      ValueError: gensim is not installed, or fewer than two ids are left to train on.
    """
    trained = np.flatnonzero(count_V >= settings.min_count)
    if len(trained) < 2:
        raise ValueError(
            f"--min_count={settings.min_count} leaves fewer than two ids. Set it lower, or use "
            "more text."
        )
    tokens = int(count_V.sum())
    corpus = _Corpus(sentences, len(count_V), tokens * settings.epochs, poll)
    model = import_gensim().Word2Vec(
        vector_size=settings.dimension,
        window=settings.window,
        negative=settings.negatives,
        ns_exponent=settings.exponent,
        sample=settings.sample,
        min_count=settings.min_count,
        alpha=settings.start_rate,
        min_alpha=settings.end_rate,
        sg=int(settings.method == "skipgram"),
        workers=1,
        seed=settings.seed,
    )
    model.build_vocab_from_freq({str(v): int(count_V[v]) for v in np.flatnonzero(count_V)})
    kept, _ = model.train(corpus, total_words=tokens, epochs=settings.epochs)
    if corpus.error is not None:
        raise corpus.error
    row_n = [model.wv.key_to_index[str(v)] for v in trained]
    input_VD, output_VD = (
        np.zeros((len(count_V), settings.dimension), np.float32) for _ in range(2)
    )
    input_VD[trained], output_VD[trained] = model.wv.vectors[row_n], model.syn1neg[row_n]
    return PieceVectors(input_VD, output_VD, kept)


class _Corpus:
    """The stream as gensim reads it: once an epoch, a list of words for each sentence."""

    def __init__(
        self, sentences: Sentences, size: int, tokens: int, poll: Callable[[float], None]
    ) -> None:
        self._sentences, self._tokens, self._poll = sentences, tokens, poll
        self._word_V = [str(v) for v in range(size)]
        self._done = 0  # tokens, of all epochs
        # gensim reads in a thread of its own, and waits forever for one that raises.
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[list[str]]:
        try:
            for ids_BL in self._sentences():
                for ids_L in ids_BL.tolist():
                    words = [self._word_V[v] for v in ids_L]
                    for first in range(0, len(words), _LONGEST_SENTENCE):
                        yield words[first : first + _LONGEST_SENTENCE]
                self._done += ids_BL.size
                self._poll(self._done / self._tokens)
        except Exception as error:
            self.error = error
