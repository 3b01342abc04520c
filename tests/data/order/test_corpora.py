"""Behaviours of data/order/corpora.py: who gets which documents, and what is read of them.

A `Library`'s ids are the places that they lie at, so that a window shows which documents it
is made of.
"""

import collections
import pathlib

import numpy as np
import pytest
import scipy.stats
from helpers import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalance_jax import config as config_lib
from imbalance_jax.config import SyntheticConfig
from imbalance_jax.data import sources
from imbalance_jax.data.order import corpora, keyed_draws
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.data.sources import DOCUMENT
from imbalance_jax.data.text.synthetic import SyntheticSource

L, B = 16, 8  # of tiny_config
UNUSED = pathlib.Path("unused")
few = settings(max_examples=40, deadline=None)
ORDERS = pytest.mark.parametrize("order", ["shuffled", "sequential"])


class Library:
    """A source of documents with the ids and lengths that a test chooses."""

    def __init__(self, document_ids, lengths=None, first=0, name="en"):
        self.name, self.fingerprint = name, name
        lengths = lengths or [40] * len(document_ids)
        self._tokens = np.arange(first, first + sum(lengths), dtype=np.uint32)
        self._documents = np.empty(len(document_ids), DOCUMENT)
        self._documents["start"] = np.cumsum(lengths) - lengths
        self._documents["id"] = document_ids
        self._first = first

    def tokens(self, split):
        assert split == "train"
        return self._tokens

    def documents(self, split):
        return self._documents

    def ids_of(self, ids):
        """Returns the ids of the documents that ids of the text lie in."""
        number = np.searchsorted(self._documents["start"], ids - self._first, side="right") - 1
        return self._documents["id"][number]


FIRST = {"a": 0, "b": 10_000_000, "c": 20_000_000}


def libraries(ids):
    """Returns a library for each of several lists of documents' ids, by name."""
    return {
        name: Library(document_ids, first=FIRST[name], name=name)
        for name, document_ids in ids.items()
    }


def config_of(languages, ratio, *, sources_=None, **changes):
    """Returns a config; languages maps tags to sources, or to "=tag" for a clone of a tag."""
    config = config_lib.to_dict(tiny_config(UNUSED))
    named = sources_ or list(dict.fromkeys(n for n in languages.values() if n[0] != "="))
    config["sources"] = {name: {**config["sources"]["en"], "ids": "shared"} for name in named}
    config["languages"] = {
        tag: {"clone_of": name[1:]} if name[0] == "=" else {"source": name}
        for tag, name in languages.items()
    }
    config["mixture"]["ratio"] = dict(zip(languages, ratio, strict=True))
    for name, value in changes.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    return config_lib.resolve_config(config)


def kept(config, sources_):
    """Returns the ids of the documents of each language that has any sequence."""
    found = {}
    for tag, corpus in zip(config.tags, corpora.build_corpora(config, sources_), strict=True):
        if config_lib.compute_sequence_totals(config)[tag]:
            ids = corpus.source.documents("train")["id"]
            found[tag] = set(
                ids[slice(None) if corpus.chosen_n is None else corpus.chosen_n].tolist()
            )
    return found


def assert_in_proportion(counts, weights):
    """Counts of independent draws with these weights: within 99.99 % of all that could be."""
    for count, weight in zip(counts, weights, strict=True):
        low, high = scipy.stats.binom.interval(0.9999, sum(counts), weight / sum(weights))
        assert low <= count <= high


def seen(stream, steps):
    """Yields each language and the ids of each window that it is trained on."""
    for step in range(steps):
        batch = stream.batch(step)
        yield from zip(batch.language_B.tolist(), batch.ids_BW, strict=True)


# Reading


@st.composite
def parts(draw):
    """The lengths of documents, and which of them are chosen."""
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=25))
    chosen = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    return np.array(lengths), np.array(chosen)


