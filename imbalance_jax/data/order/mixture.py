"""The order of the training data: which language and which window lies at a position.

A position is a place in the training stream: row r of the batch of step s is position
s * B + r. Everything here is arithmetic on positions. There is no state to save, so the
order is the same on any number of hosts, after a resume, and when a run is made longer.

Randomness is a keyed function of position (`draw_bits`), with our own integer arithmetic: no
library's generator can change it. Whatever changes the order changes ORDER_VERSION, which
every run records.
"""

import abc
import bisect
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

ORDER_VERSION = 1
# That of a run with blocks above _LARGEST_SORTED, which earlier code sorted whole.
_SPREAD_VERSION = 2

# Blocks of the exact sampler up to this size are sorted, larger ones are spread.
_LARGEST_SORTED = 100_000
# Positions of a large block that are sorted together.
_CELL = 1024
# Positions between two stored running counts of the bernoulli sampler.
_CHUNK = 4096
# Positions whose languages are made at once where many are asked for, to bound the memory.
_AT_ONCE = 1 << 20


@functools.lru_cache(maxsize=4096)
def derive_key(*parts: int | str) -> int:
    """Returns a 64-bit key for a purpose, such as key(seed, "languages", stage).

    Other parts give another key: none of them has the sign that joins them. The name of a pool is
    taken apart by `split_pool_name`.
    """
    text = "/".join(str(part) for part in parts)
    assert text.count("/") == len(parts) - 1, f"a part of {parts} has a slash in it"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def split_pool_name(pool: str) -> list[str]:
    """Returns the parts of a key that stand for a pool: one of SOURCE, two of SOURCE/TAG."""
    return pool.split("/")


def draw_bits(key_: int, index: np.ndarray | int) -> np.ndarray:
    """Returns the index-th 64 random bits of a key, for any indices at once.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014): its n-th output is a mix of seed + n * gamma, so no output depends on
    having made the ones before it.
    """
    with np.errstate(over="ignore"):
        z = np.asarray(index).astype(np.uint64) + np.uint64(1)
        z = z * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key_)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def permute_indices(key_: int, index: np.ndarray, size: int) -> np.ndarray:
    """Returns where a keyed permutation of range(size) sends each index.

    A Feistel network over the next power of two; an image outside the range is sent on
    until it falls inside (cycle walking), which keeps it a permutation. No table, so the
    memory does not grow with the corpus.
    """
    assert size > 0  # or no image would ever fall inside
    bits = max(2, (size - 1).bit_length())
    low_bits, high_bits = bits // 2, bits - bits // 2
    result = np.asarray(index).astype(np.uint64)
    outside = np.ones(result.shape, bool)
    while outside.any():
        result[outside] = _apply_feistel_network(key_, result[outside], low_bits, high_bits)
        outside = result >= size
    return result.astype(np.int64)


