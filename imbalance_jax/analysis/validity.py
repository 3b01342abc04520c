"""Whether a study's numbers can be trusted: what to look at before its conclusions."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from imbalance_jax import config as config_lib
from imbalance_jax.analysis import statistics
from imbalance_jax.analysis.effects import (
    Condition,
    Effects,
    Group,
    nearest_baseline,
    run_tokens,
    study_kinds,
)
from imbalance_jax.analysis.study_table import Observation, StudyTable
from imbalance_jax.study import grid

_RATIO = 0.005  # how far a language's tokens may be from those that were asked for
_RATES = ("config.optimizer.peak_lr", "config.optimizer.final_lr")
_LISTED = 6


@dataclasses.dataclass(frozen=True)
class Check:
    """Something that would make a study's numbers mean something else."""

    name: str
    state: str  # "good", "look" (at it) or "unknown"
    text: str  # what was found, in a sentence or two


def checks(table: StudyTable, effects: Effects) -> list[Check]:
    """Returns what was checked, in a fixed order."""
    return [
        _runs(table, effects),
        _seeds(effects),
        _ratio(table.observations),
        _epochs(table.observations),
        _repeats(table),
        _law_error(effects),
        _extrapolation(effects),
        _stand_ins(table, effects),
        _equal_clones(effects),
        *_learning_rates(table, effects),
    ]


