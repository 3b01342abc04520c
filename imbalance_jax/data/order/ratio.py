"""Ratios that follow from the sizes of the texts: by temperature, or as even as they allow."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config
from imbalance_jax.data.order.corpora import AnySource
from imbalance_jax.data.text import synthetic

# Parts that a ratio by temperature is rounded to. The second number is used where a language would
# have none of the first.
_TEMPERATURE_BLOCKS = (1_000, 1_000_000)
# A block of max_epochs has so many sequences at most, where the texts allow that.
_EPOCH_BLOCK = 1_000


def resolve_ratio(
    config: Config, sources: Mapping[str, AnySource], begun: Config | None = None
) -> Config:
    """Returns the config with its ratio filled in, where that follows from the sources' sizes.

    With n tokens to train on, a language's sequences are in proportion to n^(1/temperature):
    1 samples in proportion to size, larger ones more evenly (as for multilingual BERT and
    mT5). They are rounded to parts of 1,000 by largest remainders. Where a language would have
    none of these, they are parts of 1,000,000, with 1 as the least.

    With max_epochs = e all languages get equally many, but no text is gone through more than e
    times (UniMax, arXiv 2304.09151). The counts are of a block that the whole run is a multiple
    of, so that they hold to the last sequence.

    A run that was begun keeps the ratio that it has, which an earlier version of this code may
    have rounded otherwise.

    Raises:
      ValueError: a source is without end, or the texts are too short for max_epochs.
    """
    if not config.mixture.follows_text:
        return config
    if begun is not None:
        ratio = dict(begun.mixture.ratio)
        if config.mixture.max_epochs:
            _check_epochs(config, sources, ratio)
    elif config.mixture.max_epochs:
        count_G = _spread_evenly_over_text(config, sources)
        ratio = dict(zip(config.tags, count_G, strict=True))
    else:
        exact_G = compute_size_shares(config, sources)
        small, large = _TEMPERATURE_BLOCKS
        enough = small * exact_G.min() > 1 - 1e-9  # one part, but for rounding
        ratio = dict(
            zip(
                config.tags,
                _round_to_parts(exact_G, small if enough else large).tolist(),
                strict=True,
            )
        )
    mixture = dataclasses.replace(config.mixture, ratio=ratio)
    return dataclasses.replace(config, mixture=mixture)


def compute_size_shares(config: Config, sources: Mapping[str, AnySource]) -> np.ndarray:
    """Returns the share of each language that the temperature makes of the sources' sizes."""
    temperature = config.mixture.temperature
    sizes_G = np.array(
        [sources[config.source_of(tag)].count("train") for tag in config.tags],
        float,
    )
    if sizes_G.max() >= synthetic.ENDLESS:
        raise ValueError(
            f"config.mixture.temperature={temperature} weighs languages by the size of their "
            "text, and a synthetic source is without end. Set its synthetic.tokens, or "
            "config.mixture.temperature=0 and a ratio."
        )
    weight_G = (sizes_G / sizes_G.max()) ** (1 / temperature)
    return weight_G / weight_G.sum()


def _round_to_parts(share_G: np.ndarray, block: int) -> np.ndarray:
    """Returns shares as whole parts of a block, by largest remainders, with 1 as the least."""
    exact_G = share_G * block
    count_G = np.maximum(1, np.floor(exact_G)).astype(int)
    while count_G.sum() < block:
        count_G[np.argmax(exact_G - count_G)] += 1
    while count_G.sum() > block:  # languages that would have had none got 1
        count_G[np.argmax(np.where(count_G > 1, count_G - exact_G, -np.inf))] -= 1
    return count_G


def _count_most_sequences(config: Config, sources: Mapping[str, AnySource]) -> dict[str, int]:
    """Returns the sequences that each language may have; those of a source share them equally."""
    mixture, total = config.mixture, config.steps * config.batch_size
    sharing = collections.Counter(map(config.source_of, config.tags))
    most = {}
    for tag in config.tags:
        name = config.source_of(tag)
        tokens = sources[name].count("train")
        windows = int((tokens - 1) // config.model.L * mixture.text_share)
        endless = tokens >= synthetic.ENDLESS
        most[tag] = total if endless else int(mixture.max_epochs * windows) // sharing[name]
    return most


def _spread_evenly_over_text(config: Config, sources: Mapping[str, AnySource]) -> list[int]:
    """Returns the sequences of each language in a block that the run is a multiple of.

    Raises:
      ValueError: the texts are too short, or one is so short that it has no sequence.
    """
    total, most = config.steps * config.batch_size, _count_most_sequences(config, sources)
    epochs = config.mixture.max_epochs
    if sum(most.values()) < total:
        raise ValueError(
            f"config.mixture.max_epochs={epochs:g} allows {sum(most.values()):,} sequences of all "
            f"languages, and config.steps={config.steps} of config.batch_size={config.batch_size} "
            f"take {total:,}. Allow more epochs, or set "
            f"config.steps={sum(most.values()) // config.batch_size}."
        )
    if total < len(most):
        raise ValueError(
            f"config.mixture.max_epochs={epochs:g} gives each of {len(most)} languages a sequence "
            f"or more, and config.steps={config.steps} of config.batch_size={config.batch_size} "
            f"take {total}. Set more steps."
        )
    empty = [tag for tag, count in most.items() if not count]
    if empty:
        raise ValueError(
            f"config.mixture.max_epochs={epochs:g} of the text of {', '.join(empty)} is not one "
            "sequence. Add text, or allow more epochs of one that fills a sequence."
        )
    divisors = [n for n in range(min(_EPOCH_BLOCK, total), 0, -1) if total % n == 0]
    for block in (divisors[0], total):
        parts = [count * block // total for count in most.values()]
        if min(parts) > 0 and sum(parts) >= block:
            break
    return _spread_evenly(block, parts)


def _spread_evenly(total: int, most_G: Sequence[int]) -> list[int]:
    """Returns whole numbers that add up to a total, as equal as their largest values allow."""
    count_G, left = [0] * len(most_G), total
    for place, g in enumerate(sorted(range(len(most_G)), key=lambda g: (most_G[g], g))):
        count_G[g] = min(most_G[g], left // (len(most_G) - place))
        left -= count_G[g]
    return count_G


def _check_epochs(
    config: Config, sources: Mapping[str, AnySource], ratio: Mapping[str, int]
) -> None:
    """Raises ValueError if a run that was made longer would go through a text too often."""
    most = _count_most_sequences(config, sources)
    longer = dataclasses.replace(config, mixture=dataclasses.replace(config.mixture, ratio=ratio))
    for tag, asked in config_lib.compute_sequence_totals(longer).items():
        if asked > most[tag]:
            raise ValueError(
                f"config.steps={config.steps} gives {tag} {float(asked):,.10g} sequences at the "
                f"ratio that the run was begun with, and config.mixture.max_epochs="
                f"{config.mixture.max_epochs:g} allows {most[tag]:,}. Set fewer steps, or begin "
                "a run in another --workdir."
            )
