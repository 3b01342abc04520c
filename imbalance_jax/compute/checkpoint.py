"""Saves and restores a TrainState, in the background and whole or not at all.

A checkpoint has the digest of its state (state_digest.py), which every restore computes again.
This is the only file that knows orbax.
"""

import contextlib
import errno
import functools
import hashlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from imbalance_jax.compute import hardware, state_digest
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute.step import TrainState
from imbalance_jax.runs import damaged_files, storage
from imbalance_jax.runs.run_directory import COMMITTED, list_checkpoint_steps

# Orbax's names for what a checkpoint holds, if it is one thing, and for what is said about it.
_ITEM, _METADATA = "default", "_CHECKPOINT_METADATA"
# While a run trains, its newest checkpoint may be of a state from which no update can be made. The
# loss and gradient of the next update show it, and until then the one before is needed.
LEAST_KEPT = 2
# Errors of the system that a file of a checkpoint has which is gone, or not what was written.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what was saved under its name; the message is a line that names it."""


class Checkpoints:
    """The checkpoints of one run; each is named by the updates done before it.

    `fingerprints` has a digest of the values of each that was saved or restored here, and
    `unchecked` those that earlier versions saved, without digests to check them by.

    Args:
      keep: how many of the newest are kept, `LEAST_KEPT` at least.
    """

    def __init__(self, path: epath.PathLike, *, keep: int = 1) -> None:
        _quieten_orbax()
        self.path = storage.parse_path(storage.make_absolute_path(path))
        self.fingerprints: dict[int, str] = {}
        self.unchecked: set[int] = set()
        self._keep, self._newest_saved = max(keep, LEAST_KEPT), -1

    def steps(self) -> list[int]:
        """Returns the steps that were saved whole, in order."""
        return list_checkpoint_steps(self.path)

    def open(self) -> list[str]:
        """Makes ready to save; returns a line on each older checkpoint that is in the way of it.

        Raises:
          OSError: nothing can be written here.
        """
        in_the_way = []
        with distributed.propagate_errors():
            for step in self.steps() if distributed.is_writer() else ():
                try:
                    self._check_metadata(step)
                except DamagedCheckpoint as error:
                    in_the_way.append(f"{error} It is kept as {self.set_aside(step).name}.")
        with self._raising_os_error():
            _ = self._manager
        return in_the_way

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.path,
            options=ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True),
        )

    def save(self, state: TrainState) -> None:
        """Starts to save; training may go on, and may donate the state, at once.

        Raises:
          FloatingPointError: the state has a value that is not finite.
          OSError: what was saved before could not be written, or this cannot be.
        """
        step = int(state.step)
        with self._raising_os_error():
            is_saved = step in self._manager.all_steps()
            if is_saved and step in self.fingerprints:
                return
            digest = state_digest.digest_state(state)
            self.fingerprints[step] = _compute_fingerprint(digest)
            if is_saved:  # by a start that was stopped before its first step, as this one is
                return
            if digest.not_finite:
                raise FloatingPointError(
                    f"The state after step {step} is not saved, because it is not finite: "
                    f"{_list_some(digest.not_finite)}."
                )
            record = {"step": step, "arrays": dict(digest.arrays)}
            self._manager.save(
                step, args=ocp.args.StandardSave(state), custom_metadata={"digest": record}
            )
            self._newest_saved = step

    def is_whole(self, step: int) -> bool:
        """Whether a step that was saved is on disk by now, as far as this process can tell."""
        writing = step == self._newest_saved and self._manager.is_saving_in_progress()
        return not writing and (self.path / str(step)).exists()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Returns a saved state, each array with the sharding that `like` gives it.

        All processes call it, and it has the same end in all of them.

        Args:
          like: a state, or the shapes and shardings of one.

        Raises:
          DamagedCheckpoint: it is not what was saved.
          ValueError: the checkpoint holds arrays of other shapes.
          OSError: the operating system does not let it be read.
        """
        like = jax.tree.map(_make_abstract_array, like)
        damage, state, record = "", None, None
        with distributed.propagate_errors():
            try:
                state, record = self._read(step, like)
            except DamagedCheckpoint as error:
                damage = str(error)
        if distributed.is_true_anywhere(bool(damage)):
            where = f"{self.path / str(step)} is damaged: another process cannot read its part."
            raise DamagedCheckpoint(damage or where)
        assert state is not None
        digest = state_digest.digest_state(state)
        self._check_values(step, int(state.step), digest, record)
        self.fingerprints[step] = _compute_fingerprint(digest)
        if record is None:
            self.unchecked.add(step)
        return state

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[int, str]]:
        """Returns the newest state that is not damaged, and what is wrong with newer ones, by step.

        Args and raises: as `restore`; DamagedCheckpoint if there is no other.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                return self.restore(step, like), damaged
            except DamagedCheckpoint as error:
                damaged[step] = str(error)
        raise DamagedCheckpoint(
            f"{' '.join(damaged.values())} No other checkpoint is left. Put one back from a "
            "copy, or train again in another --workdir."
        )

    def set_aside(self, step: int, why: str = "damaged") -> epath.Path:
        """Makes a checkpoint none any more, and returns where it lies now, to be looked at.

        It is renamed. In a store, where that would copy it, it loses the file that says it is
        whole. For one process, when all that was saved is on disk.
        """
        bad, number = self.path / str(step), 0
        with self._raising_os_error():
            if storage.is_store(bad):
                (bad / COMMITTED).unlink()
                return bad
            while (aside := self.path / f"{step}.{why}{f'-{number}' * (number > 0)}").exists():
                if why == "diverged":  # as it did before: one is enough
                    shutil.rmtree(aside)
                    break
                number += 1
            bad.rename(aside)
        return aside

    def wait(self) -> None:
        """Returns when everything that was saved is on disk.

        Raises:
          OSError: something could not be written.
        """
        if self._is_open:
            with self._raising_os_error():
                self._manager.wait_until_finished()

    def remove_all_but(self, count: int) -> None:
        """Removes all but so many of the newest checkpoints, of a run that is done."""
        with self._raising_os_error():
            for step in self.steps()[:-count]:
                self._manager.delete(step)

    def close(self) -> None:
        """Ends the threads that write, after their last write.

        Errors of writing are raised by `save` and `wait`, and not here again.
        """
        for _ in range(2 * self._is_open):  # an error of the first one leaves the rest of it undone
            with contextlib.suppress(Exception):
                self._manager.close()
                return

    @property
    def _is_open(self) -> bool:
        return "_manager" in vars(self)

    @contextlib.contextmanager
    def _raising_os_error(self) -> Iterator[None]:
        """Raises an OSError with a number and this path where the operating system refused."""
        try:
            yield
        except Exception as error:
            system = storage.find_os_error(error, self.path)
            if system is None:
                raise
            raise system from error

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any] | None]:
        """Returns a state as its files have it, and the record of its digest, if it has one.

        It waits for no other process, unlike the manager's own function.

        Raises: as `restore`.
        """
        path = self.path / str(step)
        try:
            self._check_metadata(step)
            handler = ocp.StandardCheckpointHandler()
            saved = {
                name: tuple(leaf.shape)
                for name, leaf in state_digest.name_arrays(handler.metadata(path / _ITEM)).items()
            }
            about = path / _METADATA
            content = damaged_files.read_json(about, "") if about.exists() else {}
            record = (content.get("custom_metadata") or {}).get("digest")
            if record is not None:
                self._check_record(step, record, saved)
            self._check_shapes(path, saved, like)
            return handler.restore(path / _ITEM, args=ocp.args.StandardRestore(like)), record
        except (DamagedCheckpoint, _OtherShapes):
            raise
        except Exception as error:
            if isinstance(error, MemoryError) or hardware.is_out_of_memory(error):
                raise
            system = storage.find_os_error(error, path)
            if system is not None and system.errno not in _DAMAGE:
                raise system from error
            if not path.exists():
                raise FileNotFoundError(f"{path} has been removed meanwhile.") from error
            raise DamagedCheckpoint(
                f"{path} is damaged: its files cannot be read ({_shorten_error(error)})."
            ) from None

    def _check_metadata(self, step: int) -> None:
        """Raises DamagedCheckpoint if orbax cannot read when a checkpoint was saved.

        Its manager, which reads that of all checkpoints, then takes none of them.
        """
        try:
            _ = ocp.path.step.standard_name_format().find_step(self.path, step).commit_timestamp
        except OSError:
            raise
        except Exception as error:
            raise DamagedCheckpoint(
                f"{self.path / str(step)} is damaged: {_METADATA} cannot be read "
                f"({_shorten_error(error)})."
            ) from None

    def _check_record(self, step: int, record: Any, saved: Mapping[str, tuple[int, ...]]) -> None:
        """Raises DamagedCheckpoint if a record is of another step, or at odds with the arrays."""
        if record["step"] != step:
            raise DamagedCheckpoint(
                f"{self.path / str(step)} holds the state of step {record['step']}: it is a copy "
                "of another checkpoint, or was renamed."
            )
        shapes = {
            name: text[text.index("[") : text.index("]")] for name, text in record["arrays"].items()
        }
        if shapes != {name: "[" + ",".join(map(str, shape)) for name, shape in saved.items()}:
            raise DamagedCheckpoint(
                f"{self.path / str(step)} is damaged: its files have other arrays than it was "
                "saved with."
            )

    def _check_shapes(
        self, path: epath.Path, saved: Mapping[str, tuple[int, ...]], like: TrainState
    ) -> None:
        for name, leaf in state_digest.name_arrays(like).items():
            if name not in saved:
                raise _OtherShapes(f"{path} has no array {name}.")
            if saved[name] != tuple(leaf.shape):
                raise _OtherShapes(
                    f"{path} holds {name} with shape {saved[name]}, but this "
                    f"run's config.model gives it {tuple(leaf.shape)}. Use another --workdir, or "
                    "the config that the checkpoint was written with."
                )

    def _check_values(
        self,
        step: int,
        found_step: int,
        digest: state_digest.StateDigest,
        record: Mapping[str, Any] | None,
    ) -> None:
        """Raises DamagedCheckpoint if a state that was read is not the one that was saved."""
        path = self.path / str(step)
        if record is not None:
            differing = [
                name for name, found in digest.arrays.items() if found != record["arrays"][name]
            ]
            if differing:
                raise DamagedCheckpoint(
                    f"{path} is damaged: {len(differing)} of {len(digest.arrays)} arrays are not "
                    f"as they were saved ({_list_some(differing)})."
                )
        if found_step != step:
            raise DamagedCheckpoint(
                f"{path} holds the state of step {found_step}: it is a copy of another "
                "checkpoint, or was renamed."
            )
        if digest.not_finite:
            raise DamagedCheckpoint(
                f"{path} is of no use: {len(digest.not_finite)} of {len(digest.arrays)} arrays "
                f"are not finite ({_list_some(digest.not_finite)})."
            )


class _OtherShapes(ValueError):
    """A checkpoint holds arrays of other shapes than are wanted."""


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
    """Reports an exception that cannot be raised, but for those of arrays that orbax has given up.

    TensorStore tells the event loop of orbax of each, which has ended with the first of them.
    """
    # Arrays that are read at once, of which one is damaged, leave coroutines behind. The error of
    # the first one is raised.
    code = getattr(unraisable.object, "cr_code", None)
    of_orbax = code is not None and "orbax" in code.co_filename
    closed = unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed"
    if not (of_orbax or closed):
        report(unraisable)


def _make_abstract_array(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _compute_fingerprint(digest: state_digest.StateDigest) -> str:
    """Returns a digest of digests, which is short."""
    content = repr(sorted(digest.arrays.items())).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _list_some(names: Sequence[str]) -> str:
    """Returns the first of some names, and how many others there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _shorten_error(error: BaseException) -> str:
    """Returns the beginning of an error's first line."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."
