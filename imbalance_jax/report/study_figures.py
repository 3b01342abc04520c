"""Figures of a study: losses, what they are worth and alignment, over ratio, length and size.

`draw_study_figures` returns those that a study has something for, each as PNG, SVG, CSV and as an
element of the page. Every run is a small dot beside its cell's mean. A series has a marker of its
own and its name at its end, and a law a dash of its own, so that figures read without colour.
Hollow markers are extrapolated.
"""

import csv
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.analysis import transfer_results
from imbalance_jax.analysis.effects import (
    CellAlignment,
    Effects,
    EfficiencyEstimate,
    FittedLaw,
    LanguageCondition,
    has_plain_text,
)
from imbalance_jax.analysis.statistics import Interval
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.config import costs
from imbalance_jax.drawing import plots as figures
from imbalance_jax.drawing.plots import COLOURS
from imbalance_jax.study import grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Pixels.
_HEIGHT = 330
_MARKER = 6.5
_ROW = 22
_LONG = 6  # times the middle bar
_DODGE = 5.0  # between series at one place
_PNG_DPI = 150
_CURVE_POINTS = 60
_SHUFFLED = "nothing shared"
_OTHER = "other mixture"  # a schedule, anchors and the like
# A series that is in several figures looks the same in all of them.
_STYLES = ("mixture", "placebo", "anchored", "copied", *grid.BASELINES, _OTHER, _SHUFFLED)
_UNKNOWN: Interval = (math.nan, math.nan)
_SHARE = "language’s part of the tokens, %"
MEASURE_NAMES = {
    "hidden": "cosine of hidden states, mean over the blocks",
    "retrieval": "retrieval of sequences, mean over the blocks",
    "embed_in": "cosine of input embeddings",
    "embed_out": "cosine of output embeddings",
    "gradient": "cosine of gradients",
}


@dataclasses.dataclass(frozen=True)
class Mark:
    """A cell's mean, with its interval and its runs."""

    x: float
    y: float
    interval: Interval = _UNKNOWN
    runs: tuple[float, ...] = ()
    hollow: bool = False  # extrapolated
    name: str = ""  # cell and language


@dataclasses.dataclass(frozen=True)
class Series:
    """Marks of one kind, or the points of a curve, which has none."""

    name: str
    marks: tuple[Mark, ...]
    style: str  # its place among all series of the figure
    curve: bool = False
    points: tuple[Mark, ...] = ()  # runs that a curve was fitted to


@dataclasses.dataclass(frozen=True)
class StudyPanel:
    """One pair of axes."""

    title: str
    x_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    level: float | None = None  # of a dotted line across
    cut: bool = False  # whether bars far longer than the others may leave the frame


@dataclasses.dataclass(frozen=True)
class StudyFigure:
    """A figure with what it shows."""

    name: str  # of its files
    title: str
    reading: str  # how to read it, in a sentence or two
    panels: tuple[StudyPanel, ...]
    figure: "Figure"

    def write(self, directory: pathlib.Path) -> list[pathlib.Path]:
        """Writes PNG, SVG and CSV into a directory, and returns the files."""
        import matplotlib

        png, svg, table = (directory / f"{self.name}.{kind}" for kind in ("png", "svg", "csv"))
        self.figure.savefig(png, dpi=_PNG_DPI, facecolor="white")
        # Text stays text, and the same input gives the same file.
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self.figure.savefig(svg, metadata={"Date": None})
        with table.open("w", newline="", encoding="utf-8") as file:
            rows = list(self.rows())
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return [png, svg, table]

    def inline_svg(self) -> str:
        """Returns one `<svg>` element that follows the colours of the page it stands in."""
        return figures.render_svg(self.figure, self.name.replace("_", "-"), self.title)

    def rows(self) -> Iterable[dict[str, object]]:
        """Yields all that is drawn, and where a curve passes."""
        for panel in self.panels:
            for series in panel.series:
                kinds = (
                    ("curve" if series.curve else "mean", series.marks),
                    ("run", series.points),
                )
                for shown_as, marks in kinds:
                    for mark in marks:
                        low, high = ("" if math.isnan(end) else end for end in mark.interval)
                        yield {
                            "panel": panel.title,
                            "series": series.name,
                            "shown_as": shown_as,
                            "name": mark.name,
                            "x": mark.x,
                            "y": mark.y,
                            "low": low,
                            "high": high,
                            "runs": " ".join(map(repr, mark.runs)),
                            "extrapolated": mark.hollow,
                        }


