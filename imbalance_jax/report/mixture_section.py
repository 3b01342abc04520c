"""The ratio that was requested, and what a run was trained on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from imbalance_jax import config as config_lib
from imbalance_jax.drawing.draw import draw_panels
from imbalance_jax.drawing.numbers import (
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_significant,
    normalize_to_fractions,
)
from imbalance_jax.drawing.pages import Figure, render_number, render_swatch
from imbalance_jax.drawing.panel import Line, Panel, Point
from imbalance_jax.drawing.svg import render_svg
from imbalance_jax.report.line_figures import draw_curve_figure
from imbalance_jax.report.record import Curve, RunContents


def describe_mixture(run: RunContents) -> dict[str, Any] | None:
    """Returns the values of the section on the ratio; None without mixture.csv."""
    if not run.mixture:
        return None
    requested = {tag: row["requested_sequences"] for tag, row in run.mixture.items()}
    realised = {tag: row["realised_sequences"] for tag, row in run.mixture.items()}
    rows = [
        [
            render_swatch(run.config.tags, tag),
            render_number(row["requested_sequences"], format_count),
            render_number(row["realised_sequences"], format_count),
            render_number(row["realised_tokens"], format_compact),
            run.source(tag),
            render_number(row.get("pool_epochs"), format_significant),
        ]
        for tag, row in run.mixture.items()
    ]
    repeats = math.fsum(row.get("cross_language_repeats", 0.0) for row in run.mixture.values())
    return {
        **_find_deviation(run, requested, realised),
        "bars": _draw_parts(run.config.tags, requested, realised),
        "rows": rows,
        "repeats": repeats,
        "repeated_part": repeats / (math.fsum(realised.values()) or 1.0),
        "over_time": _draw_ratio_over_time(run),
    }


def _find_deviation(
    run: RunContents, requested: Mapping[str, float], realised: Mapping[str, float]
) -> dict[str, Any]:
    """Returns the language that is furthest from its requested sequences, and how far it is.

    None of them deviates if `worst` is empty; `within_block` says that none deviates by more than
    what the unfinished blocks at the ends of the stages explain.
    """
    stages = config_lib.list_stages(run.config)
    deviations = {tag: realised[tag] - requested[tag] for tag in realised}
    worst = max(deviations, key=lambda tag: abs(deviations[tag]))
    # What was requested of a stretch is a sum of parts of a sequence, with six decimals.
    near = 1e-5 * max(1, len(run.windows))
    ends = [int(end) for row in run.windows if (end := row.get("last_step", "")).isdecimal()]
    last = max(ends, default=run.config.steps)
    most = _bound_deviations(run.config, stages, last)
    return {
        "worst": worst if abs(deviations[worst]) > near else "",
        "deviation": format_number(deviations[worst], "+,.6g"),
        "requested": requested[worst],
        "deviating_part": (
            abs(deviations[worst]) / requested[worst] if requested[worst] else math.inf
        ),
        "block": sum(config_lib.reduce_ratio(stages[0][1]).values()) if len(stages) == 1 else 0,
        "within_block": run.config.mixture.sampler == "exact"
        and all(abs(deviation) <= most[tag] + near for tag, deviation in deviations.items()),
    }


def _bound_deviations(
    config: config_lib.Config, stages: Sequence[tuple[int, Mapping[str, int]]], last: int
) -> dict[str, float]:
    """Returns how far each language can be from its share after a step: each stage has new blocks.

    Inside a block of S sequences with c of a language it is c (S - c) / S at most.
    """
    most = dict.fromkeys(config.tags, 0.0)
    ends = [first for first, _ in stages[1:]] + [last]
    for (first, ratio), end in zip(stages, ends, strict=True):
        counts = config_lib.reduce_ratio(ratio)
        block = sum(counts.values())
        steps = max(0, min(end, last) - first)
        if end == ends[-1] or steps * config.batch_size % block:
            for tag in most:
                most[tag] += counts[tag] * (block - counts[tag]) / block
    return most


def _draw_parts(
    tags: Sequence[str], requested: Mapping[str, float], realised: Mapping[str, float]
) -> Figure:
    """Returns bars of the requested and the realised part of each language."""
    asked, got = normalize_to_fractions(requested), normalize_to_fractions(realised)
    shown = [tag for tag in tags if tag in got]
    bars = []
    for row, tag in enumerate(shown):
        wanted, part = (100 * parts.get(tag, math.nan) for parts in (asked, got))
        above = Point(row - 0.19, wanted, name=f"{format_significant(wanted)} % requested")
        below = Point(row + 0.19, part, name=f"{format_significant(part)} % realised")
        bars.append(Line("", (above,), "bars", colour="muted", fill="none"))
        bars.append(Line("", (below,), "bars", style=tags.index(tag)))
    panel = Panel("% of the sequences", "", tuple(bars), names=tuple(shown), horizontal=True)
    drawing = draw_panels([panel], height=60 + 40 * len(shown))
    listed = ", ".join(f"{tag} {format_percent(part)}" for tag, part in got.items())
    return Figure(
        render_svg(drawing, "mixture", f"Realised part of the sequences: {listed}."),
        "Part of all sequences.",
        "Each pair of bars should end at the same place.",
    )


def _draw_ratio_over_time(run: RunContents) -> Figure | None:
    """Returns a figure of what each stretch of the run held, where the ratio changes."""
    stages = tuple(first for first, _ in config_lib.list_stages(run.config)[1:])
    if not stages:
        return None
    total: dict[str, float] = {}
    for row in run.windows:
        sequences = float(row["realised_sequences"])
        total[row["last_step"]] = total.get(row["last_step"], 0.0) + sequences
    curves = {}
    for tag in run.config.tags:
        # Level over each stretch, from its first step to its last.
        steps, parts = [], []
        for row in run.windows:
            if row["language"] == tag:
                steps += [int(row["first_step"]), int(row["last_step"])]
                parts += [float(row["realised_sequences"]) / total[row["last_step"]]] * 2
        curves[tag] = Curve(steps, parts)
    return draw_curve_figure(
        "mixture-over-time",
        "Part of the sequences over the run.",
        "Dotted verticals are the steps at which the config changes the ratio.",
        curves,
        run.config.tags,
        y_label="% of the sequences",
        percent=True,
        tokens_per_step=run.tokens_per_step(),
        verticals=stages,
    )
