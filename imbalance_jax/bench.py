"""How fast the parts of a run are, against what each is measured by.

    python -m imbalance_jax.bench --config=configs/90_10.py --out=bench.json
    python -m imbalance_jax.bench --alignment=runs/en_fr --pairs=500

The first is the stream against training.

The host's time per batch is split into working out the order and reading the windows, in the
first epoch and (where the run comes to one) in a later one, with the text in the page cache.
The step is timed on the devices, with its batches waiting. A run waits for data for about
`data_share` of its time at most: while a step is on the device, the host makes the next batch.

The second is the alignment of a trained run's first two languages that have parallel text,
against the reference study's way of it: one pair of sequences at a time, and the best
assignment of positions from networkx (extra `bench`), on the first few of the same pairs.
"""

import json
import resource
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from absl import flags

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.data.stream import Stream
from imbalance_jax.train import Trainer

FLAGS = flags.FLAGS

# How much is measured, for each figure.
_BATCH_SECONDS = 2.0
_STEP_SECONDS = 5.0


def measure_stream(stream: Stream, batch_size: int, L: int, first: int) -> dict[str, float]:
    """Returns the host's time per batch from a step on, and the tokens that makes a second.

    Args:
      stream: of a run.
      batch_size: sequences of a batch.
      L: tokens of a sequence.
      first: step of the first batch.
    """
    stream.batch(first)  # maps the files
    order, whole, batches = 0.0, 0.0, 0
    step = first
    while whole < _BATCH_SECONDS and step < stream.steps:
        began = time.perf_counter()
        stream.order_of(step)
        ordered = time.perf_counter()
        stream.batch(step)
        whole += time.perf_counter() - began
        order += ordered - began
        batches += 1
        step += 1
    return {
        "batches": batches,
        "microseconds_per_batch": whole / batches * 1e6,
        "microseconds_order": order / batches * 1e6,
        "tokens_per_second": batches * batch_size * L / whole,
    }


def measure_step(trainer: Trainer) -> dict[str, float]:
    """Returns the time of a step whose batch waits on the device, and the tokens a second."""
    import jax

    config = trainer.config
    state = trainer.init_state()
    update, map_GU = trainer.compile_step(state), trainer.map_GU()
    batches = [trainer.place(trainer.stream.batch(step)) for step in range(4)]
    state, _ = jax.block_until_ready(update(state, batches[0], map_GU))
    took: list[float] = []
    while sum(took) < _STEP_SECONDS and len(took) < 200:
        began = time.perf_counter()
        state, _ = jax.block_until_ready(update(state, batches[len(took) % 4], map_GU))
        took.append(time.perf_counter() - began)
    seconds = float(np.median(took))
    return {
        "steps": len(took),
        "seconds_per_step": seconds,
        "tokens_per_second": config.batch_size * config.model.L / seconds,
    }


def measure(trainer: Trainer) -> dict[str, Any]:
    """Returns all figures of a config on this machine, ready for JSON."""
    from imbalance_jax import hardware
    from imbalance_jax.runs import versions

    config, stream = trainer.config, trainer.stream
    sizes = (config.batch_size, config.model.L)
    data = {"first epoch": measure_stream(stream, *sizes, first=0)}
    dry = [step for step in stream.dry_steps().values() if step + 1 < stream.steps]
    if dry:
        data["later epoch"] = measure_stream(stream, *sizes, first=min(dry) + 1)
    step = measure_step(trainer)
    slowest = min(part["tokens_per_second"] for part in data.values())
    return {
        "versions": versions(),
        "device": hardware.describe(),
        "batch_size": sizes[0],
        "L": sizes[1],
        "data": data,
        "step": step,
        "data_over_training": slowest / step["tokens_per_second"],
        "data_share": step["tokens_per_second"] / slowest,
        # Kilobytes on Linux, bytes on macOS.
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
    }


