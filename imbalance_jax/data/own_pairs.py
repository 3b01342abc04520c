"""Minimal pairs that are made from a run's own held-out text, by rules.

    word_order   two adjacent words inside a sentence change places; toy sentences only count
                 where the rule of their grammar is broken by it
    a_an         English: the article before a word is the other one. Half of the pairs have a,
                 half have an, so that knowing the more frequent one gets half of them right
    selection    toy languages: a word is replaced by one that is as frequent, and of a topic
                 that its parent in the sentence does not select

Sentences are of the test split, the same for all languages and runs of one text: nothing here
follows a run's seed.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.order.keyed_draws import derive_key, draw_bits, permute_indices
from imbalance_jax.data.text.toy_languages import (
    FIRST_WORD,
    PERIOD,
    SENTENCES,
    SyntheticLanguage,
    World,
)

if TYPE_CHECKING:
    from imbalance_jax.data.order.corpora import AnySource

_MOST = 300  # pairs of a phenomenon
_MOST_OF_DOCUMENT = 8  # of a phenomenon, or of either article
_MOST_DOCUMENTS = 20_000  # that are looked through
_MOST_IDS = 50_000  # of a document that is read
_WORDS = range(5, 41)  # of a sentence
_LETTERS = re.compile(r"[^\W\d_]+")
_ENGLISH = re.compile(r"(en|eng)([_-].*)?")
# A word whose first letter says which article it has: not u, h and y, nor "one" and "euro".
_ARTICLE = re.compile(
    r"(?<= )(?:(?P<an>an)(?= (?!eu|ew|on[ce])[aeio][a-z]{2})"
    r"|(?P<a>a)(?= [bcdfgj-npq-tvwxz][a-z]{2}))"
)


@dataclasses.dataclass(frozen=True)
class MinimalPair:
    """Two sentences that differ in one thing."""

    phenomenon: str
    good: str
    bad: str
    paradigm: str = ""  # a part of the phenomenon


def make_own_pairs(name: str, config: SourceConfig, source: "AnySource") -> list[MinimalPair]:
    """Returns pairs from the test split of a source, up to 300 of each phenomenon."""
    if config.kind == "synthetic":
        return _make_toy_pairs(SyntheticLanguage(config.synthetic), source)
    english = config.kind == "docstrings" or bool(_ENGLISH.fullmatch(name))
    rules: dict[str, Callable[[str, int], str]] = {"word_order": _exchange_words}
    if english:
        rules |= {kind: functools.partial(_exchange_article, kind) for kind in ("a", "an")}
    most = {kind: _MOST // (1 if kind == "word_order" else 2) for kind in rules}
    found: dict[str, dict[str, str]] = {kind: {} for kind in rules}  # good sentence -> bad one
    for number, document in enumerate(_read_documents(source)):
        of_document = dict.fromkeys(rules, 0)
        for place, sentence in enumerate(_split_sentences(document)):
            draw = int(draw_bits(derive_key("own pairs", number), place))
            for kind, make_bad in rules.items():
                full = len(found[kind]) == most[kind] or of_document[kind] == _MOST_OF_DOCUMENT
                bad = "" if full or sentence in found[kind] else make_bad(sentence, draw)
                if bad:
                    found[kind][sentence] = bad
                    of_document[kind] += 1
        if all(len(found[kind]) == most[kind] for kind in rules):
            break
    pairs = [MinimalPair("word_order", *sides) for sides in found["word_order"].items()]
    articles = [list(found[kind].items()) for kind in ("a", "an") if kind in rules]
    both = min(map(len, articles), default=0)
    pairs += [MinimalPair("a_an", *sides) for of_one in articles for sides in of_one[:both]]
    return pairs


def _read_documents(source: "AnySource") -> Iterator[str]:
    """Yields the text of documents of the test split, in an order of its own."""
    starts_d, ids = source.documents("test")["start"], source.tokens("test")
    ends_d = np.append(starts_d[1:], len(ids)) - 1  # without the separator
    assert isinstance(ids, np.ndarray)  # a held-out split is in any source
    count = len(starts_d)
    numbers = np.arange(min(count, _MOST_DOCUMENTS))
    for d in permute_indices(derive_key("own pairs"), numbers, count):
        yield source.tokenizer.decode(ids[starts_d[d] : min(ends_d[d], starts_d[d] + _MOST_IDS)])


def _split_sentences(document: str) -> Iterator[str]:
    for line in document.split("\n"):
        for sentence in re.split(r"(?<=[.!?]) +", line):
            if len(sentence.split(" ")) in _WORDS and "\ufffd" not in sentence:
                yield sentence


def _exchange_words(sentence: str, draw: int) -> str:
    """Returns a sentence with two adjacent words exchanged, neither first nor last; "" if none."""
    words = sentence.split(" ")
    places = [
        place
        for place in range(1, len(words) - 2)
        if all(_LETTERS.fullmatch(word) for word in words[place : place + 2])
        and words[place].casefold() != words[place + 1].casefold()
    ]
    if not places:
        return ""
    place = places[draw % len(places)]
    words[place : place + 2] = words[place + 1], words[place]
    return " ".join(words)


def _exchange_article(kind: str, sentence: str, draw: int) -> str:
    """Returns a sentence with one of its articles of a kind as the other one; "" if it has none."""
    found = [match for match in _ARTICLE.finditer(sentence) if match[kind]]
    if not found:
        return ""
    match = found[draw % len(found)]
    other = {"a": "an", "an": "a"}[kind]
    return sentence[: match.start()] + other + sentence[match.end() :]


def _make_toy_pairs(language: SyntheticLanguage, source: "AnySource") -> list[MinimalPair]:
    """Returns pairs of sentences that the grammar of a toy world makes, and that it does not."""
    world, topics = language.world, language.config.topics
    if language.config.depth == 1 or topics == 1:
        return []  # no word says anything of another
    every = language.num_documents("test") * SENTENCES
    numbers_n = permute_indices(derive_key("own pairs"), np.arange(min(every, 4 * _MOST)), every)
    good_Jn = world.sentences("test", numbers_n)
    J, n = good_Jn.shape
    column_n = np.arange(n)
    draws = {
        name: draw_bits(derive_key("own pairs", name), column_n).astype(np.int64) & 0xFFFFFF
        for name in ("node", "topic", "place")
    }
    bad = {}
    leaf_n = J // 2 + draws["node"] % (J - J // 2)
    lemma_n = good_Jn[leaf_n, column_n]
    topic_n = (lemma_n + 1 + draws["topic"] % (topics - 1)) % topics
    bad["selection"] = good_Jn.copy()
    bad["selection"][leaf_n, column_n] = lemma_n - lemma_n % topics + topic_n
    first_n = draws["place"] % (J - 1)
    nodes = language.node_J[first_n], language.node_J[first_n + 1]
    bad["word_order"] = good_Jn.copy()
    for node_n, other_n in (nodes, nodes[::-1]):
        bad["word_order"][node_n, column_n] = good_Jn[other_n, column_n]
    pairs = []
    for phenomenon, bad_Jn in bad.items():
        kept = np.flatnonzero(_find_broken_rules(world, topics, bad_Jn))[:_MOST]
        texts = [
            _write_toy_sentences(language, source, side[:, kept]) for side in (good_Jn, bad_Jn)
        ]
        pairs += [MinimalPair(phenomenon, *sides) for sides in zip(*texts, strict=True)]
    return pairs


def _find_broken_rules(world: World, topics: int, lemma_Jn: np.ndarray) -> np.ndarray:
    """Returns whether a word of each sentence has a topic that its parent does not select."""
    left, right = world.selects_SRT.reshape(2, -1)
    child_J = np.arange(1, len(lemma_Jn))
    parents_Jn = lemma_Jn[(child_J - 1) // 2]
    selected_Jn = np.where((child_J % 2 == 1)[:, None], left[parents_Jn], right[parents_Jn])
    return np.any(lemma_Jn[child_J] % topics != selected_Jn, axis=0)


def _write_toy_sentences(
    language: SyntheticLanguage, source: "AnySource", lemma_Jn: np.ndarray
) -> list[str]:
    ids = np.full((lemma_Jn.shape[1], len(lemma_Jn) + 1), PERIOD)
    ids[:, :-1] = lemma_Jn[language.node_J].T + FIRST_WORD
    return [source.tokenizer.decode(row) for row in ids]
