"""Behaviours of data/text/synthetic.py.

Text is held against a generator that makes one word at a time by recursion, and entropies
against the law of a whole sentence, worked out by going through all sentences there are.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import math
import types

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalance_jax.config import LanguageConfig, SyntheticConfig, VocabularyConfig
from imbalance_jax.data import languages, sources
from imbalance_jax.data.order.keyed_draws import derive_key, draw_bits
from imbalance_jax.data.text import synthetic, toy_languages
from imbalance_jax.data.text.documents import SPLITS
from imbalance_jax.data.text.synthetic import SyntheticSource
from imbalance_jax.data.text.toy_languages import SyntheticLanguage, World

few = settings(max_examples=30, deadline=None)

ORDERS = ("head_first", "head_middle", "head_last")
# The place of each node in a sentence of three levels, written out by hand.
NODES = {
    "head_first": [0, 1, 3, 4, 2, 5, 6],
    "head_middle": [3, 1, 4, 0, 5, 2, 6],
    "head_last": [3, 4, 1, 5, 6, 2, 0],
}
SMALL = SyntheticConfig(lemmas=24, topics=3)
CONFIGS = [
    SMALL,
    SyntheticConfig(),
    SyntheticConfig(world=5, language=3, lemmas=12, topics=4, depth=4, order="head_last"),
    SyntheticConfig(lemmas=15, topics=5, depth=2, zipf=2.5, order="head_middle", tokens=999),
    SyntheticConfig(lemmas=6, topics=6, depth=3),  # one lemma in each topic
    SyntheticConfig(lemmas=7, topics=1, depth=1, zipf=0.0),  # one topic, one word
]
changed = dataclasses.replace


# The slow way


@functools.cache
def weights(config):
    return [(rank + 1) ** -config.zipf for rank in range(config.lemmas // config.topics)]


@functools.cache
def selected(config, lemma, side):
    """The topic of a child: where a permutation that belongs to the parent's rank sends it."""
    topics = range(config.topics)
    first = lemma - lemma % config.topics
    key_ = derive_key("synthetic", config.world, "selects", side)
    return sorted(topics, key=lambda topic: int(draw_bits(key_, first + topic)))[
        lemma % config.topics
    ]


def slow_tree(config, split, number):
    """The lemmas of a sentence, node by node."""
    size = 2**config.depth - 1
    lemmas, total = [0] * size, sum(weights(config))

    def grow(node, topic):
        bits = int(
            draw_bits(derive_key("synthetic", config.world, "rank", split), number * size + node)
        )
        uniform, rank, end = (bits >> 11) / 2**53, 0, 0.0
        for rank, weight in enumerate(weights(config)):  # noqa: B007
            end += weight / total
            if uniform < end:
                break
        lemmas[node] = rank * config.topics + topic
        for child, side in ((2 * node + 1, "left"), (2 * node + 2, "right")):
            if child < size:
                grow(child, selected(config, lemmas[node], side))

    topic_key = derive_key("synthetic", config.world, "topic", split)
    grow(0, int(draw_bits(topic_key, number)) % config.topics)
    return lemmas


def said_in_order(config, tree, node=0):
    """A tree's lemmas in the order of words."""
    if node >= len(tree):
        return []
    left = said_in_order(config, tree, 2 * node + 1)
    right = said_in_order(config, tree, 2 * node + 2)
    if config.order == "head_first":
        return [tree[node], *left, *right]
    if config.order == "head_middle":
        return [*left, tree[node], *right]
    return [*left, *right, tree[node]]


def slow_sentence(config, split, number):
    lemmas = said_in_order(config, slow_tree(config, split, number))
    return [260 + lemma for lemma in lemmas] + [259]


def slow_document(config, split, number):
    sentences = (slow_sentence(config, split, 16 * number + i) for i in range(16))
    return [*itertools.chain.from_iterable(sentences), 2]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_text_is_documents_of_16_sentences_that_are_made_word_by_word(config, split):
    expected = slow_document(config, split, 0) + slow_document(config, split, 1)
    ids = SyntheticLanguage(config).ids(split, np.array([0]), len(expected))
    assert ids[0].tolist() == expected


@pytest.mark.parametrize("config", CONFIGS)
def test_a_document_far_out_in_the_text_is_made_without_those_before_it(config):
    language = SyntheticLanguage(config)
    number = 2**40 // language.document_length
    start = np.array([number * language.document_length])
    far = language.ids("train", start, language.document_length)
    assert far[0].tolist() == slow_document(config, "train", number)


@few
@given(st.sampled_from(CONFIGS), st.lists(st.integers(0, 2**40), max_size=5), st.data())
def test_a_window_anywhere_is_a_slice_of_any_longer_one(config, starts, data):
    language = SyntheticLanguage(config)
    W = data.draw(st.integers(0, 3 * language.document_length))
    before, after = data.draw(st.integers(0, 300)), data.draw(st.integers(0, 300))
    starts_n = np.array(starts, np.int64) + before
    windows = language.ids("train", starts_n, W)
    longer = language.ids("train", starts_n - before, before + W + after)
    assert windows.shape == (len(starts), W) and windows.dtype == np.uint16
    assert np.array_equal(windows, longer[:, before : before + W])


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_how_much_is_made_at_once_does_not_change_the_text(monkeypatch, chunk):
    language = SyntheticLanguage(SMALL)
    starts_n = np.array([0, 5, 128, 129, 2**39])
    expected = language.ids("test", starts_n, 700)
    monkeypatch.setattr(toy_languages, "CHUNK", chunk)
    assert np.array_equal(language.ids("test", starts_n, 700), expected)


