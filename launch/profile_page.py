"""Writes docs/profiles.md, the fields of a profile.

python -m launch.profile_page > docs/profiles.md
"""

import dataclasses
import typing
from typing import Any

from imbalance_jax.config import fields
from imbalance_jax.config.fields import FieldRow
from launch import profile

_INTRODUCTION = """\
# Profile fields

A profile says where `launch` sends the runs of a study. It is a TOML file, such as those of
`launch/profiles/`:

{example}
`engine` says which table of an engine is read. The engines gke, sky and tpuvm need `[hardware]`
too. The table of another engine, a field that is not below, and a value of another type are
refused.
[Clusters](../launch/README.md) has a page for each engine.

`launch/profile_page.py` makes this page from `launch/profile.py`.
"""
_EXAMPLE = "profiles/slurm-gpu.toml"
# Table of the file -> its dataclass; "" is the top of the file.
_TABLES: dict[str, type] = {
    "": profile.ProfileFields,
    "hardware": profile.Hardware,
    **profile.ENGINES,
}


def list_profile_rows(table: str) -> list[FieldRow]:
    """Returns the fields of a table of a profile, or with "" those above all tables."""
    kind = _TABLES[table]
    hints = typing.get_type_hints(kind, include_extras=True)
    meanings = fields.read_field_meanings(profile)
    rows = []
    for field in dataclasses.fields(kind):
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        default = list(default) if isinstance(default, tuple) else default
        name = f"{table}.{field.name}".lstrip(".")
        kind_of = fields.describe_field_type(hints[field.name])
        meaning, ends = (
            meanings[kind.__name__, field.name],
            fields.describe_bounds(hints[field.name]),
        )
        rows.append(FieldRow(name, kind_of, default, default, meaning, ends))
    return rows


def format_profile_page() -> str:
    """Returns docs/profiles.md."""
    file = profile.PACKAGE / _EXAMPLE
    example = "".join(f"    {line}\n" if line else "\n" for line in file.read_text().splitlines())
    parts = [_INTRODUCTION.format(example=example)]
    for table, kind in _TABLES.items():
        heading = f"`[{table}]`" if table else "Every profile"
        parts.append(f"## {heading}\n\n{' '.join(str(kind.__doc__).split())}\n")
        parts.append(fields.format_field_table(list_profile_rows(table)))
    return "\n".join(parts)


if __name__ == "__main__":
    print(format_profile_page(), end="")
