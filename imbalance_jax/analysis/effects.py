"""What a study's runs are worth: each language held against the same language alone.

`measure_effects` groups the monolingual baselines, fits a law to each group, and reads it at every
language of every other cell: what its loss is worth in monolingual tokens, how it differs from
the placebo, and how alike the model treats two languages. claims.py judges what was claimed
before; all that is here and not claimed is exploratory.
"""

import dataclasses
import math
import statistics as plain_statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from imbalance_jax.analysis import laws as efficiency
from imbalance_jax.analysis import statistics
from imbalance_jax.analysis.laws import Efficiency, Floats, Law, LawChoice, ReferenceLaw
from imbalance_jax.analysis.statistics import Estimate, Interval, ResampledEfficiency
from imbalance_jax.analysis.study_table import AlignmentObservation, Observation, StudyTable
from imbalance_jax.config import Config, costs
from imbalance_jax.study import grid

PARTS = ("loss", "language_nats", "loss_own")
MEASURES = ("hidden", "retrieval", "embed_in", "embed_out", "gradient")  # of alignment
RESAMPLES = 400
# The reference's law is reported beside: it is biased at the ends, often does not converge,
# and would take most of the time of a resample.
_FAMILIES = {n: f for n, f in efficiency.FAMILIES.items() if n != "reference"}
_REFERENCE = {"reference": efficiency.FAMILIES["reference"]}
# A monolingual model with a vocabulary of its own spends nothing on telling the language.
_NO_NATS = 1e-6
_FAR = 4.0  # times the tokens of its longest baseline, or of its shortest, at which a law ends
_NEXT = 0.02  # of log tokens, within which two baselines tell the same


@dataclasses.dataclass(frozen=True, order=True)
class BaselineGroup:
    """The monolingual runs that one law is fitted to."""

    source: str  # of the text
    size: str  # of the model, N x D
    kind: str  # one of grid.BASELINES
    shape: int = 0  # steps, of matched and epochs; ids of the vocabulary, of wide; else 0

    @classmethod
    def of(cls, config: Config, source: str, kind: str) -> "BaselineGroup":
        """Returns the group of a baseline, or the one that a mixture is held against."""
        shape = {"matched": config.steps, "epochs": config.steps}.get(kind, 0)
        if kind == "wide":
            shape = costs.compute_vocab_size(config)
        return cls(source, f"{config.model.N}x{config.model.D}", kind, shape)


@dataclasses.dataclass(frozen=True)
class FittedLaw:
    """The law of a part of the loss over a group's runs, as far as there is one."""

    group: BaselineGroup
    part: str  # of the loss; "loss" stands for loss_own too where language nats are 0
    observations: Sequence[Observation]
    choice: LawChoice | None
    problem: str = ""  # why there is none
    families: Mapping[str, int] = dataclasses.field(default_factory=dict)  # chosen in resamples
    reference: ReferenceLaw | None = None
    reference_error: float = math.nan  # left-out, in nats, as choice.error
    over_sizes_error: float = math.nan  # that of one law over all sizes of the study

    @property
    def tokens(self) -> list[float]:
        """Returns the distinct numbers of tokens of its runs, ascending."""
        return sorted({row.tokens for row in self.observations})

    def loss(self, row: Observation) -> float:
        return getattr(row, self.part)


