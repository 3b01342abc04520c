"""Classification tasks made of a run's own text, which need no download and no labels.

    next_sentence   whether the second sentence follows the first, or comes from another document
    origin          which of the two largest parts of the text a sentence is from: what the ids
                    of its documents begin with, up to the first / or . (kde/, scipy.)

Examples to train on come from the text that the model was trained on, and those that it is scored
with from the test split. Both labels are equally frequent, and the same text makes the same
examples. The text is read once, and for next_sentence no further than needed.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import reading as text
from imbalance_jax.data.text.documents import Document
from imbalance_jax.runs.progress import Progress

# What is made at most, unless the user says otherwise.
MOST = {"train": 4000, "test": 1000}
_END = re.compile(r"(?<=[.!?])\s+(?=\S)")
_PART_ENDS = re.compile(r"[/.]")  # in an id
_WORDS = range(5, 41)  # of a sentence
_PER_DOCUMENT = 8  # examples, so that a few long documents do not make all of them

Rows = list[dict[str, str]]


def make_next_sentence_rows(
    name: str, source: SourceConfig, most: Mapping[str, int]
) -> dict[str, Rows]:
    """Returns pairs of neighbours and, in turn, their first with a second of another document.

    Args:
      name: of the source in config.sources, for messages.
      source: whose text it is.
      most: split -> how many of its examples there are at most.
    """
    rows: dict[str, Rows] = {split: [] for split in most}
    others: dict[str, list[str]] = {split: [] for split in most}  # of the document before
    for number, (split, document) in enumerate(_read_documents(name, source)):
        if split not in most or len(rows[split]) >= most[split]:
            continue
        # Every other pair, so that no sentence is in two of them.
        pairs = list(itertools.pairwise(_split_sentences(document.text)))[: 2 * _PER_DOCUMENT : 2]
        for (first, second), other in zip(pairs, itertools.cycle(others[split]), strict=False):
            row = {"first": first, "document": str(number)}
            rows[split].append({**row, "second": second, "label": "follows"})
            rows[split].append({**row, "second": other, "label": "other"})
        others[split] = [second for _, second in pairs] or others[split]
        if all(len(rows[each]) >= most[each] for each in most):
            break
    return {split: of_split[: most[split]] for split, of_split in rows.items()}


def make_origin_rows(name: str, source: SourceConfig, most: Mapping[str, int]) -> dict[str, Rows]:
    """Returns sentences of the two largest parts of the text, in turn.

    Args: as `make_next_sentence_rows`.

    Raises:
      ValueError: ids of documents do not say what they are a part of.
    """
    documents: Counter[str] = Counter()
    sentences_of: dict[tuple[str, str], Rows] = defaultdict(list)
    for number, (split, document) in enumerate(_read_documents(name, source)):
        part, *rest = _PART_ENDS.split(document.id, maxsplit=1)
        if not rest:
            continue
        if split == "train":  # whose labels the others have as well
            documents[part] += 1
        if split in most and len(sentences_of[split, part]) <= most[split] // 2:
            row = {"document": str(number), "label": part}
            sentences = _split_sentences(document.text)[:_PER_DOCUMENT]
            sentences_of[split, part] += [{**row, "first": sentence} for sentence in sentences]
    largest = sorted(part for part, _ in documents.most_common(2))
    if len(largest) < 2:
        raise ValueError(
            f"--tasks=origin: the ids of the documents of config.sources.{name} do not begin with "
            "two different parts, such as kde/ and man/, or scipy. and jax. Use "
            "--tasks=next_sentence."
        )
    rows: dict[str, Rows] = {}
    for split in most:
        pairs = zip(*(sentences_of[split, part] for part in largest), strict=False)
        rows[split] = list(itertools.islice(itertools.chain.from_iterable(pairs), most[split]))
    return rows


TASKS: Mapping[str, Callable[[str, SourceConfig, Mapping[str, int]], dict[str, Rows]]] = {
    "next_sentence": make_next_sentence_rows,
    "origin": make_origin_rows,
}


def _read_documents(name: str, source: SourceConfig) -> Iterator[tuple[str, Document]]:
    """Yields (split, document), and shows how much of the text has been read."""
    with Progress(f"Reading the text of {name}", 1) as progress:
        yield from text.read_documents(name, source, progress.show)


def _split_sentences(document: str) -> list[str]:
    """Returns a document's sentences of a usual length, in order."""
    paragraphs = (_END.split(line.strip()) for line in document.split("\n"))
    every = itertools.chain.from_iterable(paragraphs)
    return [sentence for sentence in every if len(sentence.split()) in _WORDS]
