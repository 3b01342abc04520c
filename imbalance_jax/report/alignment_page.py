"""The part of a run's page on what its languages have in common.

`section` puts it together from two places: what was logged under `align/` in metrics.jsonl as
the run trained, and the `alignment` of evaluation.json. Either may be missing, and so may any
number: a figure shows what there is and is left out where there is nothing. Figures show the
first few pairs of languages, tables show all of them.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from imbalance_jax.drawing import alignment_figures, markup
from imbalance_jax.drawing import plots as figures
from imbalance_jax.drawing.alignment_figures import Line
from imbalance_jax.drawing.plots import Curve
from imbalance_jax.report.record import Run

_PAIRS = 6  # pairs that figures show
_OPEN = 2  # pairs whose gradients are not folded away
_ROWS = 12  # rows from which on a table is folded away
_WIDEST = 9  # layers of which two heat maps fit side by side
_KEY_BIAS = "attn K.bias"


def section(run: Run) -> str:
    """Returns the section, or nothing where nothing was measured."""
    found = run.evaluation.get("alignment") or {}
    logged = {name for record in run.records for name in record if name.startswith("align/")}
    if not found and not logged:
        return ""
    results = found.get("pairs") or {}
    pairs = _pairs_of(run, results, logged)
    shown = pairs[:_PAIRS]
    alone = len(run.config.tags) == 1
    notes = [
        markup.note("The run has one language, and so no pair of languages to compare.")
        if alone
        else markup.note(
            "A raw cosine alone says nothing: states that all point one way have high cosines "
            "whatever they say. Look at the excess over shuffled pairs, which are sequences of "
            "like length that say different things, and at what is left of it once each "
            "language's mean is taken away (centred)."
        )
    ]
    if len(pairs) > len(shown):
        notes.append(
            markup.note(
                f"The figures show the first {len(shown)} of {len(pairs)} pairs: "
                f"{', '.join(shown)}. The other {len(pairs) - len(shown)} are left out of them; "
                "tables have all pairs."
            )
        )
    if not found:
        notes.append(
            markup.missing(
                "evaluation.json has no alignment. Layers, gradients, frequencies, leak and "
                "transfer are measured by <code>python -m imbalance_jax.evaluate</code>."
            )
        )
    parts = [
        f'<div class="stack">{"".join([*notes, _skipped(found)])}</div>',
        _summary(run, found, {name: results[name] for name in pairs if name in results}),
        "" if alone else _training(run, shown, logged),
        _by_layer(run, {name: results[name] for name in shown if name in results}),
        _gradients({name: results[name] for name in shown if name in results}),
        _frequency({name: results[name] for name in shown if name in results}, shown),
        _telling(run, found),
        _transfer({name: results[name] for name in pairs if name in results}),
        _optimizer(run, found, logged),
    ]
    return markup.section("Alignment", *filter(None, parts))


def _pairs_of(run: Run, results: Mapping[str, Any], logged: Iterable[str]) -> list[str]:
    """Returns the pairs of languages that anything is known of, in the order of the config."""
    possible = [f"{a}-{b}" for a, b in itertools.combinations(run.config.tags, 2)]
    known = {*results} | {part for name in logged for part in name.split("/")[2:3]}
    others = [name for name in results if name not in possible]
    return [name for name in possible if name in known] + others


def _skipped(found: Mapping[str, Any]) -> str:
    reasons = [str(reason) for reason in (found.get("skipped") or {}).values()]
    notes = [markup.note(reason) for reason in reasons]
    return _folded(f"{len(notes)} pairs that are not measured", notes, len(notes) > 3)


# Summary.


def _summary(run: Run, found: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Returns a table of every pair."""
    if not results:
        return ""
    rows = []
    for name, result in results.items():
        _, compared = _compared(result.get("hidden"))
        sentences = _at(result, "hidden", "sentences")
        table = result.get("embed_in")
        raised = _number(_at(table, "cosine")) - _number(_at(table, "between"))
        gradients = result.get("gradients")
        rows.append(
            [
                markup.text(name),
                _cell(result.get("sequences"), markup.count),
                _cell(raised, _signed),
                _cell(_block_mean(run, _values(compared, "cosine_excess")), _signed),
                _cell(_block_mean(run, _values(compared, "centred_excess")), _signed),
                _cell(_block_mean(run, _values(_turned(result)[1], "procrustes_excess")), _signed),
                _cell(_block_mean(run, _values(sentences, "cka_debiased")), _signed),
                _beside_chance(_block_mean(run, _retrieval(sentences)), _at(sentences, "chance")),
                _with_error(gradients, "mean"),
                _corrected(gradients),
            ]
        )
    header = ["pair", "sequences", "embedding, excess", "hidden, excess", "hidden, centred excess"]
    header += ["hidden, excess after rotation", "CKA, debiased", "retrieval (by chance)"]
    header += ["gradient cosine", "gradient cosine, corrected"]
    step = run.evaluation.get("step")
    table = markup.table(
        header,
        rows,
        f"The {found.get('split', 'test')} split"
        + (f" after step {step:,}" if isinstance(step, int) else "")
        + ", means over the blocks; ± is one standard error.",
    )
    note = markup.note(
        "The embedding's excess is the cosine of pieces that mean the same, less that of any two "
        "pieces of the two languages. Retrieval is how often the nearest sequence of the other "
        "language is the right one, after centring. The corrected gradient cosine is an estimate "
        "without the noise of single sequences; it may lie beyond 1, or not exist, where noise "
        "is all there is."
    )
    return _stack("All pairs", _folded(f"{len(rows)} pairs", [table], len(rows) > _ROWS), note)


