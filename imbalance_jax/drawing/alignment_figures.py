"""Figures of what languages have in common, as inline SVG like those of figures.py.

`plot_lines` draws values over layers, counts or sizes, one line for each pair or language;
`plot_heat_map` draws a value for each parameter and layer in the reference study's layout.
"""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from imbalance_jax.drawing import plots as figures
from imbalance_jax.drawing.plots import COLOURS, Curve

# Pixels of a heat map.
_ROW = 22
_NAMES = 118  # for the names of its rows
_CELLS = 440 - _NAMES  # for all of its cells, if there are few


@dataclasses.dataclass(frozen=True)
class AlignmentLine:
    """Values over anything, each with its standard error where one is known."""

    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()

    def __bool__(self) -> bool:
        return bool(self.x)

    def known(self, log_x: bool = False, log_y: bool = False) -> "AlignmentLine":
        """Returns the points that are finite and, on a logarithmic axis, positive."""
        error = [*self.error, *[math.nan] * len(self.x)]
        points = [
            (x, y, e)
            for x, y, e in zip(self.x, self.y, error, strict=False)
            if math.isfinite(x)
            and math.isfinite(y)
            and (x > 0 or not log_x)
            and (y > 0 or not log_y)
        ]
        return AlignmentLine(*([point[place] for point in points] for place in range(3)))


def plot_lines(
    name: str,
    description: str,
    drawn: Mapping[str, AlignmentLine],
    *,
    names: Sequence[str],
    y_label: str,
    behind: Mapping[str, AlignmentLine] | None = None,
    level: tuple[str, float] | None = None,
    layers: int = 0,
    x_label: str = "",
    ticks: Sequence[float] = (),
    log: bool = False,
) -> str:
    """Draws one line for each name, with the name at its end and bars of one standard error.

    Args:
      name: an identifier that no other figure of the page has.
      description: what a screen reader says in place of the figure.
      drawn: the lines.
      names: all names of a group of figures; a line's style follows from its place here.
      behind: lines drawn dashed and pale behind, for comparison.
      level: a name and a value at which a dotted line goes across.
      layers: the last layer, N + 1, of an x axis of layers; else the x axis is logarithmic.
      x_label: of a logarithmic axis.
      ticks: of a logarithmic axis; each power of ten if there are none.
      log: whether the y axis is logarithmic too.
    """
    shown = {tag: drawn[tag].known(not layers, log) for tag in names if tag in drawn}
    shown = {tag: line for tag, line in shown.items() if line}
    pale = {tag: line.known(not layers, log) for tag, line in (behind or {}).items()}
    pale = {tag: line for tag, line in pale.items() if line}

    figure = figures.make_figure(figures.NARROW, 270)
    right = 34 + 7.5 * max((len(tag) for tag in {**pale, **shown}), default=0)
    axes = figures.add_bare_axes(figure, (54, right, 30, 56 if layers else 44), y_label)
    for tag, line in pale.items():
        style: dict[str, Any] = {"color": COLOURS[figures.get_language_colour(names.index(tag))]}
        style |= {"linewidth": 1.1, "alpha": 0.55, "linestyle": (0, (4, 3))}
        if len(line.x) == 1:
            style |= {"marker": "_"}
        axes.plot(line.x, line.y, **style)
    for tag, line in shown.items():
        index = names.index(tag)
        axes.vlines(
            line.x,
            [y - e if math.isfinite(e) else y for y, e in zip(line.y, line.error, strict=True)],
            [y + e if math.isfinite(e) else y for y, e in zip(line.y, line.error, strict=True)],
            color=COLOURS[figures.get_language_colour(index)],
            linewidth=1.0,
        )
        axes.plot(
            line.x,
            line.y,
            color=COLOURS[figures.get_language_colour(index)],
            linestyle=figures.DASHES[index % len(figures.DASHES)],
            linewidth=1.6,
            marker=figures.MARKERS[index % len(figures.MARKERS)],
            markersize=4.5,
            markeredgewidth=0,
            markevery=max(1, math.ceil(len(line.x) / 16)),
        )
    every = [*shown.values(), *pale.values()]
    if layers:
        _set_layer_axis(axes, layers)
    else:
        _set_log_axis(axes, [x for line in every for x in line.x], x_label, ticks)
    values = [y for line in every for y in line.y]
    for line in shown.values():
        for y, e in zip(line.y, line.error, strict=True):
            values += [y - e, y + e] if math.isfinite(e) and not log else []
    if level and math.isfinite(level[1]) and (level[1] > 0 or not log):
        values.append(level[1])
        _draw_level_line(axes, *level)
    figures.set_value_axis(axes, [Curve([0] * len(values), values)], [], log)
    ends = {tag: (line.x[-1], line.y[-1]) for tag, line in {**pale, **shown}.items()}
    figures.label_curve_ends(axes, ends, names)
    return figures.render_svg(figure, name, description)


