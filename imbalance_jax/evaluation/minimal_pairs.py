"""How often a model gives the good sentence of a minimal pair the higher probability.

A sentence stands alone behind the separator of documents, as the beginning of a document. Its log
probability is the sum over all of its tokens, the first one included; the separator behind it is
not scored. Equal sums count half. A pair of which a sentence is longer than L tokens is left out,
and counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imbalance_jax.data.minimal_pairs import PairSet
from imbalance_jax.evaluation.perplexity import EvaluationWindows

_CONFIDENCE = 0.95


def make_pair_windows(pairs: PairSet | None, separator: int, L: int) -> EvaluationWindows:
    """Returns a window for each sentence that is scored, the good ones before the bad ones."""
    sentences: list[np.ndarray] = []
    if pairs:
        kept = _find_short_pairs(pairs, L)
        sentences = [side[n] for side in (pairs.good, pairs.bad) for n in kept]
    ids_nW = np.zeros((len(sentences), L + 1), np.int64)
    lengths_n = np.array([len(sentence) for sentence in sentences], np.int64)
    ids_nW[:, 0] = separator
    for row, sentence in zip(ids_nW, sentences, strict=True):
        row[1 : 1 + len(sentence)] = sentence
    return EvaluationWindows(ids_nW, np.arange(L) < lengths_n[:, None], L)


def _find_short_pairs(pairs: PairSet, L: int) -> list[int]:
    """Returns the numbers of the pairs whose sentences both fit into a window."""
    lengths = zip(map(len, pairs.good), map(len, pairs.bad), strict=True)
    return [n for n, both in enumerate(lengths) if max(both) <= L]


def summarize_pairs(pairs: PairSet, loss_n: np.ndarray, L: int) -> dict[str, Any]:
    """Returns the accuracy of a language, of all pairs and of each phenomenon.

    Args:
      pairs: of the language.
      loss_n: the loss of each of their windows, in nats.
      L: positions of a window.
    """
    scored = _find_short_pairs(pairs, L)
    good_m, bad_m = np.split(loss_n, 2)
    # The same ids are the same sentence to the model, whatever row of a batch each stood in.
    alike_m = [np.array_equal(pairs.good[n], pairs.bad[n]) for n in scored]
    points = dict(zip(scored, np.where(alike_m, 0.5, score_pairs(good_m, bad_m)), strict=True))
    groups: dict[str, dict[str, list[int]]] = {"phenomena": {}, "paradigms": {}}
    for n, pair in enumerate(pairs.pairs):
        groups["phenomena"].setdefault(pair.phenomenon, []).append(n)
        if pair.paradigm:
            groups["paradigms"].setdefault(pair.paradigm, []).append(n)
    every = _summarize_group(range(len(pairs.pairs)), points)
    return {"file": pairs.file, "digest": pairs.digest, **every} | {
        kind: {name: _summarize_group(numbers, points) for name, numbers in of_kind.items()}
        for kind, of_kind in groups.items()
        if of_kind
    }


def score_pairs(good_m: np.ndarray, bad_m: np.ndarray) -> np.ndarray:
    """Returns 1 where the good sentence has the lower loss, 0 where the bad one has, else 0.5."""
    return 0.5 + 0.5 * np.sign(bad_m - good_m)


def _summarize_group(numbers: Sequence[int], points: Mapping[int, float]) -> dict[str, Any]:
    found = [float(points[n]) for n in numbers if n in points]
    counts = {"pairs": len(found), "left_out": len(numbers) - len(found)}
    if not found:
        return counts
    accuracy = float(np.mean(found))
    interval = compute_wilson_interval(accuracy, len(found))
    return counts | {"ties": found.count(0.5), "accuracy": accuracy, "interval": interval}


def compute_wilson_interval(share: float, n: int) -> list[float]:
    """Returns Wilson's 95 % interval of a share; scipy's takes whole numbers, and ties are none."""
    import scipy.stats

    z2 = float(scipy.stats.norm.ppf((1 + _CONFIDENCE) / 2)) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * (share * (1 - share) / n + z2 / (4 * n**2))) ** 0.5 / (1 + z2 / n)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def describe_accuracies(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the accuracy of each language in a few words."""
    return "minimal pairs  " + "   ".join(
        f"{tag} {found['accuracy']:.1%} of {found['pairs']:,}"
        if "accuracy" in found
        else f"{tag} none of up to L tokens"
        for tag, found in measured.items()
    )
