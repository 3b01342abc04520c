"""The training step: speed, shares of the device's peaks, where the time goes, and memory."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from imbalance_jax.bench import profile
from imbalance_jax.compute import hardware
from imbalance_jax.config import costs
from imbalance_jax.runs.code_versions import get_code_versions
from imbalance_jax.training.experiment import Experiment

# How many steps are run for each figure: at least, and at most.
LEAST_STEPS, MOST_STEPS = 3, 300


class StepLoop:
    """Steps one after the other, as training has them.

    The host makes the next batch while the devices work, and reads the metrics of the step before.
    The loop goes on where it stopped, and begins again at the end of the stream.
    """

    def __init__(
        self,
        state: Any,
        update: jax.stages.Compiled,
        make_batch: Callable[[int], Any],
        maps: jax.Array,
        steps: int,
    ) -> None:
        self._state, self._update, self._maps = state, update, maps
        self._make_batch, self._steps, self._done = make_batch, steps, 0

    def run(self, count: int) -> dict[str, float]:
        """Trains for some steps; returns the mean seconds of a step, and the host's part of it."""
        data, dispatch, pending = 0.0, 0.0, None
        began = time.perf_counter()
        for _ in range(count):
            start = time.perf_counter()
            batch = self._make_batch(self._done % self._steps)
            placed = time.perf_counter()
            self._state, metrics = self._update(self._state, batch, self._maps)
            data += placed - start
            dispatch += time.perf_counter() - placed
            self._done += 1
            jax.device_get(pending)
            pending = metrics
        jax.block_until_ready(self._state)
        whole = time.perf_counter() - began
        return {"step": whole / count, "data": data / count, "dispatch": dispatch / count}

    def run_alone(self, batch: Any) -> float:
        """Returns the seconds of one step whose batch waits on the devices."""
        began = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._update(self._state, batch, self._maps))
        return time.perf_counter() - began


def make_run_loop(experiment: Experiment, update: jax.stages.Compiled) -> StepLoop:
    """Returns the loop of a run alone, at its first step."""
    state, map_GU = experiment.init_state(), experiment.map_GU()
    return StepLoop(state, update, experiment.batch, map_GU, experiment.stream.steps)


def measure_training_step(
    experiment: Experiment, *, seconds: float = 5.0, profiled: bool = True
) -> dict[str, Any]:
    """Returns all figures of a run's training step on the devices at hand, ready for JSON.

    `step` is the time of a step in a loop as training has it. `device` is that of a step alone,
    its batch waiting on the devices. `data` and `dispatch` are the host's: making a batch and
    placing it, and handing the step over. Each of the two loops goes on for so many seconds. With
    `profiled`, the time of a step is split into the parts of the model too.
    """
    began = time.perf_counter()
    update = experiment.compile_step(experiment.abstract_state())
    compile_seconds = time.perf_counter() - began
    loop = make_run_loop(experiment, update)
    config, vocab_size = experiment.config, experiment.vocabulary.size
    model, tokens = experiment.settled_model(), config.batch_size * config.model.L

    peaks = [hardware.measure_matmul_peak(model.dtype)]
    batches = [experiment.batch(index) for index in range(4)]
    loop.run_alone(batches[0])
    alone: list[float] = []
    for batch in itertools.islice(itertools.cycle(batches), MOST_STEPS):
        if len(alone) >= LEAST_STEPS and sum(alone) >= seconds:
            break
        alone.append(loop.run_alone(batch))
    device = statistics.median(alone)
    peaks.append(hardware.measure_matmul_peak(model.dtype))
    count = int(min(MOST_STEPS, max(LEAST_STEPS, seconds / device)))
    in_loop = loop.run(count)
    peaks.append(hardware.measure_matmul_peak(model.dtype))
    parts = (
        profile.measure_part_seconds(update, lambda: loop.run_alone(batches[0])) if profiled else {}
    )

    speed = tokens / in_loop["step"]
    per_token = costs.compute_flops_per_token(model, vocab_size)
    full = per_token + 6.0 * model.N * model.H * model.K * model.L
    peak = max(peaks) * hardware.count_independent_devices()
    datasheet = hardware.find_datasheet_flops()
    memory = hardware.count_program_memory(update.memory_analysis())
    allocator = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in allocator:  # the most that was in use so far, by whatever program
        memory["allocator_peak"] = allocator["peak_bytes_in_use"]
    return {
        "versions": get_code_versions(),
        "device": hardware.describe_devices(),
        "mesh": dict(experiment.mesh.shape),
        "batch_size": config.batch_size,
        "accumulate": config.optimizer.accumulate,
        "model": dataclasses.asdict(model),
        "vocab_size": vocab_size,
        "parameters": experiment.count_parameters(),
        "flop_convention": costs.FLOP_CONVENTION,
        "flops_per_token": per_token,
        "flops_per_token_full": full,
        "tokens_per_second": speed,
        "flops_per_second": speed * per_token,
        "seconds": {
            "step": in_loop["step"],
            "device": device,
            "device_least": min(alone),
            "device_most": max(alone),
            "data": in_loop["data"],
            "dispatch": in_loop["dispatch"],
        },
        "steps": {"alone": len(alone), "loop": count},
        "matmul_peak": {
            "flops": peak,
            "dtype": model.dtype,
            "size": hardware.choose_matmul_size(),
        },
        # None where the device has no datasheet here, as a CPU. `full`: of flops_per_token_full,
        # which counts attention to later positions too.
        "datasheet_flops": datasheet,
        "mfu_of_matmul_peak": speed * per_token / peak,
        "mfu_of_datasheet": speed * per_token / datasheet if datasheet else None,
        "mfu_of_datasheet_full": speed * full / datasheet if datasheet else None,
        "parts": parts,
        "memory": memory,
        "compile_seconds": compile_seconds,
    }


