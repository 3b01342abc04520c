"""Runs and test texts drawn anew: how much a TEff, or a loss, would vary."""

import collections
import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from imbalance_jax.analysis.efficiency import Efficiency, compute_efficiency
from imbalance_jax.analysis.law_choice import FAMILIES, LawChoice, LawFamily, choose_law
from imbalance_jax.analysis.laws import Floats
from imbalance_jax.analysis.statistics import (
    UNKNOWN_INTERVAL,
    Interval,
    compute_widened_interval,
)

Name = TypeVar("Name", bound=Hashable)  # of a cell


@dataclasses.dataclass(frozen=True)
class CellLosses:
    """The runs of one condition, as one language sees them: a loss per seed."""

    losses: Mapping[int, float]  # seed -> nats per token
    own_tokens: float
    other_tokens: float = 0.0


@dataclasses.dataclass(frozen=True)
class ResampledEfficiency(Generic[Name]):
    """Efficiency of several cells against one law, and how it varies over resamples.

    Draws have one entry per resample, the same resample in all cells, so that a
    difference between cells can be taken draw by draw.
    """

    choice: LawChoice  # of the runs as they are
    efficiency: Mapping[Name, Efficiency]
    mlte: Mapping[Name, Floats]  # cell -> draws
    df: int  # degrees of freedom of the scatter that was resampled
    families: Mapping[str, int]  # family -> resamples that chose it; the draws of others are nan

    def teff(self, cell: Name) -> Interval:
        low, high = self._mlte(cell)
        own = self.efficiency[cell].own_tokens
        return low / own, high / own

    def exchange(self, cell: Name) -> Interval:
        worth = self.efficiency[cell]
        if not worth.other_tokens:
            return UNKNOWN_INTERVAL
        low, high = self._mlte(cell)
        return (
            (low - worth.own_tokens) / worth.other_tokens,
            (high - worth.own_tokens) / worth.other_tokens,
        )

    def _mlte(self, cell: Name) -> Interval:
        with np.errstate(all="ignore"):
            value, draws = np.log(self.efficiency[cell].mlte), np.log(self.mlte[cell])
        low, high = np.exp(compute_widened_interval(float(value), draws, self.df))
        return float(low), float(high)


def resample_efficiency(
    baselines: Sequence[CellLosses],
    cells: Mapping[Name, CellLosses],
    unit_tokens: float,
    *,
    families: Mapping[str, LawFamily] = FAMILIES,
    resamples: int = 400,
    seed: int = 0,
) -> ResampledEfficiency[Name]:
    """Draws baseline and mixture runs anew, and chooses and fits the law for each resample.

    baselines are monolingual cells at several numbers of own tokens; cells are what is
    held against their law. A resample gives each cell as many runs as it has, scattered
    around its mean as follows.

    A new run's deviation is a sum of those of the cell's seeds, with random weights that
    are the same in all cells, so that what a seed does to all cells alike cancels, as it
    did in the runs. Weights are normal, since three seeds drawn with replacement have but
    ten distinct outcomes, and intervals made of them are too narrow. The degrees of freedom
    are the number of seeds - 1, whatever single runs add. A cell with one run takes its
    deviations from a pool of those of all other cells.

    Raises ValueError where the baselines as they are fit no law (see `choose_law`).
    """
    tokens = np.repeat([cell.own_tokens for cell in baselines], [len(c.losses) for c in baselines])
    loss = np.array([value for cell in baselines for value in cell.losses.values()])
    choice = choose_law(tokens, loss, unit_tokens, families)
    estimates = {
        name: compute_efficiency(
            choice.law,
            float(np.mean([*cell.losses.values()])),
            cell.own_tokens,
            cell.other_tokens,
        )
        for name, cell in cells.items()
    }
    every_cell = [*baselines, *cells.values()]
    seeds = sorted({seed for cell in every_cell if len(cell.losses) > 1 for seed in cell.losses})
    mlte = {name: np.full(resamples, np.nan) for name in cells}
    chosen: collections.Counter[str] = collections.Counter()
    if not seeds:
        return ResampledEfficiency(choice, estimates, mlte, 0, chosen)
    rng = np.random.Generator(np.random.Philox(key=seed))
    drawn = _draw_losses(every_cell, seeds, resamples, rng)
    baseline_loss = np.hstack(drawn[: len(baselines)])
    means = [values.mean(axis=1) for values in drawn[len(baselines) :]]
    mean_loss_RC = np.reshape(means, (len(cells), resamples)).T
    for index in range(resamples):
        try:
            redrawn = choose_law(tokens, baseline_loss[index], unit_tokens, families, measure=False)
        except ValueError:
            continue
        chosen[redrawn.family] += 1
        # All cells at once: a law that has no closed inverse is inverted by steps.
        worths = redrawn.law.tokens(mean_loss_RC[index])
        for draws, worth in zip(mlte.values(), worths, strict=True):
            draws[index] = worth
    return ResampledEfficiency(choice, estimates, mlte, len(seeds) - 1, dict(chosen))


