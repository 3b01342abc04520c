"""Laws: what loss a monolingual model reaches on so many tokens, and back.

Losses are in nats per token. A law belongs to one source of text and, except `ChinchillaLaw`, to
one size of model. law_choice.py says which form fits best, and efficiency.py reads a law.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import interpolate, optimize

Floats = npt.NDArray[np.float64]

# Beyond an exponent of 2 a power law is a step at the first point; below 0.01 it cannot
# be told from a logarithm, and its floor means nothing.
_EXPONENTS = (0.01, 2.0)
_GRID = np.geomspace(*_EXPONENTS, 48)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law(abc.ABC):
    """Loss of a monolingual model, in nats per token, against the tokens it was trained on.

    A law whose parameters were written down and not fitted counts as known everywhere.
    """

    unit_tokens: float  # tokens at x = 1
    fitted: tuple[float, float] = (0.0, np.inf)  # fewest and most tokens among its points

    @abc.abstractmethod
    def _loss(self, x: Floats) -> Floats:
        """Returns the loss at x units of tokens."""

    @abc.abstractmethod
    def _invert(self, loss: Floats) -> Floats:
        """Returns the units of tokens for a loss within `reach`; anything outside of it."""

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

    def tokens(self, loss: npt.ArrayLike) -> Floats:
        """Returns the tokens for each loss, in its shape, without raising.

        A loss at or below what endless text reaches gives inf, one at or above what no
        text reaches gives 0, so that quantiles over many laws stay in order.
        """
        loss = np.asarray(loss, float)
        low, high = self.reach
        with np.errstate(all="ignore"):
            tokens = self._invert(loss) * self.unit_tokens
        return np.where(loss <= low, np.inf, np.where(loss >= high, 0.0, tokens))

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

    def _loss(self, x: Floats) -> Floats:
        inverse = self.c - self.a * x**-self.b
        return np.where(inverse > 0, -np.log(inverse), np.inf)

    def _invert(self, loss: Floats) -> Floats:
        return ((self.c - np.exp(-loss)) / self.a) ** (-1 / self.b)

    @classmethod
    def fit(cls, tokens: npt.ArrayLike, loss: npt.ArrayLike, unit_tokens: float) -> Self:
        """Returns the least squares on 1/ppl from the starting values 1, 1, 1.

        tokens and loss are arrays of one length, a run each. Raises ValueError where
        the fit does not converge or its loss rises with the tokens.
        """
        tokens, loss = validate_points(tokens, loss, 3)
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
        return cls(
            a=float(a), b=float(b), c=float(c), unit_tokens=unit_tokens, fitted=find_ends(tokens)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundedLaw(Law):
    """loss = E + A x^(-beta), with E >= 0, A > 0 and beta between 0.01 and 2."""

    E: float
    A: float
    beta: float

    def _loss(self, x: Floats) -> Floats:
        return self.E + self.A * x**-self.beta

    def _invert(self, loss: Floats) -> Floats:
        return ((loss - self.E) / self.A) ** (-1 / self.beta)

    @classmethod
    def fit(cls, tokens: npt.ArrayLike, loss: npt.ArrayLike, unit_tokens: float) -> Self:
        """Returns the least squares on the loss. Raises ValueError if it rises with tokens.

        For a given beta the best E and A are known in closed form, so that only beta is
        searched: over a grid of its whole range, then ever closer around the best one.
        """
        tokens, loss = validate_points(tokens, loss, 3)
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
        fitted = find_ends(tokens)
        return cls(E=float(E), A=float(A), beta=float(beta), unit_tokens=unit_tokens, fitted=fitted)


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
    def fit(cls, tokens: npt.ArrayLike, loss: npt.ArrayLike, unit_tokens: float) -> Self:
        """Returns the curve. Raises ValueError if no loss falls between two token counts."""
        tokens, loss = validate_points(tokens, loss, 2)
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
            fitted=find_ends(tokens),
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
    unit_tokens: float

    def at(self, parameters: float) -> BoundedLaw:
        """Returns the law of one size of model."""
        return BoundedLaw(
            E=self.E + self.A * parameters**-self.alpha,
            A=self.B,
            beta=self.beta,
            unit_tokens=self.unit_tokens,
        )

    @classmethod
    def fit(
        cls,
        parameters: npt.ArrayLike,
        tokens: npt.ArrayLike,
        loss: npt.ArrayLike,
        unit_tokens: float,
    ) -> Self:
        """Returns the least squares on the loss from several starts; a run per entry.

        Raises ValueError with fewer than two sizes, or if loss rises with tokens.
        """
        tokens, loss = validate_points(tokens, loss, 2)
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
        )


_RISES = (
    "The loss of the baselines does not fall as their tokens grow, so that no law can be read "
    "backwards. Look at the baselines' learning rates and steps, or add baselines with more tokens."
)


def find_ends(tokens: Floats) -> tuple[float, float]:
    """Returns the fewest and the most tokens of the runs that a law is fitted to."""
    return float(tokens.min()), float(tokens.max())


def validate_points(
    tokens: npt.ArrayLike, loss: npt.ArrayLike, distinct: int
) -> tuple[Floats, Floats]:
    """Returns both as arrays, an entry per run.

    Raises ValueError where a value is unusable, or where the runs have fewer different numbers of
    tokens than `distinct`.
    """
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
    counts = np.unique(tokens)
    if len(counts) < distinct:
        listed = ", ".join(f"{count:,.0f}" for count in counts) or "none"
        raise ValueError(
            f"This law needs monolingual baselines at {distinct} or more numbers of tokens, and "
            f"there are {len(counts)} ({listed}). Run {distinct - len(counts)} more, at other "
            "numbers of tokens around those that the mixtures give a language."
        )
    return tokens, loss
