"""Draws when the states of two languages become alike, in one model and in two trained apart.

    python docs/results/trace_states.py studies/grammar_removed steady toy1-toy2 why.png

Of the runs of a cell, which keep several checkpoints: the held-out losses; at every checkpoint the
cosine of states after the best rotation, by layer, as compare_models.py has it, for two languages
of one model, and for those of models of different seeds; and the cosine of the gradients of pairs
that say the same, as the runs logged it. Every value is a mean over seeds, and is printed too.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from compare_models import compute_mean_states, list_runs, score_rotated

from imbalance_jax.drawing import draw
from imbalance_jax.drawing.colours import DOTTED, SOLID
from imbalance_jax.drawing.panel import Line, Panel, make_points
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study.study_directory import StudyDirectory

Series = Mapping[int, float]  # a value at some steps


def trace_layers(
    runs: Sequence[RunDirectory], first: str, second: str
) -> tuple[list[Series], list[Series]]:
    """Returns the cosine after a rotation of each layer, in one model and in two.

    Args:
      runs: of one cell; steps of which all keep a checkpoint count.
      first: a language.
      second: another.
    """
    one: list[dict[int, float]] = []
    two: list[dict[int, float]] = []
    for step in sorted(set.intersection(*(set(run.steps()) for run in runs))):
        states = [[compute_mean_states(run, tag, step) for tag in (first, second)] for run in runs]
        for layer in range(len(states[0][0])):
            scores_EE = np.array(
                [[score_rotated(a[layer], b[layer]) for _, b in states] for a, _ in states]
            )
            apart = ~np.eye(len(runs), dtype=bool)
            for found, value in ((one, np.diag(scores_EE).mean()), (two, scores_EE[apart].mean())):
                if layer == len(found):
                    found.append({})
                found[layer][step] = float(value)
    return list(one), list(two)


def average_logged(runs: Sequence[RunDirectory], name: str) -> Series:
    """Returns the mean over runs of a value that they logged."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for step, value in zip(*run.series(name), strict=True):
            found.setdefault(step, []).append(value)
    return {
        step: float(np.mean(values)) for step, values in found.items() if len(values) == len(runs)
    }


def main(path: str, cell: str, pair: str, file: str) -> None:
    runs = list_runs(StudyDirectory(path), cell)
    first, second = pair.split("-")
    losses = {tag: average_logged(runs, f"eval/loss/{tag}") for tag in (first, second)}
    one, two = trace_layers(runs, first, second)
    names = ["embeddings", *(f"block {n}" for n in range(1, len(one) - 1)), "final norm"]
    gradients = {"gradients": average_logged(runs, f"align/gradient/{pair}")}
    apart = {f"{name}, apart": layer for name, layer in zip(names, two, strict=True)}
    together = dict(zip(names, one, strict=True))
    for name, series in itertools.chain(*map(dict.items, (losses, together, apart, gradients))):
        print(f"{name:18s}", "  ".join(f"{step}: {value:.3f}" for step, value in series.items()))
    frame = (2.5, 5.0)
    panels = [
        Panel(
            "held-out loss, nats per token",
            "",
            _make_lines(losses),
            x_scale="steps",
            y_range=frame,
        ),
        Panel(
            "states after a rotation, above shuffled",
            "",
            (*_make_lines(together), *_make_lines(apart, dash=DOTTED, labelled=False)),
            x_scale="steps",
        ),
        Panel("gradients: cosine", "", _make_lines(gradients, labelled=False), x_scale="steps"),
    ]
    legend: dict[str, dict[str, Any]] = {
        "two languages of one model": {"color": "black", "linestyle": SOLID},
        "of two models trained apart": {"color": "black", "linestyle": DOTTED},
    }
    figure = draw.draw_panels(panels, width=1100, height=300, columns=3, legend=legend)
    figure.savefig(file, dpi=110, facecolor="white")


def _make_lines(
    series: Mapping[str, Series], *, dash: object = SOLID, labelled: bool = True
) -> tuple[Line, ...]:
    return tuple(
        Line(
            name, make_points([*one], [*one.values()]), "curve", style, dash=dash, labelled=labelled
        )
        for style, (name, one) in enumerate(series.items())
    )


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
