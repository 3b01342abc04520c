"""What a study's runs say of the claims that it made before it ran.

Every claim gets a verdict of statistics.py, Holm's correction being over all of them, those
that could not be measured yet included. No verdict is given before all runs of a claim are
there: to look at some seeds and stop where they please would make any claim true.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from imbalance_jax.analysis import statistics, transfer_results
from imbalance_jax.analysis.effects import (
    BaselineGroup,
    Effects,
    EfficiencyEstimate,
    LanguageCondition,
    count_baseline_tokens,
    estimate_from_draws,
    find_nearest_baseline,
    list_baseline_runs,
)
from imbalance_jax.analysis.statistics import Estimate, Verdict
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.config import costs
from imbalance_jax.study import grid
from imbalance_jax.study.grid import Claim

ALPHA = 0.05
NOT_MEASURED = "not measured"
_DIRECTIONS: Mapping[str, statistics.Direction] = {"lower": "down", "higher": "up", "same": "same"}
_NOTHING = Estimate(math.nan, math.nan, 0, 0, "unrepeated")


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

    estimate: Estimate
    against: str
    runs: Sequence[str]  # that it needs
    notes: Sequence[str] = ()


def judge_claims(table: StudyTable, effects: Effects) -> list[ClaimResult]:
    """Returns a result for each claim of a study."""
    found = {name: _measure_claim(claim, table, effects) for name, claim in table.claims.items()}
    waiting = {
        name: [run for run in each.runs if table.runs[run].state.state not in ("done", "failed")]
        for name, each in found.items()
    }
    unknown = {
        name: bool(waiting[name]) or (math.isnan(each.estimate.value) and not _is_outside_law(each))
        for name, each in found.items()
    }
    verdicts = {}
    for name, claim in table.claims.items():
        estimate = _NOTHING if unknown[name] else found[name].estimate
        verdicts[name] = statistics.reach_verdict(
            estimate, _DIRECTIONS[claim.direction], claim.smallest, ALPHA
        )
    adjusted = statistics.adjust_verdicts(verdicts)
    results = []
    for name, claim in table.claims.items():
        verdict = adjusted[name]
        word = NOT_MEASURED if unknown[name] else verdict.word
        if unknown[name]:
            verdict = dataclasses.replace(verdict, estimate=found[name].estimate)
        failed = [run for run in found[name].runs if table.runs[run].state.state == "failed"]
        each = found[name]
        results.append(
            ClaimResult(name, claim, word, verdict, each.against, waiting[name], failed, each.notes)
        )
    return results


def _is_outside_law(found: _ClaimEffect) -> bool:
    """Says whether an effect is unknown because its loss is outside of the law's range."""
    return found.estimate.n > 0


