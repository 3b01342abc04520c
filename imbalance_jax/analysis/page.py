"""The page of one run: a self-contained report.html made from its run directory alone.

`write_run_page` reads the directory once into a `_Run`, and each function below turns it into
one section. Any file but config.json may be missing, because the run has just started or
failed early; the section then says what is not there yet. All that comes from a file
passes through `_text` on its way into the page.
"""

import dataclasses
import html
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax import progress
from imbalance_jax.analysis import figures
from imbalance_jax.analysis.figures import Curve
from imbalance_jax.runs import Record, RunDirectory

# The parts of a run's time, in the order of the bar: name in metrics.jsonl, name on the page.
_TIMES = {
    "train": "training steps",
    "data": "waiting for data",
    "evaluate": "evaluation",
    "checkpoint": "checkpoints",
    "compile": "compilation",
    "setup": "setup",
}

_ABSENT = "–"


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a run directory holds, with empty values for what it does not hold yet."""

    name: str
    config: config_lib.Config
    done: bool
    failed: Mapping[str, Any]  # FAILED.json
    records: Sequence[Record]  # metrics.jsonl
    mixture: Mapping[str, Mapping[str, float]]  # language -> columns of mixture.csv, added up
    windows: Sequence[Mapping[str, str]]  # rows of mixture.csv
    provenance: Mapping[str, Any]
    evaluation: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The last step that the directory knows of."""
        last = self.records[-1]["step"] if self.records else 0
        return max(last, self.failed.get("step", 0))

    def curve(self, name: str) -> Curve:
        found = [(r["step"], _number(r[name])) for r in self.records if name in r]
        return Curve([step for step, _ in found], [value for _, value in found])

    def curves(self, name: str) -> dict[str, Curve]:
        """Returns a metric of every language that has it."""
        found = {tag: self.curve(f"{name}/{tag}") for tag in self.config.tags}
        return {tag: curve for tag, curve in found.items() if curve.steps}

    def typical(self, name: str) -> float | None:
        """Returns the median of a metric over the run, or None."""
        values = [value for value in self.curve(name).values if math.isfinite(value)]
        return statistics.median(values) if values else None

    def fractions(self) -> dict[str, float]:
        """Returns each language's part of all sequences: realised, or else as requested."""
        counts = {tag: row["realised_sequences"] for tag, row in self.mixture.items()}
        if not counts:
            stages = config_lib.stages(self.config)
            ends = [*(first for first, _ in stages[1:]), self.config.steps]
            counts = dict.fromkeys(self.config.tags, 0.0)
            for (first, ratio), end in zip(stages, ends, strict=True):
                for tag, count in ratio.items():
                    counts[tag] += (end - first) * count / sum(ratio.values())
        return _parts_of_one(counts)

    def tokens(self) -> dict[str, float]:
        """Returns the tokens that each language was trained on so far."""
        found = {tag: row["realised_tokens"] for tag, row in self.mixture.items()}
        seen = self.curves("train/tokens")
        return found or {tag: curve.values[-1] for tag, curve in seen.items()}

    def tokens_per_step(self) -> float:
        seen = self.curves("train/tokens").values()
        last = max((curve.steps[-1] for curve in seen), default=0)
        return math.fsum(curve.values[-1] for curve in seen) / last if last else 0.0

    def source(self, tag: str) -> str:
        """Returns the source that a language's text comes from."""
        language = self.config.languages[tag]
        return language.source or self.config.languages[language.clone_of].source

    def results(self) -> tuple[str, int, dict[str, dict[str, float]]]:
        """Returns the newest results: what they were measured on, when, and per language."""
        if self.evaluation:
            languages = self.evaluation["languages"]
            found = {
                tag: {name: _number(value) for name, value in languages[tag].items()}
                for tag in self.config.tags
                if tag in languages
            }
            return self.evaluation["split"], self.evaluation["step"], found
        found, step = {}, 0
        for name in ("loss", "ppl", "bits_per_byte", "language_nats", "loss_own", "leak", "top1"):
            for tag, curve in self.curves(f"eval/{name}").items():
                found.setdefault(tag, {})[name] = curve.values[-1]
                step = curve.steps[-1]
        return "validation", step, found


