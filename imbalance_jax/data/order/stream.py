"""Batches of language-tagged windows: corpora and order put together.

`batch(step)` is a pure function of the config, the seed and the step. The host moves base
ids and one language index per sequence; see languages.py for what the device makes of them.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config
from imbalance_jax.data import word_order
from imbalance_jax.data.order import corpora, keyed_draws, sequential
from imbalance_jax.data.order.mixture import Mixture
from imbalance_jax.data.order.ratio import compute_size_shares
from imbalance_jax.data.order.window_order import ShuffledOrder, WindowOrder

# Positions whose order is worked out at once, so that small batches do not pay for it each.
_ORDER_CHUNK = 4096
# A share that is further off than this from what the sizes make it is reported.
_ROUNDED = 0.05


@dataclasses.dataclass(frozen=True)
class HostBatch:
    ids_BW: np.ndarray  # base ids
    language_B: np.ndarray  # int32


class Stream:
    """The training batches of a run.

    `steps` is the number of updates that the run has: fewer than its config asks for where
    `on_exhaustion='stop'` ends it. `windows` has the number of windows of each pool that the run
    draws from: of all its text or, with `text_share`, of that share of it.
    """

    def __init__(self, config: Config, sources: Mapping[str, corpora.AnySource]) -> None:
        """Args: sources are the prepared ones, by name.

        Raises:
          ValueError: a source is too short, or the order asks for text that there is not.
        """
        self._config, self._sources = config, sources
        self._L = config.model.L
        # Each stream has its own cache, because the streams of a pack alternate.
        self._order_of_steps = functools.lru_cache(maxsize=2)(self._compute_order_of_steps)
        self._corpora = corpora.build_corpora(config, sources)
        self.pools = [corpus.pool for corpus in self._corpora]
        self._dtype = np.result_type(*(corpus.tokens.dtype for corpus in self._corpora))
        self.sequential = config.mixture.order == "sequential"
        stages = [
            (
                first * config.batch_size,
                [config_lib.reduce_ratio(ratio)[tag] for tag in config.tags],
            )
            for first, ratio in config_lib.list_stages(config)
        ]
        self.mixture = Mixture(stages, seed=config.data_seed, sampler=config.mixture.sampler)
        asked = config_lib.compute_sequence_totals(config)
        self._drawn_pools = {
            pool for tag, pool in zip(config.tags, self.pools, strict=True) if asked[tag] > 0
        }
        self.windows: dict[str, int] = {}
        self.order: WindowOrder = (
            self._build_sequential() if self.sequential else self._build_shuffled()
        )
        self.steps = self._count_lasting_steps()
        self.order.check_reuse(self.steps * config.batch_size)

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> HostBatch:
        """Returns rows of the batch of a step: all, or those of one host."""
        row_n = np.arange(self._config.batch_size)[rows]
        language_B, start_B = (values[rows] for values in self.starts_of(step))
        ids_BW = np.empty((len(row_n), self._L + 1), self._dtype)
        for g in np.unique(language_B):
            of_g = np.nonzero(language_B == g)[0]
            ids_BW[of_g] = self._read(int(g), row_n[of_g], start_B[of_g])
        return HostBatch(ids_BW, language_B.astype(np.int32))

    def starts_of(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the language of every row of a step's batch, and where its window begins.

        That is a place in the text of the language or, in sequence, in the queue of the row,
        counted on through its wraps. The L + 1 ids from there on are what the row has.
        """
        language_B, window_B = self.order_of(step)
        start_B = np.empty_like(window_B)
        for g in np.unique(language_B):
            of_g = language_B == g
            start_B[of_g] = self._starts(int(g), window_B[of_g])
        return language_B, start_B

    def order_of(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the language and the window of its pool of every row of a step's batch."""
        B = self._config.batch_size
        together = max(1, _ORDER_CHUNK // B)
        first = step - step % together
        # Not beyond the run's end: what comes there may not exist.
        last = max(step + 1, min(first + together, self.steps))
        language_n, window_n = self._order_of_steps(first, last)
        rows = slice((step - first) * B, (step - first + 1) * B)
        return language_n[rows], window_n[rows]

    def _compute_order_of_steps(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the languages and windows of the rows of steps first .. last - 1."""
        B = self._config.batch_size
        return self.order.at(first * B, (last - first) * B)

    def _starts(self, language: int, window_n: np.ndarray) -> np.ndarray:
        """Returns the places in a language's text at which windows of its pool begin."""
        if self._config.mixture.text_share < 1:
            # A part of the text drawn from all of it: its beginning may be of another kind.
            parts = keyed_draws.split_pool_name(self.pools[language])
            key = keyed_draws.derive_key(self._config.data_seed, "text_share", *parts)
            all_windows = (len(self._texts[language]) - 1) // self._L
            window_n = keyed_draws.permute_indices(key, window_n, all_windows)
        return window_n * self._L

    def _read(self, language: int, row_n: np.ndarray, starts_n: np.ndarray) -> np.ndarray:
        if self.sequential:
            return self._queues[language].windows(row_n, starts_n, self._L + 1)
        return self._texts[language].windows(starts_n, self._L + 1)

    def windows_at(self, language: int, window_n: np.ndarray) -> np.ndarray:
        """Returns the ids (n, W) of windows of a language's pool, by the numbers of `order_of`."""
        assert not self.sequential, "a queue belongs to a row of the batch"
        return self._texts[language].windows(self._starts(language, window_n), self._L + 1)

    def dry_steps(self) -> dict[str, int]:
        """Returns the step at which each pool that does not last is first used up."""
        end = self._config.steps * self._config.batch_size
        positions = {pool: self.order.dry_at(pool, end) for pool in self.windows}
        return {n: p // self._config.batch_size for n, p in positions.items() if p is not None}

    def epochs(self) -> dict[str, float]:
        """Returns how many times each pool is gone through in the run."""
        end = self.steps * self._config.batch_size
        return {n: self.order.uses_before(n, end) / w for n, w in self.windows.items()}

    def unexpected_shares(self) -> list[str]:
        """Returns what to say, before the first step, of the languages' parts in the run."""
        return self.rounded_shares() + self.languages_without_text()

    def languages_without_text(self) -> list[str]:
        """Returns a sentence on each language that has no sequence in the whole run."""
        config, sentences = self._config, []
        sequences = self.steps * config.batch_size
        held_G = self.mixture.counts_before(np.array([sequences]))[0]
        in_config = config_lib.compute_sequence_totals(config)
        in_run = config_lib.compute_sequence_totals(config, before=self.steps)
        for tag, held in zip(config.tags, held_G.tolist(), strict=True):
            if held:
                continue
            if not in_config[tag]:
                why = "its ratio is 0"
            elif not in_run[tag]:
                why = f"the text ends before the stage in which it joins, at step {self.steps:,}"
            else:
                why = f"its ratio asks for {float(in_run[tag]):.2g} of them"
            sentences.append(f"{tag} gets none of the {sequences:,} sequences of this run: {why}")
        return sentences

    def rounded_shares(self) -> list[str]:
        """Returns a sentence on each language whose share by temperature is another one."""
        config, sentences = self._config, []
        if not config.mixture.temperature:
            return []
        ratio, epochs = config.mixture.ratio, self.epochs()
        block = sum(ratio.values())
        exact_G = compute_size_shares(config, self._sources).tolist()
        for tag, pool, exact in zip(config.tags, self.pools, exact_G, strict=True):
            share = ratio[tag] / block
            if abs(share - exact) > _ROUNDED * exact:
                sentences.append(
                    f"{tag} gets {100 * share:.3g} % of the sequences ({ratio[tag]:,} of "
                    f"{block:,}), where the size of its text makes {100 * exact:.3g} %: that is "
                    f"{epochs[pool]:.3g} epochs of it"
                )
        return sentences

    def requested(self, step: int) -> np.ndarray:
        """Returns the sequences per language that the ratio asks for before a step."""
        totals = config_lib.compute_sequence_totals(self._config, before=step)
        return np.array([float(n) for n in totals.values()])

    def ratios(self, first: int, last: int) -> list[Mapping[str, int]]:
        """Returns the ratios of the stages that steps first .. last - 1 are in."""
        stages = config_lib.list_stages(self._config)
        ends = [*(after for after, _ in stages[1:]), last]
        return [
            ratio
            for (begin, ratio), end in zip(stages, ends, strict=True)
            if begin < last and end > first
        ]

    # What proves the order: see audit.py.

    @property
    def order_version(self) -> int:
        """The version of the order that this run has; see mixture.py."""
        return self.mixture.order_version

    def taken_documents(self) -> dict[str, float]:
        """Returns what `corpora.measure_taken_documents` finds of the run."""
        return corpora.measure_taken_documents(self._corpora)

    def digest(self) -> str:
        """Returns hex digits that stand for the text and the rules that batches are made of.

        With them, `starts_of` determines the ids of every batch.
        """
        languages_ = [
            {
                "tag": tag,
                "source": corpus.source.fingerprint,
                "words": self._words_key(tag),
                "documents": _hash_documents(corpus.chosen_n),
                "pool": corpus.pool,
            }
            for tag, corpus in zip(self._config.tags, self._corpora, strict=True)
        ]
        return config_lib.hash_plain_values(
            {
                "order_version": self.order_version,
                "order": self._config.mixture.order,
                "L": self._L,
                "languages": languages_,
            }
        )

    def _words_key(self, tag: str) -> list[Any]:
        language = self._config.languages[tag]
        version = 0 if language.words == "as_written" else word_order.VERSION
        return [language.words, language.words_block, version]

    def repeating_pools(self) -> list[str]:
        """Returns the pools whose text can come in another language than it came in before."""
        mixture = self._config.mixture
        if mixture.order == "shuffled" and mixture.reuse != "any":
            return []
        shared = {pool for pool in self.windows if self.pools.count(pool) > 1}
        end = self.steps * self._config.batch_size
        return sorted(pool for pool in shared if self.order.dry_at(pool, end) is not None)

    def places(self, pool: str) -> int:
        """Returns how many windows a pool has that `place_of` tells apart."""
        if self.sequential:
            return int(self._queue_places(pool)[-1])
        return self.windows[pool]

    def place_of(self, pool: str, row_n: np.ndarray, window_n: np.ndarray) -> np.ndarray:
        """Returns the number in the pool of each window's text.

        A queue that has wrapped is read at other cuts than before; its windows count as the
        text that they begin in.
        """
        if not self.sequential:
            return window_n
        length_n = self._queue_lengths[pool][row_n]
        first_n = np.concatenate([[0], self._queue_places(pool)])[row_n]
        return first_n + window_n * self._L % length_n // self._L

    def _queue_places(self, pool: str) -> np.ndarray:
        return np.cumsum(-(-self._queue_lengths[pool] // self._L))

    # Setting up.

    def _build_shuffled(self) -> ShuffledOrder:
        mixture = self._config.mixture
        self._texts = [corpus.text() for corpus in self._corpora]
        for corpus, text in zip(self._corpora, self._texts, strict=True):
            windows = int((len(text) - 1) // self._L * mixture.text_share)
            self._set_windows(corpus, len(text), windows)
        return ShuffledOrder(
            self.mixture,
            tags=self._config.tags,
            pools=self.pools,
            # What is never drawn from may be without any text.
            windows=dict.fromkeys(self.pools, 1) | self.windows,
            seed=self._config.data_seed,
            reuse=mixture.reuse,
        )

    def _build_sequential(self) -> sequential.SequentialOrder:
        B = self._config.batch_size
        # Queues of languages that share a pool are alike, but for the order of words in them.
        self._queues = {
            g: corpus.queues(B)
            for g, corpus in enumerate(self._corpora)
            if corpus.pool in self._drawn_pools
        }
        self._queue_lengths = dict.fromkeys(self.pools, np.zeros(B, np.int64))
        for g, queues in self._queues.items():
            self._queue_lengths[self.pools[g]] = queues.length_B
            ids = int(queues.length_B.sum())
            self._set_windows(self._corpora[g], ids, ids // self._L)
        return sequential.SequentialOrder(
            self.mixture,
            pools=self.pools,
            lengths=self._queue_lengths,
            L=self._L,
            reuse=self._config.mixture.reuse,
        )

    def _set_windows(self, corpus: corpora.Corpus, ids: int, windows: int) -> None:
        """Notes how many windows a pool has, if it is drawn from; `ids` are those of its text."""
        if corpus.pool not in self._drawn_pools:
            return
        if windows < 1:
            share = self._config.mixture.text_share
            part = f" and config.mixture.text_share={share:g} of them" if share < 1 else ""
            raise ValueError(
                f"config.sources.{corpus.source.name} has {ids} tokens to train on{part}, fewer "
                f"than one window of config.model.L={self._L} needs. Use more text, or a shorter L."
            )
        self.windows[corpus.pool] = windows

    def _count_lasting_steps(self) -> int:
        """Returns the steps of the run, cut short or refused as `on_exhaustion` has it."""
        config, dry = self._config, self.dry_steps()
        if not dry or config.mixture.on_exhaustion == "repeat":
            return config.steps
        name = min(dry, key=lambda name: dry[name])
        if config.mixture.on_exhaustion == "error":
            raise ValueError(
                f"Source {name} is used up at step {dry[name]} of config.steps="
                f"{config.steps}, and config.mixture.on_exhaustion='error'. Set config.steps="
                f"{dry[name]}, use more text, or set on_exhaustion to 'repeat' or 'stop'."
            )
        if dry[name] == 0:
            raise ValueError(f"Source {name} is used up within the first step. Use more text.")
        return dry[name]


def _hash_documents(chosen_n: np.ndarray | None) -> str:
    """Returns hex digits that stand for a choice of documents."""
    if chosen_n is None:
        return "all"
    return hashlib.sha256(np.packbits(chosen_n).tobytes()).hexdigest()[:16]
