"""Which tasks there are, and where labelled examples come from."""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from helpers import PACKAGES, write_jsonl

from imbalance_jax.analysis import transfer_results
from imbalance_jax.config import SourceConfig
from imbalance_jax.transfer import sentence_tasks, tasks
from imbalance_jax.transfer.examples import load_task

EN = {"en": SourceConfig(packages=PACKAGES)}
BOTH = {"en": SourceConfig(), "fr": SourceConfig()}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


def load(name, directory="", sources=EN, trained="en", **more):
    (task,) = tasks.find_tasks([str(name)])
    return load_task(task, sources, trained, directory=str(directory), **more)


def cola(directory, train=((0, "Bad it."), (1, "It is good.")), test=((1, "Fine."),), end="json"):
    for part, rows in (("train", train), ("valid", test)):
        rows = [{"sentence": text, "label": label, "idx": 0} for label, text in rows]
        write(directory / f"cola.{part}.{end}", rows)


def test_all_are_the_eleven_tasks_of_the_reference_each_once():
    every = tasks.find_tasks(["all", "cola"])
    names = tuple(task.name for task in every)
    assert names == tuple(tasks.GLUE) == transfer_results.GLUE and len(names) == 11


@pytest.mark.parametrize("end", ["json", "jsonl.gz"])
def test_files_of_babylm_are_read_by_their_names(tmp_path, end):
    cola(tmp_path, end=end)
    found = load("cola", tmp_path)
    assert found.labels == ("0", "1")
    assert found.train.texts == [("Bad it.",), ("It is good.",)]
    assert found.train.label_n.tolist() == [0, 1] and found.test["en"].label_n.tolist() == [1]


def test_the_second_validation_set_of_mnli_goes_with_the_same_training(tmp_path):
    row = lambda text, label: {"premise": text, "hypothesis": "H", "label": label}
    write(tmp_path / "mnli.train.json", [row("P", 0), row("Q", 2), row("R", 1)])
    write(tmp_path / "mnli.valid.json", [row("matched", 0)])
    write(tmp_path / "mnli-mm.valid.json", [row("mismatched", 2)])
    found = load("mnli-mm", tmp_path)
    assert found.labels == ("0", "1", "2") and len(found.train) == 3
    assert found.train.groups == ["P", "Q", "R"]  # premises have several hypotheses
    assert found.test["en"].texts == [("mismatched", "H")]


def test_templates_hold_several_fields(tmp_path):
    row = {"paragraph": "P.", "question": "Who?", "answer": "I.", "label": 1}
    write(tmp_path / "multirc.train.json", [row, row | {"label": 0}])
    write(tmp_path / "multirc.valid.json", [row])
    asked, paragraph = load("multirc", tmp_path).test["en"].texts[0]
    assert asked.startswith("Who?") and asked.endswith("I.") and paragraph == "P."


def test_a_language_with_a_text_of_its_own_is_scored_on_that_and_one_without_is_not(tmp_path):
    row = lambda text, label="a": {"premise": text, "hypothesis": "h", "label": label}
    write(tmp_path / "xnli.en.train.jsonl", [row("x"), row("y", "b")])
    write(tmp_path / "xnli.en.valid.jsonl", [row("yes")])
    assert list(load("xnli", tmp_path, BOTH).test) == ["en"]
    write(tmp_path / "xnli.fr.valid.jsonl", [row("oui")])
    found = load("xnli", tmp_path, BOTH)
    assert {name: e.texts for name, e in found.test.items()} == {
        "en": [("yes", "h")],
        "fr": [("oui", "h")],
    }
    with pytest.raises(ValueError, match="train"):  # French has no examples to train on
        load("xnli", tmp_path, BOTH, trained="fr")


def test_a_file_without_a_languages_name_is_in_the_one_that_is_trained_in(tmp_path):
    cola(tmp_path)
    assert list(load("cola", tmp_path, BOTH, trained="fr").test) == ["fr"]


TOML = """
[topics]
texts = ["{title}", "{body}"]
label = "topic"
labels = ["b", "a"]
train = "{language}.train.jsonl"
test = "{language}.test.jsonl"
"""


def test_any_file_with_named_fields_is_a_task(tmp_path):
    row = {"title": "T", "body": "B", "topic": "a"}
    (tmp_path / "mine.toml").write_text(TOML + 'group = "title"')
    for name in ("en.train", "en.test", "fr.test"):
        write(tmp_path / f"{name}.jsonl", [row])
    found = load(tmp_path / "mine.toml", sources=BOTH)
    assert found.labels == ("b", "a") and found.train.label_n.tolist() == [1]
    assert list(found.test) == ["en", "fr"] and found.test["fr"].texts == [("T", "B")]
    assert found.train.groups == ["T"]


