"""Processes that end with the one that started them, however that ends.

SIGKILL, and a machine that is out of memory, leave no time to stop anybody. So a child reads
from a pipe that its parent holds open and never writes to: the end of the parent is the end of
the pipe. The child then does what SIGTERM has it do, which is to save and leave with exit code
75. Needs no jax, and nothing that one system alone has.
"""

import functools
import os
import signal
import stat
import threading
from collections.abc import Mapping
from typing import Any

# What the variable says is "FD:INODE" of the pipe's end, so that another file of that number,
# behind a program that closes what it does not know, is not taken for it.
VARIABLE = "IMB_PARENT"


def make_tied_popen_arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    """Returns arguments of subprocess.Popen for a child that calls `end_with_parent`.

    Args:
      environment: of the child.
    """
    if os.name == "nt":  # no other handles than the standard ones are passed on there
        return {"env": dict(environment)}
    end, _ = _open_parent_pipe(os.getpid())
    told = f"{end}:{os.fstat(end).st_ino}"
    return {"env": {**environment, VARIABLE: told}, "pass_fds": (end,)}


@functools.cache
def _open_parent_pipe(pid: int) -> tuple[int, int]:
    """Returns the pipe of a process; a forked process makes another one."""
    return os.pipe()


def end_with_parent() -> None:
    """Has this process sent SIGTERM when the one that started it, and said so, has ended."""
    told = os.environ.pop(VARIABLE, "")
    if not told:
        return
    number, _, inode = told.partition(":")
    try:
        found = os.fstat(int(number))
    except OSError:
        return
    if stat.S_ISFIFO(found.st_mode) and str(found.st_ino) == inode:
        os.set_inheritable(int(number), False)
        threading.Thread(target=_terminate_at_pipe_end, args=(int(number),), daemon=True).start()


def _terminate_at_pipe_end(end: int) -> None:
    while os.read(end, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def end_worker_with_parent() -> None:
    """Has this process of a multiprocessing pool end at once when its parent has ended."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after_process, args=(parent.sentinel,), daemon=True).start()


def _exit_after_process(sentinel: int) -> None:
    import multiprocessing.connection

    multiprocessing.connection.wait([sentinel])
    os._exit(1)  # a worker has nothing to save, and waits for work in a lock


def count_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