def _draw_level_line(axes: Any, text: str, value: float) -> None:
    style: dict[str, Any] = {"linewidth": 1.0, "linestyle": (0, (1.5, 2.5))}
    axes.axhline(value, color=COLOURS["muted"], **style)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "annotation_clip": False}
    offset: dict[str, Any] = {"xytext": (2, 3), "textcoords": "offset points"}
    axes.annotate(
        text, (0, value), **place, **offset, **{**figures.get_small_text_style(), "fontsize": 11}
    )


def _set_layer_axis(axes: Any, last: int) -> None:
    """Counts layers from the embedding, 0, to the final norm."""
    axes.set_xlim(-0.02 * last, last * 1.02)
    step = math.ceil((last + 1) / 14)
    axes.set_xticks([*range(0, last - step + 1, step), last])
    place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "annotation_clip": False}
    for text, x in (("embedding", 0), ("layer", last / 2), ("final norm", last)):
        offset: dict[str, Any] = {"xytext": (0, -35), "textcoords": "offset points"}
        axes.annotate(
            text, (x, 0), **place, **offset, **{**figures.get_small_text_style(), "ha": "center"}
        )


def _set_log_axis(axes: Any, x: Sequence[float], label: str, ticks: Sequence[float]) -> None:
    low, high = min(x, default=1), max(x, default=1)
    pad = max(1.05, (high / low) ** 0.02) if high > low else 2
    axes.set_xscale("log")
    axes.set_xlim(low / pad, high * pad)
    if ticks:
        axes.set_xticks(ticks)
    else:
        axes.xaxis.set_major_locator(
            figures.make_tick_locator("log", math.ceil(math.log10(high / low)))
        )
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(figures.make_tick_formatter(figures.format_compact_tick))
    axes.set_xlabel(label, fontsize=12, color=COLOURS["muted"], labelpad=3)


def plot_heat_map(
    description: str, rows: Sequence[str], values_RN: Sequence[Sequence[float]], noise: str
) -> str:
    """Draws a cosine for each parameter and layer: blue below 0, red above, from -1 to 1.

    Args:
      description: what a screen reader says in place of the figure.
      rows: names of the parameters, from top to bottom.
      values_RN: the cosines; one that is not finite leaves a dash. Those beyond -1 and 1, as
        estimates may be, have the colour of the end.
      noise: the row whose values mean nothing; it has a frame and no colours.
    """
    N = max(map(len, values_RN), default=0)
    cell = min(56, max(40, _CELLS // max(1, N)))
    # Wide enough for the legend below, however few the layers.
    width, bottom = _NAMES + max(cell * N, 16 * 9 + 4), _ROW * len(rows) + 4
    cold: list[str] = []
    warm: list[str] = []
    texts: list[str] = []
    quiet: list[str] = []
    for r, values in enumerate(values_RN):
        middle = _ROW * r + 15
        kind = quiet if rows[r] == noise else texts
        end = f'x="{_NAMES - 8}" y="{middle}" text-anchor="end"'
        kind.append(f"<text {end}>{html.escape(rows[r])}</text>")
        for n, value in enumerate(values):
            kind = quiet if rows[r] == noise or not math.isfinite(value) else texts
            x = _NAMES + cell * n
            kind.append(
                f'<text x="{x + cell / 2:g}" y="{middle}">{_format_two_decimals(value)}</text>'
            )
            if kind is texts:
                (cold if value < 0 else warm).append(
                    _render_heat_cell(x, _ROW * r, cell - 1, _ROW - 1, abs(value))
                )
    if noise in rows:
        frame = f'x="{_NAMES + 0.5}" y="{_ROW * rows.index(noise) + 0.5}"'
        quiet.append(
            f'<rect {frame} width="{cell * N - 2}" height="{_ROW - 2}" '
            'style="fill: none; stroke: var(--muted); stroke-dasharray: 3 3"/>'
        )
    for n in range(N):
        middle_x = _NAMES + cell * n + cell / 2
        quiet.append(f'<text x="{middle_x:g}" y="{bottom + 13}">{n + 1}</text>')
    quiet.append(f'<text x="{_NAMES - 8}" y="{bottom + 13}" text-anchor="end">layer</text>')
    # What the colours mean: nine of them from -1 to 1, below the map.
    for place in range(9):
        value = (place - 4) / 4
        x, y = _NAMES + 16 * place, bottom + 26
        (cold if value < 0 else warm).append(_render_heat_cell(x, y, 16, 10, abs(value)))
        if place in (0, 4, 8):
            quiet.append(f'<text x="{x + 8}" y="{y + 22}">{value:g}</text>'.replace("-1", "−1"))
    parts = [
        f'<g style="fill: var(--{colour})">{"".join(cells)}</g>'
        for colour, cells in (("cold", cold), ("warm", warm), ("ink", texts), ("muted", quiet))
    ]
    height = bottom + 52
    return (
        f'<svg class="map" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{html.escape(description)}" style="width: {width}px; '
        f'font-size: 11.5px; text-anchor: middle">{"".join(parts)}</svg>'
    )


def _render_heat_cell(x: int, y: int, width: int, height: int, size: float) -> str:
    opacity = f"{min(1.0, size):.2f}".removeprefix("0")
    return f'<path d="M{x} {y}h{width}v{height}h-{width}z" opacity="{opacity}"/>'


def _format_two_decimals(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
