"""What each language draws its windows from: a source's text, or its own documents of it.

A *pool* is the text that one running count of windows goes through. Its name is SOURCE for the
languages that share a source's text, or SOURCE/TAG for a language that has documents of its own,
where the config parts a source's documents between its languages:

    mixture.switch=document    a document belongs to one of the languages that share a source
    mixture.content=disjoint   a document that several sources have, by its id, belongs to one;
                               these are the sources that say so, with ids=shared

Who gets a document follows from its id alone, drawn in proportion to the sequences that the
run asks for.
"""

import dataclasses
import fractions
import heapq
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config
from imbalance_jax.data import word_order
from imbalance_jax.data.order.keyed_draws import derive_key, draw_bits
from imbalance_jax.data.sources import Source
from imbalance_jax.data.text import synthetic
from imbalance_jax.data.text.synthetic import SyntheticSource

AnySource: TypeAlias = Source | SyntheticSource

_COMPARED = 2_000_000  # documents whose ids are compared in a second or two


class TokenSequence(Protocol):
    """A text whose ids have places 0 .. len - 1."""

    def __len__(self) -> int: ...

    def windows(self, starts_n: np.ndarray, W: int) -> np.ndarray:
        """Returns the ids (n, W) from each start on."""


class TokenArray:
    """One array of ids."""

    def __init__(self, tokens: np.ndarray) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def windows(self, starts_n: np.ndarray, W: int) -> np.ndarray:
        ids_nW = np.empty((len(starts_n), W), self._tokens.dtype)
        # A slice of a memory map is faster than an index for every id.
        for row, start in enumerate(starts_n.tolist()):
            ids_nW[row] = self._tokens[start : start + W]
        return ids_nW


class JoinedDocuments:
    """Documents of an array of ids, as if nothing lay between them."""

    def __init__(self, tokens: np.ndarray, starts_n: np.ndarray, lengths_n: np.ndarray) -> None:
        self._tokens, self.dtype = tokens, tokens.dtype
        self._ends = np.cumsum(lengths_n)
        self._shift = starts_n - (self._ends - lengths_n)  # from places here to the array's

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def windows(self, starts_n: np.ndarray, W: int) -> np.ndarray:
        ids_nW = np.empty((len(starts_n), W), self._tokens.dtype)
        first_n = np.searchsorted(self._ends, starts_n, side="right")
        for row, (start, document) in enumerate(
            zip(starts_n.tolist(), first_n.tolist(), strict=True)
        ):
            self._read(ids_nW[row], start, document)
        return ids_nW

    def _read(self, into: np.ndarray, start: int, document: int) -> None:
        filled = 0
        while filled < len(into):
            take = min(len(into) - filled, int(self._ends[document]) - start)
            place = start + int(self._shift[document])
            into[filled : filled + take] = self._tokens[place : place + take]
            filled, start, document = filled + take, start + take, document + 1


class TooFewDocuments(ValueError):
    """Not every row of a batch can have a queue."""


class DocumentQueues:
    """A queue of documents for each row of a batch, read on and on in sequence.

    As the reference study has it: documents in their order, each given to the queue that
    holds the fewest tokens, the first of them on ties. A queue begins again after its end.
    """

    def __init__(
        self, tokens: np.ndarray, starts_n: np.ndarray, lengths_n: np.ndarray, rows: int
    ) -> None:
        """Raises TooFewDocuments if there are fewer than rows."""
        queue_n = _assign_queues(lengths_n - 1, rows)  # a separator is no token of a document here
        if len(np.unique(queue_n)) < rows:
            raise TooFewDocuments(
                f"has {len(starts_n)} documents, and config.mixture.order='sequential' needs one "
                f"for each of config.batch_size={rows} rows at least."
            )
        order_n = np.argsort(queue_n, kind="stable")
        self._text = JoinedDocuments(tokens, starts_n[order_n], lengths_n[order_n])
        self.length_B = np.bincount(queue_n, lengths_n, minlength=rows).astype(np.int64)
        self._base_B = np.cumsum(self.length_B) - self.length_B

    def windows(self, row_n: np.ndarray, starts_n: np.ndarray, W: int) -> np.ndarray:
        """Returns the ids (n, W) of a queue each, from a start on that counts through wraps."""
        length_n, base_n = self.length_B[row_n], self._base_B[row_n]
        inside_n = starts_n % length_n
        wraps_n = inside_n + W > length_n
        ids_nW = np.empty((len(row_n), W), self._text.dtype)
        ids_nW[~wraps_n] = self._text.windows((base_n + inside_n)[~wraps_n], W)
        for row in np.nonzero(wraps_n)[0]:
            places = base_n[row] + (inside_n[row] + np.arange(W)) % length_n[row]
            ids_nW[row] = self._text.windows(places, 1)[:, 0]
        return ids_nW


