"""What a run will be, in words, before it starts."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.compute import hardware, step
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import model as model_lib
from imbalance_jax.config import Config, mesh_shape
from imbalance_jax.data import languages
from imbalance_jax.data.order.corpora import describe_documents
from imbalance_jax.data.text import synthetic
from imbalance_jax.runs import storage
from imbalance_jax.runs.progress import format_duration
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import placement
from imbalance_jax.training.pack import Pack
from imbalance_jax.training.train import Experiment

# A step expected to take longer than this is not tried out in a dry run.
_TRIAL_SECONDS = 20.0
# The share of the matmul peak that a step is assumed to reach where none is tried.
_ASSUMED_MFU = 0.4


def describe_planned_run(trainer: Experiment) -> str:
    """Returns the model, the text and the ratio of a run."""
    config, stream = trainer.config, trainer.stream
    parameters = model_lib.count_parameters(config.model, trainer.vocabulary.size)
    tokens = stream.steps * config.batch_size * config.model.L
    device = hardware.describe_devices()
    lines = [
        f"{parameters:,} parameters, vocabulary {trainer.vocabulary.size:,}, "
        f"on {device['count']} {device['kind']}",
        f"{stream.steps:,} steps of {config.batch_size} x {config.model.L} = {tokens:,} tokens",
    ]
    model = trainer.settled_model()
    lines.append(
        f"computed in {model.dtype}, attention {model.attention}, layers "
        f"{'scanned' if model.scan_layers else 'unrolled'}, remat {model.remat}"
    )
    if stream.steps < config.steps:
        lines[1] += f", where the text ends; {config.steps:,} steps were asked for"
    for tag in config.tags:
        lines.append(
            f"  {tag}: {_describe_language_ratio(config, tag)} of the sequences, "
            f"{_describe_language_origin(trainer, tag)}"
        )
    if config.mixture.temperature:
        lines.append(
            f"  ratio from the sizes of the sources, temperature {config.mixture.temperature:g}"
        )
    lines += [f"  {said}" for said in stream.unexpected_shares()]
    lines += _describe_merged_vocabulary(trainer)
    dry = stream.dry_steps()
    for pool, epochs in stream.epochs().items():
        tokens = stream.windows[pool] * config.model.L
        used = f"  source {pool}: {epochs:.3g} epochs of {tokens:,} tokens"
        if tokens > synthetic.ENDLESS // 2:
            used = f"  source {pool}: without end"
        if pool in dry:
            used += f", used up at step {dry[pool]:,} ({config.mixture.on_exhaustion})"
        lines.append(used)
    documents = describe_documents(config, trainer.sources, stream.taken_documents())
    lines += [f"  {line}" for line in documents]
    for name, set_ in trainer.parallel.items():
        first, second = set_.sources
        counts = set_.about["counts"]
        lines.append(
            f"  parallel {name}: {int(set_.pairs_P.sum()):,} pairs of {first} and {second} in "
            f"{len(set_.pairs_P):,} sequences; {counts['too_long']:,} longer than "
            f"config.model.L={config.model.L}, {counts['empty']:,} with an empty side "
            f"and {counts['dropped']:,} in sequences that were too short are left out"
        )
    if trainer.mesh.size > 1:
        batch = (config.batch_size, config.model.L + 1)
        lines += placement.render_sharding_table(trainer.abstract_state(), trainer.mesh, batch)
    return "\n".join(lines)


def _describe_language_ratio(config: Config, tag: str) -> str:
    said = [
        f"{ratio[tag] / sum(ratio.values()):.4g}" + (f" from step {first:,}" if first else "")
        for first, ratio in config_lib.list_stages(config)
    ]
    return ", ".join(said)


def _describe_language_origin(trainer: Experiment, tag: str) -> str:
    """Returns where a language comes from, and what it shares with its parent."""
    config = trainer.config
    language = config.languages[tag]
    said = f"clone of {language.clone_of}" if language.clone_of else f"source {language.source}"
    if language.words != "as_written":
        said += f", words {language.words}"
    if language.anchors:
        pieces = trainer.source(tag).pieces
        anchored_U = ~languages.select_cloned_ids(pieces, language, config.vocabulary)
        said += f", {anchored_U.sum():,} anchors ({anchored_U.mean():.1%} of ids"
        if pieces.counts_U is not None:
            said += f", {languages.compute_token_share(pieces, anchored_U):.1%} of tokens"
        said += ")"
    entropy = trainer.entropy(tag)
    if entropy:
        lower, upper = entropy["least_loss"]
        said += f", least loss {lower:.4f} to {upper:.4f} nats per token"
    return said


def _describe_merged_vocabulary(trainer: Experiment) -> list[str]:
    """Returns how many pieces the languages with a source of their own have in common."""
    config, vocabulary = trainer.config, trainer.vocabulary
    originals = [tag for tag in config.tags if config.languages[tag].source]
    if config.vocabulary.layout == "disjoint" or len(originals) < 2:
        return []
    maps = [set(vocabulary.map_GU[vocabulary.index(tag)].tolist()) - {-1} for tag in originals]
    common, union = set.intersection(*maps), set.union(*maps)
    if config.vocabulary.layout == "joint":
        return [f"  joint vocabulary: {len(union):,} pieces for {', '.join(originals)} together"]
    return [
        f"  merged vocabulary: {len(union):,} pieces, of which {', '.join(originals)} have "
        f"{len(common):,} in common ({len(common) / len(union):.1%})"
    ]


def describe_extension(before: Config, trainer: Experiment) -> str:
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


def forecast_run(trainer: Experiment) -> str:
    """Returns the memory and the time that a run would take, for --dry_run.

    A step is tried out where it is short; otherwise its time is an estimate.
    """
    state = trainer.abstract_state()
    compiled = trainer.compile_step(state)
    memory: Any = compiled.memory_analysis()
    limit = hardware.get_device_memory()
    lines = [_describe_memory(state, memory, limit)]
    fits = not limit or _count_device_bytes(memory) <= limit
    if limit and not fits:
        lines.append(
            f"It does not fit. {_suggest_micro_batches(trainer, memory, limit)} --remat=full "
            "helps too."
        )

    def batch() -> tuple[Any, ...]:
        return trainer.batch(0), trainer.map_GU()

    trial = (
        functools.partial(_time_trial_step, compiled, trainer.init_state, batch) if fits else None
    )
    lines.append(_describe_training_time(trainer, trial, runs=1))
    return "\n".join(lines)


def describe_disk(trainer: Experiment, run: RunDirectory, runs: int = 1) -> str:
    """Returns what the checkpoints of a run take on disk, and what is free there.

    Args:
      trainer: of the run.
      run: its directory.
      runs: how many of its size lie there.
    """
    needed, free = _count_checkpoint_bytes(trainer, runs), storage.count_free_bytes(run.path)
    text = f"checkpoints take up to {placement.format_bytes(needed)} on disk"
    return text if free is None else f"{text}, where {placement.format_bytes(free)} are free"


def warn_of_full_disk(trainer: Experiment, run: RunDirectory) -> str:
    """Returns `describe_disk` and what to do, if a run that begins will not fit on its disk."""
    free = storage.count_free_bytes(run.path)
    if free is None or run.checkpoints.exists() or free >= _count_checkpoint_bytes(trainer, 1):
        return ""
    return (
        f"Warning: {describe_disk(trainer, run)}. Free some of it, or lower "
        f"config.checkpoint.keep={trainer.config.checkpoint.keep}."
    )


def _count_checkpoint_bytes(trainer: Experiment, runs: int) -> int:
    state = trainer.abstract_state()
    each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    # The oldest one is removed when the newest is written.
    return runs * each * (trainer.config.checkpoint.keep + 1)


def describe_pack(pack: Pack) -> str:
    """Returns what the members of a pack have in common, and what each has for itself."""
    device, trainer = hardware.describe_devices(), pack.first
    parameters = model_lib.count_parameters(trainer.config.model, trainer.vocabulary.size)
    mesh = placement.describe_mesh(pack.mesh)
    model = trainer.settled_model()
    lines = [
        f"{len(pack.members)} runs as one program, each of {parameters:,} parameters, vocabulary "
        f"{trainer.vocabulary.size:,}, on {device['count']} {device['kind']}"
        + (f" ({mesh})" if mesh else ""),
        f"{pack.steps:,} steps of {trainer.config.batch_size} x {model.L} tokens for each; "
        f"computed in {model.dtype}, attention {model.attention}, the members on a device "
        + ("in turn" if pack.way == "scan" else "at once"),
    ]
    for member in pack.members:
        config = member.trainer.config
        shares = ", ".join(f"{tag} {_describe_language_ratio(config, tag)}" for tag in config.tags)
        lines.append(
            f"  {member.name}: {shares}; seed {config.seed}, learning rate "
            f"{config.optimizer.peak_lr:g} ({config.optimizer.schedule})"
        )
        lines += [f"    {said}" for said in member.trainer.stream.unexpected_shares()]
    if pack.size > len(pack.members):
        lines.append(
            f"  {pack.size - len(pack.members)} of {pack.size} places stay empty, as "
            f"config.mesh.member={pack.mesh.shape['member']}"
        )
    return "\n".join(lines)


def forecast_pack(pack: Pack) -> str:
    """Returns the memory and the time that a pack would take, for --dry_run."""
    state_E = pack.abstract_state()
    compiled = pack.compile_step(state_E)
    memory: Any = compiled.memory_analysis()
    limit = hardware.get_device_memory()
    lines = [_describe_memory(state_E, memory, limit)]
    fits = not limit or _count_device_bytes(memory) <= limit
    if not fits:
        lines.append("It does not fit. List fewer --members, or use more devices.")

    def batch() -> tuple[Any, ...]:
        return pack.place(0, np.ones(pack.size, bool)), pack.map_EGU()

    trial = functools.partial(_time_trial_step, compiled, pack.init_state, batch) if fits else None
    lines.append(_describe_training_time(pack.first, trial, runs=len(pack.members)))
    return "\n".join(lines)


def _count_device_bytes(memory: Any) -> int:
    return hardware.count_program_memory(memory)["peak"]


def _describe_memory(state: Any, memory: Any, limit: int | None) -> str:
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    need = f"a step needs {placement.format_bytes(_count_device_bytes(memory))} per device"
    have = f" of {placement.format_bytes(limit)}" if limit else ""
    return f"parameters and optimizer {placement.format_bytes(held)}; {need}{have}"


def _describe_training_time(
    trainer: Experiment, trial: Callable[[], float] | None, *, runs: int
) -> str:
    """Returns what the updates take: tried out, or guessed where they are long or do not fit."""
    peak = hardware.get_peak_flops(trainer.settled_model().dtype)
    guess = runs * trainer.flops_per_step() / (peak.value * _ASSUMED_MFU)
    # The peak that the guess rests on may have been measured, by each process for itself.
    long = bool(distributed.broadcast_from_process_0(np.bool_(guess > _TRIAL_SECONDS)))
    if trial is None or long:
        seconds, how = guess, f"at an assumed {_ASSUMED_MFU:.0%} of {peak.source}"
    else:
        seconds, how = trial(), "measured over 3 steps"
    total = seconds * trainer.stream.steps
    return f"{seconds:.3g} s a step ({how}): {format_duration(total)} for training, plus evaluation"


def _suggest_micro_batches(trainer: Experiment, memory: Any, limit: int) -> str:
    """Returns how many micro-batches should fit, as their temporary memory shrinks with them."""
    left = 0.9 * limit - memory.argument_size_in_bytes
    now = trainer.config.optimizer.accumulate
    possible = mesh_shape.list_micro_batch_counts(trainer.config.batch_size, trainer.mesh.shape)
    choices = [k for k in possible if k > now and memory.temp_size_in_bytes * now / k <= left]
    if left <= 0 or not choices:
        return "Use a smaller model or more devices."
    return f"Try --accumulate={choices[0]}."


def _time_trial_step(
    compiled: jax.stages.Compiled,
    init: Callable[[], step.TrainState],
    batch: Callable[[], tuple[Any, ...]],
) -> float:
    given = batch()
    state, _ = jax.block_until_ready(compiled(init(), *given))
    began = time.perf_counter()
    for _ in range(3):
        state, _ = compiled(state, *given)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / 3
