"""The part of a run's page on minimal pairs: the accuracy of each language and phenomenon."""

from collections.abc import Mapping
from typing import Any

from imbalance_jax.drawing.numbers import ABSENT, format_count, format_percent, parse_number
from imbalance_jax.drawing.pages import Table, get_pieces, render_number
from imbalance_jax.report.record import RunContents


def tabulate_minimal_pairs(run: RunContents) -> dict[str, Any] | None:
    """Returns a row for all pairs and for each phenomenon, and what was left out, or None."""
    measured = run.evaluation.get("minimal_pairs") or {}
    measured = {tag: measured[tag] for tag in run.config.tags if tag in measured}
    if not measured:
        return None
    names = dict.fromkeys(name for found in measured.values() for name in found["phenomena"])
    groups = {"all": measured} | {
        name: {tag: found["phenomena"].get(name, {}) for tag, found in measured.items()}
        for name in names
    }
    header = ["phenomenon", *(part for tag in measured for part in (f"{tag}, pairs", tag))]
    rows = [
        [name, *(cell for found in by_tag.values() for cell in _render_accuracy(found))]
        for name, by_tag in groups.items()
    ]
    files = ", ".join(dict.fromkeys(found["file"] for found in measured.values()))
    left = {tag: found["left_out"] for tag, found in measured.items() if found["left_out"]}
    counts = " and ".join(f"{count:,} pairs of {tag}" for tag, count in left.items())
    L = run.config.model.L
    return {
        "table": Table(header, rows, f"Minimal pairs of {files}, accuracy and its interval."),
        "left_out": f"Left out: {counts}, longer than {L:,} tokens." if left else "",
    }


def _render_accuracy(found: Mapping[str, Any]) -> list[Any]:
    if "accuracy" not in found:
        return [format_count(found.get("pairs", 0)), ABSENT]
    low, high = (format_percent(round(parse_number(end), 3)) for end in found["interval"])
    accuracy = render_number(parse_number(found["accuracy"]), ".1%")
    return [format_count(found["pairs"]), accuracy + get_pieces().small(f"{low} to {high}")]
