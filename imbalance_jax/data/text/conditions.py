"""Conditions on fields that a document has to meet, as `config.sources.<name>.where` has them.

    language_score >= 0.9, doc_scores.0 > 5, language == 'fra'

Each has a field, with dots if it is nested, one of six operators, and a number, a text in quotation
marks, true or false. A document has to meet all of them. One whose field is null meets none.
"""

import dataclasses
import decimal
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from imbalance_jax.data.text import fields as fields_lib

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_PARTS = re.compile(r"""(?:'[^']*'|"[^"]*"|[^,'"])+""")  # with a comma between two
_CONDITION = re.compile(r"\s*([^<>=!'\"]+?)\s*(>=|<=|==|!=|>|<)\s*([^<>=!].*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


@dataclasses.dataclass(frozen=True)
class Condition:
    """That the value of a field is on one side of another value."""

    field: str
    operator: str
    value: float | str | bool
    setting: str  # the field of the config, for messages

    def is_met(self, values: Mapping[str, Any], place: str, *, typed: bool = True) -> bool:
        """Whether a record meets it.

        Args:
          values: of the record, by fields.
          place: of the record, for messages.
          typed: whether a number is a number there, and not the text that spells one.

        Raises:
          ValueError: the record has no such field, or its value cannot be compared.
        """
        value = fields_lib.find_field_value(values, self.field)
        if value is fields_lib.ABSENT and not self._is_within_null(values):
            raise ValueError(
                f"{place}: has no field {self.field!r}; it has: "
                f"{fields_lib.format_field_names(values)}. Set {self.setting}."
            )
        if value is None or value is fields_lib.ABSENT:
            return False
        wanted = _name_kind(self.value)
        if not typed and wanted == "number" and isinstance(value, str):
            value = float(value) if _NUMBER.fullmatch(value.strip()) else value
        if _name_kind(value) != wanted:
            raise ValueError(
                f"{place}: its field {self.field!r} is a {_name_kind(value)}, and "
                f"{self.setting} compares it with the {wanted} {self.value!r}. Set {self.setting}."
            )
        return _OPERATORS[self.operator](value, self.value)

    def _is_within_null(self, values: Mapping[str, Any]) -> bool:
        ends = (match.start() for match in re.finditer(r"\.", self.field))
        return any(fields_lib.find_field_value(values, self.field[:end]) is None for end in ends)


def parse_conditions(name: str, where: str) -> list[Condition]:
    """Returns the conditions of a source.

    Raises:
      ValueError: one of them is none.
    """
    setting = f"config.sources.{name}.where"
    parts = _PARTS.findall(where)
    if len(",".join(parts)) != len(where):
        raise ValueError(
            f"{setting}={where!r} has a quotation mark without another, or a comma without a "
            "condition. Write it like language_score >= 0.9, language == 'fra'."
        )
    return [_parse_condition(part, setting) for part in parts]


def _parse_condition(part: str, setting: str) -> Condition:
    match = _CONDITION.fullmatch(part)
    value = _parse_value(match[3]) if match else None
    if match is None or value is None:
        raise ValueError(
            f"{setting}: {part.strip()!r} is no condition. Write a field, one of "
            f"{' '.join(_OPERATORS)}, and a number, a text in quotation marks, true or false, such "
            "as language_score >= 0.9 or language == 'fra'."
        )
    if isinstance(value, bool) and match[2] not in ("==", "!="):
        raise ValueError(f"{setting}: {part.strip()!r}: true and false take == or !=.")
    return Condition(match[1], match[2], value, setting)


def _parse_value(written: str) -> float | str | bool | None:
    """Returns a value from how it is written; None if it is none."""
    if written in ("true", "false"):
        return written == "true"
    if _NUMBER.fullmatch(written):
        return float(written)
    quoted = re.fullmatch(r"""'([^']*)'|"([^"]*)\"""", written)
    return (quoted[1] or quoted[2] or "") if quoted else None


def _name_kind(value: object) -> str:
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, int | float | decimal.Decimal):
        return "number"
    return "text" if isinstance(value, str) else type(value).__name__
