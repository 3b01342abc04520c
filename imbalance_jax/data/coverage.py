"""Which characters get pieces of a tokenizer, where a text has many.

SentencePiece gives a piece to each of the most frequent characters that together are a share of
the text, 0.98 of it at least. A smaller share is had by cutting the text it is trained on at all
other characters, as SentencePiece itself cuts words there. With byte pieces these are written
as their bytes.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from imbalance_jax.config import SPECIALS, TokenizerConfig

Train: TypeAlias = Callable[[str, TokenizerConfig, list[str]], bytes]

_LEAST = 0.98  # that SentencePiece takes
_META = len(SPECIALS) + 256  # pieces that are neither characters nor made of them


def apply_coverage(paragraphs: Sequence[str], coverage: float) -> tuple[list[str], dict[str, Any]]:
    """Returns paragraphs with only the most frequent characters, and options of the trainer.

    Args:
      paragraphs: that a tokenizer is trained on.
      coverage: the share of their characters that is kept, above 0 to 1.
    """
    if coverage == TokenizerConfig.character_coverage:
        return list(paragraphs), {}  # SentencePiece's own, which it does not write into a model
    if coverage >= _LEAST:
        return list(paragraphs), {"character_coverage": coverage}
    counts = _count_characters(paragraphs)
    rare = [character for character, _ in counts[_covering(counts, coverage) :]]
    if rare:
        cut = re.compile("[" + "".join(map(re.escape, rare)) + "]+")
        paragraphs = [part for each in paragraphs for part in cut.split(each) if part]
    return list(paragraphs), {"character_coverage": 1.0}


def train_with_less(
    field: str, tokenizer: TokenizerConfig, paragraphs: list[str], train: Train
) -> bytes:
    """Returns a tokenizer that covers fewer characters than its config asks for.

    The characters get half of the pieces. They get more where the text yields too few others.

    Args:
      field: of the tokenizer, for messages.
      tokenizer: one with too few pieces for its characters.
      paragraphs: that it is trained on.
      train: returns the model of a field, a config and paragraphs.

    Raises:
      ValueError: the config states a coverage of its own, or as `train`.
    """
    counts = _count_characters(paragraphs)
    total = sum(count for _, count in counts)
    wanted = _META + _covering(counts, tokenizer.character_coverage)
    free = tokenizer.vocab_size - _META
    for share in (1 / 2, 3 / 4, 7 / 8, 1):
        kept = max(1, int(free * share))
        # Rounded down, so that no character more is covered.
        coverage = int(sum(count for _, count in counts[:kept]) / total * 1e6) / 1e6
        if tokenizer.character_coverage != TokenizerConfig.character_coverage or not coverage:
            raise ValueError(
                f"{field}.vocab_size={tokenizer.vocab_size} is too small for the characters that "
                f"character_coverage={tokenizer.character_coverage:g} asks for. Set vocab_size "
                f"above {wanted:,}, or character_coverage to {coverage:g} or less."
            )
        lower = dataclasses.replace(tokenizer, character_coverage=coverage)
        try:
            model = train(field, lower, paragraphs)
        except ValueError:
            if share < 1:
                continue
            raise
        break
    print(
        f"{field}: {len(counts):,} different characters do not fit into vocab_size="
        f"{tokenizer.vocab_size:,} pieces. The most frequent {kept:,} get pieces, "
        f"character_coverage={coverage:g} of the text; others are written as bytes. With "
        f"vocab_size above {wanted:,} they would not be.",
        flush=True,
    )
    return model


def _count_characters(paragraphs: Sequence[str]) -> list[tuple[str, int]]:
    """Returns each character and how often it occurs, the most frequent first."""
    counts: Counter[str] = Counter()
    for paragraph in paragraphs:
        counts.update(paragraph)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _covering(counts: Sequence[tuple[str, int]], coverage: float) -> int:
    """Returns how many of the most frequent characters make up a share of all."""
    total, covered = sum(count for _, count in counts), 0
    for number, (_, count) in enumerate(counts):
        # To the precision that shares are written with.
        if covered / total >= coverage - 1e-9:
            return number
        covered += count
    return len(counts)
