"""What a study's runs say of the claims that it made before it ran.

Every claim gets a verdict of verdicts.py, Holm's correction being over all of them, those
that could not be measured yet included. No verdict is given before all runs of a claim are
there: to look at some seeds and stop where they please would make any claim true.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from imbalance_jax.analysis import statistics, transfer_results, verdicts
from imbalance_jax.analysis.baselines import (
    BaselineGroup,
    find_nearest_baseline,
    format_token_difference,
    list_baseline_runs,
)
from imbalance_jax.analysis.effects import Effects, LanguageCondition
from imbalance_jax.analysis.fitted_laws import EfficiencyEstimate, estimate_from_draws
from imbalance_jax.analysis.passing import (
    PassedCount,
    collect_passings,
    compute_largest_difference,
    count_passed,
    estimate_passing_difference,
    restrict_passing,
)
from imbalance_jax.analysis.statistics import Estimate
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.analysis.text_notes import make_text_notes
from imbalance_jax.analysis.verdicts import Verdict
from imbalance_jax.config import costs
from imbalance_jax.study.claim import PAIR_MEASURES, Claim
from imbalance_jax.study.run_spec import BASELINES, NEAR

ALPHA = 0.05
NOT_MEASURED = "not measured"
_DIRECTIONS: Mapping[str, verdicts.Direction] = {"lower": "down", "higher": "up", "same": "same"}
_NOTHING = Estimate.unrepeated()


@dataclasses.dataclass(frozen=True)
class ClaimResult:
    """A claim and what became of it."""

    name: str
    claim: Claim
    word: str  # supported, contradicted, absent, undecided or NOT_MEASURED
    verdict: Verdict  # p adjusted over all claims; nan where nothing was measured
    against: str  # what it was held against, in words
    missing: Sequence[str] = ()  # runs that are still to be done
    failed: Sequence[str] = ()  # runs that failed, and without which it was judged
    notes: Sequence[str] = ()  # what else there is to know, a sentence each

    @property
    def estimate(self) -> Estimate:
        """The effect, also of the runs so far where it is not measured yet."""
        return self.verdict.estimate


@dataclasses.dataclass(frozen=True)
class _ClaimEffect:
    """A claim's effect before it is judged."""

    against: str
    runs: Sequence[str]  # that it needs
    estimate: Estimate = _NOTHING
    notes: Sequence[str] = ()

    def because(self, why: str) -> "_ClaimEffect":
        """Returns the effect without an estimate, with the reason."""
        return dataclasses.replace(self, estimate=_NOTHING, notes=(why,))

    def of(self, estimate: Estimate, *notes: str) -> "_ClaimEffect":
        return dataclasses.replace(self, estimate=estimate, notes=notes)


def judge_claims(table: StudyTable, effects: Effects) -> list[ClaimResult]:
    """Returns a result for each claim of a study."""
    measured = {name: _measure_claim(claim, table, effects) for name, claim in table.claims.items()}
    waiting = {
        name: [run for run in effect.runs if not _has_ended(table, run)]
        for name, effect in measured.items()
    }
    # An effect of so many seeds whose value is nan is outside of the law's range, which is known.
    unknown = {
        name: bool(waiting[name]) or (math.isnan(effect.estimate.value) and not effect.estimate.n)
        for name, effect in measured.items()
    }
    adjusted = verdicts.adjust_verdicts(
        {
            name: verdicts.reach_verdict(
                _NOTHING if unknown[name] else measured[name].estimate,
                _DIRECTIONS[claim.direction],
                claim.smallest,
                ALPHA,
            )
            for name, claim in table.claims.items()
        }
    )
    return [
        ClaimResult(
            name,
            claim,
            NOT_MEASURED if unknown[name] else adjusted[name].word,
            dataclasses.replace(adjusted[name], estimate=measured[name].estimate),
            measured[name].against,
            waiting[name],
            [run for run in measured[name].runs if table.runs[run].state.state == "failed"],
            measured[name].notes,
        )
        for name, claim in table.claims.items()
    ]


def _has_ended(table: StudyTable, run: str) -> bool:
    return table.runs[run].state.state in ("done", "failed")


