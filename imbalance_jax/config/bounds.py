"""The ends of every number: declared in the type of its field, checked when its group is made.

    steps: Annotated[int, Bounds(1, INT32)] = 1000

`fields.list_bounds` lists them, and docs/config.md shows them.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

# A config has some groups of fields in several places. `parse_dataclass`, which knows the place,
# replaces this text in their errors by its dotted name.
GROUP = "<group>"

INT32, INT64 = 2**31 - 1, 2**63 - 1
LARGEST_RATE = 1e38  # of a rate: float32 ends at 3.4e38


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The lowest and the highest value of a number."""

    lowest: float
    highest: float
    why: str = ""  # what a higher value is or does, as the predicate of a sentence
    above: bool = False  # whether the lowest value itself is excluded

    def check(self, name: str, value: float) -> None:
        """Raises ValueError if a number, which may be nan, is not within the bounds."""
        higher = value > self.lowest if self.above else value >= self.lowest  # False for nan
        if higher and value <= self.highest:
            return
        shown = f"{name}={_format_number(value)}"
        if self.above:
            raise ValueError(f"{shown} must lie above {self.lowest} and be {self.highest} at most.")
        if self.highest == 1:
            raise ValueError(f"{shown} must lie in {self.lowest} to {self.highest}.")
        if not higher:
            raise ValueError(f"{shown} must be {self.lowest} or more.")
        why = self.why or "is too large"
        raise ValueError(f"{shown} {why}. Set it to {self.highest} or less.")

    def __str__(self) -> str:
        return f"{'above ' * self.above}{self.lowest} to {self.highest}"


def _format_number(value: float) -> str:
    # Python refuses to write whole numbers of thousands of digits.
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"{'-' * (value < 0)}10^{int(math.log10(abs(value)))}"
    return f"{value}"


# The types of fields that several groups have.
_COUNTED = "does not fit into 32 bits"
Count = Annotated[int, Bounds(0, INT32, _COUNTED)]
Size = Annotated[int, Bounds(1, INT32, _COUNTED)]
Rate = Annotated[float, Bounds(0, LARGEST_RATE, "is not finite as a float32 number")]
Real = Annotated[float, Bounds(-LARGEST_RATE, LARGEST_RATE, "is not finite as a float32 number")]
Share = Annotated[float, Bounds(0, 1)]
Part = Annotated[float, Bounds(0, 1, above=True)]
# The highest float32 number below 1. Adam divides by 1 minus a power of it.
Decay = Annotated[float, Bounds(0, 1 - 2**-24, "must lie in [0, 1), as a float32 number too")]
# Counts that are divided by their greatest common divisor, and added up in 64 bits.
Ratio = Annotated[int, Bounds(0, 2**53, "is more than a float holds exactly")]


class FieldGroup:
    """A group of fields, whose numbers are within the bounds that their types declare."""

    place = GROUP

    def __init_subclass__(cls, place: str = GROUP) -> None:
        """Args: place is the dotted name of the group, where a config has it in one place."""
        super().__init_subclass__()
        cls.place = place

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, hint in get_bounded_fields(kind):
            for bounds, value, number in walk_numbers(hint, getattr(self, name), ""):
                bounds.check(f"{self.place}.{name}{number}", value)


@functools.cache
def get_bounded_fields(kind: type) -> list[tuple[str, Any]]:
    """Returns the name and the type of the fields of a group that have bounds."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return [(name, hint) for name, hint in hints.items() if _has_bounds(hint)]


def _has_bounds(hint: Any) -> bool:
    return find_bounds(hint) is not None or any(map(_has_bounds, typing.get_args(hint)))


def find_bounds(hint: Any) -> Bounds | None:
    """Returns the bounds of a type that is a number's, if they are declared."""
    found = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Bounds)]
    return found[0] if found else None


def walk_numbers(hint: Any, value: Any, name: str) -> Iterator[tuple[Bounds, Any, str]]:
    """Yields the bounds, value and place of each number in the value of a field."""
    bounds, args = find_bounds(hint), typing.get_args(hint)
    if bounds:
        yield bounds, value, name
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from walk_numbers(args[1], item, f"{name}.{key}")
    elif isinstance(value, tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True)):
            yield from walk_numbers(kind, item, f"{name}[{index}]")


def list_number_types(hint: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yields the place and the type of each plain value in the type of a field.

    The key of a mapping is `*`, and the index of a tuple of any length is 0.
    """
    args = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is Mapping:
        yield from list_number_types(args[1], f"{name}.*")
    elif origin is tuple:
        for index, kind in enumerate(arg for arg in args if arg is not Ellipsis):
            yield from list_number_types(kind, f"{name}[{index}]")
    else:
        yield name, hint


def is_number_type(hint: Any) -> bool:
    """Whether a field's type is a number: int, float or both."""
    plain = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    kinds = typing.get_args(plain) if isinstance(plain, types.UnionType) else (plain,)
    return all(kind in (int, float) for kind in kinds)
