"""The training step: speed, shares of the device's peaks, where the time goes, and memory."""

import dataclasses
import statistics
import time
from collections.abc import Iterable
from typing import Any

import jax

from imbalance_jax.bench import profile
from imbalance_jax.compute import hardware
from imbalance_jax.compute import model as model_lib
from imbalance_jax.config import costs
from imbalance_jax.runs.code_versions import get_code_versions
from imbalance_jax.training.experiment import Experiment

# How long steps are run for each figure: so many at least, for so long, and no more than these.
_LEAST, _SECONDS, _MOST = 3, 5.0, 300


def measure_training_step(
    trainer: Experiment, *, seconds: float = _SECONDS, profiled: bool = True
) -> dict[str, Any]:
    """Returns all figures of a run's training step on the devices at hand, ready for JSON.

    `step` is the time of a step in a loop as training has it, which makes the next batch while
    the devices work and reads the metrics of the step before. `device` is that of a step alone,
    its batch waiting on the devices. `data` and `dispatch` are the host's: making a batch and
    placing it, and handing the step over.

    Args:
      trainer: of a run.
      seconds: how long each of the two loops goes on.
      profiled: whether the time of a step is split into parts of the model too.
    """
    abstract = trainer.abstract_state()
    began = time.perf_counter()
    update = trainer.compile_step(abstract)
    compiling = time.perf_counter() - began
    state, map_GU = trainer.init_state(), trainer.map_GU()
    dtype = trainer.settled_model().dtype
    peaks = [hardware.measure_matmul_peak(dtype)]

    batches = [trainer.batch(index) for index in range(4)]
    state, _ = jax.block_until_ready(update(state, batches[0], map_GU))
    alone: list[float] = []
    while len(alone) < _LEAST or (sum(alone) < seconds and len(alone) < _MOST):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(update(state, batches[len(alone) % 4], map_GU))
        alone.append(time.perf_counter() - began)
    device = statistics.median(alone)
    peaks.append(hardware.measure_matmul_peak(dtype))

    count = int(min(_MOST, max(_LEAST, seconds / device)))
    state, loop = _time_step_loop(trainer, update, state, map_GU, count)
    peaks.append(hardware.measure_matmul_peak(dtype))

    parts = {}
    if profiled:
        holder = [state]

        def once() -> None:
            holder[0], _ = jax.block_until_ready(update(holder[0], batches[0], map_GU))

        parts = profile.measure_part_seconds(update, once)
        state = holder[0]
    del state
    return _summarise_step(trainer, update, compiling, alone, loop, max(peaks), parts)


def _time_step_loop(
    trainer: Experiment, update: Any, state: Any, map_GU: jax.Array, count: int
) -> tuple[Any, dict[str, float]]:
    """Trains for some steps; returns the state and the mean seconds of a step and its parts."""
    spent = {"data": 0.0, "dispatch": 0.0}
    pending = None
    began = time.perf_counter()
    for index in range(count):
        start = time.perf_counter()
        batch = trainer.batch(index)
        placed = time.perf_counter()
        state, metrics = update(state, batch, map_GU)
        spent["data"] += placed - start
        spent["dispatch"] += time.perf_counter() - placed
        if pending is not None:
            jax.device_get(pending)
        pending = metrics
    jax.block_until_ready(state)
    whole = time.perf_counter() - began
    return state, {"step": whole / count, "steps": count} | {
        name: value / count for name, value in spent.items()
    }


