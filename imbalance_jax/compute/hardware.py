"""What the devices at hand can do: the denominators of every share that we report."""

import dataclasses
import functools
import os
import pathlib
import platform
import sys
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from imbalance_jax.runs import children, storage

# Dense bf16 matmul peak of a JAX device, FLOP/s, by its whole kind: cards of one name differ, and
# so do parts of a card. Figures of TPUs are from cloud.google.com/tpu/docs. Those of NVIDIA's cards
# are as other trainers quote them from nvidia.com, halved where they are with sparsity. Kinds of
# TPU are those of jax/_src/pallas/mosaic/tpu_info.py; a device of TPU v3 or 7x is half a chip. A
# card whose figure was not found is left out, and is measured.
DATASHEET_PEAK = {
    "NVIDIA H100 80GB HBM3": 989.4e12,  # SXM
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,  # SXM
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
}


def use_compilation_cache(path: str | os.PathLike) -> None:
    """Keeps compiled programs on disk, so that a second start needs no compilation.

    JAX_COMPILATION_CACHE_DIR, where it is set, names the place instead. A place that cannot be
    written ends no run: one line says that every start compiles.
    """
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given is None:
        jax.config.update("jax_compilation_cache_dir", os.fspath(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    _catch_cache_warnings()
    try:
        storage.try_directory(given or path)
    except OSError as error:
        jax.config.update("jax_enable_compilation_cache", False)
        _warn_of_lost_programs(storage.describe_os_error(error))


@functools.cache
def _catch_cache_warnings() -> None:
    """Replaces what jax says, for each program that it cannot keep, by one line."""
    show = warnings.showwarning

    def show_once(message: Warning | str, *details: Any) -> None:
        if "persistent compilation cache entry" in str(message):
            _warn_of_lost_programs(str(message).partition("': ")[2])
        else:
            show(message, *details)

    warnings.showwarning = show_once  # type: ignore[assignment]


def _warn_of_lost_programs(why: str) -> None:
    global _has_warned
    if not _has_warned:
        _has_warned = True
        print(f"Warning: every start compiles its programs again. {why}", file=sys.stderr)


_has_warned = False  # of programs that cannot be kept


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device, or of this machine, does not suffice.

    The class of XLA's errors is the same for all of them, and the status that tells them apart
    is the first word of their text. Errors of other libraries may begin with that word too: a
    full disk is one of TensorStore's.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        return str(error).startswith("RESOURCE_EXHAUSTED:")
    return isinstance(error, MemoryError)


@dataclasses.dataclass(frozen=True)
class PeakFlops:
    value: float  # FLOP/s of all devices together
    source: str


@functools.cache
def get_peak_flops(dtype: str) -> PeakFlops:
    """Returns the matmul peak of all devices: from the datasheet, or else measured here.

    Args:
      dtype: of the run's matrix products. Datasheets are read for bfloat16 only.
    """
    datasheet = find_datasheet_flops() if dtype == "bfloat16" else None
    if datasheet:
        return PeakFlops(datasheet, f"datasheet: dense bf16, {jax.device_count()} devices")
    return PeakFlops(
        measure_matmul_peak(dtype) * count_independent_devices(),
        f"measured: best {dtype} matmul of {choose_matmul_size()}^3 in this process",
    )


def find_datasheet_flops() -> float | None:
    """Returns the dense bf16 peak of all devices together, or None where it is not known."""
    each = DATASHEET_PEAK.get(jax.devices()[0].device_kind)
    return each * jax.device_count() if each else None


def count_independent_devices() -> int:
    """Returns how many devices have a peak of their own.

    Simulated devices of one machine share its cores: together they have one.
    """
    return 1 if jax.devices()[0].platform == "cpu" else jax.device_count()


def choose_matmul_size() -> int:
    """Returns the size of the products that are timed: on a CPU, larger ones are no faster."""
    return 2048 if jax.devices()[0].platform == "cpu" else 8192


def measure_matmul_peak(dtype: str, tries: int = 4) -> float:
    """Returns the FLOP/s of a device in the fastest of a few square products of random data."""
    size = choose_matmul_size()
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    # As products.multiply_rounded has it: a CPU's bf16 units are used for fp32 results only.
    wide = jnp.float32 if jax.default_backend() == "cpu" else None
    multiply = jax.jit(functools.partial(jnp.matmul, preferred_element_type=wide))
    multiply(x, x).block_until_ready()
    best = float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        multiply(x, x).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def count_usable_cores() -> int:
    """Returns how many threads XLA computes with on a CPU: the cores that the process may use."""
    for name in ("PJRT_NPROC", "NPROC"):  # as XLA reads them
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return children.count_cores()


def read_cpu_name() -> str:
    """Returns the CPU's name, as XLA compiles for the instructions that it has."""
    file = pathlib.Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_devices() -> dict[str, str | int]:
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def count_program_memory(analysis: Any) -> dict[str, int]:
    """Returns the bytes that a program takes of each device, from its `memory_analysis()`.

    `arguments` are what it is given, such as the state and the batch, `temporary` is what it needs
    besides, and `peak` is the most at any one time: both, and the results that do not take the
    place of an argument. XLA sets the temporary memory aside in one piece, so it counts whole.
    (XLA's own figure of that name leaves the temporary memory out on a CPU.)
    """
    arguments, temporary = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return {
        "arguments": arguments,
        "temporary": temporary,
        "peak": arguments + temporary + results,
    }


def get_device_memory() -> int | None:
    """Returns the bytes that one device can hold, or None where that is not known."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total // jax.local_device_count()
    return None
