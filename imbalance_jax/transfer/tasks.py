"""Classification tasks: what is said to the model, and where labelled examples come from.

    GLUE            the 11 entries of the reference study: TFDS, or the JSON files of BabyLM 2023
    paws-x, xnli    tasks with a text of their own in each language
    next_sentence, origin   made of the run's own text: see sentence_tasks.py
    FILE.toml       any other: a table for each task, with the fields of `Task`

        [topics]
        texts = ["{title}", "{body}"]     # or one; {field} is a field of an example
        label = "topic"
        train = "topics.{language}.train.jsonl"    # beside the .toml file
        test = "topics.{language}.test.jsonl"         # or patterns: see data/patterns.py
        group = "site"     # optional: examples that agree in it are not independent

{language} stands for the name of a source of the run, such as en or fr; what is named without it
is text of the language that is trained in. Of a task of the list, `<task>.train.json` and
`<task>.valid.json` (as BabyLM calls them), or `<task>.<language>.train.json` and so on, are taken
from a directory of the user's where they are there; they may end in .jsonl, .gz and .zst, and
have a JSON object in every line.
"""

import dataclasses
import difflib
import os
import pathlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imbalance_jax.config import SourceConfig, make_natural_sort_key
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text import files, patterns
from imbalance_jax.data.text import tfds_datasets as datasets
from imbalance_jax.transfer import sentence_tasks

LANGUAGE = "{language}"
_FIELD = re.compile(r"\{([\w.-]+)\}")
_SPLITS = ("train", "test")
_NAMES = {"train": ("train",), "test": ("valid", "validation", "test")}  # of a directory's files
_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: its texts, and one or more places that examples can come from."""

    name: str
    texts: tuple[str, ...]  # one or two, each with {fields} of an example, nested ones by dots
    label: str = "label"  # the field with the answer
    group: str = ""  # a field; examples that agree in it are not independent of each other
    labels: tuple[str, ...] = ()  # all answers there are; () is those of the examples to train on
    train: str = ""  # files of examples, and of those that are scored
    test: str = ""
    dataset: str = ""  # of TFDS, and its splits
    splits: tuple[str, str] = ("train", "validation")

    def __post_init__(self) -> None:
        fields = [_FIELD.findall(text) for text in self.texts]
        if not 1 <= len(fields) <= 2 or not all(fields):
            raise ValueError(
                f"Task {self.name}: texts={list(self.texts)} must be one or two texts, each with "
                'a field of the examples, such as ["{question}", "{passage}"].'
            )


@dataclasses.dataclass(frozen=True)
class Examples:
    """Labelled texts of a split, in one language."""

    texts: Sequence[tuple[str, ...]]
    label_n: np.ndarray  # places among the task's labels
    groups: Sequence[str]  # of each; those of one are not independent of each other

    def __len__(self) -> int:
        return len(self.texts)

    def drawn(self, n: int) -> "Examples":
        """Returns n of them, always the same ones, in their order."""
        # Raw bits: numpy promises that they never change, unlike Generator's methods.
        chosen_n = np.sort(np.argsort(np.random.Philox(key=0).random_raw(len(self)))[:n])
        return Examples(
            [self.texts[index] for index in chosen_n],
            self.label_n[chosen_n],
            [self.groups[index] for index in chosen_n],
        )


@dataclasses.dataclass(frozen=True)
class LoadedTask:
    """A task's examples."""

    task: Task
    labels: tuple[str, ...]
    train: Examples  # in the language that is trained in
    test: Mapping[str, Examples]  # source -> in its own words
    origin: str  # where they come from


def _list_glue_tasks() -> Iterator[Task]:
    sentence = ("{sentence}",)
    sentences = ("{sentence1}", "{sentence2}")
    premise = ("{premise}", "{hypothesis}")
    yield Task("cola", sentence, dataset="glue/cola")
    yield Task("sst2", sentence, dataset="glue/sst2")
    yield Task("mrpc", sentences, dataset="glue/mrpc")
    yield Task("qqp", ("{question1}", "{question2}"), dataset="glue/qqp")
    for name, which in (("mnli", "matched"), ("mnli-mm", "mismatched")):
        splits = ("train", f"validation_{which}")
        yield Task(name, premise, group="premise", dataset="glue/mnli", splits=splits)
    yield Task("qnli", ("{question}", "{sentence}"), dataset="glue/qnli")
    yield Task("rte", sentences, dataset="glue/rte")
    asked = ("{question}", "{passage}")
    yield Task("boolq", asked, group="passage", dataset="super_glue/boolq")
    asked = ("{question} Is this the answer: {answer}", "{paragraph}")
    yield Task("multirc", asked, group="paragraph", dataset="super_glue/multirc")
    asked = ('Does "{span2_text}" stand for "{span1_text}"?', "{text}")
    yield Task("wsc", asked, group="text", dataset="super_glue/wsc")


