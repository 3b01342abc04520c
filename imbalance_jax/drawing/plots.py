"""Figures of a run as inline SVG: curves over its steps, and its mixture."""

import dataclasses
import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imbalance_jax.drawing.axes import add_axes
from imbalance_jax.drawing.colours import COLOURS as COLOURS
from imbalance_jax.drawing.colours import COLOURS_DARK as COLOURS_DARK
from imbalance_jax.drawing.colours import DASHES as DASHES
from imbalance_jax.drawing.colours import MARKERS as MARKERS
from imbalance_jax.drawing.colours import get_language_colour as get_language_colour
from imbalance_jax.drawing.draw import NARROW, WIDE, draw_panels
from imbalance_jax.drawing.draw import make_figure as make_figure
from imbalance_jax.drawing.draw import spread_heights as spread_heights
from imbalance_jax.drawing.numbers import format_compact as format_compact
from imbalance_jax.drawing.numbers import format_compact_tick as format_compact_tick
from imbalance_jax.drawing.numbers import format_significant as format_significant
from imbalance_jax.drawing.panel import Line, Panel, Point, dodge_lines, make_points
from imbalance_jax.drawing.svg import render_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric over the steps of a run."""

    steps: Sequence[int]
    values: Sequence[float]

    def __bool__(self) -> bool:
        return any(math.isfinite(value) for value in self.values)

    @property
    def last(self) -> float:
        """The newest value that is finite; NaN where there is none."""
        return next((v for v in reversed(self.values) if math.isfinite(v)), math.nan)


def plot_language_curves(
    name: str,
    description: str,
    curves: Mapping[str, Curve],
    *,
    tags: Sequence[str],
    y_label: str,
    behind: Mapping[str, Curve] | None = None,
    log: bool = False,
    percent: bool = False,
    tokens_per_step: float = 0.0,
    stage_steps: Sequence[int] = (),
    width: int = NARROW,
    height: int = 290,
) -> str:
    """Draws one curve per language, its tag at the end.

    Args:
      name: an identifier that no other figure of the page has.
      description: what a screen reader says in place of the figure.
      tags: all languages of the run; a language's style follows from its place here.
      behind: curves drawn thin and pale behind, such as noisy ones of the same quantity.
      log: a logarithmic y axis, where there is a positive value.
      percent: values are fractions, and the axis counts them in percent.
      tokens_per_step: where not 0, the step axis counts tokens as well.
      stage_steps: steps at which the mixture changes; each gets a vertical line.
    """
    scale = 100 if percent else 1

    def make_lines(curves: Mapping[str, Curve], dash: str | None) -> tuple[Line, ...]:
        return tuple(
            Line(
                tag,
                make_points(curves[tag].steps, [scale * value for value in curves[tag].values]),
                style=index,
                dash=dash,
            )
            for index, tag in enumerate(tags)
            if tag in curves and curves[tag]
        )

    panel = Panel(
        y_label,
        "",
        make_lines(curves, None),
        behind=make_lines(behind or {}, "-"),
        x_scale="steps",
        y_scale="log" if log else "linear",
        tokens_per_step=tokens_per_step,
        verticals=tuple(stage_steps),
    )
    return render_svg(draw_panels([panel], width=width, height=height), name, description)


def plot_optimizer_curves(description: str, learning_rate: Curve, grad_norm: Curve) -> str:
    """Draws the learning rate above the norm of the gradient."""
    rates = _make_plain_curve(learning_rate)
    norms = _make_plain_curve(grad_norm)
    top = 1.1 * max((point.y for point in rates.points if math.isfinite(point.y)), default=1.0)
    panels = [
        Panel("learning rate", "", (rates,), x_scale="steps", y_range=(0, top or 1.0)),
        Panel("gradient norm (log scale)", "", (norms,), x_scale="steps", y_scale="log"),
    ]
    return render_svg(draw_panels(panels, height=165), "optimizer", description)


def plot_training_speed(description: str, tokens_per_second: Curve, mfu_per_token: float) -> str:
    """Draws tokens per second, with the MFU that they come to on the right axis.

    Args:
      mfu_per_token: MFU at one token per second; 0 leaves the right axis out.
    """
    line = _make_plain_curve(tokens_per_second)
    top = 1.12 * max((point.y for point in line.points if math.isfinite(point.y)), default=1.0)
    panel = Panel(
        "tokens per second",
        "",
        (line,),
        x_scale="steps",
        y_range=(0, top),
        right_axis=("MFU", 100 * mfu_per_token) if mfu_per_token else None,
    )
    return render_svg(draw_panels([panel]), "speed", description)


def _make_plain_curve(curve: Curve) -> Line:
    return Line("", make_points(curve.steps, curve.values), kind="curve")


def plot_mixture(
    description: str,
    requested: Mapping[str, float],
    realised: Mapping[str, float],
    *,
    tags: Sequence[str],
) -> str:
    """Draws the requested and the realised fraction of the sequences of each language."""
    shown = [tag for tag in tags if tag in realised]

    def make_bars(fractions: Mapping[str, float], up: float, word: str) -> tuple[Point, ...]:
        percents = [100 * fractions.get(tag, math.nan) for tag in shown]
        return tuple(
            Point(row + up, percent, name=f"{format_significant(percent)} % {word}")
            for row, percent in enumerate(percents)
        )

    bars = [Line("", make_bars(requested, -0.19, "requested"), "bars", colour="muted", fill="none")]
    for row, bar in enumerate(make_bars(realised, 0.19, "realised")):
        bars.append(Line("", (bar,), "bars", style=tags.index(shown[row])))
    panel = Panel("% of the sequences", "", tuple(bars), names=tuple(shown), horizontal=True)
    return render_svg(draw_panels([panel], height=60 + 40 * len(shown)), "mixture", description)


def compute_part_opacity(index: int, count: int) -> float:
    """Returns how opaque one of several parts is: the first darkest, the last lightest."""
    return round(0.9 - 0.72 * index / max(1, count - 1), 3)


def plot_stacked_bar(description: str, parts: Mapping[str, float]) -> str:
    """Draws the parts of a whole as one bar as wide as the page, in shades of ink.

    No language's colour is in it, since a part belongs to none.
    """
    whole = math.fsum(parts.values()) or 1.0
    drawn, x = [], 0.0
    for index, (name, value) in enumerate(parts.items()):
        percent = 100 * value / whole
        opacity = compute_part_opacity(index, len(parts))
        drawn.append(
            f'<rect x="{x:.3f}%" y="0" width="{percent:.3f}%" height="34" style="fill: '
            f'var(--ink); fill-opacity: {opacity}; stroke: var(--ground); stroke-width: 1.5"/>'
        )
        # On a phone a quarter of the bar is about as wide as the longest of the names.
        if percent > 25:
            drawn.append(
                f'<text x="{x + percent / 2:.3f}%" y="22" text-anchor="middle" '
                f'style="fill: var(--{"ground" if opacity > 0.5 else "ink"}); '
                f'font-size: 13px; font-weight: 600">{html.escape(name)}</text>'
            )
        x += percent
    label = html.escape(description)
    return (
        f'<svg class="bar" width="100%" height="34" role="img" aria-label="{label}">'
        f"{''.join(drawn)}</svg>"
    )


def plot_task_accuracies(
    name: str,
    description: str,
    accuracies: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    tags: Sequence[str],
) -> str:
    """Draws the accuracy in each task, with a marker for each language beside each other.

    Args:
      name: an identifier that no other figure of the page has.
      description: what a screen reader says in place of the figure.
      accuracies: task -> language -> accuracy, its interval, and majority: the accuracy of always
        the most frequent label, which is drawn as a short bar.
      tags: all languages of the run; a language's style follows from its place here.
    """
    shown = [tag for tag in tags if any(tag in by_tag for by_tag in accuracies.values())]
    measured = {
        tag: [(x, by_tag[tag]) for x, by_tag in enumerate(accuracies.values()) if tag in by_tag]
        for tag in shown
    }
    means = [
        Line(
            tag,
            tuple(Point(x, row["accuracy"], *row["interval"]) for x, row in measured[tag]),
            "points",
            style=tags.index(tag),
        )
        for tag in shown
    ]
    majorities = [
        Line(
            tag,
            tuple(Point(x, row["majority"]) for x, row in measured[tag]),
            "points",
            colour="muted",
            marker="_",
            size=12,
            labelled=False,
        )
        for tag in shown
    ]
    lines = dodge_lines(majorities, 18) + dodge_lines(means, 18)
    panel = Panel("accuracy", "", lines, names=tuple(accuracies))
    return render_svg(draw_panels([panel], width=WIDE, height=300), name, description)


# What the pages call until they use the engine themselves.


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
