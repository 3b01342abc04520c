"""Behaviours of data/word_order.py, held against the same done slowly on lists of strings."""

import collections
import dataclasses
import os
import pathlib
import tempfile

import numpy as np
import pytest
from helpers import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalance_jax.config import LanguageConfig
from imbalance_jax.data import word_order as views
from imbalance_jax.data.languages import Pieces
from imbalance_jax.data.order import corpora
from imbalance_jax.data.order.stream import Stream

few = settings(max_examples=80, deadline=None)
SEPARATOR = 2
STRINGS = (
    *("<pad>", "<unk>", "<D>", "<0x0A>", "<0x20>"),
    *("▁a", "▁the", "▁", "▁▁", "▁▁run", "x", "ing", "a▁b", "7"),
    *("\n", "\n\n", "▁end\n"),  # as tokenizers have them that were not trained here
)


def pieces_of(strings):
    """The pieces of a SentencePiece model whose pieces are these strings."""
    bytes_ = {"<0x0A>": b"\n", "<0x20>": b" ", **dict.fromkeys(STRINGS[:3], b"")}
    written = tuple(bytes_.get(s, s.replace("▁", " ").encode()) for s in strings)
    bytes_U = np.zeros(len(strings), np.int32)
    return Pieces(len(strings), 0, (1, SEPARATOR), bytes_U, strings, written=written)


PIECES = pieces_of(STRINGS)
ENDS = [i for i, s in enumerate(STRINGS) if s in ("<D>", "<0x0A>") or "\n" in s]
BLOCKS = pytest.mark.parametrize("words", ["reversed", "permuted"])
ALL = pytest.mark.parametrize("words", ["reversed", "permuted", "shuffled"])

# Many words and few line ends, so that lines have several blocks.
any_id = st.sampled_from(
    [*range(len(STRINGS)), *[STRINGS.index(s) for s in ("▁a", "▁the", "▁", "x", "ing")] * 4]
)
texts = st.lists(any_id, max_size=120)


def reordered(ids, words, block, first=0):
    return views.WordOrder(PIECES, words, block)(np.array(ids, np.uint16), first)


def lines_of(ids, ends=frozenset(ENDS)):
    """Cuts after every end of a line."""
    lines = [[]]
    for id_ in ids:
        lines[-1].append(id_)
        if id_ in ends:
            lines.append([])
    return [line for line in lines if line]


def slowly(ids, words, block, strings=STRINGS, ends=frozenset(ENDS)):
    """Lines to words, words to blocks, blocks in another order."""
    result = []
    for line in lines_of(ids, ends):
        end = [line.pop()] if line[-1] in ends else []
        start, of_line = [], []
        for id_ in line:
            if strings[id_].startswith("▁") or strings[id_] == "<0x20>":
                of_line.append([id_])
            else:
                (of_line[-1] if of_line else start).append(id_)
        result += start
        while of_line:
            here, of_line = of_line[:block], of_line[block:]
            for word in reversed(here) if words == "reversed" else permuted(here, block):
                result += word
        result += end
    return result


def permuted(items, block):
    """Items in the order that is seen in one full block, less what it has beyond them."""
    names = np.arange(5, 5 + block)
    strings = (*STRINGS[:5], *[f"▁w{i}" for i in range(block)])
    pieces = pieces_of(strings)
    order = views.WordOrder(pieces, "permuted", block)(names, 0) - 5
    return [items[i] for i in order if i < len(items)]


def words_text(n, first="7"):
    """A line that starts without a space and has n words of two pieces after that."""
    return [STRINGS.index(first), *[STRINGS.index(s) for s in ("▁a", "x") * n]]


# One stretch of text


@BLOCKS
@few
@given(ids=texts, block=st.integers(2, 6))
def test_words_change_places_as_they_do_in_lists_of_strings(words, ids, block):
    if ids:
        assert reordered(ids, words, block).tolist() == slowly(ids, words, block)


@BLOCKS
@few
@given(ids=texts, block=st.integers(2, 6))
def test_ends_of_lines_stay_in_place_and_every_line_keeps_its_pieces(words, ids, block):
    if not ids:
        return
    found = reordered(ids, words, block)
    assert found.dtype == np.uint16 and len(found) == len(ids)
    for ours, theirs in zip(lines_of(found.tolist()), lines_of(ids), strict=True):
        assert len(ours) == len(theirs)
        assert collections.Counter(ours) == collections.Counter(theirs)
        assert (ours[-1] in ENDS) == (theirs[-1] in ENDS)


