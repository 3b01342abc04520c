"""Which form of law over mixtures predicts ratios and sizes that it was not shown best."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import interpolate

from imbalance_jax.analysis.laws import Floats
from imbalance_jax.analysis.mixture_forms import Mixtures
from imbalance_jax.analysis.mixture_laws import (
    MixtureLaw,
    fit_mixture_law,
    list_forms,
    refit_mixture_laws,
)

_OF_SIZE = ("sizes", "largest")
_AS_GOOD = 1.01  # times the least error

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class LeftOutErrors:
    """Root mean squares, in nats, of what is predicted of conditions from the others.

    nan where nothing could be left out.
    """

    ratios: float  # of every ratio but those that give the language most and least
    ends: float  # of those two
    sizes: float  # of every size of model but the smallest and the largest
    largest: float  # of the largest of three sizes or more, from the smaller ones

    @property
    def deciding(self) -> float:
        """The error that laws are chosen by: of ratios, and of sizes where they are known."""
        known = [error for error in (self.ratios, self.sizes) if not math.isnan(error)]
        return math.sqrt(np.mean(np.square(known))) if known else math.inf


@dataclasses.dataclass(frozen=True)
class MixtureLawChoice:
    """The law that predicted left-out conditions best, and how all others did."""

    law: MixtureLaw
    laws: Mapping[str, MixtureLaw]  # by form
    errors: Mapping[str, LeftOutErrors]
    interpolation: LeftOutErrors  # of a curve through the runs, for comparison

    @property
    def error(self) -> LeftOutErrors:
        return self.errors[self.law.form.name]


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Sets of conditions, each of which is left out in turn."""

    ratios: Sequence[Mask]
    ends: Sequence[Mask]
    sizes: Sequence[Mask]
    largest: Sequence[Mask]

    @classmethod
    def of(cls, mixtures: Mixtures, target: int) -> "LeftOut":
        ratios = _group_rows(np.round(mixtures.share_CG, 6))
        share = mixtures.share_CG[:, target]
        ends = [mask for mask in ratios if share[mask][0] in (share.min(), share.max())]
        sizes = _group_rows(mixtures.parameters_C[:, None])  # ascending
        inner = [mask for mask in ratios if share[mask][0] not in (share.min(), share.max())]
        return cls(inner, ends, sizes[1:-1], sizes[-1:] if len(sizes) > 2 else ())

    @property
    def deciding(self) -> Sequence[Mask]:
        return [*self.ratios, *self.sizes]


def _group_rows(values: Floats) -> list[Mask]:
    _, group = np.unique(values, axis=0, return_inverse=True)
    group = group.reshape(-1)
    return [group == index for index in range(group.max() + 1)]


def choose_mixture_law(
    mixtures: Mixtures,
    target: int,
    loss_C: Floats,
    weight_C: Floats,
    forms: Collection[str] = (),
) -> MixtureLawChoice:
    """Fits each form and takes the one with the least error on left-out ratios and sizes.

    Args:
      mixtures: conditions that were run.
      target: the language, by its place.
      loss_C: its mean loss in each, in nats per token.
      weight_C: the runs that it is the mean of.
      forms: those to choose from; none is all.

    Raises:
      ValueError: there are too few ratios for a law.
    """
    left_out = LeftOut.of(mixtures, target)
    laws, errors = {}, {}
    for form in list_forms(mixtures, target):
        if forms and form.name not in forms:
            continue
        laws[form.name] = law = fit_mixture_law(form, loss_C, weight_C)
        predicted = {
            kind: [
                _fit_to_others(law, loss_C, weight_C, mask).loss(mixtures.select(mask))
                for mask in masks
            ]
            for kind, masks in vars(left_out).items()
        }
        errors[form.name] = _measure_errors(left_out, loss_C, predicted)
    least = min(error.deciding for error in errors.values())
    # They stand from the simplest on: a form that contains another is to be better, not as good.
    best = next(name for name in laws if errors[name].deciding <= least * _AS_GOOD)
    interpolated = {
        kind: [_interpolate(mixtures, target, loss_C, mask, kind) for mask in masks]
        for kind, masks in vars(left_out).items()
    }
    interpolation = _measure_errors(left_out, loss_C, interpolated)
    return MixtureLawChoice(laws[best], laws, errors, interpolation)


