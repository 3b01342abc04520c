"""The page of one run: a self-contained report.html made from its run directory alone.

`write_run_page` reads the directory once, functions here and in the modules of single sections
turn what it holds into plain values, and run.html.j2 lays them out. Any file but config.json may be
missing, because the run has just started or failed early: its section then says so.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.drawing import pages
from imbalance_jax.drawing.draw import NARROW, WIDE, draw_panels
from imbalance_jax.drawing.numbers import (
    ABSENT,
    format_compact,
    format_number,
    format_percent,
    format_significant,
    parse_number,
)
from imbalance_jax.drawing.pages import Figure, render_number, render_swatch
from imbalance_jax.drawing.panel import Line, Panel, make_points
from imbalance_jax.drawing.svg import render_svg
from imbalance_jax.report import (
    minimal_pairs_section,
    mixture_section,
    sources_section,
    transfer_section,
    word2vec_section,
)
from imbalance_jax.report.alignment.section import render_alignment_section
from imbalance_jax.report.line_figures import draw_curve_figure
from imbalance_jax.report.record import RESULT_COLUMNS, Curve, RunContents, read_run_contents
from imbalance_jax.runs import progress
from imbalance_jax.runs.json_text import format_json
from imbalance_jax.runs.run_directory import RunDirectory

# The parts of a run's time, in the order of the bar: name in metrics.jsonl, name on the page.
_TIMES = {
    "train": "training steps",
    "data": "waiting for data",
    "evaluate": "evaluation",
    "align": "alignment",
    "checkpoint": "checkpoints",
    "compile": "compilation",
    "setup": "setup",
}
# Small figures of what the model learns: metric, title, reading, style.
_LEARNING_FIGURES: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
    (
        "loss_own",
        "Own loss.",
        "How well a language is modelled, once only its own ids compete.",
        {"y_label": "nats per token"},
    ),
    (
        "language_nats",
        "Language nats.",
        "The rest of the loss, which nears zero once the model can tell which language it reads.",
        {"y_label": "nats per token, log scale", "y_scale": "log"},
    ),
    (
        "leak",
        "Leak.",
        "The mean probability that goes to ids of other languages; lower is better.",
        {"y_label": "% of the probability, log scale", "y_scale": "log", "percent": True},
    ),
    (
        "top1",
        "Top-1 accuracy.",
        "How often the likeliest id is the right one; higher is better.",
        {"y_label": "% of the tokens", "percent": True},
    ),
)


def write_run_page(run: RunDirectory) -> epath.Path:
    """Writes report.html into a run directory and returns where it lies.

    Raises:
      FileNotFoundError: this is not a run directory.
    """
    run.write_text("report.html", _render_run_page(read_run_contents(run)))
    return run.path / "report.html"


def _render_run_page(run: RunContents) -> str:
    split, step, results = run.results()
    fractions = run.fractions()
    # Of several texts not even bits per byte compare, but a language does with itself elsewhere.
    measure = "bits_per_byte" if len({run.source(tag) for tag in results}) > 1 else "ppl"
    languages: list[dict[str, Any]] = [
        {
            "tag": tag,
            "score": result[measure],
            "part": format_percent(fractions.get(tag, 0.0)),
        }
        for tag, result in results.items()
        if measure in result
    ]
    languages.sort(key=lambda language: fractions.get(language["tag"], 0.0))
    mixture = run.config.mixture
    ratio = mixture.stages[0][1] if mixture.stages else mixture.ratio
    return pages.render_template(
        "run",
        title=run.name,
        run=run,
        tags=run.config.tags,
        split=split,
        step=step,
        languages=languages,
        measure=measure,
        gap=_split_loss_gap(run, results, languages[0]["tag"], languages[-1]["tag"])
        if len(languages) > 1
        else None,
        nonfinite=_list_nonfinite_metrics(run),
        ratio=config_lib.reduce_ratio({tag: ratio[tag] for tag in run.config.tags}).values(),
        device=_describe_device(run.provenance),
        results=_tabulate_results(run),
        learning=_draw_learning(run),
        alignment=render_alignment_section(run),
        minimal_pairs=minimal_pairs_section.tabulate_minimal_pairs(run),
        word2vec=word2vec_section.describe_word2vec(run),
        transfer=transfer_section.describe_transfer(run),
        forgetting=transfer_section.tabulate_forgetting(run),
        optimizer=_draw_optimizer(run),
        mixture=mixture_section.describe_mixture(run),
        times=_describe_times(run),
        sources=sources_section.describe_sources(run),
        provenance=sources_section.list_provenance(run),
        config=format_json(config_lib.to_dict(run.config), indent=2, ensure_ascii=False),
    )


def _split_loss_gap(
    run: RunContents, results: Mapping[str, Mapping[str, float]], rare: str, common: str
) -> dict[str, str] | None:
    """Returns where the difference of two languages lies, if that can be said."""
    gaps = {
        name: results[rare].get(name, math.nan) - results[common].get(name, math.nan)
        for name in ("loss", "language_nats", "loss_own")
    }
    # Losses of different text, or of ids of another tokenizer, differ for other reasons.
    words = {run.config.languages[tag].words for tag in (rare, common)}
    same_text = run.source(rare) == run.source(common) and len(words) == 1
    if not same_text or not all(map(math.isfinite, gaps.values())):
        return None
    sign, word = (1, "more") if gaps["loss"] >= 0 else (-1, "less")
    written = {name: format_number(sign * gap, ".3f") for name, gap in gaps.items()}
    return {**written, "word": word}


def _list_nonfinite_metrics(run: RunContents) -> list[tuple[str, list[int]]]:
    """Returns the metrics that have values that are not finite, with the steps of these."""
    steps: dict[str, list[int]] = {}
    for record in run.records:
        for name, value in record.items():
            # A hash is no number, and none that is missing.
            if not isinstance(value, str) and not math.isfinite(parse_number(value)):
                steps.setdefault(name, []).append(record["step"])
    return list(steps.items())


def _describe_device(provenance: Mapping[str, Any]) -> dict[str, str]:
    device = provenance.get("device") or {}
    if not device:
        return {"label": "device", "value": ABSENT, "detail": ""}
    count, processes = device.get("count", 1), device.get("processes", 1)
    kind, platform = str(device.get("kind")), str(device.get("platform"))
    mesh = provenance.get("mesh") or {}
    details = [f"{axis}={size}" for axis, size in mesh.items() if size != 1]
    details += [platform] * (platform != kind) + [f"{processes} hosts"] * (processes != 1)
    return {
        "label": "devices" if count != 1 else "device",
        "value": f"{count} × {kind}",
        "detail": ", ".join(details),
    }


# Results and what was logged.


def _tabulate_results(run: RunContents) -> dict[str, Any] | None:
    """Returns the newest results of every language; None where there are none."""
    _, _, results = run.results()
    if not results:
        return None
    columns = {**RESULT_COLUMNS, "tokens": ("tokens scored", ",.0f")}
    for name, scores in run.evaluation.get("parallel", {}).items():
        columns[f"parallel/{name}"] = (f"nats a pair, {name}", ",.1f")
        for tag, score in scores["languages"].items():
            results[tag][f"parallel/{name}"] = score["nats_per_pair"]
    for tag, entropy in run.evaluation.get("entropy", {}).items():
        columns["entropy"] = ("least loss there is", ".3f")
        results[tag]["entropy"] = entropy["least_loss"][0]
    shown = [name for name in columns if any(name in result for result in results.values())]
    fractions, tokens = run.fractions(), run.tokens()
    rows = [
        [
            render_swatch(run.config.tags, tag),
            format_percent(fractions.get(tag, 0.0)),
            render_number(tokens.get(tag), format_compact),
            *(render_number(result.get(name), columns[name][1]) for name in shown),
        ]
        for tag, result in results.items()
    ]
    return {
        "measures": [columns[name][0] for name in shown],
        "rows": rows,
        "several_texts": len({run.source(tag) for tag in results}) > 1,
    }


def _draw_learning(run: RunContents) -> dict[str, Any] | None:
    """Returns the figures of the losses and of the other metrics; None before the first loss."""
    loss, tags = run.curves("eval/loss"), run.config.tags
    stages = tuple(first for first, _ in config_lib.list_stages(run.config)[1:])
    title = "Validation loss of each language." if loss else "Training loss of each language."
    if len({run.source(tag) for tag in tags}) < len(tags):
        reading = (
            "Where languages share a text, the gap between their lines is the effect of their ratio"
        )
    else:
        reading = "Each language has a text of its own, so read slopes rather than levels"
    reading += (
        ", and the thin lines behind are the training loss."
        if loss
        else "; there is no evaluation yet."
    )
    if stages:
        reading += " Dotted verticals are changes of the mixture."
    wide, narrow = (
        draw_curve_figure(
            f"loss-{name}",
            title,
            reading,
            loss,
            tags,
            behind=run.curves("train/loss"),
            y_label="loss, nats per token",
            tokens_per_step=run.tokens_per_step(),
            verticals=stages,
            width=width,
            height=height,
        )
        for name, width, height in (("wide", WIDE, 400), ("narrow", NARROW, 330))
    )
    if wide is None:
        return None
    metrics = [
        draw_curve_figure(
            metric.replace("_", "-"), title, reading, run.curves(f"eval/{metric}"), tags, **style
        )
        for metric, title, reading, style in _LEARNING_FIGURES
    ]
    return {"wide": wide, "narrow": narrow, "metrics": metrics}


def _draw_optimizer(run: RunContents) -> list[Figure]:
    """Returns the figures of the optimizer and of the speed, of what was logged."""
    learning_rate, grad_norm = run.curve("train/learning_rate"), run.curve("train/grad_norm")
    figures = []
    if learning_rate or grad_norm:
        norm = run.typical("train/grad_norm")
        median = "" if norm is None else f" The median norm is {format_significant(norm)}."
        panels = [
            _make_curve_panel("learning rate", learning_rate, 1.1),
            _make_curve_panel("gradient norm (log scale)", grad_norm, y_scale="log"),
        ]
        description = f"Learning rate and gradient norm over steps.{median}"
        figures.append(
            Figure(
                render_svg(draw_panels(panels, height=165), "optimizer", description),
                "Learning rate and gradient norm.",
                f"A norm that jumps is a step to look at.{median}",
            )
        )
    rate, mfu = run.curve("perf/tokens_per_second"), run.curve("perf/mfu")
    median_rate = run.typical("perf/tokens_per_second")
    if median_rate is not None:
        speeds = dict(zip(rate.steps, rate.values, strict=True))
        mfu_per_token = [
            value / speeds[step]
            for step, value in zip(mfu.steps, mfu.values, strict=True)
            if math.isfinite(value) and speeds.get(step, 0.0) > 0
        ]
        right_axis = ("MFU", 100 * statistics.median(mfu_per_token)) if mfu_per_token else None
        panel = _make_curve_panel("tokens per second", rate, 1.12, right_axis=right_axis)
        description = f"Tokens per second over steps, median {format_compact(median_rate)}."
        waiting = run.typical("perf/data_wait_fraction")
        reading = "A flat line is a run that is never held up."
        if waiting is not None:
            reading += (
                f" Waiting for data took {format_percent(waiting)} of the time, in the median."
            )
        figures.append(
            Figure(
                render_svg(draw_panels([panel]), "speed", description),
                "Speed, and MFU on the right axis." if right_axis else "Speed.",
                reading,
            )
        )
    return figures


def _make_curve_panel(title: str, curve: Curve, room: float = 0.0, **axes: Any) -> Panel:
    """Returns a panel of one curve; with room for so many times its highest value, from 0."""
    line = Line("", make_points(curve.steps, curve.values), kind="curve")
    top = room * max((value for value in curve.values if math.isfinite(value)), default=1.0)
    y_range = (0.0, top or 1.0) if room else None
    return Panel(title, "", (line,), x_scale="steps", y_range=y_range, **axes)


def _describe_times(run: RunContents) -> dict[str, Any] | None:
    """Returns the parts of the wall time as a bar and a table; None before any was logged."""
    curves = {name: run.curve(f"time/{name}") for name in (*_TIMES, "total")}
    seconds = {name: curve.last for name, curve in curves.items() if curve}
    total = seconds.pop("total", 0.0)
    if not seconds:
        return None
    parts = {_TIMES[name]: value for name, value in seconds.items()}
    rest = total - math.fsum(seconds.values())
    if rest > 0.005 * total:
        parts["everything else"] = rest
    whole = math.fsum(parts.values()) or 1.0
    bar: list[dict[str, Any]] = []
    rows = []
    for index, (name, value) in enumerate(parts.items()):
        # The first part is the darkest, the last the lightest.
        opacity = round(0.9 - 0.72 * index / max(1, len(parts) - 1), 3)
        start = bar[-1]["start"] + bar[-1]["percent"] if bar else 0.0
        percent = round(100 * value / whole, 3)
        bar.append({"name": name, "start": start, "percent": percent, "opacity": opacity})
        swatch = pages.get_pieces().swatch("ink", name, opacity)
        rows.append([swatch, render_number(value, ",.1f"), format_number(value / whole, ".1%")])
    listed = ", ".join(f"{name} {format_percent(value / whole)}" for name, value in parts.items())
    longest = max(parts, key=parts.__getitem__)
    return {
        "description": f"Time by part: {listed}.",
        "parts": bar,
        "title": "Wall time by part.",
        "reading": (
            f"The run took {progress.format_duration(whole)}, most of it {longest} "
            f"({format_percent(parts[longest] / whole)})."
        ),
        "rows": rows,
    }