def _summarise_step(
    trainer: Experiment,
    update: jax.stages.Compiled,
    compiling: float,
    alone: list[float],
    loop: dict[str, float],
    peak: float,
    parts: dict[str, float],
) -> dict[str, Any]:
    config, vocab_size = trainer.config, trainer.vocabulary.size
    model, tokens = trainer.settled_model(), config.batch_size * config.model.L
    per_token = costs.compute_flops_per_token(model, vocab_size)
    full = per_token + 6.0 * model.N * model.H * model.K * model.L
    datasheet = hardware.find_datasheet_flops()
    speed = tokens / loop["step"]
    shared = hardware.count_independent_devices()
    return {
        "versions": get_code_versions(),
        "device": hardware.describe_devices(),
        "mesh": dict(trainer.mesh.shape),
        "batch_size": config.batch_size,
        "accumulate": config.optimizer.accumulate,
        "model": dataclasses.asdict(model),
        "vocab_size": vocab_size,
        "parameters": model_lib.count_parameters(model, vocab_size),
        "flop_convention": costs.FLOP_CONVENTION,
        "flops_per_token": per_token,
        "flops_per_token_full": full,
        "tokens_per_second": speed,
        "flops_per_second": speed * per_token,
        "seconds": {
            "step": loop["step"],
            "device": statistics.median(alone),
            "device_least": min(alone),
            "device_most": max(alone),
            "data": loop["data"],
            "dispatch": loop["dispatch"],
        },
        "steps": {"alone": len(alone), "loop": loop["steps"]},
        "matmul_peak": {
            "flops": peak * shared,
            "dtype": model.dtype,
            "size": hardware.choose_matmul_size(),
        },
        # None where the device has no datasheet here, as a CPU. `full`: of flops_per_token_full,
        # which counts attention to later positions too.
        "datasheet_flops": datasheet,
        "mfu_of_matmul_peak": speed * per_token / (peak * shared),
        "mfu_of_datasheet": speed * per_token / datasheet if datasheet else None,
        "mfu_of_datasheet_full": speed * full / datasheet if datasheet else None,
        "parts": parts,
        "memory": count_program_memory(update),
        "compile_seconds": compiling,
    }


def count_program_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes that a program holds on a device, as XLA reports them.

    `arguments` is the state and the batch, `temporary` what a step needs besides, and `peak`
    the most at any one time: all of it, as XLA reserves it. (Its own figure of that name leaves
    the temporary memory out on a CPU.) `allocator_peak` is what the device's allocator saw.
    """
    stats: Any = compiled.memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    found = {
        "arguments": stats.argument_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "peak": stats.argument_size_in_bytes + stats.temp_size_in_bytes + outputs,
    }
    allocator = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in allocator:
        found["allocator_peak"] = allocator["peak_bytes_in_use"]
    return found


def describe_training_step(name: str, found: dict[str, Any]) -> Iterable[str]:
    """Yields the figures of a case as lines."""
    seconds, memory_, model = found["seconds"], found["memory"], found["model"]
    yield (
        f"{name}: {found['batch_size']} x {model['L']}, vocabulary {found['vocab_size']:,}, "
        f"{found['parameters'] / 1e6:,.1f} M parameters, {model['dtype']}, "
        f"attention {model['attention']}, remat {model['remat']}, layers "
        f"{'scanned' if model['scan_layers'] else 'unrolled'}, loss in chunks of "
        f"{model['loss_chunk']} positions"
    )
    peak = found["matmul_peak"]
    line = (
        f"  {found['tokens_per_second']:,.0f} tokens/s, {found['mfu_of_matmul_peak']:.1%} of the "
        f"matmul peak measured here ({peak['flops'] / 1e12:,.3g} TFLOP/s, {peak['dtype']})"
    )
    if found["mfu_of_datasheet"] is not None:
        line += (
            f", {found['mfu_of_datasheet']:.1%} of the datasheet's "
            f"({found['mfu_of_datasheet_full']:.1%} with attention counted in full)"
        )
    yield line
    yield (
        f"  step {seconds['step'] * 1e3:,.1f} ms (mean of {found['steps']['loop']} in a loop, "
        f"where the host makes batches meanwhile: data {seconds['data'] * 1e3:,.2f} ms, dispatch "
        f"{seconds['dispatch'] * 1e3:,.2f} ms); alone {seconds['device'] * 1e3:,.1f} ms (median of "
        f"{found['steps']['alone']}, {seconds['device_least'] * 1e3:,.1f} to "
        f"{seconds['device_most'] * 1e3:,.1f})"
    )
    whole = sum(found["parts"].values())
    if whole:
        shares = [f"{part} {value / whole:.0%}" for part, value in found["parts"].items()]
        yield f"  of {whole * 1e3:,.1f} ms that a trace of one step shows: {', '.join(shares)}"
    yield (
        f"  memory of a device, as XLA plans it: state and batch "
        f"{memory_['arguments'] / 1e6:,.0f} MB, temporary "
        f"{memory_['temporary'] / 1e6:,.0f} MB, peak {memory_['peak'] / 1e6:,.0f} MB; compiled in "
        f"{found['compile_seconds']:.1f} s"
    )