# While training.


def _corrected(gradients: Any) -> str:
    """Returns the corrected cosine, and half of what its halves are apart; if all are known."""
    halves = [_number(value) for value in _at(gradients, "corrected_halves") or []]
    value = _number(_at(gradients, "corrected_mean"))
    if len(halves) != 2 or not all(map(math.isfinite, [value, *halves])):
        return markup.ABSENT
    return f"{_signed(value)} ± {figures.significant(abs(halves[0] - halves[1]) / 2, 2)}"


def _training(run: Run, shown: Sequence[str], logged: set[str]) -> str:
    title = "Over training"
    if not logged:
        return _stack(title, markup.missing("Nothing of it was logged while the run trained."))

    def curves(metric: str) -> dict[str, Curve]:
        found = {name: run.curve(f"align/{metric}/{name}") for name in shown}
        return {name: _known(curve) for name, curve in found.items() if curve}

    def blocks(metric: str, less: str = "") -> dict[str, Curve]:
        return _over_blocks(run, shown, metric, less)

    drawn = []
    for where, what in (("embed_in", "input embedding"), ("embed_out", "output head")):
        drawn.append(
            _pair_curves(
                f"align-{where.replace('_', '-')}",
                f"Cosine in the {what}.",
                "Pieces that mean the same; thin lines are any two pieces of the two languages, "
                "and only the distance between the two lines counts.",
                curves(where),
                shown,
                behind=curves(f"{where}_between"),
                y_label="cosine",
            )
        )
    drawn += [
        _pair_curves(
            "align-hidden",
            "Hidden states, excess.",
            "The cosine of states that say the same less that of shuffled pairs, mean over the "
            "blocks; 0 is nothing in common.",
            blocks("hidden", "hidden_shuffled"),
            shown,
            y_label="cosine less shuffled",
        ),
        _pair_curves(
            "align-centred",
            "Hidden states, centred excess.",
            "The same after each language's mean state is taken away, so that no common "
            "direction can make it high.",
            blocks("hidden_centred"),
            shown,
            y_label="centred cosine less shuffled",
        ),
        _pair_curves(
            "align-retrieval",
            "Retrieval.",
            "How often the nearest sequence of the other language is the right one, mean over "
            f"the blocks; {_chance(run, shown)}.",
            blocks("retrieval"),
            shown,
            behind=curves("retrieval_chance"),
            y_label="% of the sequences",
            percent=True,
        ),
        _pair_curves(
            "align-gradient",
            "Gradients.",
            "The cosine of both languages' gradients on one sequence, mean over parameters; "
            "noise pulls it to 0, so read its direction and not its level.",
            curves("gradient"),
            shown,
            y_label="cosine",
        ),
        _share(run),
    ]
    drawn = [figure for figure in drawn if figure]
    cadence = ""
    every, share = run.curve("align/every"), run.curve("align/share").last
    if math.isfinite(every.last):
        cadence = f"Measured every {every.last:,.0f} steps in the end"
        if not every.last:
            times = len(every.steps)
            cadence = f"Measured {times} time{'s' * (times > 1)}, the last at step "
            cadence += f"{every.steps[-1]:,}: the budget allowed no more"
        cadence += (
            f", for {markup.percent(share)} of the run's time." if math.isfinite(share) else "."
        )
    if not drawn:
        return _stack(title, markup.missing("No pair of languages was measured."))
    return _stack(title, markup.pairs(drawn), markup.note(cadence) if cadence else "")


