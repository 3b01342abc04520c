"""How often a measurement is made, so that it keeps within a share of the run's time."""

import numpy as np

from imbalance_jax.compute import hosts as distributed


class Cadence:
    """The steps after which a measurement is made: every multiple of a number, and the last.

    The number is `every`, or the least multiple of it that a budget allows.

    Once the first measurement is timed, the least multiple is chosen whose measurements will
    keep within the budget. If they turn out dearer, it is stretched, and never goes back. A
    run that is resumed is given what it had chosen.

    Args:
      every: the least number of steps between measurements; 0 is never.
      budget: the share of the run's time that they may take; 1 is no limit.
      steps: of the run.
      chosen: the number of steps that was chosen before, if one was.
    """

    def __init__(self, every: int, budget: float, steps: int, chosen: int | None = None) -> None:
        self._least, self._budget, self._steps = every, budget, steps
        self._chosen = chosen

    @property
    def every(self) -> int:
        """Steps between measurements, as chosen so far; 0 is no more of them."""
        # Whatever a resumed run had chosen, its config may have turned measuring off.
        return self._least if self._chosen is None or not self._least else self._chosen

    def due(self, done: int) -> bool:
        """Whether to measure after `done` steps."""
        return bool(self.every) and done > 0 and (done == self._steps or done % self.every == 0)

    def settle(
        self, done: int, *, cost: float, spent: float, elapsed: float, seconds_per_step: float
    ) -> bool:
        """Chooses the cadence after a measurement; returns whether it is news.

        Every process chooses what process 0 does.

        Args:
          done: steps.
          cost: seconds that the measurement took, compilation apart.
          spent: seconds of all measurements so far.
          elapsed: seconds of the run so far, measurements included, compilation apart.
          seconds_per_step: of training, without measurements.
        """
        if done == self._steps or not self.every:
            return False
        first, before = self._chosen is None, self.every
        chosen = choose_interval(
            before,
            self._least,
            self._budget,
            self._steps - done,
            done,
            cost=cost,
            spent=spent,
            ahead=elapsed + (self._steps - done) * seconds_per_step,
        )
        self._chosen = int(distributed.broadcast_from_process_0(np.int32(chosen)))
        return first or self._chosen != before

    def describe(self, cost: float) -> str:
        """Returns the choice in words.

        Args:
          cost: seconds of a measurement.
        """
        line = f"Alignment takes {cost:.2g} s: "
        if not self.every:
            return line + (
                f"more than config.evaluation.alignment.budget={self._budget:g} of this run, so "
                "this was the last time. Lower config.evaluation.alignment.pairs, or run "
                "python -m imbalance_jax.evaluate when it is done."
            )
        line += f"measured every {self.every:,} steps"
        if self.every > self._least:
            line += (
                f" rather than {self._least:,}, to keep within "
                f"config.evaluation.alignment.budget={self._budget:g} of the run's time"
            )
        return line + "."


def choose_interval(
    every: int,
    least: int,
    budget: float,
    left: int,
    done: int,
    *,
    cost: float,
    spent: float,
    ahead: float,
) -> int:
    """Returns the least number of steps, `every` or more, that keeps within the budget.

    The measurements to come are those after each multiple of it and after the last step. 0
    says that not even the last is within the budget.

    Args:
      every: steps between measurements so far.
      least: what the result is a multiple of.
      budget: the share of the time of all; 1 is no limit.
      left: steps that the run still has.
      done: steps that it has made.
      cost: seconds of a measurement.
      spent: seconds of those made.
      ahead: seconds of the whole run, with those made and without those to come.
    """
    if budget >= 1:
        return every
    steps = done + left
    for chosen in range(every, steps + least, least):
        places = {steps, *range(done - done % chosen + chosen, steps + 1, chosen)}
        to_come = len(places) * cost
        if spent + to_come <= budget * (ahead + to_come):
            return chosen
    return 0
