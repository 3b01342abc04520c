"""Batches of language-tagged windows: sources, order and languages put together.

`batch(step)` is a pure function of the config, the seed and the step. The host moves base
ids and one language index per sequence; see languages.py for what the device makes of them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax import languages
from imbalance_jax.config import Config
from imbalance_jax.data import mixture as mixture_lib
from imbalance_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class HostBatch:
    ids_BW: np.ndarray  # base ids
    language_B: np.ndarray  # int32


class Stream:
    """The training batches of a run.

    `steps` is the number of updates that the run has: fewer than its config asks for where
    `on_exhaustion='stop'` ends it.
    """

    def __init__(self, config: Config, sources: Mapping[str, Source]) -> None:
        """Args: sources are the prepared ones, by name.

        Raises:
          ValueError: a source is too short, or the order asks for text that there is not.
        """
        self._config = config
        self._L = config.model.L
        self._source_of = [languages.source_of(config, tag) for tag in config.tags]
        self._tokens = {name: sources[name].tokens("train") for name in sources}
        self._dtype = np.result_type(*self._tokens.values())
        self.windows = {}
        for name, tokens in self._tokens.items():
            self.windows[name] = (len(tokens) - 1) // self._L
            if self.windows[name] < 1:
                raise ValueError(
                    f"config.sources.{name} has {len(tokens)} tokens to train on, fewer than one "
                    f"window of config.model.L={self._L} needs. Use more text, or a shorter L."
                )
        self.order = self._make_order()
        self.steps = self._lasting_steps()
        self.order.check_reuse(self.steps * config.batch_size)

    def batch(self, step: int, rows: slice = slice(None)) -> HostBatch:
        """Returns rows of the batch of a step: all, or those of one host."""
        B = self._config.batch_size
        first, last, _ = rows.indices(B)
        language_B, window_B = self.order.at(step * B + first, last - first)
        ids_BW = np.empty((last - first, self._L + 1), self._dtype)
        for row, (language, window) in enumerate(zip(language_B, window_B, strict=True)):
            start = window * self._L
            ids_BW[row] = self._tokens[self._source_of[language]][start : start + self._L + 1]
        return HostBatch(ids_BW, language_B.astype(np.int32))

    def dry_steps(self) -> dict[str, int]:
        """Returns the step at which each source that does not last is first used up."""
        end = self._config.steps * self._config.batch_size
        found = {name: self.order.dry_at(name, end) for name in self.windows}
        return {n: p // self._config.batch_size for n, p in found.items() if p is not None}

    def epochs(self) -> dict[str, float]:
        """Returns how many times each source is gone through in the run."""
        end = self.steps * self._config.batch_size
        return {n: self.order.uses_before(n, end) / w for n, w in self.windows.items()}

    def requested(self, step: int) -> np.ndarray:
        """Returns the sequences per language that the ratio asks for before a step."""
        stages = _stages(self._config)
        total_G = np.zeros(len(self._config.tags))
        for (first, count_G), after in zip(stages, [*stages[1:], (step, None)], strict=True):
            length = max(0, min(step, after[0]) - first)
            total_G += length * self._config.batch_size * np.array(count_G) / sum(count_G)
        return total_G

    def table(self, step: int, sequences_G: np.ndarray) -> list[dict[str, Any]]:
        """Returns the rows of mixture.csv: what was asked for, and what was trained on.

        Args:
          sequences_G: as counted on the devices.
        """
        rows = []
        end = step * self._config.batch_size
        for g, tag in enumerate(self._config.tags):
            source = self._source_of[g]
            windows = self.windows[source]
            requested = float(self.requested(step)[g])
            rows.append(
                {
                    "first_step": 0,
                    "last_step": step,
                    "language": tag,
                    "source": source,
                    "ratio": ", then ".join(
                        str(ratio[tag]) for _, ratio in config_lib.stages(self._config.mixture)
                    ),
                    "requested_sequences": _plain(requested),
                    "realised_sequences": int(sequences_G[g]),
                    "requested_tokens": _plain(requested * self._L),
                    "realised_tokens": int(sequences_G[g]) * self._L,
                    "source_windows": windows,
                    "source_epochs": round(self.order.uses_before(source, end) / windows, 6),
                }
            )
        return rows

    def _make_order(self) -> mixture_lib.Order:
        config = self._config
        stages = [(first * config.batch_size, count_G) for first, count_G in _stages(config)]
        mixture = mixture_lib.Mixture(stages, seed=config.data_seed, sampler=config.mixture.sampler)
        return mixture_lib.Order(
            mixture,
            tags=config.tags,
            sources=self._source_of,
            windows=self.windows,
            seed=config.data_seed,
            reuse=config.mixture.reuse,
        )

    def _lasting_steps(self) -> int:
        """Returns the steps of the run, after what `on_exhaustion` says."""
        config, dry = self._config, self.dry_steps()
        if not dry or config.mixture.on_exhaustion == "repeat":
            return config.steps
        name = min(dry, key=lambda name: dry[name])
        if config.mixture.on_exhaustion == "error":
            raise ValueError(
                f"Source {name} is used up at step {dry[name]} of config.steps={config.steps}, and "
                f"config.mixture.on_exhaustion='error'. Set config.steps={dry[name]}, use more "
                "text, or set on_exhaustion to 'repeat' or 'stop'."
            )
        if dry[name] == 0:
            raise ValueError(f"config.sources.{name} is used up within the first step.")
        return dry[name]


def _plain(value: float) -> float | int:
    """Returns a number without a fraction where it has none."""
    return round(value) if abs(value - round(value)) < 1e-6 else round(value, 3)


def _stages(config: Config) -> list[tuple[int, list[int]]]:
    """Returns (first step, sequences of each language in a block) of every stage."""
    stages = config_lib.stages(config.mixture)
    reduced = [(first, config_lib.reduced(ratio)) for first, ratio in stages]
    return [(first, [counts[tag] for tag in config.tags]) for first, counts in reduced]
