"""Values for the fields of a config: within the bounds of their types, at them, and beyond."""

import dataclasses
import functools
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import hypothesis
from hypothesis import strategies
from made_configs import spoken, toys, two_clones

from imbalance_jax import config as config_lib

BASES: Mapping[str, Callable[[], Any]] = {"clones": two_clones, "spoken": spoken, "toys": toys}
_EDGES = (0, 1, 2, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30)
_WHOLE = (
    strategies.integers(-2, 64)
    | strategies.integers(-(2**64), 2**64)
    | strategies.sampled_from([sign * edge for edge in _EDGES for sign in (1, -1)])
)
_NUMBER = (
    strategies.floats(0, 1)
    | strategies.floats()
    | strategies.sampled_from([1e-320, 1e-45, 1e38, 1e39, 1e308, float("inf"), float("nan")])
)
_TEXT = strategies.text(max_size=12) | strategies.sampled_from(
    [
        "",
        " ",
        "/",
        "..",
        "*",
        "~",
        "a,b",
        "{a",
        "[",
        "\x00",
        "\ud800",
        "e\u0301",
        "x" * 5000,
        "@",
        "gs://",
    ]
)
_ANY = _WHOLE | _NUMBER | _TEXT | strategies.booleans() | strategies.none() | strategies.just([])


def make_value_strategy(hint: Any, tags: tuple[str, ...]) -> strategies.SearchStrategy[Any]:
    """Returns plain values of a field's type; tags are names that a config has."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return strategies.sampled_from(args) | _TEXT
    if origin is types.UnionType:
        return strategies.one_of([make_value_strategy(arg, tags) for arg in args])
    if origin is Mapping:
        names = strategies.sampled_from([*tags, "xx"]) | _TEXT
        return strategies.dictionaries(names, make_value_strategy(args[1], tags), max_size=3)
    if origin is tuple and args[-1] is Ellipsis:
        return strategies.lists(make_value_strategy(args[0], tags), max_size=3)
    if origin is tuple:
        return strategies.tuples(*(make_value_strategy(arg, tags) for arg in args)).map(list)
    if hint is str:
        return _TEXT | strategies.sampled_from(tags)
    return {int: _WHOLE, float: _NUMBER, bool: strategies.booleans()}[hint]


@functools.cache
def list_typed_fields(base: str) -> dict[str, Any]:
    """Returns the type of every field of a config by its dotted name."""
    return dict(_walk_fields(config_lib.Config, BASES[base](), "config"))


def _walk_fields(kind: type, values: Any, name: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, dotted = hints[field.name], f"{name}.{field.name}"
        named = typing.get_args(hint)[1] if typing.get_origin(hint) is Mapping else None
        if dataclasses.is_dataclass(hint):
            yield from _walk_fields(hint, values[field.name], dotted)
        elif dataclasses.is_dataclass(named):
            for key, group in values[field.name].items():
                yield from _walk_fields(named, group, f"{dotted}.{key}")
        else:
            yield dotted, hint


@functools.cache
def list_bounds() -> dict[str, tuple[float, float]]:
    """Returns the lowest and the highest value of each number, as the config declares them."""
    listed = config_lib.list_bounds()
    return {row.name: (row.lowest, row.highest) for row in listed if row.lowest is not None}


_PLACEHOLDERS = {"sources": "SOURCE", "languages": "TAG", "parallel": "NAME"}


def find_bounds(name: str) -> tuple[float, float] | None:
    """Returns the bounds of the field of a dotted name, if it has any."""
    parts = name.split(".")
    if parts[1] in _PLACEHOLDERS:
        parts[2] = _PLACEHOLDERS[parts[1]]
    return list_bounds().get(".".join(parts))


def is_beyond_bounds(name: str, value: Any) -> bool:
    bounds = find_bounds(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return bool(bounds and is_number and not bounds[0] <= value <= bounds[1])


def _draw_near_bounds(hint: type, lowest: float, highest: float) -> strategies.SearchStrategy[Any]:
    """Draws the ends, what is just beyond them, and values between."""
    if hint is int:
        first, last = math.ceil(lowest), math.floor(highest)
        edges = strategies.sampled_from([first - 1, first, first + 1, last - 1, last, last + 1])
        return edges | strategies.integers(first, last)
    edges = [lowest, math.nextafter(lowest, -math.inf), highest, math.nextafter(highest, math.inf)]
    return strategies.sampled_from(edges) | strategies.floats(lowest, highest)


@strategies.composite
def draw_changes(draw: Any) -> tuple[str, dict[str, Any]]:
    """Draws (a config to begin with, new values of one to three of its fields)."""
    base = draw(strategies.sampled_from(sorted(BASES)))
    fields = list_typed_fields(base)
    tags = tuple(BASES[base]().languages)
    names = draw(strategies.lists(strategies.sampled_from(sorted(fields)), min_size=1, max_size=3))
    changes = {}
    for name in names:
        of_its_type = draw(strategies.integers(0, 7)) > 0
        kind = make_value_strategy(fields[name], tags) if of_its_type else _ANY
        bounds = find_bounds(name)
        if bounds and fields[name] in (int, float):
            kind |= _draw_near_bounds(fields[name], *bounds)
        changes[name] = draw(kind)
    return base, changes


_DRAWN_TOGETHER = 100  # by a seed of their own: any length begins with the same cases


def draw_examples(strategy: strategies.SearchStrategy[Any], count: int, seed: int) -> list[Any]:
    """Returns examples that hypothesis draws from a seed, the same in every process."""
    examples: list[Any] = []

    @hypothesis.settings(
        max_examples=_DRAWN_TOGETHER,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(example: Any) -> None:
        examples.append(example)

    for number in itertools.count():
        if len(examples) >= count:
            return examples[:count]
        hypothesis.seed(f"{seed} {number}")(collect)()
    raise AssertionError
