"""The losses of a state on the test split, parallel text and pairs, as evaluation.json has them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from imbalance_jax.compute import step as step_lib
from imbalance_jax.data.minimal_pairs import PairSet
from imbalance_jax.data.parallel import ParallelSet
from imbalance_jax.data.sources import Source
from imbalance_jax.evaluation import perplexity
from imbalance_jax.evaluation.minimal_pairs import summarize_pairs
from imbalance_jax.runs.progress import split_progress
from imbalance_jax.training.experiment import Experiment

# Texts of the test split whose losses are kept apart, to resample them in a study.
_TEXTS = 200


def list_scored_windows(experiment: Experiment) -> list[list[perplexity.EvaluationWindows]]:
    """Returns the windows that are scored: test split, parallel sets, minimal pairs if any."""
    return [
        experiment.test_windows(),
        *map(experiment.parallel_windows, experiment.parallel.values()),
        *([experiment.pair_windows(pairs)] if (pairs := experiment.minimal_pairs) else []),
    ]


def estimate_scoring_cost(
    experiment: Experiment, windows: Sequence[perplexity.EvaluationWindows]
) -> float:
    """Returns the cost of scoring windows, in training steps.

    A forward pass is a third of an update, whose backward pass takes twice as much.
    """
    return sum(len(w.ids_nW) for w in windows) / experiment.config.batch_size / 3


def score_state(
    experiment: Experiment,
    state: step_lib.TrainState,
    poll: Callable[[float], None],
    evaluator: perplexity.PerplexityEvaluator | None = None,
) -> dict[str, Any]:
    """Returns the losses of a state on the test split, for `RunDirectory.write_results`.

    Args:
      poll: called now and then with the share done; may raise to stop.
      evaluator: a compiled one, where there is one.
    """
    evaluator = evaluator or experiment.evaluator()
    windows, *others = list_scored_windows(experiment)
    costs = [estimate_scoring_cost(experiment, each) for each in (windows, *others)]
    polls = iter(split_progress(poll, costs))
    sums, losses = evaluator.measure(state.params, windows, next(polls))
    by_language = evaluator.summaries(sums)
    texts = {
        tag: _sum_loss_by_text(experiment, tag, losses[tag], windows[g])
        for g, tag in enumerate(experiment.config.tags)
    }
    parallel = {
        name: score_parallel_set(
            experiment, evaluator, state, experiment.parallel[name], each, next(polls)
        )
        for name, each in zip(experiment.parallel, others[: len(experiment.parallel)], strict=True)
    }
    pairs = {}
    if experiment.minimal_pairs:
        pairs["minimal_pairs"] = score_minimal_pairs(
            experiment, evaluator, state, experiment.minimal_pairs, others[-1], next(polls)
        )
    # A loss to compare with, where the text's entropy is known.
    floors = {tag: experiment.entropy(tag) for tag in by_language if experiment.entropy(tag)}
    return {
        "split": "test",
        "stride": experiment.config.eval_stride,
        "languages": by_language,
        "parallel": parallel,
        "entropy": floors,
        "texts": {tag: rows for tag, rows in texts.items() if rows},
        **pairs,
    }


def _sum_loss_by_text(
    experiment: Experiment, tag: str, loss_n: np.ndarray, windows: perplexity.EvaluationWindows
) -> list[tuple[int, float, int]]:
    """Returns the test loss of each text that a language's source is made of."""
    source = experiment.source(tag)
    # Other orders of words move ids between places, and synthetic text has no documents.
    if not isinstance(source, Source) or experiment.config.languages[tag].words != "as_written":
        return []
    return perplexity.sum_loss_by_text(loss_n, windows, source.documents("test")["start"], _TEXTS)


def score_parallel_set(
    experiment: Experiment,
    evaluator: perplexity.PerplexityEvaluator,
    state: step_lib.TrainState,
    set_: ParallelSet,
    windows: list[perplexity.EvaluationWindows],
    poll: Callable[[float], None],
) -> dict[str, Any]:
    """Returns the nats that each language of a parallel set needs for the same content.

    Nats per token compare within a tokenizer, bits per byte within a language; the nats of
    the same texts compare across.
    """
    sums = evaluator.sums(state.params, windows, poll)
    pairs = int(set_.pairs_P.sum())
    scored = [tag for g, tag in enumerate(experiment.config.tags) if len(windows[g].ids_nW)]
    return {
        "pairs": pairs,
        "languages": {
            tag: {"nats_per_pair": sums[tag]["loss"] / pairs}
            | perplexity.compute_language_metrics(sums[tag])
            for tag in scored
        },
    }


def score_minimal_pairs(
    experiment: Experiment,
    evaluator: perplexity.PerplexityEvaluator,
    state: step_lib.TrainState,
    sets: Mapping[str, PairSet],
    windows: list[perplexity.EvaluationWindows],
    poll: Callable[[float], None],
) -> dict[str, Any]:
    """Returns the accuracy of each language that has minimal pairs; `windows` are theirs."""
    _, losses = evaluator.measure(state.params, windows, poll)
    L = experiment.config.model.L
    return {tag: summarize_pairs(pairs, losses[tag], L) for tag, pairs in sets.items()}
