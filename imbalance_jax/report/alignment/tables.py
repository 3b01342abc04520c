"""Tables of alignment: all pairs, text after another language's, and the optimizer's view."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from imbalance_jax.drawing.numbers import (
    ABSENT,
    format_count,
    format_number,
    format_percent,
    format_significant,
)
from imbalance_jax.drawing.pages import render_finite, render_number, render_swatch
from imbalance_jax.report.alignment.gradients import format_error
from imbalance_jax.report.alignment.results import (
    collect_layer_values,
    compute_mean,
    get_number,
    get_numbers,
    get_value,
)
from imbalance_jax.report.record import RunContents

_OPTIMIZER: Mapping[str, tuple[str, str | Callable[[float], str]]] = {
    "embed_norm": ("norm of an embedding row", format_significant),
    "head_norm": ("norm of a head row", format_significant),
    "gradient_share": ("part of the gradient", ".1%"),
    "gradient_share_blocks": ("part, blocks only", ".1%"),
    "gradient_norm": ("norm of its gradient", format_significant),
}


def _render_with_error(tree: Any, name: str) -> Any:
    """Returns a cell of a value and its standard error."""
    error = format_error(get_number(tree, f"{name}_error"))
    return render_finite(get_number(tree, name), "+.3f") + error


def tabulate_pairs(run: RunContents, results: Mapping[str, Any]) -> list[list[Any]]:
    """Returns a row for every pair, with means over the blocks."""
    rows = []
    for pair, result in results.items():
        layers = collect_layer_values(result.get("hidden"))
        means = {
            name: compute_mean(values[1 : run.config.model.N + 1])
            for name, values in layers.items()
        }
        embedding, gradients = result.get("embed_in"), result.get("gradients")
        excess = get_number(embedding, "cosine") - get_number(embedding, "between")
        chance = get_number(result, "hidden", "sentences", "chance")
        retrieval = render_finite(means["retrieval"], format_percent)
        if math.isfinite(means["retrieval"]) and math.isfinite(chance):
            retrieval += f" ({format_percent(chance)})"
        rows.append(
            [
                pair,
                render_finite(get_number(result, "sequences"), format_count),
                render_finite(excess, "+.3f"),
                render_finite(means["cosine_excess"], "+.3f"),
                render_finite(means["centred_excess"], "+.3f"),
                render_finite(means["procrustes_excess"], "+.3f"),
                render_finite(means["cka_debiased"], "+.3f"),
                retrieval,
                _render_with_error(gradients, "mean"),
                _format_corrected_cosine(gradients),
            ]
        )
    return rows


def _format_corrected_cosine(gradients: Any) -> str:
    """Returns the corrected cosine, and half of what its halves are apart; if all are known."""
    halves = get_numbers(gradients, "corrected_halves")
    value = get_number(gradients, "corrected_mean")
    if len(halves) != 2 or not all(map(math.isfinite, [value, *halves])):
        return ABSENT
    spread = format_significant(abs(halves[0] - halves[1]) / 2, 2)
    return f"{format_number(value, '+.3f')} ± {spread}"


def tabulate_seen_text(results: Mapping[str, Any]) -> tuple[list[list[Any]], dict[str, list[str]]]:
    """Returns losses on text seen in the other language, and by reason what has none."""
    rows = []
    reasons: dict[str, list[str]] = {}
    for result in results.values():
        for asked, seen in (result.get("seen") or {}).items():
            if get_value(seen, "skipped"):
                reasons.setdefault(str(seen["skipped"]), []).append(asked)
                continue
            counts = (get_number(seen, name) for name in ("seen", "unseen"))
            losses = (get_number(seen, "in_second", name) for name in ("seen", "unseen"))
            rows.append(
                [
                    asked,
                    *(render_finite(count, format_count) for count in counts),
                    *(render_finite(loss, ".3f") for loss in losses),
                    _render_with_error(get_value(seen, "in_second"), "gain"),
                    _render_with_error(get_value(seen, "in_first"), "gain"),
                ]
            )
    return rows, reasons


def tabulate_prefixes(results: Mapping[str, Any]) -> list[list[Any]]:
    """Returns losses on text after a prefix in another language."""
    return [
        [
            asked,
            render_finite(get_number(losses, "sequences"), format_count),
            *(
                render_finite(get_number(losses, prefix), ".3f")
                for prefix in ("none", "unrelated", "related")
            ),
            _render_with_error(losses, "gain"),
            _render_with_error(losses, "gain_own"),
        ]
        for result in results.values()
        for asked, losses in (result.get("prefix") or {}).items()
    ]


def tabulate_optimizer(run: RunContents, alignment: Any) -> dict[str, Any] | None:
    """Returns what each language has in the vocabulary's matrices and in a batch's gradient.

    Without an evaluation it is as last logged.
    """
    evaluated = alignment.get("optimizer") or {}
    values: dict[str, dict[str, float]] = {}
    for metric in _OPTIMIZER:
        for tag in run.config.tags:
            value = (
                get_number(evaluated, metric, tag)
                if evaluated
                else run.curve(f"align/{metric}/{tag}").last
            )
            if math.isfinite(value):
                values.setdefault(metric, {})[tag] = value
    if not values:
        return None
    rows = [
        [
            render_swatch(run.config.tags, tag),
            *(render_number(of.get(tag), _OPTIMIZER[metric][1]) for metric, of in values.items()),
        ]
        for tag in run.config.tags
    ]
    measures = [_OPTIMIZER[metric][0] for metric in values]
    return {"measures": measures, "rows": rows, "evaluated": bool(evaluated)}
