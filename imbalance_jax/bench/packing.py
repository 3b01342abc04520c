"""Runs trained together, as a pack, against the same runs in turn.

The runs are a config with other seeds, ratios and learning rates. Each way of a pack is timed
against one of the runs alone, in rounds of both, as the training loop has them: the host makes
the batches of the next step while the devices work, and reads the metrics of the step before.
Compilation is timed apart. Runs in turn compile each their own program, for the learning rate
is a part of it.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from imbalance_jax.bench import training
from imbalance_jax.compute import hardware, sharding
from imbalance_jax.config import Config
from imbalance_jax.data import prepare
from imbalance_jax.runs.code_versions import get_code_versions
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training.experiment import Experiment
from imbalance_jax.training.pack import Pack, PackMember

WAYS = ("scan", "vmap")
_ROUNDS, _LEAST, _MOST = 5, 1, 300


def measure_packing(config: Config, members: int, *, seconds: float = 5.0) -> dict[str, Any]:
    """Returns the figures of packs of a config's runs on the devices at hand, ready for JSON.

    Args:
      config: of the runs, which differ from it in seed, ratio and learning rate.
      members: runs of a pack.
      seconds: how long the steps of each way go on.

    Raises:
      ValueError: the config does not suit its text, the devices or a pack.
    """
    alone_mesh = sharding.make_mesh(config.mesh, jax.devices())
    mesh = sharding.make_mesh(config.mesh, jax.devices(), packed=True)
    text = prepare.prepare_run_sources(config)
    one = Experiment.make(config, text, alone_mesh)
    together = sharding.make_one_member_mesh(mesh)
    runs = [
        PackMember(
            f"run{n}",
            Experiment.make(changed, text, together, training=False),
            RunDirectory("unused"),  # nothing is written
        )
        for n, changed in enumerate(_vary_config(config, n) for n in range(members))
    ]
    began = time.perf_counter()
    update = one.compile_step(one.abstract_state())
    found: dict[str, Any] = {
        "versions": get_code_versions(),
        "device": hardware.describe_devices(),
        "mesh": dict(mesh.shape),
        "members": members,
        "batch_size": config.batch_size,
        "steps": one.stream.steps,
        "model": dataclasses.asdict(one.settled_model()),
        "vocab_size": one.vocabulary.size,
        "alone": {
            "compile_seconds": time.perf_counter() - began,
            "memory": training.count_program_memory(update),
        },
    }
    turns = {"alone": make_alone_turn(one, update)}
    for way in WAYS:
        pack = Pack(runs, mesh, way)
        began = time.perf_counter()
        packed = pack.compile_step(pack.abstract_state())
        found[way] = {
            "compile_seconds": time.perf_counter() - began,
            "memory": training.count_program_memory(packed),
        }
        turns[way] = make_packed_turn(pack, packed)
    for name, steps in time_turns(turns, seconds).items():
        found[name]["step_seconds"] = statistics.median(steps)
        found[name]["step_seconds_of_rounds"] = steps
    tokens = members * config.batch_size * config.model.L
    for way in WAYS:
        found[way] |= _compute_time_ratios(found["alone"], found[way], members, found["steps"])
        found[way]["tokens_per_second"] = tokens / found[way]["step_seconds"]
    return found


def _vary_config(config: Config, n: int) -> Config:
    """Returns a run of the same shape: the n-th of a grid."""
    ratio = {tag: 1 + (n if i else 0) for i, tag in enumerate(config.tags)}
    return dataclasses.replace(
        config,
        seed=config.seed + n,
        mixture=dataclasses.replace(config.mixture, ratio=ratio, stages=(), same_total_as=()),
        optimizer=dataclasses.replace(config.optimizer, peak_lr=config.optimizer.peak_lr * 0.9**n),
    )


# Trains for so many steps, and returns the seconds of one.
Turn = Callable[[int], float]


def make_alone_turn(trainer: Experiment, update: jax.stages.Compiled) -> Turn:
    """Returns what trains a run alone."""
    map_GU = trainer.map_GU()
    steps = _StepLoop(trainer.init_state(), update, trainer.stream.steps)
    return lambda count: steps.run(count, trainer.batch, map_GU)


def make_packed_turn(pack: Pack, update: jax.stages.Compiled) -> Turn:
    """Returns what trains a pack."""
    map_EGU = pack.map_EGU()
    alive_E = np.arange(pack.size) < len(pack.members)
    steps = _StepLoop(pack.init_state(), update, pack.steps)
    return lambda count: steps.run(count, lambda n: pack.place(n, alive_E), map_EGU)


class _StepLoop:
    """A loop of steps that goes on where it stopped, and begins again at the stream's end."""

    def __init__(self, state: Any, update: jax.stages.Compiled, steps: int) -> None:
        self._state, self._update, self._steps, self._done = state, update, steps, 0

    def run(self, count: int, batch: Callable[[int], Any], maps: jax.Array) -> float:
        pending = None
        began = time.perf_counter()
        for _ in range(count):
            self._state, metrics = self._update(self._state, batch(self._done % self._steps), maps)
            self._done += 1
            if pending is not None:
                jax.device_get(pending)
            pending = metrics
        jax.block_until_ready(self._state)
        return (time.perf_counter() - began) / count