def write_run_page(run: RunDirectory) -> epath.Path:
    """Writes report.html into a run directory and returns where it lies.

    Raises:
      FileNotFoundError: this is not a run directory.
    """
    run.write_text("report.html", _page(_read(run)))
    return run.path / "report.html"


def _read(run: RunDirectory) -> _Run:
    config = run.config()
    mixture: dict[str, dict[str, float]] = {}
    windows = run.read_csv("mixture.csv")
    for row in windows:
        columns = mixture.setdefault(row["language"], {})
        for name, value in row.items():
            if name.endswith(("_sequences", "_tokens", "_repeats")):
                columns[name] = columns.get(name, 0.0) + float(value or math.nan)
            elif name.startswith("pool_"):
                columns[name] = float(value or math.nan)
    return _Run(
        name=run.path.resolve().name,
        config=config,
        done=run.done,
        failed=run.read_json("FAILED.json") or {},
        records=list(run.metrics()),
        mixture={tag: mixture[tag] for tag in config.tags if tag in mixture},
        windows=windows,
        provenance=run.read_json("provenance.json") or {},
        evaluation=run.read_json("evaluation.json") or {},
    )


def _page(run: _Run) -> str:
    sections = [
        _head(run),
        _facts(run),
        _results(run),
        _learning(run),
        _optimization(run),
        _ratio(run),
        _time(run),
        _sources(run),
        _provenance(run),
        _config(run),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>{_text(run.name)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{_style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


# Sections, from top to bottom.


def _head(run: _Run) -> str:
    steps = f"{run.config.steps:,}"
    if run.failed:
        kind = _text(run.failed.get("error", "error"))
        mark, name = "failed", "Failed"
        state = f"at step {run.step:,} of {steps} with {kind}: "
        state += f'<span class="message">{_text(run.failed.get("message", ""))}</span>'
    elif run.done:
        mark, name = "done", "Done"
        # A run may also end because its text does, and one with no metrics ended somewhere.
        state = f"at step {run.step:,} of {steps}" if run.records else f"{steps} steps"
    else:
        mark, name = "unfinished", "Unfinished"
        state = f"at step {run.step:,} of {steps}" if run.step else f"before step 1 of {steps}"
    return (
        f"<header>\n<h1>{_text(run.name)}</h1>\n"
        f'<p class="state"><strong class="{mark}">{name}</strong> {state}</p>\n'
        f'<p class="headline">{_headline(run)}</p>\n{_warning(run)}</header>'
    )


def _headline(run: _Run) -> str:
    split, step, results = run.results()
    perplexity = {tag: result["ppl"] for tag, result in results.items() if "ppl" in result}
    if not perplexity:
        return "No language has been evaluated yet."
    fractions = run.fractions()
    order = sorted(perplexity, key=lambda tag: fractions.get(tag, 0.0))
    ppl = {tag: _text(figures.significant(value)) for tag, value in perplexity.items()}
    part = {tag: _percent(fractions.get(tag, 0.0)) for tag in order}
    verb = "ends at" if run.evaluation else "is at"
    where = "" if run.evaluation else f" on the {_text(split)} split at step {step:,}"
    if len(order) == 1:
        return f"{_text(order[0])} {verb} perplexity {ppl[order[0]]}{where}."
    first, last = order[0], order[-1]
    if len(order) <= 3:
        rest = [f"{_text(tag)}, {part[tag]}, at {ppl[tag]}" for tag in order[1:]]
        sentence = (
            f"{_text(first)}, {part[first]} of the sequences, {verb} perplexity {ppl[first]}; "
            f"{'; '.join(rest)}{where}."
        )
    elif part[first] == part[last]:
        best, worst = min(order, key=perplexity.__getitem__), max(order, key=perplexity.__getitem__)
        sentence = (
            f"{len(order)} languages of {part[first]} of the sequences each: {_text(best)} {verb} "
            f"the lowest perplexity, {ppl[best]}, and {_text(worst)} at the highest, "
            f"{ppl[worst]}{where}."
        )
    else:
        sentence = (
            f"Of {len(order)} languages, {_text(first)}, the rarest with {part[first]} of the "
            f"sequences, {verb} perplexity {ppl[first]}; {_text(last)}, the most frequent with "
            f"{part[last]}, at {ppl[last]}{where}."
        )
    return sentence + _gap(run, first, last, results)


def _gap(run: _Run, rare: str, common: str, results: Mapping[str, Mapping[str, float]]) -> str:
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
        f" The same text costs {whole} nats per token {word} in {_text(rare)} than in "
        f"{_text(common)}: {telling} for telling the language and {within} for predicting "
        "within it."
    )


def _warning(run: _Run) -> str:
    """Returns a paragraph that names metrics with values that are not finite, if any."""
    found: dict[str, list[int]] = {}
    for record in run.records:
        for name, value in record.items():
            # A hash is no number, and none that is missing.
            if not isinstance(value, str) and not math.isfinite(_number(value)):
                found.setdefault(name, []).append(record["step"])
    if not found:
        return ""
    named = [
        f"<code>{_text(name)}</code> in {len(steps):,} record{'s' * (len(steps) > 1)}, "
        f"first at step {steps[0]:,}"
        for name, steps in list(found.items())[:3]
    ]
    more = f"; and {len(found) - 3:,} more metrics" if len(found) > 3 else ""
    return (
        f'<p class="warning"><strong>Not finite:</strong> {"; ".join(named)}{more}. '
        "The figures leave these points out.</p>\n"
    )


def _facts(run: _Run) -> str:
    config, known = run.config, run.provenance
    facts: list[tuple[str, str, str]] = []  # label, value, detail

    def add(label: str, value: Any, detail: str = "") -> None:
        facts.append((label, _ABSENT if value is None else str(value), detail))

    count, vocab_size = known.get("parameters"), known.get("vocab_size")
    model = config.model
    add("parameters", count and figures.compact(count), f"N={model.N} D={model.D} H={model.H}")
    add("vocabulary", vocab_size and f"{vocab_size:,}", f"{config.vocabulary.layout} ids")
    tokens = run.tokens()
    add("tokens trained", figures.compact(math.fsum(tokens.values())) if tokens else None)
    add("batch", config.batch_size, f"sequences of {model.L:,} tokens")
    add("steps", f"{run.step:,}", f"of {config.steps:,}")
    ratio = config.mixture.stages[0][1] if config.mixture.stages else config.mixture.ratio
    counts = config_lib.reduced({tag: ratio[tag] for tag in config.tags})
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
    add("wall time", progress.clock(total.last) if total else None)
    rate = run.typical("perf/tokens_per_second")
    add("tokens per second", rate and figures.compact(rate), "median of the log")
    mfu = run.typical("perf/mfu")
    peak = known.get("peak_flops") or {}
    of_peak = f"of {figures.compact(peak['value'])}FLOP/s *" if peak.get("value") else ""
    add("MFU", None if mfu is None else _percent(mfu), of_peak)
    items = "\n".join(
        f"<div><dt>{_text(label)}</dt><dd>{_text(value)}"
        + (f" <small>{_text(detail)}</small>" if detail else "")
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
            notes.append(f"A token takes {figures.compact(known['flops_per_token'])}FLOP.")
        if known.get("flop_convention"):
            notes.append(str(known["flop_convention"]))
    if not known:
        notes.append(
            "provenance.json is not there yet, so the device and the model's size are not known."
        )
    note = _note(" ".join(notes)) if notes else ""
    return (
        f'<section aria-label="Key facts">\n<dl class="facts">\n{items}\n</dl>\n{note}\n</section>'
    )


def _results(run: _Run) -> str:
    split, step, results = run.results()
    if not results:
        return _section("Results", _missing("No language has been evaluated yet."))
    fractions, tokens = run.fractions(), run.tokens()
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "loss": ("loss", lambda x: f"{x:.3f}"),
        "ppl": ("perplexity", figures.significant),
        "bits_per_byte": ("bits per byte", lambda x: f"{x:.3f}"),
        "language_nats": ("language nats", lambda x: f"{x:.4f}"),
        "loss_own": ("own loss", lambda x: f"{x:.3f}"),
        "leak": ("leak", lambda x: f"{figures.significant(100 * x, 2)} %"),
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
        cells = [_swatch(run, tag), _percent(fractions.get(tag, 0.0))]
        cells += [_data(tokens.get(tag), figures.compact)]
        cells += [_data(result.get(name), columns[name][1]) for name in shown]
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
    return _section(title, _table(header, rows, caption), _note(note))


def _learning(run: _Run) -> str:
    loss, train = run.curves("eval/loss"), run.curves("train/loss")
    if not any([*loss.values(), *train.values()]):
        return _section("Learning", _missing("No loss has been logged yet."))
    tags = run.config.tags
    stages = [first for first, _ in config_lib.stages(run.config)[1:]]
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
    description = f"{title} {_ends(loss or train)}"
    # Scaled down to a phone, the wide one would be too small to read.
    wide = figures.language_curves(
        "loss-wide", description, loss, **common, width=figures.WIDE, height=400
    )
    narrow = figures.language_curves("loss-narrow", description, loss, **common, height=330)
    both = f'<div class="wide">{wide}</div>\n<div class="narrow">{narrow}</div>'
    small = [
        _language_figure(
            run,
            "loss_own",
            "Own loss.",
            "How well a language is modelled, once only its own ids compete.",
            y_label="nats per token",
        ),
        _language_figure(
            run,
            "language_nats",
            "Language nats.",
            "The rest of the loss, which nears zero once the model can tell which language it "
            "reads.",
            y_label="nats per token, log scale",
            log=True,
        ),
        _language_figure(
            run,
            "leak",
            "Leak.",
            "The mean probability that goes to ids of other languages; lower is better.",
            y_label="% of the probability, log scale",
            log=True,
            percent=True,
        ),
        _language_figure(
            run,
            "top1",
            "Top-1 accuracy.",
            "How often the likeliest id is the right one; higher is better.",
            y_label="% of the tokens",
            percent=True,
        ),
    ]
    return _section("Learning", _figure(both, title, reading), _pairs(small))


def _language_figure(run: _Run, name: str, title: str, reading: str, **style: Any) -> str:
    """Returns the figure of one evaluation metric, or nothing where it was not measured."""
    curves = run.curves(f"eval/{name}")
    if not any(curves.values()):
        return ""
    drawn = figures.language_curves(
        name.replace("_", "-"),
        f"{title} {_ends(curves, percent=style.get('percent', False))}",
        curves,
        tags=run.config.tags,
        **style,
    )
    return _figure(drawn, title, reading)


def _optimization(run: _Run) -> str:
    learning_rate, grad_norm = run.curve("train/learning_rate"), run.curve("train/grad_norm")
    rate, mfu = run.curve("perf/tokens_per_second"), run.curve("perf/mfu")
    drawn = []
    if learning_rate or grad_norm:
        norm = run.typical("train/grad_norm")
        typical = f" The median norm is {figures.significant(norm)}." if norm is not None else ""
        drawn.append(
            _figure(
                figures.optimizer(
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
            reading += f" Waiting for data took {_percent(waiting)} of the time, in the median."
        description = f"Tokens per second over steps, median {figures.compact(_median(rate))}."
        mfu_per_token = statistics.median(used) if used else 0.0
        drawn.append(
            _figure(
                figures.speed(description, rate, mfu_per_token),
                "Speed, and MFU on the right axis." if used else "Speed.",
                reading,
            )
        )
    if not drawn:
        return _section("Optimizer and speed", _missing("No step has been logged yet."))
    return _section("Optimizer and speed", _pairs(drawn))


def _ratio(run: _Run) -> str:
    title = "Ratio, requested and realised"
    if not run.mixture:
        return _section(title, _missing("mixture.csv is not there yet."))
    requested = {tag: row["requested_sequences"] for tag, row in run.mixture.items()}
    realised = {tag: row["realised_sequences"] for tag, row in run.mixture.items()}
    verdict = _verdict(run.config.mixture, requested, realised)
    of_one = _parts_of_one(realised)
    listed = ", ".join(f"{tag} {_percent(of_one[tag])}" for tag in of_one)
    bars = figures.mixture(
        f"Realised part of the sequences: {listed}.",
        _parts_of_one(requested),
        of_one,
        tags=run.config.tags,
    )
    rows = []
    for tag, row in run.mixture.items():
        rows.append(
            [
                _swatch(run, tag),
                _data(row["requested_sequences"], _count),
                _data(row["realised_sequences"], _count),
                _data(row["realised_tokens"], figures.compact),
                _text(run.source(tag)),
                _data(row.get("pool_epochs"), lambda x: figures.significant(x)),
            ]
        )
    header = ["language", "sequences requested", "sequences realised", "tokens"]
    table = _table(
        [*header, "source", "epochs"],
        rows,
        "An epoch is once through a source, over all languages that share it.",
    )
    reading = "Each pair of bars should end at the same place."
    repeats = math.fsum(row.get("cross_language_repeats", 0.0) for row in run.mixture.values())
    note = ""
    if repeats:
        part = _percent(repeats / math.fsum(realised.values()))
        note = _note(
            f"{_count(repeats)} sequences ({part}) had text that another language had before: "
            f"config.mixture.reuse={run.config.mixture.reuse!r}."
        )
    parts = [_figure(bars, "Part of all sequences.", reading), table]
    return _section(title, verdict, _pairs(parts), note, _ratio_over_time(run))


def _ratio_over_time(run: _Run) -> str:
    """Returns a figure of what each stretch of the run held, where the ratio changes."""
    stages = [first for first, _ in config_lib.stages(run.config)[1:]]
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
    drawn = figures.language_curves(
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
    return _pairs([_figure(drawn, "Part of the sequences over the run.", reading)])


def _verdict(
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
    largest = (
        f"{_text(worst)}, {_signed(off[worst])} of {_count(requested[worst])} sequences "
        f"({_percent(abs(off[worst]) / requested[worst] if requested[worst] else math.inf)})"
    )
    counts = config_lib.reduced(mixture.ratio)
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


def _time(run: _Run) -> str:
    title = "Where the time went"
    found = {name: run.curve(f"time/{name}") for name in (*_TIMES, "total")}
    seconds = {name: curve.last for name, curve in found.items() if curve}
    total = seconds.pop("total", 0.0)
    if not seconds:
        return _section(title, _missing("No times have been logged yet."))
    parts = {_TIMES[name]: value for name, value in seconds.items()}
    rest = total - math.fsum(seconds.values())
    if rest > 0.005 * total:
        parts["everything else"] = rest
    whole = math.fsum(parts.values()) or 1.0
    listed = ", ".join(f"{name} {_percent(value / whole)}" for name, value in parts.items())
    bar = figures.stacked_bar(f"Time by part: {listed}.", parts)
    rows = [
        [
            f'<i class="swatch" style="background: var(--ink); '
            f'opacity: {figures.shade(index, len(parts))}"></i>{_text(name)}',
            _data(value, lambda x: f"{x:,.1f}"),
            f"{100 * value / whole:.1f} %",
        ]
        for index, (name, value) in enumerate(parts.items())
    ]
    table = _table(["part", "seconds", "of all"], rows, "The bar's parts from left to right.")
    longest = max(parts, key=parts.__getitem__)
    reading = (
        f"The run took {progress.clock(whole)}, most of it {longest} "
        f"({_percent(parts[longest] / whole)})."
    )
    return _section(title, _figure(bar, "Wall time by part.", reading), table)


def _sources(run: _Run) -> str:
    sources = run.provenance.get("sources") or {}
    if not sources:
        return _section("Sources", _missing("provenance.json does not name the sources yet."))
    rows, fingerprints = [], []
    for name, source in sources.items():
        for split in ("train", "validation", "test"):
            documents, tokens, size = (
                (source.get(kind) or {}).get(split) for kind in ("documents", "tokens", "bytes")
            )
            rows.append(
                [
                    _text(f"{name}, {split}"),
                    _data(documents, _count),
                    _data(tokens, _count),
                    _data(size, _count),
                    _data(size / tokens if size and tokens else None, lambda x: f"{x:.2f}"),
                ]
            )
        kind = source.get("kind")
        known = f"{source['vocab_size']:,} ids" if source.get("vocab_size") else ""
        fingerprints.append((name, ", ".join(filter(None, (str(kind), known))), source))
    listed = "".join(
        f"<div><dt>fingerprint of {_text(name)} ({_text(about)})</dt>"
        f"<dd><code>{_text(source.get('fingerprint', 'none'))}</code></dd></div>"
        for name, about, source in fingerprints
    )
    note = "A fingerprint stands for a source's text and tokenizer."
    hashes = [(r["step"], r["data/order"]) for r in run.records if "data/order" in r]
    if hashes:
        step, order = hashes[-1]
        listed += (
            f"<div><dt>hash of the order up to step {step:,}</dt>"
            f"<dd><code>{_text(order)}</code></dd></div>"
        )
        note += " Runs with equal hashes saw the same tokens in the same order."
    if any(source.get("kind") == "docstrings" for source in sources.values()):
        note += (
            " Text of the kind docstrings is read from the installed Python packages, so its "
            "fingerprint differs from one environment to the next."
        )
    header = ["source", "documents", "tokens", "bytes", "bytes per token"]
    return _section(
        "Sources",
        _table(header, rows, "What was prepared from each source."),
        f'<dl class="list">{listed}</dl>',
        _note(note),
    )


def _provenance(run: _Run) -> str:
    known = run.provenance
    if not known:
        return _section("Provenance", _missing("provenance.json is not there yet."))
    device, mesh = known.get("device") or {}, known.get("mesh") or {}
    facts = {
        "git revision": known.get("git"),
        "Python": known.get("python"),
        **(known.get("packages") or {}),
        "device": ", ".join(f"{name} {value}" for name, value in device.items()),
        "mesh": ", ".join(f"{axis}={size}" for axis, size in mesh.items()),
        "order of the data": f"version {known.get('order_version', _ABSENT)}",
        "seed": run.config.seed,
    }
    listed = "".join(
        f"<div><dt>{_text(name)}</dt><dd><code>{_text(value)}</code></dd></div>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return _section("Provenance", f'<dl class="list">{listed}</dl>')


def _config(run: _Run) -> str:
    written = json.dumps(config_lib.to_dict(run.config), indent=2, ensure_ascii=False)
    return _section(
        "Config",
        "<details>\n<summary>Every field of this run</summary>\n"
        f"<pre>{_text(written)}</pre>\n</details>",
    )


# Pieces of HTML. What these take is HTML already, unless they say otherwise.


def _text(value: Any) -> str:
    """Returns any value as text of the page, with nothing in it read as markup."""
    return html.escape(str(value))


def _section(title: str, *parts: str) -> str:
    """Args: `title` is plain text."""
    return "\n".join(["<section>", f"<h2>{_text(title)}</h2>", *parts, "</section>"])


def _missing(sentence: str) -> str:
    return f'<p class="missing">{sentence}</p>'


def _note(text: str) -> str:
    """Args: `text` is plain text."""
    return f'<p class="note">{_text(text)}</p>'


def _figure(drawn: str, title: str, reading: str) -> str:
    """Args: `title` and `reading` are plain text."""
    caption = f"<figcaption><b>{_text(title)}</b> {_text(reading)}</figcaption>"
    return f"<figure>\n{drawn}\n{caption}\n</figure>"


def _pairs(parts: Iterable[str]) -> str:
    return '<div class="pairs">\n' + "\n".join(filter(None, parts)) + "\n</div>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """Returns a table that scrolls by itself on a phone. Header and caption are plain text."""
    heads = "".join(f'<th scope="col">{_text(head)}</th>' for head in header)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div>\n<p class="caption">{_text(caption)}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}">\n'
        f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
        "</div>\n</div>"
    )


def _swatch(run: _Run, tag: str) -> str:
    variable = figures.colour(run.config.tags.index(tag))
    return f'<i class="swatch" style="background: var(--{variable})"></i>{_text(tag)}'


def _data(value: float | None, write: Callable[[float], str]) -> str:
    """Returns a number as it is read, with the exact one behind it."""
    if value is None:
        return _ABSENT
    if not math.isfinite(value):
        return figures.significant(value)
    return f'<data value="{value:.12g}">{_text(write(value))}</data>'


# Numbers as plain text.


def _number(value: Any) -> float:
    """Returns a value of a JSON file as a float; NaN for what is none."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _median(curve: Curve) -> float:
    return statistics.median(value for value in curve.values if math.isfinite(value))


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _signed(value: float) -> str:
    return f"{value:+,.6g}".replace("-", "−")


def _percent(fraction: float) -> str:
    """Returns a fraction in percent, with zeros that say nothing left out."""
    written = figures.significant(100 * fraction)
    if "." in written and "e" not in written:
        written = written.rstrip("0").rstrip(".")
    return f"{written} %"


def _parts_of_one(values: Mapping[str, float]) -> dict[str, float]:
    whole = math.fsum(values.values())
    return {name: value / whole if whole else 0.0 for name, value in values.items()}


def _ends(curves: Mapping[str, Curve], percent: bool = False) -> str:
    """Returns a sentence of where each curve ends."""
    scale, unit = (100, " %") if percent else (1, "")
    ends = [
        f"{tag} at {figures.significant(scale * curve.values[-1], 4)}{unit}"
        for tag, curve in curves.items()
        if curve
    ]
    return f"At step {max(curve.steps[-1] for curve in curves.values()):,}: {', '.join(ends)}."


def _style() -> str:
    light = "; ".join(f"--{name}: {value}" for name, value in figures.COLOURS.items())
    dark = "; ".join(f"--{name}: {value}" for name, value in figures.COLOURS_DARK.items())
    return (
        f":root {{ {light}; --ground: #ffffff; --panel: #f6f7f9; --good: #16794c; "
        "--bad: #b3261e; --open: #8a5a00 }\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark}; --ground: #14181d; "
        "--panel: #1d232b; --good: #4cc38a; --bad: #ff7a70; --open: #e5b454 } }\n"
        # Paper is white whatever the screen was.
        f"@media print {{ :root {{ {light}; --ground: #ffffff; --panel: #ffffff; "
        "--good: #16794c; --bad: #b3261e; --open: #8a5a00 } }\n" + _CSS
    )


_CSS = """\
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    sans-serif }
main { max-width: 1040px; margin: 0 auto; padding: 48px 24px 96px }
h1 { margin: 0; font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -0.01em;
  overflow-wrap: anywhere }
h2 { margin: 0 0 16px; font-size: 20px; line-height: 1.3; font-weight: 650 }
section { margin-top: 64px }
p { margin: 0; max-width: 70ch }
code, pre { font: 0.86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
code { overflow-wrap: anywhere }
.state { margin-top: 8px; color: var(--muted) }
.state strong, .verdict strong { margin-right: 6px; font-weight: 650 }
.state .message { color: var(--ink); overflow-wrap: anywhere }
.done { color: var(--good) }
.failed { color: var(--bad) }
.unfinished { color: var(--open) }
.headline { margin-top: 24px; font-size: 20px; line-height: 1.45 }
.warning { margin-top: 20px; padding-left: 14px; border-left: 3px solid var(--bad) }
.note { margin-top: 12px; color: var(--muted); font-size: 14px; max-width: 92ch }
.missing { color: var(--muted); font-style: italic }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr));
  gap: 1px; margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden }
header + section { margin-top: 32px }
.facts div { padding: 14px 16px; box-shadow: 0 0 0 1px var(--line); min-width: 0 }
.facts dt { color: var(--muted); font-size: 13px }
.facts dd { margin: 2px 0 0; font-size: 19px; line-height: 1.35; font-weight: 600;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.facts small { display: block; color: var(--muted); font-size: 12.5px; font-weight: 400 }
.list { columns: 2 380px; column-gap: 32px; margin: 0 }
.list div { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 16px;
  border-bottom: 1px solid var(--line); padding: 6px 0; break-inside: avoid }
.list dt { color: var(--muted); font-size: 14px }
.list dd { margin: 0; min-width: 0 }
.scroll { overflow-x: auto }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 14.5px;
  font-variant-numeric: tabular-nums lining-nums }
.caption { color: var(--muted); font-size: 14px; margin-bottom: 8px }
th, td { padding: 8px 0 8px 18px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
thead th { color: var(--muted); font-weight: 400; font-size: 13px; line-height: 1.3;
  vertical-align: bottom; white-space: normal; border-bottom-color: var(--muted) }
tbody th { font-weight: 600 }
th:first-child { padding-left: 0; text-align: left; white-space: nowrap }
.swatch { display: inline-block; width: 10px; height: 10px; margin-right: 8px;
  border-radius: 2px; print-color-adjust: exact; -webkit-print-color-adjust: exact }
figure { margin: 0; min-width: 0 }
figcaption { margin-top: 8px; color: var(--muted); font-size: 14px; line-height: 1.5;
  max-width: 80ch }
figcaption b { color: var(--ink); font-weight: 600 }
svg { display: block; width: 100%; height: auto; max-width: 992px }
svg * { stroke-linejoin: round; stroke-linecap: butt }
svg.bar { height: 34px; max-width: none; border-radius: 4px }
.narrow { display: none }
.pairs { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 40px 32px;
  align-items: start }
figure + .pairs { margin-top: 48px }
figure + div:not(.pairs) { margin-top: 24px; max-width: 480px }
.verdict { margin-bottom: 24px }
summary { cursor: pointer; color: var(--muted) }
pre { margin: 16px 0 0; padding: 16px; background: var(--panel); border-radius: 8px;
  overflow-x: auto }
@media screen and (max-width: 820px) {
  main { padding: 32px 18px 64px }
  section { margin-top: 48px }
  .pairs { grid-template-columns: minmax(0, 1fr) }
  .pairs svg { max-width: 560px }
  th:first-child { position: sticky; left: 0; background: var(--ground) }
}
@media screen and (max-width: 740px) {
  .wide { display: none }
  .narrow { display: block; max-width: 560px }
}
@media screen and (max-width: 560px) {
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)) }
}
@media print {
  body { font-size: 11pt }
  main { max-width: none; padding: 0 }
  .facts { grid-template-columns: repeat(5, minmax(0, 1fr)) }
  th, td { padding-left: 8px }
  table { font-size: 9pt }
  .pairs th, .pairs td { padding-left: 5px; font-size: 8pt }
  pre { columns: 2; font-size: 7.5pt; padding: 0 }
  figure, .scroll, .facts { break-inside: avoid }
  .scroll { overflow: visible }
  h2 { break-after: avoid }
  section { margin-top: 28pt }
  details::details-content { content-visibility: visible; height: auto }
}
"""