GLUE: Mapping[str, Task] = {task.name: task for task in _list_glue_tasks()}
TASKS: Mapping[str, Task] = {
    **GLUE,
    "paws-x": Task("paws-x", ("{sentence1}", "{sentence2}"), dataset=f"paws_x_wiki/{LANGUAGE}"),
    "xnli": Task("xnli", ("{premise}", "{hypothesis}"), group="premise"),
    "next_sentence": Task("next_sentence", ("{first}", "{second}"), group="document"),
    "origin": Task("origin", ("{first}",), group="document"),
}


def is_made_of_text(task: Task) -> bool:
    """Whether the examples of a task are made of a run's own text."""
    return task.name in sentence_tasks.TASKS and not task.train


def find_tasks(names: Sequence[str]) -> list[Task]:
    """Returns tasks by name: of the list, `all` for the 11 of GLUE, or those of a .toml file.

    Raises:
      ValueError: there is no such task or file, or the file does not say what a task is.
    """
    found: dict[str, Task] = {}
    for name in names:
        if name == "all":
            found |= GLUE
        elif name.endswith(".toml"):
            found |= {task.name: task for task in _read_toml(name)}
        elif name in TASKS:
            found[name] = TASKS[name]
        else:
            close = difflib.get_close_matches(name, TASKS, n=1)
            fix = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(TASKS)}."
            raise ValueError(
                f"--tasks={name}: there is no such task. {fix} Others are described in a .toml "
                "file (see imbalance_jax/data/tasks.py)."
            )
    if not found:
        raise ValueError(f"--tasks is empty. Give all, or some of: {', '.join(TASKS)}.")
    return list(found.values())


def _read_toml(path: str) -> list[Task]:
    try:
        tables = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"--tasks={path}: there is no such file.") from error
    except OSError as error:
        raise ValueError(f"--tasks={path}: it cannot be read ({error.strerror}).") from error
    except ValueError as error:  # TOML's, or that of a file in another encoding
        raise ValueError(f"--tasks={path}: it is not TOML ({error}).") from error
    fields = {field.name for field in dataclasses.fields(Task)} - {"name", "dataset", "splits"}
    made = []
    for name, values in tables.items():
        if not isinstance(values, dict) or not {"texts", "train", "test"} <= set(values) <= fields:
            has = ", ".join(values) if isinstance(values, dict) else repr(values)
            raise ValueError(
                f"--tasks={path}: {name} must be a table with texts, train and test, and may have "
                f"label, labels and group. It has: {has}."
            )
        if name in TASKS:
            raise ValueError(
                f"--tasks={path}: {name} is a task of the list, whose results have its name. Call "
                "this one something else."
            )
        for key, value in values.items():
            _check_task_key(f"--tasks={path}: {name}.{key}={value!r}", key, value)
        # Paths begin at the file.
        values |= {key: _resolve_relative_paths(path, values[key]) for key in _SPLITS}
        values |= {key: tuple(map(str, values.get(key, ()))) for key in ("texts", "labels")}
        made.append(Task(name, **values))
    return made


def _resolve_relative_paths(path: str, value: str) -> str:
    """Returns paths and patterns relative to a file's directory as ones relative to this one."""
    directory = os.path.dirname(path)
    whole = os.path.join(directory, value)
    if os.path.exists(whole):
        return whole
    return ",".join(os.path.join(directory, each) for each in patterns.split_patterns(value))


def _check_task_key(given: str, key: str, value: Any) -> None:
    """Raises ValueError if a key of a task in a .toml file has a value of another kind."""
    if key == "texts" and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        raise ValueError(f'{given} must be a list of texts, such as ["{{title}}", "{{body}}"].')
    if key in ("label", "group", *_SPLITS) and not isinstance(value, str):
        raise ValueError(f"{given} must be text.")
    if key == "labels":
        kinds = isinstance(value, list) and all(type(label) in (str, int) for label in value)
        if not kinds or len(set(map(str, value))) < max(2, len(value)):
            raise ValueError(
                f'{given} must be a list of different texts or whole numbers, such as ["a", "b"].'
            )


