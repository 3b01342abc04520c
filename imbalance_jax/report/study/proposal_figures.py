"""A figure of each proposal: the law of each language, the ratio, and what was run of it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from imbalance_jax.analysis import proposal_files
from imbalance_jax.analysis.study_table import Observation, StudyTable
from imbalance_jax.drawing.draw import WIDE, draw_panels
from imbalance_jax.drawing.panel import Line, Panel, Point
from imbalance_jax.drawing.svg import FigureFiles
from imbalance_jax.report.study.series import SHARE
from imbalance_jax.study.study_directory import StudyDirectory

_HEIGHT = 330  # pixels
_NEAR = 0.01  # how far the size and the length of a run may be from those of a proposal


def draw_proposals(table: StudyTable, directory: StudyDirectory) -> list[FigureFiles]:
    """Returns a figure of each proposal; older ones hold no curves."""
    proposals = proposal_files.read_proposals(directory)
    return [_draw_proposal(each, table) for each in proposals if each.get("curves")]


def get_figure_name(proposal: Mapping[str, Any]) -> str:
    return f"proposal_{proposal['name']}"


def _draw_proposal(proposal: Mapping[str, Any], table: StudyTable) -> FigureFiles:
    panels = [_make_panel(proposal, tag, table) for tag in proposal["losses"]]
    rows = [
        {
            "panel": panel.title,
            "series": line.name,
            "name": point.name,
            "x": point.x,
            "y": point.y,
            "low": "" if math.isnan(point.low) else point.low,
            "high": "" if math.isnan(point.high) else point.high,
            "runs": " ".join(map(repr, point.runs)),
        }
        for panel in panels
        for line in panel.lines
        for point in line.points
    ]
    series = {line.name for panel in panels for line in panel.lines}
    reading = (
        "The line is the law of each language, and its band the 95 % interval of the mean over the "
        "study’s seeds. The dotted vertical is the proposed ratio, the grey strip its interval."
        + " Diamonds are the means of the cells behind the law, and dots their runs."
        * ("runs" in series)
        + " Hollow squares are what was run of the proposal since." * ("outcome" in series)
        + " Other languages keep their proportions to each other along the line."
        * (len(panels) > 2)
    )
    drawing = draw_panels(panels, width=WIDE, height=_HEIGHT, columns=2)
    title = f"{proposal['name']}: the proposed ratio, and the laws that it rests on."
    return FigureFiles(get_figure_name(proposal), title, reading, drawing, rows)


def _make_panel(proposal: Mapping[str, Any], tag: str, table: StudyTable) -> Panel:
    curve = proposal["curves"][tag]
    law = Line(
        "law",
        tuple(Point(100 * x, y, low, high) for x, y, low, high in curve),
        "curve",
        dash="-",
        band=True,
    )
    of_cell: dict[str, list[Observation]] = {}
    for row in table.observations:
        if row.run in proposal["runs"] and row.language == tag and _is_of_size(row, proposal):
            of_cell.setdefault(row.cell, []).append(row)
    runs = [
        _make_point(100 * rows[0].share, [row.loss for row in rows], cell)
        for cell, rows in of_cell.items()
    ]
    proposed = 100 * proposal["ratio"][tag] / sum(proposal["ratio"].values())
    outcomes = [
        Point(proposed, outcome.loss, name=outcome.cell)
        for outcome in proposal_files.list_outcomes(proposal, table)
        if outcome.language == tag
    ]
    lines = [law]
    if runs:
        lines.append(Line("runs", tuple(runs), "points", marker="D"))
    if outcomes:
        look = Line("outcome", tuple(outcomes), "points", colour="ink", fill="none", size=7.5)
        lines.append(dataclasses.replace(look, marker="s"))
    low, high = proposal["shares"][tag]
    return Panel(
        f"{tag}: loss, nats per token",
        SHARE,
        tuple(lines),
        verticals=(proposed,),
        spans=((100 * low, 100 * high),),
    )


def _make_point(x: float, losses: list[float], name: str) -> Point:
    return Point(x, math.fsum(losses) / len(losses), runs=tuple(losses), name=name)


def _is_of_size(row: Observation, proposal: Mapping[str, Any]) -> bool:
    target = proposal["target"]
    sizes = (
        (row.parameters, target["parameters"]),
        (row.tokens + row.other_tokens, target["tokens"]),
    )
    return all(math.isclose(has, asked, rel_tol=_NEAR) for has, asked in sizes)
