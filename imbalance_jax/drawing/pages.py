"""Pages of HTML, made from the templates beside this file.

A page is one file that loads nothing: its style and its figures stand in it. Templates escape all
that they are given, but for the SVG of a `Figure` and for what another template has made.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from imbalance_jax.drawing import colours
from imbalance_jax.drawing.numbers import (
    ABSENT,
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_significant,
)
from imbalance_jax.runs import progress

# Loaded where they are used: importing this module must stay cheap.
if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing, and how to read it."""

    svg: str
    title: str
    reading: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells are plain text, or what `render_number` and its like return."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str


# What templates write numbers with.
_FORMS: dict[str, Callable[[float], str]] = {
    "count": format_count,
    "percent": format_percent,
    "compact": format_compact,
    "significant": format_significant,
    "duration": progress.format_duration,
}


def _write_known(form: Callable[[float], str], value: float | None) -> str:
    """Returns a number as it is read, and a dash for one that is not known."""
    return ABSENT if value is None or math.isnan(value) else form(value)


@functools.cache
def get_environment() -> "Environment":
    """Returns the templates, in which every figure's colour has a CSS variable."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for mode, of_mode in (("light", colours.COLOURS), ("dark", colours.COLOURS_DARK)):
        environment.globals[mode] = "; ".join(
            f"--{name}: {colour}" for name, colour in of_mode.items()
        )
    for name, form in _FORMS.items():
        environment.filters[name] = functools.partial(_write_known, form)
    return environment


def render_template(name: str, **values: Any) -> "Markup":
    """Returns a page or a part of one, from the template `templates/NAME.html.j2`."""
    from markupsafe import Markup

    return Markup(get_environment().get_template(f"{name}.html.j2").render(values))


@functools.cache
def get_pieces() -> Any:
    """Returns the macros of pieces.html.j2 as functions."""
    return get_environment().get_template("pieces.html.j2").module


def render_number(
    value: float | None, form: str | Callable[[float], str] = format_significant
) -> "Markup | str":
    """Returns a number as it is read, with the exact one behind it; a dash for None.

    Args:
      form: see `numbers.format_number`.
    """
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return format_significant(value)
    return get_pieces().number(f"{value:.12g}", format_number(value, form))


def render_finite(value: float, form: str | Callable[[float], str]) -> "Markup | str":
    """Returns a number as `render_number` does, and a dash for one that is not finite."""
    return render_number(value if math.isfinite(value) else None, form)


def render_swatch(tags: Sequence[str], tag: str) -> "Markup":
    """Returns the name of a language beside its colour, which follows from its place in `tags`."""
    return get_pieces().swatch(colours.get_language_colour(tags.index(tag)), tag)
