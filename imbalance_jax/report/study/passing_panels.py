"""Which runs passed the bars of a study's claims, and when: a table, and the share by step."""

import math
from collections import defaultdict
from collections.abc import Sequence

from imbalance_jax.analysis.effects import Effects
from imbalance_jax.analysis.passing import Passing, collect_passings, count_passed
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.drawing.numbers import ABSENT, format_percent
from imbalance_jax.drawing.pages import Table, render_number
from imbalance_jax.drawing.panel import Line, Panel, Point
from imbalance_jax.report.study.intervals import format_interval
from imbalance_jax.study import grid

_MOST_LINES = 8  # of a panel
_Side = tuple[str, str]  # a cell, and a language or a pair


def make_passing_panels(table: StudyTable, effects: Effects) -> list[Panel]:
    """Returns a panel for each bar and language or pair: the part of runs that passed by a step."""
    panels = []
    groups = _list_sides(table)
    # A cell looks the same in all panels.
    cells = [*dict.fromkeys(cell for sides in groups.values() for cell, _ in sides)]
    for (of, bar), sides in groups.items():
        lines: list[Line] = []
        for cell, side_of in list(sides)[:_MOST_LINES]:
            passings, _ = collect_passings(table, cell, side_of, bar, effects.dropped)
            if passings:
                points = _make_stairs([*passings.values()], f"{cell} {side_of}")
                name = cell if side_of == of else f"{cell} {side_of}"
                lines.append(Line(name, points, "curve", style=cells.index(cell)))
        if lines:
            above = "above" if "-" in of else "below"
            title = f"{of}: part of the runs {above} {bar:g}, %"
            panels.append(Panel(title, "", tuple(lines), x_scale="steps", y_range=(-3.0, 103.0)))
    return panels


def _list_sides(table: StudyTable) -> dict[tuple[str, float], dict[_Side, grid.Claim]]:
    """Returns the cells that claims hold to a bar, by the claim's language and the bar."""
    sides: defaultdict[tuple[str, float], dict[_Side, grid.Claim]] = defaultdict(dict)
    for claim in table.claims.values():
        if claim.measure == "steps_to":
            group = sides[claim.language, claim.bar]
            group.setdefault((claim.cell, claim.language), claim)
            group.setdefault((claim.against, claim.against_language or claim.language), claim)
    return sides


def _make_stairs(passings: Sequence[Passing], name: str) -> tuple[Point, ...]:
    """Returns the corners of the percentage of runs that have passed, step by step.

    Runs of a cell end at one step, so that none is censored before another one passes, and the
    curve is that of Kaplan and Meier.
    """
    each = 100 / len(passings)
    corners = [Point(0.0, 0.0, name=name)]
    for step in sorted(passing.step for passing in passings if passing.passed):
        height = corners[-1].y
        corners += [Point(step, height, name=name), Point(step, height + each, name=name)]
    last = max(passing.end for passing in passings)
    return (*corners, Point(last, corners[-1].y, name=name))


def make_passing_table(table: StudyTable, effects: Effects) -> Table | None:
    """Returns how many runs of each cell passed a bar that a claim states; None without one."""
    sides = {
        (*side, bar): claim
        for (_, bar), group in _list_sides(table).items()
        for side, claim in group.items()
    }
    rows = [
        _render_passed(table, effects, cell, of, claim) for (cell, of, _), claim in sides.items()
    ]
    header = ["cell", "language or pair", "bar", "passed", "part that passes", "median step"]
    caption = (
        "Runs that passed the bar of a claim by their last step, Wilson’s 95 % interval of the "
        "part of such runs that does, and the step by which half have, by Kaplan and Meier."
    )
    return Table(header, rows, caption) if rows else None


def _render_passed(
    table: StudyTable, effects: Effects, cell: str, of: str, claim: grid.Claim
) -> list[object]:
    passings, _ = collect_passings(table, cell, of, claim.bar, effects.dropped)
    count = count_passed([*passings.values()])
    bar = f"excess of {claim.bar:g}" if claim.of_pair else f"{claim.bar:g} nats"
    if not count.runs:
        return [cell, of, bar, "no run yet", ABSENT, ABSENT]
    return [
        cell,
        of,
        bar,
        f"{count.passed} of {count.runs}",
        format_interval(count.interval, format_percent),
        "not reached" if math.isnan(count.median) else render_number(count.median, ",.0f"),
    ]