def _apply_feistel_network(
    key_: int, value: np.ndarray, low_bits: int, high_bits: int
) -> np.ndarray:
    """One pass over numbers of low_bits + high_bits bits; a bijection of them."""
    # An even number of rounds: the halves change places, and widths, in each.
    for round_ in range(8):
        low = value & np.uint64((1 << low_bits) - 1)
        high = value >> np.uint64(low_bits)
        mixed = high ^ (draw_bits(derive_key(key_, round_), low) >> np.uint64(64 - high_bits))
        value = (low << np.uint64(high_bits)) | mixed
        low_bits, high_bits = high_bits, low_bits
    return value


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
        for mine, row_n, languages_kT in self._by_cell(cell_n):
            before_kT = np.zeros((len(languages_kT), self.size + 1), np.int32)
            for g in range(self.languages):
                np.cumsum(languages_kT == g, axis=1, out=before_kT[:, 1:])
                counts_nG[mine, g] += before_kT[row_n, inside_n[mine]]
        return counts_nG

    def positions_of(self, language: int, rank_n: np.ndarray) -> np.ndarray:
        """Returns the positions of a language's ranks."""
        cell_n = self._cell_with(language, rank_n)
        wanted_n = rank_n - self._counts_at(cell_n)[:, language]
        position_n = self._first_of(cell_n)
        for mine, row_n, languages_kT in self._by_cell(cell_n):
            row, place = np.nonzero(languages_kT == language)
            first_k = np.searchsorted(row, np.arange(len(languages_kT)))
            position_n[mine] += place[first_k[row_n] + wanted_n[mine]]
        return position_n

    def _by_cell(self, cell_n: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields which of n cells come next, and the languages (k, T) of k cells that hold them.

        Between the two comes the row of each among the k.
        """
        cells, row_n = np.unique(cell_n, return_inverse=True)
        together = max(1, _AT_ONCE // self.size)
        for first in range(0, len(cells), together):
            some = cells[first : first + together]
            mine = np.nonzero((first <= row_n) & (row_n < first + together))[0]
            # A single cell is most often the one that the next batch is in.
            alone = len(some) == 1
            made = self._range(int(some[0]), int(some[0]) + 1) if alone else self._make(some)
            yield mine, row_n[mine] - first, made

    def _make_range(self, first: int, last: int) -> np.ndarray:
        return self._make(np.arange(first, last))

    # What a subclass says of its cells.

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
    first language, with c of S in the block, rounded; what is left of n is shared out among
    the other languages in the same way. The languages of a cell are what its end has more than
    its beginning, sorted by draws.
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
                # Rounded in whole numbers: 2 S**2 is below 2**63, as config.py bounds S.
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
        self._known = np.zeros((1, self.languages), np.int64)

    def at(self, first: int, n: int) -> np.ndarray:
        return self._drawn(np.arange(first, first + n))

    def _drawn(self, positions: np.ndarray) -> np.ndarray:
        draws = draw_bits(self._key, positions) >> np.uint64(1)
        return np.searchsorted(self._ends, draws, side="right")

    def _make(self, cell_k: np.ndarray) -> np.ndarray:
        return self._drawn(cell_k[:, None] * self.size + np.arange(self.size))

    def _counts_at(self, cell_n: np.ndarray) -> np.ndarray:
        self._count_up_to(int(cell_n.max()))
        return self._known[cell_n]

    def _count_up_to(self, last: int) -> None:
        """Makes the running counts at the starts of cells 0 .. last known, at least."""
        together = _AT_ONCE // self.size  # to bound the memory
        while len(self._known) <= last:
            first = len(self._known) - 1
            languages_kT = self._make(np.arange(first, first + together))
            inside = [np.count_nonzero(languages_kT == g, 1) for g in range(self.languages)]
            more_kG = self._known[-1] + np.cumsum(np.stack(inside, 1), axis=0)
            self._known = np.concatenate([self._known, more_kG])

    def _cell_with(self, language: int, rank_n: np.ndarray) -> np.ndarray:
        while self._known[-1, language] <= rank_n.max():
            self._count_up_to(len(self._known))
        return np.searchsorted(self._known[:, language], rank_n, side="right") - 1


@dataclasses.dataclass(frozen=True)
class MixtureStage:
    """A stretch of positions with one ratio; it begins a new block."""

    first: int  # position
    sampler: Sampler


class Mixture:
    """Which language lies at a position, and how many positions before it held that one.

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
            mine = language_n == g
            rank_n[mine] = before_G[g] + np.arange(np.count_nonzero(mine))
        return language_n, rank_n

    def counts_before(self, positions: np.ndarray) -> np.ndarray:
        """Returns how many positions before each given one held each language: (n, G)."""
        stage_n = np.searchsorted(self._firsts, positions, side="right") - 1
        result = np.empty((len(positions), self.languages), np.int64)
        for s in np.unique(stage_n):
            mine, stage = stage_n == s, self.stages[s]
            inside = stage.sampler.counts_before(positions[mine] - stage.first)
            result[mine] = self._before_SG[s] + inside
        return result

    def positions_of(self, language: int, ranks: np.ndarray) -> np.ndarray:
        """Returns the positions of a language's ranks: the inverse of `locate`."""
        stage_n = np.searchsorted(self._before_SG[:, language], ranks, side="right") - 1
        result = np.empty(len(ranks), np.int64)
        for s in np.unique(stage_n):
            mine, stage = stage_n == s, self.stages[s]
            inside = ranks[mine] - self._before_SG[s, language]
            result[mine] = stage.first + stage.sampler.positions_of(language, inside)
        return result


def _make_sampler(name: str, key_: int, count_G: Sequence[int]) -> Sampler:
    if name == "bernoulli":
        return BernoulliSampler(key_, count_G)
    kind = SortedBlockSampler if sum(count_G) <= _LARGEST_SORTED else SpreadBlockSampler
    return kind(key_, count_G)


class ShuffledOrder:
    """Which window of which pool lies at a position.

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
        self.mixture = mixture
        self._tags, self._seed = tuple(tags), seed
        self._windows = windows
        self._pools = {
            name: np.array([g for g, p in enumerate(pools) if p == name])
            for name in dict.fromkeys(pools)
        }
        self._own: dict[int, int] = {}  # windows of its own, for a language that shares
        self._shared = {
            name: reuse == "same_language" and len(sharing) > 1
            for name, sharing in self._pools.items()
        }

    def uses_before(self, pool: str, position: int) -> int:
        """Returns how many windows of a pool are drawn before a position."""
        counts_G = self.mixture.counts_before(np.array([position]))[0]
        return int(counts_G[self._pools[pool]].sum())

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

    def _own_windows(self, pool: str, end: int) -> None:
        """Notes how many windows each language saw of a shared pool while it lasted."""
        if self._pools[pool][0] in self._own:
            return
        dry = self.dry_at(pool, end)
        if dry is None:
            return
        counts_G = self.mixture.counts_before(np.array([dry]))[0]
        for g in self._pools[pool]:
            self._own[int(g)] = int(counts_G[g])

    def check_reuse(self, end: int) -> None:
        """Raises ValueError if a language comes too late for a window of its own."""
        final_G = self.mixture.counts_before(np.array([end]))[0]
        for pool, shared in self._shared.items():
            if shared:
                self._own_windows(pool, end)
            for g in self._pools[pool]:
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
        for pool, sharing in self._pools.items():
            mine = np.nonzero(np.isin(language_n, sharing))[0]
            used = before_G[sharing].sum() + np.arange(len(mine))
            windows = self._windows[pool]
            again = used >= windows
            if self._shared[pool] and again.any():
                self._own_windows(pool, first + n)
                for g in sharing:
                    rows = mine[again & (language_n[mine] == g)]
                    window_n[rows] = self._own_again(pool, int(g), rank_n[rows])
                mine, used = mine[~again], used[~again]
            window_n[mine] = self._permuted(used, windows, pool)
        return language_n, window_n

    def _permuted(self, used: np.ndarray, windows: int, *purpose: str) -> np.ndarray:
        """Returns windows in a new keyed order each epoch."""
        result = np.empty(len(used), np.int64)
        epochs, inside = np.divmod(used, windows)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            # A source is parted between all of its languages or shared by them, so the two parts
            # of SOURCE/TAG are no other language's purpose.
            parts = [part for name in purpose for part in split_pool_name(name)]
            key_ = derive_key(self._seed, "windows", *parts, int(epoch))
            result[mine] = permute_indices(key_, inside[mine], windows)
        return result

    def _own_again(self, pool: str, language: int, ranks: np.ndarray) -> np.ndarray:
        """Returns windows that a language comes back to, having seen them itself."""
        if not len(ranks):
            return ranks
        own = self._own[language]
        # Which of its own windows; then the place in the pool's first epoch where it saw it.
        chosen = self._permuted(ranks, own, pool, self._tags[language])
        positions = self.mixture.positions_of(language, chosen)
        counts_nG = self.mixture.counts_before(positions)
        used = counts_nG[:, self._pools[pool]].sum(axis=1)
        return self._permuted(used, self._windows[pool], pool)
