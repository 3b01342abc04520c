"""What a run directory holds, read once for its page."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.analysis import transfer_results
from imbalance_jax.drawing.numbers import (
    format_significant,
    normalize_to_fractions,
    parse_number,
)
from imbalance_jax.runs import divergence, storage
from imbalance_jax.runs.run_directory import Record, RunDirectory

# Metrics of a language that tables show: their heading, and how a value is written.
RESULT_COLUMNS: Mapping[str, tuple[str, str | Callable[[float], str]]] = {
    "loss": ("loss", ".3f"),
    "ppl": ("perplexity", format_significant),
    "bits_per_byte": ("bits per byte", ".3f"),
    "language_nats": ("language nats", ".4f"),
    "loss_own": ("own loss", ".3f"),
    "leak": ("leak", lambda part: f"{format_significant(100 * part, 2)} %"),
    "top1": ("top-1", ".1%"),
    "minimal_pairs": ("minimal pairs", ".1%"),
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric over the steps of a run."""

    steps: Sequence[int]
    values: Sequence[float]

    def __bool__(self) -> bool:
        return any(math.isfinite(value) for value in self.values)

    @property
    def last(self) -> float:
        """The newest value that is finite; NaN where there is none."""
        return next((v for v in reversed(self.values) if math.isfinite(v)), math.nan)


@dataclasses.dataclass(frozen=True)
class RunContents:
    """What a run directory holds, with empty values for what it does not hold yet."""

    name: str
    config: config_lib.Config
    done: bool
    failed: Mapping[str, Any]  # FAILED.json
    records: Sequence[Record]  # metrics.jsonl
    mixture: Mapping[str, Mapping[str, float]]  # language -> columns of mixture.csv, added up
    windows: Sequence[Mapping[str, str]]  # rows of mixture.csv
    provenance: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    word2vec: Mapping[str, Any]  # word2vec.json: method -> what it found
    transfer: Mapping[str, Any]  # transfer.json: see transfer_results.py

    @property
    def step(self) -> int:
        """The last step that the directory knows of."""
        last = self.records[-1]["step"] if self.records else 0
        return max(last, self.failed.get("step", 0))

    @property
    def lost_after(self) -> int | None:
        """The last step of metrics.jsonl, where the results are of a later one."""
        last = self.records[-1]["step"] if self.records else 0
        return last if self.done and last < self.evaluation.get("step", 0) else None

    def curve(self, name: str) -> Curve:
        found = [(r["step"], parse_number(r[name])) for r in self.records if name in r]
        return Curve([step for step, _ in found], [value for _, value in found])

    def curves(self, name: str) -> dict[str, Curve]:
        """Returns a metric of every language that has it."""
        found = {tag: self.curve(f"{name}/{tag}") for tag in self.config.tags}
        return {tag: curve for tag, curve in found.items() if curve.steps}

    def typical(self, name: str) -> float | None:
        """Returns the median of a metric over the run, or None."""
        values = [value for value in self.curve(name).values if math.isfinite(value)]
        return statistics.median(values) if values else None

    def fractions(self) -> dict[str, float]:
        """Returns each language's part of all sequences: realised, or else as requested."""
        counts = {tag: row["realised_sequences"] for tag, row in self.mixture.items()}
        if not counts:
            stages = config_lib.list_stages(self.config)
            ends = [*(first for first, _ in stages[1:]), self.config.steps]
            counts = dict.fromkeys(self.config.tags, 0.0)
            for (first, ratio), end in zip(stages, ends, strict=True):
                for tag, count in ratio.items():
                    counts[tag] += (end - first) * count / sum(ratio.values())
        return normalize_to_fractions(counts)

    def tokens(self) -> dict[str, float]:
        """Returns the tokens that each language was trained on so far."""
        found = {tag: row["realised_tokens"] for tag, row in self.mixture.items()}
        seen = self.curves("train/tokens")
        return found or {tag: curve.values[-1] for tag, curve in seen.items()}

    def total_tokens(self) -> float | None:
        tokens = self.tokens()
        return math.fsum(tokens.values()) if tokens else None

    def tokens_per_step(self) -> float:
        seen = self.curves("train/tokens").values()
        last = max((curve.steps[-1] for curve in seen), default=0)
        return math.fsum(curve.values[-1] for curve in seen) / last if last else 0.0

    def source(self, tag: str) -> str:
        return self.config.source_of(tag)

    def results(self) -> tuple[str, int, dict[str, dict[str, float]]]:
        """Returns the newest results: what they were measured on, when, and per language."""
        if self.evaluation:
            languages = self.evaluation["languages"]
            found = {
                tag: {name: parse_number(value) for name, value in languages[tag].items()}
                for tag in self.config.tags
                if tag in languages
            }
            for tag, pairs in self.evaluation.get("minimal_pairs", {}).items():
                if tag in found and "accuracy" in pairs:
                    found[tag]["minimal_pairs"] = parse_number(pairs["accuracy"])
            return self.evaluation["split"], self.evaluation["step"], found
        found, step = {}, 0
        for name in RESULT_COLUMNS:
            for tag, curve in self.curves(f"eval/{name}").items():
                found.setdefault(tag, {})[name] = curve.values[-1]
                step = curve.steps[-1]
        return "validation", step, found


def read_run_contents(run: RunDirectory) -> RunContents:
    config = run.config()
    mixture: dict[str, dict[str, float]] = {}
    windows = run.read_csv("mixture.csv")
    diverged = divergence.describe_divergence(run)
    for row in windows:
        columns = mixture.setdefault(row["language"], {})
        for name, value in row.items():
            if name.endswith(("_sequences", "_tokens", "_repeats")):
                columns[name] = columns.get(name, 0.0) + float(value or math.nan)
            elif name.startswith("pool_"):
                columns[name] = float(value or math.nan)
    return RunContents(
        name=epath.Path(storage.make_absolute_path(run.path)).name,
        config=config,
        done=run.done,
        failed=run.read_json("FAILED.json") or ({"message": diverged} if diverged else {}),
        records=list(run.metrics()),
        mixture={tag: mixture[tag] for tag in config.tags if tag in mixture},
        windows=windows,
        provenance=run.read_json("provenance.json") or {},
        evaluation=run.read_json("evaluation.json") or {},
        word2vec=run.read_json("word2vec.json") or {},
        transfer=transfer_results.read_transfer_results(run),
    )