def test_a_part_of_a_files_examples_is_a_fixed_draw_and_not_its_beginning(tmp_path):
    texts = [(label, f"{label} {n}") for label in (0, 1) for n in range(50)]  # sorted by label
    cola(tmp_path, train=texts, test=texts)
    found = load("cola", tmp_path, most={"train": 20, "test": 30})
    assert len(found.train) == 20 and len(found.test["en"]) == 30
    assert 5 < found.train.label_n.sum() < 15
    numbers = [int(text.split()[1]) for (text,) in found.train.texts]
    assert all(
        text.startswith(str(label))
        for (text,), label in zip(found.train.texts, found.train.label_n, strict=True)
    )
    assert len(set(found.train.texts)) == 20 and max(numbers) > 25
    again = load("cola", tmp_path, most={"train": 20})
    assert again.train.texts == found.train.texts and len(again.test["en"]) == 100


def dataset(root, name, config, rows, names=("bad", "good")):
    """Writes a prepared TFDS dataset of sentences with labels."""
    path = os.path.join(root, name, config, "1.0.0")
    os.makedirs(path)
    features = {
        "sentence": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=list(names)),
    }
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=name,
            version=tfds.core.Version("1.0.0"),
            data_dir=path,
            module_name=__name__,
            config_name=config,
            config_description="",
        ),
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=9, file_format="array_record")
    writer.initialize_splits(list(rows))
    writer.add_examples(rows)
    writer.close_all()


def test_a_prepared_tfds_dataset_is_read_with_its_labels_in_their_order(tmp_path):
    rows = {
        "train": [{"sentence": f"n {i}", "label": i % 2} for i in range(4)],
        "validation": [{"sentence": "zwölf", "label": 1}],
    }
    dataset(tmp_path, "glue", "cola", rows)
    found = load("cola", tmp_path)
    assert found.labels == ("bad", "good")  # and not the other way round
    assert found.train.label_n.tolist() == [0, 1, 0, 1]
    assert found.test["en"].texts == [("zwölf",)] and found.origin == "TFDS glue/cola"


def test_answers_that_are_kept_secret_are_no_labels(tmp_path):
    rows = {
        "train": [{"sentence": "x", "label": 0}],
        "validation": [{"sentence": "y", "label": -1}],
    }
    dataset(tmp_path, "glue", "cola", rows)
    with pytest.raises(
        ValueError, match=r"record 0 of validation: label='-1' is none of .* bad, go"
    ):
        load("cola", tmp_path)


# Bad input.


def test_without_any_examples_it_says_what_to_download_and_where_to_put_it(tmp_path):
    with pytest.raises(ValueError) as refused:
        load("rte", tmp_path)
    said = str(refused.value)
    assert "rte.train.json and rte.valid.json, a JSON object with sentence1, sentence2" in said
    assert str(tmp_path) in said and "--tasks_dir" in said and "BabyLM" in said
    assert f"tfds.builder('glue/rte', data_dir='{tmp_path}').download_and_prepare(" in said
    assert f"{tmp_path}/glue/rte" in said
    with pytest.raises(ValueError, match=r"xnli\.en\.train\.json and xnli\.en\.valid\.json"):
        load("xnli", tmp_path)


def test_an_unknown_task_is_answered_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match=r"--tasks=multric: .* Did you mean multirc\?"):
        tasks.find_tasks(["multric"])
    with pytest.raises(ValueError, match="There are: cola, "):
        tasks.find_tasks(["zzz"])
    with pytest.raises(ValueError, match="--tasks is empty"):
        tasks.find_tasks([])


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (
            [(0, "x"), (1, "y")],
            [(2, "z")],
            r"cola.valid.json, line 1: label='2' is none of .*: 0, 1",
        ),
        ([], [(0, "x")], r"no example to train on in .*cola.train.json\. .* sentence and label"),
        ([(0, "x"), (1, "y")], [], r"no example to score in .*cola.valid.json\."),
        ([(0, "x"), (0, "y")], [(0, "z")], "all examples of .* have the label '0'"),
        ([(0, ["x"])], [(0, "z")], "its field 'sentence' is neither text nor a whole number"),
    ],
)
def test_examples_that_cannot_be_used_are_refused_by_where_they_are(tmp_path, train, test, said):
    cola(tmp_path, train, test)
    with pytest.raises(ValueError, match=said):
        load("cola", tmp_path)


def test_a_missing_field_is_answered_with_those_that_are_there(tmp_path):
    cola(tmp_path)
    with (tmp_path / "cola.train.json").open("a") as file:
        file.write('{"sentnece": "x", "label": 0}\n')
    with pytest.raises(ValueError, match=r"line 3: has no field 'sentence'.* It has: sentnece, la"):
        load("cola", tmp_path)
    (tmp_path / "cola.train.json").write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1: is a JSON array, not an object"):
        load("cola", tmp_path)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[topics", "it is not TOML"),
        ("topics = 1", "topics must be a table with texts, train and test"),
        (
            TOML.replace("label =", "lable ="),
            "may have label, labels and group. It has: texts, lable",
        ),
        (TOML.replace("{title}", "title"), "each with a field of the examples"),
        (TOML, r"topics: train=.*en.train.jsonl: there is no such file"),
        (TOML.replace("[topics]", "[cola]"), "cola is a task of the list"),
        (TOML.replace('["b", "a"]', "[1, 1]"), "topics.labels=.* must be a list of different"),
        (TOML.replace('["b", "a"]', "[true, false]"), "topics.labels=.* whole numbers"),
        (TOML.replace('["{title}", "{body}"]', "[3]"), "topics.texts=.* must be a list of texts"),
        (TOML.replace('"{language}.train.jsonl"', "3"), "topics.train=3 must be text"),
    ],
)
def test_a_task_that_is_not_described_well_is_refused(tmp_path, toml, said):
    (tmp_path / "mine.toml").write_text(toml)
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "mine.toml")


