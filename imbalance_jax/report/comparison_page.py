"""A page that sets runs side by side, whatever study they are of: losses, results, what differs.

`write_comparison_page` reads each run directory once, and each function below turns the runs
into one section. A run has a colour, a line style and a marker here, as a language has on the
page of a run. Anything may be missing, because a run has just started or failed early. All that
comes from a file passes through `markup.text` on its way into the page.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.drawing import markup
from imbalance_jax.drawing import plots as figures
from imbalance_jax.report.record import RunContents, read_run_contents
from imbalance_jax.runs import progress, storage
from imbalance_jax.runs.run_directory import RunDirectory

# Letters of a name that fit beside a narrow figure; runs with longer names are numbered.
_LONGEST_LABEL = 12
_CSS = "section > div + div { margin-top: 28px }\n"
_LONGEST_VALUE = 60  # letters of a field in the table of differences
# Metrics of a language: heading, and how a value and a difference of two are written.
_RESULTS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", lambda x: f"{x:.3f}"),
    "ppl": ("perplexity", figures.format_significant),
    "bits_per_byte": ("bits per byte", lambda x: f"{x:.4f}"),
    "language_nats": ("language nats", lambda x: f"{x:.4f}"),
    "loss_own": ("own loss", lambda x: f"{x:.3f}"),
    "leak": ("leak", lambda x: f"{figures.format_significant(100 * x, 2)} %"),
    "top1": ("top-1", lambda x: f"{100 * x:.1f} %"),
}
# Where the pairs of evaluation.json and the metrics of a run that still trains hold a number.
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
    columns = _read_compared_runs(runs)
    folder = epath.Path(storage.make_absolute_path(runs[0].path)).parent
    name = "-".join(["compared", *(column.run.name for column in columns)])[:100]
    storage.write_file_atomically(
        folder / f"{name}.html", _render_comparison_page(columns).encode()
    )
    return folder / f"{name}.html"


def _read_compared_runs(runs: Sequence[RunDirectory]) -> list[_ComparedRun]:
    """Returns the runs with a short name for each, numbers where they have none."""
    paths = [str(storage.make_absolute_path(run.path)) for run in runs]
    shared = os.path.commonprefix([path.split("/") for path in paths])
    # A run that lies in the folder of another is left with its last part.
    names = ["/".join(path.split("/")[len(shared) :]) or path.split("/")[-1] for path in paths]
    if max(map(len, names)) > _LONGEST_LABEL:
        labels = [f"run {number}" for number in range(1, len(runs) + 1)]
    else:
        labels = names
    return [
        _ComparedRun(label, name, read_run_contents(run))
        for label, name, run in zip(labels, names, runs, strict=True)
    ]


def _render_comparison_page(columns: Sequence[_ComparedRun]) -> str:
    title = " and ".join(column.path for column in columns)
    sections = [
        _render_comparison_header(columns),
        _render_compared_runs(columns),
        _render_differences_section(columns),
        _render_compared_losses(columns),
        _render_compared_results(columns),
        _render_compared_alignment(columns),
    ]
    return markup.render_page(title, sections, _CSS)


# Sections, from top to bottom.


def _render_comparison_header(columns: Sequence[_ComparedRun]) -> str:
    names = ", ".join(markup.escape_text(column.path) for column in columns[:-1])
    title = f"{names} and {markup.escape_text(columns[-1].path)}"
    unlike = _find_unlike_tests(columns)
    warning = ""
    if unlike:
        listed = "; ".join(f"{markup.escape_text(tag)}: {why}" for tag, why in unlike.items())
        warning = (
            '<p class="warning"><strong>Not the same test:</strong> '
            f"{listed}. Losses of these do not compare.</p>\n"
        )
    return (
        f'<header>\n<h1>{title}</h1>\n<p class="state">{len(columns)} runs side by side</p>\n'
        f"{warning}</header>"
    )


def _find_unlike_tests(columns: Sequence[_ComparedRun]) -> dict[str, str]:
    """Returns why the losses of a language do not compare between the runs, where they do not."""
    found = {}
    for tag, having in _group_by_language(columns).items():
        texts, windows = set(), set()
        for column in having:
            run, config = column.run, column.run.config
            source = (run.provenance.get("sources") or {}).get(run.source(tag)) or {}
            texts.add((source.get("fingerprint"), config.languages[tag].words))
            windows.add((config.model.L, config.eval_stride))
        reasons = ["another text or tokenizer"] * (len(texts) > 1)
        reasons += ["windows of other lengths (config.model.L, evaluation.stride)"] * (
            len(windows) > 1
        )
        if reasons:
            found[tag] = ", and ".join(reasons)
    return found


def _group_by_language(columns: Sequence[_ComparedRun]) -> dict[str, list[_ComparedRun]]:
    """Returns the runs that have each language, by its tag."""
    tags = dict.fromkeys(tag for column in columns for tag in column.run.config.tags)
    return {tag: [c for c in columns if tag in c.run.config.tags] for tag in tags}


def _render_compared_runs(columns: Sequence[_ComparedRun]) -> str:
    rows = []
    for column in columns:
        run, config = column.run, column.run.config
        tokens, total = run.tokens(), run.curve("time/total")
        parts = " : ".join(markup.format_percent(part) for part in run.fractions().values())
        state = "failed" if run.failed else "done" if run.done else "unfinished"
        parameters = run.provenance.get("parameters")
        rows.append(
            [
                _render_run_swatch(columns, column),
                *([markup.escape_text(column.path)] if column.label != column.path else []),
                f'<span class="{state}">{state}</span>',
                f"{run.step:,} of {config.steps:,}",
                markup.escape_text(f"{' : '.join(config.tags)} at {parts}"),
                markup.render_number(
                    math.fsum(tokens.values()) if tokens else None, figures.format_compact
                ),
                markup.render_number(parameters, figures.format_compact),
                markup.escape_text(progress.format_duration(total.last))
                if total
                else markup.ABSENT,
            ]
        )
    header = ["run", *(["path"] if columns[0].label != columns[0].path else [])]
    header += ["state", "step", "languages and their sequences", "tokens trained", "parameters"]
    return markup.render_section(
        "Runs",
        markup.render_table([*header, "wall time"], rows, "Each run, as its directory has it."),
    )


def _render_run_swatch(columns: Sequence[_ComparedRun], column: _ComparedRun) -> str:
    return markup.render_swatch([c.label for c in columns], column.label)


def _render_differences_section(columns: Sequence[_ComparedRun]) -> str:
    header = ["field", *(column.label for column in columns)]
    fields = _list_unequal_fields(
        "config", [config_lib.to_dict(column.run.config) for column in columns]
    )
    parts = []
    if fields:
        parts.append(markup.render_table(header, fields, "Fields of the config."))
    else:
        parts.append("<p>The configs are equal.</p>")
    around = [_describe_environment(column.run) for column in columns]
    names = dict.fromkeys(name for found in around for name in found)
    rows = [
        row
        for name in names
        for row in _list_unequal_fields(name, [each.get(name) for each in around])
    ]
    if rows:
        parts.append(markup.render_table(header, rows, "What the runs rest on."))
    return markup.render_section("What differs", *parts)


def _list_unequal_fields(name: str, values: Sequence[Any]) -> list[list[str]]:
    """Returns a row for each field of nested plain values that is not the same in all of them.

    What some of them do not have at all, such as a language, is one row.
    """
    if all(value == values[0] for value in values):
        return []
    if all(isinstance(value, Mapping) for value in values):
        inner = dict.fromkeys(key for value in values for key in value)
        return [
            row
            for key in inner
            for row in _list_unequal_fields(f"{name}.{key}", [v.get(key) for v in values])
        ]
    return [
        [
            f"<code>{markup.escape_text(name)}</code>",
            *(_render_truncated_value(_format_field(value)) for value in values),
        ]
    ]


def _format_field(value: Any) -> str:
    """Returns a field of a config as text; of a group, those of its fields that are not empty."""
    if value is None:
        return markup.ABSENT
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_format_field(inner)}" for key, inner in value.items() if inner)
    return value if isinstance(value, str) and value else json.dumps(value)


def _render_truncated_value(value: str) -> str:
    if len(value) <= _LONGEST_VALUE:
        return markup.escape_text(value)
    short = markup.escape_text(value[:_LONGEST_VALUE])
    return f'<span title="{markup.escape_text(value)}">{short}…</span>'


def _describe_environment(run: RunContents) -> dict[str, str]:
    """Returns what a run rests on besides its config, as provenance.json has it."""
    known = run.provenance
    found = {"git revision": known.get("git"), "Python": known.get("python")}
    found |= known.get("packages") or {}
    device = known.get("device") or {}
    found["device"] = ", ".join(f"{name} {value}" for name, value in device.items())
    for name, source in (known.get("sources") or {}).items():
        found[f"fingerprint of {name}"] = source.get("fingerprint")
    return {name: str(value) for name, value in found.items() if value}


def _render_compared_losses(columns: Sequence[_ComparedRun]) -> str:
    drawn = [
        _render_loss_figure(tag, having, columns)
        for tag, having in _group_by_language(columns).items()
    ]
    if not any(drawn):
        return markup.render_section(
            "Learning", markup.render_missing_note("No loss has been logged yet.")
        )
    per_step = {column.run.tokens_per_step() for column in columns}
    note = ""
    if len(per_step) > 1:
        note = markup.render_note(
            "A step of these runs is not as many tokens in each. Compare them at equal tokens."
        )
    return markup.render_section("Learning", markup.render_side_by_side(drawn), note)


def _render_loss_figure(
    tag: str, having: Sequence[_ComparedRun], columns: Sequence[_ComparedRun]
) -> str:
    """Returns the figure of a language's loss in each run that has it, or nothing."""
    what, metric = "Validation loss", f"eval/loss/{tag}"
    if not any(column.run.curve(metric) for column in having):
        what, metric = "Training loss", f"train/loss/{tag}"
    curves = {column.label: column.run.curve(metric) for column in having}
    curves = {label: curve for label, curve in curves.items() if curve}
    if not curves:
        return ""
    per_step = {column.run.tokens_per_step() for column in having}
    title = f"{what} of {tag}."
    drawn = figures.plot_language_curves(
        f"loss-{list(_group_by_language(columns)).index(tag)}",
        f"{title} {markup.describe_curve_ends(curves)}",
        curves,
        tags=[column.label for column in columns],
        y_label="loss, nats per token",
        tokens_per_step=per_step.pop() if len(per_step) == 1 else 0.0,
    )
    without = [column.label for column in having if column.label not in curves]
    reading = f"Not logged yet: {', '.join(without)}." if without else ""
    return markup.render_figure(drawn, title, reading)