def _chance(run: Run, shown: Sequence[str]) -> str:
    """Returns what retrieval would be by chance while training, in words."""
    chances = [run.curve(f"align/retrieval_chance/{name}").last for name in shown]
    found = sorted({chance for chance in chances if math.isfinite(chance)})
    if not found:  # earlier runs have not written it
        pairs = run.config.evaluation.alignment.pairs
        return (
            f"by chance it is one in {pairs:,}, the number of sequences, unless the text has fewer"
        )
    ends = " to ".join(markup.percent(chance) for chance in dict.fromkeys((found[0], found[-1])))
    return f"thin lines are chance, {ends}"


def _pair_curves(
    name: str,
    title: str,
    reading: str,
    curves: Mapping[str, Curve],
    shown: Sequence[str],
    *,
    y_label: str,
    behind: Mapping[str, Curve] | None = None,
    percent: bool = False,
) -> str:
    if not curves:
        return ""
    drawn = figures.language_curves(
        name,
        f"{title} {markup.ends(curves, percent=percent)}",
        curves,
        tags=shown,
        behind=behind,
        y_label=y_label,
        percent=percent,
        height=270,
    )
    return markup.figure(drawn, title, reading)


def _share(run: Run) -> str:
    found = {tag: _known(curve) for tag, curve in run.curves("align/gradient_share").items()}
    curves = {tag: curve for tag, curve in found.items() if curve}
    if not curves:
        return ""
    title = "Each language's part in a step."
    drawn = figures.language_curves(
        "align-share",
        f"{title} {markup.ends(curves, percent=True)}",
        curves,
        tags=run.config.tags,
        y_label="% of the gradient of a batch",
        percent=True,
        height=270,
    )
    reading = (
        "How much of the batch's gradient comes from a language; the parts add up to 100 %, and "
        "one below 0 pulls the other way."
    )
    return markup.figure(drawn, title, reading)


def _over_blocks(run: Run, shown: Sequence[str], metric: str, less: str) -> dict[str, Curve]:
    """Returns the mean over the blocks of a metric that was logged of each layer."""
    found = {}
    for name in shown:
        steps, values = [], []
        layers = range(1, run.config.model.N + 1)
        for record in run.records:
            if f"align/{metric}/{name}/1" not in record:
                continue
            here = [_number(record.get(f"align/{metric}/{name}/{n}")) for n in layers]
            if less:
                others = [_number(record.get(f"align/{less}/{name}/{n}")) for n in layers]
                here = [x - y for x, y in zip(here, others, strict=True)]
            mean = _mean(here)
            if math.isfinite(mean):
                steps.append(record["step"])
                values.append(mean)
        if steps:
            found[name] = Curve(steps, values)
    return found


# By layer.


def _by_layer(run: Run, results: Mapping[str, Any]) -> str:
    hidden = {name: result.get("hidden") or {} for name, result in results.items()}
    drawn = _layer_figures(run, hidden, "align-layer")
    if not drawn:
        return ""
    kinds = {name: _compared(found)[0] for name, found in hidden.items()}
    notes = []
    one_by_one = [name for name, kind in kinds.items() if kind == "positions"]
    matched = [name for name, kind in kinds.items() if kind == "matched"]
    if one_by_one:
        notes.append(f"Equal positions are compared one by one in {', '.join(one_by_one)}.")
    if matched:
        notes.append(
            f"In {', '.join(matched)} positions are first assigned to each other, which makes "
            "cosines high for shuffled pairs too: only the excess can be set beside that of "
            "others. The rotation is that of whole sequences there."
        )
    apart = {name: found["without_shared"] for name, found in hidden.items() if _apart(found)}
    apart_figures = _layer_figures(run, apart, "align-apart") if apart else []
    return _stack(
        "By layer",
        markup.pairs(drawn),
        markup.note(" ".join(notes)),
        _folded(
            "The same without the positions whose id both languages have",
            [markup.pairs(apart_figures)],
            True,
        )
        if apart_figures
        else "",
    )


