"""The page of a study: a self-contained report.html with a verdict per claim on top.

`write_study_page` turns a `StudyTable` into figures and a page. Anything may be missing, because a
study can be looked at while it runs: a section then says what is not there, and what it would take.
All that comes from a file passes through `markup.text` on its way into the page.
"""

import math
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from imbalance_jax.analysis import claims, effects, statistics, validity
from imbalance_jax.analysis.claims import NOT_MEASURED, ClaimResult
from imbalance_jax.analysis.effects import (
    CellAlignment,
    Effects,
    EfficiencyEstimate,
    FittedLaw,
    LanguageCondition,
)
from imbalance_jax.analysis.statistics import Estimate, Interval
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.drawing import markup
from imbalance_jax.drawing import plots as figures
from imbalance_jax.drawing.svg import FigureFiles
from imbalance_jax.reference import (
    paper_check,
    paper_figures,
    paper_results,
    paper_tables,
)
from imbalance_jax.reference import (
    reported as reference,
)
from imbalance_jax.report.study import figures as study_figures
from imbalance_jax.report.study.alignment_panels import MEASURE_NAMES
from imbalance_jax.runs import storage
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory

_MARKS = {"supported": "done", "contradicted": "failed", "absent": "absent"}
_WORDS = {
    "supported": "An effect of the claimed direction is shown, and its estimate is as large as "
    "matters; or, where no difference was claimed, any effect is shown to be smaller than that.",
    "contradicted": "An effect of the other direction is shown, or one where there was to be none, "
    "and its estimate is as large as matters.",
    "absent": "The effect is shown to be smaller than what matters.",
    "undecided": "The runs show none of these: there are too few, or they scatter too much.",
    NOT_MEASURED: "The runs that it takes are not all there.",
}
_BASELINES = {
    "monolingual": "The language alone, on a part of the steps, with a schedule of its own.",
    "matched": "The language alone, with as many updates, in smaller batches.",
    "wide": "The language alone, with the mixture’s vocabulary.",
    "epochs": "The language alone, with as many updates, in smaller batches, on as much text.",
}
_LONG = 12  # rows of a table that is shown as it is
_CSS = """\
.claim { border-top: 1px solid var(--line); padding: 18px 0 }
.claim:last-of-type { border-bottom: 1px solid var(--line) }
.claim h3 .word { margin-right: 8px }
.claim p { margin-top: 6px; max-width: 88ch }
.claim .note { margin-top: 6px }
.exploratory { margin-bottom: 16px; max-width: none; color: var(--open); font-size: 14px }
.caption { max-width: none }
.description { margin-top: 12px }
figure + figure { margin-top: 36px }
.checks { display: grid; gap: 0; margin: 0 }
.checks div { display: grid; grid-template-columns: 220px minmax(0, 1fr); gap: 4px 20px;
  border-bottom: 1px solid var(--line); padding: 10px 0 }
.checks dt { font-weight: 600 }
.checks dd { margin: 0; font-size: 15px; max-width: 80ch; overflow-wrap: anywhere }
.box { border: 1px solid var(--line); border-radius: 8px; padding: 4px 20px 12px }
section > div:not(.claim) + div:not(.claim), section > figure ~ div { margin-top: 28px }
section > details { margin-top: 20px }
details > div { margin-top: 12px }
.claim + .claim { margin-top: 0 }
@media screen and (max-width: 560px) {
  .checks div { grid-template-columns: minmax(0, 1fr) }
}
"""


def write_study_page(
    table: StudyTable, directory: StudyDirectory, *, resamples: int = effects.RESAMPLES
) -> epath.Path:
    """Writes report.html and figures/ into a study directory, and returns the page.

    Args:
      table: of the study, finished or not.
      directory: its directory.
      resamples: of runs, for the intervals that refit the laws.
    """
    found = effects.measure_effects(table, resamples=resamples)
    with storage.stage_directory(directory.path / "figures") as folder:
        sections = _build_study_sections(table, found, directory, folder)
    page = directory.path / "report.html"
    text = markup.render_page(table.name, sections, _CSS)
    storage.write_file_atomically(page, text.encode(errors="backslashreplace"))
    return page


def _build_study_sections(
    table: StudyTable, found: Effects, directory: StudyDirectory, folder: pathlib.Path
) -> list[str]:
    """Writes the figures into a folder, and returns the sections of the page."""
    drawn = study_figures.draw_study_figures(table, found)
    if drawn:
        folder.mkdir(exist_ok=True)
    for figure in drawn:
        figure.write(folder)
    results = claims.judge_claims(table, found)
    shown = {figure.name: figure for figure in drawn}
    return [
        _render_study_header(table, results),
        _render_claims_section(results),
        _render_loss_section(table, found, shown),
        _render_worth_section(found, shown),
        _render_study_alignment(found, shown),
        _render_study_transfer(shown),
        _render_scaling_section(shown),
        _render_validity_section(table, found),
        _render_missing_runs(table, found),
        _render_cells_section(found),
        _render_loss_parts(found),
        _render_laws_section(found),
        _render_paper_section(table, found, folder),
        _render_runs_section(table),
        _render_files_section(directory, folder),
    ]


