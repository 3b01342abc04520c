"""The laws of a study: fitted to its monolingual runs, and read at every language of a mixture."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from imbalance_jax.analysis import statistics
from imbalance_jax.analysis.baselines import (
    BaselineGroup,
    list_baseline_kinds,
    list_baseline_runs,
    take_tuned_baselines,
)
from imbalance_jax.analysis.efficiency import Efficiency
from imbalance_jax.analysis.law_choice import (
    FAMILIES,
    LawChoice,
    choose_law,
    make_chinchilla_family,
)
from imbalance_jax.analysis.laws import Floats, ReferenceLaw
from imbalance_jax.analysis.resampling import (
    CellLosses,
    ResampledEfficiency,
    resample_efficiency,
)
from imbalance_jax.analysis.statistics import Estimate, Interval
from imbalance_jax.analysis.study_table import Observation, StudyTable
from imbalance_jax.config import Config
from imbalance_jax.study.run_spec import BASELINES

PARTS = ("loss", "language_nats", "loss_own")
# The reference's law is reported beside: it is biased at the ends, often does not converge,
# and would take most of the time of a resample.
_FAMILIES = {name: family for name, family in FAMILIES.items() if name != "reference"}
_REFERENCE = {"reference": FAMILIES["reference"]}
# A monolingual model with a vocabulary of its own spends nothing on telling the language.
_NO_NATS = 1e-6
_FAR = 4.0  # times the tokens of its longest baseline, or of its shortest, at which a law ends

Key = tuple[str, str]  # cell, language
Cells = Mapping[Key, Sequence[Observation]]
Laws = Mapping[tuple[BaselineGroup, str], "FittedLaw"]  # by group and part of the loss
Worths = Mapping[tuple[str, str], "EfficiencyEstimate"]  # by kind of baseline and part of the loss


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
    def choice(self) -> LawChoice:
        assert self.law.choice is not None, "there is a law, or it could not have been read"
        return self.law.choice

    @property
    def limit(self) -> str:
        """Says "above" or "below" where the law says no more of the loss than that.

        The loss is outside of all that the law takes, or so far from its baselines that
        where it is read there is nothing but its form.
        """
        low, high = self.choice.law.fitted
        if not self.efficiency.mlte <= high * _FAR:
            return "above"
        return "below" if self.efficiency.mlte < low / _FAR else ""

    @property
    def bound(self) -> float:
        """The TEff that is passed where there is a `limit`: that of the last baseline."""
        ends = self.choice.law.fitted
        return ends[1 if self.limit == "above" else 0] / self.efficiency.own_tokens

    @property
    def law_error(self) -> float:
        """The law's own error as one of log TEff: left-out nats over the slope at MLTE."""
        law, mlte = self.choice.law, self.efficiency.mlte
        if self.limit:
            return math.nan
        step = 0.01
        rise = law.loss(mlte * math.exp(-step)) - law.loss(mlte * math.exp(step))
        return float(self.choice.error * 2 * step / rise) if rise > 0 else math.nan

    def uncertainty(self) -> Estimate:
        """Returns log TEff with the standard error of resamples: runs and law together."""
        value = math.log(self.efficiency.teff) if not self.limit else math.nan
        return estimate_from_draws(value, self.draws, self.df, len(self.teff_by_seed))


def estimate_from_draws(value: float, draws: Floats, df: float, seeds: int) -> Estimate:
    """Returns an estimate of resampled draws; without spread for one seed, or outside the law.

    Draws that left the law's range have no log. Where more than one in twenty did, the rest
    would scatter too little.
    """
    finite = draws[np.isfinite(draws)]
    enough = len(draws) and len(finite) >= 0.95 * len(draws)
    if seeds < 2 or not enough or not math.isfinite(value):
        return Estimate.unrepeated(value, seeds)
    return Estimate(value, float(finite.std(ddof=1)), df, seeds)


def collect_by_seed(rows: Iterable[Observation], field: str) -> dict[int, float]:
    """Returns a field of observations by seed."""
    return {row.seed: getattr(row, field) for row in rows}


def has_plain_text(config: Config, language: str) -> bool:
    """Says whether a language's text is as it was written, not shuffled for a placebo."""
    return config.languages[language].words == "as_written"


def group_by_cell(rows: Iterable[Observation]) -> dict[Key, list[Observation]]:
    """Returns the observations of each language of each cell."""
    cells = defaultdict(list)
    for row in rows:
        cells[row.cell, row.language].append(row)
    return dict(cells)


@dataclasses.dataclass(frozen=True)
class LawReadings:
    """All laws of a study, and what they say of its languages."""

    laws: Laws
    worths: Mapping[Key, Worths]
    no_law: Mapping[Key, Mapping[str, str]]  # kind of baseline -> why there is no law