@dataclasses.dataclass(frozen=True)
class EfficiencyEstimate:
    """What a part of a language's loss is worth beside one group of baselines."""

    law: FittedLaw
    efficiency: Efficiency
    teff_by_seed: Mapping[int, float]  # by the law as it is; inf or 0 outside of its range
    log_teff: Estimate | None  # over seeds, variance pooled over cells; None outside the range
    teff: Interval  # of resamples that refit the law, its choice included
    exchange: Interval
    draws: Floats  # log TEff of each resample
    df: int  # degrees of freedom behind the draws
    reference_teff: float = math.nan  # by the reference's law; nan where it has none

    @property
    def limit(self) -> str:
        """Says "above" or "below" where the law says no more of the loss than that.

        The loss is outside of all that the law takes, or so far from its baselines that
        where it is read there is nothing but its form.
        """
        assert self.law.choice is not None
        low, high = self.law.choice.law.fitted
        if not self.efficiency.mlte <= high * _FAR:
            return "above"
        return "below" if self.efficiency.mlte < low / _FAR else ""

    @property
    def bound(self) -> float:
        """The TEff that is passed where there is a `limit`: that of the last baseline."""
        assert self.law.choice is not None
        ends = self.law.choice.law.fitted
        return ends[1 if self.limit == "above" else 0] / self.efficiency.own_tokens

    @property
    def law_error(self) -> float:
        """The law's own error as one of log TEff: left-out nats over the slope at MLTE."""
        assert self.law.choice is not None
        law, mlte = self.law.choice.law, self.efficiency.mlte
        if self.limit:
            return math.nan
        step = 0.01
        rise = law.loss(mlte * math.exp(-step)) - law.loss(mlte * math.exp(step))
        return float(self.law.choice.error * 2 * step / rise) if rise > 0 else math.nan

    def uncertainty(self) -> Estimate:
        """Returns log TEff with the standard error of resamples: runs and law together."""
        value = math.log(self.efficiency.teff) if not self.limit else math.nan
        return estimate_from_draws(value, self.draws, self.df, len(self.teff_by_seed))


def estimate_from_draws(value: float, draws: Floats, df: float, seeds: int) -> Estimate:
    """Returns an estimate of resampled draws; without spread for one seed, or outside the law.

    Draws that left the law's range have no log. Where more than one in twenty did, the rest
    would scatter too little.
    """
    known = draws[np.isfinite(draws)]
    enough = len(draws) and len(known) >= 0.95 * len(draws)
    if seeds < 2 or not enough or not math.isfinite(value):
        return Estimate(value, math.nan, 0, seeds, "unrepeated")
    return Estimate(value, float(known.std(ddof=1)), df, seeds, "resampled")


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
    worths: Mapping[
        tuple[str, str], EfficiencyEstimate
    ]  # (kind of baseline, part of the loss) -> worth
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
        if worth is None or worth.law.choice is None:
            return math.nan
        law = worth.law.choice.law
        return float(law.loss(tokens) - law.loss(self.first.tokens))

    def by_seed(self, part: str) -> dict[int, float]:
        return {row.seed: getattr(row, part) for row in self.observations}


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
    excess: Estimate  # value minus baseline
    placebo: str = ""
    beyond_placebo: Estimate | None = None  # its excess minus the placebo's

    @property
    def excess_by_seed(self) -> dict[int, float]:
        return {seed: v - self.baselines.get(seed, 0.0) for seed, v in self.values.items()}


@dataclasses.dataclass(frozen=True)
class NeededRun:
    """A baseline that would be needed, and is not in the study."""

    group: BaselineGroup
    run: efficiency.MissingBaseline


@dataclasses.dataclass(frozen=True)
class Effects:
    """All that a study measured, before anything is claimed."""

    laws: Mapping[tuple[BaselineGroup, str], FittedLaw]
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

    Args:
      table: of the study, finished or not.
      resamples: of runs, for the intervals that refit the laws.
    """
    finite = [
        row
        for row in table.observations
        if all(math.isfinite(_get_loss_part(row, p)) for p in PARTS)
    ]
    dropped = sorted({row.run for row in table.observations} - {row.run for row in finite})
    finite = [row for row in finite if row.run not in dropped]
    cells = _group_rows_by_cell(finite)
    configs = {key: table.runs[rows[0].run].config for key, rows in cells.items()}
    laws, worths, no_law = _estimate_efficiencies(table, cells, configs, finite, resamples)
    placebos = _find_placebos(configs, cells)
    laws = _add_over_sizes_errors(table, laws)
    conditions = []
    scatter = _pool_log_perplexities(cells)
    for (cell, language), rows in cells.items():
        key = (cell, language)
        placebo = placebos.get(key, "")
        beyond = None
        if placebo:
            beyond = statistics.estimate_difference(
                _collect_losses(rows), _collect_losses(cells[placebo, language])
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
                worths=worths.get(key, {}),
                no_law=no_law.get(key, {}),
                placebo=placebo,
                beyond_placebo=beyond,
            )
        )
    alignments = _estimate_alignments(
        table, {cell: name for (cell, _), name in placebos.items()}, dropped
    )
    return Effects(laws, conditions, alignments, _list_needed_runs(table, conditions), dropped)


def _get_loss_part(row: Observation, part: str) -> float:
    return getattr(row, part)


Key = tuple[str, str]  # cell, language
Cells = Mapping[Key, Sequence[Observation]]


def _group_rows_by_cell(rows: Iterable[Observation]) -> dict[Key, list[Observation]]:
    found: dict[Key, list[Observation]] = {}
    for row in rows:
        found.setdefault((row.cell, row.language), []).append(row)
    return found


def _collect_losses(rows: Sequence[Observation], part: str = "loss") -> dict[int, float]:
    return {row.seed: _get_loss_part(row, part) for row in rows}


def has_plain_text(config: Config, language: str) -> bool:
    """Says whether a language's text is as it was written, not shuffled for a placebo."""
    return config.languages[language].words == "as_written"


