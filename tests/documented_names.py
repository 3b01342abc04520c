"""The names that docs/metrics.md documents, and whether a file's names are among them."""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from helpers import ROOT

_PAGE = ROOT / "docs" / "metrics.md"


@functools.cache
def read_placeholders() -> dict[str, str]:
    """Returns the pattern of each placeholder of the page, such as <tag>."""
    patterns: dict[str, str] = {}
    _, _, table = _PAGE.read_text().partition("\n| placeholder |")
    for names, values in re.findall(r"^\| (.*?) \| (.*) \|$", table.partition("\n\n")[0], re.M):
        kind = values.partition(":")[0]
        # What stands in brackets explains a value.
        choices = re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", values))
        pattern = {"any": r"[^./]+?", "number": r"\d+"}.get(kind) or f"(?:{'|'.join(choices)})"
        patterns |= dict.fromkeys(re.findall(r"<\w+>", names), pattern)
    return patterns


@functools.cache
def read_documented_names(file: str) -> tuple[str, ...]:
    """Returns the names that the page has of a file, with placeholders."""
    _, _, after = _PAGE.read_text().partition(f"\n## {file}\n")
    section, names, prefixes = after.partition("\n## ")[0], [], [""]
    for line in section.splitlines():
        if line.startswith("Names begin with "):
            prefixes = re.findall(r"`(.*?)`", line)
        elif line.startswith("| `"):
            names += [prefix + line.split("`")[1] for prefix in prefixes]
        elif line and not line.startswith("|"):
            prefixes = [""]
    assert names, f"docs/metrics.md has no section {file}"
    return tuple(names)


def find_undocumented(file: str, names: Iterable[str]) -> list[str]:
    """Returns the names of a file that the page does not have."""
    patterns = [
        re.compile("".join(_translate(part) for part in re.split(r"(<\w+>)", name)))
        for name in read_documented_names(file)
    ]
    return sorted({n for n in names if not any(p.fullmatch(n) for p in patterns)})


def _translate(part: str) -> str:
    return read_placeholders()[part] if part.startswith("<") else re.escape(part)


def list_json_names(value: Any, name: str = "") -> Iterator[str]:
    """Yields the dotted names of all values of a JSON file; lists and {} are values or nothing."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from list_json_names(inner, f"{name}.{key}" if name else key)
    else:
        yield name


def list_metric_names(records: Iterable[dict[str, Any]]) -> set[str]:
    return set(itertools.chain.from_iterable(records))