@few
@given(parts(), st.data())
def test_joined_documents_are_read_as_if_copied_after_each_other(made, data):
    lengths, chosen = made
    starts = np.cumsum(lengths) - lengths
    tokens = np.random.default_rng(0).integers(0, 1000, lengths.sum()).astype(np.uint16)
    joined = corpora.JoinedDocuments(tokens, starts[chosen], lengths[chosen])
    pieces = [tokens[s : s + n] for s, n in zip(starts[chosen], lengths[chosen], strict=True)]
    copied = np.concatenate([np.zeros(0, np.uint16), *pieces])
    assert len(joined) == len(copied)
    if not len(copied):
        return
    W = data.draw(st.integers(1, len(copied)))
    every_start = np.arange(len(copied) - W + 1)
    found = joined.windows(every_start, W)
    assert found.dtype == tokens.dtype
    assert np.array_equal(found, copied[every_start[:, None] + np.arange(W)])


def test_a_text_is_read_as_slices_of_it():
    tokens = np.arange(50, dtype=np.uint16)
    found = corpora.TokenArray(tokens).windows(np.array([0, 33, 45]), 5)
    assert found.tolist() == [list(range(s, s + 5)) for s in (0, 33, 45)]
    assert found.dtype == np.uint16 and len(corpora.TokenArray(tokens)) == 50


