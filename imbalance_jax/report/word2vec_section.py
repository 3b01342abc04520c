"""The part of a run's page on word2vec: how alike vectors that know only neighbours become."""

import math
from collections.abc import Mapping
from typing import Any

from imbalance_jax.drawing.numbers import format_count, format_percent, parse_number
from imbalance_jax.drawing.pages import render_finite
from imbalance_jax.report.record import RunContents

_NAMES = {"cbow": "CBOW", "skipgram": "skip-gram"}


def describe_word2vec(run: RunContents) -> dict[str, Any] | None:
    """Returns a row for every pair of languages, and how fast vectors were trained, or None."""
    if not run.word2vec:
        return None
    rows, speeds = [], []
    for method, results in run.word2vec.items():
        name = _NAMES.get(method, method)
        for pair, tables in (results.get("pairs") or {}).items():
            rows += [
                [f"{name}, {pair}, {where}", *_render_measures(measures)]
                for where, measures in tables.items()
            ]
        rate = parse_number(results.get("tokens_per_second"))
        if math.isfinite(rate):
            speeds.append(f"{name}: {results['tokens']:,} tokens, {rate:,.0f} a second.")
    return {"rows": rows, "speeds": " ".join(speeds)}


def _render_measures(measures: Mapping[str, Any]) -> list[Any]:
    """Returns the cells of one pair of languages; dashes for what was not measured."""
    number = {
        name: parse_number(measures.get(name))
        for name in ("pairs", "cosine", "shuffled", "between", "centred")
    }
    retrieval = measures.get("retrieval") or {}
    forth, back, chance = (
        parse_number(retrieval.get(name)) for name in ("forth", "back", "chance")
    )
    return [
        render_finite(number["pairs"], format_count),
        render_finite(number["cosine"], ".3f"),
        render_finite(number["shuffled"], ".3f"),
        render_finite(number["between"], ".3f"),
        render_finite(number["cosine"] - number["shuffled"], "+.3f"),
        render_finite(number["centred"], ".3f"),
        render_finite((forth + back) / 2, format_percent),
        render_finite(chance, format_percent),
    ]
