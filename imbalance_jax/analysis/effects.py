"""What a study's runs are worth: each language held against the same language alone.

`measure_effects` says of every language of every mixture what its loss is worth in monolingual
tokens (fitted_laws.py), how it differs from the placebo, and how alike the model treats two
languages. claims.py judges what was claimed before; all that is here and not claimed is
exploratory.
"""

import dataclasses
import functools
import math
import statistics as plain_statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from imbalance_jax.analysis import statistics
from imbalance_jax.analysis.baselines import (
    BaselineDemand,
    BaselineGroup,
    MissingBaseline,
    find_flops_per_token,
    list_baseline_kinds,
    list_baseline_runs,
    list_missing_baselines,
)
from imbalance_jax.analysis.fitted_laws import (
    PARTS,
    Cells,
    Key,
    Laws,
    Worths,
    collect_by_seed,
    group_by_cell,
    has_plain_text,
    read_laws,
)

# The pages know them as effects.
from imbalance_jax.analysis.fitted_laws import EfficiencyEstimate as EfficiencyEstimate
from imbalance_jax.analysis.fitted_laws import FittedLaw as FittedLaw
from imbalance_jax.analysis.statistics import Estimate
from imbalance_jax.analysis.study_table import (
    AlignmentObservation,
    Observation,
    StudyTable,
)
from imbalance_jax.config import Config, costs
from imbalance_jax.config.size import describe_size
from imbalance_jax.study.run_spec import BASELINES

MEASURES = ("hidden", "retrieval", "embed_in", "embed_out", "gradient")  # of alignment
RESAMPLES = 400
_NEXT = 0.02  # of log tokens, within which two baselines tell the same


@dataclasses.dataclass(frozen=True)
class LanguageCondition:
    """A language of a cell, over its seeds."""

    cell: str
    kind: str
    language: str
    config: Config  # of one of its runs
    observations: Sequence[Observation]
    plain: bool  # its text is as it was written, so that it can be held against baselines
    log_ppl: Estimate  # variance pooled over the cells of a size
    worths: Worths
    no_law: Mapping[str, str]  # kind of baseline -> why there is no law
    placebo: str = ""  # the cell of the placebo with its ratio
    beyond_placebo: Estimate | None = None  # its loss minus the placebo's, in nats

    @property
    def first(self) -> Observation:
        return self.observations[0]

    @property
    def seeds(self) -> int:
        return len(self.observations)

    @property
    def total(self) -> float:
        """Tokens of all languages."""
        return self.first.tokens + self.first.other_tokens

    def less_loss(self, kind: str, part: str, tokens: float) -> float:
        """Returns by how much the law of a kind of baselines is lower at its own tokens than there.

        It is nan where there is no law of the part.
        """
        worth = self.worths.get((kind, part))
        if worth is None:
            return math.nan
        law = worth.choice.law
        return float(law.loss(tokens) - law.loss(self.first.tokens))

    def by_seed(self, field: str) -> dict[int, float]:
        return collect_by_seed(self.observations, field)

    def baselines(self, kind: str) -> BaselineGroup:
        """Returns the baselines of a kind that the language is held against."""
        return BaselineGroup.of(self.config, self.first.source, kind)


@dataclasses.dataclass(frozen=True)
class CellAlignment:
    """How alike the runs of a cell treat two languages, by one measure."""

    cell: str
    kind: str
    config: Config
    pair: str  # en1-en2
    measure: str  # one of MEASURES
    values: Mapping[int, float]  # by seed; of hidden states the mean over blocks 1 .. N
    # The same where nothing is shared, of retrieval chance; empty where none exists.
    baselines: Mapping[int, float]
    placebo: str = ""
    beyond_placebo: Estimate | None = None  # its excess minus the placebo's

    @property
    def excess_by_seed(self) -> dict[int, float]:
        return {seed: v - self.baselines.get(seed, 0.0) for seed, v in self.values.items()}

    @functools.cached_property
    def excess(self) -> Estimate:
        """The values minus their baselines."""
        by_seed = self.excess_by_seed
        return statistics.estimate_difference(by_seed, dict.fromkeys(by_seed, 0.0))


