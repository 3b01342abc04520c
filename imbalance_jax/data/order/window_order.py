"""Which window of its pool each position of the training stream draws.

`WindowOrder` has what all orders share, and `ShuffledOrder` is the usual one; sequential.py has
that of the reference study.
"""

import abc
import bisect
from collections.abc import Sequence

import numpy as np

from imbalance_jax.data.order.keyed_draws import derive_key, permute_indices, split_pool_name
from imbalance_jax.data.order.mixture import Mixture


class WindowOrder(abc.ABC):
    """Which language and which window of its pool lies at a position.

    A *pool* is what has one running count of windows: see corpora.py.
    """

    def __init__(self, mixture: Mixture, pools: Sequence[str]) -> None:
        """Args: pools name each language's pool."""
        self.mixture = mixture
        self._languages_of = {
            name: np.array([g for g, pool in enumerate(pools) if pool == name])
            for name in dict.fromkeys(pools)
        }
        self._pool_of_G = np.array([list(self._languages_of).index(pool) for pool in pools])

    def uses_before(self, pool: str, position: int) -> int:
        """Returns how many windows of a pool are drawn before a position."""
        counts_G = self.mixture.counts_before(np.array([position]))[0]
        return int(counts_G[self._languages_of[pool]].sum())

    @abc.abstractmethod
    def at(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the languages at n positions, and the window at each."""

    @abc.abstractmethod
    def dry_at(self, pool: str, end: int) -> int | None:
        """Returns the first position before `end` that needs text a second time, or None."""

    @abc.abstractmethod
    def check_reuse(self, end: int) -> None:
        """Raises ValueError if a language needs text again that it may not have."""


class ShuffledOrder(WindowOrder):
    """Windows in a keyed order of their own each epoch.

    Languages that share a pool of text draw from one running count over it, so no window is
    seen in two of them before the pool is used up. After that, `reuse` decides: with
    `same_language` each language goes on through the windows that it saw itself, in a new
    order each epoch; with `any`, all of them go through the whole pool again.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        tags: Sequence[str],
        pools: Sequence[str],
        windows: dict[str, int],
        seed: int,
        reuse: str,
    ) -> None:
        """Args: pools name each language's pool, SOURCE or SOURCE/TAG; windows count each pool's.

        Raises:
          ValueError: a language has no window of its own to come back to.
        """
        super().__init__(mixture, pools)
        self._tags, self._seed = tuple(tags), seed
        self._windows = windows
        # The pools whose languages come back to windows of their own, and how many each of these
        # languages has.
        self._kept_apart = {
            name
            for name, sharing in self._languages_of.items()
            if reuse == "same_language" and len(sharing) > 1
        }
        self._own: dict[int, int] = {}

    def dry_at(self, pool: str, end: int) -> int | None:
        """Returns the first position before `end` that needs a window a second time.

        None where the pool lasts.
        """
        windows = self._windows[pool]
        if self.uses_before(pool, end) <= windows:
            return None
        # The number of uses never falls with the position.
        after = bisect.bisect_right(range(end), windows, key=lambda p: self.uses_before(pool, p))
        return after - 1

    def _count_own_windows(self, pool: str, end: int) -> None:
        """Notes how many windows each language saw of a shared pool while it lasted."""
        if self._languages_of[pool][0] in self._own:
            return
        dry = self.dry_at(pool, end)
        if dry is not None:
            counts_G = self.mixture.counts_before(np.array([dry]))[0]
            self._own |= {int(g): int(counts_G[g]) for g in self._languages_of[pool]}

    def check_reuse(self, end: int) -> None:
        """Raises ValueError if a language comes too late for a window of its own."""
        final_G = self.mixture.counts_before(np.array([end]))[0]
        for pool in self._kept_apart:
            self._count_own_windows(pool, end)
            for g in self._languages_of[pool]:
                if self._own.get(int(g), 1) == 0 and final_G[g] > 0:
                    raise ValueError(
                        f"Source {pool} is used up before language {self._tags[g]} sees any "
                        "of it, and config.mixture.reuse='same_language' keeps it from text "
                        "that another language saw. Use fewer config.steps, more text, or "
                        "config.mixture.reuse='any'."
                    )

    def at(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the languages at n positions, and the window of its pool at each."""
        language_n, rank_n = self.mixture.locate(first, n)
        before_G = self.mixture.counts_before(np.array([first]))[0]
        window_n = np.empty(n, np.int64)
        pool_n = self._pool_of_G[language_n]
        by_pool_n = np.argsort(pool_n, kind="stable")
        ends = np.cumsum(np.bincount(pool_n, minlength=len(self._languages_of)))
        for number, (pool, sharing) in enumerate(self._languages_of.items()):
            row_m = by_pool_n[ends[number - 1] if number else 0 : ends[number]]
            if not len(row_m):
                continue
            used_m = before_G[sharing].sum() + np.arange(len(row_m))
            windows = self._windows[pool]
            again_m = used_m >= windows
            if pool in self._kept_apart and again_m.any():
                self._count_own_windows(pool, first + n)
                for g in sharing:
                    rows = row_m[again_m & (language_n[row_m] == g)]
                    window_n[rows] = self._draw_own_again(pool, int(g), rank_n[rows])
                row_m, used_m = row_m[~again_m], used_m[~again_m]
            window_n[row_m] = self._permute(used_m, windows, pool)
        return language_n, window_n

    def _permute(self, used: np.ndarray, windows: int, *purpose: str) -> np.ndarray:
        """Returns windows in a new keyed order each epoch."""
        result = np.empty(len(used), np.int64)
        epochs, inside = np.divmod(used, windows)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            # A source is parted between all of its languages or shared by them, so the two parts
            # of SOURCE/TAG are no other language's purpose.
            parts = [part for name in purpose for part in split_pool_name(name)]
            key_ = derive_key(self._seed, "windows", *parts, int(epoch))
            result[in_epoch] = permute_indices(key_, inside[in_epoch], windows)
        return result

    def _draw_own_again(self, pool: str, language: int, ranks: np.ndarray) -> np.ndarray:
        """Returns windows that a language comes back to, having seen them itself."""
        if not len(ranks):
            return ranks
        own = self._own[language]
        # Which of its own windows; then the place in the pool's first epoch where it saw it.
        chosen = self._permute(ranks, own, pool, self._tags[language])
        positions = self.mixture.positions_of(language, chosen)
        counts_nG = self.mixture.counts_before(positions)
        used = counts_nG[:, self._languages_of[pool]].sum(axis=1)
        return self._permute(used, self._windows[pool], pool)
