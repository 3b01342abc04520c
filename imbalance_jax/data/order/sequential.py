"""The reference study's order: every row of the batch reads a queue of documents in sequence.

A row draws its language as in any other order, and takes the next window of its queue in
that language's pool. So the window at a position follows from how many earlier steps gave
this row to this pool. These counts are made from the mixture when they are first needed, and
kept for some steps: for every `_CHUNK` steps or, in a long run, for every second, fourth, ... of
these, so that memory does not grow with the run. Nothing is stored.
"""

import bisect
from collections.abc import Mapping, Sequence

import numpy as np

from imbalance_jax.data.order.mixture import Mixture
from imbalance_jax.data.order.window_order import WindowOrder

_CHUNK = 128  # steps between two counts that are kept, at first
_MOST = 1024  # counts that are kept


class SequentialOrder(WindowOrder):
    """Which window of its queue each position draws.

    A window is named by its number in its row's queue, from 0 on, past the queue's end too:
    the queue then begins again.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        pools: Sequence[str],
        lengths: Mapping[str, np.ndarray],
        L: int,
        reuse: str,
    ) -> None:
        """Args: pools name each language's pool, and lengths (B,) are the ids in its queues."""
        super().__init__(mixture, pools)
        self._reuse = reuse
        self._names = list(self._languages_of)
        self._pool_G = np.array([self._names.index(pool) for pool in pools])
        # Windows, the id after their last one included, that a queue has before it wraps.
        self._lasts = {name: np.maximum(lengths[name] - 1, 0) // L for name in self._names}
        self._rows = len(next(iter(lengths.values())))
        nothing = np.zeros((self._rows, len(self._names)), np.int64)
        self._every, self._counts = _CHUNK, [nothing]
        # Steps and counts before them: where the next batch most often goes on.
        self._last = (0, nothing)

    def at(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the languages at n positions, and the window of its row's queue at each."""
        first_step, last_step = first // self._rows, -(-(first + n) // self._rows)
        language_SB = self._languages(first_step, last_step)
        pool_SB = self._pool_G[language_SB]
        before_BP = self._counts_before(first_step)
        window_SB = np.empty(pool_SB.shape, np.int64)
        for p in range(len(self._names)):
            of_p_SB = pool_SB == p
            counts_SB = before_BP[:, p] + np.cumsum(of_p_SB, axis=0) - of_p_SB
            window_SB = np.where(of_p_SB, counts_SB, window_SB)
        inside = slice(first - first_step * self._rows, first + n - first_step * self._rows)
        return language_SB.reshape(-1)[inside], window_SB.reshape(-1)[inside]

    def dry_at(self, pool: str, end: int) -> int | None:
        """Returns the first position of the first step, before `end`, that wraps a queue.

        None where every queue lasts.
        """
        p, last_B = self._names.index(pool), self._lasts[pool]

        def wraps(step: int) -> bool:  # within the steps before it
            return bool((self._counts_before(step)[:, p] > last_B).any())

        steps = -(-end // self._rows)
        if not wraps(steps):
            return None
        return (bisect.bisect_left(range(steps), True, key=wraps) - 1) * self._rows

    def check_reuse(self, end: int) -> None:
        """Raises ValueError if a queue would wrap where its clones may not change places."""
        if self._reuse != "same_language":
            return
        final_G = self.mixture.counts_before(np.array([end]))[0]
        for pool, sharing in self._languages_of.items():
            if np.count_nonzero(final_G[sharing]) < 2:
                continue
            dry = self.dry_at(pool, end)
            if dry is not None:
                raise ValueError(
                    f"A queue of source {pool} ends at step {dry // self._rows}, and "
                    "config.mixture.order='sequential' reads it again in whichever language "
                    "is drawn. Set config.mixture.reuse='any', or use fewer config.steps."
                )

    def _languages(self, first_step: int, last_step: int) -> np.ndarray:
        n = (last_step - first_step) * self._rows
        return self.mixture.at(first_step * self._rows, n).reshape(-1, self._rows)

    def _counts_before(self, step: int) -> np.ndarray:
        """Returns the windows that each row drew of each pool before a step: (B, pools)."""
        while len(self._counts) * self._every <= step:
            last = len(self._counts) - 1
            self._counts.append(
                self._counts[last] + self._count_drawn(last * self._every, self._every)
            )
            if len(self._counts) > _MOST:
                self._every, self._counts = 2 * self._every, self._counts[::2]
        chunk = step // self._every
        begin, counts_BP = chunk * self._every, self._counts[chunk]
        if begin < self._last[0] <= step:
            begin, counts_BP = self._last
        self._last = (step, counts_BP + self._count_drawn(begin, step - begin))
        return self._last[1]

    def _count_drawn(self, first_step: int, steps: int) -> np.ndarray:
        """Returns the windows that each row draws of each pool in so many steps: (B, pools)."""
        drawn_BP = np.zeros((self._rows, len(self._names)), np.int64)
        for first in range(first_step, first_step + steps, _CHUNK):
            last = min(first + _CHUNK, first_step + steps)
            pool_SB = self._pool_G[self._languages(first, last)]
            for p in range(len(self._names)):
                drawn_BP[:, p] += np.count_nonzero(pool_SB == p, axis=0)
        return drawn_BP
