"""What changes when a run has several processes: joining them, who writes, and how they stop.

`join_processes` finds out from the environment how this process was started, `HostRows` which rows
of a batch it reads, and `SharedInterrupts` when all processes leave together. With one process,
every function here does nothing that the code around it could not do without.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import os
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding

from imbalance_jax.runs import interrupts

T = TypeVar("T")

# Seconds: until all processes of a job have come (queued capacity comes in parts), until one
# that says nothing is taken for lost, and that one which failed waits for the others to leave.
_JOIN_SECONDS, _HEARTBEAT_SECONDS, _LEAVE_SECONDS = 900, 60, 5
_DEFAULT_PORT = 8476


@dataclasses.dataclass(frozen=True)
class ClusterEnvironment:
    """How the processes of a run find each other: by whom, and what jax needs to be told."""

    engine: str
    arguments: Mapping[str, Any]  # of jax.distributed.initialize


def detect_cluster(environ: Mapping[str, str], *, tpu: bool) -> ClusterEnvironment | None:
    """Returns the job that this process is one of, or None where it is alone.

    In this order: IMB_COORDINATOR, IMB_NUM_PROCESSES and IMB_PROCESS_ID, which name everything;
    the nodes of a SkyPilot task; the tasks of a SLURM step; the hosts of a TPU slice, which jax
    knows how to find.

    Args:
      environ: the environment.
      tpu: whether this machine has TPU chips.

    Raises:
      ValueError: variables contradict each other, or some are missing.
    """
    ours = {name: environ.get(f"IMB_{name}", "") for name in _OURS}
    if any(ours.values()):
        return _make_explicit_cluster(ours)
    if _parse_env_number(environ, "SKYPILOT_NUM_NODES", 1) > 1 and not tpu:
        first = environ["SKYPILOT_NODE_IPS"].split()[0]
        return _make_explicit_cluster(
            {
                "COORDINATOR": f"{first}:{_DEFAULT_PORT}",
                "NUM_PROCESSES": environ["SKYPILOT_NUM_NODES"],
                "PROCESS_ID": environ["SKYPILOT_NODE_RANK"],
            },
            engine="SkyPilot",
        )
    # The step's, not the job's: what a batch script runs without srun is one process.
    if _parse_env_number(environ, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return ClusterEnvironment("SLURM", {"local_device_ids": _find_slurm_devices(environ)})
    if tpu:
        return ClusterEnvironment("TPU", {})
    return None


_OURS = ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID")


def _make_explicit_cluster(
    given: Mapping[str, str], engine: str = "IMB_*"
) -> ClusterEnvironment | None:
    missing = [f"IMB_{name}" for name in _OURS if not given[name]]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} not set, and others of IMB_COORDINATOR, IMB_NUM_PROCESSES "
            "and IMB_PROCESS_ID are. Set all three, or none."
        )
    if not re.fullmatch(r".+:\d+", given["COORDINATOR"]):
        raise ValueError(
            f"IMB_COORDINATOR={given['COORDINATOR']!r} must be HOST:PORT of process 0, such as "
            "10.0.0.1:8476."
        )
    count = _parse_env_number(given, "NUM_PROCESSES")
    this = _parse_env_number(given, "PROCESS_ID")
    if not 0 <= this < count:
        raise ValueError(
            f"IMB_PROCESS_ID={this} is none of IMB_NUM_PROCESSES={count}: they count from 0."
        )
    if count == 1:
        return None
    # Or jax would look for a cluster all the same, to ask it for this process's devices.
    arguments = {
        "coordinator_address": given["COORDINATOR"],
        "num_processes": count,
        "process_id": this,
        "cluster_detection_method": "deactivate",
    }
    return ClusterEnvironment(engine, arguments)


def _find_slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
    """Returns the GPUs that are a SLURM task's own; None leaves the choice to jax.

    jax takes the one whose number is the task's on its node. That is wrong for a task that has
    several, and for one that sees only its own.
    """
    visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    # Such as "2(x4),1"; one task on each node is "1" or "1(x4)".
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", ""))
    alone = all(part.partition("(")[0] == "1" for part in tasks.split(","))
    bound = "SLURM_GPUS_PER_TASK" in environ or len(visible) == 1
    return list(range(len(visible))) if visible and (alone or bound) else None


def _parse_env_number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environ.get(name, "")
    if not value and default is not None:
        return default
    if not value.isdecimal():
        shown = name if "_" in name and name not in _OURS else f"IMB_{name}"
        raise ValueError(f"{shown}={value!r} must be a whole number.")
    return int(value)


def has_tpu() -> bool:
    """Returns whether this machine has TPUs, without starting them."""
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def join_processes(expected: int = 0) -> None:
    """Joins the other processes of this run, if it has some, before jax looks at its devices.

    From here on, only process 0 prints; what goes to stderr comes from all.

    Args:
      expected: how many devices there must be, over all processes; 0 takes what is there.

    Raises:
      ValueError: there are others, or some processes have more of them than others.
    """
    job = detect_cluster(os.environ, tpu=has_tpu())
    if job is not None and not jax.distributed.is_initialized():
        jax.distributed.initialize(
            **job.arguments,
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    if not is_writer():
        sys.stdout = open(os.devnull, "w", errors="ignore")  # noqa: SIM115 (open until the process ends)
    by_process = [0] * jax.process_count()
    for device in jax.devices():
        by_process[device.process_index] += 1
    census = f"found {jax.device_count()} ({jax.devices()[0].device_kind})"
    if len(by_process) > 1:
        census += f", {' + '.join(map(str, by_process))} in {len(by_process)} processes"
    if expected and jax.device_count() != expected:
        raise ValueError(
            f"--devices={expected}, but this run {census}. Ask the engine for as many as that, "
            "or leave out --devices."
        )
    if len(set(by_process)) > 1:
        raise ValueError(
            f"Of devices, this run {census}: not as many in each. Give each process as many "
            "as the others, with CUDA_VISIBLE_DEVICES or what the engine has for it."
        )


def is_writer() -> bool:
    """Whether this process writes metrics and markers, and prints; exactly one of them does."""
    return jax.process_index() == 0


class HostRows:
    """The rows of a batch that this process reads: those that its devices hold.

    Where devices of several processes hold the same rows, as along the mesh axis tensor, each
    process reads them.
    """

    def __init__(self, sharding: NamedSharding, count: int) -> None:
        """Args:
        sharding: of the batch, cut along its first dimension.
        count: rows of the whole batch.
        """
        self._sharding, self._count = sharding, count
        spans = {
            index[0].indices(count)[:2]
            for index in sharding.addressable_devices_indices_map((count,)).values()
            if index is not None
        }
        self.index_B = np.unique(np.concatenate([np.arange(*span) for span in spans]))

    def place(self, local: np.ndarray) -> jax.Array:
        """Returns the array over all processes that has this one's rows, `index_B`, from here."""

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            # Rows that follow each other in the batch follow each other here too.
            first, end, _ = index[0].indices(self._count)
            here = int(np.searchsorted(self.index_B, first))
            return local[here : here + end - first]

        shape = (self._count, *local.shape[1:])
        return jax.make_array_from_callback(shape, self._sharding, part)


