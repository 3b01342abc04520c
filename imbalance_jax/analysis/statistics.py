"""How sure a study can be of a number: intervals, comparisons, verdicts and resampling.

The unit is the run: seeds of a cell scatter, positions of a text do not count. Where
nothing was repeated there is no scatter to measure, and an interval is (nan, nan)
instead of a narrow one. Positive quantities are compared by their logs, so that a
difference of 0.05 is about 5 %.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from imbalance_jax.analysis.laws import (
    FAMILIES,
    Efficiency,
    Floats,
    LawChoice,
    LawFamily,
    T,
    choose_law,
    compute_efficiency_or_limit,
)

Interval = tuple[float, float]
Word = Literal["supported", "contradicted", "absent", "undecided"]
Direction = Literal["up", "down", "same"]

_UNKNOWN: Interval = (np.nan, np.nan)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its standard error; nan and 0 degrees of freedom where nothing repeats."""

    value: float
    se: float
    df: float
    n: int  # runs behind it, or seeds that both sides share
    how: str  # "pooled", "paired", "welch" or "unrepeated"

    def interval(self, confidence: float = 0.95) -> Interval:
        """Returns the t interval, or (nan, nan) without degrees of freedom."""
        if not self.df > 0:
            return _UNKNOWN
        half = stats.t.ppf((1 + confidence) / 2, self.df) * self.se
        return float(self.value - half), float(self.value + half)

    def exp_interval(self, confidence: float = 0.95) -> Interval:
        """Returns the interval of exp(value), for an estimate of a log."""
        low, high = np.exp(self.interval(confidence))
        return float(low), float(high)

    def p_above(self, null: float = 0.0) -> float:
        """Returns the one-sided p of a value above null: small where it is."""
        if not self.df > 0:
            return np.nan
        if self.se == 0:  # no scatter at all leaves no doubt
            return 0.0 if self.value > null else 1.0
        return float(stats.t.sf((self.value - null) / self.se, self.df))

    def p_value(self, null: float = 0.0) -> float:
        """Returns the two-sided p of a value other than null."""
        if self.se == 0 and self.df > 0:
            return 0.0 if self.value != null else 1.0
        above = self.p_above(null)
        return 2 * min(above, 1 - above)


def pool_log_estimates(cells: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """Returns the mean log of each cell's runs, with the variance pooled over all cells.

    The runs of a cell are positive values, one per seed. The degrees of freedom are
    sum(n - 1), so a cell with one run borrows its scatter from the others; where no
    cell has two runs there is none to borrow. Raises ValueError on values that have no
    log. `exp_interval` of an estimate is the interval of the cell's geometric mean.
    """
    logs = {name: _compute_logs(name, values) for name, values in cells.items()}
    df = sum(len(values) - 1 for values in logs.values())
    if not df:
        return {
            name: Estimate(float(values.mean()), np.nan, 0, len(values), "unrepeated")
            for name, values in logs.items()
        }
    variance = sum(((values - values.mean()) ** 2).sum() for values in logs.values()) / df
    return {
        name: Estimate(
            float(values.mean()), float(np.sqrt(variance / len(values))), df, len(values), "pooled"
        )
        for name, values in logs.items()
    }


def _compute_logs(name: str, values: Sequence[float]) -> Floats:
    found = np.asarray(values, float)
    if not len(found) or not np.all(np.isfinite(found) & (found > 0)):
        raise ValueError(
            f"Cell {name} has the values {found.tolist()}, and only finite ones above 0 have a "
            "log. Leave out runs that failed, or whose loss is outside of the law's range."
        )
    return np.log(found)


def estimate_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate:
    """Returns first minus second, of values by seed; give logs to compare ratios.

    Two seeds or more in common are compared pair by pair, and the other runs are left
    out. Otherwise it is Welch's comparison, which needs two runs on both sides. Raises
    ValueError if a side has no runs.
    """
    if not first or not second:
        raise ValueError("A difference needs a run on both sides; one side has none.")
    shared = sorted(first.keys() & second.keys())
    if len(shared) >= 2:
        pairs = np.array([first[seed] - second[seed] for seed in shared])
        se = pairs.std(ddof=1) / np.sqrt(len(pairs))
        return Estimate(float(pairs.mean()), float(se), len(pairs) - 1, len(pairs), "paired")
    a, b = np.array([*first.values()]), np.array([*second.values()])
    n, value = min(len(a), len(b)), float(a.mean() - b.mean())
    if n < 2:
        return Estimate(value, np.nan, 0, n, "unrepeated")
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    total = parts.sum()
    weights = np.array([len(a) - 1, len(b) - 1])
    # Without scatter the formula is 0 / 0, and any number of degrees of freedom will do.
    df = total**2 / (parts**2 / weights).sum() if total > 0 else weights.sum()
    return Estimate(value, float(np.sqrt(total)), float(df), n, "welch")


def apply_holm_correction(p_values: npt.ArrayLike) -> Floats:
    """Returns the p values adjusted by Holm's step-down method, in the order given.

    A nan stays nan and still counts: it was one of the claims made.
    """
    p = np.asarray(p_values, float)
    known = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(known, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(known)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * known[order]), 1.0)
    return np.where(np.isnan(p), np.nan, adjusted)


