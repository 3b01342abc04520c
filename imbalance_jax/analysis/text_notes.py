"""How much of a difference of two losses lies in which documents were tested on."""

from collections.abc import Sequence

import numpy as np

from imbalance_jax.analysis import statistics
from imbalance_jax.analysis.resampling import resample_text
from imbalance_jax.analysis.study_table import StudyTable


def make_text_notes(
    table: StudyTable, sides: Sequence[tuple[Sequence[str], str]]
) -> tuple[str, ...]:
    """Returns what a difference of losses would be on other documents, in a sentence if known.

    Args:
      table: of the study.
      sides: the runs and the language of the first loss, and of the second.
    """
    by_seed = [
        {
            table.runs[run].config.seed: table.texts[run, language]
            for run in runs
            if (run, language) in table.texts
        }
        for runs, language in sides
    ]
    # The runs that `statistics.estimate_difference` compares.
    shared = by_seed[0].keys() & by_seed[1].keys()
    texts = [[side[s] for s in side if s in shared or len(shared) < 2] for side in by_seed]
    if not all(texts):
        return ()
    numbers = sorted(set.intersection(*(set(each) for side in texts for each in side)))
    if len(numbers) < 2:
        return ()
    every_RC = np.array([[each[n] for n in numbers] for side in texts for each in side])
    draws_SR = resample_text(every_RC[..., 0], every_RC[..., 1])
    loss_R = every_RC[..., 0].sum(axis=1) / every_RC[..., 1].sum(axis=1)
    first = len(texts[0])
    low, high = statistics.compute_widened_interval(
        float(loss_R[:first].mean() - loss_R[first:].mean()),
        draws_SR[:, :first].mean(axis=1) - draws_SR[:, first:].mean(axis=1),
        len(numbers) - 1,
    )
    return (
        f"With the same runs and other test text it would be {low:+.3f} to {high:+.3f} (95 %): "
        f"{len(numbers)} groups of documents drawn anew.".replace("-", "−"),
    )
