"""Behaviours of data/sources.py: what is written can be read, here and by plain TFDS."""

import hashlib
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from helpers import ROOT, read_plain_json

from imbalance_jax.config import SyntheticConfig, TokenizerConfig
from imbalance_jax.data import prepare, records, sources
from imbalance_jax.data.languages import Pieces
from imbalance_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from imbalance_jax.data.text import synthetic
from imbalance_jax.data.text.documents import SPLITS
from imbalance_jax.runs import storage

SENTENCES = [f"It was number {n} of the quick brown foxes that sat on the mat." for n in range(99)]
ODD = [
    " two  spaces \t and a tab ",
    "line\n\n\r\nbreaks\x0b\x0c\x1c\u2028\u2029",
    "\x00\x01\x7f\x1b[0m",
    "naïve e\u0301 \u00a0\u200b\ufeff \u3000",
    "日本語 עברית \U0001f469\u200d\U0001f680 \U0010ffff",
    "<pad> <unk> <0x41> </s> <s>",
    "0123456789 3.14 x=1;y==2",
    "ﬁ Å Å ½",
]


@pytest.fixture(scope="module")
def model():
    return prepare.train_tokenizer("en", TokenizerConfig(vocab_size=320), SENTENCES)


@pytest.fixture(scope="module")
def tokenizer(model):
    return SentencePieceTokenizer(model)


def make_documents(n=40):
    """Documents of random ids, some of them empty but for the separator."""
    draw = random.Random(0)
    made = []
    for index in range(n):
        ids = [draw.randrange(3, 320) for _ in range(draw.choice([0, 1, 5, 30, 200]))]
        split = ("validation", "train", "train", "train")[index % 4]
        made.append((split, f"page {index}", np.array([*ids, 2]), 7 * index))
    return made


def write(path, model, documents, name="en"):
    sources.write_source(path, name=name, text="f" * 16, tokenizer=model, documents=documents)
    return sources.open_source(name, path, path.parent / "cache")


def joined(documents, split):
    parts = [ids for found, _, ids, _ in documents if found == split]
    return np.concatenate(parts) if parts else np.zeros(0, int)


# The tokenizer


def test_the_first_ids_are_padding_unknown_separator_and_the_bytes(tokenizer):
    first = tokenizer.strings[:259]
    assert first[:3] == ("<pad>", "<unk>", "<D>")
    assert list(first[3:]) == [f"<0x{byte:02X}>" for byte in range(256)]
    assert (tokenizer.pad_id, tokenizer.unknown, tokenizer.separator) == (0, 1, 2)
    assert tokenizer.processor.bos_id() == tokenizer.processor.eos_id() == -1


@pytest.mark.parametrize("text", [*ODD, "".join(ODD), ""])
def test_any_text_is_encoded_without_loss_and_its_pieces_have_its_bytes(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.pieces().bytes_U[ids].sum() == len(text.encode())


def test_the_specials_stand_for_no_bytes(tokenizer):
    pieces = tokenizer.pieces()
    assert pieces.size == 320 and pieces.pad_id == 0 and pieces.special_ids == (1, 2)
    assert pieces.bytes_U[:3].tolist() == [0, 0, 0]
    assert (pieces.bytes_U[3:259] == 1).all() and (pieces.bytes_U[259:] >= 1).all()


def trained(**flags):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=40,
        minloglevel=2,
        **flags,
    )
    return model.getvalue()


def test_a_tokenizer_without_our_separator_ends_documents_with_its_end_of_sentence():
    assert SentencePieceTokenizer(trained(bos_id=1, eos_id=2, unk_id=0)).separator == 2
    with pytest.raises(ValueError, match="neither <D> nor an end of sentence"):
        SentencePieceTokenizer(trained(bos_id=-1, eos_id=-1, unk_id=0))


# Written and read