def _apart(found: Mapping[str, Any]) -> bool:
    return isinstance(found.get("without_shared"), Mapping)


def _layer_figures(run: Run, hidden: Mapping[str, Any], name: str) -> list[str]:
    """Returns the figures of the hidden states of several pairs over layers."""

    def of(get: Callable[[Mapping[str, Any]], Any], metric: str) -> dict[str, Line]:
        return {pair: _layers(_values(get(found), metric)) for pair, found in hidden.items()}

    def compared(found: Mapping[str, Any]) -> Any:
        return _compared(found)[1]

    def excess(get: Callable[[Mapping[str, Any]], Any], metric: str) -> dict[str, Line]:
        return {
            pair: _layers(
                _values(get(found), f"{metric}_excess"), _values(get(found), f"{metric}_error")
            )
            for pair, found in hidden.items()
        }

    def rotated(found: Mapping[str, Any]) -> Any:
        return _turned({"hidden": found})[1]

    def sentences(found: Mapping[str, Any]) -> Any:
        return found.get("sentences")

    retrieval = {pair: _layers(_retrieval(sentences(f))) for pair, f in hidden.items()}
    chances = {pair: _number(_at(found, "sentences", "chance")) for pair, found in hidden.items()}
    by_chance = {
        pair: _layers([chance] * len(retrieval[pair].y))
        for pair, chance in chances.items()
        if math.isfinite(chance)
    }
    known = sorted(chances[pair] for pair in by_chance)
    ends = " to ".join(markup.percent(end) for end in dict.fromkeys(known[:1] + known[-1:]))
    pale = f"pale lines are chance, {ends}" if known else "what chance would find was not written"
    zero = ("", 0.0)
    return [
        figure
        for figure in (
            _layer_figure(
                run,
                f"{name}-cosine",
                "Cosine.",
                "Strong lines are states that say the same, pale ones shuffled pairs: a high "
                "strong line means nothing if the pale one is as high.",
                of(compared, "cosine"),
                y_label="cosine",
                behind=of(compared, "cosine_shuffled"),
            ),
            _layer_figure(
                run,
                f"{name}-excess",
                "Excess of the cosine.",
                "The distance between the lines of the figure before, with one standard error; "
                "this is what the languages share.",
                excess(compared, "cosine"),
                y_label="cosine less shuffled",
                level=zero,
            ),
            _layer_figure(
                run,
                f"{name}-centred",
                "Centred excess.",
                "The excess after each language's mean is taken away; a value of more than "
                "two errors is content in common and no mere common direction.",
                excess(compared, "centred"),
                y_label="centred cosine less shuffled",
                level=zero,
            ),
            _layer_figure(
                run,
                f"{name}-rotation",
                "Excess after the best rotation.",
                "High here and near 0 in the centred figure: both languages have the same "
                "shape, turned against each other.",
                excess(rotated, "procrustes"),
                y_label="rotated cosine less shuffled",
                level=zero,
            ),
            _layer_figure(
                run,
                f"{name}-cka",
                "CKA of whole sequences, debiased.",
                "Whether sequences lie alike among each other, whatever the rotation; pale "
                "lines are shuffled pairs, which should be near 0.",
                of(sentences, "cka_debiased"),
                y_label="CKA",
                behind=of(sentences, "cka_debiased_shuffled"),
            ),
            _layer_figure(
                run,
                f"{name}-retrieval",
                "Retrieval.",
                "The part of the sequences whose nearest one in the other language is the right "
                f"one, after centring, as a mean of both directions; {pale}.",
                retrieval,
                y_label="part of the sequences",
                behind=by_chance,
            ),
        )
        if figure
    ]


def _layer_figure(
    run: Run,
    name: str,
    title: str,
    reading: str,
    drawn: Mapping[str, Line],
    **style: Any,
) -> str:
    last = run.config.model.N + 1
    return _line_figure(name, title, reading, drawn, list(drawn), layers=last, **style)


# Gradients.