def place_whole_arrays(values: Any, shardings: Any) -> Any:
    """Returns a nest of arrays that every process has whole, on all devices.

    Args:
      values: the same ones in every process.
      shardings: of each, or one for all of a nest.
    """
    if jax.process_count() == 1:
        return jax.device_put(values, shardings)

    def place(value: Any, sharding: NamedSharding) -> jax.Array:
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, values, jax.tree.broadcast(shardings, values))


def broadcast_from_process_0(value: Any) -> Any:
    """Returns what process 0 calls with: numbers that follow from the clock, or from files."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)


def is_true_anywhere(value: bool) -> bool:
    """Returns whether any process calls with a true value; all have to call it as often."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.int32(value)).any())


@contextlib.contextmanager
def propagate_errors() -> Iterator[None]:
    """Lets all processes go on after what is done within, or none.

    No process may wait for others in it.

    Raises:
      ValueError: an exception was raised within, in another process.
    """
    raised = None
    try:
        yield
    except Exception as error:
        raised = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed_P = multihost_utils.process_allgather(np.int32(raised is not None))
        if raised is None and failed_P.any():
            others = ", ".join(map(str, np.flatnonzero(failed_P)))
            raise ValueError(f"Process {others} cannot start. Its own message says why.")
    if raised:
        raise raised


