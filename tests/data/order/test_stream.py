"""Behaviours of data/order/stream.py, on sources made of numbers and on real prepared text.

What the order promises is also held against runs of any kind, that hypothesis thinks up. What
is particular to order=sequential is in test_sequential.py, and what parts documents between
languages in test_corpora.py.
"""

import copy
import dataclasses
import fractions
import functools
import itertools
import math
import pathlib

import numpy as np
import pytest
from helpers import tiny_config
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from imbalance_jax import config as config_lib
from imbalance_jax.config import SyntheticConfig
from imbalance_jax.data.order import keyed_draws, window_order
from imbalance_jax.data.order import stream as stream_lib
from imbalance_jax.data.order.ratio import resolve_ratio
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.data.sources import DOCUMENT
from imbalance_jax.data.text.synthetic import SyntheticSource

L, B = 16, 8  # of tiny_config
few = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Works the order out for few batches at once: quicker, and with many borders between."""
    monkeypatch.setattr(stream_lib, "_ORDER_CHUNK", 64)


class Numbered:
    """A source whose id at a place is that place, so that a window shows where it is from."""

    def __init__(self, windows, first=0, dtype=np.uint16, name="en"):
        self._tokens = np.arange(first, first + windows * L + 1).astype(dtype)
        self.name, self.fingerprint = name, f"{windows} windows from {first}"

    def tokens(self, split):
        assert split == "train"
        return self._tokens

    def count(self, split):
        return len(self.tokens(split))

    def documents(self, split):
        """Documents of three windows each, whose ids are their numbers."""
        starts = np.arange(0, len(self._tokens), 3 * L)
        return np.array([(start, n, 0) for n, start in enumerate(starts)], DOCUMENT)


def make(tmp_path, windows=10_000, dtype=np.uint32, **changes):
    config = tiny_config(tmp_path, **changes)
    return Stream(config, {"en": Numbered(windows, dtype=dtype)})


def mixed(tmp_path, windows, **changes):
    """Two languages with sources of their own: windows maps each source to its size."""
    config = config_lib.to_dict(tiny_config(tmp_path, **changes))
    config["sources"] = {name: config["sources"]["en"] for name in windows}
    config["languages"] = {name: {"source": name} for name in windows}
    sources = {
        name: Numbered(size, 100_000 * g, np.uint32)
        for g, (name, size) in enumerate(windows.items())
    }
    config["mixture"]["ratio"] = dict(zip(windows, (3, 1), strict=True))
    return Stream(config_lib.resolve_config(config), sources)


def windows_of(stream, first_step, last_step):
    """Returns the languages and windows of all rows, read off the ids themselves."""
    batches = [stream.batch(step) for step in range(first_step, last_step)]
    languages = np.concatenate([batch.language_B for batch in batches])
    return languages, np.concatenate([batch.ids_BW[:, 0].astype(int) // L for batch in batches])


def realised(stream, first_step, last_step):
    languages, _ = windows_of(stream, first_step, last_step)
    return np.bincount(languages, minlength=2).tolist()


BOTH = pytest.mark.parametrize("sampler", ["exact", "bernoulli"])


# Batches


def test_a_batch_has_ids_one_longer_than_the_model_s_length_and_a_language_per_row(tmp_path):
    batch = make(tmp_path).batch(3)
    assert batch.ids_BW.shape == (B, L + 1) and batch.language_B.shape == (B,)
    assert batch.language_B.dtype == np.int32


def test_windows_are_slices_of_the_ids_that_overlap_by_the_target_of_the_last(tmp_path):
    batch = make(tmp_path).batch(0)
    starts = batch.ids_BW[:, 0]
    assert (starts % L == 0).all()
    assert np.array_equal(batch.ids_BW, starts[:, None] + np.arange(L + 1))


def test_every_window_of_real_text_is_a_slice_of_it(english, data_dir):
    config = tiny_config(data_dir)
    stream = Stream(config, {"en": english})
    tokens = english.tokens("train")
    assert stream.windows == {"en": (len(tokens) - 1) // L}
    for step in (0, 19):
        batch = stream.batch(step)
        language, window = stream.order.at(step * B, B)
        assert batch.language_B.tolist() == language.tolist()
        for row in range(B):
            start = window[row] * L
            assert batch.ids_BW[row].tolist() == tokens[start : start + L + 1].tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_ids_keep_the_type_of_the_prepared_text(tmp_path, dtype):
    assert make(tmp_path, windows=4000, dtype=dtype).batch(0).ids_BW.dtype == dtype


def test_the_last_window_of_a_source_has_its_target_and_no_id_is_left_over(tmp_path):
    stream = make(tmp_path, windows=B, mixture__reuse="any", steps=1)
    assert sorted(windows_of(stream, 0, 1)[1]) == list(range(B))
    one_id_less = Numbered(B)
    one_id_less._tokens = one_id_less._tokens[:-1]
    assert Stream(tiny_config(tmp_path), {"en": one_id_less}).windows == {"en": B - 1}


@BOTH
@pytest.mark.parametrize("hosts", [2, 4])
def test_the_rows_of_all_hosts_together_are_the_batch_of_one(tmp_path, sampler, hosts):
    # Few windows, so that rows of later epochs are among them.
    changes = {"mixture__sampler": sampler}
    alone = make(tmp_path, windows=50, **changes)
    rows = [slice(h * B // hosts, (h + 1) * B // hosts) for h in range(hosts)]
    others = [make(tmp_path, windows=50, **changes) for _ in range(hosts)]
    for step in (0, 5, 19):
        whole = alone.batch(step)
        parts = [stream.batch(step, row) for stream, row in zip(others, rows, strict=True)]
        assert np.array_equal(np.concatenate([p.ids_BW for p in parts]), whole.ids_BW)
        assert np.array_equal(np.concatenate([p.language_B for p in parts]), whole.language_B)


@BOTH
def test_a_batch_does_not_depend_on_the_batches_asked_before(tmp_path, sampler):
    once = make(tmp_path, windows=50, mixture__sampler=sampler)
    in_order = [once.batch(step) for step in range(20)]
    for step in (19, 3, 3, 11):
        fresh = make(tmp_path, windows=50, mixture__sampler=sampler)
        for stream in (once, fresh):
            again = stream.batch(step)
            assert np.array_equal(again.ids_BW, in_order[step].ids_BW)
            assert np.array_equal(again.language_B, in_order[step].language_B)


@BOTH
def test_more_steps_leave_the_earlier_batches_as_they_are(tmp_path, sampler):
    short = make(tmp_path, windows=50, steps=10, mixture__sampler=sampler)
    long = make(tmp_path, windows=50, steps=40, mixture__sampler=sampler)
    for step in range(10):
        assert np.array_equal(short.batch(step).ids_BW, long.batch(step).ids_BW)


def test_the_order_does_not_depend_on_how_large_batches_are(tmp_path):
    small, large = make(tmp_path, batch_size=4), make(tmp_path, batch_size=12)
    assert np.array_equal(windows_of(small, 0, 6), windows_of(large, 0, 2))


def test_the_order_does_not_depend_on_how_the_config_orders_its_languages(tmp_path):
    config = config_lib.to_dict(tiny_config(tmp_path))
    for group in (config["languages"], config["mixture"]["ratio"]):
        for tag in reversed(list(group)):
            group[tag] = group.pop(tag)
    backwards = Stream(config_lib.resolve_config(config), {"en": Numbered(1000)})
    forwards = make(tmp_path, windows=1000)
    assert np.array_equal(windows_of(backwards, 0, 10), windows_of(forwards, 0, 10))


def test_a_row_holds_text_of_its_own_language_s_source(tmp_path):
    stream = mixed(tmp_path, {"en": 500, "fr": 500})
    for step in range(5):
        batch = stream.batch(step)
        assert ((batch.ids_BW >= 100_000).all(axis=1) == (batch.language_B == 1)).all()
        assert set(batch.language_B.tolist()) == {0, 1}


# Seeds


def test_the_order_follows_the_seed_of_the_run_unless_the_mixture_has_its_own(tmp_path):
    def order(**changes):
        return [part.tolist() for part in windows_of(make(tmp_path, **changes), 0, 10)]

    assert order(seed=5) == order(seed=5, mixture__seed=-1) == order(seed=7, mixture__seed=5)
    assert order(seed=5) != order(seed=6)
    assert order(seed=5) != order(seed=5, mixture__seed=0)
    assert order(seed=0) == order(seed=9, mixture__seed=0)


# The ratio


def test_in_whole_blocks_realised_counts_are_the_requested_ones(tmp_path):
    # A block is 4 sequences: batches of 6 end in the middle of one every other time.
    stream = make(tmp_path, batch_size=6)
    for step in (2, 4, 10, 20):
        assert realised(stream, 0, step) == stream.requested(step).tolist()
    assert stream.requested(3).tolist() == [13.5, 4.5]


def test_a_ratio_is_taken_in_its_lowest_terms(tmp_path):
    stream = make(tmp_path, mixture__ratio={"en1": 300, "en2": 100})
    assert all(realised(stream, step, step + 1) == [6, 2] for step in range(20))


def test_a_language_of_ratio_zero_gets_no_sequence(tmp_path):
    stream = make(tmp_path, mixture__ratio={"en1": 1, "en2": 0})
    assert realised(stream, 0, 20) == [160, 0] == stream.requested(20).tolist()


STAGES = ((0, {"en1": 1, "en2": 0}), (7, {"en1": 1, "en2": 3}), (15, {"en1": 5, "en2": 3}))


def test_stages_change_the_ratio_at_their_step(tmp_path):
    stream = make(tmp_path, mixture__stages=STAGES)
    expected = [[8, 0]] * 7 + [[2, 6]] * 8 + [[5, 3]] * 5
    assert [realised(stream, step, step + 1) for step in range(20)] == expected
    for step in (0, 1, 7, 8, 15, 16, 20):
        assert (
            stream.requested(step).tolist() == np.sum([[0, 0], *expected[:step]], axis=0).tolist()
        )


def test_with_bernoulli_stages_a_language_is_drawn_from_its_stage_on(tmp_path):
    stream = make(tmp_path, mixture__stages=STAGES, mixture__sampler="bernoulli")
    assert realised(stream, 0, 7) == [56, 0]
    assert 40 < realised(stream, 7, 15)[1] < 60  # 48 expected of 64, give or take 3.5


# When text runs out


def test_epochs_and_the_step_of_the_first_repeat_are_those_of_the_batches(tmp_path):
    stream = make(tmp_path, windows=50)
    _, windows = windows_of(stream, 0, 20)
    repeat = next(p for p in range(160) if windows[p] in windows[:p])
    assert stream.dry_steps() == {"en": repeat // B} == {"en": 6}
    assert stream.epochs() == {"en": 160 / 50}
    assert stream.steps == 20


def test_a_source_that_lasts_exactly_does_not_run_dry(tmp_path):
    assert make(tmp_path, windows=160).dry_steps() == {}
    assert make(tmp_path, windows=160).epochs() == {"en": 1.0}
    assert make(tmp_path, windows=159).dry_steps() == {"en": 19}


def test_each_source_runs_dry_by_itself(tmp_path):
    stream = mixed(tmp_path, {"en": 60, "fr": 1000})
    assert stream.dry_steps() == {"en": 10}  # six rows of eight a step
    assert stream.epochs() == {"en": 2.0, "fr": 0.04}


@pytest.mark.parametrize("reuse", ["same_language", "any", "forbid"])
def test_on_exhaustion_stop_ends_the_run_before_any_window_comes_again(tmp_path, reuse):
    changes = {"mixture__on_exhaustion": "stop", "mixture__reuse": reuse}
    stream = make(tmp_path, windows=50, **changes)
    assert stream.steps == 6
    _, windows = windows_of(stream, 0, stream.steps)
    assert len(set(windows.tolist())) == 6 * B
    assert stream.epochs() == {"en": 48 / 50}
    assert make(tmp_path, windows=160, **changes).steps == 20


def test_on_exhaustion_stop_stops_at_the_first_source_that_is_used_up(tmp_path):
    stop = {"mixture__on_exhaustion": "stop"}
    assert mixed(tmp_path, {"en": 60, "fr": 10}, **stop).steps == 5
    assert mixed(tmp_path, {"en": 18, "fr": 10}, **stop).steps == 3


def test_on_exhaustion_error_names_the_source_the_step_and_the_fix(tmp_path):
    error = {"mixture__on_exhaustion": "error", "mixture__reuse": "forbid"}
    with pytest.raises(ValueError, match=r"Source en is used up at step 6 .*config\.steps=6"):
        make(tmp_path, windows=50, **error)
    assert make(tmp_path, windows=50, steps=6, **error).steps == 6


def test_a_source_that_does_not_last_one_step_is_refused_rather_than_stopped_at(tmp_path):
    with pytest.raises(ValueError, match=r"Source en is used up within the first step"):
        make(tmp_path, windows=B - 1, mixture__on_exhaustion="stop")


@pytest.mark.parametrize("ids", [0, 1, L])
def test_a_text_shorter_than_one_window_is_refused_with_both_numbers(tmp_path, ids):
    source = Numbered(1)
    source._tokens = source._tokens[:ids]
    with pytest.raises(ValueError, match=rf"config\.sources\.en has {ids} tokens .*model\.L={L}"):
        Stream(tiny_config(tmp_path), {"en": source})


@BOTH
def test_by_default_no_clone_sees_text_that_another_clone_saw(tmp_path, sampler):
    stream = make(tmp_path, windows=37, mixture__sampler=sampler)
    languages, windows = windows_of(stream, 0, 20)
    assert not set(windows[languages == 0]) & set(windows[languages == 1])
    assert set(windows) == set(range(37))


def test_a_language_that_comes_after_the_text_is_used_up_is_refused_by_field(tmp_path):
    late = ((0, {"en1": 1, "en2": 0}), (10, {"en1": 1, "en2": 1}))
    with pytest.raises(ValueError, match=r"language en2 .*config\.mixture\.reuse="):
        make(tmp_path, windows=60, mixture__stages=late)
    assert make(tmp_path, windows=60, mixture__stages=late, mixture__reuse="any").steps == 20
    assert make(tmp_path, windows=90, mixture__stages=late).steps == 20
    # Stopped before the language comes, the run needs nothing of it.
    stopped = make(tmp_path, windows=60, mixture__stages=late, mixture__on_exhaustion="stop")
    assert stopped.steps == 7


@pytest.mark.parametrize(
    "changes",
    [
        {
            "mixture__stages": ((0, {"en1": 1, "en2": 0}), (10, {"en1": 1, "en2": 1})),
            "mixture__on_exhaustion": "stop",
        },
        # The first sequence of en2 lies past the end of the run.
        {"mixture__ratio": {"en1": 999, "en2": 1}, "steps": 8, "seed": 1},
    ],
)
def test_what_would_come_after_the_end_of_a_run_does_not_keep_it_from_its_batches(
    tmp_path, monkeypatch, changes
):
    def permute(key, index, size):
        assert size > 0  # or it would look for a window among none for ever
        return keyed_draws.permute_indices(key, index, size)

    monkeypatch.setattr(window_order, "permute_indices", permute)
    monkeypatch.setattr(stream_lib, "_ORDER_CHUNK", 4096)
    stream = make(tmp_path, windows=60, **changes)
    assert realised(stream, 0, stream.steps) == [stream.steps * B, 0]


# Any run


@functools.cache
def plain():
    return config_lib.to_dict(tiny_config(pathlib.Path("unused")))


def config_of(sources_of, **changes):
    """Returns a config with a language l0, l1, ... on each of the named sources.

    The second language of a source, and those after it, are clones of the first.
    """
    config = copy.deepcopy(plain())
    config["sources"] = {name: config["sources"]["en"] for name in set(sources_of)}
    config["languages"] = {
        f"l{g}": {"source": name}
        if (parent := sources_of.index(name)) == g
        else {"clone_of": f"l{parent}"}
        for g, name in enumerate(sources_of)
    }
    config["mixture"]["ratio"] = dict.fromkeys(config["languages"], 1)
    for name, value in changes.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    return config_lib.resolve_config(config)


# Sources a, b, c: where their ids begin.
FIRST = {"a": 0, "b": 1_000_000, "c": 2_000_000}
RATIOS = [
    (1,),
    (1, 0),
    (0, 1),
    (999, 1),
    (1, 999),
    (7, 5),
    (37, 3),
    (0, 3, 0),
    (13, 0, 11, 8),
    tuple(range(1, 11)),
    (1,) * 10,
    (0, 90, 0, 3, 1, 0, 2, 1, 1, 2),
]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run in small; windows maps each source to its size."""

    sources_of: tuple[str, ...]
    stages: tuple[tuple[int, tuple[int, ...]], ...]
    windows: dict[str, int]
    changes: dict[str, object]

    @property
    def batch_size(self):
        return self.changes["batch_size"]

    @property
    def steps(self):
        return self.changes["steps"]

    def stream(self, **changes):
        """Returns its stream; not one that is refused because text runs out in a bad place."""
        tags = [f"l{g}" for g in range(len(self.sources_of))]
        stages = tuple((first, dict(zip(tags, ratio, strict=True))) for first, ratio in self.stages)
        changes = {**self.changes, "mixture__stages": stages} | changes
        config = config_of(self.sources_of, **changes)
        sources = {
            name: Numbered(self.windows[name], FIRST[name], np.uint32, name)
            for name in set(self.sources_of)
        }
        try:
            return Stream(config, sources)
        except ValueError as error:
            assert "config.mixture.reuse=" in str(error)
            reject()