def test_the_text_of_a_version_never_changes():
    config = SyntheticConfig(world=1, language=2, overlap=0.25, order="head_last")
    language = SyntheticLanguage(config)
    ids = language.ids("train", np.array([10**9]), 10_000).astype("<u2").tobytes()
    words = "\n".join(language.pieces()).encode()
    # Where this fails, prepared text and the records of runs are of another text: raise VERSION.
    assert synthetic.VERSION == 1
    assert hashlib.sha256(ids).hexdigest()[:16] == "03e6c198bf5371b3"
    assert hashlib.sha256(words).hexdigest()[:16] == "b6af61e03aefa0d4"


def test_more_words_than_16_bits_can_number_are_numbered_with_32():
    small, large = (SyntheticConfig(lemmas=n, topics=1) for n in (65_536 - 261, 65_536 - 260))
    assert (SyntheticLanguage(small).size, SyntheticLanguage(large).size) == (65_536, 65_537)
    assert (
        SyntheticLanguage(small).dtype == np.uint16 and SyntheticLanguage(large).dtype == np.uint32
    )
    ids = SyntheticLanguage(large).ids("train", np.array([0]), 129)
    assert ids.dtype == np.uint32 and ids[0].tolist() == slow_document(large, "train", 0)


# What is said


def trees(config, n, split="train"):
    return World(config).sentences(split, np.arange(n))


def test_ranks_are_drawn_by_zipf_and_the_topic_of_a_root_uniformly():
    for config in (SMALL, changed(SMALL, zipf=0.0), changed(SMALL, zipf=2.0, topics=8)):
        rank_Jn, topic_Jn = np.divmod(trees(config, 20_000), config.topics)
        expected = np.array(weights(config)) / sum(weights(config))
        for rank_n in rank_Jn:
            seen = np.bincount(rank_n, minlength=len(expected))
            # The keys are fixed, so this cannot fail by chance; a skew would be far below it.
            assert scipy.stats.chisquare(seen, expected * len(rank_n)).pvalue > 1e-3
        seen = np.bincount(topic_Jn[0], minlength=config.topics)
        assert scipy.stats.chisquare(seen).pvalue > 1e-3


def test_ranks_of_a_sentence_and_of_its_neighbours_are_independent():
    config = changed(SMALL, lemmas=9)
    rank_Jn = trees(config, 20_000) // 3
    pairs = [(rank_Jn[a], rank_Jn[b]) for a, b in itertools.combinations(range(7), 2)]
    pairs += [(rank_n[:-1], rank_n[1:]) for rank_n in rank_Jn]
    for first, second in pairs:
        table = np.bincount(3 * first + second, minlength=9).reshape(3, 3)
        # 28 tables: one of them is this unlikely in three of a hundred worlds.
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_a_child_has_the_topic_that_its_parent_selects_for_its_side():
    lemma_Jn = trees(SMALL, 3000)
    for side, offset in (("left", 1), ("right", 2)):
        found = collections.defaultdict(set)
        for parent in range(3):
            for lemma, child in zip(lemma_Jn[parent], lemma_Jn[2 * parent + offset], strict=True):
                found[int(lemma)].add(int(child) % 3)
        assert len(found) == 24
        assert found == {lemma: {selected(SMALL, lemma, side)} for lemma in range(24)}


def test_lemmas_of_a_rank_select_every_topic_once_and_each_rank_in_a_way_of_its_own():
    config = SyntheticConfig(lemmas=800, topics=8)
    selects_SRT = World(config).selects_SRT
    assert selects_SRT.shape == (2, 100, 8)
    assert (np.sort(selects_SRT, axis=2) == np.arange(8)).all()
    # 200 permutations out of 40,320: hardly any two are equal.
    assert len(np.unique(selects_SRT.reshape(200, 8), axis=0)) > 195
    for place in selects_SRT.reshape(200, 8).T:
        assert scipy.stats.chisquare(np.bincount(place, minlength=8)).pvalue > 1e-3


