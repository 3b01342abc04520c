"""Saves and restores a TrainState, in the background and whole or not at all.

This is the only file that knows orbax.
"""

import logging
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from imbalance_jax import storage
from imbalance_jax.step import TrainState


class Checkpoints:
    """The checkpoints of one run; each is named by the updates done before it."""

    def __init__(self, path: epath.PathLike, *, keep: int = 1) -> None:
        # Orbax reports every file that it writes.
        absl_logging.set_verbosity(absl_logging.WARNING)
        logging.getLogger("orbax").setLevel(logging.WARNING)
        self.path = storage.path_of(storage.absolute(path))
        self._manager = ocp.CheckpointManager(
            self.path,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            # Named here, so that the shapes of a checkpoint can be read without restoring it.
            item_handlers=ocp.StandardCheckpointHandler(),
        )

    def steps(self) -> list[int]:
        """Returns the steps that were saved whole, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Starts to save; training may go on, and may donate the state, at once."""
        step = int(state.step)
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Returns a saved state, each array with the sharding that `like` gives it.

        Args:
          like: a state, or the shapes and shardings of one.

        Raises:
          ValueError: the checkpoint holds arrays of other shapes.
        """
        like = jax.tree.map(_abstract, like)
        self._check_shapes(step, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(like))

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def _check_shapes(self, step: int, like: TrainState) -> None:
        saved = _shapes(self._manager.item_metadata(step))
        for name, shape in _shapes(like).items():
            if name not in saved:
                raise ValueError(f"{self.path / str(step)} has no array {name}.")
            if saved[name] != shape:
                raise ValueError(
                    f"{self.path / str(step)} holds {name} with shape {saved[name]}, but this "
                    f"run's config.model gives it {shape}. Use another --workdir, or the "
                    "config that the checkpoint was written with."
                )


def _abstract(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array by its path, however the nodes are made."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(str(getattr(e, "key", getattr(e, "name", getattr(e, "idx", e)))) for e in path): (
            tuple(leaf.shape)
        )
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }
