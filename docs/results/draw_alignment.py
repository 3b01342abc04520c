"""Draws the figure of docs/alignment.md from a finished study of configs/studies/grammar.py.

    python docs/results/draw_alignment.py studies/grammar docs/results/alignment.png

Three panels have the cosine of hidden states by layer, of pairs that say the same and of shuffled
pairs, in three cells of the study. The fourth has debiased CKA in the same cells. Values are means
over seeds.
"""

import sys

import numpy as np

from imbalance_jax.analysis import study_table
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.drawing.draw import WIDE, draw_panels
from imbalance_jax.drawing.panel import Line, Panel, make_points
from imbalance_jax.study.study_directory import StudyDirectory

CELLS = {"copied": "rows begin as copies", "r90_10": "90:10", "placebo": "words shuffled"}
_RANGE = (-0.6, 1.0)


def build_panels(table: StudyTable) -> list[Panel]:
    """Returns a panel of cosines for each cell, and one of CKA for all of them."""
    panels, curves = [], []
    for style, (cell, title) in enumerate(CELLS.items()):
        value_N, shuffled_N = average_by_layer(table, cell, "hidden")
        lines = (
            Line("same", make_points(range(len(value_N)), value_N), style=0),
            Line("shuffled", make_points(range(len(value_N)), shuffled_N), style=6),
        )
        panels.append(_make_panel(f"cosine: {title}", lines))
        cka_N, _ = average_by_layer(table, cell, "cka")
        curves.append(Line(title, make_points(range(len(cka_N)), cka_N), style=style + 1))
    return [*panels, _make_panel("debiased CKA", tuple(curves))]


def average_by_layer(table: StudyTable, cell: str, measure: str) -> tuple[list[float], list[float]]:
    """Returns the mean over a cell's runs of a measure in each layer, and of its baseline."""
    rows = [row for row in table.alignments if (row.cell, row.measure) == (cell, measure)]
    layers = range(max((row.layers for row in rows), default=0))
    by_layer = [[row for row in rows if row.layer == layer] for layer in layers]
    return (
        [float(np.mean([row.value for row in each])) for each in by_layer],
        [float(np.mean([row.baseline for row in each])) for each in by_layer],
    )


def _make_panel(title: str, lines: tuple[Line, ...]) -> Panel:
    zero = Line("", make_points([0], [0.0]), kind="level", labelled=False)
    last = max((len(line.points) for line in lines), default=1) - 1
    return Panel(title, "", (*lines, zero), x_scale="layers", last_layer=last, y_range=_RANGE)


if __name__ == "__main__":
    study, path = sys.argv[1:]
    table = study_table.read_study_table(StudyDirectory(study))
    figure = draw_panels(build_panels(table), width=WIDE, height=260, columns=2)
    figure.savefig(path, dpi=110, facecolor="white")