@pytest.mark.parametrize("rules", [1, 2, 8])
def test_with_so_many_rules_a_topic_chooses_the_next_in_so_many_ways(rules):
    config = changed(SMALL, rules=rules)  # of 3 topics and 8 ranks
    lemma_Jn = trees(config, 3000)
    ways = collections.defaultdict(set)
    for parent, child in zip(lemma_Jn[0], lemma_Jn[1], strict=True):
        ways[int(parent) % 3, int(parent) // 3 % rules].add(int(child) % 3)
    # The topic of a parent, and which of the rules its rank has, are all that it takes to tell.
    assert len(ways) == 3 * rules and all(len(topics) == 1 for topics in ways.values())
    # Every topic is still as frequent as any other, so that the entropy is as without.
    assert scipy.stats.chisquare(np.bincount(lemma_Jn[1] % 3)).pvalue > 1e-3
    assert synthetic.compute_language_entropy(config) == synthetic.compute_language_entropy(SMALL)


def test_as_many_rules_as_ranks_are_the_rules_of_text_without_the_dial():
    # Eight ranks take eight rules in turn: each has the one that it had.
    assert np.array_equal(trees(changed(SMALL, rules=8), 50), trees(SMALL, 50))


def test_a_dial_of_later_versions_leaves_text_of_earlier_ones_its_name():
    source = SyntheticSource("toy", SyntheticConfig(world=3, lemmas=64))
    # Of the version before the dial `rules`.
    assert source.fingerprint == "750b504fd44888db"
    assert source.language.document_id("test", 5) == "synthetic/36a3002ed05e412e/test/5"
    other = SyntheticSource("toy", SyntheticConfig(world=3, lemmas=64, rules=1))
    assert other.fingerprint != source.fingerprint
    assert other.language.document_id("test", 5) != source.language.document_id("test", 5)


def test_what_is_said_is_a_matter_of_the_world_and_not_of_the_language():
    said = trees(SMALL, 50)
    for change in (
        {"language": 4},
        {"tokens": 10_000},
        {"overlap": 0.5},
        {"shared_words": True},
        {"order": "head_last"},
    ):
        assert np.array_equal(trees(changed(SMALL, **change), 50), said), change
    for change in ({"world": 1}, {"lemmas": 27}, {"topics": 4}, {"zipf": 1.5}, {"rules": 1}):
        assert not np.array_equal(trees(changed(SMALL, **change), 50), said), change
    assert trees(changed(SMALL, depth=2), 50).shape == (3, 50)


def test_no_two_splits_have_text_in_common():
    said = [trees(SyntheticConfig(), 2000, split) for split in SPLITS]
    sentences = [set(map(tuple, lemma_Jn.T.tolist())) for lemma_Jn in said]
    assert all(len(found) > 1990 for found in sentences)
    for one, other in itertools.combinations(sentences, 2):
        assert len(one & other) <= 1  # seven frequent words may meet by chance


# How it is said


@pytest.mark.parametrize("order", ORDERS)
def test_words_are_in_the_order_that_is_written_down(order):
    assert SyntheticLanguage(changed(SMALL, order=order)).node_J.tolist() == NODES[order]
    assert SyntheticLanguage(changed(SMALL, order=order, depth=1)).node_J.tolist() == [0]


def words_of(config):
    return SyntheticLanguage(config).words()


@few
@given(
    st.integers(1, 9000),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 3),
)
def test_a_lexicon_has_one_word_for_each_lemma(lemmas, language, overlap, shared_words, world):
    config = SyntheticConfig(
        world=world,
        language=language,
        lemmas=lemmas,
        topics=1,
        overlap=overlap,
        shared_words=shared_words,
    )
    words = words_of(config)
    assert len(set(words)) == len(words) == lemmas
    assert all(word.isascii() and word.islower() and word.isalpha() for word in words)


@pytest.mark.parametrize("shared_words", [False, True])
@pytest.mark.parametrize("overlap", [0, 0.001, 0.1, 0.25, 1 / 3, 0.9, 0.999, 1])
def test_exactly_the_overlap_has_the_same_word_in_every_language(shared_words, overlap):
    config = changed(SMALL, lemmas=999, overlap=overlap, shared_words=shared_words)
    lexicons = [words_of(changed(config, language=n)) for n in (0, 1, 2, 17)]
    shared = set(SyntheticLanguage(config).shared().tolist())
    assert len(shared) == round(overlap * 999)
    if shared_words and len(shared) == 998:
        shared = set(range(999))  # a single word has no other to change places with
    for one, other in itertools.combinations(lexicons, 2):
        same = {n for n, pair in enumerate(zip(one, other, strict=True)) if pair[0] == pair[1]}
        assert same == shared


def test_a_smaller_overlap_is_part_of_every_larger_one_in_each_world():
    chosen = []
    for world in (0, 1):
        config = changed(SMALL, world=world)
        sets = [
            set(SyntheticLanguage(changed(config, overlap=o / 24)).shared().tolist())
            for o in range(25)
        ]
        assert [len(found) for found in sets] == list(range(25))
        assert all(one < other for one, other in itertools.pairwise(sets))
        words = [words_of(changed(config, overlap=o / 24)) for o in range(25)]
        for found, lexicon in zip(sets, words, strict=True):
            assert [lexicon[n] for n in found] == [words[-1][n] for n in found]
        chosen.append(sets[12])
    assert chosen[0] != chosen[1]


