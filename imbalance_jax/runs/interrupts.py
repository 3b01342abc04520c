"""How a process is asked to stop."""

import signal
import types
from typing import Self


class Interrupts:
    """Notes SIGTERM and Ctrl-C, so that the loop can save and leave between two steps.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for signal_ in (signal.SIGTERM, signal.SIGINT):
            self._before[signal_] = signal.signal(signal_, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._restore()
        if self.requested:
            # The process is on its way out, and what asked it to stop may ask again.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def poll(self) -> bool:
        """Whether to stop."""
        return self.requested

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def _restore(self) -> None:
        for signal_, handler in self._before.items():
            signal.signal(signal_, handler)  # type: ignore[arg-type]
