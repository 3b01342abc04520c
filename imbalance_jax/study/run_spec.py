"""A run of a study: its config, and what it is there for."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, costs

KINDS = {
    "mixture": "what is studied",
    "monolingual": "the language alone, on a part of the steps, with a schedule of its own",
    "matched": "the language alone, with the mixture's updates and its part of the batch",
    "wide": "the language alone, with the mixture's output vocabulary",
    "epochs": "the language alone, matched in updates, unique tokens and epochs",
    "placebo": "the mixture, its partner's tokens shuffled",
    "anchored": "the mixture, its partner the same language under the same ids",
    "copied": "the mixture, the clone's rows starting as copies of its parent's",
    "sweep": "a learning-rate sweep around another cell",
}
# The kinds that a law is fitted to.
BASELINES = ("monolingual", "matched", "wide", "epochs")
NEAR = 0.1  # how far the tokens of a baseline may be from those it stands for


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One run of a study."""

    config: Config
    cell: str = ""  # the condition; runs of one cell differ in their seed alone
    kind: str = "mixture"  # one of KINDS
    figures: tuple[str, ...] = ()  # of the reference study, that it belongs to
    reference: Mapping[str, str] = dataclasses.field(default_factory=dict)  # its setting there
    # Source -> the fingerprint of its prepared text, once that is known: whatever machine trains
    # the run opens that text.
    text: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """The tokens that it is trained on, of all languages together."""
        return costs.count_training_tokens(self.config)

    @functools.cached_property
    def hash(self) -> str:
        """Stands for what is trained on what: equal for runs that would repeat each other."""
        return self._digest(config_lib.build_run_identity(self.config))

    @property
    def earlier_hash(self) -> str:
        """The hash of versions that took config.optimizer.accumulate for a part of a run."""
        plain = config_lib.build_run_identity(self.config)
        plain["optimizer"]["accumulate"] = self.config.optimizer.accumulate
        return self._digest(plain)

    def _digest(self, plain: dict[str, Any]) -> str:
        if not self.config.mixture.follows_text:
            # 90 to 10 is 9 to 1.
            plain["mixture"]["ratio"] = config_lib.reduce_ratio(self.config.mixture.ratio)
        return config_lib.hash_plain_values(plain)
