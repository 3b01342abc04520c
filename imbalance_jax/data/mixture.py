"""The order of the training data: which language and which window lies at a position.

A position is a place in the training stream: row r of the batch of step s is position
s * B + r. Everything here is arithmetic on positions. There is no state to save, so the
order is the same on any number of hosts, after a resume, and when a run is made longer.

Randomness is a keyed function of position (`draw`), with our own integer arithmetic: no
library's generator can change it. Whatever changes the order changes ORDER_VERSION, which
every run records.
"""

import bisect
import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

ORDER_VERSION = 1

# Positions between two stored running counts of the bernoulli sampler.
_CHUNK = 4096


@functools.lru_cache(maxsize=4096)
def key(*parts: int | str) -> int:
    """Returns a 64-bit key for a purpose, such as key(seed, "languages", stage).

    Other parts give another key: none of them has the sign that joins them.
    """
    text = "/".join(str(part) for part in parts)
    assert text.count("/") == len(parts) - 1, f"a part of {parts} has a slash in it"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def draw(key_: int, index: np.ndarray | int) -> np.ndarray:
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


def permute(key_: int, index: np.ndarray, size: int) -> np.ndarray:
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
        result[outside] = _feistel(key_, result[outside], low_bits, high_bits)
        outside = result >= size
    return result.astype(np.int64)


