"""Every mesh of the devices at hand, against one of them.

Each trains the same batch; meshes with members train a pack of as many runs, each with its own.
On simulated devices, which share a machine's cores, nothing can be gained, and what a mesh
takes more of than one device is its overhead: the collectives, and products in smaller parts.
"""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax

from imbalance_jax.bench import packing, training
from imbalance_jax.bench.case import build_experiment
from imbalance_jax.compute import sharding
from imbalance_jax.config import Config, MeshConfig
from imbalance_jax.training.pack import Pack


def list_mesh_shapes(devices: int) -> Iterator[dict[str, int]]:
    """Yields all meshes of so many devices, by the sizes of their axes."""
    sizes = [size for size in range(1, devices + 1) if devices % size == 0]
    for shape in itertools.product(sizes, repeat=len(sharding.AXES)):
        if math.prod(shape) == devices:
            yield dict(zip(sharding.AXES, shape, strict=True))


def measure_meshes(config: Config, *, seconds: float = 5.0) -> Iterator[dict[str, Any]]:
    """Yields the speed of each mesh and of one device beside it, ready for JSON.

    The steps of each go on for so many seconds.
    """
    alone = _compile_loop(dataclasses.replace(config, mesh=MeshConfig()), jax.devices()[:1])
    for sizes in list_mesh_shapes(jax.device_count()):
        figures: dict[str, Any] = {"mesh": sizes}
        try:
            began = time.perf_counter()
            loop = _compile_loop(
                dataclasses.replace(config, mesh=MeshConfig(**sizes)), jax.devices()
            )
            figures["compile_seconds"] = time.perf_counter() - began
        except ValueError as error:
            yield figures | {"error": str(error)}
            continue
        times = packing.time_in_turn({"alone": alone, "mesh": loop}, seconds)
        rounds = zip(times["alone"], times["mesh"], strict=True)
        figures["step_seconds"] = statistics.median(times["mesh"])
        tokens = sizes["member"] * config.batch_size * config.model.L
        figures["tokens_per_second"] = tokens / figures["step_seconds"]
        figures["over_one_device"] = statistics.median(
            of_mesh / (of_one * sizes["member"]) for of_one, of_mesh in rounds
        )
        yield figures


def _compile_loop(config: Config, devices: list[jax.Device]) -> training.StepLoop:
    """Returns the loop of a run, or of as many as the mesh has members."""
    if config.mesh.member == 1:
        experiment = build_experiment(config, devices)
        return training.make_run_loop(
            experiment, experiment.compile_step(experiment.abstract_state())
        )
    mesh = sharding.make_mesh(config.mesh, devices, packed=True)
    seeds = range(config.seed, config.seed + config.mesh.member)
    members = packing.build_members([dataclasses.replace(config, seed=n) for n in seeds], mesh)
    pack = Pack(members, mesh)
    return packing.make_pack_loop(pack, pack.compile_step(pack.abstract_state()))


HEAD = (
    f"  {' '.join(f'{axis:>6}' for axis in sharding.AXES)}   time of a token over that on one "
    "device, tokens/s, compiled in"
)


def describe_mesh_speed(figures: dict[str, Any]) -> str:
    """Returns what `measure_meshes` yields of a mesh as a line of a table."""
    sizes = " ".join(f"{size:>6}" for size in figures["mesh"].values())
    if "error" in figures:
        return f"  {sizes}   {figures['error']}"
    return (
        f"  {sizes}   {figures['over_one_device']:5.2f} {figures['tokens_per_second']:>10,.0f} "
        f"{figures['compile_seconds']:>6.1f} s"
    )