# Numbers as they are read.


def _format_signed_number(value: float, digits: int = 3) -> str:
    if not math.isfinite(value):
        return markup.ABSENT
    # A zero has no sign.
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if rounded else ''}.{digits}f}".replace("-", "−")


def _format_interval(interval: Interval, write: Callable[[float], str]) -> str:
    low, high = interval
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{write(low)} to {write(high)}"


def _render_with_interval(value: float, interval: Interval, write: Callable[[float], str]) -> str:
    """Returns HTML of a number, its interval small behind it."""
    if math.isnan(value):
        return markup.ABSENT
    span = _format_interval(interval, write)
    small = f" <small>{markup.escape_text(span)}</small>" if span else ""
    return markup.render_number(value, write) + small


def _render_exploratory_note() -> str:
    return (
        '<p class="exploratory">Exploratory: not claimed before the runs. Many numbers were looked '
        "at, and some stand out by chance.</p>"
    )


# The top of the page.


def _render_study_header(table: StudyTable, results: Sequence[ClaimResult]) -> str:
    states = Counter(run.state.state for run in table.runs.values())
    done, total = states["done"], len(table.runs)
    mark, word = ("done", "Done") if done == total else ("unfinished", "Unfinished")
    rest = [f"{states[s]} {name}" for s, name in _STATES.items() if states[s]]
    state = f"{done} of {total} runs are done" + (f"; {', '.join(rest)}" if rest else "")
    words = Counter(result.word for result in results)
    said = ", ".join(f"{words[word]} {word}" for word in _WORDS if words[word])
    if results:
        claimed = "claim" if len(results) == 1 else "claims"
        headline = f"Of {len(results)} {claimed} made before the runs: {said}."
    else:
        headline = "This study claimed nothing before its runs, so all of it is exploratory."
    description = (
        f'<p class="description">{markup.escape_text(table.description)}</p>\n'
        if table.description
        else ""
    )
    return (
        f"<header>\n<h1>{markup.escape_text(table.name)}</h1>\n"
        f'<p class="state"><strong class="{mark}">{word}</strong> {markup.escape_text(state)}</p>\n'
        f'<p class="headline">{markup.escape_text(headline)}</p>\n{description}</header>'
    )


_STATES = {"failed": "failed", "begun": "begun", "absent": "not begun"}


def _render_claims_section(results: Sequence[ClaimResult]) -> str:
    title = "What was claimed, and what became of it"
    if not results:
        return markup.render_section(title, markup.render_missing_note("Nothing was claimed."))
    items = "\n".join(_render_claim(result) for result in results)
    words = {result.word for result in results}
    legend = " ".join(
        f"{word.capitalize()}: {text[0].lower()}{text[1:]}"
        for word, text in _WORDS.items()
        if word in words
    )
    count = len(results)
    note = (
        f"{legend} Every p is adjusted for {count} claim{'s' * (count > 1)} by Holm’s method, and "
        "so is every interval: its confidence, in brackets, is that of the step of the method at "
        "which the claim is tested. The method is applied to the p of no effect and to that of an "
        "effect as large as matters apart. So p is below 0.05 exactly where the interval leaves "
        "out 0 (a TEff of 1); where an effect is absent, or no difference was claimed, the p of an "
        "effect as large as matters is below 0.05 exactly where the interval holds none. The unit "
        "is the run: seeds are compared pair by pair."
    )
    return markup.render_section(title, items, markup.render_note(note))


def _render_claim(result: ClaimResult) -> str:
    claim = result.claim
    mark = _MARKS.get(result.word, "unfinished")
    head = (
        f'<h3><span class="word {mark}">{result.word.capitalize()}</span> '
        f"{markup.escape_text(claim.statement or result.name)}</h3>"
    )
    lines = [f"<p>{_describe_claim_effect(result)}</p>"]
    what = f"Measured: {_MEASURES[claim.measure]} of {claim.language} in cell {claim.cell}"
    smallest = _format_smallest_effect(claim)
    direction = {"same": "no difference"}.get(claim.direction, claim.direction)
    lines.append(
        markup.render_note(
            f"{what}, held against {result.against}. Claimed: {direction}; what matters: "
            f"{smallest} or more."
        )
    )
    notes = list(result.notes)
    if result.missing:
        notes.append(f"Still to be run: {validity.join_few_names(result.missing)}.")
    if result.failed:
        notes.append(f"Judged without runs that failed: {validity.join_few_names(result.failed)}.")
    lines += [markup.render_note(note) for note in notes]
    return f'<div class="claim">\n{head}\n' + "\n".join(lines) + "\n</div>"