@st.composite
def runs(draw, order=None, sampler=None, reuse=None, lasting=False):
    """Runs of any languages, ratios, stages, sizes and seeds."""
    ratio = draw(st.sampled_from(RATIOS) | st.lists(st.integers(0, 12), min_size=1, max_size=5))
    languages = len(ratio)
    any_ratio = st.lists(st.integers(0, 12), min_size=languages, max_size=languages)
    others = st.sampled_from([r for r in RATIOS if len(r) == languages] or [(1,) * languages])
    batch_size = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 40]))
    steps = draw(st.integers(2, 30))
    firsts = draw(st.sets(st.integers(1, steps - 1), max_size=3))
    ratios = [ratio, *(draw(others | any_ratio) for _ in firsts)]
    # Rather a ratio of equal parts than none.
    ratios = [tuple(r) if any(r) else (1,) * languages for r in ratios]
    order = order or draw(st.sampled_from(["shuffled", "sequential"]))
    # As many documents of three windows as rows, at least.
    least = steps * batch_size if lasting else 5
    if order == "sequential":
        least = 3 * batch_size * (steps if lasting else 1)
        reuse = reuse or "any"
    return Run(
        tuple(draw(st.lists(st.sampled_from("abc"), min_size=languages, max_size=languages))),
        tuple(zip([0, *sorted(firsts)], ratios, strict=True)),
        {name: draw(st.integers(least, least + 400)) for name in FIRST},
        {
            "batch_size": batch_size,
            "steps": steps,
            "seed": draw(st.integers(0, (1 << 32) - 1)),
            "mixture__order": order,
            "mixture__sampler": sampler or draw(st.sampled_from(["exact", "bernoulli"])),
            "mixture__reuse": reuse or draw(st.sampled_from(["same_language", "any"])),
        },
    )