def compute_equivalence_p(estimate: Estimate, smallest: float) -> float:
    """Returns p of an effect within +-smallest, by two one-sided tests (TOST).

    It is below alpha exactly where the (1 - 2 alpha) interval lies within +-smallest.
    """
    if not smallest > 0:
        raise ValueError(
            f"smallest={smallest} is not a smallest effect of interest. "
            "Set it above 0, such as 0.05 for 5 % of a log."
        )
    above = estimate.p_above(-smallest)
    below = dataclasses.replace(estimate, value=-estimate.value).p_above(-smallest)
    return float(np.maximum(above, below))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim, and on what grounds.

    `p` and `compute_equivalence_p` are adjusted where `adjust_verdicts` has been at work, and so
    are the
    intervals: `p` is below alpha exactly where `interval` leaves out 0, and `compute_equivalence_p`
    exactly where `equivalence_interval` lies within +-smallest. Both levels are alpha for a
    claim alone, and less among others.
    """

    word: Word
    estimate: Estimate
    direction: Direction
    smallest: float  # effect of interest, in the estimate's unit
    alpha: float
    p: float  # two-sided, against no effect
    equivalence_p: float  # against an effect of size smallest or more
    level: float  # at which `p` is held, before it is adjusted
    equivalence_level: float  # at which `compute_equivalence_p` is

    @property
    def equivalent(self) -> bool:
        """Says whether the effect is shown to be smaller than what matters."""
        return self.equivalence_p < self.alpha

    @property
    def confidence(self) -> float:
        """The confidence of `shown_interval`."""
        if self.equivalent:
            return 1 - 2 * self.equivalence_level
        if self.p < self.alpha:
            return 1 - self.level
        # Neither is shown, and an interval of the smaller level says so of both.
        return 1 - min(self.level, 2 * self.equivalence_level)

    @property
    def interval(self) -> Interval:
        return self.estimate.interval(1 - self.level)

    @property
    def equivalence_interval(self) -> Interval:
        return self.estimate.interval(1 - 2 * self.equivalence_level)

    @property
    def shown_interval(self) -> Interval:
        """The interval that the word is read off."""
        return self.estimate.interval(self.confidence)


def reach_verdict(
    estimate: Estimate, direction: Direction, smallest: float, alpha: float = 0.05
) -> Verdict:
    """Judges a claim that was made before the runs.

    estimate is a difference (of logs, for a ratio) such as `estimate_difference` returns. The
    effect is "absent" if the (1 - 2 alpha) interval lies within +-smallest. Else the
    claim is "supported" if p < alpha and the effect is of the claimed direction and of
    size smallest or more, "contradicted" if it is so in the other one, and "undecided"
    for want of evidence otherwise, as always without repeated runs. A claim of the
    "same" is "supported" where the effect is absent, and "contradicted" where there is
    one in either direction.
    """
    if direction not in ("up", "down", "same"):
        raise ValueError(f"direction={direction!r} of a claim is not 'up', 'down' or 'same'.")
    p, equivalent = estimate.p_value(), compute_equivalence_p(estimate, smallest)
    word = _choose_verdict_word(estimate.value, direction, smallest, alpha, p, equivalent)
    return Verdict(word, estimate, direction, smallest, alpha, p, equivalent, alpha, alpha)


def _choose_verdict_word(
    value: float, direction: Direction, smallest: float, alpha: float, p: float, equivalent: float
) -> Word:
    if equivalent < alpha:
        return "supported" if direction == "same" else "absent"
    if not (p < alpha and abs(value) >= smallest):
        return "undecided"
    as_claimed = direction == ("up" if value > 0 else "down")
    return "supported" if as_claimed else "contradicted"


def adjust_verdicts(verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Judges all claims of a study again, with p values and intervals adjusted by
    `apply_holm_correction`.

    Holm's method is applied twice: to the p values of what was claimed (against no effect, or
    for a claim of the "same" against one as large as matters), and to those of the opposite. So
    among all claims of a study one that is shown by chance alone is as rare as alpha, and so is
    an effect that is called absent and is not. The order within one of the two says nothing of
    the other: the smallest estimates have the largest p against no effect, and would be found
    absent most easily. No word differs from the p and the interval beside it. A claim that was
    decided alone may be "undecided" among many.
    """
    every = [*verdicts.values()]
    same = np.array([v.direction == "same" for v in every], bool)
    alphas = np.array([v.alpha for v in every])
    tests = np.array([(v.p, v.equivalence_p) for v in every], float).reshape(-1, 2)
    tests[same] = tests[same, ::-1]  # what was claimed first
    p, levels = np.empty_like(tests), np.empty_like(tests)
    for column in range(2):
        p[:, column], levels[:, column] = _compute_holm_levels(tests[:, column], alphas)
    p[same], levels[same] = p[same, ::-1], levels[same, ::-1]
    found = {}
    for (name, v), (no_effect, effect), (level, equivalence_level) in zip(
        verdicts.items(), p.tolist(), levels.tolist(), strict=True
    ):
        found[name] = dataclasses.replace(
            v,
            word=_choose_verdict_word(
                v.estimate.value, v.direction, v.smallest, v.alpha, no_effect, effect
            ),
            p=no_effect,
            equivalence_p=effect,
            level=level,
            equivalence_level=equivalence_level,
        )
    return found


