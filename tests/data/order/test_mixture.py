"""Draws, mixture and windows, held against loops over single positions.

Dry sources, reuse and stages as a run meets them through its config are in test_stream.py.
"""

import collections
import hashlib
import itertools
import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalance_jax.data.order import keyed_draws, mixture
from imbalance_jax.data.order.mixture import Mixture
from imbalance_jax.data.order.window_order import ShuffledOrder

few = settings(max_examples=30, deadline=None)

RATIOS = [
    (1,),
    (9, 1),
    (1, 0),
    (0, 3, 0),
    (1, 999),
    (7, 5),
    (37, 3),
    (13, 0, 11, 8),
    (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    (1,) * 10,
]
count_G = st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any)


@st.composite
def stage_lists(draw_):
    """Stages whose lengths have nothing to do with their blocks."""
    languages = draw_(st.integers(1, 4))
    ratio = st.lists(st.integers(0, 7), min_size=languages, max_size=languages).filter(any)
    lengths = draw_(st.lists(st.integers(1, 60), max_size=3))
    firsts = [0, *itertools.accumulate(lengths)]
    return [(first, draw_(ratio)) for first in firsts]


class Brute:
    """Counts and ranks by going through single positions one after the other."""

    def __init__(self, mix, n):
        self.language = [int(mix.at(position, 1)[0]) for position in range(n)]
        self.before = [[0] * mix.languages]
        self.rank = []
        for language in self.language:
            self.rank.append(self.before[-1][language])
            self.before.append(list(self.before[-1]))
            self.before[-1][language] += 1

    def check(self, mix, first, last):
        """Everything that a mixture says of positions first .. last - 1 agrees with the loop."""
        language, rank = mix.locate(first, last - first)
        assert mix.at(first, last - first).tolist() == self.language[first:last]
        assert language.tolist() == self.language[first:last]
        assert rank.tolist() == self.rank[first:last]
        positions = np.arange(first, last + 1)
        assert mix.counts_before(positions).tolist() == self.before[first : last + 1]
        for g in range(mix.languages):
            mine = [p for p in range(first, last) if self.language[p] == g]
            ranks = np.array([self.rank[p] for p in mine], np.int64)
            assert mix.positions_of(g, ranks).tolist() == mine


# Random bits


def splitmix64(seed, n):
    """The published generator, one output after another."""
    outputs, state, bits = [], seed, (1 << 64) - 1
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & bits
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & bits
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & bits
        outputs.append(z ^ (z >> 31))
    return outputs


def test_draws_are_the_published_outputs_of_splitmix64():
    assert keyed_draws.draw_bits(1234567, np.arange(5)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@few
@given(st.integers(0, 2**64 - 1))
def test_any_draw_of_a_key_is_made_without_those_before_it(key):
    expected = splitmix64(key, 20)
    assert keyed_draws.draw_bits(key, np.arange(20)).tolist() == expected
    assert [int(keyed_draws.draw_bits(key, n)) for n in (19, 0, 7)] == [
        expected[n] for n in (19, 0, 7)
    ]


def test_a_key_depends_on_each_part_of_its_purpose():
    keys = [
        keyed_draws.derive_key(*parts)
        for parts in [(1, "a", 2), (1, "a", 3), (1, "b", 2), (2, "a", 2)]
    ]
    assert len(set(keys)) == 4
    digest = hashlib.blake2b(b"1/a/2", digest_size=8).digest()
    assert keys[0] == int.from_bytes(digest, "little")


def test_no_two_purposes_have_one_text_to_make_a_key_of():
    assert keyed_draws.derive_key("windows", "en", "a") != keyed_draws.derive_key("windows", "en_a")
    for parts in [("windows", "en/a"), ("windows/en", "a"), (0, "/")]:
        with pytest.raises(AssertionError, match="has a slash"):
            keyed_draws.derive_key(*parts)


# Permutations


@pytest.mark.parametrize("size", [*range(1, 40), 64, 65, 127, 128, 129, 1000, 4097, 70_001])
def test_permute_reaches_every_index_once(size):
    for key in (0, 1, 2**64 - 1):
        image = keyed_draws.permute_indices(key, np.arange(size), size)
        assert np.array_equal(np.sort(image), np.arange(size))


@few
@given(st.integers(0, 2**64 - 1), st.integers(1, 2**40), st.data())
def test_permute_sends_an_index_to_the_same_place_whatever_else_is_asked(key, size, data):
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8, unique=True))
    together = keyed_draws.permute_indices(key, np.array(indices), size)
    assert len(set(together.tolist())) == len(indices)
    assert together.min() >= 0 and together.max() < size
    alone = [int(keyed_draws.permute_indices(key, np.array([index]), size)[0]) for index in indices]
    assert together.tolist() == alone


