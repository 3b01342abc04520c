"""Behaviours of data/text/tfds.py and tfds_datasets.py, on small datasets written here."""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers import ROOT, read_plain_json
from tensorflow_datasets.core import constants

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import files
from imbalance_jax.data.text import reading as text
from imbalance_jax.data.text.documents import SPLITS
from imbalance_jax.data.text.selection import Selection

FEATURES = {"id": tfds.features.Text(), "number": np.int64, "text": tfds.features.Text()}


def write(root, name, version, splits, features=None, config=""):
    """Writes a prepared dataset with four records a file, and returns its directory."""
    path = os.path.join(root, name, config, version)
    os.makedirs(path)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=name,
            version=tfds.core.Version(version),
            data_dir=path,
            module_name=__name__,
            config_name=config or None,
            config_description="",
        ),
        features=tfds.features.FeaturesDict(features or FEATURES),
        disable_shuffling=True,
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=4, file_format="array_record")
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()
    return pathlib.Path(path)


def rows(split, count):
    return [
        {"id": f"{split}-{i}", "number": i, "text": f"Texte {i} de {split}."} for i in range(count)
    ]


def source(root, dataset="toy", **fields):
    return SourceConfig(kind="tfds", dataset=dataset, dataset_dir=str(root), **fields)


def read(source, name="fr"):
    return list(text.read_documents(name, source))


def ids(source):
    """Returns the ids of the documents of each split."""
    found = {split: [] for split in SPLITS}
    for split, document in read(source):
        found[split].append(document.id)
    return found


def refused(call, *parts):
    with pytest.raises(ValueError) as caught:
        call()
    for part in parts:
        assert str(part) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def toy(tmp_path):
    """Returns the directory of a dataset of 100 records to train on, and two other splits."""
    splits = {"train": rows("train", 100), "validation": rows("validation", 5)}
    write(tmp_path, "toy", "1.0.0", {**splits, "test": rows("test", 3)})
    return tmp_path


# Documents


def test_records_are_taken_by_where_and_a_cap_and_counted(toy):
    scored = {
        **FEATURES,
        "scores": tfds.features.Sequence(np.float32),
        "meta": {"lang": tfds.features.Text()},
    }
    made = [
        {**row, "scores": [number / 100, 1], "meta": {"lang": "fr" if number % 3 else "oc"}}
        for number, row in enumerate(rows("train", 100))
    ]
    write(toy, "scored", "1.0.0", {"train": made}, scored)
    where = "scores.0 >= 0.255, meta.lang == 'fr', number != 40"
    selection = Selection()
    taken = source(toy, "scored", where=where, max_documents=20)
    text.check_source_text("fr", taken)
    documents = list(text.read_documents("fr", taken, None, selection))
    expected = [n for n in range(26, 100) if n % 3 and n != 40]
    numbers = [int(document.text.split()[1]) for _, document in documents]
    assert numbers == expected[: len(numbers)]
    assert [split for split, _ in documents].count("train") == 20
    assert selection.left_out == {"where": numbers[-1] + 1 - len(numbers)}
    for wrong, problem in (("nowhere > 1", "has no field 'nowhere'"), ("text > 1", "is a text")):
        with pytest.raises(ValueError, match=problem):
            text.check_source_text("fr", source(toy, "scored", where=wrong))
    prints = {
        text.compute_text_fingerprint("fr", source(toy, "scored", **fields))
        for fields in ({}, {"where": where}, {"max_documents": 20}, {"max_documents": 21})
    }
    assert len(prints) == 4


def test_a_record_that_is_no_text_is_left_out_on_request(toy):
    made = [
        {**row, "text": b"caf\xe9" if n == 5 else row["text"]} for n, row in enumerate(rows("a", 9))
    ]
    write(toy, "odd", "1.0.0", {"train": made})
    selection = Selection()
    taken = source(toy, "odd", on_bad_line="skip")
    assert len(list(text.read_documents("fr", taken, None, selection))) == 8
    assert selection.left_out == {"bad_lines": 1}


