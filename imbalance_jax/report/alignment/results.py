"""Numbers of an `alignment` in evaluation.json, any of which may be null or absent."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from imbalance_jax.drawing.numbers import parse_number


def get_value(tree: Any, *path: str) -> Any:
    """Returns what lies at a path of nested results, or None."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def get_number(tree: Any, *path: str) -> float:
    """Returns the finite number at a path, or NaN."""
    return _parse_finite(get_value(tree, *path))


def get_numbers(tree: Any, *path: str) -> list[float]:
    """Returns the list at a path, with NaN for what is no finite number; empty if there is none."""
    values = get_value(tree, *path)
    return [_parse_finite(value) for value in values] if isinstance(values, list) else []


def _parse_finite(value: Any) -> float:
    number = parse_number(value)
    return number if math.isfinite(number) else math.nan


def compute_mean(values: Sequence[float]) -> float:
    """Returns the mean, NaN if any of the values is or if there are none."""
    return math.fsum(values) / len(values) if values else math.nan


def find_comparison(hidden: Any) -> str:
    """Returns how the positions of a pair are compared; empty where they are not."""
    return next((kind for kind in ("positions", "matched") if get_value(hidden, kind)), "")


def collect_layer_values(hidden: Any) -> dict[str, list[float]]:
    """Returns what is known of the hidden states of a pair in every layer, 0 to N + 1.

    Cosines are those of positions, or else of positions matched to each other; those after a
    rotation are of positions, or else of whole sequences; the others are of whole sequences.
    Retrieval is the mean of both directions.
    """
    compared = get_value(hidden, find_comparison(hidden))
    sentences = get_value(hidden, "sentences")
    rotated = get_value(hidden, "positions")
    if not get_numbers(rotated, "procrustes_excess"):
        rotated = sentences
    measures = {
        "cosine": compared,
        "cosine_shuffled": compared,
        "cosine_excess": compared,
        "cosine_error": compared,
        "centred_excess": compared,
        "centred_error": compared,
        "procrustes_excess": rotated,
        "procrustes_error": rotated,
        "cka_debiased": sentences,
        "cka_debiased_shuffled": sentences,
    }
    values = {name: get_numbers(tree, name) for name, tree in measures.items()}
    ways = [get_numbers(sentences, f"centred_retrieval_{way}") for way in ("forth", "back")]
    values["retrieval"] = [(forth + back) / 2 for forth, back in zip(*ways, strict=False)]
    chance = get_number(sentences, "chance")
    values["chance"] = [chance] * len(values["retrieval"]) if math.isfinite(chance) else []
    return values