def named(names: Sequence[str]) -> str:
    """Returns names as a list of a few, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _number(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _runs(table: StudyTable, effects: Effects) -> Check:
    failed = [name for name, run in table.runs.items() if run.state.state == "failed"]
    left = [name for name, run in table.runs.items() if run.state.state in ("absent", "begun")]
    said = []
    if failed:
        said.append(f"{len(failed)} of {len(table.runs)} runs failed: {named(failed)}.")
    if left:
        said.append(f"{len(left)} of {len(table.runs)} runs are not done: {named(left)}.")
    if effects.dropped:
        said.append(f"Left out, their loss not being finite: {named(effects.dropped)}.")
    if said:
        return Check("Runs", "look", " ".join(said))
    return Check("Runs", "good", f"All {len(table.runs)} runs are done, and none failed.")


def _seeds(effects: Effects) -> Check:
    counts: dict[str, int] = {}
    for condition in effects.conditions:
        if condition.kind != "sweep":
            counts[condition.cell] = condition.seeds
    if not counts:
        return Check("Seeds", "unknown", "No run is done.")
    single = [cell for cell, count in counts.items() if count == 1]
    if len(single) == len(counts):
        return Check(
            "Seeds",
            "look",
            "Every cell has one seed. Nothing was repeated, so there is no scatter to measure: no "
            "number here has an interval, and nothing can be decided. Add seeds.",
        )
    ends = sorted({min(counts.values()), max(counts.values())})
    span = f"{' to '.join(map(str, ends))} seeds for each cell."
    if single:
        borrowed = "Their scatter is taken from the other cells."
        return Check("Seeds", "look", f"{span} One seed only: {named(single)}. {borrowed}")
    return Check("Seeds", "good" if min(counts.values()) >= 3 else "look", span)


def _ratio(rows: Sequence[Observation]) -> Check:
    name = "Ratio, realised"
    if not rows:
        return Check(name, "unknown", "No run is done.")
    worst = max(rows, key=lambda row: abs(row.realised_tokens / row.tokens - 1))
    off = worst.realised_tokens / worst.tokens - 1
    if not off:
        return Check(name, "good", "Every language was trained on exactly what was asked for.")
    return Check(
        name,
        "good" if abs(off) <= _RATIO else "look",
        f"The largest deviation from the tokens asked for is {_number(100 * off, 2)} %, of "
        f"{worst.language} in run {worst.run}.",
    )


def _epochs(rows: Sequence[Observation]) -> Check:
    known = [row for row in rows if math.isfinite(row.epochs)]
    if not known:
        why = "The text has no end." if rows else "No run is done."
        return Check("Epochs", "unknown", why)
    most = max(known, key=lambda row: row.epochs)
    past = sorted({row.run for row in known if row.epochs > 1})
    if not past:
        return Check(
            "Epochs", "good", f"No text came twice: at most {most.epochs:.2f} epochs of a source."
        )
    return Check(
        "Epochs",
        "look",
        f"{len(past)} runs went through a text more than once, up to {most.epochs:.2f} times "
        f"({most.run}): {named(past)}. There MLTE is worth less than as many new tokens; only "
        "baselines of the kind epochs repeat as much.",
    )


def _repeats(table: StudyTable) -> Check:
    name = "Text repeated across languages"
    repeated: dict[str, tuple[float, float]] = {}
    counted = 0
    for run_name, run in table.runs.items():
        if run.state.state != "done" or run.spec.kind in grid.BASELINES:
            continue
        rows = run.directory.read_csv("mixture.csv")
        counts = [float(row["cross_language_repeats"]) for row in rows if _has_repeats(row)]
        counted += bool(counts)
        if any(counts):
            whole = math.fsum(float(row["realised_sequences"]) for row in rows)
            repeated[run_name] = (math.fsum(counts), whole)
    if not counted:
        return Check(name, "unknown", "No run has counted it.")
    if not repeated:
        return Check(name, "good", "No language was shown a text that another had before.")
    worst = max(repeated, key=lambda run: repeated[run][0] / repeated[run][1])
    count, whole = repeated[worst]
    return Check(
        name,
        "look",
        f"In {len(repeated)} runs a language was shown text that another had before, up to "
        f"{100 * count / whole:.1f} % of the sequences ({worst}). What looks like transfer may be "
        "memory of the same text.",
    )


def _has_repeats(row: Mapping[str, str]) -> bool:
    return bool(row.get("cross_language_repeats"))


def _law_error(effects: Effects) -> Check:
    fitted = [law for law in effects.laws.values() if law.part == "loss" and law.choice]
    if not fitted:
        return Check("Law error", "unknown", "There is no law.")
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
    return Check(
        "Law error",
        "good" if worst and max(worst) < 0.05 else "look",
        f"How far each law is off at a baseline that it was not shown. {'; '.join(said)}.{reading}",
    )


def _extrapolation(effects: Effects) -> Check:
    name = "Extrapolation"
    read = [
        (f"{condition.cell} {condition.language} ({kind})", worth.efficiency.extrapolated)
        for condition in effects.conditions
        for (kind, part), worth in condition.worths.items()
        if part == "loss"
    ]
    if not read:
        return Check(name, "unknown", "No law was read.")
    beyond = [label for label, extrapolated in read if extrapolated]
    if not beyond:
        return Check(name, "good", "Every law was read between its baselines.")
    return Check(
        name,
        "look",
        f"{len(beyond)} of {len(read)} values were read off a law beyond its baselines: "
        f"{named(beyond)}. They are marked *.",
    )


def _stand_ins(table: StudyTable, effects: Effects) -> Check:
    """Checks that baselines have the tokens of the languages that they are held against.

    A part of a batch is rounded to whole sequences, and one of the steps to whole steps.
    """
    name = "Tokens of the baselines"
    held = 0
    off: dict[str, float] = {}
    for condition in effects.conditions:
        if condition.kind in (*grid.BASELINES, "sweep") or not condition.plain:
            continue
        for kind in study_kinds(table):
            group = Group.of(condition.config, condition.first.source, kind)
            run = nearest_baseline(table, group, condition.first.tokens)
            held += bool(run)
            if not run or run_tokens(table, run) == condition.first.tokens:
                continue
            tokens = run_tokens(table, run)
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
        return Check(name, "unknown", "No baseline has about the tokens of a language.")
    if not off:
        return Check(name, "good", "Those held against a language have exactly its tokens.")
    worst = sorted(off, key=lambda said: -off[said])
    more = f"; and {len(off) - _LISTED} more" if len(off) > _LISTED else ""
    return Check(
        name,
        "look",
        f"{'; '.join(worst[:_LISTED])}{more}. Claims are corrected by the law where there is one. "
        "With a batch size that every part divides nothing is to be corrected: python -m "
        "imbalance_jax.study plan names such sizes.",
    )


def _equal_clones(effects: Effects) -> Check:
    """Clones of equal parts differ in nothing, so a difference would be a defect."""
    name = "Clones equal at 50:50"
    said, states = [], []
    pairs = list(_equal_pairs(effects))
    # All of these intervals together hold 0 in 19 of 20 studies without a defect.
    confidence = 1 - 0.05 / max(1, len(pairs))
    for first, second in pairs:
        estimate = statistics.difference(first.by_seed("loss"), second.by_seed("loss"))
        low, high = estimate.interval(confidence)
        text = (
            f"{first.cell}: {first.language} − {second.language} = {_number(estimate.value)} nats"
        )
        if math.isnan(low):
            said.append(f"{text}, one seed")
            states.append("unknown")
        else:
            said.append(f"{text}, interval {_number(low)} to {_number(high)}")
            states.append("good" if low <= 0 <= high else "look")
    if not said:
        return Check(name, "unknown", "No cell has two clones with equal parts.")
    worst = next(state for state in ("look", "unknown", "good") if state in states)
    doubt = ""
    if worst == "look":
        doubt = (
            " An interval without 0 is a defect, or chance: in one study of twenty there is one."
        )
    of = f" Intervals are of {100 * confidence:.3g} %, for all of them together 95 %."
    of = of if len(pairs) > 1 else ""
    return Check(name, worst, f"{'; '.join(said[:_LISTED])}.{of}{doubt}")


def _equal_pairs(effects: Effects) -> Iterator[tuple[Condition, Condition]]:
    cells: dict[str, list[Condition]] = {}
    for condition in effects.conditions:
        cells.setdefault(condition.cell, []).append(condition)
    for found in cells.values():
        if len(found) != 2 or found[0].kind != "mixture" or found[0].config.mixture.stages:
            continue
        first, second = found
        same_text = first.first.source == second.first.source and first.plain and second.plain
        if same_text and first.first.tokens == second.first.tokens:
            yield first, second


def _learning_rates(table: StudyTable, effects: Effects) -> Iterator[Check]:
    """Yields a check for each cell that a sweep is around."""
    plain = {
        name: config_lib.identity(run.config) | {"seed": 0} for name, run in table.runs.items()
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
            differing = config_lib.differences(plain[by_cell[sweep]], plain[name])
            if differing and {field for field, _, _ in differing} <= set(_RATES):
                around.setdefault(cell, []).append(sweep)
    if not around:
        yield Check(
            "Learning rate",
            "unknown",
            "The study sweeps none, so a difference between cells may be one of how well the "
            "learning rate suits them.",
        )
    for cell, others in around.items():
        yield _sweep(cell, others, effects)


def _sweep(cell: str, others: Sequence[str], effects: Effects) -> Check:
    name = f"Learning rate of {cell}"
    mine = [c for c in effects.conditions if c.cell in (cell, *others)]
    here = [c for c in mine if c.cell == cell]
    if not here or len({c.cell for c in mine}) < 1 + len(others):
        return Check(name, "unknown", "Its sweep is not done.")
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
    return Check(name, "look" if edge else "good", f"{'; '.join(said)}, of {tried}.{more}")
