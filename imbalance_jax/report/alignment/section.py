"""The section of a run's page on what its languages have in common.

It is put together from two places: what was logged under `align/` in metrics.jsonl as the run
trained, and the `alignment` of evaluation.json. Either may be missing, and so may any number: a
figure shows what there is and is left out where there is nothing. Figures show the first few pairs
of languages, tables show all of them.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from imbalance_jax.drawing import pages
from imbalance_jax.report.alignment import (
    frequency,
    gradients,
    layers,
    tables,
    training_curves,
)
from imbalance_jax.report.record import RunContents

_PAIRS = 6  # pairs that figures show


def render_alignment_section(run: RunContents) -> str:
    """Returns the section, or nothing where nothing was measured."""
    alignment = run.evaluation.get("alignment") or {}
    logged = {name for record in run.records for name in record if name.startswith("align/")}
    if not alignment and not logged:
        return ""
    results = alignment.get("pairs") or {}
    pairs = _list_language_pairs(run, results, logged)
    shown = pairs[:_PAIRS]
    all_results = {pair: results[pair] for pair in pairs if pair in results}
    shown_results = {pair: results[pair] for pair in shown if pair in results}
    leak, tags = alignment.get("leak") or {}, run.config.tags
    probe = layers.draw_probe(run, alignment.get("probe"))
    seen, unseen_reasons = tables.tabulate_seen_text(all_results)
    return pages.render_template(
        "alignment",
        alone=len(tags) == 1,
        pairs=pairs,
        shown=shown,
        evaluated=bool(alignment),
        logged=bool(logged),
        skipped=[str(reason) for reason in (alignment.get("skipped") or {}).values()],
        summary=tables.tabulate_pairs(run, all_results),
        split=alignment.get("split", "test"),
        step=run.evaluation.get("step"),
        curves=training_curves.draw_training_curves(run, shown),
        cadence=training_curves.describe_cadence(run),
        hidden=layers.describe_hidden_states(run, shown_results),
        gradients=gradients.describe_gradients(shown_results),
        key_bias=gradients.KEY_BIAS,
        frequencies=frequency.draw_embedding_frequencies(shown_results, shown),
        telling=[*frequency.draw_leak(leak, tags), *([probe] if probe else [])],
        seen=seen,
        unseen_reasons=unseen_reasons,
        prefixes=tables.tabulate_prefixes(all_results),
        optimizer=tables.tabulate_optimizer(run, alignment),
    )


def _list_language_pairs(
    run: RunContents, results: Mapping[str, Any], logged: Iterable[str]
) -> list[str]:
    """Returns the pairs of languages that anything is known of, in the order of the config."""
    possible = [f"{a}-{b}" for a, b in itertools.combinations(run.config.tags, 2)]
    measured = {*results} | {part for name in logged for part in name.split("/")[2:3]}
    others = [pair for pair in results if pair not in possible]
    return [pair for pair in possible if pair in measured] + others
