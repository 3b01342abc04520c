"""Behaviours of data/order/audit.py: the hash of a run's order, its repeats, and mixture.csv."""

import collections
import copy
import fractions
import functools
import hashlib
import itertools
import pathlib
import re

import numpy as np
import pytest
from helpers import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalance_jax import config as config_lib
from imbalance_jax.data.order import audit, mixture
from imbalance_jax.data.order import stream as stream_lib
from imbalance_jax.data.order.audit import ORDER_METRIC, REPEATS_METRIC, OrderAudit
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.data.sources import DOCUMENT

L, B = 16, 8  # of tiny_config
UNUSED = pathlib.Path("unused")
few = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Works the order out for few batches at once; see test_stream.py."""
    monkeypatch.setattr(stream_lib, "_ORDER_CHUNK", 64)


class Numbered:
    """A source whose id at a place is that place, in documents of equal lengths."""

    def __init__(self, windows, first=0, fingerprint="text", document=3 * L):
        self._tokens = np.arange(first, first + windows * L, dtype=np.uint32)
        self.name, self.fingerprint, self._document = "en", fingerprint, document

    def tokens(self, split):
        return self._tokens

    def documents(self, split):
        starts = np.arange(0, len(self._tokens), self._document)
        return np.array([(start, n, 0) for n, start in enumerate(starts)], DOCUMENT)


@functools.cache
def plain():
    return config_lib.to_dict(tiny_config(UNUSED))


def run_of(sources_of=("en", "en"), windows=60, *, text=None, **changes):
    """Returns the config and the stream of languages l0, l1, ... on each of the named sources."""
    config = copy.deepcopy(plain())
    config["sources"] = {name: config["sources"]["en"] for name in set(sources_of)}
    config["languages"] = {}
    for g, name in enumerate(sources_of):
        parent = sources_of.index(name)
        origin = {"source": name} if parent == g else {"clone_of": f"l{parent}"}
        config["languages"][f"l{g}"] = origin
    config["mixture"]["ratio"] = {f"l{g}": 3 if g == 0 else 1 for g in range(len(sources_of))}
    for name, value in changes.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    resolved = config_lib.resolve_config(config)
    sources = {
        name: Numbered(windows, 1_000_000 * i, **text or {})
        for i, name in enumerate(dict.fromkeys(sources_of))
    }
    return resolved, Stream(resolved, sources)


def digests(config, stream, steps=20):
    """Returns the hash before any step and after each."""
    following = OrderAudit(config, stream)
    found = [following.digest]
    for _ in range(steps):
        following.follow()
        found.append(following.digest)
    return found


# The hash


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_equal_runs_have_equal_hashes_at_every_step(order):
    changes = {"mixture__order": order, "mixture__reuse": "any"}
    ours, theirs = digests(*run_of(**changes)), digests(*run_of(**changes))
    assert ours == theirs
    assert len(set(ours)) == 21
    assert all(re.fullmatch("v2:[0-9a-f]{16}", digest) for digest in ours)


def test_what_does_not_change_the_order_does_not_change_the_hash():
    ours = digests(*run_of(steps=20))
    assert digests(*run_of(steps=40)) == ours
    assert digests(*run_of(log_every=7, seed=3, mixture__seed=0)) == ours
    assert digests(*run_of(mixture__ratio={"l0": 30, "l1": 10})) == ours


@pytest.mark.parametrize(
    "changes",
    [
        {"text": {"fingerprint": "another text"}},
        {"seed": 1},
        {"mixture__seed": 7},
        {"mixture__ratio": {"l0": 7, "l1": 3}},
        {"mixture__sampler": "bernoulli"},
        {"mixture__order": "sequential"},
        {"mixture__switch": "document"},
        {"sources_of": ("en", "fr")},
        {"batch_size": 4},
    ],
    ids=str,
)
def test_runs_that_see_something_else_have_other_hashes(changes):
    ours = digests(*run_of(mixture__reuse="any"))
    theirs = digests(*run_of(**{"mixture__reuse": "any"} | changes))
    assert not set(ours[1:]) & set(theirs[1:])


@pytest.mark.parametrize(
    "field",
    [
        {"languages.en2.words": "reversed"},
        {"languages.en2.words": "reversed", "languages.en2.words_block": 4},
        {"languages.en2.words": "permuted"},
        {"languages.en1.words": "reversed"},
        {"model.L": 8},
        {"mixture.switch": "document"},
    ],
    ids=str,
)
def test_the_hash_stands_for_the_words_the_documents_and_the_length_of_windows(
    english, data_dir, field
):
    def first(**changes):
        config = tiny_config(data_dir, **changes)
        return OrderAudit(config, Stream(config, {"en": english})).digest

    assert first() == first() != first(**field) == first(**field)
    if "languages.en2.words_block" in field:
        assert first(**field) != first(**{"languages.en2.words": "reversed"})


def test_the_hash_stands_for_which_documents_each_language_has():
    def first(**changes):
        return OrderAudit(*run_of(windows=300, mixture__switch="document", **changes)).digest

    assert first(mixture__seed=0) == first(mixture__seed=0) != first(mixture__seed=1)
    # Before the first batch, two seeds differ in nothing else.
    assert (
        OrderAudit(*run_of(mixture__seed=0)).digest == OrderAudit(*run_of(mixture__seed=1)).digest
    )


def test_before_any_step_the_hash_stands_for_the_rules_of_the_order(monkeypatch):
    changes = {"mixture__reuse": "any"}
    shuffled = OrderAudit(*run_of(**changes)).digest
    assert OrderAudit(*run_of(mixture__order="sequential", **changes)).digest != shuffled
    monkeypatch.setattr(mixture, "ORDER_VERSION", mixture.ORDER_VERSION + 1)
    assert OrderAudit(*run_of(**changes)).digest != shuffled


class Forged:
    """A stream in which one row of one batch is another."""

    starts_of = Stream.starts_of

    def __init__(self, stream, step, row, what, by):
        self._stream, self._at, self._what, self._by = stream, (step, row), what, by

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def order_of(self, step):
        found = [values.copy() for values in self._stream.order_of(step)]
        if step == self._at[0]:
            found[self._what][self._at[1]] += self._by
        return tuple(found)


def test_equal_hashes_are_equal_tokens_whatever_share_of_whatever_text():
    seen = {}
    shares = (1.0, 0.999, 0.99, 0.9, 0.5)
    for share, windows, order in itertools.product(shares, (60, 64, 300), ("shuffled", "queues")):
        changes = {"mixture__order": "sequential" if order == "queues" else order}
        if order == "queues" and share < 1:
            continue
        # Another length of the text would be another fingerprint.
        config, stream = run_of(
            windows=windows,
            text={"fingerprint": str(windows)},
            mixture__text_share=share,
            mixture__reuse="any",
            **changes,
        )
        tokens = hashlib.sha256()
        for step, digest in enumerate(digests(config, stream, 8)[1:]):
            batch = stream.batch(step)
            tokens.update(batch.ids_BW.tobytes() + batch.language_B.tobytes())
            assert seen.setdefault(digest, tokens.digest()) == tokens.digest()
    assert len(seen) > 8 * 12  # or little was compared


def test_hashes_of_version_1_stand_for_numbers_of_windows_and_say_so_by_having_no_version():
    whole, most = run_of(windows=1000), run_of(windows=1001, mixture__text_share=0.9991)
    early = [
        OrderAudit(config, stream, hash_version=1) for config, stream in (whole, most)
    ]  # both draw from 1,000 windows: of other text
    for following in early:
        following.follow()
    assert early[0].digest == early[1].digest
    assert audit.parse_hash_version(early[0].digest) == 1
    late = [digests(*run, 1)[1] for run in (whole, most)]
    assert late[0] != late[1] and {audit.parse_hash_version(digest) for digest in late} == {2}


def test_a_run_with_hashes_of_version_1_goes_on_with_those_of_a_run_from_the_first_step():
    config, stream = run_of()
    early = OrderAudit(config, stream, hash_version=1)
    early.follow()
    going_on = OrderAudit(config, stream)
    going_on.resume([{"step": 1, ORDER_METRIC: early.digest}], 3)
    assert going_on.digest == digests(config, stream, 3)[3]


@few
@given(
    st.integers(0, 19),
    st.integers(0, B - 1),
    st.sampled_from([0, 1]),
    st.sampled_from([1, -1, 256, 65_536, 1 << 24]),
)
def test_the_hash_after_a_step_stands_for_every_row_of_every_batch_up_to_it(step, row, what, by):
    config, stream = run_of()
    ours, theirs = digests(config, stream), digests(config, Forged(stream, step, row, what, by))
    assert theirs[: step + 1] == ours[: step + 1]
    assert all(a != b for a, b in zip(ours[step + 1 :], theirs[step + 1 :], strict=True))


def test_the_hash_stands_for_which_row_has_what():
    config, stream = run_of()

    class Turned(Forged):
        def order_of(self, step):  # and so starts_of
            return tuple(values[::-1] for values in self._stream.order_of(step))

    assert digests(config, stream)[1] != digests(config, Turned(stream, 0, 0, 0, 0))[1]


# Going on


def records_of(config, stream, steps, every):
    """Returns the records that a run makes, and what its audit says in the end."""
    following, records = OrderAudit(config, stream), []
    tokens_G = np.zeros(len(config.tags), int)
    for step in range(steps):
        following.follow()
        np.add.at(tokens_G, stream.batch(step).language_B, L)
        if (step + 1) % every == 0 or step + 1 == steps:
            record = {"step": step + 1, "train/loss": 1.0, **following.metrics()}
            for tag, tokens in zip(config.tags, tokens_G.tolist(), strict=True):
                record[f"train/tokens/{tag}"] = tokens
            # Others, that say nothing of what was trained on.
            records += [record, {"step": step + 1, "eval/loss/l0": 2.0}]
    return records, following


@few
@given(
    st.integers(0, 20),
    st.integers(1, 9),
    st.sampled_from(["shuffled", "sequential"]),
    st.sampled_from([("en",), ("en", "en"), ("en", "fr", "en")]),
)
def test_going_on_from_the_records_is_following_from_the_first_step(step, every, order, sources_of):
    config, stream = run_of(sources_of, mixture__order=order, mixture__reuse="any")
    records, whole = records_of(config, stream, 20, every)
    from_zero = OrderAudit(config, stream)
    for _ in range(step):
        from_zero.follow()
    # With records of later steps among them, as a run has that was set back to a checkpoint.
    resumed = OrderAudit(config, stream)
    resumed.resume(records, step)
    for audit_ in (from_zero, resumed):
        assert audit_.step == step
        assert audit_.metrics() == from_zero.metrics()
    while resumed.step < 20:
        resumed.follow()
    assert resumed.metrics() == whole.metrics()


def test_going_on_goes_through_no_step_that_a_record_is_about():
    config, stream = run_of(windows=400)
    records, whole = records_of(config, stream, 20, 5)

    class Counted(Forged):
        asked = ()

        def order_of(self, step):
            self.asked += (step,)
            return self._stream.order_of(step)

    counted = Counted(stream, 0, 0, 0, 0)
    resumed = OrderAudit(config, counted)
    resumed.resume(records, 18)
    assert set(counted.asked) == {15, 16, 17}
    resumed = OrderAudit(config, counted)
    resumed.resume([], 2)  # a run of which nothing is recorded yet
    assert set(counted.asked) == {0, 1, 15, 16, 17}


# Repeats in another language


def slow_repeats(config, stream, steps):
    """Counts them by the first id of every sequence, one after the other."""
    heard = collections.defaultdict(set)
    count_G = [0] * len(config.tags)
    for step in range(steps):
        batch = stream.batch(step)
        for g, ids_W in zip(batch.language_B.tolist(), batch.ids_BW, strict=True):
            count_G[g] += bool(heard[int(ids_W[0])] - {g})
            heard[int(ids_W[0])].add(g)
    return count_G


CASES = {
    "two clones": {"sources_of": ("en", "en")},
    "three clones": {"sources_of": ("en",) * 3},
    "clones of two sources": {"sources_of": ("en", "fr", "en", "fr")},
    "a source beside clones": {"sources_of": ("en", "fr", "en")},
    "bernoulli": {"mixture__sampler": "bernoulli"},
    "more rows than windows": {"windows": 6, "batch_size": 12},
    "one clone after the other": {
        "mixture__stages": ((0, {"l0": 1, "l1": 0}), (10, {"l0": 0, "l1": 1}))
    },
}


@pytest.mark.parametrize("case", CASES)
def test_repeats_are_those_of_a_loop_over_all_sequences(case):
    config, stream = run_of(**{"mixture__reuse": "any", "windows": 31} | CASES[case])
    records, following = records_of(config, stream, 20, 1)
    assert following.counts_repeats
    for record in records[::2]:
        expected = slow_repeats(config, stream, record["step"])
        found = [record[f"{REPEATS_METRIC}/{tag}"] for tag in config.tags]
        assert found == expected
    assert sum(expected) > 10


@pytest.mark.parametrize("case", [name for name in CASES if name != "more rows than windows"])
def test_repeats_in_sequence_are_those_of_a_loop_where_queues_are_whole_windows(case):
    # 11 documents of three windows for 8 rows: queues of three and of six windows.
    changes = {"mixture__order": "sequential", "mixture__reuse": "any", "windows": 33}
    config, stream = run_of(**changes | CASES[case])
    _, following = records_of(config, stream, 20, 5)
    expected = slow_repeats(config, stream, 20)
    assert following.repeats_G.tolist() == expected and sum(expected) > 10


def test_a_queue_read_at_other_cuts_counts_as_the_text_that_its_windows_begin_in():
    length = 5 * L // 2  # of the one document of each row
    config, stream = run_of(
        windows=B * length // L,
        text={"document": length},
        mixture__order="sequential",
        mixture__reuse="any",
    )
    _, following = records_of(config, stream, 20, 5)
    heard, count_G = collections.defaultdict(set), [0, 0]
    for step in range(20):
        batch = stream.batch(step)
        for row, g in enumerate(batch.language_B.tolist()):
            begins = int(batch.ids_BW[row, 0])
            assert begins // length == row
            place = heard[row, begins % length // L]
            count_G[g] += bool(place - {g})
            place.add(g)
    assert following.repeats_G.tolist() == count_G


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixture__reuse": "any", "windows": 400},
        {"mixture__reuse": "any", "sources_of": ("en",)},
        {"mixture__reuse": "any", "sources_of": ("en", "fr")},
        {"mixture__reuse": "any", "mixture__switch": "document"},
        {"mixture__order": "sequential", "windows": 2000},
        {"mixture__reuse": "any", "mixture__order": "sequential", "sources_of": ("en", "fr")},
    ],
    ids=str,
)
def test_where_no_text_can_come_in_another_language_nothing_is_counted(changes):
    config, stream = run_of(**changes)
    following = OrderAudit(config, stream)
    for _ in range(20):
        following.follow()
    assert slow_repeats(config, stream, 20) == [0] * len(config.tags)
    assert not following.counts_repeats
    assert following.metrics() == {ORDER_METRIC: following.digest}
    assert following.repeats_G.tolist() == [0] * len(config.tags)


@pytest.mark.parametrize("reuse", ["any", "forbid"])
def test_a_run_that_stops_before_text_comes_again_has_no_repeats(reuse):
    stop = {"mixture__on_exhaustion": "stop", "mixture__reuse": reuse}
    config, stream = run_of(**stop)
    assert stream.steps < config.steps
    _, following = records_of(config, stream, stream.steps, 5)
    assert following.repeats_G.tolist() == [0, 0]
    assert not following.counts_repeats


def test_repeats_count_in_the_language_that_comes_second():
    stages = ((0, {"l0": 1, "l1": 0}), (5, {"l0": 0, "l1": 1}))
    config, stream = run_of(
        windows=41, steps=10, mixture__stages=stages, mixture__reuse="any"
    )  # 40 windows: an epoch in each language
    _, following = records_of(config, stream, 10, 5)
    assert following.repeats_G.tolist() == [0, 40]


# mixture.csv


@st.composite
def logged(draw):
    """Changes to a run, the steps that it has, and how often it writes a record."""
    steps = draw(st.integers(2, 120))
    firsts = [0, *sorted(draw(st.sets(st.integers(1, steps - 1), max_size=3)))]
    languages = draw(st.integers(1, 3))
    ratio = st.lists(st.integers(0, 5), min_size=languages, max_size=languages).filter(any)
    stages = tuple((first, {f"l{g}": n for g, n in enumerate(draw(ratio))}) for first in firsts)
    changes = {
        "sources_of": tuple(draw(st.sampled_from(["en", "fr"])) for _ in range(languages)),
        "mixture__stages": stages,
        "steps": steps,
        "batch_size": draw(st.integers(1, 5)),
        "mixture__sampler": draw(st.sampled_from(["exact", "bernoulli"])),
        "mixture__order": draw(st.sampled_from(["shuffled", "sequential"])),
        "mixture__reuse": "any",
    }
    return changes, draw(st.integers(1, 20))


@few
@given(logged())
def test_windows_of_steps_follow_each_other_and_add_up_to_the_run(made):
    changes, every = made
    config, stream = run_of(**changes)
    steps, stages = config.steps, changes["mixture__stages"]
    records, following = records_of(config, stream, steps, every)
    rows = audit.build_mixture_rows(config, stream, records)
    totals = config_lib.compute_sequence_totals(config)
    language_SB = np.stack([stream.batch(step).language_B for step in range(steps)])
    pool_SB = np.array(stream.pools)[language_SB]
    for g, tag in enumerate(config.tags):
        mine = [row for row in rows if row["language"] == tag]
        assert 1 <= len(mine) <= 26
        assert (mine[0]["first_step"], mine[-1]["last_step"]) == (0, steps)
        for row, after in itertools.pairwise(mine):
            assert row["first_step"] < row["last_step"] == after["first_step"]
        # Requested: the config's own sums; realised: the batches'.
        requested = sum(row["requested_sequences"] for row in mine)
        assert requested == pytest.approx(float(totals[tag]), abs=1e-4)
        requested = sum(row["requested_tokens"] for row in mine)
        assert requested == pytest.approx(float(totals[tag] * L), abs=1e-4)
        assert sum(row["cross_language_repeats"] for row in mine) == following.repeats_G[g]
        used = 0
        for row in mine:
            window = range(row["first_step"], row["last_step"])
            asked = fractions.Fraction(0)
            ratios = []
            for step in window:
                ratio = next(r for first, r in reversed(stages) if first <= step)
                asked += fractions.Fraction(ratio[tag] * config.batch_size, sum(ratio.values()))
                if step == row["first_step"] or step in dict(stages):
                    ratios.append(str(ratio[tag]))
            assert row["ratio"] == ", then ".join(ratios)
            assert row["requested_sequences"] == pytest.approx(float(asked), abs=1e-5)
            assert row["requested_tokens"] == pytest.approx(float(asked * L), abs=1e-5)
            seen = np.count_nonzero(language_SB[window] == g)
            used += np.count_nonzero(pool_SB[window] == row["pool"])
            assert (row["realised_sequences"], row["realised_tokens"]) == (seen, seen * L)
            assert row["pool"] == changes["sources_of"][g]
            windows = stream.windows.get(row["pool"], 0)  # none where it is never drawn from
            assert row["pool_windows"] == windows
            assert row["pool_epochs"] == pytest.approx(used / max(1, windows), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 24, 25, 26, 27, 49, 50, 51, 99, 1000])
def test_a_long_run_has_few_rows_and_all_but_the_last_cover_as_many_steps(count):
    config, stream = run_of(steps=count, windows=12_000)
    records = [
        {"step": step, "train/tokens/l0": 6 * L * step, "train/tokens/l1": 2 * L * step}
        for step in range(1, count + 1)
    ]
    rows = [r for r in audit.build_mixture_rows(config, stream, records) if r["language"] == "l0"]
    lengths = [row["last_step"] - row["first_step"] for row in rows]
    assert sum(lengths) == count and len(rows) <= 26 and len(rows) >= min(count, 13)
    assert len(set(lengths[:-1])) <= 1 and lengths[-1] <= lengths[0]
    assert all(row["requested_sequences"] == row["realised_sequences"] for row in rows)


def test_a_save_works_out_the_stretches_that_are_new(monkeypatch):
    config, stream = run_of(steps=300, windows=12_000)
    table, asked = audit.MixtureTable(config, stream), []
    requested = stream.requested
    monkeypatch.setattr(stream, "requested", lambda step: asked.append(step) or requested(step))
    for step in range(1, 301):
        table.add(step, {"train/tokens/l0": 6 * L * step, "train/tokens/l1": 2 * L * step})
        if step % 10 == 0:
            rows = table.build_rows()
    assert len(asked) < 2 * 30 * 10  # of 2 a stretch, 30 saves and about 19 stretches in each
    again = audit.MixtureTable(config, stream)
    for step in range(1, 301):
        again.add(step, {"train/tokens/l0": 6 * L * step, "train/tokens/l1": 2 * L * step})
    assert rows == again.build_rows()


def test_realised_counts_are_those_of_the_devices_whatever_was_asked_for():
    config, stream = run_of()
    records = [
        {"step": 10, "train/tokens/l0": 7 * L, "train/tokens/l1": L},
        {"step": 20, "train/tokens/l0": 9 * L, "train/tokens/l1": 4 * L},
    ]
    rows = audit.build_mixture_rows(config, stream, records)
    assert [row["realised_sequences"] for row in rows] == [7, 1, 2, 3]
    assert [row["requested_sequences"] for row in rows] == [60, 20, 60, 20]
    assert all(type(row["requested_sequences"]) is int for row in rows)


def test_a_request_that_is_no_whole_number_is_shown_as_it_is():
    config, stream = run_of(batch_size=3, steps=1, mixture__ratio={"l0": 2, "l1": 5})
    record = {"step": 1, "train/tokens/l0": L, "train/tokens/l1": 2 * L}
    rows = audit.build_mixture_rows(config, stream, [record])
    assert [row["requested_sequences"] for row in rows] == [0.857143, 2.142857]


def test_a_run_without_records_of_what_it_was_trained_on_has_no_rows():
    config, stream = run_of()
    assert audit.build_mixture_rows(config, stream, []) == []
    only_one = [{"step": 5, "eval/loss/l0": 1.0}, {"step": 5, "train/tokens/l0": 3}]
    assert audit.build_mixture_rows(config, stream, only_one) == []
