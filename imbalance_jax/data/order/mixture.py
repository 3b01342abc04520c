"""The order of the languages in the training data: which one lies at a position.

A position is a place in the training stream: row r of the batch of step s is position
s * B + r. Everything here is arithmetic on positions. There is no state to save, so the
order is the same on any number of hosts, after a resume, and when a run is made longer.

Randomness is a keyed function of position: see keyed_draws.py. A `Sampler` has the languages of one
stage, and a `Mixture` the stages of a run; window_order.py adds the windows. Whatever changes the
order changes ORDER_VERSION, which every run records.
"""

import abc
import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from imbalance_jax.data.order.keyed_draws import derive_key, draw_bits

ORDER_VERSION = 1
# The version of a run with blocks above _LARGEST_SORTED, which earlier code sorted whole.
_SPREAD_VERSION = 2

# Blocks of the exact sampler up to this size are sorted, larger ones are spread.
_LARGEST_SORTED = 100_000
# Positions of a large block that are sorted together.
_CELL = 1024
# Positions between two stored running counts of the bernoulli sampler.
_CHUNK = 4096
# Positions whose languages are made at once where many are asked for, to bound the memory.
_AT_ONCE = 1 << 20


class Sampler(abc.ABC):
    """The language at each position of one stage, whose positions count from 0 here.

    Positions come in *cells*, and the languages of a cell are made together. How many
    positions before a cell hold each language is known without making the cells before it, or
    from counts that are kept of them. So memory grows with the size of a cell, and never with
    how far apart the positions are that are asked for.
    """

    size: int  # positions in a cell; a subclass may have shorter ones too
    languages: int

    def __init__(self, key_: int, count_G: Sequence[int], size: int) -> None:
        self._key, self._count_G, self.size = key_, np.array(count_G), size
        self._block, self.languages = sum(count_G), len(count_G)
        # A cell may span many batches; the last ones are kept.
        self._range = functools.lru_cache(maxsize=4)(self._make_range)

    def at(self, first: int, n: int) -> np.ndarray:
        """Returns the languages at positions first .. first + n - 1."""
        (first_cell, last_cell), _ = self._cell_of(np.array([first, first + n - 1]))
        languages_kT = self._range(int(first_cell), int(last_cell) + 1)
        start = first - int(self._first_of(first_cell))
        return languages_kT[languages_kT >= 0][start : start + n]

    def counts_before(self, position_n: np.ndarray) -> np.ndarray:
        """Returns how many positions before each given one hold each language: (n, G)."""
        cell_n, inside_n = self._cell_of(position_n)
        counts_nG = self._counts_at(cell_n)
        for index_m, row_m, languages_kT in self._by_cell(cell_n):
            if len(index_m) < self.languages:  # few positions, such as the first of a batch
                for index, row in zip(index_m, row_m, strict=True):
                    inside = languages_kT[row, : inside_n[index]]
                    counts_nG[index] += np.bincount(inside, minlength=self.languages)
                continue
            before_kT = np.zeros((len(languages_kT), self.size + 1), np.int32)
            for g in range(self.languages):
                np.cumsum(languages_kT == g, axis=1, out=before_kT[:, 1:])
                counts_nG[index_m, g] += before_kT[row_m, inside_n[index_m]]
        return counts_nG

    def positions_of(self, language: int, rank_n: np.ndarray) -> np.ndarray:
        """Returns the positions of a language's ranks."""
        cell_n = self._cell_with(language, rank_n)
        wanted_n = rank_n - self._counts_at(cell_n)[:, language]
        position_n = self._first_of(cell_n)
        for index_m, row_m, languages_kT in self._by_cell(cell_n):
            row, place = np.nonzero(languages_kT == language)
            first_k = np.searchsorted(row, np.arange(len(languages_kT)))
            position_n[index_m] += place[first_k[row_m] + wanted_n[index_m]]
        return position_n

    def _by_cell(self, cell_n: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields the languages of n cells, some distinct cells at a time, to bound the memory.

        Each time these are the places in `cell_n` (m,) of the cells that were made, the row (m,)
        of each of them, and the languages (k, T) of the k distinct cells that are the rows.
        """
        cells, row_n = np.unique(cell_n, return_inverse=True)
        together = max(1, _AT_ONCE // self.size)
        for first in range(0, len(cells), together):
            cell_k = cells[first : first + together]
            index_m = np.nonzero((first <= row_n) & (row_n < first + together))[0]
            if len(cell_k) == 1:  # most often the one that the next batch is in
                languages_kT = self._range(int(cell_k[0]), int(cell_k[0]) + 1)
            else:
                languages_kT = self._make(cell_k)
            yield index_m, row_n[index_m] - first, languages_kT

    def _make_range(self, first: int, last: int) -> np.ndarray:
        return self._make(np.arange(first, last))

    # What a subclass defines of its cells.

    def _cell_of(self, position_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the cell of each position, and the place inside it."""
        cell_n, inside_n = np.divmod(position_n, self.size)
        return cell_n, inside_n

    def _first_of(self, cell_n: np.ndarray) -> np.ndarray:
        """Returns the first position of each cell."""
        return cell_n * self.size

    @abc.abstractmethod
    def _make(self, cell_k: np.ndarray) -> np.ndarray:
        """Returns the languages (k, T) of cells; -1 is beyond the end of one."""

    @abc.abstractmethod
    def _counts_at(self, cell_n: np.ndarray) -> np.ndarray:
        """Returns how many positions before each cell hold each language, in a new (n, G)."""

    @abc.abstractmethod
    def _cell_with(self, language: int, rank_n: np.ndarray) -> np.ndarray:
        """Returns the cells that hold a language's ranks."""


class SortedBlockSampler(Sampler):
    """Blocks of sum(count_G) positions with count_G of each language, sorted by draws."""

    def __init__(self, key_: int, count_G: Sequence[int]) -> None:
        super().__init__(key_, count_G, sum(count_G))

    def _make(self, cell_k: np.ndarray) -> np.ndarray:
        position_kT = cell_k[:, None] * self.size + np.arange(self.size)
        sorted_T = np.repeat(np.arange(self.languages), self._count_G)
        return sorted_T[np.argsort(draw_bits(self._key, position_kT), axis=1, kind="stable")]

    def _counts_at(self, cell_n: np.ndarray) -> np.ndarray:
        return cell_n[:, None] * self._count_G

    def _cell_with(self, language: int, rank_n: np.ndarray) -> np.ndarray:
        return rank_n // self._count_G[language]


class SpreadBlockSampler(Sampler):
    """Blocks too large to be sorted: each language lies evenly over the block.

    A block is cut into cells. The first n positions of a block have n c / S sequences of the
    first language, rounded, where the S positions of the block have c. The rest of n is shared out
    among the other languages in the same way. A cell holds the difference of these counts between
    its end and its beginning, in an order by draws.
    """

    def __init__(self, key_: int, count_G: Sequence[int]) -> None:
        super().__init__(key_, count_G, _CELL)
        self._cells = -(-self._block // _CELL)  # of a block

    def _counts_to(self, position_n: np.ndarray) -> np.ndarray:
        """Returns how often each language stands before each position of a block: (n, G)."""
        counts_nG = np.zeros((len(position_n), self.languages), np.int64)
        left_n, left = position_n, self._block
        for g, count in enumerate(self._count_G.tolist()):
            if count:
                # Rounded in whole numbers: 2 S**2 is below 2**63, as config/checks.py bounds S.
                counts_nG[:, g] = (2 * left_n * count + left) // (2 * left)
                left_n, left = left_n - counts_nG[:, g], left - count
        return counts_nG

    def _cell_of(self, position_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        block_n, inside_n = np.divmod(position_n, self._block)
        cell_n, place_n = np.divmod(inside_n, self.size)
        return block_n * self._cells + cell_n, place_n

    def _first_of(self, cell_n: np.ndarray) -> np.ndarray:
        block_n, inside_n = np.divmod(cell_n, self._cells)
        return block_n * self._block + inside_n * self.size

    def _make(self, cell_k: np.ndarray) -> np.ndarray:
        begin_k = cell_k % self._cells * self.size
        end_k = np.minimum(begin_k + self.size, self._block)
        held_kG = self._counts_to(end_k) - self._counts_to(begin_k)
        ticket_T = np.arange(self.size)
        sorted_kT = np.zeros((len(cell_k), self.size), np.int64)
        for end_k1 in np.cumsum(held_kG, axis=1).T[:-1, :, None]:
            sorted_kT += ticket_T >= end_k1
        draws_kT = draw_bits(self._key, self._first_of(cell_k)[:, None] + ticket_T)
        beyond_kT = ticket_T >= (end_k - begin_k)[:, None]
        draws_kT[beyond_kT] = ~np.uint64(0)  # these stay at the end
        order_kT = np.argsort(draws_kT, axis=1, kind="stable")
        languages_kT = np.take_along_axis(sorted_kT, order_kT, axis=1)
        languages_kT[beyond_kT] = -1
        return languages_kT

    def _counts_at(self, cell_n: np.ndarray) -> np.ndarray:
        block_n, inside_n = np.divmod(cell_n, self._cells)
        return block_n[:, None] * self._count_G + self._counts_to(inside_n * self.size)

    def _cell_with(self, language: int, rank_n: np.ndarray) -> np.ndarray:
        block_n, inside_n = np.divmod(rank_n, self._count_G[language])
        # The last cell that has no more of the language before it: between low and high.
        low_n, high_n = np.zeros_like(rank_n), np.full_like(rank_n, self._cells)
        while (high_n - low_n > 1).any():
            middle_n = (low_n + high_n) // 2
            fits_n = self._counts_to(middle_n * self.size)[:, language] <= inside_n
            low_n, high_n = np.where(fits_n, middle_n, low_n), np.where(fits_n, high_n, middle_n)
        return block_n * self._cells + low_n


class BernoulliSampler(Sampler):
    """An independent draw at every position; counts of the cells before are kept."""

    def __init__(self, key_: int, count_G: Sequence[int]) -> None:
        super().__init__(key_, count_G, _CHUNK)
        # 63 bits, so that the upper end of the last interval is a number too.
        ends = [(c << 63) // self._block for c in itertools.accumulate(count_G)]
        self._ends = np.array(ends[:-1], np.uint64)
        self._counts_kG = np.zeros((1, self.languages), np.int64)  # at the starts of cells 0, 1 ..

    def at(self, first: int, n: int) -> np.ndarray:
        return self._draw(np.arange(first, first + n))

    def _draw(self, positions: np.ndarray) -> np.ndarray:
        draws = draw_bits(self._key, positions) >> np.uint64(1)
        return np.searchsorted(self._ends, draws, side="right")

    def _make(self, cell_k: np.ndarray) -> np.ndarray:
        return self._draw(cell_k[:, None] * self.size + np.arange(self.size))

    def _counts_at(self, cell_n: np.ndarray) -> np.ndarray:
        self._count_up_to(int(cell_n.max()))
        return self._counts_kG[cell_n]

    def _count_up_to(self, last: int) -> None:
        """Makes the running counts at the starts of cells 0 .. last, at least."""
        together = _AT_ONCE // self.size  # to bound the memory
        while len(self._counts_kG) <= last:
            first = len(self._counts_kG) - 1
            languages_kT = self._make(np.arange(first, first + together))
            inside = [np.count_nonzero(languages_kT == g, 1) for g in range(self.languages)]
            more_kG = self._counts_kG[-1] + np.cumsum(np.stack(inside, 1), axis=0)
            self._counts_kG = np.concatenate([self._counts_kG, more_kG])

    def _cell_with(self, language: int, rank_n: np.ndarray) -> np.ndarray:
        while self._counts_kG[-1, language] <= rank_n.max():
            self._count_up_to(len(self._counts_kG))
        return np.searchsorted(self._counts_kG[:, language], rank_n, side="right") - 1


@dataclasses.dataclass(frozen=True)
class MixtureStage:
    """A stretch of positions with one ratio; it begins a new block."""

    first: int  # position
    sampler: Sampler


class Mixture:
    """Which language lies at a position, and how many positions before it held that language.

    `exact`: every block of sum(count_G) positions holds count_G of each language, in an
    order of its own; in a large block the languages lie evenly besides. `bernoulli`: every
    position draws its language with the probability of its ratio, as the reference study does;
    running counts at every 4,096th position are made from the draws when they are needed.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, Sequence[int]]],
        *,
        seed: int,
        sampler: str = "exact",
    ) -> None:
        """Args: stages are (first position, sequences of each language in a block)."""
        self.stages = [
            MixtureStage(
                first, _make_sampler(sampler, derive_key(seed, "languages", index), count_G)
            )
            for index, (first, count_G) in enumerate(stages)
        ]
        self.languages = len(stages[0][1])
        # Positions that each language held before each stage.
        self._before_SG = np.zeros((len(self.stages), self.languages), np.int64)
        for s, (before, stage) in enumerate(itertools.pairwise(self.stages), 1):
            inside_G = before.sampler.counts_before(np.array([stage.first - before.first]))[0]
            self._before_SG[s] = self._before_SG[s - 1] + inside_G
        self._firsts = np.array([stage.first for stage in self.stages])

    @property
    def order_version(self) -> int:
        """The version of the order that this mixture has: ORDER_VERSION, but for large blocks."""
        spread = any(isinstance(stage.sampler, SpreadBlockSampler) for stage in self.stages)
        return _SPREAD_VERSION if spread else ORDER_VERSION

    def at(self, first: int, n: int) -> np.ndarray:
        """Returns the languages at positions first .. first + n - 1."""
        parts = []
        while n > 0:
            s = bisect.bisect_right(self._firsts, first) - 1
            end = self.stages[s + 1].first if s + 1 < len(self.stages) else first + n
            take = min(n, end - first)
            parts.append(self.stages[s].sampler.at(first - self.stages[s].first, take))
            first, n = first + take, n - take
        return np.concatenate(parts)

    def locate(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the languages at n positions, and the rank of each within its language."""
        language_n = self.at(first, n)
        before_G = self.counts_before(np.array([first]))[0]
        rank_n = np.empty(n, np.int64)
        for g in range(self.languages):
            of_g = language_n == g
            rank_n[of_g] = before_G[g] + np.arange(np.count_nonzero(of_g))
        return language_n, rank_n

    def counts_before(self, positions: np.ndarray) -> np.ndarray:
        """Returns how many positions before each given one held each language: (n, G)."""
        stage_n = np.searchsorted(self._firsts, positions, side="right") - 1
        result = np.empty((len(positions), self.languages), np.int64)
        for s in np.unique(stage_n):
            in_stage, stage = stage_n == s, self.stages[s]
            inside = stage.sampler.counts_before(positions[in_stage] - stage.first)
            result[in_stage] = self._before_SG[s] + inside
        return result

    def positions_of(self, language: int, ranks: np.ndarray) -> np.ndarray:
        """Returns the positions of a language's ranks: the inverse of `locate`."""
        stage_n = np.searchsorted(self._before_SG[:, language], ranks, side="right") - 1
        result = np.empty(len(ranks), np.int64)
        for s in np.unique(stage_n):
            in_stage, stage = stage_n == s, self.stages[s]
            inside = ranks[in_stage] - self._before_SG[s, language]
            result[in_stage] = stage.first + stage.sampler.positions_of(language, inside)
        return result


def _make_sampler(name: str, key_: int, count_G: Sequence[int]) -> Sampler:
    if name == "bernoulli":
        return BernoulliSampler(key_, count_G)
    kind = SortedBlockSampler if sum(count_G) <= _LARGEST_SORTED else SpreadBlockSampler
    return kind(key_, count_G)
