"""Figures of lines, with what a screen reader says of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from imbalance_jax.drawing.colours import DASHED, SOLID
from imbalance_jax.drawing.draw import NARROW, draw_panels
from imbalance_jax.drawing.numbers import format_significant
from imbalance_jax.drawing.pages import Figure
from imbalance_jax.drawing.panel import Line, Panel, Point, make_points, select_drawable
from imbalance_jax.drawing.svg import render_svg
from imbalance_jax.report.record import Curve

Points = Mapping[str, tuple[Point, ...]]


def draw_curve_figure(
    name: str,
    title: str,
    reading: str,
    curves: Mapping[str, Curve],
    tags: Sequence[str],
    *,
    y_label: str,
    behind: Mapping[str, Curve] | None = None,
    percent: bool = False,
    width: int = NARROW,
    height: int = 290,
    **axes: Any,
) -> Figure | None:
    """Draws a curve over steps for each language, pair or run; None where no value is finite.

    Args:
      name: an identifier that no other figure of the page has.
      tags: all languages of the run; a curve's style follows from its place here.
      behind: curves drawn thin behind, which are described where there are no others.
      percent: values are fractions, and the axis counts them in percent.
      axes: what else `Panel` says of its axes.
    """
    scale, unit = (100, " %") if percent else (1, "")

    def make_lines(drawn: Mapping[str, Curve], dash: Any = None) -> tuple[Line, ...]:
        points = {
            tag: make_points(curve.steps, [scale * value for value in curve.values])
            for tag, curve in drawn.items()
            if curve
        }
        return _make_lines(points, tags, dash)

    described = {tag: curve for tag, curve in curves.items() if curve}
    described = described or {tag: curve for tag, curve in (behind or {}).items() if curve}
    if not described:
        return None
    last_step = max(curve.steps[-1] for curve in described.values())
    ends = ", ".join(
        f"{tag} at {format_significant(scale * curve.last, 4)}{unit}"
        for tag, curve in described.items()
    )
    panel = Panel(
        y_label,
        "",
        make_lines(curves),
        behind=make_lines(behind or {}, SOLID),
        x_scale="steps",
        **axes,
    )
    drawing = draw_panels([panel], width=width, height=height)
    description = f"{title} At step {last_step:,}: {ends}."
    return Figure(render_svg(drawing, name, description), title, reading)


def draw_line_figure(
    name: str,
    title: str,
    reading: str,
    lines: Points,
    names: Sequence[str],
    *,
    y_label: str,
    x_label: str = "",
    behind: Points | None = None,
    level: tuple[str, float] | None = None,
    **axes: Any,
) -> Figure | None:
    """Draws lines over layers, counts or sizes; None where no value is known.

    Args:
      name: an identifier that no other figure of the page has.
      names: all names of a group of figures; a line's style follows from its place here.
      behind: lines drawn dashed and pale behind, for comparison.
      level: a name and a value at which a dotted line goes across.
      axes: what else `Panel` says of its axes.
    """
    levels = (Line(level[0], (Point(math.nan, level[1]),), "level"),) if level else ()
    panel = Panel(
        y_label,
        x_label,
        _make_lines(lines, names) + levels,
        behind=_make_lines(behind or {}, names, DASHED),
        **axes,
    )
    ends = ", ".join(
        f"{line.name} from {format_significant(line.points[0].y)} to "
        f"{format_significant(line.points[-1].y)}"
        for line in select_drawable(panel).lines
        if line.kind != "level"
    )
    if not ends:
        return None
    description = f"{title} From left to right: {ends}."
    return Figure(render_svg(draw_panels([panel], height=270), name, description), title, reading)


def _make_lines(points: Points, names: Sequence[str], dash: Any = None) -> tuple[Line, ...]:
    return tuple(
        Line(name, points[name], style=index, dash=dash)
        for index, name in enumerate(names)
        if name in points
    )
