"""Behaviours of order=sequential, held against the reference study's loader written out slowly.

Nothing of `Books` is shared with the program: queues are lists of documents, a row's reader
is a generator that never ends, and a step takes one id after the other.
"""

import pathlib

import numpy as np
import pytest
from helpers import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalance_jax import config as config_lib
from imbalance_jax.config import SyntheticConfig
from imbalance_jax.data.order import keyed_draws, mixture, sequential
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.data.sources import DOCUMENT
from imbalance_jax.data.text.synthetic import SyntheticSource

L, B = 16, 8  # of tiny_config
SEPARATOR = 2
few = settings(max_examples=40, deadline=None)
UNUSED = pathlib.Path("unused")


class Books:
    """A source of documents, given as lists of ids without separators."""

    def __init__(self, documents, name="a"):
        self.documents_, self.name = documents, name
        self.fingerprint = name
        self._tokens = np.array([t for d in documents for t in [*d, SEPARATOR]], np.uint32)

    def tokens(self, split):
        return self._tokens

    def documents(self, split):
        lengths = [len(document) + 1 for document in self.documents_]
        starts = np.cumsum(lengths) - lengths
        return np.array([(start, n, 0) for n, start in enumerate(starts)], DOCUMENT)


def books(lengths, first=10, name="a"):
    """Returns documents whose ids are all different."""
    ends = first + np.cumsum(lengths)
    return Books(
        [list(range(end - length, end)) for length, end in zip(lengths, ends, strict=True)], name
    )


def some_lengths(n, seed=0):
    return np.random.default_rng(seed).integers(1, 90, n).tolist()


class SlowLoader:
    """SPEC 2.4 and 2.6, word for word."""

    def __init__(self, documents, rows):
        self.queues = [[] for _ in range(rows)]
        held = [0] * rows
        for document in documents:
            fewest = held.index(min(held))  # the first one on ties
            self.queues[fewest].append(document)
            held[fewest] += len(document)
        self.taken = [0] * rows  # ids that a row was given, the first of the next too
        self._rows = [self._reader(row) for row in range(rows)]
        self._next = [next(reader) for reader in self._rows]

    def _reader(self, row):
        while True:
            for document in self.queues[row]:
                yield from document
                yield SEPARATOR

    def take(self, row):
        """Returns 513 ids of a row, where L is 512, and goes on by 512."""
        ids = [self._next[row], *(next(self._rows[row]) for _ in range(L))]
        self._next[row] = ids[-1]
        self.taken[row] += L
        return ids

    def wrapped(self):
        """Whether a row was given an id of its queue a second time."""
        lengths = [sum(len(d) + 1 for d in queue) for queue in self.queues]
        return any(t + 1 > n for t, n in zip(self.taken, lengths, strict=True) if t)


def stream_of(sources_of, sources, **changes):
    """Returns a stream in sequence; the languages of a source are clones of its first one."""
    config = config_lib.to_dict(
        tiny_config(UNUSED, mixture__order="sequential", mixture__reuse="any")
    )
    config["sources"] = {name: config["sources"]["en"] for name in sources}
    config["languages"] = {}
    for g, name in enumerate(sources_of):
        parent = sources_of.index(name)
        origin = {"source": name} if parent == g else {"clone_of": f"l{parent}"}
        config["languages"][f"l{g}"] = origin
    config["mixture"]["ratio"] = {tag: 3 if tag == "l0" else 1 for tag in config["languages"]}
    for name, value in changes.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    return Stream(config_lib.resolve_config(config), sources)


def slow_batches(stream, sources_of, sources, steps):
    """Yields what every row should hold at each step, given the languages drawn for it."""
    rows = len(stream.batch(0).language_B)
    loaders = {name: SlowLoader(source.documents_, rows) for name, source in sources.items()}
    for step in range(steps):
        languages = stream.batch(step).language_B.tolist()
        yield [loaders[sources_of[g]].take(row) for row, g in enumerate(languages)]


