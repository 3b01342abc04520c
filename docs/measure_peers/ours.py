"""Times our training step as the programs beside this file time that of others.

It goes by the `case` of its input, which says more than sizes, and by `steps`. `compare.py` has the
protocol.
"""

import json
import statistics
import sys
import time
from typing import Any

import jax

from imbalance_jax.bench.case import build_experiment, parse_case
from imbalance_jax.compute import hardware
from imbalance_jax.compute import model as model_lib
from imbalance_jax.config import costs
from imbalance_jax.runs.code_versions import get_code_versions


def main() -> None:
    request = json.load(sys.stdin)
    experiment = build_experiment(parse_case(request["case"]).config)
    model, vocab_size = experiment.settled_model(), experiment.vocabulary.size
    state, map_GU = experiment.init_state(), experiment.map_GU()
    update = experiment.compile_step(state)
    batch = experiment.batch(0)
    peaks = [hardware.measure_matmul_peak(model.dtype)]
    seconds: list[float] = []
    metrics: Any = None
    for _ in range(request["steps"] + 2):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(update(state, batch, map_GU))
        seconds.append(time.perf_counter() - began)
        # Between the steps, as the speed of a shared machine changes from second to second.
        peaks.append(hardware.measure_matmul_peak(model.dtype, tries=1))
    report = {
        "program": "imbalance_jax",
        "versions": get_code_versions(),
        "device": hardware.describe_devices()["kind"],
        "threads": request["threads"],
        "dtype": model.dtype,
        "seconds_per_step": seconds[2:],
        "flops_per_token": costs.compute_flops_per_token(model, vocab_size),
        "parameters": model_lib.count_parameters(model, vocab_size),
        "loss": float(metrics["loss"]),
        "peak_bytes": hardware.count_program_memory(update.memory_analysis())["peak"],
        "matmul_peak": {"best": max(peaks), "median": statistics.median(peaks)},
        "notes": [],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
