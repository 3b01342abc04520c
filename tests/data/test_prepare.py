"""Behaviours of data/prepare, on small files and on a part of the embedded text."""

import dataclasses
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tracemalloc
import weakref
from collections import Counter

import numpy as np
import pytest
import sentencepiece
from helpers import ROOT, tiny_config, write_jsonl

from imbalance_jax import config as config_lib
from imbalance_jax.config import SourceConfig, SyntheticConfig, TokenizerConfig
from imbalance_jax.data import prepare, records, sources
from imbalance_jax.data import prepared as prepared_lib
from imbalance_jax.data import text_tokenizer as tokenizer_lib
from imbalance_jax.data.prepare import duplicates, tokenizers, writing
from imbalance_jax.data.text import coverage as coverage_lib
from imbalance_jax.data.text import reading as text
from imbalance_jax.data.text import synthetic
from imbalance_jax.data.text.documents import SPLITS, Document

TEXTS = [
    f"Text {n} is about the {n % 7} quick brown foxes.\nThey sat in cafés." for n in range(300)
]


@pytest.fixture
def source(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    return files(tmp_path / "a.jsonl")


def files(train, vocab_size=320, **tokenizer):
    tokenizer = TokenizerConfig(vocab_size=vocab_size, **tokenizer)
    return SourceConfig(kind="files", train=str(train), tokenizer=tokenizer)


def prepared(source, tmp_path, name="en"):
    return prepare.prepare_source(name, source, str(tmp_path / "data"))


def directories(tmp_path):
    """Returns the prepared directories, finished or not."""
    return sorted(p.name for p in (tmp_path / "data").glob("*") if p.name != "cache")


def sample_of(source):
    return tokenizers.sample_paragraphs("en", source, tokenizers.make_document_reader("en", source))


def refuse_work(*args, **kwargs):
    raise AssertionError("worked again on what was there")


def assert_holds_the_text(source, made):
    """Its ids are those of the documents, one separator after each."""
    expected = {split: [] for split in SPLITS}
    ids = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for split, document in text.read_documents("en", source):
        ids[split].append(records.hash_document_id(document.identity))
        expected[split] += [*made.tokenizer.encode(document.text), 2]
        sizes[split] += len(document.text.encode())
    for split in SPLITS:
        assert made.tokens(split).tolist() == expected[split]
        assert made.documents(split)["id"].tolist() == ids[split]
    assert made.about["bytes"] == sizes
    assert made.about["documents"]["train"] > 200


# What a prepared source holds


@pytest.mark.parametrize("batch_characters", [1, 500, tokenizer_lib._BATCH_CHARACTERS])
def test_every_document_is_tokenized_and_followed_by_a_separator(
    source, tmp_path, monkeypatch, batch_characters
):
    monkeypatch.setattr(tokenizer_lib, "_BATCH_CHARACTERS", batch_characters)
    made = prepared(source, tmp_path)
    assert_holds_the_text(source, made)
    # Documents decode to their text, in order and without loss.
    ids = made.tokens("train")
    cuts = np.nonzero(ids == 2)[0]
    read = [made.tokenizer.decode(part.tolist()) for part in np.split(ids, cuts + 1)[:-1]]
    documents = [d.text for split, d in text.read_documents("en", source) if split == "train"]
    assert [one.removesuffix("<D>") for one in read] == documents


def test_documents_end_where_they_end_whatever_they_say(tmp_path, capsys):
    said = [f"{n}: write <D> here <D> please, and \u2581 as it is" for n in range(300)]
    write_jsonl(tmp_path / "a.jsonl", said)
    made = prepared(files(tmp_path / "a.jsonl", vocab_size=300), tmp_path)
    ids = {split: made.tokens(split) for split in SPLITS}
    for split in SPLITS:
        assert (ids[split] == 2).sum() == made.about["documents"][split]
    assert "".join(made.tokenizer.decode(ids["train"]).split("please")).count("<D>") > 800
    assert made.about["lost_bytes"] == dict.fromkeys(SPLITS, 0)
    assert "loses" not in capsys.readouterr().out


def test_what_a_tokenizer_loses_is_said_and_the_bytes_stay_those_of_the_text(tmp_path, capsys):
    (tmp_path / "own.model").write_bytes(model_without_bytes(TEXTS))
    write_jsonl(tmp_path / "a.jsonl", [f"{text} Αθήνα ﬁn" for text in TEXTS])
    given = files(tmp_path / "a.jsonl", path=str(tmp_path / "own.model"))
    made = prepared(given, tmp_path)
    documents = list(text.read_documents("en", given))
    for split in SPLITS:
        sizes = [len(d.text.encode()) for here, d in documents if here == split]
        assert made.documents(split)["bytes"].tolist() == sizes
        # The Greek word, the ligature, and the end of the line.
        assert made.about["lost_bytes"][split] == len(sizes) * (10 + 3 + 1)
    whole = sum(made.about["bytes"].values())
    said = f"The tokenizer of en loses 4,200 of the text's {whole:,} bytes ({4200 / whole:.2%})"
    assert said in capsys.readouterr().out


def test_the_embedded_text_is_prepared_too(english, data_dir):
    source = tiny_config(data_dir).sources["en"]
    made = [d for split, d in text.read_documents("en", source) if split == "validation"]
    expected = [i for d in made for i in [*english.tokenizer.encode(d.text), 2]]
    assert english.tokens("validation").tolist() == expected
    assert english.count("train") > 20_000 and english.count("test") > 0


def test_an_embedded_text_prepared_again_is_found(english, data_dir, monkeypatch):
    monkeypatch.setattr(writing, "write_prepared_source", refuse_work)
    again = prepare.prepare_source("en", tiny_config(data_dir).sources["en"], str(data_dir))
    assert again.path == english.path


def test_all_sources_of_a_run_are_prepared_and_no_others(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    used = config_lib.to_dict(files(tmp_path / "a.jsonl"))
    unused = config_lib.to_dict(files(tmp_path / "nowhere.jsonl"))
    config = tiny_config(tmp_path / "data", sources={"unused": unused, "en": used})
    made = prepare.prepare_run_sources(config)
    assert list(made) == ["en"] and made["en"].count("train") > 0


def test_a_toy_text_with_an_end_is_written_like_any_other(tmp_path):
    toy = SyntheticConfig(tokens=5000, lemmas=64, depth=2)
    made = prepared(SourceConfig(kind="synthetic", synthetic=toy), tmp_path, "toy")
    same = synthetic.SyntheticSource("toy", toy)
    assert isinstance(made, sources.Source) and len(directories(tmp_path)) == 1
    for split in SPLITS:
        assert np.array_equal(made.tokens(split), same.language.text(split).read_all())
        assert np.array_equal(made.documents(split), same.documents(split))
    assert made.pieces.strings == same.pieces.strings
    assert made.pieces.counts_U.sum() == made.count("train")


def test_a_toy_text_that_the_disk_has_no_room_for_is_refused_before_it_is_written(tmp_path):
    toy = SyntheticConfig(tokens=10**12, lemmas=64, depth=2)
    with pytest.raises(
        ValueError, match=r"config\.sources\.toy\.synthetic\.tokens=10+ takes 2e\+03"
    ):
        prepared(SourceConfig(kind="synthetic", synthetic=toy), tmp_path, "toy")
    assert not any(tmp_path.iterdir())


def test_a_toy_text_without_end_is_not_written(tmp_path):
    toy = SyntheticConfig(lemmas=64, depth=2)
    made = prepared(SourceConfig(kind="synthetic", synthetic=toy), tmp_path, "toy")
    assert isinstance(made, synthetic.SyntheticSource) and not (tmp_path / "data").exists()


# Memory


class Live:
    """Documents that are made as they are asked for, and how many there are at once."""

    def __init__(self, count, characters):
        self._count, self._words = count, "some words of a text " * (characters // 21)
        self.now = self.most = self.made = 0

    def _gone(self):
        self.now -= 1

    def __call__(self, name, source, progress=None, selection=None):
        for number in range(self._count):
            document = Document(f"page {number}", f"{number} {self._words}")
            weakref.finalize(document, self._gone)
            self.now, self.made = self.now + 1, self.made + 1
            self.most = max(self.most, self.now)
            yield ("train" if number % 50 else "test"), document
            del document


def test_a_corpus_is_tokenized_as_it_is_read(source, tmp_path, monkeypatch):
    (tmp_path / "own.model").write_bytes(
        prepare.train_tokenizer("en", TokenizerConfig(vocab_size=300), TEXTS)
    )
    given = files(tmp_path / "a.jsonl", path=str(tmp_path / "own.model"))
    prepared(given, tmp_path)  # what is imported and kept at the first time
    # As small beside these corpora as they are beside one that is larger than memory.
    monkeypatch.setattr(tokenizer_lib, "_BATCH_CHARACTERS", 8_000)
    monkeypatch.setattr(records, "_RECORD", 1 << 13)
    peaks = []
    for count in (30, 120):
        live = Live(count, characters=2000)
        monkeypatch.setattr(text, "read_documents", live)
        write_jsonl(tmp_path / "a.jsonl", [*TEXTS, f"A corpus of {count}."])
        tracemalloc.start()
        made = prepared(given, tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert live.made == sum(made.about["documents"].values()) == count
        # Batches of 5 documents: one is written while the next is read.
        assert live.most <= 12
        assert made.about["bytes"]["train"] > 1900 * count and made.count("train") > 1900 * count
    # The ids of the documents between take 360 KB alone, with 16 bits each.
    assert peaks[1] - peaks[0] < 200_000


@pytest.mark.parametrize("kind", ["files", "tfds"])
def test_a_sample_for_a_tokenizer_holds_as_much_as_it_was_asked_for(monkeypatch, kind):
    where = {"train": "text.txt"} if kind == "files" else {"dataset": "toy/fr"}
    source = SourceConfig(kind=kind, **where)
    live = Live(4000, characters=2000)
    monkeypatch.setattr(text, "read_documents", live)
    monkeypatch.setattr(text, "estimate_text_bytes", lambda source: 4000 * 2000)
    monkeypatch.setattr(tokenizers, "SAMPLE_BYTES", 400_000)
    sample = sample_of(source)
    assert live.made == 4000 and live.most <= 3
    assert 300_000 < sum(map(len, sample)) < 500_000


def test_the_embedded_text_is_extracted_once_for_the_tokenizer_and_the_ids(tmp_path, monkeypatch):
    calls = []

    def documents(name, source, progress=None):
        calls.append(name)
        return iter([("train", Document(str(n), one)) for n, one in enumerate(TEXTS)])

    monkeypatch.setattr(text, "read_documents", documents)
    made = prepared(SourceConfig(tokenizer=TokenizerConfig(vocab_size=320)), tmp_path)
    assert calls == ["en"] and made.about["documents"]["train"] == 300


# What is taken of a text, and what is left out of it


@pytest.mark.parametrize("batch_characters", [500, tokenizer_lib._BATCH_CHARACTERS])
def test_a_text_ends_with_the_document_that_reaches_max_tokens(
    source, tmp_path, monkeypatch, batch_characters
):
    (tmp_path / "own.model").write_bytes(
        prepare.train_tokenizer("en", TokenizerConfig(vocab_size=300), TEXTS)
    )
    given = files(tmp_path / "a.jsonl", path=str(tmp_path / "own.model"))
    write_jsonl(tmp_path / "test.jsonl", TEXTS[:5])
    monkeypatch.setattr(tokenizer_lib, "_BATCH_CHARACTERS", batch_characters)
    for test in ("", str(tmp_path / "test.jsonl")):
        given = dataclasses.replace(given, test=test)
        whole = prepared(given, tmp_path)
        made = prepared(dataclasses.replace(given, max_tokens=1000), tmp_path)
        sizes = np.diff(whole.documents("train")["start"], append=whole.count("train"))
        count = int(np.searchsorted(np.cumsum(sizes), 1000)) + 1
        assert made.count("train") == sizes[:count].sum() and made.count("train") >= 1000
        ids = whole.tokens("train")[: made.count("train")]
        assert made.tokens("train").tolist() == ids.tolist()
        last = made.documents("train")["id"][-1]
        order = [
            (split, records.hash_document_id(document.identity))
            for split, document in text.read_documents("en", given)
        ]
        before = order[: [place for _, place in order].index(last)]
        for split in SPLITS[1:]:
            of_all = test and split == "test"
            held_out = [place for here, place in (order if of_all else before) if here == split]
            assert made.documents(split)["id"].tolist() == held_out


def test_a_capped_text_is_all_that_its_tokenizer_sees(source, tmp_path, monkeypatch):
    sample = sample_of(dataclasses.replace(source, max_documents=20))
    texts = [d.text for split, d in text.read_documents("en", source) if split == "train"]
    assert sample == [line for one in texts[:20] for line in one.split("\n")]
    # Of max_tokens, as many as they usually come to be.
    sample = sample_of(dataclasses.replace(source, max_tokens=300))
    size, count = 0, 0
    while size < 4 * 300:
        size, count = size + len(texts[count].encode()), count + 1
    assert sample == [line for one in texts[:count] for line in one.split("\n")]


def test_a_text_of_fewer_tokens_than_its_bytes_allow_ends_and_says_so(tmp_path, capsys):
    texts = ["x" * 96 + f" {n}" for n in range(400)]
    write_jsonl(tmp_path / "a.jsonl", texts)
    (tmp_path / "own.model").write_bytes(
        prepare.train_tokenizer("en", TokenizerConfig(vocab_size=280), texts)
    )
    given = files(tmp_path / "a.jsonl", path=str(tmp_path / "own.model"))
    made = prepared(dataclasses.replace(given, max_tokens=1000), tmp_path)
    size = made.about["bytes"]["train"]
    assert made.count("train") < 1000 and 16_000 <= size < 16_200
    assert "16 bytes of text" in capsys.readouterr().out


def test_documents_that_repeat_held_out_ones_are_counted_and_removed_on_request(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(duplicates, "_IN_MEMORY", 64)  # so that most hashes are in the file
    monkeypatch.setattr(duplicates, "_READ", 50)
    draw = random.Random(5)
    write_jsonl(tmp_path / "a.jsonl", [draw.choice(TEXTS) for _ in range(900)])
    given = files(tmp_path / "a.jsonl")
    by_split = {split: [] for split in SPLITS}
    for split, document in text.read_documents("en", given):
        by_split[split].append(document.text)
    held_out = Counter(by_split["validation"] + by_split["test"])
    trained_on = Counter(by_split["train"])
    twice = {
        "train": sum(count for one, count in trained_on.items() if one in held_out),
        "held_out": sum(count for one, count in held_out.items() if one in trained_on),
    }
    assert twice["train"] > 20
    made = prepared(given, tmp_path)
    assert made.about["duplicates"] == twice and made.about["left_out"] == {}
    said = f"{twice['train']:,} of {len(by_split['train']):,} documents to train on"
    assert said in capsys.readouterr().out

    given = dataclasses.replace(given, held_out_duplicates="remove")
    removed = prepared(given, tmp_path)
    assert removed.fingerprint != made.fingerprint
    assert removed.about["duplicates"] == {"train": 0, "held_out": 0}
    assert removed.about["left_out"] == {"held_out_duplicates": twice["train"]}
    texts = [d.text for split, d in text.read_documents("en", given) if split == "train"]
    assert texts == [one for one in by_split["train"] if one not in held_out]
    assert_holds_the_text(given, removed)
    assert f"{twice['train']:,} with the text of a held-out one" in capsys.readouterr().out
    assert sample_of(given) == [line for one in texts for line in one.split("\n")]


# Doing it once


def test_preparing_again_changes_nothing(source, tmp_path, monkeypatch):
    made = prepared(source, tmp_path)
    tokens = made.tokens("train").tolist()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}
    monkeypatch.setattr(tokenizers, "train_tokenizer", refuse_work)
    monkeypatch.setattr(sources, "write_source", refuse_work)
    monkeypatch.setattr(text, "read_documents", refuse_work)
    again = prepared(source, tmp_path)
    assert again.path == made.path and again.tokens("train").tolist() == tokens
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")} == before


def test_another_text_is_another_directory_and_the_old_one_stays(source, tmp_path):
    old = prepared(source, tmp_path)
    tokens = old.tokens("train").tolist()
    write_jsonl(tmp_path / "a.jsonl", [*TEXTS, "One more text."])
    new = prepared(source, tmp_path)
    assert new.path != old.path and new.fingerprint != old.fingerprint
    assert_holds_the_text(source, new)
    assert old.tokens("train").tolist() == tokens
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    assert prepared(source, tmp_path).path == old.path
    assert len(directories(tmp_path)) == 2


@pytest.mark.parametrize("changes", [{"vocab_size": 330}, {"model_type": "unigram"}])
def test_another_tokenizer_is_another_directory(source, tmp_path, changes):
    old = prepared(files(tmp_path / "a.jsonl", vocab_size=292), tmp_path)
    new = prepared(files(tmp_path / "a.jsonl", **{"vocab_size": 292} | changes), tmp_path)
    assert new.path != old.path and len(directories(tmp_path)) == 2


def test_another_result_of_the_same_settings_has_another_fingerprint(source, tmp_path, monkeypatch):
    here = prepared(source, tmp_path)
    train = prepare.train_tokenizer

    def elsewhere(field, tokenizer, paragraphs):
        return train(field, tokenizer, paragraphs[:100])

    monkeypatch.setattr(tokenizers, "train_tokenizer", elsewhere)
    there = prepare.prepare_source("en", source, str(tmp_path / "elsewhere"))
    assert there.path.name == here.path.name and there.about["key"] == here.about["key"]
    assert there.fingerprint != here.fingerprint


def test_the_place_of_a_file_does_not_matter(source, tmp_path, monkeypatch):
    made = prepared(source, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.jsonl").rename(tmp_path / "elsewhere" / "a.jsonl")
    monkeypatch.setattr(writing, "write_prepared_source", refuse_work)
    assert prepared(files(tmp_path / "elsewhere" / "*.jsonl"), tmp_path).path == made.path


def test_what_another_format_wrote_is_left_alone(source, tmp_path, monkeypatch):
    old = prepared(source, tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file()}
    monkeypatch.setattr(sources, "FORMAT", sources.FORMAT + 1)
    new = prepared(source, tmp_path)
    assert new.path != old.path and new.fingerprint != old.fingerprint
    assert new.about["format"] == sources.FORMAT
    assert new.tokens("train").tolist() == old.tokens("train").tolist()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_preparation_leaves_nothing_and_the_next_succeeds(
    source, tmp_path, monkeypatch, error
):
    encode = writing._encode_documents

    def interrupted(model, documents):
        for number, encoded in enumerate(encode(model, documents)):
            if number == 100:
                raise error
            yield encoded

    monkeypatch.setattr(writing, "_encode_documents", interrupted)
    with pytest.raises(error):
        prepared(source, tmp_path)
    assert directories(tmp_path) == []
    monkeypatch.undo()
    assert_holds_the_text(source, prepared(source, tmp_path))


def test_a_preparation_that_was_killed_does_not_stop_the_next(source, tmp_path, monkeypatch):
    # A process with the same id, as the first one of every container has, left its rest.
    monkeypatch.setattr(writing, "_encode_documents", lambda model, documents: iter([]))
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    with pytest.raises(ValueError):
        prepared(source, tmp_path)
    assert len(directories(tmp_path)) == 1
    monkeypatch.undo()
    assert_holds_the_text(source, prepared(source, tmp_path))


# Tokenizers


def test_an_existing_tokenizer_is_used_as_it_is(source, tmp_path, monkeypatch):
    model = prepare.train_tokenizer(
        "en", TokenizerConfig(vocab_size=300), ["other words"] * 50 + TEXTS
    )
    (tmp_path / "own.model").write_bytes(model)
    monkeypatch.setattr(tokenizers, "train_tokenizer", refuse_work)
    given = files(tmp_path / "a.jsonl", path=str(tmp_path / "own.model"))
    made = prepared(given, tmp_path)
    assert (made.path / "tokenizer.model").read_bytes() == model
    assert made.pieces.size == 300
    assert_holds_the_text(given, made)
    # It is known by what is in it, not by its name.
    (tmp_path / "own.model").rename(tmp_path / "renamed.model")
    again = prepared(files(tmp_path / "a.jsonl", path=str(tmp_path / "renamed.model")), tmp_path)
    assert again.path == made.path


def test_a_tokenizer_that_does_not_exist_is_refused_by_its_field(tmp_path, source):
    given = files(tmp_path / "a.jsonl", path="nowhere.model")
    with pytest.raises(ValueError, match=r"config\.sources\.en\.tokenizer\.path='nowhere\.model'"):
        prepared_lib.check_source_inputs("en", given)


def test_a_tokenizer_that_is_a_device_is_refused_and_not_read(tmp_path, source):
    (tmp_path / "zero.model").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.model")
    for name, kind in {"zero.model": "device", "pipe.model": r"pipe \(FIFO\)"}.items():
        given = files(tmp_path / "a.jsonl", path=str(tmp_path / name))
        for read in (
            lambda given: prepared_lib.check_source_inputs("en", given),
            lambda given: prepare.prepare_source("en", given, str(tmp_path / "data")),
        ):
            with pytest.raises(ValueError, match=rf"{name} is a {kind}, not a file"):
                read(given)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "texts, fix",
    [
        (["Few words."] * 5, r"Set it to (\d+) or less"),
        (TEXTS, r"Set it to (\d+) or less"),
    ],
    ids=["tiny", "small"],
)
def test_a_vocabulary_that_does_not_suit_the_text_is_refused_with_the_fix(
    tmp_path, model_type, texts, fix
):
    write_jsonl(tmp_path / "a.jsonl", texts)
    field = r"config\.sources\.en\.tokenizer\.vocab_size=5000 .*"
    with pytest.raises(ValueError, match=field + fix) as refused:
        prepared(files(tmp_path / "a.jsonl", 5000, model_type=model_type), tmp_path)
    assert directories(tmp_path) == []
    most = re.search(fix, str(refused.value))
    if most and most.groups():  # what the message says to set does work
        paragraphs = [line for line in "\n".join(texts).split("\n") if line]
        wanted = config_lib.TokenizerConfig(vocab_size=int(most[1]), model_type=model_type)
        prepare.train_tokenizer("en", wanted, paragraphs)


_DRAWN = random.Random(0).choices(range(900), [1 / (n + 5) for n in range(900)], k=30_000)
MANY = ["".join(chr(0x4E00 + n) for n in _DRAWN[i : i + 60]) for i in range(0, len(_DRAWN), 60)]
MANY.append("".join(chr(0x4E00 + n) for n in range(900)))


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_characters_that_do_not_fit_are_written_as_bytes_and_that_is_said(model_type, capsys):
    config = config_lib.TokenizerConfig(vocab_size=700, model_type=model_type)
    model = prepare.train_tokenizer("config.t", config, MANY)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    said = capsys.readouterr().out
    assert "config.t: 900 different characters do not fit into vocab_size=700" in said
    assert "The most frequent 220 get pieces" in said  # half of what is left of 700 by 259
    pieces = [tokenizer.id_to_piece(n) for n in range(259, 700)]
    assert sum(len(piece) == 1 for piece in pieces) == 220
    for one in MANY[:20]:
        assert tokenizer.decode(tokenizer.encode(one)) == one


def test_a_text_without_longer_pieces_gives_its_characters_more_than_half(capsys):
    texts = [chr(0x4E00 + n) for n in range(900)] * 3
    prepare.train_tokenizer("config.t", config_lib.TokenizerConfig(vocab_size=1000), texts)
    assert "The most frequent 741 get pieces" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("texts", "size"), [(MANY, 700), ([chr(0x4E00 + n) for n in range(900)] * 3, 1000)]
)
def test_a_stated_coverage_that_does_not_fit_is_refused_with_two_numbers_that_work(texts, size):
    """Half of the pieces for characters are too many where a text has no longer pieces."""
    config = config_lib.TokenizerConfig(vocab_size=size, character_coverage=1.0)
    with pytest.raises(ValueError, match=rf"^config\.t\.vocab_size={size} is too") as refused:
        prepare.train_tokenizer("config.t", config, texts)
    found = re.search(r"vocab_size to (\d[\d,]*) or .*_coverage to (0\.\d+)", str(refused.value))
    more, coverage = int(found[1].replace(",", "")), float(found[2])
    assert more == 259 + 900
    for works in ({"character_coverage": coverage}, {"vocab_size": more}):
        prepare.train_tokenizer("config.t", dataclasses.replace(config, **works), texts)


@pytest.mark.parametrize("coverage", [0.5, 0.99, 1.0])
def test_the_covered_characters_are_the_most_frequent_that_make_up_their_share(coverage):
    """Below 0.98 SentencePiece covers none; above, its own choice is the second path."""
    text_ = ["a" * 500 + "b" * 300 + "c" * 150 + "d" * 45 + "e" * 5] * 2
    kept, given = coverage_lib.apply_coverage(text_, coverage)
    assert set("".join(kept)) == set({0.5: "a", 0.99: "abcde", 1.0: "abcde"}[coverage])
    config = config_lib.TokenizerConfig(vocab_size=270, character_coverage=coverage)
    tokenizer = sentencepiece.SentencePieceProcessor(
        model_proto=prepare.train_tokenizer("t", config, text_)
    )
    pieces = {tokenizer.id_to_piece(n) for n in range(259, 270)}
    assert {p for p in pieces if len(p) == 1} == set(
        {0.5: "a", 0.99: "abcd", 1.0: "abcde"}[coverage]
    )


@pytest.mark.parametrize("texts", [[], ["", " \n \n"]], ids=["no line", "no text"])
def test_a_text_that_is_empty_is_refused_by_the_name_of_its_source(tmp_path, texts):
    write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(
        ValueError, match=r"config\.sources\.en\.(tokenizer: there is no text|train=.* is empty)"
    ):
        prepared(files(tmp_path / "a.jsonl"), tmp_path)
    assert directories(tmp_path) == []


def test_a_text_of_which_nothing_is_left_to_train_on_is_refused_every_time(source, tmp_path):
    (tmp_path / "own.model").write_bytes(
        prepare.train_tokenizer("en", TokenizerConfig(vocab_size=300), TEXTS)
    )
    held_out = {split for split, _ in text.read_documents("en", source)}
    assert held_out == {"train", "validation", "test"}
    [id_, *_] = [d.id for split, d in text.read_documents("en", source) if split == "test"]
    row = {"id": id_, "text": "Held out by its id."}
    (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n")
    alone = files(tmp_path / "one.jsonl", path=str(tmp_path / "own.model"))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"config\.sources\.en: .* to train on"):
            prepared(alone, tmp_path)
        assert directories(tmp_path) == []


def test_files_whose_names_are_not_utf8_are_prepared_as_others_are(tmp_path):
    for number, one in enumerate(TEXTS):
        name = os.fsencode(tmp_path / f"{number}-caf") + b"\xe9.txt"
        with open(name, "w") as file:
            file.write(one)
    made = prepared(files(tmp_path / "*.txt"), tmp_path)
    assert sum(made.about["documents"].values()) == len(TEXTS)


def test_the_tokenizer_is_trained_on_text_to_train_on_alone(source, tmp_path):
    everything = {line for _, d in text.read_documents("en", source) for line in d.text.split("\n")}
    held_out = {
        d.text.split("\n")[0] for split, d in text.read_documents("en", source) if split != "train"
    }
    sample = sample_of(source)
    assert set(sample) == everything - held_out and held_out


def test_a_text_in_a_file_whose_name_is_no_text_is_sampled_like_any_other(source):
    document = Document(os.fsdecode(b"caf\xe9.txt:1"), "one\ntwo")
    read = lambda progress: iter([("train", document)])
    assert tokenizers.sample_paragraphs("en", source, read) == ["one", "two"]


def test_of_a_large_text_about_as_much_as_asked_is_sampled(source, tmp_path, monkeypatch):
    whole = sample_of(source)
    monkeypatch.setattr(tokenizers, "SAMPLE_BYTES", text.estimate_text_bytes(source) // 4)
    part = sample_of(source)
    assert part == sample_of(source)
    assert 0.15 < sum(map(len, part)) / sum(map(len, whole)) < 0.35


def test_one_document_larger_than_the_sample_is_sampled_from_too(tmp_path, monkeypatch):
    lines = [f"Line {n} of one long text." for n in range(2000)]
    (tmp_path / "book.txt").write_text("\n".join(lines))
    book = files(tmp_path / "book.txt")
    monkeypatch.setattr(tokenizers, "SAMPLE_BYTES", text.estimate_text_bytes(book) // 10)
    sample = sample_of(book)
    assert 100 < len(sample) < 300 and set(sample) < set(lines)


def test_a_text_without_line_breaks_trains_a_tokenizer(tmp_path):
    book = " ".join(TEXTS[n % 300].replace("\n", " ") for n in range(3000))
    (tmp_path / "book.txt").write_text(book)
    source = files(tmp_path / "book.txt")
    made = prepared(source, tmp_path)
    assert made.pieces.size == 320 and made.count("train") > 10_000
    # In pieces that SentencePiece takes, and all of it.
    sample = sample_of(source)
    assert "".join(sample) == book and max(len(part.encode()) for part in sample) < 1 << 16


def model_without_bytes(texts):
    """A tokenizer as others train them, which normalizes texts and has no byte pieces."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=60, minloglevel=2
    )
    return model.getvalue()


def model_without_separator():
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=60,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


NO_TOKENIZER = {
    "nothing": (None, "there is no such file"),
    "a folder": ([], "is a folder without a tokenizer.json.*Name"),
    "a folder with a model": (["spiece.model"], r"Name \S+spiece\.model\."),
    "a slow tokenizer": (["vocab.json", "merges.txt"], r"slow kind.*save_pretrained\(FOLDER\)"),
    "half of a tokenizer.json": (
        b'{"model": {"vocab": {"a": 0',
        "no tokenizer.json.*not valid JSON",
    ),
    "another JSON file": (b'{"a": 0}', "no tokenizer.json.*model"),
    "no token that ends documents": (b'{"model": {"vocab": {"a": 0}}}', r"<\|endoftext\|>.*t.save"),
    "empty": (b"", "is not a SentencePiece model"),
    "text": (b"some text, " * 100, "is not a SentencePiece model"),
    "no separator": (model_without_separator, "no piece to separate documents.*<D>"),
}


@pytest.mark.parametrize("case", NO_TOKENIZER)
@pytest.mark.parametrize("joint", [False, True])
def test_a_file_that_is_no_tokenizer_is_refused_by_its_field_before_any_text_is_read(
    tmp_path, monkeypatch, joint, case
):
    content, message = NO_TOKENIZER[case]
    path = tmp_path / "own.model"
    if isinstance(content, list):
        path.mkdir()
        for name in content:
            (path / name).touch()
    elif content is not None:
        path.write_bytes(content() if callable(content) else content)
    monkeypatch.setattr(text, "read_documents", refuse_work)
    config = two_languages(tmp_path)
    field = r"config\.sources\.fr\.tokenizer"
    if joint:
        field = r"config\.vocabulary\.tokenizer"
        config.vocabulary.layout, config.vocabulary.tokenizer.path = "joint", str(path)
    else:
        config.sources.fr.tokenizer.path = str(path)
    with pytest.raises(ValueError, match=rf"(?s){field}\.path='.*own\.model'.*{message}"):
        prepare.prepare_run_sources(config_lib.resolve_config(config))
    assert directories(tmp_path) == []


# A tokenizer of all sources

EN = [f"{n} english words, of text number {n % 37}" for n in range(12_000)]
FR = [f"{n} mots français, du texte numéro {n % 37}" for n in range(800)]


def two_languages(tmp_path, *, en=EN, fr=FR, layout="disjoint", mix=None, vocab_size=330):
    """Returns the config of a run on two files, whose documents have ten lines each."""

    def source(name, lines):
        documents = ["\n".join(lines[n : n + 10]) for n in range(0, len(lines), 10)]
        path = write_jsonl(tmp_path / f"{name}.jsonl", documents)
        tokenizer = config_lib.declared(TokenizerConfig, vocab_size=300)
        return config_lib.declared(SourceConfig, kind="files", train=str(path), tokenizer=tokenizer)

    config = config_lib.spoken(
        {"en": source("en", en), "fr": source("fr", fr)}, scale="demo", ratio="1:1"
    )
    for name in ("en", "fr"):
        config.sources[name].tokenizer.vocab_size = 300
    config.data_dir = str(tmp_path / "data")
    config.vocabulary.layout = layout
    config.vocabulary.tokenizer.vocab_size = vocab_size
    config.vocabulary.mix = mix or {}
    return config


class Training:
    """Stands between data/prepare and the training of tokenizers, and keeps what comes by."""

    def __init__(self, monkeypatch):
        self.samples, self._train = [], prepare.train_tokenizer
        monkeypatch.setattr(tokenizers, "train_tokenizer", self)

    def __call__(self, field, tokenizer, paragraphs):
        self.samples.append((field, paragraphs))
        return self._train(field, tokenizer, paragraphs)

    def sizes(self):
        """Returns the bytes of English and of French that the one tokenizer was trained on."""
        [(field, paragraphs)] = self.samples
        assert field == "config.vocabulary.tokenizer"
        size = {"english": 0, "français": 0}
        for paragraph in paragraphs:
            size[paragraph.split()[1] if "words" in paragraph else "français"] += len(
                paragraph.encode()
            )
        return size["english"], size["français"]


def joint(tmp_path, **changes):
    config = config_lib.resolve_config(two_languages(tmp_path, layout="joint", **changes))
    return prepare.prepare_run_sources(config)


def tokenizer_files(tmp_path):
    return [name for name in directories(tmp_path) if name.startswith("tokenizer-")]


def size_to_train_on(tmp_path, name):
    source = SourceConfig(kind="files", train=str(tmp_path / f"{name}.jsonl"))
    documents = [d.text for split, d in text.read_documents(name, source) if split == "train"]
    return sum(len(line.encode()) for one in documents for line in one.split("\n"))


def test_a_joint_tokenizer_is_trained_once_and_both_sources_have_it(tmp_path, monkeypatch):
    training = Training(monkeypatch)
    made = joint(tmp_path)
    assert len(training.samples) == 1
    assert made["en"].model == made["fr"].model
    assert made["en"].pieces.size == 330
    assert made["en"].pieces.strings == made["fr"].pieces.strings
    [en, fr, file] = directories(tmp_path)
    assert [file] == tokenizer_files(tmp_path) and {en, fr} == {s.path.name for s in made.values()}
    assert (tmp_path / "data" / file).read_bytes() == made["en"].model
    for name, lines in (("en", EN), ("fr", FR)):
        first = made[name].tokenizer.decode(made[name].tokens("train")[:200].tolist())
        assert first.split("<D>")[0].split("\n")[0] in lines


def test_a_joint_tokenizer_is_found_again(tmp_path, monkeypatch):
    made = joint(tmp_path)
    monkeypatch.setattr(tokenizers, "train_tokenizer", refuse_work)
    monkeypatch.setattr(text, "read_documents", refuse_work)
    again = joint(tmp_path)
    assert {n: s.path for n, s in again.items()} == {n: s.path for n, s in made.items()}
    # It is in the prepared sources; the file of its own is for those that are to come.
    (tmp_path / "data" / tokenizer_files(tmp_path)[0]).unlink()
    assert joint(tmp_path)["fr"].path == made["fr"].path
    monkeypatch.undo()
    # A source that was lost gets the tokenizer that the other still has.
    shutil.rmtree(made["fr"].path)
    assert joint(tmp_path)["fr"].model == made["en"].model


def test_a_joint_tokenizer_that_is_damaged_is_refused_with_its_file_named(tmp_path):
    made = joint(tmp_path)
    [file] = tokenizer_files(tmp_path)
    whole = (tmp_path / "data" / file).read_bytes()
    (tmp_path / "data" / file).write_bytes(whole[: len(whole) // 2])
    shutil.rmtree(made["fr"].path)
    with pytest.raises(ValueError, match=rf"{file}.* Delete it"):
        joint(tmp_path)
    (tmp_path / "data" / file).unlink()
    assert joint(tmp_path)["fr"].path == made["fr"].path


def test_by_default_a_joint_tokenizer_sees_as_much_of_each_source(tmp_path, monkeypatch):
    training = Training(monkeypatch)
    joint(tmp_path)
    en, fr = training.sizes()
    # All there is of the shorter one, and a part of the longer one.
    assert fr == size_to_train_on(tmp_path, "fr")
    assert abs(en / fr - 1) < 0.05
    # Paragraphs from all over the text, not those that come first.
    numbers = [int(p.split()[0]) for p in training.samples[0][1] if "english" in p]
    assert min(numbers) < 100 and max(numbers) > 11_800 and 5000 < np.median(numbers) < 7000


def test_a_mix_is_that_of_the_bytes_that_a_joint_tokenizer_sees(tmp_path, monkeypatch):
    training = Training(monkeypatch)
    joint(tmp_path, mix={"en": 9, "fr": 1})
    en, fr = training.sizes()
    assert fr == size_to_train_on(tmp_path, "fr")
    assert abs(en / fr / 9 - 1) < 0.02


def test_a_mix_that_the_other_source_bounds(tmp_path, monkeypatch):
    training = Training(monkeypatch)
    joint(tmp_path, mix={"en": 60, "fr": 1})
    en, fr = training.sizes()
    assert en == size_to_train_on(tmp_path, "en")
    assert abs(en / fr / 60 - 1) < 0.15  # some 200 paragraphs


def test_parts_that_are_multiples_make_the_same_sample(tmp_path, monkeypatch):
    samples = []
    for times in (1, 7):
        training = Training(monkeypatch)
        (tmp_path / str(times)).mkdir()
        joint(tmp_path / str(times), mix={"en": 2 * times, "fr": times})
        samples.append(training.samples[0][1])
        monkeypatch.undo()
    assert samples[0] == samples[1]


def test_a_source_with_no_part_is_not_read_for_a_joint_tokenizer(tmp_path, monkeypatch):
    training = Training(monkeypatch)
    made = joint(tmp_path, mix={"en": 1, "fr": 0})
    en, fr = training.sizes()
    assert fr == 0 and en == size_to_train_on(tmp_path, "en")
    assert made["fr"].model == made["en"].model and made["fr"].count("train") > 0
    # What it says is no matter to the tokenizer, only to its own ids.
    before = tokenizer_files(tmp_path)
    other = joint(tmp_path, mix={"en": 1}, fr=[*FR, "Encore un texte."])
    assert tokenizer_files(tmp_path) == before and len(training.samples) == 1
    assert other["en"].path == made["en"].path and other["fr"].path != made["fr"].path


def test_a_joint_tokenizer_sees_no_more_than_a_tokenizer_of_one_source(tmp_path, monkeypatch):
    training = Training(monkeypatch)
    monkeypatch.setattr(tokenizers, "SAMPLE_BYTES", 40_000)
    joint(tmp_path, mix={"en": 3, "fr": 1})
    en, fr = training.sizes()
    assert 36_000 < en + fr < 44_000
    assert abs(en / (en + fr) - 0.75) < 0.04


@pytest.mark.parametrize(
    "changes",
    [
        {"en": [*EN, "one more text"]},
        {"fr": [*FR, "un texte de plus"]},
        {"mix": {"en": 3, "fr": 1}},
        {"vocab_size": 331},
    ],
    ids=["text", "the other text", "mix", "tokenizer"],
)
def test_another_text_mix_or_size_is_another_joint_tokenizer_and_new_sources(tmp_path, changes):
    made = joint(tmp_path)
    other = joint(tmp_path, **changes)
    assert len(tokenizer_files(tmp_path)) == 2
    # Even where the tokenizers were to come out equal.
    assert all(made[name].path != other[name].path for name in made)
    assert other["en"].model == other["fr"].model
    again = joint(tmp_path)
    assert {n: s.path for n, s in again.items()} == {n: s.path for n, s in made.items()}


def test_a_joint_tokenizer_makes_sources_of_its_own(tmp_path):
    own = prepare.prepare_run_sources(config_lib.resolve_config(two_languages(tmp_path)))
    made = joint(tmp_path)
    assert all(own[name].path != made[name].path for name in own)
    assert own["en"].model != own["fr"].model
    # Merging is a matter of the model's ids: it prepares nothing anew.
    merged = prepare.prepare_run_sources(
        config_lib.resolve_config(two_languages(tmp_path, layout="merged"))
    )
    assert {n: s.path for n, s in merged.items()} == {n: s.path for n, s in own.items()}


def test_a_joint_tokenizer_may_be_given(tmp_path, monkeypatch):
    model = prepare.train_tokenizer("", TokenizerConfig(vocab_size=310), EN[:200] + FR[:200])
    (tmp_path / "own.model").write_bytes(model)
    monkeypatch.setattr(tokenizers, "train_tokenizer", refuse_work)
    config = two_languages(tmp_path, layout="joint")
    config.vocabulary.tokenizer.path = str(tmp_path / "own.model")
    made = prepare.prepare_run_sources(config_lib.resolve_config(config))
    assert made["en"].model == made["fr"].model == model
    assert tokenizer_files(tmp_path) == []
    # Known by what is in it; so it is where each source names it for itself.
    (tmp_path / "own.model").rename(tmp_path / "renamed.model")
    config.vocabulary.tokenizer.path = str(tmp_path / "renamed.model")
    again = prepare.prepare_run_sources(config_lib.resolve_config(config))
    assert {n: s.path for n, s in again.items()} == {n: s.path for n, s in made.items()}


def test_a_joint_tokenizer_that_does_not_suit_the_text_is_refused_by_its_field(tmp_path):
    with pytest.raises(
        ValueError, match=r"config\.vocabulary\.tokenizer\.vocab_size=5000 .*Set it to \d+ or less"
    ):
        joint(tmp_path, vocab_size=5000)
    assert directories(tmp_path) == []


def test_a_source_without_text_for_a_joint_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.sources\.fr.* no text"):
        joint(tmp_path, fr=[" "] * 20)
    assert directories(tmp_path) == []


def test_a_mix_of_sources_that_no_language_has_is_refused(tmp_path):
    config = two_languages(tmp_path, layout="joint")
    config.sources.de = config_lib.declared(SourceConfig)
    config.vocabulary.mix = {"de": 1}
    with pytest.raises(ValueError, match=r"config\.vocabulary\.mix"):
        prepare.prepare_run_sources(config_lib.resolve_config(config))


def test_a_joint_tokenizer_that_was_not_finished_is_trained_again(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizers, "train_tokenizer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        joint(tmp_path)
    assert directories(tmp_path) == []
    monkeypatch.undo()
    assert len(set(source.model for source in joint(tmp_path).values())) == 1


def test_all_sources_are_checked_before_the_first_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "read_documents", refuse_work)
    config = two_languages(tmp_path)
    config.sources.fr.train = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match=r"config\.sources\.fr\.train=.*nowhere"):
        prepare.prepare_run_sources(config_lib.resolve_config(config))
    assert not (tmp_path / "data").exists()


# The command


def run_prepare(tmp_path, *args):
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-m", "imbalance_jax.data.prepare", *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path / "here", env=environment
    )


EN_FR = "{root}/configs/en_fr.py:files={files}"
NO_MODEL = "--config.sources.fr.tokenizer.path={files}/text.model"


@pytest.mark.parametrize(
    "config, override, message",
    [
        (EN_FR + ",layout=joint", NO_MODEL, "Set config.vocabulary.tokenizer.path instead."),
        (EN_FR, NO_MODEL, "text.model' is not a SentencePiece model"),
        (EN_FR, "--config.sources.en.test=nowhere.jsonl", "config.sources.en.test='nowhere.jsonl'"),
        (EN_FR, "--config.parallel.en_fr.sources=('en','de')", "config.sources has: en, fr."),
    ],
)
def test_a_command_that_cannot_prepare_exits_with_2_one_message_and_nothing_made(
    tmp_path, config, override, message
):
    import gzip

    (tmp_path / "text.model").write_text("a text")
    for name in ("en.train", "en.test", "fr.train", "fr.test", "parallel"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a text"}\n'))
    place = {"root": ROOT, "files": tmp_path}
    done = run_prepare(tmp_path, "--config=" + config.format(**place), override.format(**place))
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert list((tmp_path / "here").iterdir()) == []


def test_the_command_prepares_what_a_run_needs_and_says_what_it_is(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    override = ["--config.sources.en.kind=files", f"--config.sources.en.train={tmp_path}/a.jsonl"]
    size = "--config.sources.en.tokenizer.vocab_size=320"
    done = run_prepare(tmp_path, f"--config={ROOT}/configs/90_10.py", *override, size)
    assert done.returncode == 0, done.stderr
    [made] = [p for p in (tmp_path / "here" / "data").iterdir() if p.name != "cache"]
    source = sources.open_source("en", made, tmp_path / "cache")
    *_, said, following = done.stdout.splitlines()
    assert said == f"en: {source.fingerprint}, {source.count('train'):,} tokens to train on"
    assert "To train: python -m imbalance_jax.main --config=" in following
    assert following.endswith(size)


def test_after_a_study_is_prepared_the_commands_that_train_it_here_and_on_a_cluster_are_said(
    tmp_path,
):
    study = f"{ROOT}/configs/studies/grammar.py:seeds=1"
    steps = "--config.runs.placebo_s0.config.steps=7"
    done = run_prepare(tmp_path, f"--config={study}", steps)
    *_, here, there = done.stdout.splitlines()
    assert here.endswith(f"python -m imbalance_jax.study run --config={study} {steps}")
    steps = steps.replace("--config.", "--study.")
    assert there.endswith(f"python -m launch plan --study={study} {steps} --profile=FILE")
