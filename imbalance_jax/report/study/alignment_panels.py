"""Panels of alignment and of tasks, over the part that one language has of the tokens."""

import json
from collections.abc import Sequence

from imbalance_jax.analysis import transfer_results
from imbalance_jax.analysis.effects import CellAlignment, Effects
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.drawing.panel import Line, Panel, Point
from imbalance_jax.report.study.series import (
    OTHER,
    UNKNOWN,
    get_series_name,
    get_sized_series_name,
    make_level,
    make_series,
)
from imbalance_jax.runs.json_text import format_json
from imbalance_jax.study import grid

SHUFFLED = "nothing shared"
MEASURE_NAMES = {
    "hidden": "cosine of hidden states, mean over the blocks",
    "retrieval": "retrieval of sequences, mean over the blocks",
    "embed_in": "cosine of input embeddings",
    "embed_out": "cosine of output embeddings",
    "gradient": "cosine of gradients",
}


def make_alignment_panels(table: StudyTable, effects: Effects) -> list[Panel]:
    """A panel for each measure, with what it is where nothing is shared."""
    panels = []
    for measure, title in MEASURE_NAMES.items():
        series: dict[str, list[Point]] = {}
        shuffled: list[Point] = []
        for aligned in effects.alignments:
            if aligned.measure != measure or aligned.kind == "sweep":
                continue
            x = 100 * find_smaller_share(effects, aligned)
            mean = sum(aligned.baselines.values()) / max(1, len(aligned.baselines))
            low, high = aligned.excess.interval()
            name = f"{aligned.cell} {aligned.pair}"
            point = Point(
                x,
                aligned.excess.value + mean,
                low + mean,
                high + mean,
                runs=tuple(aligned.values.values()),
                name=name,
            )
            kind = get_sized_series_name(table, aligned.kind, aligned.config)
            series.setdefault(kind, []).append(point)
            if aligned.baselines:
                shuffled.append(Point(x, mean, name=name))
        lines = [Line(kind, tuple(points), "points") for kind, points in series.items()]
        if shuffled:
            lines.append(Line(SHUFFLED, tuple(shuffled), "points", marker="_", size=14))
        if lines:
            label = "smaller language’s part of the tokens, %"
            panels.append(Panel(title, label, (*lines, make_level(0.0))))
    return panels


def find_smaller_share(effects: Effects, aligned: CellAlignment) -> float:
    """Returns the smaller part of the tokens that one of a pair of languages has."""
    conditions = [effects.condition(aligned.cell, tag) for tag in aligned.pair.split("-")]
    # A baseline with the mixture's vocabulary has a language that it never saw.
    return min(0.0 if each is None else each.first.share for each in conditions)


def make_transfer_panels(table: StudyTable) -> list[Panel]:
    """A panel for each protocol, language that was trained in, set of tasks, and settings."""
    share = {(seen.run, seen.language): seen.share for seen in table.observations}
    # (title and settings, series, cell) -> the place and the mean accuracy of each run
    places: dict[tuple[tuple[str, str], str, str], list[tuple[float, float]]] = {}
    levels: dict[tuple[str, str], float] = {}
    for name, run in table.runs.items():
        kind = get_series_name(table, run.spec.kind, run.config)
        if run.state.state != "done" or kind in ("sweep", OTHER, *grid.BASELINES):
            continue
        results = transfer_results.read_transfer_results(run.directory)
        for protocol, by_language in results.items():
            for trained, tasks in by_language.items():
                if (name, trained) not in share:
                    continue
                title = (
                    f"{transfer_results.name_tasks(tasks)}, fine-tuned in {trained} ({protocol})"
                )
                way = (title, format_json(transfer_results.get_task_settings(tasks)))
                x = 100 * (1 - share[name, trained])
                for tag, mean in transfer_results.average_over_tasks(tasks).items():
                    series = tag if kind == "mixture" else f"{tag}, {kind}"
                    place = (x, mean["accuracy"])
                    places.setdefault((way, series, run.spec.cell), []).append(place)
                    levels[way] = mean["majority"]
    points: dict[tuple[str, str], dict[str, list[Point]]] = {}
    for (way, series, cell), pairs in places.items():
        values = tuple(value for _, value in pairs)
        low, high = transfer_results.estimate_t_interval(values) or UNKNOWN
        mean_accuracy = sum(values) / len(values)
        point = Point(pairs[0][0], mean_accuracy, low, high, runs=values, name=cell)
        points.setdefault(way, {}).setdefault(series, []).append(point)
    label = "part of the other languages in the tokens, %"
    return [
        Panel(
            f"{way[0]}: accuracy{_format_differing_settings(way, list(points))}",
            label,
            (*(make_series(*each) for each in by_series.items()), make_level(levels[way])),
        )
        for way, by_series in points.items()
    ]


def _format_differing_settings(way: tuple[str, str], ways: Sequence[tuple[str, str]]) -> str:
    """Returns the settings by which one of several with the same title differs from others."""
    own = json.loads(way[1])
    others = [json.loads(settings) for title, settings in ways if title == way[0]]
    differ = [name for name in own if any(other.get(name) != own[name] for other in others)]
    return "".join(f", {name}={own[name]}" for name in differ)
