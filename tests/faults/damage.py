"""Damages files, and says what an edit by hand could have done as well."""

import csv
import hashlib
import json
import pathlib
import random
from collections.abc import Sequence

KINDS = ("flip", "flip", "flip", "truncate", "empty", "delete", "swap")


def damage_file(file: pathlib.Path, kind: str, others: Sequence[bytes], rng: random.Random) -> str:
    """Damages a file in place, and returns what was done.

    Args:
      kind: of KINDS.
      others: contents of files, one of which takes its place in a swap.
    """
    content = file.read_bytes()
    if kind == "delete":
        file.unlink()
        return "deleted"
    if kind == "empty" or not content:
        file.write_bytes(b"")
        return "emptied"
    if kind == "truncate":
        size = rng.randrange(len(content))
        file.write_bytes(content[:size])
        return f"cut to {size} of {len(content)} bytes"
    if kind == "swap":
        other = rng.choice(others)
        file.write_bytes(other)
        return f"replaced by another file's {len(other)} bytes"
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    flipped = bytearray(content)
    flipped[place] ^= 1 << bit
    file.write_bytes(bytes(flipped))
    return f"bit {bit} of byte {place} flipped"


def is_valid_text(file: pathlib.Path) -> bool:
    """Whether a file is whole as what its ending says: an edit by hand might have made it."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            return isinstance(json.loads(text), dict)
        if file.suffix == ".jsonl":
            return all(isinstance(json.loads(line), dict) for line in text.splitlines())
        if file.suffix == ".csv":
            rows = list(csv.reader(text.splitlines()))
            return bool(rows) and len({len(row) for row in rows}) == 1
    except (OSError, ValueError):
        pass
    return False


def hash_files(folder: pathlib.Path) -> dict[str, str]:
    """Returns a digest of every file below a folder, but for locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
