"""What transfer.json holds: accuracies with their intervals, and means over tasks.

    {protocol: {language that was trained in: {task: {
        "examples": {"train": n, "test": {source: n}}, "labels": [...], "updates": n, ...,
        "languages": {tag: {"accuracy", "seeds", "over_seeds", "over_examples", "majority"}}}}}}

Intervals are of 95 %. `over_seeds` is a t interval of the seeds' mean: another head, and another
order, on the same examples; it is cut at 0 and 1, and absent with a single seed. `over_examples`
is Wilson's for the mean accuracy: the same models on as many other examples. `majority` is the
accuracy of always saying the label that most of the test examples have.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

FILE = "transfer.json"
# The entries whose mean the reference study reports.
GLUE = ("cola", "sst2", "mrpc", "qqp", "mnli", "mnli-mm", "qnli", "rte", "boolq", "multirc", "wsc")
_CONFIDENCE = 0.95


def accuracy(seeds: Sequence[float], *, examples: int, majority: float) -> dict[str, Any]:
    """Returns what transfer.json has of a task in a language.

    Args:
      seeds: accuracy of each training.
      examples: that they were scored on.
      majority: accuracy of always saying the most frequent label.
    """
    mean = statistics.fmean(seeds)
    return {
        "accuracy": mean,
        "seeds": list(seeds),
        "over_seeds": t_interval(seeds),
        "over_examples": wilson(mean, examples),
        "majority": majority,
    }


def named(tasks: Sequence[str] | Mapping[str, Any]) -> str:
    """Returns what a set of tasks is called."""
    return "GLUE" if set(tasks) == set(GLUE) else ", ".join(tasks)


def settings(tasks: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns how tasks that are `alike` were learnt."""
    return next(iter(tasks.values()), {}).get("settings", {})


def alike(tasks: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether tasks were learnt by the same weights in the same way, so that they have a mean."""
    ways = [(task.get("settings"), task.get("step")) for task in tasks.values()]
    return all(way == ways[0] for way in ways)


def means(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns each language's unweighted mean over tasks, of languages that have all of them.

    There is none of tasks that are not `alike`. Its interval is over seeds.

    Args:
      tasks: of one protocol and language that was trained in.
    """
    every = [task["languages"] for task in tasks.values()]
    found: dict[str, dict[str, Any]] = {}
    for tag in every[0] if every and alike(tasks) else ():
        if not all(tag in languages for languages in every):
            continue
        rows = [languages[tag] for languages in every]
        by_seed = zip(*(row["seeds"] for row in rows), strict=True)
        seeds = [statistics.fmean(values) for values in by_seed]
        found[tag] = {
            "accuracy": statistics.fmean(row["accuracy"] for row in rows),
            "seeds": seeds,
            "over_seeds": t_interval(seeds),
            "majority": statistics.fmean(row["majority"] for row in rows),
        }
    return found


def t_interval(values: Sequence[float]) -> list[float] | None:
    """Returns the t interval of a mean of accuracies; None for fewer than two values."""
    import scipy.stats

    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
    half = float(scipy.stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * error
    return [max(0, mean - half), min(1, mean + half)]


def wilson(share: float, n: int) -> list[float]:
    """Returns Wilson's interval of a share of n examples."""
    import scipy.stats

    z = float(scipy.stats.norm.ppf((1 + _CONFIDENCE) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return [centre - half, centre + half]