def run_process_0_first(function: Callable[[], T]) -> T:
    """Calls a function in process 0 and then in the others, which find what it has made."""
    if jax.process_count() == 1:
        return function()
    found = None
    with propagate_errors():
        if is_writer():
            found = function()
    with propagate_errors():
        if not is_writer():
            found = function()
    assert found is not None
    return found


class ElsewhereError(RuntimeError):
    """An error that process 0 had alone, as the other processes of the run learn of it."""


class WriterErrors:
    """Errors of what process 0 does alone, which all processes raise at the same place.

    Were they raised where they happen, process 0 would leave while the others wait for it in
    the next thing that all do together. With one process they are raised where they happen.
    """

    def __init__(self) -> None:
        self._error: Exception | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps an error raised within, until `agree`."""
        try:
            yield
        except Exception as error:
            if jax.process_count() == 1:
                raise
            self._error = self._error or error

    def agree(self) -> None:
        """Raises what was kept, in every process; all have to call it as often.

        Raises:
          ElsewhereError: in the others.
        """
        if jax.process_count() == 1:
            return
        from jax.experimental import multihost_utils

        failed_P = multihost_utils.process_allgather(np.int32(self._error is not None))
        error, self._error = self._error, None
        if error is not None:
            raise error
        if failed_P.any():
            raise ElsewhereError("Process 0 had an error. Its own message says which.")


# What XLA, its collectives and jax's coordination service say when a process has gone.
_LOST = (
    *("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket closed"),
    *("unavailable", "coordination service", "heartbeat", "barrier"),
)


def _is_xla_error(error: BaseException) -> bool:
    """Whether an error may come from XLA, some of whose functions raise a status as ValueError."""
    if isinstance(error, ValueError):
        return re.match(r"[A-Z_]+: ", str(error)) is not None
    return isinstance(error, RuntimeError)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process of the run has gone."""
    if jax.process_count() == 1 or not _is_xla_error(error):
        return False
    return any(words in str(error).lower() for words in _LOST)


def skip_stack_cleanup(stack: contextlib.ExitStack) -> None:
    """Leaves undone what a stack would do at its end, where that waits for lost processes."""
    if jax.process_count() > 1:
        stack.pop_all()


def wait_for_condition(happened: Callable[[], bool], seconds: float = 3) -> bool:
    """Returns whether something happens within so many seconds."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def exit_process(code: int, *, seconds: float = _LEAVE_SECONDS) -> int:
    """Ends this process with a code although others may be waiting for it.

    A process that leaves in the usual way waits for all others, which may be in the middle of
    a step that needs this one. Those notice that it has gone.

    Args:
      code: of the exit.
      seconds: how long to wait for the others. Where all leave at once, it takes none, and no
        one takes another for lost.

    Returns:
      The code, for a process that is alone and can leave in the usual way.
    """
    if jax.process_count() == 1:
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    thread.start()
    thread.join(seconds)
    os._exit(code)


class SharedInterrupts(interrupts.Interrupts):
    """Notes SIGTERM and Ctrl-C; with several processes, in all of them at the same poll.

    jax's preemption service has the handler of SIGTERM once processes are joined. A notice to
    one of them is made known to all, which agree on a number of polls that none has passed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._polls = 0
        self._passed_on = False  # whether Ctrl-C was

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            return super().__enter__()
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        return self

    def poll(self) -> bool:
        """Whether to stop. Every process has to ask as often as the others."""
        if jax.process_count() > 1 and not self.requested:
            from jax.experimental import multihost_utils

            self._polls += 1
            self.requested = bool(multihost_utils.reached_preemption_sync_point(self._polls))
        return self.requested

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if jax.process_count() == 1:
            super().__exit__(kind, error, trace)
        else:
            self._restore()

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        if jax.process_count() == 1:
            super()._note(number, frame)
        elif self._passed_on:
            raise KeyboardInterrupt
        else:
            self._passed_on = True
            os.kill(os.getpid(), signal.SIGTERM)