def check(stream, sources_of, sources, steps):
    expected = list(slow_batches(stream, sources_of, sources, steps))
    # Backwards: no batch depends on those that were asked for before.
    for step in reversed(range(steps)):
        assert stream.batch(step).ids_BW.tolist() == expected[step]


STAGES = ((0, {"l0": 1, "l1": 0}), (40, {"l0": 1, "l1": 4}), (90, {"l0": 0, "l1": 1}))
CASES = {
    "one language": (["a"], {}),
    "clones": (["a", "a"], {}),
    "three clones": (["a", "a", "a"], {}),
    "two sources": (["a", "b"], {}),
    "two sources and clones of both": (["a", "b", "a", "b"], {}),
    "clones in stages": (["a", "a"], {"mixture__stages": STAGES}),
    "sources in stages": (["a", "b"], {"mixture__stages": STAGES}),
    "a language of no sequence": (["a", "b"], {"mixture__ratio": {"l0": 1, "l1": 0}}),
}
BOTH = pytest.mark.parametrize("sampler", ["exact", "bernoulli"])


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_every_row_reads_what_the_reference_s_loader_gives_it_over_several_epochs(case, sampler):
    sources_of, changes = CASES[case]
    sources = {
        name: books(some_lengths(11 + 9 * i, seed=i), 10 + 100_000 * i, name)
        for i, name in enumerate(dict.fromkeys(sources_of))
    }
    # 300 steps: past the places where counts are kept.
    stream = stream_of(sources_of, sources, steps=300, mixture__sampler=sampler, **changes)
    assert max(stream.epochs().values()) > 3
    check(stream, sources_of, sources, 300)


@st.composite
def libraries(draw):
    """Rows, documents of at least one source for them, and the languages that read them."""
    rows = draw(st.integers(1, 6))
    length = st.one_of(st.integers(1, 12), st.integers(1, 120))
    names = draw(st.sampled_from(["a", "ab", "abc"]))
    sources = {
        name: books(draw(st.lists(length, min_size=rows, max_size=20)), 10 + 100_000 * i, name)
        for i, name in enumerate(names)
    }
    sources_of = draw(st.permutations([*names, *draw(st.sampled_from(["", "a", "aa"]))]))
    return rows, sources, sources_of


def changes_of(rows, data):
    return {
        "batch_size": rows,
        "steps": 40,
        "seed": data.draw(st.integers(0, 1000)),
        "mixture__sampler": data.draw(st.sampled_from(["exact", "bernoulli"])),
    }


def long_enough(sources):
    """Whether every source has a window; shorter ones are refused."""
    return all(len(source.tokens("train")) >= L + 1 for source in sources.values())


@few
@given(libraries().filter(lambda made: long_enough(made[1])), st.data())
def test_any_library_is_read_as_the_reference_s_loader_reads_it(made, data):
    rows, sources, sources_of = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential, "_CHUNK", data.draw(st.sampled_from([1, 2, 7, 128])))
        patch.setattr(sequential, "_MOST", data.draw(st.sampled_from([1, 2, 3, 1024])))
        check(stream_of(sources_of, sources, **changes_of(rows, data)), sources_of, sources, 40)


@few
@given(libraries().filter(lambda made: long_enough(made[1])), st.data())
def test_the_dry_step_is_the_first_that_gives_a_row_an_id_a_second_time(made, data):
    rows, sources, sources_of = made
    stream = stream_of(sources_of, sources, **changes_of(rows, data))
    loaders = {name: SlowLoader(source.documents_, rows) for name, source in sources.items()}
    expected = {}
    for step in range(40):
        for row, g in enumerate(stream.batch(step).language_B.tolist()):
            loaders[sources_of[g]].take(row)
        for name, loader in loaders.items():
            if loader.wrapped():
                expected.setdefault(name, step)
    assert stream.dry_steps() == expected


