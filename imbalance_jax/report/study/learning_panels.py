"""Panels of what the runs of a study measured while they trained.

A panel has a line for each cell, the mean over its seeds, and the seeds pale behind it. The cells
of a panel are at most eight. Those that a claim names come first, each with its baseline.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from imbalance_jax.analysis.baselines import BaselineGroup, find_nearest_baseline
from imbalance_jax.analysis.effects import Effects, has_plain_text
from imbalance_jax.analysis.learning_curves import LearningCurve
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.drawing.colours import DOTTED, SOLID
from imbalance_jax.drawing.panel import Line, Panel, Point, make_points
from imbalance_jax.report.study.series import make_level

_HEADLINE = ("mixture", "placebo", "copied", "anchored")  # kinds; each with its baselines
_MOST_CELLS = 8
_MOST_LANGUAGES = 6
_MOST_PAIRS = 3
_EARLY = 0.1  # of the steps, in which a loss may lie above the frame

_Side = tuple[str, str]  # a cell, and a language or a pair that its runs have a curve of


def make_learning_panels(table: StudyTable, effects: Effects) -> tuple[list[Panel], list[Panel]]:
    """Returns the panels of held-out loss, and those of alignment.

    A cell looks the same in all of them. A language has a panel, with the baselines of as many
    tokens. A pair has two: its cosine with that of shuffled pairs, and what is above it.
    """
    languages = _choose_curve_names(table, "loss", _MOST_LANGUAGES)
    pairs = _choose_curve_names(table, "alignment", _MOST_PAIRS)
    sides = {language: _choose_sides(table, effects, language) for language in languages}
    sides |= {pair: _list_headline_sides(table, effects, pair)[:_MOST_CELLS] for pair in pairs}
    cells = dict.fromkeys(cell for chosen in sides.values() for cell, _ in chosen)
    styles = {cell: style for style, cell in enumerate(cells)}
    losses = [
        _make_loss_panel(table, effects, language, sides[language], styles)
        for language in languages
        if sides[language]
    ]
    alignments = [
        panel
        for pair in pairs
        if sides[pair]
        for panel in _make_pair_panels(table, effects, pair, sides[pair], styles)
    ]
    return losses, alignments


def _make_loss_panel(
    table: StudyTable,
    effects: Effects,
    language: str,
    sides: Sequence[_Side],
    styles: Mapping[str, int],
) -> Panel:
    lines, behind = _make_lines(table, effects, sides, styles)
    levels = [(f"bar {bar:g}", bar) for bar in _list_bars(table, language, sides)]
    least = _find_least_loss(table, sides)
    if math.isfinite(least):
        levels.append(("least loss", least))
    frame = _find_loss_range([*lines, *behind], [height for _, height in levels])
    lines += [Line(name, (Point(math.nan, height),), "level") for name, height in levels]
    title = f"{language}: held-out loss, nats per token"
    return Panel(title, "", tuple(lines), tuple(behind), x_scale="steps", y_range=frame)


def _find_loss_range(lines: Sequence[Line], levels: Sequence[float]) -> tuple[float, float] | None:
    """Returns the losses of a panel without those of an untrained model; None where all are.

    A loss falls from log V to that of frequencies within a few steps, next to which a later fall
    would be small.
    """
    points = [point for line in lines for point in line.points if math.isfinite(point.y)]
    last = max((point.x for point in points), default=0.0)
    shown = [point.y for point in points if point.x > _EARLY * last]
    if not shown:
        return None
    low, high = min([*shown, *levels]), max([*shown, *levels])
    margin = 0.06 * (high - low) or 0.05 * high
    return low - margin, high + margin


def _make_pair_panels(
    table: StudyTable,
    effects: Effects,
    pair: str,
    sides: Sequence[_Side],
    styles: Mapping[str, int],
) -> tuple[Panel, Panel]:
    lines, behind = _make_lines(table, effects, sides, styles, "values")
    shuffled, _ = _make_lines(table, effects, sides, styles, "baselines")
    title = f"{pair}: cosine of hidden states, dotted: shuffled pairs"
    cosine = Panel(title, "", (*lines, *shuffled), tuple(behind), x_scale="steps")
    lines, behind = _make_lines(table, effects, sides, styles)
    lines += [
        Line(f"bar {bar:g}", (Point(math.nan, bar),), "level")
        for bar in _list_bars(table, pair, sides)
    ]
    lines.append(make_level(0.0))
    title = f"{pair}: cosine above shuffled pairs"
    return cosine, Panel(title, "", tuple(lines), tuple(behind), x_scale="steps")


# What is drawn.


def _choose_curve_names(table: StudyTable, measure: str, most: int) -> list[str]:
    """Returns so many languages or pairs of the study, those that a claim names before others."""
    claimed = {claim.language for claim in table.claims.values()}
    claimed |= {claim.against_language for claim in table.claims.values()}
    names = dict.fromkeys(
        of
        for (name, of), curve in table.curves.items()
        if curve.measure == measure and table.runs[name].spec.kind in _HEADLINE
    )
    chosen = sorted(names, key=lambda of: of not in claimed)[:most]
    return [of for of in names if of in chosen]


def _list_headline_sides(table: StudyTable, effects: Effects, of: str) -> list[_Side]:
    """Returns the cells that are no baselines and have a curve, those that a claim names first."""
    claimed = {cell for c in table.claims.values() for cell in (c.cell, c.against)}
    cells = dict.fromkeys(
        run.spec.cell
        for name, run in table.runs.items()
        if run.spec.kind in _HEADLINE and (name, of) in table.curves
    )
    sides = [(cell, of) for cell in cells if _list_curves(table, effects, (cell, of))]
    return sorted(sides, key=lambda side: side[0] not in claimed)


def _choose_sides(table: StudyTable, effects: Effects, language: str) -> list[_Side]:
    """Returns the cells of a panel of losses, each with its baseline of as many tokens."""
    kinds = {run.spec.kind for run in table.runs.values()}
    kind = "matched" if "matched" in kinds else "monolingual"
    sides: dict[_Side, None] = {}
    for side in _list_headline_sides(table, effects, language):
        row = next(r for r in table.observations if (r.cell, r.language) == side)
        config = table.runs[row.run].config
        if not has_plain_text(config, language):
            continue  # shuffled text has a loss of its own
        sides[side] = None
        group = BaselineGroup.of(config, row.source, kind)
        nearest = find_nearest_baseline(table, group, row.tokens)
        if nearest:
            baseline = table.runs[nearest]
            ratio = baseline.config.mixture.ratio
            alone = next(tag for tag in baseline.config.tags if ratio.get(tag))
            sides[baseline.spec.cell, alone] = None
    return [side for side in sides if _list_curves(table, effects, side)][:_MOST_CELLS]


def _list_curves(
    table: StudyTable, effects: Effects, side: _Side
) -> list[tuple[str, LearningCurve]]:
    """Returns the curves of a cell with the names of their runs; none of a single step."""
    cell, of = side
    return [
        (name, table.curves[name, of])
        for name, run in table.runs.items()
        if run.spec.cell == cell
        and name not in effects.dropped
        and (name, of) in table.curves
        and len(table.curves[name, of].steps) > 1
    ]


def _make_lines(
    table: StudyTable,
    effects: Effects,
    sides: Sequence[_Side],
    styles: Mapping[str, int],
    part: str = "heights",
) -> tuple[list[Line], list[Line]]:
    """Returns the mean of each cell over its runs, and the runs.

    The mean is taken at each step that one of them measured and all had reached, on straight
    lines between measurements: a budget of time may measure alignment at other steps in each.

    Args:
      table: of the study.
      effects: of the study.
      sides: the cells, each with a language or a pair.
      styles: of the cells.
      part: of `LearningCurve`: its heights, values or baselines.
    """
    lines: list[Line] = []
    behind: list[Line] = []
    for cell, of in sides:
        curves = dict(_list_curves(table, effects, (cell, of)))
        first = max(curve.steps[0] for curve in curves.values())
        last = min(curve.steps[-1] for curve in curves.values())
        steps = sorted({s for c in curves.values() for s in c.steps if first <= s <= last})
        runs = {name: (curve.steps, getattr(curve, part)) for name, curve in curves.items()}
        values = [np.interp(steps, *run) for run in runs.values()]
        drawn = make_points(steps, np.mean(values, axis=0).tolist())
        if part == "baselines":
            if any(math.isfinite(point.y) for point in drawn):
                line = Line(f"{cell} shuffled", drawn, "curve", styles[cell], dash=DOTTED)
                lines.append(dataclasses.replace(line, labelled=False))
            continue
        lines.append(Line(cell, drawn, style=styles[cell], size=4.5))
        for name, run in runs.items() if len(runs) > 1 else ():
            points = tuple(Point(x, y, name=name) for x, y in zip(*run, strict=True))
            behind.append(Line(cell, points, style=styles[cell], dash=SOLID))
    return lines, behind


def _list_bars(table: StudyTable, of: str, sides: Sequence[_Side]) -> list[float]:
    """Returns the bars that claims hold a drawn cell's language or pair to."""
    drawn = {cell for cell, _ in sides}
    return sorted(
        {
            claim.bar
            for claim in table.claims.values()
            if claim.measure == "steps_to"
            and (
                (claim.language == of and claim.cell in drawn)
                or ((claim.against_language or claim.language) == of and claim.against in drawn)
            )
        }
    )


def _find_least_loss(table: StudyTable, sides: Sequence[_Side]) -> float:
    """Returns the lower bound of the loss that a synthetic language has; nan for other text.

    It is nan, too, where the cells of a panel differ in it, as those of other languages do.
    """
    bounds = set()
    for cell, of in sides:
        name = next(
            n for n, run in table.runs.items() if run.spec.cell == cell and (n, of) in table.curves
        )
        results = table.runs[name].directory.read_json("evaluation.json") or {}
        known = results.get("entropy", {}).get(of, {}).get("least_loss")
        bounds.add(float(known[0]) if known else math.nan)
    return bounds.pop() if len(bounds) == 1 else math.nan
