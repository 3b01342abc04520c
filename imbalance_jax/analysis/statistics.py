"""How sure a study can be of a number: estimates over runs, and their intervals.

The unit is the run: seeds of a cell scatter, positions of a text do not count. Where nothing was
repeated there is no scatter to measure, and an interval is (nan, nan) instead of a narrow one.
Positive quantities are compared by their logs, so that a difference of 0.05 is about 5 %.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Self, TypeVar

import numpy as np
from scipy import stats

from imbalance_jax.analysis.laws import Floats

Interval = tuple[float, float]
Name = TypeVar("Name", bound=Hashable)  # of a cell

UNKNOWN_INTERVAL: Interval = (np.nan, np.nan)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its standard error; nan and 0 degrees of freedom where nothing repeats."""

    value: float
    se: float
    df: float
    n: int  # runs behind it, or seeds that both sides share

    @classmethod
    def unrepeated(cls, value: float = np.nan, n: int = 0) -> Self:
        """Returns a value without an interval."""
        return cls(value, np.nan, 0, n)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Returns the t interval, or (nan, nan) without degrees of freedom."""
        if not self.df > 0:
            return UNKNOWN_INTERVAL
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


def pool_log_estimates(cells: Mapping[Name, Sequence[float]]) -> dict[Name, Estimate]:
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
            name: Estimate.unrepeated(float(values.mean()), len(values))
            for name, values in logs.items()
        }
    variance = sum(((values - values.mean()) ** 2).sum() for values in logs.values()) / df
    return {
        name: Estimate(
            float(values.mean()), float(np.sqrt(variance / len(values))), df, len(values)
        )
        for name, values in logs.items()
    }


def _compute_logs(name: Hashable, values: Sequence[float]) -> Floats:
    array = np.asarray(values, float)
    if not len(array) or not np.all(np.isfinite(array) & (array > 0)):
        raise ValueError(
            f"Cell {name} has the values {array.tolist()}, and only finite ones above 0 have a "
            "log. Leave out runs that failed, or whose loss is outside of the law's range."
        )
    return np.log(array)


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
        return Estimate(float(pairs.mean()), float(se), len(pairs) - 1, len(pairs))
    a, b = np.array([*first.values()]), np.array([*second.values()])
    n, value = min(len(a), len(b)), float(a.mean() - b.mean())
    if n < 2:
        return Estimate.unrepeated(value, n)
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    total = parts.sum()
    weights = np.array([len(a) - 1, len(b) - 1])
    # Without scatter the formula is 0 / 0, and any number of degrees of freedom will do.
    df = total**2 / (parts**2 / weights).sum() if total > 0 else weights.sum()
    return Estimate(value, float(np.sqrt(total)), float(df), n)


def compute_widened_interval(value: float, draws: Floats, df: float) -> Interval:
    """Returns the 95 % percentile interval of draws, moved outward for few degrees of freedom.

    Percentiles treat the scatter among a handful of runs as if it were known. Each end's
    distance from value grows by the ratio of the t to the normal quantile. nan draws
    are left out; (nan, nan) without degrees of freedom or a finite value.
    """
    draws = draws[~np.isnan(draws)]
    if not df > 0 or not len(draws) or not np.isfinite(value):
        return UNKNOWN_INTERVAL
    tail = (1 + 0.95) / 2
    factor = stats.t.ppf(tail, df) / stats.norm.ppf(tail)
    # Whole order statistics, as interpolation between an infinite one and another is nan.
    low = np.quantile(draws, 1 - tail, method="lower")
    high = np.quantile(draws, tail, method="higher")
    return float(value + factor * (low - value)), float(value + factor * (high - value))
