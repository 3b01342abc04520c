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

from imbalance_jax.bench import packing
from imbalance_jax.compute import sharding
from imbalance_jax.config import Config, MeshConfig
from imbalance_jax.data import prepare
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training.experiment import Experiment
from imbalance_jax.training.pack import Pack, PackMember


def list_mesh_shapes(devices: int) -> Iterator[dict[str, int]]:
    """Yields all meshes of so many devices, by the sizes of their axes."""
    sizes = [size for size in range(1, devices + 1) if devices % size == 0]
    for shape in itertools.product(sizes, repeat=len(sharding.AXES)):
        if math.prod(shape) == devices:
            yield dict(zip(sharding.AXES, shape, strict=True))


def measure_meshes(config: Config, *, seconds: float = 5.0) -> Iterator[dict[str, Any]]:
    """Yields the speed of each mesh and of one device beside it, ready for JSON.

    Args:
      config: of a run.
      seconds: how long the steps of each go on.
    """
    text = prepare.prepare_run_sources(config)
    alone = dataclasses.replace(config, mesh=MeshConfig())
    one = Experiment.make(alone, text, sharding.make_mesh(alone.mesh, jax.devices()[:1]))
    beside = packing.make_alone_turn(one, one.compile_step(one.abstract_state()))
    for sizes in list_mesh_shapes(jax.device_count()):
        found: dict[str, Any] = {"mesh": sizes}
        try:
            began = time.perf_counter()
            turn = _make_mesh_turn(dataclasses.replace(config, mesh=MeshConfig(**sizes)), text)
            found["compile_seconds"] = time.perf_counter() - began
        except ValueError as error:
            yield found | {"error": str(error)}
            continue
        times = packing.time_turns({"alone": beside, "mesh": turn}, seconds)
        rounds = zip(times["alone"], times["mesh"], strict=True)
        found["step_seconds"] = statistics.median(times["mesh"])
        tokens = sizes["member"] * config.batch_size * config.model.L
        found["tokens_per_second"] = tokens / found["step_seconds"]
        found["over_one_device"] = statistics.median(
            ours / (theirs * sizes["member"]) for theirs, ours in rounds
        )
        yield found


def _make_mesh_turn(config: Config, text: Any) -> packing.Turn:
    mesh = sharding.make_mesh(config.mesh, jax.devices(), packed=True)
    count = config.mesh.member
    if count == 1:
        trainer = Experiment.make(config, text, mesh)
        return packing.make_alone_turn(trainer, trainer.compile_step(trainer.abstract_state()))
    members = [
        PackMember(
            f"run{n}",
            Experiment.make(
                dataclasses.replace(config, seed=config.seed + n),
                text,
                sharding.make_one_member_mesh(mesh),
                training=False,
            ),
            RunDirectory("unused"),  # nothing is written
        )
        for n in range(count)
    ]
    pack = Pack(members, mesh)
    return packing.make_packed_turn(pack, pack.compile_step(pack.abstract_state()))


HEAD = (
    f"  {' '.join(f'{axis:>6}' for axis in sharding.AXES)}   time of a token over that on one "
    "device, tokens/s, compiled in"
)


def describe_mesh_speed(found: dict[str, Any]) -> str:
    """Returns what `measure_meshes` found of a mesh as a line of a table."""
    sizes = " ".join(f"{size:>6}" for size in found["mesh"].values())
    if "error" in found:
        return f"  {sizes}   {found['error']}"
    return (
        f"  {sizes}   {found['over_one_device']:5.2f} {found['tokens_per_second']:>10,.0f} "
        f"{found['compile_seconds']:>6.1f} s"
    )