@pytest.mark.parametrize("record", [3, 50, 64, 1 << 18])
def test_plain_tfds_reads_the_ids_of_every_document_in_order(tmp_path, model, monkeypatch, record):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(records, "_RECORD", record)
    documents = make_documents(12 if record == 3 else 40)
    source = write(tmp_path / "en-1", model, documents)
    for split in SPLITS[:2]:
        data = tfds.builder_from_directory(tmp_path / "en-1").as_data_source(split=split)
        examples = [data[i] for i in range(len(data))]
        read = np.concatenate([example["tokens"] for example in examples])
        assert read.dtype == np.uint16
        assert read.tolist() == joined(documents, split).tolist()
        assert source.tokens(split).tolist() == read.tolist()
        assert all(len(example["tokens"]) == record for example in examples[:-1])
        # Documents begin where their predecessors end, whichever record that is in.
        lengths = [len(ids) for found, _, ids, _ in documents if found == split]
        before = np.cumsum([0, *[len(example["tokens"]) for example in examples]])
        begins = [b + s for b, e in zip(before, examples, strict=False) for s in e["documents"]]
        assert begins == np.cumsum([0, *lengths[:-1]]).tolist()
        assert all((example["documents"] < len(example["tokens"])).all() for example in examples)
        assert {example["language"].decode() for example in examples} == {"en"}
        # A hash of its id comes with each beginning.
        ids = [f"page {n}" for n, document in enumerate(documents) if document[0] == split]
        hashes = [int(id_) for example in examples for id_ in example["document_ids"]]
        assert hashes == [records.hash_document_id(id_) for id_ in ids]


def test_many_records_are_cut_into_several_files(tmp_path, model, monkeypatch):
    monkeypatch.setattr(records, "_RECORD", 16)
    monkeypatch.setattr(records, "_SHARD", 10)
    documents = make_documents()
    source = write(tmp_path / "en-1", model, documents)
    assert len(list((tmp_path / "en-1").glob("en-train.array_record-*"))) > 3
    assert source.tokens("train").tolist() == joined(documents, "train").tolist()


