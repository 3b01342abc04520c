"""Text without end in another order, held against whole stretches put in order at once."""

import collections

import numpy as np
import pytest

from imbalance_jax import config as config_lib
from imbalance_jax.config import LanguageConfig, SourceConfig, SyntheticConfig
from imbalance_jax.data import prepare, word_order
from imbalance_jax.data.endless_order import ReorderedTokens, ShuffledTokens
from imbalance_jax.data.order.keyed_draws import derive_key, permute_indices
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.data.text.synthetic import SyntheticSource
from imbalance_jax.data.text.toy_languages import ENDLESS, SEPARATOR, SyntheticLanguage
from imbalance_jax.study import grid

TOY = SyntheticConfig(lemmas=24, topics=4, depth=2)
T = 65  # ids of a document of it
ALL = pytest.mark.parametrize("words", ["shuffled", "reversed", "permuted"])
BLOCKS = pytest.mark.parametrize("words", ["reversed", "permuted"])


def tokens_of(words, split="train", toy=TOY, block=8):
    language = LanguageConfig(source="toy", words=words, words_block=block)
    return word_order.load_language_tokens(SyntheticSource("toy", toy), split, language)


def shuffled_text(documents, stretch):
    """Returns a view with short stretches, and the same text shuffled stretch by stretch."""
    language = SyntheticLanguage(TOY)
    view = ShuffledTokens(language, "train", ENDLESS, stretch)
    length = stretch // T * T
    plain = language.ids("train", np.array([0]), documents * T)[0]
    for number, first in enumerate(range(0, len(plain), length)):
        part = plain[first : first + length]  # a view of the text: it is changed in place
        places = np.flatnonzero(part != SEPARATOR)
        key = derive_key("shuffled", number)
        part[places] = part[places[permute_indices(key, np.arange(len(places)), len(places))]]
    return view, plain


@pytest.mark.parametrize("stretch", [T, 3 * T + 10, 10 * T])
def test_any_window_of_shuffled_text_is_a_slice_of_its_stretches(stretch):
    view, plain = shuffled_text(30, stretch)
    starts = np.concatenate([[0, len(plain) - 20], np.arange(0, len(plain) - 20, 7)])
    found = view.windows(starts, 20)
    assert found.dtype == plain.dtype
    assert (found == plain[starts[:, None] + np.arange(20)]).all()
    assert (view.windows(np.zeros(1, int), len(plain))[0] == plain).all()


def test_shuffled_text_has_every_id_as_often_as_its_source_and_none_of_the_order():
    view, plain = shuffled_text(400, 200 * T)
    written = SyntheticLanguage(TOY).ids("train", np.array([0]), 400 * T)[0]
    assert ((plain == SEPARATOR) == (written == SEPARATOR)).all()
    for half in (slice(200 * T), slice(200 * T, None)):
        assert collections.Counter(plain[half]) == collections.Counter(written[half])
    # What follows a period is as what follows anything.
    period = 259
    after = plain[1:][plain[:-1] == period]
    assert np.mean(written[1:][written[:-1] == period] == period) == 0
    share = np.mean(plain[plain != SEPARATOR] == period)
    error = np.sqrt(share * (1 - share) / len(after))
    assert abs(np.mean(after[after != SEPARATOR] == period) - share) < 4 * error
    # And the halves are in orders of their own.
    places = np.flatnonzero(written[: 200 * T] != SEPARATOR)
    keys = [derive_key("shuffled", number) for number in range(2)]
    first, second = (permute_indices(key, np.arange(len(places)), len(places)) for key in keys)
    assert np.mean(first == second) < 0.01


def test_a_stretch_of_a_million_ids_of_a_run_has_the_counts_of_the_source():
    toy = SyntheticConfig(lemmas=24, topics=4, depth=3)
    stretch = (1 << 20) // 129 * 129
    start = np.array([5 * stretch])  # the sixth
    found = tokens_of("shuffled", toy=toy).windows(start, stretch)[0]
    written = tokens_of("as_written", toy=toy).windows(start, stretch)[0]
    assert np.bincount(found).tolist() == np.bincount(written).tolist()
    moved = found != written
    assert moved.mean() > 0.5 and not moved[written == SEPARATOR].any()


@BLOCKS
@pytest.mark.parametrize("block", [2, 5, 8])
@pytest.mark.parametrize("far", [0, 10**9])
def test_reordered_text_is_what_the_order_makes_of_a_piece_of_the_text(words, block, far):
    source = SyntheticSource("toy", TOY)
    begin = far * T
    piece = source.tokens("train").windows(np.array([begin]), 40 * T)[0]
    expected = word_order.WordOrder(source.pieces, words, block)(piece, 0)
    view = tokens_of(words, block=block)
    assert isinstance(view, ReorderedTokens) and (expected != piece).mean() > 0.3
    for width in (1, 17, 65, 150):
        starts = np.random.default_rng(width).integers(0, 40 * T - width, 30)
        found = view.windows(begin + starts, width)
        assert found.dtype == piece.dtype
        assert (found == expected[starts[:, None] + np.arange(width)]).all()


