"""Draws heat maps as matplotlib figures, and what their colours mean."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imbalance_jax.drawing.axes import SMALL_TEXT, format_tick
from imbalance_jax.drawing.colours import COLOURS
from imbalance_jax.drawing.draw import make_figure
from imbalance_jax.drawing.numbers import format_two_decimals
from imbalance_jax.drawing.panel import HeatMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Pixels.
_ROW = 21
_NAMES = 132  # left of a heat map


def draw_heat_maps(maps: Sequence[HeatMap], *, columns: int = 1, cell: int = 33) -> "Figure":
    """Draws heat maps in rows of so many columns, and what the colours mean below the first.

    Args:
      maps: the names of their rows stand once, to the left of all maps of a row.
      columns: at most.
      cell: the width of a cell in pixels.
    """
    columns = min(columns, len(maps))
    count = math.ceil(len(maps) / columns)
    each = cell * max(len(heat_map.columns) for heat_map in maps) + 24
    titled = 26 if any(heat_map.title or heat_map.down for heat_map in maps) else 0
    tall = titled + _ROW * max(len(heat_map.rows) for heat_map in maps) + 26
    # Wide enough for the legend, however few the columns.
    width, height = _NAMES + max(each * columns, 9 * 16 + 24), count * tall + 36
    figure = make_figure(width, height)
    for place, heat_map in enumerate(maps):
        row, column = divmod(place, columns)
        size = (cell * len(heat_map.columns), _ROW * len(heat_map.rows))
        corner = (_NAMES + each * column, height - tall * row - titled - size[1])
        axes = _add_box(figure, corner, size)
        _draw_heat_map(axes, heat_map, named=column == 0)
    legend = _add_box(figure, (_NAMES, 18), (9 * 16, 10))
    scale = np.linspace(-1, 1, 9)
    _colour_cells(legend, scale[None])
    legend.set_xticks([0, 4, 8], [format_tick(value) for value in scale[[0, 4, 8]]])
    legend.tick_params(labelsize=10.5, pad=6, bottom=False, colors=COLOURS["muted"])
    legend.set_yticks([])
    return figure


def _add_box(figure: "Figure", corner: tuple[float, float], size: tuple[float, float]) -> "Axes":
    """Adds axes without a frame at so many pixels from the lower left."""
    width, height = 72 * figure.get_figwidth(), 72 * figure.get_figheight()
    axes = figure.add_axes(
        (corner[0] / width, corner[1] / height, size[0] / width, size[1] / height)
    )
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    return axes


def _colour_cells(axes: "Axes", values: np.ndarray) -> None:
    """Fills the cells: blue below 0, red above, and the more the further from it."""
    from matplotlib.colors import to_rgb

    # Paths rather than the pixels of `imshow`: they can take the colours of the page.
    rgba = np.empty((*values.shape, 4))
    rgba[..., :3] = np.where(
        values[..., None] < 0, to_rgb(COLOURS["cold"]), to_rgb(COLOURS["warm"])
    )
    rgba[..., 3] = np.minimum(1, np.abs(np.nan_to_num(values)))
    axes.pcolormesh(rgba, edgecolors="none", clip_on=False)


def _draw_heat_map(axes: "Axes", heat_map: HeatMap, *, named: bool) -> None:
    from matplotlib.patches import Rectangle

    rows, columns = heat_map.rows, heat_map.columns
    values = np.array(
        [[heat_map.cells.get((row, column), math.nan) for column in columns] for row in rows]
    )
    framed = [row == heat_map.framed for row in rows]
    _colour_cells(axes, np.where(np.array(framed)[:, None], 0.0, values))
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    for (row, column), value in np.ndenumerate(values):
        quiet = framed[row] or not math.isfinite(value)
        text = {**SMALL_TEXT, "fontsize": 9.5, "color": COLOURS["muted" if quiet else "ink"]}
        place: dict[str, Any] = {"ha": "center", "va": "center"}
        star = "*" if (rows[row], columns[column]) in heat_map.starred else ""
        axes.text(column + 0.5, row + 0.5, format_two_decimals(value) + star, **place, **text)
    if any(framed):
        corner = (0, framed.index(True))
        frame: dict[str, Any] = {"fill": False, "clip_on": False, "linestyle": (0, (3, 3))}
        axes.add_patch(Rectangle(corner, len(columns), 1, edgecolor=COLOURS["muted"], **frame))
    axes.set_xticks(np.arange(len(columns)) + 0.5, [str(column) for column in columns])
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows if named else [""] * len(rows))
    axes.tick_params(left=False, bottom=False, labelsize=10.5, colors=COLOURS["muted"], pad=8)
    for label in axes.get_yticklabels():
        label.set(parse_math=False, color=COLOURS["ink"], va="center")
    style = {**SMALL_TEXT, "color": COLOURS["ink"]}
    axes.set_title(heat_map.title, loc="left", **style)
    offset: dict[str, Any] = {"xytext": (-5, -17), "textcoords": "offset points", "ha": "right"}
    if named and heat_map.down:
        above: dict[str, Any] = {"xytext": (-5, 8), "textcoords": "offset points", "ha": "right"}
        axes.annotate(heat_map.down, (0, 1), xycoords="axes fraction", **above, **SMALL_TEXT)
    if named:
        axes.annotate(heat_map.across, (0, 0), xycoords="axes fraction", **offset, **SMALL_TEXT)
