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


@dataclasses.dataclass(frozen=True)
class Peak:
    value: float  # FLOP/s of all devices together
    source: str


@functools.cache
def peak_flops() -> Peak:
    """Returns the matmul peak of all devices: from the datasheet, or else measured here."""
    device, count = jax.devices()[0], jax.device_count()
    for part, peak in DATASHEET_PEAK.items():
        if part.lower() in device.device_kind.lower():
            return Peak(peak * count, f"datasheet: {part}, dense bf16, {count} devices")
    size = 2048
    # Simulated devices of one machine share its cores: together they have one peak.
    shared = 1 if device.platform == "cpu" else count
    return Peak(
        measured_matmul_peak(size) * shared,
        f"measured: best float32 matmul of {size}^3 in this process",
    )


def measured_matmul_peak(size: int = 2048, tries: int = 4) -> float:
    """Returns the FLOP/s of the fastest of a few square fp32 matrix products."""
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
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
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total // jax.local_device_count()
    return None
