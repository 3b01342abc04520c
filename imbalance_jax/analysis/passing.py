"""The steps at which runs pass a bar, such as the loss at which a model has found a grammar.

A run that ends before it passes is censored: its step lies somewhere beyond its last one. So means
are restricted: a step counts at most as one that every run reached (the restricted mean survival
time of Royston and Parmar, BMC Medical Research Methodology 13:152, 2013), and medians are those
of Kaplan and Meier.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy import stats

from imbalance_jax.analysis import statistics
from imbalance_jax.analysis.learning_curves import LearningCurve
from imbalance_jax.analysis.statistics import UNKNOWN_INTERVAL, Estimate, Interval
from imbalance_jax.analysis.study_table import StudyTable

_HALF = 0.5 + 1e-9  # a product of fractions that is a half in exact numbers


@dataclasses.dataclass(frozen=True)
class Passing:
    """When a run passed a bar, or that it had not by its last measured step."""

    step: float  # the last measured one where it has not
    passed: bool
    end: float  # the last measured step
    spacing: float = 0.0  # steps between the two measurements around; 0 where it has not passed


@dataclasses.dataclass(frozen=True)
class PassedCount:
    """How many runs passed a bar, and when."""

    passed: int
    runs: int
    interval: Interval  # of the fraction that passes: Wilson's, 95 %
    median: float  # the step by which half have passed, by Kaplan and Meier; nan if not reached


def find_passing(curve: LearningCurve, bar: float) -> Passing:
    """Returns when a loss was first at or below the bar, or an alignment excess at or above it.

    The step is interpolated between the two measured ones around it. A run that begins past the
    bar has its first measured step, which is as uncertain as the steps before it are many.

    Raises:
      ValueError: nothing of the curve is finite.
    """
    sign = 1.0 if curve.measure == "loss" else -1.0
    # Above 0 is before the bar.
    points = [
        (step, sign * (height - bar))
        for step, height in zip(curve.steps, curve.heights, strict=True)
        if math.isfinite(height)
    ]
    if not points:
        raise ValueError("A curve without a finite value passes no bar, and misses none.")
    steps = [float(step) for step, _ in points]
    first = next((place for place, (_, above) in enumerate(points) if above <= 0), None)
    if first is None:
        return Passing(steps[-1], False, steps[-1])
    if first == 0:
        return Passing(steps[0], True, steps[-1], max(steps[0], *np.diff(steps[:2]), 0.0))
    (before, above), (after, below) = points[first - 1 : first + 1]
    spacing = float(after - before)
    return Passing(before + spacing * above / (above - below), True, steps[-1], spacing)


def collect_passings(
    table: StudyTable, cell: str, of: str, bar: float, left_out: Collection[str] = ()
) -> tuple[dict[int, Passing], list[str]]:
    """Returns when each finished run of a cell passed a bar, by seed.

    The second value names the runs that have nothing to hold to it.

    Args:
      table: of the study.
      cell: whose runs they are.
      of: a language or a pair of languages.
      bar: of `find_passing`.
      left_out: runs that do not count.
    """
    passings, unmeasured = {}, []
    for name, run in table.runs.items():
        if run.spec.cell != cell or run.state.state != "done" or name in left_out:
            continue
        curve = table.curves.get((name, of))
        if curve is None or not any(map(math.isfinite, curve.heights)):
            unmeasured.append(name)
        else:
            passings[run.config.seed] = find_passing(curve, bar)
    return passings, unmeasured


def restrict_passing(passing: Passing, last: float) -> Passing:
    """Returns what was known of a run at a step: one that passes later has not passed."""
    return passing if passing.step <= last else Passing(last, False, last)


def count_passed(passings: Sequence[Passing]) -> PassedCount:
    """Returns how many runs passed, with Wilson's interval of the fraction, and the median step.

    The median is the first step by which the Kaplan-Meier estimate of those that have not passed
    is a half or less; nan where it never is.
    """
    passed = sum(passing.passed for passing in passings)
    if not passings:
        return PassedCount(0, 0, UNKNOWN_INTERVAL, math.nan)
    interval = stats.binomtest(passed, len(passings)).proportion_ci(method="wilson")
    sample = stats.CensoredData.right_censored(
        [passing.step for passing in passings], [not passing.passed for passing in passings]
    )
    left = stats.ecdf(sample).sf
    reached = left.quantiles[left.probabilities <= _HALF]
    return PassedCount(
        passed,
        len(passings),
        (float(interval.low), float(interval.high)),
        float(reached[0]) if len(reached) else math.nan,
    )


def estimate_passing_difference(
    first: Mapping[int, Passing], second: Mapping[int, Passing]
) -> Estimate:
    """Returns the difference of two restricted means of steps, of passings by seed.

    All runs are followed to one step and restricted there, so each mean is that of min(step,
    last), and the difference is taken as that of any other measure. A passing step is known to
    the spacing of its two measurements. A uniform error of that spacing, whose variance is
    spacing^2 / 12, is added for each run that passed, so that cells whose runs are all equal or
    censored have no interval of width 0. That of a censored run is last, without error. Without
    a run that passed there is nothing to compare, and the value is nan.

    Raises:
      ValueError: a side has no runs.
    """
    steps = [{seed: passing.step for seed, passing in side.items()} for side in (first, second)]
    estimate = statistics.estimate_difference(*steps)
    compared = _list_compared_passings(first, second)
    if not any(passing.passed for side in compared for passing in side):
        return Estimate.unrepeated(n=estimate.n)
    return dataclasses.replace(
        estimate, se=math.hypot(estimate.se, *map(_compute_reading_error, compared))
    )


def compute_largest_difference(
    first: Mapping[int, Passing], second: Mapping[int, Passing], last: float
) -> float:
    """Returns how large the difference would be against a side of which no run passes.

    The arguments are those of `estimate_passing_difference`, whose value it bounds, and the step
    that both sides are restricted at. It is the larger one of the means of last - step. Where few
    runs pass, or all do late, it is small whatever the steps are that censored runs would have, so
    that a small difference says nothing of those.
    """
    return max(
        math.fsum(last - passing.step for passing in side) / len(side)
        for side in _list_compared_passings(first, second)
    )


def _list_compared_passings(
    first: Mapping[int, Passing], second: Mapping[int, Passing]
) -> list[list[Passing]]:
    """Returns the passings of both sides that `statistics.estimate_difference` compares."""
    shared = first.keys() & second.keys()
    return [
        [side[seed] for seed in side if seed in shared or len(shared) < 2]
        for side in (first, second)
    ]


def _compute_reading_error(passings: Collection[Passing]) -> float:
    """Returns the standard error that the spacing of measurements gives to a mean step."""
    variance = math.fsum(passing.spacing**2 / 12 for passing in passings)
    return math.sqrt(variance) / len(passings)
