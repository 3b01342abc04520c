"""Behaviours of data/prepare.py, on small files and on a part of the embedded text."""

import json
import re

import numpy as np
import pytest
from conftest import tiny_config, write_jsonl

from imbalance_jax import config as config_lib
from imbalance_jax.config import SourceConfig, TokenizerConfig
from imbalance_jax.data import prepare, sources, text

TEXTS = [f"Text {n} is about the {n % 7} quick brown foxes.\nThey sat on mats." for n in range(300)]


@pytest.fixture
def source(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    return files(tmp_path / "a.jsonl")


def files(train, vocab_size=320, **tokenizer):
    tokenizer = TokenizerConfig(vocab_size=vocab_size, **tokenizer)
    return SourceConfig(kind="files", train=str(train), tokenizer=tokenizer)


def prepared(source, tmp_path, name="en"):
    return prepare.prepare(name, source, str(tmp_path / "data"))


def directories(tmp_path):
    """Returns the prepared directories, finished or not."""
    return sorted(p.name for p in (tmp_path / "data").glob("*") if p.name != "cache")


def refuse_work(*args, **kwargs):
    raise AssertionError("worked again on what was there")


def assert_holds_the_text(source, made):
    """Its ids are those of the documents, one separator after each."""
    expected = {split: [] for split in sources.SPLITS}
    sizes = dict.fromkeys(sources.SPLITS, 0)
    for split, document in text.documents("en", source):
        expected[split] += [*made.tokenizer.encode(document.text), 2]
        sizes[split] += len(document.text.encode())
    for split in sources.SPLITS:
        assert made.tokens(split).tolist() == expected[split]
    assert made.about["bytes"] == sizes
    assert made.about["documents"]["train"] > 200


# What a prepared source holds


@pytest.mark.parametrize("batch_characters", [1, 500, prepare._BATCH_CHARACTERS])
def test_every_document_is_tokenized_and_followed_by_a_separator(
    source, tmp_path, monkeypatch, batch_characters
):
    monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", batch_characters)
    made = prepared(source, tmp_path)
    assert_holds_the_text(source, made)
    # Documents decode to their text, in order and without loss.
    ids = made.tokens("train")
    cuts = np.nonzero(ids == 2)[0]
    read = [made.tokenizer.decode(part.tolist()) for part in np.split(ids, cuts + 1)[:-1]]
    documents = [d.text for split, d in text.documents("en", source) if split == "train"]
    assert [one.removesuffix("<D>") for one in read] == documents


def test_the_embedded_text_is_prepared_too(english, data_dir):
    source = tiny_config(data_dir).sources["en"]
    made = [d for split, d in text.documents("en", source) if split == "validation"]
    expected = [i for d in made for i in [*english.tokenizer.encode(d.text), 2]]
    assert english.tokens("validation").tolist() == expected
    assert english.count("train") > 20_000 and english.count("test") > 0


def test_an_embedded_text_prepared_again_is_found(english, data_dir, monkeypatch):
    monkeypatch.setattr(prepare, "_make", refuse_work)
    again = prepare.prepare("en", tiny_config(data_dir).sources["en"], str(data_dir))
    assert again.path == english.path


def test_all_sources_of_a_run_are_prepared_and_no_others(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    used = config_lib.to_dict(files(tmp_path / "a.jsonl"))
    unused = config_lib.to_dict(files(tmp_path / "nowhere.jsonl"))
    config = tiny_config(tmp_path / "data", sources={"unused": unused, "en": used})
    made = prepare.prepare_all(config)
    assert list(made) == ["en"] and made["en"].count("train") > 0


# Doing it once


def test_preparing_again_changes_nothing(source, tmp_path, monkeypatch):
    made = prepared(source, tmp_path)
    tokens = made.tokens("train").tolist()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}
    monkeypatch.setattr(prepare, "train_tokenizer", refuse_work)
    monkeypatch.setattr(sources, "write", refuse_work)
    monkeypatch.setattr(text, "documents", refuse_work)
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


def test_the_place_of_a_file_does_not_matter(source, tmp_path, monkeypatch):
    made = prepared(source, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.jsonl").rename(tmp_path / "elsewhere" / "a.jsonl")
    monkeypatch.setattr(prepare, "_make", refuse_work)
    assert prepared(files(tmp_path / "elsewhere" / "*.jsonl"), tmp_path).path == made.path


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_preparation_leaves_nothing_and_the_next_succeeds(
    source, tmp_path, monkeypatch, error
):
    encode = prepare._encode

    def interrupted(model, documents):
        for number, encoded in enumerate(encode(model, documents)):
            if number == 100:
                raise error
            yield encoded

    monkeypatch.setattr(prepare, "_encode", interrupted)
    with pytest.raises(error):
        prepared(source, tmp_path)
    assert directories(tmp_path) == []
    monkeypatch.undo()
    assert_holds_the_text(source, prepared(source, tmp_path))


def test_a_preparation_that_was_killed_does_not_stop_the_next(source, tmp_path, monkeypatch):
    # A process with the same id, as the first one of every container has, left its rest.
    monkeypatch.setattr(prepare, "_encode", lambda model, documents: iter([]))
    monkeypatch.setattr(sources.shutil, "rmtree", lambda *args, **kwargs: None)
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
    monkeypatch.setattr(prepare, "train_tokenizer", refuse_work)
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
        prepare.check("en", given)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "texts, fix",
    [
        (["Few words."] * 5, r"Set it to (\d+) or less"),
        (TEXTS, r"Set it to (\d+) or less"),
        ([chr(0x4E00 + n) * 3 for n in range(8000)], "higher"),
    ],
    ids=["tiny", "small", "many characters"],
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


@pytest.mark.parametrize("texts", [[], ["", " \n \n"]], ids=["no line", "no text"])
def test_a_text_that_is_empty_is_refused_by_the_name_of_its_source(tmp_path, texts):
    write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(
        ValueError, match=r"config\.sources\.en(: there is no text|\.train=.* is empty)"
    ):
        prepared(files(tmp_path / "a.jsonl"), tmp_path)
    assert directories(tmp_path) == []


def test_a_text_of_which_nothing_is_left_to_train_on_is_refused_every_time(source, tmp_path):
    (tmp_path / "own.model").write_bytes(
        prepare.train_tokenizer("en", TokenizerConfig(vocab_size=300), TEXTS)
    )
    held_out = {split for split, _ in text.documents("en", source)}
    assert held_out == {"train", "validation", "test"}
    [id_, *_] = [d.id for split, d in text.documents("en", source) if split == "test"]
    row = {"id": id_, "text": "Held out by its id."}
    (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n")
    alone = files(tmp_path / "one.jsonl", path=str(tmp_path / "own.model"))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"config\.sources\.en: .* to train on"):
            prepared(alone, tmp_path)
        assert directories(tmp_path) == []


def test_the_tokenizer_is_trained_on_text_to_train_on_alone(source, tmp_path):
    everything = {line for _, d in text.documents("en", source) for line in d.text.split("\n")}
    held_out = {
        d.text.split("\n")[0] for split, d in text.documents("en", source) if split != "train"
    }
    sample = prepare._sample(text.documents("en", source), source)
    assert set(sample) == everything - held_out and held_out


def test_of_a_large_text_about_as_much_as_asked_is_sampled(source, tmp_path, monkeypatch):
    whole = prepare._sample(text.documents("en", source), source)
    monkeypatch.setattr(prepare, "_SAMPLE_BYTES", text.size(source) // 4)
    part = prepare._sample(text.documents("en", source), source)
    assert part == prepare._sample(text.documents("en", source), source)
    assert 0.15 < sum(map(len, part)) / sum(map(len, whole)) < 0.35


def test_one_document_larger_than_the_sample_is_sampled_from_too(tmp_path, monkeypatch):
    lines = [f"Line {n} of one long text." for n in range(2000)]
    (tmp_path / "book.txt").write_text("\n".join(lines))
    book = files(tmp_path / "book.txt")
    monkeypatch.setattr(prepare, "_SAMPLE_BYTES", text.size(book) // 10)
    sample = prepare._sample(text.documents("en", book), book)
    assert 100 < len(sample) < 300 and set(sample) < set(lines)


def test_a_text_without_line_breaks_trains_a_tokenizer(tmp_path):
    (tmp_path / "book.txt").write_text(
        " ".join(TEXTS[n % 300].replace("\n", " ") for n in range(3000))
    )
    made = prepared(files(tmp_path / "book.txt"), tmp_path)
    assert made.pieces.size == 320 and made.count("train") > 10_000