_MEASURES = {
    "loss": "the loss",
    "language_nats": "the loss of telling the language",
    "loss_own": "the loss within the language",
    "bits_per_byte": "the bits per byte",
    "top1": "the accuracy of the next token",
    "log_teff": "TEff",
    "alignment": "the cosine of hidden states above shuffled pairs",
    "retrieval": "the retrieval of sequences by hidden states above chance",
    "accuracy": "the accuracy in tasks",
}
_UNITS = {"log_teff": "", "alignment": "", "retrieval": "", "accuracy": "", "top1": ""}
_UNITS |= {"bits_per_byte": " bits per byte"}


def _format_smallest_effect(claim: grid.Claim) -> str:
    if claim.measure == "log_teff":
        return f"a factor of {math.exp(claim.smallest):.3g}"
    return f"{claim.smallest:g}" + _UNITS.get(claim.measure, " nats")


def _describe_claim_effect(result: ClaimResult) -> str:
    """Returns the effect in words, as HTML."""
    estimate, claim = result.estimate, result.claim
    if math.isnan(estimate.value):
        return "No effect can be stated."
    factor = claim.measure == "log_teff"
    unit = _UNITS.get(claim.measure, " nats")
    read = lambda x: _format_effect(x, claim.smallest, factor)
    span = _format_interval(result.verdict.shown_interval, read)
    size = f"{'TEff ×' if factor and claim.against else 'TEff' if factor else ''} "
    said = f"{size.lstrip()}<b>{read(estimate.value)}</b>{unit}"
    seeds = f"{estimate.n} seed{'s' * (estimate.n != 1)}"
    if result.word == NOT_MEASURED:
        return f"So far {said} ({seeds}), which is no result yet."
    if not span:
        why = "with one seed nothing is known of the scatter" if estimate.n < 2 else "no interval"
        return f"{said} ({seeds}: {why})."
    confidence = f"{100 * result.verdict.confidence:.3g} %"
    return (
        f"{said}, interval {span} ({confidence}; {seeds}; {_describe_p_values(result)}). "
        f"{_explain_verdict(result)}"
    )


def _format_effect(effect: float, smallest: float, factor: bool) -> str:
    """Returns an effect with as many digits as show on which side of 0 and of +-smallest it is."""
    if not math.isfinite(effect):
        return markup.ABSENT
    read = math.exp if factor else float
    marks = [read(mark) for mark in (-smallest, 0.0, smallest)]
    sides = [(read(effect) > mark) - (read(effect) < mark) for mark in marks]
    written = ""
    for digits in range(3, 9):
        written = f"{read(effect):.{digits}g}" if factor else _format_signed_number(effect, digits)
        shown = float(written.replace("−", "-"))
        if [(shown > mark) - (shown < mark) for mark in marks] == sides:
            break
    return written


def _describe_p_values(result: ClaimResult) -> str:
    verdict = result.verdict
    said = []
    if not verdict.equivalent:
        said.append(f"of no effect {_format_p_value(verdict.p)}")
    if verdict.equivalent or verdict.direction == "same":
        said.append(f"of an effect as large as matters {_format_p_value(verdict.equivalence_p)}")
    return f"adjusted p {' and '.join(said)}"


def _format_p_value(p: float) -> str:
    # Rounded down, so that 0.0498 does not read as 0.050 and undecided.
    return "below 0.001" if p < 0.001 else f"{math.floor(1000 * p) / 1000:.3f}"


def _explain_verdict(result: ClaimResult) -> str:
    """Returns the sentence that leads from the interval to the verdict."""
    verdict, smallest = result.verdict, _format_smallest_effect(result.claim)
    none = "a TEff of 1" if result.claim.measure == "log_teff" else "0"
    if result.claim.measure == "log_teff" and result.claim.against:
        none = "a factor of 1"
    if verdict.equivalent:
        return f"The interval holds no effect as large as {smallest}."
    if verdict.p >= verdict.alpha:
        return f"The interval holds {none}, and effects as large as {smallest}."
    if result.word == "undecided":
        factor = result.claim.measure == "log_teff"
        span = _format_interval(
            verdict.equivalence_interval,
            lambda x: _format_effect(x, result.claim.smallest, factor),
        )
        confidence = f"{100 * (1 - 2 * verdict.equivalence_level):.3g} %"
        return (
            f"The interval leaves out {none}, so there is an effect; the estimate is smaller than "
            f"{smallest}, and the interval that would show that of the effect, {span} "
            f"({confidence}), reaches beyond it."
        )
    return f"The interval leaves out {none}, and the estimate is {smallest} or more."


# Figures and what they show.


def _render_study_figure(figure: FigureFiles) -> str:
    links = ", ".join(
        f'<a href="figures/{figure.name}.{kind}">{kind.upper()}</a>'
        for kind in ("png", "svg", "csv")
    )
    caption = (
        f"<figcaption><b>{markup.escape_text(figure.title)}</b> "
        f"{markup.escape_text(figure.reading)} {links}"
        "</figcaption>"
    )
    return f"<figure>\n{figure.inline_svg()}\n{caption}\n</figure>"