@dataclasses.dataclass(frozen=True)
class NeededRun:
    """A baseline that would be needed, and is not in the study."""

    group: BaselineGroup
    run: MissingBaseline


@dataclasses.dataclass(frozen=True)
class Effects:
    """All that a study measured, before anything is claimed."""

    laws: Laws
    conditions: Sequence[LanguageCondition]
    alignments: Sequence[CellAlignment]
    needed: Sequence[NeededRun]
    dropped: Sequence[str]  # runs that are done and whose loss is not finite

    def condition(self, cell: str, language: str) -> LanguageCondition | None:
        return next((c for c in self.conditions if (c.cell, c.language) == (cell, language)), None)

    def alignment(self, cell: str, pair: str, measure: str) -> CellAlignment | None:
        wanted = (cell, pair, measure)
        return next((a for a in self.alignments if (a.cell, a.pair, a.measure) == wanted), None)


def measure_effects(table: StudyTable, *, resamples: int = RESAMPLES) -> Effects:
    """Returns what a study's finished runs are worth; empty where none has finished.

    The laws are fitted anew to so many resamples of the runs, for their intervals.
    """
    dropped = sorted(
        {
            row.run
            for row in table.observations
            if not all(math.isfinite(getattr(row, part)) for part in PARTS)
        }
    )
    cells = group_by_cell(row for row in table.observations if row.run not in dropped)
    configs = {key: table.runs[rows[0].run].config for key, rows in cells.items()}
    readings = read_laws(table, cells, configs, resamples)
    placebos = _find_placebos(configs, cells)
    scatter = _pool_log_perplexities(cells)
    conditions = []
    for (cell, language), rows in cells.items():
        key = (cell, language)
        placebo, beyond = placebos.get(key, ""), None
        if placebo:
            beyond = statistics.estimate_difference(
                collect_by_seed(rows, "loss"), collect_by_seed(cells[placebo, language], "loss")
            )
        conditions.append(
            LanguageCondition(
                cell=cell,
                kind=rows[0].kind,
                language=language,
                config=configs[key],
                observations=rows,
                plain=has_plain_text(configs[key], language),
                log_ppl=scatter[key],
                worths=readings.worths.get(key, {}),
                no_law=readings.no_law.get(key, {}),
                placebo=placebo,
                beyond_placebo=beyond,
            )
        )
    alignments = _estimate_alignments(
        table, {cell: name for (cell, _), name in placebos.items()}, dropped
    )
    needed = _list_needed_runs(table, conditions)
    return Effects(readings.laws, conditions, alignments, needed, dropped)


def _pool_log_perplexities(cells: Cells) -> dict[Key, Estimate]:
    """Returns each cell's mean log perplexity, variance pooled over cells of a size.

    Languages of one run share its noise, so that each tag is pooled by itself.
    """
    groups: defaultdict[tuple[str, str], dict[Key, list[float]]] = defaultdict(dict)
    for key, rows in cells.items():
        groups[rows[0].size, rows[0].language][key] = [row.ppl for row in rows]
    return {
        key: estimate
        for group in groups.values()
        for key, estimate in statistics.pool_log_estimates(group).items()
    }


# Placebos.


def _find_placebos(configs: Mapping[Key, Config], cells: Cells) -> dict[Key, str]:
    """Returns the placebo cell of each language that has one with the same ratio."""
    offered: dict[tuple, str] = {}
    for (cell, language), rows in cells.items():
        config = configs[cell, language]
        if rows[0].kind == "placebo" and has_plain_text(config, language):
            offered.setdefault((language, _make_placebo_key(config)), cell)
    placebos = {}
    for key, rows in cells.items():
        placebo = offered.get((key[1], _make_placebo_key(configs[key])))
        if placebo and rows[0].kind not in ("placebo", *BASELINES):
            placebos[key] = placebo
    return placebos


