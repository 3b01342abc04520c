"""Times our training step as the programs beside this file time that of others.

It goes by the `case` of its input, which says more than sizes, and by `steps`.
"""

import json
import statistics
import sys
import time
from typing import Any


def main() -> None:
    asked = json.loads(sys.stdin.read())

    import jax

    from imbalance_jax.bench import case as case_lib
    from imbalance_jax.bench import training
    from imbalance_jax.compute import hardware, sharding
    from imbalance_jax.compute import model as model_lib
    from imbalance_jax.config import costs
    from imbalance_jax.data import prepare
    from imbalance_jax.runs.code_versions import get_code_versions
    from imbalance_jax.training.experiment import Experiment

    case = case_lib.parse_case(asked["case"])
    mesh = sharding.make_mesh(case.config.mesh, jax.devices())
    trainer = Experiment.make(case.config, prepare.prepare_run_sources(case.config), mesh)
    model, vocab_size = trainer.settled_model(), trainer.vocabulary.size
    state, map_GU = trainer.init_state(), trainer.map_GU()
    update = trainer.compile_step(state)
    batch = trainer.batch(0)
    peaks = [hardware.measure_matmul_peak(model.dtype)]
    took: list[float] = []
    metrics: Any = None
    for _ in range(asked["steps"] + 2):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(update(state, batch, map_GU))
        took.append(time.perf_counter() - began)
        # Between the steps, as the speed of a shared machine changes from second to second.
        peaks.append(hardware.measure_matmul_peak(model.dtype, tries=1))
    found = {
        "program": "imbalance_jax",
        "versions": get_code_versions(),
        "device": hardware.describe_devices()["kind"],
        "threads": asked["threads"],
        "dtype": model.dtype,
        "seconds_per_step": took[2:],
        "flops_per_token": costs.compute_flops_per_token(model, vocab_size),
        "parameters": model_lib.count_parameters(model, vocab_size),
        "loss": float(metrics["loss"]),
        "peak_bytes": training.count_program_memory(update)["peak"],
        "matmul_peak": {"best": max(peaks), "median": statistics.median(peaks)},
        "notes": [],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