@few
@given(ids=texts, first=st.integers(0, 10**9))
def test_shuffled_text_keeps_its_pieces_and_where_documents_end(ids, first):
    found = reordered(ids, "shuffled", 8, first).tolist()
    assert collections.Counter(found) == collections.Counter(ids)
    assert [i for i, t in enumerate(found) if t == SEPARATOR] == [
        i for i, t in enumerate(ids) if t == SEPARATOR
    ]


def test_a_shuffle_is_the_one_that_earlier_runs_saw():
    ids = [5, 6, 10, 2, 7, 11, 3, 9, 2, 5, 12]
    assert reordered(ids, "shuffled", 8, 100).tolist() == [10, 11, 12, 2, 9, 5, 3, 5, 2, 7, 6]


def test_a_shuffle_leaves_no_trace_of_where_a_piece_was():
    places = np.arange(5, 5 + 4000)
    pieces = pieces_of(tuple("x" * 5000))
    order = views.WordOrder(pieces, "shuffled", 8)
    found = order(places, 0)
    # Of independent places: a correlation of 0 and one fixed point, give or take.
    assert abs(np.corrcoef(places, found)[0, 1]) < 4 / np.sqrt(4000)
    assert np.count_nonzero(places == found) < 8
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 4 / np.sqrt(4000)
    # Another place in the text, another order.
    assert np.count_nonzero(order(places, 4000) == found) < 8


def test_blocks_have_exactly_as_many_words_as_the_config_says():
    strings = (*STRINGS[:5], *[f"▁w{i}" for i in range(20)])
    pieces = pieces_of(strings)
    for block in (2, 3, 7, 20, 30):
        found = views.WordOrder(pieces, "reversed", block)(np.arange(5, 25), 0) - 5
        expected = [list(range(20))[i : i + block][::-1] for i in range(0, 20, block)]
        assert found.tolist() == sum(expected, [])


@pytest.mark.parametrize("block", [2, 3, 5, 8, 16])
def test_a_permutation_of_words_is_one_for_all_blocks_and_moves_them(block):
    order = permuted(list(range(block)), block)
    assert sorted(order) == list(range(block)) and order != list(range(block))
    strings = (*STRINGS[:5], *[f"▁w{i}" for i in range(9 * block)])
    pieces = pieces_of(strings)
    found = views.WordOrder(pieces, "permuted", block)(np.arange(5, 5 + 9 * block), 77) - 5
    assert found.tolist() == [b * block + i for b in range(9) for i in order]


@pytest.mark.parametrize("words", ["reversed", "permuted"])
def test_a_block_of_any_size_takes_no_more_than_the_text_has_words(words):
    ids = words_text(50)
    backwards = [ids[0], *[id_ for at in range(99, 0, -2) for id_ in ids[at : at + 2]]]
    found = reordered(ids, words, 10**12).tolist()
    assert found == backwards if words == "reversed" else sorted(found) == sorted(ids)


def test_the_permutation_of_this_version_is_this_one():
    # It lies in caches; if it must change, change _VERSION with it.
    assert views.VERSION == 1
    assert permuted(list("abcdefgh"), 8) == list("edbhfgca")


def test_a_line_that_begins_without_a_space_keeps_its_beginning():
    line = words_text(3)
    assert reordered(line, "reversed", 8)[0] == line[0]
    after_end = [STRINGS.index("<0x0A>"), *line]
    assert reordered(after_end, "reversed", 8)[:2].tolist() == after_end[:2]


@BLOCKS
def test_one_stretch_of_text_can_be_all_line_ends_or_one_word(words):
    for ids in ([SEPARATOR], ENDS, [STRINGS.index("▁a")], [STRINGS.index("x")]):
        assert reordered(ids, words, 2).tolist() == ids


# A whole text, in chunks


class Text:
    """A source of ids; its cache is a folder."""

    def __init__(self, ids, cache, pieces=PIECES):
        self._tokens, self._cache, self.pieces = np.array(ids, np.uint16), cache, pieces

    def tokens(self, split):
        assert split == "train"
        return self._tokens

    def cached(self, name):
        return pathlib.Path(self._cache) / name


def view(ids, words, block=3, chunk=None):
    """Returns a view of ids, worked out in chunks of a size."""
    language = LanguageConfig(source="en", words=words, words_block=block)
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        if chunk:
            patch.setattr(views, "_CHUNK", chunk)
        return np.array(views.load_language_tokens(Text(ids, cache), "train", language)).tolist()


