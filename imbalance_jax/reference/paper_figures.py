"""Every figure of the reference study, drawn from rows of the form of reference.py.

`draw_paper_figure` draws one of them and `write_figures_and_tables` all that have rows, as PNG,
SVG and CSV, with the tables beside them. Results of a study have an interval and a small point for
each seed; what was reported lies behind them as hollow grey markers. Lines differ in marker, dash
and the name at their end, so that figures read the same without colour.
"""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imbalance_jax.drawing import plots as figures
from imbalance_jax.drawing.plots import COLOURS
from imbalance_jax.reference import catalogue as paper_catalogue
from imbalance_jax.reference import paper_tables
from imbalance_jax.reference.catalogue import FIGURES
from imbalance_jax.reference.panels import KEYS_BIAS, HeatMap, Line, Panel, Panels, Point
from imbalance_jax.reference.reported import PaperResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Pixels.
_WIDTH = 620  # of a figure of one panel; more take the width of the page
_HEIGHT = 300  # of a panel
_LEGEND = 30  # below all panels
_GAP = 24  # between panels
_PAD = 10  # around all of them
_CELL = 33  # of a heat map
_ROW = 20
_NAMES = 132  # left of a heat map
_MARKER = 5.5
_PNG_DPI = 150

_CURVE = (0, (4, 3))
# Not those of COLOURS, which follow the page into dark mode as a cell's own colour does not.
_DARK, _LIGHT, _GREY = "#111111", "#fdfdfd", "#8a8f98"


@dataclasses.dataclass(frozen=True)
class DrawnFigure:
    """A figure of the reference study with the panels that it shows."""

    name: str
    panels: Panels
    figure: "Figure"

    def write(self, directory: pathlib.Path) -> list[pathlib.Path]:
        """Writes PNG, SVG and CSV into a directory, and returns the files."""
        import matplotlib

        stem = directory / make_file_stem(self.name)
        png, svg, table = (stem.with_suffix(f".{kind}") for kind in ("png", "svg", "csv"))
        self.figure.savefig(png, dpi=_PNG_DPI)
        # Text stays text, and the same input gives the same file.
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self.figure.savefig(svg, metadata={"Date": None})
        table.write_text(_render_panels_csv(self.panels), encoding="utf-8")
        return [png, svg, table]

    def inline_svg(self) -> str:
        """Returns one `<svg>` element that follows the colours of the page it stands in."""
        title = f"{self.name}. {FIGURES[self.name].title}."
        return figures.render_svg(self.figure, make_file_stem(self.name), title)


def draw_paper_figure(
    name: str, results: Sequence[PaperResult], reference: Sequence[PaperResult] = ()
) -> DrawnFigure | None:
    """Draws a figure of the reference study; None where no result belongs to it.

    Args:
      name: such as "Figure 1 left", one of `paper_catalogue.FIGURES`.
      results: of a study, or what was reported; those of other figures are passed over.
      reference: what was reported, to be drawn behind the results.
    """
    panels = paper_catalogue.make_figure_panels(name, results, reference)
    return (
        DrawnFigure(name, panels, _draw_panel_grid(panels, FIGURES[name].columns))
        if panels
        else None
    )


def list_left_out_figures(results: Sequence[PaperResult]) -> list[str]:
    """Returns the figures and tables that no result belongs to."""
    names = [name for name in FIGURES if not paper_catalogue.make_figure_panels(name, results)]
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
    written += write_paper_tables(results, directory, reference)
    return written


def write_paper_tables(
    results: Sequence[PaperResult], directory: pathlib.Path, reference: Sequence[PaperResult] = ()
) -> list[pathlib.Path]:
    """Writes each table that has results as CSV, and returns the files."""
    written = []
    for name in paper_tables.TABLES:
        made = paper_tables.make_paper_table(name, results, reference)
        if made is not None:
            path = directory / f"{make_file_stem(name)}.csv"
            path.write_text(paper_tables.render_table_csv(made), encoding="utf-8")
            written.append(path)
    return written