def describe(found: dict[str, Any]) -> Iterable[str]:
    """Yields the figures as lines of a table."""
    for name, part in found["data"].items():
        yield (
            f"data, {name}: {part['microseconds_per_batch']:,.0f} us a batch "
            f"({part['microseconds_order']:,.0f} us of order), "
            f"{part['tokens_per_second'] / 1e6:,.1f} M tokens/s"
        )
    step = found["step"]
    yield (
        f"step: {step['seconds_per_step'] * 1e3:,.1f} ms, {step['tokens_per_second']:,.0f} tokens/s"
    )
    yield (
        f"The stream is {found['data_over_training']:,.0f} times as fast as training; its time is "
        f"{found['data_share']:.2%} of a step's."
    )


# Alignment.


def measure_alignment(workdir: str, most: int, compared: int) -> dict[str, Any]:
    """Returns seconds for a pair of sequences, ours and the reference's, ready for JSON.

    Ours matches and rotates, beside shuffled pairs, raw and centred; the reference's takes the
    states of one pair, their mean cosines, and one assignment.

    Args:
      workdir: of a trained run.
      most: pairs that ours is timed on.
      compared: pairs that the reference's way is timed on.
    """
    from imbalance_jax import hardware
    from imbalance_jax.evaluate import open_run
    from imbalance_jax.evaluation import gradients, hidden
    from imbalance_jax.runs import RunDirectory, versions

    trainer, state = open_run(RunDirectory(workdir))
    alignment = trainer.alignment("test", most)
    if not alignment.pairs:
        raise ValueError(f"{workdir}: {' '.join(alignment.skipped.values())}")
    pair, model = alignment.pairs[0], alignment.model
    given, sequences = (alignment.programs, state.params, model), alignment.pairs[0].sequences
    divisor = gradients.adam_divisor(alignment.programs, state.opt_state, trainer.config.optimizer)
    count = len(sequences.ids[0])

    def states() -> dict[str, Any]:
        return hidden.measure(*given, sequences, match=True, rotate=True, poll=_ignore)

    def pulls() -> dict[str, Any]:
        return gradients.measure(*given, sequences.ids, sequences.text, divisor, poll=_ignore)

    seconds, found = {}, {}
    for name, work in (("hidden", states), ("gradients", pulls)):
        work()  # compiles
        began = time.perf_counter()
        found[name] = work()
        seconds[name] = (time.perf_counter() - began) / count
    reference, assignments = _reference_matching(state.params, model, sequences, compared)
    return {
        "versions": versions(),
        "device": hardware.describe(),
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


def _ignore(share: float) -> None:
    """Takes note of nothing while something is timed."""


def _reference_matching(
    params: Any, model: Any, sequences: Any, compared: int
) -> tuple[float, dict[str, float]]:
    """Returns seconds a pair of the reference's way, and milliseconds of other assignments."""
    import functools

    import jax
    import networkx
    import optax
    from scipy import optimize

    from imbalance_jax import model as model_lib

    states_of = jax.jit(functools.partial(model_lib.hidden_states, config=model))

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


def describe_alignment(found: dict[str, Any]) -> Iterable[str]:
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


def main() -> int:
    if FLAGS.alignment:
        found = measure_alignment(FLAGS.alignment, FLAGS.pairs, FLAGS.compared)
        lines = describe_alignment(found)
    else:
        found = _measure_config()
        lines = describe(found)
    print("\n".join(lines))
    if FLAGS.out:
        with open(FLAGS.out, "w") as file:
            json.dump(found, file, indent=2)
    return cli.DONE


def _measure_config() -> dict[str, Any]:
    import jax

    from imbalance_jax import sharding
    from imbalance_jax.data import prepare

    config = config_lib.resolve(cli.required_config())
    mesh = sharding.make_mesh(config.mesh, jax.devices())
    return measure(Trainer.make(config, prepare.prepare_all(config), mesh))


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("out", None, "A JSON file to write the figures to.")
    flags.DEFINE_string("alignment", None, "A run whose alignment is timed, in place of a config.")
    flags.DEFINE_integer("pairs", 512, "Sequences that ours is timed on.", lower_bound=8)
    flags.DEFINE_integer(
        "compared", 5, "Those that the reference's way is timed on.", lower_bound=1
    )
    cli.run(main)
