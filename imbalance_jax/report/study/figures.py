"""Figures of a study: losses, what they are worth and alignment, over steps, ratio and size.

`draw_study_figures` returns those that a study has something for, each as PNG, SVG, CSV and as an
element of the page. Every run is a small dot beside its cell's mean. A series has a marker of its
own and its name at its end, and a law a dash of its own, so that figures read without colour.
Hollow markers are extrapolated.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from imbalance_jax.analysis.effects import Effects
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.drawing.draw import WIDE, draw_panels
from imbalance_jax.drawing.panel import Line, Panel, dodge_lines
from imbalance_jax.drawing.svg import FigureFiles
from imbalance_jax.report.study.alignment_panels import (
    SHUFFLED,
    make_alignment_panels,
    make_transfer_panels,
)
from imbalance_jax.report.study.learning_panels import make_learning_panels
from imbalance_jax.report.study.loss_panels import (
    make_cell_panels,
    make_efficiency_panels,
    make_loss_panels,
    make_scaling_panels,
)
from imbalance_jax.report.study.passing_panels import make_passing_panels
from imbalance_jax.report.study.series import OTHER
from imbalance_jax.report.study.transfer_matrix import draw_transfer_matrix
from imbalance_jax.study import grid

# Pixels.
_HEIGHT = 330
_ROW = 22
_DODGE = 5.0  # between series at one place
# A series that is in several figures looks the same in all of them.
_STYLES = ("mixture", "placebo", "anchored", "copied", *grid.BASELINES, OTHER, SHUFFLED)
_SCALING = (
    "Loss, TEff against the short monolingual baseline (dotted: 1), and alignment of hidden states "
    "above that of shuffled pairs."
)

_MOST_CELLS = (
    "Of more cells than eight those that a claim names come first; curves.csv has all, and every "
    "step."
)


def draw_study_figures(table: StudyTable, effects: Effects) -> list[FigureFiles]:
    """Returns the figures that a study has something for, in the order of its page."""
    losses, alignments = make_learning_panels(table, effects)
    learning = [
        (
            "learning",
            "Held-out loss while the runs trained.",
            "A line is the mean over the seeds of a cell, the pale ones are its seeds. A baseline "
            "stands with the language that has as many tokens. Dotted: the least loss that a "
            "synthetic language can have, and the bars of claims. The first steps may lie above "
            "the frame. " + _MOST_CELLS,
            losses,
        ),
        (
            "learning_alignment",
            "Alignment of hidden states while the runs trained.",
            "Cosine of what the model makes of the same text in both languages, mean over the "
            "blocks, beside that of shuffled pairs, and what it is above them. " + _MOST_CELLS,
            alignments,
        ),
        (
            "passing",
            "The part of the runs that had passed a bar by a step.",
            "A run has passed a bar of loss once its held-out loss is at or below it, and one of "
            "alignment once the cosine of hidden states is so far above that of shuffled pairs. "
            "The table has 95 % intervals.",
            make_passing_panels(table, effects),
        ),
    ]
    losses_by_ratio = make_loss_panels(table, effects)
    figures = [
        (
            "loss_by_ratio",
            "Loss of a language against its part of the tokens.",
            _read_losses(losses_by_ratio),
            losses_by_ratio,
        ),
        (
            "efficiency_by_ratio",
            "What a language’s loss is worth, against each kind of baseline.",
            "TEff is the tokens that the language alone would need for the same loss, over those "
            "it had: above 1 the others helped. It is inflated where the part is small; the "
            "exchange rate, what one token of the others was worth in tokens of its own, is not. "
            "Intervals refit the law; those of frequent languages are long, and may leave the "
            "frame, as few other tokens share the deviation. Hollow markers are extrapolated.",
            make_efficiency_panels(table, effects),
        ),
        (
            "alignment_by_ratio",
            "Alignment of two languages against the smaller one’s part of the tokens.",
            "Cosine of what the model makes of the same text in both, and how often the nearest "
            "sequence of the other language is the right one. The short bars are the same where "
            "nothing is shared: pairs that were shuffled, and for retrieval chance. Only what "
            "rises above them, and above the placebo, is alignment.",
            make_alignment_panels(table, effects),
        ),
        (
            "transfer_by_ratio",
            "What is learnt in one language, asked in each.",
            "Mean accuracy over the tasks after fine-tuning in the one language alone; dotted: "
            "always the most frequent label. Bars are 95 % intervals over runs, dots single runs, "
            "each the mean of its fine-tunings.",
            make_transfer_panels(table),
        ),
        (
            "scaling_by_tokens",
            "The same ratios with more tokens.",
            _SCALING,
            make_scaling_panels(table, effects, "tokens"),
        ),
        (
            "scaling_by_size",
            "The same ratios in larger models.",
            _SCALING,
            make_scaling_panels(table, effects, "size"),
        ),
        (
            "cells",
            "Every mixture, schedules and anchors included.",
            "A row for each language of a cell; the dotted line is a TEff of 1. Bars are 95 % "
            "intervals, dots single runs, hollow markers extrapolated.",
            make_cell_panels(table, effects),
        ),
    ]
    drawn = [_draw_figure(*figure, styled=figure[-1]) for figure in learning if figure[-1]]
    drawn += [_draw_figure(*figure) for figure in figures if figure[-1]]
    matrix = draw_transfer_matrix(effects)
    return drawn if matrix is None else [*drawn, matrix]


def _read_losses(panels: Sequence[Panel]) -> str:
    """Returns how to read losses over the ratio, of what is there."""
    lines = [line for panel in panels for line in panel.lines]
    text = "Bars are 95 % intervals, dots single runs."
    if any(line.name == "placebo" for line in lines):
        text = f"The placebo says how much of a gain is no transfer. {text}"
    if any(line.kind == "curve" for line in lines):
        text = (
            "Lines are what the language alone reaches on as many tokens, by the law of each kind "
            "of baseline, with its runs as small hollow markers of the same form. Below the line "
            f"the other languages helped. {text}"
        )
    return text


def _draw_figure(
    name: str,
    title: str,
    reading: str,
    panels: Sequence[Panel],
    styled: Sequence[Panel] | None = None,
) -> FigureFiles:
    """Draws the panels of a figure, which may have styles of their own."""
    styled = _style_panels(panels) if styled is None else styled
    if panels[0].horizontal:
        height = 60 + _ROW * len(panels[0].names)
        drawing = draw_panels(styled, width=WIDE, height=height, columns=len(panels))
    else:
        height = _HEIGHT if len(panels) > 1 else round(1.25 * _HEIGHT)
        drawing = draw_panels(styled, width=WIDE, height=height, columns=2)
    return FigureFiles(name, title, reading, drawing, list(_list_rows(panels)))


def _style_panels(panels: Sequence[Panel]) -> list[Panel]:
    """Returns panels whose series have a style by their name, and stand beside each other."""
    named = [line for panel in panels for line in panel.lines if line.name]
    styles = list(dict.fromkeys((*_STYLES, *map(_get_style_name, named))))

    def style_line(line: Line, dodge: float) -> Line:
        style = styles.index(_get_style_name(line)) if line.name else 0
        return dataclasses.replace(line, style=style, dodge=dodge)

    styled = []
    for panel in panels:
        means = [line for line in panel.lines if _get_shown_as(line) == "mean"]
        beside = () if panel.horizontal else dodge_lines(means, _DODGE)
        dodges = {line.name: line.dodge for line in beside if line.name != SHUFFLED}
        lines = (style_line(line, dodges.get(line.name, 0.0)) for line in panel.lines)
        styled.append(dataclasses.replace(panel, lines=tuple(lines)))
    return styled


def _get_style_name(line: Line) -> str:
    """Returns the series that a line looks like: a law has the look of its baselines."""
    return line.name.removesuffix(" law")


def _get_shown_as(line: Line) -> str:
    """Returns what the points of a line are: "mean", "curve", "run" or "level"."""
    if line.kind in ("curve", "level"):
        return line.kind
    # Those that a law is fitted to are drawn hollow.
    return "run" if line.fill == "none" else "mean"


def _list_rows(panels: Sequence[Panel]) -> Iterable[dict[str, object]]:
    """Yields all that is drawn, and where a curve passes."""
    for panel in panels:
        for line, shown_as in (
            *((line, _get_shown_as(line)) for line in panel.lines),
            *((line, "run") for line in panel.behind),
        ):
            if line.kind == "level":
                continue
            for point in line.points:
                low, high = ("" if math.isnan(end) else end for end in (point.low, point.high))
                yield {
                    "panel": panel.title,
                    "series": line.name,
                    "shown_as": shown_as,
                    "name": point.name,
                    "x": point.x,
                    "y": point.y,
                    "low": low,
                    "high": high,
                    "runs": " ".join(map(repr, point.runs)),
                    "extrapolated": point.hollow,
                }