def test_every_record_is_a_document_in_the_order_of_the_dataset(toy):
    found = read(source(toy))
    assert [split for split, _ in found] == ["train"] * 100 + ["validation"] * 5 + ["test"] * 3
    assert [(d.id, d.text) for _, d in found] == [
        (row["id"], row["text"])
        for split, count in (("train", 100), ("validation", 5), ("test", 3))
        for row in rows(split, count)
    ]


def test_whole_numbers_and_strings_of_any_kind_are_ids(tmp_path):
    features = {"small": np.int32, "string": np.str_, "text": np.str_}
    examples = [{"small": -7, "string": "é", "text": "Texte."}]
    write(tmp_path, "toy", "1.0.0", {"train": examples}, features)
    assert ids(source(tmp_path, id_field="small"))["train"] == ["-7"]
    assert ids(source(tmp_path, id_field="string"))["train"] == ["é"]


def test_a_record_without_an_id_gets_one_from_its_place_in_the_dataset(tmp_path):
    features = {"id": np.float32, "text": tfds.features.Text()}
    examples = [{"id": 0.5, "text": f"Texte {i}."} for i in range(10)]
    write(tmp_path, "toy", "1.0.0", {"train": examples}, features, config="fr")
    whole, part = source(tmp_path, "toy/fr"), source(tmp_path, "toy/fr:1.0.0", train="train[7:]")
    assert ids(whole)["train"] == [f"toy/fr:train:{i}" for i in range(10)]
    assert ids(part)["train"] == [f"toy/fr:train:{i}" for i in range(7, 10)]
    [(_, document), *_] = read(part)
    assert document.identity == f"\0fr\0{document.id}"


@pytest.mark.parametrize("fields", [{"id_field": "missing"}, {"ids": "shared"}])
def test_a_feature_of_ids_that_the_dataset_lacks_is_refused_with_those_it_has(tmp_path, fields):
    features = {"number": np.int64, "text": tfds.features.Text()}
    examples = [{"number": 1, "text": "Texte."}]
    write(tmp_path, "toy", "1.0.0", {"train": examples}, features)
    with pytest.raises(ValueError, match=r"sources\.fr\.id_field='\w+': .* it has: number, text"):
        text.check_source_text("fr", source(tmp_path, **fields))


def test_features_within_features_are_named_with_dots(tmp_path):
    features = {
        "about": {"key": tfds.features.Text()},
        "translation": tfds.features.Translation(languages=["en", "fr"]),
    }
    examples = [{"about": {"key": "k1"}, "translation": {"en": "One.", "fr": "Un."}}]
    write(tmp_path, "toy", "1.0.0", {"train": examples}, features)
    found = read(source(tmp_path, field="translation.fr", id_field="about.key"))
    assert [(d.id, d.text) for _, d in found] == [("k1", "Un.")]


def test_records_without_text_are_left_out_and_their_markup_too(tmp_path):
    examples = ["\n_START_ARTICLE_\nTitre\n_START_PARAGRAPH_\nUn._NEWLINE_Deux.", "_NEWLINE_", " "]
    features = {"text": tfds.features.Text()}
    write(tmp_path, "toy", "1.0.0", {"train": [{"text": each} for each in examples]}, features)
    assert [d.text for _, d in read(source(tmp_path, markup="wiki40b"))] == ["Titre\nUn.\nDeux."]
    assert [d.text for _, d in read(source(tmp_path))] == examples[:2]


def test_progress_rises_to_one_as_records_are_read(toy):
    seen, at = [], {}
    for index, _ in enumerate(text.read_documents("fr", source(toy), seen.append)):
        at[index] = seen[-1]
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert at[26] == pytest.approx(0.25) and at[80] == pytest.approx(0.75)


# Splits


def test_slices_and_sums_of_splits_are_read_as_tfds_writes_them(toy):
    found = ids(
        source(
            toy,
            train="train[:10%]+train[93:]+validation[1:2]",
            validation="train[11:17]",
            test="train[-10%:-8%]+test[:50%]",
        )
    )
    ordered = [f"train-{i}" for i in range(100)]
    assert found["train"] == [*ordered[:10], *ordered[93:], "validation-1"]
    assert found["validation"] == ordered[11:17]
    assert found["test"] == [*ordered[90:92], "test-0", "test-1"]


