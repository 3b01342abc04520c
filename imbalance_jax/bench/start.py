"""How long a run takes until its first step can begin: without a compilation cache, and with."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

from imbalance_jax.bench import case as case_lib
from imbalance_jax.runs.json_text import format_json


def measure_start_times(name: str) -> dict[str, Any]:
    """Returns the seconds of a first and a second start of a case, each in a new process.

    From the start of Python to the state before the first step: imports, the stream, tracing
    and compiling the step and the evaluation, new parameters.
    """
    figures = {}
    with tempfile.TemporaryDirectory() as cache:
        for start in ("cold", "cached"):
            began = time.time()
            done = subprocess.run(
                [sys.executable, "-m", "imbalance_jax.bench.start", name],
                env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise ValueError(f"case {name} does not start: {done.stderr.strip()}")
            report = json.loads(done.stdout.splitlines()[-1])
            figures[start] = report["seconds"] | {"whole": report["ready"] - began}
    return figures


def describe_start_times(figures: dict[str, Any]) -> Iterable[str]:
    for start, seconds in figures.items():
        parts = ", ".join(
            f"{name} {value:.1f}" for name, value in seconds.items() if name != "whole"
        )
        yield f"  {start} start: first step after {seconds['whole']:.1f} s ({parts})"


def _print_start_times(name: str) -> None:
    """Does what a run does before its first step, and prints how long each part took."""
    moments = {"began": time.perf_counter()}

    import jax

    from imbalance_jax.compute import hardware
    from imbalance_jax.runs.run_directory import RunDirectory
    from imbalance_jax.training import loop, pack

    moments["imports"] = time.perf_counter()
    hardware.use_compilation_cache("")  # the environment names it
    experiment = case_lib.build_experiment(case_lib.parse_case(name).config)
    moments["stream"] = time.perf_counter()
    member = pack.PackMember("", experiment, RunDirectory("unused"))  # nothing is written
    loop.compile_programs(pack.Pack([member], experiment.mesh))
    moments["programs"] = time.perf_counter()
    jax.block_until_ready(experiment.init_state())
    moments["parameters"] = time.perf_counter()
    seconds = {
        name: moment - before for (_, before), (name, moment) in itertools.pairwise(moments.items())
    }
    print(format_json({"seconds": seconds, "ready": time.time()}))


if __name__ == "__main__":
    _print_start_times(sys.argv[1])
