"""Panels of losses and what they are worth, over ratio, length and size."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.analysis.effects import CellAlignment, Effects, FittedLaw, LanguageCondition
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.drawing.numbers import format_compact_tick
from imbalance_jax.drawing.panel import Line, Panel, Point
from imbalance_jax.report.study.series import (
    OTHER,
    SHARE,
    format_point_name,
    get_series_name,
    get_sized_series_name,
    get_worth_in_range,
    group_into_lines,
    keep_drawable_interval,
    list_mixture_conditions,
    list_ratio_conditions,
    make_level,
    make_loss_point,
    make_series,
    make_teff_point,
)
from imbalance_jax.study import grid

_CURVE_POINTS = 60


def make_loss_panels(table: StudyTable, effects: Effects) -> list[Panel]:
    """A panel for each text, size and length of the mixtures; for baselines alone, one of 1x."""
    groups: dict[tuple[str, str, float], list[LanguageCondition]] = {}
    for condition in list_ratio_conditions(table, effects):
        key = (condition.first.source, condition.first.size, condition.total)
        groups.setdefault(key, []).append(condition)
    with_mixtures = {(source, size) for source, size, _ in groups}
    for law in effects.laws.values():
        if (law.group.source, law.group.size) not in with_mixtures:
            groups.setdefault((law.group.source, law.group.size, float(table.unit_tokens)), [])
    panels = []
    for (source, size, total), conditions in sorted(groups.items(), key=lambda item: item[0]):
        lines = group_into_lines(
            table, conditions, lambda c: make_loss_point(c, 100 * c.first.share)
        )
        steps = {condition.config.steps for condition in conditions}
        shares = [point.x for line in lines for point in line.points]
        for law in effects.laws.values():
            group = law.group
            fits = (group.source, group.size, law.part) == (source, size, "loss")
            if fits and (
                not steps or group.kind not in ("matched", "epochs") or group.shape in steps
            ):
                lines += _make_law_lines(law, total, shares)
        title = f"{source}, {size}, {format_compact_tick(total)} tokens: loss, nats per token"
        if lines:
            panels.append(Panel(title, SHARE, tuple(lines)))
    return panels


def _make_law_lines(law: FittedLaw, total: float, shares: Sequence[float]) -> list[Line]:
    """Returns the curve of a law, if it is fitted, and the runs that it is of."""
    points = tuple(
        Point(100 * row.tokens / total, law.loss(row), name=row.run)
        for row in law.observations
        # Baselines of longer runs say nothing at this length.
        if row.tokens <= 1.02 * total
    )
    if not points:
        return []
    xs = [*shares, *(point.x for point in points)]
    curve = []
    if law.choice is not None and max(xs) > min(xs):
        fitted = law.choice.law
        for x in np.geomspace(min(xs), max(xs), _CURVE_POINTS):
            y = float(fitted.loss(x / 100 * total))
            if math.isfinite(y):
                curve.append(Point(float(x), y))
    name = f"{law.group.kind} law" if curve else law.group.kind
    runs = Line(name, points, "points", fill="none", size=4.5, labelled=not curve)
    return [Line(name, tuple(curve), "curve"), runs] if curve else [runs]


def make_efficiency_panels(table: StudyTable, effects: Effects) -> list[Panel]:
    """TEff and the exchange rate for each kind of baseline and each text."""
    conditions = list_ratio_conditions(table, effects)
    sources = dict.fromkeys(condition.first.source for condition in conditions)
    panels = []
    for kind, source in itertools.product(grid.BASELINES, sources):
        of_source = [c for c in conditions if c.first.source == source]
        teff, exchange = (
            group_into_lines(
                table, of_source, functools.partial(make_point, kind), get_sized_series_name
            )
            for make_point in (make_teff_point, _make_exchange_point)
        )
        prefix = f"{source}: " if len(sources) > 1 else ""
        if teff:
            title = f"{prefix}TEff against {kind} baselines (log scale)"
            panels.append(Panel(title, SHARE, (*teff, make_level(1.0)), y_scale="log"))
        if exchange:
            title = f"{prefix}exchange rate against {kind} baselines"
            panels.append(Panel(title, SHARE, (*exchange, make_level(0.0)), cut=True))
    return panels


def _make_exchange_point(kind: str, condition: LanguageCondition) -> Point | None:
    worth = get_worth_in_range(condition, kind)
    first = condition.first
    if worth is None or not first.other_tokens:
        return None
    weight = first.tokens / first.other_tokens
    return Point(
        100 * first.share,
        worth.efficiency.exchange,
        *keep_drawable_interval(worth.exchange, log=False),
        runs=tuple((v - 1) * weight for v in worth.teff_by_seed.values() if 0 < v < math.inf),
        hollow=worth.efficiency.extrapolated,
        name=format_point_name(condition),
    )


def make_cell_panels(table: StudyTable, effects: Effects) -> list[Panel]:
    """Panels of loss and of TEff of each kind with a row for each language of a cell.

    None where every mixture is described by its ratio.
    """
    conditions = list_mixture_conditions(effects)
    if not any(get_series_name(table, c.kind, c.config) == OTHER for c in conditions):
        return []
    names = tuple(map(format_point_name, conditions))

    loss = [make_loss_point(condition, float(row)) for row, condition in enumerate(conditions)]
    line = Line("", tuple(loss), "points")
    panels = [Panel("loss, nats per token", "", (line,), names=names, horizontal=True)]
    for kind in grid.BASELINES:
        teff = [make_teff_point(kind, c, float(row)) for row, c in enumerate(conditions)]
        points = tuple(point for point in teff if point is not None)
        if points:
            lines = (Line("", points, "points"), make_level(1.0))
            title = f"TEff, {kind} (log scale)"
            panels.append(Panel(title, "", lines, y_scale="log", names=names, horizontal=True))
    return panels


def make_scaling_panels(table: StudyTable, effects: Effects, by: str) -> list[Panel]:
    """Panels over total tokens, or over parameters, where the study varies them.

    Args:
      by: "tokens" or "size".
    """
    get_x: Callable[[LanguageCondition], float] = {
        "tokens": lambda condition: condition.total,
        "size": lambda condition: float(condition.first.parameters),
    }[by]
    label = "tokens of all languages" if by == "tokens" else "parameters"
    rows: dict[str, dict[str, list[LanguageCondition]]] = {}
    for condition in list_ratio_conditions(table, effects):
        if condition.kind in ("mixture", "placebo"):
            tokens = f"{format_compact_tick(condition.total)} tokens"
            row = condition.first.size if by == "tokens" else tokens
            rows.setdefault(row, {}).setdefault(_format_ratio_name(condition), []).append(condition)
    panels = []
    for row, by_ratio in sorted(rows.items()):
        varied = {n: each for n, each in by_ratio.items() if len({*map(get_x, each)}) > 1}
        if not varied:
            continue
        loss = _make_scaling_lines(varied, lambda c: make_loss_point(c, get_x(c)))
        teff = _make_scaling_lines(varied, lambda c: make_teff_point("monolingual", c, get_x(c)))
        aligned = _make_alignment_lines(effects, varied, get_x)
        columns = (
            ("loss, nats per token", loss, None, "linear"),
            ("TEff (log scale)", teff, 1.0, "log"),
            ("cosine of hidden states above shuffled pairs", aligned, 0.0, "linear"),
        )
        for title, lines, level, scale in columns:
            if lines:
                ticks = tuple(sorted({point.x for line in lines for point in line.points}))
                lines += () if level is None else (make_level(level),)
                title = f"{row}: {title}"
                panels.append(Panel(title, label, lines, x_scale="log", y_scale=scale, ticks=ticks))
    return panels


def _make_scaling_lines(
    by_ratio: Mapping[str, Sequence[LanguageCondition]],
    make_point: Callable[[LanguageCondition], Point | None],
) -> tuple[Line, ...]:
    lines = []
    for name, conditions in by_ratio.items():
        points = [point for point in map(make_point, conditions) if point is not None]
        if points:
            lines.append(make_series(name, points, "line"))
    return tuple(lines)


def _make_alignment_lines(
    effects: Effects,
    by_ratio: Mapping[str, Sequence[LanguageCondition]],
    get_x: Callable[[LanguageCondition], float],
) -> tuple[Line, ...]:
    """Returns a line for each ratio: both of its languages have the same alignment."""
    lines: dict[str, dict[float, Point]] = {}
    first: dict[str, CellAlignment] = {}
    for aligned in effects.alignments:
        if aligned.measure == "hidden":
            first.setdefault(aligned.cell, aligned)
    for name, conditions in by_ratio.items():
        ratio = name.rpartition(" ")[0]
        for condition in sorted(conditions, key=get_x):
            if condition.cell in first:
                aligned = first[condition.cell]
                lines.setdefault(ratio, {})[get_x(condition)] = Point(
                    get_x(condition),
                    aligned.excess.value,
                    *aligned.excess.interval(),
                    runs=tuple(aligned.excess_by_seed.values()),
                    name=f"{aligned.cell} {aligned.pair}",
                )
    return tuple(Line(name, tuple(points.values())) for name, points in lines.items())


def _format_ratio_name(condition: LanguageCondition) -> str:
    """Returns 90:10 en2, with a word in front where it is no mixture."""
    ratio = config_lib.reduce_ratio(condition.config.mixture.ratio)
    whole = sum(ratio.values())
    parts = ":".join(f"{100 * ratio[tag] / whole:.3g}" for tag in condition.config.tags)
    kind = "" if condition.kind == "mixture" else f"{condition.kind} "
    return f"{kind}{parts} {condition.language}"
