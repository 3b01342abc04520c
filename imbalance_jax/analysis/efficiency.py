"""How much monolingual text a language's loss is worth, by a law.

Read backwards, a law turns the loss that a language reached in a mixture into tokens of
monolingual text (MLTE). Those over the tokens it was trained on are its efficiency (TEff).
"""

import dataclasses

import numpy as np

from imbalance_jax.analysis.laws import Law


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
    """Reads a law at a language's loss. MLTE is inf or 0 where the law never takes the loss.

    Any part of the loss can be given, with a law fitted to that part of the baselines.
    A monolingual model with a vocabulary of its own has language_nats = 0 and
    loss_own = loss, so there hold loss_own against the plain law; language_nats has a
    law only over baselines with the mixture's vocabulary (kind "wide").
    """
    mlte = float(law.tokens(loss))
    return Efficiency(
        loss=loss,
        own_tokens=own_tokens,
        other_tokens=other_tokens,
        mlpe=float(law.ppl(own_tokens)),
        mlte=mlte,
        extrapolated=bool(np.any(law.extrapolates([own_tokens, mlte]))),
    )
