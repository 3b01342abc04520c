"""A study of configs/paper/ held against what the reference study reported.

Three questions, of which the first alone needs the reference's text and size: does a value
agree within seed noise; does it lie on the reported side, of 1 for a TEff and of 0 for a
cosine, and is one clone above the other where it was reported to be; and do the cells of a
figure come in the reported order. The reference has one seed for each, and its own noise is
taken to be that of ours.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from imbalance_jax.analysis.efficiency import Efficiency, compute_efficiency
from imbalance_jax.analysis.law_choice import choose_law
from imbalance_jax.analysis.laws import Law, ReferenceLaw
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.reference import paper_results
from imbalance_jax.reference.reported import (
    PaperResult,
    get_base_language,
    is_ratio_metric,
    read_reference_results,
)

# Of a setting, what says which row it is. The rest says how the reference came by it.
_IDENTITY = (
    *("languages", "split", "model", "tokens", "schedule", "vocab", "p_EN2", "p_FR"),
    *("anchor_fraction", "layer", "matching", "param", "freq_lo", "freq_hi"),
    *("embedding", "pairs"),
)
_CONFIDENCE = 0.95
_EQUAL = 0.01  # reported clones nearer than this, in logarithms, count as equal
_LISTED = 24  # cells of a metric; of more only the farthest are printed
_FARTHEST = 6


@dataclasses.dataclass(frozen=True)
class PaperCheck:
    """Something that was compared, or that is still to be."""

    figure: str
    metric: str


@dataclasses.dataclass(frozen=True)
class CellCheck(PaperCheck):
    """A value of a study beside the reported one."""

    setting: Mapping[str, str]  # what identifies the row
    value: float  # mean over the seeds; MLTE in units of 1x here and there
    reported: float
    seeds: int
    noise: float = math.nan  # sd over seeds, in the units of `difference`; nan of one seed
    freedom: int = 0  # degrees of freedom of noise

    @property
    def difference(self) -> float:
        """Ours minus the reported: of logarithms for perplexities and tokens, else of values."""
        if not is_ratio_metric(self.metric):
            return self.value - self.reported
        return math.log(self.value / self.reported)

    @property
    def in_noise(self) -> float:
        """The difference in units of the noise of one run; nan where that is not known."""
        return self.difference / self.noise if self.noise else math.nan

    @property
    def agrees(self) -> bool | None:
        """Whether the difference is within the 95 % range of seed noise; None with one seed.

        The reported value is one run and ours the mean of several: their difference has a
        standard error of noise * sqrt(1 + 1 / seeds).
        """
        if math.isnan(self.in_noise):
            return None
        limit = stats.t.ppf((1 + _CONFIDENCE) / 2, self.freedom) * math.sqrt(1 + 1 / self.seeds)
        return bool(abs(self.in_noise) <= limit)

    @property
    def same_side(self) -> bool | None:
        """Whether both are on the same side of 1 (TEff) or 0 (cosines); None for the others."""
        middle = self.middle
        return None if middle is None else (self.value > middle) == (self.reported > middle)

    @property
    def middle(self) -> float | None:
        """The value that divides a measure of transfer, or None."""
        if self.metric.startswith("teff"):
            return 1.0
        return 0.0 if "cossim" in self.metric else None

    def describe(self) -> str:
        words = [f"{self.value:.4g}, reported {self.reported:.4g}"]
        if is_ratio_metric(self.metric):
            words.append(f"{100 * math.expm1(self.difference):+.1f} %")
        else:
            words.append(f"{self.difference:+.3f}")
        if self.agrees is None:
            why = "one seed" if self.seeds == 1 else "no spread over seeds"
            words.append(f"{why}: not tested against noise")
        else:
            within = "within" if self.agrees else "beyond"
            words.append(f"{self.in_noise:+.1f} sd of a seed, {within} noise ({self.seeds} seeds)")
        if self.same_side is not None:
            words.append(f"the {'same' if self.same_side else 'other'} side of {self.middle:g}")
        name = _name_metric(self.metric)
        return f"{name}, {_format_setting(self.setting)}: {'; '.join(words)}"


@dataclasses.dataclass(frozen=True)
class PairCheck(PaperCheck):
    """Whether one clone is above the other where it was reported to be; metric without them."""

    setting: Mapping[str, str]
    languages: tuple[str, str]
    values: tuple[float, float]
    reported: tuple[float, float]

    @property
    def agrees(self) -> bool:
        (first, second), (first_reported, second_reported) = self.values, self.reported
        return (second > first) == (second_reported > first_reported)

    def describe(self) -> str:
        first, second = self.languages
        values, reported = (
            f"{pair[0]:.4g} and {pair[1]:.4g}" for pair in (self.values, self.reported)
        )
        agrees = "agrees" if self.agrees else "does not agree"
        return (
            f"{self.metric} of {first} and {second}, {_format_setting(self.setting)}: {values}, "
            f"reported {reported}: {agrees} in which is higher"
        )


@dataclasses.dataclass(frozen=True)
class OrderCheck(PaperCheck):
    """How far the cells of a figure come in the reported order."""

    tau: float  # Kendall's, 1 for the same order and -1 for the reverse; nan of equal values
    p: float  # of as much agreement by chance
    cells: int

    def describe(self) -> str:
        order = "no order, as all values are equal"
        if not math.isnan(self.tau):
            order = f"the {'reported' if self.tau > 0 else 'opposite'} direction"
            order += "" if self.p < 0.05 else ", but no further than by chance"
        return (
            f"{self.metric}: order of {self.cells} cells, Kendall's tau {self.tau:+.2f} "
            f"(p {self.p:.2g}): {order}"
        )


@dataclasses.dataclass(frozen=True)
class MissingCheck(PaperCheck):
    """What cannot be compared; its metric is empty where a whole figure waits."""

    why: str

    def describe(self) -> str:
        return f"missing: {self.metric + ': ' if self.metric else ''}{self.why}"


def compare_with_reference(table: StudyTable) -> list[PaperCheck]:
    """Returns all comparisons of a study with the reported results, and what is missing.

    Efficiencies are those by the reference's law, fitted to the study's own monolingual runs.

    Raises:
      ValueError: no run of the study belongs to a figure or table of the reference.
    """
    figures = list(dict.fromkeys(f for run in table.runs.values() for f in run.spec.figures))
    if not figures:
        raise ValueError(
            f"The study {table.name} is not one of configs/paper/: none of its runs belongs to a "
            "figure or table of the paper. Give the --workdir of one of those; the page that "
            "collect writes has this study's own claims."
        )
    efficiencies, without = compute_reference_efficiencies(table)
    evaluations = {
        name: paper_results.read_run_evaluation(run.directory)
        for name, run in table.runs.items()
        if run.state.state == "done" and run.spec.figures
    }
    results = paper_results.collect_study_results(table, efficiencies, evaluations=evaluations)
    checks: list[PaperCheck] = []
    for figure in figures:
        reported = [row for row in read_reference_results() if row.figure == figure]
        cells = _check_cells(figure, [row for row in results if row.figure == figure], reported)
        checks += cells
        checks += _check_pairs(cells)
        checks += _check_orders(cells)
        checks += _find_missing(figure, table, cells, reported)
        if any(row.metric.startswith("teff") for row in reported):
            checks += [MissingCheck(figure, "teff", why) for why in without]
    return checks


def compute_reference_efficiencies(
    table: StudyTable,
) -> tuple[dict[tuple[str, str], Efficiency], list[str]]:
    """Returns what each language of each run is worth by the law 1/PPL = c - a x^-b.

    The law is that of the study's short monolingual runs of the same source and size. Where
    it does not converge, the law that predicts left-out runs best stands in for it. Where there
    is none, or a perplexity is outside of its range, there is no efficiency; the second value
    says of which sources and sizes this is true, and why.
    """
    groups = defaultdict(list)
    for row in table.observations:
        groups[row.source, row.size].append(row)
    efficiencies, without = {}, []
    for (source, size), group in groups.items():
        baselines = [row for row in group if row.kind == "monolingual"]
        points = [row.tokens for row in baselines], [row.loss for row in baselines]
        law: Law
        try:
            law = ReferenceLaw.fit(*points, table.unit_tokens)
        except ValueError as error:
            try:
                choice = choose_law(*points, table.unit_tokens)
            except ValueError:
                without.append(f"no law for {source} at {size}: {error}")
                continue
            law = choice.law
            stands = f"the {choice.family} law stands in for the reference's: {error}"
            without.append(f"for {source} at {size} {stands}")
        for row in group:
            worth = compute_efficiency(law, row.loss, row.tokens, row.other_tokens)
            if 0 < worth.mlte < math.inf and worth.mlpe < math.inf:
                efficiencies[row.run, row.language] = worth
    return efficiencies, without


def _get_row_identity(row: PaperResult) -> dict[str, str]:
    return {key: row.setting[key] for key in _IDENTITY if key in row.setting}


def _scale_value_to_units(row: PaperResult) -> float:
    """Returns a row's value as it is compared: tokens in units of 1x, so that scales can differ."""
    return row.value / row.unit_tokens if row.metric.startswith("mlte") else row.value


