"""Every field of a config with its type, default and meaning.

The meaning of a field is the comment in schema.py, or text_schema.py, on the field's own line, or
the comment lines directly above it. So a field is declared and explained in one place. The command
`python -m imbalance_jax.config` and docs/config.md show what stands there.
"""

import ast
import dataclasses
import functools
import inspect
import io
import json
import math
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from imbalance_jax.config import bounds as bounds_lib
from imbalance_jax.config import schema, text_schema
from imbalance_jax.config.recipes import SCALES
from imbalance_jax.config.resolve import to_dict

# What stands for the names that a user gives in a group of named things.
_PLACEHOLDERS = {"sources": "SOURCE", "languages": "TAG", "parallel": "NAME"}


@dataclasses.dataclass(frozen=True)
class FieldRow:
    """A field of a config, as a line of a table."""

    name: str  # dotted, such as config.model.D
    type: str
    default: Any  # a plain value, as `to_dict` makes it; MISSING if the field is required
    value: Any
    meaning: str
    bounds: str = ""  # the lowest and the highest value of a number

    @property
    def group(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def bounded_type(self) -> str:
        return f"{self.type}, {self.bounds}" if self.bounds else self.type

    @property
    def changed(self) -> bool:
        return self.value != self.default


@dataclasses.dataclass(frozen=True)
class PlainField:
    """A plain value of a config, and all that it may be by its type alone."""

    name: str  # dotted; * stands for the key of a mapping, [0] for each part of a tuple
    type: Any  # int, float, bool, str, or int | float
    choices: tuple[str, ...] = ()  # of text; () is any
    lowest: float | None = None  # of a number, the value itself included
    highest: float | None = None


def list_bounds(kind: type = schema.Config, name: str = "config") -> list[PlainField]:
    """Returns the plain values that the fields of a group may have, and of the groups in it."""
    found = []
    for field, hint in typing.get_type_hints(kind, include_extras=True).items():
        for place, plain in bounds_lib.list_number_types(hint, f"{name}.{field}"):
            if dataclasses.is_dataclass(plain):
                place = place.replace("*", _PLACEHOLDERS.get(field, "*"))
                found += list_bounds(typing.cast(type, plain), place)
            else:
                found.append(_build_plain_field(place, plain))
    return found


def _build_plain_field(name: str, hint: Any) -> PlainField:
    found = bounds_lib.find_bounds(hint)
    if found is None:
        literal = typing.get_origin(hint) is Literal
        return PlainField(name, str, typing.get_args(hint)) if literal else PlainField(name, hint)
    lowest = math.nextafter(found.lowest, math.inf) if found.above else found.lowest
    return PlainField(name, hint.__origin__, (), lowest, found.highest)


@functools.cache
def read_field_meanings(*modules: types.ModuleType) -> Mapping[tuple[str, str], str]:
    """Returns the meaning of each field of modules, by its dataclass and its name.

    Without modules they are those of a run's fields.
    """
    meanings: dict[tuple[str, str], str] = {}
    for module in modules or (schema, text_schema):
        meanings |= _read_comments(inspect.getsource(module))
    return types.MappingProxyType(meanings)


def _read_comments(source: str) -> dict[tuple[str, str], str]:
    comments = {  # line -> text, and whether it is alone on the line
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    meanings = {}
    for group in ast.parse(source).body:
        if not isinstance(group, ast.ClassDef):
            continue
        for field in group.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                parts: list[str] = []
                line = field.lineno - 1
                while comments.get(line, ("", False))[1]:
                    parts.insert(0, comments[line][0])
                    line -= 1
                last = field.end_lineno or field.lineno
                parts += [comments[last][0]] if last in comments else []
                meanings[group.name, field.target.id] = " ".join(parts)
    return meanings


def list_field_rows(config: schema.Config | None = None) -> list[FieldRow]:
    """Returns every field of a config; without one, every field at its default.

    Without a config, a placeholder such as SOURCE stands for the name of each named thing.
    """
    return list(_walk_fields(schema.Config, config, "config"))


def _walk_fields(kind: Any, group: Any, name: str) -> Iterator[FieldRow]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        dotted, hint = f"{name}.{field.name}", hints[field.name]
        value: Any = None if group is None else getattr(group, field.name)
        named = typing.get_args(hint)[1] if typing.get_origin(hint) is Mapping else None
        if dataclasses.is_dataclass(hint):
            yield from _walk_fields(hint, value, dotted)
        elif dataclasses.is_dataclass(named):
            items = {_PLACEHOLDERS[field.name]: None} if group is None else value
            for key, item in items.items():
                yield from _walk_fields(named, item, f"{dotted}.{key}")
        else:
            default = {} if field.default is dataclasses.MISSING else to_dict(field.default)
            meaning = read_field_meanings()[kind.__name__, field.name]
            value = default if group is None else to_dict(value)
            yield FieldRow(
                dotted, describe_field_type(hint), default, value, meaning, describe_bounds(hint)
            )


def describe_bounds(hint: Any) -> str:
    """Returns the lowest and the highest value of a field's numbers; "" without any."""
    plain = {
        str(bounds_lib.find_bounds(each) or "")
        for _, each in bounds_lib.list_number_types(hint, "")
    }
    return plain.pop() if len(plain) == 1 else ""


def describe_field_type(hint: Any) -> str:
    """Returns the type of a field in words, or the values that it may have."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint == schema.Schedule:
        return "stages"
    if bounds_lib.find_bounds(hint):
        return describe_field_type(hint.__origin__)
    if origin is Literal:
        return " or ".join(filter(None, [", ".join(args[:-1]), args[-1]]))
    if origin is tuple:
        return f"list of {describe_field_type(args[0])}"
    if origin is Mapping:
        return f"{describe_field_type(args[0])} -> {describe_field_type(args[1])}"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}[hint]


def format_field_value(value: Any) -> str:
    """Returns a plain value as a table shows it: text as it is, the rest as JSON."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, list):
        return f"({', '.join(map(format_field_value, value))})"
    return json.dumps(value) if not isinstance(value, float) else f"{value:g}"


_INTRODUCTION = """\
# Config fields

Every field of a run, with its type, its default and its meaning. To see the values that a config
file or a run has:

    python -m imbalance_jax.config --config=90_10
    python -m imbalance_jax.config --config=90_10 --field=mixture
    python -m imbalance_jax.config --workdir=runs/90_10 --json

A config file starts from these defaults. The command line sets any field by its name:

    python -m imbalance_jax.main --config=90_10 --config.optimizer.peak_lr=1e-3 --config.model.N=4

| type | on the command line |
|---|---|
| true or false | `--config.model.tied`, or `--noconfig.model.tied` |
| list | `--config.mirrors="('tensorboard', 'wandb')"` |
| text -> whole number, all of it | `--config.vocabulary.mix="{'en': 9, 'fr': 1}"` |
| text -> whole number, one of them | `--config.mixture.ratio.en1=3` |
| stages | `--config.mixture.stages="((0, {'en1': 9, 'en2': 1}), (0.5, {'en1': 1, 'en2': 9}))"` |

The column of types shows the lowest and the highest value of a number, as in `1 to 2147483647`.
Other values are refused in the first second. So are fields that contradict each other, such as a
batch_size that is no multiple of the micro-batches.

SOURCE, TAG and NAME stand for the names that a config gives to its sources, languages and parallel
texts. The reference study is [arXiv 2404.07982](https://arxiv.org/abs/2404.07982). The letters L,
D, H, K, F and N are those of the key in `imbalance_jax/__init__.py`. Config files take their sizes
from a scale; the last table has them.

`python -m imbalance_jax.config --markdown` makes this page from `config/schema.py` and
`config/text_schema.py` of the package.
"""


def format_markdown_page() -> str:
    """Returns docs/config.md."""
    rows = list_field_rows()
    groups = list(dict.fromkeys(row.group for row in rows))
    parts = [_INTRODUCTION]
    for group in groups:
        parts.append(f"## `{group}`\n\n{_describe_group(group)}\n")
        parts.append(format_field_table([row for row in rows if row.group == group]))
    return "\n".join([*parts, _format_scale_table()])


def format_field_table(rows: Sequence[FieldRow]) -> str:
    """Returns the fields of a group as a table of Markdown."""
    table = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        name = row.name.rpartition(".")[2]
        required = row.default is dataclasses.MISSING
        default = "required" if required else f"`{format_field_value(row.default)}`"
        meaning = _escape_markdown(row.meaning)
        table.append(f"| `{name}` | {row.bounded_type} | {default} | {meaning} |")
    return "\n".join(table) + "\n"


def _format_scale_table() -> str:
    names = dict.fromkeys(name for scale in SCALES.values() for name in scale)
    table = [f"| field | {' | '.join(SCALES)} |", "|---" * (len(SCALES) + 1) + "|"]
    for name in names:
        values = [f"`{scale[name]}`" if name in scale else "" for scale in SCALES.values()]
        table.append(f"| `{name}` | {' | '.join(values)} |")
    introduction = (
        "What a choice such as `--config=90_10:scale=pico` sets. An empty cell is the default. "
        "`tokenizer.vocab_size` is that of every source."
    )
    return "\n".join(["## Scales\n", f"{introduction}\n", *table, ""])


def _describe_group(group: str) -> str:
    """Returns the first sentence of the docstring of a group's dataclass."""
    kind: Any = schema.Config
    for part in group.split(".")[1:]:
        hint = kind if part in _PLACEHOLDERS.values() else typing.get_type_hints(kind)[part]
        kind = typing.get_args(hint)[1] if typing.get_origin(hint) is Mapping else hint
    return " ".join(str(kind.__doc__).split())


def _escape_markdown(text: str) -> str:
    for character in "|<*":
        text = text.replace(character, f"\\{character}")
    return text