def _render_loss_section(
    table: StudyTable, found: Effects, shown: Mapping[str, FigureFiles]
) -> str:
    title = "Loss against the ratio"
    if "loss_by_ratio" not in shown:
        return markup.render_section(title, markup.render_missing_note("No run is done yet."))
    parts = [_render_study_figure(shown["loss_by_ratio"])]
    if not found.laws:
        parts.append(markup.render_missing_note(_explain_missing_baselines(table)))
    elif not _list_law_conditions(found):
        parts.append(
            markup.render_missing_note("Only baselines are done yet: there is no mixture to hold.")
        )
    return markup.render_section(title, *parts)


def _explain_missing_baselines(table: StudyTable) -> str:
    planned = sum(run.spec.kind in grid.BASELINES for run in table.runs.values())
    why = (
        f"none of the {planned} that the study has is done"
        if planned
        else "the study has none; see below for what it would take"
    )
    return (
        f"There are no monolingual baselines: {why}. Without them a loss says nothing about "
        "transfer, and TEff, MLTE and the exchange rate are unknown."
    )


def _list_law_conditions(found: Effects) -> list[LanguageCondition]:
    """Returns the languages that laws are read at, or would be."""
    return [c for c in found.conditions if c.kind not in grid.BASELINES and c.plain]


def _render_worth_section(found: Effects, shown: Mapping[str, FigureFiles]) -> str:
    title = "What a language’s loss is worth"
    if "efficiency_by_ratio" in shown:
        parts = [_render_exploratory_note(), _render_study_figure(shown["efficiency_by_ratio"])]
        parts += [_render_study_figure(shown[name]) for name in ("cells",) if name in shown]
    else:
        why = (
            "No mixture is done yet."
            if not _list_law_conditions(found)
            else _explain_missing_efficiency(found)
        )
        parts = [markup.render_missing_note(markup.escape_text(why))]
    outside = [
        f"{c.cell} {c.language} against {kind} baselines: TEff {_format_teff_bound(worth)}, "
        f"{_explain_teff_bound(worth)}"
        for c in _list_law_conditions(found)
        for (kind, part), worth in c.worths.items()
        if part == "loss" and worth.limit
    ]
    if outside:
        parts.append(
            markup.render_note("Not drawn, outside of the law’s range: " + "; ".join(outside))
        )
    return markup.render_section(title, *parts)


def _explain_missing_efficiency(found: Effects) -> str:
    reasons: dict[str, None] = {}
    for condition in _list_law_conditions(found):
        for kind, why in condition.no_law.items():
            reasons[f"{kind}: {why.rstrip('.')}"] = None
    if reasons:
        return "There is no law of monolingual baselines. " + "; ".join(reasons) + "."
    return "All losses are outside of the range of their law."


def _format_teff_bound(worth: EfficiencyEstimate) -> str:
    return f"{'>' if worth.limit == 'above' else '<'} {worth.bound:.3g}"


def _explain_teff_bound(worth: EfficiencyEstimate) -> str:
    assert worth.law.choice is not None
    shortest, longest = worth.law.choice.law.fitted
    loss = (
        f"{worth.efficiency.loss:.4g} (perplexity {_compute_capped_exp(worth.efficiency.loss):.4g})"
    )
    if worth.limit == "above":
        return (
            f"as its loss {loss} is far below that of the longest baseline, of "
            f"{figures.format_compact(longest)} tokens."
        )
    return (
        f"as its loss {loss} is far above that of the shortest baseline, of "
        f"{figures.format_compact(shortest)} tokens."
    )


def _render_study_alignment(found: Effects, shown: Mapping[str, FigureFiles]) -> str:
    title = "Alignment of the languages"
    if "alignment_by_ratio" not in shown:
        why = "No run that is done has measured how alike it treats two languages."
        return markup.render_section(title, markup.render_missing_note(why))
    return markup.render_section(
        title,
        _render_exploratory_note(),
        _render_study_figure(shown["alignment_by_ratio"]),
        _render_excess_note(found),
        _render_alignment_table([a for a in found.alignments if a.kind != "sweep"]),
    )


def _render_study_transfer(shown: Mapping[str, FigureFiles]) -> str:
    if "transfer_by_ratio" not in shown:
        return ""
    title = "Tasks learnt in one language"
    return markup.render_section(
        title, _render_exploratory_note(), _render_study_figure(shown["transfer_by_ratio"])
    )


def _render_excess_note(found: Effects) -> str:
    """Returns a sentence of the cells whose hidden states are more alike than shuffled pairs."""
    above: list[str] = []
    below: list[str] = []
    open_: list[str] = []
    unknown: list[str] = []
    for aligned in found.alignments:
        if aligned.measure == "hidden" and aligned.kind != "sweep":
            low, high = aligned.excess.interval()
            if math.isnan(low):
                names = unknown
            else:
                names = above if low > 0 else below if high < 0 else open_
            names.append(f"{aligned.cell} ({aligned.pair})")
    said = [
        sentence.format(validity.join_few_names(names))
        for names, sentence in (
            (above, "Hidden states are more alike than those of shuffled pairs in {}."),
            (below, "Hidden states are less alike than those of shuffled pairs in {}."),
            (
                open_,
                "Whether hidden states are more alike than those of shuffled pairs is not decided "
                "in {}: the 95 % interval of the difference holds 0.",
            ),
            (unknown, "With one seed there is no interval of hidden states in {}."),
        )
        if names
    ]
    return markup.render_note(" ".join(said)) if said else ""


