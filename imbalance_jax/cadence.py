"""How often a measurement is made, so that it keeps within a share of the run's time."""

import jax
import numpy as np


class Cadence:
    """Every so many steps, or a multiple of them that a budget allows, and after the last.

    The first measurement is timed, and the multiple then chosen once for the whole run. A run
    that is resumed is given what it chose before.
    """

    def __init__(self, every: int, budget: float, steps: int, chosen: int | None = None) -> None:
        """Args:
        every: the least number of steps between measurements; 0 is never.
        budget: the share of the run's time that they may take.
        steps: of the run.
        chosen: the number of steps that was chosen before, if one was.
        """
        self._least, self._budget, self._steps = every, budget, steps
        self._chosen = chosen

    @property
    def every(self) -> int:
        """Steps between measurements, as far as that is chosen; 0 is no more of them."""
        # Nothing that was chosen before counts once a config turns measuring off.
        return self._least if self._chosen is None or not self._least else self._chosen

    def due(self, done: int) -> bool:
        """Whether to measure after so many steps."""
        return bool(self.every) and done > 0 and (done == self._steps or done % self.every == 0)

    def settle(self, cost: float, rest: float, done: int) -> bool:
        """Chooses the cadence, after the first measurement; returns whether it did.

        Every process chooses what process 0 does.

        Args:
          cost: seconds that the measurement took, compilation apart.
          rest: seconds of the run so far without it and without compilation.
          done: the steps that they were for.
        """
        if self._chosen is not None:
            return False
        per_step = rest / max(1, done)
        chosen = choose(self._least, self._budget, self._steps, cost, per_step)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            chosen = int(multihost_utils.broadcast_one_to_all(np.int64(chosen)))
        self._chosen = chosen
        return True

    def describe(self, cost: float) -> str:
        """Returns what was chosen, in words.

        Args:
          cost: seconds of a measurement.
        """
        said = f"Alignment takes {cost:.2g} s: "
        if not self.every:
            return said + (
                f"more than config.evaluation.alignment.budget={self._budget:g} of this run, so "
                "this was the only time. Lower config.evaluation.alignment.pairs, or run "
                "python -m imbalance_jax.evaluate when it is done."
            )
        said += f"measured every {self.every:,} steps"
        if self.every > self._least:
            said += (
                f" rather than {self._least:,}, to keep within "
                f"config.evaluation.alignment.budget={self._budget:g} of the run's time"
            )
        return said + "."


def choose(every: int, budget: float, steps: int, cost: float, seconds_per_step: float) -> int:
    """Returns the least multiple of `every` whose measurements keep within the budget.

    One is made after `every` steps, when the cost becomes known, and one after the last. 0
    says that not even the last is within the budget.

    Args:
      every: steps.
      budget: the share of the time of all, measurements included; 1 is no limit.
      steps: of the run.
      cost: seconds of a measurement.
      seconds_per_step: of the run without them.
    """
    multiples = range(every, steps + every, every)
    if budget >= 1 or steps <= every:
        return every
    allowed = budget / (1 - budget) * steps * seconds_per_step / max(cost, 1e-9)
    for chosen in multiples:
        if len({every, steps, *range(chosen, steps + 1, chosen)}) <= allowed:
            return chosen
    return 0
