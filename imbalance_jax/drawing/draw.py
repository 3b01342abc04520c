"""Draws panels as matplotlib figures, whose colours svg.py makes those of a page."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imbalance_jax.drawing.axes import SMALL_TEXT, add_axes, scale_axes
from imbalance_jax.drawing.colours import COLOURS, DASHES, DOTTED, MARKERS, get_language_colour
from imbalance_jax.drawing.panel import Line, Panel, Point, select_drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

# Pixels.
NARROW = 440  # half of a desktop page, and not much more than a phone
WIDE = 992
_LETTER = 6.8  # of a name
_LEGEND = 30  # below all panels
_BESIDE = -6  # from a mean to its single runs, which would lie upon it
_LABEL_GAP = 14.0

_ALL_MARKED = 30  # points of a line that each have a marker; of more, about _MARKED have one
_MARKED = 12
_LABEL_TEXT: dict[str, Any] = {**SMALL_TEXT, "annotation_clip": False, "va": "center"}


def make_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    # At 72 dots per inch a point, matplotlib's unit, is one pixel of the SVG.
    return Figure(figsize=(width / 72, height / 72), dpi=72)


def draw_panels(
    panels: Sequence[Panel],
    *,
    width: int = NARROW,
    height: int = 290,
    columns: int = 1,
    legend: Mapping[str, Mapping[str, Any]] | None = None,
) -> "Figure":
    """Draws panels in rows of so many columns.

    Args:
      panels: from left to right and from top to bottom. The names of the rows of horizontal
        ones stand once, to the left of the first.
      width: of the figure in pixels.
      height: of each row of panels in pixels.
      columns: at most.
      legend: what else the figure explains: label -> properties of a matplotlib line.
    """
    columns = min(columns, len(panels))
    count = math.ceil(len(panels) / columns)
    total = count * height + _LEGEND * bool(legend)
    figure = make_figure(width, total)
    names = max((len(name) for p in panels if p.horizontal for name in p.names), default=0)
    beside = 14 + _LETTER * names if names else 0.0
    each = (width - beside) / columns
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        left, right, top, bottom = _measure_margins(panel)
        margins = (
            beside + each * column + left,
            width - beside - each * (column + 1) + right,
            height * row + top,
            total - height * (row + 1) + bottom,
        )
        axes = add_axes(figure, margins, panel.title, left)
        draw_panel(axes, panel)
        if panel.horizontal and column:
            axes.tick_params(labelleft=False)
    if legend:
        _draw_legend(figure, legend)
    return figure


def _measure_margins(panel: Panel) -> tuple[float, float, float, float]:
    """Returns pixels to the left, right, top and bottom of a panel's axes, within its place."""
    if panel.horizontal:
        # The texts beside bars stand to the right of the longest.
        texts = any(point.name for line in panel.lines for point in line.points)
        return (0, 144 if texts and panel.lines[0].kind == "bars" else 24, 32, 28)
    labels = [line.name for line in _list_labelled(panel)]
    right = 30 + _LETTER * max(map(len, labels), default=0) if any(labels) else 20.0
    tokens, layers = panel.tokens_per_step > 0, panel.x_scale == "layers"
    below = 56 if tokens or layers else 46
    return (66 if tokens else 52, 54 if panel.right_axis else right, 32, below)


def _draw_legend(figure: "Figure", legend: Mapping[str, Mapping[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label, **look) for label, look in legend.items()]
    place: dict[str, Any] = {"loc": "lower left", "ncols": len(handles), "borderaxespad": 0.2}
    figure.legend(
        handles=handles, frameon=False, fontsize=11.5, labelcolor=COLOURS["muted"], **place
    )


def draw_panel(axes: "Axes", panel: Panel) -> None:
    """Draws one panel into its axes, or says that there is nothing to draw."""
    panel = select_drawable(panel)
    if not any(line.points for line in (*panel.lines, *panel.behind)):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no results", transform=axes.transAxes, ha="center", **SMALL_TEXT)
        return
    scale_axes(axes, panel)
    if panel.diagonal:
        style: dict[str, Any] = {"color": COLOURS["muted"], "linewidth": 0.9}
        axes.axline((0, 0), slope=1, linestyle=(0, (5, 4)), **style)
    if panel.horizontal:
        _turn_frame(axes, panel)
    for low, high in panel.spans:
        axes.axvspan(low, high, facecolor=COLOURS["muted"], edgecolor="none", alpha=0.18, zorder=0)
    for x in panel.verticals:
        axes.axvline(x, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 3)))
    for line in panel.behind:
        _draw_line(axes, panel, line, pale=True)
    for line in panel.lines:
        if line.kind == "level":
            across = axes.axvline if panel.horizontal else axes.axhline
            across(line.points[0].y, color=COLOURS["muted"], linewidth=1.0, linestyle=DOTTED)
        elif line.kind == "text":
            axes.text(0.04, 0.06, line.text, transform=axes.transAxes, **SMALL_TEXT)
        elif line.kind == "bars":
            _draw_bars(axes, line)
        else:
            _draw_line(axes, panel, line)
    if not panel.horizontal:
        _label_ends(axes, _list_labelled(panel))