def _gradients(results: Mapping[str, Any]) -> str:
    found = {name: result for name, result in results.items() if result.get("gradients")}
    blocks = {name: _gradients_of(name, found[name], i) for i, name in enumerate(found)}
    blocks = {name: block for name, block in blocks.items() if block}
    parts = []
    for place, (name, block) in enumerate(blocks.items()):
        parts.append(_folded(f"Gradients of {name}", [block], place >= _OPEN))
    if not parts:
        return ""
    note = markup.note(
        f"{_KEY_BIAS} has a frame and no colours: a constant added to all keys cancels in the "
        "softmax, so its gradient is rounding noise. Means leave it out where nothing else is "
        "said."
    )
    return _stack("Gradients", *parts, note)


def _gradients_of(name: str, result: Mapping[str, Any], index: int) -> str:
    """Returns the figures of the gradients of one pair."""
    found = result["gradients"]
    languages = [str(tag) for tag in result.get("languages") or name.split("-")]
    rows = [str(row) for row in found.get("rows") or []]
    mean, with_bias = _number(found.get("mean")), _number(found.get("mean_with_key_bias"))
    adam = _number(_at(found, "adam", "mean"))
    reading = "Red means that an update for one language helps the other."
    if math.isfinite(mean):
        reading += f" The mean is {_signed(mean)}{_plus_minus(found.get('mean_error'))}"
        if math.isfinite(with_bias):
            reading += f", and {_signed(with_bias)} with {_KEY_BIAS}"
        reading += f"; {_signed(adam)} as Adam scales them." if math.isfinite(adam) else "."
    maps = [
        _heat_map(
            f"{name}: cosine of the gradients on one sequence.",
            reading,
            rows,
            found.get("per_pair"),
        )
    ]
    corrected = _number(found.get("corrected_mean"))
    halves = [_number(value) for value in found.get("corrected_halves") or []]
    reading = (
        "The cosine of the expected gradients, which noise does not shrink; values beyond 1, and "
        "dashes, say that there is too much noise to tell."
    )
    if math.isfinite(corrected):
        reading += f" That of all together is {_signed(corrected)}"
        known = [_signed(value) if math.isfinite(value) else "unknown" for value in halves]
        reading += f"; of either half of the sequences {' and '.join(known)}." if known else "."
    maps.append(_heat_map(f"{name}: corrected for noise.", reading, rows, found.get("corrected")))
    maps = [drawn for drawn in maps if drawn]
    columns = max((len(row) for row in found.get("per_pair") or [[]] if row), default=0)
    beside = columns <= _WIDEST
    sizes = _batch_figure(name, languages, found, index)
    if beside:
        return markup.pairs([*maps, sizes]) if maps or sizes else ""
    return "\n".join(filter(None, [*maps, markup.pairs([sizes]) if sizes else ""]))


def _heat_map(title: str, reading: str, rows: Sequence[str], values: Any) -> str:
    values_RN = [_list(row) for row in values or []]
    if not rows or len(values_RN) != len(rows) or not any(values_RN):
        return ""
    drawn = alignment_figures.heat_map(
        f"{title} {len(rows)} parameters by layer. {reading}", rows, values_RN, _KEY_BIAS
    )
    label = markup.text(title)
    scrolling = f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
    return markup.figure(f"{scrolling}{drawn}</div>", title, reading)


def _batch_figure(name: str, languages: Sequence[str], found: Mapping[str, Any], index: int) -> str:
    """Returns the figure of the cosine of batches of several sizes."""
    batches = found.get("batches") or {}
    sizes = [float(size) for size in batches]
    a, b = languages
    names = {
        "same_content": "same text",
        "other_content": "other text",
        "within_a": f"within {a}",
        "within_b": f"within {b}",
    }

    def line(metric: str) -> Line:
        return Line(sizes, [_number(_at(batch, metric)) for batch in batches.values()])

    return _line_figure(
        f"align-batches-{index}",
        f"{name}: cosine by the size of the batch.",
        "Larger batches have less noise. Compare other text with the lines within one language, "
        "the most that noise allows; pale lines behind are those of half the size.",
        {text: line(metric) for metric, text in names.items()},
        list(names.values()),
        behind={
            names["within_a"]: line("halves_a"),
            names["within_b"]: line("halves_b"),
        },
        y_label="cosine",
        level=("", 0.0),
        x_label="sequences in a batch, log scale",
        ticks=sizes,
    )


# Embeddings.


