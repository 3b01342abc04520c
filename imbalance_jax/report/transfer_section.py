"""The parts of a run's page on transfer: tasks learnt in one language and asked in others, and
what a run that began with another one's weights gained and forgot."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imbalance_jax.analysis import transfer_results
from imbalance_jax.drawing.draw import WIDE, draw_panels
from imbalance_jax.drawing.numbers import ABSENT, format_percent, parse_number
from imbalance_jax.drawing.pages import Figure, render_number, render_swatch
from imbalance_jax.drawing.panel import Line, Panel, Point, dodge_lines
from imbalance_jax.drawing.svg import render_svg
from imbalance_jax.report.record import RunContents

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def describe_transfer(run: RunContents) -> list[dict[str, Any]]:
    """Returns figure, rows and note of each protocol and language that was trained in."""
    trainings = [
        (protocol, trained, tasks)
        for protocol, by_language in run.transfer.items()
        for trained, tasks in by_language.items()
    ]
    return [_describe_training(run, index, *training) for index, training in enumerate(trainings)]


def _describe_training(
    run: RunContents, index: int, protocol: str, trained: str, tasks: Mapping[str, Any]
) -> dict[str, Any]:
    results: dict[str, Mapping[str, Any]] = {
        task: result["languages"] for task, result in tasks.items()
    }
    if len(tasks) > 1 and transfer_results.are_tasks_alike(tasks):
        results["mean"] = transfer_results.average_over_tasks(tasks)
    rows = [
        [task, render_swatch(run.config.tags, tag), *_render_accuracy_cells(result)]
        for task, languages in results.items()
        for tag, result in languages.items()
        if tag in run.config.tags
    ]
    title = f"Accuracy after fine-tuning in {trained} ({protocol})."
    drawing = _draw_accuracies(results, run.config.tags)
    return {
        "figure": Figure(
            render_svg(drawing, f"transfer-{index}", title),
            title,
            "Short bars: always the most frequent label. Lines: 95 % over seeds and examples.",
        ),
        "note": _describe_fine_tuning(tasks),
        "name": protocol,
        "trained": trained,
        "rows": rows,
    }


def _describe_fine_tuning(tasks: Mapping[str, Any]) -> str:
    """Returns a sentence for each task on how it was trained."""
    sentences = []
    for task, result in tasks.items():
        settings, examples = result["settings"], result["examples"]
        scored = " and ".join(f"{count:,} ({tag})" for tag, count in examples["test"].items())
        sentences.append(
            f"{task}: from step {result['step']:,}, {examples['train']:,} examples, "
            f"{result['updates']:,} updates of {settings['batch_size']} at "
            f"{settings['learning_rate']:g}, {settings['length']} positions; {scored} scored."
        )
    if not transfer_results.are_tasks_alike(tasks):
        sentences.append("There is no mean of tasks that were learnt in different ways.")
    return " ".join(sentences)


def _render_accuracy_cells(result: Mapping[str, Any]) -> list[Any]:
    accuracy, majority = (
        render_number(parse_number(result[name]), ".3f") for name in ("accuracy", "majority")
    )
    intervals = [result[name] for name in ("interval", "over_seeds", "over_examples")]
    spans = (f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ABSENT for ends in intervals)
    return [accuracy, *spans, majority]


def _draw_accuracies(results: Mapping[str, Mapping[str, Any]], tags: Sequence[str]) -> "Drawing":
    """Draws the accuracy in each task, with a marker for each language beside each other."""
    shown = [tag for tag in tags if any(tag in by_tag for by_tag in results.values())]
    # Languages beside each other take six tenths of a task's place, and bars two thirds of theirs.
    apart = min(60, round(0.6 * (WIDE - 120) / (len(results) * len(shown))))
    means, majorities = [], []
    for tag in shown:
        measured = [(x, by_tag[tag]) for x, by_tag in enumerate(results.values()) if tag in by_tag]
        points = tuple(Point(x, row["accuracy"], *row["interval"]) for x, row in measured)
        means.append(Line(tag, points, "points", style=tags.index(tag)))
        points = tuple(Point(x, row["majority"]) for x, row in measured)
        look: dict[str, Any] = {"colour": "muted", "marker": "_", "size": apart * 2 / 3}
        majorities.append(Line(tag, points, "points", labelled=False, **look))
    lines = dodge_lines(majorities, apart) + dodge_lines(means, apart)
    panel = Panel("accuracy", "", lines, names=tuple(results))
    return draw_panels([panel], width=WIDE, height=300)


def tabulate_forgetting(run: RunContents) -> list[list[Any]]:
    """Returns gain and forgetting of each language; nothing for a run from random weights."""
    losses = find_first_last_losses(run) if run.config.init_from else {}
    fractions = run.fractions()
    return [
        [
            render_swatch(run.config.tags, tag),
            format_percent(fractions.get(tag, 0.0)),
            render_number(before, ".3f"),
            render_number(after, ".3f"),
            render_number(after - before, "+.3f"),
        ]
        for tag, (before, after) in losses.items()
    ]


def find_first_last_losses(run: RunContents) -> dict[str, tuple[float, float]]:
    """Returns the validation loss at step 0 and at the end of each language that has both."""
    return {
        tag: (curve.values[0], curve.last)
        for tag, curve in run.curves("eval/loss").items()
        if len(curve.steps) > 1 and curve.steps[0] == 0 and math.isfinite(curve.last)
    }
