"""Every table of the reference study, made from rows of the form of reported.py.

Tables 1 and 3 have a row for each condition and columns of perplexity and TEff; Tables 2 and
4 a row for each layer and columns of cosines. A cell holds its `PaperResult`, so that the CSV has
all digits, interval and seeds, and the page as much as can be read.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from imbalance_jax.drawing.numbers import ABSENT, format_two_decimals
from imbalance_jax.drawing.pages import Table, get_pieces, render_number
from imbalance_jax.reference.reported import PaperResult, get_base_language, select_figure_results

if TYPE_CHECKING:
    from markupsafe import Markup

Cell = str | PaperResult | None

_CONDITION = ("languages", "vocab", "split", "model", "tokens", "schedule")
_HEADS = {"vocab": "vocabulary", "tokens": "data"}


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table as it is printed, each number with all that is known of it."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


TABLES: Mapping[str, str] = {
    "Table 1": "Cloned English: perplexity and token efficiency",
    "Table 2": "Cloned English: cosine of hidden states of the same position in two clones",
    "Table 3": "English and French: perplexity and token efficiency",
    "Table 4": "English and French: cosine of hidden states, positions matched to each other",
}
_LAYERED = ("Table 2", "Table 4")


def make_paper_table(
    name: str, results: Sequence[PaperResult], reference: Sequence[PaperResult] = ()
) -> PaperTable | None:
    """Returns a table of the reference study, or None where no result belongs to it.

    Args:
      name: one of `TABLES`.
      results: of a study, or what was reported; those of other tables are passed over.
      reference: what was reported, for columns beside those of the results.
    """
    rows = select_figure_results(results, name)
    if not rows:
        return None
    make = _make_layer_table if name in _LAYERED else _make_condition_table
    return make(name, rows, select_figure_results(reference, name))


def render_table_csv(table: PaperTable) -> str:
    """Returns a table as CSV; numbers of several seeds have their interval and seeds beside."""
    several_seeds = [
        column
        for column, cells in enumerate(zip(*table.rows, strict=True))
        if any(cell.values for cell in cells if isinstance(cell, PaperResult))
    ]
    header: list[str] = []
    for column, head in enumerate(table.header):
        header.append(head)
        if column in several_seeds:
            header += [f"{head} low", f"{head} high", f"{head} seeds"]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        fields: list[str] = []
        for column, cell in enumerate(row):
            if not isinstance(cell, PaperResult):
                fields.append(cell or "")
                fields += [""] * (3 * (column in several_seeds))
                continue
            fields.append(repr(cell.value))
            if column in several_seeds:
                ends = [repr(x) if math.isfinite(x) else "" for x in (cell.low, cell.high)]
                fields += [*ends, " ".join(map(repr, cell.values))]
        writer.writerow(fields)
    return written.getvalue()


def make_page_table(table: PaperTable) -> Table:
    """Returns a table for a page, with as many digits as can be read."""
    rows = [list(map(_render_cell, row)) for row in table.rows]
    return Table(table.header, rows, f"{table.name}. {table.title}.")


def _render_cell(cell: Cell) -> "Markup | str":
    if not isinstance(cell, PaperResult):
        return ABSENT if cell is None else cell
    number = render_number(cell.value, _format_value)
    if cell.values and math.isfinite(cell.low) and math.isfinite(cell.high):
        ends = f"{_format_value(cell.low)} to {_format_value(cell.high)}"
        number += get_pieces().small(ends)
    return number


def _format_value(value: float) -> str:
    return f"{value:.2e}".replace("e+", "e") if value >= 1e6 else format_two_decimals(value)


# Tables 1 and 3.


def _make_condition_table(
    name: str, rows: Sequence[PaperResult], reported: Sequence[PaperResult]
) -> PaperTable:
    """A row for each condition in the order of the results, or of what was reported."""
    conditions: dict[tuple[str, ...], dict[str, PaperResult]] = {}
    order = {_get_condition(row): place for place, row in reversed(list(enumerate(reported)))}
    measured = {row.metric for row in rows}
    columns = [metric for metric in _list_columns([*reported, *rows]) if metric in measured]
    for row in sorted(rows, key=lambda row: order.get(_get_condition(row), len(reported))):
        column = _find_column(row, columns)
        if column:
            conditions.setdefault(_get_condition(row), {})[column] = row
    beside: dict[tuple[str, ...], dict[str, PaperResult]] = {}
    for row in reported:
        column = _find_column(row, columns)
        if column:
            beside.setdefault(_get_condition(row), {})[column] = row
    # What all conditions have in common needs no column.
    shown = [
        place
        for place, key in enumerate(_CONDITION)
        if len({c[place] for c in conditions}) > 1 or key == "languages"
    ]
    header = [_HEADS.get(_CONDITION[place], _CONDITION[place]) for place in shown]
    for column in columns:
        header += (
            [_format_column_title(column), f"{_format_column_title(column)} reported"]
            if reported
            else [_format_column_title(column)]
        )
    table_rows = []
    for condition, cells in conditions.items():
        row_cells: list[Cell] = [condition[place] for place in shown]
        for column in columns:
            row_cells.append(cells.get(column))
            if reported:
                row_cells.append(beside.get(condition, {}).get(column))
        table_rows.append(tuple(row_cells))
    return PaperTable(name, TABLES[name], tuple(header), tuple(table_rows))


def _get_condition(row: PaperResult) -> tuple[str, ...]:
    return tuple(row.setting.get(key, "") for key in _CONDITION)


def _list_columns(rows: Sequence[PaperResult]) -> list[str]:
    """Returns the metrics that are columns: of the languages of mixtures of two, if any.

    Of ten clones the reference shows the first two, which these columns are too.
    """
    mixed = [row for row in rows if "+" in row.setting.get("languages", "")]
    two = [row for row in mixed if row.setting["languages"].count("+") == 1]
    languages = list(dict.fromkeys(row.language for row in two or mixed or rows))
    measured = {row.metric for row in rows}
    metrics = [f"{kind}_{language}" for kind in ("ppl", "teff") for language in languages]
    return [metric for metric in metrics if metric in measured]


def _find_column(row: PaperResult, columns: Sequence[str]) -> str:
    """Returns the column of a result: EN alone stands in that of its first clone."""
    if row.metric in columns:
        return row.metric
    kind, _, language = row.metric.rpartition("_")
    alike = [
        column
        for column in columns
        if column.startswith(f"{kind}_")
        and get_base_language(column.rpartition("_")[2]) == get_base_language(language)
    ]
    alone = not any(mark in row.setting.get("languages", "") for mark in ("+", ".."))
    return alike[0] if alike and alone else ""


def _format_column_title(metric: str) -> str:
    kind, _, language = metric.partition("_")
    return f"{ {'ppl': 'PPL', 'teff': 'TEff'}[kind] } {language}".strip()


# Tables 2 and 4.


def _make_layer_table(
    name: str, rows: Sequence[PaperResult], reported: Sequence[PaperResult]
) -> PaperTable:
    """A row for each layer, a column for each split and vocabulary, and what 90/10 adds."""
    columns = _collect_layer_columns(rows)
    beside = _collect_layer_columns(reported)
    layers = sorted({layer for column in columns.values() for layer in column})
    header = ["layer"]
    for head in columns:
        header += [head, f"{head} reported"] if head in beside else [head]
    table_rows = []
    for layer in layers:
        cells: list[Cell] = [str(layer)]
        for head, column in columns.items():
            cells.append(column.get(layer))
            if head in beside:
                cells.append(beside[head].get(layer))
        table_rows.append(tuple(cells))
    return PaperTable(name, TABLES[name], tuple(header), tuple(table_rows))


def _collect_layer_columns(rows: Sequence[PaperResult]) -> dict[str, dict[int, PaperResult]]:
    """Returns column -> layer -> result, with the difference of two splits if it is missing."""
    vocabularies = list(dict.fromkeys(row.setting.get("vocab", "") for row in rows))
    columns: dict[str, dict[int, PaperResult]] = {}
    for vocabulary in vocabularies:
        prefix = f"{vocabulary.replace('/', ' ').partition(' ')[0]} " * (len(vocabularies) > 1)
        by_split: dict[str, dict[int, PaperResult]] = {}
        for row in rows:
            if row.setting.get("vocab", "") == vocabulary and "layer" in row.setting:
                column = row.setting["split"]
                column = "difference" if column.startswith("delta") else column
                by_split.setdefault(column, {})[int(row.setting["layer"])] = row
        splits = [split for split in by_split if split != "difference"]
        if "difference" not in by_split and len(splits) == 2:
            by_split["difference"] = _subtract_layer_values(
                by_split[splits[0]], by_split[splits[1]]
            )
        columns |= {f"{prefix}{column}": cells for column, cells in by_split.items()}
    return columns


def _subtract_layer_values(
    first: Mapping[int, PaperResult], second: Mapping[int, PaperResult]
) -> dict[int, PaperResult]:
    """Returns the second's means less the first's; what seeds say of it is not worked out."""
    return {
        layer: PaperResult(
            figure=second[layer].figure,
            setting=second[layer].setting,
            metric=second[layer].metric,
            value=second[layer].value - first[layer].value,
            source=second[layer].source,
        )
        for layer in first
        if layer in second
    }