def test_every_slice_is_that_of_the_list_of_records(toy):
    # Files hold four records, and 64 are read at once.
    for start, end in ((0, 1), (3, 5), (4, 8), (7, 99), (35, 100)):
        found = ids(source(toy, train=f"train[{start}:{end}]"))["train"]
        assert found == [f"train-{i}" for i in range(100)][start:end]


def test_a_split_that_the_dataset_lacks_or_leaves_empty_is_carved_as_from_files(tmp_path):
    examples = [{"text": f"Texte {i}.", "id": f"page/{i}"} for i in range(3000)]
    features = {"id": tfds.features.Text(), "text": tfds.features.Text()}
    held_out = [{"text": "Texte.", "id": "held out"}]
    splits = {"train": examples, "validation": [], "test": held_out}
    write(tmp_path, "toy", "1.0.0", splits, features)
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(example) + "\n" for example in examples))
    as_files = ids(SourceConfig(kind="files", train=str(lines)))
    found = ids(source(tmp_path))
    assert found["test"] == ["held out"]
    assert found["validation"] == as_files["validation"] and 10 < len(found["validation"]) < 50
    assert set(found["train"]) == set(as_files["train"]) | set(as_files["test"])


def test_a_record_can_be_in_one_split_only(toy):
    def check(**splits):
        return lambda: text.check_source_text("fr", source(toy, **splits))

    check(train="train[:50%]", validation="train[50%:]", test="validation+test")()
    refused(
        check(train="train", validation="train[98:]"),
        "config.sources.fr.validation='train[98:]'",
        "records 98 to 99 of train are also in config.sources.fr.train='train'",
    )
    refused(
        check(train="train+test"),
        "config.sources.fr.test=''",
        "config.sources.fr.train='train+test'",
    )
    refused(check(train="train+train[:1]"), "records 0 to 0 of train are also in")


def test_a_split_that_does_not_exist_is_answered_with_those_that_do(toy):
    has = "train (100 records), validation (5 records), test (3 records)"
    refused(
        lambda: text.check_source_text("fr", source(toy, validation="dev[:5]")),
        "config.sources.fr.validation='dev[:5]'",
        "Unknown split 'dev'",
        has,
        "Set config.sources.fr.validation",
    )
    write(toy, "other", "1.0.0", {"fr": rows("fr", 4)})
    refused(
        lambda: text.check_source_text("fr", source(toy, "other")),
        "config.sources.fr.train=''",
        "Unknown split 'train'",
        "other are: fr (4 records)",
    )
    assert ids(source(toy, "other", train="fr"))["train"] == [f"fr-{i}" for i in range(4)]


@pytest.mark.parametrize(
    "spec, problem",
    [
        ("train[", "Unrecognized split format"),
        ("train[:200%]", "[-100, 100]"),
        ("train[1:2:3]", "Unrecognized split format"),
        ("all[:10%]", "does not support slice"),
        ("train[101:]", "incompatible with 100 examples"),
        ("train[:0]", "there is no record in it"),
        ("train[50:40]", "there is no record in it"),
    ],
)
def test_a_slice_that_cannot_be_read_is_named(toy, spec, problem):
    for call in (
        text.check_source_text,
        text.compute_text_fingerprint,
        lambda name, source: read(source, name),
    ):
        refused(
            lambda call=call: call("fr", source(toy, train=spec)),
            f"config.sources.fr.train={spec!r}",
            problem,
        )


# Where a dataset lies


def test_configs_and_versions_are_told_apart_and_the_newest_version_is_taken(tmp_path):
    for config, version in (("fr", "1.9.0"), ("fr", "1.10.0"), ("de", "2.0.0")):
        write(tmp_path, "toy", version, {"train": rows(config + version, 1)}, config=config)
    for dataset, expected in (
        ("toy/fr", "fr1.10.0-0"),
        ("toy/fr:1.9.0", "fr1.9.0-0"),
        ("toy/de", "de2.0.0-0"),
        ("toy/de:2.0.0", "de2.0.0-0"),
    ):
        assert ids(source(tmp_path, dataset))["train"] == [expected]