@pytest.mark.parametrize("size", [5, 24, 100])
def test_over_many_keys_permute_sends_each_index_everywhere_equally_often(size):
    keys = [keyed_draws.derive_key("uniform", n) for n in range(1200)]
    images = np.stack([keyed_draws.permute_indices(key, np.arange(size), size) for key in keys])
    for index in (0, 1, size // 2, size - 1):
        seen = np.bincount(images[:, index], minlength=size)
        # The keys are fixed, so this cannot fail by chance; a skew would be far below it.
        assert scipy.stats.chisquare(seen).pvalue > 1e-3


def test_over_many_keys_permute_makes_every_order_of_four_equally_often():
    keys = [keyed_draws.derive_key("orders", n) for n in range(2400)]
    orders = [tuple(keyed_draws.permute_indices(key, np.arange(4), 4).tolist()) for key in keys]
    seen = collections.Counter(orders)
    assert len(seen) == math.factorial(4)
    assert scipy.stats.chisquare(list(seen.values())).pvalue > 1e-3


# The exact sampler


@pytest.mark.parametrize("counts", RATIOS)
def test_every_block_holds_its_ratio_exactly(counts):
    block = sum(counts)
    languages = Mixture([(0, counts)], seed=3).at(0, 20 * block).reshape(20, block)
    for row in languages:
        assert np.bincount(row, minlength=len(counts)).tolist() == list(counts)


@few
@given(count_G, st.integers(0, 1000))
def test_the_ratio_is_never_off_by_more_than_its_bound_and_exact_at_block_ends(counts, seed):
    block = sum(counts)
    before = Mixture([(0, counts)], seed=seed).counts_before(np.arange(5 * block + 1))
    # Times the block, so that all numbers are whole.
    error = np.abs(before * block - np.arange(5 * block + 1)[:, None] * np.array(counts))
    bound = np.array([c * (block - c) for c in counts])
    assert (error <= bound).all()
    assert (error[::block] == 0).all()


def test_blocks_differ_in_order():
    rows = Mixture([(0, (9, 3))], seed=0).at(0, 12 * 50).reshape(50, 12)
    # 220 orders: fifty equal draws of fewer than 30 would be no accident.
    assert len({tuple(row) for row in rows.tolist()}) > 30


def test_within_a_block_every_order_is_equally_likely():
    blocks = Mixture([(0, (2, 2))], seed=5).at(0, 4 * 6000).reshape(6000, 4)
    seen = collections.Counter(map(tuple, blocks.tolist()))
    assert len(seen) == 6
    assert scipy.stats.chisquare(list(seen.values())).pvalue > 1e-3


@few
@given(stage_lists(), st.integers(0, 99), st.data())
def test_exact_positions_counts_and_ranks_agree_with_a_loop_across_stages(stages, seed, data):
    mix = Mixture(stages, seed=seed)
    n = stages[-1][0] + 40
    brute = Brute(mix, n)
    first = data.draw(st.integers(0, n - 1))
    brute.check(mix, 0, n)
    brute.check(mix, first, data.draw(st.integers(first + 1, n)))


@few
@given(stage_lists(), st.sampled_from(["exact", "bernoulli"]))
def test_no_rank_of_a_language_is_skipped_or_repeated_across_stages(stages, sampler):
    mix = Mixture(stages, seed=1, sampler=sampler)
    language, rank = mix.locate(0, stages[-1][0] + 50)
    for g in range(mix.languages):
        assert rank[language == g].tolist() == list(range(np.count_nonzero(language == g)))


def test_a_stage_begins_a_new_block_and_may_cut_the_last_one():
    mix = Mixture([(0, (3, 1)), (10, (1, 4)), (27, (2, 0))], seed=7)
    alone = Mixture([(0, (3, 1))], seed=7)
    assert mix.at(0, 10).tolist() == alone.at(0, 10).tolist()
    for block in mix.at(10, 15).reshape(3, 5):
        assert np.bincount(block).tolist() == [1, 4]
    # Two positions of a fourth block, then English only.
    assert mix.at(27, 30).tolist() == [0] * 30
    assert mix.counts_before(np.array([25]))[0].sum() == 25


@few
@given(
    stage_lists(),
    st.sampled_from(["exact", "bernoulli"]),
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
)
def test_the_order_does_not_depend_on_how_positions_are_cut_into_batches(stages, sampler, cuts):
    whole = ShuffledOrder(
        Mixture(stages, seed=2, sampler=sampler),
        tags=[f"t{g}" for g in range(len(stages[0][1]))],
        pools=["a" if g % 2 else "b" for g in range(len(stages[0][1]))],
        windows={"a": 40, "b": 300},
        seed=2,
        reuse="any",
    )
    language, window = whole.at(0, sum(cuts))
    firsts = [0, *itertools.accumulate(cuts)]
    # Last batch first: nothing is carried from one to the next.
    parts = [whole.at(first, n) for first, n in list(zip(firsts, cuts, strict=False))[::-1]][::-1]
    assert np.concatenate([part[0] for part in parts]).tolist() == language.tolist()
    assert np.concatenate([part[1] for part in parts]).tolist() == window.tolist()


# Blocks too large to be sorted


@pytest.fixture
def small_blocks_are_large(monkeypatch):
    """Spreads all blocks of more than 5 positions, in cells of 8."""
    monkeypatch.setattr(mixture, "_LARGEST_SORTED", 5)
    monkeypatch.setattr(mixture, "_CELL", 8)
    monkeypatch.setattr(mixture, "_AT_ONCE", 16)


SPREAD = [(97, 3), (7, 0, 25), (1, 30, 1), (0, 6), (5, 4, 3, 2, 1), (8, 8), (1, 1, 1, 1, 1, 1)]


@pytest.mark.parametrize("counts", SPREAD)
def test_a_large_block_holds_its_ratio_exactly(small_blocks_are_large, counts):
    block = sum(counts)
    languages = Mixture([(0, counts)], seed=3).at(0, 6 * block).reshape(6, block)
    for row in languages:
        assert np.bincount(row, minlength=len(counts)).tolist() == list(counts)


@pytest.mark.parametrize("counts", SPREAD)
def test_in_a_large_block_no_cell_is_a_sequence_or_two_off_the_ratio(
    small_blocks_are_large, counts
):
    block = sum(counts)
    mix = Mixture([(0, counts)], seed=3)
    ends = np.array([b * block + min(i, block) for b in range(3) for i in range(0, block + 8, 8)])
    off = mix.counts_before(ends) - ends[:, None] * np.array(counts) / block
    assert np.abs(off[:, 0]).max() <= 0.5
    assert np.abs(off).max() < 1.5


def test_positions_counts_and_ranks_of_large_blocks_agree_with_a_loop(small_blocks_are_large):
    for counts in SPREAD:
        stages = [(0, counts), (75, (1,) * len(counts)), (110, counts[::-1])]
        mix = Mixture(stages, seed=5)
        brute = Brute(mix, 300)
        brute.check(mix, 0, 300)
        brute.check(mix, 71, 83)


def test_the_cells_of_a_large_block_differ_in_order(small_blocks_are_large):
    cells = Mixture([(0, (60, 40))], seed=0).at(0, 96).reshape(12, 8)
    assert len({tuple(cell) for cell in cells.tolist()}) > 9


def test_the_first_positions_of_large_blocks_are_these(monkeypatch):
    monkeypatch.setattr(mixture, "_LARGEST_SORTED", 30)
    monkeypatch.setattr(mixture, "_CELL", 10)
    mix = Mixture([(0, (20, 11, 3))], seed=2)
    assert mix.order_version == 2
    assert "".join(map(str, mix.at(0, 44).tolist())) == PINNED_SPREAD
    assert Mixture([(0, (20, 10))], seed=2).order_version == 1
    assert Mixture([(0, (20, 11, 3))], seed=2, sampler="bernoulli").order_version == 1


@pytest.mark.parametrize("counts", [(99_999_999, 1), (2**31 - 2, 1), (50_000_001, 49_999_998)])
def test_memory_does_not_grow_with_the_sum_of_a_ratio(counts):
    tracemalloc.start()
    order = make_order([(0, counts)], ["a", "a"], {"a": 100_000})
    order.at(0, 4096)
    order.dry_at("a", 10**6)
    order.at(150_000, 256)  # windows come back
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    end = 1000 * 1024  # of a cell
    held = order.mixture.counts_before(np.array([end]))[0].tolist()
    assert held == [
        end - round(end * counts[1] / sum(counts)),
        round(end * counts[1] / sum(counts)),
    ]


def test_memory_does_not_grow_with_positions_times_the_block_when_windows_come_back():
    order = make_order([(0, (9_999, 1))], ["a", "a"], {"a": 100_000})
    order.dry_at("a", 200_000)
    tracemalloc.start()
    order.at(150_000, 1024)  # in as good as all blocks of the first epoch; 80 MB for each pair
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


# The bernoulli sampler


@pytest.mark.parametrize("counts", [(9, 1), (1, 999), (3, 0, 1), (10, 2, 5, 0, 7, 1, 0), (1,) * 10])
def test_bernoulli_frequencies_are_those_of_the_ratio(counts):
    n, block = 200_000, sum(counts)
    seen = np.bincount(Mixture([(0, counts)], seed=4, sampler="bernoulli").at(0, n))
    seen = np.pad(seen, (0, len(counts) - len(seen)))
    for count, found in zip(counts, seen.tolist(), strict=True):
        # Both ends of 99.99 % of the binomial distribution; the seed is fixed.
        low, high = scipy.stats.binom.interval(0.9999, n, count / block)
        assert low <= found <= high


@pytest.mark.parametrize("counts", [(0, 1), (1, 0), (0, 5, 0), (3, 0, 1), (0, 0, 2, 7)])
def test_bernoulli_never_draws_a_language_of_ratio_zero(counts):
    seen = np.bincount(Mixture([(0, counts)], seed=0, sampler="bernoulli").at(0, 50_000))
    assert [g for g in range(len(seen)) if seen[g]] == [g for g in range(len(counts)) if counts[g]]


def test_bernoulli_draws_are_independent_of_each_other():
    drawn = Mixture([(0, (3, 1))], seed=0, sampler="bernoulli").at(0, 100_000)
    pairs = np.bincount(drawn[:-1] * 2 + drawn[1:], minlength=4).reshape(2, 2)
    assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-3


def test_bernoulli_draws_follow_from_the_published_bits():
    key = keyed_draws.derive_key(6, "languages", 0)
    # 3 of 4 for the first language: bits in the lowest three quarters.
    expected = [int(bits >= 3 << 62) for bits in splitmix64(key, 200)]
    drawn = Mixture([(0, (3, 1))], seed=6, sampler="bernoulli").at(0, 200)
    assert drawn.tolist() == expected


@pytest.mark.parametrize(
    "stages",
    [
        [(0, (3, 0, 1))],
        [(0, (3, 0, 1)), (4096, (1, 1, 1))],
        [(0, (5, 1, 0)), (1000, (0, 0, 1)), (6000, (2, 3, 4))],
    ],
)
def test_bernoulli_counts_agree_with_a_loop_across_chunks_and_stages(stages):
    mix = Mixture(stages, seed=8, sampler="bernoulli")
    brute = Brute(mix, 10_500)
    brute.check(mix, 0, 10_500)
    for border in (4096, 5096, 8192, 6000 + 4096):
        brute.check(mix, border - 3, border + 3)


def test_bernoulli_counts_far_into_a_run_are_those_of_its_draws():
    mix = Mixture([(0, (1, 2))], seed=0, sampler="bernoulli")
    far = 300 * 4096 + 5  # past the chunks that are counted at once
    expected = np.bincount(mix.at(0, far)).tolist()
    assert mix.counts_before(np.array([far]))[0].tolist() == expected
    # In either order of asking.
    assert mix.counts_before(np.array([far, 10, 0]))[[0, 2]].tolist() == [expected, [0, 0]]
    position = mix.positions_of(1, np.array([expected[1] - 1]))[0]
    assert (
        mix.at(position, 1) == 1
        and mix.counts_before(np.array([position]))[0, 1] == expected[1] - 1
    )


# The order is a promise

PINNED_SPREAD = "00200111000011100002110002000111000100020110"
PINNED = {
    "exact": (
        [0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0, 1, 1],
        [8, 2, 9, 4, 3, 0, 1, 10, 11, 5, 6, 12, 7, 5, 9, 10, 2, 8, 1, 7, 2, 5, 12, 1, 2],
    ),
    "bernoulli": (
        [0, 1, 0, 2, 0, 0, 0, 0, 0, 1, 2, 0, 2, 2],
        [2, 365, 0, 479, 4, 8, 1, 3, 2, 256, 775, 8, 963, 550],
    ),
}


def make_order(stages, sources, windows, *, seed=0, sampler="exact", reuse="same_language"):
    tags = [f"t{g}" for g in range(len(sources))]
    mix = Mixture(stages, seed=seed, sampler=sampler)
    return ShuffledOrder(mix, tags=tags, pools=sources, windows=windows, seed=seed, reuse=reuse)


def test_the_first_positions_of_this_version_are_these():
    # Runs resume by this order. If it must change, change ORDER_VERSION with it.
    assert mixture.ORDER_VERSION == 1
    exact = make_order([(0, (3, 1)), (18, (1, 2))], ["a", "a"], {"a": 13})
    language, window = exact.at(0, 25)
    assert language.tolist() == PINNED["exact"][0]
    assert window.tolist() == PINNED["exact"][1]
    bernoulli = make_order(
        [(0, (2, 1, 1))], ["a", "b", "b"], {"a": 9, "b": 1000}, seed=5, sampler="bernoulli"
    )
    language, window = bernoulli.at(4090, 14)
    assert language.tolist() == PINNED["bernoulli"][0]
    assert window.tolist() == PINNED["bernoulli"][1]


@pytest.mark.parametrize("sampler", ["exact", "bernoulli"])
def test_another_seed_is_another_order_of_languages_and_of_windows(sampler):
    orders = [
        make_order([(0, (3, 1))], ["a", "a"], {"a": 500}, seed=s, sampler=sampler) for s in (0, 1)
    ]
    (language, window), (other_language, other_window) = [order.at(0, 200) for order in orders]
    assert language.tolist() != other_language.tolist()
    assert window.tolist() != other_window.tolist()


# Windows

CASES = {
    "exact": ([(0, (3, 1))], "exact"),
    "exact, stages": ([(0, (3, 1)), (70, (1, 4)), (133, (2, 0)), (160, (1, 1))], "exact"),
    "bernoulli": ([(0, (3, 1))], "bernoulli"),
    "bernoulli, stages": ([(0, (3, 1)), (70, (1, 4)), (133, (2, 1))], "bernoulli"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reuse", ["same_language", "any", "forbid"])
def test_no_window_comes_twice_while_the_source_lasts(case, reuse):
    stages, sampler = CASES[case]
    order = make_order(stages, ["a", "a"], {"a": 211}, sampler=sampler, reuse=reuse)
    assert sorted(order.at(0, 211)[1].tolist()) == list(range(211))


def seen_by(order, n):
    """Returns each language's windows in the order in which it sees them."""
    language, window = order.at(0, n)
    return [window[language == g].tolist() for g in range(order.mixture.languages)]


@pytest.mark.parametrize("case", CASES)
def test_by_default_no_window_is_ever_seen_in_two_clones(case):
    stages, sampler = CASES[case]
    order = make_order(stages, ["a", "a"], {"a": 211}, sampler=sampler)
    order.check_reuse(5 * 211)
    first, second = map(set, seen_by(order, 5 * 211))
    assert not first & second
    assert first | second == set(range(211))


@pytest.mark.parametrize("case", CASES)
def test_each_epoch_of_a_language_goes_through_its_own_windows_once(case):
    stages, sampler = CASES[case]
    order = make_order(stages, ["a", "a"], {"a": 97}, sampler=sampler)
    early = seen_by(order, 97)
    for own, seen in zip(early, seen_by(order, 6 * 97), strict=True):
        epochs = [seen[i : i + len(own)] for i in range(0, len(seen), len(own))]
        assert len(epochs) > 2
        for epoch in epochs[:-1]:
            assert sorted(epoch) == sorted(own)
        assert len(set(epochs[-1])) == len(epochs[-1]) and set(epochs[-1]) <= set(own)
        assert epochs[0] != epochs[1]


def test_windows_do_not_depend_on_where_one_starts_to_ask():
    stages, sampler = CASES["exact, stages"]
    language, window = make_order(stages, ["a", "a"], {"a": 50}).at(0, 400)
    for first in (399, 51, 130, 0):
        fresh = make_order(stages, ["a", "a"], {"a": 50})
        fresh.check_reuse(400)
        assert fresh.at(first, 1)[1][0] == window[first]


@pytest.mark.parametrize("sampler", ["exact", "bernoulli"])
@pytest.mark.parametrize("sources", [["a", "a"], ["a", "a", "a"]])
def test_with_reuse_any_each_epoch_goes_through_the_whole_source_once(sampler, sources):
    counts = (5, 2, 1)[: len(sources)]
    order = make_order([(0, counts)], sources, {"a": 83}, sampler=sampler, reuse="any")
    epochs = order.at(0, 4 * 83)[1].reshape(4, 83)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(83))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


@pytest.mark.parametrize("reuse", ["same_language", "any"])
def test_languages_with_sources_of_their_own_each_go_through_theirs(reuse):
    order = make_order([(0, (3, 1))], ["a", "b"], {"a": 30, "b": 7}, reuse=reuse)
    first, second = seen_by(order, 4 * 30)
    for epoch in range(3):
        assert sorted(first[epoch * 30 : (epoch + 1) * 30]) == list(range(30))
    for epoch in range(4):
        assert sorted(second[epoch * 7 : (epoch + 1) * 7]) == list(range(7))
    assert order.uses_before("a", 100) == 75 and order.uses_before("b", 100) == 25


@few
@given(
    stage_lists(),
    st.sampled_from(["exact", "bernoulli"]),
    st.integers(1, 90),
    st.integers(0, 150),
)
def test_a_source_runs_dry_where_a_loop_finds_its_first_repeat(stages, sampler, windows, end):
    languages = len(stages[0][1])
    sources = ["a" if g == 0 else "b" for g in range(languages)]
    order = make_order(stages, sources, {"a": windows, "b": 7}, sampler=sampler, reuse="any")
    for name in set(sources):
        seen, dry = set(), None
        for position in range(end):
            language, window = order.at(position, 1)
            if sources[language[0]] == name:
                if window[0] in seen:
                    dry = position
                    break
                seen.add(int(window[0]))
        assert order.dry_at(name, end) == dry


def test_a_language_that_comes_after_its_source_is_used_up_is_refused_by_field():
    stages = [(0, (1, 0)), (60, (1, 1))]
    order = make_order(stages, ["a", "a"], {"a": 50})
    order.check_reuse(60)  # a run that ends before the language comes
    with pytest.raises(ValueError, match=r"language t1 .*config\.mixture\.reuse='same_language'"):
        make_order(stages, ["a", "a"], {"a": 50}).check_reuse(70)
    make_order(stages, ["a", "a"], {"a": 50}, reuse="any").check_reuse(70)
    make_order(stages, ["a", "b"], {"a": 50, "b": 50}).check_reuse(70)
    make_order(stages, ["a", "a"], {"a": 65}).check_reuse(300)


def test_a_language_that_is_never_trained_on_needs_no_window():
    order = make_order([(0, (1, 0))], ["a", "a"], {"a": 10})
    order.check_reuse(100)
    assert sorted(order.at(90, 10)[1].tolist()) == list(range(10))