def test_words_outside_the_overlap_are_in_no_other_language_of_any_size():
    configs = [
        SyntheticConfig(language=language, lemmas=lemmas, topics=1, world=world)
        for language in (0, 1, 2, 15, 16, 17, 255, 256)
        for lemmas, world in ((30, 0), (9000, 1))
    ]
    common = set(words_of(SyntheticConfig(lemmas=9000, topics=1, overlap=1)))
    seen = collections.defaultdict(set)
    for config in configs:
        seen[config.language].update(words_of(config))
    assert all(not found & common for found in seen.values())
    assert len(set.union(*seen.values())) == sum(len(found) for found in seen.values())


def test_with_shared_words_languages_have_one_set_of_words_and_mean_other_things_by_them():
    config = changed(SMALL, lemmas=300, overlap=0.2, shared_words=True)
    common = words_of(changed(config, overlap=1))
    for language in range(4):
        words = words_of(changed(config, language=language))
        assert set(words) == set(common)
    # A false friend is as likely frequent as rare: its ranks in two languages say nothing of
    # each other.
    own = sorted(set(range(300)) - set(SyntheticLanguage(config).shared().tolist()))
    meant = [common.index(word) for word in words_of(changed(config, language=1))]
    correlation = scipy.stats.spearmanr(own, [meant[n] for n in own])
    assert correlation.pvalue > 1e-2


def tokenizer_of(config):
    return SyntheticSource("x", config).tokenizer


def read_back(config, text):
    """The lemma trees of sentences, from their text alone."""
    lemma_of = {word: lemma for lemma, word in enumerate(words_of(config))}
    found = []
    for sentence in text.split(".")[:-1]:
        tree = [0] * 7
        for node, word in zip(NODES[config.order], sentence.split(), strict=True):
            tree[node] = lemma_of[word]
        found.append(tree)
    return found


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shared_words", [False, True])
def test_texts_in_two_languages_are_translations_sentence_by_sentence(order, shared_words):
    first = changed(SMALL, overlap=0.25)
    second = changed(first, language=1, order=order, shared_words=shared_words, overlap=0.5)
    texts = []
    for config in (first, second):
        document = SyntheticLanguage(config).ids("train", np.array([129 * 7]), 128)[0]
        texts.append(tokenizer_of(config).decode(document.tolist()))
    assert texts[0] != texts[1]
    expected = [slow_tree(SMALL, "train", 16 * 7 + i) for i in range(16)]
    assert read_back(first, texts[0]) == expected
    assert read_back(second, texts[1]) == expected


# The tokenizer


@pytest.mark.parametrize(
    "config", [*CONFIGS, changed(SMALL, overlap=0.5), changed(SMALL, shared_words=True, language=9)]
)
def test_sentences_are_encoded_as_they_were_written(config):
    tokenizer = tokenizer_of(config)
    ids = SyntheticLanguage(config).sentences("test", np.arange(40)).reshape(-1).tolist()
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text) == ids
    assert text.startswith(" ") and text.count(".") == 40
    assert text.split(".")[0].split() == [words_of(config)[n - 260] for n in ids[: ids.index(259)]]