@ALL
def test_a_text_in_another_order_is_one_function_of_the_place(words):
    starts = np.random.default_rng(0).integers(0, ENDLESS - 200, 50)
    found = tokens_of(words).windows(starts, 65)
    assert (found == tokens_of(words).windows(starts, 65)).all()
    alone = [tokens_of(words).windows(starts[n : n + 1], 65)[0] for n in (3, 40)]
    assert (found[[3, 40]] == alone).all()
    assert len(tokens_of(words)) == ENDLESS
    assert (tokens_of(words).windows(np.array([ENDLESS - 9]), 9) > 0).all()
    for wrong in (-1, ENDLESS - 64):
        with pytest.raises(IndexError, match="A window of 65 ids is not inside"):
            tokens_of(words).windows(np.array([wrong]), 65)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("order", ["head_first", "head_middle", "head_last"])
def test_an_id_at_a_place_is_that_of_the_text_around_it(depth, order):
    toy = SyntheticConfig(lemmas=60, topics=6, depth=depth, order=order)
    language = SyntheticLanguage(toy)
    first = 10**6 * language.document_length
    text = language.ids("test", np.array([first]), 2 * language.document_length)[0]
    places = np.random.default_rng(0).permutation(len(text))
    found = language.ids_at("test", first + places)
    assert found.dtype == language.dtype and (found == text[places]).all()


def test_a_key_for_each_index_gives_what_each_key_gives_alone():
    rng = np.random.default_rng(0)
    keys, index = rng.integers(0, 1 << 63, 5).astype(np.uint64), rng.integers(0, 1000, 200)
    of_index = rng.integers(0, 5, 200)
    together = permute_indices(keys[of_index], index, 1000)
    for n in range(5):
        alone = permute_indices(int(keys[n]), index[of_index == n], 1000)
        assert together[of_index == n].tolist() == alone.tolist()


# Held-out text, and that of runs


@ALL
@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_text_is_that_of_the_same_language_on_disk(tmp_path, words, split):
    toy = SyntheticConfig(lemmas=24, topics=4, depth=2, tokens=3000)
    declared = SourceConfig(kind="synthetic", synthetic=toy)
    on_disk = prepare.prepare_source("toy", declared, str(tmp_path))
    language = LanguageConfig(source="toy", words=words)
    expected = word_order.load_held_out_tokens(on_disk, split, language)
    source = SyntheticSource("toy", TOY)
    found = word_order.load_held_out_tokens(source, split, language)
    assert np.array_equal(found, expected) and (found != source.tokens(split)).mean() > 0.3
    bytes_n = word_order.count_bytes(source, split, language, found)
    assert np.array_equal(bytes_n, word_order.count_bytes(on_disk, split, language, expected))
    assert bytes_n.sum() == source.about["bytes"][split]


def mixture_config(tmp_path):
    config = config_lib.cloned(scale="demo", ratio="3:1")
    config.sources.en = config_lib.declared(SourceConfig, kind="synthetic")
    config.sources.en.synthetic.update(lemmas=24, topics=4, depth=2)
    config.data_dir, config.steps, config.batch_size = str(tmp_path), 9, 8
    config.model.update(L=16, D=16, H=2, K=8, F=24, N=1)
    return config


def test_a_placebo_of_endless_text_reads_shuffled_windows_at_its_places(tmp_path):
    mixture = mixture_config(tmp_path)
    config = config_lib.resolve_config(grid.placebo(mixture, "en1"))
    assert config.languages["en1"].words == "shuffled"
    sources = prepare.prepare_run_sources(config)
    stream = Stream(config, sources)
    texts = [tokens_of("shuffled"), tokens_of("as_written")]
    for step in range(config.steps):
        batch = stream.batch(step)
        language_B, start_B = stream.starts_of(step)
        assert set(language_B) == {0, 1}
        for row, (g, start) in enumerate(zip(language_B, start_B, strict=True)):
            assert (batch.ids_BW[row] == texts[g].windows(np.array([start]), 17)[0]).all()
    # One that begins in the middle has the same batches.
    again = Stream(config, prepare.prepare_run_sources(config)).batch(7)
    assert np.array_equal(again.ids_BW, stream.batch(7).ids_BW)
    assert Stream(config, sources).digest() == stream.digest()
    assert Stream(config_lib.resolve_config(mixture), sources).digest() != stream.digest()
