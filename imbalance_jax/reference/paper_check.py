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
from imbalance_jax.reference import reported as reference
from imbalance_jax.reference.reported import PaperResult, get_base_language

# Of a setting, what says which row it is. The rest says how the reference came by it.
_IDENTITY = (
    *("languages", "split", "model", "tokens", "schedule", "vocab", "p_EN2", "p_FR"),
    *("anchor_fraction", "layer", "matching", "param", "freq_lo", "freq_hi"),
    *("embedding", "pairs"),
)
# Differences of these are those of their logarithms.
_LOGARITHMIC = ("ppl", "teff", "mlte", "mlpe")
_CONFIDENCE = 0.95
_EQUAL = 0.01  # reported clones nearer than this, in logarithms, count as equal
_LISTED = 24  # cells of a metric; of more only the farthest are printed
_FARTHEST = 6

Efficiencies = Mapping[tuple[str, str], paper_results.EfficiencyProtocol]


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
        if not _is_logarithmic(self.metric):
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
        middle = _find_neutral_value(self.metric)
        return None if middle is None else (self.value > middle) == (self.reported > middle)


@dataclasses.dataclass(frozen=True)
class PairCheck(PaperCheck):
    """Whether one clone is above the other where it was reported to be; metric without them."""

    setting: Mapping[str, str]
    languages: tuple[str, str]
    values: tuple[float, float]
    reported: tuple[float, float]

    @property
    def agrees(self) -> bool:
        ours, theirs = (np.diff(pair)[0] for pair in (self.values, self.reported))
        return bool((ours > 0) == (theirs > 0))


@dataclasses.dataclass(frozen=True)
class OrderCheck(PaperCheck):
    """How far the cells of a figure come in the reported order."""

    tau: float  # Kendall's, 1 for the same order and -1 for the reverse; nan of equal values
    p: float  # of as much agreement by chance
    cells: int


@dataclasses.dataclass(frozen=True)
class MissingCheck(PaperCheck):
    """What cannot be compared; its metric is empty where a whole figure waits."""

    why: str


def compare_with_reference(
    table: StudyTable, efficiencies: Efficiencies | None = None
) -> list[PaperCheck]:
    """Returns all comparisons of a study with the reported results, and what is missing.

    Args:
      table: of the study.
      efficiencies: (run, language) -> TEff and its like; None reads the reference's law, fitted
        to the study's own monolingual runs.

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
    without: list[str] = []
    if efficiencies is None:
        efficiencies, without = compute_reference_efficiencies(table)
    ours = paper_results.collect_study_results(
        table, efficiencies, evaluations=dict(_read_study_evaluations(table))
    )
    found: list[PaperCheck] = []
    for figure in figures:
        reported = [row for row in reference.read_reference_results() if row.figure == figure]
        cells = _check_cells(figure, [row for row in ours if row.figure == figure], reported)
        found += cells
        found += _check_pairs(cells)
        found += _check_orders(cells)
        found += _find_missing(figure, table, cells, reported)
        if any(row.metric.startswith("teff") for row in reported):
            found += [MissingCheck(figure, "teff", why) for why in without]
    return found


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
    for seen in table.observations:
        groups[seen.source, seen.size].append(seen)
    worth, without = {}, []
    for (source, size), group in groups.items():
        baselines = [seen for seen in group if seen.kind == "monolingual"]
        points = [run.tokens for run in baselines], [run.loss for run in baselines]
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
        for seen in group:
            found = compute_efficiency(law, seen.loss, seen.tokens, seen.other_tokens)
            if 0 < found.mlte < math.inf and found.mlpe < math.inf:
                worth[seen.run, seen.language] = found
    return worth, without


def _read_study_evaluations(table: StudyTable) -> Iterator[tuple[str, Mapping]]:
    for name, run in table.runs.items():
        if run.state.state == "done" and run.spec.figures:
            yield name, paper_results.read_run_evaluation(run.directory)


def _is_logarithmic(metric: str) -> bool:
    return metric.partition("_")[0] in _LOGARITHMIC


def _find_neutral_value(metric: str) -> float | None:
    """Returns the value that divides a measure of transfer, or None."""
    if metric.startswith("teff"):
        return 1.0
    return 0.0 if "cossim" in metric else None


def _get_row_identity(row: PaperResult) -> dict[str, str]:
    return {key: row.setting[key] for key in _IDENTITY if key in row.setting}


def _scale_value_to_units(row: PaperResult, value: float) -> float:
    """Returns a value as it is compared: tokens in units of 1x, so that scales can differ."""
    return value / row.unit_tokens if row.metric.startswith("mlte") else value


def _check_cells(
    figure: str, ours: Sequence[PaperResult], reported: Sequence[PaperResult]
) -> list[CellCheck]:
    """Pairs the rows, a reported one with the study's that has all of what identifies it."""
    by_metric = defaultdict(list)
    for row in ours:
        by_metric[row.metric].append(row)
    matched = []
    for theirs in reported:
        wanted = _get_row_identity(theirs).items()
        mine = next(
            (row for row in by_metric[theirs.metric] if wanted <= row.setting.items()), None
        )
        if mine is not None and not math.isnan(mine.value):
            matched.append((mine, theirs))
    noises = _estimate_noises([mine for mine, _ in matched])
    found = []
    for mine, theirs in matched:
        seeds = len(mine.values)
        # One law serves all seeds, so that an MLPE is one number.
        tested = seeds > 1 and not theirs.metric.startswith("mlpe")
        noise, freedom = noises[theirs.metric] if tested else (math.nan, 0)
        value, reported_ = (_scale_value_to_units(row, row.value) for row in (mine, theirs))
        where = _get_row_identity(theirs)
        found.append(
            CellCheck(figure, theirs.metric, where, value, reported_, seeds, noise, freedom)
        )
    return found


