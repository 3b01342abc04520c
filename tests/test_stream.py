"""Behaviours of data/stream.py, on sources made of numbers and on real prepared text."""

import numpy as np
import pytest
from conftest import tiny_config

from imbalance_jax import config as config_lib
from imbalance_jax.data.stream import Stream

L, B = 16, 8  # of tiny_config


class Numbered:
    """A source whose id at a place is that place, so that a window shows where it is from."""

    def __init__(self, windows, first=0, dtype=np.uint16):
        self._tokens = np.arange(first, first + windows * L + 1).astype(dtype)

    def tokens(self, split):
        assert split == "train"
        return self._tokens


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
    return Stream(config_lib.resolve(config), sources)


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
    backwards = Stream(config_lib.resolve(config), {"en": Numbered(1000)})
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


def test_the_table_of_a_run_says_what_was_asked_for_and_what_was_trained_on(tmp_path):
    stream = make(tmp_path, windows=320)
    sequences = np.array(realised(stream, 0, 20))
    first, second = stream.table(20, sequences)
    assert (first["language"], second["language"]) == ("en1", "en2")
    assert (first["source"], second["source"]) == ("en", "en")
    assert (first["requested_sequences"], second["requested_sequences"]) == (120, 40)
    assert (first["realised_sequences"], second["realised_sequences"]) == (120, 40)
    assert (first["realised_tokens"], second["requested_tokens"]) == (120 * L, 40 * L)
    assert first["source_windows"] == 320
    # Both draw from one source: half of it, together.
    assert first["source_epochs"] == second["source_epochs"] == 0.5


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
    with pytest.raises(ValueError, match=r"config\.sources\.en is used up within the first step"):
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