@few
@given(parts().filter(lambda made: made[1].any()), st.integers(1, 40), st.data())
def test_queues_go_round_their_documents_for_ever(made, W, data):
    lengths, chosen = made
    starts = (np.cumsum(lengths) - lengths)[chosen]
    lengths = lengths[chosen] + 1  # a separator, so that no document is without a token
    starts = starts + np.arange(len(starts))
    rows = data.draw(st.integers(1, len(lengths)))
    tokens = np.arange(starts[-1] + lengths[-1] + 3)
    queues = corpora.DocumentQueues(tokens, starts, lengths, rows)
    # The fewest tokens first, separators not counted.
    held, endless = [0] * rows, [[] for _ in range(rows)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        fewest = held.index(min(held))
        held[fewest] += length - 1
        endless[fewest] += range(start, start + length)
    assert queues.length_B.tolist() == [len(queue) for queue in endless]
    for row in range(rows):
        starts_n = data.draw(st.lists(st.integers(0, 200), min_size=1, max_size=5))
        expected = [
            [endless[row][(start + i) % len(endless[row])] for i in range(W)] for start in starts_n
        ]
        row_n = np.full(len(starts_n), row)
        assert queues.windows(row_n, np.array(starts_n), W).tolist() == expected


def test_queues_for_more_rows_than_documents_are_refused():
    with pytest.raises(corpora.TooFewDocuments, match="has 2 documents"):
        corpora.DocumentQueues(np.arange(20), np.array([0, 10]), np.array([10, 10]), 3)


# A document for each clone

CLONES = {"en1": "en", "en2": "=en1", "en3": "=en1"}
IDS = keyed_draws.draw_bits(99, np.arange(4000)).tolist()  # hashes, as documents have


def by_document(ratio=(6, 3, 1), n=4000, **changes):
    return config_of(CLONES, ratio, mixture__switch="document", **changes), {"en": Library(IDS[:n])}


def test_a_document_belongs_to_exactly_one_of_the_clones_of_its_text():
    found = kept(*by_document())
    assert sum(map(len, found.values())) == len(IDS)
    assert set.union(*found.values()) == set(IDS)


@pytest.mark.parametrize("ratio", [(6, 3, 1), (1, 1, 1), (1, 97, 2), (0, 1, 1), (1, 0, 3)])
def test_clones_get_documents_in_proportion_to_their_sequences(ratio):
    found = kept(*by_document(ratio))
    assert_in_proportion([len(mine) for mine in found.values()], [part for part in ratio if part])


def test_with_stages_clones_get_documents_in_proportion_to_the_whole_run_s_sequences():
    stages = (
        (0, {"en1": 1, "en2": 0, "en3": 0}),  # of 100 steps, 50, 0, 0
        (50, {"en1": 0, "en2": 4, "en3": 1}),  # 0, 24, 6
        (80, {"en1": 1, "en2": 0, "en3": 1}),  # 10, 0, 10
    )
    found = kept(*by_document(steps=100, mixture__stages=stages))
    assert_in_proportion([len(mine) for mine in found.values()], [60, 24, 16])


@ORDERS
def test_text_never_changes_language_inside_a_document(order):
    config, sources_ = by_document(n=300, mixture__order=order, mixture__reuse="any")
    mine = list(kept(config, sources_).values())
    stream = Stream(config, sources_)
    counts = collections.Counter()
    for g, ids_W in seen(stream, 20):
        documents = sources_["en"].ids_of(ids_W).tolist()
        assert set(documents) <= mine[g]
        counts[g] += len(set(documents)) > 1
    assert all(counts[g] for g in range(3))  # windows go on into the language's next document


def test_clones_by_document_have_a_pool_each_and_run_dry_by_themselves():
    config, sources_ = by_document((1, 1, 2), n=300, steps=30)
    stream = Stream(config, sources_)
    assert stream.pools == ["en/en1", "en/en2", "en/en3"]
    for tag, mine in kept(config, sources_).items():
        assert stream.windows[f"en/{tag}"] == (len(mine) * 40 - 1) // L
    assert stream.epochs()["en/en3"] == 120 / stream.windows["en/en3"]
    # A window of a text that is read again is in the same language as before.
    languages = collections.defaultdict(set)
    for g, ids_W in seen(Stream(*by_document((1, 1, 2), n=20, steps=30)), 30):
        languages[int(ids_W[0])].add(g)
    assert max(map(len, languages.values())) == 1


def test_which_clone_gets_a_document_does_not_depend_on_the_documents_around_it():
    whole, half = kept(*by_document()), kept(*by_document(n=2000))
    assert all(half[tag] == whole[tag] & set(IDS[:2000]) for tag in half)


@ORDERS
def test_a_clone_of_ratio_zero_leaves_all_documents_to_the_others_and_trains_on_none(order):
    config, sources_ = by_document((3, 0, 1), n=300, mixture__order=order, mixture__reuse="any")
    found = kept(config, sources_)
    assert found["en1"] | found["en3"] == set(IDS[:300]) and not found["en1"] & found["en3"]
    counts = collections.Counter(g for g, _ in seen(Stream(config, sources_), 20))
    assert counts == {0: 120, 2: 40}


def test_a_single_language_of_a_source_has_all_of_its_documents():
    config = config_of(
        {"en": "en", "fr": "fr", "fr2": "=fr"}, (1, 1, 1), mixture__switch="document"
    )
    sources_ = {"en": Library(IDS[:100]), "fr": Library(IDS[:100], first=FIRST["b"], name="fr")}
    found = corpora.build_corpora(config, sources_)
    assert [corpus.pool for corpus in found] == ["en", "fr/fr", "fr/fr2"]
    assert found[0].chosen_n is None
    assert ((found[1].chosen_n.astype(int) + found[2].chosen_n) == 1).all()


def test_a_text_without_end_has_no_documents_to_give_out():
    config = config_of({"en1": "en", "en2": "=en1"}, (1, 1), mixture__switch="document")
    with pytest.raises(ValueError, match=r"config\.sources\.en\.synthetic\.tokens"):
        corpora.build_corpora(config, {"en": SyntheticSource("en", SyntheticConfig(lemmas=64))})


# A document for each source

TWO = {"a": "a", "b": "b"}
THREE = {"a": "a", "b": "b", "c": "c"}
# Documents 0 .. 1999 are in a, 1000 .. 2999 in b, and every third one up to 3600 in c.
OVERLAPPING = {
    "a": IDS[:2000],
    "b": IDS[1000:3000],
    "c": IDS[0:3600:3],
}


def apart(languages, ratio, **changes):
    names = [name for name in languages.values() if name[0] != "="]
    config = config_of(languages, ratio, mixture__content="disjoint", **changes)
    return config, libraries({name: OVERLAPPING[name] for name in names})


@pytest.mark.parametrize("languages", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize("parts_", [(1, 1, 1), (9, 1, 5), (1, 999, 30)])
def test_a_document_that_several_sources_have_is_kept_in_exactly_one(languages, parts_):
    ratio = parts_[: len(languages)]
    found = kept(*apart(languages, ratio))
    count = collections.Counter(id_ for mine in found.values() for id_ in mine)
    everything = set().union(*(OVERLAPPING[name] for name in languages))
    assert set(count) == everything and set(count.values()) == {1}
    for name in languages:
        others = set().union(*(OVERLAPPING[other] for other in languages if other != name))
        alone = set(OVERLAPPING[name]) - others
        assert alone <= found[name] <= set(OVERLAPPING[name])


@pytest.mark.parametrize("parts_", [(1, 1, 1), (9, 1, 5), (1, 19, 3)])
def test_documents_of_the_same_sources_are_parted_in_proportion_to_their_sequences(parts_):
    found = kept(*apart(THREE, parts_))
    in_ = {name: set(ids) for name, ids in OVERLAPPING.items()}
    for names in ("ab", "ac", "bc", "abc"):
        of_these = set.intersection(*(in_[n] for n in names)).difference(
            *(in_[n] for n in in_ if n not in names)
        )
        assert len(of_these) > 100 or names == "ac"
        counts = [len(found[name] & of_these) for name in names]
        assert sum(counts) == len(of_these)
        assert_in_proportion(counts, [parts_["abc".index(name)] for name in names])


def test_a_source_of_clones_is_wanted_as_much_as_all_its_languages_together():
    languages = {"a": "a", "a2": "=a", "b": "b"}
    found = kept(*apart(languages, (1, 2, 1)))
    assert found["a"] == found["a2"]
    both = set(OVERLAPPING["a"]) & set(OVERLAPPING["b"])
    assert_in_proportion([len(found["a"] & both), len(found["b"] & both)], [3, 1])


def test_with_stages_sources_get_documents_in_proportion_to_the_whole_run_s_sequences():
    stages = ((0, {"a": 1, "b": 0}), (10, {"a": 0, "b": 1}), (90, {"a": 1, "b": 1}))
    found = kept(*apart(TWO, (1, 1), steps=100, mixture__stages=stages))
    both = set(OVERLAPPING["a"]) & set(OVERLAPPING["b"])
    assert_in_proportion([len(found["a"] & both), len(found["b"] & both)], [15, 85])


@ORDERS
def test_a_language_of_ratio_zero_leaves_its_documents_to_the_others(order):
    config, sources_ = apart(THREE, (3, 0, 1), mixture__order=order)
    found = kept(config, sources_)
    assert found["a"] | found["c"] == set(OVERLAPPING["a"]) | set(OVERLAPPING["c"])
    assert not found["a"] & found["c"]
    counts = collections.Counter(g for g, _ in seen(Stream(config, sources_), 20))
    assert counts == {0: 120, 2: 40}


@ORDERS
def test_with_disjoint_content_no_document_is_seen_in_two_languages(order):
    config, sources_ = apart(THREE, (2, 1, 1), steps=30, mixture__order=order, mixture__reuse="any")
    seen_in = collections.defaultdict(set)
    for g, ids_W in seen(Stream(config, sources_), 30):
        for id_ in sources_["abc"[g]].ids_of(ids_W).tolist():
            seen_in[id_].add(g)
    assert max(map(len, seen_in.values())) == 1
    shared = config_of(THREE, (2, 1, 1), steps=200)
    counts = collections.Counter()
    for g, ids_W in seen(Stream(shared, sources_), 200):
        counts.update({(g, id_) for id_ in sources_["abc"[g]].ids_of(ids_W).tolist()})
    ids = [id_ for _, id_ in counts]
    assert len(ids) > len(set(ids))  # as by default some are


def test_who_keeps_a_document_does_not_depend_on_how_the_config_orders_anything():
    forwards, sources_ = apart(THREE, (5, 2, 1))
    backwards = config_of(
        dict(reversed(THREE.items())),
        (1, 2, 5),
        sources_=["c", "b", "a"],
        mixture__content="disjoint",
    )
    assert kept(forwards, sources_) == kept(backwards, dict(reversed(sources_.items())))


@pytest.mark.parametrize("field", ["switch", "content"])
def test_another_seed_is_another_choice_of_documents(field):
    def choice(**changes):
        if field == "switch":
            return kept(*by_document(**changes))
        return kept(*apart(THREE, (1, 1, 1), **changes))

    assert choice(seed=1) == choice(seed=1) == choice(seed=2, mixture__seed=1)
    assert choice(seed=1) != choice(seed=2)
    # The ratio alone decides how many, not how the run is cut into batches.
    assert choice(seed=1, steps=77, batch_size=4) == choice(seed=1)


def test_one_source_has_nothing_to_part():
    config = config_of({"en1": "en", "en2": "=en1"}, (1, 1), mixture__content="disjoint")
    found = corpora.build_corpora(config, {"en": Library(IDS[:100])})
    assert [corpus.chosen_n for corpus in found] == [None, None]
    assert [corpus.pool for corpus in found] == ["en", "en"]


def test_documents_of_the_same_id_in_one_source_stay_together():
    sources_ = libraries({"a": IDS[:50] * 2, "b": IDS[:50]})
    config = config_of(TWO, (1, 1), mixture__content="disjoint")
    first, second = corpora.build_corpora(config, sources_)
    assert np.array_equal(first.chosen_n[:50], first.chosen_n[50:])
    assert np.array_equal(first.chosen_n[:50], ~second.chosen_n)


# Both together


def test_a_document_goes_to_one_source_and_there_to_one_of_its_clones():
    languages = {"a": "a", "a2": "=a", "b": "b", "b2": "=b"}
    ratio = (3, 1, 2, 2)
    config, sources_ = apart(languages, ratio, mixture__switch="document")
    found = kept(config, sources_)
    count = collections.Counter(id_ for mine in found.values() for id_ in mine)
    assert set(count) == set(OVERLAPPING["a"]) | set(OVERLAPPING["b"])
    assert set(count.values()) == {1}
    both = set(OVERLAPPING["a"]) & set(OVERLAPPING["b"])
    # Which source and which clone are drawn apart from each other.
    assert_in_proportion([len(found[tag] & both) for tag in languages], ratio)
    seen_in = collections.defaultdict(set)
    for g, ids_W in seen(Stream(config, sources_), 20):
        for id_ in sources_["aabb"[g]].ids_of(ids_W).tolist():
            seen_in[id_].add(g)
    assert max(map(len, seen_in.values())) == 1


@few
@given(st.data())
def test_any_documents_of_any_sources_are_parted_without_one_lost_or_in_two(data):
    number = st.integers(0, 30)
    ids = {name: data.draw(st.lists(number, min_size=1, max_size=25)) for name in "abc"}
    tags = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=5))
    languages = {
        f"l{i}": f"=l{tags.index(name)}" if tags.index(name) < i else name
        for i, name in enumerate(tags)
    }
    ratio = data.draw(
        st.lists(st.integers(0, 3), min_size=len(tags), max_size=len(tags)).filter(any)
    )
    config = config_of(
        languages,
        ratio,
        sources_=list("abc"),
        mixture__content="disjoint",
        mixture__switch="document",
        seed=data.draw(number),
    )
    found = kept(config, libraries(ids))
    count = collections.Counter(id_ for mine in found.values() for id_ in mine)
    assert set(count) == set().union(*(ids[tags[int(tag[1:])]] for tag in found))
    assert set(count.values()) == {1}