def draw_study_figures(table: StudyTable, effects: Effects) -> list[StudyFigure]:
    """Returns the figures that a study has something for, in the order of its page."""
    tokens, sizes = (
        _make_scaling_panels(table, effects, "tokens"),
        _make_scaling_panels(table, effects, "size"),
    )
    made = [
        (
            "loss_by_ratio",
            "Loss of a language against its part of the tokens.",
            "Lines are what the language alone reaches on as many tokens, by the law of each kind "
            "of baseline, with its runs as small markers of the same form. Below the line the "
            "other languages helped; the placebo says how much of that is no transfer. Bars are "
            "95 % intervals, dots single runs.",
            _make_loss_panels(table, effects),
        ),
        (
            "efficiency_by_ratio",
            "What a language’s loss is worth, against each kind of baseline.",
            "TEff is the tokens that the language alone would need for the same loss, over those "
            "it had: above 1 the others helped. It is inflated where the part is small; the "
            "exchange rate, what one token of the others was worth in tokens of its own, is not. "
            "Intervals refit the law; those of frequent languages are long, and may leave the "
            "frame, as few other tokens share the deviation. Hollow markers are extrapolated.",
            _make_efficiency_panels(table, effects),
        ),
        (
            "alignment_by_ratio",
            "Alignment of two languages against the smaller one’s part of the tokens.",
            "Cosine of what the model makes of the same text in both, and how often the nearest "
            "sequence of the other language is the right one. The short bars are the same where "
            "nothing is shared: pairs that were shuffled, and for retrieval chance. Only what "
            "rises above them, and above the placebo, is alignment.",
            _make_alignment_panels(table, effects),
        ),
        (
            "transfer_by_ratio",
            "What is learnt in one language, asked in each.",
            "Mean accuracy over the tasks after fine-tuning in the one language alone; dotted: "
            "always the most frequent label. Bars are 95 % intervals over runs, dots single runs, "
            "each the mean of its fine-tunings.",
            _make_transfer_panels(table),
        ),
        (
            "scaling_by_tokens",
            "The same ratios with more tokens.",
            "Loss, TEff against the short monolingual baseline (dotted: 1), and alignment of "
            "hidden states above that of shuffled pairs.",
            tokens,
        ),
        (
            "scaling_by_size",
            "The same ratios in larger models.",
            "Loss, TEff against the short monolingual baseline (dotted: 1), and alignment of "
            "hidden states above that of shuffled pairs.",
            sizes,
        ),
    ]
    found = [
        StudyFigure(name, title, reading, tuple(panels), _draw_panel_figure(panels))
        for name, title, reading, panels in made
        if panels
    ]
    rows = _make_cell_panels(table, effects)
    if rows:
        title = "Every mixture, schedules and anchors included."
        reading = (
            "A row for each language of a cell; the dotted line is a TEff of 1. Bars are 95 % "
            "intervals, dots single runs, hollow markers extrapolated."
        )
        found.append(StudyFigure("cells", title, reading, tuple(rows), _draw_row_figure(rows)))
    return found


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
        return _OTHER
    counts = {
        len(run.config.tags)
        for run in table.runs.values()
        if run.spec.kind == "mixture" and not run.config.mixture.stages
    }
    return "mixture" if len(counts) == 1 else f"mixture of {len(config.tags)}"


def _get_sized_series_name(table: StudyTable, kind: str, config: config_lib.Config) -> str:
    """Returns the series of a cell where sizes and lengths share a panel, if they vary."""
    mixtures = [r.config for r in table.runs.values() if r.spec.kind not in grid.BASELINES]
    sizes = {(each.model.N, each.model.D) for each in mixtures}
    lengths = {costs.count_training_tokens(each) for each in mixtures}
    name = get_series_name(table, kind, config)
    if len(sizes) > 1:
        name += f" {config.model.N}x{config.model.D}"
    if len(lengths) > 1:
        name += f" {figures.format_compact_tick(costs.count_training_tokens(config))}"
    return name


def _list_mixture_conditions(effects: Effects) -> list[LanguageCondition]:
    """Returns what is drawn: languages of mixtures whose text is as written."""
    left_out = ("sweep", *grid.BASELINES)
    return [c for c in effects.conditions if c.kind not in left_out and c.plain]


