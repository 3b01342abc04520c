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


class TooManyCharacters(ValueError):
    """A tokenizer has too few pieces for the characters that it should cover."""


def apply_coverage(paragraphs: Sequence[str], coverage: float) -> tuple[list[str], dict[str, Any]]:
    """Returns paragraphs with only the most frequent characters, and options of the trainer.

    `coverage` is the share of all characters that is kept, above 0 to 1.
    """
    if coverage == TokenizerConfig.character_coverage:
        return list(paragraphs), {}  # SentencePiece's own, which it does not write into a model
    if coverage >= _LEAST:
        return list(paragraphs), {"character_coverage": coverage}
    counts = _count_characters(paragraphs)
    rare = [character for character, _ in counts[_count_covering_characters(counts, coverage) :]]
    if rare:
        cut = re.compile("[" + "".join(map(re.escape, rare)) + "]+")
        paragraphs = [part for each in paragraphs for part in cut.split(each) if part]
    return list(paragraphs), {"character_coverage": 1.0}


def train_with_lower_coverage(
    field: str, tokenizer: TokenizerConfig, paragraphs: list[str], train: Train
) -> bytes:
    """Returns a tokenizer that covers fewer characters than its config asks for.

    The characters get half of the pieces. They get more where the text yields too few others.

    Raises:
      ValueError: the config states a coverage of its own, or as `train`.
    """
    counts = _count_characters(paragraphs)
    wanted = _META + _count_covering_characters(counts, tokenizer.character_coverage)
    free = tokenizer.vocab_size - _META
    for share in (1 / 2, 3 / 4, 7 / 8, 1):
        kept = max(1, int(free * share))
        lower = dataclasses.replace(tokenizer, character_coverage=_compute_coverage(counts, kept))
        try:
            model = train(field, lower, paragraphs)
            break
        except TooManyCharacters as error:
            if share == 1:
                raise ValueError(
                    f"{field}.vocab_size={tokenizer.vocab_size} is too small for a character of "
                    f"the text. Set it to {wanted:,} or more, which suffices for all."
                ) from error
        except ValueError:
            if share == 1:
                raise
    coverage = lower.character_coverage
    if tokenizer.character_coverage != TokenizerConfig.character_coverage:
        raise ValueError(
            f"{field}.vocab_size={tokenizer.vocab_size} is too small for the characters that "
            f"character_coverage={tokenizer.character_coverage:g} asks for. Set vocab_size "
            f"to {wanted:,} or more, or character_coverage to {coverage:g}."
        )
    print(
        f"{field}: {len(counts):,} different characters do not fit into vocab_size="
        f"{tokenizer.vocab_size:,} pieces. The most frequent {kept:,} get pieces, "
        f"character_coverage={coverage:g} of the text; others are written as bytes. With "
        f"vocab_size={wanted} or more they would not be.",
        flush=True,
    )
    return model


def _compute_coverage(counts: Sequence[tuple[str, int]], kept: int) -> float:
    """Returns the share of a text that its most frequent characters are.

    It is rounded down to as many digits as are shown, so that no character more is covered.
    """
    total = sum(count for _, count in counts)
    return max(1e-6, int(sum(count for _, count in counts[:kept]) / total * 1e6) / 1e6)


def _count_characters(paragraphs: Sequence[str]) -> list[tuple[str, int]]:
    """Returns each character and how often it occurs, the most frequent first."""
    counts: Counter[str] = Counter()
    for paragraph in paragraphs:
        counts.update(paragraph)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _count_covering_characters(counts: Sequence[tuple[str, int]], coverage: float) -> int:
    """Returns how many of the most frequent characters make up a share of all."""
    total, covered = sum(count for _, count in counts), 0
    for number, (_, count) in enumerate(counts):
        # To the precision that shares are written with.
        if covered / total >= coverage - 1e-9:
            return number
        covered += count
    return len(counts)
