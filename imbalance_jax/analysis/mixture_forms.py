"""Forms of law for mixtures: the loss of one language against size, length and the ratio.

Losses are in nats per token. A form is a sum of columns with coefficients that are 0 or more; its
other parameters have bounds. A column whose quantity does not vary among the runs is left out, so
that the same form serves runs of one size and length, and runs of several. A law counts parameters
and tokens in units of `Centre`, so that A and B are nats where the runs lie.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from imbalance_jax.analysis.laws import Floats


@dataclasses.dataclass(frozen=True)
class Mixtures:
    """Conditions C of G languages, that a loss is measured or asked for in."""

    parameters_C: Floats  # of the model
    tokens_CG: Floats  # trained on in each language
    epochs_CG: Floats  # times that the text of each was gone through; 1 or less is no repetition

    @property
    def total_C(self) -> Floats:
        """Tokens of all languages."""
        return self.tokens_CG.sum(axis=1)

    @property
    def share_CG(self) -> Floats:
        return self.tokens_CG / self.total_C[:, None]

    def select(self, chosen: npt.ArrayLike) -> "Mixtures":
        """Returns the conditions that a mask, or places, choose."""
        chosen = np.asarray(chosen)
        return Mixtures(self.parameters_C[chosen], self.tokens_CG[chosen], self.epochs_CG[chosen])


@dataclasses.dataclass(frozen=True)
class Centre:
    """What parameters and tokens are counted in: the geometric means of the runs."""

    parameters: float
    tokens: float

    @classmethod
    def of(cls, mixtures: Mixtures) -> "Centre":
        means = [np.log(values).mean() for values in (mixtures.parameters_C, mixtures.total_C)]
        return cls(*np.exp(means).tolist())


def count_apart(values: Floats) -> int:
    """Returns how many values there are, of which those within 1 % are one."""
    return 1 + int(np.sum(np.diff(np.sort(np.log(values))) > 0.01))


@dataclasses.dataclass(frozen=True)
class Bounded:
    """A parameter that is searched: its bounds, and where the search begins."""

    low: float
    high: float
    starts: tuple[float, ...]


# As of the token laws: beyond 2 a power is a step, below 0.01 it is a logarithm.
_EXPONENT = Bounded(0.01, 2.0, (0.15, 0.6))
# Two sizes, or two lengths, do not tell an exponent from a floor: it is about that of arXiv
# 2203.15556 then.
_ASSUMED = 0.3
_SHARE_EXPONENT = Bounded(0.0, 2.0, (0.03, 0.2, 0.6))
_RATE = Bounded(0.05, 200.0, (1.0, 5.0, 20.0))
# A token of another language is worth at least none, and at most two of the own.
_TRANSFER = Bounded(0.0, 2.0, (0.05, 0.5))
# Text that is read again is worth as much as new text (0), or at most half an epoch in all (2).
_FORGETTING = Bounded(0.0, 2.0, (0.1,))


@dataclasses.dataclass(frozen=True)
class MixtureForm(abc.ABC):
    """A form of law for the loss of language `target` in some mixtures."""

    mixtures: Mixtures
    target: int
    centre: Centre

    name = ""
    formula = ""
    source = ""

    @functools.cached_property
    def counts(self) -> tuple[int, int]:
        """How many sizes and how many lengths the runs have."""
        mixtures = self.mixtures
        return count_apart(mixtures.parameters_C), count_apart(mixtures.total_C)

    @property
    def varies(self) -> tuple[bool, bool]:
        """Whether the runs have several sizes, and several lengths."""
        sizes, lengths = self.counts
        return sizes > 1, lengths > 1

    @property
    @abc.abstractmethod
    def coefficients(self) -> tuple[str, ...]:
        """The names of the columns' coefficients."""

    @property
    @abc.abstractmethod
    def searched(self) -> Mapping[str, Bounded]:
        """All other parameters."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.coefficients, *self.searched)

    @property
    def ratios(self) -> int:
        """Different ratios that the form needs, so that one is left to say how well it fits."""
        return 3 if self.varies[1] else len(set(self.names) - {"A", "a"}) + 1

    @property
    def low(self) -> Floats:
        return np.array([0.0] * len(self.coefficients) + [b.low for b in self.searched.values()])

    @property
    def high(self) -> Floats:
        ends = [bounded.high for bounded in self.searched.values()]
        return np.array([np.inf] * len(self.coefficients) + ends)

    @abc.abstractmethod
    def list_columns(self, values: Mapping[str, Floats], mixtures: Mixtures) -> list[Floats]:
        """Returns a column, as (B, C) or what becomes it, for each coefficient.

        Args:
          values: of the searched parameters, each as (B, 1).
          mixtures: C of them.
        """

    def predict(self, theta_BK: Floats, mixtures: Mixtures) -> Floats:
        """Returns the loss of each mixture by each set of parameters, as (B, C)."""
        count = len(self.coefficients)
        values = {n: theta_BK[:, count + i, None] for i, n in enumerate(self.searched)}
        loss_BC = np.zeros((len(theta_BK), len(mixtures.parameters_C)))
        for index, column in enumerate(self.list_columns(values, mixtures)):
            loss_BC += theta_BK[:, index, None] * column
        return loss_BC

    def _make_size_columns(self, values: Mapping[str, Floats], mixtures: Mixtures) -> list[Floats]:
        sizes = np.log(mixtures.parameters_C / self.centre.parameters)[None]
        power = np.exp(-values.get("a", _ASSUMED) * sizes)
        return [power] if self.varies[0] else []

    def _get_size_parameters(self) -> dict[str, Bounded]:
        return {"a": _EXPONENT} if self.counts[0] > 2 else {}


class OwnTokens(MixtureForm):
    """A token law read at the language's own tokens: others neither help nor harm."""

    name = "own_tokens"
    formula = "E + A/N^a + B/D_own^b"
    source = "arXiv 2203.15556, of the language's own tokens"

    @functools.cached_property
    def coefficients(self) -> tuple[str, ...]:
        return ("E", *["A"] * self.varies[0], "B")

    @functools.cached_property
    def searched(self) -> Mapping[str, Bounded]:
        return {"b": _EXPONENT} | self._get_size_parameters()

    def list_columns(self, values: Mapping[str, Floats], mixtures: Mixtures) -> list[Floats]:
        own = np.log(self._count_own_tokens(values, mixtures) / self.centre.tokens)
        power = np.exp(-values["b"] * own)
        return [np.ones((1, 1)), *self._make_size_columns(values, mixtures), power]

    def _count_own_tokens(self, values: Mapping[str, Floats], mixtures: Mixtures) -> Floats:
        return mixtures.tokens_CG[None, :, self.target]


