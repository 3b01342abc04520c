"""Text of toy languages as sources, and the entropy of that text; toy_languages.py makes it."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.config import SyntheticConfig
from imbalance_jax.data import sources
from imbalance_jax.data.languages import Pieces
from imbalance_jax.data.records import hash_document_id
from imbalance_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from imbalance_jax.data.text.documents import SPLITS
from imbalance_jax.data.text.toy_languages import (
    CHUNK,
    ENDLESS,
    FIRST_WORD,
    HELD_OUT,
    SAID,
    SENTENCES,
    SEPARATOR,
    VERSION,
    LazyTokens,
    SyntheticLanguage,
)

__all__ = [
    "ENDLESS",
    "FIRST_WORD",
    "Entropy",
    "LazyTokens",
    "SyntheticSource",
    "compute_language_entropy",
    "compute_loss_bounds",
    "generate_documents",
    "generate_parallel_sentences",
]


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """A toy language as a source; `sources.Source` is its counterpart for text on disk."""

    name: str
    config: SyntheticConfig

    @functools.cached_property
    def language(self) -> SyntheticLanguage:
        return SyntheticLanguage(self.config)

    @property
    def fingerprint(self) -> str:
        """Stands for the text and the tokenizer together."""
        plain = config_lib.to_dict(self.config, leave_out=config_lib.NEWER)
        return config_lib.hash_plain_values([VERSION, plain])

    @functools.cached_property
    def pieces(self) -> Pieces:
        """The pieces; counts_U are those to expect in the text to train on."""
        counts_U = np.rint(self.language.shares_U() * self.count("train")).astype(np.int64)
        return self.tokenizer.pieces(counts_U)

    @functools.cached_property
    def model(self) -> bytes:
        """The SentencePiece model."""
        return self.language.model()

    @functools.cached_property
    def tokenizer(self) -> SentencePieceTokenizer:
        return SentencePieceTokenizer(self.model)

    @functools.cached_property
    def about(self) -> Mapping[str, Any]:
        """What source.json has of a prepared source, and the text's entropy in nats.

        The bytes of the text to train on are those to expect.
        """
        # Not those of `pieces`, which are counted with the help of this.
        bytes_U = self.tokenizer.pieces().bytes_U
        shares_U = self.language.shares_U()
        tokens = {split: self.count(split) for split in SPLITS}
        sizes = {split: int(bytes_U[ids].sum()) for split, ids in self._held_out.items()}
        return {
            "name": self.name,
            "format": sources.FORMAT,
            "fingerprint": self.fingerprint,
            "tokenizer": hashlib.sha256(self.model).hexdigest(),
            "vocab_size": self.language.size,
            "dtype": self.language.dtype.name,
            "documents": {split: self.language.num_documents(split) for split in SPLITS},
            "tokens": tokens,
            "bytes": {"train": round(tokens["train"] * float(shares_U @ bytes_U))} | sizes,
            "lost_bytes": dict.fromkeys(SPLITS, 0),
            "entropy": dataclasses.asdict(compute_language_entropy(self.config)),
        }

    def count(self, split: str) -> int:
        """Returns the number of ids in a split, separators included."""
        return len(self.language.text(split))

    def tokens(self, split: str) -> np.ndarray | LazyTokens:
        """Returns all ids of a split: as an array if it is held out."""
        return self._held_out[split] if split in HELD_OUT else self.language.text(split)

    @functools.cached_property
    def _held_out(self) -> dict[str, np.ndarray]:
        held_out = {split: self.language.text(split).read_all() for split in HELD_OUT}
        for ids in held_out.values():
            ids.flags.writeable = False  # as a memory map of a prepared source
        return held_out

    def documents(self, split: str) -> np.ndarray:
        """Returns a split's table of documents, of dtype sources.DOCUMENT.

        Raises:
          ValueError: the split is without end.
        """
        if split == "train":
            _check_finite_text(f"sources.{self.name}", self.config)
        language = self.language
        table = np.empty(language.num_documents(split), sources.DOCUMENT)
        table["start"] = np.arange(len(table)) * language.document_length
        ids = (language.document_id(split, number) for number in range(len(table)))
        table["id"] = np.fromiter(map(hash_document_id, ids), np.uint64, len(table))
        bytes_n = self.pieces.bytes_U[language.text(split).read_all()]
        table["bytes"] = np.add.reduceat(bytes_n, table["start"], dtype=np.int64)
        return table


def generate_documents(config: SyntheticConfig) -> Iterator[sources.EncodedDocument]:
    """Yields all documents of a text with an end, as `sources.write_source` takes them.

    Raises:
      ValueError: the text has no end.
    """
    _check_finite_text("sources.*", config)
    return _generate_language_documents(SyntheticLanguage(config))


def _generate_language_documents(language: SyntheticLanguage) -> Iterator[sources.EncodedDocument]:
    # A space is written as U+2581 and is one byte; the separator is no text.
    bytes_U = np.array([len(piece) for piece in language.pieces()])
    bytes_U[SEPARATOR] = 0
    length = language.document_length
    together = -(-CHUNK // length)
    for split in SPLITS:
        count = language.num_documents(split)
        for first in range(0, count, together):
            numbers = range(first, min(count, first + together))
            ids_nW = language.ids(split, np.array(numbers) * length, length)
            sizes = bytes_U[ids_nW].sum(axis=1).tolist()
            for number, ids, size in zip(numbers, ids_nW, sizes, strict=True):
                yield sources.EncodedDocument(split, language.document_id(split, number), ids, size)


def _check_finite_text(field: str, config: SyntheticConfig) -> None:
    if not config.tokens:
        raise ValueError(
            f"config.{field}.synthetic.tokens=0 is text without end, which has no table of "
            f"documents. Set config.{field}.synthetic.tokens above 0, such as 10000000."
        )


def generate_parallel_sentences(
    config_a: SyntheticConfig, config_b: SyntheticConfig, n: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the first n sentences of the test split, or all if it has fewer, in two languages.

    They are ids of each language with the period at their end; those at the same place of
    the lists say the same.

    Raises:
      ValueError: the languages do not say the same.
    """
    for name in SAID:
        value, other = getattr(config_a, name), getattr(config_b, name)
        if value != other:
            raise ValueError(
                f"config.sources.*.synthetic.{name} is {value} in one language and {other} in "
                f"the other, so they do not say the same. Set {name} of both to one value."
            )
    languages = (SyntheticLanguage(config_a), SyntheticLanguage(config_b))
    numbers = np.arange(min(n, languages[0].num_documents("test") * SENTENCES))
    first, second = (list(language.sentences("test", numbers)) for language in languages)
    return first, second


