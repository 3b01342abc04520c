"""Figures of a run as inline SVG.

Each function returns one `<svg>` element for a page. Its text is text, its colours are the
page's CSS variables (`var(--ink)`, `var(--language-0)`), so that a figure follows the page
into dark mode and print, and the same input always gives the same characters.

A language has a colour, a line style, a marker and its tag at the line's end, so that
figures read the same without colour.
"""

import dataclasses
import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imbalance_jax.drawing.numbers import format_compact as format_compact
from imbalance_jax.drawing.numbers import format_compact_tick as format_compact_tick
from imbalance_jax.drawing.numbers import format_significant as format_significant

# Loaded where it is used: importing this module must stay cheap.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# CSS variable -> its colour in light mode, which stands in while matplotlib draws. The
# languages' are those of Okabe and Ito, the pale ones darkened to be seen as thin lines.
COLOURS = {
    "ink": "#1c2128",
    "muted": "#5a6370",
    "line": "#dfe3e8",
    "language-0": "#0072b2",
    "language-1": "#d55e00",
    "language-2": "#009e73",
    "language-3": "#b8609a",
    "language-4": "#c08400",
    "language-5": "#3d9bdc",
    "language-6": "#6b6f76",
    # Below and above 0; --ink on either can be read in both modes.
    "cold": "#4b97d2",
    "warm": "#e0705f",
}
COLOURS_DARK = {
    "ink": "#e4e8ed",
    "muted": "#9aa4b1",
    "line": "#333b46",
    "language-0": "#4fb0ec",
    "language-1": "#ff8f4a",
    "language-2": "#2fc99b",
    "language-3": "#e79bcb",
    "language-4": "#eebc4a",
    "language-5": "#9bd6fa",
    "language-6": "#b5bac2",
    "cold": "#2a66a5",
    "warm": "#a84438",
}
_LANGUAGE_COLOURS = tuple(name for name in COLOURS if name.startswith("language"))
MARKERS = "os^Dv<P>X*"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))

NARROW = 440  # pixels: half of a desktop page, and not much more than a phone
WIDE = 992
_POINTS = 400  # points of a curve that are drawn; a narrow figure has no more pixels


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


def get_language_colour(index: int) -> str:
    """Returns the CSS variable of the colour of a language, by its place in config.tags."""
    return _LANGUAGE_COLOURS[index % len(_LANGUAGE_COLOURS)]


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
    drawn = {tag: _thin_curve(curves[tag], scale, log) for tag in tags if tag in curves}
    drawn = {tag: curve for tag, curve in drawn.items() if curve}
    pale = {tag: _thin_curve(curve, scale, log) for tag, curve in (behind or {}).items()}
    pale = {tag: curve for tag, curve in pale.items() if curve}
    shown = drawn or pale

    figure = make_figure(width, height)
    right = 34 + 8.5 * max((len(tag) for tag in shown), default=0)
    left, bottom = (66, 56) if tokens_per_step else (48, 42)
    axes = add_bare_axes(figure, (left, right, 30, bottom), y_label)
    for tag, curve in pale.items():
        style: dict[str, Any] = {
            "color": COLOURS[get_language_colour(tags.index(tag))],
            "linewidth": 0.8,
            "alpha": 0.45,
        }
        axes.plot(curve.steps, curve.values, **style)
    for tag, curve in drawn.items():
        index = tags.index(tag)
        axes.plot(
            curve.steps,
            curve.values,
            color=COLOURS[get_language_colour(index)],
            linestyle=DASHES[index % len(DASHES)],
            linewidth=1.7,
            marker=MARKERS[index % len(MARKERS)],
            markersize=4.5,
            markeredgewidth=0,
            markevery=max(1, math.ceil(len(curve.steps) / 8)),
        )
    last = max((curve.steps[-1] for curve in [*drawn.values(), *pale.values()]), default=1)
    _set_step_axis(axes, last, tokens_per_step)
    for step in stage_steps:
        axes.axvline(step, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 3)))
    set_value_axis(axes, [*drawn.values()], [*pale.values()], log)
    ends = {tag: (curve.steps[-1], curve.values[-1]) for tag, curve in shown.items()}
    label_curve_ends(axes, ends, tags)
    return render_svg(figure, name, description)


