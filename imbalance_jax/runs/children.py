"""Processes that end with the process that started them, however that ends.

A parent that is killed has no time to stop its children. So a child reads from a pipe that its
parent holds open and never writes to: when the parent ends, the pipe ends. The child then sends
itself SIGTERM, on which it saves and leaves with exit code 75.
"""

import functools
import os
import signal
import stat
import threading
from collections.abc import Mapping
from typing import Any

# The environment variable holds "FD:INODE" of the pipe's end. Some programs between parent and
# child close descriptors that they do not know; the inode tells the pipe from a later file of its
# number.
VARIABLE = "IMB_PARENT"

# The exit code of a process whose run has lost another one; jax exits with it where it notices
# first. A shell has the same code for a library that aborts; subprocess has -SIGABRT.
LOST = 134


def make_tied_popen_arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    """Returns arguments of subprocess.Popen for a child that calls `end_with_parent`."""
    if os.name == "nt":  # only the standard handles are passed on there
        return {"env": dict(environment)}
    end, _ = _open_parent_pipe(os.getpid())
    value = f"{end}:{os.fstat(end).st_ino}"
    return {"env": {**environment, VARIABLE: value}, "pass_fds": (end,)}


@functools.cache
def _open_parent_pipe(pid: int) -> tuple[int, int]:
    """Returns the pipe of a process; a forked process makes another one."""
    return os.pipe()


def end_with_parent() -> None:
    """Sends this process SIGTERM when the parent that set VARIABLE for it has ended."""
    value = os.environ.pop(VARIABLE, "")
    if not value:
        return
    number, _, inode = value.partition(":")
    try:
        status = os.fstat(int(number))
    except OSError:
        return
    if stat.S_ISFIFO(status.st_mode) and str(status.st_ino) == inode:
        os.set_inheritable(int(number), False)
        threading.Thread(target=_terminate_at_pipe_end, args=(int(number),), daemon=True).start()


def _terminate_at_pipe_end(end: int) -> None:
    while os.read(end, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def end_worker_with_parent() -> None:
    """Ends this worker of a multiprocessing pool at once when its parent has ended."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after_process, args=(parent.sentinel,), daemon=True).start()


def _exit_after_process(sentinel: int) -> None:
    import multiprocessing.connection

    multiprocessing.connection.wait([sentinel])
    os._exit(1)  # a worker has nothing to save, and waits for work in a lock


_OF_SIGNALS = {
    "SIGKILL": "as the system does with a process that takes all memory",
    "SIGABRT": "as a library does that gets no memory, or finds itself broken",
    "SIGSEGV": "a library read or wrote where it must not",
    "SIGBUS": "as where the disk of a file in memory is full or gone",
    "SIGXCPU": "its time on the processors is used up: ulimit -t",
}


def describe_exit(code: int) -> str:
    """Returns what ended a child, by its code as subprocess has it: a signal is negative."""
    if code == LOST:
        return f"exit code {code}: another process of its run was lost"
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"ended by {name}" + (f", {_OF_SIGNALS[name]}" if name in _OF_SIGNALS else "")


def count_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