def languages_of(stream, steps):
    return np.concatenate([stream.batch(step).language_B for step in range(steps)])


def assert_equal(ours, theirs):
    assert np.array_equal(ours.ids_BW, theirs.ids_BW)
    assert np.array_equal(ours.language_B, theirs.language_B)


@few
@given(runs(sampler="exact"))
def test_every_block_holds_its_ratio_and_the_error_inside_it_is_bounded(run):
    language_n = languages_of(run.stream(), run.steps)
    ends = [*(first for first, _ in run.stages[1:]), run.steps]
    for (first, ratio), end in zip(run.stages, ends, strict=True):
        inside_n = language_n[first * run.batch_size : end * run.batch_size]
        count_G = np.array(ratio) // math.gcd(*ratio)
        S = count_G.sum()
        seen_nG = np.cumsum(inside_n[:, None] == np.arange(len(ratio)), axis=0)
        # S times the error, so that all are whole numbers.
        error_nG = seen_nG * S - np.arange(1, len(inside_n) + 1)[:, None] * count_G
        assert (error_nG[S - 1 :: S] == 0).all()
        assert (abs(error_nG) <= count_G * (S - count_G)).all()


@few
@given(runs())
def test_no_sequence_is_in_a_language_whose_ratio_is_zero_at_its_step(run):
    stream = run.stream()
    ends = [*(first for first, _ in run.stages[1:]), run.steps]
    for (first, ratio), end in zip(run.stages, ends, strict=True):
        for step in range(first, end):
            assert all(ratio[g] for g in stream.batch(step).language_B)


