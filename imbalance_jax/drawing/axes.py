"""Axes of a panel: their frame, scales, ticks and what they are called."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imbalance_jax.drawing.colours import COLOURS
from imbalance_jax.drawing.numbers import format_compact_tick
from imbalance_jax.drawing.panel import Line, Panel, Point

# Loaded where it is used: importing this module must stay cheap.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

_LONG = 6  # times the middle interval: one so long may leave the frame of a panel that is cut
SMALL_TEXT: dict[str, Any] = {"fontsize": 12, "color": COLOURS["muted"], "parse_math": False}


def add_axes(
    figure: "Figure", margins: tuple[float, float, float, float], title: str, indent: float
) -> "Axes":
    """Adds bare axes with pixels to the left, right, top and bottom, and a title above them.

    The title begins so many pixels to the left of the axes.
    """
    width, height = 72 * figure.get_figwidth(), 72 * figure.get_figheight()
    left, right, top, bottom = margins
    size = (1 - (left + right) / width, 1 - (top + bottom) / height)
    axes = figure.add_axes((left / width, bottom / height, *size))
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set(color=COLOURS["muted"], linewidth=0.8)
    axes.tick_params(colors=COLOURS["muted"], length=3, width=0.8, labelsize=12, pad=6)
    axes.tick_params(axis="y", left=False)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    place: dict[str, Any] = {"xytext": (-indent, 17), "textcoords": "offset points"}
    axes.annotate(title, (0, 1), xycoords="axes fraction", **place, **SMALL_TEXT)
    return axes


def scale_axes(axes: "Axes", panel: Panel) -> None:
    """Sets ranges, ticks and labels, so that all that is drawn lies within."""
    drawn = [line for line in (*panel.lines, *panel.behind) if line.kind != "text"]
    xs = [point.x for line in drawn for point in line.points if line.kind != "level"]
    ys = _list_shown_heights(panel)
    if panel.diagonal:
        ys += [min(xs), max(xs)]
    places, values = (axes.yaxis, axes.xaxis) if panel.horizontal else (axes.xaxis, axes.yaxis)
    scale_axis(values, ys, panel.y_scale)
    if panel.y_range:
        values.axes.set(**{f"{values.axis_name}lim": panel.y_range})
    if panel.names:
        _set_name_axis(places, panel)
    elif panel.x_scale == "steps":
        _set_step_axis(axes, max(xs, default=1), panel.tokens_per_step)
    elif panel.x_scale == "layers":
        _set_layer_axis(axes, panel.last_layer)
    else:
        scale_axis(places, xs, panel.x_scale, panel.ticks)
    if panel.x_label:
        axes.set_xlabel(panel.x_label, labelpad=3, **SMALL_TEXT)
    if panel.right_axis:
        _add_right_axis(axes, *panel.right_axis)


def _list_shown_heights(panel: Panel) -> list[float]:
    """Returns the values that a panel's y axis has to hold."""
    points = [point for line in panel.lines for point in line.points]
    lengths = [p.high - p.low for p in points if math.isfinite(p.high - p.low)]
    limit = _LONG * float(np.median(lengths)) if panel.cut and lengths else math.inf
    ys = []
    for point in points:
        ys.append(point.y)
        if not point.high - point.low > limit:
            ys += [*point.runs, point.low, point.high]
    ys += [point.y for line in panel.behind for point in _drop_early_steps(line, panel)]
    if any(line.kind == "bars" for line in panel.lines):
        ys.append(0.0)
    return [y for y in ys if math.isfinite(y) and (y > 0 or panel.y_scale != "log")]


def _drop_early_steps(line: Line, panel: Panel) -> Sequence[Point]:
    """Returns the points of a pale line that have to be seen.

    Over steps it begins far above the others and may leave the frame, unless they are missing.
    """
    if panel.x_scale != "steps" or not panel.lines:
        return line.points
    last = max(point.x for point in line.points)
    return [point for point in line.points if point.x > 0.1 * last]


def scale_axis(
    axis: "XAxis | YAxis", values: Sequence[float], scale: str, ticks: Sequence[float] = ()
) -> None:
    """Sets the range of one axis around its values, with round ticks unless some are given."""
    from matplotlib import ticker

    if not values:
        axis.set_ticks([])
        return
    low, high = min(values), max(values)
    if scale == "log":
        pad = max(1.05, (high / low) ** 0.06)
        low, high = low / pad, high * pad
    else:
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - pad, high + pad
    axis.axes.set(**{f"{axis.axis_name}scale": scale, f"{axis.axis_name}lim": (low, high)})
    if ticks or scale == "log":
        axis.set_ticks(list(ticks) or pick_log_ticks(low, high, _count_ticks(axis)))
    else:
        axis.set_major_locator(_make_locator(_count_ticks(axis)))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: format_tick(value)))


