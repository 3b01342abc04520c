"""Every figure of the reference study, drawn from rows of the form of reported.py.

`draw_paper_figure` draws one of them and `write_figures_and_tables` all that have rows, as PNG,
SVG and CSV, with the tables beside them. Results of a study have an interval and a small point for
each seed; what was reported lies behind them as hollow grey markers. Lines differ in marker, dash
and the name at their end, so that figures read the same without colour.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imbalance_jax.drawing.colours import COLOURS, DASHED, SOLID
from imbalance_jax.drawing.draw import WIDE, draw_panels
from imbalance_jax.drawing.heat_maps import draw_heat_maps
from imbalance_jax.drawing.panel import Line, Panel
from imbalance_jax.drawing.svg import FigureFiles
from imbalance_jax.reference import catalogue, paper_tables
from imbalance_jax.reference.catalogue import FIGURES
from imbalance_jax.reference.panels import Panels, ResultMap
from imbalance_jax.reference.reported import PaperResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pixels.
_WIDTH = 620  # of a figure of one panel; more take the width of the page
_HEIGHT = 300  # of a panel


def draw_paper_figure(
    name: str, results: Sequence[PaperResult], reference: Sequence[PaperResult] = ()
) -> FigureFiles | None:
    """Draws a figure of the reference study; None where no result belongs to it.

    Args:
      name: such as "Figure 1 left", one of `catalogue.FIGURES`.
      results: of a study, or what was reported; those of other figures are passed over.
      reference: what was reported, to be drawn behind the results.
    """
    panels = catalogue.make_figure_panels(name, results, reference)
    if not panels:
        return None
    figure = FIGURES[name]
    return FigureFiles(
        make_file_stem(name),
        f"{name}. {figure.title}.",
        figure.reading,
        _draw_panel_grid(panels, figure.columns),
        catalogue.list_shown_rows(panels),
    )


def list_left_out_figures(results: Sequence[PaperResult]) -> list[str]:
    """Returns the figures and tables that no result belongs to."""
    names = [name for name in FIGURES if not catalogue.make_figure_panels(name, results)]
    return names + [
        n for n in paper_tables.TABLES if paper_tables.make_paper_table(n, results) is None
    ]


def write_figures_and_tables(
    results: Sequence[PaperResult],
    directory: str | pathlib.Path,
    reference: Sequence[PaperResult] = (),
) -> list[pathlib.Path]:
    """Writes each figure as PNG, SVG and CSV and each table as CSV, if any result is in it.

    Args:
      results: of a study, or what was reported.
      directory: made if it is not there.
      reference: what was reported, to be shown with the results.

    Returns:
      The files, such as figure_1_left.png; `list_left_out_figures` has the names of what is not
      there.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name in FIGURES:
        drawn = draw_paper_figure(name, results, reference)
        written += drawn.write(directory) if drawn else []
    return written + write_paper_tables(results, directory, reference)


def write_paper_tables(
    results: Sequence[PaperResult], directory: pathlib.Path, reference: Sequence[PaperResult] = ()
) -> list[pathlib.Path]:
    """Writes each table that has results as CSV, and returns the files."""
    written = []
    for name in paper_tables.TABLES:
        table = paper_tables.make_paper_table(name, results, reference)
        if table is not None:
            path = directory / f"{make_file_stem(name)}.csv"
            path.write_text(paper_tables.render_table_csv(table), encoding="utf-8")
            written.append(path)
    return written


def make_file_stem(name: str) -> str:
    """Returns figure_1_left of "Figure 1 left"."""
    return name.lower().replace(" ", "_")


def _draw_panel_grid(panels: Panels, columns: int) -> "Figure":
    maps = [_complete_title(panel) for panel in panels if isinstance(panel, ResultMap)]
    if maps:
        return draw_heat_maps(maps, columns=columns)
    styled = [_set_dashes(panel) for panel in panels if isinstance(panel, Panel)]
    alone = min(columns, len(styled)) == 1
    return draw_panels(
        styled,
        width=_WIDTH if alone else WIDE,
        height=round(1.25 * _HEIGHT) if alone else _HEIGHT,
        columns=columns,
        legend=_make_legend(styled),
    )


def _set_dashes(panel: Panel) -> Panel:
    """Returns a panel whose curves are dashed, so that lines with points are not beside them."""
    curves = any(line.kind == "curve" for line in panel.lines)

    def set_dash(line: Line) -> Line:
        if line.kind == "curve":
            return dataclasses.replace(line, dash=DASHED)
        return dataclasses.replace(line, dash=SOLID) if curves or line.fill != "own" else line

    return dataclasses.replace(panel, lines=tuple(map(set_dash, panel.lines)))


def _make_legend(panels: Sequence[Panel]) -> Mapping[str, Mapping[str, Any]]:
    """Returns what the legend explains, which is no line with a name of its own."""
    muted: dict[str, Any] = {"linestyle": "none", "color": COLOURS["muted"]}
    legend: dict[str, dict[str, Any]] = {}
    if any(point.runs for panel in panels for line in panel.lines for point in line.points):
        legend["one seed"] = {**muted, "marker": ".", "markersize": 6}
        legend["interval of the mean"] = {**muted, "marker": "|", "markersize": 10}
    if any(panel.behind for panel in panels):
        ring = {"marker": "o", "markersize": 7, "markerfacecolor": "none"}
        legend["reported"] = {**muted, **ring}
    if any(panel.diagonal for panel in panels):
        dash = {"linewidth": 0.9, "linestyle": (0, (5, 4))}
        legend["MLTE equal to all training tokens"] = {**muted, **dash}
    return legend


def _complete_title(heat_map: ResultMap) -> ResultMap:
    """Returns a heat map whose title has the mean over its cells with and without the noise."""
    cells = [
        value
        for (row, _), value in heat_map.cells.items()
        if row != heat_map.framed and math.isfinite(value)
    ]
    title = heat_map.title
    if heat_map.mean:
        title += f": mean {heat_map.mean.value:.4f}"
    if cells:
        title += f", {math.fsum(cells) / len(cells):.4f} without the framed row"
    return dataclasses.replace(heat_map, title=title)
