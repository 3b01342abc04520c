"""Classification tasks: what the model is given to read, and where labelled examples lie.

    GLUE            the 11 entries of the reference study: TFDS, or the JSON files of BabyLM 2023
    paws-x, xnli    tasks with a text of their own in each language
    next_sentence, origin   made of the run's own text: see sentence_tasks.py
    FILE.toml       any other: a table for each task, with the fields of `Task`

        [topics]
        texts = ["{title}", "{body}"]     # or one; {field} is a field of an example
        label = "topic"
        train = "topics.{language}.train.jsonl"    # beside the .toml file
        test = "topics.{language}.test.jsonl"         # or patterns: see data/text/patterns.py
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

from imbalance_jax.data.text import patterns
from imbalance_jax.runs.damaged_files import describe_special_file
from imbalance_jax.transfer import sentence_tasks

LANGUAGE = "{language}"
FIELD = re.compile(r"\{([\w.-]+)\}")
SPLITS = ("train", "test")


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
        fields = [FIELD.findall(text) for text in self.texts]
        if not 1 <= len(fields) <= 2 or not all(fields):
            raise ValueError(
                f"Task {self.name}: texts={list(self.texts)} must be one or two texts, each with "
                'a field of the examples, such as ["{question}", "{passage}"].'
            )


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
    tasks: dict[str, Task] = {}
    for name in names:
        if name == "all":
            tasks |= GLUE
        elif name.endswith(".toml"):
            tasks |= {task.name: task for task in _read_toml(name)}
        elif name in TASKS:
            tasks[name] = TASKS[name]
        else:
            close = difflib.get_close_matches(name, TASKS, n=1)
            fix = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(TASKS)}."
            raise ValueError(
                f"--tasks={name}: there is no such task. {fix} Others are described in a .toml "
                "file (see imbalance_jax/transfer/tasks.py)."
            )
    if not tasks:
        raise ValueError(f"--tasks is empty. Give all, or some of: {', '.join(TASKS)}.")
    return list(tasks.values())


def _read_toml(path: str) -> list[Task]:
    try:
        special = describe_special_file(path)
        if special:
            raise ValueError(f"--tasks={path} is {special}, not a file.")
        tables = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"--tasks={path}: there is no such file.") from error
    except OSError as error:
        raise ValueError(f"--tasks={path}: it cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeError) as error:
        raise ValueError(f"--tasks={path}: it is not TOML ({error}).") from error
    fields = {field.name for field in dataclasses.fields(Task)} - {"name", "dataset", "splits"}
    tasks = []
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
        values |= {key: _resolve_relative_paths(path, values[key]) for key in SPLITS}
        values |= {key: tuple(map(str, values.get(key, ()))) for key in ("texts", "labels")}
        tasks.append(Task(name, **values))
    return tasks


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
    if key in ("label", "group", *SPLITS) and not isinstance(value, str):
        raise ValueError(f"{given} must be text.")
    if key == "labels":
        kinds = isinstance(value, list) and all(type(label) in (str, int) for label in value)
        if not kinds or len(set(map(str, value))) < max(2, len(value)):
            raise ValueError(
                f'{given} must be a list of different texts or whole numbers, such as ["a", "b"].'
            )