def _frequency(results: Mapping[str, Any], shown: Sequence[str]) -> str:
    drawn = []
    for where, what in (("embed_in", "Input embedding"), ("embed_out", "Output head")):
        bins = {name: _at(result, where, "by_own_frequency") for name, result in results.items()}
        counted = "in its own language"
        if not any(bins.values()):  # written before both were counted
            bins = {name: _at(result, where, "by_frequency") for name, result in results.items()}
            counted = "in all languages of its text together"
        points = {name: _binned(found, "cosine") for name, found in bins.items()}
        level = {
            name: Line(points[name].x, [_number(_at(r, where, "between"))] * len(points[name].x))
            for name, r in results.items()
        }
        drawn.append(
            _line_figure(
                f"align-frequency-{where.replace('_', '-')}",
                f"{what}.",
                "The mean cosine of pieces that mean the same, by how often the rarer of the two "
                f"was trained on {counted}; pale is that of any two pieces. The outer bins hold "
                "few.",
                points,
                shown,
                behind=level,
                y_label="cosine",
                x_label=f"times trained on {counted}, log scale",
            )
        )
    drawn = [figure for figure in drawn if figure]
    return _stack("Embeddings by frequency", markup.pairs(drawn)) if drawn else ""


# Leak and probe.


def _telling(run: Run, found: Mapping[str, Any]) -> str:
    leak, probe = found.get("leak") or {}, found.get("probe") or {}
    tags = run.config.tags
    positions, reads, counted = {}, {}, "in its own language"
    for tag in (tag for tag in tags if tag in leak):
        positions[tag] = _over_positions(_list(_at(leak[tag], "leak", "by_position")))
        found_by = _at(leak[tag], "leak", "by_own_frequency_read")
        if not found_by:  # written before languages were counted apart
            counted = "in all languages of its text together"
            found_by = _at(leak[tag], "leak", "by_frequency_read")
        reads[tag] = _binned(found_by, "mean")
    drawn = [
        _line_figure(
            "align-leak-position",
            "Leak by position.",
            "The probability on ids of other languages; it should fall once the first ids have "
            "told the language. Later positions are means over ever longer stretches.",
            positions,
            tags,
            y_label="leak, log scale",
            x_label="ids read, log scale",
            log=True,
        ),
        _line_figure(
            "align-leak-read",
            "Leak by the id that was read.",
            f"By how often that id was trained on {counted}: a leak that is high on the left is "
            "due to rare ids. The outer bins hold few tokens.",
            reads,
            tags,
            y_label="leak, log scale",
            x_label=f"times trained on {counted}, log scale",
            log=True,
        ),
    ]
    names = {
        "accuracy": "language",
        "control": "control",
        "variance_explained": "variance",
    }
    scored = _number(probe.get("scored_on"))
    drawn.append(
        _line_figure(
            "align-probe",
            "Reading the language off the states.",
            "A linear probe's accuracy on unseen pieces, beside a control task of random labels, "
            "which is what it can learn by heart. High accuracy with a small part of the "
            "variance between languages is one faint direction."
            + (f" {scored:,.0f} positions were scored." if math.isfinite(scored) else ""),
            {text: _layers(_values(probe, metric)) for metric, text in names.items()},
            list(names.values()),
            y_label="accuracy, and part of the variance",
            level=("chance", _number(probe.get("chance"))),
            layers=run.config.model.N + 1,
        )
    )
    drawn = [figure for figure in drawn if figure]
    return _stack("Telling the languages apart", markup.pairs(drawn)) if drawn else ""


def _over_positions(values: Sequence[float]) -> Line:
    """Returns values over positions 1, 2, ..., those further on averaged in growing bins."""
    x, y, first = [], [], 1
    while first <= len(values):
        end = max(first + 1, math.ceil(first * 1.12))
        here = [value for value in values[first - 1 : end - 1] if math.isfinite(value)]
        if here:
            x.append((first + min(end - 1, len(values))) / 2)
            y.append(_mean(here))
        first = end
    return Line(x, y)


# Transfer.