def load_task(
    task: Task,
    sources: Mapping[str, SourceConfig],
    trained: str,
    *,
    directory: str = "",
    most: Mapping[str, int] | None = None,
) -> LoadedTask:
    """Returns a task's examples.

    Args:
      task: of `find_tasks`.
      sources: of the run, whose texts are to be scored.
      trained: the one of them whose examples are trained on.
      directory: where files of the tasks of the list, and datasets of TFDS, lie; "" is TFDS's own.
      most: split -> examples that are used at most, 0 for all: the first of a made task, which
        has a default, and a fixed draw of any other's.

    Raises:
      ValueError: there are no examples anywhere, saying where they could be put; a split of them
        is empty, or one lacks a field, or has a label that is none of the task's.
    """
    most = {split: (most or {}).get(split, 0) for split in _SPLITS}
    place = _ExampleLocation(task, sources, trained, directory, most)

    def examples(
        language: str, split: str, labels: Sequence[str]
    ) -> tuple[Examples, tuple[str, ...]]:
        limit = most[split]
        found, known = _parse_examples(task, place, place.rows(language, split), labels)
        return (found.drawn(limit) if 0 < limit < len(found) else found), known

    train, labels = examples(trained, "train", place.labels or task.labels)
    test = {
        name: examples(name, "test", labels)[0]
        for name in sources
        if name == trained or place.has(name)
    }
    parts = [("train on", trained, "train", train)]
    parts += [("score", name, "test", found) for name, found in test.items()]
    for which, name, split, found in parts:
        if not len(found):
            raise ValueError(
                f"Task {task.name}: no example to {which} in {place.of(name, split)}. Give one "
                f"with {', '.join(_FIELD.findall(' '.join(task.texts)))} and {task.label}."
            )
    if len(labels) < 2:
        raise ValueError(f"Task {task.name}: all examples of {place} have the label {labels[0]!r}.")
    return LoadedTask(task, labels, train, test, str(place))


