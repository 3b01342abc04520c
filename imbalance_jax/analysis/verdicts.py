"""What runs say of a claim that was made before them: verdicts, one alone and among many."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from imbalance_jax.analysis.laws import Floats
from imbalance_jax.analysis.statistics import Estimate, Interval

Word = Literal["supported", "contradicted", "absent", "undecided"]
Direction = Literal["up", "down", "same"]


def apply_holm_correction(p_values: npt.ArrayLike) -> Floats:
    """Returns the p values adjusted by Holm's step-down method, in the order given.

    A nan stays nan and still counts: it was one of the claims made.
    """
    p = np.asarray(p_values, float)
    filled = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(filled, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(filled)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * filled[order]), 1.0)
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

    `adjust_verdicts` adjusts both p values and both levels: `p` is below alpha exactly where the
    interval of confidence 1 - `level` leaves out 0, and `equivalence_p` exactly where
    `equivalence_interval` lies within +-smallest. Both levels are alpha for a claim alone, and
    less among others.
    """

    estimate: Estimate
    direction: Direction
    smallest: float  # effect of interest, in the estimate's unit
    alpha: float
    p: float  # two-sided, against no effect
    equivalence_p: float  # against an effect of size smallest or more
    level: float  # at which `p` is held, before it is adjusted
    equivalence_level: float  # at which `equivalence_p` is

    @property
    def word(self) -> Word:
        if self.equivalent:
            return "supported" if self.direction == "same" else "absent"
        if not (self.p < self.alpha and abs(self.estimate.value) >= self.smallest):
            return "undecided"
        as_claimed = self.direction == ("up" if self.estimate.value > 0 else "down")
        return "supported" if as_claimed else "contradicted"

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
    def shown_interval(self) -> Interval:
        """The interval that the word is read off."""
        return self.estimate.interval(self.confidence)

    @property
    def equivalence_interval(self) -> Interval:
        return self.estimate.interval(1 - 2 * self.equivalence_level)


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
    equivalence_p = compute_equivalence_p(estimate, smallest)
    return Verdict(
        estimate, direction, smallest, alpha, estimate.p_value(), equivalence_p, alpha, alpha
    )


def adjust_verdicts(verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Judges all claims of a study together, by `apply_holm_correction`.

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
    fields = ("p", "equivalence_p", "level", "equivalence_level")
    return {
        name: dataclasses.replace(verdict, **dict(zip(fields, values, strict=True)))
        for (name, verdict), values in zip(
            verdicts.items(), np.hstack([p, levels]).tolist(), strict=True
        )
    }


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
