"""Jitted measurements over many rows: compiled once, in batches of one size, on any mesh.

A measurement is a pure function of arrays. `MeasurementPrograms.run` calls it on whole arrays, and
`MeasurementPrograms.rows` on rows of host arrays, a batch at a time; both compile it ahead of its
first call and note how long that took, so that measuring and compiling are told apart.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import sharding, tuning
from imbalance_jax.config import ModelConfig

Rows = Mapping[str, np.ndarray]  # arrays whose first dimension is one of rows
# Between batches; may raise to stop. Its argument is the share that is done.
Poll = Callable[[float], None]


def ignore_progress(share: float) -> None:
    """Lets a measurement run to its end."""


class MeasurementPrograms:
    """The compiled measurements of one run."""

    def __init__(self, mesh: Mesh, batch_size: int) -> None:
        """Args:
        mesh: of the devices.
        batch_size: rows that are worked on at once, over all hosts; rounded up to what the
          devices and hosts can share evenly. No result depends on it.
        """
        self._each = each = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = -(-batch_size // each) * each
        self.compile_seconds = 0.0
        self._whole, self._rows = (
            sharding.make_replicated_sharding(mesh),
            sharding.make_batch_sharding(mesh),
        )
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}
        platform = mesh.devices.flat[0].platform
        self._options: Any = dict(tuning.MEASURING_OPTIONS.get(platform, {}))

    def run(self, function: Callable[..., Any], *args: Any, **static: Hashable) -> Any:
        """Returns what a function of whole arrays makes of them, held whole by every device.

        Args:
          function: `function(*args, **static)`; it is known by its name, so no lambda.
          args: nests of arrays. Those on the host are placed on every device.
          static: what the program is compiled for.
        """
        placed = jax.tree.map(self._place, args)
        leaves, tree = jax.tree.flatten(placed)
        shapes = tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
        key = (function, tuple(sorted(static.items())), tree, shapes)
        if key not in self._compiled:
            began = time.monotonic()
            # In fp32 throughout: a GPU or TPU would otherwise round the factors of products.
            with jax.default_matmul_precision("highest"):
                jitted = jax.jit(functools.partial(function, **static), out_shardings=self._whole)
                lowered = jitted.lower(*placed)
                self._compiled[key] = lowered.compile(compiler_options=self._options)
            # Its first call reserves memory, which is no part of what it takes either.
            jax.block_until_ready(self._compiled[key](*placed))
            self.compile_seconds += time.monotonic() - began
        return self._compiled[key](*placed)

    def rows(
        self,
        function: Callable[..., Any],
        whole: tuple,
        rows: Rows,
        *,
        poll: Poll = ignore_progress,
        batch_size: int = 0,
        **static: Hashable,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns what a function says of each row, in their order, and what it adds up.

        Args:
          function: `function(*whole, rows, real_B, **static)` returns two dicts: arrays whose
            first dimension is the batch, and sums over the rows where real_B is True.
          whole: arrays that every call gets as they are.
          rows: of all the data.
          poll: called after each batch.
          batch_size: rows at once, in place of `self.batch_size`.
        """
        total = len(next(iter(rows.values())))
        size = batch_size or self.batch_size
        mine = distributed.HostRows(self._rows, size)
        found: dict[str, list[np.ndarray]] = {}
        sums: dict[str, np.ndarray] = {}
        whole = jax.tree.map(self._place, whole)
        pending: tuple[int, Any] | None = None
        for first in range(0, total, size):
            # The first row, without weight, fills the last batch: nothing compiles again.
            place_B = np.arange(first, first + size)
            real_B = place_B < total
            place_B = np.where(real_B, place_B, 0)[mine.index_B]
            batch = {name: mine.place(values[place_B]) for name, values in rows.items()}
            out = self.run(function, *whole, batch, mine.place(real_B[mine.index_B]), **static)
            # One batch late, so that the device has the next one to work on.
            if pending:
                _collect_batch(found, sums, *pending)
            pending = (int(real_B.sum()), out)
            poll(min(1.0, (first + size) / total))
        if pending:
            _collect_batch(found, sums, *pending)
        return {name: np.concatenate(parts) for name, parts in found.items()}, sums

    def place(self, rows: Rows) -> dict[str, jax.Array]:
        """Returns rows on the devices: shared out where they divide evenly, or else on each."""
        count = len(next(iter(rows.values())))
        if count % self._each:
            return {name: self._place(values) for name, values in rows.items()}
        mine = distributed.HostRows(self._rows, count)
        return {name: mine.place(values[mine.index_B]) for name, values in rows.items()}

    def place_filled(self, rows: Rows) -> tuple[dict[str, jax.Array], jax.Array]:
        """Returns rows shared out over the devices, and which of them are real, (B,).

        The first row fills them up to a number that the devices and hosts can share evenly.
        """
        count = len(next(iter(rows.values())))
        place_B = np.arange(-(-count // self._each) * self._each)
        real_B = place_B < count
        mine = distributed.HostRows(self._rows, len(place_B))
        place_B = np.where(real_B, place_B, 0)[mine.index_B]
        placed = {name: mine.place(values[place_B]) for name, values in rows.items()}
        return placed, mine.place(real_B[mine.index_B])

    def _place(self, leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.committed:
            return leaf
        return distributed.place_whole_arrays(leaf, self._whole)


@dataclasses.dataclass(frozen=True)
class Measuring:
    """A model under measurement."""

    programs: MeasurementPrograms
    params: model_lib.Params
    config: ModelConfig  # the model is computed with as it says, "auto" left out
    poll: Poll = ignore_progress  # called between batches

    def rows(
        self, function: Callable[..., Any], rows: Rows, *whole: Any, **static: Any
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns what `MeasurementPrograms.rows` does of a function of the parameters.

        Args:
          function: `function(params, *whole, rows, real_B, config=config, **static)`.
          rows: of all the data.
          whole: arrays that every call gets as they are.
          static: what the program is compiled for.
        """
        return self.programs.rows(
            function, (self.params, *whole), rows, poll=self.poll, config=self.config, **static
        )


def _collect_batch(
    found: dict[str, list[np.ndarray]], sums: dict[str, np.ndarray], real: int, out: Any
) -> None:
    per_row, added = jax.device_get(out)
    for name, values in per_row.items():
        found.setdefault(name, []).append(values[:real])
    for name, values in added.items():
        values = np.asarray(values, np.float64)
        sums[name] = sums[name] + values if name in sums else values


def subtract_trees(x: Any, y: Any) -> Any:
    return jax.tree.map(jnp.subtract, x, y)
