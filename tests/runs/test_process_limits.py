"""A command that computes is refused where the system gives it too few threads or addresses."""

import os
import subprocess
import sys
import time

import pytest

from imbalance_jax.runs import process_limits

resource = pytest.importorskip("resource", reason="the limits of this system are not set so")


def try_under(code: str) -> str:
    """Returns what a process says of its limits, after `code` has set one."""
    script = f"""
import resource
from imbalance_jax.runs import process_limits
{code}
try:
    process_limits.check_process_limits()
except ValueError as error:
    print(error)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)  # it hangs nowhere
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc, to count threads")
def test_nothing_is_left_of_the_trial():
    threads = len(os.listdir("/proc/self/task"))
    process_limits.check_process_limits()
    wait_until = time.monotonic() + 30  # the system counts a thread for a moment after its end
    while len(os.listdir("/proc/self/task")) > threads and time.monotonic() < wait_until:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/task")) <= threads


@pytest.mark.parametrize("megabytes", (900, 1900))
def test_few_addresses_are_refused(megabytes):
    bytes_ = megabytes << 20
    said = try_under(f"resource.setrlimit(resource.RLIMIT_AS, ({bytes_}, {bytes_}))")
    assert f"`ulimit -v` is {bytes_ // 1024}" in said
    assert ("addresses" if megabytes < 1000 else "threads") in said


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs root, to be another user")
def test_few_threads_are_refused():
    code = "import os; resource.setrlimit(resource.RLIMIT_NPROC, (30, 30)); os.setuid(65534)"
    said = try_under(code)
    assert "threads that a run may take" in said and "`ulimit -u` is 30" in said
