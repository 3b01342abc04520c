"""What a run measured while it trained: held-out loss and alignment, over its steps."""

import dataclasses
import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from imbalance_jax.runs.run_directory import Record

LOSS = "eval/loss/"  # + a language's tag: of the validation split
_HIDDEN, _SHUFFLED = "align/hidden/", "align/hidden_shuffled/"  # + pair/layer


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """One measure of a run, at each step at which it was measured."""

    measure: str  # "loss" of a language, "alignment" of a pair of languages
    steps: Sequence[int]
    values: Sequence[float]  # nats per token; or the cosine of hidden states, mean over blocks 1..N
    baselines: Sequence[float]  # of alignment, the same of shuffled pairs; nan where none is known

    @property
    def heights(self) -> list[float]:
        """What a bar is held to: the loss, or the alignment above shuffled pairs."""
        return [
            value - (0.0 if math.isnan(baseline) else baseline)
            for value, baseline in zip(self.values, self.baselines, strict=True)
        ]


def collect_learning_curves(
    records: Iterable[Record], tags: Collection[str]
) -> dict[str, LearningCurve]:
    """Returns a curve for each language and each pair of languages that a run has measured.

    Args:
      records: its metrics.
      tags: the languages that it was trained on. A model may have room for others.
    """
    points: dict[str, list[tuple[int, float, float]]] = {}
    for record in records:
        for tag in tags:
            loss = _parse_number(record.get(LOSS + tag))
            if not math.isnan(loss):
                points.setdefault(tag, []).append((record["step"], loss, math.nan))
        pairs = (
            name.removeprefix(_HIDDEN).removesuffix("/1")
            for name in record
            if name.startswith(_HIDDEN) and name.endswith("/1")
        )
        for pair in pairs:
            cosine = _average_blocks(record, f"{_HIDDEN}{pair}/")
            if not math.isnan(cosine):
                shuffled = _average_blocks(record, f"{_SHUFFLED}{pair}/")
                points.setdefault(pair, []).append((record["step"], cosine, shuffled))
    return {
        name: LearningCurve("alignment" if "-" in name else "loss", *zip(*rows, strict=True))
        for name, rows in points.items()
    }


def _average_blocks(record: dict[str, Any], prefix: str) -> float:
    """Returns the mean over blocks 1..N, of layers 0 (the embedding) to N + 1 (the final norm)."""
    by_layer = {
        int(name.removeprefix(prefix)): _parse_number(value)
        for name, value in record.items()
        if name.startswith(prefix)
    }
    last = max(by_layer, default=0)
    blocks = [value for layer, value in by_layer.items() if 0 < layer < last]
    return statistics.fmean(blocks) if blocks else math.nan


def _parse_number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