def plot_optimizer_curves(description: str, learning_rate: Curve, grad_norm: Curve) -> str:
    """Draws the learning rate above the norm of the gradient."""
    figure = make_figure(NARROW, 290)
    panels = [
        ("learning rate", _thin_curve(learning_rate), (48, 20, 30, 164), False),
        ("gradient norm (log scale)", _thin_curve(grad_norm, log=True), (48, 20, 158, 40), True),
    ]
    last = max((curve.steps[-1] for _, curve, _, _ in panels if curve), default=1)
    for label, curve, margins, log in panels:
        axes = add_bare_axes(figure, margins, label)
        axes.plot(curve.steps, curve.values, color=COLOURS["language-0"], linewidth=1.2)
        _set_step_axis(axes, last)
        set_value_axis(axes, [curve], [], log)
        if not log:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(make_tick_locator("linear", 3))
            axes.yaxis.set_major_formatter(make_tick_formatter(_format_power))
            axes.set_xticklabels([])
            axes.set_xlabel("")
    return render_svg(figure, "optimizer", description)


def plot_training_speed(description: str, tokens_per_second: Curve, mfu_per_token: float) -> str:
    """Draws tokens per second, with the MFU that they come to on the right axis.

    Args:
      mfu_per_token: MFU at one token per second; 0 leaves the right axis out.
    """
    curve = _thin_curve(tokens_per_second)
    figure = make_figure(NARROW, 290)
    axes = add_bare_axes(figure, (48, 52 if mfu_per_token else 20, 30, 40), "tokens per second")
    axes.plot(curve.steps, curve.values, color=COLOURS["language-0"], linewidth=1.4)
    _set_step_axis(axes, curve.steps[-1] if curve else 1)
    axes.set_ylim(0, 1.12 * max(curve.values, default=1))
    axes.yaxis.set_major_locator(make_tick_locator("linear", 5))
    axes.yaxis.set_major_formatter(make_tick_formatter(format_compact_tick))
    if mfu_per_token:
        percent = 100 * mfu_per_token

        def to_mfu(y: Any) -> Any:
            return y * percent

        def from_mfu(y: Any) -> Any:
            return y / percent

        mfu = axes.secondary_yaxis("right", (to_mfu, from_mfu))
        mfu.spines["right"].set_visible(False)
        mfu.tick_params(colors=COLOURS["muted"], length=0, labelsize=12, pad=6)
        mfu.yaxis.set_major_locator(make_tick_locator("linear", 5))
        mfu.yaxis.set_major_formatter(make_tick_formatter(lambda y: f"{y:.6g} %"))
        style: dict[str, Any] = {"ha": "right", "color": COLOURS["muted"], "fontsize": 12}
        figure.text(1, 1 - 17 / 290, "MFU", **style)
    return render_svg(figure, "speed", description)


def plot_mixture(
    description: str,
    requested: Mapping[str, float],
    realised: Mapping[str, float],
    *,
    tags: Sequence[str],
) -> str:
    """Draws the requested and the realised fraction of the sequences of each language."""
    tags_shown = [tag for tag in tags if tag in realised]
    row = 40
    height = 34 + row * len(tags_shown)
    figure = make_figure(NARROW, height)
    left = 20 + 8.5 * max((len(tag) for tag in tags_shown), default=0)
    axes = add_bare_axes(figure, (left, 144, 30, 4), "")
    figure.text(left / NARROW, 1 - 17 / height, "% of the sequences", **get_small_text_style())
    # The largest bar ends short of the frame, whatever it is.
    axes.set_xlim(0, 100 * max([*requested.values(), *realised.values(), 1e-9]))
    axes.set_ylim(len(tags_shown) - 0.5, -0.5)
    axes.set_xticks([])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(True)
    axes.spines["left"].set_color(COLOURS["muted"])
    axes.set_yticks(range(len(tags_shown)), tags_shown, parse_math=False)
    axes.tick_params(axis="y", labelsize=13, labelcolor=COLOURS["ink"], pad=8)
    for y, tag in enumerate(tags_shown):
        asked, got = 100 * requested.get(tag, math.nan), 100 * realised[tag]
        edge: dict[str, Any] = {"edgecolor": COLOURS["muted"], "linewidth": 1.0, "fill": False}
        if math.isfinite(asked):
            axes.barh(y - 0.19, asked, height=0.3, **edge)
            axes.annotate(
                f"{_format_bar_percent(asked)} requested",
                (asked, y - 0.19),
                **_get_bar_label_style(),
            )
        axes.barh(y + 0.19, got, height=0.34, color=COLOURS[get_language_colour(tags.index(tag))])
        strong = {**_get_bar_label_style(), "color": COLOURS["ink"]}
        axes.annotate(f"{_format_bar_percent(got)} realised", (got, y + 0.19), **strong)
    return render_svg(figure, "mixture", description)


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


def make_figure(width: int, height: int) -> "Figure":
    from matplotlib.figure import Figure

    # At 72 dots per inch a point, matplotlib's unit, is one pixel of the SVG.
    return Figure(figsize=(width / 72, height / 72), dpi=72)


