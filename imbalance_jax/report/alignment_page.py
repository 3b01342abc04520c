"""The part of a run's page on what its languages have in common.

`render_alignment_section` puts it together from two places: what was logged under `align/` in
metrics.jsonl as the run trained, and the `alignment` of evaluation.json. Either may be missing,
and so may any
number: a figure shows what there is and is left out where there is nothing. Figures show the
first few pairs of languages, tables show all of them.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from imbalance_jax.drawing import alignment_figures, markup
from imbalance_jax.drawing import plots as figures
from imbalance_jax.drawing.alignment_figures import AlignmentLine
from imbalance_jax.drawing.plots import Curve
from imbalance_jax.report.record import RunContents

_PAIRS = 6  # pairs that figures show
_OPEN = 2  # pairs whose gradients are not folded away
_ROWS = 12  # rows from which on a table is folded away
_WIDEST = 9  # layers of which two heat maps fit side by side
_KEY_BIAS = "attn K.bias"


def render_alignment_section(run: RunContents) -> str:
    """Returns the section, or nothing where nothing was measured."""
    found = run.evaluation.get("alignment") or {}
    logged = {name for record in run.records for name in record if name.startswith("align/")}
    if not found and not logged:
        return ""
    results = found.get("pairs") or {}
    pairs = _list_language_pairs(run, results, logged)
    shown = pairs[:_PAIRS]
    alone = len(run.config.tags) == 1
    notes = [
        markup.render_note("The run has one language, and so no pair of languages to compare.")
        if alone
        else markup.render_note(
            "A raw cosine alone says nothing: states that all point one way have high cosines "
            "whatever they say. Look at the excess over shuffled pairs, which are sequences of "
            "like length that say different things, and at what is left of it once each "
            "language's mean is taken away (centred)."
        )
    ]
    if len(pairs) > len(shown):
        notes.append(
            markup.render_note(
                f"The figures show the first {len(shown)} of {len(pairs)} pairs: "
                f"{', '.join(shown)}. The other {len(pairs) - len(shown)} are left out of them; "
                "tables have all pairs."
            )
        )
    if not found:
        notes.append(
            markup.render_missing_note(
                "evaluation.json has no alignment. Layers, gradients, frequencies, leak and "
                "transfer are measured by <code>python -m imbalance_jax.evaluate</code>."
            )
        )
    parts = [
        f'<div class="stack">{"".join([*notes, _render_skipped_pairs(found)])}</div>',
        _render_pair_summary(
            run, found, {name: results[name] for name in pairs if name in results}
        ),
        "" if alone else _render_training_curves(run, shown, logged),
        _render_hidden_states(run, {name: results[name] for name in shown if name in results}),
        _render_gradients({name: results[name] for name in shown if name in results}),
        _render_frequency_figures(
            {name: results[name] for name in shown if name in results}, shown
        ),
        _render_leak_and_probe(run, found),
        _render_transfer_tables({name: results[name] for name in pairs if name in results}),
        _render_optimizer_table(run, found, logged),
    ]
    return markup.render_section("Alignment", *filter(None, parts))


def _list_language_pairs(
    run: RunContents, results: Mapping[str, Any], logged: Iterable[str]
) -> list[str]:
    """Returns the pairs of languages that anything is known of, in the order of the config."""
    possible = [f"{a}-{b}" for a, b in itertools.combinations(run.config.tags, 2)]
    known = {*results} | {part for name in logged for part in name.split("/")[2:3]}
    others = [name for name in results if name not in possible]
    return [name for name in possible if name in known] + others


def _render_skipped_pairs(found: Mapping[str, Any]) -> str:
    reasons = [str(reason) for reason in (found.get("skipped") or {}).values()]
    notes = [markup.render_note(reason) for reason in reasons]
    return _fold_parts(f"{len(notes)} pairs that are not measured", notes, len(notes) > 3)


# Summary.


def _render_pair_summary(
    run: RunContents, found: Mapping[str, Any], results: Mapping[str, Any]
) -> str:
    """Returns a table of every pair."""
    if not results:
        return ""
    rows = []
    for name, result in results.items():
        _, compared = _find_compared_states(result.get("hidden"))
        sentences = _get_nested_value(result, "hidden", "sentences")
        table = result.get("embed_in")
        raised = _parse_finite_number(_get_nested_value(table, "cosine")) - _parse_finite_number(
            _get_nested_value(table, "between")
        )
        gradients = result.get("gradients")
        rows.append(
            [
                markup.escape_text(name),
                _render_number_cell(result.get("sequences"), markup.format_count),
                _render_number_cell(raised, _format_signed_decimals),
                _render_number_cell(
                    _compute_block_mean(run, _get_number_list(compared, "cosine_excess")),
                    _format_signed_decimals,
                ),
                _render_number_cell(
                    _compute_block_mean(run, _get_number_list(compared, "centred_excess")),
                    _format_signed_decimals,
                ),
                _render_number_cell(
                    _compute_block_mean(
                        run, _get_number_list(_find_rotated_states(result)[1], "procrustes_excess")
                    ),
                    _format_signed_decimals,
                ),
                _render_number_cell(
                    _compute_block_mean(run, _get_number_list(sentences, "cka_debiased")),
                    _format_signed_decimals,
                ),
                _render_cell_with_chance(
                    _compute_block_mean(run, _average_retrieval(sentences)),
                    _get_nested_value(sentences, "chance"),
                ),
                _render_cell_with_error(gradients, "mean"),
                _format_corrected_cosine(gradients),
            ]
        )
    header = ["pair", "sequences", "embedding, excess", "hidden, excess", "hidden, centred excess"]
    header += ["hidden, excess after rotation", "CKA, debiased", "retrieval (by chance)"]
    header += ["gradient cosine", "gradient cosine, corrected"]
    step = run.evaluation.get("step")
    table = markup.render_table(
        header,
        rows,
        f"The {found.get('split', 'test')} split"
        + (f" after step {step:,}" if isinstance(step, int) else "")
        + ", means over the blocks; ± is one standard error.",
    )
    note = markup.render_note(
        "The embedding's excess is the cosine of pieces that mean the same, less that of any two "
        "pieces of the two languages. Retrieval is how often the nearest sequence of the other "
        "language is the right one, after centring. The corrected gradient cosine is an estimate "
        "without the noise of single sequences; it may lie beyond 1, or not exist, where noise "
        "is all there is."
    )
    return _render_stack(
        "All pairs", _fold_parts(f"{len(rows)} pairs", [table], len(rows) > _ROWS), note
    )


# While training.


def _format_corrected_cosine(gradients: Any) -> str:
    """Returns the corrected cosine, and half of what its halves are apart; if all are known."""
    halves = [
        _parse_finite_number(value)
        for value in _get_nested_value(gradients, "corrected_halves") or []
    ]
    value = _parse_finite_number(_get_nested_value(gradients, "corrected_mean"))
    if len(halves) != 2 or not all(map(math.isfinite, [value, *halves])):
        return markup.ABSENT
    return (
        f"{_format_signed_decimals(value)} ± "
        f"{figures.format_significant(abs(halves[0] - halves[1]) / 2, 2)}"
    )


def _render_training_curves(run: RunContents, shown: Sequence[str], logged: set[str]) -> str:
    title = "Over training"
    if not logged:
        return _render_stack(
            title, markup.render_missing_note("Nothing of it was logged while the run trained.")
        )

    def curves(metric: str) -> dict[str, Curve]:
        found = {name: run.curve(f"align/{metric}/{name}") for name in shown}
        return {name: _keep_finite_points(curve) for name, curve in found.items() if curve}

    def blocks(metric: str, less: str = "") -> dict[str, Curve]:
        return _average_logged_blocks(run, shown, metric, less)

    drawn = []
    for where, what in (("embed_in", "input embedding"), ("embed_out", "output head")):
        drawn.append(
            _render_pair_curves(
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
        _render_pair_curves(
            "align-hidden",
            "Hidden states, excess.",
            "The cosine of states that say the same less that of shuffled pairs, mean over the "
            "blocks; 0 is nothing in common.",
            blocks("hidden", "hidden_shuffled"),
            shown,
            y_label="cosine less shuffled",
        ),
        _render_pair_curves(
            "align-centred",
            "Hidden states, centred excess.",
            "The same after each language's mean state is taken away, so that no common "
            "direction can make it high.",
            blocks("hidden_centred"),
            shown,
            y_label="centred cosine less shuffled",
        ),
        _render_pair_curves(
            "align-retrieval",
            "Retrieval.",
            "How often the nearest sequence of the other language is the right one, mean over "
            f"the blocks; {_describe_retrieval_chance(run, shown)}.",
            blocks("retrieval"),
            shown,
            behind=curves("retrieval_chance"),
            y_label="% of the sequences",
            percent=True,
        ),
        _render_pair_curves(
            "align-gradient",
            "Gradients.",
            "The cosine of both languages' gradients on one sequence, mean over parameters; "
            "noise pulls it to 0, so read its direction and not its level.",
            curves("gradient"),
            shown,
            y_label="cosine",
        ),
        _render_gradient_shares(run),
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
            f", for {markup.format_percent(share)} of the run's time."
            if math.isfinite(share)
            else "."
        )
    if not drawn:
        return _render_stack(
            title, markup.render_missing_note("No pair of languages was measured.")
        )
    return _render_stack(
        title, markup.render_side_by_side(drawn), markup.render_note(cadence) if cadence else ""
    )


def _describe_retrieval_chance(run: RunContents, shown: Sequence[str]) -> str:
    """Returns what retrieval would be by chance while training, in words."""
    chances = [run.curve(f"align/retrieval_chance/{name}").last for name in shown]
    found = sorted({chance for chance in chances if math.isfinite(chance)})
    if not found:  # earlier runs have not written it
        pairs = run.config.evaluation.alignment.pairs
        return (
            f"by chance it is one in {pairs:,}, the number of sequences, unless the text has fewer"
        )
    ends = " to ".join(
        markup.format_percent(chance) for chance in dict.fromkeys((found[0], found[-1]))
    )
    return f"thin lines are chance, {ends}"


def _render_pair_curves(
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
    drawn = figures.plot_language_curves(
        name,
        f"{title} {markup.describe_curve_ends(curves, percent=percent)}",
        curves,
        tags=shown,
        behind=behind,
        y_label=y_label,
        percent=percent,
        height=270,
    )
    return markup.render_figure(drawn, title, reading)


def _render_gradient_shares(run: RunContents) -> str:
    found = {
        tag: _keep_finite_points(curve) for tag, curve in run.curves("align/gradient_share").items()
    }
    curves = {tag: curve for tag, curve in found.items() if curve}
    if not curves:
        return ""
    title = "Each language's part in a step."
    drawn = figures.plot_language_curves(
        "align-share",
        f"{title} {markup.describe_curve_ends(curves, percent=True)}",
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
    return markup.render_figure(drawn, title, reading)


def _average_logged_blocks(
    run: RunContents, shown: Sequence[str], metric: str, less: str
) -> dict[str, Curve]:
    """Returns the mean over the blocks of a metric that was logged of each layer."""
    found = {}
    for name in shown:
        steps, values = [], []
        layers = range(1, run.config.model.N + 1)
        for record in run.records:
            if f"align/{metric}/{name}/1" not in record:
                continue
            here = [_parse_finite_number(record.get(f"align/{metric}/{name}/{n}")) for n in layers]
            if less:
                others = [
                    _parse_finite_number(record.get(f"align/{less}/{name}/{n}")) for n in layers
                ]
                here = [x - y for x, y in zip(here, others, strict=True)]
            mean = _compute_mean(here)
            if math.isfinite(mean):
                steps.append(record["step"])
                values.append(mean)
        if steps:
            found[name] = Curve(steps, values)
    return found


# By layer.


def _render_hidden_states(run: RunContents, results: Mapping[str, Any]) -> str:
    hidden = {name: result.get("hidden") or {} for name, result in results.items()}
    drawn = _render_hidden_figures(run, hidden, "align-layer")
    if not drawn:
        return ""
    kinds = {name: _find_compared_states(found)[0] for name, found in hidden.items()}
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
    apart = {
        name: found["without_shared"]
        for name, found in hidden.items()
        if _has_unshared_results(found)
    }
    apart_figures = _render_hidden_figures(run, apart, "align-apart") if apart else []
    return _render_stack(
        "By layer",
        markup.render_side_by_side(drawn),
        markup.render_note(" ".join(notes)),
        _fold_parts(
            "The same without the positions whose id both languages have",
            [markup.render_side_by_side(apart_figures)],
            True,
        )
        if apart_figures
        else "",
    )


def _has_unshared_results(found: Mapping[str, Any]) -> bool:
    return isinstance(found.get("without_shared"), Mapping)


def _render_hidden_figures(run: RunContents, hidden: Mapping[str, Any], name: str) -> list[str]:
    """Returns the figures of the hidden states of several pairs over layers."""

    def of(get: Callable[[Mapping[str, Any]], Any], metric: str) -> dict[str, AlignmentLine]:
        return {
            pair: _make_layer_line(_get_number_list(get(found), metric))
            for pair, found in hidden.items()
        }

    def compared(found: Mapping[str, Any]) -> Any:
        return _find_compared_states(found)[1]

    def excess(get: Callable[[Mapping[str, Any]], Any], metric: str) -> dict[str, AlignmentLine]:
        return {
            pair: _make_layer_line(
                _get_number_list(get(found), f"{metric}_excess"),
                _get_number_list(get(found), f"{metric}_error"),
            )
            for pair, found in hidden.items()
        }

    def rotated(found: Mapping[str, Any]) -> Any:
        return _find_rotated_states({"hidden": found})[1]

    def sentences(found: Mapping[str, Any]) -> Any:
        return found.get("sentences")

    retrieval = {
        pair: _make_layer_line(_average_retrieval(sentences(f))) for pair, f in hidden.items()
    }
    chances = {
        pair: _parse_finite_number(_get_nested_value(found, "sentences", "chance"))
        for pair, found in hidden.items()
    }
    by_chance = {
        pair: _make_layer_line([chance] * len(retrieval[pair].y))
        for pair, chance in chances.items()
        if math.isfinite(chance)
    }
    known = sorted(chances[pair] for pair in by_chance)
    ends = " to ".join(markup.format_percent(end) for end in dict.fromkeys(known[:1] + known[-1:]))
    pale = f"pale lines are chance, {ends}" if known else "what chance would find was not written"
    zero = ("", 0.0)
    return [
        figure
        for figure in (
            _render_layer_figure(
                run,
                f"{name}-cosine",
                "Cosine.",
                "Strong lines are states that say the same, pale ones shuffled pairs: a high "
                "strong line means nothing if the pale one is as high.",
                of(compared, "cosine"),
                y_label="cosine",
                behind=of(compared, "cosine_shuffled"),
            ),
            _render_layer_figure(
                run,
                f"{name}-excess",
                "Excess of the cosine.",
                "The distance between the lines of the figure before, with one standard error; "
                "this is what the languages share.",
                excess(compared, "cosine"),
                y_label="cosine less shuffled",
                level=zero,
            ),
            _render_layer_figure(
                run,
                f"{name}-centred",
                "Centred excess.",
                "The excess after each language's mean is taken away; a value of more than "
                "two errors is content in common and no mere common direction.",
                excess(compared, "centred"),
                y_label="centred cosine less shuffled",
                level=zero,
            ),
            _render_layer_figure(
                run,
                f"{name}-rotation",
                "Excess after the best rotation.",
                "High here and near 0 in the centred figure: both languages have the same "
                "shape, turned against each other.",
                excess(rotated, "procrustes"),
                y_label="rotated cosine less shuffled",
                level=zero,
            ),
            _render_layer_figure(
                run,
                f"{name}-cka",
                "CKA of whole sequences, debiased.",
                "Whether sequences lie alike among each other, whatever the rotation; pale "
                "lines are shuffled pairs, which should be near 0.",
                of(sentences, "cka_debiased"),
                y_label="CKA",
                behind=of(sentences, "cka_debiased_shuffled"),
            ),
            _render_layer_figure(
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


def _render_layer_figure(
    run: RunContents,
    name: str,
    title: str,
    reading: str,
    drawn: Mapping[str, AlignmentLine],
    **style: Any,
) -> str:
    last = run.config.model.N + 1
    return _render_line_figure(name, title, reading, drawn, list(drawn), layers=last, **style)


# Gradients.


def _render_gradients(results: Mapping[str, Any]) -> str:
    found = {name: result for name, result in results.items() if result.get("gradients")}
    blocks = {name: _render_pair_gradients(name, found[name], i) for i, name in enumerate(found)}
    blocks = {name: block for name, block in blocks.items() if block}
    parts = []
    for place, (name, block) in enumerate(blocks.items()):
        parts.append(_fold_parts(f"Gradients of {name}", [block], place >= _OPEN))
    if not parts:
        return ""
    note = markup.render_note(
        f"{_KEY_BIAS} has a frame and no colours: a constant added to all keys cancels in the "
        "softmax, so its gradient is rounding noise. Means leave it out where nothing else is "
        "said."
    )
    return _render_stack("Gradients", *parts, note)


def _render_pair_gradients(name: str, result: Mapping[str, Any], index: int) -> str:
    """Returns the figures of the gradients of one pair."""
    found = result["gradients"]
    languages = [str(tag) for tag in result.get("languages") or name.split("-")]
    rows = [str(row) for row in found.get("rows") or []]
    mean, with_bias = (
        _parse_finite_number(found.get("mean")),
        _parse_finite_number(found.get("mean_with_key_bias")),
    )
    adam = _parse_finite_number(_get_nested_value(found, "adam", "mean"))
    reading = "Red means that an update for one language helps the other."
    if math.isfinite(mean):
        reading += (
            " The mean is "
            f"{_format_signed_decimals(mean)}{_format_standard_error(found.get('mean_error'))}"
        )
        if math.isfinite(with_bias):
            reading += f", and {_format_signed_decimals(with_bias)} with {_KEY_BIAS}"
        reading += (
            f"; {_format_signed_decimals(adam)} as Adam scales them."
            if math.isfinite(adam)
            else "."
        )
    maps = [
        _render_gradient_map(
            f"{name}: cosine of the gradients on one sequence.",
            reading,
            rows,
            found.get("per_pair"),
        )
    ]
    corrected = _parse_finite_number(found.get("corrected_mean"))
    halves = [_parse_finite_number(value) for value in found.get("corrected_halves") or []]
    reading = (
        "The cosine of the expected gradients, which noise does not shrink; values beyond 1, and "
        "dashes, say that there is too much noise to tell."
    )
    if math.isfinite(corrected):
        reading += f" That of all together is {_format_signed_decimals(corrected)}"
        known = [
            _format_signed_decimals(value) if math.isfinite(value) else "unknown"
            for value in halves
        ]
        reading += f"; of either half of the sequences {' and '.join(known)}." if known else "."
    maps.append(
        _render_gradient_map(f"{name}: corrected for noise.", reading, rows, found.get("corrected"))
    )
    maps = [drawn for drawn in maps if drawn]
    columns = max((len(row) for row in found.get("per_pair") or [[]] if row), default=0)
    beside = columns <= _WIDEST
    sizes = _render_batch_figure(name, languages, found, index)
    if beside:
        return markup.render_side_by_side([*maps, sizes]) if maps or sizes else ""
    return "\n".join(filter(None, [*maps, markup.render_side_by_side([sizes]) if sizes else ""]))


def _render_gradient_map(title: str, reading: str, rows: Sequence[str], values: Any) -> str:
    values_RN = [_parse_numbers(row) for row in values or []]
    if not rows or len(values_RN) != len(rows) or not any(values_RN):
        return ""
    drawn = alignment_figures.plot_heat_map(
        f"{title} {len(rows)} parameters by layer. {reading}", rows, values_RN, _KEY_BIAS
    )
    label = markup.escape_text(title)
    scrolling = f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
    return markup.render_figure(f"{scrolling}{drawn}</div>", title, reading)


def _render_batch_figure(
    name: str, languages: Sequence[str], found: Mapping[str, Any], index: int
) -> str:
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

    def line(metric: str) -> AlignmentLine:
        return AlignmentLine(
            sizes,
            [_parse_finite_number(_get_nested_value(batch, metric)) for batch in batches.values()],
        )

    return _render_line_figure(
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


def _render_frequency_figures(results: Mapping[str, Any], shown: Sequence[str]) -> str:
    drawn = []
    for where, what in (("embed_in", "Input embedding"), ("embed_out", "Output head")):
        bins = {
            name: _get_nested_value(result, where, "by_own_frequency")
            for name, result in results.items()
        }
        counted = "in its own language"
        if not any(bins.values()):  # written before both were counted
            bins = {
                name: _get_nested_value(result, where, "by_frequency")
                for name, result in results.items()
            }
            counted = "in all languages of its text together"
        points = {name: _make_binned_line(found, "cosine") for name, found in bins.items()}
        level = {
            name: AlignmentLine(
                points[name].x,
                [_parse_finite_number(_get_nested_value(r, where, "between"))]
                * len(points[name].x),
            )
            for name, r in results.items()
        }
        drawn.append(
            _render_line_figure(
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
    return (
        _render_stack("Embeddings by frequency", markup.render_side_by_side(drawn)) if drawn else ""
    )


# Leak and probe.


def _render_leak_and_probe(run: RunContents, found: Mapping[str, Any]) -> str:
    leak, probe = found.get("leak") or {}, found.get("probe") or {}
    tags = run.config.tags
    positions, reads, counted = {}, {}, "in its own language"
    for tag in (tag for tag in tags if tag in leak):
        positions[tag] = _average_position_bins(
            _parse_numbers(_get_nested_value(leak[tag], "leak", "by_position"))
        )
        found_by = _get_nested_value(leak[tag], "leak", "by_own_frequency_read")
        if not found_by:  # written before languages were counted apart
            counted = "in all languages of its text together"
            found_by = _get_nested_value(leak[tag], "leak", "by_frequency_read")
        reads[tag] = _make_binned_line(found_by, "mean")
    drawn = [
        _render_line_figure(
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
        _render_line_figure(
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
    scored = _parse_finite_number(probe.get("scored_on"))
    drawn.append(
        _render_line_figure(
            "align-probe",
            "Reading the language off the states.",
            "A linear probe's accuracy on unseen pieces, beside a control task of random labels, "
            "which is what it can learn by heart. High accuracy with a small part of the "
            "variance between languages is one faint direction."
            + (f" {scored:,.0f} positions were scored." if math.isfinite(scored) else ""),
            {
                text: _make_layer_line(_get_number_list(probe, metric))
                for metric, text in names.items()
            },
            list(names.values()),
            y_label="accuracy, and part of the variance",
            level=("chance", _parse_finite_number(probe.get("chance"))),
            layers=run.config.model.N + 1,
        )
    )
    drawn = [figure for figure in drawn if figure]
    return (
        _render_stack("Telling the languages apart", markup.render_side_by_side(drawn))
        if drawn
        else ""
    )


def _average_position_bins(values: Sequence[float]) -> AlignmentLine:
    """Returns values over positions 1, 2, ..., those further on averaged in growing bins."""
    x, y, first = [], [], 1
    while first <= len(values):
        end = max(first + 1, math.ceil(first * 1.12))
        here = [value for value in values[first - 1 : end - 1] if math.isfinite(value)]
        if here:
            x.append((first + min(end - 1, len(values))) / 2)
            y.append(_compute_mean(here))
        first = end
    return AlignmentLine(x, y)


# Transfer.


def _render_transfer_tables(results: Mapping[str, Any]) -> str:
    """Returns the tables of losses after text in another language."""
    seen, prefix = [], []
    reasons: dict[str, list[str]] = {}  # -> what was asked
    for result in results.values():
        for asked, found in (result.get("seen") or {}).items():
            if _get_nested_value(found, "skipped"):
                reasons.setdefault(str(found["skipped"]), []).append(asked)
                continue
            seen.append(
                [
                    markup.escape_text(asked),
                    _render_number_cell(_get_nested_value(found, "seen"), markup.format_count),
                    _render_number_cell(_get_nested_value(found, "unseen"), markup.format_count),
                    _render_number_cell(
                        _get_nested_value(found, "in_second", "seen"), _format_nats
                    ),
                    _render_number_cell(
                        _get_nested_value(found, "in_second", "unseen"), _format_nats
                    ),
                    _render_cell_with_error(_get_nested_value(found, "in_second"), "gain"),
                    _render_cell_with_error(_get_nested_value(found, "in_first"), "gain"),
                ]
            )
        for asked, found in (result.get("prefix") or {}).items():
            prefix.append(
                [
                    markup.escape_text(asked),
                    _render_number_cell(_get_nested_value(found, "sequences"), markup.format_count),
                    _render_number_cell(_get_nested_value(found, "none"), _format_nats),
                    _render_number_cell(_get_nested_value(found, "unrelated"), _format_nats),
                    _render_number_cell(_get_nested_value(found, "related"), _format_nats),
                    _render_cell_with_error(found, "gain"),
                    _render_cell_with_error(found, "gain_own"),
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
        table = markup.render_table(header, seen, caption)
        parts.append(_fold_parts(f"Seen text, {len(seen)} rows", [table], len(seen) > _ROWS))
    if reasons:
        notes = [
            markup.render_note(f"{_join_first_names(asked)}: not measured, because {reason}.")
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
        table = markup.render_table(header, prefix, caption)
        parts.append(_fold_parts(f"Prefixes, {len(prefix)} rows", [table], len(prefix) > _ROWS))
    return _render_stack("Transfer in behaviour", *parts) if parts else ""


# The optimizer's view.

_OPTIMIZER = {
    "embed_norm": "norm of an embedding row",
    "head_norm": "norm of a head row",
    "gradient_share": "part of the gradient",
    "gradient_share_blocks": "part, blocks only",
    "gradient_norm": "norm of its gradient",
}


def _render_optimizer_table(run: RunContents, found: Mapping[str, Any], logged: set[str]) -> str:
    """Returns a table of what each language has in the tables and in a batch's gradient."""
    given = found.get("optimizer") or {}
    values: dict[str, dict[str, float]] = {}
    for metric in _OPTIMIZER:
        for tag in run.config.tags:
            value = _parse_finite_number(_get_nested_value(given, metric, tag))
            if not given and f"align/{metric}/{tag}" in logged:
                value = run.curve(f"align/{metric}/{tag}").last
            if math.isfinite(value):
                values.setdefault(metric, {})[tag] = value
    if not values:
        return ""
    shown = [metric for metric in _OPTIMIZER if metric in values]
    rows = []
    for tag in run.config.tags:
        cells = [markup.render_swatch(run.config.tags, tag)]
        for metric in shown:
            share = metric.startswith("gradient_share")
            write = _format_percent_tenths if share else figures.format_significant
            cells.append(_render_number_cell(values[metric].get(tag), write))
        rows.append(cells)
    when = "" if given else "As last logged. "
    caption = f"{when}Mean norms of a language's rows, and its part in the gradient of one batch."
    table = markup.render_table(
        ["language", *(_OPTIMIZER[metric] for metric in shown)], rows, caption
    )
    return _render_stack("What the optimizer sees", table)


