"""Claims of a study and what became of them, in words."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from imbalance_jax.analysis import validity
from imbalance_jax.analysis.claims import NOT_MEASURED, ClaimResult
from imbalance_jax.drawing.numbers import ABSENT
from imbalance_jax.report.study.intervals import format_interval, format_signed
from imbalance_jax.study import grid

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
    "minimal_pairs": "the accuracy on minimal pairs",
}
_UNITS = {"log_teff": "", "alignment": "", "retrieval": "", "accuracy": "", "top1": ""}
_UNITS |= {"minimal_pairs": ""}
_UNITS |= {"bits_per_byte": " bits per byte", "steps_to": " steps"}


def describe_verdicts(results: Sequence[ClaimResult]) -> str:
    """Returns how many claims were supported, contradicted and so on."""
    if not results:
        return "This study claimed nothing before its runs, so all of it is exploratory."
    counts = Counter(result.word for result in results)
    verdicts = ", ".join(f"{counts[word]} {word}" for word in _WORDS if counts[word])
    claims = "claim" if len(results) == 1 else "claims"
    return f"Of {len(results)} {claims} made before the runs: {verdicts}."


def explain_words(results: Sequence[ClaimResult]) -> str:
    """Returns what each verdict means that a claim has."""
    words = {result.word for result in results}
    return " ".join(
        f"{word.capitalize()}: {text[0].lower()}{text[1:]}"
        for word, text in _WORDS.items()
        if word in words
    )


def describe_claim(result: ClaimResult) -> dict[str, Any]:
    """Returns the parts of a claim for the page: its statement, its effect and its notes."""
    claim = result.claim
    direction = {"same": "no difference"}.get(claim.direction, claim.direction)
    notes = [
        f"Measured: {_name_measure(claim)} of {claim.language} in cell {claim.cell}, held "
        f"against {result.against}. Claimed: {direction}; what matters: "
        f"{_format_smallest_effect(claim)} or more.",
        *result.notes,
    ]
    if result.missing:
        notes.append(f"Still to be run: {validity.join_few_names(result.missing)}.")
    if result.failed:
        notes.append(f"Judged without runs that failed: {validity.join_few_names(result.failed)}.")
    return {
        "mark": _MARKS.get(result.word, "unfinished"),
        "word": result.word.capitalize(),
        "statement": claim.statement or result.name,
        "effect": _describe_effect(result),
        "notes": notes,
    }


def _name_measure(claim: grid.Claim) -> str:
    if claim.measure != "steps_to":
        return _MEASURES[claim.measure]
    if claim.of_pair:
        return f"the first step at which {_MEASURES['alignment']} is {claim.bar:g} or more,"
    return f"the first step at which the held-out loss is {claim.bar:g} nats or less,"


def _format_smallest_effect(claim: grid.Claim) -> str:
    if claim.measure == "log_teff":
        return f"a factor of {math.exp(claim.smallest):.3g}"
    return f"{claim.smallest:g}" + _UNITS.get(claim.measure, " nats")


def _describe_effect(result: ClaimResult) -> tuple[str, str, str]:
    """Returns the effect in words: what is before its number, the number, and what is after."""
    estimate, claim = result.estimate, result.claim
    if math.isnan(estimate.value):
        return "No effect can be stated.", "", ""
    factor = claim.measure == "log_teff"
    before = ("TEff × " if claim.against else "TEff ") if factor else ""
    number = _format_claim_effect(claim, estimate.value)
    unit = _UNITS.get(claim.measure, " nats")
    seeds = f"{estimate.n} seed{'s' * (estimate.n != 1)}"
    if result.word == NOT_MEASURED:
        return f"So far {before}", number, f"{unit} ({seeds}), which is no result yet."
    interval = _format_effect_interval(result, result.verdict.shown_interval)
    if not interval:
        why = "with one seed nothing is known of the scatter" if estimate.n < 2 else "no interval"
        return before, number, f"{unit} ({seeds}: {why})."
    confidence = f"{100 * result.verdict.confidence:.3g} %"
    after = (
        f"{unit}, interval {interval} ({confidence}; {seeds}; {_describe_p_values(result)}). "
        f"{_explain_verdict(result)}"
    )
    return before, number, after


def _format_claim_effect(claim: grid.Claim, effect: float) -> str:
    digits = 0 if claim.measure == "steps_to" else 3
    return format_effect(effect, claim.smallest, claim.measure == "log_teff", digits)


def format_effect(effect: float, smallest: float, factor: bool, least: int = 3) -> str:
    """Returns an effect with as many digits as show on which side of 0 and of +-smallest it is.

    Args:
      effect: in units of the measure.
      smallest: the smallest effect of interest.
      factor: whether the effect is the log of what is written.
      least: digits that it has at least; after the point, of what is no factor.
    """
    if not math.isfinite(effect):
        return ABSENT
    read = math.exp if factor else float
    marks = [read(mark) for mark in (-smallest, 0.0, smallest)]
    sides = [(read(effect) > mark) - (read(effect) < mark) for mark in marks]
    written = ""
    for digits in range(least, 9):
        written = f"{read(effect):.{digits}g}" if factor else format_signed(effect, digits)
        shown = float(written.replace("−", "-"))
        if [(shown > mark) - (shown < mark) for mark in marks] == sides:
            break
    return written


def _format_effect_interval(result: ClaimResult, interval: tuple[float, float]) -> str:
    return format_interval(interval, lambda x: _format_claim_effect(result.claim, x))


def _describe_p_values(result: ClaimResult) -> str:
    verdict = result.verdict
    values = []
    if not verdict.equivalent:
        values.append(f"of no effect {_format_p_value(verdict.p)}")
    if verdict.equivalent or verdict.direction == "same":
        values.append(f"of an effect as large as matters {_format_p_value(verdict.equivalence_p)}")
    return f"adjusted p {' and '.join(values)}"


def _format_p_value(p: float) -> str:
    # Rounded down, so that 0.0498 does not read as 0.050 and undecided.
    return "below 0.001" if p < 0.001 else f"{math.floor(1000 * p) / 1000:.3f}"


def _explain_verdict(result: ClaimResult) -> str:
    """Returns the sentence that leads from the interval to the verdict."""
    verdict, smallest = result.verdict, _format_smallest_effect(result.claim)
    none = "0"
    if result.claim.measure == "log_teff":
        none = "a factor of 1" if result.claim.against else "a TEff of 1"
    if verdict.equivalent:
        return f"The interval holds no effect as large as {smallest}."
    if verdict.p >= verdict.alpha:
        return f"The interval holds {none}, and effects as large as {smallest}."
    if result.word == "undecided":
        interval = _format_effect_interval(result, verdict.equivalence_interval)
        confidence = f"{100 * (1 - 2 * verdict.equivalence_level):.3g} %"
        return (
            f"The interval leaves out {none}, so there is an effect; the estimate is smaller than "
            f"{smallest}, and the interval that would show that of the effect, {interval} "
            f"({confidence}), reaches beyond it."
        )
    return f"The interval leaves out {none}, and the estimate is {smallest} or more."