def _list_ratio_conditions(table: StudyTable, effects: Effects) -> list[LanguageCondition]:
    """Returns those that a ratio is all there is to say of."""
    return [
        c
        for c in _list_mixture_conditions(effects)
        if get_series_name(table, c.kind, c.config) != _OTHER
    ]


def _format_mark_name(condition: LanguageCondition) -> str:
    return f"{condition.cell} {condition.language}"


# Loss.


def _make_loss_mark(condition: LanguageCondition, x: float) -> Mark:
    return Mark(
        x=x,
        y=condition.log_ppl.value,
        interval=condition.log_ppl.interval(),
        runs=tuple(condition.by_seed("loss").values()),
        name=_format_mark_name(condition),
    )


def _make_loss_panels(table: StudyTable, effects: Effects) -> list[StudyPanel]:
    """A panel for each text, size and length of the mixtures; for baselines alone, one of 1x."""
    groups: dict[tuple[str, str, float], list[LanguageCondition]] = {}
    for condition in _list_ratio_conditions(table, effects):
        key = (condition.first.source, condition.first.size, condition.total)
        groups.setdefault(key, []).append(condition)
    drawn_laws = {(source, size) for source, size, _ in groups}
    for law in effects.laws.values():
        alone = (law.group.source, law.group.size)
        if alone not in drawn_laws:
            groups[*alone, float(table.unit_tokens)] = []
            drawn_laws.add(alone)
    panels = []
    for (source, size, total), conditions in sorted(groups.items(), key=lambda item: item[0]):
        series = _group_into_series(
            table, conditions, lambda c: _make_loss_mark(c, 100 * c.first.share)
        )
        steps = {condition.config.steps for condition in conditions}
        shares = [mark.x for one in series for mark in one.marks]
        for law in effects.laws.values():
            group = law.group
            fits = (group.source, group.size, law.part) == (source, size, "loss")
            if fits and (
                not steps or group.kind not in ("matched", "epochs") or group.shape in steps
            ):
                curve = _make_law_series(law, total, shares)
                series += [curve] if curve is not None else []
        title = (
            f"{source}, {size}, {figures.format_compact_tick(total)} tokens: loss, nats per token"
        )
        if series:
            panels.append(StudyPanel(title, _SHARE, tuple(series)))
    return panels


def _make_law_series(law: FittedLaw, total: float, shares: Sequence[float]) -> Series | None:
    points = tuple(
        Mark(100 * row.tokens / total, law.loss(row), name=row.run)
        for row in law.observations
        # Baselines of longer runs say nothing at this length.
        if row.tokens <= 1.02 * total
    )
    if not points:
        return None
    xs = [*shares, *(point.x for point in points)]
    curve = []
    if law.choice is not None and max(xs) > min(xs):
        fitted = law.choice.law
        for x in np.geomspace(min(xs), max(xs), _CURVE_POINTS):
            y = float(fitted.loss(x / 100 * total))
            if math.isfinite(y):
                curve.append(Mark(float(x), y))
    name = f"{law.group.kind} law" if curve else law.group.kind
    return Series(name, tuple(curve), law.group.kind, curve=True, points=points)


def _group_into_series(
    table: StudyTable,
    conditions: Sequence[LanguageCondition],
    mark: Callable[[LanguageCondition], Mark | None],
    named: Callable[[StudyTable, str, config_lib.Config], str] = get_series_name,
) -> list[Series]:
    found: dict[str, list[Mark]] = {}
    for condition in conditions:
        made = mark(condition)
        if made is not None:
            name = named(table, condition.kind, condition.config)
            found.setdefault(name, []).append(made)
    return [
        Series(name, tuple(sorted(marks, key=lambda mark: mark.x)), name)
        for name, marks in found.items()
    ]


# What a loss is worth.


def _make_efficiency_panels(table: StudyTable, effects: Effects) -> list[StudyPanel]:
    """Both measures for each kind of baseline and each text."""
    conditions = _list_ratio_conditions(table, effects)
    sources = dict.fromkeys(condition.first.source for condition in conditions)
    panels = []
    for kind, source in itertools.product(grid.BASELINES, sources):
        mine = [c for c in conditions if c.first.source == source]
        teff, exchange = (
            _group_into_series(table, mine, functools.partial(mark, kind), _get_sized_series_name)
            for mark in (_make_teff_mark, _make_exchange_mark)
        )
        whose = f"{source}: " if len(sources) > 1 else ""
        if teff:
            title = f"{whose}TEff against {kind} baselines (log scale)"
            panels.append(StudyPanel(title, _SHARE, tuple(teff), log_y=True, level=1.0))
        if exchange:
            title = f"{whose}exchange rate against {kind} baselines"
            panels.append(StudyPanel(title, _SHARE, tuple(exchange), level=0.0, cut=True))
    return panels