def make_file_stem(name: str) -> str:
    """Returns figure_1_left of "Figure 1 left"."""
    return name.lower().replace(" ", "_")


def _render_panels_csv(panels: Panels) -> str:
    rows, written = paper_catalogue.list_shown_rows(panels), io.StringIO()
    writer = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


# Figures as a grid of panels.


def _draw_panel_grid(panels: Panels, columns: int) -> "Figure":
    maps = [panel for panel in panels if isinstance(panel, HeatMap)]
    if maps:
        return _draw_map_grid(maps, columns)
    lines = [panel for panel in panels if isinstance(panel, Panel)]
    columns = min(columns, len(lines))
    count = math.ceil(len(lines) / columns)
    width = _WIDTH if columns == 1 else figures.WIDE
    inner = width - 2 * _PAD
    tall = round(1.25 * _HEIGHT) if columns == 1 else _HEIGHT
    handles = _make_legend_handles(lines)
    height = count * tall + _LEGEND * bool(handles) + _PAD
    drawn = figures.make_figure(width, height)
    each = (inner - _GAP * (columns - 1)) / columns
    for place, panel in enumerate(lines):
        row, column = divmod(place, columns)
        left = _PAD + column * (each + _GAP)
        top = row * tall + _PAD
        box = (left, width - left - each, top, height - top - tall)
        _draw_panel(drawn, panel, box)
    if handles:
        drawn.legend(
            handles=handles,
            loc="lower left",
            ncols=len(handles),
            frameon=False,
            fontsize=11.5,
            labelcolor=COLOURS["muted"],
            borderaxespad=0.2,
        )
    return drawn


def _draw_panel(drawn: "Figure", panel: Panel, box: tuple[float, float, float, float]) -> None:
    """Draws a panel, whose box has so many pixels to its left, right, top and bottom."""
    width, height = 72 * drawn.get_figwidth(), 72 * drawn.get_figheight()
    left, right, top, bottom = box
    labelled = [line for line in panel.lines if line.kind in ("line", "curve", "level")]
    longest = max((len(line.name) for line in labelled), default=0)
    margins = (left + 44, right + 30 + 6.3 * longest, top + 30, bottom + 48)
    axes = figures.add_bare_axes(drawn, margins, "")
    style = figures.get_small_text_style()
    drawn.text(left / width, 1 - (top + 17) / height, panel.title, **style, parse_math=False)
    if not any(math.isfinite(point.y) for line in labelled for point in line.points):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no results", transform=axes.transAxes, **{**style, "ha": "center"})
        return
    _set_axes_scales(axes, panel)
    for line in panel.reported:
        _plot_reported(axes, line)
    # Curves are dashed, so that lines with points are not where there are any.
    solid = any(line.kind == "curve" for line in panel.lines)
    for line in panel.lines:
        if line.kind == "line":
            _plot_line(axes, line, solid)
        elif line.kind == "curve":
            _plot_curve(axes, line)
        elif line.kind == "level":
            axes.axhline(line.points[0].y, color=COLOURS["muted"], lw=1.0, ls=(0, (1.5, 2.5)))
        elif line.kind == "text":
            place: dict[str, Any] = {"transform": axes.transAxes, "parse_math": False}
            axes.text(0.04, 0.06, line.text, **{**style, "fontsize": 11}, **place)
    _label_line_ends(axes, panel, labelled)