def test_the_first_ids_are_those_of_every_tokenizer_and_then_come_period_and_words():
    assert tokenizer_of(SMALL).separator == 2
    tokenizer = tokenizer_of(SMALL).processor
    strings = [tokenizer.id_to_piece(n) for n in range(tokenizer.get_piece_size())]
    assert (
        strings == SyntheticLanguage(SMALL).pieces()
        and len(strings) == SyntheticLanguage(SMALL).size
    )
    assert strings[:3] == ["<pad>", "<unk>", "<D>"]
    assert strings[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert strings[259:] == [".", *("\u2581" + word for word in words_of(SMALL)), "\u2581"]
    assert tokenizer.is_control(0) and tokenizer.is_unknown(1)
    assert (tokenizer.pad_id(), tokenizer.unk_id()) == (0, 1)
    assert tokenizer.bos_id() == tokenizer.eos_id() == -1
    assert all(tokenizer.is_byte(n) for n in range(3, 259))


@pytest.mark.parametrize("text", ["", " ", "two  spaces ", "naïve\n\t日本語 <pad>", ". . .", "x."])
def test_any_other_text_is_encoded_without_loss(text):
    tokenizer = tokenizer_of(SMALL)
    word = " " + words_of(SMALL)[3]
    ids = tokenizer.encode(text + word)
    assert tokenizer.decode(ids) == text + word and ids[-1] == 263
    assert not {0, 1, 2} & set(ids)


def test_the_same_config_makes_the_same_model_bytes():
    assert SyntheticLanguage(SMALL).model() == SyntheticLanguage(SMALL).model()


def test_in_a_merged_vocabulary_languages_share_the_rows_of_equal_words():
    configs = {n: changed(SMALL, language=n, overlap=0.25, order=ORDERS[n]) for n in (0, 1)}
    run = types.SimpleNamespace(
        tags=("a", "b"),
        languages={"a": LanguageConfig(source="a"), "b": LanguageConfig(source="b")},
        vocabulary=VocabularyConfig(layout="merged"),
        source_of=lambda tag: tag,
    )
    pieces = {tag: SyntheticSource(tag, configs[n]).pieces for n, tag in enumerate("ab")}
    merged = languages.build_vocabulary(run, pieces)
    assert merged.size == 261 + 24 + 18
    same_U = merged.map_GU[0] == merged.map_GU[1]
    shared = sorted(260 + lemma for lemma in SyntheticLanguage(configs[0]).shared())
    assert np.nonzero(~same_U)[0].tolist() == [n for n in range(260, 284) if n not in shared]


# Splits and documents


@pytest.mark.parametrize("config", [SMALL, changed(SMALL, depth=1), changed(SMALL, depth=5)])
def test_splits_hold_whole_documents_and_no_more_than_it_takes(config):
    source = SyntheticSource("en", changed(config, tokens=5000))
    length = 16 * 2**config.depth + 1
    for split, wanted in (("train", 5000), ("validation", 65_536), ("test", 262_144)):
        count = source.count(split)
        assert count % length == 0 and wanted <= count < wanted + length
        ids = source.language.text(split).read_all()
        assert len(source.tokens(split)) == len(ids) == count and int(ids[-1]) == 2
        assert source.about["documents"][split] == count // length
        assert np.count_nonzero(ids == 2) == count // length


def test_tokens_that_fill_their_documents_add_no_other():
    assert len(SyntheticLanguage(changed(SMALL, tokens=129 * 3)).text("train")) == 129 * 3
    assert len(SyntheticLanguage(changed(SMALL, tokens=129 * 3 + 1)).text("train")) == 129 * 4


def test_the_held_out_text_does_not_depend_on_how_much_there_is_to_train_on():
    endless, short = (SyntheticSource("en", changed(SMALL, tokens=n)) for n in (0, 1))
    for split in ("validation", "test"):
        assert np.array_equal(endless.tokens(split), short.tokens(split))
    [first] = endless.tokens("train").windows(np.array([0]), 129)
    assert np.array_equal(first, short.tokens("train").read_all())


def test_documents_are_the_text_in_pieces_with_their_bytes():
    config = changed(SMALL, tokens=1000, overlap=0.5, language=77)
    source = SyntheticSource("en", config)
    found = list(synthetic.generate_documents(config))
    for split in SPLITS:
        ids = np.concatenate([d.ids for d in found if d.split == split])
        assert np.array_equal(ids, source.language.text(split).read_all())
    for document in found[::300]:
        assert len(document.ids) == 129 and document.ids[-1] == 2
        said = source.tokenizer.decode(document.ids[:-1])
        assert document.bytes == len(said.encode()) and not document.lost


def test_a_prepared_source_of_the_documents_is_the_same_text(tmp_path):
    config = changed(SMALL, tokens=30_000, language=3)
    made = SyntheticSource("en", config)
    sources.write_source(
        tmp_path / "en",
        name="en",
        text=made.fingerprint,
        tokenizer=made.model,
        documents=synthetic.generate_documents(config),
    )
    read = sources.open_source("en", tmp_path / "en", tmp_path / "cache")
    for split in SPLITS:
        assert np.array_equal(read.tokens(split), made.language.text(split).read_all())
        assert np.array_equal(read.documents(split), made.documents(split))
    for name in ("name", "tokenizer", "vocab_size", "dtype", "documents", "tokens"):
        assert read.about[name] == made.about[name]
    for split in ("validation", "test"):
        assert read.about["bytes"][split] == made.about["bytes"][split]
    assert read.pieces.strings == made.pieces.strings
    assert np.array_equal(read.pieces.bytes_U, made.pieces.bytes_U)


def document_ids(config):
    return [document.id for document in synthetic.generate_documents(config)]


def test_documents_and_their_translations_have_one_id_and_no_others_have_it():
    config = changed(SMALL, tokens=1000)
    ids = document_ids(config)
    assert len(set(ids)) == len(ids)
    for change in ({"language": 1}, {"order": "head_last"}, {"overlap": 1}, {"shared_words": True}):
        assert document_ids(changed(config, **change)) == ids
    for change in ({"world": 1}, {"lemmas": 27}, {"topics": 4}, {"zipf": 1.5}, {"depth": 2}):
        assert not set(document_ids(changed(config, **change))) & set(ids)
    # More of the same text begins with the same documents.
    assert set(ids) < set(document_ids(changed(config, tokens=2000)))


def test_text_without_end_has_no_documents_and_says_what_to_set():
    source = SyntheticSource("toy", SMALL)
    with pytest.raises(ValueError, match=r"config\.sources\.toy\.synthetic\.tokens=0.*above 0"):
        source.documents("train")
    with pytest.raises(ValueError, match=r"config\.sources\.\*\.synthetic\.tokens=0.*above 0"):
        synthetic.generate_documents(SMALL)
    assert len(source.documents("test")) == source.about["documents"]["test"]


# Text that is made where it is looked at


def test_a_window_of_a_text_is_that_of_all_its_ids():
    text = SyntheticLanguage(changed(SMALL, tokens=1000)).text("train")
    whole = text.read_all()
    assert len(text) == len(whole) == 129 * 8 and text.dtype == whole.dtype == np.uint16
    for starts, W in (([3, 700, 0], 331), ([1031], 1), ([5, 1, 5], 16), ([7], 0), ([0], 1032)):
        found = text.windows(np.array(starts), W)
        assert np.array_equal(found, [whole[start : start + W] for start in starts])
        assert found.dtype == np.uint16


def test_a_window_that_is_not_inside_its_text_is_an_error():
    text = SyntheticLanguage(changed(SMALL, tokens=1000)).text("train")
    assert text.windows(np.array([0, 1000]), 32).shape == (2, 32)
    for starts in ([1001], [-1], [0, 5000]):
        with pytest.raises(IndexError, match="window of 32 ids"):
            text.windows(np.array(starts), 32)
    assert text.windows(np.array([], np.int64), 32).shape == (0, 32)


def test_text_without_end_is_read_at_any_place_and_claims_2_to_the_40_ids():
    source = SyntheticSource("en", SMALL)
    text = source.tokens("train")
    assert len(text) == source.count("train") == 2**40
    [last] = text.windows(np.array([2**40 - 500]), 500)
    assert np.array_equal(text.windows(np.arange(2**40 - 500, 2**40), 1)[:, 0], last)
    with pytest.raises(IndexError):
        text.windows(np.array([2**40 - 499]), 500)


def test_text_has_no_state():
    text = SyntheticLanguage(SMALL).text("train")
    starts_n = np.array([9, 10**10, 5])
    first = text.windows(starts_n, 50)
    text.windows(np.array([4, 0]), 300)
    assert np.array_equal(text.windows(starts_n[::-1], 50)[::-1], first)
    assert np.array_equal(SyntheticLanguage(SMALL).text("train").windows(starts_n, 50), first)


# The source


DIALS = {
    "world": 1,
    "language": 1,
    "tokens": 5,
    "lemmas": 27,
    "topics": 4,
    "zipf": 1.1,
    "depth": 4,
    "overlap": 0.1,
    "shared_words": True,
    "order": "head_last",
    "rules": 1,
}


@pytest.mark.parametrize("dial", [field.name for field in dataclasses.fields(SyntheticConfig)])
def test_every_dial_changes_the_fingerprint(monkeypatch, dial):
    before = SyntheticSource("en", SMALL).fingerprint
    assert SyntheticSource("fr", changed(SMALL)).fingerprint == before
    int(before, 16)
    assert SyntheticSource("en", changed(SMALL, **{dial: DIALS[dial]})).fingerprint != before
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    assert SyntheticSource("en", SMALL).fingerprint != before


def test_a_source_says_what_a_prepared_one_says_and_its_entropy():
    source = SyntheticSource("en", SMALL)
    about = source.about
    assert about["name"] == "en" and about["fingerprint"] == source.fingerprint
    assert about["vocab_size"] == source.tokenizer.size == 260 + 24 + 1
    assert about["dtype"] == "uint16" == source.tokens("test").dtype.name
    for split in ("validation", "test"):
        assert about["tokens"][split] == len(source.tokens(split)) == source.count(split)
        assert source.tokens(split) is source.tokens(split)
        assert not source.tokens(split).flags.writeable
    assert about["documents"]["train"] == 2**40 // 129
    assert about["entropy"] == dataclasses.asdict(synthetic.compute_language_entropy(SMALL))
    assert source.model == SyntheticLanguage(SMALL).model()


def test_the_bytes_and_counts_to_expect_are_those_of_a_long_text():
    config = changed(SMALL, overlap=0.5, tokens=129 * 4000)
    source = SyntheticSource("en", config)
    seen = np.bincount(source.tokens("train").read_all(), minlength=source.pieces.size)
    expected = source.pieces.counts_U
    assert seen[:260].tolist() == expected[:260].tolist() and seen[259] == 16 * 4000
    assert abs(int(expected.sum()) - 129 * 4000) < 24  # each is rounded
    # Words of a sentence depend on each other, so not a test of multinomial counts; this is
    # five times the deviation of independent ones.
    error = np.abs(seen - expected)[260:284]
    assert (error < 5 * np.sqrt(expected[260:284])).all()
    size = (seen * source.pieces.bytes_U).sum()
    assert source.about["bytes"]["train"] == pytest.approx(size, rel=1e-3)


# Pairs


def test_pairs_are_the_sentences_of_the_test_split_in_both_languages():
    first = changed(SMALL, order="head_middle")
    second = changed(SMALL, language=1, order="head_last", overlap=0.5)
    ours, theirs = synthetic.generate_parallel_sentences(first, second, 40)
    assert len(ours) == len(theirs) == 40
    for number, pair in enumerate(zip(ours, theirs, strict=True)):
        for config, ids in zip((first, second), pair, strict=True):
            assert ids.tolist() == slow_sentence(config, "test", number)
    test = SyntheticSource("en", first).tokens("test")
    joined = np.concatenate(ours[:32])
    assert np.array_equal(joined, test[test != 2][: len(joined)])


def test_there_are_no_more_pairs_than_the_test_split_has_sentences():
    config = changed(SMALL, depth=8)
    ours, theirs = synthetic.generate_parallel_sentences(config, config, 10**6)
    assert len(ours) == len(theirs) == 16 * SyntheticSource("en", config).about["documents"]["test"]


@pytest.mark.parametrize("dial", ["world", "lemmas", "topics", "zipf", "depth"])
def test_languages_that_do_not_say_the_same_are_no_pair(dial):
    with pytest.raises(ValueError, match=rf"config\.sources\.\*\.synthetic\.{dial} is"):
        synthetic.generate_parallel_sentences(SMALL, changed(SMALL, **{dial: DIALS[dial]}), 3)


# Entropy


TINY = [
    SyntheticConfig(lemmas=6, topics=2, depth=2, world=1),
    SyntheticConfig(lemmas=6, topics=3, depth=2, zipf=0.5, world=2),
    SyntheticConfig(lemmas=4, topics=2, depth=3, zipf=1.5, world=3),
]


def law(config):
    """The probability of every sentence there is, as words in order, by going through them."""
    size, topics = 2**config.depth - 1, config.topics
    total = sum(weights(config))
    found = {(): 1.0}  # trees as far as they have grown, node after node
    for node in range(size):
        grown = {}
        for tree, p in found.items():
            parent, side = (node - 1) // 2, ("right", "left")[node % 2]
            open_ = [selected(config, tree[parent], side)] if node else range(topics)
            for topic, (rank, weight) in itertools.product(open_, enumerate(weights(config))):
                lemma = rank * topics + topic
                grown[*tree, lemma] = p * weight / total / len(open_)
        found = grown
    return {tuple(said_in_order(config, tree)): p for tree, p in found.items()}


def beginnings(sentences):
    """The probability that a sentence begins with some words, by those words."""
    total = collections.Counter()
    for words, p in sentences.items():
        for length in range(len(words) + 1):
            total[words[:length]] += p
    return total


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("config", TINY)
def test_the_sentences_of_a_text_have_the_probabilities_that_the_tree_gives_them(config, order):
    config = changed(config, order=order)
    sentences = law(config)
    assert math.fsum(sentences.values()) == pytest.approx(1)
    ids = SyntheticLanguage(config).sentences("train", np.arange(40_000))
    seen = collections.Counter(map(tuple, (ids[:, :-1] - 260).tolist()))
    assert set(seen) <= set(sentences)
    # Rare ones are taken together, as the test needs counts of some size.
    common = [words for words, p in sentences.items() if p > 2e-4]
    rest = 1 - math.fsum(sentences[words] for words in common)
    counts = [seen[words] for words in common]
    expected = [sentences[words] for words in common]
    if rest > 1e-9:
        counts, expected = [*counts, 40_000 - sum(counts)], [*expected, rest]
    expected = np.array(expected) / sum(expected) * 40_000
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("config", TINY)
def test_the_rate_is_the_loss_of_an_ideal_model_that_has_all_context(config, order):
    config = changed(config, order=order)
    known, begins = synthetic.compute_language_entropy(config), beginnings(law(config))
    exact = -sum(p * math.log(p) for p in law(config).values())
    assert known.per_sentence == pytest.approx(exact)
    # A model that reads the text from its beginning: each word given those before it.
    documents = 600
    loss = []
    for ids in SyntheticLanguage(config).sentences("test", np.arange(16 * documents)).tolist():
        words = tuple(n - 260 for n in ids[:-1])
        given_ = [begins[words[: i + 1]] / begins[words[:i]] for i in range(len(words))]
        loss.append(-sum(map(math.log, given_)))
    tokens = documents * (16 * 2**config.depth + 1)  # the others are certain, and cost nothing
    deviation = np.std(loss) * math.sqrt(len(loss)) / tokens
    assert abs(sum(loss) / tokens - known.per_token) < 3 * deviation
    # And this is sharp enough to tell the rate from what is near it.
    assert deviation < 0.01 * known.per_token


@pytest.mark.parametrize("config", [SMALL, *TINY, CONFIGS[4], CONFIGS[5]])
def test_the_unigram_loss_is_that_of_the_frequencies_of_a_long_text(config):
    ids = SyntheticLanguage(config).ids("train", np.array([0]), 129 * 4000)[0]
    seen = np.bincount(ids) / len(ids)
    measured = -sum(p * math.log(p) for p in seen if p)
    # Frequencies of a finite text are a little off, and it is cut within a document.
    assert synthetic.compute_language_entropy(config).unigram == pytest.approx(measured, abs=3e-3)


def test_entropies_have_their_closed_forms():
    even = synthetic.compute_language_entropy(
        SyntheticConfig(lemmas=32, topics=4, zipf=0.0, depth=3)
    )
    assert even.per_sentence == pytest.approx(math.log(4) + 7 * math.log(8))
    assert even.per_token == pytest.approx(16 * even.per_sentence / 129)
    certain = synthetic.compute_language_entropy(
        SyntheticConfig(lemmas=6, topics=1, zipf=2000.0, depth=1)
    )
    assert certain.per_sentence == certain.per_token == 0
    share = np.array([16, 16, 1]) / 33  # the word, the period, the separator
    assert certain.unigram == pytest.approx(-(share * np.log(share)).sum())
    for order in ORDERS:
        assert synthetic.compute_language_entropy(
            changed(SMALL, order=order)
        ) == synthetic.compute_language_entropy(SMALL)


# What a model can reach that sees windows


def window_losses(config, L, *, phase_known):
    """The mean loss of the ideal model of windows of L + 1 ids, at each of the L predicted.

    The text as a chain of states, each a phase of a document with the words of its sentence so
    far. The model weighs all states by what it has seen since the beginning of the window.
    """
    begins = beginnings(law(config))
    size = 2**config.depth - 1
    count = synthetic.SENTENCES
    numbered = enumerate(itertools.product(range(count), begins))
    states = {at: state for state, at in numbered}
    end = states[count, ()] = len(states)
    moves = collections.defaultdict(list)  # id -> (from, to, probability)
    for (n, words), state in states.items():
        if state == end:
            moves[2].append((state, states[0, ()], 1.0))
        elif len(words) == size:
            moves[259].append((state, states[(n + 1, ())], 1.0))
        else:
            for lemma in range(config.lemmas):
                p = begins[*words, lemma] / begins[words]
                if p:
                    moves[260 + lemma].append((state, states[n, (*words, lemma)], p))
    matrices = []
    for found in moves.values():
        source, target, p = zip(*found, strict=True)
        shape = (len(states), len(states))
        matrices.append(scipy.sparse.csr_array((p, (source, target)), shape=shape))
    length = count * (size + 1) + 1
    # Rows: what has been seen so far, each with the probability of it and of a state together.
    rows = np.zeros((length if phase_known else 1, len(states)))
    for (n, words), state in states.items():
        phase = n * (size + 1) + len(words)
        rows[phase if phase_known else 0, state] = begins[words] / length
    rows = scipy.sparse.csr_array(rows)

    def nats(rows):
        p = rows.sum(axis=1)
        return -(p * np.log(p)).sum()

    # An id costs, on average, what it adds to the entropy of all that has been seen.
    losses, before = [], nats(rows)
    for _ in range(L + 1):
        rows = scipy.sparse.vstack([rows @ matrix for matrix in matrices], format="csr")
        rows = rows[rows.sum(axis=1) > 0]
        losses.append(nats(rows) - before)
        before = nats(rows)
    assert rows.sum() == pytest.approx(1)
    return losses[0], losses[1:]


@pytest.fixture
def short_documents(monkeypatch):
    """Documents of 3 sentences, so that an ideal model of their windows is worked out quickly."""
    for module in (synthetic, toy_languages):
        monkeypatch.setattr(module, "SENTENCES", 3)


# Edges that pass over a place of the sentence, added up over its places, counted by hand.
CUTS = {
    2: {"head_first": 1, "head_middle": 0, "head_last": 1},
    3: {"head_first": 5, "head_middle": 2, "head_last": 5},
}
WINDOWS = [(TINY[0], 1), (TINY[0], 4), (TINY[0], 8), (TINY[1], 5), (TINY[2], 3), (TINY[2], 6)]


@pytest.mark.usefixtures("short_documents")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("config", "L"), WINDOWS)
def test_the_loss_of_an_ideal_model_of_windows_lies_within_the_bounds(config, L, order):
    config = changed(config, order=order)
    lower, upper = synthetic.compute_loss_bounds(config, L)
    first, losses = window_losses(config, L, phase_known=False)
    known = synthetic.compute_language_entropy(config)
    assert first == pytest.approx(known.unigram)
    assert lower == known.per_token < sum(losses) / L <= upper <= known.unigram
    # The longer the context, the lower the loss, but for rounding.
    assert (np.diff(losses) < 1e-12).all()


