"""The part of a run's page on word2vec: how alike vectors that know only neighbours become."""

import math
from collections.abc import Mapping
from typing import Any

from imbalance_jax.drawing import markup
from imbalance_jax.report.record import RunContents

_NAMES = {"cbow": "CBOW", "skipgram": "skip-gram"}


def render_word2vec_section(run: RunContents) -> str:
    """Returns the section, or nothing where there is no word2vec.json."""
    if not run.word2vec:
        return ""
    rows, trained = [], []
    for method, found in run.word2vec.items():
        name = _NAMES.get(method, method)
        for pair, tables in (found.get("pairs") or {}).items():
            for where, measured in tables.items():
                rows.append(
                    [
                        markup.escape_text(f"{name}, {pair}, {where}"),
                        *_render_word2vec_cells(measured),
                    ]
                )
        rate = markup.parse_number(found.get("tokens_per_second"))
        if math.isfinite(rate):
            trained.append(f"{name}: {found['tokens']:,} tokens, {rate:,.0f} a second.")
    header = ["vectors", "pairs", "cosine", "shuffled", "of any two", "excess", "centred"]
    header += ["nearest is the right one", "by chance"]
    table = markup.render_table(header, rows, "Pieces that mean the same, of those that occur.")
    note = markup.render_note(
        "The same tokens as the run's, with vectors that each piece learns from its neighbours "
        "alone. Shuffled are pieces with the counterpart of one as frequent; only the excess over "
        "that counts, and how often the nearest piece of the other language is the right one. "
        + " ".join(trained)
    )
    return markup.render_section("word2vec on the same tokens", note, table)


def _render_word2vec_cells(measured: Mapping[str, Any]) -> list[str]:
    """Returns the cells of one pair of languages; absent ones for what was not measured."""
    cosine, shuffled = (markup.parse_number(measured.get(name)) for name in ("cosine", "shuffled"))
    scores = measured.get("retrieval") or {}
    forth, back = (markup.parse_number(scores.get(name)) for name in ("forth", "back"))

    def cell(value: float, write: Any) -> str:
        return markup.render_number(value if math.isfinite(value) else None, write)

    three = lambda x: f"{x:.3f}".replace("-", "−")
    return [
        cell(markup.parse_number(measured.get("pairs")), markup.format_count),
        cell(cosine, three),
        cell(shuffled, three),
        cell(markup.parse_number(measured.get("between")), three),
        cell(cosine - shuffled, lambda x: f"{x:+.3f}".replace("-", "−")),
        cell(markup.parse_number(measured.get("centred")), three),
        cell((forth + back) / 2, markup.format_percent),
        cell(markup.parse_number(scores.get("chance")), markup.format_percent),
    ]