def add_bare_axes(
    figure: "Figure", margins: tuple[float, float, float, float], y_label: str
) -> "Axes":
    """Adds bare axes with pixels to the left, right, top and bottom, and a title there."""
    width, height = 72 * figure.get_figwidth(), 72 * figure.get_figheight()
    left, right, top, bottom = margins
    box = (
        left / width,
        bottom / height,
        1 - (left + right) / width,
        1 - (top + bottom) / height,
    )
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLOURS["muted"])
        spine.set_linewidth(0.8)
    axes.tick_params(colors=COLOURS["muted"], length=0, labelsize=12, pad=6)
    axes.tick_params(axis="x", length=3, width=0.8)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    figure.text(0, 1 - (top - 13) / height, y_label, **get_small_text_style())
    return axes


def get_small_text_style() -> dict[str, Any]:
    return {"ha": "left", "va": "baseline", "fontsize": 12, "color": COLOURS["muted"]}


def _get_bar_label_style() -> dict[str, Any]:
    """Returns how a text stands beside the end of a bar."""
    return {
        "xytext": (6, 0),
        "textcoords": "offset points",
        "va": "center",
        "annotation_clip": False,
        "fontsize": 12,
        "color": COLOURS["muted"],
    }


def _format_power(value: float) -> str:
    """Returns a small number as 6e−4 or 2.5e−4."""
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}".replace("-", "−") if value else "0"


def _format_bar_percent(percent: float) -> str:
    return f"{format_significant(percent)} %"


def make_tick_locator(kind: str, count: int) -> Any:
    from matplotlib import ticker

    if kind == "log":
        return ticker.LogLocator(subs=(1.0,) if count > 2 else (1.0, 2.0, 5.0))
    return ticker.MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], integer=kind == "whole")


def make_tick_formatter(write: Callable[[float], str]) -> Any:
    from matplotlib import ticker

    return ticker.FuncFormatter(lambda value, _: write(value))


def _set_step_axis(axes: "Axes", last: int, tokens_per_step: float = 0.0) -> None:
    """Counts steps from 0 to the last one, and tokens below them if they are known."""
    axes.set_xlim(0, max(1, last))
    count = 5 if axes.get_window_extent().width < 600 else 8
    axes.xaxis.set_major_locator(make_tick_locator("whole", count))
    axes.xaxis.set_major_formatter(make_tick_formatter(lambda step: f"{step:,.0f}"))
    axes.set_xlabel("step", fontsize=12, color=COLOURS["muted"], labelpad=3)
    if tokens_per_step:
        axes.xaxis.set_major_formatter(
            make_tick_formatter(
                lambda step: f"{step:,.0f}\n{format_compact_tick(step * tokens_per_step)}"
            )
        )
        axes.set_xlabel("")
        # Beside the axis rather than under it, where the two rows of numbers end.
        place: dict[str, Any] = {
            "xy": (0, 0),
            "xycoords": "axes fraction",
            "annotation_clip": False,
        }
        for text, below in (("step", 18), ("tokens", 32.4)):
            offset: dict[str, Any] = {"xytext": (-66, -below), "textcoords": "offset points"}
            axes.annotate(text, **place, **offset, **get_small_text_style())


def set_value_axis(axes: "Axes", drawn: Sequence[Curve], pale: Sequence[Curve], log: bool) -> None:
    values = [value for curve in drawn or pale for value in curve.values]
    if not values:
        axes.set_yticks([])
        return
    if log and min(values) > 0:
        axes.set_yscale("log")
        low, high = min(values), max(values)
        # At least a factor of 2.5 in all, which holds a tick wherever it begins.
        pad = max(1.15, (high / low) ** 0.06, (2.5 * low / high) ** 0.5)
        axes.set_ylim(low / pad, high * pad)
        axes.yaxis.set_major_locator(make_tick_locator("log", math.ceil(math.log10(high / low))))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(make_tick_formatter(lambda value: f"{value:.6g}"))
        return
    # The pale curves begin far above the others and may leave the frame, unless a late
    # value is among the highest: what happens at the end has to be seen.
    late = [
        value
        for curve in pale
        for step, value in zip(curve.steps, curve.values, strict=True)
        if step > 0.1 * max(curve.steps)
    ]
    low, high = min(values + late), max(values + late)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_locator(make_tick_locator("linear", 6))
    axes.yaxis.set_major_formatter(
        make_tick_formatter(lambda value: f"{value:.6g}".replace("-", "−"))
    )


