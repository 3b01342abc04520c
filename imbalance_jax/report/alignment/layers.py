"""Hidden states by layer: what those of two languages share, and how well a probe tells them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from imbalance_jax.drawing.pages import Figure
from imbalance_jax.drawing.panel import Point, make_points
from imbalance_jax.report.alignment.results import (
    collect_layer_values,
    find_comparison,
    get_number,
    get_numbers,
)
from imbalance_jax.report.alignment.training_curves import format_range
from imbalance_jax.report.line_figures import draw_line_figure
from imbalance_jax.report.record import RunContents


@dataclasses.dataclass(frozen=True)
class _LayerFigure:
    """A figure of one of the values of `collect_layer_values`, of every pair."""

    values: str
    title: str
    reading: str  # {chance} stands for what retrieval would be by chance
    y_label: str
    error: str = ""  # values that are its standard errors
    behind: str = ""  # values that are drawn pale behind


_FIGURES = {
    "cosine": _LayerFigure(
        "cosine",
        "Cosine.",
        "Strong lines are states that say the same, pale ones shuffled pairs: a high strong line "
        "means nothing if the pale one is as high.",
        y_label="cosine",
        behind="cosine_shuffled",
    ),
    "excess": _LayerFigure(
        "cosine_excess",
        "Excess of the cosine.",
        "The distance between the lines of the figure before, with one standard error; this is "
        "what the languages share.",
        y_label="cosine less shuffled",
        error="cosine_error",
    ),
    "centred": _LayerFigure(
        "centred_excess",
        "Centred excess.",
        "The excess after each language's mean is taken away; a value of more than two errors is "
        "content in common and no mere common direction.",
        y_label="centred cosine less shuffled",
        error="centred_error",
    ),
    "rotation": _LayerFigure(
        "procrustes_excess",
        "Excess after the best rotation.",
        "High here and near 0 in the centred figure: both languages have the same shape, turned "
        "against each other.",
        y_label="rotated cosine less shuffled",
        error="procrustes_error",
    ),
    "cka": _LayerFigure(
        "cka_debiased",
        "CKA of whole sequences, debiased.",
        "Whether sequences lie alike among each other, whatever the rotation; pale lines are "
        "shuffled pairs, which should be near 0.",
        y_label="CKA",
        behind="cka_debiased_shuffled",
    ),
    "retrieval": _LayerFigure(
        "retrieval",
        "Retrieval.",
        "The part of the sequences whose nearest one in the other language is the right one, "
        "after centring, as a mean of both directions; {chance}.",
        y_label="part of the sequences",
        behind="chance",
    ),
}


def describe_hidden_states(run: RunContents, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the figures by layer and a note on them; None where no layer was measured."""
    hidden = {pair: result.get("hidden") or {} for pair, result in results.items()}
    figures = _draw_layer_figures(run, hidden, "align-layer")
    if not figures:
        return None
    kinds = {pair: find_comparison(states) for pair, states in hidden.items()}
    notes = []
    one_by_one = ", ".join(pair for pair, kind in kinds.items() if kind == "positions")
    matched = ", ".join(pair for pair, kind in kinds.items() if kind == "matched")
    if one_by_one:
        notes.append(f"Equal positions are compared one by one in {one_by_one}.")
    if matched:
        notes.append(
            f"In {matched} positions are first assigned to each other, which makes cosines high "
            "for shuffled pairs too: only the excess can be set beside that of others. The "
            "rotation is that of whole sequences there."
        )
    unshared = {
        pair: states["without_shared"]
        for pair, states in hidden.items()
        if isinstance(states.get("without_shared"), Mapping)
    }
    return {
        "figures": figures,
        "note": " ".join(notes),
        "unshared": _draw_layer_figures(run, unshared, "align-apart"),
    }


def _draw_layer_figures(run: RunContents, hidden: Mapping[str, Any], prefix: str) -> list[Figure]:
    """Returns the figures of the hidden states of several pairs."""
    values = {pair: collect_layer_values(states) for pair, states in hidden.items()}
    chances = [get_number(states, "sentences", "chance") for states in hidden.values()]
    finite = [chance for chance in chances if math.isfinite(chance)]
    chance = (
        f"pale lines are chance, {format_range(finite)}"
        if finite
        else "what chance would find was not written"
    )

    def make_lines(name: str, error: str = "") -> dict[str, tuple[Point, ...]]:
        return {
            pair: _make_layer_points(of_pair.get(name, []), of_pair.get(error, []))
            for pair, of_pair in values.items()
        }

    drawn = [
        draw_line_figure(
            f"{prefix}-{name}",
            figure.title,
            figure.reading.format(chance=chance),
            make_lines(figure.values, figure.error),
            list(hidden),
            behind=make_lines(figure.behind),
            y_label=figure.y_label,
            level=("", 0.0) if figure.error else None,
            x_scale="layers",
            last_layer=run.config.model.N + 1,
        )
        for name, figure in _FIGURES.items()
    ]
    return [figure for figure in drawn if figure]


def draw_probe(run: RunContents, probe: Any) -> Figure | None:
    """Returns the figure of a probe that reads the language off the hidden states."""
    scored = get_number(probe, "scored_on")
    measures = {"language": "accuracy", "control": "control", "variance": "variance_explained"}
    values = {name: get_numbers(probe, measure) for name, measure in measures.items()}
    return draw_line_figure(
        "align-probe",
        "Reading the language off the states.",
        "A linear probe's accuracy on unseen pieces, beside a control task of random labels, "
        "which is what it can learn by heart. High accuracy with a small part of the variance "
        "between languages is one faint direction."
        + (f" {scored:,.0f} positions were scored." if math.isfinite(scored) else ""),
        {name: _make_layer_points(of_layers) for name, of_layers in values.items()},
        list(measures),
        y_label="accuracy, and part of the variance",
        level=("chance", get_number(probe, "chance")),
        x_scale="layers",
        last_layer=run.config.model.N + 1,
    )


def _make_layer_points(values: Sequence[float], errors: Sequence[float] = ()) -> tuple[Point, ...]:
    return make_points(range(len(values)), values, errors[: len(values)])
