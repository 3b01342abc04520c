"""The prose of docstrings: paragraphs of English, without code, tables and markup.

Docstrings are written in reStructuredText, in the styles of numpydoc and of Google, and in
Markdown. What is prose is told from what is not by the look of single lines.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence

_MIN_PARAGRAPH = 20  # characters

_FENCE = re.compile(r"(```+|~~~+)")
_PROMPT = re.compile(r">>>|In \[\d*\]:|\.\.\. ")
_SHELL = re.compile(r"[$%] \S")
_GRID = re.compile(r"[+|]([-=]{2,}\+)+$|\|.*\|$")
_BORDER = re.compile(r"[=-]{2,}( +[=-]{2,})+$")
_UNDERLINE = re.compile(r"([^\w\s])\1{2,}$")
_DIRECTIVE = re.compile(r"\.\.\s+([\w:-]+?)\s?::\s*(.*)")
_ADMONITIONS = frozenset(
    ("note", "warning", "tip", "hint", "important", "attention", "caution", "danger", "error")
    + ("admonition", "seealso", "rubric", "topic")
    + ("versionadded", "versionchanged", "deprecated")
)
_FIELD = re.compile(r":(\w[^:`]*):(?:\s+(.*)|$)")
_ITEM = re.compile(r"([-*+\u2022]|\d{1,2}[.)]|\(\w\)|#\.)\s+(?=\S)")
# "name: description", "name (type): description", "name -- description", "name : type" or
# "name, name : type".
_NAMES = r"[*\\`]*\w[\w.]*`*(?:\s?\([^()]*\))?(?:, [*\\`]*\w[\w.]*`*)*"
_ENTRY = re.compile(rf"({_NAMES})(:| :| --?)\s+\S")


@dataclasses.dataclass(frozen=True)
class _Line:
    indent: int
    text: str


_EMPTY = _Line(0, "")


def extract_prose(docstring: str) -> list[str]:
    """Returns the prose of a docstring, a line per paragraph: no code, tables or markup."""
    lines = [
        _Line(len(line) - len(line.lstrip()), line.strip())
        for line in inspect.cleandoc(docstring).split("\n")
    ]
    paragraphs = (
        _strip_inline_markup(paragraph)
        for paragraph in _join_wrapped_lines(_remove_markup_blocks(lines))
    )
    return [paragraph for paragraph in paragraphs if _is_prose(paragraph)]


def _remove_markup_blocks(lines: Sequence[_Line]) -> Iterator[_Line]:
    """Drops code, tables, directives and section underlines, and leaves empty lines there."""
    at = 0
    while at < len(lines):
        remaining, at = _read_block(lines, at)
        yield from remaining


def _read_block(lines: Sequence[_Line], at: int) -> tuple[list[_Line], int]:
    """Returns what remains of the block that begins at a line, and where the next one begins."""
    line, after = lines[at], at + 1
    text = line.text
    if fence := _FENCE.match(text):
        closing = (n for n in range(after, len(lines)) if lines[n].text.startswith(fence[1]))
        return [_EMPTY], next(closing, len(lines)) + 1
    if _PROMPT.match(text):
        # Its output ends with an empty line.
        return [_EMPTY], next(
            (n for n in range(after, len(lines)) if not lines[n].text), len(lines)
        )
    if _BORDER.match(text):
        return [_EMPTY], _find_table_end(lines, after)
    if _SHELL.match(text) or _GRID.match(text) or _UNDERLINE.match(text):
        return [_EMPTY], after
    if text.startswith(".. ") or text == "..":
        return _read_directive(lines, at)
    if field := _FIELD.match(text):
        kind, _, named = field[1].partition(" ")
        if kind in ("type", "rtype", "vartype"):
            return [_EMPTY], _find_block_end(lines, after, line.indent)
        name = f"{named.split()[-1]}: " if named else ""
        return [_EMPTY, _Line(line.indent, name + (field[2] or ""))], after
    if text.endswith("::"):
        before = text.removesuffix("::").rstrip() + ":" * (text != "::")
        return [_Line(line.indent, before), _EMPTY], _find_block_end(lines, after, line.indent)
    return [line], after


def _read_directive(lines: Sequence[_Line], at: int) -> tuple[list[_Line], int]:
    """Does what `_read_block` does for a directive: keeps the text of an admonition only."""
    indent, after = lines[at].indent, at + 1
    directive = _DIRECTIVE.match(lines[at].text)
    if not directive or directive[1] not in _ADMONITIONS:
        return [_EMPTY], _find_block_end(lines, after, indent)
    while after < len(lines) and re.match(r":\w+:", lines[after].text):  # its options
        after += 1
    argument = directive[2]
    if directive[1] in ("versionadded", "versionchanged", "deprecated"):
        argument = re.sub(r"^v?\d[\w.]*\s*", "", argument)
    # The text goes on in the lines below, which stand deeper than the directive.
    deeper = after < len(lines) and lines[after].text and lines[after].indent > indent
    return [_EMPTY, _Line(lines[after].indent if deeper else indent, argument)], after


def _find_block_end(lines: Sequence[_Line], at: int, indent: int) -> int:
    while at < len(lines) and (not lines[at].text or lines[at].indent > indent):
        at += 1
    return at


def _find_table_end(lines: Sequence[_Line], at: int) -> int:
    """Returns where a simple table ends: with the border that an empty line follows."""
    for end in range(at, len(lines)):
        last = end + 1 == len(lines) or not lines[end + 1].text
        if last and _BORDER.match(lines[end].text):
            return end + 1
    return at


def _join_wrapped_lines(lines: Iterable[_Line]) -> Iterator[str]:
    """Puts the wrapped lines of each paragraph, list item and definition on one line."""
    parts: list[str] = []
    start = body = 0  # indent of the first line and of those that continue it
    is_item = False
    for line in lines:
        text, indent = line.text, line.indent
        item = _ITEM.match(text)
        if parts and text and not item:
            term = _find_definition_term(parts[0]) if len(parts) == 1 and indent > start else None
            if term:
                parts, body = [term, text], indent
                continue
            if indent > body and _continues_paragraph(parts, text, is_item):
                body = indent
            # An entry right below another one is the next of a list of arguments.
            next_entry = indent == start and _ENTRY.match(text) and _ENTRY.match(parts[0])
            if indent == body and not next_entry:
                parts.append(text)
                continue
        if parts:
            yield " ".join(parts)
        parts = []
        if text:
            is_item = item is not None
            start = body = indent
            if item:
                # Wrapped lines of an item stand below its text or, at times, its marker.
                body = indent + item.end()
                text = text if item[1][0].isdigit() else text[item.end() :]
            parts = [text]
    if parts:
        yield " ".join(parts)


def _find_definition_term(line: str) -> str | None:
    """Returns the term of a line that an indented definition follows, or None."""
    entry = _ENTRY.match(line)
    if entry:  # of numpydoc: its type is little text, and much the same everywhere
        return f"{entry[1]}:" if entry[2] == " :" else None
    heading = re.fullmatch(r"[A-Z]\w*:", line)
    if re.fullmatch(rf"{_NAMES}:?", line) and not heading:
        return line.removesuffix(":") + ":"
    return None


def _continues_paragraph(parts: Sequence[str], text: str, is_item: bool) -> bool:
    """Returns whether a line that stands deeper than those above goes on with them."""
    if len(parts) == 1 and (is_item or _ENTRY.match(parts[0])):
        return True
    unfinished = parts[-1][-1].isalnum() or parts[-1][-1] == ","
    return unfinished and text[0].islower() and len(parts[-1].split()) > 4


_MARKUP = (
    (re.compile(r":(?:\w+:)?[\w+-]+:`~(?:[\w.]*\.)?(\w+)(?:\(\))?`"), r"\1"),
    (re.compile(r":(?:\w+:)?[\w+-]+:`!?([^`<]*?)\s*(?:<[^`>]*>)?`"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),
    (re.compile(r"`~?([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"!?\[([^\]\[]+)\]\(https?:[^)\s]*\)"), r"\1"),
    (re.compile(r"\s*\[[#\w*-]+\]_"), ""),
    (re.compile(r"(?<![\w*])\*\*(?=\S)([^*]+?)(?<=\S)\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=\S)\*(?![\w*])"), r"\1"),
    (re.compile(r"\\([*_`|\\])"), r"\1"),
    (re.compile(r"^(" + _NAMES + r") : "), r"\1: "),
    (re.compile(r"\s+"), " "),
)


def _strip_inline_markup(paragraph: str) -> str:
    for pattern, replacement in _MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph.strip()


_WORD = re.compile(r"[\"'(]*[A-Za-z]+(?:['\u2019/-][A-Za-z]+)*[.,;:!?)\"']*")
_COMMON = re.compile(
    r"\b(?:the|a|an|of|to|in|is|are|be|and|or|for|if|this|that|with|by|on|as|it|not|from|at|"
    r"when|which|will|can|should|must|return|returns|no|all|each)\b",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"import [\w.]+(?: as | from |,| import |$)|from [\w.]+ import |def |class \w+[(:]|@\w|#|//|"
    r"[{}<]|[\w.\[\]]+(?:, \w+)* [-+*/]?= \S"
)
_LEGAL = re.compile(r"copyright|\blicen[sc]ed? |all rights reserved|warranty", re.IGNORECASE)


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    if len(paragraph) < _MIN_PARAGRAPH or plain < 3 or plain < 0.6 * len(words):
        return False
    letters = sum(map(str.isalpha, paragraph))
    if letters < 0.8 * sum(map(len, words)) and plain < 0.75 * len(words):
        return False
    # A short sentence may do without any of the common words, a long one hardly can.
    if len(paragraph) > 60 and not _COMMON.search(paragraph):
        return False
    return not _CODE.match(paragraph) and not _LEGAL.search(paragraph)
