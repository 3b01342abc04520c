"""The parts of a run's page on transfer: tasks learnt in one language and asked in others, and
what a run that began with another one's weights gained and forgot."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from imbalance_jax.analysis import transfer_results
from imbalance_jax.drawing import markup
from imbalance_jax.drawing import plots as figures
from imbalance_jax.drawing.plots import COLOURS
from imbalance_jax.report.record import RunContents


def render_transfer_section(run: RunContents) -> str:
    """Returns the section on tasks, or nothing where there is no transfer.json."""
    parts = []
    for protocol, by_language in run.transfer.items():
        for trained, tasks in by_language.items():
            parts.append(_render_protocol(run, protocol, trained, tasks))
    if not parts:
        return ""
    note = markup.render_note(
        "All weights were fine-tuned in one language, and the same weights scored in each. A "
        "clone is asked the same examples under its own ids. What is above the share of the most "
        "frequent label was carried over. Intervals are of 95 %: for other seeds (heads and "
        "orders) and other examples at once, and for either alone; not for another pretraining."
    )
    shown = f'<div class="stack">\n{"".join(parts)}\n</div>'
    return markup.render_section("Tasks learnt in one language", note, shown)


def _render_protocol(
    run: RunContents, protocol: str, trained: str, tasks: Mapping[str, Any]
) -> str:
    """Returns the figure and the table of one protocol and language that was trained in."""
    every: dict[str, Mapping[str, Any]] = {
        name: found["languages"] for name, found in tasks.items()
    }
    if len(tasks) > 1 and transfer_results.are_tasks_alike(tasks):
        every["mean"] = transfer_results.average_over_tasks(tasks)
    rows = [
        [
            markup.escape_text(name),
            markup.render_swatch(run.config.tags, tag),
            *_render_accuracy_cells(row),
        ]
        for name, languages in every.items()
        for tag, row in languages.items()
        if tag in run.config.tags
    ]
    spans = ("interval", "over seeds", "over examples")
    header = ["task", "language", "accuracy", *spans, "most frequent label"]
    caption = f"Fine-tuned in {trained}, protocol {protocol}."
    title = f"Accuracy after fine-tuning in {trained} ({protocol})."
    reading = "Short bars: always the most frequent label. Lines: 95 % over seeds and examples."
    name = f"transfer-{protocol}-{trained}"
    drawn = markup.render_figure(
        _plot_task_accuracies(name, title, every, run.config.tags), title, reading
    )
    how = markup.render_note(_describe_fine_tuning(tasks))
    return f"{drawn}\n{how}\n{markup.render_table(header, rows, caption)}\n"


def _describe_fine_tuning(tasks: Mapping[str, Any]) -> str:
    """Returns a sentence for each task on how it was trained."""
    said = []
    for name, found in tasks.items():
        settings, scored = found["settings"], found["examples"]["test"]
        said.append(
            f"{name}: from step {found['step']:,}, {found['examples']['train']:,} examples, "
            f"{found['updates']:,} updates of "
            f"{settings['batch_size']} at {settings['learning_rate']:g}, {settings['length']} "
            f"positions; {' and '.join(f'{n:,} ({each})' for each, n in scored.items())} scored."
        )
    if not transfer_results.are_tasks_alike(tasks):
        said.append("There is no mean of tasks that were learnt in different ways.")
    return " ".join(said)


def _render_accuracy_cells(row: Mapping[str, Any]) -> list[str]:
    three = lambda x: f"{x:.3f}"

    def span(ends: Sequence[float] | None) -> str:
        return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else markup.ABSENT

    accuracy, majority = (
        markup.render_number(markup.parse_number(row[name]), three)
        for name in ("accuracy", "majority")
    )
    spans = (span(row[name]) for name in ("interval", "over_seeds", "over_examples"))
    return [accuracy, *spans, majority]


def _plot_task_accuracies(
    name: str, description: str, every: Mapping[str, Mapping[str, Any]], tags: Sequence[str]
) -> str:
    """Draws a column for each task, with a marker for each language beside each other."""
    figure = figures.make_figure(figures.WIDE, 300)
    shown = [tag for tag in tags if any(tag in languages for languages in every.values())]
    right = 40 + 7.5 * max(map(len, shown))
    axes = figures.add_bare_axes(figure, (54, right, 30, 36), "accuracy")
    step = 0.6 / max(1, len(shown))
    for place, languages in enumerate(every.values()):
        for index, tag in enumerate(shown):
            if tag not in languages:
                continue
            row, x = languages[tag], place + (index - (len(shown) - 1) / 2) * step
            colour = COLOURS[figures.get_language_colour(tags.index(tag))]
            axes.vlines(x, *row["interval"], color=colour, linewidth=1.2)
            marker = figures.MARKERS[tags.index(tag) % len(figures.MARKERS)]
            axes.plot([x], [row["accuracy"]], marker, color=colour, markersize=6, mew=0)
            bar = (x - step / 3, x + step / 3)
            axes.hlines(row["majority"], *bar, color=COLOURS["muted"], linewidth=1.4)
    axes.set_xlim(-0.6, len(every) - 0.4)
    axes.set_xticks(range(len(every)), list(every))
    for index, tag in enumerate(shown):
        y = 1 - 0.08 - 0.09 * index
        colour = COLOURS[figures.get_language_colour(tags.index(tag))]
        marker = figures.MARKERS[tags.index(tag) % len(figures.MARKERS)]
        look: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        axes.plot([1.01], [y], marker, color=colour, markersize=6, mew=0, **look)
        text: dict[str, Any] = {"va": "center", "fontsize": 12, "color": COLOURS["ink"]}
        axes.text(1.025, y, tag, transform=axes.transAxes, parse_math=False, **text)
    return figures.render_svg(figure, name, description)


def render_forgetting_section(run: RunContents) -> str:
    """Returns the section on gain and forgetting, or nothing for a run from random weights."""
    found = find_first_last_losses(run) if run.config.init_from else {}
    if not found:
        return ""
    trained = run.fractions()
    rows = [
        [
            markup.render_swatch(run.config.tags, tag),
            markup.format_percent(trained.get(tag, 0.0)),
            *(markup.render_number(value, lambda x: f"{x:.3f}") for value in (before, after)),
            markup.render_number(after - before, lambda x: f"{x:+.3f}".replace("-", "−")),
        ]
        for tag, (before, after) in found.items()
    ]
    header = ["language", "part of the sequences", "before", "after", "difference"]
    note = markup.render_note(
        f"The run began with the weights of {run.config.init_from}. A loss that falls in a "
        "language that was not trained on was gained from the others; one that rises was "
        "forgotten."
    )
    caption = f"Loss on the validation split, nats per token, before and after {run.step:,} steps."
    table = markup.render_table(header, rows, caption)
    return markup.render_section("What was gained and forgotten", note, table)


def find_first_last_losses(run: RunContents) -> dict[str, tuple[float, float]]:
    """Returns the validation loss of each language at step 0 and at the end.

    Of languages that were evaluated at both.
    """
    found = {}
    for tag, curve in run.curves("eval/loss").items():
        if len(curve.steps) > 1 and curve.steps[0] == 0 and math.isfinite(curve.last):
            found[tag] = (curve.values[0], curve.last)
    return found