def _measure_claim(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    if claim.measure in PAIR_MEASURES:
        return _measure_language_pair(claim, table, effects)
    if claim.measure == "accuracy":
        return _measure_accuracy(claim, table)
    if claim.measure == "log_teff":
        return _measure_log_teff(claim, table, effects)
    if claim.measure == "steps_to":
        return _compare_passings(claim, table, effects)
    if not claim.against:
        return _compare_with_chance(claim, table, effects)
    if claim.against in BASELINES and not _list_cell_runs(table, claim.against):
        return _compare_with_baselines(claim, table, effects)
    return _compare_with_cell(claim, table, effects)


def _list_cell_runs(table: StudyTable, *cells: str) -> list[str]:
    return list(
        dict.fromkeys(
            name for cell in cells for name, run in table.runs.items() if run.spec.cell == cell
        )
    )


def _estimate_side_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate:
    """Returns first minus second; without an interval where a side has one run, or none."""
    if not first or not second:
        return _NOTHING
    estimate = statistics.estimate_difference(first, second)
    if min(len(first), len(second)) >= 2:
        return estimate
    return Estimate.unrepeated(estimate.value, 1)


def _compare_with_chance(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    """Returns the accuracy on minimal pairs above that of a model that guesses."""
    effect = _ClaimEffect("chance, which is 0.5", _list_cell_runs(table, claim.cell))
    own = effects.condition(claim.cell, claim.language)
    if own is None:
        return effect
    if why := _explain_unknown(claim, own):
        return effect.because(why)
    accuracies = own.by_seed(claim.measure)
    return effect.of(_estimate_side_difference(accuracies, dict.fromkeys(accuracies, 0.5)))


def _compare_with_cell(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    language = claim.against_language or claim.language
    runs = _list_cell_runs(table, claim.cell, claim.against)
    effect = _ClaimEffect(f"{language} of cell {claim.against}", runs)
    own = effects.condition(claim.cell, claim.language)
    other = effects.condition(claim.against, language)
    if own is None or other is None:
        return effect
    if why := _explain_unknown(claim, own, other):
        return effect.because(why)
    estimate = _estimate_side_difference(own.by_seed(claim.measure), other.by_seed(claim.measure))
    notes: tuple[str, ...] = ()
    if claim.measure == "loss":
        sides = ((claim.cell, claim.language), (claim.against, language))
        notes = make_text_notes(table, [(_list_cell_runs(table, c), of) for c, of in sides])
    return effect.of(estimate, *notes)


def _explain_unknown(claim: Claim, *sides: LanguageCondition) -> str:
    """Returns which runs have no value of what a claim is about, in a sentence; "" for none."""
    runs = [
        row.run
        for side in sides
        for row in side.observations
        if not math.isfinite(getattr(row, claim.measure))
    ]
    if runs:
        return f"No {claim.measure} is known of {', '.join(dict.fromkeys(runs))}."
    sets = {row.pair_set for side in sides for row in side.observations}
    unlike = claim.measure == "minimal_pairs" and len(sets) > 1
    return "The runs’ minimal pairs are not the same sentences." if unlike else ""


def _get_baseline_group(table: StudyTable, cell: str, language: str, kind: str) -> BaselineGroup:
    """Returns the baselines of a kind that a cell's language is held against."""
    config = table.runs[_list_cell_runs(table, cell)[0]].config
    return BaselineGroup.of(config, config.source_of(language), kind)


def _compare_with_baselines(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    """Holds a loss against the baseline of the same own tokens, or else against their law."""
    group = _get_baseline_group(table, claim.cell, claim.language, claim.against)
    runs = _list_cell_runs(table, claim.cell)
    own_tokens = costs.count_language_tokens(table.runs[runs[0]].config)[claim.language]
    nearest = find_nearest_baseline(table, group, own_tokens)
    if nearest:
        return _compare_with_nearest(claim, table, effects, nearest, own_tokens)
    effect = _ClaimEffect(
        f"the law of the {claim.against} baselines, of which none has tokens within "
        f"{NEAR:.0%} of its own",
        [*runs, *list_baseline_runs(table, group)],
    )
    condition = effects.condition(claim.cell, claim.language)
    if condition is None:
        return effect
    worth = condition.worths.get((claim.against, claim.measure))
    if worth is None:
        why = condition.no_law.get(claim.against, "there is no law of this part of the loss")
        return effect.because(f"No law: {why}.")
    if why := _explain_unknown(claim, condition):
        return effect.because(why)
    expected = float(worth.choice.law.loss(own_tokens))
    losses = condition.by_seed(claim.measure)
    alone = _estimate_side_difference(losses, dict.fromkeys(losses, expected))
    # What the law says is itself only known to within its left-out error.
    return effect.of(dataclasses.replace(alone, se=math.hypot(alone.se, worth.choice.error)))


def _compare_with_nearest(
    claim: Claim, table: StudyTable, effects: Effects, nearest: str, own_tokens: float
) -> _ClaimEffect:
    """Holds a language against a baseline of about as many tokens, at its own tokens by the law."""
    cell = table.runs[nearest].spec.cell
    tokens = table.runs[nearest].spec.tokens
    off = tokens / own_tokens - 1
    as_many = f"{format_token_difference(off)} tokens" if off else "as many tokens"
    effect = _ClaimEffect(
        f"the {claim.against} baseline {cell}, which has {as_many}",
        [*_list_cell_runs(table, claim.cell), *_list_cell_runs(table, cell)],
    )
    own = effects.condition(claim.cell, claim.language)
    baseline = next((c for c in effects.conditions if c.cell == cell), None)
    if own is None or baseline is None:
        return effect
    if why := _explain_unknown(claim, own, baseline):
        return effect.because(why)
    losses = baseline.by_seed(claim.measure)
    plain = _estimate_side_difference(own.by_seed(claim.measure), losses)
    if not off:
        return effect.of(plain)
    part = "loss" if claim.measure == "bits_per_byte" else claim.measure
    nats = own.less_loss(claim.against, part, tokens)
    if math.isnan(nats):
        return effect.of(
            plain,
            f"The baseline has {as_many}, which favours what was trained on more; there is no law "
            "of this measure to correct it by.",
        )
    # Bits per byte of one text are its nats per token times a constant.
    scale = 1.0
    if claim.measure == "bits_per_byte":
        scale = math.fsum(losses.values()) / math.fsum(baseline.by_seed("loss").values())
    moved = {seed: loss - scale * nats for seed, loss in losses.items()}
    corrected = _estimate_side_difference(own.by_seed(claim.measure), moved)
    # What was taken away is itself only known to within the law's left-out error.
    missed = own.worths[claim.against, part].choice.error
    error = scale * min(missed if math.isfinite(missed) else math.inf, abs(nats))
    side = "lower" if nats > 0 else "higher"
    note = (
        f"Corrected by the law of the {claim.against} baselines: their loss at the tokens of "
        f"{claim.cell} {claim.language} is {abs(nats):.3g} nats {side} than at those of {cell}, "
        f"and without the correction this effect would be {corrected.value - scale * nats:+.3f}."
    ).replace("-", "−")
    return effect.of(dataclasses.replace(corrected, se=math.hypot(corrected.se, error)), note)


def _measure_log_teff(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    """Log TEff, with the scatter of runs and law together: both are drawn anew."""
    law = f"the law of the {claim.baseline} baselines"
    cells = [(claim.cell, claim.language)]
    against = f"a TEff of 1 by {law}"
    if claim.against:
        cells.append((claim.against, claim.against_language or claim.language))
        against = f"{cells[1][1]} of cell {claim.against}, both by {law}"
    runs: dict[str, None] = {}
    for cell, language in cells:
        group = _get_baseline_group(table, cell, language, claim.baseline)
        runs |= dict.fromkeys([*_list_cell_runs(table, cell), *list_baseline_runs(table, group)])
    effect = _ClaimEffect(against, list(runs))
    worths: list[EfficiencyEstimate] = []
    for cell, language in cells:
        condition = effects.condition(cell, language)
        if condition is None:
            return effect
        worth = condition.worths.get((claim.baseline, "loss"))
        if worth is None:
            return effect.because(_explain_missing_law(condition, claim.baseline))
        worths.append(worth)
    return _compare_log_teffs(worths, effect)


def _explain_missing_law(condition: LanguageCondition, kind: str) -> str:
    if not condition.plain:
        return f"The text of {condition.language} is not as written, so no law holds for it."
    return f"No law: {condition.no_law.get(kind, 'there are no such baselines')}."


def _compare_log_teffs(worths: Sequence[EfficiencyEstimate], effect: _ClaimEffect) -> _ClaimEffect:
    seeds = min(len(worth.teff_by_seed) for worth in worths)
    for worth in worths:
        if worth.limit:
            sign = ">" if worth.limit == "above" else "<"
            return effect.of(
                Estimate.unrepeated(n=seeds),
                f"Its perplexity is far outside of what the law was fitted on: TEff {sign} "
                f"{worth.bound:.3g}. Nothing can be decided before there are baselines there.",
            )
    estimate = worths[0].uncertainty()
    if len(worths) == 2:
        first, second = worths
        estimate = estimate_from_draws(
            estimate.value - second.uncertainty().value,
            first.draws - second.draws,
            min(first.df, second.df),
            seeds,
        )
    notes = []
    if any(worth.efficiency.extrapolated for worth in worths):
        notes.append("The law is read beyond its baselines here, so this is extrapolation.")
    error = math.hypot(*(worth.law_error for worth in worths if math.isfinite(worth.law_error)))
    if error > abs(estimate.value) > 0:
        notes.append(
            f"The law’s own error, about {math.expm1(error):.0%} of TEff, is larger than this "
            "effect."
        )
    return effect.of(estimate, *notes)


def _measure_language_pair(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    """Returns the alignment of two languages, or their retrieval, above what nothing shared has."""
    measure, alone = _OF_PAIR[claim.measure]
    cells = [claim.cell] if not claim.against else [claim.cell, claim.against]
    runs = _list_cell_runs(table, *cells)
    effect = _ClaimEffect(f"cell {claim.against}" if claim.against else alone, runs)
    alignments = [
        aligned
        for cell in cells
        if (aligned := effects.alignment(cell, claim.language, measure)) is not None
    ]
    if len(alignments) < len(cells):
        what = claim.measure + (" and its chance" if claim.measure == "retrieval" else "")
        if not all(_has_ended(table, name) for name in runs):
            return effect
        return effect.because(f"No {what} of {claim.language} was measured.")
    values = [aligned.excess_by_seed for aligned in alignments]
    notes = [
        f"By chance it is {_average_seeds(aligned.baselines):.3g} in cell {aligned.cell}, where it "
        f"was {_average_seeds(aligned.values):.3g}."
        for aligned in alignments
        if claim.measure == "retrieval"
    ]
    if len(values) == 1:
        values.append(dict.fromkeys(values[0], 0.0))
    return effect.of(_estimate_side_difference(*values), *notes)


def _compare_passings(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    """Returns the difference of the restricted mean steps at which two cells' runs pass a bar."""
    other = claim.against_language or claim.language
    sides = ((claim.cell, claim.language), (claim.against, other))
    runs = _list_cell_runs(table, claim.cell, claim.against)
    effect = _ClaimEffect(f"{other} of cell {claim.against}", runs)
    collected = [collect_passings(table, *side, claim.bar, effects.dropped) for side in sides]
    if unmeasured := [name for _, names in collected for name in names]:
        what = "alignment" if claim.of_pair else "held-out loss"
        named = ", ".join(dict.fromkeys(unmeasured))
        return effect.because(f"No {what} was measured in training of {named}.")
    if not all(by_seed for by_seed, _ in collected):
        return effect
    last = min(each.end for by_seed, _ in collected for each in by_seed.values())
    own, others = (
        {seed: restrict_passing(each, last) for seed, each in by_seed.items()}
        for by_seed, _ in collected
    )
    estimate = estimate_passing_difference(own, others)
    if math.isnan(estimate.value):
        return effect.of(estimate, f"No run of either cell passed the bar by step {last:,.0f}.")
    counts = [
        _describe_passed_count(cell, of, count_passed([*by_seed.values()]))
        for (cell, of), by_seed in zip(sides, (own, others), strict=True)
    ]
    told = (
        f"By step {last:,.0f}, {' and '.join(counts)} had passed. A run that had not counts with "
        "that step, at which both cells are restricted, so no difference is larger than "
        f"{last:,.0f}."
    )
    largest = compute_largest_difference(own, others, last)
    if largest >= claim.smallest:
        return effect.of(estimate, told)
    why = (  # small for want of runs that passed: no evidence that the cells are alike
        f"So few passed, or so late, that the difference from a cell of which none passes would be "
        f"{largest:,.3g}: too few to decide anything on {claim.smallest:g} steps. Longer runs can."
    )
    return effect.of(Estimate.unrepeated(estimate.value, estimate.n), told, why)


def _describe_passed_count(cell: str, of: str, count: PassedCount) -> str:
    runs = f"{count.passed} of {count.runs} run{'s' * (count.runs != 1)} of {cell} {of}"
    median = "not reached" if math.isnan(count.median) else f"step {count.median:,.0f}"
    return f"{runs} (median by Kaplan and Meier: {median})"


# The measure in effects.py, and what it is held against without another cell.
_OF_PAIR = {
    "alignment": ("hidden", "pairs that were shuffled"),
    "retrieval": ("retrieval", "chance"),
}


def _average_seeds(by_seed: Mapping[int, float]) -> float:
    return math.fsum(by_seed.values()) / len(by_seed)


def _measure_accuracy(claim: Claim, table: StudyTable) -> _ClaimEffect:
    """Returns the mean accuracy over the tasks of transfer.json, learnt in one language."""
    trained = claim.trained_in or claim.language
    learnt = f"after tasks learnt in {trained}"
    cells = [(claim.cell, claim.language)]
    against = f"the accuracy of always saying the most frequent label, {learnt}"
    if claim.against:
        cells.append((claim.against, claim.against_language or claim.language))
        against = f"{cells[1][1]} of cell {claim.against}, both {learnt}"
    runs = _list_cell_runs(table, *(cell for cell, _ in cells))
    effect = _ClaimEffect(against, runs)
    done = [name for name in runs if table.runs[name].state.state == "done"]
    if not done:
        return effect
    results = {
        name: transfer_results.read_transfer_results(table.runs[name].directory) for name in done
    }
    protocols = [p for p in _PROTOCOLS if all(results[n].get(p, {}).get(trained) for n in done)]
    if not protocols:
        lacking = [n for n in done if not any(of.get(trained) for of in results[n].values())]
        why = (
            f"Its tasks were not learnt in {', '.join(lacking[:3])}: "
            f"python -m imbalance_jax.transfer --train_language={trained} does that."
            if lacking
            else "The runs’ tasks were learnt by different protocols."
        )
        return effect.because(why)
    tasks = {name: results[name][protocols[0]][trained] for name in done}
    ways = {
        (frozenset(each), repr(transfer_results.get_task_settings(each))) for each in tasks.values()
    }
    if len(ways) > 1:
        return effect.because("The runs’ tasks differ, or the settings that they were learnt with.")
    sides: list[dict[int, float]] = []
    chances: dict[int, float] = {}
    for cell, language in cells:
        side = {}
        for name in (name for name in _list_cell_runs(table, cell) if name in done):
            row = transfer_results.average_over_tasks(tasks[name]).get(language)
            if row is None:
                return effect.because(f"Not every task of {name} has an accuracy in {language}.")
            seed = table.runs[name].config.seed
            side[seed] = row["accuracy"]
            chances.setdefault(seed, row["majority"])
        sides.append(side)
    if len(sides) == 1:
        sides.append({seed: chances[seed] for seed in sides[0]})
    named = transfer_results.name_tasks(next(iter(tasks.values())))
    note = f"Tasks: {named}, by the protocol {protocols[0]}; always saying the most frequent label "
    note += f"has an accuracy of {_average_seeds(chances):.3f}." if chances else "is not known."
    return effect.of(_estimate_side_difference(*sides), note)


_PROTOCOLS = ("reference", "intended")  # of transfer/finetune.py, which imports jax
