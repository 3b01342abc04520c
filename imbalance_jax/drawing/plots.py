"""What study_figures and paper_figures call until they draw panels."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from imbalance_jax.drawing.axes import add_axes
from imbalance_jax.drawing.colours import COLOURS as COLOURS
from imbalance_jax.drawing.colours import COLOURS_DARK as COLOURS_DARK
from imbalance_jax.drawing.colours import DASHES as DASHES
from imbalance_jax.drawing.colours import MARKERS as MARKERS
from imbalance_jax.drawing.colours import get_language_colour as get_language_colour
from imbalance_jax.drawing.draw import NARROW as NARROW
from imbalance_jax.drawing.draw import WIDE as WIDE
from imbalance_jax.drawing.draw import make_figure as make_figure
from imbalance_jax.drawing.draw import spread_heights as spread_heights
from imbalance_jax.drawing.numbers import format_compact as format_compact
from imbalance_jax.drawing.numbers import format_compact_tick as format_compact_tick
from imbalance_jax.drawing.numbers import format_significant as format_significant
from imbalance_jax.drawing.svg import render_svg as render_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def add_bare_axes(
    figure: "Figure", margins: tuple[float, float, float, float], y_label: str
) -> "Axes":
    """Adds bare axes with pixels to the left, right, top and bottom, and a title there."""
    return add_axes(figure, margins, y_label, margins[0])


def get_small_text_style() -> dict[str, Any]:
    return {"ha": "left", "va": "baseline", "fontsize": 12, "color": COLOURS["muted"]}


def make_tick_locator(kind: str, count: int) -> Any:
    from matplotlib import ticker

    return ticker.MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], integer=kind == "whole")


def make_tick_formatter(write: Callable[[float], str]) -> Any:
    from matplotlib import ticker

    return ticker.FuncFormatter(lambda value, _: write(value))