def test_a_split_without_documents_is_empty(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    assert source.count("test") == 0 and len(source.tokens("test")) == 0
    assert source.tokens("test").dtype == np.uint16
    assert len(source.documents("test")) == 0
    assert source.documents("test").dtype == sources.DOCUMENT
    assert not source.cache.exists()


def test_counts_of_documents_ids_and_bytes_are_those_of_each_split(tmp_path, model):
    documents = make_documents()
    about = json.loads(
        (write(tmp_path / "en-1", model, documents).path / "source.json").read_text()
    )
    for split in SPLITS:
        mine = [(ids, size) for found, _, ids, size in documents if found == split]
        assert about["documents"][split] == len(mine)
        assert about["tokens"][split] == sum(len(ids) for ids, _ in mine)
        assert about["bytes"][split] == sum(size for _, size in mine)
    assert about["vocab_size"] == 320 and about["text"] == "f" * 16
    assert about["format"] == sources.FORMAT


def test_the_tokenizer_that_is_kept_is_the_one_that_was_given(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    assert (source.path / "tokenizer.model").read_bytes() == model
    assert source.model == model
    assert source.pieces.size == 320


# The table of documents


@pytest.mark.parametrize("record", [1, 3, 20, 50, 64, 1 << 18])
def test_the_table_says_where_each_document_begins_wherever_records_are_cut(
    tmp_path, model, monkeypatch, record
):
    monkeypatch.setattr(records, "_RECORD", record)
    documents = make_documents(6 if record < 5 else 40)
    source = write(tmp_path / "en-1", model, documents)
    for split in SPLITS[:2]:
        mine = [(id_, ids) for found, id_, ids, _ in documents if found == split]
        table, tokens = source.documents(split), source.tokens(split)
        assert table.dtype == sources.DOCUMENT and len(table) == len(mine)
        assert table["id"].tolist() == [records.hash_document_id(id_) for id_, _ in mine]
        read = np.split(tokens, table["start"][1:])
        assert table["start"][0] == 0
        assert [part.tolist() for part in read] == [ids.tolist() for _, ids in mine]


def test_documents_larger_than_several_records_and_others_at_their_edges(
    tmp_path, model, monkeypatch
):
    monkeypatch.setattr(records, "_RECORD", 10)
    sizes = [10, 35, 5, 5, 1, 9, 100, 20, 1, 1, 3]
    documents = [("train", f"page {n}", np.full(size, 5), 0) for n, size in enumerate(sizes)]
    source = write(tmp_path / "en-1", model, documents)
    assert source.documents("train")["start"].tolist() == np.cumsum([0, *sizes[:-1]]).tolist()
    assert source.count("train") == sum(sizes)


def test_documents_of_equal_id_are_known_by_it_in_every_source(tmp_path, model):
    def source(name, ids):
        documents = [("train", id_, np.array([5] * n + [2]), n) for n, id_ in enumerate(ids)]
        return write(tmp_path / f"{name}-1", model, documents, name).documents("train")["id"]

    en = source("en", ["Paris", "London", "Rome", "Zürich"])
    fr = source("fr", ["Zürich", "Nice", "Paris"])
    assert np.isin(en, fr).tolist() == [True, False, False, True]
    assert np.isin(fr, en).tolist() == [True, False, True]


def test_any_id_has_a_hash_of_64_bits_that_never_changes():
    ids = [f"page {n}" for n in range(20_000)] + ["", " ", "é", "e\u0301", "\ud800", "\x00"]
    hashes = {records.hash_document_id(id_) for id_ in ids}
    assert len(hashes) == len(ids)
    assert 0 <= min(hashes) < 1 << 50 and 1 << 63 < max(hashes) < 1 << 64
    # The first 8 bytes of BLAKE2b with that length, as `b2sum -l 64` prints them.
    assert records.hash_document_id("Paris") == int.from_bytes(
        bytes.fromhex("6be76756dfb79024"), "little"
    )


# The bytes of text that ids stand for


def pieces_with(bytes_U):
    return Pieces(len(bytes_U), 0, (1, 2), np.array(bytes_U, np.int32))


PIECES = pieces_with([0, 0, 0, 1, 4, 3])


def test_ids_of_a_text_that_comes_back_whole_stand_for_the_bytes_of_their_pieces():
    ids = np.array([3, 4, 2, 2, 5, 2])
    found = sources.compute_bytes_per_id(ids, PIECES, np.array([0, 3, 4]), np.array([5, 0, 3]))
    assert found.tolist() == [1, 4, 0, 0, 3, 0]


@pytest.mark.parametrize(
    ("ids", "size", "expected"),
    [
        ([3, 4, 2], 5, [1, 4, 0]),  # nothing is lost here, whatever is elsewhere
        ([3, 1, 4, 1, 2], 15, [1, 5, 4, 5, 0]),  # unknown pieces share what is missing
        ([1, 2], 7, [7, 0]),
        ([4, 4, 2], 16, [8, 8, 0]),  # what is normalized away is spread
        ([4, 4, 2], 4, [2, 2, 0]),  # as is what is added
        ([3, 3, 3, 2], 4, [1, 2, 1, 0]),  # in whole bytes
        ([2], 3, [3]),  # a text of which nothing is left
        ([3, 2], 0, [0, 0]),
    ],
)
def test_ids_of_a_document_stand_for_exactly_the_bytes_of_its_text(ids, size, expected):
    around = [4, 1, 2]  # 9 bytes of text, of which 5 are unknown
    starts = np.cumsum([0, 3, len(ids)])
    all_ids = np.array([*around, *ids, *around])
    found = sources.compute_bytes_per_id(all_ids, PIECES, starts, np.array([9, size, 9]))
    assert found[3:-3].tolist() == expected
    assert found[:3].tolist() == found[-3:].tolist() == [4, 5, 0]


def test_the_bytes_of_each_document_are_in_its_table(tmp_path, model, monkeypatch):
    monkeypatch.setattr(records, "_RECORD", 50)
    documents = make_documents()
    source = write(tmp_path / "en-1", model, documents)
    sizes = [size for split, _, _, size in documents if split == "train"]
    assert source.documents("train")["bytes"].tolist() == sizes


# What it is known by


def test_a_fingerprint_follows_from_text_tokenizer_and_ids_and_not_from_what_was_asked(
    tmp_path, model
):
    def fingerprint(name, documents, model=model, **changes):
        sources.write_source(
            tmp_path / name,
            **{"name": "en", "text": "t", "key": name, "tokenizer": model} | changes,
            documents=documents,
        )
        return sources.open_source("en", tmp_path / name, tmp_path).fingerprint

    same = make_documents()
    other_ids = [*same[:-1], (*same[-1][:2], np.array([7, 2]), same[-1][3])]
    other = prepare.train_tokenizer("en", TokenizerConfig(vocab_size=320), SENTENCES[:50])
    found = [
        fingerprint("a", same),
        fingerprint("c", other_ids),
        fingerprint("d", same, tokenizer=other),
        fingerprint("e", same, text="u"),
    ]
    assert len(set(found)) == 4 and fingerprint("b", same) == found[0]


def test_what_was_prepared_in_another_format_is_refused_with_what_to_do(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    about = read_plain_json(source.path / "source.json")
    (source.path / "source.json").write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(ValueError, match=r"en-1 was prepared in format 2, .* Delete the directory"):
        sources.open_source("en", source.path, source.cache)


# How often each id occurs


@pytest.mark.parametrize("record", [16, 1 << 18])
def test_the_counts_of_ids_are_those_of_the_text_to_train_on(tmp_path, model, monkeypatch, record):
    monkeypatch.setattr(records, "_RECORD", record)
    source = write(tmp_path / "en-1", model, make_documents())
    expected = np.bincount(joined(make_documents(), "train"), minlength=320)
    assert np.load(source.path / "counts.npy").tolist() == expected.tolist()
    assert source.pieces.counts_U.tolist() == expected.tolist()
    assert source.pieces.strings[:4] == ("<pad>", "<unk>", "<D>", "<0x00>")
    assert len(source.pieces.strings) == 320


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "missing"])
def test_counts_that_are_not_as_they_were_written_are_refused(tmp_path, model, damage):
    # They decide which ids are anchors.
    source = write(tmp_path / "en-1", model, make_documents())
    file = source.path / "counts.npy"
    whole = file.read_bytes()
    flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    file.write_bytes({"flipped": flipped, "short": whole[:-8]}.get(damage, b""))
    if damage == "missing":
        file.unlink()
    with pytest.raises(ValueError, match=r"en-1.*Delete the directory"):
        _ = source.pieces


def test_a_directory_without_its_description_is_named_before_anything_is_prepared(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    assert sources.is_prepared(source.path) and not sources.is_prepared(tmp_path / "en-2")
    (source.path / "source.json").unlink()
    with pytest.raises(ValueError, match=r"en-1/source\.json is missing\. Delete the directory"):
        sources.is_prepared(source.path)


def test_what_shows_in_no_time_and_size_is_found_where_all_bytes_are_read(
    tmp_path, model, monkeypatch
):
    """As the bits of a disk change: no file has another time, and every stamp fits."""
    monkeypatch.setattr(storage, "format_file_status", lambda status: "as before")
    source = write(tmp_path / "en-1", model, make_documents())
    source.tokens("train"), source.documents("train")
    assert source.find_damage() == []
    for file in (cache_file(source), shard_of(source), source.path / "counts.npy",
                 source.path / "tokenizer.model"):  # fmt: skip
        whole = file.read_bytes()
        # A shard is padded with zeros.
        end = whole.index(bytes(256), 256) if file == shard_of(source) else len(whole)
        flip(pathlib.Path(file), end // 2)
        source.tokens("train")  # which looks at sizes and times alone
        opened = sources.open_source("en", source.path, source.cache)
        [line] = opened.find_damage()
        assert str(source.path) in line or line.startswith(f"{file} is not as it was written")
        file.write_bytes(whole)


def test_a_description_that_cannot_be_read_is_refused_with_the_directory_named(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    about = (source.path / "source.json").read_text()
    (source.path / "source.json").write_text(about[: len(about) // 2])
    with pytest.raises(ValueError, match=r"en-1.*Delete the directory"):
        sources.open_source("en", source.path, source.cache)


# A tokenizer that does not match


def test_a_tokenizer_put_in_the_place_of_another_is_refused(tmp_path, model):
    other = prepare.train_tokenizer("en", TokenizerConfig(vocab_size=320), SENTENCES[:50])
    write(tmp_path / "en-1", model, make_documents())
    (tmp_path / "en-1" / "tokenizer.model").write_bytes(other)
    source = sources.open_source("en", tmp_path / "en-1", tmp_path / "cache")
    for what in ("model", "tokenizer", "pieces"):
        with pytest.raises(ValueError) as refused:
            getattr(source, what)
        assert str(tmp_path / "en-1" / "tokenizer.model") in str(refused.value)
        assert "delete the directory" in str(refused.value)
        assert "set config.sources.en.tokenizer.path" in str(refused.value)
    # What it says does work.
    (tmp_path / "en-1" / "tokenizer.model").write_bytes(model)
    assert source.pieces.size == 320


def test_a_source_is_written_whole_or_not_at_all(tmp_path, model):
    def broken():
        yield from make_documents()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "en-1", model, broken())
    assert list(tmp_path.iterdir()) == []


def test_a_source_with_nothing_to_train_on_is_refused_and_leaves_nothing(tmp_path, model):
    only_test = [("test", "page 0", np.array([5, 2]), 1)]
    with pytest.raises(ValueError, match=r"config\.sources\.en: no document .* to train on"):
        write(tmp_path / "en-1", model, only_test)
    assert list(tmp_path.iterdir()) == []


def test_of_two_runs_that_prepare_the_same_text_the_slower_uses_the_other_s(tmp_path, model):
    documents = make_documents()

    def slow():
        yield from documents
        write(tmp_path / "en-1", model, documents)

    source = write(tmp_path / "en-1", model, slow())
    assert source.tokens("train").tolist() == joined(documents, "train").tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "en-1"]


# The cache, and damage


def cache_file(source, split="train"):
    source.tokens(split)
    return source.cache / f"en-{source.fingerprint}-{split}.tokens"


class Reads:
    """Counts how often a file is read to find its digest."""

    def __init__(self, monkeypatch):
        self.count, self._digest = 0, hashlib.file_digest
        monkeypatch.setattr(hashlib, "file_digest", self)

    def __call__(self, *args):
        self.count += 1
        return self._digest(*args)


def cached(source):
    before = f"en-{source.fingerprint}-"
    return sorted(path.name.removeprefix(before) for path in source.cache.iterdir())


CACHED = [
    f"train.{name}"
    for name in ("documents", "documents.stamp", "records", "tokens", "tokens.stamp")
]


def test_the_cache_is_used_while_it_is_whole(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    file = cache_file(source)
    made = file.stat().st_mtime_ns
    for shard in source.path.glob("en-train.array_record-*"):
        shard.unlink()
    assert source.tokens("train").tolist() == joined(make_documents(), "train").tolist()
    assert file.stat().st_mtime_ns == made


@pytest.mark.parametrize("damage", ["missing", "short", "long", "empty"])
def test_a_cache_file_that_is_missing_or_of_another_size_is_made_again(
    tmp_path, model, monkeypatch, damage
):
    reads = Reads(monkeypatch)
    source = write(tmp_path / "en-1", model, make_documents())
    file = cache_file(source)
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"short": whole[:-2], "long": whole + b"xx", "empty": b""}[damage])
    assert source.tokens("train").tolist() == joined(make_documents(), "train").tolist()
    assert file.read_bytes() == whole
    assert cached(source) == CACHED
    assert reads.count == 0  # its size says enough


def flip(path, at=20):
    """Changes a bit of a file, as a disk may, and its time, as no disk does."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 5_000_000_000))


@pytest.mark.parametrize("what", ["tokens", "documents"])
def test_a_cache_file_with_a_wrong_byte_is_made_again_from_the_records(tmp_path, model, what):
    source = write(tmp_path / "en-1", model, make_documents())
    tokens, table = source.tokens("train").tolist(), source.documents("train").tolist()
    file = source.cached(f"train.{what}")
    whole = file.read_bytes()
    flip(file)
    assert getattr(source, what)("train").tolist() == {"tokens": tokens, "documents": table}[what]
    assert file.read_bytes() == whole
    assert cached(source) == CACHED


def test_a_wrong_byte_in_the_cache_is_refused_where_the_records_are_damaged_too(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    flip(cache_file(source))
    shard_of(source).write_bytes(shard_of(source).read_bytes()[:200])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"en-1: split train .*Delete the directory"):
            source.tokens("train")


def test_a_cache_of_which_one_file_is_gone_is_made_again(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    table = source.documents("train").tolist()
    for name in CACHED:
        source.cached(name).unlink()
        assert source.documents("train").tolist() == table
        assert source.tokens("train").tolist() == joined(make_documents(), "train").tolist()
        assert cached(source) == CACHED


def test_a_cache_is_read_again_only_where_it_was_touched(tmp_path, model, monkeypatch):
    reads = Reads(monkeypatch)
    source = write(tmp_path / "en-1", model, make_documents())
    file = cache_file(source)
    again = sources.open_source("en", source.path, source.cache)
    assert len(again.tokens("train")) == len(source.tokens("train"))
    assert len(again.documents("train")) == 30
    assert reads.count == 0
    # Touched, and still what it was: looked at once, and not made again.
    shard_of(source).unlink()
    os.utime(file)
    assert again.tokens("train").tolist() == joined(make_documents(), "train").tolist()
    assert reads.count == 1
    again.tokens("train")
    assert reads.count == 1


def change_unseen(path, at):
    """Changes a bit of a file, and sets its time back, as tools that copy files do."""
    time.sleep(0.02)  # a clock of file systems may tick a hundred times a second
    before = path.stat()
    flip(path, at)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_change_whose_time_is_set_back_is_seen_in_the_cache_and_in_the_records(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    tokens = source.tokens("train").tolist()
    change_unseen(cache_file(source), 20)
    assert source.tokens("train").tolist() == tokens
    shard = pathlib.Path(shard_of(source))
    change_unseen(shard, shard.stat().st_size // 2)
    with pytest.raises(ValueError, match="split train .*Delete the directory"):
        source.tokens("train")


def test_a_cache_whose_stamp_is_of_another_file_is_read(tmp_path, model, monkeypatch):
    reads = Reads(monkeypatch)
    source = write(tmp_path / "en-1", model, make_documents())
    file = cache_file(source)
    stamp = file.with_name(f"{file.name}.stamp")
    for content in ("", "nonsense", stamp.read_text().replace(stamp.read_text()[:5], "00000")):
        before = reads.count
        stamp.write_text(content)
        assert source.tokens("train").tolist() == joined(make_documents(), "train").tolist()
        assert reads.count == before + 1


def test_where_no_stamp_can_be_kept_the_cache_is_read_every_time(tmp_path, model, monkeypatch):
    reads = Reads(monkeypatch)
    source = write(tmp_path / "en-1", model, make_documents())
    file = cache_file(source)
    stamp = file.with_name(f"{file.name}.stamp")
    stamp.unlink()
    stamp.mkdir()
    for count in (1, 2):
        assert source.tokens("train").tolist() == joined(make_documents(), "train").tolist()
        assert reads.count == count


def test_a_cache_of_other_text_is_not_taken_for_this_one(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    changed = [(split, id_, np.where(ids == 2, 2, 5), n) for split, id_, ids, n in make_documents()]
    sources.write_source(
        tmp_path / "en-2", name="en", text="e" * 16, tokenizer=model, documents=changed
    )
    other = sources.open_source("en", tmp_path / "en-2", source.cache)
    assert source.tokens("train").tolist() == joined(make_documents(), "train").tolist()
    assert other.tokens("train").tolist() == joined(changed, "train").tolist()
    # Of equal size, and put in its place.
    cache_file(other).replace(cache_file(source))
    assert source.tokens("train").tolist() == joined(make_documents(), "train").tolist()


def test_text_that_cannot_be_written_is_an_error_of_the_system_and_leaves_nothing(
    tmp_path, model, small_files
):
    ids = np.random.default_rng(0).integers(3, 300, 50_000)
    documents = [("train", "0", ids, 9)]
    small_files(5_000)
    with pytest.raises(OSError, match="File too large") as raised:
        write(tmp_path / "data" / "en", model, documents)
    assert raised.value.filename == str(tmp_path / "data" / "en")
    assert list((tmp_path / "data").iterdir()) == []
    small_files(resource.RLIM_INFINITY)
    source = write(tmp_path / "en", model, documents)
    small_files(5_000)
    with pytest.raises(OSError, match="File too large") as raised:
        source.tokens("train")
    assert raised.value.filename == str(source.cached("train.tokens"))
    assert list(source.cache.iterdir()) == []
    small_files(resource.RLIM_INFINITY)
    assert source.tokens("train").tolist() == ids.tolist()


def shard_of(source):
    [shard] = source.path.glob("en-train.array_record-*")
    return shard


@pytest.mark.parametrize("at", [0.3, 0.5, 0.9])
def test_a_flipped_byte_is_refused_with_the_directory_named(tmp_path, model, at):
    source = write(tmp_path / "en-1", model, make_documents())
    data = bytearray(shard_of(source).read_bytes())
    # Records are compressed, and files padded with zeros: the ids end where those begin.
    end = data.index(bytes(256), 256)
    data[int(64 + at * (end - 64))] ^= 0x40
    shard_of(source).write_bytes(data)
    with pytest.raises(ValueError, match=r"en-1: split train .*Delete the directory"):
        source.tokens("train")
    assert list(source.cache.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 100, 0.9])
def test_a_truncated_shard_is_refused_with_the_directory_named(tmp_path, model, keep):
    source = write(tmp_path / "en-1", model, make_documents())
    data = shard_of(source).read_bytes()
    shard_of(source).write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ValueError, match=r"en-1: split train .*Delete the directory"):
        source.tokens("train")
    assert list(source.cache.iterdir()) == []


def test_records_that_are_damaged_are_refused_though_a_whole_copy_is_in_the_cache(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    source.tokens("train")
    shard = shard_of(source)
    shard.write_bytes(shard.read_bytes()[:-1000])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"en-1: split train .*Delete the directory"):
            source.tokens("train")


def test_records_of_another_text_are_refused(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    changed = [(split, id_, np.where(ids == 2, 2, 5), n) for split, id_, ids, n in make_documents()]
    other = write(tmp_path / "en-2", model, changed)
    shard_of(source).write_bytes(shard_of(other).read_bytes())
    with pytest.raises(ValueError, match=r"en-1: split train does not hold what was written"):
        source.tokens("train")


def test_records_that_differ_in_the_ids_of_documents_alone_are_refused(tmp_path, model):
    source = write(tmp_path / "en-1", model, make_documents())
    renamed = [(split, f"{id_}!", ids, n) for split, id_, ids, n in make_documents()]
    other = write(tmp_path / "en-2", model, renamed)
    shard_of(source).write_bytes(shard_of(other).read_bytes())
    for what in (source.tokens, source.documents):
        with pytest.raises(ValueError, match=r"en-1: split train does not hold what was written"):
            what("train")
    assert list(source.cache.iterdir()) == []


def test_more_pieces_than_16_bits_can_number_are_numbered_with_32(tmp_path):
    language = synthetic.SyntheticSource("toy", SyntheticConfig(lemmas=66_000, topics=8))
    ids = [3, 65_535, 65_536, language.pieces.size - 1, 2]
    source = write(tmp_path / "toy-1", language.model, [("train", "page", np.array(ids), 5)], "toy")
    assert source.tokens("train").dtype == np.uint32
    assert source.tokens("train").tolist() == ids


def test_the_cache_lies_beside_the_data_or_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv("IMBALANCE_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert sources.resolve_data_cache_dir(str(tmp_path)) == tmp_path / "cache"
    assert sources.resolve_data_cache_dir("gs://bucket/data") == tmp_path / "home" / "imbalance_jax"
    monkeypatch.setenv("IMBALANCE_JAX_CACHE", str(tmp_path / "fast"))
    assert sources.resolve_data_cache_dir(str(tmp_path)) == tmp_path / "fast"


def test_neither_preparing_nor_opening_imports_tensorflow(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES))
    program = """
        import sys
        from imbalance_jax.config import SourceConfig, TokenizerConfig
        from imbalance_jax.data import prepare
        source = SourceConfig(
            kind="files", train="text.txt", tokenizer=TokenizerConfig(vocab_size=320)
        )
        for _ in range(2):
            assert len(prepare.prepare_source("en", source, "data").tokens("train")) > 100
        assert "tensorflow_datasets" in sys.modules
        barred = ("tensorflow", "jax", "flax")
        print([name for name in sys.modules if name.partition(".")[0] in barred])
    """
    root = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.stdout.splitlines()[-1] == "[]"