@dataclasses.dataclass(frozen=True)
class Entropy:
    """What is known of a text, in nats."""

    # Of the words; the period is certain. None where there are no sentences.
    per_sentence: float | None
    per_token: float  # periods and separators counted: the floor of a mean loss
    unigram: float  # the mean loss of a model that knows how often ids occur, and no more


def compute_language_entropy(config: SyntheticConfig, words: str = "as_written") -> Entropy:
    """Returns the entropy of a language, exactly, with its words in an order of LanguageConfig's.

    Given its parent, all that is open about a word is its rank, and about the root its topic
    too: log(T) + J H(Zipf) a sentence, whatever the order of words, by the chain rule. All 16
    sentences of a document are independent, and where it stands in one says what else it has.
    Reversed and permuted documents tell which they were, so that their entropy is the same.

    Of shuffled text only the places of separators are certain: all other ids are as good as
    independent draws, because a stretch of text has very many more of them than a window.
    """
    language = SyntheticLanguage(config)
    if words == "shuffled":
        shares_U = language.shares_U()
        shares_U[SEPARATOR] = 0
        others = 1 - 1 / language.document_length  # the share of ids that are no separators
        per_token = others * _compute_entropy(shares_U / others)
        return Entropy(None, per_token, _compute_entropy(language.shares_U()))
    per_sentence = math.log(config.topics) + language.world.words * _compute_entropy(
        language.world.p_R
    )
    per_token = SENTENCES * per_sentence / language.document_length
    return Entropy(per_sentence, per_token, _compute_entropy(language.shares_U()))


def compute_loss_bounds(
    config: SyntheticConfig, L: int, words: str = "as_written"
) -> tuple[float, float]:
    """Returns what the best mean loss over L ids lies between, for windows cut at any place.

    A window is L + 1 ids, of which the first is read only; every phase of a document is cut at
    equally often, as by windows at the multiples of an L that has no divisor in common with a
    document's length (that is 2**(depth + 4) + 1, so a power of two has none).

    The lower bound is the rate: the loss of a model that reads everything before the window
    too. By the chain rule, the other one loses I(window; lost | first id) more in a window.
    Lost are the phase, of which there are as many as a document has ids, and the sentence's
    words before the first id. The window's words depend on those through the topics along
    the edges of the tree that pass over the first id, and nothing else. So it loses at most
    log(phases) + E(edges) log(T), and never does worse than the frequencies of the ids.

    In shuffled text no edges are left, and the phase alone is lost. Reversed and permuted text
    has other edges over an id, and the frequencies are its upper bound.
    """
    language, entropy = SyntheticLanguage(config), compute_language_entropy(config, words)
    if words in ("reversed", "permuted"):
        return entropy.per_token, entropy.unigram
    if words == "shuffled":
        lost = math.log(language.document_length)
        return entropy.per_token, min(entropy.per_token + lost / L, entropy.unigram)
    place_J = np.argsort(language.node_J)
    child = np.arange(1, language.world.words)
    # The places between a parent and its child: with the first id at one, the edge is cut.
    cuts = np.abs(place_J[child] - place_J[(child - 1) // 2]) - 1
    edges = SENTENCES * int(cuts.sum()) / language.document_length
    lost = math.log(language.document_length) + edges * math.log(config.topics)
    return entropy.per_token, min(entropy.per_token + lost / L, entropy.unigram)


def _compute_entropy(p_n: np.ndarray) -> float:
    """Returns the entropy of a distribution."""
    p_n = p_n[p_n > 0]
    return -math.fsum(p_n * np.log(p_n))
