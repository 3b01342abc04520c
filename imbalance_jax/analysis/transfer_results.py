"""What transfer.json holds: accuracies with their intervals, and means over tasks.

    {protocol: {language that was trained in: {task: {
        "settings": {...}, "step": n, "examples": {"train": n, "test": {source: n}}, ...,
        "languages": {tag: {
            "accuracy", "interval", "seeds", "over_seeds", "over_examples",
            "error", "groups", "majority"}}}}}}

Intervals are of 95 %. `over_seeds` is a t interval of the seeds' mean: another head, and another
order, on the same examples; it is cut at 0 and 1, and absent with a single seed. `over_examples`
says what the same models would do on as many other examples. `interval` is for both at once:
other seeds on other examples. None of them is over other pretrainings.

Examples that share a text, such as the questions on a paragraph, are not independent. They are
one group, and `error`, the standard error over examples, is that of a mean of groups: sqrt(sum
over groups of (sum of their examples' deviations from the mean)^2) / n, where an example counts
with its mean over seeds. `over_examples` is Wilson's for as many independent examples as would
have this error, with Student's t for so many groups in place of the normal. `interval` adds
`error` to the standard error over seeds, with degrees of freedom by Satterthwaite (Biometrics
Bulletin 2, 1946). `majority` is the accuracy of always saying the label that most of the test
examples have.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imbalance_jax.runs.run_directory import RunDirectory

FILE = "transfer.json"
# The entries whose mean the reference study reports.
GLUE = ("cola", "sst2", "mrpc", "qqp", "mnli", "mnli-mm", "qnli", "rte", "boolq", "multirc", "wsc")
_CONFIDENCE = 0.95


def estimate_accuracy(
    correct_Sn: np.ndarray, groups: Sequence[Any], *, majority: float
) -> dict[str, Any]:
    """Returns what transfer.json has of a task in a language.

    Args:
      correct_Sn: whether each seed's weights were right on each example.
      groups: of each example; those of one are not independent.
      majority: accuracy of always saying the most frequent label.
    """
    mean_n = np.mean(np.asarray(correct_Sn, float), axis=0)
    index_n = np.unique(np.asarray(groups), return_inverse=True)[1]
    deviation_g = np.bincount(index_n, mean_n - mean_n.mean())
    error = math.sqrt(float(np.sum(deviation_g**2))) / len(mean_n)
    # Where it is 0 but for rounding, as with a single group, nothing is to be divided by it.
    error = error if error > 1e-9 else 0.0
    return _make_accuracy_row(
        np.mean(correct_Sn, axis=1).tolist(), error, len(deviation_g), majority
    )


def _make_accuracy_row(
    seeds: Sequence[float], error: float, groups: int, majority: float
) -> dict[str, Any]:
    mean = statistics.fmean(seeds)
    return {
        "accuracy": mean,
        "interval": _estimate_joint_interval(seeds, error, groups),
        "seeds": list(seeds),
        "over_seeds": estimate_t_interval(seeds),
        "over_examples": _compute_wilson_interval(mean, error, groups),
        "error": error,
        "groups": groups,
        "majority": majority,
    }


def read_transfer_results(run: RunDirectory) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns what a run's transfer.json holds, but for tasks from before there were intervals."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for protocol, by_language in (run.read_json(FILE) or {}).items():
        for trained, tasks in by_language.items():
            for name, task in tasks.items():
                if all("interval" in row for row in task["languages"].values()):
                    results.setdefault(protocol, {}).setdefault(trained, {})[name] = task
    return results


def name_tasks(tasks: Sequence[str] | Mapping[str, Any]) -> str:
    """Returns what a set of tasks is called."""
    return "GLUE" if set(tasks) == set(GLUE) else ", ".join(sorted(tasks))


def get_task_settings(tasks: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns how tasks that are `are_tasks_alike` were learnt."""
    return next(iter(tasks.values()), {}).get("settings", {})


def are_tasks_alike(tasks: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether tasks were learnt by the same weights in the same way, so that they have a mean."""
    ways = [(task.get("settings"), task.get("step")) for task in tasks.values()]
    return all(way == ways[0] for way in ways)


def average_over_tasks(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns each language's unweighted mean over tasks, of languages that have all of them.

    There is none of tasks that are not `are_tasks_alike`. Its intervals are for the same tasks.

    Args:
      tasks: of one protocol and language that was trained in.
    """
    every = [task["languages"] for task in tasks.values()]
    means: dict[str, dict[str, Any]] = {}
    for tag in every[0] if every and are_tasks_alike(tasks) else ():
        if not all(tag in languages for languages in every):
            continue
        rows = [languages[tag] for languages in every]
        by_seed = zip(*(row["seeds"] for row in rows), strict=True)
        means[tag] = _make_accuracy_row(
            [statistics.fmean(values) for values in by_seed],
            math.hypot(*(row["error"] for row in rows)) / len(rows),
            sum(row["groups"] for row in rows),
            statistics.fmean(row["majority"] for row in rows),
        )
    return means


def estimate_t_interval(values: Sequence[float]) -> list[float] | None:
    """Returns the t interval of a mean of accuracies; None for fewer than two values."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5
    return _compute_clipped_interval(statistics.fmean(values), error, len(values) - 1)


def _estimate_joint_interval(seeds: Sequence[float], error: float, groups: int) -> list[float]:
    """Returns the interval over seeds and examples; over examples, where seeds do not differ."""
    mean = statistics.fmean(seeds)
    both = (
        (statistics.variance(seeds) / len(seeds) if len(seeds) > 1 else 0.0, len(seeds) - 1),
        (error**2, groups - 1),
    )
    if not both[0][0] or groups == 1:  # of other examples a single group says nothing
        return _compute_wilson_interval(mean, error, groups)
    variance = sum(part for part, _ in both)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in both if part)
    return _compute_clipped_interval(mean, math.sqrt(variance), freedom)


def _compute_clipped_interval(mean: float, error: float, freedom: float) -> list[float]:
    import scipy.stats

    half = float(scipy.stats.t.ppf((1 + _CONFIDENCE) / 2, freedom)) * error
    return [max(0, mean - half), min(1, mean + half)]


def _compute_wilson_interval(share: float, error: float, groups: int) -> list[float]:
    """Returns Wilson's interval of a share with a standard error; of so many if it has none."""
    import scipy.stats

    n = share * (1 - share) / error**2 if error else groups
    z = float(scipy.stats.t.ppf((1 + _CONFIDENCE) / 2, max(1, groups - 1)))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return [max(0, centre - half), min(1, centre + half)]