def _compute_holm_levels(p_n: Floats, alpha_n: Floats) -> tuple[Floats, Floats]:
    """Returns the adjusted p values and the level of each test's step in Holm's method.

    alpha / m is that of the smallest of m p values, alpha / (m - 1) that of the next, and
    alpha / k that of all k which are not below their level.
    """
    adjusted = apply_holm_correction(p_n)
    shown = adjusted < alpha_n  # a nan is not
    factors = np.full(len(p_n), np.count_nonzero(~shown))
    order = np.argsort(np.where(np.isnan(p_n), 1.0, p_n), kind="stable")
    steps = np.arange(len(p_n), 0, -1)
    factors[order[shown[order]]] = steps[: np.count_nonzero(shown)]
    return adjusted, alpha_n / factors


@dataclasses.dataclass(frozen=True)
class CellLosses:
    """The runs of one condition, as one language sees them: a loss per seed."""

    losses: Mapping[int, float]  # seed -> nats per token
    own_tokens: float
    other_tokens: float = 0.0


@dataclasses.dataclass(frozen=True)
class ResampledEfficiency:
    """Efficiency of several cells against one law, and how it varies over resamples.

    Draws have one entry per resample, the same resample in all cells, so that a
    difference between cells can be taken draw by draw.
    """

    choice: LawChoice  # of the runs as they are
    efficiency: Mapping[str, Efficiency]
    mlte: Mapping[str, Floats]  # cell -> draws
    df: int  # degrees of freedom of the scatter that was resampled
    families: Mapping[str, int]  # family -> resamples that chose it
    unfitted: int  # resamples without any law; their draws are nan

    def teff(self, cell: str, confidence: float = 0.95) -> Interval:
        low, high = self._mlte(cell, confidence)
        own = self.efficiency[cell].own_tokens
        return low / own, high / own

    def exchange(self, cell: str, confidence: float = 0.95) -> Interval:
        found = self.efficiency[cell]
        if not found.other_tokens:
            return _UNKNOWN
        low, high = self._mlte(cell, confidence)
        return (
            (low - found.own_tokens) / found.other_tokens,
            (high - found.own_tokens) / found.other_tokens,
        )

    def _mlte(self, cell: str, confidence: float) -> Interval:
        with np.errstate(all="ignore"):
            value, draws = np.log(self.efficiency[cell].mlte), np.log(self.mlte[cell])
        low, high = np.exp(compute_widened_interval(float(value), draws, self.df, confidence))
        return float(low), float(high)


