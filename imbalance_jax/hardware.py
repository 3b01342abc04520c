"""What the devices at hand can do: the denominators of every share that we report."""

import dataclasses
import functools
import os
import time

import jax
import jax.numpy as jnp

# Dense bf16 matmul peak of the datasheets, FLOP/s per chip, by a part of the device's kind.
DATASHEET_PEAK = {
    "H100": 989.4e12,
    "H200": 989.4e12,
    "A100": 312e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}


def use_compilation_cache(path: str | os.PathLike) -> None:
    """Keeps compiled programs on disk, so that a second start needs no compilation.

    JAX_COMPILATION_CACHE_DIR, where it is set, names the place instead.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.fspath(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


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
class Peak:
    value: float  # FLOP/s of all devices together
    source: str


@functools.cache
def peak_flops() -> Peak:
    """Returns the matmul peak of all devices: from the datasheet, or else measured here."""
    datasheet = datasheet_flops()
    if datasheet:
        return Peak(datasheet, f"datasheet: dense bf16, {jax.device_count()} devices")
    return Peak(
        measured_matmul_peak() * devices_apart(),
        "measured: best float32 matmul of 2048^3 in this process",
    )


def datasheet_flops() -> float | None:
    """Returns the dense bf16 peak of all devices together, or None where it is not known."""
    kind = jax.devices()[0].device_kind.lower()
    for part, peak in DATASHEET_PEAK.items():
        if part.lower() in kind:
            return peak * jax.device_count()
    return None


def devices_apart() -> int:
    """Returns how many devices have a peak of their own.

    Simulated devices of one machine share its cores: together they have one.
    """
    return 1 if jax.devices()[0].platform == "cpu" else jax.device_count()


def measured_matmul_peak(dtype: str = "float32", tries: int = 4) -> float:
    """Returns the FLOP/s of a device in the fastest of a few square matrix products.

    Of 2048^3 on a CPU, where larger ones are no faster, and of 8192^3 elsewhere, on random data.
    """
    size = 2048 if jax.devices()[0].platform == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    best = float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        multiply(x, x).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def describe() -> dict[str, str | int]:
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def memory_per_device() -> int | None:
    """Returns the bytes that one device can hold, or None where that is not known."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total // jax.local_device_count()
    return None