def _check_cells(
    figure: str, results: Sequence[PaperResult], reported: Sequence[PaperResult]
) -> list[CellCheck]:
    """Pairs the rows, a reported one with the study's that has all of what identifies it."""
    by_metric = defaultdict(list)
    for row in results:
        by_metric[row.metric].append(row)
    matched = []
    for target in reported:
        wanted = _get_row_identity(target).items()
        own = next((row for row in by_metric[target.metric] if wanted <= row.setting.items()), None)
        if own is not None and not math.isnan(own.value):
            matched.append((own, target))
    noises = _estimate_noises([own for own, _ in matched])
    cells = []
    for own, target in matched:
        seeds = len(own.values)
        # One law serves all seeds, so that an MLPE is one number.
        tested = seeds > 1 and not target.metric.startswith("mlpe")
        cells.append(
            CellCheck(
                figure,
                target.metric,
                _get_row_identity(target),
                _scale_value_to_units(own),
                _scale_value_to_units(target),
                seeds,
                *(noises[target.metric] if tested else (math.nan, 0)),
            )
        )
    return cells


def _estimate_noises(rows: Sequence[PaperResult]) -> dict[str, tuple[float, int]]:
    """Returns each metric's deviation over seeds, pooled over its cells, and its freedom."""
    squares: defaultdict[str, float] = defaultdict(float)
    freedom: Counter[str] = Counter()
    for row in rows:
        values = np.log(row.values) if is_ratio_metric(row.metric) else np.array(row.values)
        squares[row.metric] += float(np.sum((values - values.mean()) ** 2))
        freedom[row.metric] += len(values) - 1
    return {m: (math.sqrt(squares[m] / count), count) for m, count in freedom.items() if count}


