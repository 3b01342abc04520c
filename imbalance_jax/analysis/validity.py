"""Whether a study's numbers can be trusted: what to look at before its conclusions."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from imbalance_jax import config as config_lib
from imbalance_jax.analysis import statistics
from imbalance_jax.analysis.baselines import (
    find_nearest_baseline,
    format_token_difference,
    list_baseline_kinds,
)
from imbalance_jax.analysis.effects import Effects, LanguageCondition
from imbalance_jax.analysis.study_table import Observation, StudyTable
from imbalance_jax.study.run_spec import BASELINES

_RATIO = 0.005  # how far a language's tokens may be from those that were asked for
_RATES = ("config.optimizer.peak_lr", "config.optimizer.final_lr")
_LISTED = 6
_WHOLE = 0.98  # of a text that counts as all of it


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
        _check_pools(table),
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
    count = len(table.runs)
    failed = [name for name, run in table.runs.items() if run.state.state == "failed"]
    left = [name for name, run in table.runs.items() if run.state.state in ("absent", "begun")]
    problems = []
    if failed:
        problems.append(f"{len(failed)} of {count} runs failed: {join_few_names(failed)}.")
    if left:
        problems.append(f"{len(left)} of {count} runs are not done: {join_few_names(left)}.")
    if effects.dropped:
        problems.append(
            f"Left out, their loss not being finite: {join_few_names(effects.dropped)}."
        )
    if problems:
        return ValidityCheck("Runs", "look", " ".join(problems))
    return ValidityCheck("Runs", "good", f"All {count} runs are done, and none failed.")


def _check_seeds(effects: Effects) -> ValidityCheck:
    counts = {c.cell: c.seeds for c in effects.conditions if c.kind != "sweep"}
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
    counted = [row for row in rows if math.isfinite(row.epochs)]
    if not counted:
        why = "The text has no end." if rows else "No run is done."
        return ValidityCheck("Epochs", "unknown", why)
    most = max(counted, key=lambda row: row.epochs)
    past = sorted({row.run for row in counted if row.epochs > 1})
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
        if run.state.state != "done" or run.spec.kind in BASELINES:
            continue
        rows = run.directory.read_csv("mixture.csv")
        counts = [float(n) for row in rows if (n := row.get("cross_language_repeats"))]
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


def _check_pools(table: StudyTable) -> ValidityCheck:
    """Says whether a language could draw from as much text in every cell."""
    name = "Text of each language"
    sizes: dict[str, dict[int, str]] = {}  # source -> tokens of text -> a run that drew from them
    for run_name, run in table.runs.items():
        if run.state.state != "done" or run.config.mixture.text_share < 1:
            continue
        for row in run.directory.read_csv("mixture.csv"):
            if windows := int(float(row.get("pool_windows") or 0)):
                tokens = windows * run.config.model.L
                found = sizes.setdefault(run.config.source_of(row["language"]), {})
                found.setdefault(tokens, f"{row['language']} of {run_name}")
    if not sizes:
        return ValidityCheck(name, "unknown", "The text has no end, or no run has counted it.")
    # The last window of a text is left out, and a text is cut anew for each length.
    unlike = {source: found for source, found in sizes.items() if min(found) < _WHOLE * max(found)}
    if not unlike:
        return ValidityCheck(name, "good", "A language draws from the same text in every cell.")
    source = min(unlike, key=lambda one: min(unlike[one]) / max(unlike[one]))
    least, most = min(unlike[source]), max(unlike[source])
    return ValidityCheck(
        name,
        "look",
        f"{unlike[source][least]} draws from {least:,} tokens of text, {unlike[source][most]} from "
        f"{most:,}. content=disjoint and switch=document deal out documents by the ratio, so that "
        "these cells differ in their text too.",
    )


def _check_law_error(effects: Effects) -> ValidityCheck:
    fitted = [law for law in effects.laws.values() if law.part == "loss" and law.choice]
    if not fitted:
        return ValidityCheck("Law error", "unknown", "There is no law.")
    errors = []
    for law in fitted:
        assert law.choice is not None
        group, error = law.group, law.choice.error
        nats = f"{error:.4f} nats" if math.isfinite(error) else "unknown, with so few baselines"
        errors.append(f"{group.kind}, {group.source}, {group.size}: {nats}")
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
        "How far each law is off at a baseline that it was not shown. "
        f"{'; '.join(errors)}.{reading}",
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
        if condition.kind in (*BASELINES, "sweep") or not condition.plain:
            continue
        for kind in list_baseline_kinds(table):
            run = find_nearest_baseline(table, condition.baselines(kind), condition.first.tokens)
            held += bool(run)
            tokens = table.runs[run].spec.tokens if run else condition.first.tokens
            if tokens == condition.first.tokens:
                continue
            nats = condition.less_loss(kind, "loss", tokens)
            size = "no law says how much that is"
            if math.isfinite(nats):
                side = "in favour of transfer" if nats > 0 else "against transfer"
                size = f"by the law {abs(nats):.3g} nats {side}"
            part = tokens / condition.first.tokens - 1
            difference = f"{table.runs[run].spec.cell} has {format_token_difference(part)} tokens"
            language = f"{condition.cell} {condition.language}"
            off[f"{difference} than {language}, {size}"] = abs(part)
    if not held:
        return ValidityCheck(name, "unknown", "No baseline has about the tokens of a language.")
    if not off:
        return ValidityCheck(name, "good", "Those held against a language have exactly its tokens.")
    worst = sorted(off, key=lambda sentence: -off[sentence])
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
    differences, states = [], []
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
            differences.append(f"{text}, one seed")
            states.append("unknown")
        else:
            differences.append(f"{text}, interval {_format_number(low)} to {_format_number(high)}")
            states.append("good" if low <= 0 <= high else "look")
    if not pairs:
        return ValidityCheck(name, "unknown", "No cell has two clones with equal parts.")
    worst = next(state for state in ("look", "unknown", "good") if state in states)
    doubt = ""
    if worst == "look":
        doubt = (
            " An interval without 0 is a defect, or chance: in one study of twenty there is one."
        )
    shared = ""
    if len(pairs) > 1:
        shared = f" Intervals are of {100 * confidence:.3g} %, for all of them together 95 %."
    return ValidityCheck(name, worst, f"{'; '.join(differences[:_LISTED])}.{shared}{doubt}")


def _find_equal_pairs(effects: Effects) -> Iterator[tuple[LanguageCondition, LanguageCondition]]:
    cells = defaultdict(list)
    for condition in effects.conditions:
        cells[condition.cell].append(condition)
    for conditions in cells.values():
        if len(conditions) != 2:
            continue
        first, second = conditions
        if first.kind != "mixture" or first.config.mixture.stages:
            continue
        same_text = first.first.source == second.first.source and first.plain and second.plain
        weights = first.config.mixture.loss_weights
        same_weight = weights.get(first.language, 1) == weights.get(second.language, 1)
        if same_text and same_weight and first.first.tokens == second.first.tokens:
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
    around = defaultdict(list)
    for sweep in sweeps:
        for cell, name in by_cell.items():
            if cell in sweeps:
                continue
            differing = config_lib.find_differences(plain[by_cell[sweep]], plain[name])
            if differing and {field for field, _, _ in differing} <= set(_RATES):
                around[cell].append(sweep)
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
    swept = [c for c in effects.conditions if c.cell in (cell, *others)]
    middle = [c for c in swept if c.cell == cell]
    if not middle or len({c.cell for c in swept}) < 1 + len(others):
        return ValidityCheck(name, "unknown", "Its sweep is not done.")
    sentences, edge = [], False
    for condition in middle:
        losses = {
            c.first.peak_lr: math.fsum(c.by_seed("loss").values()) / c.seeds
            for c in swept
            if c.language == condition.language
        }
        best = min(losses, key=lambda rate: losses[rate])
        edge |= best in (min(losses), max(losses))
        factor = best / condition.first.peak_lr
        sentences.append(f"{condition.language} is best at {factor:g} times its rate")
    rates = sorted({c.first.peak_lr / middle[0].first.peak_lr for c in swept})
    tried = ", ".join(f"{rate:g}" for rate in rates)
    more = " The best is at the edge of the sweep: one beyond may be better." if edge else ""
    return ValidityCheck(
        name, "look" if edge else "good", f"{'; '.join(sentences)}, of {tried}.{more}"
    )