def _feistel(key_: int, value: np.ndarray, low_bits: int, high_bits: int) -> np.ndarray:
    """One pass over numbers of low_bits + high_bits bits; a bijection of them."""
    # An even number of rounds: the halves change places, and widths, in each.
    for round_ in range(8):
        low = value & np.uint64((1 << low_bits) - 1)
        high = value >> np.uint64(low_bits)
        mixed = high ^ (draw(key(key_, round_), low) >> np.uint64(64 - high_bits))
        value = (low << np.uint64(high_bits)) | mixed
        low_bits, high_bits = high_bits, low_bits
    return value


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of positions with one ratio; it begins a new block."""

    first: int  # position
    count_G: tuple[int, ...]  # sequences of each language in a block
    key: int

    @property
    def block(self) -> int:
        return sum(self.count_G)


class Mixture:
    """Which language lies at a position, and how many positions before it held that one.

    `exact`: every block of sum(count_G) positions holds count_G of each language, in an
    order of its own. `bernoulli`: every position draws its language with the probability
    of its ratio, as the reference study does; running counts at every 4,096th position are
    made from the draws when they are needed.
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
            Stage(first, tuple(count_G), key(seed, "languages", index))
            for index, (first, count_G) in enumerate(stages)
        ]
        self.languages = len(self.stages[0].count_G)
        self._exact = sampler == "exact"
        self._chunk_counts: list[np.ndarray] = [
            np.zeros((1, self.languages), np.int64) for _ in self.stages
        ]
        # Positions that each language held before each stage.
        self._before_SG = np.zeros((len(self.stages), self.languages), np.int64)
        for s in range(1, len(self.stages)):
            length = self.stages[s].first - self.stages[s - 1].first
            inside_G = self._counts_within(s - 1, np.array([length]))[0]
            self._before_SG[s] = self._before_SG[s - 1] + inside_G
        self._firsts = np.array([stage.first for stage in self.stages])

    def at(self, first: int, n: int) -> np.ndarray:
        """Returns the languages at positions first .. first + n - 1."""
        parts = []
        while n > 0:
            s = bisect.bisect_right(self._firsts, first) - 1
            end = self.stages[s + 1].first if s + 1 < len(self.stages) else first + n
            take = min(n, end - first)
            parts.append(self._languages_within(s, first - self.stages[s].first, take))
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
            mine = stage_n == s
            inside = self._counts_within(s, positions[mine] - self.stages[s].first)
            result[mine] = self._before_SG[s] + inside
        return result

    def positions_of(self, language: int, ranks: np.ndarray) -> np.ndarray:
        """Returns the positions of a language's ranks: the inverse of `locate`."""
        stage_n = np.searchsorted(self._before_SG[:, language], ranks, side="right") - 1
        result = np.empty(len(ranks), np.int64)
        for s in np.unique(stage_n):
            mine = stage_n == s
            inside = ranks[mine] - self._before_SG[s, language]
            result[mine] = self.stages[s].first + self._offsets_within(s, language, inside)
        return result

    # Inside one stage, with offsets from its first position.

    def _blocks(self, s: int, blocks: np.ndarray) -> np.ndarray:
        """Returns the languages of whole blocks, (n, block): their counts, sorted by draws."""
        stage = self.stages[s]
        offsets = blocks[:, None] * stage.block + np.arange(stage.block)
        sorted_ = np.repeat(np.arange(self.languages), stage.count_G)
        return sorted_[np.argsort(draw(stage.key, offsets), axis=1, kind="stable")]

    # One block may span many batches; the last ones are kept.
    @functools.lru_cache(maxsize=4)  # noqa: B019 (a mixture lives as long as its run)
    def _block_range(self, s: int, first: int, last: int) -> np.ndarray:
        return self._blocks(s, np.arange(first, last)).reshape(-1)

    def _drawn(self, s: int, offsets: np.ndarray) -> np.ndarray:
        """Returns the languages that the bernoulli sampler draws at offsets."""
        stage = self.stages[s]
        # 63 bits, so that the upper end of the last interval is a number too.
        ends = [(c << 63) // stage.block for c in np.cumsum(stage.count_G).tolist()]
        draws = draw(stage.key, offsets) >> np.uint64(1)
        return np.searchsorted(np.array(ends[:-1], np.uint64), draws, side="right")

    def _languages_within(self, s: int, first: int, n: int) -> np.ndarray:
        if not self._exact:
            return self._drawn(s, np.arange(first, first + n))
        size = self.stages[s].block
        first_block, last_block = first // size, -(-(first + n) // size)
        start = first - first_block * size
        return self._block_range(s, first_block, last_block)[start : start + n]

    def _counts_within(self, s: int, offsets: np.ndarray) -> np.ndarray:
        if self._exact:
            size, count_G = self.stages[s].block, np.array(self.stages[s].count_G)
            block_n, offset_n = np.divmod(offsets, size)
            before_nG = block_n[:, None] * count_G
            cut, cut_row = np.unique(block_n, return_inverse=True)
            if len(cut) == 1:  # the start of a batch, whose block is wanted next
                languages = self._block_range(s, int(cut[0]), int(cut[0]) + 1)[None]
            else:
                languages = self._blocks(s, cut)[cut_row]
        else:
            chunk_n, offset_n = np.divmod(offsets, _CHUNK)
            size = _CHUNK
            before_nG = self._counts_at_chunks(s, int(chunk_n.max()))[chunk_n]
            cut, cut_row = np.unique(chunk_n, return_inverse=True)
            languages = self._drawn(s, cut[:, None] * size + np.arange(size))[cut_row]
        earlier = np.arange(size) < offset_n[:, None]
        inside = [np.count_nonzero(earlier & (languages == g), 1) for g in range(self.languages)]
        return before_nG + np.stack(inside, axis=1)

    def _counts_at_chunks(self, s: int, last: int) -> np.ndarray:
        """Returns the running counts at the starts of chunks 0 .. last at least."""
        known = self._chunk_counts[s]
        while len(known) <= last:
            # In runs of 256 chunks, a million positions, to bound the memory.
            first = len(known) - 1
            offsets = np.arange(first * _CHUNK, (first + 256) * _CHUNK)
            languages = self._drawn(s, offsets).reshape(-1, _CHUNK)
            inside = [np.count_nonzero(languages == g, 1) for g in range(self.languages)]
            known = np.concatenate([known, known[-1] + np.cumsum(np.stack(inside, 1), axis=0)])
            self._chunk_counts[s] = known
        return known

    def _offsets_within(self, s: int, language: int, ranks: np.ndarray) -> np.ndarray:
        if self._exact:
            stage = self.stages[s]
            block_n, inside_n = np.divmod(ranks, stage.count_G[language])
            blocks, row_n = np.unique(block_n, return_inverse=True)
            found = np.nonzero(self._blocks(s, blocks) == language)[1]
            return block_n * stage.block + found.reshape(len(blocks), -1)[row_n, inside_n]
        last = 0
        while self._counts_at_chunks(s, last)[-1, language] <= ranks.max():
            last = len(self._chunk_counts[s])
        counts = self._chunk_counts[s][:, language]
        chunk_n = np.searchsorted(counts, ranks, side="right") - 1
        result = np.empty(len(ranks), np.int64)
        for chunk in np.unique(chunk_n):
            mine = chunk_n == chunk
            drawn = self._drawn(s, chunk * _CHUNK + np.arange(_CHUNK))
            found = np.nonzero(drawn == language)[0]
            result[mine] = chunk * _CHUNK + found[ranks[mine] - counts[chunk]]
        return result


class Order:
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
            # SOURCE/TAG is two parts. A source is parted between all of its languages or shared
            # by them, so no other language has a purpose of these two.
            parts = [part for name in purpose for part in name.split("/")]
            key_ = key(self._seed, "windows", *parts, int(epoch))
            result[mine] = permute(key_, inside[mine], windows)
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