# Pieces of HTML.


def _render_stack(title: str, *parts: str) -> str:
    """Args: `title` is plain text."""
    inside = "\n".join([f"<h3>{markup.escape_text(title)}</h3>", *filter(None, parts)])
    return f'<div class="stack">\n{inside}\n</div>'


def _fold_parts(title: str, parts: Sequence[str], folded: bool) -> str:
    """Returns the parts, behind their title if they are to be folded away."""
    inside = "\n".join(parts)
    if not folded or not inside:
        return inside
    return f"<details>\n<summary>{markup.escape_text(title)}</summary>\n{inside}\n</details>"


def _render_line_figure(
    name: str,
    title: str,
    reading: str,
    drawn: Mapping[str, AlignmentLine],
    names: Sequence[str],
    *,
    behind: Mapping[str, AlignmentLine] | None = None,
    **style: Any,
) -> str:
    """Returns a figure of lines, or nothing where no value is known."""
    log_x, log_y = not style.get("layers"), style.get("log", False)
    known = {tag: line.known(log_x, log_y) for tag, line in drawn.items()}
    known = {tag: line for tag, line in known.items() if line}
    if not known:
        return ""
    listed = ", ".join(
        f"{tag} from {figures.format_significant(line.y[0])} to "
        f"{figures.format_significant(line.y[-1])}"
        for tag, line in known.items()
    )
    svg = alignment_figures.plot_lines(
        name, f"{title} From left to right: {listed}.", drawn, names=names, behind=behind, **style
    )
    return markup.render_figure(svg, title, reading)


