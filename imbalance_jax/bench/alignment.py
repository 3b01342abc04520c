"""The alignment of a trained run's first two languages that have parallel text.

Ours is timed on all pairs, and the reference study's way of it on the first few: one pair of
sequences at a time, and the best assignment of positions from networkx (extra `bench`).
"""

import functools
import importlib.util
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def measure_alignment_speed(workdir: str, most: int, compared: int) -> dict[str, Any]:
    """Returns seconds for a pair of sequences, ours and the reference's, ready for JSON.

    Ours matches and rotates, beside shuffled pairs, raw and centred; the reference's takes the
    states of one pair, their mean cosines, and one assignment. Ours is timed on `most` pairs, and
    the reference's on `compared`.

    Raises:
      ValueError: networkx is not installed.
    """
    if importlib.util.find_spec("networkx") is None:
        raise ValueError(
            "--alignment times the reference study's way beside ours, with networkx, which is not "
            "installed. Run pip install -e '.[bench]'."
        )
    from imbalance_jax.compute import hardware
    from imbalance_jax.evaluation import gradients, hidden, updates
    from imbalance_jax.evaluation.programs import Measuring
    from imbalance_jax.runs.code_versions import get_code_versions
    from imbalance_jax.runs.run_directory import RunDirectory
    from imbalance_jax.training.reopening import open_run

    run = RunDirectory(workdir)
    experiment, state = open_run(run, run.config())
    alignment = experiment.alignment("test", most)
    if not alignment.pairs:
        raise ValueError(f"{workdir}: {' '.join(alignment.skipped.values())}")
    pair, model, programs = alignment.pairs[0], alignment.model, alignment.programs
    measuring = Measuring(programs, state.params, model)
    sequences = pair.sequences
    count = len(sequences.ids[0])
    divisor = updates.compute_adam_divisor(programs, state.opt_state, experiment.config.optimizer)

    seconds = {
        "hidden": _time_second_call(
            lambda: hidden.measure_hidden_states(measuring, sequences, match=True, rotate=True)
        ),
        "gradients": _time_second_call(
            lambda: gradients.measure_gradients(measuring, sequences.ids, sequences.text, divisor)
        ),
    }
    per_pair = {name: value / count for name, value in seconds.items()}
    reference, assignments = _time_reference_matching(state.params, model, sequences, compared)
    return {
        "versions": get_code_versions(),
        "device": hardware.describe_devices(),
        "pair": pair.name,
        "pairs": count,
        "L": model.L,
        "layers": model.N + 2,
        "seconds_per_pair": per_pair,
        "reference_pairs": compared,
        "reference_seconds_per_pair": reference,
        "hidden_over_reference": reference / per_pair["hidden"],
        "assignment_milliseconds": assignments,
    }


def _time_second_call(work: Callable[[], Any]) -> float:
    """Returns the seconds of a call; the one before it compiles."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _time_reference_matching(
    params: Any, model: Any, sequences: Any, compared: int
) -> tuple[float, dict[str, float]]:
    """Returns seconds a pair of the reference's way, and milliseconds of other assignments."""
    import jax
    import networkx
    import optax
    from scipy import optimize

    from imbalance_jax.compute import model as model_lib

    states_of = jax.jit(functools.partial(model_lib.compute_hidden_states, config=model))

    def compute_cosines(p: int) -> np.ndarray:
        units = []
        sides = zip(sequences.ids, sequences.text, sequences.contexts, strict=True)
        for ids_PL, text_PL, context in sides:
            states = states_of(params, ids_BL=ids_PL[p : p + 1], context=context)
            states_NLD = np.asarray(states)[1:-1, 0]
            states_NLD = states_NLD[:, text_PL[p]]
            units.append(states_NLD / np.linalg.norm(states_NLD, axis=-1, keepdims=True))
        return np.matmul(units[0], units[1].swapaxes(1, 2))

    def match(cosine_LM: np.ndarray) -> set[tuple[int, int]]:
        graph = networkx.Graph()
        rows, columns = cosine_LM.shape
        graph.add_weighted_edges_from(
            (i, rows + j, float(cosine_LM[i, j])) for i in range(rows) for j in range(columns)
        )
        return networkx.max_weight_matching(graph, maxcardinality=True)

    compute_cosines(0)  # compiles
    began = time.perf_counter()
    for p in range(compared):
        cosine_NLM = compute_cosines(p)
        edges = match(cosine_NLM.mean(axis=0))
        rows = cosine_NLM.shape[1]
        i, j = np.array([sorted(edge) for edge in edges]).T
        cosine_NLM[:, i, j - rows].mean(axis=1)
    reference = (time.perf_counter() - began) / compared
    costs = [-compute_cosines(p).mean(axis=0) for p in range(compared)]
    size = min(min(matrix.shape) for matrix in costs)
    on_device = jax.jit(optax.assignment.hungarian_algorithm)
    milliseconds = {"positions": float(size)}
    for name, assign in (
        ("scipy", optimize.linear_sum_assignment),
        ("optax", lambda cost: jax.block_until_ready(on_device(cost))),
    ):
        assign(costs[0][:size, :size])
        began = time.perf_counter()
        for matrix in costs:
            assign(matrix[:size, :size])
        milliseconds[name] = (time.perf_counter() - began) / compared * 1e3
    return reference, milliseconds


def describe_alignment_speed(figures: dict[str, Any]) -> Iterable[str]:
    """Yields the figures as lines."""
    ours, assignment = figures["seconds_per_pair"], figures["assignment_milliseconds"]
    yield (
        f"{figures['pair']}, {figures['pairs']} pairs of {figures['L']} positions, "
        f"{figures['layers']} layers:"
    )
    yield (
        f"hidden states: {ours['hidden'] * 1e3:,.2f} ms a pair; the reference's way "
        f"{figures['reference_seconds_per_pair'] * 1e3:,.0f} ms (on {figures['reference_pairs']}): "
        f"{figures['hidden_over_reference']:,.0f} times as long"
    )
    yield f"gradients: {ours['gradients'] * 1e3:,.2f} ms a pair"
    yield (
        f"an assignment of {assignment['positions']:.0f} positions: scipy on the host "
        f"{assignment['scipy']:.2f} ms, optax on the device {assignment['optax']:.2f} ms"
    )
