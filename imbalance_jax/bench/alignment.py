"""The alignment of a trained run's first two languages that have parallel text.

Ours is timed on all pairs, and the reference study's way of it on the first few: one pair of
sequences at a time, and the best assignment of positions from networkx (extra `bench`).
"""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np


def measure_alignment_speed(workdir: str, most: int, compared: int) -> dict[str, Any]:
    """Returns seconds for a pair of sequences, ours and the reference's, ready for JSON.

    Ours matches and rotates, beside shuffled pairs, raw and centred; the reference's takes the
    states of one pair, their mean cosines, and one assignment.

    Args:
      workdir: of a trained run.
      most: pairs that ours is timed on.
      compared: pairs that the reference's way is timed on.
    """
    from imbalance_jax.compute import hardware
    from imbalance_jax.evaluation import gradients, hidden
    from imbalance_jax.evaluation.programs import Measuring
    from imbalance_jax.runs.run_directory import RunDirectory, get_code_versions
    from imbalance_jax.training.reopening import open_run

    run = RunDirectory(workdir)
    trainer, state = open_run(run, run.config())
    alignment = trainer.alignment("test", most)
    if not alignment.pairs:
        raise ValueError(f"{workdir}: {' '.join(alignment.skipped.values())}")
    pair, model = alignment.pairs[0], alignment.model
    measuring = Measuring(alignment.programs, state.params, model)
    sequences = pair.sequences
    divisor = gradients.compute_adam_divisor(
        alignment.programs, state.opt_state, trainer.config.optimizer
    )
    count = len(sequences.ids[0])

    def states() -> dict[str, Any]:
        return hidden.measure_hidden_states(measuring, sequences, match=True, rotate=True)

    def pulls() -> dict[str, Any]:
        return gradients.measure_gradients(measuring, sequences.ids, sequences.text, divisor)

    seconds, found = {}, {}
    for name, work in (("hidden", states), ("gradients", pulls)):
        work()  # compiles
        began = time.perf_counter()
        found[name] = work()
        seconds[name] = (time.perf_counter() - began) / count
    reference, assignments = _time_reference_matching(state.params, model, sequences, compared)
    return {
        "versions": get_code_versions(),
        "device": hardware.describe_devices(),
        "pair": pair.name,
        "pairs": count,
        "L": model.L,
        "layers": model.N + 2,
        "seconds_per_pair": seconds,
        "reference_pairs": compared,
        "reference_seconds_per_pair": reference,
        "hidden_over_reference": reference / seconds["hidden"],
        "assignment_milliseconds": assignments,
    }


def _time_reference_matching(
    params: Any, model: Any, sequences: Any, compared: int
) -> tuple[float, dict[str, float]]:
    """Returns seconds a pair of the reference's way, and milliseconds of other assignments."""
    import functools

    import jax
    import networkx
    import optax
    from scipy import optimize

    from imbalance_jax.compute import model as model_lib

    states_of = jax.jit(functools.partial(model_lib.compute_hidden_states, config=model))

    def cosines(p: int) -> np.ndarray:
        units = []
        for ids_PL, text_PL in zip(sequences.ids, sequences.text, strict=True):
            states_NLD = np.asarray(states_of(params, ids_BL=ids_PL[p : p + 1]))[1:-1, 0]
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

    cosines(0)  # compiles
    began = time.perf_counter()
    for p in range(compared):
        cosine_NLM = cosines(p)
        chosen = match(cosine_NLM.mean(axis=0))
        rows = cosine_NLM.shape[1]
        i, j = np.array([sorted(edge) for edge in chosen]).T
        cosine_NLM[:, i, j - rows].mean(axis=1)
    reference = (time.perf_counter() - began) / compared
    square = [-cosines(p).mean(axis=0) for p in range(compared)]
    size = min(min(matrix.shape) for matrix in square)
    square = [matrix[:size, :size] for matrix in square]
    on_device = jax.jit(optax.assignment.hungarian_algorithm)
    milliseconds = {"positions": float(size)}
    for name, assign in (
        ("scipy", optimize.linear_sum_assignment),
        ("optax", lambda cost: jax.block_until_ready(on_device(cost))),
    ):
        assign(square[0])
        began = time.perf_counter()
        for matrix in square:
            assign(matrix)
        milliseconds[name] = (time.perf_counter() - began) / compared * 1e3
    return reference, milliseconds


def describe_alignment_speed(found: dict[str, Any]) -> Iterable[str]:
    """Yields the figures as lines."""
    ours, assignment = found["seconds_per_pair"], found["assignment_milliseconds"]
    yield (
        f"{found['pair']}, {found['pairs']} pairs of {found['L']} positions, "
        f"{found['layers']} layers:"
    )
    yield (
        f"hidden states: {ours['hidden'] * 1e3:,.2f} ms a pair; the reference's way "
        f"{found['reference_seconds_per_pair'] * 1e3:,.0f} ms (on {found['reference_pairs']}): "
        f"{found['hidden_over_reference']:,.0f} times as long"
    )
    yield f"gradients: {ours['gradients'] * 1e3:,.2f} ms a pair"
    yield (
        f"an assignment of {assignment['positions']:.0f} positions: scipy on the host "
        f"{assignment['scipy']:.2f} ms, optax on the device {assignment['optax']:.2f} ms"
    )