def _check_pairs(cells: Sequence[CellCheck]) -> Iterator[PairCheck]:
    """Compares the languages of one text with each other: those of other texts differ anyway."""
    rows: defaultdict[tuple, dict[str, CellCheck]] = defaultdict(dict)
    for cell in cells:
        measure, _, language = cell.metric.rpartition("_")
        if measure in ("ppl", "teff"):
            key = (measure, get_base_language(language), tuple(cell.setting.items()))
            rows[key][language] = cell
    for (measure, _, _), pair in rows.items():
        if len(pair) != 2:
            continue
        (first, one), (second, other) = pair.items()
        if abs(math.log(one.reported / other.reported)) >= _EQUAL:
            yield PairCheck(
                figure=one.figure,
                metric=measure,
                setting=one.setting,
                languages=(first, second),
                values=(one.value, other.value),
                reported=(one.reported, other.reported),
            )


def _check_orders(cells: Sequence[CellCheck]) -> Iterator[OrderCheck]:
    by_metric = defaultdict(list)
    for cell in cells:
        by_metric[cell.figure, cell.metric].append(cell)
    for (figure, metric), group in by_metric.items():
        if len(group) > 2:
            tau = stats.kendalltau([c.value for c in group], [c.reported for c in group])
            yield OrderCheck(figure, metric, float(tau.statistic), float(tau.pvalue), len(group))