def _measure_claim(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    if claim.measure in grid.PAIR_MEASURES:
        return _measure_language_pair(claim, table, effects)
    if claim.measure == "accuracy":
        return _measure_accuracy(claim, table)
    if claim.measure == "log_teff":
        return _measure_log_teff(claim, table, effects)
    if claim.against in grid.BASELINES and not _list_cell_runs(table, claim.against):
        return _compare_with_baselines(claim, table, effects)
    return _compare_with_cell(claim, table, effects)


def _list_cell_runs(table: StudyTable, cell: str) -> list[str]:
    return [name for name, run in table.runs.items() if run.spec.cell == cell]


def _drop_unrepeated_interval(estimate: Estimate, *sides: Mapping[int, float]) -> Estimate:
    """Returns an estimate without its interval where a side has one run: it shows no scatter."""
    if min(len(side) for side in sides) >= 2:
        return estimate
    return Estimate(estimate.value, math.nan, 0, 1, "unrepeated")


def _estimate_side_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate:
    if not first or not second:
        return _NOTHING
    return _drop_unrepeated_interval(statistics.estimate_difference(first, second), first, second)


def _compare_with_cell(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    language = claim.against_language or claim.language
    against = f"{language} of cell {claim.against}"
    runs = list(
        dict.fromkeys([*_list_cell_runs(table, claim.cell), *_list_cell_runs(table, claim.against)])
    )
    mine = effects.condition(claim.cell, claim.language)
    theirs = effects.condition(claim.against, language)
    if mine is None or theirs is None:
        return _ClaimEffect(_NOTHING, against, runs)
    if why := _explain_unknown(claim, mine, theirs):
        return _ClaimEffect(_NOTHING, against, runs, (why,))
    estimate = _estimate_side_difference(mine.by_seed(claim.measure), theirs.by_seed(claim.measure))
    notes: tuple[str, ...] = ()
    if claim.measure == "loss":
        sides = ((claim.cell, claim.language), (claim.against, language))
        notes = _make_text_notes(table, sides)
    return _ClaimEffect(estimate, against, runs, notes)


def _explain_unknown(claim: Claim, *sides: LanguageCondition) -> str:
    """Returns which runs have no value of what a claim is about, in a sentence; "" for none."""
    runs = [
        row.run
        for side in sides
        for row in side.observations
        if not math.isfinite(getattr(row, claim.measure))
    ]
    return f"No {claim.measure} is known of {', '.join(dict.fromkeys(runs))}." if runs else ""


def _make_text_notes(table: StudyTable, sides: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Returns how much of a difference of two losses lies in which documents were tested on."""
    found = [
        {
            table.runs[run].config.seed: table.texts[run, language]
            for run in _list_cell_runs(table, cell)
            if (run, language) in table.texts
        }
        for cell, language in sides
    ]
    # The runs that `statistics.difference` compares.
    shared = found[0].keys() & found[1].keys()
    texts = [[side[s] for s in side if s in shared or len(shared) < 2] for side in found]
    if not all(texts):
        return ()
    numbers = sorted(set.intersection(*(set(each) for side in texts for each in side)))
    if len(numbers) < 2:
        return ()
    every_RC = np.array([[each[n] for n in numbers] for side in texts for each in side])
    draws_SR = statistics.resample_text(every_RC[..., 0], every_RC[..., 1])
    loss_R = every_RC[..., 0].sum(axis=1) / every_RC[..., 1].sum(axis=1)
    first = len(texts[0])
    low, high = statistics.compute_widened_interval(
        float(loss_R[:first].mean() - loss_R[first:].mean()),
        draws_SR[:, :first].mean(axis=1) - draws_SR[:, first:].mean(axis=1),
        len(numbers) - 1,
    )
    return (
        f"With the same runs and other test text it would be {low:+.3f} to {high:+.3f} (95 %): "
        f"{len(numbers)} groups of documents drawn anew.".replace("-", "−"),
    )


def _get_baseline_group(claim: Claim, table: StudyTable, cell: str, kind: str) -> BaselineGroup:
    """Returns the baselines of a kind that a claim's language is held against."""
    config = table.runs[_list_cell_runs(table, cell)[0]].config
    return BaselineGroup.of(config, config.source_of(claim.language), kind)


def _compare_with_baselines(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    """Holds a loss against the baseline of the same own tokens, or else against their law."""
    group = _get_baseline_group(claim, table, claim.cell, claim.against)
    members = list_baseline_runs(table, group)
    config = table.runs[_list_cell_runs(table, claim.cell)[0]].config
    own = costs.count_language_tokens(config)[claim.language]
    mine = effects.condition(claim.cell, claim.language)
    nearest = find_nearest_baseline(table, group, own)
    if nearest:
        return _compare_with_nearest(claim, table, effects, nearest, own)
    against = (
        f"the law of the {claim.against} baselines, of which none has tokens within "
        f"{grid.NEAR:.0%} of its own"
    )
    runs = [*_list_cell_runs(table, claim.cell), *members]
    if mine is None:
        return _ClaimEffect(_NOTHING, against, runs)
    worth = mine.worths.get((claim.against, claim.measure))
    if worth is None:
        why = mine.no_law.get(claim.against, "there is no law of this part of the loss")
        return _ClaimEffect(_NOTHING, against, runs, (f"No law: {why}.",))
    if why := _explain_unknown(claim, mine):
        return _ClaimEffect(_NOTHING, against, runs, (why,))
    assert worth.law.choice is not None
    expected = float(worth.law.choice.law.loss(own))
    losses = mine.by_seed(claim.measure)
    alone = _estimate_side_difference(losses, dict.fromkeys(losses, expected))
    # What the law says is itself only known to within its left-out error.
    wider = dataclasses.replace(alone, se=math.hypot(alone.se, worth.law.choice.error))
    return _ClaimEffect(wider, against, runs)


def _compare_with_nearest(
    claim: Claim, table: StudyTable, effects: Effects, nearest: str, own: float
) -> _ClaimEffect:
    """Holds a language against a baseline of about as many tokens, at its own tokens by the law."""
    cell = table.runs[nearest].spec.cell
    tokens = count_baseline_tokens(table, nearest)
    off = tokens / own - 1
    against = f"the {claim.against} baseline {cell}, "
    against += (
        "which has as many tokens"
        if not off
        else f"which has {_format_token_difference(off)} tokens"
    )
    runs = [*_list_cell_runs(table, claim.cell), *_list_cell_runs(table, cell)]
    mine = effects.condition(claim.cell, claim.language)
    theirs = next((c for c in effects.conditions if c.cell == cell), None)
    if mine is None or theirs is None:
        return _ClaimEffect(_NOTHING, against, runs)
    if why := _explain_unknown(claim, mine, theirs):
        return _ClaimEffect(_NOTHING, against, runs, (why,))
    losses = theirs.by_seed(claim.measure)
    if not off:
        return _ClaimEffect(
            _estimate_side_difference(mine.by_seed(claim.measure), losses), against, runs
        )
    part = "loss" if claim.measure == "bits_per_byte" else claim.measure
    nats = mine.less_loss(claim.against, part, tokens)
    if math.isnan(nats):
        why = f"The baseline has {_format_token_difference(off)} tokens, which favours "
        why += "what was trained on more; there is no law of this measure to correct it by."
        return _ClaimEffect(
            _estimate_side_difference(mine.by_seed(claim.measure), losses), against, runs, (why,)
        )
    # Bits per byte of one text are its nats per token times a constant.
    scale = 1.0
    if claim.measure == "bits_per_byte":
        scale = math.fsum(losses.values()) / math.fsum(theirs.by_seed("loss").values())
    moved = {seed: loss - scale * nats for seed, loss in losses.items()}
    found = _estimate_side_difference(mine.by_seed(claim.measure), moved)
    choice = mine.worths[claim.against, part].law.choice
    assert choice is not None, "the law has said how much less the loss is"
    # What was taken away is itself only known to within the law's left-out error.
    error = scale * min(choice.error if math.isfinite(choice.error) else math.inf, abs(nats))
    side = "lower" if nats > 0 else "higher"
    note = (
        f"Corrected by the law of the {claim.against} baselines: their loss at the tokens of "
        f"{claim.cell} {claim.language} is {abs(nats):.3g} nats {side} than at those of {cell}, "
        f"and without the correction this effect would be {found.value - scale * nats:+.3f}."
    ).replace("-", "−")
    wider = dataclasses.replace(found, se=math.hypot(found.se, error))
    return _ClaimEffect(wider, against, runs, (note,))


def _format_token_difference(off: float) -> str:
    return f"{100 * abs(off):.3g} % {'more' if off > 0 else 'fewer'}"


def _measure_log_teff(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    """Log TEff, with the scatter of runs and law together: both are drawn anew."""
    law = f"the law of the {claim.baseline} baselines"
    cells = [(claim.cell, claim.language)]
    if claim.against:
        language = claim.against_language or claim.language
        cells.append((claim.against, language))
        against = f"{language} of cell {claim.against}, both by {law}"
    else:
        against = f"a TEff of 1 by {law}"
    runs: dict[str, None] = {}
    for cell, language in cells:
        group = _get_baseline_group(
            dataclasses.replace(claim, language=language), table, cell, claim.baseline
        )
        runs |= dict.fromkeys([*_list_cell_runs(table, cell), *list_baseline_runs(table, group)])
    worths: list[EfficiencyEstimate] = []
    for cell, language in cells:
        condition = effects.condition(cell, language)
        if condition is None:
            return _ClaimEffect(_NOTHING, against, list(runs))
        worth = condition.worths.get((claim.baseline, "loss"))
        if worth is None:
            return _ClaimEffect(
                _NOTHING, against, list(runs), (_explain_missing_law(condition, claim.baseline),)
            )
        worths.append(worth)
    return _compare_log_teffs(worths, against, list(runs))


def _explain_missing_law(condition: LanguageCondition, kind: str) -> str:
    if not condition.plain:
        return f"The text of {condition.language} is not as written, so no law holds for it."
    return f"No law: {condition.no_law.get(kind, 'there are no such baselines')}."


def _compare_log_teffs(
    worths: Sequence[EfficiencyEstimate], against: str, runs: Sequence[str]
) -> _ClaimEffect:
    notes = []
    seeds = min(len(worth.teff_by_seed) for worth in worths)
    for worth in worths:
        if worth.limit:
            sign = ">" if worth.limit == "above" else "<"
            return _ClaimEffect(
                Estimate(math.nan, math.nan, 0, seeds, "unrepeated"),
                against,
                runs,
                (
                    f"Its perplexity is far outside of what the law was fitted on: TEff {sign} "
                    f"{worth.bound:.3g}. Nothing can be decided before there are baselines there.",
                ),
            )
    if len(worths) == 1:
        estimate = worths[0].uncertainty()
    else:
        first, second = (worth.uncertainty() for worth in worths)
        draws = worths[0].draws - worths[1].draws
        df = min(worth.df for worth in worths)
        estimate = estimate_from_draws(first.value - second.value, draws, df, seeds)
    if any(worth.efficiency.extrapolated for worth in worths):
        notes.append("The law is read beyond its baselines here, so this is extrapolation.")
    errors = [worth.law_error for worth in worths if math.isfinite(worth.law_error)]
    if errors and math.hypot(*errors) > abs(estimate.value) > 0:
        notes.append(
            f"The law’s own error, about {math.expm1(math.hypot(*errors)):.0%} of TEff, is larger "
            "than this effect."
        )
    return _ClaimEffect(estimate, against, runs, tuple(notes))


def _measure_language_pair(claim: Claim, table: StudyTable, effects: Effects) -> _ClaimEffect:
    """Returns the alignment of two languages, or their retrieval, above what nothing shared has."""
    measure, alone = _OF_PAIR[claim.measure]
    cells = [claim.cell] if not claim.against else [claim.cell, claim.against]
    against = f"cell {claim.against}" if claim.against else alone
    runs = list(dict.fromkeys(name for cell in cells for name in _list_cell_runs(table, cell)))
    found = [effects.alignment(cell, claim.language, measure) for cell in cells]
    waiting = any(table.runs[name].state.state not in ("done", "failed") for name in runs)
    if any(each is None for each in found):
        what = claim.measure + (" and its chance" if claim.measure == "retrieval" else "")
        why = () if waiting else (f"No {what} of {claim.language} was measured.",)
        return _ClaimEffect(_NOTHING, against, runs, why)
    values = [each.excess_by_seed for each in found if each is not None]
    notes = [
        f"By chance it is {_average_seeds(each.baselines):.3g} in cell {each.cell}, where it was "
        f"{_average_seeds(each.values):.3g}."
        for each in found
        if each is not None and claim.measure == "retrieval"
    ]
    if len(values) == 1:
        values.append(dict.fromkeys(values[0], 0.0))
    return _ClaimEffect(_estimate_side_difference(*values), against, runs, notes)


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
    cells = [(claim.cell, claim.language)]
    if claim.against:
        cells.append((claim.against, claim.against_language or claim.language))
    runs = list(dict.fromkeys(name for cell, _ in cells for name in _list_cell_runs(table, cell)))
    learnt = f"after tasks learnt in {trained}"
    against = (
        f"{cells[1][1]} of cell {claim.against}, both {learnt}"
        if claim.against
        else f"the accuracy of always saying the most frequent label, {learnt}"
    )
    done = [name for name in runs if table.runs[name].state.state == "done"]
    read = {
        name: transfer_results.read_transfer_results(table.runs[name].directory) for name in done
    }
    protocols = [p for p in _PROTOCOLS if all(read[n].get(p, {}).get(trained) for n in done)]
    if not protocols:
        lacking = [n for n in done if not any(of.get(trained) for of in read[n].values())]
        why = (
            f"Its tasks were not learnt in {', '.join(lacking[:3])}: "
            f"python -m imbalance_jax.transfer --train_language={trained} does that."
            if lacking
            else "The runs’ tasks were learnt by different protocols."
        )
        return _ClaimEffect(_NOTHING, against, runs, (why,) if done else ())
    tasks = {name: read[name][protocols[0]][trained] for name in done}
    ways = {
        (frozenset(each), repr(transfer_results.get_task_settings(each))) for each in tasks.values()
    }
    if len(ways) > 1:
        why = "The runs’ tasks differ, or the settings that they were learnt with."
        return _ClaimEffect(_NOTHING, against, runs, (why,))
    sides: list[dict[int, float]] = []
    chances: dict[int, float] = {}
    for cell, language in cells:
        side = {}
        for name in (name for name in _list_cell_runs(table, cell) if name in done):
            row = transfer_results.average_over_tasks(tasks[name]).get(language)
            if row is None:
                why = f"Not every task of {name} has an accuracy in {language}."
                return _ClaimEffect(_NOTHING, against, runs, (why,))
            side[table.runs[name].config.seed] = row["accuracy"]
            chances.setdefault(table.runs[name].config.seed, row["majority"])
        sides.append(side)
    if len(sides) == 1:
        sides.append({seed: chances[seed] for seed in sides[0]})
    named = transfer_results.name_tasks(next(iter(tasks.values())))
    note = f"Tasks: {named}, by the protocol {protocols[0]}; always saying the most frequent label "
    note += f"has an accuracy of {_average_seeds(chances):.3f}." if chances else "is not known."
    return _ClaimEffect(_estimate_side_difference(*sides), against, runs, (note,))


_PROTOCOLS = ("reference", "intended")  # of evaluation/transfer.py, which imports jax
