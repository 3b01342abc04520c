"""How fast the stream feeds a run, against how fast the run trains.

    python -m imbalance_jax.bench --config=configs/90_10.py --out=bench.json

The host's time per batch is split into working out the order and reading the windows, in the
first epoch and (where the run comes to one) in a later one, with the text in the page cache.
The step is timed on the devices, with its batches waiting. A run waits for data for about
`data_share` of its time at most: while a step is on the device, the host makes the next batch.
"""

import json
import resource
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from absl import flags

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.data.stream import Stream
from imbalance_jax.train import Trainer

FLAGS = flags.FLAGS

# How much is measured, for each figure.
_BATCH_SECONDS = 2.0
_STEP_SECONDS = 5.0


def measure_stream(stream: Stream, batch_size: int, L: int, first: int) -> dict[str, float]:
    """Returns the host's time per batch from a step on, and the tokens that makes a second.

    Args:
      stream: of a run.
      batch_size: sequences of a batch.
      L: tokens of a sequence.
      first: step of the first batch.
    """
    stream.batch(first)  # maps the files
    order, whole, batches = 0.0, 0.0, 0
    step = first
    while whole < _BATCH_SECONDS and step < stream.steps:
        began = time.perf_counter()
        stream.order_of(step)
        ordered = time.perf_counter()
        stream.batch(step)
        whole += time.perf_counter() - began
        order += ordered - began
        batches += 1
        step += 1
    return {
        "batches": batches,
        "microseconds_per_batch": whole / batches * 1e6,
        "microseconds_order": order / batches * 1e6,
        "tokens_per_second": batches * batch_size * L / whole,
    }


def measure_step(trainer: Trainer) -> dict[str, float]:
    """Returns the time of a step whose batch waits on the device, and the tokens a second."""
    import jax

    config = trainer.config
    state = trainer.init_state()
    update, map_GU = trainer.compile_step(state), trainer.map_GU()
    batches = [trainer.place(trainer.stream.batch(step)) for step in range(4)]
    state, _ = jax.block_until_ready(update(state, batches[0], map_GU))
    took: list[float] = []
    while sum(took) < _STEP_SECONDS and len(took) < 200:
        began = time.perf_counter()
        state, _ = jax.block_until_ready(update(state, batches[len(took) % 4], map_GU))
        took.append(time.perf_counter() - began)
    seconds = float(np.median(took))
    return {
        "steps": len(took),
        "seconds_per_step": seconds,
        "tokens_per_second": config.batch_size * config.model.L / seconds,
    }


def measure(trainer: Trainer) -> dict[str, Any]:
    """Returns all figures of a config on this machine, ready for JSON."""
    from imbalance_jax import hardware
    from imbalance_jax.runs import versions

    config, stream = trainer.config, trainer.stream
    sizes = (config.batch_size, config.model.L)
    data = {"first epoch": measure_stream(stream, *sizes, first=0)}
    dry = [step for step in stream.dry_steps().values() if step + 1 < stream.steps]
    if dry:
        data["later epoch"] = measure_stream(stream, *sizes, first=min(dry) + 1)
    step = measure_step(trainer)
    slowest = min(part["tokens_per_second"] for part in data.values())
    return {
        "versions": versions(),
        "device": hardware.describe(),
        "batch_size": sizes[0],
        "L": sizes[1],
        "data": data,
        "step": step,
        "data_over_training": slowest / step["tokens_per_second"],
        "data_share": step["tokens_per_second"] / slowest,
        # Kilobytes on Linux, bytes on macOS.
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
    }


def describe(found: dict[str, Any]) -> Iterable[str]:
    """Yields the figures as lines of a table."""
    for name, part in found["data"].items():
        yield (
            f"data, {name}: {part['microseconds_per_batch']:,.0f} us a batch "
            f"({part['microseconds_order']:,.0f} us of order), "
            f"{part['tokens_per_second'] / 1e6:,.1f} M tokens/s"
        )
    step = found["step"]
    yield (
        f"step: {step['seconds_per_step'] * 1e3:,.1f} ms, {step['tokens_per_second']:,.0f} tokens/s"
    )
    yield (
        f"The stream is {found['data_over_training']:,.0f} times as fast as training; its time is "
        f"{found['data_share']:.2%} of a step's."
    )


def main() -> int:
    import jax

    from imbalance_jax import sharding
    from imbalance_jax.data import prepare

    config = config_lib.resolve(cli.required_config())
    mesh = sharding.make_mesh(config.mesh, jax.devices())
    found = measure(Trainer.make(config, prepare.prepare_all(config), mesh))
    print("\n".join(describe(found)))
    if FLAGS.out:
        with open(FLAGS.out, "w") as file:
            json.dump(found, file, indent=2)
    return cli.DONE


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("out", None, "A JSON file to write the figures to.")
    cli.run(main)
