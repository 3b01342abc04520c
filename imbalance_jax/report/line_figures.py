"""Figures of curves and lines, with what a screen reader says of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from imbalance_jax.drawing import alignment_figures, plots
from imbalance_jax.drawing.alignment_figures import AlignmentLine
from imbalance_jax.drawing.numbers import format_significant
from imbalance_jax.drawing.pages import Figure
from imbalance_jax.drawing.plots import Curve


def draw_curve_figure(
    name: str,
    title: str,
    reading: str,
    curves: Mapping[str, Curve],
    tags: Sequence[str],
    *,
    behind: Mapping[str, Curve] | None = None,
    **style: Any,
) -> Figure | None:
    """Draws a curve for each language, pair or run, or nothing where no value is finite.

    Args:
      name: an identifier that no other figure of the page has.
      tags: all languages of the run; a curve's style follows from its place here.
      behind: curves drawn thin behind, which are described where there are no others.
      style: see `plots.plot_language_curves`.
    """
    curves = {tag: curve for tag, curve in curves.items() if curve}
    described = curves or {tag: curve for tag, curve in (behind or {}).items() if curve}
    if not described:
        return None
    scale, unit = (100, " %") if style.get("percent") else (1, "")
    last_step = max(curve.steps[-1] for curve in described.values())
    ends = ", ".join(
        f"{tag} at {format_significant(scale * curve.last, 4)}{unit}"
        for tag, curve in described.items()
    )
    description = f"{title} At step {last_step:,}: {ends}."
    svg = plots.plot_language_curves(name, description, curves, tags=tags, behind=behind, **style)
    return Figure(svg, title, reading)


def draw_line_figure(
    name: str,
    title: str,
    reading: str,
    lines: Mapping[str, AlignmentLine],
    names: Sequence[str],
    **style: Any,
) -> Figure | None:
    """Draws lines over layers, counts or sizes, or nothing where no value is known.

    Args:
      names: all names of a group of figures; a line's style follows from its place here.
      style: see `alignment_figures.plot_lines`.
    """
    log_x, log_y = not style.get("layers"), style.get("log", False)
    known = {tag: line.known(log_x, log_y) for tag, line in lines.items()}
    ends = ", ".join(
        f"{tag} from {format_significant(line.y[0])} to {format_significant(line.y[-1])}"
        for tag, line in known.items()
        if line
    )
    if not ends:
        return None
    description = f"{title} From left to right: {ends}."
    svg = alignment_figures.plot_lines(name, description, lines, names=names, **style)
    return Figure(svg, title, reading)