def label_curve_ends(
    axes: "Axes", ends: Mapping[str, tuple[float, float]], tags: Sequence[str]
) -> None:
    """Writes each curve's tag to the right of its end, moved apart where they would meet."""
    if not ends:
        return
    frame = axes.get_window_extent()
    points = {tag: axes.transData.transform(end) for tag, end in ends.items()}
    order = sorted(points, key=lambda tag: float(points[tag][1]))
    heights = spread_heights([float(points[tag][1]) for tag in order], 14.0, frame.y0, frame.y1)
    moved = max(abs(y - float(points[tag][1])) for tag, y in zip(order, heights, strict=True))
    leader = 9 if moved < 8 else 18
    for tag, y in zip(order, heights, strict=True):
        style = COLOURS[get_language_colour(tags.index(tag))]
        height = (y - frame.y0) / frame.height
        x_end, y_end = (points[tag] - (frame.x0, frame.y0)) / (frame.width, frame.height)
        y_end = min(max(float(y_end), 0.0), 1.0)
        line: dict[str, Any] = {"color": style, "linewidth": 0.8, "clip_on": False}
        if x_end < 0.95:  # far from its label, and not to be taken for more of the curve
            line |= {"linestyle": (0, (1, 3))}
        axes.plot(
            [x_end, 1 + leader / frame.width], [y_end, height], transform=axes.transAxes, **line
        )
        axes.annotate(
            tag,
            (1.0, height),
            xycoords="axes fraction",
            xytext=(leader + 4, 0),
            textcoords="offset points",
            va="center",
            fontsize=13,
            color=COLOURS["ink"],
            annotation_clip=False,
            parse_math=False,
        )
        axes.plot(
            [x_end],
            [y_end],
            transform=axes.transAxes,
            color=style,
            marker=MARKERS[tags.index(tag) % len(MARKERS)],
            markersize=5.5,
            markeredgewidth=0,
            clip_on=False,
        )


def spread_heights(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns ascending heights, moved as little as possible to be a gap apart.

    Less i gaps, the i-th height may only ascend: the least-squares answer pools neighbours
    that descend into their mean (isotonic regression).
    """
    pools: list[tuple[float, int]] = []
    for i, height in enumerate(heights):
        mean, count = height - i * gap, 1
        while pools and pools[-1][0] > mean:
            above, members = pools.pop()
            mean = (above * members + mean * count) / (members + count)
            count += members
        pools.append((mean, count))
    flat = [mean for mean, count in pools for _ in range(count)]
    ceiling = high - gap * (len(heights) - 1)
    return [max(low, min(base, ceiling)) + i * gap for i, base in enumerate(flat)]


def _thin_curve(curve: Curve, scale: float = 1, log: bool = False) -> Curve:
    """Returns the finite points of a curve, at most `_POINTS`, with every spike among them.

    A long curve is cut into bins, and each keeps its lowest and its highest point.
    """
    steps = np.asarray(curve.steps, dtype=np.int64)
    values = scale * np.asarray(curve.values, dtype=np.float64)
    keep = np.isfinite(values)
    if log and np.any(values[keep] > 0):
        keep &= values > 0
    steps, values = steps[keep], values[keep]
    if len(steps) > _POINTS:
        bins = np.array_split(np.arange(len(steps)), _POINTS // 2 - 1)
        kept = {0, len(steps) - 1}
        for part in bins:
            kept |= {int(part[np.argmin(values[part])]), int(part[np.argmax(values[part])])}
        chosen = sorted(kept)
        steps, values = steps[chosen], values[chosen]
    return Curve(steps.tolist(), values.tolist())


def render_svg(figure: "Figure", name: str, description: str) -> str:
    """Returns a figure as one element that can stand beside others in a page."""
    import matplotlib

    written = io.StringIO()
    # Text stays text: it can be selected and searched, and needs no font of ours.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    # What belongs to a file of its own: prolog, metadata, and styles for all of the page.
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    # Ids are unique in a page, so those that are referred to carry the figure's name.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r' id="([^"]*)"', rf' id="{name}-\1"', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    # The font is the page's; releases of matplotlib differ in how they name one.
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    for variable, value in COLOURS.items():
        text = text.replace(value, f"var(--{variable})")
    # A hundredth of a pixel is enough, in tags that is: text between them stays.
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"\d+\.\d{3,}", _round_svg_number, tag[0]), text)
    width, height = 72 * figure.get_figwidth(), 72 * figure.get_figheight()
    label = html.escape(description)
    head = (
        f'<svg width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{label}">'
    )
    text = re.sub(r"^<svg[^>]*>", lambda _: head, text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _round_svg_number(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
