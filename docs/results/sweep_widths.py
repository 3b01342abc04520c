"""Prints the training loss over learning rates at several widths, with `base_width` and without.

    python docs/results/sweep_widths.py data 16,32,64

Text: English documentation of the standard library, prepared under data/, in 450 pieces, as two
clones at 3:1. The first width is the base. F is 4 D, heads have 16 dimensions. The loss is the mean
of the last 20 of 200 updates, each of 8 sequences of 32; the rates of a width train as one pack.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.compute import sharding
from imbalance_jax.compute import step as step_lib
from imbalance_jax.data.prepare import prepare_source
from imbalance_jax.training.experiment import Experiment

RATES = [2.0**-power for power in range(11, 3, -1)]
STEPS, LAST = 200, 20


def make_config(data_dir: str, D: int, base_width: int) -> config_lib.Config:
    config = config_lib.cloned(scale="demo", ratio="3:1")
    config.data_dir, config.steps, config.batch_size = data_dir, STEPS, 8
    config.sources.en.packages = ("json", "email", "asyncio", "xml", "logging")
    config.sources.en.tokenizer.vocab_size = 450
    sizes = {"L": 32, "D": D, "H": D // 16, "K": 16, "F": 4 * D, "N": 2}
    config.model.update(sizes | {"base_width": base_width, "scan_layers": True})
    return config_lib.resolve_config(config)


def measure_losses(config: config_lib.Config) -> list[float]:
    """Returns the loss at the end of a run with each of the learning rates."""
    source = prepare_source("en", config.sources["en"], config.data_dir)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1], packed=True)
    trainer = Experiment.make(config, {"en": source}, sharding.make_one_member_mesh(mesh))
    schedules = [
        dataclasses.replace(config.optimizer, peak_lr=rate, final_lr=rate / 100) for rate in RATES
    ]
    E = len(RATES)
    stack = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * E), tree)
    state_E, map_EGU = stack(trainer.init_state()), stack(trainer.map_GU())
    update = step_lib.jit_step(config, STEPS, mesh, state_E, "scan")
    losses_SE = []
    for step in range(STEPS):
        rate_E = [config_lib.compute_learning_rate(each, STEPS, step + 1, np) for each in schedules]
        given = step_lib.StepInput(
            stack(trainer.batch(step)), jnp.float32(np.array(rate_E)), jnp.ones(E, bool)
        )
        state_E, metrics_E = update(state_E, given, map_EGU)
        losses_SE.append(np.asarray(metrics_E["loss"]))
    return np.mean(losses_SE[-LAST:], axis=0).tolist()


def format_rows(data_dir: str, widths: list[int]) -> Iterator[str]:
    yield "| D | base_width | " + " | ".join(f"2^{round(math.log2(r))}" for r in RATES) + " |"
    yield "|---" * (2 + len(RATES)) + "|"
    for D in widths:
        for base in (0,) if widths[0] == D else (0, widths[0]):
            losses = measure_losses(make_config(data_dir, D, base))
            best = min(losses)
            cells = [f"**{loss:.3f}**" if loss == best else f"{loss:.3f}" for loss in losses]
            yield f"| {D} | {base} | {' | '.join(cells)} |"


if __name__ == "__main__":
    for row in format_rows(sys.argv[1], [int(D) for D in sys.argv[2].split(",")]):
        print(row, flush=True)
