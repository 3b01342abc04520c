"""Several processes of this machine that train one job together.

    python -m launch.processes --processes=2 -- python -m imbalance_jax.main ...

The variables IMB_COORDINATOR, IMB_NUM_PROCESSES and IMB_PROCESS_ID tell each process its number and
where the others are. When one fails, the others are ended too, because they would wait for it.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from absl import flags

from imbalance_jax import cli
from imbalance_jax.runs import children
from imbalance_jax.runs.interrupts import Interrupts

FLAGS = flags.FLAGS
_POLL_SECONDS = 0.2
# Seconds that processes have to save after one of them has failed.
_GRACE_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
    """A process to start."""

    command: Sequence[str]
    env: Mapping[str, str]  # on top of this process's own
    log: str  # the file that its output is appended to; "" is this process's output


def run_processes(programs: Sequence[ProcessSpec], *, together: bool) -> list[int]:
    """Runs processes until all have ended, and returns their exit codes as subprocess has them.

    SIGTERM and SIGINT are passed on to all of them. Commands of imbalance_jax end, as on SIGTERM,
    when this process is killed.

    Args:
      programs: the processes.
      together: whether one that fails ends the others.
    """
    with contextlib.ExitStack() as stack, Interrupts() as interrupts:
        running = [stack.enter_context(_start_process(child)) for child in programs]
        passed_on, deadline = False, float("inf")
        while any(process.poll() is None for process in running):
            if interrupts.requested and not passed_on:
                passed_on = True
                _signal_processes(running, signal.SIGTERM)
            bad = any(process.poll() not in (None, cli.DONE, cli.PREEMPTED) for process in running)
            if together and bad and deadline == float("inf"):
                deadline = time.monotonic() + _GRACE_SECONDS
                _signal_processes(running, signal.SIGTERM)
            if time.monotonic() > deadline:
                _signal_processes(running, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        return [process.returncode for process in running]


def convert_exit_code(returncode: int, *, alone: bool) -> int:
    """Returns an exit code of subprocess as a shell has it.

    Args:
      alone: whether the process has no others. It can have lost none: what a shell would call
        LOST is then a library that aborts, and a failure.
    """
    if alone and returncode == -signal.SIGABRT:
        return cli.FAILED
    return 128 - returncode if returncode < 0 else returncode


@contextlib.contextmanager
def _start_process(child: ProcessSpec) -> Iterator[subprocess.Popen]:
    with contextlib.ExitStack() as stack:
        output = None
        if child.log:
            pathlib.Path(child.log).parent.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context(open(child.log, "a"))
        yield subprocess.Popen(
            child.command,
            **children.make_tied_popen_arguments({**os.environ, **child.env}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            # In one session, Ctrl-C would reach them twice: directly, and passed on.
            start_new_session=True,
        )


def _signal_processes(running: Sequence[subprocess.Popen], number: signal.Signals) -> None:
    for process in running:
        if process.poll() is None:
            process.send_signal(number)


def find_free_port() -> int:
    """Returns a port that nothing on this machine listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_peer_environments(count: int) -> list[dict[str, str]]:
    """Returns the environment of each process of this machine, by which it finds the others."""
    port = str(find_free_port())
    return [
        {
            "IMB_COORDINATOR": f"127.0.0.1:{port}",
            "IMB_NUM_PROCESSES": str(count),
            "IMB_PROCESS_ID": str(index),
            # Processes that ask their scheduler instead would all get one port in a pack.
            "JAX_COORDINATOR_PORT": port,
        }
        for index in range(count)
    ]


def make_device_environment(platform: str, index: int, each: int) -> dict[str, str]:
    """Returns the environment that shows a process its part of this machine's devices.

    Args:
      platform: cpu, cuda or tpu.
      index: the number of the process.
      each: devices of a process.
    """
    devices = range(index * each, (index + 1) * each)
    if platform == "cpu":
        count = f"--xla_force_host_platform_device_count={each}"
        return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": count}
    if platform == "tpu":
        bounds = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}[each]
        return {
            "TPU_VISIBLE_CHIPS": ",".join(map(str, devices)),
            "TPU_CHIPS_PER_PROCESS_BOUNDS": bounds,
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "TPU_SKIP_MDS_QUERY": "1",  # which would say what the whole machine has
        }
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = [allowed[i] for i in devices] if allowed != [""] else [str(i) for i in devices]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names)}


def define_flags() -> None:
    flags.DEFINE_integer("processes", 1, "How many.", 1, 4096)
    flags.DEFINE_enum("platform", "cpu", ["cpu", "cuda"], "What they train on.")
    flags.DEFINE_integer("devices_per_process", 1, "How many of those.", 1, 4096)
    flags.DEFINE_string("output", None, "FILE: Send output to FILE.K.log.")
    flags.DEFINE_multi_string("env", [], "NAME=VALUE: Of their environment.")


def main(command: list[str]) -> int:
    if not command:
        raise ValueError("There is no command. Write it behind --.")
    env = dict(pair.split("=", 1) for pair in FLAGS.env)
    programs = [
        ProcessSpec(
            command,
            env | make_device_environment(FLAGS.platform, index, FLAGS.devices_per_process) | peers,
            f"{FLAGS.output}.{index}.log" if FLAGS.output else "",
        )
        for index, peers in enumerate(make_peer_environments(FLAGS.processes))
    ]
    ended = run_processes(programs, together=True)
    codes = [convert_exit_code(code, alone=len(ended) == 1) for code in ended]
    bad = [code for code in codes if code not in (cli.DONE, cli.PREEMPTED)]
    if bad:
        for index, code in enumerate(ended):
            print(f"process {index}: {children.describe_exit(code)}", file=sys.stderr)
        # A process that was ended because of another one has a code of a signal, 128 or more.
        return min(bad, key=lambda code: code >= 128)
    return max(codes)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, names=True)
