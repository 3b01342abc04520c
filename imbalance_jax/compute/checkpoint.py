"""Saves and restores a TrainState, in the background and whole or not at all.

This is the only file that knows orbax.
"""

import contextlib
import functools
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from imbalance_jax.compute.step import TrainState
from imbalance_jax.runs import storage
from imbalance_jax.runs.run_directory import COMMITTED

# While a run trains, its newest checkpoint may be of a state from which no update can be made. The
# loss and gradient of the next update show it, and until then the one before is needed.
LEAST_KEPT = 2


class Checkpoints:
    """The checkpoints of one run; each is named by the updates done before it.

    Args:
      keep: how many of the newest are kept, `LEAST_KEPT` at least.
    """

    def __init__(self, path: epath.PathLike, *, keep: int = 1) -> None:
        _quieten_orbax()
        self.path = storage.parse_path(storage.make_absolute_path(path))
        with self._raising_os_error():
            self._manager = ocp.CheckpointManager(
                self.path,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=max(keep, LEAST_KEPT), create=True
                ),
                # Named here, so that a checkpoint's shapes can be read without restoring it.
                item_handlers=ocp.StandardCheckpointHandler(),
            )

    def steps(self) -> list[int]:
        """Returns the steps that were saved whole, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Starts to save; training may go on, and may donate the state, at once.

        Raises:
          OSError: what was saved before could not be written, or this cannot be.
        """
        step = int(state.step)
        with self._raising_os_error():
            if step not in self._manager.all_steps():
                self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Returns a saved state, each array with the sharding that `like` gives it.

        Args:
          like: a state, or the shapes and shardings of one.

        Raises:
          ValueError: the checkpoint holds arrays of other shapes.
          OSError: it cannot be read.
        """
        like = jax.tree.map(_make_abstract_array, like)
        self._check_shapes(step, like)
        with self._raising_os_error():
            return self._manager.restore(step, args=ocp.args.StandardRestore(like))

    def wait(self) -> None:
        """Returns when everything that was saved is on disk.

        Raises:
          OSError: something could not be written.
        """
        with self._raising_os_error():
            self._manager.wait_until_finished()

    def remove_all_but(self, count: int) -> None:
        """Removes all but so many of the newest checkpoints, of a run that is done."""
        with self._raising_os_error():
            for step in self.steps()[:-count]:
                self._manager.delete(step)

    def set_aside(self, step: int) -> None:
        """Renames the checkpoints after a step, so that nothing takes them for good ones.

        For one process, when all that was saved is on disk. They may still be looked at.
        """
        for bad in [self.path / str(other) for other in self.steps() if other > step]:
            aside = bad.with_name(f"{bad.name}.diverged")
            if storage.is_store(bad):  # renaming would copy it
                (bad / COMMITTED).unlink()
                continue
            shutil.rmtree(aside, ignore_errors=True)
            bad.rename(aside)

    def close(self) -> None:
        """Ends the threads that write, after their last write.

        Errors of writing are raised by `save` and `wait`, and not here again.
        """
        for _ in range(2):  # an error of the first one leaves the rest of it undone
            with contextlib.suppress(Exception):
                self._manager.close()
                return

    @contextlib.contextmanager
    def _raising_os_error(self) -> Iterator[None]:
        """Raises an OSError with a number and this path where the operating system refused."""
        try:
            yield
        except Exception as error:
            number = _find_os_error_number(error)
            if number is None:
                raise
            named = getattr(error, "filename", None) or str(self.path)
            raise OSError(number, os.strerror(number), named) from error

    def _check_shapes(self, step: int, like: TrainState) -> None:
        saved = _collect_array_shapes(self._manager.item_metadata(step))
        for name, shape in _collect_array_shapes(like).items():
            if name not in saved:
                raise ValueError(f"{self.path / str(step)} has no array {name}.")
            if saved[name] != shape:
                raise ValueError(
                    f"{self.path / str(step)} holds {name} with shape {saved[name]}, but this "
                    f"run's config.model gives it {shape}. Use another --workdir, or the "
                    "config that the checkpoint was written with."
                )


def remove_unfinished_checkpoints(directory: epath.PathLike) -> None:
    """Removes the remains of checkpoints that were not written whole, on a file system.

    Orbax leaves it where a process was killed, and a full disk may be full of it. For one
    process, while nobody writes checkpoints there.

    Args:
      directory: of the checkpoints of a run.
    """
    path = storage.parse_path(storage.make_absolute_path(directory))
    if storage.is_store(path) or not path.exists():
        return
    for unfinished in path.glob("*.orbax-checkpoint-tmp"):
        # A thread that had an error may have left others that still write.
        for _ in range(20):
            shutil.rmtree(unfinished, ignore_errors=True)
            if not unfinished.exists():
                break
            time.sleep(0.05)


@functools.cache
def _quieten_orbax() -> None:
    """Silences orbax's reports of each file, and of each error that `wait` raises."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("orbax").setLevel(logging.WARNING)
    absl_logging.get_absl_logger().addFilter(_is_no_traceback)
    # Each array that cannot be written is an error of asyncio's too.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = functools.partial(_report_unraisable, sys.unraisablehook)


def _is_no_traceback(record: logging.LogRecord) -> bool:
    """Says whether a line of the log is no traceback of orbax: `wait` raises the same error."""
    return not (record.exc_info and "orbax" in record.pathname)


def _report_unraisable(report: Callable[..., None], unraisable: "sys.UnraisableHookArgs") -> None:
    """Reports an exception that cannot be raised, but for arrays that can be written no more.

    TensorStore tells the event loop of orbax of each, which has ended with the first of them.
    """
    if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
        report(unraisable)


def _find_os_error_number(error: BaseException) -> int | None:
    """Returns the number of the system's error that is behind an error of orbax, if one is.

    The errors of TensorStore, which writes the arrays, are of whatever class their status has: a
    full disk is a ValueError with RESOURCE_EXHAUSTED. The number is a field at the end of their
    text, and nowhere else.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno
        code = re.search(r"\[os_error_code='(\d+)'", str(cause))
        if code:
            return int(code.group(1))
        cause = cause.__cause__ or cause.__context__
    return None


def _make_abstract_array(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _collect_array_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array by its path, however the nodes are made."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(str(getattr(e, "key", getattr(e, "name", getattr(e, "idx", e)))) for e in path): (
            tuple(leaf.shape)
        )
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }
