"""Languages of a study's cells as points of a figure, in series of one kind."""

import math
from collections.abc import Callable, Sequence

from imbalance_jax import config as config_lib
from imbalance_jax.analysis.effects import (
    Effects,
    EfficiencyEstimate,
    LanguageCondition,
    has_plain_text,
)
from imbalance_jax.analysis.statistics import Interval
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.config import costs
from imbalance_jax.drawing.numbers import format_compact_tick
from imbalance_jax.drawing.panel import Line, Point
from imbalance_jax.study import grid

SHARE = "language’s part of the tokens, %"
OTHER = "other mixture"  # a schedule, anchors and the like
UNKNOWN: Interval = (math.nan, math.nan)


def get_series_name(table: StudyTable, kind: str, config: config_lib.Config) -> str:
    """Returns the name of the series that a cell belongs to.

    Mixtures that differ in more than their ratio, such as schedules and anchors, are others.
    """
    if kind != "mixture":
        return kind
    plain = not config.mixture.stages and all(
        language.anchors == 0 and has_plain_text(config, tag)
        for tag, language in config.languages.items()
    )
    if not plain:
        return OTHER
    counts = {
        len(run.config.tags)
        for run in table.runs.values()
        if run.spec.kind == "mixture" and not run.config.mixture.stages
    }
    return "mixture" if len(counts) == 1 else f"mixture of {len(config.tags)}"


def get_sized_series_name(table: StudyTable, kind: str, config: config_lib.Config) -> str:
    """Returns the series of a cell where sizes and lengths share a panel, if they vary."""
    mixtures = [r.config for r in table.runs.values() if r.spec.kind not in grid.BASELINES]
    sizes = {(each.model.N, each.model.D) for each in mixtures}
    lengths = {costs.count_training_tokens(each) for each in mixtures}
    name = get_series_name(table, kind, config)
    if len(sizes) > 1:
        name += f" {config.model.N}x{config.model.D}"
    if len(lengths) > 1:
        name += f" {format_compact_tick(costs.count_training_tokens(config))}"
    return name


def list_mixture_conditions(effects: Effects) -> list[LanguageCondition]:
    """Returns what is drawn: languages of mixtures whose text is as written."""
    left_out = ("sweep", *grid.BASELINES)
    return [c for c in effects.conditions if c.kind not in left_out and c.plain]


def list_ratio_conditions(table: StudyTable, effects: Effects) -> list[LanguageCondition]:
    """Returns those that a ratio is all there is to say of."""
    return [
        c
        for c in list_mixture_conditions(effects)
        if get_series_name(table, c.kind, c.config) != OTHER
    ]


def group_into_lines(
    table: StudyTable,
    conditions: Sequence[LanguageCondition],
    make_point: Callable[[LanguageCondition], Point | None],
    get_name: Callable[[StudyTable, str, config_lib.Config], str] = get_series_name,
) -> list[Line]:
    """Returns a line for each series, of the conditions that have a point."""
    series: dict[str, list[Point]] = {}
    for condition in conditions:
        point = make_point(condition)
        if point is not None:
            name = get_name(table, condition.kind, condition.config)
            series.setdefault(name, []).append(point)
    return [make_series(name, points) for name, points in series.items()]


def make_series(name: str, points: Sequence[Point], kind: str = "points") -> Line:
    return Line(name, tuple(sorted(points, key=lambda point: point.x)), kind)


def make_level(value: float) -> Line:
    """Returns a dotted line across, which has no name."""
    return Line("", (Point(math.nan, value),), "level")


def format_point_name(condition: LanguageCondition) -> str:
    return f"{condition.cell} {condition.language}"


def make_loss_point(condition: LanguageCondition, x: float) -> Point:
    return Point(
        x,
        condition.log_ppl.value,
        *condition.log_ppl.interval(),
        runs=tuple(condition.by_seed("loss").values()),
        name=format_point_name(condition),
    )


def get_worth_in_range(condition: LanguageCondition, kind: str) -> EfficiencyEstimate | None:
    """Returns what a loss is worth, if it is within the law's range."""
    worth = condition.worths.get((kind, "loss"))
    return None if worth is None or worth.limit else worth


def make_teff_point(
    kind: str, condition: LanguageCondition, x: float | None = None
) -> Point | None:
    worth = get_worth_in_range(condition, kind)
    if worth is None:
        return None
    return Point(
        100 * condition.first.share if x is None else x,
        worth.efficiency.teff,
        *keep_drawable_interval(worth.teff, log=True),
        runs=tuple(v for v in worth.teff_by_seed.values() if 0 < v < math.inf),
        hollow=worth.efficiency.extrapolated,
        name=format_point_name(condition),
    )


def keep_drawable_interval(interval: Interval, log: bool) -> Interval:
    low, high = interval
    known = math.isfinite(low) and math.isfinite(high) and (low > 0 or not log)
    return interval if known else UNKNOWN
