"""Figures as one `<svg>` element of a page, and as files.

The element's text is text, its colours are the page's CSS variables (`var(--ink)`,
`var(--language-0)`), so that a figure follows the page into dark mode and print, and the same
input always gives the same characters.
"""

import csv
import dataclasses
import html
import io
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imbalance_jax.drawing.colours import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PNG_DPI = 150


@dataclasses.dataclass(frozen=True)
class FigureFiles:
    """A drawing with what it shows, to be written as files and shown on a page."""

    name: str  # of its files
    title: str
    reading: str  # how to read it, in a sentence or two
    drawing: "Figure"
    rows: Sequence[Mapping[str, object]]  # all that is drawn

    def write(self, directory: pathlib.Path) -> list[pathlib.Path]:
        """Writes PNG, SVG and CSV into a directory, and returns the files."""
        png, svg, table = (directory / f"{self.name}.{kind}" for kind in ("png", "svg", "csv"))
        self.drawing.savefig(png, dpi=_PNG_DPI, facecolor="white")
        svg.write_text(_write_svg(self.drawing, self.name, facecolor="white"), encoding="utf-8")
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        return [png, svg, table]

    def inline_svg(self) -> str:
        """Returns one `<svg>` element that follows the colours of the page it stands in."""
        return render_svg(self.drawing, self.name.replace("_", "-"), self.title)


def _write_svg(figure: "Figure", name: str, **style: Any) -> str:
    import matplotlib

    written = io.StringIO()
    # Text stays text: it can be selected and searched, and needs no font of ours. The same
    # input gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", metadata={"Date": None}, **style)
    return written.getvalue()


def render_svg(figure: "Figure", name: str, description: str, *, fixed: bool = False) -> str:
    """Returns a figure as one element that can stand beside others in a page.

    Args:
      figure: of matplotlib.
      name: an identifier that no other figure of the page has.
      description: what a screen reader says in place of the figure.
      fixed: whether it keeps its width on a narrow page, and is scrolled.
    """
    text = _write_svg(figure, name, transparent=True)
    # What belongs to a file of its own: prolog, metadata, and styles for all of the page.
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    # Ids are unique in a page, so those that are referred to carry the figure's name.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r' id="([^"]*)"', rf' id="{name}-\1"', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    # The font is the page's; releases of matplotlib differ in how they name one.
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    for variable, value in COLOURS.items():
        text = text.replace(value, f"var(--{variable})")
    # A hundredth of a pixel is enough, in tags that is: text between them stays.
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"\d+\.\d{3,}", _round_number, tag[0]), text)
    width, height = 72 * figure.get_figwidth(), 72 * figure.get_figheight()
    kept = f' class="map" style="width: {width:.0f}px"' if fixed else ""
    head = (
        f'<svg{kept} width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{html.escape(description)}">'
    )
    text = re.sub(r"^<svg[^>]*>", lambda _: head, text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _round_number(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