def _turn_frame(axes: "Axes", panel: Panel) -> None:
    """Makes the frame that of rows: bars begin at a line, and their length is written out."""
    if any(line.kind == "bars" for line in panel.lines):
        axes.spines["left"].set(visible=True, color=COLOURS["muted"])
        axes.spines["bottom"].set_visible(False)
        axes.grid(False)
        axes.set_xticks([])
        axes.set_xlim(left=0)


def _draw_line(axes: "Axes", panel: Panel, line: Line, *, pale: bool = False) -> None:
    """Draws a line with its markers, intervals and single runs, or pale without them."""
    turned = panel.horizontal
    colour = COLOURS[line.colour or get_language_colour(line.style)]
    place = _shift(axes, line.dodge)

    def plot(points: Sequence[Point], **look: Any) -> None:
        xs, ys = [point.x for point in points], [point.y for point in points]
        axes.plot(*((ys, xs) if turned else (xs, ys)), transform=place, **look)

    if line.kind in ("line", "curve"):
        dash = DASHES[line.style % len(DASHES)] if line.dash is None else line.dash
        width = 1.0 if pale else 1.2 if line.kind == "curve" else 1.6
        alpha = 0.5 if pale else 1.0
        plot(line.points, color=colour, linestyle=dash, linewidth=width, alpha=alpha, zorder=2)
    banded = [p for p in line.points if math.isfinite(p.low) and math.isfinite(p.high)]
    if line.band and banded and not pale:
        ends = ([p.x for p in banded], [p.low for p in banded], [p.high for p in banded])
        axes.fill_between(*ends, facecolor=colour, edgecolor="none", alpha=0.18, zorder=1)
    if line.kind == "curve" or (pale and line.kind == "line" and len(line.points) > 1):
        return
    if not pale:
        _draw_intervals(axes, line, colour, turned)
    many = line.kind == "line" and len(line.points) > _ALL_MARKED
    every = math.ceil(len(line.points) / _MARKED) if many else 1
    # Counted from the last, which has a marker always.
    marked = line.points[::-1][::every]
    for hollow in (False, True):
        points = [point for point in marked if point.hollow == hollow]
        if points:
            # One at the edge is seen whole, unless the range was given and it may be beyond.
            look = {**_get_marker_style(line, hollow), "clip_on": panel.y_range is not None}
            plot(points, **look, zorder=4)


def _get_marker_style(line: Line, hollow: bool) -> dict[str, Any]:
    own = COLOURS[line.colour or get_language_colour(line.style)]
    fill = "none" if hollow else line.fill
    return {
        "linestyle": "none",
        "marker": line.marker or MARKERS[line.style % len(MARKERS)],
        "markersize": line.size,
        "markerfacecolor": {"own": own, "none": "none", "grey": "#b9bec6"}[fill],
        "markeredgecolor": own,
        "markeredgewidth": 1.2 if fill != "own" or line.marker == "_" else 0,
    }


def _draw_intervals(axes: "Axes", line: Line, colour: str, turned: bool) -> None:
    """Draws a bar for each interval that reaches beyond its marker, and the runs beside it."""
    low, high = axes.get_xlim() if turned else axes.get_ylim()
    bars, runs = [], []
    for point in line.points:
        if math.isfinite(point.low) and math.isfinite(point.high):
            ends = np.clip((point.low, point.high), min(low, high), max(low, high)).tolist()
            # One that is hidden behind its marker would only blur a hollow one.
            if _measure_pixels(axes, ends, turned) > line.size:
                bars.append((point.x, *ends))
        runs += [(point.x, run) for run in point.runs]
    if bars:
        draw = axes.hlines if turned else axes.vlines
        places, lows, highs = zip(*bars, strict=True)
        draw(places, lows, highs, color=colour, linewidth=1.1, transform=_shift(axes, line.dodge))
    if runs:
        xs, ys = zip(*runs, strict=True)
        dots: dict[str, Any] = {"color": colour, "markersize": 4, "alpha": 0.8, "zorder": 4}
        if turned:
            axes.plot(ys, xs, ".", transform=_shift(axes, 0, _BESIDE), **dots)
        else:
            axes.plot(xs, ys, ".", transform=_shift(axes, line.dodge + _BESIDE), **dots)


