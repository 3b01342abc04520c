"""Colours, markers and dashes: what a language or a line looks like in every figure and page.

A line has a colour, a dash, a marker and its name at its end, so that figures read the same
without colour.
"""

from typing import Any

# CSS variable -> its colour in light mode, which stands in while matplotlib draws. The
# languages' are those of Okabe and Ito, the pale ones darkened to be seen as thin lines.
COLOURS = {
    "ink": "#1c2128",
    "muted": "#5a6370",
    "line": "#dfe3e8",
    "language-0": "#0072b2",
    "language-1": "#d55e00",
    "language-2": "#009e73",
    "language-3": "#b8609a",
    "language-4": "#c08400",
    "language-5": "#3d9bdc",
    "language-6": "#6b6f76",
    # Below and above 0; --ink on either can be read in both modes.
    "cold": "#4b97d2",
    "warm": "#e0705f",
}
COLOURS_DARK = {
    "ink": "#e4e8ed",
    "muted": "#9aa4b1",
    "line": "#333b46",
    "language-0": "#4fb0ec",
    "language-1": "#ff8f4a",
    "language-2": "#2fc99b",
    "language-3": "#e79bcb",
    "language-4": "#eebc4a",
    "language-5": "#9bd6fa",
    "language-6": "#b5bac2",
    "cold": "#2a66a5",
    "warm": "#a84438",
}
_LANGUAGE_COLOURS = tuple(name for name in COLOURS if name.startswith("language"))
MARKERS = "os^Dv<P>X*"
SOLID = "-"
DASHED = (0, (4, 3))
DOTTED = (0, (1.5, 2.5))
DASHES: tuple[Any, ...] = (SOLID, (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))


def get_language_colour(index: int) -> str:
    """Returns the CSS variable of the colour of a language, by its place in config.tags."""
    return _LANGUAGE_COLOURS[index % len(_LANGUAGE_COLOURS)]
