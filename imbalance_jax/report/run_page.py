"""The page of one run: a self-contained report.html made from its run directory alone.

`write_run_page` reads the directory once into a `Run`, and each function below turns it into
one section. Any file but config.json may be missing, because the run has just started or
failed early; the section then says what is not there yet. All that comes from a file
passes through `_text` on its way into the page.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.drawing import markup
from imbalance_jax.drawing import plots as figures
from imbalance_jax.drawing.plots import Curve
from imbalance_jax.report import alignment_page, transfer_page, word2vec_page
from imbalance_jax.report.record import RunContents, read_run_contents
from imbalance_jax.runs import progress
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


def write_run_page(run: RunDirectory) -> epath.Path:
    """Writes report.html into a run directory and returns where it lies.

    Raises:
      FileNotFoundError: this is not a run directory.
    """
    run.write_text("report.html", _render_run_page(read_run_contents(run)))
    return run.path / "report.html"


def _render_run_page(run: RunContents) -> str:
    sections = [
        _render_run_header(run),
        _render_key_facts(run),
        _render_results_section(run),
        _render_learning_section(run),
        alignment_page.render_alignment_section(run),
        word2vec_page.render_word2vec_section(run),
        transfer_page.render_transfer_section(run),
        transfer_page.render_forgetting_section(run),
        _render_optimizer_section(run),
        _render_ratio_section(run),
        _render_time_section(run),
        _render_sources_section(run),
        _render_provenance_section(run),
        _render_config_section(run),
    ]
    return markup.render_page(run.name, sections)


# Sections, from top to bottom.


def _render_run_header(run: RunContents) -> str:
    steps = f"{run.config.steps:,}"
    if run.failed:
        kind = markup.escape_text(run.failed.get("error", "error"))
        mark, name = "failed", "Failed"
        state = f"at step {run.step:,} of {steps} with {kind}: "
        state += f'<span class="message">{markup.escape_text(run.failed.get("message", ""))}</span>'
    elif run.done:
        mark, name = "done", "Done"
        # A run may also end because its text does, and one with no metrics ended somewhere.
        state = f"at step {run.step:,} of {steps}" if run.records else f"{steps} steps"
    else:
        mark, name = "unfinished", "Unfinished"
        state = f"at step {run.step:,} of {steps}" if run.step else f"before step 1 of {steps}"
    return (
        f"<header>\n<h1>{markup.escape_text(run.name)}</h1>\n"
        f'<p class="state"><strong class="{mark}">{name}</strong> {state}</p>\n'
        f'<p class="headline">{_render_run_headline(run)}</p>\n'
        f"{_render_nonfinite_warning(run)}</header>"
    )


def _render_run_headline(run: RunContents) -> str:
    split, step, results = run.results()
    perplexity = {tag: result["ppl"] for tag, result in results.items() if "ppl" in result}
    if not perplexity:
        return "No language has been evaluated yet."
    fractions = run.fractions()
    order = sorted(perplexity, key=lambda tag: fractions.get(tag, 0.0))
    ppl = {
        tag: markup.escape_text(figures.format_significant(value))
        for tag, value in perplexity.items()
    }
    part = {tag: markup.format_percent(fractions.get(tag, 0.0)) for tag in order}
    verb = "ends at" if run.evaluation else "is at"
    where = "" if run.evaluation else f" on the {markup.escape_text(split)} split at step {step:,}"
    if len(order) == 1:
        return f"{markup.escape_text(order[0])} {verb} perplexity {ppl[order[0]]}{where}."
    first, last = order[0], order[-1]
    if len(order) <= 3:
        rest = [f"{markup.escape_text(tag)}, {part[tag]}, at {ppl[tag]}" for tag in order[1:]]
        sentence = (
            f"{markup.escape_text(first)}, {part[first]} of the sequences, {verb} perplexity "
            f"{ppl[first]}; {'; '.join(rest)}{where}."
        )
    elif part[first] == part[last]:
        best, worst = min(order, key=perplexity.__getitem__), max(order, key=perplexity.__getitem__)
        sentence = (
            f"{len(order)} languages of {part[first]} of the sequences each: "
            f"{markup.escape_text(best)} "
            f"{verb} the lowest perplexity, {ppl[best]}, and {markup.escape_text(worst)} at the "
            "highest, "
            f"{ppl[worst]}{where}."
        )
    else:
        sentence = (
            f"Of {len(order)} languages, {markup.escape_text(first)}, the rarest with "
            f"{part[first]} of "
            f"the sequences, {verb} perplexity {ppl[first]}; {markup.escape_text(last)}, the most "
            f"frequent with {part[last]}, at {ppl[last]}{where}."
        )
    return sentence + _describe_loss_gap(run, first, last, results)


def _describe_loss_gap(
    run: RunContents, rare: str, common: str, results: Mapping[str, Mapping[str, float]]
) -> str:
    """Returns a sentence on where the difference of two languages lies, if one can be said."""
    gaps = [
        results[rare].get(name, math.nan) - results[common].get(name, math.nan)
        for name in ("loss", "language_nats", "loss_own")
    ]
    # Losses of different text, or of ids of another tokenizer, differ for other reasons.
    words = {run.config.languages[tag].words for tag in (rare, common)}
    same = run.source(rare) == run.source(common) and len(words) == 1
    if not same or not all(map(math.isfinite, gaps)):
        return ""
    sign, word = (1, "more") if gaps[0] >= 0 else (-1, "less")
    whole, telling, within = (f"{sign * gap:.3f}".replace("-", "−") for gap in gaps)
    return (
        f" The same text costs {whole} nats per token {word} in {markup.escape_text(rare)} than in "
        f"{markup.escape_text(common)}: {telling} for telling the language and {within} for "
        "predicting "
        "within it."
    )


def _render_nonfinite_warning(run: RunContents) -> str:
    """Returns a paragraph that names metrics with values that are not finite, if any."""
    found: dict[str, list[int]] = {}
    for record in run.records:
        for name, value in record.items():
            # A hash is no number, and none that is missing.
            if not isinstance(value, str) and not math.isfinite(markup.parse_number(value)):
                found.setdefault(name, []).append(record["step"])
    if not found:
        return ""
    named = [
        f"<code>{markup.escape_text(name)}</code> in {len(steps):,} "
        f"record{'s' * (len(steps) > 1)}, "
        f"first at step {steps[0]:,}"
        for name, steps in list(found.items())[:3]
    ]
    more = f"; and {len(found) - 3:,} more metrics" if len(found) > 3 else ""
    return (
        f'<p class="warning"><strong>Not finite:</strong> {"; ".join(named)}{more}. '
        "The figures leave these points out.</p>\n"
    )


def _render_key_facts(run: RunContents) -> str:
    config, known = run.config, run.provenance
    facts: list[tuple[str, str, str]] = []  # label, value, detail

    def add(label: str, value: Any, detail: str = "") -> None:
        facts.append((label, markup.ABSENT if value is None else str(value), detail))

    count, vocab_size = known.get("parameters"), known.get("vocab_size")
    model = config.model
    add(
        "parameters",
        count and figures.format_compact(count),
        f"N={model.N} D={model.D} H={model.H}",
    )
    add("vocabulary", vocab_size and f"{vocab_size:,}", f"{config.vocabulary.layout} ids")
    tokens = run.tokens()
    add("tokens trained", figures.format_compact(math.fsum(tokens.values())) if tokens else None)
    add("batch", config.batch_size, f"sequences of {model.L:,} tokens")
    add("steps", f"{run.step:,}", f"of {config.steps:,}")
    ratio = config.mixture.stages[0][1] if config.mixture.stages else config.mixture.ratio
    counts = config_lib.reduce_ratio({tag: ratio[tag] for tag in config.tags})
    written = " : ".join(str(count) for count in counts.values())
    staged = f", first of {len(config.mixture.stages)} stages" if config.mixture.stages else ""
    tags = config.tags
    named = " : ".join(tags) if len(tags) <= 4 else f"{tags[0]} to {tags[-1]}"
    add("ratio", written, named + staged)
    device = known.get("device") or {}
    if device:
        number, processes = device.get("count", 1), device.get("processes", 1)
        kind, platform = str(device.get("kind")), str(device.get("platform"))
        mesh = {axis: size for axis, size in (known.get("mesh") or {}).items() if size != 1}
        detail = [f"{axis}={size}" for axis, size in mesh.items()]
        detail += [platform] * (platform != kind) + [f"{processes} hosts"] * (processes != 1)
        add("devices" if number != 1 else "device", f"{number} × {kind}", ", ".join(detail))
    else:
        add("device", None)
    total = run.curve("time/total")
    add("wall time", progress.format_duration(total.last) if total else None)
    rate = run.typical("perf/tokens_per_second")
    add("tokens per second", rate and figures.format_compact(rate), "median of the log")
    mfu = run.typical("perf/mfu")
    peak = known.get("peak_flops") or {}
    of_peak = f"of {figures.format_compact(peak['value'])}FLOP/s *" if peak.get("value") else ""
    add("MFU", None if mfu is None else markup.format_percent(mfu), of_peak)
    items = "\n".join(
        f"<div><dt>{markup.escape_text(label)}</dt><dd>{markup.escape_text(value)}"
        + (f" <small>{markup.escape_text(detail)}</small>" if detail else "")
        + "</dd></div>"
        for label, value, detail in facts
    )
    notes = []
    if of_peak:
        notes.append(
            f"* Model FLOP utilisation, the median of the log. The peak is "
            f"{peak.get('source', 'of unknown origin')}."
        )
        if known.get("flops_per_token"):
            notes.append(f"A token takes {figures.format_compact(known['flops_per_token'])}FLOP.")
        if known.get("flop_convention"):
            notes.append(str(known["flop_convention"]))
    if not known:
        notes.append(
            "provenance.json is not there yet, so the device and the model's size are not known."
        )
    note = markup.render_note(" ".join(notes)) if notes else ""
    return (
        f'<section aria-label="Key facts">\n<dl class="facts">\n{items}\n</dl>\n{note}\n</section>'
    )


def _render_results_section(run: RunContents) -> str:
    split, step, results = run.results()
    if not results:
        return markup.render_section(
            "Results", markup.render_missing_note("No language has been evaluated yet.")
        )
    fractions, tokens = run.fractions(), run.tokens()
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "loss": ("loss", lambda x: f"{x:.3f}"),
        "ppl": ("perplexity", figures.format_significant),
        "bits_per_byte": ("bits per byte", lambda x: f"{x:.3f}"),
        "language_nats": ("language nats", lambda x: f"{x:.4f}"),
        "loss_own": ("own loss", lambda x: f"{x:.3f}"),
        "leak": ("leak", lambda x: f"{figures.format_significant(100 * x, 2)} %"),
        "top1": ("top-1", lambda x: f"{100 * x:.1f} %"),
        "tokens": ("tokens scored", lambda x: f"{x:,.0f}"),
    }
    for name, scores in run.evaluation.get("parallel", {}).items():
        columns[f"parallel/{name}"] = (f"nats a pair, {name}", lambda x: f"{x:,.1f}")
        for tag, found in scores["languages"].items():
            results[tag][f"parallel/{name}"] = found["nats_per_pair"]
    for tag, entropy in run.evaluation.get("entropy", {}).items():
        columns["entropy"] = ("least loss there is", lambda x: f"{x:.3f}")
        results[tag]["entropy"] = entropy["least_loss"][0]
    shown = [name for name in columns if any(name in result for result in results.values())]
    header = ["language", "of the sequences", "tokens seen"]
    header += [columns[name][0] for name in shown]
    rows = []
    for tag, result in results.items():
        cells = [
            markup.render_swatch(run.config.tags, tag),
            markup.format_percent(fractions.get(tag, 0.0)),
        ]
        cells += [markup.render_number(tokens.get(tag), figures.format_compact)]
        cells += [markup.render_number(result.get(name), columns[name][1]) for name in shown]
        rows.append(cells)
    if run.evaluation:
        stride = run.evaluation.get("stride")
        title = f"Results on the {split} split"
        caption = f"Final evaluation, after step {step:,}"
        caption += f"; {stride:,} positions of each window are scored." if stride else "."
    else:
        title = "Results so far"
        caption = f"The {split} split at step {step:,}. The final test has not been made."
    note = (
        "Losses are in nats per token. Loss is the sum of language nats, −log of the probability "
        "given to all of the language’s own ids together, and own loss, the loss among these ids "
        "alone. Leak is the mean probability given to ids outside the language; top-1 is how "
        "often the likeliest id is the right one."
    )
    if len({run.source(tag) for tag in results}) > 1:
        note += (
            " These languages do not share one text and tokenizer: compare a language with itself "
            "in other runs by bits per byte, not by loss or perplexity"
        )
        parallel = run.evaluation.get("parallel")
        note += ", and languages by the nats of a pair of equal texts." if parallel else "."
    return markup.render_section(
        title, markup.render_table(header, rows, caption), markup.render_note(note)
    )


def _render_learning_section(run: RunContents) -> str:
    loss, train = run.curves("eval/loss"), run.curves("train/loss")
    if not any([*loss.values(), *train.values()]):
        return markup.render_section(
            "Learning", markup.render_missing_note("No loss has been logged yet.")
        )
    tags = run.config.tags
    stages = [first for first, _ in config_lib.list_stages(run.config)[1:]]
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
    common: dict[str, Any] = {
        "tags": tags,
        "behind": train,
        "y_label": "loss, nats per token",
        "tokens_per_step": run.tokens_per_step(),
        "stage_steps": stages,
    }
    description = f"{title} {markup.describe_curve_ends(loss or train)}"
    # Scaled down to a phone, the wide one would be too small to read.
    wide = figures.plot_language_curves(
        "loss-wide", description, loss, **common, width=figures.WIDE, height=400
    )
    narrow = figures.plot_language_curves("loss-narrow", description, loss, **common, height=330)
    both = f'<div class="wide">{wide}</div>\n<div class="narrow">{narrow}</div>'
    small = [
        _render_metric_figure(
            run,
            "loss_own",
            "Own loss.",
            "How well a language is modelled, once only its own ids compete.",
            y_label="nats per token",
        ),
        _render_metric_figure(
            run,
            "language_nats",
            "Language nats.",
            "The rest of the loss, which nears zero once the model can tell which language it "
            "reads.",
            y_label="nats per token, log scale",
            log=True,
        ),
        _render_metric_figure(
            run,
            "leak",
            "Leak.",
            "The mean probability that goes to ids of other languages; lower is better.",
            y_label="% of the probability, log scale",
            log=True,
            percent=True,
        ),
        _render_metric_figure(
            run,
            "top1",
            "Top-1 accuracy.",
            "How often the likeliest id is the right one; higher is better.",
            y_label="% of the tokens",
            percent=True,
        ),
    ]
    return markup.render_section(
        "Learning", markup.render_figure(both, title, reading), markup.render_side_by_side(small)
    )


def _render_metric_figure(
    run: RunContents, name: str, title: str, reading: str, **style: Any
) -> str:
    """Returns the figure of one evaluation metric, or nothing where it was not measured."""
    curves = run.curves(f"eval/{name}")
    if not any(curves.values()):
        return ""
    drawn = figures.plot_language_curves(
        name.replace("_", "-"),
        f"{title} {markup.describe_curve_ends(curves, percent=style.get('percent', False))}",
        curves,
        tags=run.config.tags,
        **style,
    )
    return markup.render_figure(drawn, title, reading)


def _render_optimizer_section(run: RunContents) -> str:
    learning_rate, grad_norm = run.curve("train/learning_rate"), run.curve("train/grad_norm")
    rate, mfu = run.curve("perf/tokens_per_second"), run.curve("perf/mfu")
    drawn = []
    if learning_rate or grad_norm:
        norm = run.typical("train/grad_norm")
        typical = (
            f" The median norm is {figures.format_significant(norm)}." if norm is not None else ""
        )
        drawn.append(
            markup.render_figure(
                figures.plot_optimizer_curves(
                    f"Learning rate and gradient norm over steps.{typical}",
                    learning_rate,
                    grad_norm,
                ),
                "Learning rate and gradient norm.",
                f"A norm that jumps is a step to look at.{typical}",
            )
        )
    if rate:
        speeds, used = dict(zip(rate.steps, rate.values, strict=True)), []
        for step, value in zip(mfu.steps, mfu.values, strict=True):
            if math.isfinite(value) and speeds.get(step, 0.0) > 0:
                used.append(value / speeds[step])
        waiting = run.typical("perf/data_wait_fraction")
        reading = "A flat line is a run that is never held up."
        if waiting is not None:
            reading += (
                f" Waiting for data took {markup.format_percent(waiting)} of the time, in "
                "the median."
            )
        description = (
            "Tokens per second over steps, median "
            f"{figures.format_compact(markup.compute_curve_median(rate))}."
        )
        mfu_per_token = statistics.median(used) if used else 0.0
        drawn.append(
            markup.render_figure(
                figures.plot_training_speed(description, rate, mfu_per_token),
                "Speed, and MFU on the right axis." if used else "Speed.",
                reading,
            )
        )
    if not drawn:
        return markup.render_section(
            "Optimizer and speed", markup.render_missing_note("No step has been logged yet.")
        )
    return markup.render_section("Optimizer and speed", markup.render_side_by_side(drawn))


def _render_ratio_section(run: RunContents) -> str:
    title = "Ratio, requested and realised"
    if not run.mixture:
        return markup.render_section(
            title, markup.render_missing_note("mixture.csv is not there yet.")
        )
    requested = {tag: row["requested_sequences"] for tag, row in run.mixture.items()}
    realised = {tag: row["realised_sequences"] for tag, row in run.mixture.items()}
    verdict = _render_ratio_verdict(run.config.mixture, requested, realised)
    of_one = markup.normalize_to_fractions(realised)
    listed = ", ".join(f"{tag} {markup.format_percent(of_one[tag])}" for tag in of_one)
    bars = figures.plot_mixture(
        f"Realised part of the sequences: {listed}.",
        markup.normalize_to_fractions(requested),
        of_one,
        tags=run.config.tags,
    )
    rows = []
    for tag, row in run.mixture.items():
        rows.append(
            [
                markup.render_swatch(run.config.tags, tag),
                markup.render_number(row["requested_sequences"], markup.format_count),
                markup.render_number(row["realised_sequences"], markup.format_count),
                markup.render_number(row["realised_tokens"], figures.format_compact),
                markup.escape_text(run.source(tag)),
                markup.render_number(
                    row.get("pool_epochs"), lambda x: figures.format_significant(x)
                ),
            ]
        )
    header = ["language", "sequences requested", "sequences realised", "tokens"]
    table = markup.render_table(
        [*header, "source", "epochs"],
        rows,
        "An epoch is once through a source, over all languages that share it.",
    )
    reading = "Each pair of bars should end at the same place."
    repeats = math.fsum(row.get("cross_language_repeats", 0.0) for row in run.mixture.values())
    note = ""
    if repeats:
        part = markup.format_percent(repeats / math.fsum(realised.values()))
        note = markup.render_note(
            f"{markup.format_count(repeats)} sequences ({part}) had text that another language had "
            f"before: config.mixture.reuse={run.config.mixture.reuse!r}."
        )
    parts = [markup.render_figure(bars, "Part of all sequences.", reading), table]
    return markup.render_section(
        title, verdict, markup.render_side_by_side(parts), note, _render_ratio_over_time(run)
    )


def _render_ratio_over_time(run: RunContents) -> str:
    """Returns a figure of what each stretch of the run held, where the ratio changes."""
    stages = [first for first, _ in config_lib.list_stages(run.config)[1:]]
    if not stages:
        return ""
    total: dict[str, float] = {}
    for row in run.windows:
        total[row["last_step"]] = total.get(row["last_step"], 0.0) + float(
            row["realised_sequences"]
        )
    curves = {}
    for tag in run.config.tags:
        # Level over each stretch, from its first step to its last.
        steps, parts = [], []
        for row in run.windows:
            if row["language"] == tag:
                steps += [int(row["first_step"]), int(row["last_step"])]
                parts += [float(row["realised_sequences"]) / total[row["last_step"]]] * 2
        curves[tag] = Curve(steps, parts)
    drawn = figures.plot_language_curves(
        "mixture-over-time",
        "Realised part of the sequences of each language, over the run.",
        curves,
        tags=run.config.tags,
        y_label="% of the sequences",
        percent=True,
        tokens_per_step=run.tokens_per_step(),
        stage_steps=stages,
    )
    reading = "Dotted verticals are the steps at which the config changes the ratio."
    return markup.render_side_by_side(
        [markup.render_figure(drawn, "Part of the sequences over the run.", reading)]
    )


def _render_ratio_verdict(
    mixture: config_lib.MixtureConfig,
    requested: Mapping[str, float],
    realised: Mapping[str, float],
) -> str:
    """Returns a paragraph on whether the requested ratio is what was trained on."""
    off = {tag: realised[tag] - requested[tag] for tag in realised}
    worst = max(off, key=lambda tag: abs(off[tag]))
    if not any(off.values()):
        return (
            '<p class="verdict"><strong class="done">Exact</strong> Requested and realised '
            "sequences are equal for every language.</p>"
        )
    part = markup.format_percent(
        abs(off[worst]) / requested[worst] if requested[worst] else math.inf
    )
    largest = (
        f"{markup.escape_text(worst)}, {markup.format_signed(off[worst])} of "
        f"{markup.format_count(requested[worst])} sequences ({part})"
    )
    counts = config_lib.reduce_ratio(mixture.ratio)
    size = sum(counts.values())
    if (
        mixture.sampler == "exact"
        and not mixture.stages
        and all(abs(off[tag]) <= counts[tag] * (size - counts[tag]) / size for tag in off)
    ):
        return (
            '<p class="verdict"><strong class="done">Exact</strong> Requested and realised '
            f"sequences are equal in every whole block of {size:,}; the last step lies inside "
            f"one. The largest deviation is {largest}.</p>"
        )
    drawn = (
        " The sampler draws the language of each sequence independently."
        if mixture.sampler == "bernoulli"
        else ""
    )
    return (
        '<p class="verdict"><strong class="unfinished">Not exact</strong> The largest deviation '
        f"is {largest}.{drawn}</p>"
    )


def _render_time_section(run: RunContents) -> str:
    title = "Where the time went"
    found = {name: run.curve(f"time/{name}") for name in (*_TIMES, "total")}
    seconds = {name: curve.last for name, curve in found.items() if curve}
    total = seconds.pop("total", 0.0)
    if not seconds:
        return markup.render_section(
            title, markup.render_missing_note("No times have been logged yet.")
        )
    parts = {_TIMES[name]: value for name, value in seconds.items()}
    rest = total - math.fsum(seconds.values())
    if rest > 0.005 * total:
        parts["everything else"] = rest
    whole = math.fsum(parts.values()) or 1.0
    listed = ", ".join(
        f"{name} {markup.format_percent(value / whole)}" for name, value in parts.items()
    )
    bar = figures.plot_stacked_bar(f"Time by part: {listed}.", parts)
    rows = [
        [
            f'<i class="swatch" style="background: var(--ink); '
            f'opacity: {figures.compute_part_opacity(index, len(parts))}"></i>'
            f"{markup.escape_text(name)}",
            markup.render_number(value, lambda x: f"{x:,.1f}"),
            f"{100 * value / whole:.1f} %",
        ]
        for index, (name, value) in enumerate(parts.items())
    ]
    table = markup.render_table(
        ["part", "seconds", "of all"], rows, "The bar's parts from left to right."
    )
    longest = max(parts, key=parts.__getitem__)
    reading = (
        f"The run took {progress.format_duration(whole)}, most of it {longest} "
        f"({markup.format_percent(parts[longest] / whole)})."
    )
    return markup.render_section(
        title, markup.render_figure(bar, "Wall time by part.", reading), table
    )


def _render_sources_section(run: RunContents) -> str:
    sources = run.provenance.get("sources") or {}
    if not sources:
        return markup.render_section(
            "Sources", markup.render_missing_note("provenance.json does not name the sources yet.")
        )
    rows, fingerprints = [], []
    for name, source in sources.items():
        for split in ("train", "validation", "test"):
            documents, tokens, size = (
                (source.get(kind) or {}).get(split) for kind in ("documents", "tokens", "bytes")
            )
            rows.append(
                [
                    markup.escape_text(f"{name}, {split}"),
                    markup.render_number(documents, markup.format_count),
                    markup.render_number(tokens, markup.format_count),
                    markup.render_number(size, markup.format_count),
                    markup.render_number(
                        size / tokens if size and tokens else None, lambda x: f"{x:.2f}"
                    ),
                ]
            )
        kind = source.get("kind")
        known = f"{source['vocab_size']:,} ids" if source.get("vocab_size") else ""
        fingerprints.append((name, ", ".join(filter(None, (str(kind), known))), source))
    listed = "".join(
        f"<div><dt>fingerprint of {markup.escape_text(name)} ({markup.escape_text(about)})</dt>"
        f"<dd><code>{markup.escape_text(source.get('fingerprint', 'none'))}</code></dd></div>"
        for name, about, source in fingerprints
    )
    note = "A fingerprint stands for a source's text, its tokenizer and the ids that they gave."
    hashes = [(r["step"], r["data/order"]) for r in run.records if "data/order" in r]
    if hashes:
        step, order = hashes[-1]
        listed += (
            f"<div><dt>hash of the order up to step {step:,}</dt>"
            f"<dd><code>{markup.escape_text(order)}</code></dd></div>"
        )
        note += (
            " Runs with equal hashes saw the same tokens in the same order."
            if order.startswith("v")
            else " This hash is of version 1: it stands for the numbers of windows, which are "
            "other text under another text_share, so that equal ones prove no equal tokens."
        )
    if any(source.get("kind") == "docstrings" for source in sources.values()):
        note += (
            " Text of the kind docstrings is read from the installed Python packages, so its "
            "fingerprint differs from one environment to the next."
        )
    for name, source in sources.items():
        lost, whole = (sum((source.get(of) or {}).values()) for of in ("lost_bytes", "bytes"))
        if lost and whole:
            note += (
                f" The tokenizer of {name} loses {lost:,} of its text’s {whole:,} bytes "
                f"({lost / whole:.2%}), which are unknown to it or normalized away; bits per byte "
                "count them all the same."
            )
    header = ["source", "documents", "tokens", "bytes", "bytes per token"]
    return markup.render_section(
        "Sources",
        markup.render_table(header, rows, "What was prepared from each source."),
        f'<dl class="list">{listed}</dl>',
        markup.render_note(note),
    )


def _render_provenance_section(run: RunContents) -> str:
    known = run.provenance
    if not known:
        return markup.render_section(
            "Provenance", markup.render_missing_note("provenance.json is not there yet.")
        )
    device, mesh = known.get("device") or {}, known.get("mesh") or {}
    facts = {
        "git revision": known.get("git"),
        "Python": known.get("python"),
        **(known.get("packages") or {}),
        "device": ", ".join(f"{name} {value}" for name, value in device.items()),
        "mesh": ", ".join(f"{axis}={size}" for axis, size in mesh.items()),
        "order of the data": f"version {known.get('order_version', markup.ABSENT)}",
        "seed": run.config.seed,
    }
    listed = "".join(
        f"<div><dt>{markup.escape_text(name)}</dt><dd><code>{markup.escape_text(value)}</code></dd></div>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return markup.render_section("Provenance", f'<dl class="list">{listed}</dl>')


def _render_config_section(run: RunContents) -> str:
    written = json.dumps(config_lib.to_dict(run.config), indent=2, ensure_ascii=False)
    return markup.render_section(
        "Config",
        "<details>\n<summary>Every field of this run</summary>\n"
        f"<pre>{markup.escape_text(written)}</pre>\n</details>",
    )
