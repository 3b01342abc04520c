"""What the system lets this process have, tried before libraries fail for want of it.

XLA and TensorStore end the process, or wait for ever, where they cannot start a thread or map
memory. So a command that computes asks for as much beforehand, and gives it back.
"""

import _thread
import contextlib
import mmap
import time

from imbalance_jax.runs import children

try:
    import resource
except ImportError:  # a system without such limits
    resource = None  # type: ignore[assignment]

# What a tiny run on a CPU was seen to take, with jax 0.10 on 2 cores: 100 threads, of which XLA's
# pools grow with the cores, and 2.4 GB of addresses, stacks of threads included.
_THREADS, _THREADS_PER_CORE = 96, 2
_ADDRESS_BYTES = 1_000_000_000  # beside the stacks, and the heaps that glibc gives threads
_SECONDS_TO_END = 5  # of threads that have nothing left to do


def check_process_limits() -> None:
    """Starts the threads and maps the memory that a run takes at least, for a moment.

    Raises:
      ValueError: the system refuses; the message names the limits in force.
    """
    wanted = _THREADS + _THREADS_PER_CORE * children.count_cores()
    try:
        # Private and without access, so that it counts as addresses and as no memory.
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        with mmap.mmap(-1, _ADDRESS_BYTES, flags=kind, prot=0):
            started = _count_startable_threads(wanted)
    except OSError as error:
        raise ValueError(
            f"The system gives this process less than the {_ADDRESS_BYTES / 1e9:.0f} GB of "
            f"addresses that a run takes at the least ({error.strerror}). {_describe_limits()}"
        ) from None
    if started < wanted:
        raise ValueError(
            f"The system lets this process start only {started} of the {wanted} threads that a "
            f"run may take. {_describe_limits()}"
        )


def _count_startable_threads(wanted: int) -> int:
    """Returns how many threads there may be at once, up to those wanted.

    Each waits for a lock of its own and runs no Python. `threading.Thread.start` waits until its
    thread has run some, which is for ever where that finds no memory.
    """
    locks: list[_thread.LockType] = []
    try:
        with contextlib.suppress(RuntimeError, MemoryError):  # "can't start new thread"
            for _ in range(wanted):
                lock = _thread.allocate_lock()
                lock.acquire()
                _thread.start_new_thread(lock.acquire, ())
                locks.append(lock)
        return len(locks)
    finally:
        for lock in locks:
            lock.release()
        give_up = time.monotonic() + _SECONDS_TO_END
        for lock in locks:  # taken by its thread, which then ends
            while not lock.locked() and time.monotonic() < give_up:
                time.sleep(0.001)


def _describe_limits() -> str:
    """Returns what holds a process down, and how it is raised."""
    if resource is None:
        return "Raise what its container or job is given."
    limits = (
        ("ulimit -v", resource.getrlimit(resource.RLIMIT_AS)[0], 1024),
        ("ulimit -u", resource.getrlimit(resource.RLIMIT_NPROC)[0], 1),
    )
    in_force = [
        f"`{how}` is {value // unit}"
        for how, value, unit in limits
        if value != resource.RLIM_INFINITY
    ]
    said = f"Its limits: {', '.join(in_force)}. " if in_force else ""
    return f"{said}Raise them, or what its container or job is given of processes and memory."