def _get_worth_in_range(condition: LanguageCondition, kind: str) -> EfficiencyEstimate | None:
    """Returns what a loss is worth, if it is within the law's range."""
    worth = condition.worths.get((kind, "loss"))
    return None if worth is None or worth.limit else worth


def _make_teff_mark(kind: str, condition: LanguageCondition, x: float | None = None) -> Mark | None:
    worth = _get_worth_in_range(condition, kind)
    if worth is None:
        return None
    return Mark(
        x=100 * condition.first.share if x is None else x,
        y=worth.efficiency.teff,
        interval=_keep_drawable_interval(worth.teff, log=True),
        runs=tuple(v for v in worth.teff_by_seed.values() if 0 < v < math.inf),
        hollow=worth.efficiency.extrapolated,
        name=_format_mark_name(condition),
    )


def _make_exchange_mark(kind: str, condition: LanguageCondition) -> Mark | None:
    worth = _get_worth_in_range(condition, kind)
    first = condition.first
    if worth is None or not first.other_tokens:
        return None
    weight = first.tokens / first.other_tokens
    return Mark(
        x=100 * first.share,
        y=worth.efficiency.exchange,
        interval=_keep_drawable_interval(worth.exchange, log=False),
        runs=tuple((v - 1) * weight for v in worth.teff_by_seed.values() if 0 < v < math.inf),
        hollow=worth.efficiency.extrapolated,
        name=_format_mark_name(condition),
    )


def _keep_drawable_interval(interval: Interval, log: bool) -> Interval:
    low, high = interval
    known = math.isfinite(low) and math.isfinite(high) and (low > 0 or not log)
    return interval if known else _UNKNOWN


# All mixtures, where a ratio does not say it all.


def _make_cell_panels(table: StudyTable, effects: Effects) -> list[StudyPanel]:
    """A panel for the loss and for TEff of each kind; y counts the rows from the top."""
    conditions = _list_mixture_conditions(effects)
    if not any(get_series_name(table, c.kind, c.config) == _OTHER for c in conditions):
        return []
    place = {id(condition): float(row) for row, condition in enumerate(conditions)}
    loss = [_make_loss_mark(condition, place[id(condition)]) for condition in conditions]
    panels = [StudyPanel("loss, nats per token", "", (Series("", tuple(loss), "mixture"),))]
    for kind in grid.BASELINES:
        marks = [_make_teff_mark(kind, condition, place[id(condition)]) for condition in conditions]
        shown = tuple(mark for mark in marks if mark is not None)
        if shown:
            title = f"TEff, {kind} (log scale)"
            panels.append(
                StudyPanel(title, "", (Series("", shown, "mixture"),), log_y=True, level=1.0)
            )
    return panels


# Alignment.


def _make_alignment_panels(table: StudyTable, effects: Effects) -> list[StudyPanel]:
    panels = []
    for measure, name in MEASURE_NAMES.items():
        found = [a for a in effects.alignments if a.measure == measure and a.kind != "sweep"]
        by_series: dict[str, list[Mark]] = {}
        shuffled: list[Mark] = []
        for aligned in found:
            x = 100 * find_smaller_share(effects, aligned)
            own = _get_sized_series_name(table, aligned.kind, aligned.config)
            mean = sum(aligned.baselines.values()) / max(1, len(aligned.baselines))
            low, high = aligned.excess.interval()
            label = f"{aligned.cell} {aligned.pair}"
            by_series.setdefault(own, []).append(
                Mark(
                    x=x,
                    y=aligned.excess.value + mean,
                    interval=(low + mean, high + mean),
                    runs=tuple(aligned.values.values()),
                    name=label,
                )
            )
            if aligned.baselines:
                shuffled.append(Mark(x, mean, name=label))
        series = [Series(own, tuple(marks), own) for own, marks in by_series.items()]
        if shuffled:
            series.append(Series(_SHUFFLED, tuple(shuffled), _SHUFFLED))
        if series:
            label = "smaller language’s part of the tokens, %"
            panels.append(StudyPanel(name, label, tuple(series), level=0.0))
    return panels