def test_without_a_config_the_default_one_is_taken_or_the_only_one(tmp_path):
    write(tmp_path, "toy", "1.0.0", {"train": rows("fr", 1)}, config="fr")
    assert ids(source(tmp_path))["train"] == ["fr-0"]
    write(tmp_path, "toy", "1.0.0", {"train": rows("de", 1)}, config="de")
    refused(
        lambda: text.check_source_text("x", source(tmp_path)),
        "config.sources.x.dataset='toy'",
        "has several configs",
        "de, fr",
        "such as toy/de",
    )
    (tmp_path / "toy" / ".config").mkdir()
    (tmp_path / "toy" / ".config" / "metadata.json").write_text('{"default_config_name": "fr"}')
    assert ids(source(tmp_path))["train"] == ["fr-0"]


def test_datasets_lie_where_tfds_has_them_unless_the_config_says_where(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DATA_DIR", str(toy))
    assert len(read(source(""))) == 108
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert len(read(source(f"~/{tmp_path.name}"))) == 108


def test_a_directory_of_another_machine_is_refused():
    refused(
        lambda: text.check_source_text("fr", source("gs://bucket/datasets")),
        "config.sources.fr.dataset_dir='gs://bucket/datasets'",
        "Copy it to a local disk, or mount",
    )


# What is wrong with a dataset that is there


def test_a_feature_that_is_not_text_is_answered_with_those_that_are(toy):
    for field, problem in (("body", "is not there"), ("number", "is not text")):
        refused(
            lambda field=field: text.check_source_text("fr", source(toy, field=field)),
            f"config.sources.fr.field={field!r}",
            problem,
            "its features of text are: id, text",
            "Set config.sources.fr.field",
        )
    write(toy, "numbers", "1.0.0", {"train": [{"x": 1}]}, {"x": np.int64})
    refused(
        lambda: text.check_source_text("fr", source(toy, "numbers")),
        "its features of text are: none",
        "Set config.sources.fr.dataset",
    )


def test_a_dataset_that_only_tensorflow_reads_is_refused_with_the_way_to_convert_it(toy):
    path = toy / "toy" / "1.0.0"
    info = json.loads((path / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (path / "dataset_info.json").write_text(json.dumps(info))
    refused(
        lambda: text.check_source_text("fr", source(toy)),
        "config.sources.fr.dataset='toy'",
        f"{path} holds it as tfrecord, which takes TensorFlow to read",
        "pip install -e '.[tfds]'",
        f"tfds convert_format --dataset_version_dir={path} --out_file_format=array_record",
        "config.sources.fr.dataset_dir",
    )
    # As convert_format leaves it.
    info["alternativeFileFormats"] = ["array_record"]
    (path / "dataset_info.json").write_text(json.dumps(info))
    text.check_source_text("fr", source(toy))
    assert len(read(source(toy))) == 108


def test_a_dataset_that_is_not_whole_is_refused(toy):
    path = toy / "toy" / "1.0.0"
    [first, *_] = sorted(path.glob("toy-train.array_record*"))
    first.rename(toy / "away")
    refused(lambda: text.check_source_text("fr", source(toy)), f"{first} is missing")
    text.check_source_text("fr", source(toy, train="train[4:]"))  # not in that file
    (path / "features.json").unlink()
    refused(lambda: text.check_source_text("fr", source(toy)), f"{path} cannot be opened")
    (path / "features.json").write_text("{")
    refused(lambda: text.check_source_text("fr", source(toy)), f"{path} cannot be opened")


def test_damaged_records_are_found_where_they_are_read(toy):
    third = sorted((toy / "toy" / "1.0.0").glob("toy-train.array_record*"))[2]
    third.write_bytes(third.read_bytes()[:100] + bytes(1000) + third.read_bytes()[1100:])
    text.check_source_text("fr", source(toy))
    where = f"{third.parent}: split train cannot be read from record"
    refused(lambda: read(source(toy, train="train[7:]")), f"{where} 7 on (RuntimeError: Corrupted")
    assert len(ids(source(toy, train="train[:8]+train[12:]"))["train"]) == 96


def test_a_record_without_the_feature_is_named(tmp_path):
    features = {"text": tfds.features.Text(), "note": tfds.features.Text(optional=True)}
    examples = [{"text": "Un.", "note": "a"}, {"text": "Deux.", "note": None}]
    write(tmp_path, "toy", "1.0.0", {"train": examples}, features)
    assert ids(source(tmp_path, id_field="note"))["train"] == ["a", "toy:train:1"]
    refused(
        lambda: read(source(tmp_path, field="note")),
        "record 1 of split train has nothing in its feature 'note'",
        "config.sources.fr.field",
    )


def test_a_record_that_is_not_utf8_is_named(tmp_path):
    examples = [{"text": b"fine", "id": b"a"}, {"text": b"caf\xe9", "id": b"b"}]
    write(tmp_path, "toy", "1.0.0", {"train": examples}, {"text": np.bytes_, "id": np.bytes_})
    refused(
        lambda: read(source(tmp_path)),
        "record 1 of split train is not UTF-8 text (byte 0xe9, at offset 3",
    )


# Datasets that are not prepared


class ToyLanguages(tfds.core.GeneratorBasedBuilder):
    """What TFDS knows how to make, without TensorFlow."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("de", "fr")]
    prepared = 0
    error: Exception | None = None

    def _info(self):
        features = {"id": tfds.features.Text(), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        type(self).prepared += 1
        print("Noise on stdout")
        print("Noise on stderr", file=sys.stderr)
        logging.error("Noise in the log")
        return {"train": self._generate_examples("train"), "dev": self._generate_examples("dev")}

    def _generate_examples(self, split):
        for i in range(3):
            if self.error:
                raise self.error
            config = self.builder_config.name
            yield i, {"id": f"{config}-{split}-{i}", "text": f"Text {i} ({config})."}


def test_what_is_not_prepared_is_prepared_once_as_array_record(tmp_path, capsys, caplog):
    dataset = source(tmp_path, "toy_languages/fr", validation="dev")
    before = ToyLanguages.prepared
    text.check_source_text("fr", dataset)
    assert text.estimate_text_bytes(dataset) == 0 and not os.listdir(tmp_path)  # nothing yet
    first = text.compute_text_fingerprint("fr", dataset)
    assert ids(dataset) == {
        "train": [f"fr-train-{i}" for i in range(3)],
        "validation": [f"fr-dev-{i}" for i in range(3)],
        "test": [],
    }
    path = tmp_path / "toy_languages" / "fr" / "1.2.0"
    assert (
        ToyLanguages.prepared == before + 1
        and text.compute_text_fingerprint("fr", dataset) == first
    )
    assert list(path.glob("*.array_record*")) and text.estimate_text_bytes(dataset) > 0
    said = f"Downloading and preparing toy_languages/fr/1.2.0 with TFDS, in {path}\n"
    assert capsys.readouterr() == (said, "") and not caplog.records


def test_without_a_config_tfds_prepares_its_default_one(tmp_path):
    dataset = source(tmp_path, "toy_languages")
    assert set(ids(dataset)["train"]) == {f"de-train-{i}" for i in range(3)}
    assert os.listdir(tmp_path / "toy_languages" / "de") == ["1.2.0"]
    assert len(read(dataset)) == 3  # from what is there now


def test_what_fails_in_preparing_is_said_with_where_to_put_a_prepared_dataset(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(ToyLanguages, "error", ConnectionError("no route to host.\nA page of more"))
    dataset = source(tmp_path, "toy_languages/fr")
    text.check_source_text("fr", dataset)
    for call in (text.compute_text_fingerprint, lambda name, source: read(source, name)):
        message = refused(
            lambda call=call: call("fr", dataset),
            "config.sources.fr.dataset='toy_languages/fr'",
            "TFDS cannot prepare it here (ConnectionError: no route to host)",
            "where there is a network",
            f"tfds.builder('toy_languages/fr', data_dir='{tmp_path}').download_and_prepare(",
            "file_format='array_record'",
            f"copy what that makes to {tmp_path / 'toy_languages' / 'fr'} here",
            "config.sources.fr.dataset_dir to a directory that holds it",
        )
        assert "\n" not in message and "page" not in message
    monkeypatch.undo()
    assert len(read(dataset)) == 3  # nothing is left in the way


def test_a_module_that_is_found_missing_in_preparing_is_named(tmp_path, monkeypatch):
    error = ModuleNotFoundError("No module named 'bs4'\nFailed importing bs4. This means ...")
    monkeypatch.setattr(ToyLanguages, "error", error)
    refused(
        lambda: read(source(tmp_path, "toy_languages/fr")),
        "config.sources.fr.dataset='toy_languages/fr'",
        "TFDS cannot prepare it here (ModuleNotFoundError: No module named 'bs4')",
    )


def test_check_finds_what_is_wrong_with_a_dataset_that_is_not_prepared(tmp_path):
    def check(dataset="toy_languages/fr", **fields):
        return lambda: text.check_source_text("fr", source(tmp_path, dataset, **fields))

    refused(check(field="body"), "config.sources.fr.field='body'", "text are: id, text")
    refused(check(train="train["), "config.sources.fr.train='train['")
    refused(
        check("toy_languages/it"),
        "config.sources.fr.dataset='toy_languages/it'",
        "the configs of toy_languages are: de, fr",
    )
    refused(check("toy_languages/fr:9.9.9"), "9.9.9, only: 1.2.0", "Correct the name")
    refused(
        check("toy_language"),
        "Dataset toy_language not found.: Did you mean: toy_language -> toy_languages",
        f"is not prepared in {tmp_path}",
        "config.sources.fr.dataset_dir to a directory that holds it",
    )
    for name in ("wiki40b/", "huggingface:x", "toy languages", "Toy", "../toy", "toy:1"):
        refused(check(name), f"config.sources.fr.dataset={name!r} is not the name of a TFDS")
    assert not os.listdir(tmp_path)


@pytest.fixture
def without(monkeypatch):
    """Returns a function that makes some packages of the extra seem missing, and others not."""
    find_spec = importlib.util.find_spec
    extra = ("importlib_resources", "tensorflow", "apache_beam")

    def pretend(*missing):
        def find(name, *args):
            if name in extra:
                return None if name in missing else find_spec("json")
            return find_spec(name, *args)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    return pretend


@pytest.mark.parametrize(
    "dataset, field, missing",
    [
        ("wiki40b/fr", "text", ("importlib_resources", "tensorflow", "apache_beam")),
        ("wiki40b/fr", "text", ("apache_beam",)),
        ("pg19", "book_text", ("tensorflow",)),
        ("tiny_shakespeare", "text", ("importlib_resources",)),
    ],
)
def test_check_says_what_is_missing_to_prepare_a_dataset(
    tmp_path, without, dataset, field, missing
):
    without(*missing)
    refused(
        lambda: text.check_source_text("fr", source(tmp_path, dataset, field=field)),
        f"config.sources.fr.dataset={dataset!r} is not prepared in {tmp_path}",
        f"it takes {', '.join(missing)}, not installed here",
        "pip install -e '.[tfds]'",
        f"tfds.builder('{dataset}'",
        "config.sources.fr.dataset_dir to a directory that holds it",
    )


def test_check_accepts_a_dataset_that_could_be_prepared_here(tmp_path, without):
    without()
    text.check_source_text(
        "fr", source(tmp_path, "wiki40b/fr", id_field="wikidata_id", train="train[:1%]")
    )
    refused(
        lambda: text.check_source_text("fr", source(tmp_path, "wiki40b/xx")),
        "sv, th, tl, tr, uk, vi",
    )
    without("apache_beam")
    # It could not download what needs no Beam.
    text.check_source_text("fr", source(tmp_path, "pg19", field="book_text"))


@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is not None,
    reason="Apache Beam is installed; run it in an environment without the extra tfds",
)
def test_without_the_extra_nothing_but_the_error_is_said_of_wiki40b(tmp_path):
    script = (
        "from imbalance_jax.config import SourceConfig\n"
        "from imbalance_jax.data.text import reading as text\n"
        f"source = SourceConfig(kind='tfds', dataset='wiki40b/fr', dataset_dir={str(tmp_path)!r})\n"
        "def read(*args): return list(text.read_documents(*args))\n"
        "for call in (text.check_source_text, text.compute_text_fingerprint, read):\n"
        "    try:\n"
        "        call('fr', source)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    root = str(ROOT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, "")
    assert len(lines) == 3 and len(set(lines)) == 1
    assert "apache_beam, not installed here" in lines[0] and "-e '.[tfds]'" in lines[0]
    assert f"copy what that makes to {tmp_path}/wiki40b/fr here" in lines[0]


def test_what_tfds_logs_and_prints_elsewhere_is_left_alone(toy, capsys):
    with contextlib.suppress(ValueError):
        text.check_source_text("fr", source(toy, "no_such_dataset"))
    assert logging.root.manager.disable == logging.NOTSET
    print("said")
    assert capsys.readouterr() == ("said\n", "")


# Fingerprints


def test_the_fingerprint_follows_the_records_and_not_their_place(tmp_path):
    splits = {"train": rows("train", 10), "test": rows("test", 4)}
    for directory in ("here", "there"):
        write(tmp_path / directory, "toy", "1.0.0", splits, config="fr")
    base = source(tmp_path / "here", "toy/fr")
    first = text.compute_text_fingerprint("fr", base)
    same = [
        source(tmp_path / "there", "toy/fr:1.0.0"),
        dataclasses.replace(base, train="train[:10]"),
        dataclasses.replace(base, train="train[:100%]", test="test"),
    ]
    assert {text.compute_text_fingerprint("de", each) for each in same} == {first}

    other = {**splits, "train": rows("other", 10)}
    write(tmp_path / "other", "toy", "1.0.0", other, config="fr")
    write(tmp_path / "here", "toy", "1.0.0", splits, config="de")
    write(tmp_path / "newer", "toy", "1.0.1", splits, config="fr")
    changed = [
        source(tmp_path / "other", "toy/fr"),
        source(tmp_path / "here", "toy/de"),
        source(tmp_path / "newer", "toy/fr"),
        dataclasses.replace(base, train="train[:9]"),
        dataclasses.replace(base, train="train[1:]"),
        dataclasses.replace(base, train="train[:8]", validation="train[8:]"),
        dataclasses.replace(base, train="train[2:]", validation="train[:2]"),
        dataclasses.replace(base, train="train[:5]", validation="test", test="train[5:]"),
        dataclasses.replace(base, field="id"),
        dataclasses.replace(base, id_field="number"),
        dataclasses.replace(base, markup="wiki40b"),
    ]
    prints = [text.compute_text_fingerprint("fr", each) for each in changed]
    assert len({first, *prints}) == len(prints) + 1


def test_digests_of_record_files_are_remembered(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CLOCK", 0)
    cache = tmp_path / "digests.json"
    first = text.compute_text_fingerprint("fr", source(toy), cache)
    known = read_plain_json(cache)
    assert len(known) == 25 + 2 + 1  # files of four records
    for key in known:
        known[key] = "0" * 64
    cache.write_text(json.dumps(known))
    assert text.compute_text_fingerprint("fr", source(toy), cache) != first  # nothing was read
    assert text.compute_text_fingerprint("fr", source(toy)) == first


def test_only_the_files_that_a_slice_needs_are_hashed(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CLOCK", 0)
    cache = tmp_path / "digests.json"
    sliced = source(toy, train="train[4:9]", validation="train[0:2]", test="test")
    text.compute_text_fingerprint("fr", sliced, cache)
    names = sorted(os.path.basename(key.partition(":")[0]) for key in read_plain_json(cache))
    assert [name[:9] for name in names] == ["toy-test.", *["toy-train"] * 3]
    assert [name[-1] for name in names[1:]] == ["0", "1", "2"]


def test_the_size_is_the_share_of_the_bytes_that_is_read(toy):
    whole = text.estimate_text_bytes(source(toy))
    written = sum(len(row["text"]) for row in rows("train", 100))
    assert written < whole < 8 * written  # with ids, numbers and the names of the features
    assert text.estimate_text_bytes(source(toy, train="train[:25%]")) == pytest.approx(
        whole / 4, rel=0.01
    )
    assert text.estimate_text_bytes(source(toy, train="train[:25%]+train[75%:]")) == pytest.approx(
        whole / 2, rel=0.01
    )