# The share of documents that others have too


@pytest.fixture(scope="module")
def prepared(english, tmp_path_factory):
    """Prepared sources with ids that a test chooses, written as any source is."""
    path = tmp_path_factory.mktemp("prepared")
    model = (english.path / "tokenizer.model").read_bytes()

    def make(name, ids):
        documents = [("train", str(id_), np.array([300, 2]), 7) for id_ in ids]
        # Held-out documents are no part of it.
        documents.append(("test", "0", np.array([300, 2]), 7))
        sources.write_source(
            path / name, name=name, text="f" * 16, tokenizer=model, documents=documents
        )
        return sources.open_source(name, path / name, path / "cache")

    return {
        "a": make("a", range(1, 11)),
        "b": make("b", range(6, 26)),
        "c": make("c", [6, 7, 8, 30]),
    }


def test_shared_documents_are_those_whose_id_any_other_source_has(prepared):
    assert corpora.measure_shared_documents(config_of(TWO, (1, 1)), prepared) == {
        "a": 0.5,
        "b": 0.25,
    }
    three = corpora.measure_shared_documents(config_of(THREE, (1, 1, 1)), prepared)
    assert three == {"a": 0.5, "b": 0.25, "c": 0.75}


def own_ids(config, *names):
    """Returns a config in which the ids of some sources mean something in these only."""
    plain = config_lib.to_dict(config)
    for name in names:
        plain["sources"][name]["ids"] = "own"
    return config_lib.resolve_config(plain)


