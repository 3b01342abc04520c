"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
import types
from typing import Self

import rich.console
import rich.progress


def clock(seconds: float) -> str:
    """Returns a duration as 2:03, 1:02:03 or 39 days."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours / 24:,.0f} days"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def terminal() -> bool:
    return sys.stdout.isatty()


class Progress:
    """Shows how far one piece of work is, with a text of its own and the time left.

    Used as a context manager: `with Progress("Training", total=steps) as progress`, then
    `progress.show(done, "loss 3.2")` as often as one likes.
    """

    def __init__(self, title: str, total: float, *, start: float = 0, every: float = 10) -> None:
        """Args: `every` is the number of seconds between plain lines."""
        self._title, self._total, self._start, self._every = title, total, start, every
        self._began = self._last_line = time.monotonic()
        self._finished = False
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Self:
        if terminal():
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

    def show(self, done: float, text: str = "") -> None:
        """Says how much of the total is done; a plain line only once in a while."""
        if self._bar:
            self._bar.update(self._task, completed=done, text=text)
            return
        now = time.monotonic()
        finished = done >= self._total and not self._finished
        if now - self._last_line >= self._every or finished:
            self._last_line, self._finished = now, finished
            self.line(f"{self._title} {done / self._total:4.0%}  {self._left(done, now)}  {text}")

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def _left(self, done: float, now: float) -> str:
        made = done - self._start
        if made <= 0 and done < self._total:
            return "   ? left"
        seconds = (now - self._began) * (self._total - done) / made if made > 0 else 0
        return f"{clock(seconds)} left"