def find_smaller_share(effects: Effects, aligned: CellAlignment) -> float:
    """Returns the smaller part of the tokens that one of a pair of languages has."""
    found = [effects.condition(aligned.cell, tag) for tag in aligned.pair.split("-")]
    # A baseline with the mixture's vocabulary has a language that it never saw.
    return min(0.0 if each is None else each.first.share for each in found)


# Length and size.


# What is learnt in one language and known in another.


def _make_transfer_panels(table: StudyTable) -> list[StudyPanel]:
    """A panel for each protocol, language that was trained in, set of tasks, and settings."""
    share = {(seen.run, seen.language): seen.share for seen in table.observations}
    # (title and settings, series, cell) -> the place and the mean accuracy of each run
    found: dict[tuple[tuple[str, str], str, str], list[tuple[float, float]]] = {}
    levels: dict[tuple[str, str], float] = {}
    for name, run in table.runs.items():
        kind = get_series_name(table, run.spec.kind, run.config)
        if run.state.state != "done" or kind in ("sweep", _OTHER, *grid.BASELINES):
            continue
        results = transfer_results.read_transfer_results(run.directory)
        for protocol, by_language in results.items():
            for trained, tasks in by_language.items():
                if (name, trained) not in share:
                    continue
                title = (
                    f"{transfer_results.name_tasks(tasks)}, fine-tuned in {trained} ({protocol})"
                )
                way = (title, json.dumps(transfer_results.get_task_settings(tasks)))
                x = 100 * (1 - share[name, trained])
                for tag, mean in transfer_results.average_over_tasks(tasks).items():
                    series = tag if kind == "mixture" else f"{tag}, {kind}"
                    place = (x, mean["accuracy"])
                    found.setdefault((way, series, run.spec.cell), []).append(place)
                    levels[way] = mean["majority"]
    marks: dict[tuple[str, str], dict[str, list[Mark]]] = {}
    for (way, series, cell), places in found.items():
        values = tuple(value for _, value in places)
        low, high = transfer_results.estimate_t_interval(values) or _UNKNOWN
        mark = Mark(places[0][0], sum(values) / len(values), (low, high), values, name=cell)
        marks.setdefault(way, {}).setdefault(series, []).append(mark)
    return [
        StudyPanel(
            f"{way[0]}: accuracy{_format_differing_settings(way, list(marks))}",
            "part of the other languages in the tokens, %",
            tuple(
                Series(series, tuple(sorted(each, key=lambda mark: mark.x)), series)
                for series, each in by_series.items()
            ),
            level=levels[way],
        )
        for way, by_series in marks.items()
    ]


def _format_differing_settings(way: tuple[str, str], ways: Sequence[tuple[str, str]]) -> str:
    """Returns the settings by which one of several with the same title differs from others."""
    own = json.loads(way[1])
    others = [json.loads(settings) for title, settings in ways if title == way[0]]
    differ = [name for name in own if any(other.get(name) != own[name] for other in others)]
    return "".join(f", {name}={own[name]}" for name in differ)


def _make_scaling_panels(table: StudyTable, effects: Effects, by: str) -> list[StudyPanel]:
    """Panels over total tokens, or over parameters, where the study varies them."""
    conditions = [
        c for c in _list_ratio_conditions(table, effects) if c.kind in ("mixture", "placebo")
    ]
    rows: dict[str, dict[str, list[LanguageCondition]]] = {}
    for condition in conditions:
        fixed = (
            f"{condition.first.size}"
            if by == "tokens"
            else f"{figures.format_compact_tick(condition.total)} tokens"
        )
        rows.setdefault(fixed, {}).setdefault(_format_ratio_name(condition), []).append(condition)
    x = _get_total_tokens if by == "tokens" else _get_parameter_count
    label = "tokens of all languages" if by == "tokens" else "parameters"
    panels = []
    for fixed, lines in sorted(rows.items()):
        lines = {n: sorted(found, key=x) for n, found in lines.items() if len({*map(x, found)}) > 1}
        if not lines:
            continue
        loss = [
            Series(name, tuple(_make_loss_mark(c, x(c)) for c in found), name)
            for name, found in lines.items()
        ]
        panels.append(StudyPanel(f"{fixed}: loss, nats per token", label, tuple(loss), log_x=True))
        teff = []
        for name, found in lines.items():
            marks = [_make_teff_mark("monolingual", c, x(c)) for c in found]
            if any(marks):
                teff.append(Series(name, tuple(mark for mark in marks if mark), name))
        if teff:
            title = f"{fixed}: TEff (log scale)"
            panels.append(StudyPanel(title, label, tuple(teff), log_x=True, log_y=True, level=1.0))
        aligned = _make_alignment_series(effects, lines, x)
        if aligned:
            title = f"{fixed}: cosine of hidden states above shuffled pairs"
            panels.append(StudyPanel(title, label, aligned, log_x=True, level=0.0))
    return panels