def _measure_pixels(axes: "Axes", ends: Sequence[float], turned: bool) -> float:
    """Returns how long an interval is in the drawing."""
    pairs = [(end, axes.get_ylim()[0]) if turned else (axes.get_xlim()[0], end) for end in ends]
    first, last = axes.transData.transform(pairs)
    return float(np.abs(last - first).max())


def _shift(axes: "Axes", right: float, up: float = 0.0) -> "Transform":
    """Returns the place of data, moved by so many pixels."""
    from matplotlib.transforms import ScaledTranslation

    return axes.transData + ScaledTranslation(right / 72, up / 72, axes.figure.dpi_scale_trans)


def _draw_bars(axes: "Axes", line: Line) -> None:
    colour = COLOURS[line.colour or get_language_colour(line.style)]
    outline: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.0}
    look = {"color": colour} if line.fill == "own" else outline
    for point in line.points:
        axes.barh(point.x, point.y, height=0.32, **look)
        text = {**_LABEL_TEXT, "color": COLOURS["ink" if line.fill == "own" else "muted"]}
        offset: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points"}
        axes.annotate(point.name, (point.y, point.x), **offset, **text)


# Names at the ends of lines.


def _list_labelled(panel: Panel) -> list[Line]:
    """Returns the lines whose names stand at their ends; pale ones only if no other has theirs."""
    shown = [line for line in panel.lines if line.kind not in ("text", "listed", "bars")]
    names = {line.name for line in shown}
    shown += [line for line in panel.behind if line.name not in names]
    return [line for line in shown if line.labelled and line.name]


def _label_ends(axes: "Axes", lines: Sequence[Line]) -> None:
    """Writes each line's name to the right of its end, moved apart where they would meet."""
    if not lines:
        return
    frame = axes.get_window_extent()
    ends = []
    for line in lines:
        # Those of a level and of a curve that leaves the frame are at its edge.
        last = line.points[-1]
        x = axes.get_xlim()[1] if line.kind == "level" else last.x
        right, up = axes.transData.transform((x, last.y))
        ends.append((min(max(float(up), frame.y0), frame.y1), float(right) + line.dodge, line))
    ends.sort(key=lambda end: end[0])
    heights = spread_heights([end[0] for end in ends], _LABEL_GAP, frame.y0, frame.y1)
    moved = max(abs(height - end[0]) for height, end in zip(heights, ends, strict=True))
    leader = 9 if moved < 8 else 18
    for height, (up, right, line) in zip(heights, ends, strict=True):
        level = line.kind == "level"
        colour = COLOURS["muted" if level else line.colour or get_language_colour(line.style)]
        xs = [(right - frame.x0) / frame.width, 1 + leader / frame.width]
        ys = [(y - frame.y0) / frame.height for y in (up, height)]
        # A long leader must not be taken for more of the line.
        dash: Any = "-" if xs[0] > 0.8 else (0, (1, 3))
        style: dict[str, Any] = {"color": colour, "linewidth": 0.8, "clip_on": False}
        axes.plot(xs, ys, transform=axes.transAxes, linestyle=dash, **style)
        text = {**_LABEL_TEXT, "color": COLOURS["muted" if level else "ink"]}
        offset: dict[str, Any] = {"xytext": (leader + 4, 0), "textcoords": "offset points"}
        axes.annotate(line.name, (1, ys[1]), xycoords="axes fraction", **offset, **text)


def spread_heights(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns ascending heights, moved as little as possible to be a gap apart.

    Less i gaps, the i-th height may only ascend, which is isotonic regression.
    """
    from scipy.optimize import isotonic_regression

    gaps = gap * np.arange(len(heights))
    bases = isotonic_regression(np.asarray(heights) - gaps).x
    spread: list[float] = (np.maximum(low, np.minimum(bases, high - gaps[-1])) + gaps).tolist()
    return spread
