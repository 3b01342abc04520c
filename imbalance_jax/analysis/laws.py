"""How much monolingual text a language's loss is worth.

A law says what loss a monolingual model reaches on so many tokens. Read backwards it
turns the loss that a language reached in a mixture into tokens of monolingual text
(MLTE), and those over the tokens it was trained on are its efficiency (TEff).
`choose_law` fits several families of laws and keeps the one that predicts held-out
baselines best; `compute_efficiency` reads a law. Everything here is a pure function of numbers:
losses are in nats per token, laws belong to one source of text and, except
`ChinchillaLaw`, to one size of model.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import interpolate, optimize, stats

# The reference's unit of text: 512 positions x 128 sequences x 18,265 steps.
T = 1_197_015_040

Floats = npt.NDArray[np.float64]

# Beyond an exponent of 2 a power law is a step at the first point; below 0.01 it cannot
# be told from a logarithm, and its floor means nothing.
_EXPONENTS = (0.01, 2.0)
_GRID = np.geomspace(*_EXPONENTS, 48)


class LawRangeError(ValueError):
    """A loss that a law never takes, whatever the number of tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law(abc.ABC):
    """Loss of a monolingual model, in nats per token, against the tokens it was trained on.

    A law whose parameters were written down and not fitted counts as known everywhere.
    """

    unit_tokens: float = T  # tokens at x = 1
    fitted: tuple[float, float] = (0.0, np.inf)  # fewest and most tokens among its points

    # Parameters that an interval can be stated for, and the scale that they were fitted on.
    names: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def _loss(self, x: Floats) -> Floats:
        """Returns the loss at x units of tokens."""

    @abc.abstractmethod
    def _invert(self, loss: Floats) -> Floats:
        """Returns the units of tokens for a loss within `reach`; anything outside of it."""

    @staticmethod
    def fitted_scale(loss: Floats) -> Floats:
        """Returns the quantity whose squared errors the fit adds up: here the loss itself."""
        return loss

    def loss(self, tokens: npt.ArrayLike) -> Floats:
        """Returns the loss in nats, in the shape of tokens; inf where the law has none."""
        with np.errstate(all="ignore"):
            return self._loss(np.asarray(tokens, float) / self.unit_tokens)

    def ppl(self, tokens: npt.ArrayLike) -> Floats:
        """Returns the monolingual perplexity equivalent (MLPE), in the shape of tokens."""
        return np.exp(self.loss(tokens))

    @functools.cached_property
    def reach(self) -> tuple[float, float]:
        """The losses that the law comes near with endless text, and with none."""
        return float(self.loss(np.inf)), float(self.loss(0.0))

    def tokens_or_limit(self, loss: npt.ArrayLike) -> Floats:
        """Returns the tokens for each loss, in its shape, without raising.

        A loss at or below what endless text reaches gives inf, one at or above what no
        text reaches gives 0, so that quantiles over many laws stay in order.
        """
        loss = np.asarray(loss, float)
        low, high = self.reach
        with np.errstate(all="ignore"):
            tokens = self._invert(loss) * self.unit_tokens
        return np.where(loss <= low, np.inf, np.where(loss >= high, 0.0, tokens))

    def tokens(self, loss: npt.ArrayLike) -> Floats:
        """Returns the monolingual token equivalent (MLTE), in the shape of loss.

        Raises LawRangeError where no number of tokens gives a loss.
        """
        found = self.tokens_or_limit(loss)
        outside = ~(np.isfinite(found) & (found > 0))
        if np.any(outside):
            value = float(np.asarray(loss, float)[outside].flat[0])
            low, high = np.exp(self.reach)
            if value <= self.reach[0]:
                fix = "Add longer monolingual baselines, or use the family 'interpolated'."
            else:
                fix = "Look at the run that this loss comes from: no text at all would do better."
            raise LawRangeError(
                f"A loss of {value:.6g} (perplexity {np.exp(value):.6g}) is outside of the range "
                f"of this {type(self).__name__}: with endless text it comes down to perplexity "
                f"{low:.6g}, with none it stays at {high:.6g}; its points are at "
                f"{self.fitted[0]:.4g} to {self.fitted[1]:.4g} tokens. {fix}"
            )
        return found

    def extrapolates(self, tokens: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Says for each number of tokens whether it is outside of the fitted points."""
        tokens = np.asarray(tokens, float)
        low, high = self.fitted
        # The ends themselves are inside, whatever rounding made of them.
        return ~((tokens >= low * (1 - 1e-9)) & (tokens <= high * (1 + 1e-9)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceLaw(Law):
    """1/ppl = c - a x^(-b), the law of arXiv 2404.07982, fitted exactly as there.

    It is biased at the ends: least squares on 1/ppl weigh a long run's loss much more
    than a short one's.
    """

    a: float
    b: float
    c: float

    names = ("a", "b", "c")

    def _loss(self, x: Floats) -> Floats:
        inverse = self.c - self.a * x**-self.b
        return np.where(inverse > 0, -np.log(inverse), np.inf)

    def _invert(self, loss: Floats) -> Floats:
        return ((self.c - np.exp(-loss)) / self.a) ** (-1 / self.b)

    @staticmethod
    def fitted_scale(loss: Floats) -> Floats:
        """Returns 1/ppl."""
        return np.exp(-loss)

    @classmethod
    def fit(cls, tokens: npt.ArrayLike, loss: npt.ArrayLike, unit_tokens: float = T) -> Self:
        """Returns the least squares on 1/ppl from the starting values 1, 1, 1.

        tokens and loss are arrays of one length, a run each. Raises ValueError where
        the fit does not converge or its loss rises with the tokens.
        """
        tokens, loss = _validate_points(tokens, loss, 3)
        law = lambda x, a, b, c: c - a * x**-b
        with np.errstate(all="ignore"):
            try:
                # full_output keeps quiet about a covariance that is not used here.
                (a, b, c), *_ = optimize.curve_fit(
                    law, tokens / unit_tokens, np.exp(-loss), p0=(1, 1, 1), full_output=True
                )
            except RuntimeError as error:
                raise ValueError(f"The reference's law does not converge: {error}") from error
        if not a * b > 0:
            raise ValueError(_RISES)
        ends = (float(tokens.min()), float(tokens.max()))
        return cls(a=float(a), b=float(b), c=float(c), unit_tokens=unit_tokens, fitted=ends)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundedLaw(Law):
    """loss = E + A x^(-beta), with E >= 0, A > 0 and beta between 0.01 and 2."""

    E: float
    A: float
    beta: float

    names = ("E", "A", "beta")

    def _loss(self, x: Floats) -> Floats:
        return self.E + self.A * x**-self.beta

    def _invert(self, loss: Floats) -> Floats:
        return ((loss - self.E) / self.A) ** (-1 / self.beta)

    @classmethod
    def fit(cls, tokens: npt.ArrayLike, loss: npt.ArrayLike, unit_tokens: float = T) -> Self:
        """Returns the least squares on the loss. Raises ValueError if it rises with tokens.

        For a given beta the best E and A are known in closed form, so that only beta is
        searched: over a grid of its whole range, then ever closer around the best one.
        """
        tokens, loss = _validate_points(tokens, loss, 3)
        log_x = np.log(tokens / unit_tokens)
        centre = log_x.mean()
        betas = _GRID
        for _ in range(7):  # each round narrows the bracket by 15; the last is a billionth
            best = int(np.argmin(_fit_best_line(betas, log_x - centre, loss)[0]))
            beta = betas[best]
            bracket = betas[max(best - 1, 0)], betas[min(best + 1, len(betas) - 1)]
            betas = np.linspace(*bracket, 32)
        _, [E], [A] = _fit_best_line(np.array([beta]), log_x - centre, loss)
        if not A > 0:
            raise ValueError(_RISES)
        A *= np.exp(beta * centre)
        ends = (float(tokens.min()), float(tokens.max()))
        return cls(E=float(E), A=float(A), beta=float(beta), unit_tokens=unit_tokens, fitted=ends)


def _fit_best_line(beta: Floats, log_x: Floats, loss: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns squared error, E >= 0 and A of the best loss = E + A x^-beta for each beta."""
    power = np.exp(-beta[:, None] * log_x)
    mean = power.mean(axis=1)
    spread = power - mean[:, None]
    A = spread @ loss / (spread**2).sum(axis=1)
    E = loss.mean() - A * mean
    A = np.where(E < 0, power @ loss / (power**2).sum(axis=1), A)
    E = np.maximum(E, 0.0)
    error = ((E[:, None] + A[:, None] * power - loss) ** 2).sum(axis=1)
    return error, E, A


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterpolatedLaw(Law):
    """Monotone curve through the mean log loss at each number of tokens, over log tokens.

    Where noise has put neighbours in the wrong order they are pooled into one knot.
    Outside of the knots the line through the last two goes on, which is extrapolation.
    """

    log_x: tuple[float, ...]  # knots, rising
    log_loss: tuple[float, ...]  # at the knots, falling

    def _loss(self, x: Floats) -> Floats:
        return np.exp(self._curve(np.log(x)))

    def _invert(self, loss: Floats) -> Floats:
        goal = np.log(loss)
        knots = self.log_x
        slope = self._slopes
        below = knots[0] + (goal - self.log_loss[0]) / slope[0]
        above = knots[-1] + (goal - self.log_loss[-1]) / slope[-1]
        low, high = np.full(goal.shape, knots[0]), np.full(goal.shape, knots[-1])
        for _ in range(60):  # halvings leave less than the rounding of a float
            middle = (low + high) / 2
            too_high = self._inside(middle) > goal
            low, high = np.where(too_high, middle, low), np.where(too_high, high, middle)
        log_x = np.where(
            goal > self.log_loss[0], below, np.where(goal < self.log_loss[-1], above, high)
        )
        return np.exp(np.where(np.isnan(goal), np.nan, log_x))

    def _curve(self, log_x: Floats) -> Floats:
        slope = self._slopes
        first, last = self.log_x[0], self.log_x[-1]
        inside = self._inside(np.clip(log_x, first, last))
        # Guarded, since 0 x inf would make nan of the losses inside.
        below = np.where(log_x < first, slope[0] * (log_x - first), 0.0)
        above = np.where(log_x > last, slope[-1] * (log_x - last), 0.0)
        return inside + below + above

    @functools.cached_property
    def _inside(self) -> Callable[[npt.ArrayLike], Floats]:
        return interpolate.PchipInterpolator(self.log_x, self.log_loss)

    @functools.cached_property
    def _slopes(self) -> Floats:
        return np.diff(self.log_loss) / np.diff(self.log_x)

    @classmethod
    def fit(cls, tokens: npt.ArrayLike, loss: npt.ArrayLike, unit_tokens: float = T) -> Self:
        """Returns the curve. Raises ValueError if no loss falls between two token counts."""
        tokens, loss = _validate_points(tokens, loss, 2)
        if np.any(loss <= 0):
            raise ValueError(
                f"An interpolated law needs losses above 0, but one is {loss.min():.4g}. "
                "language_nats of a monolingual baseline is 0 where its vocabulary is its own; "
                "take baselines with the mixture's vocabulary (wide), or loss_own."
            )
        counts, index = np.unique(tokens, return_inverse=True)
        runs = np.bincount(index)
        mean = np.bincount(index, np.log(loss)) / runs
        pooled = optimize.isotonic_regression(mean, weights=runs, increasing=False)
        starts = pooled.blocks[:-1]
        weight = np.add.reduceat(runs, starts)
        log_x = np.add.reduceat(runs * np.log(counts / unit_tokens), starts) / weight
        if len(log_x) < 2:
            raise ValueError(_RISES)
        return cls(
            log_x=tuple(log_x.tolist()),
            log_loss=tuple(pooled.x[starts].tolist()),
            unit_tokens=unit_tokens,
            fitted=(float(counts[0]), float(counts[-1])),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChinchillaLaw:
    """loss = E + A / P^alpha + B / x^beta over parameters P and x units of tokens.

    The form of arXiv 2203.15556. E, A and B are at least 0. E and alpha are told apart
    by three sizes or more only; what it predicts between two sizes holds with two.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    unit_tokens: float = T
    fitted: tuple[float, float] = (0.0, np.inf)  # tokens
    sizes: tuple[float, float] = (0.0, np.inf)  # parameters

    def at(self, parameters: float) -> BoundedLaw:
        """Returns the law of one size. Of a size outside of `sizes` nothing is fitted."""
        inside = self.sizes[0] <= parameters <= self.sizes[1]
        return BoundedLaw(
            E=self.E + self.A * parameters**-self.alpha,
            A=self.B,
            beta=self.beta,
            unit_tokens=self.unit_tokens,
            fitted=self.fitted if inside else (np.inf, -np.inf),
        )

    @classmethod
    def fit(
        cls,
        parameters: npt.ArrayLike,
        tokens: npt.ArrayLike,
        loss: npt.ArrayLike,
        unit_tokens: float = T,
    ) -> Self:
        """Returns the least squares on the loss from several starts; a run per entry.

        Raises ValueError with fewer than two sizes, or if loss rises with tokens.
        """
        tokens, loss = _validate_points(tokens, loss, 2)
        parameters = np.asarray(parameters, float)
        if parameters.shape != tokens.shape or len(np.unique(parameters)) < 2:
            raise ValueError(
                "A law over sizes needs the parameters of every run, and runs of two sizes or "
                "more. Add monolingual baselines of another size."
            )
        # Logs relative to their means keep the columns below near 1.
        logs = np.stack([np.log(parameters), np.log(tokens / unit_tokens)])
        centre = logs.mean(axis=1)

        def columns(exponents: Floats) -> Floats:
            powers = np.exp(-exponents[:, None] * (logs - centre[:, None]))
            return np.vstack([np.ones_like(loss), powers]).T

        def residuals(exponents: Floats) -> Floats:
            design = columns(exponents)
            return design @ optimize.nnls(design, loss)[0] - loss

        fits = [
            optimize.least_squares(residuals, start, bounds=_EXPONENTS, xtol=1e-12, ftol=1e-12)
            for start in itertools.product((0.1, 0.4, 1.0), repeat=2)
        ]
        exponents = min(fits, key=lambda fit: fit.cost).x
        (E, A, B), _ = optimize.nnls(columns(exponents), loss)
        if not B > 0:
            raise ValueError(_RISES)
        A, B = (A, B) * np.exp(exponents * centre)
        return cls(
            E=float(E),
            A=float(A),
            alpha=float(exponents[0]),
            B=float(B),
            beta=float(exponents[1]),
            unit_tokens=unit_tokens,
            fitted=(float(tokens.min()), float(tokens.max())),
            sizes=(float(parameters.min()), float(parameters.max())),
        )


_RISES = (
    "The loss of the baselines does not fall as their tokens grow, so that no law can be read "
    "backwards. Look at the baselines' learning rates and steps, or add baselines with more tokens."
)


def _validate_points(
    tokens: npt.ArrayLike, loss: npt.ArrayLike, distinct: int
) -> tuple[Floats, Floats]:
    """Returns both as arrays, with enough distinct token counts to fit to."""
    tokens, loss = np.asarray(tokens, float), np.asarray(loss, float)
    if tokens.ndim != 1 or tokens.shape != loss.shape:
        raise ValueError(
            f"tokens has shape {tokens.shape} and loss {loss.shape}; give one of each per run."
        )
    if not (np.all(np.isfinite(loss)) and np.all(np.isfinite(tokens)) and np.all(tokens > 0)):
        raise ValueError(
            "A baseline has a loss that is not finite or tokens that are not above 0. "
            "Leave out runs that diverged or failed."
        )
    found = np.unique(tokens)
    if len(found) < distinct:
        listed = ", ".join(f"{count:,.0f}" for count in found) or "none"
        raise ValueError(
            f"This law needs monolingual baselines at {distinct} or more numbers of tokens, and "
            f"there are {len(found)} ({listed}). Run {distinct - len(found)} more, at other "
            "numbers of tokens around those that the mixtures give a language."
        )
    return tokens, loss


def estimate_parameter_intervals(
    law: Law, tokens: npt.ArrayLike, loss: npt.ArrayLike, confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Returns an interval for each parameter of a reference or bounded law.

    tokens and loss are the runs it was fitted on. These are t intervals of linearised
    least squares, which take the runs' scatter around the law to be noise alone: they
    are too narrow where the law's form is wrong. nan without more runs than parameters.
    """
    tokens, loss = _validate_points(tokens, loss, len(law.names))
    residuals = law.fitted_scale(loss) - law.fitted_scale(law.loss(tokens))
    columns = []
    for name in law.names:
        value = getattr(law, name)
        step = 1e-6 * max(abs(value), 1e-3)
        ends = [
            law.fitted_scale(dataclasses.replace(law, **{name: value + sign * step}).loss(tokens))
            for sign in (1, -1)
        ]
        columns.append((ends[0] - ends[1]) / (2 * step))
    free = len(loss) - len(law.names)
    if not free > 0:
        return dict.fromkeys(law.names, (np.nan, np.nan))
    jacobian = np.stack(columns, axis=1)
    variance = np.diag(np.linalg.pinv(jacobian.T @ jacobian)) * (residuals @ residuals) / free
    half = stats.t.ppf((1 + confidence) / 2, free) * np.sqrt(variance)
    values = [getattr(law, name) for name in law.names]
    return {
        name: (float(value - h), float(value + h))
        for name, value, h in zip(law.names, values, half, strict=True)
    }


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
        ends = (float(tokens.min()), float(tokens.max()))
        return dataclasses.replace(law.at(parameters), fitted=ends)

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
    left_out: Mapping[str, str]  # family -> why it could not be tried

    @property
    def error(self) -> float:
        """The chosen family's error; nan where there were too few baselines to measure it."""
        return self.errors.get(self.family, np.nan)


def choose_law(
    tokens: npt.ArrayLike,
    loss: npt.ArrayLike,
    unit_tokens: float = T,
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
    tokens, loss = _validate_points(tokens, loss, 2)
    counts = np.unique(tokens)
    errors: dict[str, float] = {}
    end_errors: dict[str, float] = {}
    left_out: dict[str, str] = {}
    laws: dict[str, Law] = {}
    for name, family in families.items():
        few = len(counts) < max(family.parameters + 1, 3)
        if few and not (name == "interpolated" and len(counts) == 2):
            left_out[name] = (
                f"needs baselines at {max(family.parameters + 1, 3)} numbers of tokens, "
                f"and there are {len(counts)}"
            )
            continue
        try:
            laws[name] = family.fit(tokens, loss, unit_tokens)
        except ValueError as error:
            left_out[name] = str(error)
            continue
        if not few and (measure or len(families) > 1):
            missed = _measure_left_out_errors(family, tokens, loss, unit_tokens, counts[1:-1])
            errors[name] = float(np.sqrt(np.mean(missed**2)))
        if not few and measure:
            missed = _measure_left_out_errors(family, tokens, loss, unit_tokens, counts[[0, -1]])
            end_errors[name] = float(np.abs(missed).max())
    if not laws:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"No law fits the baselines at {len(counts)} token counts. {reasons}")
    best = min(laws, key=lambda name: errors.get(name, np.inf))
    return LawChoice(laws[best], best, errors, end_errors, left_out)


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


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """What a language's loss in a mixture is worth, held against a law."""

    loss: float  # nats per token
    own_tokens: float  # trained on in this language
    other_tokens: float  # trained on in all others
    mlpe: float  # perplexity of a monolingual model on own_tokens
    mlte: float  # tokens of monolingual text that give the loss
    extrapolated: bool  # own_tokens or mlte is outside of the law's points

    @property
    def teff(self) -> float:
        """MLTE over the tokens trained on; above 1 the other languages helped."""
        return self.mlte / self.own_tokens

    @property
    def exchange(self) -> float:
        """Tokens of this language that one token of the others was worth; nan without others.

        TEff = 1 + exchange x other / own, so at a share of 5 % an exchange of 0.12 is a
        TEff of 3.3 and at 10 % one of 2.1: only the exchange compares across shares.
        """
        return (self.mlte - self.own_tokens) / self.other_tokens if self.other_tokens else np.nan


def compute_efficiency(law: Law, loss: float, own_tokens: float, other_tokens: float) -> Efficiency:
    """Reads a law at a language's loss. Raises LawRangeError where the law never takes it.

    Any part of the loss can be given, with a law fitted to that part of the baselines.
    A monolingual model with a vocabulary of its own has language_nats = 0 and
    loss_own = loss, so there hold loss_own against the plain law; language_nats has a
    law only over baselines with the mixture's vocabulary (kind "wide").
    """
    return _build_efficiency(law, loss, float(law.tokens(loss)), own_tokens, other_tokens)


def compute_efficiency_or_limit(
    law: Law, loss: float, own_tokens: float, other_tokens: float
) -> Efficiency:
    """As `compute_efficiency`, with an MLTE of inf or 0 where the law never takes the loss."""
    return _build_efficiency(law, loss, float(law.tokens_or_limit(loss)), own_tokens, other_tokens)


def _build_efficiency(
    law: Law, loss: float, mlte: float, own_tokens: float, other_tokens: float
) -> Efficiency:
    return Efficiency(
        loss=loss,
        own_tokens=own_tokens,
        other_tokens=other_tokens,
        mlpe=float(law.ppl(own_tokens)),
        mlte=mlte,
        extrapolated=bool(np.any(law.extrapolates([own_tokens, mlte]))),
    )


@dataclasses.dataclass(frozen=True)
class MissingBaseline:
    """A monolingual run that a law needs and a study does not have."""

    tokens: float  # of one run
    seeds: int
    flops: float  # of all seeds; nan where flops_per_token is not given
    reason: str


def list_missing_baselines(
    wanted: Sequence[float],
    have: Sequence[float],
    flops_per_token: float = np.nan,
    seeds: int = 1,
) -> list[MissingBaseline]:
    """Returns the runs that bring every wanted number of tokens between the baselines'.

    wanted are tokens at which a law is read, both own tokens and MLTE; have are the
    baselines' tokens. One run at each end that lacks one, or, without two baselines to
    start from, at both ends and halfway (in the log). An infinite MLTE says only that
    the baselines are too short, and asks for twice the longest. Nothing is missing where
    nothing is wanted.
    """
    finite = [tokens for tokens in wanted if np.isfinite(tokens) and tokens > 0]
    endless = any(np.isposinf(tokens) for tokens in wanted)
    known = [*finite, *have]
    if not known:
        return []
    low, high = min(finite, default=min(known)), max(finite, default=max(known))
    if endless:
        high = max(high, 2 * max(known))
    points: dict[float, str] = {}
    if len(set(have)) < 2:
        points = {
            tokens: "a law needs baselines at three numbers of tokens"
            for tokens in (low, float(np.sqrt(low * high)), high)
            if tokens not in set(have)
        }
    else:
        if low < min(have) * (1 - 1e-9):
            points[low] = f"the shortest baseline has {min(have):,.0f} tokens"
        if high > max(have) * (1 + 1e-9):
            points[high] = f"the longest baseline has {max(have):,.0f} tokens"
            if endless:
                points[high] += ", and a loss is below all that their law reaches"
    return [
        MissingBaseline(tokens, seeds, seeds * tokens * flops_per_token, reason)
        for tokens, reason in sorted(points.items())
    ]