def _make_alignment_series(
    effects: Effects,
    lines: Mapping[str, Sequence[LanguageCondition]],
    x: Callable[[LanguageCondition], float],
) -> tuple[Series, ...]:
    """Returns a series for each ratio: both of its languages have the same alignment."""
    found: dict[str, dict[float, Mark]] = {}
    for name, conditions in lines.items():
        ratio = name.rpartition(" ")[0]
        for condition in conditions:
            for aligned in effects.alignments:
                if (aligned.cell, aligned.measure) == (condition.cell, "hidden"):
                    found.setdefault(ratio, {})[x(condition)] = Mark(
                        x=x(condition),
                        y=aligned.excess.value,
                        interval=aligned.excess.interval(),
                        runs=tuple(aligned.excess_by_seed.values()),
                        name=f"{aligned.cell} {aligned.pair}",
                    )
                    break
    return tuple(Series(name, tuple(marks.values()), name) for name, marks in found.items())


def _get_total_tokens(condition: LanguageCondition) -> float:
    return condition.total


def _get_parameter_count(condition: LanguageCondition) -> float:
    return float(condition.first.parameters)


def _format_ratio_name(condition: LanguageCondition) -> str:
    """Returns 90:10 en2, with a word in front where it is no mixture."""
    ratio = config_lib.reduce_ratio(condition.config.mixture.ratio)
    whole = sum(ratio.values())
    parts = ":".join(f"{100 * ratio[tag] / whole:.3g}" for tag in condition.config.tags)
    kind = "" if condition.kind == "mixture" else f"{condition.kind} "
    return f"{kind}{parts} {condition.language}"


# Drawing.


def _draw_panel_figure(panels: Sequence[StudyPanel]) -> "Figure":
    columns = min(2, len(panels))
    count = math.ceil(len(panels) / columns)
    tall = _HEIGHT if columns > 1 else round(1.25 * _HEIGHT)
    width, height = figures.WIDE, count * tall
    drawn = figures.make_figure(width, height)
    named = (series.style for panel in panels for series in panel.series)
    styles = list(dict.fromkeys((*_STYLES, *named)))
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        each = width / columns
        # Names stand to the right of every panel.
        longest = max(len(series.name) for series in panel.series)
        right = width - each * (column + 1) + 30 + 6.6 * longest
        margins = (each * column + 52, right, row * tall + 32, height - (row + 1) * tall + 52)
        axes = figures.add_bare_axes(drawn, margins, "")
        box = axes.get_position()
        text = {**figures.get_small_text_style(), "parse_math": False}
        drawn.text(each * column / width + 4 / width, box.y1 + 15 / height, panel.title, **text)
        _draw_one_panel(axes, panel, styles)
    return drawn


def _draw_one_panel(axes: "Axes", panel: StudyPanel, styles: Sequence[str]) -> None:
    _set_panel_axes(axes, panel)
    if panel.level is not None:
        axes.axhline(panel.level, color=COLOURS["muted"], linewidth=1.0, linestyle=(0, (1.5, 2.5)))
    marked = [series for series in panel.series if not series.curve]
    for series in panel.series:
        index = styles.index(series.style)
        if series.curve:
            _plot_series_curve(axes, series, index)
        else:
            offset = _DODGE * (marked.index(series) - (len(marked) - 1) / 2)
            _plot_series_marks(axes, series, index, offset, joined=panel.log_x)
    _label_series_ends(axes, panel, styles)