class _ExampleLocation:
    """Where a task's examples are."""

    def __init__(
        self,
        task: Task,
        sources: Mapping[str, SourceConfig],
        trained: str,
        directory: str,
        most: Mapping[str, int],
    ) -> None:
        self._task, self._sources, self._trained = task, sources, trained
        self._directory = directory
        self._most = {split: limit or sentence_tasks.MOST[split] for split, limit in most.items()}
        self._rows: dict[str, dict[str, sentence_tasks.Rows]] = {}  # of made tasks, by language
        self.made = is_made_of_text(task)
        self.labels: tuple[str, ...] = ()
        self._files = {} if self.made else self._find_files()
        if self.made or self._files:
            return
        if not task.dataset:
            raise ValueError(self._missing())
        if not datasets.find_labelled_dataset(self._dataset(trained), directory):
            raise ValueError(self._missing())
        self.labels = datasets.read_label_names(self._dataset(trained), directory, task.label)

    def __str__(self) -> str:
        if self.made:
            return f"the text of source {self._trained}"
        if self._files:
            return ", ".join(sorted({file for found in self._files.values() for file in found}))
        return f"TFDS {self._dataset(self._trained)}"

    def of(self, language: str, split: str) -> str:
        """Returns where the examples of a language's split are."""
        if self._files:
            return ", ".join(self._files[language, split])
        return f"the {split} part of {self}"

    def has(self, language: str) -> bool:
        """Whether a language other than the one that is trained in has a text to be scored on."""
        if self.made:
            return self._sources[language].kind != "synthetic"
        if self._files:
            return (language, "test") in self._files
        if LANGUAGE not in self._task.dataset:
            return False
        return bool(datasets.find_labelled_dataset(self._dataset(language), self._directory))

    def rows(self, language: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields where each example is, and its fields."""
        name = self._task.name
        if self.made:
            for number, row in enumerate(self._make(language)[split]):
                yield f"{name}, example {number}", row
        elif self._files:
            for file in self._files[language, split]:
                yield from _read_json_rows(file)
        else:
            dataset = self._dataset(language)
            named_split = self._task.splits[_SPLITS.index(split)]
            for number, row in enumerate(
                datasets.read_labelled_records(dataset, self._directory, named_split)
            ):
                yield f"{dataset}, record {number} of {named_split}", row

    def _make(self, language: str) -> dict[str, sentence_tasks.Rows]:
        """Returns the splits of a made task, all of which one pass through the text makes."""
        if language not in self._rows:
            name, source, most = self._task.name, self._sources[language], self._most
            if source.kind == "synthetic":
                raise ValueError(
                    f"--tasks={name} is made of sentences, and config.sources.{language} is "
                    "synthetic, which has none."
                )
            if language != self._trained:
                most = {"test": most["test"]}
            self._rows[language] = sentence_tasks.TASKS[name](language, source, most)
        return self._rows[language]

    def _dataset(self, language: str) -> str:
        return self._task.dataset.replace(LANGUAGE, language)

    def _find_files(self) -> dict[tuple[str, str], list[str]]:
        """Returns (language, split) -> files; empty where the language trained in has not both."""
        found = {}
        for language in self._sources:
            for split in _SPLITS:
                for paths in map(patterns.find_paths, self._candidates(language, split)):
                    if paths and all(map(os.path.isfile, paths)):
                        found[language, split] = paths
                        break
        needed = [(self._trained, split) for split in _SPLITS]
        missing = [split for _, split in needed if (self._trained, split) not in found]
        if missing and (len(missing) == 1 or self._task.train):
            raise ValueError(self._missing(missing[0]))
        return {} if missing else found

    def _candidates(self, language: str, split: str) -> Iterator[str]:
        """Yields the files that the examples of a language may be in."""
        own = getattr(self._task, split)
        if own:
            if LANGUAGE in own or language == self._trained:
                yield own.replace(LANGUAGE, language)
            return
        name = self._task.name
        # The second validation set of MNLI goes with the same examples to train on.
        names = [name, "mnli"] if name == "mnli-mm" and split == "train" else [name]
        stems = [f"{name}.{language}" for name in names]
        stems += names if language == self._trained else []
        for stem in stems if self._directory else ():
            for part in _NAMES[split]:
                for ending in _ENDINGS:
                    yield os.path.join(self._directory, f"{stem}.{part}{ending}")

    def _missing(self, split: str = "train") -> str:
        """Returns what to say where examples of the language that is trained in are not there."""
        task = self._task
        if task.train:
            file = next(self._candidates(self._trained, split))
            return f"Task {task.name}: {split}={file}: there is no such file."
        directory = self._directory or "DIRECTORY"
        stem = task.name if task.name in GLUE else f"{task.name}.{self._trained}"
        fix = (
            f"Put {stem}.train.json and {stem}.valid.json, a JSON object with "
            f"{', '.join(_FIELD.findall(' '.join(task.texts)))} and {task.label} in every line, "
            f"into {directory} and give it as --tasks_dir"
        )
        if task.name in GLUE:
            fix += " (the glue_filtered files of BabyLM 2023 are such)"
        if task.dataset:
            fix += ". Or " + datasets.describe_dataset_download(
                self._dataset(self._trained), self._directory
            )
        return f"--tasks={task.name}: there are no examples here. {fix}."


def _read_json_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, (_, line) in enumerate(files.read_file_lines(path), start=1):
        if line.strip():
            example = '{"text": "...", "label": "..."}'
            yield f"{path}, line {number}", files.parse_json_object(line, path, number, example)


def _parse_examples(
    task: Task,
    place: _ExampleLocation,
    rows: Iterator[tuple[str, dict[str, Any]]],
    labels: Sequence[str],
) -> tuple[Examples, tuple[str, ...]]:
    """Returns the examples, and the labels: those found, in order, where none are given."""
    texts, found, groups = [], [], []
    for number, (where, row) in enumerate(rows):
        groups.append(_read_field(row, task.group, where, task) if task.group else str(number))
        texts.append(tuple(_fill_text(text, row, where, task) for text in task.texts))
        label = _read_field(row, task.label, where, task)
        if labels and label not in labels:
            raise ValueError(
                f"{where}: {task.label}={label!r} is none of the labels of task {task.name}: "
                f"{', '.join(labels)}."
            )
        found.append(label)
    known = tuple(labels) or tuple(sorted(set(found), key=make_natural_sort_key))
    index = {label: place for place, label in enumerate(known)}
    return Examples(texts, np.array([index[label] for label in found], np.int32), groups), known


def _fill_text(text: str, row: Mapping[str, Any], where: str, task: Task) -> str:
    return _FIELD.sub(lambda field: _read_field(row, field[1], where, task), text)


def _read_field(row: Mapping[str, Any], field: str, where: str, task: Task) -> str:
    value = fields_lib.find_field_value(row, field)
    if value is fields_lib.ABSENT:
        raise ValueError(
            f"{where}: has no field {field!r}, which task {task.name} reads. It has: "
            f"{fields_lib.format_field_names(row)}."
        )
    if not isinstance(value, str | int):
        raise ValueError(f"{where}: its field {field!r} is neither text nor a whole number.")
    return str(value)
