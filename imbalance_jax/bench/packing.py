"""Runs trained together, as a pack, against the same runs in turn.

The runs are a config with other seeds, ratios and learning rates. Each way of a pack is timed
against one of the runs alone, in rounds of both, in steps as training has them. Compilation is
timed apart. Runs in turn compile each their own program, for the learning rate is a part of it.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from imbalance_jax.bench import training
from imbalance_jax.bench.case import build_experiment
from imbalance_jax.compute import hardware, sharding
from imbalance_jax.config import Config
from imbalance_jax.data import prepare
from imbalance_jax.runs.code_versions import get_code_versions
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training.experiment import Experiment
from imbalance_jax.training.pack import Pack, PackMember

WAYS = ("scan", "vmap")
_ROUNDS = 5


def measure_packing(config: Config, members: int, *, seconds: float = 5.0) -> dict[str, Any]:
    """Returns the figures of packs of a config's runs on the devices at hand, ready for JSON.

    The steps of each way go on for so many seconds.

    Raises:
      ValueError: the config does not suit its text, the devices or a pack.
    """
    mesh = sharding.make_mesh(config.mesh, jax.devices(), packed=True)
    experiment = build_experiment(config)
    runs = build_members([_vary_config(config, n) for n in range(members)], mesh)
    began = time.perf_counter()
    update = experiment.compile_step(experiment.abstract_state())
    figures: dict[str, Any] = {
        "versions": get_code_versions(),
        "device": hardware.describe_devices(),
        "mesh": dict(mesh.shape),
        "members": members,
        "batch_size": config.batch_size,
        "steps": experiment.stream.steps,
        "model": dataclasses.asdict(experiment.settled_model()),
        "vocab_size": experiment.vocabulary.size,
        "alone": {
            "compile_seconds": time.perf_counter() - began,
            "memory": hardware.count_program_memory(update.memory_analysis()),
        },
    }
    loops = {"alone": training.make_run_loop(experiment, update)}
    for way in WAYS:
        pack = Pack(runs, mesh, way)
        began = time.perf_counter()
        update = pack.compile_step(pack.abstract_state())
        figures[way] = {
            "compile_seconds": time.perf_counter() - began,
            "memory": hardware.count_program_memory(update.memory_analysis()),
        }
        loops[way] = make_pack_loop(pack, update)
    for name, steps in time_in_turn(loops, seconds).items():
        figures[name]["step_seconds"] = statistics.median(steps)
        figures[name]["step_seconds_of_rounds"] = steps
    tokens = members * config.batch_size * config.model.L
    for way in WAYS:
        figures[way] |= _compute_time_ratios(
            figures["alone"], figures[way], members, figures["steps"]
        )
        figures[way]["tokens_per_second"] = tokens / figures[way]["step_seconds"]
    return figures


def build_members(configs: list[Config], mesh: jax.sharding.Mesh) -> list[PackMember]:
    """Returns runs on one text as members of a pack on a mesh; they write nothing."""
    sources, own_mesh = prepare.prepare_run_sources(configs[0]), sharding.make_one_member_mesh(mesh)
    return [
        PackMember(
            f"run{n}",
            Experiment.make(config, sources, own_mesh, training=False),
            RunDirectory("unused"),
        )
        for n, config in enumerate(configs)
    ]


def _vary_config(config: Config, n: int) -> Config:
    """Returns a run of the same shape: the n-th of a grid."""
    ratio = {tag: 1 + (n if i else 0) for i, tag in enumerate(config.tags)}
    return dataclasses.replace(
        config,
        seed=config.seed + n,
        mixture=dataclasses.replace(config.mixture, ratio=ratio, stages=(), same_total_as=()),
        optimizer=dataclasses.replace(config.optimizer, peak_lr=config.optimizer.peak_lr * 0.9**n),
    )


def make_pack_loop(pack: Pack, update: jax.stages.Compiled) -> training.StepLoop:
    """Returns the loop of a pack, at its first step."""
    alive_E = np.arange(pack.size) < len(pack.members)

    def place(step: int) -> Any:
        return pack.place(step, alive_E)

    return training.StepLoop(pack.init_state(), update, place, pack.map_EGU(), pack.steps)


def time_in_turn(loops: dict[str, training.StepLoop], seconds: float) -> dict[str, list[float]]:
    """Returns the seconds of a step in each round of all loops.

    A machine's speed changes with what else runs there, so that they are compared in turn.
    """
    counts = {}
    for name, loop in loops.items():
        loop.run(1)  # what a first call takes
        steps = seconds / _ROUNDS / loop.run(1)["step"]
        counts[name] = int(min(training.MOST_STEPS, max(1, steps)))
    rounds = [
        {name: loop.run(counts[name])["step"] for name, loop in loops.items()}
        for _ in range(_ROUNDS)
    ]
    return {name: [times[name] for times in rounds] for name in loops}


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


def describe_packing(name: str, figures: dict[str, Any]) -> Iterator[str]:
    """Yields the figures as lines."""
    alone, members, model = figures["alone"], figures["members"], figures["model"]
    yield (
        f"{name}: {members} runs of {figures['batch_size']} x {model['L']}, vocabulary "
        f"{figures['vocab_size']:,}, {model['dtype']}, attention {model['attention']}, on "
        f"{figures['device']['count']} {figures['device']['kind']}"
    )
    yield (
        f"  one run: step {alone['step_seconds'] * 1e3:,.2f} ms, compiled in "
        f"{alone['compile_seconds']:.1f} s; {members} in turn: "
        f"{members * alone['step_seconds'] * 1e3:,.2f} ms and "
        f"{members * alone['compile_seconds']:.1f} s"
    )
    for way in WAYS:
        packed = figures[way]
        rounds = packed["step_seconds_of_rounds"]
        yield (
            f"  pack, {way}: step {packed['step_seconds'] * 1e3:,.2f} ms ({min(rounds) * 1e3:,.2f} "
            f"to {max(rounds) * 1e3:,.2f}), {packed['tokens_per_second']:,.0f} tokens/s, compiled "
            f"in {packed['compile_seconds']:.1f} s, temporary memory "
            f"{packed['memory']['temporary'] / 1e6:,.0f} MB; in turn takes "
            f"{packed['in_turn_over_pack']:.2f} times as long, "
            f"{packed['in_turn_over_pack_whole_runs']:.2f} times over the "
            f"{figures['steps']:,} steps of the runs with compilation"
        )