def _label_series_ends(axes: "Axes", panel: StudyPanel, styles: Sequence[str]) -> None:
    """Writes each series' name to the right of its end, behind its marker or dash."""
    frame = axes.get_window_extent()
    ends = []
    for series in panel.series:
        last = (series.marks or series.points)[-1]
        height = float(axes.transData.transform((last.x, last.y))[1])
        ends.append((min(max(height, frame.y0), frame.y1), series))
    ends.sort(key=lambda end: end[0])
    heights = figures.spread_heights([height for height, _ in ends], 15.0, frame.y0, frame.y1)
    for height, (_, series) in zip(heights, ends, strict=True):
        y = (height - frame.y0) / frame.height
        start, end = (1 + pixels / frame.width for pixels in (6, 22))
        look = _get_series_style(series, styles.index(series.style))
        sample: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        axes.plot([start, (start + end) / 2, end], [y] * 3, **sample, markevery=[1], **look)
        axes.annotate(
            series.name,
            (end, y),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=11.5,
            color=COLOURS["ink"],
            annotation_clip=False,
            parse_math=False,
        )


def _get_series_style(series: Series, index: int) -> dict[str, Any]:
    """Returns the line, of curves, and the marker of a series."""
    own = COLOURS[figures.get_language_colour(index)]
    bars = series.name == _SHUFFLED
    look: dict[str, Any] = {
        "color": own,
        "marker": "_" if bars else figures.MARKERS[index % len(figures.MARKERS)],
        "markersize": 14 if bars else 4.5 if series.curve else _MARKER,
        "markerfacecolor": "none" if series.curve else own,
        "markeredgecolor": own,
        "markeredgewidth": 1.4 if bars else 0.9 if series.curve else 0,
        "linestyle": figures.DASHES[index % len(figures.DASHES)] if series.curve else "none",
        "linewidth": 1.2,
    }
    return look


def _set_panel_axes(axes: "Axes", panel: StudyPanel) -> None:
    every = [m for series in panel.series for m in (*series.marks, *series.points)]
    xs = [mark.x for mark in every]
    ys = _list_axis_values(every, panel.cut)
    if panel.level is not None:
        ys.append(panel.level)
    if panel.log_x:
        axes.set_xscale("log")
        pad = max(1.12, (max(xs) / min(xs)) ** 0.05)
        axes.set_xlim(min(xs) / pad, max(xs) * pad)
        axes.set_xticks(sorted(set(xs)))
        axes.xaxis.set_major_formatter(figures.make_tick_formatter(figures.format_compact_tick))
    else:
        axes.set_xlim(max(-3.0, min(xs) - 6), min(103.0, max(xs) + 6))
        axes.xaxis.set_major_formatter(figures.make_tick_formatter(lambda x: f"{x:.6g}"))
    axes.set_xlabel(panel.x_label, fontsize=12, color=COLOURS["muted"], labelpad=4)
    if panel.log_y:
        axes.set_yscale("log")
        low, high = min(ys), max(ys)
        pad = max(1.05, (high / low) ** 0.06)
        axes.set_ylim(low / pad, high * pad)
        axes.set_yticks(_pick_log_ticks(low / pad, high * pad))
    else:
        low, high = min(ys), max(ys)
        pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(figures.make_tick_locator("linear", 6))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(
        figures.make_tick_formatter(lambda y: f"{y:.4g}".replace("-", "−"))
    )


def _list_axis_values(marks: Sequence[Mark], cut: bool) -> list[float]:
    """Returns what an axis has to hold."""
    widths = [m.interval[1] - m.interval[0] for m in marks if math.isfinite(m.interval[0])]
    limit = _LONG * float(np.median(widths)) if cut and widths else math.inf
    found = []
    for mark in marks:
        found.append(mark.y)
        if not mark.interval[1] - mark.interval[0] > limit:
            found += [*mark.runs, *mark.interval]
    return [y for y in found if math.isfinite(y)]


def _pick_log_ticks(low: float, high: float) -> list[float]:
    """Returns some round numbers of a range, of which a TEff of 1 is one."""
    offered = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
    found = [tick for tick in (*offered, 20.0, 50.0, 100.0) if low <= tick <= high]
    while len(found) > 8:
        found = [tick for place, tick in enumerate(found) if place % 2 == 0 or tick == 1.0]
    return found