def _make_locator(count: int, *, integer: bool = False) -> "MaxNLocator":
    from matplotlib import ticker

    return ticker.MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], integer=integer)


def _count_ticks(axis: "XAxis | YAxis") -> int:
    """Returns how many ticks an axis has room for."""
    frame = axis.axes.get_window_extent()
    room = frame.width / 65 if axis.axis_name == "x" else frame.height / 36
    return min(8, max(4, round(room)))


def format_tick(value: float) -> str:
    """Returns 40 k, 2500, 0.25, −1 and 3e−4."""
    if 0 < abs(value) < 1e-3:
        digits, _, exponent = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
    if value >= 1e4:
        return format_compact_tick(value)
    return f"{value:.6g}".replace("-", "−")


def pick_log_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Returns about four or more round numbers of a range, with 1 if it is within."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        offered = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        denser = [tick for tick in offered if low <= tick <= high]
        if len(ticks) >= 4 or (len(ticks) >= 2 and len(denser) > most):
            return ticks
        ticks = denser
    if len(ticks) >= 3:
        return ticks
    # Less than a factor of about 2: as on a linear axis.
    linear = _make_locator(most).tick_values(low, high)
    return [float(tick) for tick in linear if low <= tick <= high]


def _set_name_axis(axis: "XAxis | YAxis", panel: Panel) -> None:
    """Gives each name a place, and ranges them from the top where they go down."""
    count = len(panel.names)
    axis.set_ticks(range(count), panel.names, parse_math=False)
    if axis.axis_name == "y":
        axis.axes.set_ylim(count - 0.4, -0.6)
        axis.set_tick_params(labelsize=12, labelcolor=COLOURS["ink"])
    else:
        axis.axes.set_xlim(-0.45, count - 0.55)


def _set_step_axis(axes: "Axes", last: float, tokens_per_step: float) -> None:
    """Counts steps from 0 to the last one, and tokens below them if they are known."""
    from matplotlib import ticker

    axes.set_xlim(0, max(1, last))
    axes.xaxis.set_major_locator(_make_locator(_count_ticks(axes.xaxis), integer=True))

    def write(step: float, _: int) -> str:
        tokens = f"\n{format_compact_tick(step * tokens_per_step)}" if tokens_per_step else ""
        return f"{step:,.0f}{tokens}"

    axes.xaxis.set_major_formatter(ticker.FuncFormatter(write))
    if not tokens_per_step:
        axes.set_xlabel("step", labelpad=3, **SMALL_TEXT)
        return
    # Beside the axis rather than under it, where the two rows of numbers end.
    for text, below in (("step", 18), ("tokens", 32.4)):
        offset: dict[str, Any] = {"xytext": (-66, -below), "textcoords": "offset points"}
        axes.annotate(text, (0, 0), xycoords="axes fraction", **offset, **SMALL_TEXT)


def _set_layer_axis(axes: "Axes", last: int) -> None:
    """Counts layers from the embedding, 0, to the final norm, the last."""
    axes.set_xlim(-0.02 * last, 1.02 * last)
    step = math.ceil((last + 1) / 14)
    axes.set_xticks([*range(0, last - step + 1, step), last])
    for text, x in (("embedding", 0), ("layer", last / 2), ("final norm", last)):
        place: dict[str, Any] = {"xytext": (0, -35), "textcoords": "offset points", "ha": "center"}
        axes.annotate(text, (x, 0), xycoords=("data", "axes fraction"), **place, **SMALL_TEXT)


def _add_right_axis(axes: "Axes", name: str, unit: float) -> None:
    """Adds an axis on the right, where one unit of y is worth so many percent."""
    from matplotlib import ticker

    def to_right(y: Any) -> Any:
        return y * unit

    def to_left(y: Any) -> Any:
        return y / unit

    right = axes.secondary_yaxis("right", functions=(to_right, to_left))
    right.spines["right"].set_visible(False)
    right.tick_params(colors=COLOURS["muted"], right=False, labelsize=12, pad=6)
    right.yaxis.set_major_locator(_make_locator(5))
    right.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:.6g} %"))
    place: dict[str, Any] = {"xytext": (50, 13), "textcoords": "offset points", "ha": "right"}
    axes.annotate(name, (1, 1), xycoords="axes fraction", **place, **SMALL_TEXT)
