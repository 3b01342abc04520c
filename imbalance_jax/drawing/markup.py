"""Pieces of HTML that the pages are made of, numbers as they are read, and the style."""

import html
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from imbalance_jax.drawing import plots as figures
from imbalance_jax.drawing.plots import Curve

ABSENT = "–"

# Pieces of HTML. What these take is HTML already, unless they say otherwise.


def escape_text(value: Any) -> str:
    """Returns any value as text of the page, with nothing in it read as markup."""
    return html.escape(str(value))


def render_page(title: str, sections: Iterable[str], css: str = "") -> str:
    """Returns a self-contained page; `title` is plain text, and empty sections are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>{escape_text(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{render_stylesheet()}{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def render_section(title: str, *parts: str) -> str:
    """Args: `title` is plain text."""
    return "\n".join(["<section>", f"<h2>{escape_text(title)}</h2>", *parts, "</section>"])


def render_missing_note(sentence: str) -> str:
    return f'<p class="missing">{sentence}</p>'


def render_note(sentences: str) -> str:
    """Args: `sentences` are plain text."""
    return f'<p class="note">{escape_text(sentences)}</p>'


def render_figure(drawn: str, title: str, reading: str) -> str:
    """Args: `title` and `reading` are plain text."""
    caption = f"<figcaption><b>{escape_text(title)}</b> {escape_text(reading)}</figcaption>"
    return f"<figure>\n{drawn}\n{caption}\n</figure>"


def render_side_by_side(parts: Iterable[str]) -> str:
    return '<div class="pairs">\n' + "\n".join(filter(None, parts)) + "\n</div>"


def render_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """Returns a table that scrolls by itself on a phone. Header and caption are plain text."""
    heads = "".join(f'<th scope="col">{escape_text(head)}</th>' for head in header)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div>\n<p class="caption">{escape_text(caption)}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape_text(caption)}">\n'
        f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
        "</div>\n</div>"
    )


def render_swatch(tags: Sequence[str], tag: str) -> str:
    variable = figures.get_language_colour(tags.index(tag))
    return f'<i class="swatch" style="background: var(--{variable})"></i>{escape_text(tag)}'


def render_number(value: float | None, write: Callable[[float], str]) -> str:
    """Returns a number as it is read, with the exact one behind it."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return figures.format_significant(value)
    return f'<data value="{value:.12g}">{escape_text(write(value))}</data>'


# Numbers as plain text.


def parse_number(value: Any) -> float:
    """Returns a value of a JSON file as a float; NaN for what is none."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def compute_curve_median(curve: Curve) -> float:
    return statistics.median(value for value in curve.values if math.isfinite(value))


def format_count(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def format_signed(value: float) -> str:
    return f"{value:+,.6g}".replace("-", "−")


def format_percent(fraction: float) -> str:
    """Returns a fraction in percent, with zeros that say nothing left out."""
    written = figures.format_significant(100 * fraction)
    if "." in written and "e" not in written:
        written = written.rstrip("0").rstrip(".")
    return f"{written} %"


def normalize_to_fractions(values: Mapping[str, float]) -> dict[str, float]:
    whole = math.fsum(values.values())
    return {name: value / whole if whole else 0.0 for name, value in values.items()}


def describe_curve_ends(curves: Mapping[str, Curve], percent: bool = False) -> str:
    """Returns a sentence of where each curve ends."""
    scale, unit = (100, " %") if percent else (1, "")
    ends = [
        f"{tag} at {figures.format_significant(scale * curve.values[-1], 4)}{unit}"
        for tag, curve in curves.items()
        if curve
    ]
    return f"At step {max(curve.steps[-1] for curve in curves.values()):,}: {', '.join(ends)}."


def render_stylesheet() -> str:
    light = "; ".join(f"--{name}: {value}" for name, value in figures.COLOURS.items())
    dark = "; ".join(f"--{name}: {value}" for name, value in figures.COLOURS_DARK.items())
    return (
        f":root {{ {light}; --ground: #ffffff; --panel: #f6f7f9; --good: #16794c; "
        "--bad: #b3261e; --open: #8a5a00 }\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark}; --ground: #14181d; "
        "--panel: #1d232b; --good: #4cc38a; --bad: #ff7a70; --open: #e5b454 } }\n"
        # Paper is white whatever the screen was.
        f"@media print {{ :root {{ {light}; --ground: #ffffff; --panel: #ffffff; "
        "--good: #16794c; --bad: #b3261e; --open: #8a5a00 } }\n" + _CSS
    )


_CSS = """\
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    sans-serif }
main { max-width: 1040px; margin: 0 auto; padding: 48px 24px 96px }
h1 { margin: 0; font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -0.01em;
  overflow-wrap: anywhere }