def _render_alignment_table(alignments: Sequence[CellAlignment]) -> str:
    placebos = any(aligned.beyond_placebo is not None for aligned in alignments)
    rows = []
    for aligned in alignments:
        mean = sum(aligned.values.values()) / len(aligned.values)
        baseline = sum(aligned.baselines.values()) / max(1, len(aligned.baselines))
        beyond = markup.ABSENT
        if aligned.beyond_placebo is not None:
            beyond = _render_estimate(aligned.beyond_placebo, _format_signed_number)
        rows.append(
            [
                markup.escape_text(f"{aligned.cell} {aligned.pair}"),
                markup.escape_text(MEASURE_NAMES[aligned.measure].partition(",")[0]),
                str(len(aligned.values)),
                markup.render_number(mean, lambda x: _format_signed_number(x)),
                markup.render_number(baseline, lambda x: _format_signed_number(x))
                if aligned.baselines
                else markup.ABSENT,
                _render_estimate(aligned.excess, _format_signed_number),
                *[beyond] * placebos,
            ]
        )
    header = ["cell, languages", "measure", "seeds", "value", "nothing shared, or chance"]
    header += ["above it"]
    header += ["more than the placebo"] * placebos
    return _render_folding_table("Alignment of each cell", header, rows, "With 95 % intervals.")


def _render_folding_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str
) -> str:
    """Returns a table that opens with a click where it is long."""
    if len(rows) <= _LONG:
        return markup.render_table(header, rows, f"{title}. {caption}")
    drawn = markup.render_table(header, rows, caption)
    return (
        f"<details>\n<summary>{markup.escape_text(title)}: {len(rows)} "
        f"rows</summary>\n{drawn}\n</details>"
    )


def _render_estimate(estimate: Estimate, write: Callable[[float], str]) -> str:
    return _render_with_interval(estimate.value, estimate.interval(), write)


def _render_scaling_section(shown: Mapping[str, FigureFiles]) -> str:
    drawn = [
        _render_study_figure(shown[n])
        for n in ("scaling_by_tokens", "scaling_by_size")
        if n in shown
    ]
    if not drawn:
        return ""
    return markup.render_section("Length and size", _render_exploratory_note(), *drawn)


# Tables.


def _render_cells_section(found: Effects) -> str:
    title = "All cells"
    if not found.conditions:
        return markup.render_section(title, markup.render_missing_note("No run is done yet."))
    mixtures = [c for c in found.conditions if c.kind not in grid.BASELINES]
    alone = [c for c in found.conditions if c.kind in grid.BASELINES]
    tables = []
    if mixtures:
        header = ["cell, language", "kind", "tokens", "part", "seeds", "perplexity"]
        rows = [[*_render_condition_cells(c), _render_placebo_difference(c)] for c in mixtures]
        tables.append(
            markup.render_table(
                [*header, "nats against the placebo"],
                rows,
                "Perplexity: geometric mean over seeds, 95 % interval from their scatter. Against "
                "the placebo: difference seed by seed, with its own 95 % interval.",
            )
        )
    kinds = [k for k in grid.BASELINES if any((k, "loss") in c.worths for c in mixtures)]
    tables += [_render_worth_table(kind, mixtures) for kind in kinds]
    if alone:
        header = ["cell", "kind", "tokens", "part", "seeds", "perplexity"]
        rows = [_render_condition_cells(c) for c in alone]
        tables.append(_render_folding_table("The monolingual baselines", header, rows, "As above."))
    note = (
        "MLPE is the perplexity of the language alone on as many tokens, by the law; MLTE the "
        "tokens that the language alone would need for the perplexity reached here; TEff is MLTE "
        "over the language’s own tokens, and the exchange rate (MLTE − own tokens) / tokens of the "
        "others. * is extrapolated. Intervals of TEff are twofold: of the seeds, the law as it is, "
        "and of resampled runs with the law refitted."
    )
    return markup.render_section(
        title,
        _render_exploratory_note(),
        f'<div class="stack">{"".join(tables)}</div>',
        markup.render_note(note),
    )


def _render_condition_cells(condition: LanguageCondition) -> list[str]:
    log_ppl = condition.log_ppl
    baseline = condition.kind in grid.BASELINES
    name = condition.cell if baseline else f"{condition.cell} {condition.language}"
    return [
        markup.escape_text(name) + ("" if condition.plain else " (text not as written)"),
        markup.escape_text(condition.kind),
        markup.render_number(condition.first.tokens, figures.format_compact),
        markup.format_percent(condition.first.share),
        str(condition.seeds),
        _render_with_interval(
            _compute_capped_exp(log_ppl.value), log_ppl.exp_interval(), _format_perplexity
        ),
    ]