def _transfer(results: Mapping[str, Any]) -> str:
    """Returns the tables of losses after text in another language."""
    seen, prefix = [], []
    reasons: dict[str, list[str]] = {}  # -> what was asked
    for result in results.values():
        for asked, found in (result.get("seen") or {}).items():
            if _at(found, "skipped"):
                reasons.setdefault(str(found["skipped"]), []).append(asked)
                continue
            seen.append(
                [
                    markup.text(asked),
                    _cell(_at(found, "seen"), markup.count),
                    _cell(_at(found, "unseen"), markup.count),
                    _cell(_at(found, "in_second", "seen"), _nats),
                    _cell(_at(found, "in_second", "unseen"), _nats),
                    _with_error(_at(found, "in_second"), "gain"),
                    _with_error(_at(found, "in_first"), "gain"),
                ]
            )
        for asked, found in (result.get("prefix") or {}).items():
            prefix.append(
                [
                    markup.text(asked),
                    _cell(_at(found, "sequences"), markup.count),
                    _cell(_at(found, "none"), _nats),
                    _cell(_at(found, "unrelated"), _nats),
                    _cell(_at(found, "related"), _nats),
                    _with_error(found, "gain"),
                    _with_error(found, "gain_own"),
                ]
            )
    parts = []
    if seen:
        header = ["seen and scored", "windows seen", "never seen", "loss of seen"]
        header += ["loss of never seen", "gain", "gain in the language seen"]
        caption = (
            "Text that training showed in one language only, scored in the other, in nats per "
            "token: a gain of more than two errors is transfer."
        )
        table = markup.table(header, seen, caption)
        parts.append(_folded(f"Seen text, {len(seen)} rows", [table], len(seen) > _ROWS))
    if reasons:
        notes = [
            markup.note(f"{_named(asked)}: not measured, because {reason}.")
            for reason, asked in reasons.items()
        ]
        parts += notes
    if prefix:
        header = ["prefix and scored", "sequences", "loss, no prefix", "unrelated prefix"]
        header += ["related prefix", "gain", "gain of a prefix in its own language"]
        caption = (
            "Text after a prefix in another language that belongs before it, in nats per token: "
            "the gain is over an unrelated prefix at the same positions."
        )
        table = markup.table(header, prefix, caption)
        parts.append(_folded(f"Prefixes, {len(prefix)} rows", [table], len(prefix) > _ROWS))
    return _stack("Transfer in behaviour", *parts) if parts else ""


# The optimizer's view.

_OPTIMIZER = {
    "embed_norm": "norm of an embedding row",
    "head_norm": "norm of a head row",
    "gradient_share": "part of the gradient",
    "gradient_share_blocks": "part, blocks only",
    "gradient_norm": "norm of its gradient",
}


def _optimizer(run: Run, found: Mapping[str, Any], logged: set[str]) -> str:
    """Returns a table of what each language has in the tables and in a batch's gradient."""
    given = found.get("optimizer") or {}
    values: dict[str, dict[str, float]] = {}
    for metric in _OPTIMIZER:
        for tag in run.config.tags:
            value = _number(_at(given, metric, tag))
            if not given and f"align/{metric}/{tag}" in logged:
                value = run.curve(f"align/{metric}/{tag}").last
            if math.isfinite(value):
                values.setdefault(metric, {})[tag] = value
    if not values:
        return ""
    shown = [metric for metric in _OPTIMIZER if metric in values]
    rows = []
    for tag in run.config.tags:
        cells = [markup.swatch(run.config.tags, tag)]
        for metric in shown:
            share = metric.startswith("gradient_share")
            write = _whole_percent if share else figures.significant
            cells.append(_cell(values[metric].get(tag), write))
        rows.append(cells)
    when = "" if given else "As last logged. "
    caption = f"{when}Mean norms of a language's rows, and its part in the gradient of one batch."
    table = markup.table(["language", *(_OPTIMIZER[metric] for metric in shown)], rows, caption)
    return _stack("What the optimizer sees", table)


# Pieces of HTML.


def _stack(title: str, *parts: str) -> str:
    """Args: `title` is plain text."""
    inside = "\n".join([f"<h3>{markup.text(title)}</h3>", *filter(None, parts)])
    return f'<div class="stack">\n{inside}\n</div>'


def _folded(title: str, parts: Sequence[str], folded: bool) -> str:
    """Returns the parts, behind their title if they are to be folded away."""
    inside = "\n".join(parts)
    if not folded or not inside:
        return inside
    return f"<details>\n<summary>{markup.text(title)}</summary>\n{inside}\n</details>"


