"""Laws over mixtures fitted anew to drawn runs: how sure a prediction and a parameter are."""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from imbalance_jax.analysis.laws import Floats
from imbalance_jax.analysis.mixture_cells import MixtureCells
from imbalance_jax.analysis.mixture_choice import (
    MixtureLawChoice,
    choose_in_draws,
    choose_mixture_law,
)
from imbalance_jax.analysis.mixture_forms import Mixtures
from imbalance_jax.analysis.resampling import Scatter, measure_scatter
from imbalance_jax.analysis.statistics import Interval

DRAWS = 199


@dataclasses.dataclass(frozen=True)
class ResampledMixtureLaws:
    """The laws of the languages of a study, and how they vary over R draws of its runs."""

    cells: MixtureCells
    choices: tuple[MixtureLawChoice, ...]  # of each language, of the runs as they are
    theta: tuple[Mapping[str, Floats], ...]  # of each language: form -> parameters (R, K)
    best_GR: npt.NDArray[np.int_]  # the form of each draw, by its place
    common_RG: Floats  # what the seeds that were run may have done to all cells alike
    missed_G: Floats  # what the forms miss beyond the runs' scatter: a standard deviation
    scatter: Scatter
    repeated: bool  # whether runs of a cell scatter; else the scatter is that around the laws

    @property
    def draws(self) -> int:
        return len(self.common_RG)

    def predict(self, mixtures: Mixtures) -> Floats:
        """Returns the loss of each language by its law, as (C, G)."""
        return np.stack([choice.law.loss(mixtures) for choice in self.choices], axis=1)

    def predict_draws(self, mixtures: Mixtures, *, same_seeds: bool = False) -> Floats:
        """Returns the loss of each language in each draw, as (R, C, G): the mean over all seeds.

        What the form misses is not in it: it is no better known in one place than in another.

        Args:
          same_seeds: the mean over the seeds that were run is wanted instead.
        """
        columns = []
        for choice, theta, best_R in zip(self.choices, self.theta, self.best_GR, strict=True):
            by_form = [law.form.predict(theta[name], mixtures) for name, law in choice.laws.items()]
            columns.append(np.choose(best_R[:, None], by_form))
        loss_RCG = np.stack(columns, axis=2)
        return loss_RCG if same_seeds else loss_RCG + self.common_RG[:, None]

    def parameter_intervals(self, language: int) -> dict[str, Interval]:
        """Returns the 95 % interval of each parameter of a language's law."""
        law = self.choices[language].law
        theta_RK = self.theta[language][law.form.name]
        return {
            name: take_interval(theta_RK[:, place]) for place, name in enumerate(law.form.names)
        }


def take_interval(draws_R: Floats) -> Interval:
    """Returns the ends that 95 % of draws lie within."""
    low = np.quantile(draws_R, 0.025, method="lower")
    return float(low), float(np.quantile(draws_R, 0.975, method="higher"))


def resample_mixture_laws(
    cells: MixtureCells,
    *,
    forms: Collection[str] = (),
    draws: int = DRAWS,
    seed: int = 0,
) -> ResampledMixtureLaws:
    """Chooses and fits the law of each language, of the runs as they are and of draws of them.

    A draw gives each cell as many runs as it has, scattered around its mean as the runs of all
    cells are (`resampling.Scatter`). Where no cell was repeated, the scatter is that around the
    laws, as far as there are more cells than parameters.

    Raises:
      ValueError: there are too few ratios for a law.
    """
    mean_CG, runs_C = cells.mean_CG, cells.runs_C
    choices = tuple(
        choose_mixture_law(cells.mixtures, g, mean_CG[:, g], runs_C, forms)
        for g in range(len(cells.languages))
    )
    scatter = measure_scatter(cells.losses)
    repeated = scatter is not None
    if scatter is None:
        missed_CG = np.stack([c.law.loss(cells.mixtures) for c in choices], axis=1) - mean_CG
        free = len(mean_CG) - max(len(choice.law.theta_K) for choice in choices)
        scatter = Scatter(missed_CG, free, np.zeros((0, len(choices))), 0)
    rng = np.random.Generator(np.random.Philox(key=seed))
    own_RCG = scatter.draw_own(runs_C, draws, rng)
    drawn = [
        choose_in_draws(choice, mean_CG[:, g] + own_RCG[:, :, g], runs_C)
        for g, choice in enumerate(choices)
    ]
    # An error on left-out ratios has the scatter of two means in it.
    noise_G = 2 * np.diag(scatter.covariance_GG) / runs_C.mean()
    error_G = np.array([choice.error.deciding for choice in choices])
    error_G = np.where(np.isfinite(error_G), error_G, 0.0)
    return ResampledMixtureLaws(
        cells=cells,
        choices=choices,
        theta=tuple(theta for theta, _ in drawn),
        best_GR=np.array([best for _, best in drawn]),
        common_RG=scatter.draw_common(draws, rng)[0],
        missed_G=np.sqrt(np.maximum(0.0, error_G**2 - noise_G)),
        scatter=scatter,
        repeated=repeated,
    )
