"""What changes when a run has several hosts, and how it is asked to stop."""

import signal
import types
from typing import Self

import jax
import numpy as np
from jax.sharding import NamedSharding


def is_writer() -> bool:
    """Whether this process writes metrics and markers; exactly one of them does."""
    return jax.process_index() == 0


def local_rows(rows: int) -> slice:
    """Returns which rows of every batch this process reads.

    Raises:
      ValueError: the rows do not divide over the processes.
    """
    processes = jax.process_count()
    if rows % processes:
        raise ValueError(
            f"config.batch_size={rows} cannot be split over {processes} processes. "
            f"Set config.batch_size to a multiple of {processes}."
        )
    each = rows // processes
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


def place(sharding: NamedSharding, local: np.ndarray) -> jax.Array:
    """Returns the array over all hosts that has this host's rows in its part."""
    return jax.make_array_from_process_local_data(sharding, local)


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
        for signal_, handler in self._before.items():
            signal.signal(signal_, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