# Tasks of the run's own text.

SENTENCE = "The {} of part {} is {} of them all."


def documents(path, parts, count):
    rows = [
        {"id": f"{part}/{i}", "text": " ".join(SENTENCE.format(part, i, k) for k in range(6))}
        for i in range(count)
        for part in parts
    ]
    write(path, rows)


@pytest.fixture
def own(tmp_path):
    documents(tmp_path / "train.jsonl", ("man", "kde", "man", "rare") * 1, 8)
    documents(tmp_path / "test.jsonl", ("kde", "man"), 3)
    source = SourceConfig(
        kind="files", train=f"{tmp_path}/train.jsonl", test=f"{tmp_path}/test.jsonl"
    )
    return {"en": source}


def test_half_of_the_pairs_follow_each_other_and_the_others_are_of_two_documents(own):
    rows = sentence_tasks.make_next_sentence_rows("en", own["en"], {"train": 10**6, "test": 10**6})[
        "test"
    ]
    assert [row["label"] for row in rows] == ["follows", "other"] * (len(rows) // 2)
    # The first document has none before it.
    assert len(rows) == 2 * 3 * 5
    place = lambda text: (text.split()[1], int(text.split()[4]), int(text.split()[6]))
    for row in rows:
        (part, number, k), second = place(row["first"]), place(row["second"])
        if row["label"] == "follows":
            assert second == (part, number, k + 1)
        else:
            assert second[:2] != (part, number)


def test_sentences_of_the_two_largest_parts_are_told_apart(own):
    found = load("origin", sources=own)
    assert found.labels == ("kde", "man")
    texts = zip(found.train.texts, found.train.label_n, strict=True)
    assert all(text[0].split()[1] == found.labels[label] for text, label in texts)
    assert sum(found.train.label_n) * 2 == len(found.train)
    assert len(set(found.train.groups)) == 16 and found.train.groups[0] == found.train.groups[2]
    few = load("origin", sources=own, most={"train": 5})
    assert len(few.train) == 5 and few.train.texts == found.train.texts[:5]


def test_modules_are_parts_of_their_packages(tmp_path):
    rows = [
        {"id": f"{part}.m{i}", "text": SENTENCE.format(part, i, 0)}
        for i in range(40)
        for part in ("scipy", "jax")
    ]
    rows += [{"id": f"alone{i}", "text": SENTENCE.format("none", i, 0)} for i in range(99)]
    names = [str(tmp_path / f"{split}.jsonl") for split in ("train", "test")]
    for name in names:
        write(pathlib.Path(name), rows)
    own = {"en": SourceConfig(kind="files", train=names[0], test=names[1])}
    assert load("origin", sources=own).labels == ("jax", "scipy")


@pytest.mark.parametrize("name", ["next_sentence", "origin"])
def test_a_made_task_reads_the_text_once(own, name, monkeypatch):
    documents, reads = sentence_tasks.text.read_documents, []
    once = lambda *args: reads.append(args) or documents(*args)
    monkeypatch.setattr(sentence_tasks.text, "read_documents", once)
    load(name, sources=own)
    assert len(reads) == 1


def test_made_tasks_need_text_in_several_parts(tmp_path):
    file = write_jsonl(tmp_path / "text.jsonl", [SENTENCE.format("a", 1, 2)])
    source = SourceConfig(kind="files", train=str(file))
    with pytest.raises(ValueError, match="do not begin with two different parts"):
        load("origin", sources={"en": source})
    with pytest.raises(ValueError, match=r"config\.sources\.en is synthetic"):
        load("next_sentence", sources={"en": SourceConfig(kind="synthetic")})


def test_reading_tasks_takes_no_jax():
    code = "import sys, imbalance_jax.transfer.examples; sys.exit('jax' in sys.modules)"
    root = pathlib.Path(tasks.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_a_description_that_cannot_be_read_is_refused_by_its_path(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n" + TOML.encode())
    for name, said in (
        ("folder", "a directory, not a file"),
        ("latin", "not TOML"),
        ("no", "no such file"),
    ):
        with pytest.raises(ValueError, match=rf"--tasks=.*{name}.toml.*{said}"):
            load(tmp_path / f"{name}.toml")


def test_whole_numbers_may_be_labels(tmp_path):
    (tmp_path / "mine.toml").write_text(TOML.replace('["b", "a"]', "[1, 0]"))
    for name in ("en.train", "en.test"):
        write(tmp_path / f"{name}.jsonl", [{"title": "T", "body": "B", "topic": 0}])
    found = load(tmp_path / "mine.toml")
    assert found.labels == ("1", "0") and found.train.label_n.tolist() == [1]