def test_separators_stand_after_each_document_and_where_a_queue_begins_again():
    source = Books([[10, 11, 12], [20] * 40])
    stream = stream_of(["a"], {"a": source}, batch_size=1, steps=4)
    endless = [10, 11, 12, SEPARATOR, *[20] * 40, SEPARATOR] * 3
    for step in range(4):
        assert stream.batch(step).ids_BW.tolist() == [endless[step * L : (step + 1) * L + 1]]


def test_a_queue_shorter_than_a_window_begins_again_inside_it():
    source = Books([[10, 11], list(range(100, 200))])
    stream = stream_of(["a"], {"a": source}, batch_size=2, steps=3)
    short = [10, 11, SEPARATOR] * 20
    for step in range(3):
        first, second = stream.batch(step).ids_BW.tolist()
        assert first == short[step * L : (step + 1) * L + 1]
        assert second == list(range(100 + step * L, 100 + (step + 1) * L + 1))
    assert stream.dry_steps() == {"a": 0}


def test_a_text_of_exactly_one_window_can_be_read():
    source = Books([list(range(10, 10 + L - 1))])  # L ids with the separator
    stream = stream_of(["a"], {"a": source}, batch_size=1, steps=2)
    assert stream.batch(0).ids_BW.tolist() == [[*range(10, 10 + L - 1), SEPARATOR, 10]]


def test_a_row_goes_on_in_its_document_from_step_to_step_whatever_its_language():
    lengths = [200] * B
    stream = stream_of(["a", "a"], {"a": books(lengths)}, steps=10)
    for step in range(9):
        now, after = stream.batch(step), stream.batch(step + 1)
        assert (now.language_B != after.language_B).any()
        assert np.array_equal(now.ids_BW[:, -1], after.ids_BW[:, 0])


@BOTH
def test_the_languages_drawn_are_those_of_the_shuffled_order(sampler):
    sources = {"a": books(some_lengths(40)), "b": books(some_lengths(40), 90_000)}
    streams = [
        stream_of(["a", "b"], sources, mixture__order=order, mixture__sampler=sampler)
        for order in ("sequential", "shuffled")
    ]
    for step in range(20):
        ours, theirs = (stream.batch(step).language_B.tolist() for stream in streams)
        assert ours == theirs


def test_documents_that_were_parted_between_clones_are_read_from_queues_of_their_own():
    source = books(some_lengths(60))
    stream = stream_of(["a", "a"], {"a": source}, steps=60, mixture__switch="document")
    bits = keyed_draws.draw_bits(
        keyed_draws.derive_key(0, "switch"), np.arange(60, dtype=np.uint64)
    )
    second = bits >= 3 << 62  # a quarter of all draws, for a ratio of 3 to 1
    parts = {
        name: Books([d for d, g in zip(source.documents_, second, strict=True) if g == is_second])
        for name, is_second in (("first", False), ("second", True))
    }
    check(stream, ["first", "second"], parts, 60)


# When a queue ends


def test_epochs_count_the_windows_of_all_queues():
    lengths = [5 * L - 1] * B  # with its separator, five windows in each queue
    stream = stream_of(["a", "a"], {"a": books(lengths)}, steps=20)
    assert stream.windows == {"a": 5 * B}
    assert stream.epochs() == {"a": 4.0}
    # The last target of a queue's fifth window is its first id again.
    assert stream.dry_steps() == {"a": 4}
    longer = stream_of(["a", "a"], {"a": books([5 * L] * B)}, steps=20)
    assert longer.dry_steps() == {"a": 5}


def test_sources_run_dry_by_themselves():
    sources = {"a": books([300] * B), "b": books([40] * B, 90_000)}
    stream = stream_of(["a", "b"], sources, steps=20)
    taken = np.zeros(B, int)
    for step in range(20):
        taken += stream.batch(step).language_B == 1
        if (taken * L + 1 > 41).any():
            break
    assert stream.dry_steps()["b"] == step
    assert stream.dry_steps().get("a", 20) > step