def _pool_log_perplexities(cells: Cells) -> dict[Key, Estimate]:
    """Returns each cell's mean log perplexity, variance pooled over cells of a size.

    Languages of one run share its noise, so that each tag is pooled by itself.
    """
    groups: dict[tuple[str, str], list[Key]] = {}
    for key, rows in cells.items():
        groups.setdefault((rows[0].size, rows[0].language), []).append(key)
    found: dict[Key, Estimate] = {}
    for keys in groups.values():
        # A perplexity beyond e^700 has no float.
        ppl = {
            str(place): [math.exp(min(row.loss, 700.0)) for row in cells[key]]
            for place, key in enumerate(keys)
        }
        pooled = statistics.pool_log_estimates(ppl)
        found |= {key: pooled[str(place)] for place, key in enumerate(keys)}
    return found


# Baselines and their laws.


def list_baseline_runs(table: StudyTable, group: BaselineGroup) -> list[str]:
    """Returns the runs that a group has in the study, done or not.

    A monolingual run of a mixture's steps and batch is one with all of its tokens of any kind
    that is matched to the mixture.
    """
    batches = {
        run.config.batch_size
        for run in table.runs.values()
        if run.spec.kind not in grid.BASELINES and run.config.steps == group.shape
    }
    found = []
    for name, run in table.runs.items():
        spec, config = run.spec, run.config
        if spec.kind not in grid.BASELINES:
            continue
        source = config.source_of(_find_only_language(config))
        alone = BaselineGroup.of(config, source, spec.kind)
        whole = (
            group.kind in ("matched", "epochs")
            and alone == BaselineGroup(group.source, group.size, "monolingual")
            and config.steps == group.shape
            and config.batch_size in batches
        )
        if whole or alone == group:
            found.append(name)
    return found


def _find_only_language(config: Config) -> str:
    """Returns the language that a baseline is trained on."""
    return next(tag for tag in config.tags if config.mixture.ratio.get(tag))


def count_baseline_tokens(table: StudyTable, name: str) -> int:
    return costs.count_training_tokens(table.runs[name].config)


def find_nearest_baseline(table: StudyTable, group: BaselineGroup, own_tokens: float) -> str:
    """Returns the run of a group whose tokens are nearest to a language's.

    A batch has whole sequences and a run has whole steps, so few are equal. The name is "" where
    none is within `grid.NEAR`.
    """
    tokens = {name: count_baseline_tokens(table, name) for name in list_baseline_runs(table, group)}
    near = [
        name for name, count in tokens.items() if abs(count - own_tokens) <= grid.NEAR * own_tokens
    ]
    return min(near, key=lambda name: abs(tokens[name] - own_tokens), default="")


def list_baseline_kinds(table: StudyTable) -> list[str]:
    """Returns the kinds of baseline that a study has or claims something of."""
    kinds = {run.spec.kind for run in table.runs.values()}
    for claim in table.claims.values():
        kinds |= {claim.against, claim.baseline if claim.measure == "log_teff" else ""}
    # Whatever a study has, a loss alone says nothing without these.
    return [k for k in grid.BASELINES if k in kinds] or ["monolingual", "matched"]