h2 { margin: 0 0 16px; font-size: 20px; line-height: 1.3; font-weight: 650 }
h3 { margin: 0; font-size: 16.5px; line-height: 1.3; font-weight: 650 }
section { margin-top: 64px }
p { margin: 0; max-width: 70ch }
code, pre { font: 0.86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
code { overflow-wrap: anywhere }
.state { margin-top: 8px; color: var(--muted) }
.state strong, .verdict strong { margin-right: 6px; font-weight: 650 }
.state .message { color: var(--ink); overflow-wrap: anywhere }
.done { color: var(--good) }
.failed { color: var(--bad) }
.unfinished { color: var(--open) }
.headline { margin-top: 24px; font-size: 20px; line-height: 1.45 }
.warning { margin-top: 20px; padding-left: 14px; border-left: 3px solid var(--bad) }
.note { margin-top: 12px; color: var(--muted); font-size: 14px; max-width: 92ch }
.missing { color: var(--muted); font-style: italic }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr));
  gap: 1px; margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden }
header + section { margin-top: 32px }
.facts div { padding: 14px 16px; box-shadow: 0 0 0 1px var(--line); min-width: 0 }
.facts dt { color: var(--muted); font-size: 13px }
.facts dd { margin: 2px 0 0; font-size: 19px; line-height: 1.35; font-weight: 600;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.facts small { display: block; color: var(--muted); font-size: 12.5px; font-weight: 400 }
.list { columns: 2 380px; column-gap: 32px; margin: 0 }
.list div { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 16px;
  border-bottom: 1px solid var(--line); padding: 6px 0; break-inside: avoid }
.list dt { color: var(--muted); font-size: 14px }
.list dd { margin: 0; min-width: 0 }
.scroll { overflow-x: auto }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 14.5px;
  font-variant-numeric: tabular-nums lining-nums }
.caption { color: var(--muted); font-size: 14px; margin-bottom: 8px }
th, td { padding: 8px 0 8px 18px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
thead th { color: var(--muted); font-weight: 400; font-size: 13px; line-height: 1.3;
  vertical-align: bottom; white-space: normal; border-bottom-color: var(--muted) }
tbody th { font-weight: 600 }
th:first-child { padding-left: 0; text-align: left; white-space: nowrap }
.swatch { display: inline-block; width: 10px; height: 10px; margin-right: 8px;
  border-radius: 2px; print-color-adjust: exact; -webkit-print-color-adjust: exact }
figure { margin: 0; min-width: 0 }
figcaption { margin-top: 8px; color: var(--muted); font-size: 14px; line-height: 1.5;
  max-width: 80ch }
figcaption b { color: var(--ink); font-weight: 600 }
svg { display: block; width: 100%; height: auto; max-width: 992px }
svg * { stroke-linejoin: round; stroke-linecap: butt }
svg.bar { height: 34px; max-width: none; border-radius: 4px }
.narrow { display: none }
.pairs { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 40px 32px;
  align-items: start }
figure + .pairs { margin-top: 48px }
figure + div:not(.pairs) { margin-top: 24px; max-width: 480px }
.verdict { margin-bottom: 24px }
.stack { display: grid; grid-template-columns: minmax(0, 1fr); gap: 28px }
.stack + .stack { margin-top: 48px }
.stack .note { margin-top: 0 }
.stack > figure + figure { margin-top: 12px }
.stack details > :not(summary) { margin-top: 20px }
svg.map { max-width: none }
summary { cursor: pointer; color: var(--muted) }
pre { margin: 16px 0 0; padding: 16px; background: var(--panel); border-radius: 8px;
  overflow-x: auto }
@media screen and (max-width: 820px) {
  main { padding: 32px 18px 64px }
  section { margin-top: 48px }
  .pairs { grid-template-columns: minmax(0, 1fr) }
  .pairs svg { max-width: 560px }
  th:first-child { position: sticky; left: 0; background: var(--ground) }
}
@media screen and (max-width: 740px) {
  .wide { display: none }
  .narrow { display: block; max-width: 560px }
}
@media screen and (max-width: 560px) {
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)) }
}
@media print {
  body { font-size: 11pt }
  main { max-width: none; padding: 0 }
  .facts { grid-template-columns: repeat(5, minmax(0, 1fr)) }
  th, td { padding-left: 8px }
  table { font-size: 9pt }
  .pairs th, .pairs td { padding-left: 5px; font-size: 8pt }
  pre { columns: 2; font-size: 7.5pt; padding: 0 }
  figure, .scroll, .facts { break-inside: avoid }
  .scroll { overflow: visible }
  h2 { break-after: avoid }
  section { margin-top: 28pt }
  details::details-content { content-visibility: visible; height: auto }
}
"""
