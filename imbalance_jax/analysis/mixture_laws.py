"""Laws of mixtures: a form of mixture_forms.py with its parameters, and how they are fitted."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from imbalance_jax.analysis.laws import Floats
from imbalance_jax.analysis.mixture_forms import FORMS, Centre, MixtureForm, Mixtures

_STARTS = 3  # of a fit: those that miss least


@dataclasses.dataclass(frozen=True)
class MixtureLaw:
    """A form with its parameters."""

    form: MixtureForm
    theta_K: Floats

    @property
    def parameters(self) -> dict[str, float]:
        return dict(zip(self.form.names, self.theta_K.tolist(), strict=True))

    def loss(self, mixtures: Mixtures) -> Floats:
        """Returns the loss of the language in each mixture, as (C,)."""
        return self.form.predict(self.theta_K[None], mixtures)[0]


def list_forms(mixtures: Mixtures, target: int) -> list[MixtureForm]:
    """Returns the forms that runs in these mixtures can be fitted to.

    A form needs one condition more than it has parameters. The exponential is of one size and
    length.

    Raises:
      ValueError: there are too few ratios for any.
    """
    centre = Centre.of(mixtures)
    forms = [kind(mixtures, target, centre) for kind in FORMS]
    ratios, conditions = count_ratios(mixtures), len(mixtures.parameters_C)
    found = [
        form
        for form in forms
        if conditions > len(form.names)
        and ratios >= form.ratios
        and not (form.name == "ratio_exponential" and any(form.varies))
    ]
    if not found:
        ratio_power = next(form for form in forms if form.name == "ratio_power")
        lacking = (
            f"{ratios} ratio{'s are' if ratios != 1 else ' is'} done, and the simplest needs "
            f"{ratio_power.ratios}"
            if ratios < ratio_power.ratios
            else f"{conditions} conditions are done, and the simplest needs "
            f"{len(ratio_power.names) + 1}"
        )
        raise ValueError(
            f"There are too few ratios for a law over the ratio: {lacking}. Add ratios to the "
            "study, such as 75:25 or 95:5; a language without a part, as in 100:0, has no law."
        )
    return found


def count_ratios(mixtures: Mixtures) -> int:
    """Returns how many different ratios there are."""
    return len(np.unique(np.round(mixtures.share_CG, 6), axis=0))


def fit_mixture_law(
    form: MixtureForm, loss_C: Floats, weight_C: Floats, *, near: MixtureLaw | None = None
) -> MixtureLaw:
    """Returns the least squares on the loss from several starts, within the bounds.

    Args:
      form: with the mixtures that the losses are of.
      loss_C: nats per token.
      weight_C: of each, such as its number of runs; 0 leaves one out.
      near: a law that is near, which takes the place of most starts.
    """
    root, bounds = np.sqrt(weight_C), [*form.searched.values()]

    def find_coefficients(values: Sequence[float]) -> tuple[Floats, Floats]:
        """Returns the best coefficients for the other parameters, and what is missed by each."""
        named = {n: np.full((1, 1), v) for n, v in zip(form.searched, values, strict=True)}
        columns = form.list_columns(named, form.mixtures)
        design = np.stack([np.broadcast_to(c, (1, len(loss_C)))[0] for c in columns], axis=1)
        found, _ = optimize.nnls(design * root[:, None], loss_C * root)
        return found, (design @ found - loss_C) * root

    def miss(values: Sequence[float]) -> Floats:
        return find_coefficients(values)[1]

    starts = sorted(
        itertools.product(*(bounded.starts for bounded in bounds)),
        key=lambda values: float((miss(values) ** 2).sum()),
    )[:_STARTS]
    if near is not None:
        starts = [starts[0], tuple(near.theta_K[len(form.coefficients) :])]
    ends = [bounded.low for bounded in bounds], [bounded.high for bounded in bounds]
    fits = [
        optimize.least_squares(miss, start, bounds=ends, x_scale="jac", max_nfev=60)
        for start in starts
    ]
    best = min(fits, key=lambda fit: fit.cost).x
    return MixtureLaw(form, np.concatenate([find_coefficients(best)[0], best]))


def refit_mixture_laws(
    law: MixtureLaw, loss_BC: Floats, weight_BC: Floats, *, rounds: int = 30
) -> Floats:
    """Returns the parameters (B, K) of a law's form for each row of losses.

    Levenberg and Marquardt's method within the bounds, in all rows at once, from the law as it is:
    for losses that are near to those that the law was fitted to.
    """
    form, low, high = law.form, law.form.low, law.form.high
    theta = np.broadcast_to(law.theta_K, (len(loss_BC), len(law.theta_K))).copy()
    damping = np.full(len(theta), 1e-3)

    def measure(theta: Floats) -> tuple[Floats, Floats]:
        residual = (form.predict(theta, form.mixtures) - loss_BC) * np.sqrt(weight_BC)
        return residual, (residual**2).sum(axis=1)

    residual, cost = measure(theta)
    for _ in range(rounds):
        slopes = []
        for index in range(theta.shape[1]):
            step = 1e-6 * (1 + np.abs(theta[:, index]))
            step = np.where(theta[:, index] + step > high[index], -step, step)
            moved = theta.copy()
            moved[:, index] += step
            slopes.append((measure(moved)[0] - residual) / step[:, None])
        jacobian = np.stack(slopes, axis=2)
        gradient = np.einsum("bck,bc->bk", jacobian, residual)
        normal = np.einsum("bck,bcl->bkl", jacobian, jacobian)
        # What lies on a bound and would leave it stays there, and so does what moves no loss.
        held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
        held |= np.einsum("bkk->bk", normal) == 0
        normal = np.where(held[:, :, None] | held[:, None, :], 0.0, normal)
        diagonal = np.einsum("bkk->bk", normal)
        extra = damping[:, None] * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + held
        normal = normal + extra[:, :, None] * np.eye(theta.shape[1])
        step = np.linalg.solve(normal, np.where(held, 0.0, gradient)[..., None])[..., 0]
        tried = np.clip(theta - step, low, high)
        new_residual, new_cost = measure(tried)
        better = new_cost < cost
        gain = np.where(better, cost - new_cost, 0.0)
        theta = np.where(better[:, None], tried, theta)
        residual = np.where(better[:, None], new_residual, residual)
        damping = np.clip(np.where(better, damping * 0.2, damping * 5), 1e-9, 1e9)
        settled = gain <= 1e-9 * cost
        cost = np.where(better, new_cost, cost)
        if np.all((settled & better) | (damping > 1e6)):
            break
    return theta