def _estimate_efficiencies(
    table: StudyTable,
    cells: Cells,
    configs: Mapping[Key, Config],
    rows: Sequence[Observation],
    resamples: int,
) -> tuple[
    dict[tuple[BaselineGroup, str], FittedLaw],
    dict[Key, dict[tuple[str, str], EfficiencyEstimate]],
    dict[Key, dict[str, str]],
]:
    """Fits the laws that are needed, and reads them at every language of a mixture."""
    readers: dict[BaselineGroup, list[Key]] = {}
    kinds = list_baseline_kinds(table)
    for key, found in cells.items():
        if found[0].kind in grid.BASELINES or not has_plain_text(configs[key], key[1]):
            continue
        for kind in kinds:
            readers.setdefault(BaselineGroup.of(configs[key], found[0].source, kind), []).append(
                key
            )
    # Baselines alone have laws to show too.
    for found in cells.values():
        if found[0].kind in grid.BASELINES:
            config = table.runs[found[0].run].config
            readers.setdefault(BaselineGroup.of(config, found[0].source, found[0].kind), [])
    laws: dict[tuple[BaselineGroup, str], FittedLaw] = {}
    worths: dict[Key, dict[tuple[str, str], EfficiencyEstimate]] = {}
    no_law: dict[Key, dict[str, str]] = {}
    by_run: dict[str, list[Observation]] = {}
    for row in rows:
        by_run.setdefault(row.run, []).append(row)
    for group in sorted(readers):
        members = [row for name in list_baseline_runs(table, group) for row in by_run.get(name, ())]
        # Its baselines spend nothing on telling the language, so that one law serves for the
        # loss and for what is lost within the language.
        nats = any(row.language_nats > _NO_NATS for row in members)
        shared = {part: (part,) for part in PARTS} if nats else {"loss": ("loss", "loss_own")}
        mine = {key: cells[key] for key in readers[group]}
        for part, read in shared.items():
            law, read_off = _fit_and_read_law(table, group, part, members, mine, read, resamples)
            if members:
                laws[group, part] = law
            for (key, name), worth in read_off.items():
                worths.setdefault(key, {})[group.kind, name] = worth
            if law.problem and part == "loss":
                for key in readers[group]:
                    no_law.setdefault(key, {})[group.kind] = law.problem
    return laws, worths, no_law


def _fit_and_read_law(
    table: StudyTable,
    group: BaselineGroup,
    part: str,
    members: Sequence[Observation],
    cells: Cells,
    read: Sequence[str],
    resamples: int,
) -> tuple[FittedLaw, dict[tuple[Key, str], EfficiencyEstimate]]:
    """Fits a part's law to a group, and reads it at some parts of the loss of cells."""
    baselines: list[statistics.CellLosses] = [
        statistics.CellLosses(_collect_losses(found, part), found[0].tokens)
        for found in _group_rows_by_cell(members).values()
    ]
    read_at = {
        f"{cell} {language} {name}": ((cell, language), name)
        for cell, language in cells
        for name in read
    }
    mixtures = {
        label: statistics.CellLosses(
            _collect_losses(cells[key], name), cells[key][0].tokens, cells[key][0].other_tokens
        )
        for label, (key, name) in read_at.items()
    }
    try:
        if not members:
            raise ValueError("no baseline of this kind is done")
        resampled = statistics.resample_efficiency(
            baselines, mixtures, table.unit_tokens, families=_FAMILIES, resamples=resamples
        )
    except ValueError as error:
        return FittedLaw(group, part, members, None, str(error)), {}
    reference, missed = _fit_reference_law(table, members, part)
    law = FittedLaw(
        group, part, members, resampled.choice, "", resampled.families, reference, missed
    )
    worths = {
        read_at[label]: _make_efficiency_estimate(law, label, mixtures[label], resampled)
        for label in mixtures
    }
    pooled = _pool_log_teff({label: worths[read_at[label]].teff_by_seed for label in mixtures})
    return law, {
        read_at[label]: dataclasses.replace(worths[read_at[label]], log_teff=pooled.get(label))
        for label in mixtures
    }