@pytest.mark.usefixtures("short_documents")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("config", "L"), WINDOWS)
def test_a_model_that_knows_the_phase_loses_no_more_than_the_edges_that_are_cut(config, L, order):
    config = changed(config, order=order)
    lower, upper = synthetic.compute_loss_bounds(config, L)
    length = 3 * 2**config.depth + 1
    _, losses = window_losses(config, L, phase_known=True)
    edges = 3 * CUTS[config.depth][order] * math.log(config.topics) / length
    assert lower - 1e-9 <= sum(losses) / L <= lower + edges / L + 1e-9
    if upper < synthetic.compute_language_entropy(config).unigram:
        assert upper == pytest.approx(lower + (edges + math.log(length)) / L)


@pytest.mark.parametrize("order", ORDERS)
def test_the_bounds_close_in_on_the_rate_as_windows_grow(order):
    config = SyntheticConfig(order=order)
    uppers = [synthetic.compute_loss_bounds(config, 2**n)[1] for n in range(2, 14)]
    assert uppers == sorted(uppers, reverse=True)
    rate = synthetic.compute_language_entropy(config).per_token
    edges = CUTS[3][order]
    expected = rate + (math.log(129) + 16 * edges / 129 * math.log(8)) / 64
    assert synthetic.compute_loss_bounds(config, 64) == pytest.approx((rate, expected))
    assert uppers[-1] - rate < 1e-3