def _render_compared_results(columns: Sequence[_ComparedRun]) -> str:
    rows = []
    found = {column.label: column.run.results() for column in columns}
    values = [by_tag for _, _, by_tag in found.values()]
    shown = [
        name
        for name in _RESULTS
        if any(name in row for by_tag in values for row in by_tag.values())
    ]
    unlike = _find_unlike_tests(columns)
    for tag, having in _group_by_language(columns).items():
        first: tuple[str, float] | None = None  # split and loss of the first run that has one
        for column in having:
            split, step, by_tag = found[column.label]
            result = by_tag.get(tag, {})
            loss = result.get("loss")
            cells = [
                f"{markup.escape_text(tag)}, {_render_run_swatch(columns, column)}",
                markup.format_percent(column.run.fractions().get(tag, 0.0)),
                markup.render_number(column.run.tokens().get(tag), figures.format_compact),
                markup.escape_text(f"{split}, {step:,}") if result else markup.ABSENT,
            ]
            cells += [markup.render_number(result.get(name), _RESULTS[name][1]) for name in shown]
            # Losses on other text, or on another split of it, differ for other reasons.
            same = first is not None and first[0] == split and tag not in unlike
            apart = loss - first[1] if same and first and loss is not None else None
            cells.append(markup.render_number(apart, lambda x: f"{x:+.3f}".replace("-", "−")))
            rows.append(cells)
            if first is None and loss is not None:
                first = (split, loss)
    if not shown:
        return markup.render_section(
            "Results", markup.render_missing_note("No language has been evaluated yet.")
        )
    header = ["language, run", "of the sequences", "tokens seen", "split, step"]
    header += [_RESULTS[name][0] for name in shown]
    caption = (
        "The newest results of every run; the last column is the loss less that of the first run, "
        "where both are of one split of one text."
    )
    return markup.render_section(
        "Results",
        markup.render_table([*header, "difference"], rows, caption),
        markup.render_note(_explain_results()),
    )