def _measure_errors(
    left_out: LeftOut, loss_C: Floats, predicted: Mapping[str, Sequence[Floats]]
) -> LeftOutErrors:
    errors = {}
    for kind, masks in vars(left_out).items():
        missed = [p - loss_C[mask] for p, mask in zip(predicted[kind], masks, strict=True)]
        together = np.concatenate(missed) if missed else np.array([])
        known = together[~np.isnan(together)]
        errors[kind] = float(np.sqrt(np.mean(known**2))) if len(known) else math.nan
    return LeftOutErrors(**errors)


def _fit_to_others(law: MixtureLaw, loss_C: Floats, weight_C: Floats, mask: Mask) -> MixtureLaw:
    """Returns a law's form fitted to the conditions outside of a mask, as far as they tell it."""
    kept = dataclasses.replace(law.form, mixtures=law.form.mixtures.select(~mask))
    alike = kept.names == law.form.names
    return fit_mixture_law(kept, loss_C[~mask], weight_C[~mask], near=law if alike else None)


def _predict_in_draws(
    law: MixtureLaw, loss_RC: Floats, weight_C: Floats, masks: Sequence[Mask]
) -> list[Floats]:
    """Returns what a law's form, fitted to all others, says of the conditions in each mask.

    The fits begin at the law of all conditions. Each mask gets a row for each row of losses.
    """
    if not masks:
        return []
    draws = len(loss_RC)
    weight = np.repeat([weight_C * ~mask for mask in masks], draws, axis=0)
    theta = refit_mixture_laws(law, np.tile(loss_RC, (len(masks), 1)), weight)
    mixtures = law.form.mixtures
    return [
        law.form.predict(theta[place * draws : (place + 1) * draws], mixtures.select(mask))
        for place, mask in enumerate(masks)
    ]


def _interpolate(mixtures: Mixtures, target: int, loss_C: Floats, mask: Mask, kind: str) -> Floats:
    """Returns losses between the other conditions; nan where they do not lie around one.

    Between ratios: a monotone cubic of log loss over the log share of the language, at the same
    size and length. Between sizes: a line of log loss over log parameters, at the same ratio and
    length. At the ends the line through the last two goes on.
    """
    size, total = np.log(mixtures.parameters_C), np.log(mixtures.total_C)
    share = np.log(mixtures.share_CG[:, target])
    x, fixed = (size, share) if kind in _OF_SIZE else (share, size)
    found = np.full(mask.sum(), np.nan)
    for place, index in enumerate(np.flatnonzero(mask)):
        alike = np.abs(fixed - fixed[index]) < 0.01
        beside = ~mask & alike & (np.abs(total - total[index]) < 0.01)
        knots, group = np.unique(x[beside], return_inverse=True)
        if len(knots) < 2:
            continue
        log_loss = np.bincount(group, np.log(loss_C[beside])) / np.bincount(group)
        inside = knots[0] <= x[index] <= knots[-1]
        if inside and kind not in _OF_SIZE:
            value = interpolate.PchipInterpolator(knots, log_loss)(x[index])
        else:
            near = min(max(int(np.searchsorted(knots, x[index])), 1), len(knots) - 1)
            (x0, x1), (y0, y1) = knots[near - 1 : near + 1], log_loss[near - 1 : near + 1]
            value = y0 + (y1 - y0) * (x[index] - x0) / (x1 - x0)
        found[place] = np.exp(value)
    return found


def choose_in_draws(
    choice: MixtureLawChoice, loss_RC: Floats, weight_C: Floats
) -> tuple[dict[str, Floats], npt.NDArray[np.int_]]:
    """Returns the parameters (R, K) of each form in each draw of losses, and which form is best.

    The forms are refitted and chosen in each draw as they are of the runs.
    """
    theta, errors = {}, []
    for name, law in choice.laws.items():
        theta[name] = refit_mixture_laws(law, loss_RC, np.broadcast_to(weight_C, loss_RC.shape))
        squares = np.zeros(len(loss_RC))
        masks = LeftOut.of(law.form.mixtures, law.form.target).deciding
        if len(choice.laws) > 1:
            predicted = _predict_in_draws(law, loss_RC, weight_C, masks)
            for found, mask in zip(predicted, masks, strict=True):
                squares += ((found - loss_RC[:, mask]) ** 2).mean(axis=1)
        errors.append(squares)
    return theta, np.argmin(errors, axis=0)