@few
@given(runs(), st.data())
def test_what_is_requested_before_a_step_is_what_the_stages_of_earlier_steps_ask_for(run, data):
    step = data.draw(st.integers(1, run.steps))
    total = [fractions.Fraction(0)] * len(run.sources_of)
    for earlier in range(step):
        ratio = next(r for first, r in reversed(run.stages) if first <= earlier)
        for g, count in enumerate(ratio):
            total[g] += fractions.Fraction(count * run.batch_size, sum(ratio))
    stream = run.stream()
    assert np.allclose(stream.requested(step), np.array(total, float), rtol=1e-12)
    assert stream.requested(0).tolist() == [0] * len(total)
    first = data.draw(st.integers(0, step - 1))
    within = [r for f, r in run.stages if f < step]
    begun = sum(f <= first for f, _ in run.stages) - 1
    assert [tuple(ratio.values()) for ratio in stream.ratios(first, step)] == within[begun:]


@few
@given(runs(order="shuffled"))
def test_no_window_is_skipped_or_repeated_before_its_epoch_ends(run):
    stream = run.stream()
    batches = [stream.batch(step) for step in range(run.steps)]
    language_n = np.concatenate([batch.language_B for batch in batches])
    place_n = np.concatenate([batch.ids_BW[:, 0].astype(int) for batch in batches])
    for name in set(run.sources_of):
        sharing = [g for g, other in enumerate(run.sources_of) if other == name]
        mine = np.isin(language_n, sharing)
        seen, windows = ((place_n[mine] - FIRST[name]) // L).tolist(), run.windows[name]
        if run.changes["mixture__reuse"] == "any" or len(sharing) == 1:
            check_epochs(seen, set(range(windows)))
            continue
        assert len(set(seen[:windows])) == len(seen[:windows])
        for g in sharing:
            first = [w for w, other in zip(seen, language_n[mine], strict=True) if other == g]
            own = set(seen[:windows]) & set(first)
            check_epochs(first, own if len(seen) > windows else set(range(windows)))


def check_epochs(seen, all_of_them):
    for first in range(0, len(seen), len(all_of_them) or 1):
        epoch = seen[first : first + len(all_of_them)]
        assert len(set(epoch)) == len(epoch) and set(epoch) <= all_of_them


@few
@given(runs(reuse="same_language"))
def test_with_reuse_in_the_same_language_no_id_is_ever_a_target_in_two_clones(run):
    stream = run.stream()
    language_of = {}
    for step in range(run.steps):
        batch = stream.batch(step)
        for row, g in enumerate(batch.language_B.tolist()):
            for place in batch.ids_BW[row, 1:].tolist():
                assert language_of.setdefault(place, g) == g


@few
@given(runs(lasting=True))
def test_no_id_is_a_target_twice_while_its_source_lasts(run):
    stream = run.stream()
    assert stream.dry_steps() == {}
    places = np.concatenate([stream.batch(step).ids_BW[:, 1:] for step in range(run.steps)])
    assert len(np.unique(places)) == places.size == run.steps * run.batch_size * L


@few
@given(runs(), st.data())
def test_the_rows_of_any_number_of_hosts_are_the_batch_of_one_host(run, data):
    whole = run.stream()
    hosts = data.draw(
        st.sampled_from([n for n in range(1, run.batch_size + 1) if run.batch_size % n == 0])
    )
    host, step = data.draw(st.integers(0, hosts - 1)), data.draw(st.integers(0, run.steps - 1))
    rows = slice(*(h * run.batch_size // hosts for h in (host, host + 1)))
    part, batch = run.stream().batch(step, rows), whole.batch(step)
    assert np.array_equal(part.ids_BW, batch.ids_BW[rows])
    assert np.array_equal(part.language_B, batch.language_B[rows])


@few
@given(runs(), st.data())
def test_batches_are_the_same_in_any_order_of_asking_and_after_a_resume_anywhere(run, data):
    stream = run.stream()
    in_order = [stream.batch(step) for step in range(run.steps)]
    asked = data.draw(st.lists(st.integers(0, run.steps - 1), min_size=1, max_size=4))
    resumed = run.stream()
    for step in asked:
        assert_equal(resumed.batch(step), in_order[step])
        assert_equal(stream.batch(step), in_order[step])


@few
@given(runs(), st.integers(1, 40))
def test_more_steps_leave_the_earlier_batches_of_any_run_as_they_are(run, more):
    short, long = run.stream(), run.stream(steps=run.steps + more)
    for step in range(run.steps):
        assert_equal(short.batch(step), long.batch(step))


@few
@given(runs(), st.integers(1, 200))
def test_the_order_does_not_depend_on_how_many_batches_are_worked_out_at_once(run, chunk):
    language_n, window_n = run.stream().order.at(0, run.steps * run.batch_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_lib, "_ORDER_CHUNK", chunk)
        stream = run.stream()
        found = [stream.order_of(step) for step in range(run.steps)]
    assert np.concatenate([language_B for language_B, _ in found]).tolist() == language_n.tolist()
    assert np.concatenate([window_B for _, window_B in found]).tolist() == window_n.tolist()


# A ratio by temperature


class Sized:
    """Only the size of a source."""

    def __init__(self, size):
        self._size = size

    def count(self, split):
        assert split == "train"
        return self._size


def ratio_of(sizes, temperature):
    names = [f"s{g}" for g in range(len(sizes))]
    config = config_of(names, mixture__temperature=temperature)
    sized = {name: Sized(size) for name, size in zip(names, sizes, strict=True)}
    found = resolve_ratio(config, sized).mixture.ratio
    return [found[f"l{g}"] for g in range(len(sizes))]


def test_at_temperature_one_the_ratio_is_that_of_the_sizes():
    assert ratio_of([700_000, 200_000, 100_000], 1.0) == [700, 200, 100]
    assert ratio_of([2, 1], 1.0) == [667, 333]


def test_a_higher_temperature_takes_the_root_of_the_sizes():
    assert ratio_of([90_000, 10_000], 2.0) == [750, 250]
    assert ratio_of([80_000, 10_000], 3.0) == [667, 333]
    # mT5's exponent is 0.3.
    a, b = 9e6**0.3, 4e4**0.3
    assert ratio_of([9_000_000, 40_000], 1 / 0.3) == [
        round(1000 * a / (a + b)),
        round(1000 * b / (a + b)),
    ]


def test_a_very_high_temperature_makes_languages_nearly_equal():
    assert ratio_of([10**11, 10**3, 10], 1e6) == [334, 333, 333]


def test_a_ratio_by_temperature_gives_the_smallest_language_a_sequence_at_least():
    assert ratio_of([10**9, 1], 1.0) == [999_999, 1]
    assert ratio_of([10**9, 1, 1], 1.0) == [999_998, 1, 1]


def test_a_ratio_by_temperature_is_in_proportion_where_a_thousandth_would_be_too_much():
    assert ratio_of([99_997, 3], 1.0) == [999_970, 30]
    assert ratio_of([999, 1], 1.0) == [999, 1]
    assert ratio_of([50] * 2000, 1.0) == [500] * 2000


def test_a_run_goes_on_with_the_ratio_that_an_earlier_version_made_of_its_temperature():
    config = config_of(["a", "b"], mixture__temperature=1.0)
    sources = {"a": Sized(99_997), "b": Sized(3)}
    fresh = resolve_ratio(config, sources)
    early = {"l0": 999, "l1": 1}
    begun = dataclasses.replace(fresh, mixture=dataclasses.replace(fresh.mixture, ratio=early))
    assert resolve_ratio(config, sources, begun).mixture.ratio == early != fresh.mixture.ratio


def test_a_share_by_temperature_that_was_rounded_is_said_with_both_numbers_and_the_epochs():
    sources = {"a": Numbered(99_990, 0, np.uint32), "b": Numbered(10, FIRST["b"], np.uint32)}
    config = config_of(["a", "b"], steps=1250, mixture__temperature=1.0)

    def said(ratio):
        mixture_ = dataclasses.replace(config.mixture, ratio=ratio)
        return Stream(dataclasses.replace(config, mixture=mixture_), sources).rounded_shares()

    [only] = said({"l0": 999, "l1": 1})
    assert only == (
        "l1 gets 0.1 % of the sequences (1 of 1,000), where the size of its text makes "
        "0.0101 %: that is 1 epochs of it"
    )
    assert said(resolve_ratio(config, sources).mixture.ratio) == []


# As even as the texts allow


def spread(windows, epochs, steps, batch=B, sources_of=None, **changes):
    """Returns the stream of languages on texts of so many windows, by max_epochs."""
    names = sources_of or [f"s{g}" for g in range(len(windows))]
    sources = dict(zip(dict.fromkeys(names), windows, strict=True))
    config = config_of(names, steps=steps, batch_size=batch, mixture__max_epochs=epochs, **changes)
    numbered = {name: Numbered(count, 0, np.uint32) for name, count in sources.items()}
    return Stream(resolve_ratio(config, numbered), numbered)


def test_languages_are_as_even_as_their_texts_allow_and_no_text_comes_too_often():
    # 2,000 sequences: 100 windows twice are 200, and the others share the rest.
    stream = spread([100, 5000, 5000], epochs=2, steps=250)
    assert realised(stream, 0, 250) == [200, 900, 900]
    assert stream.epochs() == {"s0": 2.0, "s1": 0.18, "s2": 0.18}
    # Where all texts are long enough, it is an equal ratio.
    assert realised(spread([5000] * 4, epochs=1, steps=250), 0, 250) == [500] * 4
    # A clone shares the text of its parent.
    cloned = spread([100, 5000], epochs=2, steps=250, sources_of=["a", "a", "b"])
    assert realised(cloned, 0, 250) == [100, 100, 1800]
    half = spread([100, 5000], epochs=2, steps=250, mixture__text_share=0.5)
    assert realised(half, 0, 250) == [100, 1900]


@given(st.lists(st.integers(1, 900), min_size=2, max_size=5), st.floats(0.5, 6), st.integers(1, 60))
@settings(max_examples=15, deadline=None)
def test_text_is_never_gone_through_more_often_than_allowed(windows, epochs, steps):
    total, most = steps * B, [int(epochs * count) for count in windows]
    if sum(most) < total or not all(most):
        with pytest.raises(ValueError, match=r"config\.mixture\.max_epochs="):
            spread(windows, epochs, steps)
        return
    stream = spread(windows, epochs, steps)
    found = realised(stream, 0, steps)
    assert sum(found) == total
    assert all(have <= allowed for have, allowed in zip(found, most, strict=True))
    assert max(stream.epochs().values()) <= epochs
    # Up to a part of the block, nobody could have more without taking it from who has less.
    part = -(-total // sum(stream._config.mixture.ratio.values()))
    for have, allowed in zip(found, most, strict=True):
        assert have >= min(allowed, max(found)) - 2 * part * len(found)


def test_texts_that_are_too_short_and_a_run_made_longer_are_one_line():
    with pytest.raises(ValueError, match="allows 300 sequences .*take 800.*config.steps=37"):
        spread([100, 50], epochs=2, steps=100)
    with pytest.raises(ValueError, match="of the text of l0 is not one sequence"):
        spread([1, 5000], epochs=0.5, steps=100)
    with pytest.raises(ValueError, match="each of 4 languages a sequence or more.*take 3"):
        spread([100] * 4, epochs=1, steps=3, batch=1)
    config = config_of(["a", "b"], steps=100, mixture__max_epochs=1.0)
    sources = {"a": Numbered(100, 0, np.uint32), "b": Numbered(5000, 0, np.uint32)}
    begun = resolve_ratio(config, sources)
    longer = dataclasses.replace(config, steps=200)
    with pytest.raises(ValueError, match="gives l0 200 sequences .*max_epochs=1 allows 100"):
        resolve_ratio(longer, sources, begun)
    assert resolve_ratio(config, sources, begun).mixture.ratio == begun.mixture.ratio


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 2.0},
        {"switch": "document"},
        {"order": "sequential"},
        {"sampler": "bernoulli"},
        {"stages": STAGES},
    ],
)
def test_most_epochs_beside_what_draws_otherwise_is_refused(tmp_path, changes):
    named = {f"mixture__{name}": value for name, value in changes.items()}
    with pytest.raises(ValueError, match=rf"config\.mixture\..*{[*changes][0]}"):
        tiny_config(tmp_path, mixture__max_epochs=2.0, **named)


def test_a_language_joins_in_a_later_stage_at_its_ratio_on_text_that_was_not_seen():
    stages = config_lib.joining_stages("0.5", {"l0": 3, "l1": 1})
    config = config_of(["a", "a"], steps=20, mixture__stages=stages)
    stream = Stream(config, {"a": Numbered(160, 0, np.uint32)})
    assert realised(stream, 0, 10) == [80, 0]
    assert realised(stream, 10, 20) == [60, 20]
    assert stream.languages_without_text() == []
    windows = [stream.order_of(step)[1] for step in range(20)]
    assert sorted(np.concatenate(windows).tolist()) == list(range(160))


def test_a_language_that_gets_no_sequence_is_named_with_the_reason():
    def said(**changes):
        config = config_of(["a", "b"], steps=20, **changes)
        sources = {"a": Numbered(100, 0, np.uint32), "b": Numbered(100, FIRST["b"], np.uint32)}
        return Stream(config, sources).languages_without_text()

    none = "l1 gets none of the 160 sequences of this run: "
    assert said(mixture__ratio={"l0": 9, "l1": 1}) == []
    assert said(mixture__ratio={"l0": 1, "l1": 0}) == [none + "its ratio is 0"]
    rare = {"l0": 9_999_999, "l1": 1}
    assert said(mixture__ratio=rare) == [none + "its ratio asks for 1.6e-05 of them"]
    assert said(mixture__ratio=rare, mixture__sampler="bernoulli") == said(mixture__ratio=rare)
    later = ((0, {"l0": 1, "l1": 0}), (15, {"l0": 1, "l1": 1}))
    assert said(mixture__stages=later) == []
    [stopped] = said(mixture__stages=later, mixture__on_exhaustion="stop")
    assert stopped == (
        "l1 gets none of the 96 sequences of this run: the text ends before the stage in which "
        "it joins, at step 12"
    )


@given(
    st.lists(st.integers(1, 10**11), min_size=1, max_size=10),
    st.floats(0.2, 1e3),
)
@settings(max_examples=100, deadline=None)
def test_a_ratio_by_temperature_is_the_formula_rounded_to_whole_parts(sizes, temperature):
    weights = [math.exp(math.log(size / max(sizes)) / temperature) for size in sizes]
    found = ratio_of(sizes, temperature)
    parts = sum(found)
    exact = [parts * weight / sum(weights) for weight in weights]
    # The smaller one wherever no language is rounded up to a part.
    assert parts == (1000 if 1000 * min(weights) / sum(weights) > 1 - 1e-9 else 1_000_000)
    assert min(found) >= 1
    if min(exact) >= 1:
        assert all(abs(ours - theirs) < 1 + 1e-6 for ours, theirs in zip(found, exact, strict=True))
        # By largest remainders: who got one more had the larger remainder.
        up = [e % 1 for f, e in zip(found, exact, strict=True) if f > e]
        down = [e % 1 for f, e in zip(found, exact, strict=True) if f < e]
        assert min(up, default=1) >= max(down, default=0) - 1e-6
    for (a, ours), (b, theirs) in itertools.combinations(zip(sizes, found, strict=True), 2):
        assert (ours - theirs) * (a - b) >= 0  # more text, no fewer sequences


def test_a_language_and_its_clone_count_the_size_of_their_source_each():
    config = config_of(["a", "a", "b"], mixture__temperature=1.0)
    found = resolve_ratio(config, {"a": Sized(400), "b": Sized(200)}).mixture.ratio
    assert dict(found) == {"l0": 400, "l1": 400, "l2": 200}


def test_without_a_temperature_the_ratio_stays_as_the_config_says():
    config = config_of(["a"], mixture__ratio={"l0": 3})
    assert resolve_ratio(config, {"a": Sized(10)}) is config


def test_a_stream_has_the_ratio_that_the_temperature_makes(tmp_path):
    config = config_of(["a", "b"], steps=250, mixture__temperature=2.0)
    sources = {"a": Numbered(900, 0, np.uint32), "b": Numbered(100, FIRST["b"], np.uint32)}
    stream = Stream(resolve_ratio(config, sources), sources)
    assert realised(stream, 0, 250) == [1500, 500]


def test_text_without_end_has_no_size_to_take_a_ratio_from():
    config = config_of(["a", "b"], mixture__temperature=1.0)
    sources = {"a": Sized(10), "b": SyntheticSource("b", SyntheticConfig(lemmas=64))}
    with pytest.raises(ValueError, match=r"config\.mixture\.temperature=1\.0 .*synthetic\.tokens"):
        resolve_ratio(config, sources)
    sources["b"] = SyntheticSource("b", SyntheticConfig(lemmas=64, tokens=5000))
    assert sum(resolve_ratio(config, sources).mixture.ratio.values()) == 1000


@pytest.mark.parametrize("field", ["mixture__stages", "mixture__same_total_as"])
def test_a_temperature_beside_a_schedule_is_refused_by_both_fields(tmp_path, field):
    with pytest.raises(
        ValueError, match=rf"mixture\.temperature=2\.0 .*{field.rpartition('_')[2]}"
    ):
        tiny_config(tmp_path, mixture__temperature=2.0, **{field: STAGES})


# Schedules

SCHEDULES = {  # SPEC 2.8: the stage lengths of 18,265 steps
    "0.1_0.9": [9132, 9133],
    "0.0_1.0": [9132, 9133],
    "0.1_0.9_0.5_0.5": [4566, 4566, 4566, 4567],
    "0.05_0.65_0.65_0.65": [4566, 4566, 4566, 4567],
}
BALANCED = ((0, {"en1": 1, "en2": 1}),)


def reference_run(tmp_path, **changes):
    return tiny_config(tmp_path, **{"steps": 18265, "batch_size": 128} | changes)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedules_of_the_reference_study_have_its_stage_lengths(tmp_path, name):
    config = reference_run(tmp_path, mixture__stages=config_lib.equal_stages(name, "en1", "en2"))
    found = config_lib.list_stages(config)
    ends = [*(first for first, _ in found[1:]), config.steps]
    assert [end - first for (first, _), end in zip(found, ends, strict=True)] == SCHEDULES[name]
    shares = [ratio["en2"] / (ratio["en1"] + ratio["en2"]) for _, ratio in found]
    assert shares == [float(share) for share in name.split("_")]


@example(parts=[1231, 8769], steps=10_000)
@example(parts=[1, 1, 1], steps=3000)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(50, 30_000))
@settings(max_examples=100, deadline=None)
def test_a_fraction_of_all_steps_is_rounded_down_to_a_step(parts, steps):
    # Beginnings as fractions of small whole numbers, such as 1/3, which no float is exactly.
    whole = sum(parts)
    begins = [sum(parts[:i]) for i in range(len(parts))]
    ratios = [{"en1": 1, "en2": i} for i in range(len(parts))]
    written = tuple((b / whole, r) for b, r in zip(begins, ratios, strict=True))
    by_step = tuple((b * steps // whole, r) for b, r in zip(begins, ratios, strict=True))
    if len({first for first, _ in by_step}) < len(parts):
        return
    unused = pathlib.Path("unused")
    ours = tiny_config(unused, steps=steps, mixture__stages=written)
    theirs = tiny_config(unused, steps=steps, mixture__stages=by_step)
    assert config_lib.list_stages(ours) == config_lib.list_stages(theirs)


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_stages_by_fraction_are_the_run_of_the_stages_by_the_steps_that_they_begin_at(
    tmp_path, order
):
    ratios = [{"en1": 1, "en2": 0}, {"en1": 1, "en2": 3}, {"en1": 5, "en2": 3}]
    streams = [
        make(
            tmp_path,
            steps=19,
            mixture__order=order,
            mixture__stages=tuple(zip(firsts, ratios, strict=True)),
        )
        for firsts in ([0, 0.3, 0.75], [0, 5, 14])
    ]
    for step in range(19):
        assert_equal(*(stream.batch(step) for stream in streams))
    assert realised(streams[0], 0, 5) == [40, 0] and realised(streams[0], 5, 6) != [8, 0]


@pytest.mark.parametrize("field", ["stages", "same_total_as"])
@pytest.mark.parametrize(
    ("firsts", "message"),
    [
        ([0, 0.25, 10], r" mixes steps with fractions"),
        ([0, 5, 0.5], r" mixes steps with fractions"),
        ([2, 5], r"\[0\] begins at step 2\."),
        ([0.1, 0.5], r"\[0\] begins at step 0\.1"),
        ([0, 7, 7], r"\[2\] begins at step 7\."),
        ([0, 7, 3], r"\[2\] begins at step 3\."),
        ([0, 0.5, 0.5], r"\[2\] begins at step 0\.5"),
        ([0, 1.0], r"\[1\] begins at 1\.0 of all steps"),
        ([0, 0.5, 1.5], r"\[2\] begins at 1\.5 of all steps"),
        ([0, -3], r"\[1\] begins at step -3"),
        ([0, math.nan], r"\[1\] begins at step nan"),
        ([0, 20], r" begins its last stage at step 20, .*config\.steps=20"),
        ([0, 0.51, 0.52], r" has two stages that begin at the same one"),
        ([0, 0.01], r" has two stages that begin at the same one"),
    ],
)
def test_a_schedule_that_does_not_begin_at_zero_or_go_on_is_refused_by_field(
    tmp_path, field, firsts, message
):
    schedule = tuple((first, {"en1": 1, "en2": 1}) for first in firsts)
    with pytest.raises(ValueError, match=rf"config\.mixture\.{field}{message}"):
        tiny_config(tmp_path, **{f"mixture__{field}": schedule})


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedules_of_the_reference_study_have_the_total_of_equal_parts(tmp_path, name):
    schedule = config_lib.equal_stages(name, "en1", "en2")
    reference_run(tmp_path, mixture__stages=schedule, mixture__same_total_as=BALANCED)
    # And the other way round.
    equal = {"en1": 1, "en2": 1}
    reference_run(tmp_path, mixture__ratio=equal, mixture__same_total_as=schedule)


@pytest.mark.parametrize("name", ["0.1_0.8", "0.1_0.9_0.5_0.499", "0.5001"])
def test_a_schedule_of_another_total_is_refused_with_the_language_and_both_totals(tmp_path, name):
    schedule = config_lib.equal_stages(name, "en1", "en2")
    with pytest.raises(ValueError, match=r"same_total_as gives en1 1,168,960 sequences .*stages"):
        reference_run(tmp_path, mixture__stages=schedule, mixture__same_total_as=BALANCED)


@few
@given(runs())
def test_the_totals_of_a_run_are_those_of_a_loop_over_its_steps(run):
    config = run.stream()._config
    total = dict.fromkeys(config.tags, fractions.Fraction(0))
    for step in range(config.steps):
        ratio = next(r for first, r in reversed(config.mixture.stages) if first <= step)
        for tag in config.tags:
            total[tag] += fractions.Fraction(ratio[tag] * config.batch_size, sum(ratio.values()))
    assert config_lib.compute_sequence_totals(config) == total
    plain_ = dict.fromkeys(config.tags, 1)
    equal = fractions.Fraction(config.steps * config.batch_size, len(config.tags))
    assert set(config_lib.compute_sequence_totals(config, ((0, plain_),)).values()) == {equal}


def test_a_share_of_the_text_is_drawn_from_all_of_it_and_comes_back_each_epoch(tmp_path):
    stream = make(
        tmp_path, windows=200, mixture__text_share=0.2, mixture__ratio={"en1": 1, "en2": 0}
    )
    assert stream.windows == {"en": 40}
    _, first = windows_of(stream, 0, 5)  # one epoch is 5 batches of 8
    _, second = windows_of(stream, 5, 10)
    assert len(set(first)) == 40 and set(first) == set(second)
    # Not the first fifth of the text: about a fifth of the windows lie there.
    assert 2 <= np.count_nonzero(first < 40) <= 16 and first.max() > 150


def test_a_share_of_the_documents_of_each_language_is_drawn(tmp_path):
    stream = make(
        tmp_path, windows=300, mixture__text_share=0.5, mixture__switch="document", steps=60
    )
    drawn = {0: set(), 1: set()}
    for step in range(60):
        for g, start in zip(*stream.starts_of(step), strict=True):
            drawn[int(g)].add(int(start))
    # More than an epoch: as many different windows as the pool has, which is half of it.
    windows = [stream.windows[pool] for pool in ("en/en1", "en/en2")]
    assert [len(drawn[g]) for g in (0, 1)] == windows
    assert sum(windows) == pytest.approx(150, abs=3)


def test_a_share_of_less_than_a_window_is_refused_with_the_share():
    config = config_of(["a"], mixture__text_share=0.001)
    with pytest.raises(ValueError, match=r"text_share=0\.001 of them, fewer than"):
        Stream(config, {"a": Numbered(100, 0, np.uint32)})


def test_a_share_of_the_text_is_not_of_queues(tmp_path):
    with pytest.raises(ValueError, match=r"config\.mixture\.text_share=0\.5 chooses windows"):
        tiny_config(tmp_path, mixture__text_share=0.5, mixture__order="sequential")