def _assign_queues(lengths_n: np.ndarray, rows: int) -> np.ndarray:
    """Returns the queue of each document."""
    queues = [(0, row) for row in range(rows)]
    queue_n = np.empty(len(lengths_n), np.int64)
    for document, length in enumerate(lengths_n.tolist()):
        held, row = queues[0]
        heapq.heapreplace(queues, (held + length, row))
        queue_n[document] = row
    return queue_n


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The text that one language is trained on."""

    pool: str
    source: AnySource
    # All ids of the source's, in this language's order of words.
    tokens: np.ndarray | synthetic.LazyTokens
    chosen_n: np.ndarray | None  # which documents of the source are in it; None is all

    def text(self) -> TokenSequence:
        if not isinstance(self.tokens, np.ndarray):
            return self.tokens
        if self.chosen_n is None:
            return TokenArray(self.tokens)
        return JoinedDocuments(self.tokens, *self.documents())

    def queues(self, rows: int) -> DocumentQueues:
        try:
            starts_n, lengths_n = self.documents()
            assert isinstance(self.tokens, np.ndarray)  # or it would have no documents
            return DocumentQueues(self.tokens, starts_n, lengths_n, rows)
        except TooFewDocuments as error:
            raise ValueError(f"config.sources.{self.source.name} {error}") from error

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the starts and lengths, with separators, of the documents in it."""
        starts_n = self.source.documents("train")["start"]
        lengths_n = np.diff(starts_n, append=len(self.tokens))
        if self.chosen_n is None:
            return starts_n, lengths_n
        return starts_n[self.chosen_n], lengths_n[self.chosen_n]


def build_corpora(config: Config, sources: Mapping[str, AnySource]) -> list[Corpus]:
    """Returns the corpus of each language, in the order of `config.tags`.

    Raises:
      ValueError: documents are to be parted, and a source has no table of them.
    """
    demand = config_lib.compute_sequence_totals(config)
    tags_of: dict[str, list[str]] = {}  # by source
    for tag in config.tags:
        tags_of.setdefault(config.source_of(tag), []).append(tag)
    # Which documents of a source its languages may have; None is all.
    choice_of: dict[str, np.ndarray | None] = dict.fromkeys(tags_of)
    if config.mixture.content == "disjoint":
        ids = {n: sources[n].documents("train")["id"] for n in tags_of if _shares_ids(config, n)}
        wanted = {
            name: fractions.Fraction(sum(demand[tag] for tag in tags))
            for name, tags in tags_of.items()
        }
        if len(ids) > 1:
            choice_of.update(partition_documents(ids, wanted, config.data_seed))
    corpora = []
    for tag in config.tags:
        name = config.source_of(tag)
        source, sharing = sources[name], tags_of[name]
        pool, chosen_n = name, choice_of[name]
        if config.mixture.switch == "document" and len(sharing) > 1:
            pool = f"{name}/{tag}"
            owner_n = _draw_owners(
                derive_key(config.data_seed, "switch"),
                source.documents("train")["id"],
                [demand[each] for each in sharing],
            )
            own_n = owner_n == sharing.index(tag)
            chosen_n = own_n if chosen_n is None else own_n & chosen_n
        tokens = word_order.load_language_tokens(source, "train", config.languages[tag])
        corpora.append(Corpus(pool, source, tokens, chosen_n))
    return corpora


def partition_documents(
    ids: Mapping[str, np.ndarray], wanted: Mapping[str, fractions.Fraction], seed: int
) -> dict[str, np.ndarray]:
    """Returns which documents each source keeps, so that none is in two of them.

    A draw decides where several sources have a document, in proportion to the sequences that the
    run asks of each. A source that it asks none of leaves its documents to the others.

    Args:
      ids: source -> hashes of its documents' ids.
      wanted: source -> sequences.
      seed: of the draw.
    """
    names = [name for name in ids if wanted[name] > 0]
    keep = {name: np.zeros(len(ids[name]), bool) for name in ids}
    for index, name in enumerate(names):
        has_nS = np.stack([np.isin(ids[name], ids[other]) for other in names], axis=1)
        owner_n = np.full(len(ids[name]), -1)
        for has_S in np.unique(has_nS, axis=0):
            alike = (has_nS == has_S).all(axis=1)
            weights = [wanted[n] if has else 0 for n, has in zip(names, has_S, strict=True)]
            owner_n[alike] = _draw_owners(derive_key(seed, "content"), ids[name][alike], weights)
        keep[name] = owner_n == index
    return keep


