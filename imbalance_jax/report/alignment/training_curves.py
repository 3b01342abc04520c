"""Alignment as it was logged while a run trained."""

import dataclasses
import math
from collections.abc import Sequence

from imbalance_jax.drawing.numbers import format_percent
from imbalance_jax.drawing.pages import Figure
from imbalance_jax.report.alignment.results import compute_mean, get_number
from imbalance_jax.report.line_figures import draw_curve_figure
from imbalance_jax.report.record import Curve, RunContents


@dataclasses.dataclass(frozen=True)
class _PairFigure:
    """A figure of one metric of every pair of languages."""

    metric: str
    title: str
    reading: str  # {chance} stands for what retrieval would be by chance
    y_label: str = "cosine"
    layers: bool = False  # logged of each layer, and drawn as the mean over the blocks
    less: str = ""  # metric of each layer that is taken away from it
    behind: str = ""  # metric of each pair that is drawn thin behind
    percent: bool = False


_SAME_MEANING = (
    "Pieces that mean the same; thin lines are any two pieces of the two languages, and only the "
    "distance between the two lines counts."
)
_FIGURES = {
    "align-embed-in": _PairFigure(
        "embed_in", "Cosine in the input embedding.", _SAME_MEANING, behind="embed_in_between"
    ),
    "align-embed-out": _PairFigure(
        "embed_out", "Cosine in the output head.", _SAME_MEANING, behind="embed_out_between"
    ),
    "align-hidden": _PairFigure(
        "hidden",
        "Hidden states, excess.",
        "The cosine of states that say the same less that of shuffled pairs, mean over the "
        "blocks; 0 is nothing in common.",
        y_label="cosine less shuffled",
        layers=True,
        less="hidden_shuffled",
    ),
    "align-centred": _PairFigure(
        "hidden_centred",
        "Hidden states, centred excess.",
        "The same after each language's mean state is taken away, so that no common direction "
        "can make it high.",
        y_label="centred cosine less shuffled",
        layers=True,
    ),
    "align-retrieval": _PairFigure(
        "retrieval",
        "Retrieval.",
        "How often the nearest sequence of the other language is the right one, mean over the "
        "blocks; {chance}.",
        y_label="% of the sequences",
        layers=True,
        behind="retrieval_chance",
        percent=True,
    ),
    "align-gradient": _PairFigure(
        "gradient",
        "Gradients.",
        "The cosine of both languages' gradients on one sequence, mean over parameters; noise "
        "pulls it to 0, so read its direction and not its level.",
    ),
}


def draw_training_curves(run: RunContents, pairs: Sequence[str]) -> list[Figure]:
    """Returns the figures of what was logged of the pairs and of each language."""

    def read_curves(metric: str) -> dict[str, Curve]:
        return {pair: run.curve(f"align/{metric}/{pair}") for pair in pairs} if metric else {}

    figures = []
    for name, figure in _FIGURES.items():
        curves = (
            {pair: average_logged_blocks(run, pair, figure.metric, figure.less) for pair in pairs}
            if figure.layers
            else read_curves(figure.metric)
        )
        if any(curves.values()):
            drawn = draw_curve_figure(
                name,
                figure.title,
                figure.reading.format(chance=_describe_retrieval_chance(run, pairs)),
                curves,
                pairs,
                behind=read_curves(figure.behind),
                y_label=figure.y_label,
                percent=figure.percent,
                height=270,
            )
            figures.append(drawn)
    figures.append(
        draw_curve_figure(
            "align-share",
            "Each language's part in a step.",
            "How much of the batch's gradient comes from a language; the parts add up to 100 %, "
            "and one below 0 pulls the other way.",
            run.curves("align/gradient_share"),
            run.config.tags,
            y_label="% of the gradient of a batch",
            percent=True,
            height=270,
        )
    )
    return [figure for figure in figures if figure]


def describe_cadence(run: RunContents) -> str:
    """Returns a sentence on how often alignment was measured; empty where that is not known."""
    every, share = run.curve("align/every"), run.curve("align/share").last
    if not math.isfinite(every.last):
        return ""
    if every.last:
        sentence = f"Measured every {every.last:,.0f} steps in the end"
    else:
        times = len(every.steps)
        sentence = (
            f"Measured {times} time{'s' * (times > 1)}, the last at step {every.steps[-1]:,}: the "
            "budget allowed no more"
        )
    if math.isfinite(share):
        sentence += f", for {format_percent(share)} of the run's time"
    return f"{sentence}."


def _describe_retrieval_chance(run: RunContents, pairs: Sequence[str]) -> str:
    """Returns what retrieval would be by chance while training, in words."""
    chances = [run.curve(f"align/retrieval_chance/{pair}").last for pair in pairs]
    finite = [chance for chance in chances if math.isfinite(chance)]
    if not finite:  # earlier runs have not written it
        count = run.config.evaluation.alignment.pairs
        return (
            f"by chance it is one in {count:,}, the number of sequences, unless the text has fewer"
        )
    return f"thin lines are chance, {format_range(finite)}"


def format_range(fractions: Sequence[float]) -> str:
    """Returns the smallest to the largest fraction in percent, or the one that all are."""
    return " to ".join(
        format_percent(end) for end in dict.fromkeys((min(fractions), max(fractions)))
    )


def average_logged_blocks(run: RunContents, pair: str, metric: str, less: str = "") -> Curve:
    """Returns the mean over the blocks of a metric that was logged of each layer.

    Args:
      less: a metric that is subtracted from it in each layer, if any.
    """
    layers = range(1, run.config.model.N + 1)
    steps, values = [], []
    for record in run.records:
        if f"align/{metric}/{pair}/1" not in record:
            continue
        of_layers = [get_number(record, f"align/{metric}/{pair}/{n}") for n in layers]
        if less:
            of_layers = [
                value - get_number(record, f"align/{less}/{pair}/{n}")
                for value, n in zip(of_layers, layers, strict=True)
            ]
        steps.append(record["step"])
        values.append(compute_mean(of_layers))
    return Curve(steps, values)
