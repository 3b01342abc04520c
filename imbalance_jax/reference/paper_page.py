"""A page of everything that the reference study reported, drawn from the facts we ship."""

import pathlib
from collections.abc import Sequence

from etils import epath

from imbalance_jax.drawing import markup
from imbalance_jax.reference import paper_figures, paper_tables
from imbalance_jax.reference import reported as reference
from imbalance_jax.reference.catalogue import FIGURES
from imbalance_jax.runs import storage

NAME = "reference.html"


def write_reference_page(directory: epath.PathLike) -> epath.Path:
    """Writes all figures and tables as reported, and a page that shows them; returns the page.

    Args:
      directory: gets reference.html and the files of `paper_figures.write_all`; made if it is
        not there.

    Raises:
      ValueError: the directory is that of a run or a study.
    """
    directory = storage.parse_path(directory)
    for name, kind in (("config.json", "run"), ("study.json", "study")):
        if (directory / name).exists():
            raise ValueError(
                f"--workdir={directory} holds a {kind}. "
                "Give --reference a directory of its own, such as reports/reference."
            )
    with storage.stage_directory(directory) as folder:
        (folder / NAME).write_text(_write_page_files(folder), encoding="utf-8")
    return directory / NAME


def _write_page_files(folder: pathlib.Path) -> str:
    """Writes all figures and tables into a folder, and returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, sections = reference.read_reference_results(), []
    for name, spec in FIGURES.items():
        drawn = paper_figures.draw_paper_figure(name, rows)
        assert drawn is not None, "the reference has results for each of its figures"
        drawn.write(folder)
        shown = _render_reported_figure(name, drawn.inline_svg(), spec.reading)
        sections.append(markup.render_section(f"{name}. {spec.title}", shown))
    paper_figures.write_paper_tables(rows, folder)
    made = [paper_tables.make_paper_table(name, rows) for name in paper_tables.TABLES]
    tables = [paper_tables.render_table_html(table) for table in made if table]
    sections.append(markup.render_section("Tables", f'<div class="stack">{"".join(tables)}</div>'))
    return _render_reference_page(sections)


def _render_reference_page(sections: Sequence[str]) -> str:
    rows = reference.read_reference_results()
    head = (
        "<header>\n<h1>What the reference study reported</h1>\n"
        '<p class="headline">Every figure and table of arXiv 2404.07982, drawn anew from '
        f"{len(rows):,} values: {_describe_sources()}.</p>\n"
        + markup.render_note(
            f"1x is {reference.UNIT_TOKENS:,} tokens. Bars are how far a value may be off that "
            "was read from a plot or rounded, where they would reach beyond the marker. One "
            "seed for each condition: there is no other error. TEff is the monolingual tokens "
            "that a perplexity is worth (MLTE), divided by the tokens seen of that language; "
            "MLPE is the perplexity of a monolingual model on the same tokens."
        )
        + "\n</header>"
    )
    return markup.render_page("What the reference study reported", [head, *sections])


def _render_reported_figure(name: str, svg: str, reading: str) -> str:
    stem = paper_figures.make_file_stem(name)
    links = ", ".join(
        f'<a href="{stem}.{kind}">{kind.upper()}</a>' for kind in ("png", "svg", "csv")
    )
    caption = f"<figcaption>{markup.escape_text(reading)} {links}</figcaption>"
    return f"<figure>\n{svg}\n{caption}\n</figure>"


def _describe_sources() -> str:
    """Returns how many values are known how."""
    rows = reference.read_reference_results()
    names = {
        "notebook": "printed in the authors' notebook",
        "table": "printed in a table",
        "read_off_plot": "read off plots or worked out from such",
    }
    counts = {name: sum(row.source == name for row in rows) for name in names}
    return ", ".join(f"{counts[name]:,} {text}" for name, text in names.items())