def _draw_owners(
    key_: int, ids_n: np.ndarray, weights: Sequence[int | fractions.Fraction]
) -> np.ndarray:
    """Returns which of the weights is drawn for each id, in proportion to them."""
    total, ends = sum(weights), []
    for i in range(1, len(weights)):
        ends.append(int(sum(weights[:i]) * (1 << 63) / total) if total else 0)
    drawn_n = draw_bits(key_, ids_n) >> np.uint64(1)
    return np.searchsorted(np.array(ends, np.uint64), drawn_n, side="right")


def _shares_ids(config: Config, name: str) -> bool:
    return config.sources[name].ids == "shared"


def measure_taken_documents(corpora: Sequence[Corpus]) -> dict[str, float]:
    """Returns the share of each source's documents that none of its languages is trained on."""
    used: dict[str, np.ndarray] = {}
    for corpus in corpora:
        if corpus.chosen_n is not None:
            used[corpus.source.name] = used.get(corpus.source.name, False) | corpus.chosen_n
    return {name: 1 - float(used_n.mean()) for name, used_n in used.items()}


def describe_documents(
    config: Config, sources: Mapping[str, AnySource], taken: Mapping[str, float]
) -> list[str]:
    """Returns lines on the documents that several sources have.

    `taken` is what `measure_taken_documents` returns.
    """
    content = config.mixture.content
    lines = [
        f"{share:.1%} of the documents of {name} are in another source too (content {content})"
        for name, share in measure_shared_documents(config, sources).items()
        if _shares_ids(config, name)
    ]
    lines += [
        f"{share:.1%} of the documents of {name} have an id that another source has too. They "
        f"count as other documents (config.sources.{name}.ids={config.sources[name].ids}). If they "
        "are translations, see content=disjoint in docs/mixture.md"
        for name, share in measure_equal_ids(config, sources).items()
        if share
    ]
    names = {config.source_of(tag) for tag in config.tags}
    if content == "disjoint" and len(names) > 1:
        lines += [
            f"content=disjoint takes {share:.1%} of the documents of {name} AWAY: their ids are "
            "those of documents that another source keeps"
            for name, share in taken.items()
        ] or [
            "content=disjoint takes NOTHING away: ids mean the same document in several sources "
            "only where config.sources.NAME.ids=shared"
        ]
    return lines


def measure_shared_documents(config: Config, sources: Mapping[str, AnySource]) -> dict[str, float]:
    """Returns the share of each source's training documents that another source has too.

    Those are of an equal id, in sources whose ids are shared. Nothing is returned of corpora so
    large that finding it would hold up a start.
    """
    return _measure_equal_documents(config, sources, of_shared=True)


def measure_equal_ids(config: Config, sources: Mapping[str, AnySource]) -> dict[str, float]:
    """Returns the share of each source's documents whose id happens to be another's too.

    At least one of the two sources has ids of its own. Nothing is returned where
    `measure_shared_documents` returns nothing.
    """
    return _measure_equal_documents(config, sources, of_shared=False)


def _measure_equal_documents(
    config: Config, sources: Mapping[str, AnySource], *, of_shared: bool
) -> dict[str, float]:
    names = sorted({config.source_of(tag) for tag in config.tags})
    finite = [name for name in names if isinstance(sources[name], Source)]
    if sum(sources[name].about["documents"]["train"] for name in finite) > _COMPARED:
        return {}
    if len(finite) < 2:
        return {}
    ids = {name: sources[name].documents("train")["id"] for name in finite}
    shares = {}
    for name in finite:
        others = [
            ids[other]
            for other in finite
            if other != name
            and (_shares_ids(config, name) and _shares_ids(config, other)) == of_shared
        ]
        in_others_n = np.isin(ids[name], np.concatenate([ids[name][:0], *others]))
        shares[name] = float(in_others_n.mean())
    return shares
