"""Behaviours of data/prepared.py: what is opened where a text itself is not."""

import dataclasses
import json
import shutil
import sys

import pytest
from helpers import read_plain_json, tiny_config, write_jsonl

from imbalance_jax import config as config_lib
from imbalance_jax.config import SourceConfig, TokenizerConfig
from imbalance_jax.data import parallel, prepare, prepared, sources
from imbalance_jax.data.text import tfds_datasets

WORDS = ("the quick brown fox", "jumps over a lazy dog", "while it rains")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two sources with a parallel set, prepared; then its files were moved away."""
    here = tmp_path_factory.mktemp("raw")
    config = dataclasses.replace(two_sources(here), data_dir=str(here.parent / "data"))
    text = prepare.prepare_run_sources(config)
    sets = parallel.prepare_all_parallel_sets(config, text)
    return config, text, sets, here.rename(here.parent / "moved")


def two_sources(here, **changes):
    for name in ("en", "fr"):
        lines = [f"{name} {n}: {WORDS[n % 3]}, {n * 7919 % 1000}." for n in range(400)]
        write_jsonl(here / f"{name}.jsonl", lines)
    pairs = [{"en": f"en {n}: {WORDS[n % 3]}", "fr": f"fr {n}: {WORDS[n % 3]}"} for n in range(40)]
    (here / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = config_lib.default()
    for name in ("en", "fr"):
        config.sources[name] = config_lib.declared(
            SourceConfig, kind="files", train=str(here / f"{name}.jsonl")
        )
        config.sources[name].tokenizer.vocab_size = 300
        config.languages[name] = config_lib.declared(config_lib.LanguageConfig, source=name)
        config.mixture.ratio[name] = 1
    config.parallel.en_fr = config_lib.declared(
        config_lib.ParallelConfig, sources=("en", "fr"), path=str(here / "pairs.jsonl")
    )
    config.vocabulary.tokenizer.vocab_size = 320
    config.data_dir = str(here / "data")
    config.model.L = 64
    for name, value in changes.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    return config_lib.resolve_config(config)


def copied(tmp_path, data_dir):
    """Returns a copy of prepared text, as a user makes it, without what is cached beside it."""
    where = tmp_path / "copy"
    shutil.copytree(data_dir, where, ignore=shutil.ignore_patterns("cache"))
    return where


def changed(config, name="en", **fields):
    source = dataclasses.replace(config.sources[name], **fields)
    return dataclasses.replace(config, sources={**config.sources, name: source})


def test_text_and_parallel_sets_open_from_a_copy_of_data_dir_alone(made, tmp_path, capsys):
    config, text, sets, _ = made
    config = dataclasses.replace(config, data_dir=str(copied(tmp_path, config.data_dir)))
    parallel.check_all_parallel_sets(config)
    opened = prepare.prepare_run_sources(config)
    assert {n: s.fingerprint for n, s in opened.items()} == {
        n: s.fingerprint for n, s in text.items()
    }
    assert opened["en"].tokens("train").tolist() == text["en"].tokens("train").tolist()
    again = parallel.prepare_all_parallel_sets(config, opened)
    assert again["en_fr"].ids["fr"].tolist() == sets["en_fr"].ids["fr"].tolist()
    said = capsys.readouterr().out
    for field, found in (("sources.en", text["en"]), ("parallel.en_fr", sets["en_fr"])):
        assert (
            f"config.{field}: the text is not read here; prepared text {found.fingerprint}" in said
        )


def test_a_text_that_is_here_is_read_though_prepared_text_has_its_name(made, tmp_path):
    """Its bytes are what a run is trained on, so they decide and not what the config says."""
    config, text, _, moved = made
    where = copied(tmp_path, config.data_dir)
    lines = (moved / "en.jsonl").read_text()
    file = type(where)(config.sources["en"].train)
    file.parent.mkdir()
    try:
        file.write_text(lines + json.dumps({"text": "one more"}) + "\n")
        opened = prepare.prepare_source("en", config.sources["en"], str(where))
        assert opened.fingerprint != text["en"].fingerprint
        file.write_text(lines)
        opened = prepare.prepare_source("en", config.sources["en"], str(where))
        assert opened.fingerprint == text["en"].fingerprint
    finally:
        shutil.rmtree(file.parent)


def test_what_was_prepared_as_something_else_is_not_opened_and_the_message_says_what_to_do(made):
    config, _, _, moved = made
    advice = r"run python -m imbalance_jax\.data\.prepare with the same --config, and copy en-\*"
    for other in ({"field": "body"}, {"tokenizer": TokenizerConfig(vocab_size=301)}):
        with pytest.raises(ValueError, match=rf"matches no file .*{advice}"):
            prepare.prepare_run_sources(changed(config, **other))
    # Half of it is a mistake, not another machine.
    half = f"{moved}/en.jsonl,{config.sources['en'].train}"
    with pytest.raises(ValueError, match="matches no file"):
        prepare.prepare_run_sources(changed(config, train=half))
    sets = dataclasses.replace(config.parallel["en_fr"], fields=("fr", "en"))
    with pytest.raises(ValueError, match=r"there is no file .*copy parallel-en_fr-\*"):
        parallel.check_all_parallel_sets(dataclasses.replace(config, parallel={"en_fr": sets}))


def as_another_version(directory, fingerprint, **made_of):
    """Copies a prepared text as one that the same config made of other bytes."""
    other = directory.with_name(f"{directory.name.partition('-')[0]}-{fingerprint}")
    shutil.copytree(directory, other)
    about = read_plain_json(other / sources.MARKER)
    about |= {"fingerprint": fingerprint, "made_of": about["made_of"] | made_of}
    (other / sources.MARKER).write_text(json.dumps(about))


def test_a_text_that_is_prepared_already_is_found_under_a_second_path_too(tmp_path):
    """The bytes say that it is the same; where they are not, each config's statement does."""
    raw, other = tmp_path / "raw", tmp_path / "other"
    raw.mkdir(), other.mkdir()
    configs = [two_sources(place, data_dir=str(tmp_path / "data")) for place in (raw, other)]
    for config in configs:
        parallel.prepare_all_parallel_sets(config, prepare.prepare_run_sources(config))
    assert len(list((tmp_path / "data").glob("*-*"))) == 3
    shutil.rmtree(raw)
    shutil.rmtree(other)
    for config in configs:
        assert parallel.prepare_all_parallel_sets(
            config, prepare.prepare_run_sources(config)
        ).keys() == {"en_fr"}


