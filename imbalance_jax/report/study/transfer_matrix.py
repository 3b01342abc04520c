"""The matrix of transfer coefficients, as a figure and a table."""

import math

from imbalance_jax.analysis.effects import Effects
from imbalance_jax.analysis.transfer_matrix import TransferMatrix, measure_transfer_matrix
from imbalance_jax.drawing.heat_maps import draw_heat_maps
from imbalance_jax.drawing.numbers import ABSENT
from imbalance_jax.drawing.pages import Table
from imbalance_jax.drawing.panel import HeatMap
from imbalance_jax.drawing.svg import FigureFiles
from imbalance_jax.report.study.intervals import format_signed, render_with_interval


def draw_transfer_matrix(effects: Effects) -> FigureFiles | None:
    """Returns the heat map of a study; None where too few languages are in pairs."""
    matrix = measure_transfer_matrix(effects)
    if matrix is None:
        return None
    known = {key: each.value for key, each in matrix.coefficients.items()}
    starred = frozenset(key for key, each in matrix.coefficients.items() if each.extrapolated)
    tags = matrix.languages
    heat_map = HeatMap("", tags, tags, known, across="helper", down="helped", starred=starred)
    rows = [
        {
            "target": each.target,
            "helper": each.helper,
            "cell": each.cell,
            "coefficient": each.value,
            "low": each.interval[0],
            "high": each.interval[1],
            "extrapolated": each.extrapolated,
        }
        for each in matrix.coefficients.values()
    ]
    reading = (
        "What a token of the language below was worth to that on the left, in tokens of its own, "
        f"against {matrix.kind} baselines: red helps, blue harms, * is extrapolated. "
        "Languages that help each other stand together, by average linkage of the mean of both "
        "ways."
    )
    return FigureFiles(
        "transfer_matrix",
        "Transfer between the languages.",
        reading,
        draw_heat_maps([heat_map], cell=44),
        rows,
    )


def make_transfer_table(effects: Effects) -> Table | None:
    """Returns the coefficients with their intervals."""
    matrix = measure_transfer_matrix(effects)
    if matrix is None:
        return None
    rows = [
        [target, *(_render_coefficient(matrix, target, helper) for helper in matrix.languages)]
        for target in matrix.languages
    ]
    groups = "; ".join(
        f"{' '.join(members)} at {format_signed(mean)}" for members, mean in matrix.merges
    )
    caption = (
        f"What a token of each column was worth to each row, against {matrix.kind} baselines; "
        "95 % intervals of resampled runs. * is extrapolated."
        + (f" Grouped by the mean of both ways: {groups}." if groups else "")
    )
    return Table(["helped (row), by (column)", *matrix.languages], rows, caption)


def _render_coefficient(matrix: TransferMatrix, target: str, helper: str) -> object:
    found = matrix.coefficients.get((target, helper))
    if found is None:
        return ABSENT
    if math.isnan(found.value):
        return f"outside of the law ({found.limit})"
    star = "*" if found.extrapolated else ""
    return render_with_interval(
        found.value, found.interval, lambda value: format_signed(value) + star
    )
