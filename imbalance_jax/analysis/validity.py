"""Whether a study's numbers can be trusted: what to look at before its conclusions."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from imbalance_jax import config as config_lib
from imbalance_jax.analysis import statistics
from imbalance_jax.analysis.baselines import (
    count_baseline_tokens,
    find_nearest_baseline,
    list_baseline_kinds,
)
from imbalance_jax.analysis.effects import Effects, LanguageCondition
from imbalance_jax.analysis.study_table import Observation, StudyTable
from imbalance_jax.study import grid

_RATIO = 0.005  # how far a language's tokens may be from those that were asked for
_RATES = ("config.optimizer.peak_lr", "config.optimizer.final_lr")
_LISTED = 6


@dataclasses.dataclass(frozen=True)
class ValidityCheck:
    """Something that would make a study's numbers mean something else."""

    name: str
    state: str  # "good", "look" (at it) or "unknown"
    text: str  # what was found, in a sentence or two


def check_validity(table: StudyTable, effects: Effects) -> list[ValidityCheck]:
    """Returns what was checked, in a fixed order."""
    return [
        _check_runs_done(table, effects),
        _check_seeds(effects),
        _check_realised_ratio(table.observations),
        _check_epochs(table.observations),
        _check_repeats(table),
        _check_law_error(effects),
        _check_extrapolation(effects),
        _check_baseline_tokens(table, effects),
        _check_equal_clones(effects),
        *_check_learning_rates(table, effects),
    ]