def _find_missing(
    figure: str, table: StudyTable, cells: Sequence[CellCheck], reported: Sequence[PaperResult]
) -> Iterator[MissingCheck]:
    runs = {name: run for name, run in table.runs.items() if figure in run.spec.figures}
    waiting = [name for name, run in runs.items() if run.state.state != "done"]
    if waiting:
        some = ", ".join(waiting[:_FARTHEST]) + (", ..." if len(waiting) > _FARTHEST else "")
        yield MissingCheck(
            figure, "", f"{len(waiting)} of its {len(runs)} runs are not done: {some}"
        )
    compared = {(cell.metric, tuple(cell.setting.items())) for cell in cells}
    left = Counter(
        row.metric
        for row in reported
        if (row.metric, tuple(_get_row_identity(row).items())) not in compared
    )
    for metric, count in left.items():
        yield MissingCheck(figure, metric, f"{count} reported values have none of ours beside them")


def describe_checks(checks: Sequence[PaperCheck]) -> str:
    """Returns the comparisons in words, figure by figure."""
    lines = []
    for figure in dict.fromkeys(check.figure for check in checks):
        of_figure = [check for check in checks if check.figure == figure]
        lines += [figure, *(f"  {line}" for line in _describe_figure_checks(of_figure)), ""]
    return "\n".join([*lines, *_summarise_checks(checks)])


def _describe_figure_checks(checks: Sequence[PaperCheck]) -> Iterator[str]:
    by_metric = defaultdict(list)
    for check in checks:
        if isinstance(check, CellCheck):
            by_metric[check.metric].append(check)
    for metric, cells in by_metric.items():
        if len(cells) > _LISTED:
            name, count = _name_metric(metric), len(cells)
            yield f"{name}: {count} cells, of which the {_FARTHEST} farthest are"
            cells = sorted(cells, key=lambda cell: -abs(cell.difference))[:_FARTHEST]
        yield from (cell.describe() for cell in cells)
        yield from (
            check.describe()
            for check in checks
            if isinstance(check, OrderCheck) and check.metric == metric
        )
    for kind in (PairCheck, MissingCheck):
        yield from (check.describe() for check in checks if isinstance(check, kind))


def _name_metric(metric: str) -> str:
    return f"{metric} (in units of 1x)" if metric.startswith("mlte") else metric


def _format_setting(setting: Mapping[str, str]) -> str:
    """Returns what tells the cells of a figure apart, in a few words."""
    left_out = ("languages", "p_EN2", "p_FR", "matching", "freq_hi")
    return " ".join(
        value if key in ("split", "model", "tokens", "vocab") else f"{key} {value}"
        for key, value in setting.items()
        if key not in left_out and value != "none"
    )


def _summarise_checks(checks: Sequence[PaperCheck]) -> list[str]:
    cells = [check for check in checks if isinstance(check, CellCheck)]
    tested = [cell for cell in cells if cell.agrees is not None]
    sided = [cell for cell in cells if cell.same_side is not None]
    pairs = [check for check in checks if isinstance(check, PairCheck)]
    orders = [check for check in checks if isinstance(check, OrderCheck)]
    lines = [f"{len(cells)} values compared."]
    if sided:
        same = sum(bool(cell.same_side) for cell in sided)
        lines.append(f"Direction: {same} of {len(sided)} on the reported side of 1 or 0.")
    if pairs:
        agreed = sum(pair.agrees for pair in pairs)
        lines.append(f"Pairs of clones: {agreed} of {len(pairs)} with the reported one higher.")
    if orders:
        agreed = sum(order.tau > 0 for order in orders)
        lines.append(f"Order: {agreed} of {len(orders)} measures agree in sign.")
    if tested:
        agreed = sum(bool(cell.agrees) for cell in tested)
        lines.append(f"Value: {agreed} of {len(tested)} within the noise of seeds.")
    if len(tested) < len(cells):
        lines.append(
            f"{len(cells) - len(tested)} values have no spread over seeds and are not tested "
            "against noise. Train with seeds=3 or more; values of a law have none."
        )
    return lines
