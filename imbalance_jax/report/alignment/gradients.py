"""Whether an update for one language helps another: cosines of their gradients."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from imbalance_jax.drawing.heat_maps import draw_heat_maps
from imbalance_jax.drawing.numbers import format_number
from imbalance_jax.drawing.pages import Figure
from imbalance_jax.drawing.panel import HeatMap, Point, make_points
from imbalance_jax.drawing.svg import render_svg
from imbalance_jax.report.alignment.results import get_number, get_numbers
from imbalance_jax.report.line_figures import draw_line_figure

KEY_BIAS = "attn K.bias"
_WIDEST = 9  # layers of which two heat maps fit side by side
_CELLS = 322  # pixels for all cells of a heat map's row, if there are few


def describe_gradients(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the figures of each pair whose gradients were measured."""
    measured = {pair: result for pair, result in results.items() if result.get("gradients")}
    blocks = []
    for index, (pair, result) in enumerate(measured.items()):
        gradients = result["gradients"]
        languages = [str(tag) for tag in result.get("languages") or pair.split("-")]
        maps = _draw_heat_maps(pair, gradients, index)
        sizes = _draw_batch_sizes(pair, languages, gradients.get("batches") or {}, index)
        if maps or sizes:
            layers = max(map(len, gradients.get("per_pair") or []), default=0)
            wide = layers > _WIDEST
            blocks.append({"pair": pair, "maps": maps, "sizes": sizes, "wide": wide})
    return blocks


def _draw_heat_maps(pair: str, gradients: Mapping[str, Any], index: int) -> list[Figure]:
    """Returns the maps of the cosines on one sequence, and of those corrected for noise."""
    raw = "Red means that an update for one language helps the other."
    mean, with_bias = (get_number(gradients, name) for name in ("mean", "mean_with_key_bias"))
    adam, error = get_number(gradients, "adam", "mean"), get_number(gradients, "mean_error")
    if math.isfinite(mean):
        raw += f" The mean is {format_number(mean, '+.3f')}{format_error(error)}"
        if math.isfinite(with_bias):
            raw += f", and {format_number(with_bias, '+.3f')} with {KEY_BIAS}"
        if math.isfinite(adam):
            raw += f"; {format_number(adam, '+.3f')} as Adam scales them"
        raw += "."
    corrected = (
        "The cosine of the expected gradients, which noise does not shrink; values beyond 1, and "
        "dashes, say that there is too much noise to tell."
    )
    together = get_number(gradients, "corrected_mean")
    if math.isfinite(together):
        corrected += f" That of all together is {format_number(together, '+.3f')}"
        halves = [
            format_number(half, "+.3f") if math.isfinite(half) else "unknown"
            for half in get_numbers(gradients, "corrected_halves")
        ]
        corrected += f"; of either half of the sequences {' and '.join(halves)}" if halves else ""
        corrected += "."
    rows = [str(row) for row in gradients.get("rows") or []]
    maps = (
        _draw_heat_map(
            f"align-{values}-{index}".replace("_", "-"),
            f"{pair}: {title}",
            reading,
            rows,
            gradients.get(values),
        )
        for title, reading, values in (
            ("cosine of the gradients on one sequence.", raw, "per_pair"),
            ("corrected for noise.", corrected, "corrected"),
        )
    )
    return [drawn for drawn in maps if drawn]


def format_error(error: float) -> str:
    """Returns a standard error as it stands behind its value; nothing where it is not known."""
    return f" ± {error:.3f}" if math.isfinite(error) else ""


def _draw_heat_map(
    name: str, title: str, reading: str, rows: Sequence[str], values: Any
) -> Figure | None:

    values_RN = [get_numbers({"row": row}, "row") for row in values or []]
    if not rows or len(values_RN) != len(rows) or not any(values_RN):
        return None
    description = f"{title} {len(rows)} parameters by layer. {reading}"
    N = max(map(len, values_RN))
    cells = {
        (row, layer): value
        for row, values in zip(rows, values_RN, strict=True)
        for layer, value in enumerate(values, 1)
    }
    heat_map = HeatMap("", tuple(rows), tuple(range(1, N + 1)), cells, framed=KEY_BIAS)
    drawing = draw_heat_maps([heat_map], cell=min(56, max(40, _CELLS // N)))
    # The name makes ids of the page, so it differs from map to map.
    return Figure(render_svg(drawing, name, description, fixed=True), title, reading)


def _draw_batch_sizes(
    pair: str, languages: Sequence[str], batches: Mapping[str, Any], index: int
) -> Figure | None:
    """Returns the figure of the cosine of batches of several sizes."""
    sizes = [float(size) for size in batches]
    names = {
        "same_content": "same text",
        "other_content": "other text",
        "within_a": f"within {languages[0]}",
        "within_b": f"within {languages[1]}",
    }
    half_sizes = {"halves_a": names["within_a"], "halves_b": names["within_b"]}

    def make_lines(measures: Mapping[str, str]) -> dict[str, tuple[Point, ...]]:
        return {
            name: make_points(sizes, [get_number(batch, measure) for batch in batches.values()])
            for measure, name in measures.items()
        }

    return draw_line_figure(
        f"align-batches-{index}",
        f"{pair}: cosine by the size of the batch.",
        "Larger batches have less noise. Compare other text with the lines within one language, "
        "the most that noise allows; pale lines behind are those of half the size.",
        make_lines(names),
        list(names.values()),
        behind=make_lines(half_sizes),
        y_label="cosine",
        level=("", 0.0),
        x_label="sequences in a batch, log scale",
        x_scale="log",
        ticks=tuple(sizes),
    )