def time_turns(turns: dict[str, Turn], seconds: float) -> dict[str, list[float]]:
    """Returns the seconds of a step in each round of all ways.

    A machine's speed changes with what else runs there, so that ways are compared in turn.
    """
    counts = {}
    for name, turn in turns.items():
        turn(1)  # what a first call takes
        counts[name] = int(min(_MOST, max(_LEAST, seconds / _ROUNDS / turn(1))))
    rounds = [{name: turn(counts[name]) for name, turn in turns.items()} for _ in range(_ROUNDS)]
    return {name: [times[name] for times in rounds] for name in turns}


def _compute_time_ratios(
    alone: dict[str, Any], packed: dict[str, Any], members: int, steps: int
) -> dict[str, float]:
    """Returns how many times as long the runs in turn take as the pack."""
    compiling = members * alone["compile_seconds"]
    in_turn = compiling + members * steps * alone["step_seconds"]
    together = packed["compile_seconds"] + steps * packed["step_seconds"]
    rounds = zip(alone["step_seconds_of_rounds"], packed["step_seconds_of_rounds"], strict=True)
    return {
        "in_turn_over_pack": statistics.median(members * a / p for a, p in rounds),
        "in_turn_over_pack_compiling": compiling / packed["compile_seconds"],
        "in_turn_over_pack_whole_runs": in_turn / together,
    }


def describe_packing(name: str, found: dict[str, Any]) -> Iterable[str]:
    """Yields the figures as lines."""
    alone, members = found["alone"], found["members"]
    model = found["model"]
    yield (
        f"{name}: {members} runs of {found['batch_size']} x {model['L']}, vocabulary "
        f"{found['vocab_size']:,}, {model['dtype']}, attention {model['attention']}, on "
        f"{found['device']['count']} {found['device']['kind']}"
    )
    yield (
        f"  one run: step {alone['step_seconds'] * 1e3:,.2f} ms, compiled in "
        f"{alone['compile_seconds']:.1f} s; {members} in turn: "
        f"{members * alone['step_seconds'] * 1e3:,.2f} ms and "
        f"{members * alone['compile_seconds']:.1f} s"
    )
    for way in WAYS:
        packed = found[way]
        rounds = packed["step_seconds_of_rounds"]
        yield (
            f"  pack, {way}: step {packed['step_seconds'] * 1e3:,.2f} ms ({min(rounds) * 1e3:,.2f} "
            f"to {max(rounds) * 1e3:,.2f}), {packed['tokens_per_second']:,.0f} tokens/s, compiled "
            f"in {packed['compile_seconds']:.1f} s, temporary memory "
            f"{packed['memory']['temporary'] / 1e6:,.0f} MB; in turn takes "
            f"{packed['in_turn_over_pack']:.2f} times as long, "
            f"{packed['in_turn_over_pack_whole_runs']:.2f} times over the "
            f"{found['steps']:,} steps of the runs with compilation"
        )
