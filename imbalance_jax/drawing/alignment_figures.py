"""Figures of what languages have in common, as inline SVG.

`plot_lines` draws values over layers, counts or sizes, one line for each pair or language;
`plot_heat_map` draws a value for each parameter and layer in the reference study's layout.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from imbalance_jax.drawing.colours import DASHED
from imbalance_jax.drawing.draw import draw_heat_maps, draw_panels
from imbalance_jax.drawing.panel import HeatMap, Line, Panel, Point, make_points
from imbalance_jax.drawing.svg import render_svg

_CELLS = 322  # pixels for all cells of a row, if there are few


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
      ticks: of a logarithmic axis; round numbers if there are none.
      log: whether the y axis is logarithmic too.
    """

    def make_line(tag: str, line: AlignmentLine, dash: object = None) -> Line:
        points = make_points(line.x, line.y, line.error)
        return Line(tag, points, style=names.index(tag), dash=dash)

    lines = [make_line(tag, drawn[tag]) for tag in names if tag in drawn]
    if level:
        lines.append(Line(level[0], (Point(math.nan, level[1]),), "level"))
    panel = Panel(
        y_label,
        x_label,
        tuple(lines),
        behind=tuple(make_line(tag, line, DASHED) for tag, line in (behind or {}).items()),
        x_scale="layers" if layers else "log",
        y_scale="log" if log else "linear",
        ticks=tuple(ticks),
        last_layer=layers,
    )
    return render_svg(draw_panels([panel], height=270), name, description)


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
    cells = {
        (row, layer): value
        for row, values in zip(rows, values_RN, strict=True)
        for layer, value in enumerate(values, 1)
    }
    heat_map = HeatMap("", tuple(rows), tuple(range(1, N + 1)), cells, framed=noise)
    drawing = draw_heat_maps([heat_map], cell=min(56, max(40, _CELLS // max(1, N))))
    return render_svg(drawing, "map", description, fixed=True)