@BLOCKS
@few
@given(ids=texts, data=st.data())
def test_where_a_text_is_cut_makes_no_difference_while_lines_are_whole(words, ids, data):
    longest = max(map(len, lines_of(ids)), default=1)
    chunk = data.draw(st.integers(longest, longest + 20))
    assert view(ids, words, chunk=chunk) == view(ids, words) == slowly(ids, words, 3)


@ALL
@few
@given(ids=texts, chunk=st.integers(1, 20))
def test_wherever_a_text_is_cut_no_piece_is_lost_and_documents_keep_their_place(words, ids, chunk):
    found = view(ids, words, chunk=chunk)
    assert collections.Counter(found) == collections.Counter(ids)
    kept = {SEPARATOR} if words == "shuffled" else ENDS
    assert [i for i, t in enumerate(found) if t in kept] == [
        i for i, t in enumerate(ids) if t in kept
    ]


@few
@given(ids=texts, chunk=st.integers(1, 40))
def test_shuffled_text_stays_within_the_stretches_that_it_is_cut_into(ids, chunk):
    found, first = view(ids, "shuffled", chunk=chunk), 0
    while first < len(ids):
        last = min(first + chunk, len(ids))
        if last < len(ids):
            ends = [i + 1 for i in range(first, last) if ids[i] in ENDS]
            last = max(ends, default=last)
        stretch = found[first:last]
        assert collections.Counter(stretch) == collections.Counter(ids[first:last])
        first = last


def test_equal_stretches_of_text_are_shuffled_each_in_an_order_of_its_own():
    stretch = [*range(5, 10), *[STRINGS.index("x")] * 15, STRINGS.index("<0x0A>")]
    found = view(stretch * 3, "shuffled", chunk=len(stretch))
    thirds = [tuple(found[i : i + len(stretch)]) for i in range(0, len(found), len(stretch))]
    assert len(set(thirds)) == 3


def test_text_as_it_was_written_is_the_source_s_own_and_makes_no_file(tmp_path):
    text = Text(words_text(5), tmp_path)
    assert views.load_language_tokens(text, "train", LanguageConfig(source="en")) is text.tokens(
        "train"
    )
    assert list(tmp_path.iterdir()) == []


@ALL
def test_a_text_of_no_ids_has_none_in_another_order(words):
    assert view([], words) == []


# Real text


@pytest.fixture(scope="module")
def cached(english, tmp_path_factory):
    """The source with a cache of its own."""
    english.tokens("train")
    cache = tmp_path_factory.mktemp("cache")
    return dataclasses.replace(english, cache=cache)


def real_view(source, words, block=8):
    return views.load_language_tokens(
        source, "train", LanguageConfig(source="en", words=words, words_block=block)
    )


def line_ends(source):
    return {source.pieces.separator, source.pieces.strings.index("<0x0A>")}


def text_of(source, line):
    """Returns a line decoded, without what ends it."""
    ends = line_ends(source)
    return source.tokenizer.decode([t for t in line if t not in ends])


@BLOCKS
def test_real_text_in_another_order_is_that_of_lists_of_strings(cached, words):
    ids = cached.tokens("train").tolist()
    strings, ends = cached.pieces.strings, line_ends(cached)
    assert real_view(cached, words, 5).tolist() == slowly(ids, words, 5, strings, ends)


@BLOCKS
def test_real_text_is_the_same_however_it_is_cut(cached, words, monkeypatch, tmp_path):
    whole = np.array(real_view(cached, words, 4))
    monkeypatch.setattr(views, "_CHUNK", 1000)
    elsewhere = dataclasses.replace(cached, cache=tmp_path)
    assert np.array_equal(real_view(elsewhere, words, 4), whole)


@ALL
def test_every_document_of_real_text_has_its_place_and_most_have_their_pieces(cached, words):
    ids, found = cached.tokens("train"), real_view(cached, words)
    assert found.dtype == ids.dtype and len(found) == len(ids)
    assert (found != ids).mean() > 0.5
    ends = [cached.pieces.separator] if words == "shuffled" else list(line_ends(cached))
    assert np.array_equal(np.isin(found, ends), np.isin(ids, ends))
    starts = cached.documents("train")["start"]
    if words == "shuffled":  # among all documents of a stretch
        assert np.array_equal(np.sort(found), np.sort(ids))
        return
    for ours, theirs in zip(np.split(found, starts[1:]), np.split(ids, starts[1:]), strict=True):
        assert np.array_equal(np.sort(ours), np.sort(theirs))


