"""Behaviours of data/parallel, on pairs of texts that are written here."""

import dataclasses
import gzip
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import types

import hypothesis
import numpy as np
import pyarrow
import pytest
from helpers import read_plain_json
from hypothesis import strategies as st
from pyarrow import parquet

from imbalance_jax import config as config_lib
from imbalance_jax.config import LanguageConfig, ParallelConfig, SourceConfig, TokenizerConfig
from imbalance_jax.data import parallel, prepare
from imbalance_jax.data import word_order as views
from imbalance_jax.data.parallel import sets
from imbalance_jax.data.parallel.pairs import read_pairs
from imbalance_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from imbalance_jax.data.text import files, synthetic

L = 24
ENGLISH = ("cat", "dog", "bird", "horse", "mouse"), ("eats", "sees", "wants"), ("fish", "bread")
FRENCH = (
    ("chat", "chien", "oiseau", "cheval", "rat"),
    ("mange", "voit", "veut"),
    ("poisson", "pain"),
)


def said(template, words, numbers):
    return [template.format(*choice, n) for n, choice in zip(numbers, itertools.cycle(words))]


EN = said("The {} {} the {}, {} times.", list(itertools.product(*ENGLISH)), range(70))
FR = said("Le {} {} le {}, {} fois.", list(itertools.product(*FRENCH)), range(70))


@dataclasses.dataclass
class Prepared:
    """What data/parallel relies on of a prepared source."""

    name: str
    fingerprint: str
    tokenizer: object
    pieces: object
    test: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint16))

    def tokens(self, split):
        assert split == "test"
        return self.test


def trained(name, texts, vocab_size):
    model = prepare.train_tokenizer(name, TokenizerConfig(vocab_size=vocab_size), texts)
    tokenizer = SentencePieceTokenizer(model)
    return Prepared(name, f"{name}0", tokenizer, tokenizer.pieces())


@pytest.fixture(scope="module")
def both():
    return {"en": trained("en", EN, 340), "fr": trained("fr", FR, 350)}


def write_pairs(path, pairs=None, fields=("en", "fr")):
    pairs = list(zip(EN, FR, strict=True)) if pairs is None else pairs
    rows = [dict(zip(fields, pair, strict=True)) for pair in pairs]
    return write(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write(path, data):
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = compressed(data)
    path.write_bytes(data)
    return path


def compressed(data):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


def declared(path, **fields):
    return ParallelConfig(sources=("en", "fr"), path=str(path), **fields)


def prepared(both, path, tmp_path, *, L=L, name="en_fr", **fields):
    config = declared(path, **fields)
    return parallel.prepare_parallel_set(name, config, both, {}, L, str(tmp_path / "data"))


def directories(tmp_path):
    """Returns the directories of sets, finished or not."""
    return sorted(p.name for p in (tmp_path / "data").glob("*") if p.name != "cache")


def refuse_work(*args, **kwargs):
    raise AssertionError("worked again on what was there")


def assert_same(one, other):
    assert one.pairs_P.tolist() == other.pairs_P.tolist() and one.L == other.L
    for source in ("en", "fr"):
        assert one.ids[source].tolist() == other.ids[source].tolist()
        assert one.lengths[source].tolist() == other.lengths[source].tolist()


# Packing


def as_the_reference_packs(pairs, L):
    """Section 2.9 of the specification, word for word, on lists."""
    closed, dropped, too_long = [], 0, 0
    current = None
    for pair in pairs:
        # Skip a pair if either side exceeds L ids.
        if len(pair[0]) > L or len(pair[1]) > L:
            too_long += 1
            continue
        # Append it to the current packed pair if both sides stay <= L.
        if current is None:
            current = [pair]
        elif all(sum(len(p[side]) for p in [*current, pair]) <= L for side in (0, 1)):
            current.append(pair)
        else:
            # Otherwise close the current one (drop it if the shorter side has < L/4 ids).
            shorter = min(sum(len(p[side]) for p in current) for side in (0, 1))
            if shorter < L // 4:
                dropped += len(current)
            else:
                closed.append(current)
            # And start a new one.
            current = [pair]
    # The last packed pair is kept unchecked.
    if current is not None:
        closed.append(current)
    rows = [[sum((list(p[side]) for p in row), []) for side in (0, 1)] for row in closed]
    return rows, [len(row) for row in closed], too_long, dropped


def some_pairs(longest):
    side = st.lists(st.integers(1, 999), max_size=longest)
    return st.lists(st.tuples(side, side), max_size=40)


@hypothesis.given(st.integers(1, 20), st.data())
def test_pairs_are_packed_as_the_specification_says(L, data):
    pairs = data.draw(some_pairs(L + 2))
    rows, held, too_long, dropped = as_the_reference_packs(pairs, L)
    packed = parallel.pack_pairs(iter(pairs), L)
    assert packed.pairs_P.tolist() == held
    for side in (0, 1):
        assert packed.ids[side].shape == (len(rows), L)
        assert packed.lengths[side].tolist() == [len(row[side]) for row in rows]
        padded = [row[side] + [0] * (L - len(row[side])) for row in rows]
        assert packed.ids[side].tolist() == padded
    assert packed.counts == {
        "read": len(pairs),
        "too_long": too_long,
        "packed": sum(held),
        "dropped": dropped,
    }


@hypothesis.given(st.integers(1, 20), st.data())
def test_both_sides_of_a_row_hold_the_same_pairs_and_no_pair_is_lost(L, data):
    sizes = data.draw(st.lists(st.tuples(st.integers(1, L + 2), st.integers(1, L + 2))))
    # Every id of a text is its pair's number, from 1 on.
    packed = parallel.pack_pairs(
        ([(n,) * a, (n,) * b] for n, (a, b) in enumerate(sizes, start=1)), L
    )
    found = []
    for one, other, count in zip(*packed.ids, packed.pairs_P, strict=True):
        # np.unique would sort, and hide a change of order.
        texts = [n for n, _ in itertools.groupby(one.tolist()) if n]
        assert texts == [n for n, _ in itertools.groupby(other.tolist()) if n]
        assert len(texts) == count
        found += texts
    assert found == sorted(set(found))
    counts = packed.counts
    assert counts["packed"] == len(found)
    assert counts["read"] == counts["too_long"] + counts["packed"] + counts["dropped"] == len(sizes)


def packed_sizes(sizes, L=16):
    """Returns the lengths of the rows that pairs of texts of some lengths make."""
    packed = parallel.pack_pairs([([1] * a, [2] * b) for a, b in sizes], L)
    return list(zip(packed.lengths[0].tolist(), packed.lengths[1].tolist(), strict=True)), packed


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    "sizes, rows",
    [
        ([(8, 5), (8, 5)], [(16, 10)]),  # a row may be full
        ([(8, 5), (9, 5)], [(8, 5), (9, 5)]),  # one id more begins the next
        ([(16, 6), (6, 6)], [(16, 6), (6, 6)]),  # a text may be as long as a row
        ([(8, 5), (17, 1), (8, 5)], [(16, 10)]),  # a longer one is as if it were not there
        ([(9, 4), (9, 4)], [(9, 4), (9, 4)]),  # a quarter of a row is enough
        ([(9, 3), (9, 4)], [(9, 4)]),  # one less is not
        ([(9, 4), (9, 1)], [(9, 4), (9, 1)]),  # save in the last row
        ([(9, 3), (17, 9), (5, 1)], [(14, 4)]),
    ],
)
def test_limits_of_packing_hold_for_either_side(sizes, rows, swap):
    if swap:
        sizes, rows = [pair[::-1] for pair in sizes], [row[::-1] for row in rows]
    assert packed_sizes(sizes)[0] == rows


