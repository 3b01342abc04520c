"""Classification tasks made of a run's own text, which need no download and no labels.

    next_sentence   whether the second sentence follows the first, or comes from another document
    origin          which of the two largest parts of the text a sentence is from: what the ids
                    of its documents begin with, up to the first /

Examples to train on come from the text that the model was trained on, and those that it is scored
with from the test split. Both labels are equally frequent, and the same text makes the same
examples.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from imbalance_jax.config import SourceConfig
from imbalance_jax.data import text

# What is made at most, unless the user says otherwise.
MOST = {"train": 4000, "test": 1000}
_END = re.compile(r"(?<=[.!?])\s+(?=\S)")
_WORDS = range(5, 41)  # of a sentence
_PER_DOCUMENT = 8  # examples, so that a few long documents do not make all of them

Rows = Iterator[dict[str, str]]


def next_sentence(name: str, source: SourceConfig, split: str) -> Rows:
    """Yields pairs of neighbours and, in turn, their first with a second of another document.

    Args:
      name: of the source in config.sources, for messages.
      source: whose text it is.
      split: of the text.
    """
    others: list[str] = []  # second sentences of the document before
    for _, sentences in _documents(name, source, split):
        # Every other pair, so that no sentence is in two of them.
        pairs = list(itertools.pairwise(sentences))[: 2 * _PER_DOCUMENT : 2]
        for (first, second), other in zip(pairs, itertools.cycle(others), strict=False):
            yield {"first": first, "second": second, "label": "follows"}
            yield {"first": first, "second": other, "label": "other"}
        others = [second for _, second in pairs] or others


def origin(name: str, source: SourceConfig, split: str) -> Rows:
    """Yields sentences of the two largest parts of the text, in turn.

    Args: as `next_sentence`.

    Raises:
      ValueError: ids of documents do not say what they are a part of.
    """
    # By the text to train on, whatever the split, so that both have the same labels.
    documents = Counter(part for part, _ in _documents(name, source, "train"))
    largest = sorted(part for part, _ in documents.most_common(2))
    if len(largest) < 2:
        raise ValueError(
            f"--tasks=origin: the ids of the documents of config.sources.{name} do not begin with "
            "two different parts, such as kde/ and man/. Use --tasks=next_sentence."
        )

    def of(part: str) -> Rows:
        for part_, sentences in _documents(name, source, split):
            if part_ == part:
                for sentence in sentences[:_PER_DOCUMENT]:
                    yield {"first": sentence, "label": part}

    for pair in zip(of(largest[0]), of(largest[1]), strict=False):
        yield from pair


TASKS: Mapping[str, Callable[[str, SourceConfig, str], Rows]] = {
    "next_sentence": next_sentence,
    "origin": origin,
}


def _documents(name: str, source: SourceConfig, split: str) -> Iterator[tuple[str, list[str]]]:
    """Yields what a document is a part of, and its sentences of a usual length in order."""
    for split_, document in text.documents(name, source):
        if split_ == split:
            paragraphs = (_END.split(line.strip()) for line in document.text.split("\n"))
            sentences = [
                sentence
                for sentence in itertools.chain.from_iterable(paragraphs)
                if len(sentence.split()) in _WORDS
            ]
            yield document.id.partition("/")[0], sentences
