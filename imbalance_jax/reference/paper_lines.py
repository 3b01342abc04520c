"""Lines of the reference study's figures: results in ascending x, and curves from the laws."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.drawing.panel import Line, Point
from imbalance_jax.reference.reported import (
    PaperResult,
    get_base_language,
)

_CURVE_POINTS = 60


@dataclasses.dataclass(frozen=True)
class ResultPoint(Point):
    """A point with the result that it shows."""

    result: PaperResult | None = None


def make_result_point(x: float, result: PaperResult, unit: float = 1.0) -> ResultPoint:
    """Returns the point of a result, counted in so large a unit, with its interval and seeds."""
    return ResultPoint(
        x,
        result.value / unit,
        result.low / unit,
        result.high / unit,
        runs=tuple(value / unit for value in result.values),
        result=result,
    )


# Lines of results.


def make_lines(
    rows: Sequence[PaperResult],
    metric: str,
    x: Callable[[PaperResult], float],
    name: Callable[[PaperResult], str],
    styles: Sequence[str] = (),
    *,
    in_units: bool = False,
) -> tuple[Line, ...]:
    """Returns a line for each name among the rows of a metric, its points in ascending x.

    Args:
      metric: what the metrics' names begin with, such as ppl.
      styles: all names of the figure; a line's style is its place among them.
      in_units: whether tokens that a loss is worth are counted in units of 1x.
    """
    series: dict[str, list[Point]] = {}
    for row in rows:
        if row.metric == metric or row.metric.startswith(f"{metric}_"):
            unit = row.unit_tokens if in_units else 1.0
            series.setdefault(name(row), []).append(make_result_point(x(row), row, unit))
    names = list(styles) or list(series)
    return tuple(
        Line(key, tuple(sorted(points, key=lambda p: p.x)), style=names.index(key))
        for key, points in series.items()
    )


def list_distinct(values: Sequence[str]) -> list[str]:
    """Returns the distinct values in the order in which they are first seen."""
    return list(dict.fromkeys(values))


def _estimate_model_size(model: str) -> float:
    """Returns about how many parameters the blocks of a model have: N D^2.

    Of a scale of the config, or a size written as NxD; infinite for others, which come last.
    """
    if model in config_lib.SCALES:
        scale = config_lib.SCALES[model]
        return scale["model.N"] * scale["model.D"] ** 2
    depth, _, width = model.partition("x")
    return float(depth) * float(width) ** 2 if depth.isdigit() and width.isdigit() else math.inf


def list_models(rows: Sequence[PaperResult]) -> list[str]:
    """Returns the models, the smallest first."""
    return sorted(
        list_distinct([row.setting.get("model", "") for row in rows]), key=_estimate_model_size
    )


# Laws, and what a monolingual model would reach.


def collect_laws(rows: Sequence[PaperResult]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Returns a, b and c of 1/PPL = c - a x^-b for each (language, model) that has them."""
    laws: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.metric in ("law_a", "law_b", "law_c"):
            key = (row.setting["languages"], row.setting["model"])
            laws.setdefault(key, {})[row.metric[-1]] = row.value
    return {key: (law["a"], law["b"], law["c"]) for key, law in laws.items() if len(law) == 3}


def compute_law_perplexity(law: tuple[float, float, float], x: float) -> float:
    """Returns 1 / (c - a x^-b); NaN where the law has none."""
    a, b, c = law
    inverse = c - a * x**-b if x > 0 else math.nan
    return 1 / inverse if inverse > 0 else math.nan


def space_values_evenly(low: float, high: float) -> list[float]:
    return [low + (high - low) * k / (_CURVE_POINTS - 1) for k in range(_CURVE_POINTS)]


def make_mlpe_lines(
    rows: Sequence[PaperResult], every: Sequence[PaperResult], key: str
) -> tuple[Line, ...]:
    """Returns the MLPE of each language over the share of the one that the key names.

    The curve of the law where there is one, with what was reported for single ratios.
    """
    lines = []
    languages = list_distinct([row.language for row in rows if row.metric.startswith("ppl_")])
    laws = collect_laws(every)
    for index, language in enumerate(languages):
        measured = [row for row in rows if row.metric == f"ppl_{language}"]
        points: list[Point] = [
            make_result_point(float(row.setting[key]), row)
            for row in rows
            if row.metric == f"mlpe_{language}"
        ]
        model = measured[0].setting.get("model", "")
        law = laws.get((get_base_language(language), model))
        curve = []
        if law:
            shares = [float(row.setting[key]) for row in measured]
            for share in space_values_evenly(min(shares), max(shares)):
                own_share = share if key == f"p_{language}" else 1 - share
                y = compute_law_perplexity(law, measured[0].tokens * own_share)
                curve.append(ResultPoint(share, y))
        # A law that is not the one behind the reported values must not bend their curve.
        if all(_passes_near_point(curve, point) for point in points):
            points += curve
        if points:
            points.sort(key=lambda point: point.x)
            lines.append(Line(f"MLPE {language}", tuple(points), "curve", index))
    return tuple(lines)


def _passes_near_point(curve: Sequence[Point], point: Point) -> bool:
    """Returns whether a curve passes a point within a hundredth, between its vertices."""
    if not curve:
        return False
    xs, ys = [vertex.x for vertex in curve], [vertex.y for vertex in curve]
    return math.isclose(float(np.interp(point.x, xs, ys)), point.y, rel_tol=0.01)


def find_share_key(rows: Sequence[PaperResult]) -> str:
    """Returns the setting that says how much of a language a mixture has, such as p_EN2."""
    return next((key for row in rows for key in row.setting if key.startswith("p_")), "")
