"""Searches the ratio that an objective asks for, among all in whole numbers."""

import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from imbalance_jax.analysis.laws import Floats
from imbalance_jax.analysis.mixture_cells import MixtureCells
from imbalance_jax.analysis.mixture_forms import count_apart
from imbalance_jax.study.objective import Objective

_MOST_RATIOS = 2000  # that are compared
_MOST_PARTS = 100


@dataclasses.dataclass(frozen=True)
class Target:
    """The size and length that a ratio is wanted for."""

    parameters: float
    tokens: float


def find_target(field: str, objective: Objective, cells: MixtureCells) -> Target:
    """Returns the size and length of an objective.

    Raises:
      ValueError: the study has one size or one length, and another one is asked for.
    """
    found = {}
    for name, has, word in (
        ("parameters", cells.mixtures.parameters_C, "size"),
        ("tokens", cells.mixtures.total_C, "length"),
    ):
        found[name] = float(getattr(objective, name) or has.max())
        asked = found[name]
        if count_apart(has) == 1 and abs(math.log(asked / has[0])) > 0.01:
            raise ValueError(
                f"{field}.{name}={asked:.0f}: all mixtures of the study are of one {word} "
                f"({has[0]:.0f} {name}), from which nothing follows for another. Add runs of "
                f"another {word}, or leave {name} out."
            )
    return Target(**found)


def list_ratios(languages: int, parts: int) -> npt.NDArray[np.int_]:
    """Returns all ratios of whole numbers above 0 that add up to parts, as (C, G).

    Args:
      languages: G.
      parts: 0 takes as many as leave no more than 2,000 ratios, and 100 at most.
    """
    if not parts:
        wide = range(_MOST_PARTS, languages, -1)
        fits = (n for n in wide if math.comb(n - 1, languages - 1) <= _MOST_RATIOS)
        parts = next(fits, languages + 1)
    cuts = itertools.combinations(range(1, parts), languages - 1)
    return np.array([np.diff([0, *cut, parts]) for cut in cuts])


def allow_ratios(
    field: str, objective: Objective, cells: MixtureCells, share_CG: Floats, target: Target
) -> npt.NDArray[np.bool_]:
    """Returns which shares use no text more often than allowed.

    Clones go through one text together, so that each counts for the limits of the others.

    Raises:
      ValueError: there are none, or a limit is on text of which nobody knows how much there is.
    """
    most_G = find_most_shares(field, objective, cells, target)
    pool_GG = np.array([[a == b for b in cells.sources] for a in cells.sources], float)
    allowed = np.all(share_CG @ pool_GG <= most_G * (1 + 1e-9), axis=1)
    if not allowed.any():
        limits = ", ".join(
            f"{tag} {100 * most:.3g} %"
            for tag, most in zip(cells.languages, most_G, strict=True)
            if most < 1
        )
        raise ValueError(
            f"{field}.most_epochs: the text is not enough for {target.tokens:.0f} tokens: at most "
            f"{limits} of them can be of each. "
            + "Languages of one text share its limit. " * (len(set(cells.sources)) < len(most_G))
            + "Allow more epochs, or set fewer tokens."
        )
    return allowed


def find_most_shares(
    field: str, objective: Objective, cells: MixtureCells, target: Target
) -> Floats:
    """Returns the largest share of each language, by its text; inf where there is no limit."""
    most_G = []
    for tag, text in zip(cells.languages, cells.text_G, strict=True):
        epochs = objective.most_epochs.get(tag)
        if epochs and not text > 0:
            raise ValueError(
                f"{field}.most_epochs.{tag}={epochs:g}: the study does not say how much text of "
                f"{tag} there is. Set {field}.text.{tag} to its tokens."
            )
        most_G.append(epochs * text / target.tokens if epochs else math.inf)
    return np.array(most_G)


def score_ratios(objective: Objective, cells: MixtureCells, loss_RCG: Floats) -> Floats:
    """Returns how bad each ratio is in each draw, as (R, C); less is better.

    Args:
      objective: other than of kind `least`, which `score_least` is for.
      cells: of the study.
      loss_RCG: predicted of each ratio.
    """
    loss_RCG = loss_RCG * find_factors(objective, cells)
    if objective.kind == "minimax":
        return loss_RCG.max(axis=2)
    return loss_RCG @ find_weights(objective, cells.languages)


def score_least(
    objective: Objective, cells: MixtureCells, loss_RCG: Floats, than_RG: Floats
) -> Floats:
    """Returns the loss of the objective's language in each draw; inf where another is too high.

    Args:
      than_RG: predicted of the ratio that the others are held to.
    """
    factors = find_factors(objective, cells)
    above_RCG = (loss_RCG - than_RG[:, None]) * factors
    wanted = cells.languages.index(objective.language)
    others = [g for g in range(len(cells.languages)) if g != wanted]
    within_RC = np.all(above_RCG[:, :, others] <= objective.worse + 1e-9, axis=2)
    return np.where(within_RC, loss_RCG[:, :, wanted] * factors[wanted], np.inf)


def find_factors(objective: Objective, cells: MixtureCells) -> Floats:
    """Returns what a loss in nats per token of each language is multiplied by.

    Raises:
      ValueError: bits per byte are asked for, and the runs do not say them.
    """
    if objective.unit == "nats":
        return np.ones(len(cells.languages))
    if not np.all(np.isfinite(cells.bits_G)):
        raise ValueError(
            "unit=bits_per_byte: the runs of the study have no bits per byte. Use unit=nats."
        )
    return cells.bits_G


def find_weights(objective: Objective, languages: tuple[str, ...]) -> Floats:
    """Returns weights that add up to 1."""
    given: Mapping[str, float] = objective.weights or dict.fromkeys(languages, 1.0)
    weights = np.array([float(given.get(tag, 0.0)) for tag in languages])
    return weights / weights.sum()