def _draw_losses(
    cells: Sequence[CellLosses], seeds: Sequence[int], resamples: int, rng: np.random.Generator
) -> list[Floats]:
    """Returns losses for each cell, in the shape (resamples, its runs)."""
    losses_by_cell = [np.array([*cell.losses.values()]) for cell in cells]
    deviations = [losses - losses.mean() for losses in losses_by_cell]
    # Deviations from a mean of n runs are too small by sqrt(1 - 1 / n).
    pool = np.concatenate([d * np.sqrt(len(d) / (len(d) - 1)) for d in deviations if len(d) > 1])
    weights = rng.normal(size=(resamples, len(seeds), len(seeds)))
    drawn = []
    for cell, losses, own in zip(cells, losses_by_cell, deviations, strict=True):
        n = len(own)
        if n > 1:
            place = np.array([seeds.index(seed) for seed in cell.losses])
            moved = weights[:, place[:, None], place] @ own / np.sqrt(n - 1)
        else:
            moved = rng.choice(pool, (resamples, n))
        drawn.append(losses.mean() + moved)
    return drawn


@dataclasses.dataclass(frozen=True)
class Scatter:
    """How the runs of cells scatter around their means, in G languages at once.

    What a seed does to all cells alike is apart from the rest, as many cells say little of it:
    its degrees of freedom are those of the seeds.
    """

    own_MG: Floats  # deviations that no seed explains
    own_df: int
    common_SG: Floats  # what each seed does to all cells, less what the rest would do to a mean
    common_df: int

    @property
    def covariance_GG(self) -> Floats:
        """Of a run's losses, but for its seed's common part."""
        return self.own_MG.T @ self.own_MG / self.own_df

    def draw_own(self, runs_C: Floats, draws: int, rng: np.random.Generator) -> Floats:
        """Returns deviations (R, C, G) of means of so many runs, but for what seeds have in common.

        Each draw has a variance of its own, drawn as it is known: quantiles of draws are those of
        a t distribution.
        """
        weights = rng.normal(size=(draws, len(runs_C), len(self.own_MG)))
        spread_R = 1 / np.sqrt(rng.chisquare(self.own_df, draws))
        return weights @ self.own_MG * spread_R[:, None, None] / np.sqrt(runs_C)[None, :, None]

    def draw_common(self, draws: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Returns deviations (R, G): of the mean of the seeds that were run, and of a new seed."""
        seeds, languages = self.common_SG.shape
        if not self.common_df:
            return np.zeros((draws, languages)), np.zeros((draws, languages))
        spread_R = 1 / np.sqrt(rng.chisquare(self.common_df, draws))
        deviations = [
            rng.normal(size=(draws, seeds)) @ self.common_SG * spread_R[:, None] for _ in range(2)
        ]
        return deviations[0] / np.sqrt(seeds), deviations[1]


def average_runs(losses: Sequence[Mapping[int, Floats]]) -> Floats:
    """Returns the mean loss (C, G) of each cell over its seeds.

    A cell that lacks seeds, as of runs that failed, is moved to where it would be with all: by what
    each seed does to all cells alike, by least squares, as far as repeated cells tell that.
    """
    mean_CG = np.array([np.mean([*cell.values()], axis=0) for cell in losses])
    seeds = sorted({seed for cell in losses if len(cell) > 1 for seed in cell})
    runs = [(place, seed) for place, cell in enumerate(losses) for seed in cell if seed in seeds]
    cells = len({place for place, _ in runs})
    told = bool(seeds) and len(runs) >= cells + len(seeds)
    if not told or all(len(cell) == len(seeds) for cell in losses):
        return mean_CG
    design = np.zeros((len(runs), len(losses) + len(seeds)))
    for row, (place, seed) in enumerate(runs):
        design[row, [place, len(losses) + seeds.index(seed)]] = 1
    deviations = np.array([losses[place][seed] - mean_CG[place] for place, seed in runs])
    found = np.linalg.lstsq(design, deviations, rcond=None)[0]
    moved_CG = found[: len(losses)] + found[len(losses) :].mean(axis=0)
    known = np.isin(np.arange(len(losses)), [place for place, _ in runs])
    return np.where(known[:, None], mean_CG + moved_CG, mean_CG)


def measure_scatter(losses: Sequence[Mapping[int, Floats]]) -> Scatter | None:
    """Returns the scatter of cells, each with the losses (G,) of a seed; None without repeats."""
    repeated = [
        {seed: loss - mean_G for seed, loss in cell.items()}
        for cell, mean_G in zip(losses, average_runs(losses), strict=True)
        if len(cell) > 1
    ]
    if not repeated:
        return None
    seeds = sorted({seed for cell in repeated for seed in cell})
    common_SG = np.array(
        [np.mean([cell[seed] for cell in repeated if seed in cell], axis=0) for seed in seeds]
    )
    common_df, cells = len(seeds) - 1, len(repeated)
    own_df = sum(len(cell) - 1 for cell in repeated) - common_df
    if own_df < 1:  # nothing tells a seed from a run
        own_MG = np.array([deviation for cell in repeated for deviation in cell.values()])
        return Scatter(own_MG, sum(len(cell) - 1 for cell in repeated), common_SG, 0)
    own_MG = np.array(
        [cell[seed] - common_SG[seeds.index(seed)] for cell in repeated for seed in cell]
    )
    found = (common_SG**2).sum(axis=0) / common_df
    # The rest alone would move a mean over the cells too. Few seeds may hide that they differ, so
    # that half of what is found stays.
    beyond = np.maximum(found / 2, found - (own_MG**2).sum(axis=0) / own_df / cells)
    common_SG = common_SG * np.sqrt(beyond / np.where(found > 0, found, 1.0))
    return Scatter(own_MG, own_df, common_SG, common_df)


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