def read_laws(
    table: StudyTable, cells: Cells, configs: Mapping[Key, Config], resamples: int
) -> LawReadings:
    """Fits the laws that are needed, and reads them at every language of a mixture."""
    readers: defaultdict[BaselineGroup, list[Key]] = defaultdict(list)
    kinds = list_baseline_kinds(table)
    by_run = defaultdict(list)
    for key, rows in cells.items():
        config, first = configs[key], rows[0]
        for row in rows:
            by_run[row.run].append(row)
        if first.kind in BASELINES:  # baselines alone have laws to show too
            readers[BaselineGroup.of(config, first.source, first.kind)] += []
        elif has_plain_text(config, first.language):
            for kind in kinds:
                readers[BaselineGroup.of(config, first.source, kind)].append(key)
    laws: dict[tuple[BaselineGroup, str], FittedLaw] = {}
    worths: defaultdict[Key, dict[tuple[str, str], EfficiencyEstimate]] = defaultdict(dict)
    no_law: defaultdict[Key, dict[str, str]] = defaultdict(dict)
    for group in sorted(readers):
        members = [row for name in list_baseline_runs(table, group) for row in by_run[name]]
        members = take_tuned_baselines(table, group, members)
        # Its baselines spend nothing on telling the language, so that one law serves for the
        # loss and for what is lost within the language.
        nats = any(row.language_nats > _NO_NATS for row in members)
        shared = {part: (part,) for part in PARTS} if nats else {"loss": ("loss", "loss_own")}
        for part, read in shared.items():
            mixtures = {
                (key, name): CellLosses(
                    collect_by_seed(cells[key], name),
                    cells[key][0].tokens,
                    cells[key][0].other_tokens,
                )
                for key in readers[group]
                for name in read
            }
            law, estimates = _fit_and_read_law(table, group, part, members, mixtures, resamples)
            if members:
                laws[group, part] = law
            for (key, name), estimate in estimates.items():
                worths[key][group.kind, name] = estimate
            if law.problem and part == "loss":
                for key in readers[group]:
                    no_law[key][group.kind] = law.problem
    for (group, part), law in laws.items():
        if (group.kind, part) == ("monolingual", "loss") and law.choice is not None:
            error = _measure_over_sizes_error(table, law, laws)
            laws[group, part] = dataclasses.replace(law, over_sizes_error=error)
    return LawReadings(laws, worths, no_law)


def _fit_and_read_law(
    table: StudyTable,
    group: BaselineGroup,
    part: str,
    members: Sequence[Observation],
    mixtures: Mapping[tuple[Key, str], CellLosses],
    resamples: int,
) -> tuple[FittedLaw, dict[tuple[Key, str], EfficiencyEstimate]]:
    """Fits a part's law to a group, and reads it at some parts of the loss of some cells."""
    baselines = [
        CellLosses(collect_by_seed(rows, part), rows[0].tokens)
        for rows in group_by_cell(members).values()
    ]
    try:
        if not members:
            raise ValueError("no baseline of this kind is done")
        resampled = resample_efficiency(
            baselines, mixtures, table.unit_tokens, families=_FAMILIES, resamples=resamples
        )
    except ValueError as why:
        return FittedLaw(group, part, members, None, str(why)), {}
    reference, error = _fit_reference_law(table, members, part)
    law = FittedLaw(
        group, part, members, resampled.choice, "", resampled.families, reference, error
    )
    teffs = {
        name: dict(
            zip(
                cell.losses,
                (resampled.choice.law.tokens([*cell.losses.values()]) / cell.own_tokens).tolist(),
                strict=True,
            )
        )
        for name, cell in mixtures.items()
    }
    pooled = statistics.pool_log_estimates(
        {
            name: list(by_seed.values())
            for name, by_seed in teffs.items()
            if all(0 < teff < math.inf for teff in by_seed.values())
        }
    )
    return law, {
        name: _make_efficiency_estimate(law, name, by_seed, pooled.get(name), resampled)
        for name, by_seed in teffs.items()
    }


def _make_efficiency_estimate(
    law: FittedLaw,
    name: tuple[Key, str],
    teff_by_seed: Mapping[int, float],
    log_teff: Estimate | None,
    resampled: ResampledEfficiency[tuple[Key, str]],
) -> EfficiencyEstimate:
    worth = resampled.efficiency[name]
    with np.errstate(all="ignore"):
        draws = np.log(resampled.mlte[name] / worth.own_tokens)
    reference = math.nan
    if law.reference is not None:
        reference = float(law.reference.tokens(worth.loss)) / worth.own_tokens
    return EfficiencyEstimate(
        law=law,
        efficiency=worth,
        teff_by_seed=teff_by_seed,
        log_teff=log_teff,
        teff=resampled.teff(name),
        exchange=resampled.exchange(name),
        draws=draws,
        df=resampled.df,
        reference_teff=reference,
    )


def _fit_reference_law(
    table: StudyTable, members: Sequence[Observation], part: str
) -> tuple[ReferenceLaw | None, float]:
    tokens, losses = [row.tokens for row in members], [getattr(row, part) for row in members]
    try:
        choice = choose_law(tokens, losses, table.unit_tokens, _REFERENCE)
    except ValueError:
        return None, math.nan
    assert isinstance(choice.law, ReferenceLaw)
    return choice.law, choice.error


def _measure_over_sizes_error(table: StudyTable, law: FittedLaw, laws: Laws) -> float:
    """Returns how well one law over all sizes predicts left-out baselines; nan without others.

    It is held beside, and not among what is chosen from: a fit takes too long for resamples.
    """
    others = [
        row
        for (group, part), other in laws.items()
        if (group.source, group.kind, part) == (law.group.source, "monolingual", "loss")
        and group.size != law.group.size
        and group.dials == law.group.dials
        for row in other.observations
    ]
    if not others:
        return math.nan
    family = make_chinchilla_family(
        law.observations[0].parameters,
        [row.parameters for row in others],
        [row.tokens for row in others],
        [row.loss for row in others],
    )
    tokens = [row.tokens for row in law.observations]
    losses = [row.loss for row in law.observations]
    try:
        return choose_law(tokens, losses, table.unit_tokens, {"sizes": family}).error
    except ValueError:
        return math.nan
