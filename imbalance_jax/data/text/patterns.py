"""Files that a field of a config names: paths and patterns, with commas between them.

    text/*.jsonl, more/**/*.txt    patterns of glob; ** is any number of directories
    text/{en,fr}.txt               alternatives in braces, as in a shell, all of which must be there
    text/{00..15}.jsonl            numbers, as in a shell, with their leading zeros
    text/a[,]b*.txt                a comma that is part of a name, in a pattern or in braces

What exists as it is written is that file, whatever characters are in its name.
"""

import glob
import os
import re
from collections.abc import Iterator

_COMMAS = 8  # in one name
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MAGIC = re.compile(r"[*?\[{]")


def split_patterns(value: str) -> list[str]:
    """Returns the paths and patterns of a field, without the space around them."""
    parts = _split_commas(value)
    patterns, first = [], 0
    while first < len(parts):
        # A comma may be part of a name: the longest name that there is.
        lasts = range(min(len(parts), first + 1 + _COMMAS), first + 1, -1)
        last = next((n for n in lasts if _path_exists(",".join(parts[first:n]))), first + 1)
        pattern = ",".join(parts[first:last]).strip()
        patterns += [pattern] if pattern else []
        first = last
    return patterns


def match_pattern(pattern: str) -> Iterator[tuple[str, list[str]]]:
    """Yields each alternative of a pattern, and the paths that match it in sorted order."""
    if _path_exists(pattern):
        yield pattern, [os.path.expanduser(pattern)]
        return
    for alternative in _expand_braces(pattern):
        path = os.path.expanduser(alternative)
        # A file whose name has brackets in it is a file all the same.
        exists = os.path.exists(path)
        # Sorted by their bytes, which are the same ones in every locale.
        matches = glob.glob(path, recursive=True)
        yield alternative, [path] if exists else sorted(matches, key=os.fsencode)


def find_paths(value: str) -> list[str]:
    """Returns the paths that a field names, in the order of the field.

    An alternative that matches nothing stands for itself, so that it can be named as missing.
    """
    return [
        path
        for pattern in split_patterns(value)
        for alternative, paths in match_pattern(pattern)
        for path in paths or [os.path.expanduser(alternative)]
    ]


def find_language_files(folder: str, name: str) -> dict[str, str]:
    """Returns patterns of the files of a folder that are named after a language, by split.

    The training text of en is all files en.train.*, beside which en.validation.* and en.test.* are
    held out where there are any; or else all files en.*; or else the files of the folder en.

    Raises:
      ValueError: the folder has none of these.
    """

    def has(pattern: str) -> bool:
        return bool(glob.glob(os.path.join(glob.escape(folder), pattern)))

    if has(f"{name}.train.*"):
        splits = ["train", *(split for split in ("validation", "test") if has(f"{name}.{split}.*"))]
        return {split: os.path.join(folder, f"{name}.{split}.*") for split in splits}
    for pattern in (f"{name}.*", os.path.join(name, "*")):
        if has(pattern):
            return {"train": os.path.join(folder, pattern)}
    raise ValueError(
        f"files={folder}: it holds no {name}.* and no folder {name}. Name the text of a language "
        f"after it, such as {name}.jsonl or {name}.txt.gz."
    )


def strip_fixed_directories(pattern: str, path: str) -> str:
    """Returns a path that matches a pattern from the pattern's fixed directories on.

    It stays what it is when the directories are moved. Of a pattern that names one file it is
    the file's name. Names in UTF-8 are read as that in every locale.
    """
    whole = os.path.expanduser(pattern)
    magic = None if _path_exists(pattern) else _MAGIC.search(whole)
    fixed = os.path.dirname(whole[: magic.start()] if magic else whole)
    place = path.removeprefix(fixed).lstrip("/")
    return os.fsencode(place).decode("utf-8", "surrogateescape")


def _path_exists(pattern: str) -> bool:
    return os.path.exists(os.path.expanduser(pattern.strip()))


def _split_commas(value: str) -> list[str]:
    """Returns the parts between commas that are in no braces and not in brackets of their own."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(value):
        if character == "{" and "}" in value[place:]:
            depth += 1
        elif character == "}" and depth:
            depth -= 1
        elif character == "," and not depth and not _is_comma_of_name(value, place):
            parts.append(value[start:place])
            start = place + 1
    return [*parts, value[start:]]


def _is_comma_of_name(value: str, place: int) -> bool:
    return value[place - 1 : place + 2] == "[,]"


def _expand_braces(pattern: str) -> list[str]:
    """Returns what a shell makes of the braces in a word."""
    for opening in (match.start() for match in re.finditer("{", pattern)):
        depth, commas = 0, [opening]
        for place in range(opening, len(pattern)):
            depth += {"{": 1, "}": -1}.get(pattern[place], 0)
            if pattern[place] == "," and depth == 1 and not _is_comma_of_name(pattern, place):
                commas.append(place)
            if not depth:
                break
        else:
            continue  # has no end, and is a character like any other
        ends = [*commas[1:], place]
        inner = [pattern[a + 1 : b] for a, b in zip(commas, ends, strict=True)]
        alternatives = inner if len(inner) > 1 else _expand_range(inner[0])
        if alternatives:
            # Braces of the alternatives and of what follows are expanded in turn.
            before, after = pattern[:opening], pattern[place + 1 :]
            return [before + word for each in alternatives for word in _expand_braces(each + after)]
    return [pattern]


def _expand_range(inner: str) -> list[str]:
    """Returns the numbers of FIRST..LAST, and [] for anything else."""
    ends = _RANGE.fullmatch(inner)
    if not ends:
        return []
    first, last = int(ends[1]), int(ends[2])
    step = 1 if first <= last else -1
    padded = any(
        end.lstrip("-").startswith("0") and end.lstrip("-") != "0" for end in ends.groups()
    )
    width = max(map(len, ends.groups())) if padded else 0
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]