def _fit_reference_law(
    table: StudyTable, members: Sequence[Observation], part: str
) -> tuple[ReferenceLaw | None, float]:
    tokens, losses = [row.tokens for row in members], [_get_loss_part(row, part) for row in members]
    try:
        choice = efficiency.choose_law(tokens, losses, table.unit_tokens, _REFERENCE)
    except ValueError:
        return None, math.nan
    assert isinstance(choice.law, ReferenceLaw)
    return choice.law, choice.error


def _add_over_sizes_errors(
    table: StudyTable, laws: Mapping[tuple[BaselineGroup, str], FittedLaw]
) -> dict[tuple[BaselineGroup, str], FittedLaw]:
    """Adds how well the law of short baselines over all sizes predicts left-out ones.

    It is held beside, and not among what is chosen from: a fit takes too long for resamples.
    """
    found = dict(laws)
    for key, law in laws.items():
        group, part = key
        others = [
            row
            for (other, theirs), more in laws.items()
            if (other.source, other.kind, theirs) == (group.source, "monolingual", "loss")
            and other.size != group.size
            for row in more.observations
        ]
        if (group.kind, part) != ("monolingual", "loss") or not others or law.choice is None:
            continue
        family = efficiency.make_chinchilla_family(
            law.observations[0].parameters,
            [row.parameters for row in others],
            [row.tokens for row in others],
            [row.loss for row in others],
        )
        tokens = [row.tokens for row in law.observations]
        losses = [row.loss for row in law.observations]
        try:
            choice = efficiency.choose_law(tokens, losses, table.unit_tokens, {"sizes": family})
        except ValueError:
            continue
        found[key] = dataclasses.replace(law, over_sizes_error=choice.error)
    return found


def _make_efficiency_estimate(
    law: FittedLaw, label: str, cell: statistics.CellLosses, resampled: ResampledEfficiency
) -> EfficiencyEstimate:
    fitted: Law = resampled.choice.law
    found = resampled.efficiency[label]
    own = found.own_tokens
    tokens = fitted.tokens_or_limit([*cell.losses.values()])
    by_seed = dict(zip(cell.losses, (tokens / own).tolist(), strict=True))
    with np.errstate(all="ignore"):
        draws = np.log(resampled.mlte[label] / own)
    reference = math.nan
    if law.reference is not None:
        reference = float(law.reference.tokens_or_limit(found.loss)) / own
    return EfficiencyEstimate(
        law=law,
        efficiency=found,
        teff_by_seed=by_seed,
        log_teff=None,
        teff=resampled.teff(label),
        exchange=resampled.exchange(label),
        draws=draws,
        df=resampled.df,
        reference_teff=reference,
    )


def _pool_log_teff(cells: Mapping[str, Mapping[int, float]]) -> dict[str, Estimate]:
    """Returns log TEff over seeds, of the cells whose runs are all within the law's range."""
    inside = {
        label: list(values.values())
        for label, values in cells.items()
        if all(0 < value < math.inf for value in values.values())
    }
    return statistics.pool_log_estimates(inside)


# Placebos.


def _make_placebo_key(config: Config) -> tuple:
    """Returns what a cell and its placebo have in common."""
    model = config.model
    asked = tuple(sorted(costs.count_language_tokens(config).items()))
    return model.N, model.D, model.L, config.steps, config.batch_size, asked, config.mixture.stages


def _find_placebos(configs: Mapping[Key, Config], cells: Cells) -> dict[Key, str]:
    """Returns the placebo cell of each language that has one with the same ratio."""
    offered = [
        (cell, language, _make_placebo_key(configs[cell, language]))
        for (cell, language), rows in cells.items()
        if rows[0].kind == "placebo" and has_plain_text(configs[cell, language], language)
    ]
    found = {}
    for (cell, language), rows in cells.items():
        if rows[0].kind in ("placebo", *grid.BASELINES):
            continue
        mine = _make_placebo_key(configs[cell, language])
        for placebo, tag, ratio in offered:
            if tag == language and ratio == mine and (cell, language) not in found:
                found[cell, language] = placebo
    return found