def test_of_several_versions_the_recorded_one_is_opened_and_none_by_chance(made, tmp_path):
    config, text, _, _ = made
    where = copied(tmp_path, config.data_dir)
    config = dataclasses.replace(config, data_dir=str(where))
    as_another_version(where / text["en"].path.name, "0" * 16, text="other")
    with pytest.raises(ValueError, match=r"prepared text of 2 versions of it: en-.*Keep the one"):
        prepare.prepare_run_sources(config)
    for fingerprint in (text["en"].fingerprint, "0" * 16):
        opened = prepare.prepare_run_sources(config, {"en": fingerprint})
        assert opened["en"].fingerprint == fingerprint
    with pytest.raises(ValueError, match=f"has no prepared text of fingerprint {'1' * 16}"):
        prepare.prepare_run_sources(config, {"en": "1" * 16})


def test_the_embedded_text_of_another_machine_is_opened_where_it_is_recorded(
    english, tmp_path, monkeypatch, capsys
):
    """Packages differ between machines, so what is installed here does not say what is meant."""
    where = copied(tmp_path, english.path.parent)
    for other in where.glob("*"):
        if other.name not in (english.path.name,):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    config = tiny_config(where)
    prepare.prepare_run_sources(config, {"en": english.fingerprint})
    assert "not read here" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "version_info", (3, 0, 0, "final", 0))
    opened = prepare.prepare_run_sources(config, {"en": english.fingerprint})
    assert opened["en"].fingerprint == english.fingerprint
    assert "not read here" in capsys.readouterr().out
    config = changed(config, packages=("absent_here",))
    with pytest.raises(ValueError, match=r"there is no such package .*Nor does"):
        prepare.prepare_run_sources(config)