def test_clones_that_would_read_a_queue_again_are_refused_by_step_and_field():
    sources = {"a": books([100] * B)}
    message = r"source a ends at step 6, .*config\.mixture\.reuse='any'"
    with pytest.raises(ValueError, match=message):
        stream_of(["a", "a"], sources, steps=7, mixture__reuse="same_language")
    assert stream_of(["a", "a"], sources, steps=6, mixture__reuse="same_language").steps == 6
    # One language of its own comes back to what it saw itself.
    assert stream_of(["a"], sources, steps=7, mixture__reuse="same_language").steps == 7
    both = {"a": books([100] * B), "b": books([100] * B, 90_000)}
    assert stream_of(["a", "b"], both, steps=70, mixture__reuse="same_language").steps == 70


def test_a_language_may_read_a_queue_again_whose_clones_have_no_sequence():
    alone = {"mixture__reuse": "same_language", "mixture__ratio": {"l0": 1, "l1": 0}}
    assert stream_of(["a", "a"], {"a": books([100] * B)}, steps=20, **alone).steps == 20


def test_on_exhaustion_stop_ends_the_run_before_a_queue_begins_again():
    sources = {"a": books([100] * B), "b": books([90] * B, 90_000)}
    stop = {"steps": 40, "mixture__on_exhaustion": "stop", "mixture__reuse": "same_language"}
    assert stream_of(["a", "a"], sources, **stop).steps == 6
    stream = stream_of(["a", "b"], sources, **stop)
    assert 5 < stream.steps < 12
    targets = np.concatenate([stream.batch(s).ids_BW[:, 1:].ravel() for s in range(stream.steps)])
    targets = targets[targets != SEPARATOR]
    assert len(np.unique(targets)) == len(targets)


def test_on_exhaustion_error_names_the_source_and_the_step():
    error = {"mixture__on_exhaustion": "error", "mixture__reuse": "forbid"}
    with pytest.raises(ValueError, match=r"Source a is used up at step 6 .*config\.steps=6"):
        stream_of(["a"], {"a": books([100] * B)}, **error)


def test_fewer_documents_than_rows_are_refused_with_both_numbers():
    with pytest.raises(
        ValueError, match=r"config\.sources\.a has 7 documents, .*config\.batch_size=8"
    ):
        stream_of(["a"], {"a": books([100] * 7)})
    assert stream_of(["a"], {"a": books([100] * 8)}).steps == 20


def test_text_of_fewer_ids_than_a_window_is_refused():
    with pytest.raises(ValueError, match=rf"config\.sources\.a has 14 tokens .*model\.L={L}"):
        stream_of(["a"], {"a": books([6, 6])}, batch_size=2)


def test_text_without_end_has_no_documents_to_make_queues_of():
    endless = SyntheticSource("a", SyntheticConfig(lemmas=64))
    with pytest.raises(ValueError, match=r"config\.sources\.a\.synthetic\.tokens"):
        stream_of(["a"], {"a": endless})


def test_no_more_counts_are_kept_of_a_longer_run(monkeypatch):
    monkeypatch.setattr(sequential, "_CHUNK", 2)
    monkeypatch.setattr(sequential, "_MOST", 4)
    mix = mixture.Mixture([(0, (2, 1))], seed=0)
    lengths = {name: np.full(8, 10**6) for name in "ab"}
    order = sequential.SequentialOrder(mix, pools=["a", "b"], lengths=lengths, L=16, reuse="any")
    far = order.at(8 * 500, 8)
    assert len(order._counts) <= 4
    seen = [order.at(8 * step, 8) for step in range(500)]  # in any order of asking
    for row in range(8):
        language = far[0][row]
        before = sum(language_B[row] == language for language_B, _ in seen)
        assert far[1][row] == before
