"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import dataclasses
import itertools
import math
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Self

import rich.console
import rich.progress


def format_duration(seconds: float) -> str:
    """Returns a duration as 2:03, 1:02:03 or 39 days."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours / 24:,.0f} days"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def is_stdout_terminal() -> bool:
    return sys.stdout.isatty()


@dataclasses.dataclass(frozen=True)
class RunWork:
    """The work of a training run and its evaluations, in training steps.

    Alignment is not counted, because its cost is known only when it is measured.
    """

    steps: int
    every: int  # steps between evaluations; 0 is the first and last only
    evaluation: float  # the work of one evaluation
    scoring: float  # the work of the test split, after the last step

    @property
    def total(self) -> float:
        return self.after(self.steps) + self.scoring

    def after(self, step: int) -> float:
        """Returns the work that is done after a step and the evaluation that may follow it."""
        evaluations = 1 + (step // self.every if self.every else 0)
        if step == self.steps and (not self.every or step % self.every):
            evaluations += 1
        return step + evaluations * self.evaluation

    def before_evaluation(self, step: int) -> float:
        """Returns the work that is done after a step, before the evaluation that may follow it."""
        return self.after(step - 1) + 1 if step else 0.0


def split_progress(
    show: Callable[[float], None], costs: Sequence[float]
) -> list[Callable[[float], None]]:
    """Returns a function for each part of some work, which shows how much of the part is done.

    Args:
      show: shows a share of all the work, 0 to 1.
      costs: of the parts in their order, in any unit.
    """
    total = sum(costs) or 1.0

    def part(begun: float, cost: float) -> Callable[[float], None]:
        return lambda share: show((begun + share * cost) / total)

    begins = itertools.accumulate(costs, initial=0.0)
    return [part(begun, cost) for begun, cost in zip(begins, costs, strict=False)]


class Progress:
    """Shows how far a piece of work is, and the time left.

        with Progress("Training", total=steps) as progress:
            progress.show(done, "loss 3.2")

    Args:
      every: the seconds between plain lines.
    """

    def __init__(self, title: str, total: float, *, start: float = 0, every: float = 10) -> None:
        self._title, self._total, self._start, self._every = title, total, start, every
        self._began = self._last_line = time.monotonic()
        self._finished = False
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Self:
        if is_stdout_terminal():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TaskProgressColumn(),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.fields[text]}"),
                console=rich.console.Console(),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=int(self._start), text=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: float, text: str = "", *, doing: str = "") -> None:
        """Shows how much of the total is done; plain lines come only once in a while.

        `doing` names what goes on in place of the time left, where that cannot be told.
        """
        if self._bar:
            self._bar.update(self._task, completed=done, text=f"{doing} {text}".strip())
            return
        now = time.monotonic()
        finished = done >= self._total and not self._finished
        if now - self._last_line >= self._every or finished:
            self._last_line, self._finished = now, finished
            # Rounded down, so that 100 % means that all is done.
            share = math.floor(100 * min(done / self._total, 1.0)) / 100
            self.line(f"{self._title} {share:4.0%}  {doing or self._left(done, now)}  {text}")

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def _left(self, done: float, now: float) -> str:
        done_here = done - self._start
        if done_here <= 0 and done < self._total:
            return "   ? left"
        seconds = (now - self._began) * (self._total - done) / done_here if done_here > 0 else 0
        return f"{format_duration(seconds)} left"
