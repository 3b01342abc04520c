"""A page of everything that the reference study reported, drawn from the facts we ship."""

import pathlib
from collections import Counter
from collections.abc import Sequence

from etils import epath

from imbalance_jax.drawing.pages import render_template
from imbalance_jax.reference import paper_figures, paper_tables, ratio_laws
from imbalance_jax.reference.reported import UNIT_TOKENS, PaperResult, read_reference_results
from imbalance_jax.runs import storage

NAME = "reference.html"
_SOURCES = {
    "notebook": "printed in the authors' notebook",
    "table": "printed in a table",
    "read_off_plot": "read off plots or worked out from such",
}


def write_reference_page(directory: epath.PathLike) -> epath.Path:
    """Writes all figures and tables as reported, and a page that shows them; returns the page.

    Args:
      directory: gets reference.html, ratio_laws.csv and the files of
        `paper_figures.write_figures_and_tables`;
        made if it is not there.

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
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).write_text(_write_files(folder), encoding="utf-8")
    return directory / NAME


def _write_files(folder: pathlib.Path) -> str:
    """Writes all figures and tables into a folder, and returns the page."""
    rows = read_reference_results()
    figures = []
    for name in paper_figures.FIGURES:
        drawn = paper_figures.draw_paper_figure(name, rows)
        assert drawn is not None, "the reference has results for each of its figures"
        drawn.write(folder)
        figures.append(drawn)
    paper_figures.write_paper_tables(rows, folder)
    errors = ratio_laws.list_errors(rows)
    (folder / "ratio_laws.csv").write_text(ratio_laws.render_errors_csv(errors), encoding="utf-8")
    tables = (paper_tables.make_paper_table(name, rows) for name in paper_tables.TABLES)
    return render_template(
        "reference",
        title="What the reference study reported",
        count=len(rows),
        sources=_describe_sources(rows),
        unit_tokens=UNIT_TOKENS,
        figures=figures,
        ratio_laws=ratio_laws.make_error_table(errors),
        tables=[paper_tables.make_page_table(table) for table in tables if table],
    )


def _describe_sources(rows: Sequence[PaperResult]) -> str:
    """Returns how many values are known how."""
    counts = Counter(row.source for row in rows)
    return ", ".join(f"{counts[source]:,} {text}" for source, text in _SOURCES.items())