def join_few_names(names: Sequence[str]) -> str:
    """Returns names as a list of a few, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _format_number(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _check_runs_done(table: StudyTable, effects: Effects) -> ValidityCheck:
    failed = [name for name, run in table.runs.items() if run.state.state == "failed"]
    left = [name for name, run in table.runs.items() if run.state.state in ("absent", "begun")]
    said = []
    if failed:
        said.append(f"{len(failed)} of {len(table.runs)} runs failed: {join_few_names(failed)}.")
    if left:
        said.append(f"{len(left)} of {len(table.runs)} runs are not done: {join_few_names(left)}.")
    if effects.dropped:
        said.append(f"Left out, their loss not being finite: {join_few_names(effects.dropped)}.")
    if said:
        return ValidityCheck("Runs", "look", " ".join(said))
    return ValidityCheck("Runs", "good", f"All {len(table.runs)} runs are done, and none failed.")


def _check_seeds(effects: Effects) -> ValidityCheck:
    counts: dict[str, int] = {}
    for condition in effects.conditions:
        if condition.kind != "sweep":
            counts[condition.cell] = condition.seeds
    if not counts:
        return ValidityCheck("Seeds", "unknown", "No run is done.")
    single = [cell for cell, count in counts.items() if count == 1]
    if len(single) == len(counts):
        return ValidityCheck(
            "Seeds",
            "look",
            "Every cell has one seed. Nothing was repeated, so there is no scatter to measure: no "
            "number here has an interval, and nothing can be decided. Add seeds.",
        )
    ends = sorted({min(counts.values()), max(counts.values())})
    span = f"{' to '.join(map(str, ends))} seeds for each cell."
    if single:
        borrowed = "Their scatter is taken from the other cells."
        return ValidityCheck(
            "Seeds", "look", f"{span} One seed only: {join_few_names(single)}. {borrowed}"
        )
    return ValidityCheck("Seeds", "good" if min(counts.values()) >= 3 else "look", span)


def _check_realised_ratio(rows: Sequence[Observation]) -> ValidityCheck:
    name = "Ratio, realised"
    if not rows:
        return ValidityCheck(name, "unknown", "No run is done.")
    worst = max(rows, key=lambda row: abs(row.realised_tokens / row.tokens - 1))
    off = worst.realised_tokens / worst.tokens - 1
    if not off:
        return ValidityCheck(
            name, "good", "Every language was trained on exactly what was asked for."
        )
    return ValidityCheck(
        name,
        "good" if abs(off) <= _RATIO else "look",
        f"The largest deviation from the tokens asked for is {_format_number(100 * off, 2)} %, of "
        f"{worst.language} in run {worst.run}.",
    )


def _check_epochs(rows: Sequence[Observation]) -> ValidityCheck:
    known = [row for row in rows if math.isfinite(row.epochs)]
    if not known:
        why = "The text has no end." if rows else "No run is done."
        return ValidityCheck("Epochs", "unknown", why)
    most = max(known, key=lambda row: row.epochs)
    past = sorted({row.run for row in known if row.epochs > 1})
    if not past:
        return ValidityCheck(
            "Epochs", "good", f"No text came twice: at most {most.epochs:.2f} epochs of a source."
        )
    return ValidityCheck(
        "Epochs",
        "look",
        f"{len(past)} runs went through a text more than once, up to {most.epochs:.2f} times "
        f"({most.run}): {join_few_names(past)}. There MLTE is worth less than as many new "
        "tokens; only "
        "baselines of the kind epochs repeat as much.",
    )


def _check_repeats(table: StudyTable) -> ValidityCheck:
    name = "Text repeated across languages"
    repeated: dict[str, tuple[float, float]] = {}
    counted = 0
    for run_name, run in table.runs.items():
        if run.state.state != "done" or run.spec.kind in grid.BASELINES:
            continue
        rows = run.directory.read_csv("mixture.csv")
        counts = [float(row["cross_language_repeats"]) for row in rows if _has_repeat_count(row)]
        counted += bool(counts)
        if any(counts):
            whole = math.fsum(float(row["realised_sequences"]) for row in rows)
            repeated[run_name] = (math.fsum(counts), whole)
    if not counted:
        return ValidityCheck(name, "unknown", "No run has counted it.")
    if not repeated:
        return ValidityCheck(name, "good", "No language was shown a text that another had before.")
    worst = max(repeated, key=lambda run: repeated[run][0] / repeated[run][1])
    count, whole = repeated[worst]
    return ValidityCheck(
        name,
        "look",
        f"In {len(repeated)} runs a language was shown text that another had before, up to "
        f"{100 * count / whole:.1f} % of the sequences ({worst}). What looks like transfer may be "
        "memory of the same text.",
    )


def _has_repeat_count(row: Mapping[str, str]) -> bool:
    return bool(row.get("cross_language_repeats"))


def _check_law_error(effects: Effects) -> ValidityCheck:
    fitted = [law for law in effects.laws.values() if law.part == "loss" and law.choice]
    if not fitted:
        return ValidityCheck("Law error", "unknown", "There is no law.")
    said = []
    for law in fitted:
        assert law.choice is not None
        group = law.group
        error = law.choice.error
        known = f"{error:.4f} nats" if math.isfinite(error) else "unknown, with so few baselines"
        said.append(f"{group.kind}, {group.source}, {group.size}: {known}")
    worst = [
        worth.law_error
        for condition in effects.conditions
        for (_, part), worth in condition.worths.items()
        if part == "loss" and math.isfinite(worth.law_error)
    ]
    reading = ""
    if worst:
        reading = (
            f" Where it is read this is up to {math.expm1(max(worst)):.1%} of a TEff: effects "
            "smaller than that mean nothing."
        )
    return ValidityCheck(
        "Law error",
        "good" if worst and max(worst) < 0.05 else "look",
        f"How far each law is off at a baseline that it was not shown. {'; '.join(said)}.{reading}",
    )


def _check_extrapolation(effects: Effects) -> ValidityCheck:
    name = "Extrapolation"
    read = [
        (f"{condition.cell} {condition.language} ({kind})", worth.efficiency.extrapolated)
        for condition in effects.conditions
        for (kind, part), worth in condition.worths.items()
        if part == "loss"
    ]
    if not read:
        return ValidityCheck(name, "unknown", "No law was read.")
    beyond = [label for label, extrapolated in read if extrapolated]
    if not beyond:
        return ValidityCheck(name, "good", "Every law was read between its baselines.")
    return ValidityCheck(
        name,
        "look",
        f"{len(beyond)} of {len(read)} values were read off a law beyond its baselines: "
        f"{join_few_names(beyond)}. They are marked *.",
    )


def _check_baseline_tokens(table: StudyTable, effects: Effects) -> ValidityCheck:
    """Checks that baselines have the tokens of the languages that they are held against.

    A part of a batch is rounded to whole sequences, and one of the steps to whole steps.
    """
    name = "Tokens of the baselines"
    held = 0
    off: dict[str, float] = {}
    for condition in effects.conditions:
        if condition.kind in (*grid.BASELINES, "sweep") or not condition.plain:
            continue
        for kind in list_baseline_kinds(table):
            run = find_nearest_baseline(table, condition.baselines(kind), condition.first.tokens)
            held += bool(run)
            if not run or count_baseline_tokens(table, run) == condition.first.tokens:
                continue
            tokens = count_baseline_tokens(table, run)
            nats = condition.less_loss(kind, "loss", tokens)
            size = "no law says how much that is"
            if math.isfinite(nats):
                side = "in favour of transfer" if nats > 0 else "against transfer"
                size = f"by the law {abs(nats):.3g} nats {side}"
            part = 100 * (tokens / condition.first.tokens - 1)
            said = f"{table.runs[run].spec.cell} has {abs(part):.3g} % "
            said += f"{'more' if part > 0 else 'fewer'} tokens than {condition.cell} "
            off[f"{said}{condition.language}, {size}"] = abs(part)
    if not held:
        return ValidityCheck(name, "unknown", "No baseline has about the tokens of a language.")
    if not off:
        return ValidityCheck(name, "good", "Those held against a language have exactly its tokens.")
    worst = sorted(off, key=lambda said: -off[said])
    more = f"; and {len(off) - _LISTED} more" if len(off) > _LISTED else ""
    return ValidityCheck(
        name,
        "look",
        f"{'; '.join(worst[:_LISTED])}{more}. Claims are corrected by the law where there is one. "
        "With a batch size that every part divides nothing is to be corrected: python -m "
        "imbalance_jax.study plan names such sizes.",
    )


def _check_equal_clones(effects: Effects) -> ValidityCheck:
    """Clones of equal parts differ in nothing, so a difference would be a defect."""
    name = "Clones equal at 50:50"
    said, states = [], []
    pairs = list(_find_equal_pairs(effects))
    # All of these intervals together hold 0 in 19 of 20 studies without a defect.
    confidence = 1 - 0.05 / max(1, len(pairs))
    for first, second in pairs:
        estimate = statistics.estimate_difference(first.by_seed("loss"), second.by_seed("loss"))
        low, high = estimate.interval(confidence)
        text = (
            f"{first.cell}: {first.language} − {second.language} = "
            f"{_format_number(estimate.value)} nats"
        )
        if math.isnan(low):
            said.append(f"{text}, one seed")
            states.append("unknown")
        else:
            said.append(f"{text}, interval {_format_number(low)} to {_format_number(high)}")
            states.append("good" if low <= 0 <= high else "look")
    if not said:
        return ValidityCheck(name, "unknown", "No cell has two clones with equal parts.")
    worst = next(state for state in ("look", "unknown", "good") if state in states)
    doubt = ""
    if worst == "look":
        doubt = (
            " An interval without 0 is a defect, or chance: in one study of twenty there is one."
        )
    of = f" Intervals are of {100 * confidence:.3g} %, for all of them together 95 %."
    of = of if len(pairs) > 1 else ""
    return ValidityCheck(name, worst, f"{'; '.join(said[:_LISTED])}.{of}{doubt}")


def _find_equal_pairs(effects: Effects) -> Iterator[tuple[LanguageCondition, LanguageCondition]]:
    cells: dict[str, list[LanguageCondition]] = {}
    for condition in effects.conditions:
        cells.setdefault(condition.cell, []).append(condition)
    for found in cells.values():
        if len(found) != 2 or found[0].kind != "mixture" or found[0].config.mixture.stages:
            continue
        first, second = found
        same_text = first.first.source == second.first.source and first.plain and second.plain
        if same_text and first.first.tokens == second.first.tokens:
            yield first, second


def _check_learning_rates(table: StudyTable, effects: Effects) -> Iterator[ValidityCheck]:
    """Yields a check for each cell that a sweep is around."""
    plain = {
        name: config_lib.build_run_identity(run.config) | {"seed": 0}
        for name, run in table.runs.items()
    }
    by_cell: dict[str, str] = {}
    for name, run in table.runs.items():
        by_cell.setdefault(run.spec.cell, name)
    sweeps = [cell for cell, name in by_cell.items() if table.runs[name].spec.kind == "sweep"]
    around: dict[str, list[str]] = {}
    for sweep in sweeps:
        for cell, name in by_cell.items():
            if cell in sweeps:
                continue
            differing = config_lib.find_differences(plain[by_cell[sweep]], plain[name])
            if differing and {field for field, _, _ in differing} <= set(_RATES):
                around.setdefault(cell, []).append(sweep)
    if not around:
        yield ValidityCheck(
            "Learning rate",
            "unknown",
            "The study sweeps none, so a difference between cells may be one of how well the "
            "learning rate suits them.",
        )
    for cell, others in around.items():
        yield _check_sweep(cell, others, effects)


def _check_sweep(cell: str, others: Sequence[str], effects: Effects) -> ValidityCheck:
    name = f"Learning rate of {cell}"
    mine = [c for c in effects.conditions if c.cell in (cell, *others)]
    here = [c for c in mine if c.cell == cell]
    if not here or len({c.cell for c in mine}) < 1 + len(others):
        return ValidityCheck(name, "unknown", "Its sweep is not done.")
    said, edge = [], False
    for condition in here:
        losses = {
            c.first.peak_lr: math.fsum(c.by_seed("loss").values()) / c.seeds
            for c in mine
            if c.language == condition.language
        }
        best = min(losses, key=lambda rate: losses[rate])
        at_edge = best in (min(losses), max(losses))
        edge |= at_edge
        factor = best / condition.first.peak_lr
        said.append(f"{condition.language} is best at {factor:g} times its rate")
    rates = sorted({c.first.peak_lr / here[0].first.peak_lr for c in mine})
    tried = ", ".join(f"{rate:g}" for rate in rates)
    more = " The best is at the edge of the sweep: one beyond may be better." if edge else ""
    return ValidityCheck(name, "look" if edge else "good", f"{'; '.join(said)}, of {tried}.{more}")