def test_decoded_text_has_its_words_in_blocks_from_last_to_first(cached):
    ids, found = cached.tokens("train"), real_view(cached, "reversed", 3)
    lines = 0
    for ours, theirs in zip(
        lines_of(found.tolist(), line_ends(cached)),
        lines_of(ids.tolist(), line_ends(cached)),
        strict=True,
    ):
        written, turned = text_of(cached, theirs), text_of(cached, ours)
        if "  " in written:  # several spaces may be one piece
            continue
        start, *rest = written.split(" ")
        blocks = [rest[i : i + 3][::-1] for i in range(0, len(rest), 3)]
        assert turned == " ".join([start, *sum(blocks, [])])
        lines += bool(rest)
    assert lines > 500


def test_decoded_text_in_a_fixed_order_has_the_words_that_it_had(cached):
    ids, found = cached.tokens("train"), real_view(cached, "permuted")
    ends = line_ends(cached)
    moved = 0
    for ours, theirs in zip(
        lines_of(found.tolist(), ends), lines_of(ids.tolist(), ends), strict=True
    ):
        written, turned = text_of(cached, theirs), text_of(cached, ours)
        assert sorted(turned.split(" ")) == sorted(written.split(" "))
        moved += turned != written
    assert moved > 500


# Files


def refuse(*args):
    raise AssertionError("The text is put in order again.")


@ALL
def test_a_text_is_put_in_order_once_and_then_read_from_the_cache(
    english, tmp_path, monkeypatch, words
):
    source = dataclasses.replace(english, cache=tmp_path)
    source.tokens("train")
    before = np.array(real_view(source, words))
    monkeypatch.setattr(views.WordOrder, "__call__", refuse)
    again = real_view(source, words)
    assert isinstance(again, np.memmap) and np.array_equal(again, before)
    # Another block, another file; a shuffle has no blocks.
    if words == "shuffled":
        assert np.array_equal(real_view(source, words, 5), before)
    else:
        with pytest.raises(AssertionError, match="put in order again"):
            real_view(source, words, 5)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    # Not left to the clock, which may be coarse.
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def stamp_of(path):
    return path.with_name(path.name + ".stamp")


@pytest.mark.parametrize(
    "damage",
    [
        shorten,
        flip,
        pathlib.Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: stamp_of(path).unlink(),
        lambda path: stamp_of(path).write_text(""),
        lambda path: stamp_of(path).write_text("not a stamp\n"),
    ],
    ids=["shorter", "flipped", "absent", "empty", "no stamp", "empty stamp", "odd stamp"],
)
def test_a_file_that_is_not_as_it_was_made_is_made_again(english, tmp_path, damage):
    source = dataclasses.replace(english, cache=tmp_path)
    whole = np.array(real_view(source, "reversed"))
    (path,) = tmp_path.glob("*reversed*.tokens")
    damage(path)
    assert np.array_equal(real_view(source, "reversed"), whole)
    assert sorted(tmp_path.glob("*reversed*")) == [path, stamp_of(path)]


def test_a_text_that_could_not_be_put_in_order_leaves_nothing_behind(
    english, tmp_path, monkeypatch
):
    source = dataclasses.replace(english, cache=tmp_path)
    source.tokens("train")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(views.WordOrder, "__call__", refuse)
    with pytest.raises(AssertionError, match="put in order again"):
        real_view(source, "reversed")
    assert sorted(tmp_path.iterdir()) == before


# In a run


def test_a_clone_in_another_order_reads_the_same_stretch_of_the_same_text(english, data_dir):
    config = tiny_config(data_dir, **{"languages.en2.words": "reversed"})
    stream = Stream(config, {"en": english})
    assert stream.pools == ["en", "en"]
    texts_ = {0: english.tokens("train"), 1: real_view(english, "reversed")}
    for step in range(5):
        batch = stream.batch(step)
        language_B, window_B = stream.order_of(step)
        for row, (g, window) in enumerate(zip(language_B, window_B, strict=True)):
            start = window * config.model.L
            expected = texts_[g][start : start + config.model.L + 1]
            assert batch.ids_BW[row].tolist() == expected.tolist()


@ALL
def test_no_order_of_words_depends_on_the_seed_of_a_run(english, data_dir, words):
    found = [
        corpora.build_corpora(
            tiny_config(data_dir, seed=seed, **{"languages.en2.words": words}), {"en": english}
        )
        for seed in (0, 1)
    ]
    assert np.array_equal(found[0][1].tokens, found[1][1].tokens)
    assert np.array_equal(found[0][0].tokens, english.tokens("train"))
