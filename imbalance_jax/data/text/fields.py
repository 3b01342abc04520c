"""Fields of data by their names, with dots from a group of fields to one within it.

`translation.fr` is the field fr of the field translation, and `doc_scores.0` the first value of a
list. A field whose own name has that dot comes first.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

ABSENT: Any = object()  # what find_value returns where there is no such field
NO_IDS = (None, "", b"")  # values of a field of ids that name no document
_NAMED = 40  # fields in a message


@dataclasses.dataclass(frozen=True)
class WantedField:
    """A field of records that a config names."""

    name: str  # with dots
    setting: str  # the field of the config, for messages
    # text is a string, and no record may lack it. id is a string, a whole number or nothing.
    kind: Literal["text", "id", "value"] = "text"


def find_field_path(values: Mapping[str, Any] | list[Any], field: str) -> tuple[str, ...]:
    """Returns the names of a field from the outside in; () where there is none."""
    if isinstance(values, list):
        values = {str(number): value for number, value in enumerate(values)}
    if field in values:
        return (field,)
    parts = field.split(".")
    for count in range(1, len(parts)):
        outer = ".".join(parts[:count])
        if isinstance(values.get(outer), Mapping | list):
            inner = find_field_path(values[outer], ".".join(parts[count:]))
            if inner:
                return (outer, *inner)
    return ()


def find_field_value(values: Mapping[str, Any], field: str) -> Any:
    """Returns the value of a field, or ABSENT."""
    path = find_field_path(values, field)
    value: Any = values
    for name in path:
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value if path else ABSENT


def format_field_names(values: Mapping[str, Any]) -> str:
    """Returns the names of all fields, for a message."""
    names = list(_list_field_names(values))
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*names[:_NAMED], *more]) or "none"


def _list_field_names(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{name}.{inner}" for inner in _list_field_names(value))
        else:
            yield name