def _set_axes_scales(axes: "Axes", panel: Panel) -> None:
    """Sets the ranges and ticks of both axes, so that all that is drawn lies within."""
    xs, ys = [], []
    for line in (*panel.lines, *panel.reported):
        if line.kind in ("line", "curve", "level"):
            for point in line.points:
                xs.append(point.x)
                ys += [point.y, *_scale_interval(point), *_scale_seed_values(point)]
    xs = [x for x in xs if math.isfinite(x)]
    ys = [y for y in ys if math.isfinite(y) and (y > 0 or panel.y_scale != "log")]
    if panel.diagonal:
        ys += [min(xs), max(xs)]
    axes.set_xscale(panel.x_scale)
    axes.set_yscale(panel.y_scale)
    axes.set_xlim(*_pad_range(xs, panel.x_scale, 0.04))
    axes.set_ylim(*_pad_range(ys, panel.y_scale, 0.06))
    if panel.y_range:
        axes.set_ylim(*panel.y_range)
    axes.minorticks_off()
    axes.set_xlabel(panel.x_label, fontsize=12, color=COLOURS["muted"], labelpad=4)
    for axis, scale, values in ((axes.xaxis, panel.x_scale, xs), (axes.yaxis, panel.y_scale, ys)):
        if scale == "log":
            axis.set_ticks(_choose_log_ticks(min(values), max(values)))
        else:
            axis.set_major_locator(figures.make_tick_locator(scale, 6))
        axis.set_major_formatter(figures.make_tick_formatter(_format_tick))
    if panel.names:
        axes.set_xlim(-0.35, len(panel.names) - 0.65)
        axes.set_xticks(range(len(panel.names)), panel.names, parse_math=False)
    elif panel.ticks:
        axes.set_xticks(panel.ticks)
    if panel.diagonal:
        axes.plot(axes.get_xlim(), axes.get_xlim(), color=COLOURS["muted"], lw=0.9, ls=(0, (5, 4)))