def _line_figure(
    name: str,
    title: str,
    reading: str,
    drawn: Mapping[str, Line],
    names: Sequence[str],
    *,
    behind: Mapping[str, Line] | None = None,
    **style: Any,
) -> str:
    """Returns a figure of lines, or nothing where no value is known."""
    log_x, log_y = not style.get("layers"), style.get("log", False)
    known = {tag: line.known(log_x, log_y) for tag, line in drawn.items()}
    known = {tag: line for tag, line in known.items() if line}
    if not known:
        return ""
    listed = ", ".join(
        f"{tag} from {figures.significant(line.y[0])} to {figures.significant(line.y[-1])}"
        for tag, line in known.items()
    )
    svg = alignment_figures.lines(
        name, f"{title} From left to right: {listed}.", drawn, names=names, behind=behind, **style
    )
    return markup.figure(svg, title, reading)


def _cell(value: Any, write: Callable[[float], str]) -> str:
    number = _number(value)
    return markup.data(number if math.isfinite(number) else None, write)


def _beside_chance(value: float, chance: Any) -> str:
    """Returns a cell of a part that is found, with what chance would find."""
    by_chance = _number(chance)
    written = _cell(value, markup.percent)
    if not math.isfinite(value) or not math.isfinite(by_chance):
        return written
    return f"{written} ({markup.percent(by_chance)})"


def _with_error(found: Any, name: str) -> str:
    """Returns a cell of a value and its standard error."""
    return _cell(_at(found, name), _signed) + _plus_minus(_at(found, f"{name}_error"))


def _plus_minus(error: Any) -> str:
    number = _number(error)
    return f" ± {number:.3f}" if math.isfinite(number) else ""


def _named(names: Sequence[str]) -> str:
    more = len(names) - 4
    return "; ".join(names[:4]) + (f"; and {more:,} more" if more > 0 else "")


# Numbers of a JSON file, any of which may be null or absent.


def _at(tree: Any, *path: str) -> Any:
    """Returns what lies at a path, or None."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _number(value: Any) -> float:
    """Returns a finite number, or NaN."""
    number = markup.number(value)
    return number if math.isfinite(number) else math.nan


def _list(values: Any) -> list[float]:
    return [_number(value) for value in values] if isinstance(values, list) else []


def _values(found: Any, name: str) -> list[float]:
    return _list(_at(found, name))


def _mean(values: Sequence[float]) -> float:
    """Returns the mean, NaN if any of the values is or if there are none."""
    return math.fsum(values) / len(values) if values else math.nan


def _block_mean(run: Run, values: Sequence[float]) -> float:
    """Returns the mean over the blocks of values of every layer."""
    return _mean(values[1 : run.config.model.N + 1])


def _compared(hidden: Any) -> tuple[str, Any]:
    """Returns how positions are compared, and what was found so."""
    for kind in ("positions", "matched"):
        if _at(hidden, kind):
            return kind, _at(hidden, kind)
    return "", None


def _turned(result: Mapping[str, Any]) -> tuple[str, Any]:
    """Returns what was compared after a rotation: positions, or else whole sequences."""
    for kind in ("positions", "sentences"):
        if _values(_at(result, "hidden", kind), "procrustes_excess"):
            return kind, _at(result, "hidden", kind)
    return "", None


def _retrieval(sentences: Any) -> list[float]:
    both = [_values(sentences, f"centred_retrieval_{way}") for way in ("forth", "back")]
    return [(forth + back) / 2 for forth, back in zip(*both, strict=False)]


def _layers(values: Sequence[float], errors: Sequence[float] = ()) -> Line:
    return Line([float(n) for n in range(len(values))], values, errors)


def _binned(found: Any, name: str) -> Line:
    """Returns the value of each bin at the middle of its logarithmic width."""
    edges = zip(_values(found, "low"), _values(found, "high"), strict=False)
    middles = [math.sqrt(low * high) if low > 0 < high else math.nan for low, high in edges]
    return Line(middles, _values(found, name))


def _known(curve: Curve) -> Curve:
    """Returns the points of a curve that are finite."""
    points = [
        (step, value)
        for step, value in zip(curve.steps, curve.values, strict=True)
        if math.isfinite(value)
    ]
    return Curve([step for step, _ in points], [value for _, value in points])


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _nats(value: float) -> str:
    return f"{value:.3f}"


def _whole_percent(value: float) -> str:
    return f"{100 * value:.1f} %".replace("-", "−")