def _explain_results() -> str:
    return (
        "Losses are in nats per token. Loss is the sum of language nats, −log of the probability "
        "given to all of the language’s own ids together, and own loss, the loss among these ids "
        "alone. One run of each is one seed: differences as large as those of seeds say nothing."
    )


def _render_compared_alignment(columns: Sequence[_ComparedRun]) -> str:
    """Returns the alignment that `evaluate` measured, where some run has it."""
    pairs: dict[str, list[tuple[_ComparedRun, Mapping[str, Any]]]] = {}
    for column in columns:
        alignment = column.run.evaluation.get("alignment") or {}
        for name, pair in (alignment.get("pairs") or {}).items():
            pairs.setdefault(name, []).append((column, pair))
    if not pairs:
        return ""
    rows = [
        [f"{markup.escape_text(name)}, {_render_run_swatch(columns, column)}"]
        + [
            markup.render_number(_get_nested_number(pair, path), _format_cosine)
            for path in _ALIGNED.values()
        ]
        for name, having in pairs.items()
        for column, pair in having
    ]
    return markup.render_section(
        "Alignment",
        markup.render_table(["languages, run", *_ALIGNED], rows, "Cosines, on the test split."),
    )


def _format_cosine(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _get_nested_number(tree: Any, path: Sequence[str]) -> float | None:
    """Returns the number at a path of nested results, or None where there is none."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return None if tree is None else markup.parse_number(tree)