def test_an_id_counts_in_another_source_only_where_both_say_so(prepared):
    config = config_of(THREE, (1, 1, 1), mixture__content="disjoint")
    own = own_ids(config, "c")
    assert corpora.measure_shared_documents(own, prepared) == {"a": 0.5, "b": 0.25, "c": 0.0}
    assert corpora.measure_equal_ids(own, prepared) == {"a": 0.3, "b": 0.15, "c": 0.75}
    assert corpora.measure_equal_ids(config, prepared) == dict.fromkeys("abc", 0.0)
    found = corpora.build_corpora(own, prepared)
    assert found[2].chosen_n is None
    two = corpora.build_corpora(config_of(TWO, (1, 1), mixture__content="disjoint"), prepared)
    assert all(np.array_equal(a.chosen_n, b.chosen_n) for a, b in zip(two, found, strict=False))
    alone = corpora.build_corpora(own_ids(config, "a", "b"), prepared)
    assert [corpus.chosen_n for corpus in alone] == [None] * 3


def test_the_share_of_documents_that_disjoint_content_takes_away_is_said(prepared):
    config = config_of(TWO, (1, 1), mixture__content="disjoint")
    parted = corpora.build_corpora(config, prepared)
    taken = corpora.measure_taken_documents(parted)
    # Five documents of each are in both, and are kept by one of the two.
    assert taken["a"] * 10 + taken["b"] * 20 == pytest.approx(5)
    said = "\n".join(corpora.describe_documents(config, prepared, taken))
    assert "50.0% of the documents of a are in another source too (content disjoint)" in said
    assert f"content=disjoint takes {taken['b']:.1%} of the documents of b AWAY" in said
    own = own_ids(config, "b")
    nothing = corpora.measure_taken_documents(corpora.build_corpora(own, prepared))
    said = "\n".join(corpora.describe_documents(own, prepared, nothing))
    assert nothing == {} and "content=disjoint takes NOTHING away" in said
    assert "0.0% of the documents of a are in another source too" in said
    assert "50.0% of the documents of a have an id that another source has too" in said
    # Of ids that mean nothing in another source nothing is said to be in both.
    assert "of the documents of b are in another source too" not in said