def test_of_the_pairs_that_are_left_out_it_says_why():
    _, packed = packed_sizes([(9, 1), (1, 1), (9, 4), (17, 1), (17, 17), (9, 9)])
    assert packed.counts == {"read": 6, "too_long": 2, "packed": 2, "dropped": 2}


def test_nothing_lies_between_the_texts_of_a_row_and_zeros_after_them():
    packed = parallel.pack_pairs([(np.array([5, 6]), np.array([7])), ([8], [9, 2])], 6, np.uint16)
    assert packed.ids[0].tolist() == [[5, 6, 8, 0, 0, 0]]
    assert packed.ids[1].tolist() == [[7, 9, 2, 0, 0, 0]]
    assert packed.ids[0].dtype == packed.ids[1].dtype == np.uint16


def test_no_pairs_make_no_rows():
    packed = parallel.pack_pairs([([1] * 9, [1])], 8)
    assert packed.ids[0].shape == packed.ids[1].shape == (0, 8)
    assert packed.counts["too_long"] == packed.counts["read"] == 1


# What a prepared set holds


def test_each_side_is_its_texts_in_the_pieces_of_its_source(both, tmp_path):
    made = prepared(both, write_pairs(tmp_path / "a.jsonl"), tmp_path)
    assert made.name == "en_fr" and made.sources == ("en", "fr") and made.L == L
    assert made.about["counts"]["packed"] == made.pairs_P.sum() > 60 and len(made.pairs_P) > 10
    for source, texts in (("en", EN), ("fr", FR)):
        ids_PL, length_P = made.ids[source], made.lengths[source]
        assert ids_PL.shape == (len(made.pairs_P), L) and length_P.max() <= L
        tokenizer = both[source].tokenizer
        ids = [row[:length].tolist() for row, length in zip(ids_PL, length_P, strict=True)]
        assert "".join(tokenizer.decode(row) for row in ids) == "".join(texts)
        # Texts are encoded alone, not in the company of their neighbours.
        assert sum(ids, []) == sum((tokenizer.encode(text) for text in texts), [])


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_holds_what_it_held_before(both, tmp_path, ending):
    plain = prepared(both, write_pairs(tmp_path / "a.jsonl"), tmp_path)
    again = prepared(both, write_pairs(tmp_path / f"a.jsonl{ending}"), tmp_path)
    assert_same(plain, again)


@pytest.mark.parametrize("compress", [gzip.compress, compressed])
def test_a_file_compressed_in_parts_is_read_to_its_end(both, tmp_path, compress):
    data = write_pairs(tmp_path / "a.jsonl").read_bytes()
    path = tmp_path / ("b.jsonl.gz" if compress is gzip.compress else "b.jsonl.zst")
    path.write_bytes(compress(data[:1000]) + compress(data[1000:]))
    assert_same(prepared(both, tmp_path / "a.jsonl", tmp_path), prepared(both, path, tmp_path))