def _make_placebo_key(config: Config) -> tuple:
    """Returns what a cell and its placebo have in common."""
    asked = tuple(sorted(costs.count_language_tokens(config).items()))
    stages = tuple((first, tuple(sorted(ratio.items()))) for first, ratio in config.mixture.stages)
    return describe_size(config), config.model.L, config.steps, config.batch_size, asked, stages


# Alignment.


def _estimate_alignments(
    table: StudyTable, placebos: Mapping[str, str], dropped: Sequence[str]
) -> list[CellAlignment]:
    rows: defaultdict[tuple[str, str, str], defaultdict[int, list[AlignmentObservation]]]
    rows = defaultdict(lambda: defaultdict(list))
    for row in table.alignments:
        between = 0 < row.layer < row.layers - 1
        # Retrieval means nothing beside an unknown chance, as of earlier runs.
        has_chance = row.measure != "retrieval" or math.isfinite(row.baseline)
        wanted = row.measure in MEASURES and (row.layer < 0 or between) and has_chance
        if wanted and row.run not in dropped:
            rows[row.cell, row.pair, row.measure][row.seed].append(row)
    alignments = {}
    for key, by_seed in rows.items():
        first = next(iter(by_seed.values()))[0]
        baselines = _average_by_seed(by_seed, lambda row: row.baseline)
        alignments[key] = CellAlignment(
            cell=first.cell,
            kind=first.kind,
            config=table.runs[first.run].config,
            pair=first.pair,
            measure=first.measure,
            values=_average_by_seed(by_seed, lambda row: row.value),
            baselines={seed: v for seed, v in baselines.items() if math.isfinite(v)},
        )
    for (cell, pair, measure), aligned in alignments.items():
        placebo = alignments.get((placebos.get(cell, ""), pair, measure))
        if placebo is not None:
            beyond = statistics.estimate_difference(aligned.excess_by_seed, placebo.excess_by_seed)
            alignments[cell, pair, measure] = dataclasses.replace(
                aligned, placebo=placebo.cell, beyond_placebo=beyond
            )
    return list(alignments.values())


def _average_by_seed(
    by_seed: Mapping[int, Sequence[AlignmentObservation]],
    read: Callable[[AlignmentObservation], float],
) -> dict[int, float]:
    return {s: plain_statistics.fmean(read(row) for row in rows) for s, rows in by_seed.items()}


# What is missing.


def _list_needed_runs(
    table: StudyTable, conditions: Sequence[LanguageCondition]
) -> list[NeededRun]:
    """Returns the baselines that would bring every use of a law between its points.

    Those that the study has planned count as there: they are yet to be run, not to be added.
    """
    demands: defaultdict[BaselineGroup, BaselineDemand] = defaultdict(BaselineDemand)
    for condition in conditions:
        if condition.kind in (*BASELINES, "sweep") or not condition.plain:
            continue
        for kind in list_baseline_kinds(table):
            group = condition.baselines(kind)
            demand = demands[group]
            demand.tokens.append(condition.first.tokens)
            worth = condition.worths.get((kind, "loss"))
            # Where a loss is worth next to nothing, no baseline will say it better.
            if worth is not None and worth.limit != "below":
                demand.tokens.append(math.inf if worth.limit else worth.efficiency.mlte)
            demand.seeds = max(demand.seeds, condition.seeds)
            flops = find_flops_per_token(table, group)
            demand.flops_per_token = condition.first.flops_per_token if flops is None else flops
    needed = []
    for group, demand in sorted(demands.items(), key=lambda item: item[0]):
        have = [float(table.runs[name].spec.tokens) for name in list_baseline_runs(table, group)]
        for run in list_missing_baselines(demand, have):
            # Next to a baseline another one tells nothing new.
            if all(abs(math.log(run.tokens / tokens)) > _NEXT for tokens in have):
                needed.append(NeededRun(group, run))
    return needed