def _pad_range(values: Sequence[float], scale: str, part: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if scale == "log":
        pad = max(1.05, (high / low) ** part)
        return low / pad, high * pad
    pad = part * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _choose_log_ticks(low: float, high: float) -> list[float]:
    """Returns about four to eight round numbers of a range."""
    for digits in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [digit * 10.0**decade for decade in decades for digit in digits]
        found = [tick for tick in found if low / 1.02 <= tick <= high * 1.02]
        if len(found) >= 4:
            break
    return found


def _format_tick(value: float) -> str:
    if value >= 1e4:
        return figures.format_compact_tick(value)
    return f"{value:.4g}".replace("-", "−")


def _scale_interval(point: Point) -> tuple[float, ...]:
    """Returns the interval of a point in the unit of the axis, or nothing."""
    result = point.result
    if result is None or not (math.isfinite(result.low) and math.isfinite(result.high)):
        return ()
    scale = point.y / result.value if result.value else 1.0
    return scale * result.low, scale * result.high


def _scale_seed_values(point: Point) -> tuple[float, ...]:
    if point.result is None:
        return ()
    scale = point.y / point.result.value if point.result.value else 1.0
    return tuple(scale * value for value in point.result.values)


def _make_marker_style(line: Line) -> dict[str, Any]:
    own = COLOURS[figures.get_language_colour(line.style)]
    face = {"own": own, "none": "none", "grey": "#b9bec6"}[line.fill]
    return {
        "color": own,
        "marker": line.marker or figures.MARKERS[line.style % len(figures.MARKERS)],
        "markersize": _MARKER,
        "markerfacecolor": face,
        "markeredgecolor": own,
        "markeredgewidth": 0 if line.fill == "own" else 1.2,
    }


def _plot_line(axes: "Axes", line: Line, solid: bool) -> None:
    from matplotlib.transforms import ScaledTranslation

    own = COLOURS[figures.get_language_colour(line.style)]
    xs, ys = [point.x for point in line.points], [point.y for point in line.points]
    solid = solid or line.fill != "own"
    dash = "-" if solid else figures.DASHES[line.style % len(figures.DASHES)]
    width = 1.4 if line.joined else 0
    axes.plot(xs, ys, linewidth=width, linestyle=dash, **_make_marker_style(line), zorder=3)
    bars, seeds = [], []
    for point in line.points:
        ends = _scale_interval(point)
        heights = [axes.transData.transform((point.x, y))[1] for y in ends]
        # What would not reach beyond the marker is not seen, and clutters a hollow one.
        if ends and heights[1] - heights[0] > _MARKER:
            bars.append((point.x, point.y, point.y - ends[0], ends[1] - point.y))
        seeds += [(point.x, seed) for seed in _scale_seed_values(point)]
    if bars:
        bar_xs, bar_ys, below, above = zip(*bars, strict=True)
        style: dict[str, Any] = {"capsize": 2.5, "capthick": 0.9, "elinewidth": 0.9}
        away = [[max(0.0, y) for y in below], [max(0.0, y) for y in above]]
        axes.errorbar(bar_xs, bar_ys, yerr=away, fmt="none", ecolor=own, **style)
    if seeds:
        # Beside the mean, which would lie upon them.
        aside = ScaledTranslation(-6 / 72, 0, axes.figure.dpi_scale_trans)
        dots: dict[str, Any] = {"color": own, "markersize": 4.5, "alpha": 0.8, "zorder": 4}
        place = axes.transData + aside
        axes.plot(*zip(*seeds, strict=True), ".", transform=place, **dots)


def _plot_curve(axes: "Axes", line: Line) -> None:
    own = COLOURS[figures.get_language_colour(line.style)]
    xs, ys = [point.x for point in line.points], [point.y for point in line.points]
    axes.plot(xs, ys, color=own, linewidth=1.1, linestyle=_CURVE, zorder=2)


def _plot_reported(axes: "Axes", line: Line) -> None:
    xs, ys = [point.x for point in line.points], [point.y for point in line.points]
    look = {**_make_marker_style(line), "markerfacecolor": "none", "markeredgecolor": _GREY}
    axes.plot(xs, ys, **{**look, "markersize": 7, "markeredgewidth": 0.9, "linestyle": "none"})


def _label_line_ends(axes: "Axes", panel: Panel, lines: Sequence[Line]) -> None:
    """Writes each line's name to the right of the panel, moved apart where they would meet."""
    frame = axes.get_window_extent()
    ends = []
    for line in lines:
        finite = [point for point in line.points if math.isfinite(point.y)]
        if not finite:  # all of its runs diverged
            continue
        point = finite[-1]
        x = frame.x1 if line.kind == "level" else axes.transData.transform((point.x, 1.0))[0]
        y = axes.transData.transform((axes.get_xlim()[1], point.y))[1]
        ends.append((min(max(float(y), frame.y0), frame.y1), float(x), line))
    ends.sort(key=lambda end: end[0])
    heights = figures.spread_heights([y for y, _, _ in ends], 13.5, frame.y0, frame.y1)
    for height, (y, x, line) in zip(heights, ends, strict=True):
        own = COLOURS["muted" if line.kind == "level" else figures.get_language_colour(line.style)]
        ys = [(value - frame.y0) / frame.height for value in (y, height)]
        xs = [(x - frame.x0) / frame.width, 1 + 12 / frame.width]
        leader: dict[str, Any] = {"color": own, "linewidth": 0.7, "clip_on": False}
        if xs[0] < 0.9:  # far from its label, and not to be taken for more of the line
            leader |= {"linestyle": (0, (1, 3))}
        axes.plot(xs, ys, transform=axes.transAxes, **leader)
        axes.annotate(
            line.name,
            (1.0, ys[1]),
            xycoords="axes fraction",
            xytext=(16, 0),
            textcoords="offset points",
            va="center",
            fontsize=11.5,
            color=COLOURS["muted" if line.kind == "level" else "ink"],
            annotation_clip=False,
            parse_math=False,
        )


def _make_legend_handles(panels: Sequence[Panel]) -> list[Any]:
    """Returns what the legend explains, which is no line with a name of its own."""
    from matplotlib.lines import Line2D

    points = [point for panel in panels for line in panel.lines for point in line.points]
    handles = []
    if any(_scale_seed_values(point) for point in points):
        bar: dict[str, Any] = {
            "marker": "|",
            "markersize": 10,
            "linestyle": "none",
            "color": COLOURS["muted"],
        }
        dot: dict[str, Any] = {
            "marker": ".",
            "markersize": 6,
            "linestyle": "none",
            "color": COLOURS["muted"],
        }
        handles += [Line2D([], [], label="one seed", **dot)]
        handles += [Line2D([], [], label="interval of the mean", **bar)]
    if any(panel.reported for panel in panels):
        ring: dict[str, Any] = {"marker": "o", "markersize": 7, "linestyle": "none", "color": _GREY}
        handles.append(Line2D([], [], label="reported", markerfacecolor="none", **ring))
    if any(panel.diagonal for panel in panels):
        dash: dict[str, Any] = {
            "color": COLOURS["muted"],
            "linewidth": 0.9,
            "linestyle": (0, (5, 4)),
        }
        handles.append(Line2D([], [], label="MLTE equal to all training tokens", **dash))
    return handles


# Heat maps.


def _draw_map_grid(maps: Sequence[HeatMap], columns: int) -> "Figure":
    cells = max(len(each.columns) for each in maps)
    rows = max(len(each.rows) for each in maps)
    columns = min(columns, len(maps))
    count = math.ceil(len(maps) / columns)
    # The names of the rows stand once, to the left of all maps of a row.
    each, tall = _CELL * cells + _GAP, _ROW * rows + 76
    width, height = _NAMES + each * columns + 40, count * tall
    drawn = figures.make_figure(width, height)
    for place, heat_map in enumerate(maps):
        row, column = divmod(place, columns)
        left, top = _NAMES + each * column, tall * row + 34
        inner = (_CELL * len(heat_map.columns), _ROW * len(heat_map.rows))
        box = (left / width, 1 - (top + inner[1]) / height, inner[0] / width, inner[1] / height)
        axes = drawn.add_axes(box)
        image = _draw_heat_map(axes, heat_map, names=column == 0)
    bar = drawn.add_axes(((width - 52) / width, 0.35, 12 / width, 0.45))
    drawn.colorbar(image, cax=bar, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.tick_params(labelsize=10, colors=COLOURS["muted"], length=2)
    bar.yaxis.set_major_formatter(figures.make_tick_formatter(_format_tick))
    bar.spines[:].set_visible(False)
    return drawn


def _draw_heat_map(axes: "Axes", heat_map: HeatMap, *, names: bool) -> Any:
    """Draws the cells with their values, and the mean over them with and without the noise."""
    values = [
        [_get_cell_value(heat_map, row, column) for column in heat_map.columns]
        for row in heat_map.rows
    ]
    image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if math.isfinite(value):
                colour = _LIGHT if abs(value) > 0.65 else _DARK
                text = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
                place: dict[str, Any] = {"ha": "center", "va": "center"}
                axes.text(x, y, text, fontsize=9, color=colour, **place)
    from matplotlib.patches import Rectangle

    if KEYS_BIAS in heat_map.rows:
        top = heat_map.rows.index(KEYS_BIAS) - 0.5
        frame: dict[str, Any] = {
            "fill": False,
            "edgecolor": _DARK,
            "linewidth": 1.0,
            "linestyle": (0, (3, 2)),
        }
        axes.add_patch(Rectangle((-0.5, top), len(heat_map.columns), 1, clip_on=False, **frame))
    axes.set_xticks(range(len(heat_map.columns)), [str(layer) for layer in heat_map.columns])
    axes.set_yticks(range(len(heat_map.rows)), heat_map.rows if names else [])
    axes.tick_params(length=0, labelsize=10.5, colors=COLOURS["muted"], pad=5)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer", fontsize=11, color=COLOURS["muted"], labelpad=2)
    kept = [
        value
        for name, row in zip(heat_map.rows, values, strict=True)
        for value in row
        if name != KEYS_BIAS and math.isfinite(value)
    ]
    title = heat_map.title
    if heat_map.mean:
        title += f": mean {heat_map.mean.value:.4f}"
    if kept:
        title += f", {math.fsum(kept) / len(kept):.4f} without the framed row"
    style: dict[str, Any] = {
        "fontsize": 11.5,
        "color": COLOURS["ink"],
        "loc": "left",
        "parse_math": False,
    }
    axes.set_title(title, **style)
    return image


def _get_cell_value(heat_map: HeatMap, row: str, column: int) -> float:
    result = heat_map.cells.get((row, column))
    return result.value if result else math.nan
