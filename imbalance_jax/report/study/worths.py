"""What the losses of a study are worth in tokens: its tables, and what is not known of it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imbalance_jax.analysis.effects import Effects, EfficiencyEstimate, LanguageCondition
from imbalance_jax.analysis.statistics import Estimate, estimate_difference
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.drawing.numbers import (
    ABSENT,
    format_compact,
    format_number,
    format_percent,
    format_significant,
)
from imbalance_jax.drawing.pages import Table, get_pieces, render_finite, render_number
from imbalance_jax.report.study.intervals import (
    compute_capped_exp,
    format_interval,
    format_perplexity,
    format_signed,
    render_estimate,
    render_with_interval,
)
from imbalance_jax.study import grid

if TYPE_CHECKING:
    from markupsafe import Markup

_BASELINES = {
    "monolingual": "The language alone, on a part of the steps, with a schedule of its own.",
    "matched": "The language alone, with as many updates, in smaller batches.",
    "wide": "The language alone, with the mixture’s vocabulary.",
    "epochs": "The language alone, with as many updates, in smaller batches, on as much text.",
}


def list_law_conditions(effects: Effects) -> list[LanguageCondition]:
    """Returns the languages that laws are read at, or would be."""
    return [c for c in effects.conditions if c.kind not in grid.BASELINES and c.plain]


def _list_mixtures(effects: Effects) -> list[LanguageCondition]:
    return [c for c in effects.conditions if c.kind not in grid.BASELINES]


# What is not known.


def explain_missing_law(table: StudyTable, effects: Effects) -> str:
    """Returns why there is no law, or nothing to hold against it; nothing if there are both."""
    if effects.laws:
        if list_law_conditions(effects):
            return ""
        return "Only baselines are done yet: there is no mixture to hold."
    planned = sum(run.spec.kind in grid.BASELINES for run in table.runs.values())
    why = (
        f"none of the {planned} that the study has is done"
        if planned
        else "the study has none; see below for what it would take"
    )
    return (
        f"There are no monolingual baselines: {why}. Without them a loss says nothing about "
        "transfer, and TEff, MLTE and the exchange rate are unknown."
    )


def explain_missing_efficiency(effects: Effects) -> str:
    conditions = list_law_conditions(effects)
    if not conditions:
        return "No mixture is done yet."
    reasons = dict.fromkeys(
        f"{kind}: {why.rstrip('.')}"
        for condition in conditions
        for kind, why in condition.no_law.items()
    )
    if reasons:
        return "There is no law of monolingual baselines. " + "; ".join(reasons) + "."
    return "All losses are outside of the range of their law."


def describe_outside_of_laws(effects: Effects) -> str:
    """Returns which losses are outside of the range of their law, and how far."""
    return "; ".join(
        f"{c.cell} {c.language} against {kind} baselines: TEff {_format_teff_bound(worth)}, "
        f"{_explain_teff_bound(worth)}"
        for c in list_law_conditions(effects)
        for (kind, part), worth in c.worths.items()
        if part == "loss" and worth.limit
    )


def _format_teff_bound(worth: EfficiencyEstimate) -> str:
    return f"{'>' if worth.limit == 'above' else '<'} {worth.bound:.3g}"


def _explain_teff_bound(worth: EfficiencyEstimate) -> str:
    assert worth.law.choice is not None
    shortest, longest = worth.law.choice.law.fitted
    above = worth.limit == "above"
    loss = worth.efficiency.loss
    return (
        f"as its loss {loss:.4g} (perplexity {compute_capped_exp(loss):.4g}) is far "
        f"{'below' if above else 'above'} that of the {'longest' if above else 'shortest'} "
        f"baseline, of {format_compact(longest if above else shortest)} tokens."
    )


# Tables.


def make_cell_table(effects: Effects) -> Table | None:
    """Returns the perplexity of each language of each mixture, beside the placebo."""
    mixtures = _list_mixtures(effects)
    if not mixtures:
        return None
    header = ["cell, language", "kind", "tokens", "part", "seeds", "perplexity"]
    accuracies = [_estimate_pair_accuracy(condition) for condition in mixtures]
    scored = any(math.isfinite(accuracy.value) for accuracy in accuracies)
    return Table(
        [*header, "nats against the placebo", *["minimal pairs"] * scored],
        [
            [
                *_render_condition(condition),
                render_estimate(condition.beyond_placebo, format_signed),
                *[render_estimate(accuracy, _format_accuracy)] * scored,
            ]
            for condition, accuracy in zip(mixtures, accuracies, strict=True)
        ],
        "Perplexity: geometric mean over seeds, 95 % interval from their scatter. Against the "
        "placebo: difference seed by seed, with its own 95 % interval."
        + " Minimal pairs: accuracy, mean over seeds with its t interval."
        * scored,
    )


def _estimate_pair_accuracy(condition: LanguageCondition) -> Estimate:
    """Returns the mean accuracy on minimal pairs over seeds; nan where a run has none."""
    by_seed = condition.by_seed("minimal_pairs")
    return estimate_difference(by_seed, dict.fromkeys(by_seed, 0.0))


def _format_accuracy(accuracy: float) -> str:
    return format_number(accuracy, ".1%")


def make_baseline_table(effects: Effects) -> Table | None:
    alone = [c for c in effects.conditions if c.kind in grid.BASELINES]
    header = ["cell", "kind", "tokens", "part", "seeds", "perplexity"]
    return Table(header, [_render_condition(c) for c in alone], "As above.") if alone else None


def _render_condition(condition: LanguageCondition) -> list[Any]:
    log_ppl, first = condition.log_ppl, condition.first
    baseline = condition.kind in grid.BASELINES
    name = condition.cell if baseline else f"{condition.cell} {condition.language}"
    perplexity = compute_capped_exp(log_ppl.value)
    return [
        name + ("" if condition.plain else " (text not as written)"),
        condition.kind,
        render_number(first.tokens, format_compact),
        format_percent(first.share),
        condition.seeds,
        render_with_interval(perplexity, log_ppl.exp_interval(), format_perplexity),
    ]


def make_worth_tables(effects: Effects) -> list[Table]:
    """Returns a table for each kind of baseline that a loss of a mixture is held against."""
    mixtures = _list_mixtures(effects)
    kinds = [k for k in grid.BASELINES if any((k, "loss") in c.worths for c in mixtures)]
    header = ["cell, language", "perplexity", "MLPE", "MLTE", "TEff", "TEff, law refitted"]
    header += ["exchange rate", "TEff by the reference’s law"]
    return [
        Table(
            header,
            [
                _render_worth(condition, condition.worths[kind, "loss"])
                for condition in mixtures
                if (kind, "loss") in condition.worths
            ],
            f"Against {kind} baselines. {_BASELINES[kind]}",
        )
        for kind in kinds
    ]


def _render_worth(condition: LanguageCondition, worth: EfficiencyEstimate) -> list[Any]:
    efficiency = worth.efficiency
    if worth.limit:
        bound = _format_teff_bound(worth)
        outside = bound + get_pieces().small("outside of the law")
        values: list[Any] = [f"{bound[0]} limit", outside, ABSENT, ABSENT]
    else:
        star = "*" if efficiency.extrapolated else ""
        seeds = worth.log_teff.exp_interval() if worth.log_teff else (math.nan, math.nan)
        values = [
            render_number(efficiency.mlte, format_compact) + star,
            _render_starred(efficiency.teff, star, seeds, "seeds "),
            format_interval(worth.teff, format_significant) or ABSENT,
            render_number(efficiency.exchange, format_signed)
            + _render_small(format_interval(worth.exchange, format_signed)),
        ]
    return [
        f"{condition.cell} {condition.language}",
        render_number(compute_capped_exp(efficiency.loss), format_perplexity),
        render_number(efficiency.mlpe, format_perplexity),
        *values,
        render_finite(worth.reference_teff, format_significant),
    ]


def _render_starred(
    value: float, star: str, interval: tuple[float, float], prefix: str = ""
) -> "Markup | str":
    """Returns a number, a star if it is extrapolated, and its interval."""
    ends = format_interval(interval, format_significant)
    return render_number(value) + star + _render_small(ends and prefix + ends)


def _render_small(text: str) -> "Markup | str":
    return get_pieces().small(text) if text else ""


def make_loss_part_table(effects: Effects) -> Table | None:
    """Returns both parts of the loss of each mixture, and what each is worth."""
    mixtures = [c for c in _list_mixtures(effects) if c.kind != "sweep"]
    kinds = [k for k in grid.BASELINES if any((k, "loss_own") in c.worths for c in mixtures)]
    columns = [(kind, "loss_own") for kind in kinds]
    header = ["cell, language", "language nats", "own loss"]
    header += [f"TEff of own loss, {kind}" for kind in kinds]
    if any(("wide", "language_nats") in c.worths for c in mixtures):
        columns.append(("wide", "language_nats"))
        header.append("TEff of language nats, wide")
    rows = [
        [
            f"{condition.cell} {condition.language}",
            render_number(_average(condition, "language_nats"), ".4f"),
            render_number(_average(condition, "loss_own"), ".3f"),
            *(_render_teff(condition.worths.get(column)) for column in columns),
        ]
        for condition in mixtures
    ]
    caption = "Means over seeds; TEff with resampled 95 % intervals."
    return Table(header, rows, caption) if rows else None


def _average(condition: LanguageCondition, part: str) -> float:
    values: Sequence[float] = list(condition.by_seed(part).values())
    return sum(values) / len(values)


def _render_teff(worth: EfficiencyEstimate | None) -> "Markup | str":
    if worth is None:
        return ABSENT
    if worth.limit:
        return _format_teff_bound(worth)
    star = "*" if worth.efficiency.extrapolated else ""
    return _render_starred(worth.efficiency.teff, star, worth.teff)
