"""Which form of law predicts baselines that it was not shown best."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from imbalance_jax.analysis.laws import (
    BoundedLaw,
    ChinchillaLaw,
    Floats,
    InterpolatedLaw,
    Law,
    ReferenceLaw,
    find_ends,
    validate_points,
)


@dataclasses.dataclass(frozen=True)
class LawFamily:
    """A form of law: how many parameters it has and what fits it to tokens and losses."""

    parameters: int
    fit: Callable[[Floats, Floats, float], Law]


FAMILIES: Mapping[str, LawFamily] = {
    "bounded": LawFamily(3, BoundedLaw.fit),
    "interpolated": LawFamily(2, InterpolatedLaw.fit),
    "reference": LawFamily(3, ReferenceLaw.fit),
}


def make_chinchilla_family(
    parameters: float,
    other_parameters: Sequence[float],
    other_tokens: Sequence[float],
    other_loss: Sequence[float],
) -> LawFamily:
    """Returns a family for `choose_law` that borrows the baselines of other sizes.

    parameters is the size that the law is wanted for; the other three have an entry per
    baseline run of another size.
    """

    def fit(tokens: Floats, loss: Floats, unit_tokens: float) -> Law:
        law = ChinchillaLaw.fit(
            [*np.full(len(tokens), parameters), *other_parameters],
            [*tokens, *other_tokens],
            [*loss, *other_loss],
            unit_tokens,
        )
        # What other sizes were trained on is no evidence at this one.
        return dataclasses.replace(law.at(parameters), fitted=find_ends(tokens))

    return LawFamily(1, fit)


@dataclasses.dataclass(frozen=True)
class LawChoice:
    """The law that predicted held-out baselines best, and how all families did.

    Errors are in nats, that is in log perplexity: 0.01 is 1 % of a perplexity.
    """

    law: Law
    family: str
    errors: Mapping[str, float]  # family -> root mean square at the inner token counts
    end_errors: Mapping[str, float]  # family -> largest when an end is predicted from the rest

    @property
    def error(self) -> float:
        """The chosen family's error; nan where there were too few baselines to measure it."""
        return self.errors.get(self.family, np.nan)


def choose_law(
    tokens: npt.ArrayLike,
    loss: npt.ArrayLike,
    unit_tokens: float,
    families: Mapping[str, LawFamily] = FAMILIES,
    *,
    measure: bool = True,
) -> LawChoice:
    """Fits each family and takes the one that predicts left-out baselines best.

    tokens and loss have an entry per monolingual run. Every distinct number of tokens
    is left out in turn, with all of its seeds, and its mean loss is predicted from the
    others. The inner ones decide: between its points is where a law is used, and
    beyond them every use is marked. A family is tried where there are more token
    counts than it has parameters. With two counts only the interpolated one is left,
    and its error is unknown. measure=False is for resampling: the same choice, without
    the errors that it does not need. Raises ValueError where there are fewer than two
    counts, or where no family fits.
    """
    tokens, loss = validate_points(tokens, loss, 2)
    counts = np.unique(tokens)
    errors: dict[str, float] = {}
    end_errors: dict[str, float] = {}
    unfit: dict[str, str] = {}  # family -> why it could not be tried
    laws: dict[str, Law] = {}
    for name, family in families.items():
        needed = max(family.parameters + 1, 3)
        few = len(counts) < needed
        if few and not (name == "interpolated" and len(counts) == 2):
            unfit[name] = (
                f"needs baselines at {needed} numbers of tokens, and there are {len(counts)}"
            )
            continue
        try:
            laws[name] = family.fit(tokens, loss, unit_tokens)
        except ValueError as error:
            unfit[name] = str(error)
            continue
        if not few and (measure or len(families) > 1):
            missed = _measure_left_out_errors(family, tokens, loss, unit_tokens, counts[1:-1])
            errors[name] = float(np.sqrt(np.mean(missed**2)))
        if not few and measure:
            missed = _measure_left_out_errors(family, tokens, loss, unit_tokens, counts[[0, -1]])
            end_errors[name] = float(np.abs(missed).max())
    if not laws:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unfit.items())
        raise ValueError(f"No law fits the baselines at {len(counts)} token counts. {reasons}")
    best = min(laws, key=lambda name: errors.get(name, np.inf))
    return LawChoice(laws[best], best, errors, end_errors)


def _measure_left_out_errors(
    family: LawFamily, tokens: Floats, loss: Floats, unit_tokens: float, counts: Floats
) -> Floats:
    """Returns predicted minus mean loss at each of counts; inf where the others fit no law."""
    missed = []
    for count in counts:
        out = tokens == count
        try:
            law = family.fit(tokens[~out], loss[~out], unit_tokens)
            missed.append(float(law.loss(count)) - loss[out].mean())
        except ValueError:
            missed.append(np.inf)
    return np.array(missed)
