"""Conversions of a config between ConfigDict, frozen dataclasses and plain values."""

import dataclasses
import math
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ml_collections

from imbalance_jax.config.bounds import GROUP
from imbalance_jax.config.checks import check_config
from imbalance_jax.config.nearest import suggest_nearest_name
from imbalance_jax.config.schema import Config


def to_dict(
    config: Any, *, leave_out: Mapping[type, tuple[str, ...]] = types.MappingProxyType({})
) -> Any:
    """Returns a config, or a value in it, as nested dicts, lists and plain values, ready for JSON.

    Args:
      config: a dataclass of schema.py, or a value of a field.
      leave_out: the fields of each dataclass that are left out at their default.
    """
    if dataclasses.is_dataclass(config):
        optional = leave_out.get(type(config), ())
        return {
            field.name: to_dict(value, leave_out=leave_out)
            for field in dataclasses.fields(config)
            for value in [getattr(config, field.name)]
            if field.name not in optional or value != _get_default(field)
        }
    if isinstance(config, Mapping):
        return {name: to_dict(value, leave_out=leave_out) for name, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_dict(value, leave_out=leave_out) for value in config]
    return config


def _get_default(field: dataclasses.Field) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def declared(kind: type, /, **changes: Any) -> ml_collections.ConfigDict:
    """Returns a ConfigDict of a dataclass's defaults, with changes.

    A config file adds a source with `config.sources.en = declared(SourceConfig)`.
    """
    result = ml_collections.ConfigDict()
    for field in dataclasses.fields(kind):
        # Groups of named things, such as sources, begin empty.
        value = {} if field.default is dataclasses.MISSING else field.default
        nested = dataclasses.is_dataclass(value)
        result[field.name] = declared(type(value)) if nested else value
    result.update(changes)
    return result


def default() -> ml_collections.ConfigDict:
    """Returns every field of a run at its default, with no source and no language."""
    return declared(Config)


def resolve_config(values: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """Returns the typed config of a ConfigDict, or of a config.json read back.

    Raises:
      ValueError: a field is unknown, of the wrong type, or contradicts another.
    """
    config = parse_dataclass(Config, values)
    check_config(config)
    return config


def parse_dataclass(
    kind: type, values: ml_collections.ConfigDict | Mapping[str, Any], field: str = "config"
) -> Any:
    """Returns a dataclass, and those nested in it, with the types that its fields declare.

    Args:
      kind: the dataclass.
      values: the plain values of its fields.
      field: the name of the whole in errors.

    Raises:
      ValueError: a field is unknown or missing, of the wrong type, or contradicts another of its
        group.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return _parse_field_value(kind, values, field)


# The number of sequences of one language, in the ratio or in that of a stage.
_RATIO_FIELD = r"config\.mixture\.(ratio|(stages|same_total_as)\[\d+\]\[1\])\."


def _parse_field_value(kind: Any, value: Any, field: str) -> Any:
    """Returns a plain value as the type that its field declares."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if getattr(value, "shape", None) == ():
        value = value.item()  # a number of NumPy
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{field}={value!r} is not one of {', '.join(map(repr, args))}.")
        return value
    if origin is types.UnionType:  # of plain types, such as int | float
        if not isinstance(value, args) or isinstance(value, bool):
            raise ValueError(f"{field}={value!r} must be a number.")
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{field}={value!r} must be a group of fields.")
        kinds = typing.get_type_hints(kind)
        for name in value:
            if name not in kinds:
                raise ValueError(describe_unknown_field(field, name, kinds))
        for part in dataclasses.fields(kind):
            required = part.default is part.default_factory is dataclasses.MISSING
            if required and part.name not in value:
                raise ValueError(f"{field}.{part.name} is missing, and has no default.")
        parsed = {n: _parse_field_value(kinds[n], v, f"{field}.{n}") for n, v in value.items()}
        try:
            return kind(**parsed)
        except ValueError as error:
            raise ValueError(str(error).replace(GROUP, field)) from None
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{field}={value!r} must be a group of fields.")
        return types.MappingProxyType(
            {
                name: _parse_field_value(args[1], item, f"{field}.{name}")
                for name, item in value.items()
            }
        )
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{field}={value!r} must be a tuple.")
        items = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(items) != len(value):
            raise ValueError(f"{field}={value!r} must have {len(items)} parts.")
        pairs = enumerate(zip(items, value, strict=True))
        return tuple(_parse_field_value(k, v, f"{field}[{i}]") for i, (k, v) in pairs)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        # What no float holds is infinite, and out of bounds.
        if abs(value) > sys.float_info.max:
            return math.inf if value > 0 else -math.inf
        return float(value)
    if kind is int and isinstance(value, float) and re.match(_RATIO_FIELD, field):
        # 90.0 is a whole number; others are left to _check_ratio, which says what to write.
        return int(value) if value.is_integer() else value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        whole = kind is int and isinstance(value, float) and value.is_integer()
        fix = f" Write {int(value):d}." if whole and abs(value) < 1e15 else ""
        raise ValueError(f"{field}={value!r} must be of type {kind.__name__}.{fix}")
    return value


def describe_unknown_field(
    group: str,
    name: str,
    known: Sequence[str] | Mapping[str, Any],
    elsewhere: Sequence[str] = (),
) -> str:
    """Returns the message for a field that a group of fields does not have.

    Args:
      group: the dotted name of the group.
      name: the field.
      known: the fields of the group.
      elsewhere: the dotted names of fields of that name in other groups.
    """
    if elsewhere:
        fix = f"Did you mean {' or '.join(elsewhere[:3])}?"
    else:
        fix = suggest_nearest_name(name, known, group + ".{}") or f"It has: {', '.join(known)}."
    return f"{group} has no field {name!r}. {fix}"


def build_config_dict(config: Any) -> Any:
    """Returns a dataclass of schema.py as a ConfigDict, the inverse of `resolve_config`."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return ml_collections.ConfigDict({name: build_config_dict(v) for name, v in fields.items()})
    if isinstance(config, Mapping):
        return ml_collections.ConfigDict({name: build_config_dict(v) for name, v in config.items()})
    return config
