"""What a run will be, in words, before it starts."""

import time
from typing import Any

import jax

from imbalance_jax import config as config_lib
from imbalance_jax import hardware, step
from imbalance_jax import model as model_lib
from imbalance_jax.config import Config
from imbalance_jax.progress import clock
from imbalance_jax.train import Trainer

# A step expected to take longer than this is not tried out in a dry run.
_TRIAL_SECONDS = 20.0
# The share of the matmul peak that a step is assumed to reach where none is tried.
_ASSUMED_MFU = 0.4


def describe(trainer: Trainer) -> str:
    """Returns the model, the text and the ratio of a run."""
    config, stream = trainer.config, trainer.stream
    parameters = model_lib.count_parameters(config.model, trainer.vocabulary.size)
    tokens = stream.steps * config.batch_size * config.model.L
    device = hardware.describe()
    mesh = " x ".join(f"{axis} {n}" for axis, n in trainer.mesh.shape.items() if n > 1)
    lines = [
        f"{parameters:,} parameters, vocabulary {trainer.vocabulary.size:,}, "
        f"on {device['count']} {device['kind']}" + (f" ({mesh})" if mesh else ""),
        f"{stream.steps:,} steps of {config.batch_size} x {config.model.L} = {tokens:,} tokens",
    ]
    for tag in config.tags:
        language = config.languages[tag]
        of = f"clone of {language.clone_of}" if language.clone_of else f"source {language.source}"
        lines.append(f"  {tag}: {_share(config, tag)} of the sequences, {of}")
    dry = stream.dry_steps()
    for name, epochs in stream.epochs().items():
        tokens = trainer.sources[name].count("train")
        used = f"  source {name}: {epochs:.2f} epochs of {tokens:,} tokens"
        if name in dry:
            used += f", used up at step {dry[name]:,} ({config.mixture.on_exhaustion})"
        lines.append(used)
    return "\n".join(lines)


def _share(config: Config, tag: str) -> str:
    stages = config_lib.stages(config.mixture)
    return ", then ".join(f"{ratio[tag] / sum(ratio.values()):.4g}" for _, ratio in stages)


def describe_extension(before: Config, trainer: Trainer) -> str:
    """Returns what more steps do to the learning rate and to the stages."""
    config, steps = trainer.config, trainer.stream.steps
    at = min(before.steps, steps) - 1
    old = float(step.learning_rate(before.optimizer, before.steps)(at))
    new = float(step.learning_rate(config.optimizer, steps)(at))
    text = f"Extended from {before.steps:,} to {steps:,} steps."
    if config.optimizer.schedule != "constant":
        text += (
            f" The {config.optimizer.schedule} schedule now spans all of them: at step "
            f"{before.steps:,} the learning rate goes from {old:.3g} up to {new:.3g}."
        )
    return text


def forecast(trainer: Trainer) -> str:
    """Returns the memory and the time that a run would take, for --dry_run.

    A step is tried out where it is short; otherwise its time is an estimate.
    """
    state = trainer.abstract_state()
    compiled = trainer.compile_step(state)
    memory: Any = compiled.memory_analysis()
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    per_device = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    lines = [f"parameters and optimizer {_size(held)}; a step needs {_size(per_device)} per device"]
    limit = hardware.memory_per_device()
    if limit:
        lines[0] += f" of {_size(limit)}"
    if limit and per_device > limit:
        lines.append(
            f"It does not fit. {_fitting(trainer, memory, limit)} "
            "config.model.remat='full' helps too."
        )
    guess = trainer.flops_per_step() / (hardware.peak_flops().value * _ASSUMED_MFU)
    if guess > _TRIAL_SECONDS or (limit and per_device > limit):
        seconds, how = guess, f"at an assumed {_ASSUMED_MFU:.0%} of {hardware.peak_flops().source}"
    else:
        seconds, how = _try_step(trainer, compiled), "measured over 3 steps"
    total = seconds * trainer.stream.steps
    lines.append(f"{seconds:.3g} s a step ({how}): {clock(total)} for training, plus evaluation")
    return "\n".join(lines)


def _fitting(trainer: Trainer, memory: Any, limit: int) -> str:
    """Returns how many micro-batches should fit, as their temporary memory shrinks with them."""
    left = 0.9 * limit - memory.argument_size_in_bytes
    now = trainer.config.optimizer.accumulate
    choices = [
        k
        for k in range(now + 1, trainer.config.batch_size + 1)
        if trainer.config.batch_size % k == 0 and memory.temp_size_in_bytes * now / k <= left
    ]
    if left <= 0 or not choices:
        return "Use a smaller model or more devices."
    return f"Try config.optimizer.accumulate={choices[0]}."


def _try_step(trainer: Trainer, compiled: jax.stages.Compiled) -> float:
    state, map_GU = trainer.init_state(), trainer.map_GU()
    batch = trainer.place(trainer.stream.batch(0))
    state, _ = jax.block_until_ready(compiled(state, batch, map_GU))
    began = time.perf_counter()
    for _ in range(3):
        state, _ = compiled(state, batch, map_GU)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / 3


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