def test_a_tokenizers_file_may_be_left_behind_too(made, tmp_path):
    config, text, _, moved = made
    path = tmp_path / "own.model"
    path.write_bytes(text["en"].model)
    config = changed(config, tokenizer=TokenizerConfig(path=str(path)), train=f"{moved}/en.jsonl")
    config = dataclasses.replace(config, data_dir=str(tmp_path / "data"), parallel={})
    before = prepare.prepare_source("en", config.sources["en"], config.data_dir)
    path.unlink()
    after = prepare.prepare_source("en", config.sources["en"], config.data_dir)
    assert (after.fingerprint, after.model) == (before.fingerprint, before.model)
    path.write_bytes(text["fr"].model)
    other = prepare.prepare_source("en", config.sources["en"], config.data_dir)
    assert other.model == text["fr"].model


def test_sources_of_a_joint_tokenizer_open_from_data_dir_together_or_some_of_them(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    config = two_sources(raw, vocabulary__layout="joint", parallel={})
    config = dataclasses.replace(config, data_dir=str(tmp_path / "data"))
    before = {
        name: source.fingerprint for name, source in prepare.prepare_run_sources(config).items()
    }
    (raw / "fr.jsonl").unlink()
    assert {n: s.fingerprint for n, s in prepare.prepare_run_sources(config).items()} == before
    (raw / "en.jsonl").unlink()
    opened = prepare.prepare_run_sources(config)
    assert {name: source.fingerprint for name, source in opened.items()} == before
    about = opened["fr"].path / sources.MARKER
    about.write_text(json.dumps({**opened["fr"].about, "tokenizer": "0" * 64}))
    with pytest.raises(ValueError, match="en and fr were prepared with different ones"):
        prepare.prepare_run_sources(config)


def test_a_language_alone_has_the_joint_tokenizer_of_the_mixture_it_is_compared_with(tmp_path):
    both = two_sources(tmp_path, vocabulary__layout="joint", parallel={})
    ratio = dataclasses.replace(both.mixture, ratio={"en": 1})
    alone = dataclasses.replace(both, languages={"en": both.languages["en"]}, mixture=ratio)
    made = prepare.prepare_run_sources(both)
    assert prepare.prepare_run_sources(alone)["en"].fingerprint == made["en"].fingerprint
    (tmp_path / "fr.jsonl").unlink()
    assert prepare.prepare_run_sources(alone)["en"].fingerprint == made["en"].fingerprint
    shutil.rmtree(made["fr"].path)
    with pytest.raises(ValueError, match=r"config\.sources\.fr\.train=.*matches no file"):
        prepare.prepare_run_sources(
            alone
        )  # which tokenizer it is shows in all that it was trained on
    (tmp_path / "en.jsonl").unlink()
    assert prepare.prepare_run_sources(alone)["en"].fingerprint == made["en"].fingerprint


def test_a_dataset_that_is_prepared_as_ids_is_not_downloaded(made, tmp_path, monkeypatch):
    config, text, _, _ = made
    where = copied(tmp_path, config.data_dir)
    source = SourceConfig(kind="tfds", dataset="made/en", dataset_dir=str(tmp_path / "absent"))
    directory = where / text["en"].path.name
    about = read_plain_json(directory / sources.MARKER)
    about["made_of"]["stated"] = [prepared.make_source_statement(source)]
    (directory / sources.MARKER).write_text(json.dumps(about))
    monkeypatch.setattr(tfds_datasets, "prepare_dataset", None)  # fails if it is called
    # Another dataset_dir says where a dataset lies, and not which it is.
    source = dataclasses.replace(source, dataset_dir=str(tmp_path / "elsewhere"))
    assert prepare.prepare_source("en", source, str(where)).fingerprint == text["en"].fingerprint


def test_a_statement_does_not_change_with_fields_that_are_added_later():
    stated = prepared.make_source_statement(SourceConfig(kind="files", train="a.jsonl"))
    assert stated == {
        "text": {"kind": "files", "train": "a.jsonl"},
        "tokenizer": {"vocab_size": 16384, "model_type": "bpe"},
    }