def _format_perplexity(value: float) -> str:
    return figures.format_significant(value) if value < 1e6 else f"{value:.2e}"


def _compute_capped_exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _render_placebo_difference(condition: LanguageCondition) -> str:
    if condition.beyond_placebo is None:
        return markup.ABSENT
    return _render_estimate(condition.beyond_placebo, _format_signed_number)


def _render_worth_table(kind: str, mixtures: Sequence[LanguageCondition]) -> str:
    rows = []
    for condition in mixtures:
        worth = condition.worths.get((kind, "loss"))
        if worth is None:
            continue
        found = worth.efficiency
        star = "*" if found.extrapolated and not worth.limit else ""
        seeds = worth.log_teff.exp_interval() if worth.log_teff else (math.nan, math.nan)
        if worth.limit:
            reason = f"{_format_teff_bound(worth)} <small>outside of the law</small>"
            values = [
                markup.escape_text(_format_teff_bound(worth)[0]) + " limit",
                reason,
                markup.ABSENT,
            ]
            values.append(markup.ABSENT)
        else:
            values = [
                markup.render_number(found.mlte, figures.format_compact) + star,
                markup.render_number(found.teff, figures.format_significant)
                + star
                + _render_small_text("seeds", _format_interval(seeds, figures.format_significant)),
                _escape_or_absent(_format_interval(worth.teff, figures.format_significant)),
                markup.render_number(found.exchange, _format_signed_number)
                + _render_small_text("", _format_interval(worth.exchange, _format_signed_number)),
            ]
        rows.append(
            [
                markup.escape_text(f"{condition.cell} {condition.language}"),
                markup.render_number(_compute_capped_exp(found.loss), _format_perplexity),
                markup.render_number(found.mlpe, _format_perplexity),
                *values,
                markup.render_number(worth.reference_teff, figures.format_significant)
                if math.isfinite(worth.reference_teff)
                else markup.ABSENT,
            ]
        )
    header = ["cell, language", "perplexity", "MLPE", "MLTE", "TEff", "TEff, law refitted"]
    header += ["exchange rate", "TEff by the reference’s law"]
    return markup.render_table(header, rows, f"Against {kind} baselines. {_BASELINES[kind]}")


def _render_small_text(word: str, said: str) -> str:
    return f" <small>{word} {markup.escape_text(said)}</small>" if said else ""


def _escape_or_absent(said: str) -> str:
    return markup.escape_text(said) if said else markup.ABSENT


def _render_loss_parts(found: Effects) -> str:
    """Returns both parts of the loss, and what each is worth."""
    mixtures = [c for c in found.conditions if c.kind not in (*grid.BASELINES, "sweep")]
    if not mixtures:
        return ""
    kinds = [k for k in grid.BASELINES if any((k, "loss_own") in c.worths for c in mixtures)]
    telling = any(("wide", "language_nats") in c.worths for c in mixtures)
    header = ["cell, language", "language nats", "own loss"]
    header += [f"TEff of own loss, {kind}" for kind in kinds]
    header += ["TEff of language nats, wide"] * telling
    rows = []
    for condition in mixtures:
        nats, own = (condition.by_seed(part).values() for part in ("language_nats", "loss_own"))
        row = [
            markup.escape_text(f"{condition.cell} {condition.language}"),
            markup.render_number(sum(nats) / len(nats), lambda x: f"{x:.4f}"),
            markup.render_number(sum(own) / len(own), lambda x: f"{x:.3f}"),
        ]
        row += [_render_teff(condition.worths.get((kind, "loss_own"))) for kind in kinds]
        row += [_render_teff(condition.worths.get(("wide", "language_nats")))] * telling
        rows.append(row)
    note = (
        "Loss is the sum of language nats, what it costs to tell the language, and own loss, "
        "what it costs to predict within it. The language alone, with a vocabulary of its own, "
        "has nothing to tell, so its law serves for own loss as it is."
    )
    return markup.render_section(
        "Both parts of the loss",
        _render_exploratory_note(),
        markup.render_table(header, rows, "Means over seeds; TEff with resampled 95 % intervals."),
        markup.render_note(note),
    )


def _render_teff(worth: EfficiencyEstimate | None) -> str:
    if worth is None:
        return markup.ABSENT
    if worth.limit:
        return markup.escape_text(_format_teff_bound(worth))
    star = "*" if worth.efficiency.extrapolated else ""
    span = _render_small_text("", _format_interval(worth.teff, figures.format_significant))
    return markup.render_number(worth.efficiency.teff, figures.format_significant) + star + span


