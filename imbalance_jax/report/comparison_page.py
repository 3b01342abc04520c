"""A page that sets runs side by side, whatever study they are of: losses, results, what differs.

`write_comparison_page` reads each run directory once, and the functions below turn the runs into
the values of compared.html.j2. A run has a colour, a line style and a marker here, as a language
has on the page of a run. Anything may be missing, because a run has just started or failed early.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.drawing import pages
from imbalance_jax.drawing.numbers import ABSENT, format_compact, format_percent
from imbalance_jax.drawing.pages import Figure, Table, render_finite, render_number, render_swatch
from imbalance_jax.report.alignment.results import get_number
from imbalance_jax.report.line_figures import draw_curve_figure
from imbalance_jax.report.record import RESULT_COLUMNS, RunContents, read_run_contents
from imbalance_jax.report.sources_section import list_environment
from imbalance_jax.runs import progress, storage
from imbalance_jax.runs.damaged_files import DamagedFileError
from imbalance_jax.runs.json_text import format_json
from imbalance_jax.runs.run_directory import RunDirectory

# Letters of a name that fit beside a narrow figure; runs with longer names are numbered.
_LONGEST_LABEL = 12
_LONGEST_VALUE = 60  # letters of a field in the table of differences
_COLUMNS = {**RESULT_COLUMNS, "bits_per_byte": ("bits per byte", ".4f")}
_COMPARED = ("loss", "bits_per_byte")  # with a column for the difference from the first run
# Where the pairs of evaluation.json hold a number.
_ALIGNED: Mapping[str, tuple[str, ...]] = {
    "rows of the embedding": ("embed_in", "cosine"),
    "any two of them": ("embed_in", "between"),
    "rows of the head": ("embed_out", "cosine"),
    "gradients": ("gradients", "mean"),
}


@dataclasses.dataclass(frozen=True)
class _ComparedRun:
    """One of the runs that are compared."""

    label: str  # in figures and tables, unique
    path: str
    run: RunContents


def write_comparison_page(runs: Sequence[RunDirectory]) -> epath.Path:
    """Writes a page that sets runs side by side into the folder they lie in; returns where.

    Where they lie in several, it is that of the first run. The page is named for the runs.

    Raises:
      FileNotFoundError: one of them is not a run directory.
      ValueError: there are fewer than two of them.
    """
    if len({storage.make_absolute_path(run.path) for run in runs}) < len(runs) or len(runs) < 2:
        raise ValueError(f"--workdir={','.join(map(str, runs))}: give two runs or more, each once.")
    columns, damaged = _read_compared_runs(runs)
    for line in damaged.values():
        print(f"Left out: {line}")
    if len(columns) < 2:
        raise ValueError(f"Of the runs, {len(columns)} can be read. {' '.join(damaged.values())}")
    folder = epath.Path(storage.make_absolute_path(runs[0].path)).parent
    name = "-".join(["compared", *(column.run.name for column in columns)])[:100]
    storage.write_file_atomically(
        folder / f"{name}.html", _render_comparison_page(columns, damaged).encode()
    )
    return folder / f"{name}.html"


def _read_compared_runs(
    runs: Sequence[RunDirectory],
) -> tuple[list[_ComparedRun], dict[str, str]]:
    """Returns the runs with a short name for each, numbers where they have none.

    And those of which a file is damaged: by name, which file that is.
    """
    paths = [str(storage.make_absolute_path(run.path)) for run in runs]
    shared = os.path.commonprefix([path.split("/") for path in paths])
    # A run that lies in the folder of another is left with its last part.
    names = ["/".join(path.split("/")[len(shared) :]) or path.split("/")[-1] for path in paths]
    if max(map(len, names)) > _LONGEST_LABEL:
        labels = [f"run {number}" for number in range(1, len(runs) + 1)]
    else:
        labels = names
    columns, damaged = [], {}
    for label, name, run in zip(labels, names, runs, strict=True):
        try:
            columns.append(_ComparedRun(label, name, read_run_contents(run)))
        except DamagedFileError as error:
            damaged[name] = str(error)
    return columns, damaged


def _render_comparison_page(columns: Sequence[_ComparedRun], damaged: Mapping[str, str]) -> str:
    *first, last = (column.path for column in columns)
    by_language = _group_by_language(columns)
    unlike = _find_unlike_tests(by_language)
    return pages.render_template(
        "compared",
        title=f"{', '.join(first)} and {last}",
        kind="compared",
        count=len(columns),
        damaged=damaged,
        unlike=unlike,
        runs=_tabulate_runs(columns),
        fields=_tabulate_differences(
            columns,
            {"config": [config_lib.to_dict(column.run.config) for column in columns]},
            "Fields of the config.",
        ),
        environment=_tabulate_environments(columns),
        losses=_draw_losses(columns, by_language),
        unlike_steps=len({column.run.tokens_per_step() for column in columns}) > 1,
        results=_tabulate_results(columns, by_language, unlike),
        alignment=_tabulate_alignment(columns),
    )


def _group_by_language(columns: Sequence[_ComparedRun]) -> dict[str, list[_ComparedRun]]:
    """Returns the runs that have each language, by its tag."""
    tags = dict.fromkeys(tag for column in columns for tag in column.run.config.tags)
    return {tag: [c for c in columns if tag in c.run.config.tags] for tag in tags}


def _find_unlike_tests(by_language: Mapping[str, Sequence[_ComparedRun]]) -> dict[str, str]:
    """Returns why the losses of a language do not compare between the runs, where they do not."""
    unlike = {}
    for tag, columns in by_language.items():
        texts, windows = set(), set()
        for column in columns:
            run, config = column.run, column.run.config
            source = (run.provenance.get("sources") or {}).get(run.source(tag)) or {}
            texts.add((source.get("fingerprint"), config.languages[tag].words))
            windows.add((config.model.L, config.eval_stride))
        reasons = ["another text or tokenizer"] * (len(texts) > 1)
        if len(windows) > 1:
            reasons.append("windows of other lengths (config.model.L, evaluation.stride)")
        if reasons:
            unlike[tag] = ", and ".join(reasons)
    return unlike


def _render_run_swatch(columns: Sequence[_ComparedRun], column: _ComparedRun) -> Any:
    return render_swatch([c.label for c in columns], column.label)


def _tabulate_runs(columns: Sequence[_ComparedRun]) -> Table:
    numbered = columns[0].label != columns[0].path
    rows = []
    for column in columns:
        run, config = column.run, column.run.config
        total = run.curve("time/total")
        parts = " : ".join(format_percent(part) for part in run.fractions().values())
        state = "failed" if run.failed else "done" if run.done else "unfinished"
        rows.append(
            [
                _render_run_swatch(columns, column),
                *([column.path] if numbered else []),
                pages.get_pieces().marked(state, state),
                f"{run.step:,} of {config.steps:,}",
                f"{' : '.join(config.tags)} at {parts}",
                render_number(run.total_tokens(), format_compact),
                render_number(run.provenance.get("parameters"), format_compact),
                progress.format_duration(total.last) if total else ABSENT,
            ]
        )
    header = ["run", *(["path"] if numbered else []), "state", "step"]
    header += ["languages and their sequences", "tokens trained", "parameters", "wall time"]
    return Table(header, rows, "Each run, as its directory has it.")


# What differs.


def _tabulate_environments(columns: Sequence[_ComparedRun]) -> Table:
    """Returns what differs in what the runs rest on besides their configs."""
    environments = []
    for column in columns:
        sources = column.run.provenance.get("sources") or {}
        facts = list_environment(column.run) | {
            f"fingerprint of {name}": source.get("fingerprint") for name, source in sources.items()
        }
        environments.append({name: str(value) for name, value in facts.items() if value})
    names = dict.fromkeys(name for facts in environments for name in facts)
    values = {name: [facts.get(name) for facts in environments] for name in names}
    return _tabulate_differences(columns, values, "What the runs rest on.")


def _tabulate_differences(
    columns: Sequence[_ComparedRun], values: Mapping[str, Sequence[Any]], caption: str
) -> Table:
    """Returns a row for each field of nested plain values that is not the same in all runs."""
    pieces = pages.get_pieces()
    rows = [
        [
            pieces.code(field),
            *(pieces.shortened(_format_field(value), _LONGEST_VALUE) for value in of_runs),
        ]
        for name, of_all in values.items()
        for field, of_runs in _list_unequal_fields(name, of_all)
    ]
    return Table(["field", *(column.label for column in columns)], rows, caption)


def _list_unequal_fields(name: str, values: Sequence[Any]) -> list[tuple[str, Sequence[Any]]]:
    """Returns the fields that are not the same in all of several nested plain values.

    What some of them do not have at all, such as a language, is one field.
    """
    if all(value == values[0] for value in values):
        return []
    if not all(isinstance(value, Mapping) for value in values):
        return [(name, values)]
    return [
        field
        for key in dict.fromkeys(key for value in values for key in value)
        for field in _list_unequal_fields(f"{name}.{key}", [value.get(key) for value in values])
    ]


def _format_field(value: Any) -> str:
    """Returns a field of a config as text; of a group, those of its fields that are not empty."""
    if value is None:
        return ABSENT
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_format_field(inner)}" for key, inner in value.items() if inner)
    return value if isinstance(value, str) and value else format_json(value)


# Losses and results.


def _draw_losses(
    columns: Sequence[_ComparedRun], by_language: Mapping[str, Sequence[_ComparedRun]]
) -> list[Figure]:
    """Returns a figure for each language, with its loss in each run that has it."""
    figures = []
    for index, (tag, having) in enumerate(by_language.items()):
        what, metric = "Validation loss", f"eval/loss/{tag}"
        if not any(column.run.curve(metric) for column in having):
            what, metric = "Training loss", f"train/loss/{tag}"
        curves = {column.label: column.run.curve(metric) for column in having}
        per_step = {column.run.tokens_per_step() for column in having}
        waiting = ", ".join(label for label, curve in curves.items() if not curve)
        figures.append(
            draw_curve_figure(
                f"loss-{index}",
                f"{what} of {tag}.",
                f"Not logged yet: {waiting}." if waiting else "",
                curves,
                [column.label for column in columns],
                y_label="loss, nats per token",
                tokens_per_step=per_step.pop() if len(per_step) == 1 else 0.0,
            )
        )
    return [figure for figure in figures if figure]


def _tabulate_results(
    columns: Sequence[_ComparedRun],
    by_language: Mapping[str, Sequence[_ComparedRun]],
    unlike: Mapping[str, str],
) -> Table | None:
    """Returns the newest results of every run and language; None where there are none."""
    results = {column.label: column.run.results() for column in columns}
    measured = {
        name for _, _, by_tag in results.values() for result in by_tag.values() for name in result
    }
    shown = {name: column for name, column in _COLUMNS.items() if name in measured}
    if not shown:
        return None
    header = ["language, run", "of the sequences", "tokens seen", "split, step"]
    for name, (heading, _) in shown.items():
        header += [heading, f"Δ {heading}"] if name in _COMPARED else [heading]
    rows = []
    for tag, having in by_language.items():
        first_split = ""
        first_result: Mapping[str, float] = {}  # of the first run that has a loss
        for column in having:
            split, step, by_tag = results[column.label]
            result = by_tag.get(tag, {})
            # Losses on other text, or on another split of it, differ for other reasons.
            alike = first_split == split and tag not in unlike
            row = [
                pages.get_pieces().pair(tag, _render_run_swatch(columns, column)),
                format_percent(column.run.fractions().get(tag, 0.0)),
                render_number(column.run.tokens().get(tag), format_compact),
                f"{split}, {step:,}" if result else ABSENT,
            ]
            for name, (_, form) in shown.items():
                row.append(render_number(result.get(name), form))
                if name in _COMPARED:
                    apart = result.get(name, math.nan) - first_result.get(name, math.nan)
                    row.append(render_finite(apart if alike else math.nan, "+.3f"))
            rows.append(row)
            if not first_split and "loss" in result:
                first_split, first_result = split, result
    caption = (
        "The newest results of every run. Δ is the difference from the first run that has the "
        "language, where both are of one split of one text: below 0, this run is better."
    )
    return Table(header, rows, caption)


def _tabulate_alignment(columns: Sequence[_ComparedRun]) -> Table | None:
    """Returns the alignment that `evaluate` measured, where some run has it."""
    pairs: dict[str, list[tuple[_ComparedRun, Any]]] = {}
    for column in columns:
        alignment = column.run.evaluation.get("alignment") or {}
        for pair, result in (alignment.get("pairs") or {}).items():
            pairs.setdefault(pair, []).append((column, result))
    rows = [
        [
            pages.get_pieces().pair(pair, _render_run_swatch(columns, column)),
            *(render_finite(get_number(result, *path), ".3f") for path in _ALIGNED.values()),
        ]
        for pair, having in pairs.items()
        for column, result in having
    ]
    header = ["languages, run", *_ALIGNED]
    return Table(header, rows, "Cosines, on the test split.") if rows else None
