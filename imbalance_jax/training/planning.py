"""The plan of a run or a pack, in words, before it starts."""

import collections
import dataclasses
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from imbalance_jax import config as config_lib
from imbalance_jax.compute import checkpoint, hardware, sharding, step, tuning
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.config import Config, costs, dimensions, mesh_shape
from imbalance_jax.data import languages
from imbalance_jax.data.order.corpora import describe_documents
from imbalance_jax.data.sources import Source
from imbalance_jax.data.text import synthetic
from imbalance_jax.runs import storage
from imbalance_jax.runs.progress import format_duration
from imbalance_jax.training.experiment import Experiment
from imbalance_jax.training.pack import Pack

# A run that needs this many times a device's memory at the very least is not begun. The rest of a
# need is known when the step is compiled.
_HOPELESS = 2
# Compiling takes a CPU more than a second for each block that is written out.
_COMPILED_BLOCKS = 16
# A step expected to take longer than this is not tried out in a dry run.
_TRIAL_SECONDS = 20.0
# The share of the matmul peak that a step is assumed to reach where none is tried.
_ASSUMED_MFU = 0.4


def check_memory(config: Config, mesh: Mesh, members: int = 1) -> None:
    """Raises ValueError if the devices cannot hold what an update needs at the very least.

    It is arithmetic on the config alone: before text is prepared and anything is compiled.

    Args:
      config: of a run, or of the members of a pack.
      mesh: of the devices.
      members: of the pack.
    """
    limit = hardware.get_device_memory()
    model = tuning.resolve_auto_fields(config.model, mesh.devices.flat[0])
    settled = dataclasses.replace(config, model=model)
    least = costs.estimate_least_bytes(settled, mesh.shape)
    least["state"] *= -(-members // mesh.shape.get("member", 1))
    need = sum(least.values())
    if limit is None or need <= _HOPELESS * limit:
        return
    if least["state"] >= least["activations"]:
        what = "parameters and optimizer, with " + ", ".join(
            f"config.model.{name}={getattr(model, name)}" for name in "NDHKFL"
        )
        ways = "a smaller model, or more devices with config.mesh.fsdp"
    else:
        what = (
            f"activations, with config.batch_size={config.batch_size} in config.optimizer."
            f"accumulate={config.optimizer.accumulate} micro-batches, config.model.L={model.L}, "
            f"config.model.N={model.N}"
        )
        ways = "a smaller config.batch_size or config.model.L, more micro-batches, or more devices"
    raise ValueError(
        f"An update needs at least {format_bytes(need)} on each device, most of it for {what}. A "
        f"device has {format_bytes(limit)}. Use {ways}."
    )


def describe_plan(pack: Pack) -> str:
    """Returns the plan of a run alone, or of the members of a pack."""
    one = len(pack.members) == 1
    return describe_planned_run(pack.first) if one else _describe_members(pack)


def describe_planned_run(experiment: Experiment) -> str:
    """Returns the model, the text and the ratio of a run."""
    config, stream = experiment.config, experiment.stream
    parameters = experiment.count_parameters()
    tokens = stream.steps * config.batch_size * config.model.L
    device = hardware.describe_devices()
    lines = [
        f"{parameters:,} parameters, vocabulary {experiment.vocabulary.size:,}, "
        f"on {device['count']} {device['kind']}",
        f"{stream.steps:,} steps of {config.batch_size} x {config.model.L} = {tokens:,} tokens",
    ]
    model = experiment.settled_model()
    lines.append(
        f"computed in {model.dtype}, attention {model.attention}, layers "
        f"{'scanned' if model.scan_layers else 'unrolled'}, remat {model.remat}"
    )
    if stream.steps < config.steps:
        lines[1] += f", where the text ends; {config.steps:,} steps were asked for"
    for tag in config.tags:
        lines.append(
            f"  {tag}: {_describe_language_ratio(config, tag)} of the sequences, "
            f"{_describe_language_origin(experiment, tag)}"
        )
    if config.mixture.follows_text:
        mixture = config.mixture
        rule = f"temperature {mixture.temperature:g}"
        if mixture.max_epochs:
            rule = f"as even as {mixture.max_epochs:g} epochs of each allow"
        lines.append(f"  ratio from the sizes of the sources, {rule}")
    lines += [f"  {line}" for line in stream.unexpected_shares()]
    lines += _describe_merged_vocabulary(experiment)
    dry = stream.dry_steps()
    for pool, epochs in stream.epochs().items():
        tokens = stream.windows[pool] * config.model.L
        used = f"  source {pool}: {epochs:.3g} epochs of {tokens:,} tokens"
        if tokens > synthetic.ENDLESS // 2:
            used = f"  source {pool}: without end"
        if pool in dry:
            used += f", used up at step {dry[pool]:,} ({config.mixture.on_exhaustion})"
        lines.append(used)
    documents = describe_documents(config, experiment.sources, stream.taken_documents())
    lines += [f"  {line}" for line in documents]
    for name, set_ in experiment.parallel.items():
        first, second = set_.sources
        counts = set_.about["counts"]
        lines.append(
            f"  parallel {name}: {int(set_.pairs_P.sum()):,} pairs of {first} and {second} in "
            f"{len(set_.pairs_P):,} sequences; {counts['too_long']:,} longer than "
            f"config.model.L={config.model.L}, {counts['empty']:,} with an empty side "
            f"and {counts['dropped']:,} in sequences that were too short are left out"
        )
    if experiment.mesh.size > 1:
        batch = (config.batch_size, config.model.L + 1)
        lines += render_sharding_table(experiment.abstract_state(), experiment.mesh, batch)
    return "\n".join(lines)


def _describe_language_ratio(config: Config, tag: str) -> str:
    ratios = [
        f"{ratio[tag] / sum(ratio.values()):.4g}" + (f" from step {first:,}" if first else "")
        for first, ratio in config_lib.list_stages(config)
    ]
    return ", ".join(ratios)


def _describe_language_origin(experiment: Experiment, tag: str) -> str:
    """Returns the source of a language, and the ids it shares with its parent."""
    config = experiment.config
    language = config.languages[tag]
    text = f"clone of {language.clone_of}" if language.clone_of else f"source {language.source}"
    if language.words != "as_written":
        text += f", words {language.words}"
    if language.anchors:
        pieces = experiment.source(tag).pieces
        anchored_U = ~languages.select_cloned_ids(pieces, language, config.vocabulary)
        text += f", {anchored_U.sum():,} anchors ({anchored_U.mean():.1%} of ids"
        if pieces.counts_U is not None:
            text += f", {languages.compute_token_share(pieces, anchored_U):.1%} of tokens"
        text += ")"
    entropy = experiment.entropy(tag)
    if entropy:
        lower, upper = entropy["least_loss"]
        text += f", least loss {lower:.4f} to {upper:.4f} nats per token"
    return text


def _describe_merged_vocabulary(experiment: Experiment) -> list[str]:
    """Returns how many pieces the languages with a source of their own have in common."""
    config, vocabulary = experiment.config, experiment.vocabulary
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


def describe_extension(before: Config, experiment: Experiment) -> str:
    """Returns the change that more steps make to the learning rate."""
    config, steps = experiment.config, experiment.stream.steps
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


def describe_disks(pack: Pack) -> list[str]:
    """Returns what checkpoints and prepared text take, and what is free, for each directory."""
    where = pack.members[0].run.checkpoints
    state, held = _count_state_bytes(pack), format_bytes(_count_checkpoint_bytes(pack))
    lines = [
        f"checkpoints take {format_bytes(state)} each, and while one is replaced up to {held} on "
        f"disk, {_describe_free_bytes(where)}"
    ]
    taken: dict[str, int] = collections.defaultdict(int)
    for source in pack.first.sources.values():
        if isinstance(source, Source):
            cached = source.cache.glob(f"{source.cached('').name}*")
            for file in (*source.path.iterdir(), *map(epath.Path, cached)):
                taken[os.fspath(file.parent)] += file.stat().length
    lines += [
        f"prepared text takes {format_bytes(count)} on disk, {_describe_free_bytes(place)}"
        for place, count in taken.items()
    ]
    return lines + warn_of_full_disk(pack)


def warn_of_full_disk(pack: Pack) -> list[str]:
    """Returns a line if the checkpoints that are still to be written may not fit on their disk."""
    run, keep = pack.members[0].run, pack.first.config.checkpoint.keep
    free, state = storage.count_free_bytes(run.path), _count_state_bytes(pack)
    left = max(1, keep + 1 - len(run.steps())) * state
    if free is None or free >= left:
        return []
    return [
        f"Warning: checkpoints take {format_bytes(left)} more of the disk of {run.checkpoints}, "
        f"and {format_bytes(free)} are free. Free some of it, take another --workdir, or lower "
        f"config.checkpoint.keep={keep}."
    ]


def _describe_free_bytes(path: epath.PathLike) -> str:
    free = storage.count_free_bytes(path)
    return f"in {path}" if free is None else f"where {format_bytes(free)} are free: {path}"


def _count_checkpoint_bytes(pack: Pack) -> int:
    # The oldest one is removed when the newest is written.
    kept = max(pack.first.config.checkpoint.keep, checkpoint.LEAST_KEPT)
    return _count_state_bytes(pack) * (kept + 1)


def _count_state_bytes(pack: Pack) -> int:
    """Returns the bytes of one checkpoint of each member."""
    leaves = jax.tree.leaves(pack.first.abstract_state())
    return len(pack.members) * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _describe_members(pack: Pack) -> str:
    """Returns the common shape of the members of a pack, and a line on each."""
    device, experiment = hardware.describe_devices(), pack.first
    parameters = experiment.count_parameters()
    mesh = describe_mesh(pack.mesh)
    model = experiment.settled_model()
    lines = [
        f"{len(pack.members)} runs as one program, each of {parameters:,} parameters, vocabulary "
        f"{experiment.vocabulary.size:,}, on {device['count']} {device['kind']}"
        + (f" ({mesh})" if mesh else ""),
        f"{pack.steps:,} steps of {experiment.config.batch_size} x {model.L} tokens for each; "
        f"computed in {model.dtype}, attention {model.attention}, the members on a device "
        + ("in turn" if pack.way == "scan" else "at once"),
    ]
    for member in pack.members:
        config = member.experiment.config
        shares = ", ".join(f"{tag} {_describe_language_ratio(config, tag)}" for tag in config.tags)
        lines.append(
            f"  {member.name}: {shares}; seed {config.seed}, learning rate "
            f"{config.optimizer.peak_lr:g} ({config.optimizer.schedule})"
        )
        lines += [f"    {line}" for line in member.experiment.stream.unexpected_shares()]
    if pack.size > len(pack.members):
        lines.append(
            f"  {pack.size - len(pack.members)} of {pack.size} places stay empty, as "
            f"config.mesh.member={pack.mesh.shape['member']}"
        )
    return "\n".join(lines)


def forecast_plan(pack: Pack) -> str:
    """Returns the memory and the time that runs would take, for --dry_run.

    A step is tried out where it is short; otherwise its time is an estimate.
    """
    state = pack.abstract_state()
    model = pack.first.config.model
    if not model.scan_layers and model.N > _COMPILED_BLOCKS:
        return (
            f"config.model.scan_layers=False writes out config.model.N={model.N} blocks, which "
            "take minutes to compile: a dry run does not, so it cannot tell the memory of a step. "
            "With config.model.scan_layers=True it can.\n" + _describe_training_time(pack, None)
        )
    compiled = pack.compile_step(state)
    memory: Any = compiled.memory_analysis()
    limit = hardware.get_device_memory()
    lines = [_describe_memory(state, memory, limit)]
    fits = not limit or _count_device_bytes(memory) <= limit
    if limit and not fits:
        advice = "List fewer --members, or use more devices."
        if len(pack.members) == 1:
            advice = f"{_suggest_micro_batches(pack.first, memory, limit)} --remat=full helps too."
        lines.append(f"It does not fit. {advice}")
    lines.append(_describe_training_time(pack, compiled if fits else None))
    return "\n".join(lines)


def _count_device_bytes(memory: Any) -> int:
    return hardware.count_program_memory(memory)["peak"]


def _describe_memory(state: Any, memory: Any, limit: int | None) -> str:
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    need = f"a step needs {format_bytes(_count_device_bytes(memory))} per device"
    have = f" of {format_bytes(limit)}" if limit else ""
    return f"parameters and optimizer {format_bytes(held)}; {need}{have}"


def _describe_training_time(pack: Pack, compiled: jax.stages.Compiled | None) -> str:
    """Returns the time of the updates: tried out, or guessed where they are long or do not fit."""
    experiment = pack.first
    peak = hardware.get_peak_flops(experiment.settled_model().dtype)
    guess = len(pack.members) * experiment.flops_per_step() / (peak.value * _ASSUMED_MFU)
    # The peak that the guess rests on may have been measured, by each process for itself.
    long = bool(distributed.broadcast_from_process_0(np.bool_(guess > _TRIAL_SECONDS)))
    if compiled is None or long:
        seconds, how = guess, f"at an assumed {_ASSUMED_MFU:.0%} of {peak.source}"
    else:
        seconds, how = _time_trial_step(pack, compiled), "measured over 3 steps"
    total = seconds * pack.steps
    return f"{seconds:.3g} s a step ({how}): {format_duration(total)} for training, plus evaluation"


def _suggest_micro_batches(experiment: Experiment, memory: Any, limit: int) -> str:
    """Returns how many micro-batches should fit, as their temporary memory shrinks with them."""
    left = 0.9 * limit - memory.argument_size_in_bytes
    now = experiment.config.optimizer.accumulate
    possible = mesh_shape.list_micro_batch_counts(
        experiment.config.batch_size, experiment.mesh.shape
    )
    choices = [k for k in possible if k > now and memory.temp_size_in_bytes * now / k <= left]
    if left <= 0 or not choices:
        return "Use a smaller model or more devices."
    return f"Try --accumulate={choices[0]}."


def _time_trial_step(pack: Pack, compiled: jax.stages.Compiled) -> float:
    inputs = pack.place(0, np.ones(pack.size, bool)), pack.map_EGU()
    state, _ = jax.block_until_ready(compiled(pack.init_state(), *inputs))
    began = time.perf_counter()
    for _ in range(3):
        state, _ = compiled(state, *inputs)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / 3


def describe_mesh(mesh: Mesh) -> str:
    """Returns the axes that have several devices, and whether each lies across hosts or slices."""
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    return ", ".join(
        f"{axis} {mesh.shape[axis]} ({sharding.describe_axis_span(mesh, axis)})" for axis in axes
    )


def render_sharding_table(
    state: step.TrainState, mesh: Mesh, batch: tuple[int, int]
) -> Iterator[str]:
    """Yields a line for each parameter, and the sums.

    Args:
      state: a state, or the shapes and shardings of one.
      mesh: its devices.
      batch: sequences of a whole batch, and ids of each.
    """
    yield f"mesh: {describe_mesh(mesh)}"
    rows = [("", "shape", "cut along", "each device")]
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        keys = [entry.key for entry in path]
        dims = dimensions.parse_dimensions(keys[-1], stacked="blocks" in keys)
        rows.append(
            (
                ".".join(keys),
                _format_shape(leaf.shape),
                _describe_sharded_axes(dims, leaf.sharding),
                format_bytes(_count_shard_bytes(leaf)),
            )
        )
    sums = {
        "parameters": sum(map(_count_shard_bytes, jax.tree.leaves(state.params))),
        "optimizer": sum(map(_count_shard_bytes, jax.tree.leaves(state.opt_state))),
    }
    rows += [(name, "", "", format_bytes(count)) for name, count in sums.items()]
    held = sharding.make_batch_sharding(mesh).shard_shape(batch)
    rows.append(
        (
            "batch",
            _format_shape(batch),
            _describe_sharded_axes("BW", sharding.make_batch_sharding(mesh)),
            _format_shape(held),
        )
    )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        left = "  ".join(text.ljust(width) for text, width in zip(row[:3], widths, strict=True))
        yield f"  {left}  {row[3]:>11}"


def _count_shard_bytes(leaf: Any) -> int:
    """Returns the bytes of an array that one device holds."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _describe_sharded_axes(dims: str, placed: jax.sharding.NamedSharding) -> str:
    """Returns along which mesh axes which dimensions are cut: those with several devices."""
    cuts = []
    for dim, axes in zip(dims, placed.spec, strict=False):
        axes = axes if isinstance(axes, tuple) else (axes,)
        several = [axis for axis in axes if axis and placed.mesh.shape[axis] > 1]
        if several:
            cuts.append(f"{dim} {' x '.join(several)}")
    return ", ".join(cuts) or "whole"


def format_bytes(count: float) -> str:
    """Returns a number of bytes in a unit that suits it."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
