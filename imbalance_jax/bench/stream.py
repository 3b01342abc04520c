"""The host's work for a run's batches, against the devices' work on them.

The host's time per batch is split into working out the order and reading the windows, in the
first epoch and (where the run comes to one) in a later one, with the text in the page cache.
A run waits for data for about `data_share` of its time at most: while a step is on the device,
the host makes the next batch.
"""

import resource
import sys
import time
from collections.abc import Iterable
from typing import Any

from imbalance_jax.bench import training
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.training.experiment import Experiment

_SECONDS = 2.0  # of batches, for each figure


def measure_batch_times(stream: Stream, batch_size: int, L: int, first: int) -> dict[str, float]:
    """Returns the host's time per batch from a step on, and the tokens a second that makes."""
    stream.batch(first)  # maps the files
    order, whole, batches = 0.0, 0.0, 0
    while whole < _SECONDS and first + batches < stream.steps:
        began = time.perf_counter()
        stream.order_of(first + batches)
        order += time.perf_counter() - began
        stream.batch(first + batches)
        whole += time.perf_counter() - began
        batches += 1
    return {
        "batches": batches,
        "microseconds_per_batch": whole / batches * 1e6,
        "microseconds_order": order / batches * 1e6,
        "tokens_per_second": batches * batch_size * L / whole,
    }


def measure_stream_speed(experiment: Experiment, *, seconds: float = 5.0) -> dict[str, Any]:
    """Returns the figures of a config's stream on this machine, ready for JSON.

    Steps are timed for so many seconds.
    """
    config, stream = experiment.config, experiment.stream
    sizes = (config.batch_size, config.model.L)
    data = {"first epoch": measure_batch_times(stream, *sizes, first=0)}
    dry = [step for step in stream.dry_steps().values() if step + 1 < stream.steps]
    if dry:
        data["later epoch"] = measure_batch_times(stream, *sizes, first=min(dry) + 1)
    step = training.measure_training_step(experiment, seconds=seconds, profiled=False)
    slowest = min(part["tokens_per_second"] for part in data.values())
    return {
        **step,
        "data": data,
        "data_over_training": slowest / step["tokens_per_second"],
        "data_share": step["tokens_per_second"] / slowest,
        # Kilobytes on Linux, bytes on macOS.
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
    }


def describe_stream_speed(figures: dict[str, Any]) -> Iterable[str]:
    """Yields the figures as lines of a table."""
    for name, part in figures["data"].items():
        yield (
            f"data, {name}: {part['microseconds_per_batch']:,.0f} us a batch "
            f"({part['microseconds_order']:,.0f} us of order), "
            f"{part['tokens_per_second'] / 1e6:,.1f} M tokens/s"
        )
    yield (
        f"The stream is {figures['data_over_training']:,.0f} times as fast as training; its time "
        f"is {figures['data_share']:.2%} of a step's."
    )