def _render_laws_section(found: Effects) -> str:
    title = "The laws"
    if not found.laws:
        return ""
    rows = [_render_law_row(law) for law in found.laws.values()]
    header = [
        "baselines",
        "runs",
        "numbers of tokens",
        "law",
        "left-out error",
        "error at the ends",
    ]
    header += ["chosen in resamples", "reference’s law", "its error"]
    note = (
        "Of two forms the one that predicts left-out baselines best is taken, in every resample "
        "anew: bounded is E + A x^−β, interpolated a monotone curve through the baselines. Errors "
        "are in nats: 0.01 is 1 % of a perplexity. The reference’s law, 1/PPL = c − a x^−b, is "
        "fitted as it was there and reported beside."
    )
    over_sizes = [
        f"{law.group.source}, {law.group.size}: {law.over_sizes_error:.4f}"
        for law in found.laws.values()
        if math.isfinite(law.over_sizes_error)
    ]
    if over_sizes:
        note += (
            " One law over all sizes, E + A / P^α + B / x^β with P the parameters, has left-out "
            f"errors of {'; '.join(over_sizes)}."
        )
    return markup.render_section(
        title,
        markup.render_table(header, rows, "x counts in units of 1x."),
        markup.render_note(note),
    )


def _render_law_row(law: FittedLaw) -> list[str]:
    group, choice = law.group, law.choice
    part = "" if law.part == "loss" else f", {law.part.replace('_', ' ')}"
    shape = {"wide": f", {group.shape:,} ids"}.get(
        group.kind, f", {group.shape:,} steps" if group.shape else ""
    )
    name = f"{group.kind}, {group.source}, {group.size}{shape}{part}"
    ends = " to ".join(
        figures.format_compact(count) for count in sorted({*law.tokens[:1], *law.tokens[-1:]})
    )
    tokens = f"{len(law.tokens)}: {ends}"
    fitted = law.reference
    beside = f"{fitted.a:.4g}, {fitted.b:.4g}, {fitted.c:.4g}" if fitted else "does not converge"
    if choice is None:
        rest = [f'<span class="missing">none: {markup.escape_text(law.problem)[:160]}</span>']
        rest += [markup.ABSENT] * 5
    else:
        chosen = sum(law.families.values())
        rest = [
            markup.escape_text(choice.family),
            _format_law_error(choice.error),
            _format_law_error(choice.end_errors.get(choice.family, math.nan)),
            markup.escape_text(
                ", ".join(
                    f"{f} {markup.format_percent(n / chosen)}" for f, n in law.families.items()
                )
            )
            or markup.ABSENT,
            markup.escape_text(beside),
            _format_law_error(law.reference_error),
        ]
    return [markup.escape_text(name), str(len(law.observations)), markup.escape_text(tokens), *rest]


