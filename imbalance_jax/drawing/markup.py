"""Pieces of HTML as text, for the pages that are not templates yet: what they take is HTML."""

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from imbalance_jax.drawing import pages
from imbalance_jax.drawing.numbers import ABSENT as ABSENT
from imbalance_jax.drawing.numbers import format_count as format_count
from imbalance_jax.drawing.numbers import format_percent as format_percent
from imbalance_jax.drawing.numbers import normalize_to_fractions as normalize_to_fractions
from imbalance_jax.drawing.numbers import parse_number as parse_number


def escape_text(value: Any) -> str:
    """Returns any value as text of the page, with nothing in it read as markup."""
    return html.escape(str(value))


def render_page(title: str, sections: Iterable[str], css: str = "") -> str:
    """Returns a self-contained page; `title` is plain text, and empty sections are left out."""
    return pages.render_template("page", title=title, sections=_mark(sections), css=css)


def render_section(title: str, *parts: str) -> str:
    """Args: `title` is plain text."""
    return str(pages.get_pieces().section(title, _mark(parts)))


def render_missing_note(sentence: str) -> str:
    return str(pages.get_pieces().missing(*_mark([sentence])))


def render_note(sentences: str) -> str:
    """Args: `sentences` are plain text."""
    return str(pages.get_pieces().note(sentences))


def render_figure(drawn: str, title: str, reading: str) -> str:
    """Args: `title` and `reading` are plain text."""
    return str(pages.get_pieces().figure(pages.Figure(drawn, title, reading)))


def render_side_by_side(parts: Iterable[str]) -> str:
    return '<div class="pairs">\n' + "\n".join(filter(None, parts)) + "\n</div>"


def render_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """Returns a table that scrolls by itself on a phone. Header and caption are plain text."""
    table = pages.Table(header, [_mark(row) for row in rows], caption)
    return str(pages.get_pieces().table(table))


def render_swatch(tags: Sequence[str], tag: str) -> str:
    return str(pages.render_swatch(tags, tag))


def render_number(value: float | None, write: Callable[[float], str]) -> str:
    return str(pages.render_number(value, write))


def _mark(parts: Iterable[str]) -> list[str]:
    """Returns pieces of HTML as what a template does not escape."""
    from markupsafe import Markup

    return [Markup(part) for part in parts]