def describe_training_step(name: str, figures: dict[str, Any]) -> Iterable[str]:
    """Yields the figures of a case as lines."""
    seconds, memory, model = figures["seconds"], figures["memory"], figures["model"]
    yield (
        f"{name}: {figures['batch_size']} x {model['L']}, vocabulary {figures['vocab_size']:,}, "
        f"{figures['parameters'] / 1e6:,.1f} M parameters, {model['dtype']}, "
        f"attention {model['attention']}, remat {model['remat']}, layers "
        f"{'scanned' if model['scan_layers'] else 'unrolled'}, loss in chunks of "
        f"{model['loss_chunk']} positions and {model['loss_tile'] or figures['vocab_size']:,} ids"
    )
    peak = figures["matmul_peak"]
    line = (
        f"  {figures['tokens_per_second']:,.0f} tokens/s, {figures['mfu_of_matmul_peak']:.1%} of "
        f"the matmul peak measured here ({peak['flops'] / 1e12:,.3g} TFLOP/s, {peak['dtype']})"
    )
    if figures["mfu_of_datasheet"] is not None:
        line += (
            f", {figures['mfu_of_datasheet']:.1%} of the datasheet's "
            f"({figures['mfu_of_datasheet_full']:.1%} with attention counted in full)"
        )
    yield line
    yield (
        f"  step {seconds['step'] * 1e3:,.1f} ms (mean of {figures['steps']['loop']} in a loop, "
        f"where the host makes batches meanwhile: data {seconds['data'] * 1e3:,.2f} ms, dispatch "
        f"{seconds['dispatch'] * 1e3:,.2f} ms); alone {seconds['device'] * 1e3:,.1f} ms (median of "
        f"{figures['steps']['alone']}, {seconds['device_least'] * 1e3:,.1f} to "
        f"{seconds['device_most'] * 1e3:,.1f})"
    )
    whole = sum(figures["parts"].values())
    if whole:
        shares = [f"{part} {value / whole:.0%}" for part, value in figures["parts"].items()]
        yield f"  of {whole * 1e3:,.1f} ms that a trace of one step shows: {', '.join(shares)}"
    yield (
        f"  memory of a device, as XLA plans it: state and batch "
        f"{memory['arguments'] / 1e6:,.0f} MB, temporary "
        f"{memory['temporary'] / 1e6:,.0f} MB, peak {memory['peak'] / 1e6:,.0f} MB; compiled in "
        f"{figures['compile_seconds']:.1f} s"
    )