def compute_widened_interval(
    value: float, draws: Floats, df: float, confidence: float = 0.95
) -> Interval:
    """Returns the percentile interval of draws, moved outward for few degrees of freedom.

    Percentiles treat the scatter among a handful of runs as if it were known. Each end's
    distance from value grows by the ratio of the t to the normal quantile. nan draws
    are left out; (nan, nan) without degrees of freedom or a finite value.
    """
    draws = draws[~np.isnan(draws)]
    if not df > 0 or not len(draws) or not np.isfinite(value):
        return _UNKNOWN
    tail = (1 + confidence) / 2
    factor = stats.t.ppf(tail, df) / stats.norm.ppf(tail)
    # Whole order statistics, as interpolation between an infinite one and another is nan.
    low = np.quantile(draws, 1 - tail, method="lower")
    high = np.quantile(draws, tail, method="higher")
    return float(value + factor * (low - value)), float(value + factor * (high - value))


def resample_efficiency(
    baselines: Sequence[CellLosses],
    cells: Mapping[str, CellLosses],
    unit_tokens: float = T,
    *,
    families: Mapping[str, LawFamily] = FAMILIES,
    resamples: int = 400,
    seed: int = 0,
    by_seed: bool = True,
) -> ResampledEfficiency:
    """Draws baseline and mixture runs anew, and chooses and fits the law for each resample.

    baselines are monolingual cells at several numbers of own tokens; cells are what is
    held against their law. A resample gives each cell as many runs as it has, scattered
    around its mean as follows.

    by_seed: a new run's deviation is a sum of those of the cell's seeds, with random
    weights that are the same in all cells, so that what a seed does to all cells alike
    cancels, as it did in the runs. Weights are normal, since three seeds drawn with
    replacement have but ten distinct outcomes, and intervals made of them are too narrow.
    Counts (number of seeds - 1) degrees of freedom, whatever single runs add.

    Not by_seed: deviations of all cells are drawn with replacement from one pool, for
    seeds that have no more in common than other runs and cells that scatter alike. Counts
    sum(n - 1) degrees of freedom, so its intervals are narrower.

    A cell with one run takes deviations from the pool in both. A deviation from a mean
    of n runs is scaled by sqrt(n / (n - 1)) in the pool, being too small by that.

    Raises ValueError where the baselines as they are fit no law (see `choose`).
    """
    tokens = np.repeat([cell.own_tokens for cell in baselines], [len(c.losses) for c in baselines])
    loss = np.array([value for cell in baselines for value in cell.losses.values()])
    choice = choose_law(tokens, loss, unit_tokens, families)
    estimates = {
        name: compute_efficiency_or_limit(
            choice.law,
            float(np.mean([*cell.losses.values()])),
            cell.own_tokens,
            cell.other_tokens,
        )
        for name, cell in cells.items()
    }
    everything = [*baselines, *cells.values()]
    df = sum(len(cell.losses) - 1 for cell in everything)
    if df == 0:
        nothing = {name: np.full(resamples, np.nan) for name in cells}
        return ResampledEfficiency(choice, estimates, nothing, 0, {}, resamples)
    rng = np.random.Generator(np.random.Philox(key=seed))
    drawn = _draw_losses(everything, resamples, rng, by_seed)
    if by_seed:
        df = len(_find_repeated_seeds(everything)) - 1
    baseline_loss = np.hstack(drawn[: len(baselines)])
    mean_loss = {
        name: values.mean(axis=1)
        for name, values in zip(cells, drawn[len(baselines) :], strict=True)
    }
    mlte = {name: np.full(resamples, np.nan) for name in cells}
    chosen: collections.Counter[str] = collections.Counter()
    for index in range(resamples):
        try:
            found = choose_law(tokens, baseline_loss[index], unit_tokens, families, measure=False)
        except ValueError:
            continue
        chosen[found.family] += 1
        # All cells at once: a law that has no closed inverse is inverted by steps.
        losses = np.array([mean_loss[name][index] for name in cells])
        for name, tokens_ in zip(cells, found.law.tokens_or_limit(losses), strict=True):
            mlte[name][index] = tokens_
    return ResampledEfficiency(
        choice, estimates, mlte, df, dict(chosen), resamples - chosen.total()
    )


