"""What changes when a run has several hosts."""

import jax
import numpy as np
from jax.sharding import NamedSharding

from imbalance_jax.interrupts import Interrupts as Interrupts


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