# Alignment.


def _estimate_alignments(
    table: StudyTable, placebos: Mapping[str, str], dropped: Sequence[str]
) -> list[CellAlignment]:
    rows: dict[tuple[str, str, str], dict[int, list[AlignmentObservation]]] = {}
    for row in table.alignments:
        between = 0 < row.layer < row.layers - 1
        # Retrieval means nothing beside an unknown chance, as of earlier runs.
        known = row.measure != "retrieval" or math.isfinite(row.baseline)
        wanted = row.measure in MEASURES and (row.layer < 0 or between) and known
        if wanted and row.run not in dropped:
            by_seed = rows.setdefault((row.cell, row.pair, row.measure), {})
            by_seed.setdefault(row.seed, []).append(row)
    found: dict[tuple[str, str, str], CellAlignment] = {}
    for key, by_seed in rows.items():
        first = next(iter(by_seed.values()))[0]
        baselines = _average_by_seed(by_seed, lambda row: row.baseline)
        values = _average_by_seed(by_seed, lambda row: row.value)
        made = CellAlignment(
            cell=first.cell,
            kind=first.kind,
            config=table.runs[first.run].config,
            pair=first.pair,
            measure=first.measure,
            values=values,
            baselines={s: v for s, v in baselines.items() if math.isfinite(v)},
            excess=Estimate(math.nan, math.nan, 0, 0, "unrepeated"),
        )
        excess = made.excess_by_seed
        against_none = statistics.estimate_difference(excess, dict.fromkeys(excess, 0.0))
        found[key] = dataclasses.replace(made, excess=against_none)
    for key, made in found.items():
        placebo = found.get((placebos.get(made.cell, ""), made.pair, made.measure))
        if placebo is not None:
            beyond = statistics.estimate_difference(made.excess_by_seed, placebo.excess_by_seed)
            found[key] = dataclasses.replace(made, placebo=placebo.cell, beyond_placebo=beyond)
    return list(found.values())


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
    wanted: dict[BaselineGroup, list[float]] = {}
    seeds: dict[BaselineGroup, int] = {}
    flops: dict[BaselineGroup, float] = {}
    for condition in conditions:
        if condition.kind in (*grid.BASELINES, "sweep") or not condition.plain:
            continue
        for kind in list_baseline_kinds(table):
            group = BaselineGroup.of(condition.config, condition.first.source, kind)
            here = wanted.setdefault(group, [])
            here.append(condition.first.tokens)
            worth = condition.worths.get((kind, "loss"))
            # Where a loss is worth next to nothing, no baseline will say it better.
            if worth is not None and worth.limit != "below":
                here.append(math.inf if worth.limit else worth.efficiency.mlte)
            seeds[group] = max(seeds.get(group, 1), condition.seeds)
            flops[group] = _find_flops_per_token(table, condition, group)
    found = []
    for group, tokens in sorted(wanted.items()):
        have = [
            float(count_baseline_tokens(table, name)) for name in list_baseline_runs(table, group)
        ]
        for run in efficiency.list_missing_baselines(tokens, have, flops[group], seeds[group]):
            # Next to a baseline another one tells nothing new.
            if all(abs(math.log(run.tokens / there)) > _NEXT for there in have):
                found.append(NeededRun(group, run))
    return found


def _find_flops_per_token(
    table: StudyTable, condition: LanguageCondition, group: BaselineGroup
) -> float:
    """Returns the FLOPs per token of a baseline: as in the study's own, or else the mixture's."""
    for run in table.runs.values():
        if run.spec.kind in grid.BASELINES and (run.spec.kind == "wide") == (group.kind == "wide"):
            found = BaselineGroup.of(
                run.config,
                run.config.source_of(_find_only_language(run.config)),
                group.kind,
            )
            if (found.source, found.size) == (group.source, group.size):
                return costs.compute_flops_per_token(
                    run.config.model, costs.compute_vocab_size(run.config)
                )
    return condition.first.flops_per_token