def _find_repeated_seeds(cells: Sequence[CellLosses]) -> list[int]:
    """Returns the seeds of cells that have more than one run."""
    return sorted({seed for cell in cells if len(cell.losses) > 1 for seed in cell.losses})


def _draw_losses(
    cells: Sequence[CellLosses], resamples: int, rng: np.random.Generator, by_seed: bool
) -> list[Floats]:
    """Returns losses for each cell, in the shape (resamples, its runs)."""
    deviations = [_compute_deviations(cell) for cell in cells]
    pool = np.concatenate(
        [found * np.sqrt(len(found) / (len(found) - 1)) for found in deviations if len(found) > 1]
    )
    seeds = _find_repeated_seeds(cells)
    weights = rng.normal(size=(resamples, len(seeds), len(seeds)))
    drawn = []
    for cell, found in zip(cells, deviations, strict=True):
        n = len(found)
        if by_seed and n > 1:
            place = np.array([seeds.index(seed) for seed in cell.losses])
            moved = weights[:, place[:, None], place] @ found / np.sqrt(n - 1)
        else:
            moved = rng.choice(pool, (resamples, n))
        drawn.append(np.mean([*cell.losses.values()]) + moved)
    return drawn


def _compute_deviations(cell: CellLosses) -> Floats:
    losses = np.array([*cell.losses.values()])
    return losses - losses.mean()


def resample_text(
    loss_RC: npt.ArrayLike, tokens_RC: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> Floats:
    """Returns the mean loss of R runs on each of S resamples of the test text, as (S, R).

    loss_RC sums the nats of run R over text C, a document or a group of documents of
    one source, and tokens_RC counts its tokens. Texts are drawn whole, with
    replacement, the same ones for all runs, so that differences between runs lose what
    makes a text hard for both; `compute_widened_interval` with C - 1 degrees of freedom makes
    an interval of them. This is the uncertainty of the test text alone; that of the run
    comes on top. Raises ValueError with fewer than two texts.
    """
    loss_RC, tokens_RC = np.asarray(loss_RC, float), np.asarray(tokens_RC, float)
    if loss_RC.ndim != 2 or loss_RC.shape != tokens_RC.shape:
        raise ValueError(
            f"loss_RC has shape {loss_RC.shape} and tokens_RC {tokens_RC.shape}; "
            "give both a row per run and a column per text."
        )
    texts = loss_RC.shape[1]
    if texts < 2:
        raise ValueError(
            f"The test split has {texts} text to draw from. Evaluate with two or more documents."
        )
    rng = np.random.Generator(np.random.Philox(key=seed))
    times_SC = rng.multinomial(texts, np.full(texts, 1 / texts), size=resamples)
    return (times_SC @ loss_RC.T) / (times_SC @ tokens_RC.T)