@pytest.mark.parametrize("endings", [("en", "fr"), ("en.gz", "fr.zst"), ("en.zst", "fr")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_two_files_of_lines_are_pairs_as_well(both, tmp_path, endings, end):
    for texts, ending in zip((EN, FR), endings, strict=True):
        write(tmp_path / f"a.{ending}", (end.join(texts) + end).encode())
    paths = ", ".join(str(tmp_path / f"a.{ending}") for ending in endings)
    expected = prepared(both, write_pairs(tmp_path / "a.jsonl"), tmp_path)
    assert_same(prepared(both, paths, tmp_path), expected)


def test_a_line_ends_at_a_line_feed_and_nowhere_else(both, tmp_path):
    odd = "One.\x0b\x0c\x1c\x85\u2028 Two."
    # A byte order mark is one at the beginning of a file, and text anywhere else.
    (tmp_path / "a.en").write_bytes(f"\ufeff{odd}\n\ufeffThree.".encode())
    (tmp_path / "a.fr").write_bytes(b"Un, deux.\nTrois.")
    made = prepared(both, f"{tmp_path / 'a.en'},{tmp_path / 'a.fr'}", tmp_path, L=99)
    ids = made.ids["en"][0][: made.lengths["en"][0]].tolist()
    assert both["en"].tokenizer.decode(ids) == f"{odd}\ufeffThree."
    assert made.about["counts"]["read"] == 2


def test_a_pair_with_an_empty_side_is_skipped_and_counted(both, tmp_path):
    full = list(zip(EN, FR, strict=True))
    pairs = [full[0], (" ", "Rien."), *full[1:9], ("Nothing.", ""), ("", "\t"), *full[9:]]
    expected = prepared(both, write_pairs(tmp_path / "a.jsonl"), tmp_path)
    made = prepared(both, write_pairs(tmp_path / "b.jsonl", pairs), tmp_path)
    assert_same(made, expected)
    assert made.about["counts"]["empty"] == 3 and expected.about["counts"]["empty"] == 0
    assert made.about["counts"]["read"] == len(pairs)
    for side, ending in ((0, "en"), (1, "fr")):
        (tmp_path / f"a.{ending}").write_text("".join(pair[side] + "\n" for pair in pairs))
    lines = prepared(both, f"{tmp_path / 'a.en'},{tmp_path / 'a.fr'}", tmp_path)
    assert_same(lines, expected)
    assert lines.about["counts"] == made.about["counts"]


def test_a_pair_of_which_a_tokenizer_makes_nothing_is_one_with_an_empty_side(both, tmp_path):
    def without_q(texts):
        return [[ord(letter) for letter in text if letter != "q"] for text in texts]

    tokenizer = types.SimpleNamespace(encode_all=without_q)
    stub = {name: dataclasses.replace(both[name], tokenizer=tokenizer) for name in both}
    pairs = [("ab", "c"), ("qq", "d"), ("e", "q"), ("q", "q"), ("f", "g")]
    made = prepared(stub, write_pairs(tmp_path / "a.jsonl", pairs), tmp_path)
    assert made.about["counts"] == {
        "read": 5,
        "empty": 3,
        "too_long": 0,
        "packed": 2,
        "dropped": 0,
    }
    assert made.ids["en"][0].tolist() == [*b"abf"] + [0] * (L - 3)
    assert made.ids["fr"][0].tolist() == [*b"cg"] + [0] * (L - 2)
    assert made.bytes["en"].tolist() == [3] and made.bytes["fr"].tolist() == [2]


def test_every_pair_is_counted_once(both, tmp_path):
    long = ("word " * 40, "mot")
    pairs = [("A cat.", ""), long, *zip(EN, FR, strict=True), long]
    counts = prepared(both, write_pairs(tmp_path / "a.jsonl", pairs), tmp_path).about["counts"]
    assert counts == {"read": 73, "empty": 1, "too_long": 2, "packed": 70, "dropped": 0}


def test_fields_are_the_names_of_the_sources_or_those_of_the_config(both, tmp_path):
    expected = prepared(both, write_pairs(tmp_path / "a.jsonl"), tmp_path)
    pairs = list(zip(FR, EN, strict=True))
    path = write_pairs(tmp_path / "b.jsonl", pairs, ("target", "from"))
    assert_same(prepared(both, path, tmp_path, fields=("from", "target")), expected)


def test_empty_lines_byte_order_marks_and_half_characters_do_no_harm(both, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"en": "One.", "fr": "Un."}\n\n \n{"en": "\\ud800", "fr": "Deux."}\r\n'
    )
    made = prepared(both, path, tmp_path)
    ids = made.ids["en"][0][: made.lengths["en"][0]].tolist()
    assert both["en"].tokenizer.decode(ids) == "One.\ufffd" and made.pairs_P.tolist() == [2]


@pytest.mark.parametrize("characters", [1, 100, sets._BATCH_CHARACTERS])
def test_how_many_texts_are_encoded_at_once_makes_no_difference(
    both, tmp_path, monkeypatch, characters
):
    pairs = [*zip(EN, FR, strict=True), ("", "Rien.")]
    expected = as_the_reference_packs(
        [(both["en"].tokenizer.encode(a), both["fr"].tokenizer.encode(b)) for a, b in pairs[:-1]],
        L,
    )
    monkeypatch.setattr(sets, "_BATCH_CHARACTERS", characters)
    made = prepared(both, write_pairs(tmp_path / "a.jsonl", pairs), tmp_path)
    assert made.pairs_P.tolist() == expected[1] and made.about["counts"]["empty"] == 1


def test_windows_score_every_id_of_every_text_and_nothing_else(both, tmp_path):
    made = prepared(both, write_pairs(tmp_path / "a.jsonl"), tmp_path)
    for source in ("en", "fr"):
        ids_PW, weight_PL = made.windows(source, 2)
        assert ids_PW.shape == (len(made.pairs_P), L + 1) and weight_PL.shape == (len(ids_PW), L)
        assert (ids_PW[:, 0] == 2).all() and ids_PW.dtype == made.ids[source].dtype
        assert (ids_PW[:, 1:] == made.ids[source]).all() and weight_PL.dtype == bool
        assert weight_PL.sum(axis=1).tolist() == made.lengths[source].tolist()
        # No id of a text is 0, so that is what is left without a weight.
        assert ((ids_PW[:, 1:] != 0) == weight_PL).all()


def test_bytes_of_a_row_are_those_of_its_texts_whatever_becomes_of_them(both, tmp_path):
    def short(texts):
        return [[7] * (6 if text == "long" else 1) for text in texts]

    tokenizer = types.SimpleNamespace(encode_all=short)
    stub = {name: dataclasses.replace(both[name], tokenizer=tokenizer) for name in both}
    # The second pair is too long for a row, and the third begins the next one.
    pairs = [("née", "a"), ("long", "b"), *[("ça", "ab")] * 5]
    made = prepared(stub, write_pairs(tmp_path / "a.jsonl", pairs), tmp_path, L=5)
    assert made.pairs_P.tolist() == [5, 1] and made.about["counts"]["too_long"] == 1
    assert made.bytes["en"].tolist() == [4 + 4 * 3, 3]
    assert made.bytes["fr"].tolist() == [1 + 4 * 2, 2]


def test_a_row_without_padding_is_scored_whole(both, tmp_path):
    ids = both["en"].tokenizer.encode(EN[0])
    path = write_pairs(tmp_path / "a.jsonl", [(EN[0], FR[0]), (EN[0], FR[0])])
    made = prepared(both, path, tmp_path, L=len(ids))
    ids_PW, weight_PL = made.windows("en", 2)
    assert ids_PW.tolist() == [[2, *ids]] * 2 and weight_PL.all()


# Synthetic sources


def synthetic_sources(monkeypatch, size):
    """Two worlds of words; the test decides what they say."""
    calls = []

    def said(first, second, n):
        calls.append((first, second, n))
        ids = [np.arange(size - 5, size) for _ in range(n)]
        return ids, [one[:3] for one in ids]

    monkeypatch.setattr(synthetic, "generate_parallel_sentences", said)
    pieces = types.SimpleNamespace(size=size, bytes_U=np.full(size, 2))
    made = {name: Prepared(name, f"{name}0", None, pieces) for name in ("en", "fr")}
    configs = {}
    for language, name in enumerate(made):
        dials = config_lib.SyntheticConfig(world=3, language=language)
        configs[name] = SourceConfig(kind="synthetic", synthetic=dials)
    return made, configs, calls


@pytest.mark.parametrize("wider", ["en", "fr"])
@pytest.mark.parametrize("size, dtype", [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_ids_are_as_small_as_the_wider_source_allows(monkeypatch, tmp_path, size, dtype, wider):
    made, configs, _ = synthetic_sources(monkeypatch, 99)
    made[wider].pieces = types.SimpleNamespace(size=size, bytes_U=np.full(size, 2))
    found = parallel.prepare_parallel_set("toy", declared(""), made, configs, 20, str(tmp_path))
    assert found.ids["en"].dtype == found.ids["fr"].dtype == dtype


@pytest.mark.parametrize("size", [99, (1 << 16) + 1])
def test_synthetic_sources_say_their_pairs_themselves(monkeypatch, tmp_path, size):
    made, configs, calls = synthetic_sources(monkeypatch, size)
    data_dir = str(tmp_path / "data")
    found = parallel.prepare_parallel_set("toy", declared(""), made, configs, 20, data_dir)
    assert calls == [(configs["en"].synthetic, configs["fr"].synthetic, 2048)]
    assert found.ids["en"].tolist() == [[*range(size - 5, size)] * 4] * 512
    assert found.lengths["fr"].tolist() == [12] * 512
    assert found.bytes["en"].tolist() == [40] * 512 and found.bytes["fr"].tolist() == [24] * 512
    # Once is enough, until a dial is turned.
    parallel.prepare_parallel_set("toy", declared(""), made, configs, 20, data_dir)
    assert len(calls) == 1
    configs["fr"] = dataclasses.replace(configs["fr"], synthetic=config_lib.SyntheticConfig())
    parallel.prepare_parallel_set("toy", declared(""), made, configs, 20, data_dir)
    assert len(calls) == 2 and len(directories(tmp_path)) == 2


def test_languages_of_one_world_with_the_same_words_say_the_same_in_every_row(tmp_path):
    configs, made = {}, {}
    for language, name in enumerate(("en", "fr")):
        dials = config_lib.SyntheticConfig(language=language, lemmas=64, overlap=1.0)
        configs[name] = SourceConfig(kind="synthetic", synthetic=dials)
        made[name] = synthetic.SyntheticSource(name, dials)
    found = parallel.prepare_parallel_set("toy", declared(""), made, configs, 40, str(tmp_path))
    assert found.about["counts"]["packed"] == 2048 and len(found.pairs_P) > 100
    for rows in zip(found.ids["en"], found.ids["fr"], strict=True):
        texts = [
            made[name].tokenizer.decode(row[row > 0].tolist())
            for name, row in zip(made, rows, strict=True)
        ]
        assert texts[0] == texts[1] and len(texts[0].split()) > 20


def test_synthetic_texts_that_are_too_long_are_refused_by_the_name_of_the_set(
    monkeypatch, tmp_path
):
    made, configs, _ = synthetic_sources(monkeypatch, 50)
    with pytest.raises(ValueError, match=r"^config\.parallel\.toy: no pair is left of 2,048"):
        parallel.prepare_parallel_set("toy", declared(""), made, configs, 4, str(tmp_path))


# Doing it once


def test_preparing_again_changes_nothing_and_reads_no_text(both, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CLOCK", 0)
    path = write_pairs(tmp_path / "a.jsonl")
    made = prepared(both, path, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}
    for work in ("pack_pairs", "read_pairs", "_write_set"):
        monkeypatch.setattr(sets, work, refuse_work)
    monkeypatch.setattr(hashlib, "file_digest", refuse_work)
    again = prepared(both, path, tmp_path)
    assert_same(made, again)
    assert again.fingerprint == made.fingerprint and again.about == made.about
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")} == before


def test_where_a_file_lies_and_how_its_fields_are_named_make_no_other_set(
    both, tmp_path, monkeypatch
):
    made = prepared(both, write_pairs(tmp_path / "a.jsonl"), tmp_path)
    monkeypatch.setattr(sets, "pack_pairs", refuse_work)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").rename(tmp_path / "b, c.jsonl")
    again = prepared(both, "~/b, c.jsonl", tmp_path, fields=("en", "fr"))
    assert again.fingerprint == made.fingerprint


def test_a_cache_of_digests_that_cannot_be_used_is_written_anew(both, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CLOCK", 0)
    path = write_pairs(tmp_path / "a.jsonl")
    made = prepared(both, path, tmp_path)
    cache = tmp_path / "data" / "cache" / "digests.json"
    assert list(read_plain_json(cache).values()) == [hashlib.sha256(path.read_bytes()).hexdigest()]
    for damaged in ("", "[]", '{"', "\xff"):
        cache.write_text(damaged, encoding="latin-1")
        assert prepared(both, path, tmp_path).fingerprint == made.fingerprint
        assert len(read_plain_json(cache)) == 1


def changed_text(both, path):
    write_pairs(path, list(zip(EN, FR, strict=True))[:-1])
    return {}


def changed_field(both, path):
    return {"fields": ("en", "other")}


def changed_source(name):
    return lambda both, path: {
        "both": both | {name: dataclasses.replace(both[name], fingerprint="1")}
    }


def changed_length(both, path):
    return {"L": L + 1}


def changed_version(both, path):
    sets._VERSION += 1
    return {}


@pytest.mark.parametrize(
    "change",
    [
        changed_text,
        changed_field,
        changed_source("en"),
        changed_source("fr"),
        changed_length,
        changed_version,
    ],
)
def test_other_pairs_are_another_directory_and_the_old_one_stays(
    both, tmp_path, monkeypatch, change
):
    monkeypatch.setattr(sets, "_VERSION", sets._VERSION)  # put back afterwards
    path = tmp_path / "a.jsonl"
    triples = [(*pair, "Autre.") for pair in zip(EN, FR, strict=True)]
    write_pairs(path, triples, ("en", "fr", "other"))
    old = prepared(both, path, tmp_path)
    [directory] = directories(tmp_path)
    assert directory == f"parallel-en_fr-{old.fingerprint}"
    new = prepared(**({"both": both, "path": path, "tmp_path": tmp_path} | change(both, path)))
    assert new.fingerprint != old.fingerprint
    assert set(directories(tmp_path)) == {directory, f"parallel-en_fr-{new.fingerprint}"}


def test_the_two_sides_are_not_taken_for_each_other(both, tmp_path):
    for ending, texts in (("en", EN), ("fr", FR)):
        (tmp_path / f"a.{ending}").write_text("\n".join(texts))
    one = prepared(both, f"{tmp_path / 'a.en'},{tmp_path / 'a.fr'}", tmp_path, L=99)
    other = prepared(both, f"{tmp_path / 'a.fr'},{tmp_path / 'a.en'}", tmp_path, L=99)
    assert one.fingerprint != other.fingerprint


def test_a_preparation_that_fails_leaves_nothing(both, tmp_path, monkeypatch):
    path = write_pairs(tmp_path / "a.jsonl")
    with path.open("a") as file:
        file.write("{")
    with pytest.raises(ValueError, match="line 71: is not valid JSON"):
        prepared(both, path, tmp_path)
    assert directories(tmp_path) == []
    write_pairs(path)
    save = np.save

    def no_space_left(file, array):
        if array.ndim == 2:
            raise OSError("no space left")
        save(file, array)

    monkeypatch.setattr(np, "save", no_space_left)
    with pytest.raises(OSError, match="no space left"):
        prepared(both, path, tmp_path)
    assert directories(tmp_path) == []


def test_two_runs_that_pack_the_same_pairs_at_once_share_one_directory(both, tmp_path, monkeypatch):
    path = write_pairs(tmp_path / "a.jsonl")
    faster = []
    pack = parallel.pack_pairs

    def overtaken(*args):
        monkeypatch.setattr(sets, "pack_pairs", pack)
        faster.append(prepared(both, path, tmp_path))
        return pack(*args)

    monkeypatch.setattr(sets, "pack_pairs", overtaken)
    assert_same(prepared(both, path, tmp_path), faster[0])
    assert directories(tmp_path) == [f"parallel-en_fr-{faster[0].fingerprint}"]


FILES = (
    *("about.json", "en.bytes.npy", "en.ids.npy", "en.lengths.npy"),
    *("fr.bytes.npy", "fr.ids.npy", "fr.lengths.npy", "pairs.npy"),
)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.unlink()])
def test_a_damaged_directory_is_refused_until_it_is_deleted(both, tmp_path, file, damage):
    path = write_pairs(tmp_path / "a.jsonl")
    made = prepared(both, path, tmp_path)
    directory = tmp_path / "data" / f"parallel-en_fr-{made.fingerprint}"
    assert sorted(p.name for p in directory.iterdir()) == sorted(FILES)
    damage(directory / file)
    message = rf"^{re.escape(str(directory / file))} .*Delete the directory"
    if (file, damage) == ("about.json", flip):
        (directory / file).write_text("[]")  # a last byte that is flipped is still JSON
    with pytest.raises(ValueError, match=message):
        prepared(both, path, tmp_path)
    shutil.rmtree(directory)
    assert_same(prepared(both, path, tmp_path), made)


# What is wrong with a file


@pytest.mark.parametrize(
    "path, message",
    [
        ("none.jsonl", r"there is no file none\.jsonl \(looked for /.*none\.jsonl\)"),
        ("a.en,none.fr", r"there is no file none\.fr \(looked for /"),
        ("deep.jsonl", "is a directory"),
        ("empty.jsonl", r"is empty \(0 bytes\)"),
        ("a.en", r"does not end in one of \.jsonl, \.json, .*\.zst.* or \.tmx"),
        ("a.en,a.fr,a.de", "names 3 files"),
        (" ,", "names 0 files"),
        ("a.en, ./a.en", "names one file twice"),
        ("a.jsonl,a.en", r"a\.jsonl has both sides of a pair on each line"),
    ],
)
def test_a_path_that_cannot_be_right_is_refused_before_anything_is_read(
    tmp_path, monkeypatch, path, message
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.en", "a.fr", "a.de", "a.jsonl"):
        (tmp_path / name).write_text("x")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "deep.jsonl").mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        parallel.check_parallel_set("en_fr", declared(path))
    assert str(caught.value).startswith(f"config.parallel.en_fr.path={path!r}")


def test_a_check_reads_no_more_than_the_first_pair(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\xff\xff")
    parallel.check_parallel_set("en_fr", declared(tmp_path / "a.jsonl"))
    parallel.check_parallel_set("en_fr", declared(""))  # synthetic


def test_one_field_for_both_sides_is_refused(tmp_path):
    path = write_pairs(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"config\.parallel\.en_fr\.fields=.*one and the same"):
        parallel.check_parallel_set("en_fr", declared(path, fields=("en", "en")))


def test_fields_are_found_by_dots_and_missed_before_all_is_read(tmp_path):
    row = {"translation": {"en": "One.", "fr": "Un."}}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    nested = declared(path, fields=("translation.en", "translation.fr"))
    parallel.check_parallel_set("en_fr", nested)
    assert list(read_pairs("en_fr", nested, lambda share: None)) == [("One.", "Un.")]
    with pytest.raises(ValueError, match=r"has no field 'en'; it has: translation\.en, "):
        parallel.check_parallel_set("en_fr", declared(path))


def test_two_files_are_named_with_braces_and_have_no_fields(tmp_path):
    for language in ("en", "fr"):
        (tmp_path / f"both,{language}").write_text(f"{language}\n")
    both = f"{tmp_path}/both[,]{{en,fr}}"
    found = list(read_pairs("en_fr", declared(both), lambda share: None))
    assert found == [("en", "fr")]
    with pytest.raises(ValueError, match=r"config\.parallel\.en_fr\.fields=.*two files of lines"):
        parallel.check_parallel_set("en_fr", declared(both, fields=("a", "b")))


GOOD = b'{"en": "One.", "fr": "Un."}\n'


@pytest.mark.parametrize(
    "line, message",
    [
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'["a", "b"]', r'is a JSON array, not an object\. .*such as {"en": "\.\.\.", "fr"'),
        (b'"a"', "is a JSON string, not an object"),
        (b'{"en": "a", "id": 7}', r"no field 'fr'; it has: en, id\. Set config\.parallel\.en_fr"),
        (b"{}", "has no field 'en'; it has: none"),
        (
            b'{"en": "a", "fr": 7}',
            r"field 'fr' is a JSON number, not a string.*config\.parallel\.en_fr\.fields",
        ),
        (b'{"en": null, "fr": "b"}', "its field 'en' is a JSON null, not a string"),
        (b'{"en": true, "fr": "b"}', "its field 'en' is a JSON boolean, not a string"),
        (b'{"en": "caf\xe9", "fr": "b"}', r"is not UTF-8 text \(byte 0xe9, at offset 11"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_line_that_is_not_a_pair_is_named(both, tmp_path, line, message, ending):
    path = write(tmp_path / f"a.jsonl{ending}", GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}, line 3: .*{message}"):
        prepared(both, path, tmp_path)


def test_a_line_of_plain_text_that_is_not_utf8_is_named(both, tmp_path):
    (tmp_path / "a.en").write_bytes(b"One.\nTwo.\n")
    (tmp_path / "a.fr").write_bytes(b"Un.\nD\xe9ux.\n")
    with pytest.raises(ValueError, match=r"a\.fr, line 2: is not UTF-8 text .*offset 1 "):
        prepared(both, f"{tmp_path / 'a.en'},{tmp_path / 'a.fr'}", tmp_path)


@pytest.mark.parametrize("ending, kind", [("gz", "gzip"), ("zst", "zstd")])
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_compressed_file_that_is_damaged_is_refused(both, tmp_path, ending, kind, damage):
    path = write_digests(tmp_path / f"a.jsonl.{ending}")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"not compressed")
    with pytest.raises(
        ValueError,
        match=rf"a\.jsonl\.{ending}, after line \d+: the {kind} data is truncated or corrupt",
    ) as caught:
        prepared(both, path, tmp_path)
    line = int(re.search(r"after line (\d+)", str(caught.value))[1])
    assert line == 0 if damage == "other" else 100 < line < 1000


def write_digests(path):
    # Digests do not compress, so that half of the file is half of the lines.
    texts = [hashlib.sha512(b"%d" % n).hexdigest() for n in range(1000)]
    return write_pairs(path, list(zip(texts, texts, strict=True)))


def test_a_compressed_file_with_a_wrong_byte_is_refused_by_its_line(both, tmp_path):
    path = write_digests(tmp_path / "a.jsonl.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    # What is wrong may come out as a line that is no JSON.
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz, (after )?line \d+: "):
        prepared(both, path, tmp_path)
    assert directories(tmp_path) == []


@pytest.mark.parametrize("lengths", [(70, 67), (66, 70), (70, 69)])
def test_two_files_of_unequal_length_are_refused_with_both_counts(both, tmp_path, lengths):
    (tmp_path / "a.en").write_text("\n".join(EN[: lengths[0]]))
    (tmp_path / "a.fr").write_text("\n".join(FR[: lengths[1]]) + "\n")
    message = (
        rf"config\.parallel\.en_fr\.path: .*a\.en has {lengths[0]} lines .*a\.fr has {lengths[1]}\."
    )
    with pytest.raises(ValueError, match=message):
        prepared(both, f"{tmp_path / 'a.en'},{tmp_path / 'a.fr'}", tmp_path)
    assert directories(tmp_path) == []


def test_where_no_pair_is_left_it_says_why(both, tmp_path):
    pairs = [("", "Rien."), ("word " * 40, "mot"), ("word", "mot " * 40)]
    path = write_pairs(tmp_path / "a.jsonl", pairs)
    with pytest.raises(
        ValueError,
        match=r"^config\.parallel\.en_fr\.path='.*a\.jsonl': no pair is left of 3\. 1 have an "
        r"empty side, and 2 have a side of more than config\.model\.L=24 ids\.",
    ):
        prepared(both, path, tmp_path)
    (tmp_path / "b.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"no pair is left of 0\."):
        prepared(both, tmp_path / "b.jsonl", tmp_path)
    assert directories(tmp_path) == []


# Files of one source each, and sets of several sources


def write_sides(folder, ending=".jsonl"):
    """Writes a file of each of three languages with ids, in orders of their own."""
    sides = {
        "en": [(1, "One."), (2, "Two."), (3, "Three."), (9, "Nine.")],
        "fr": [(3, "Trois."), (1, "Un."), (2, ""), (7, "Sept.")],
        "de": [(2, "Zwei."), (1, "Eins."), (3, "Drei.")],
    }
    for source, rows in sides.items():
        path = folder / f"{source}{ending}"
        columns = dict(zip(("id", "text"), map(list, zip(*rows, strict=True)), strict=True))
        if ending == ".parquet":
            parquet.write_table(pyarrow.table(columns), path)
        elif ending == ".tsv":
            write(path, "".join(f"{id_}\t{text}\n" for id_, text in rows).encode())
        else:
            rows = [{"id": id_, "text": text} for id_, text in rows]
            write(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


@pytest.mark.parametrize(
    "ending, fields", [(".jsonl", {}), (".parquet", {}), (".tsv", {"fields": ("2",)})]
)
def test_files_of_one_language_each_are_joined_by_their_ids(both, tmp_path, capsys, ending, fields):
    write_sides(tmp_path, ending)
    join = "1" if ending == ".tsv" else "id"
    config = declared(f"{tmp_path}/{{source}}{ending}", join=join, **fields)
    counts = {}
    found = list(read_pairs("en_fr", config, lambda share: None, counts))
    assert found == [("One.", "Un."), ("Two.", ""), ("Three.", "Trois.")]
    assert counts == {"unjoined": 2}
    made = parallel.prepare_parallel_set("en_fr", config, both, {}, L, str(tmp_path / "data"))
    assert made.about["counts"] == {
        "read": 3, "too_long": 0, "packed": 2, "dropped": 0, "empty": 1, "unjoined": 2
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "1 of 3 pairs have an empty side" in said
    assert f"2 texts have an id in '{join}' that the other file lacks" in said


def test_ids_that_cannot_join_two_files_are_refused(tmp_path):
    write_sides(tmp_path)
    path = f"{tmp_path}/{{source}}.jsonl"
    with pytest.raises(ValueError, match=r"en\.jsonl has both sides .* name the field"):
        parallel.check_parallel_set("en_fr", declared(path))
    with pytest.raises(ValueError, match=r"line 1: has no id in its field 'url'; it has: id, text"):
        list(read_pairs("en_fr", declared(path, join="url"), lambda share: None))
    (tmp_path / "fr.jsonl").write_text('{"id": 5, "text": "a"}\n{"id": 5, "text": "b"}\n')
    with pytest.raises(ValueError, match=r"fr\.jsonl, line 2: the id 5 is that of another text"):
        list(read_pairs("en_fr", declared(path, join="id"), lambda share: None))
    (tmp_path / "fr.jsonl").write_text('{"id": 5, "text": "a"}\n')
    with pytest.raises(ValueError, match=r"join: no id of .*en\.jsonl is in .*fr\.jsonl"):
        list(read_pairs("en_fr", declared(path, join="id"), lambda share: None))
    for name in ("a.en", "a.fr"):
        (tmp_path / name).write_text("x")
    for fields in ({"join": "id"}, {"fields": ("text",)}):
        with pytest.raises(ValueError, match=r"two files of lines have none"):
            parallel.check_parallel_set("en_fr", declared(f"{tmp_path}/a.{{source}}", **fields))
    with pytest.raises(ValueError, match=r"join='id' is of records, and one file with both sides"):
        parallel.check_parallel_set("en_fr", declared(write_pairs(tmp_path / "b.jsonl"), join="id"))


def write_table_of_pairs(path, pairs):
    rows = [{"translation": dict(zip(("en", "fr"), pair, strict=True))} for pair in pairs]
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return ("translation.en", "translation.fr")
    if path.suffix == ".tsv":
        write(path, "".join(f"0\t{one}\t{other}\n" for one, other in pairs).encode())
        return ("2", "3")
    variants = [f'<tuv xml:lang="{tag}"><seg>{{}}</seg></tuv>' for tag in ("en", "fr")]
    units = "".join("<tu>" + "".join(variants).format(*pair) + "</tu>" for pair in pairs)
    other = '<tu><tuv xml:lang="en"><seg>alone</seg></tuv></tu>'
    path.write_text(f"<tmx><body>{other}{units}</body></tmx>")
    return ()


@pytest.mark.parametrize("ending", [".parquet", ".tsv", ".tmx"])
def test_one_table_of_any_format_has_both_sides(both, tmp_path, ending):
    pairs = list(zip(EN, FR, strict=True))
    fields = write_table_of_pairs(tmp_path / f"a{ending}", pairs)
    assert_same(
        prepared(both, tmp_path / f"a{ending}", tmp_path, fields=fields),
        prepared(both, write_pairs(tmp_path / "a.jsonl"), tmp_path),
    )


def test_a_set_of_several_sources_is_a_set_of_each_two_of_them(both, tmp_path):
    sources = {"en": both["en"], "fr": both["fr"], "de": both["fr"]}
    texts = {"en": EN, "fr": FR, "de": FR[::-1]}
    for source, lines in texts.items():
        (tmp_path / f"{source}.dev").write_text("\n".join(lines))
    path = f"{tmp_path}/{{source}}.dev"
    config = config_of({name: name for name in sources}, {"flores": (tuple(sources), path)})
    config = dataclasses.replace(config, data_dir=str(tmp_path / "data"))
    parallel.check_all_parallel_sets(config)
    made = parallel.prepare_all_parallel_sets(config, sources)
    assert list(made) == ["flores:en-de", "flores:en-fr", "flores:fr-de"]
    by_hand = prepared(both, f"{tmp_path}/en.dev,{tmp_path}/fr.dev", tmp_path)
    assert by_hand.fingerprint == made["flores:en-fr"].fingerprint
    assert_same(made["flores:en-fr"], by_hand)
    assert made["flores:fr-de"].sources == ("fr", "de")
    assert len(parallel.list_aligned_pairs(config)) == 3
    found = parallel.find_aligned_sequences(config, sources, made, "de", "en", 2)
    assert found.set == "flores:en-de"
    assert np.array_equal(found.ids[1], made["flores:en-de"].ids["en"][:2])


def test_a_table_of_several_sources_has_a_field_for_each(tmp_path):
    rows = [{"s": {"a": "One.", "b": "Un.", "c": "Eins."}}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    of_all = ParallelConfig(("en", "fr", "de"), str(tmp_path / "a.jsonl"), ("s.a", "s.b", "s.c"))
    pairs = config_lib.list_pair_sets({"all": of_all, "two": declared("x")})
    assert {name: set_.sources for name, set_ in pairs.items()} == {
        "all:en-fr": ("en", "fr"),
        "all:en-de": ("en", "de"),
        "all:fr-de": ("fr", "de"),
        "two": ("en", "fr"),
    }
    found = list(read_pairs("all:fr-de", pairs["all:fr-de"], lambda share: None))
    assert found == [("Un.", "Eins.")]


def test_lines_that_are_shifted_are_counted_and_said(both, tmp_path, capsys):
    random = np.random.default_rng(0)
    lengths = random.lognormal(0, 1, 400)
    one = ["".join("ab"[n % 2] for n in range(int(4 * length) + 1)) for length in lengths]
    (tmp_path / "a.en").write_text("\n".join(one))
    for shift, is_said in ((0, False), (1, True)):
        (tmp_path / "a.fr").write_text("\n".join(one[shift:] + one[:shift]))
        prepared(both, f"{tmp_path}/a.en,{tmp_path}/a.fr", tmp_path, L=200, name=f"by{shift}")
        said = capsys.readouterr().out
        assert ("one side is more than 3 times as long" in said) is is_said


# The sets of a run


def config_of(tags, sets=None, **model):
    """Returns a config of languages, tag -> source or (clone of), and sets, name -> sources."""
    config = config_lib.default()
    clones = {tag for tag, origin in tags.items() if origin != tag and origin in tags}
    for name in {origin for tag, origin in tags.items() if tag not in clones}:
        config.sources[name] = config_lib.declared(SourceConfig)
    for tag, origin in tags.items():
        fields = {"clone_of" if tag in clones else "source": origin}
        config.languages[tag] = config_lib.declared(LanguageConfig, **fields)
        config.mixture.ratio[tag] = 1
    for name, (names, path) in (sets or {}).items():
        config.parallel[name] = config_lib.declared(ParallelConfig, sources=names, path=str(path))
    config.model.L = L
    return config_lib.resolve_config(config)


def test_a_run_prepares_the_sets_of_its_sources_and_no_others(both, tmp_path):
    path = write_pairs(tmp_path / "a.jsonl")
    tags = {"english": "en", "french": "fr", "german": "de"}
    sets = {"b": (("fr", "en"), path), "a": (("en", "fr"), path), "c": (("en", "de"), "none")}
    config = config_of(tags, sets)
    config = dataclasses.replace(config, data_dir=str(tmp_path / "data"))
    made = parallel.prepare_all_parallel_sets(config, both)
    assert list(made) == ["a", "b"] and made["b"].sources == ("fr", "en")
    assert_same(made["a"], made["b"])
    with pytest.raises(ValueError, match=r"config\.parallel\.c\.path='none'"):
        parallel.prepare_all_parallel_sets(config, both | {"de": both["fr"]})


def test_all_sets_are_checked_before_the_first_is_worked_on(both, tmp_path, monkeypatch):
    path = write_pairs(tmp_path / "a.jsonl")
    sets = {"a": (("en", "fr"), path), "b": (("en", "fr"), "none.jsonl")}
    config = config_of({"english": "en", "french": "fr"}, sets)
    monkeypatch.setattr(parallel, "prepare_parallel_set", refuse_work)
    with pytest.raises(ValueError, match=r"config\.parallel\.b\.path='none\.jsonl'"):
        parallel.prepare_all_parallel_sets(config, both)


# Aligned languages


CLONES = {"en1": "en", "en2": "en1", "en10": "en1", "fr": "fr", "de": "de"}


def counting(both, length):
    """English whose test split is 0, 1, 2, ..."""
    return both | {"en": dataclasses.replace(both["en"], test=np.arange(length, dtype=np.uint16))}


@pytest.mark.parametrize("most, starts", [(0, range(7)), (7, range(7)), (9, range(7))])
def test_languages_of_one_source_are_aligned_on_all_windows_of_its_test_split(both, most, starts):
    config = config_of(CLONES)
    found = parallel.find_aligned_sequences(
        config, counting(both, 7 * L + 5), {}, "en2", "en10", most
    )
    expected = [list(range(n * L, (n + 1) * L)) for n in starts]
    assert found.ids[0].tolist() == found.ids[1].tolist() == expected
    assert found.lengths[0].tolist() == found.lengths[1].tolist() == [L] * 7
    assert found.ids[0].dtype == np.uint16


@pytest.mark.parametrize("most", [1, 3, 10])
def test_fewer_windows_are_spread_over_the_test_split(both, most):
    config = config_of(CLONES)
    found = parallel.find_aligned_sequences(config, counting(both, 50 * L), {}, "en1", "en2", most)
    starts = found.ids[0][:, 0]
    assert len(starts) == most and starts[0] == 0 and (starts % L == 0).all()
    assert (found.ids[0] == starts[:, None] + np.arange(L)).all()
    gaps = np.diff([*starts, 50 * L]) // L
    assert gaps.max() - gaps.min() <= 1 and gaps.sum() == 50


def test_a_test_split_shorter_than_a_window_is_one_padded_row(both):
    found = parallel.find_aligned_sequences(
        config_of(CLONES), counting(both, 5), {}, "en1", "en2", 3
    )
    assert found.ids[0].tolist() == found.ids[1].tolist() == [[0, 1, 2, 3, 4] + [0] * (L - 5)]
    assert found.lengths[0].tolist() == found.lengths[1].tolist() == [5]


def test_without_a_test_split_nothing_is_aligned(both):
    assert parallel.find_aligned_sequences(config_of(CLONES), both, {}, "en1", "en2", 3) is None


def toys_of(tmp_path, *, length, tokens=0, depth=3):
    """Returns a config of two clones of a toy language, and its source, prepared."""
    config = config_lib.default()
    config.sources.toy = config_lib.declared(SourceConfig, kind="synthetic")
    config.sources.toy.synthetic.update({"lemmas": 64, "depth": depth, "tokens": tokens})
    config.languages.a = config_lib.declared(LanguageConfig, source="toy")
    config.languages.b = config_lib.declared(LanguageConfig, clone_of="a")
    config.mixture.ratio.update({"a": 1, "b": 1})
    config.data_dir, config.model.L = str(tmp_path), length
    config = config_lib.resolve_config(config)
    return config, prepare.prepare_run_sources(config)


@pytest.mark.parametrize("tokens", [0, 3000])  # without end, and on disk
@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(("length", "documents"), [(24, 1), (129, 1), (130, 2), (300, 3)])
def test_windows_of_synthetic_text_begin_where_documents_do_and_share_no_id(
    tmp_path, tokens, split, length, documents
):
    config, sources = toys_of(tmp_path, length=length, tokens=tokens)
    text = sources["toy"].tokens(split)
    begins = [0, *(np.flatnonzero(text == 2) + 1)]
    starts = [b for b in begins[::documents] if b + length <= len(text)]
    all_of = parallel.find_aligned_sequences(config, sources, {}, "a", "b", 0, split)
    assert min(np.diff(starts)) >= length and len(starts) == len(text) // (129 * documents)
    expected = [text[start : start + length].tolist() for start in starts]
    assert all_of.ids[0].tolist() == all_of.ids[1].tolist() == expected
    assert all_of.positions and set(all_of.lengths[0]) == {length}
    few = parallel.find_aligned_sequences(config, sources, {}, "a", "b", 7, split)
    chosen = np.arange(7) * len(starts) // 7  # spread over the split
    assert few.ids[1].tolist() == [expected[n] for n in chosen]
    many = parallel.find_aligned_sequences(config, sources, {}, "a", "b", 10**6, split)
    assert many.ids[0].shape == all_of.ids[0].shape


def test_a_held_out_split_of_one_long_document_is_one_row(tmp_path):
    config, sources = toys_of(tmp_path, length=80, depth=12)
    found = parallel.find_aligned_sequences(config, sources, {}, "a", "b", 5, "validation")
    assert found.ids[0].tolist() == [sources["toy"].tokens("validation")[:80].tolist()]


@pytest.mark.parametrize("length", [16, 64, 65, 100, 256, 258, 300])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_place_where_a_row_of_synthetic_text_is_parted_is_inside_a_sentence(
    tmp_path, length, depth
):
    config, sources = toys_of(tmp_path, length=length, depth=depth)
    found = parallel.find_aligned_sequences(config, sources, {}, "a", "b", 5)
    assert abs(found.prefix - length // 2) <= 2**depth and found.prefix <= length - 4
    ends = found.ids[0][:, found.prefix - 1 : found.prefix + 2]
    # No period before the place, nor at it or after it: the id at it is not scored.
    if 2**depth <= length // 2:
        assert not np.isin(ends[:, :2], [2, synthetic.FIRST_WORD - 1]).any()


@pytest.mark.parametrize(
    ("order", "depth"),
    [("head_first", 2), ("head_first", 3), ("head_last", 2), ("head_last", 3), ("head_middle", 3)],
)
def test_what_lies_before_the_place_of_parting_tells_of_ids_that_are_scored(tmp_path, order, depth):
    config, _ = toys_of(tmp_path, length=24, depth=depth)
    # Two ranks of four topics; in some other worlds the id at the place tells all by itself.
    changes = {"lemmas": 8, "topics": 4, "world": 1, "order": order}
    toy = dataclasses.replace(config.sources["toy"].synthetic, **changes)
    declared_toy = dataclasses.replace(config.sources["toy"], synthetic=toy)
    config = dataclasses.replace(config, sources={"toy": declared_toy})
    sources = {"toy": synthetic.SyntheticSource("toy", toy)}
    found = parallel.find_aligned_sequences(config, sources, {}, "a", "b", 0)
    ids_PL, place, length = found.ids[0].astype(int) - synthetic.FIRST_WORD, found.prefix, 2**depth
    begin = place - place % length  # of the sentence that is parted, of 7 or of 3 words

    def tell(shift: int) -> float:
        """Most information on a scored word's topic in a word before, given the id at the place."""
        return max(
            conditional_information(np.roll(ids_PL[:, before], shift), ids_PL[:, after] % 4, given)
            for before in range(begin, place)
            for after in range(place + 1, begin + length - 1)
        )

    given = ids_PL[:, place]
    assert place + 1 < begin + length - 1
    assert tell(0) > tell(1) + 0.05


def conditional_information(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> float:
    """The mutual information of two lists of numbers below 8 given a third, in nats."""
    counts = np.zeros((8, 8, 8))
    np.add.at(counts, (given, a, b), 1)
    p = counts / counts.sum()
    both = p.sum(axis=2, keepdims=True) * p.sum(axis=1, keepdims=True)
    apart = both / np.maximum(p.sum(axis=(1, 2), keepdims=True), 1e-300)
    return float((p[p > 0] * np.log(p[p > 0] / apart[p > 0])).sum())


def test_every_row_of_a_synthetic_set_begins_with_a_sentence_and_all_are_of_one_shape(tmp_path):
    configs, made = {}, {}
    for language, name in enumerate(("en", "fr")):
        dials = config_lib.SyntheticConfig(language=language, lemmas=64)
        configs[name] = SourceConfig(kind="synthetic", synthetic=dials)
        made[name] = synthetic.SyntheticSource(name, dials)
    found = parallel.prepare_parallel_set("toy", declared(""), made, configs, 44, str(tmp_path))
    period = synthetic.FIRST_WORD - 1
    for name in made:
        # Five sentences of eight ids in 44; only the last row is what is left.
        assert set(found.lengths[name][:-1]) == {40}
        at = np.arange(44) % 8 == 7
        text = np.arange(44) < found.lengths[name][:, None]
        assert ((found.ids[name] == period) == (at & text)).all()


def reordered(config, tag):
    language = dataclasses.replace(config.languages[tag], words="reversed")
    return dataclasses.replace(config, languages={**config.languages, tag: language})


def test_a_language_with_words_in_another_order_has_its_windows_in_that_order(english):
    config = reordered(config_of(CLONES), "en2")
    made = (
        english.tokens("test"),
        views.load_language_tokens(english, "test", config.languages["en2"]),
    )
    assert made[0].tolist() != made[1].tolist()
    rows = len(made[0]) // L
    expected = [one[: rows * L].reshape(rows, L).tolist() for one in made]
    found = parallel.find_aligned_sequences(config, {"en": english}, {}, "en1", "en2", 0)
    assert [one.tolist() for one in found.ids] == expected
    back = parallel.find_aligned_sequences(config, {"en": english}, {}, "en2", "en1", 0)
    assert [one.tolist() for one in back.ids] == expected[::-1]
    assert ("en1", "en2") in parallel.list_aligned_pairs(config)


@pytest.mark.parametrize("other", ["en1", "fr"])
def test_a_language_with_words_in_another_order_has_no_rows_of_a_set(both, other):
    config = reordered(config_of(CLONES, {"x": (("en", "fr"), "a.jsonl")}), other)
    assert parallel.find_aligned_sequences(config, both, {}, "en1", "fr", 0) is None
    assert ("en1", "fr") not in parallel.list_aligned_pairs(config)
    assert (("en2", "fr") in parallel.list_aligned_pairs(config)) == (other == "en1")


@pytest.mark.parametrize("names", [("en", "fr"), ("fr", "en")])
@pytest.mark.parametrize("english", ["en1", "en10"])
def test_languages_of_two_sources_are_aligned_on_their_set_whichever_comes_first(
    both, tmp_path, names, english
):
    path = write_pairs(tmp_path / "a.jsonl")
    config = config_of(CLONES, {"pairs": (names, path)})
    pairs = ParallelConfig(sources=names, path=str(path))
    made = parallel.prepare_parallel_set("pairs", pairs, both, {}, L, str(tmp_path / "data"))
    found = parallel.find_aligned_sequences(config, both, {"pairs": made}, english, "fr", 0)
    assert found.ids[0].tolist() == made.ids["en"].tolist()
    assert found.ids[1].tolist() == made.ids["fr"].tolist()
    assert found.lengths[0].tolist() == made.lengths["en"].tolist()
    assert found.lengths[1].tolist() == made.lengths["fr"].tolist()
    back = parallel.find_aligned_sequences(config, both, {"pairs": made}, "fr", english, 5)
    assert back.ids[0].tolist() == made.ids["fr"][:5].tolist()
    assert back.ids[1].tolist() == made.ids["en"][:5].tolist()
    assert back.lengths[0].tolist() == made.lengths["fr"][:5].tolist()
    assert parallel.find_aligned_sequences(config, both, {"pairs": made}, "de", "fr", 5) is None


def test_of_several_sets_of_two_sources_the_first_by_name_is_used(both, tmp_path):
    path = write_pairs(tmp_path / "a.jsonl")
    sets = {"b": (("en", "fr"), path), "a": (("fr", "en"), path), "0": (("en", "de"), path)}
    config = config_of(CLONES, sets)
    made = prepared(both, path, tmp_path)
    for names in (sets, sorted(sets)):  # whatever the order of their declaration
        ordered = {name: config.parallel[name] for name in names}
        config = dataclasses.replace(config, parallel=ordered)
        found = parallel.find_aligned_sequences(config, both, {"a": made}, "en1", "fr", 1)
        assert found.ids[0].tolist() == made.ids["en"][:1].tolist()


def test_the_pairs_of_languages_with_aligned_text_are_in_the_order_of_the_tags(both, tmp_path):
    config = config_of(CLONES, {"x": (("fr", "en"), "a.jsonl")})
    assert config.tags == ("de", "en1", "en2", "en10", "fr")
    assert parallel.list_aligned_pairs(config) == [
        ("en1", "en2"),
        ("en1", "en10"),
        ("en1", "fr"),
        ("en2", "en10"),
        ("en2", "fr"),
        ("en10", "fr"),
    ]
    made = prepared(both, write_pairs(tmp_path / "a.jsonl"), tmp_path)
    texts = counting(both, 50)
    for a, b in itertools.combinations(config.tags, 2):
        found = parallel.find_aligned_sequences(config, texts, {"x": made}, a, b, 1)
        assert (found is not None) == ((a, b) in parallel.list_aligned_pairs(config))


def test_preparing_pairs_needs_no_jax(tmp_path):
    script = f"""
        import sys, types
        from imbalance_jax.config import ParallelConfig
        from imbalance_jax.data import parallel

        class Tokenizer:
            def encode_all(self, texts):
                return [[3 + len(word) for word in text.split()] for text in texts]

        source = types.SimpleNamespace(
            fingerprint="0", tokenizer=Tokenizer(), pieces=types.SimpleNamespace(size=99)
        )
        pairs = ParallelConfig(("en", "fr"), {str(write_pairs(tmp_path / "a.jsonl.zst"))!r})
        sources = {{"en": source, "fr": source}}
        made = parallel.prepare_parallel_set("a", pairs, sources, {{}}, 16, "data")
        assert made.pairs_P.sum() == 70, made.pairs_P
        print([name for name in ("jax", "tensorflow", "sentencepiece") if name in sys.modules])
    """
    lines = [line.removeprefix("        ") for line in script.splitlines()]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
