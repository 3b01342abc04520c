"""How often each id of a language was trained on."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from imbalance_jax.config import Config
from imbalance_jax.data.order.corpora import AnySource


@dataclasses.dataclass(frozen=True)
class PieceCounts:
    """About how often each base id was trained on, (G, U) each."""

    source_GU: np.ndarray  # in any language of the same source, as the reference counts
    own_GU: np.ndarray  # in the language itself


def count_pieces(
    config: Config,
    sources: Mapping[str, AnySource],
    map_GU: np.ndarray,
    sequences_G: np.ndarray,
) -> PieceCounts:
    """Returns how often each base id was trained on after so many sequences of each language.

    That is its count in the text, times how often the text was gone through. Before any
    training it is its count in the text.
    """
    names = [config.source_of(tag) for tag in config.tags]
    source_GU, own_GU = np.zeros(map_GU.shape), np.zeros(map_GU.shape)
    begun = bool(sum(sequences_G))
    for g, name in enumerate(names):
        source = sources[name]
        counts_U = source.pieces.counts_U
        if counts_U is None:
            continue
        sequences = sum(n for n, other in zip(sequences_G, names, strict=True) if other == name)
        epochs_of = config.model.L / source.count("train")
        source_GU[g, : len(counts_U)] = counts_U * (sequences * epochs_of or 1)
        own_GU[g, : len(counts_U)] = counts_U * (sequences_G[g] * epochs_of if begun else 1)
    return PieceCounts(source_GU, own_GU)
