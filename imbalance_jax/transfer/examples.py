"""The labelled examples of a task, from wherever they lie.

They come from files that the task names, from files or a dataset of TFDS in a directory of the
user's, or are made of a run's own text: see tasks.py.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imbalance_jax.config import SourceConfig, make_natural_sort_key
from imbalance_jax.data.order.keyed_draws import draw_raw_order
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text import files, patterns
from imbalance_jax.data.text import tfds_datasets as datasets
from imbalance_jax.transfer import sentence_tasks
from imbalance_jax.transfer.tasks import FIELD, GLUE, LANGUAGE, SPLITS, Task, is_made_of_text

# The names of files in a user's directory.
_NAMES = {"train": ("train",), "test": ("valid", "validation", "test")}
_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst")

Rows = Iterator[tuple[str, Mapping[str, Any]]]  # where each example is, and its fields


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
        chosen_n = np.sort(draw_raw_order(len(self), 0)[:n])
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
    most = {split: (most or {}).get(split, 0) for split in SPLITS}
    place = _ExampleLocation(task, sources, trained, directory, most)

    def load(language: str, split: str, labels: Sequence[str]) -> tuple[Examples, tuple[str, ...]]:
        rows = place.rows(language, split)
        examples, all_labels = _parse_examples(task, rows, labels)
        if not len(examples):
            which = "train on" if split == "train" else "score"
            raise ValueError(
                f"Task {task.name}: no example to {which} in {place.of(language, split)}. Give "
                f"one with {', '.join(_list_task_fields(task))} and {task.label}."
            )
        if 0 < most[split] < len(examples):
            examples = examples.drawn(most[split])
        return examples, all_labels

    train, labels = load(trained, "train", place.labels or task.labels)
    scored = [name for name in sources if name == trained or place.has(name)]
    test = {name: load(name, "test", labels)[0] for name in scored}
    if len(labels) < 2:
        raise ValueError(f"Task {task.name}: all examples of {place} have the label {labels[0]!r}.")
    return LoadedTask(task, labels, train, test, str(place))


def _list_task_fields(task: Task) -> list[str]:
    return FIELD.findall(" ".join(task.texts))


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
        self._made = is_made_of_text(task)
        self.labels: tuple[str, ...] = ()  # all that there are, where the dataset names them
        self._files = {} if self._made else self._find_files()
        if self._made or self._files:
            return
        dataset = self._dataset(trained)
        if not dataset or not datasets.find_labelled_dataset(dataset, directory):
            raise ValueError(self._missing())
        self.labels = datasets.read_label_names(dataset, directory, task.label)

    def __str__(self) -> str:
        if self._made:
            return f"the text of source {self._trained}"
        if self._files:
            return ", ".join(sorted({path for paths in self._files.values() for path in paths}))
        return f"TFDS {self._dataset(self._trained)}"

    def of(self, language: str, split: str) -> str:
        """Returns where the examples of a language's split are."""
        if self._files:
            return ", ".join(self._files[language, split])
        return f"the {split} part of {self}"

    def has(self, language: str) -> bool:
        """Whether a language other than the one that is trained in has a text to be scored on."""
        if self._made:
            return self._sources[language].kind != "synthetic"
        if self._files:
            return (language, "test") in self._files
        if LANGUAGE not in self._task.dataset:
            return False
        return bool(datasets.find_labelled_dataset(self._dataset(language), self._directory))

    def rows(self, language: str, split: str) -> Rows:
        """Yields where each example is, and its fields."""
        if self._made:
            for number, row in enumerate(self._make(language)[split]):
                yield f"{self._task.name}, example {number}", row
        elif self._files:
            for path in self._files[language, split]:
                yield from _read_json_rows(path)
        else:
            dataset, part = self._dataset(language), self._task.splits[SPLITS.index(split)]
            records = datasets.read_labelled_records(dataset, self._directory, part)
            for number, row in enumerate(records):
                yield f"{dataset}, record {number} of {part}", row

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
        paths_of = {}
        for language in self._sources:
            for split in SPLITS:
                for paths in map(patterns.find_paths, self._candidates(language, split)):
                    if paths and all(map(os.path.isfile, paths)):
                        paths_of[language, split] = paths
                        break
        missing = [split for split in SPLITS if (self._trained, split) not in paths_of]
        if missing and (len(missing) == 1 or self._task.train):
            raise ValueError(self._missing(missing[0]))
        return {} if missing else paths_of

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
        """Returns the message where the language that is trained in has no examples."""
        task = self._task
        if task.train:
            file = next(self._candidates(self._trained, split))
            return f"Task {task.name}: {split}={file}: there is no such file."
        directory = self._directory or "DIRECTORY"
        stem = task.name if task.name in GLUE else f"{task.name}.{self._trained}"
        fix = (
            f"Put {stem}.train.json and {stem}.valid.json, a JSON object with "
            f"{', '.join(_list_task_fields(task))} and {task.label} in every line, "
            f"into {directory} and give it as --tasks_dir"
        )
        if task.name in GLUE:
            fix += " (the glue_filtered files of BabyLM 2023 are such)"
        if task.dataset:
            fix += ". Or " + datasets.describe_dataset_download(
                self._dataset(self._trained), self._directory
            )
        return f"--tasks={task.name}: there are no examples here. {fix}."


def _read_json_rows(path: str) -> Rows:
    for number, (_, line) in enumerate(files.read_file_lines(path), start=1):
        if line.strip():
            example = '{"text": "...", "label": "..."}'
            yield f"{path}, line {number}", files.parse_json_object(line, path, number, example)


def _parse_examples(
    task: Task, rows: Rows, labels: Sequence[str]
) -> tuple[Examples, tuple[str, ...]]:
    """Returns the examples, and all labels: those that occur, in order, where none are given."""
    texts, label_of, groups = [], [], []
    for number, (where, row) in enumerate(rows):
        groups.append(_read_field(row, task.group, where, task) if task.group else str(number))
        texts.append(tuple(_fill_text(text, row, where, task) for text in task.texts))
        label = _read_field(row, task.label, where, task)
        if labels and label not in labels:
            raise ValueError(
                f"{where}: {task.label}={label!r} is none of the labels of task {task.name}: "
                f"{', '.join(labels)}."
            )
        label_of.append(label)
    all_labels = tuple(labels) or tuple(sorted(set(label_of), key=make_natural_sort_key))
    index = {label: place for place, label in enumerate(all_labels)}
    label_n = np.array([index[label] for label in label_of], np.int32)
    return Examples(texts, label_n, groups), all_labels


def _fill_text(text: str, row: Mapping[str, Any], where: str, task: Task) -> str:
    return FIELD.sub(lambda field: _read_field(row, field[1], where, task), text)


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