def _render_number_cell(value: Any, write: Callable[[float], str]) -> str:
    number = _parse_finite_number(value)
    return markup.render_number(number if math.isfinite(number) else None, write)


def _render_cell_with_chance(value: float, chance: Any) -> str:
    """Returns a cell of a part that is found, with what chance would find."""
    by_chance = _parse_finite_number(chance)
    written = _render_number_cell(value, markup.format_percent)
    if not math.isfinite(value) or not math.isfinite(by_chance):
        return written
    return f"{written} ({markup.format_percent(by_chance)})"


def _render_cell_with_error(found: Any, name: str) -> str:
    """Returns a cell of a value and its standard error."""
    return _render_number_cell(
        _get_nested_value(found, name), _format_signed_decimals
    ) + _format_standard_error(_get_nested_value(found, f"{name}_error"))


def _format_standard_error(error: Any) -> str:
    number = _parse_finite_number(error)
    return f" ± {number:.3f}" if math.isfinite(number) else ""


def _join_first_names(names: Sequence[str]) -> str:
    more = len(names) - 4
    return "; ".join(names[:4]) + (f"; and {more:,} more" if more > 0 else "")


# Numbers of a JSON file, any of which may be null or absent.


def _get_nested_value(tree: Any, *path: str) -> Any:
    """Returns what lies at a path, or None."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _parse_finite_number(value: Any) -> float:
    """Returns a finite number, or NaN."""
    number = markup.parse_number(value)
    return number if math.isfinite(number) else math.nan


def _parse_numbers(values: Any) -> list[float]:
    return [_parse_finite_number(value) for value in values] if isinstance(values, list) else []


def _get_number_list(found: Any, name: str) -> list[float]:
    return _parse_numbers(_get_nested_value(found, name))


def _compute_mean(values: Sequence[float]) -> float:
    """Returns the mean, NaN if any of the values is or if there are none."""
    return math.fsum(values) / len(values) if values else math.nan


def _compute_block_mean(run: RunContents, values: Sequence[float]) -> float:
    """Returns the mean over the blocks of values of every layer."""
    return _compute_mean(values[1 : run.config.model.N + 1])


def _find_compared_states(hidden: Any) -> tuple[str, Any]:
    """Returns how positions are compared, and what was found so."""
    for kind in ("positions", "matched"):
        if _get_nested_value(hidden, kind):
            return kind, _get_nested_value(hidden, kind)
    return "", None


def _find_rotated_states(result: Mapping[str, Any]) -> tuple[str, Any]:
    """Returns what was compared after a rotation: positions, or else whole sequences."""
    for kind in ("positions", "sentences"):
        if _get_number_list(_get_nested_value(result, "hidden", kind), "procrustes_excess"):
            return kind, _get_nested_value(result, "hidden", kind)
    return "", None


def _average_retrieval(sentences: Any) -> list[float]:
    both = [_get_number_list(sentences, f"centred_retrieval_{way}") for way in ("forth", "back")]
    return [(forth + back) / 2 for forth, back in zip(*both, strict=False)]


def _make_layer_line(values: Sequence[float], errors: Sequence[float] = ()) -> AlignmentLine:
    return AlignmentLine([float(n) for n in range(len(values))], values, errors)


def _make_binned_line(found: Any, name: str) -> AlignmentLine:
    """Returns the value of each bin at the middle of its logarithmic width."""
    edges = zip(_get_number_list(found, "low"), _get_number_list(found, "high"), strict=False)
    middles = [math.sqrt(low * high) if low > 0 < high else math.nan for low, high in edges]
    return AlignmentLine(middles, _get_number_list(found, name))


def _keep_finite_points(curve: Curve) -> Curve:
    """Returns the points of a curve that are finite."""
    points = [
        (step, value)
        for step, value in zip(curve.steps, curve.values, strict=True)
        if math.isfinite(value)
    ]
    return Curve([step for step, _ in points], [value for _, value in points])


def _format_signed_decimals(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _format_nats(value: float) -> str:
    return f"{value:.3f}"


def _format_percent_tenths(value: float) -> str:
    return f"{100 * value:.1f} %".replace("-", "−")