class RatioPower(MixtureForm):
    """A power of the language's share, the same at every size and length."""

    name = "ratio_power"
    formula = "(E + A/N^a + B/D^b) p^-g"
    source = "arXiv 2410.12883"

    @functools.cached_property
    def coefficients(self) -> tuple[str, ...]:
        sizes, lengths = self.varies
        return ("E", *["A"] * sizes, *["B"] * lengths)

    @functools.cached_property
    def searched(self) -> Mapping[str, Bounded]:
        lengths = {"b": _EXPONENT} if self.counts[1] > 2 else {}
        return {"g": _SHARE_EXPONENT} | self._get_size_parameters() | lengths

    def list_columns(self, values: Mapping[str, Floats], mixtures: Mixtures) -> list[Floats]:
        power = np.exp(-values["g"] * np.log(mixtures.share_CG[None, :, self.target]))
        columns = [np.ones((1, 1)), *self._make_size_columns(values, mixtures)]
        if self.varies[1]:
            exponent = values.get("b", _ASSUMED)
            columns.append(np.exp(-exponent * np.log(mixtures.total_C / self.centre.tokens)))
        return [power * column for column in columns]


class RatioExponential(MixtureForm):
    """An exponential of the share, of runs of one size and length."""

    name = "ratio_exponential"
    formula = "E + B exp(-t p)"
    source = "arXiv 2403.16952"
    coefficients = ("E", "B")
    searched = {"t": _RATE}

    def list_columns(self, values: Mapping[str, Floats], mixtures: Mixtures) -> list[Floats]:
        share = mixtures.share_CG[None, :, self.target]
        return [np.ones((1, 1)), np.exp(-values["t"] * share)]


class EffectiveTokens(OwnTokens):
    """Tokens of other languages count a part, and text that repeats counts ever less.

    A transfer coefficient belongs to an ordered pair: what a token of another language is worth to
    this one. Where the runs cannot tell the other languages apart they have one in common.
    Repetition is that of arXiv 2305.16264: U tokens of text, read e times, are worth
    U (1 + (1 - exp(-r (e - 1))) / r) tokens of new text, for all languages alike.
    """

    name = "effective_tokens"
    formula = "E + A/N^a + B/(S(D_own) + sum t_i S(D_i))^b"
    source = "arXiv 2510.22037 and 2305.16264"

    @property
    def others(self) -> list[int]:
        return [g for g in range(self.mixtures.tokens_CG.shape[1]) if g != self.target]

    @functools.cached_property
    def searched(self) -> Mapping[str, Bounded]:
        repeats = {"r": _FORGETTING} if np.max(self.mixtures.epochs_CG) > 1.05 else {}
        transfer = dict.fromkeys(self._name_transfer(), _TRANSFER)
        return {"b": _EXPONENT} | transfer | repeats | self._get_size_parameters()

    def _name_transfer(self) -> list[str]:
        others = self.mixtures.share_CG[:, self.others]
        parts = others / others.sum(axis=1, keepdims=True)
        each = np.linalg.matrix_rank(parts, tol=1e-3) == len(self.others)
        # E, B, b and another for the length: as many runs again are left to say how well it fits.
        enough = len(parts) >= len(self.others) + 5
        return [f"t{g}" for g in self.others] if each and enough else ["t"]

    def _count_own_tokens(self, values: Mapping[str, Floats], mixtures: Mixtures) -> Floats:
        worth_BCG = mixtures.tokens_CG[None]
        if "r" in values:
            rate = np.maximum(values["r"], 1e-9)[..., None]
            again = np.maximum(mixtures.epochs_CG - 1, 0.0)[None]
            epochs = 1 - np.expm1(-rate * again) / rate
            worth_BCG = worth_BCG * epochs / (1 + again)
        own = worth_BCG[..., self.target]
        names = [n if n in values else "t" for n in (f"t{g}" for g in self.others)]
        for other, name in zip(self.others, names, strict=True):
            own = own + values[name] * worth_BCG[..., other]
        return own


FORMS: tuple[type[MixtureForm], ...] = (OwnTokens, RatioPower, RatioExponential, EffectiveTokens)