def _estimate_noises(rows: Sequence[PaperResult]) -> dict[str, tuple[float, int]]:
    """Returns each metric's deviation over seeds, pooled over its cells, and its freedom."""
    squares: defaultdict[str, float] = defaultdict(float)
    freedom: Counter[str] = Counter()
    for row in rows:
        values = np.log(row.values) if _is_logarithmic(row.metric) else np.array(row.values)
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
    for (measure, _, _), found in rows.items():
        if len(found) != 2:
            continue
        (first, one), (second, other) = found.items()
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
    for (figure, metric), found in by_metric.items():
        if len(found) > 2:
            tau = stats.kendalltau([c.value for c in found], [c.reported for c in found])
            yield OrderCheck(figure, metric, float(tau.statistic), float(tau.pvalue), len(found))


def _find_missing(
    figure: str, table: StudyTable, cells: Sequence[CellCheck], reported: Sequence[PaperResult]
) -> Iterator[MissingCheck]:
    mine = {name: run for name, run in table.runs.items() if figure in run.spec.figures}
    waiting = [name for name, run in mine.items() if run.state.state != "done"]
    if waiting:
        some = ", ".join(waiting[:_FARTHEST]) + (", ..." if len(waiting) > _FARTHEST else "")
        yield MissingCheck(
            figure, "", f"{len(waiting)} of its {len(mine)} runs are not done: {some}"
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
        mine = [check for check in checks if check.figure == figure]
        lines += [figure, *(f"  {line}" for line in _describe_figure_checks(mine)), ""]
    lines += _summarise_checks(checks)
    return "\n".join(lines)


def _describe_figure_checks(checks: Sequence[PaperCheck]) -> Iterator[str]:
    cells = [check for check in checks if isinstance(check, CellCheck)]
    for metric in dict.fromkeys(cell.metric for cell in cells):
        yield from _describe_cells(metric, [cell for cell in cells if cell.metric == metric])
        for check in checks:
            if isinstance(check, OrderCheck) and check.metric == metric:
                yield (
                    f"{metric}: order of {check.cells} cells, Kendall's tau {check.tau:+.2f} "
                    f"(p {check.p:.2g}): {_describe_order(check)}"
                )
    for check in checks:
        if isinstance(check, PairCheck):
            first, second = check.languages
            ours, theirs = (
                f"{pair[0]:.4g} and {pair[1]:.4g}" for pair in (check.values, check.reported)
            )
            yield (
                f"{check.metric} of {first} and {second}, {_format_setting(check.setting)}: "
                f"{ours}, "
                f"reported {theirs}: {_describe_agreement(check.agrees)} in which is higher"
            )
    for check in checks:
        if isinstance(check, MissingCheck):
            yield f"missing: {check.metric + ': ' if check.metric else ''}{check.why}"


def _describe_order(check: OrderCheck) -> str:
    if math.isnan(check.tau):
        return "no order, as all values are equal"
    word = "the reported direction" if check.tau > 0 else "the opposite direction"
    return word if check.p < 0.05 else f"{word}, but no further than by chance"


def _describe_cells(metric: str, cells: Sequence[CellCheck]) -> Iterator[str]:
    unit = " (in units of 1x)" if metric.startswith("mlte") else ""
    shown = cells
    if len(cells) > _LISTED:
        shown = sorted(cells, key=lambda cell: -abs(cell.difference))[:_FARTHEST]
        yield f"{metric}{unit}: {len(cells)} cells, of which the {_FARTHEST} farthest are"
    for cell in shown:
        said = [f"{cell.value:.4g}, reported {cell.reported:.4g}"]
        if _is_logarithmic(metric):
            said.append(f"{100 * math.expm1(cell.difference):+.1f} %")
        else:
            said.append(f"{cell.difference:+.3f}")
        if cell.agrees is None:
            why = "one seed" if cell.seeds == 1 else "no spread over seeds"
            said.append(f"{why}: not tested against noise")
        else:
            within = "within" if cell.agrees else "beyond"
            said.append(f"{cell.in_noise:+.1f} sd of a seed, {within} noise ({cell.seeds} seeds)")
        if cell.same_side is not None:
            side = f"side of {_find_neutral_value(metric):g}"
            said.append(f"the same {side}" if cell.same_side else f"the other {side}")
        yield f"{metric}{unit}, {_format_setting(cell.setting)}: {'; '.join(said)}"


def _format_setting(setting: Mapping[str, str]) -> str:
    """Returns what tells the cells of a figure apart, in a few words."""
    left_out = ("languages", "p_EN2", "p_FR", "matching", "freq_hi")
    return " ".join(
        value if key in ("split", "model", "tokens", "vocab") else f"{key} {value}"
        for key, value in setting.items()
        if key not in left_out and value != "none"
    )


def _describe_agreement(agrees: bool) -> str:
    return "agrees" if agrees else "does not agree"


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
