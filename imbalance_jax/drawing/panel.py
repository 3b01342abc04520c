"""Panels as data: what one pair of axes shows, apart from how it is drawn.

A figure is written down as panels, drawn once, and becomes an element of a page or files:

    loss = Line("en1", make_points(steps, losses), style=0)
    pale = Line("en1", make_points(steps, training_losses), style=0)
    panel = Panel("loss, nats per token", "", (loss,), behind=(pale,), x_scale="steps")
    drawing = draw_panels([panel], width=NARROW, height=290)
    svg = render_svg(drawing, "loss", "Loss of en1 over the steps.")

`Point` may have an interval and single runs, `Line.kind` says how its points are shown, and
`Panel` says what its axes count. `HeatMap` has a value for each row and column. draw.py and
heat_maps.py draw them, axes.py sets scales and ticks, svg.py writes the files. What is not finite,
or not positive on a logarithmic axis, is left out of the drawing, and long lines are thinned.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_MOST_POINTS = 400  # of a line; a narrow figure has no more pixels


@dataclasses.dataclass(frozen=True)
class Point:
    """A value, with the ends of its interval and the single runs behind it where there are any."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    runs: tuple[float, ...] = ()
    hollow: bool = False  # such as what is extrapolated
    name: str = ""  # of a row of a CSV, or the text beside a bar


@dataclasses.dataclass(frozen=True)
class Line:
    """Points of one name.

    Its kind is one of
      "line": points, joined,
      "points": points that are not joined,
      "curve": a line without markers,
      "bars": bars from 0 (of horizontal panels), each with its point's name at its end,
      "level": a dotted line at the height of its one point, across the panel,
      "text": `text` in the panel's corner,
      "listed": not drawn, in the CSV alone.
    """

    name: str
    points: tuple[Point, ...]
    kind: str = "line"
    style: int = 0  # its place among colours, markers and dashes
    colour: str = ""  # of `COLOURS`, in place of the style's
    marker: str = ""  # in place of the style's
    dash: Any = None  # in place of the style's
    fill: str = "own"  # of markers and bars: their own colour, "none" or "grey"
    size: float = 5.5  # of markers
    band: bool = False  # whether the intervals of a curve's points are drawn, as a band
    dodge: float = 0.0  # pixels to the right, beside other lines at the same places
    text: str = ""
    labelled: bool = True  # whether its name stands at its end


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    The x axis is "linear", "log", "steps" (of training), or "layers" (from the embedding to the
    final norm), or it has a place for each of `names`. In a horizontal panel x goes down, with
    a row for each name, and y to the right.
    """

    title: str
    x_label: str
    lines: tuple[Line, ...]
    behind: tuple[Line, ...] = ()  # drawn first and pale; in a CSV they are called "reported"
    x_scale: str = "linear"
    y_scale: str = "linear"
    y_range: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    ticks: tuple[float, ...] = ()  # of the x axis
    last_layer: int = 0  # of "layers": N + 1
    horizontal: bool = False
    diagonal: bool = False  # a line of equal x and y
    verticals: tuple[float, ...] = ()  # places of dotted lines
    spans: tuple[tuple[float, float], ...] = ()  # grey strips along the x axis
    cut: bool = False  # whether intervals far longer than the others may leave the frame
    tokens_per_step: float = 0.0  # of "steps": where not 0, the axis counts tokens as well
    right_axis: tuple[str, float] | None = None  # its name, and what one unit of y is there


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A value from -1 to 1 for each row and column; beyond, it has the colour of the end."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[int | str, ...]
    cells: Mapping[tuple[str, Any], float]  # by row and column
    framed: str = ""  # the row whose values mean nothing: a frame, and no colours
    across: str = "layer"  # what the columns are
    down: str = ""  # what the rows are
    starred: frozenset[tuple[str, Any]] = frozenset()  # cells whose numbers have a * behind them


def make_points(
    xs: Sequence[float], ys: Sequence[float], errors: Sequence[float] = ()
) -> tuple[Point, ...]:
    """Returns points with an interval of one standard error to either side, where it is known."""
    spread = [*errors, *[math.nan] * (len(xs) - len(errors))]
    return tuple(
        Point(x, y, y - error, y + error) for x, y, error in zip(xs, ys, spread, strict=True)
    )


def dodge_lines(lines: Sequence[Line], pixels: float) -> tuple[Line, ...]:
    """Returns lines side by side, so many pixels apart, about the places of their points."""
    middle = (len(lines) - 1) / 2
    return tuple(
        dataclasses.replace(line, dodge=pixels * (place - middle))
        for place, line in enumerate(lines)
    )


def select_drawable(panel: Panel) -> Panel:
    """Returns a panel of the points that its axes can show, with long lines thinned.

    The y axis is logarithmic only where there is a positive value.
    """
    ys = [point.y for line in (*panel.lines, *panel.behind) for point in line.points]
    if panel.y_scale == "log" and not any(0 < y < math.inf for y in ys):
        panel = dataclasses.replace(panel, y_scale="linear")
    log_x, log_y = panel.x_scale == "log", panel.y_scale == "log"

    def is_drawable(line: Line, point: Point) -> bool:
        has_x = line.kind == "level" or (math.isfinite(point.x) and (point.x > 0 or not log_x))
        return has_x and math.isfinite(point.y) and (point.y > 0 or not log_y)

    def select(lines: Sequence[Line]) -> tuple[Line, ...]:
        drawn = [
            dataclasses.replace(
                line, points=thin_points([p for p in line.points if is_drawable(line, p)])
            )
            for line in lines
            if line.kind != "listed"
        ]
        return tuple(line for line in drawn if line.points or line.kind == "text")

    return dataclasses.replace(panel, lines=select(panel.lines), behind=select(panel.behind))


def thin_points(points: Sequence[Point]) -> tuple[Point, ...]:
    """Returns at most 400 points of a line, with every spike among them.

    A long line is cut into bins, and each keeps its lowest and its highest point.
    """
    if len(points) <= _MOST_POINTS:
        return tuple(points)
    ys = np.array([point.y for point in points])
    chosen = {0, len(points) - 1}
    for part in np.array_split(np.arange(len(points)), _MOST_POINTS // 2 - 1):
        chosen |= {int(part[np.argmin(ys[part])]), int(part[np.argmax(ys[part])])}
    return tuple(points[place] for place in sorted(chosen))