def test_only_sources_with_a_table_of_documents_share_any(prepared):
    alone = config_of({"a": "a", "a2": "=a"}, (1, 1))
    assert corpora.measure_shared_documents(alone, prepared) == {}
    endless = SyntheticSource("b", SyntheticConfig(lemmas=64))
    assert corpora.measure_shared_documents(config_of(TWO, (1, 1)), prepared | {"b": endless}) == {}


def test_of_very_many_documents_no_share_is_found_as_that_would_hold_up_a_start(
    prepared, monkeypatch
):
    monkeypatch.setattr(corpora, "_COMPARED", 30)  # of a and b together
    assert corpora.measure_shared_documents(config_of(TWO, (1, 1)), prepared) == {
        "a": 0.5,
        "b": 0.25,
    }
    monkeypatch.setattr(corpora, "_COMPARED", 29)
    assert corpora.measure_shared_documents(config_of(TWO, (1, 1)), prepared) == {}


def test_documents_of_prepared_sources_are_parted_by_their_ids(prepared):
    config = config_of(TWO, (1, 1), mixture__content="disjoint")
    first, second = corpora.build_corpora(config, prepared)
    assert first.chosen_n[:5].all() and second.chosen_n[5:].all()
    assert np.array_equal(first.chosen_n[5:], ~second.chosen_n[:5])
