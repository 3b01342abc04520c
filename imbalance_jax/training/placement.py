"""What each device holds of a run, as a table: read off the shardings that are used."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from imbalance_jax.compute import sharding
from imbalance_jax.compute.step import TrainState
from imbalance_jax.config import dimensions


def describe_mesh(mesh: Mesh) -> str:
    """Returns the axes that have several devices, and what each lies across."""
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    return ", ".join(
        f"{axis} {mesh.shape[axis]} ({sharding.describe_axis_span(mesh, axis)})" for axis in axes
    )


def render_sharding_table(state: TrainState, mesh: Mesh, batch: tuple[int, int]) -> Iterator[str]:
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
    found = []
    for dim, axes in zip(dims, placed.spec, strict=False):
        axes = axes if isinstance(axes, tuple) else (axes,)
        several = [axis for axis in axes if axis and placed.mesh.shape[axis] > 1]
        if several:
            found.append(f"{dim} {' x '.join(several)}")
    return ", ".join(found) or "whole"


def format_bytes(count: float) -> str:
    """Returns a number of bytes in a unit that suits it."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
