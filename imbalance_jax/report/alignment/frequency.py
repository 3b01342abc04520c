"""What depends on how often an id was trained on, or on how many were read: cosines and leak."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from imbalance_jax.drawing.pages import Figure
from imbalance_jax.drawing.panel import Point
from imbalance_jax.report.alignment.results import (
    compute_mean,
    get_number,
    get_numbers,
    get_value,
)
from imbalance_jax.report.line_figures import draw_line_figure

_OWN = "in its own language"
_ALL = "in all languages of its text together"  # as results were before both were counted


def draw_embedding_frequencies(results: Mapping[str, Any], pairs: Sequence[str]) -> list[Figure]:
    """Returns figures of the cosines of pieces that mean the same, by their frequency."""
    drawn = []
    for table, title in (("embed_in", "Input embedding."), ("embed_out", "Output head.")):
        tables = {pair: get_value(result, table) for pair, result in results.items()}
        counted = _OWN if any(get_value(t, "by_own_frequency") for t in tables.values()) else _ALL
        bins = "by_own_frequency" if counted == _OWN else "by_frequency"
        lines = {
            pair: _make_binned_points(get_value(tree, bins), "cosine")
            for pair, tree in tables.items()
        }
        between = {
            pair: tuple(Point(point.x, get_number(tables[pair], "between")) for point in line)
            for pair, line in lines.items()
        }
        drawn.append(
            draw_line_figure(
                f"align-frequency-{table.replace('_', '-')}",
                title,
                "The mean cosine of pieces that mean the same, by how often the rarer of the two "
                f"was trained on {counted}; pale is that of any two pieces. The outer bins hold "
                "few.",
                lines,
                pairs,
                behind=between,
                y_label="cosine",
                x_label=f"times trained on {counted}, log scale",
                x_scale="log",
            )
        )
    return [figure for figure in drawn if figure]


def draw_leak(leak: Mapping[str, Any], tags: Sequence[str]) -> list[Figure]:
    """Returns figures of the probability on other languages' ids: by position, and by id read."""
    leaks = {tag: get_value(leak[tag], "leak") for tag in tags if tag in leak}
    counted = _OWN if all(get_value(t, "by_own_frequency_read") for t in leaks.values()) else _ALL
    drawn = [
        draw_line_figure(
            "align-leak-position",
            "Leak by position.",
            "The probability on ids of other languages; it should fall once the first ids have "
            "told the language. Later positions are means over ever longer stretches.",
            {
                tag: _average_position_bins(get_numbers(tree, "by_position"))
                for tag, tree in leaks.items()
            },
            tags,
            y_label="leak, log scale",
            x_label="ids read, log scale",
            x_scale="log",
            y_scale="log",
        ),
        draw_line_figure(
            "align-leak-read",
            "Leak by the id that was read.",
            f"By how often that id was trained on {counted}: a leak that is high on the left is "
            "due to rare ids. The outer bins hold few tokens.",
            {
                tag: _make_binned_points(
                    get_value(tree, "by_own_frequency_read")
                    or get_value(tree, "by_frequency_read"),
                    "mean",
                )
                for tag, tree in leaks.items()
            },
            tags,
            y_label="leak, log scale",
            x_label=f"times trained on {counted}, log scale",
            x_scale="log",
            y_scale="log",
        ),
    ]
    return [figure for figure in drawn if figure]


def _make_binned_points(bins: Any, name: str) -> tuple[Point, ...]:
    """Returns the value of each bin at the middle of its logarithmic width."""
    edges = zip(get_numbers(bins, "low"), get_numbers(bins, "high"), strict=False)
    middles = [math.sqrt(low * high) if low > 0 < high else math.nan for low, high in edges]
    return tuple(Point(x, y) for x, y in zip(middles, get_numbers(bins, name), strict=False))


def _average_position_bins(values: Sequence[float]) -> tuple[Point, ...]:
    """Returns values over positions 1, 2, ..., those further on averaged in growing bins."""
    points, first = [], 1
    while first <= len(values):
        end = max(first + 1, math.ceil(first * 1.12))
        finite = [value for value in values[first - 1 : end - 1] if math.isfinite(value)]
        if finite:
            points.append(Point((first + min(end - 1, len(values))) / 2, compute_mean(finite)))
        first = end
    return tuple(points)
