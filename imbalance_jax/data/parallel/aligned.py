"""The sequences of two languages of a run that say the same."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from imbalance_jax.config import Config, list_pair_sets
from imbalance_jax.data import word_order
from imbalance_jax.data.order.corpora import AnySource
from imbalance_jax.data.parallel.sets import ParallelSet
from imbalance_jax.data.text.toy_languages import SyntheticLanguage


@dataclasses.dataclass(frozen=True)
class AlignedSequences:
    """P sequences in each of two languages; those of one row say the same."""

    ids: tuple[np.ndarray, np.ndarray]  # each (P, L), base ids, 0 after the end of a row
    lengths: tuple[np.ndarray, np.ndarray]  # each (P,), in ids
    set: str = ""  # the name in config.parallel; "" for two languages of one source
    # Whether the ids are the same too, position by position: two languages of one source
    # whose words are in one order.
    positions: bool = False
    # The ids of a row that are read before the place where the language changes, as
    # evaluation/after_text.py has it; 0 is half of them.
    prefix: int = 0


def list_aligned_pairs(config: Config) -> list[tuple[str, str]]:
    """Returns the pairs of languages that have aligned text, in the order of config.tags."""
    return [
        (a, b)
        for a, b in itertools.combinations(config.tags, 2)
        if config.source_of(a) == config.source_of(b) or _find_set_name(config, a, b) is not None
    ]


def find_aligned_sequences(
    config: Config,
    sources: Mapping[str, AnySource],
    sets: Mapping[str, ParallelSet],
    a: str,
    b: str,
    most: int,
    split: str = "test",
) -> AlignedSequences | None:
    """Returns what says the same in languages a and b, in this order; None if nothing does.

    For languages of one source these are windows of a held-out split, spread over the text,
    each in its language's order of words. Those of synthetic text begin where documents begin,
    so that a window shares no more of its structure with the one that says the same than with
    any other. For two sources they are the first rows of their set, as in the reference study;
    if there are several such sets, of the first by name. Rows are in the order of words of their
    texts, so there are none for a language that has another. At most `most` rows are returned,
    all where it is 0.
    """
    source_a, source_b = config.source_of(a), config.source_of(b)
    if source_a == source_b:
        first, second = config.languages[a], config.languages[b]
        ids_a, ids_b = (
            word_order.load_held_out_tokens(sources[source_a], split, language)
            for language in (first, second)
        )
        if not len(ids_a):
            return None
        L, stride, prefix = config.model.L, config.model.L, 0
        if config.sources[source_a].kind == "synthetic":
            toy = SyntheticLanguage(config.sources[source_a].synthetic)
            stride = -(-L // toy.document_length) * toy.document_length
            prefix = _choose_prefix(toy, L)
        return dataclasses.replace(
            _cut_aligned_windows(ids_a, ids_b, L, most, stride),
            prefix=prefix,
            positions=(first.words, first.words_block) == (second.words, second.words_block)
            or first.words == second.words == "as_written",
        )
    name = _find_set_name(config, a, b)
    if name is None:
        return None
    parallel, rows = sets[name], slice(most or None)
    return AlignedSequences(
        (parallel.ids[source_a][rows], parallel.ids[source_b][rows]),
        (parallel.lengths[source_a][rows], parallel.lengths[source_b][rows]),
        set=name,
    )


def _find_set_name(config: Config, a: str, b: str) -> str | None:
    """Returns the name of the set of two languages' sources, in whichever order it has them."""
    if {config.languages[tag].words for tag in (a, b)} != {"as_written"}:
        return None
    wanted = {config.source_of(tag) for tag in (a, b)}
    pairs = list_pair_sets(config.parallel)
    for name in sorted(pairs):
        if set(pairs[name].sources) == wanted:
            return name
    return None


def _choose_prefix(toy: SyntheticLanguage, L: int) -> int:
    """Returns the place near the middle of L ids of a document that parts a sentence in two.

    Sentences are independent, so what ends with one says nothing of what comes after it. Words of
    one depend on each other along the edges of its tree, and the first id behind the place is read
    and not scored. So that place is chosen which has the most edges from a word before it to a
    word behind that first id: in the middle of a sentence that begins with its head there is none,
    as the first id is the head of all that follow.
    """
    half, sentence = L // 2, toy.sentence_length
    # A separator counts as a part of the sentence before it.
    inside = half % toy.document_length
    begin = half - inside + min(inside, toy.document_length - 2) // sentence * sentence
    place = begin + _find_parting_word(toy)
    # Of a sentence that is longer than half of the window, every place but its ends will do.
    return place if sentence <= half and L - place >= 4 else half


def _find_parting_word(toy: SyntheticLanguage) -> int:
    """Returns the word of a sentence with the most edges over it; of equals, the middle one."""
    words = toy.world.words
    place_J = np.argsort(toy.node_J)
    child = np.arange(1, words)
    ends = np.sort([place_J[child], place_J[(child - 1) // 2]], axis=0)
    cuts = np.arange(1, max(2, words))
    edges = ((ends[0] < cuts[:, None]) & (cuts[:, None] < ends[1])).sum(axis=1)
    from_middle = np.abs(cuts - toy.sentence_length // 2)
    return int(cuts[np.lexsort((from_middle, -edges))[0]])


def _cut_aligned_windows(
    a: np.ndarray, b: np.ndarray, L: int, most: int, stride: int
) -> AlignedSequences:
    """Returns windows of L ids of two texts of one length; one if that is shorter than L.

    They begin at multiples of the stride, which is L or more.
    """
    count = max(1, len(a) // stride)
    rows = min(most or count, count)
    starts_P = np.arange(rows) * count // rows * stride
    length = min(L, len(a))
    places_PM = starts_P[:, None] + np.arange(length)  # M ids of a window are text
    padding = ((0, 0), (0, L - length))
    length_P = np.full(rows, length, np.int32)
    return AlignedSequences(
        (np.pad(a[places_PM], padding), np.pad(b[places_PM], padding)), (length_P, length_P)
    )
