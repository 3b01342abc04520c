"""What says that a run has diverged: losses that are not finite numbers.

A run that diverges ends as FAILED. Earlier versions took one whose last update had diverged for
done, with NaN as its losses; `describe_divergence` tells it from a run that is done.
"""

import math
from collections.abc import Mapping
from typing import Any

from imbalance_jax.runs.run_directory import RunDirectory

WAYS_OUT = (
    "lower config.optimizer.peak_lr, set config.optimizer.clip_norm=1, or make "
    "config.optimizer.warmup longer"
)
# What is finite unless the model is spoilt. A perplexity may be too large for a float.
_LOSSES = ("loss", "language_nats", "loss_own")


def find_nonfinite_loss(languages: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the first loss that is not a finite number, such as "loss of en1 is nan", or "".

    Args:
      languages: the metrics of each language by its tag, as evaluation.json has them.
    """
    for tag, metrics in languages.items():
        for name in _LOSSES:
            value = metrics.get(name, 0.0)
            if value is None or not math.isfinite(value):
                return f"{name} of {tag} is {'not finite' if value is None else value}"
    return ""


def describe_divergence(run: RunDirectory) -> str:
    """Returns why a run that says it is done has failed, or "" where it is done."""
    results = (run.read_json("evaluation.json") or {}) if run.done else {}
    found = find_nonfinite_loss(results.get("languages", {}))
    if not found:
        return ""
    return (
        f"The test {found} at step {results['step']}: {run} has diverged, and is no result. "
        f"In another --workdir, {WAYS_OUT}."
    )