def _plot_series_curve(axes: "Axes", series: Series, index: int) -> None:
    look = _get_series_style(series, index)
    line = {**look, "marker": "none"}
    axes.plot([m.x for m in series.marks], [m.y for m in series.marks], **line, zorder=2)
    points = {**look, "linestyle": "none"}
    axes.plot([m.x for m in series.points], [m.y for m in series.points], **points, zorder=2)


def _plot_series_marks(
    axes: "Axes", series: Series, index: int, offset: float, joined: bool
) -> None:
    from matplotlib.transforms import ScaledTranslation

    look = _get_series_style(series, index)
    own, bars = look["color"], series.name == _SHUFFLED
    moved, beside = (
        axes.transData + ScaledTranslation(pixels / 72, 0, axes.figure.dpi_scale_trans)
        for pixels in (0 if bars else offset, offset - 6)
    )
    if joined:
        dash = figures.DASHES[index % len(figures.DASHES)]
        line: dict[str, Any] = {"color": own, "linewidth": 1.2, "linestyle": dash}
        axes.plot([m.x for m in series.marks], [m.y for m in series.marks], **line)
    for mark in series.marks:
        low, high = mark.interval
        if math.isfinite(low) and math.isfinite(high):
            axes.vlines(mark.x, low, high, color=own, linewidth=1.1, transform=moved, zorder=3)
        hollow = {"markerfacecolor": "none", "markeredgewidth": 1.2} if mark.hollow else {}
        axes.plot([mark.x], [mark.y], transform=moved, zorder=4, **{**look, **hollow})
        dots: dict[str, Any] = {"color": own, "markersize": 3.5, "alpha": 0.85, "zorder": 4}
        axes.plot([mark.x] * len(mark.runs), mark.runs, ".", transform=beside, **dots)


def _draw_row_figure(panels: Sequence[StudyPanel]) -> "Figure":
    """Draws panels side by side, their y axis across and a name for each row on the left."""
    names = {mark.x: mark.name for panel in panels for mark in panel.series[0].marks}
    left, top, bottom = 14 + 6.6 * max(map(len, names.values())), 32, 28
    each = (figures.WIDE - left) / len(panels)
    height = top + bottom + _ROW * len(names)
    drawn = figures.make_figure(figures.WIDE, height)
    for place, panel in enumerate(panels):
        start = left + each * place
        axes = figures.add_bare_axes(
            drawn, (start, figures.WIDE - start - each + 24, top, bottom), ""
        )
        text = {**figures.get_small_text_style(), "parse_math": False}
        drawn.text(start / figures.WIDE, 1 - 15 / height, panel.title, **text)
        marks = panel.series[0].marks
        values = _list_axis_values(marks, panel.cut) + (
            [] if panel.level is None else [panel.level]
        )
        low, high = min(values), max(values)
        if panel.log_y:
            axes.set_xscale("log")
            pad = max(1.05, (high / low) ** 0.06)
            axes.set_xlim(low / pad, high * pad)
            # A narrow panel has no room for more.
            ticks = _pick_log_ticks(low / pad, high * pad)
            axes.set_xticks([t for t in ticks if t in (ticks[0], 1.0, ticks[-1])] if ticks else [])
        else:
            pad = 0.06 * (high - low) or 1.0
            axes.set_xlim(low - pad, high + pad)
            axes.xaxis.set_major_locator(figures.make_tick_locator("linear", 4))
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(figures.make_tick_formatter(lambda x: f"{x:.4g}"))
        axes.set_ylim(max(names) + 0.6, -0.6)
        axes.set_yticks(list(names), list(names.values()) if not place else [])
        axes.tick_params(axis="y", labelsize=11.5, labelcolor=COLOURS["ink"])
        if panel.level is not None:
            style: dict[str, Any] = {"linewidth": 1.0, "linestyle": (0, (1.5, 2.5))}
            axes.axvline(panel.level, color=COLOURS["muted"], **style)
        own = COLOURS[figures.get_language_colour(0)]
        for mark in marks:
            if math.isfinite(mark.interval[0]) and math.isfinite(mark.interval[1]):
                axes.hlines(mark.x, *mark.interval, color=own, linewidth=1.1)
            face = "none" if mark.hollow else own
            look: dict[str, Any] = {"marker": "o", "markersize": 5.5, "markeredgecolor": own}
            axes.plot([mark.y], [mark.x], markerfacecolor=face, zorder=4, **look)
            axes.plot(mark.runs, [mark.x + 0.28] * len(mark.runs), ".", color=own, markersize=3)
    return drawn
