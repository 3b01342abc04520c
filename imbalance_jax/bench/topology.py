"""The training step compiled for TPUs, on a machine without one: its memory and its bound.

libtpu (extra `tpu`) compiles for a topology such as `v5e:4x4` anywhere. The memory that it reports
is what a run will take. The time is a bound from below, the longest of three: matrix products at
the chip's peak; what the program reads and writes at the bandwidth of HBM; and its instructions one
after another, each for the longer of its own two, without copies that go on beside others. No step
is faster than that; how much slower, only a TPU tells. Time between chips is left out.

traffic.py counts FLOPs and bytes in the compiled program. The FLOPs within Pallas kernels are not
known, and no step is taken to need fewer FLOPs than the convention counts.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from imbalance_jax.bench import traffic
from imbalance_jax.compute import hardware, sharding, tuning
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.hardware import DATASHEET_PEAK
from imbalance_jax.config import Config, costs
from imbalance_jax.training import pack as pack_lib


@dataclasses.dataclass(frozen=True)
class Chip:
    peak: float  # FLOP/s of dense bf16 matrix products
    hbm: int  # bytes
    bandwidth: float  # bytes/s of HBM


# Google Cloud's pages on the versions of TPU, cloud.google.com/tpu/docs/v5e and so on.
CHIPS: Mapping[str, Chip] = {
    "v4": Chip(DATASHEET_PEAK["TPU v4"], 32 << 30, 1200e9),
    "v5e": Chip(DATASHEET_PEAK["TPU v5e"], 16 << 30, 819e9),
    "v5p": Chip(DATASHEET_PEAK["TPU v5p"], 95 << 30, 2765e9),
    "v6e": Chip(DATASHEET_PEAK["TPU v6e"], 32 << 30, 1640e9),
}
# Names that Google Cloud and others use, and libtpu does not know.
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6lite": "v6e", "trillium": "v6e"}


def parse_topology(topology: str) -> tuple[str, tuple[int, ...]]:
    """Returns the chip and the shape that a text such as `v5e:4x4` names.

    Raises:
      ValueError: it cannot be read, or the chip is not in the table.
    """
    name, _, shape = topology.partition(":")
    name = _ALIASES.get(name, name)
    if name not in CHIPS:
        raise ValueError(
            f"--topology={topology}: there is no chip {name!r} in the table. "
            f"Choose {', '.join(CHIPS)}, such as v5e:4x4."
        )
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise ValueError(
            f"--topology={topology}: write chip:shape, such as v5e:4x4 or v5p:2x2x1, "
            "with two or three whole numbers."
        )
    return name, tuple(int(size) for size in shape.split("x"))


def get_topology_devices(topology: str, num_slices: int = 1) -> list[jax.Device]:
    """Returns the devices of slices of a topology; they compile and do not run.

    Raises:
      ValueError: the chip is unknown, libtpu refuses the shape, or there is no libtpu.
    """
    name, shape = parse_topology(topology)
    try:
        import libtpu  # type: ignore[import-not-found, import-untyped, unused-ignore] # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"--topology={topology}: compiling for a TPU needs libtpu. Run pip install -e '.[tpu]'."
        ) from error
    from jax.experimental import topologies

    if not distributed.has_tpu():  # or libtpu looks for the host it is on, and complains
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if math.prod(shape) < 4:  # less than a host of the usual kind
        options["chips_per_host_bounds"] = (1, 1, 1)
    if name == "v4":  # a chip's two cores are one device; the others' always are
        options["chip_config_name"] = "megacore"
    libtpu_name = f"{name}:{'x'.join(map(str, shape))}"
    try:
        return list(topologies.get_topology_desc(libtpu_name, "tpu", **options).devices)
    except Exception as error:  # JaxRuntimeError, or ValueError from older versions
        if "lockfile" in str(error):
            raise ValueError(
                f"--topology={topology}: another process on this machine uses libtpu. Wait for it; "
                "or, where there is no TPU, set ALLOW_MULTIPLE_LIBTPU_LOAD=1 in the environment."
            ) from error
        raise ValueError(
            f"--topology={topology}: libtpu refuses it: {str(error).splitlines()[0]} "
            "Slices are multiples of a host's 2x2 chips, such as 2x2, 2x4 and 4x4."
        ) from error


def measure_step_on_topology(
    config: Config, vocab_size: int, topology: str, *, num_slices: int = 1, members: int = 1
) -> dict[str, Any]:
    """Returns the memory and the least time of a config's step on one chip of a topology.

    A step that does not fit has `fits` False, the compiler's words in `error`, and no more. With
    several members it is the step of as many runs of the config's shape, stacked.

    Raises:
      ValueError: as `get_topology_devices`, or the mesh does not fit their number.
    """
    name, _ = parse_topology(topology)
    mesh = sharding.make_mesh(
        config.mesh, get_topology_devices(topology, num_slices), packed=members > 1
    )
    chip = CHIPS[name]
    traced = trace_step(config, vocab_size, mesh, members)
    figures: dict[str, Any] = {
        "topology": topology,
        "slices": num_slices,
        "chip": name,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "hbm": chip.hbm,
    }
    began = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if not hardware.is_out_of_memory(error):
            raise
        return figures | {"fits": False, "error": str(error).splitlines()[0]}
    memory = hardware.count_program_memory(compiled.memory_analysis())
    program = traffic.Program(compiled.as_text()).list_costs()
    tokens = config.batch_size * config.model.L * members
    flops = tokens * costs.compute_flops_per_token(config.model, vocab_size) / mesh.size
    return figures | {
        "compile_seconds": time.perf_counter() - began,
        "memory": memory,
        "fits": memory["peak"] <= chip.hbm,
        "bound": compute_bound(chip, flops, program),
        "kernels": sum(cost.runs for cost in program if cost.is_kernel),
    }


def trace_step(config: Config, vocab_size: int, mesh: jax.sharding.Mesh, members: int = 1) -> Any:
    """Returns the step traced on shapes alone, ready to be lowered for the mesh's devices."""
    state = step_lib.make_abstract_state(config, vocab_size, mesh)
    rows, whole = sharding.make_batch_sharding(mesh), sharding.make_replicated_sharding(mesh)
    B, W, G = config.batch_size, config.model.L + 1, len(config.languages)
    batch = step_lib.Batch(
        ids_BW=jax.ShapeDtypeStruct((B, W), jnp.uint16, sharding=rows),
        language_B=jax.ShapeDtypeStruct((B,), jnp.int32, sharding=rows),
    )
    if config.model.documents == "apart":
        batch = dataclasses.replace(batch, separator_B=batch.language_B)
    if config.model.dropout:
        key_B = jax.ShapeDtypeStruct((B, 2), jnp.uint32, sharding=rows)
        batch = dataclasses.replace(batch, key_B=key_B)
    map_GU = jax.ShapeDtypeStruct((G, vocab_size // G), jnp.int32, sharding=whole)
    if members == 1:
        return step_lib.jit_step(config, config.steps, mesh, state).trace(state, batch, map_GU)
    given = step_lib.StepInput(
        batch,
        rate=jax.ShapeDtypeStruct((), jnp.float32, sharding=whole),
        alive=jax.ShapeDtypeStruct((), jnp.bool_, sharding=whole),
    )
    each = mesh.shape["member"]
    size = -(-members // each) * each
    state_E, given_E, map_EGU = (pack_lib.stack_shapes(x, size) for x in (state, given, map_GU))
    step = step_lib.jit_step(config, config.steps, mesh, state_E, tuning.choose_packing(mesh))
    return step.trace(state_E, given_E, map_EGU)


def compute_bound(chip: Chip, flops: float, program: Sequence[traffic.Cost]) -> dict[str, float]:
    """Returns the least time of a step on a chip, and the most MFU that it leaves.

    Args:
      chip: that runs it.
      flops: of one chip, as `costs.compute_flops_per_token` counts them.
      program: what the instructions of the compiled step cost.
    """
    program_flops = sum(cost.flops for cost in program)
    program_bytes = sum(cost.bytes for cost in program)
    compute_seconds = max(flops, program_flops) / chip.peak
    memory_seconds = program_bytes / chip.bandwidth
    serial_seconds = sum(
        max(cost.flops / chip.peak, cost.bytes / chip.bandwidth)
        for cost in program
        if not cost.is_asynchronous
    )
    bound_seconds = max(compute_seconds, memory_seconds, serial_seconds)
    return {
        "flops": flops,
        "program_flops": program_flops,
        "program_bytes": program_bytes,
        "compute_seconds": compute_seconds,
        "memory_seconds": memory_seconds,
        "serial_seconds": serial_seconds,
        "bound_seconds": bound_seconds,
        "bound_mfu": flops / chip.peak / bound_seconds,
    }


def describe_topology_step(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yields what `measure_step_on_topology` returns as lines of a table."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in figures["mesh"].items() if size > 1)
    slices = f" in {figures['slices']} slices" if figures["slices"] > 1 else ""
    sizes = f" ({mesh})" if mesh else ""
    yield f"{figures['topology']}: {figures['chips']} chips{slices}{sizes}"
    if "error" in figures:
        yield f"  does not fit {figures['hbm'] / 1e9:.1f} GB a chip: {figures['error']}"
        return
    memory, bound = figures["memory"], figures["bound"]
    verdict = "fits" if figures["fits"] else "does not fit"
    rows = {
        "compiled in": f"{figures['compile_seconds']:.0f} s",
        "memory a chip": f"{memory['peak'] / 1e9:.2f} of {figures['hbm'] / 1e9:.1f} GB: {verdict} "
        f"(arguments {memory['arguments'] / 1e9:.2f}, temporary {memory['temporary'] / 1e9:.2f})",
        "matrix products": f"{bound['program_flops'] / 1e12:.2f} TFLOP of the program "
        f"({bound['flops'] / 1e12:.2f} by convention), "
        f"{bound['compute_seconds'] * 1e3:.1f} ms at the peak",
        "traffic of HBM": f"{bound['program_bytes'] / 1e9:.1f} GB, "
        f"{bound['memory_seconds'] * 1e3:.1f} ms at full bandwidth",
        "one by one": f"{bound['serial_seconds'] * 1e3:.1f} ms for instructions in turn, each at "
        "its own bound",
        "bound": f"{bound['bound_seconds'] * 1e3:.1f} ms or more a step, "
        f"MFU at most {bound['bound_mfu']:.1%}",
    }
    if figures["kernels"]:
        rows["Pallas kernels"] = f"{figures['kernels']} calls, whose FLOPs are not counted"
    for name, value in rows.items():
        yield f"  {name:<16} {value}"