def _format_law_error(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else markup.ABSENT


# What to doubt, and what is missing.


def _render_validity_section(table: StudyTable, found: Effects) -> str:
    marks = {"good": ("done", "Good"), "look": ("failed", "Look"), "unknown": ("", "Unknown")}
    items = []
    for check in validity.check_validity(table, found):
        mark, word = marks[check.state]
        items.append(
            f'<div><dt><span class="{mark or "unfinished"}">{word}</span> '
            f"{markup.escape_text(check.name)}</dt><dd>{markup.escape_text(check.text)}</dd></div>"
        )
    box = f'<div class="box"><dl class="checks">\n{"".join(items)}\n</dl></div>'
    return markup.render_section("Validity: what would make these numbers mean something else", box)


def _render_missing_runs(table: StudyTable, found: Effects) -> str:
    title = "What is missing, and what it would cost"
    waiting = [
        name
        for name, run in table.runs.items()
        if run.state.state != "done" and run.spec.kind in grid.BASELINES
    ]
    parts = []
    if waiting:
        parts.append(
            f"<p>Baselines of this study that are not done: "
            f"{markup.escape_text(validity.join_few_names(waiting))}.</p>"
        )
    rows = []
    for needed in found.needed:
        run, group = needed.run, needed.group
        shape = f", {group.shape:,} steps" if group.kind in ("matched", "epochs") else ""
        rows.append(
            [
                markup.escape_text(f"{group.kind}, {group.source}, {group.size}{shape}"),
                markup.render_number(run.tokens, figures.format_compact),
                str(run.seeds),
                markup.render_number(run.seeds * run.tokens, figures.format_compact),
                markup.render_number(run.flops, figures.format_compact),
                markup.escape_text(run.reason),
            ]
        )
    if rows:
        header = ["baseline", "tokens of a run", "seeds", "tokens in all", "FLOPs", "why"]
        caption = "Runs that would bring every use of a law between its baselines."
        parts.append(markup.render_table(header, rows, caption))
    if not parts:
        said = "No law is read beyond its baselines." if found.conditions else "No run is done yet."
        parts.append(f"<p>{said}</p>")
    return markup.render_section(title, *parts)


# The paper's figures.


def _render_paper_section(table: StudyTable, found: Effects, folder: pathlib.Path) -> str:
    named = any(run.spec.figures for run in table.runs.values())
    if not named:
        return ""
    title = "The figures and tables of the reference study"
    results = _collect_paper_results(table, found)
    if not any(result.values for result in results):
        return markup.render_section(
            title, markup.render_missing_note("No run that belongs to one is done yet.")
        )
    reported = reference.read_reference_results()
    paper_figures.write_figures_and_tables(results, folder, reported)
    shown = []
    for name in paper_figures.FIGURES:
        drawn = paper_figures.draw_paper_figure(name, results, reported)
        if drawn is not None:
            stem = paper_figures.make_file_stem(name)
            links = ", ".join(
                f'<a href="figures/{stem}.{kind}">{kind.upper()}</a>'
                for kind in ("png", "svg", "csv")
            )
            about = paper_figures.FIGURES[name]
            shown.append(
                f"<figure>\n{drawn.inline_svg()}\n<figcaption><b>{markup.escape_text(name)}. "
                f"{markup.escape_text(about.title)}.</b> As reported: "
                f"{markup.escape_text(about.reading)} "
                f"{links}</figcaption>\n</figure>"
            )
    tables = [
        paper_tables.make_paper_table(name, results, reported) for name in paper_tables.TABLES
    ]
    shown += [paper_tables.render_table_html(made) for made in tables if made is not None]
    left_out = paper_figures.list_left_out_figures(results)
    mine = {f for run in table.runs.values() for f in run.spec.figures}
    waiting = [name for name in left_out if name in mine]
    parts = [f'<div class="stack">{"".join(shown)}</div>']
    if waiting:
        parts.append(markup.render_note(f"Not drawn, for want of results: {', '.join(waiting)}."))
    note = (
        "Hollow grey markers are what was reported, from one seed each. TEff here is by the "
        "reference’s own law of the short monolingual baselines, so that the two compare."
    )
    return markup.render_section(title, markup.render_note(note), *parts)


def _collect_paper_results(table: StudyTable, found: Effects) -> list[reference.PaperResult]:
    """Returns the study's rows for the figures, TEff by the reference's law among them."""
    done = {
        name: paper_results.read_run_evaluation(run.directory)
        for name, run in table.runs.items()
        if run.state.state == "done" and run.spec.figures
    }
    laws = {
        (group.source, group.size): law.reference
        for (group, part), law in found.laws.items()
        if (group.kind, part) == ("monolingual", "loss") and law.reference is not None
    }
    worths, _ = paper_check.compute_reference_efficiencies(table)
    results = paper_results.collect_study_results(
        table, worths, interval=_estimate_seed_interval, evaluations=done
    )
    names = {
        f"{run.config.model.N}x{run.config.model.D}": run.spec.reference["model"]
        for run in table.runs.values()
        if "model" in run.spec.reference
    }
    for (source, size), law in laws.items():
        results += paper_results.make_law_results(
            source.upper(),
            names.get(size, size),
            (law.a, law.b, law.c),
            unit_tokens=table.unit_tokens,
            source=table.name,
        )
    return results


def _estimate_seed_interval(values: Sequence[float]) -> Interval:
    by_seed = dict(enumerate(values))
    return statistics.estimate_difference(by_seed, dict.fromkeys(by_seed, 0.0)).interval()


# The end of the page.


def _render_runs_section(table: StudyTable) -> str:
    rows = []
    for name, run in table.runs.items():
        state = run.state
        detail = state.error or (f"of {state.reused_from}" if state.reused_from else "")
        mark = {"done": "done", "failed": "failed"}.get(state.state, "unfinished")
        word = {**_STATES, "done": "done"}[state.state]
        rows.append(
            [
                markup.escape_text(name),
                markup.escape_text(run.spec.kind),
                f'<span class="{mark}">{word}</span>',
                f"{state.step:,} of {state.steps:,}",
                markup.escape_text(detail[:200]),
            ]
        )
    header = ["run", "kind", "state", "steps", "detail"]
    failed = [row for row in rows if ">failed<" in row[2]]
    parts = [markup.render_table(header, failed, "Runs that failed, and why.")] if failed else []
    every = markup.render_table(
        header, rows, "All runs; each is a run directory with a page of its own."
    )
    parts.append(f"<details>\n<summary>All {len(rows)} runs</summary>\n{every}\n</details>")
    return markup.render_section("Runs", *parts)


def _render_files_section(directory: StudyDirectory, folder: pathlib.Path) -> str:
    names = ["study.json"]
    for stem in ("table", "alignment"):
        names += [
            f"{stem}.{s}" for s in ("csv", "parquet") if (directory.path / f"{stem}.{s}").exists()
        ]
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in names)
    more = " All figures are in <code>figures/</code>, each as PNG, SVG and CSV."
    name = markup.escape_text(directory.name)
    commands = "\n".join(
        f"python -m imbalance_jax.{command} --workdir={name}"
        for command in ("study run", "study status", "study collect", "report")
    )
    return markup.render_section(
        "Files, and how to reproduce this",
        f"<p>The numbers: {links}.{more if folder.exists() else ''}</p>",
        "<p>study.json holds every field of every run. Beside the study’s directory,</p>",
        f"<pre>{commands}</pre>",
        markup.render_note(
            "train what is left, say how far it is, and write the tables and this page again."
        ),
    )
