"""Laws of a study's baselines, and the runs that they would need."""

import math
from typing import Any

from imbalance_jax.analysis import validity
from imbalance_jax.analysis.effects import BaselineGroup, Effects, FittedLaw
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.drawing.numbers import ABSENT, format_compact, format_percent
from imbalance_jax.drawing.pages import Table, get_pieces, render_number
from imbalance_jax.study import grid


def make_law_table(effects: Effects) -> Table | None:
    header = ["baselines", "runs", "numbers of tokens", "law", "left-out error"]
    header += ["error at the ends", "chosen in resamples", "reference’s law", "its error"]
    rows = [_render_law(law) for law in effects.laws.values()]
    caption = "x counts in units of 1x." + _describe_tuned(effects)
    return Table(header, rows, caption) if rows else None


def _describe_tuned(effects: Effects) -> str:
    """Returns which of several settings of `epochs` baselines were best; "" without any."""
    used = {
        row.cell
        for (group, part), law in effects.laws.items()
        for row in law.observations
        if (group.kind, part) == ("epochs", "loss")
    }
    tried = [c.cell for c in effects.conditions if c.kind == "epochs"]
    if not used or used.issuperset(tried):
        return ""
    return f" Best of {len(tried)} settings of epochs and weight decay: {', '.join(sorted(used))}."


def describe_laws_over_sizes(effects: Effects) -> str:
    """Returns the error of the law over all sizes, for each text and size that has one."""
    return "; ".join(
        f"{law.group.source}, {law.group.size}: {law.over_sizes_error:.4f}"
        for law in effects.laws.values()
        if math.isfinite(law.over_sizes_error)
    )


def _render_law(law: FittedLaw) -> list[Any]:
    choice, fitted = law.choice, law.reference
    part = "" if law.part == "loss" else f", {law.part.replace('_', ' ')}"
    ends = sorted({*law.tokens[:1], *law.tokens[-1:]})
    row: list[Any] = [
        f"{_format_group(law.group)}{part}",
        len(law.observations),
        f"{len(law.tokens)}: {' to '.join(map(format_compact, ends))}",
    ]
    if choice is None:
        none = get_pieces().marked("missing", f"none: {law.problem[:160]}")
        return [*row, none, *[ABSENT] * 5]
    chosen = sum(law.families.values())
    families = (f"{name} {format_percent(n / chosen)}" for name, n in law.families.items())
    return [
        *row,
        choice.family,
        _format_error(choice.error),
        _format_error(choice.end_errors.get(choice.family, math.nan)),
        ", ".join(families) or ABSENT,
        f"{fitted.a:.4g}, {fitted.b:.4g}, {fitted.c:.4g}" if fitted else "does not converge",
        _format_error(law.reference_error),
    ]


def _format_group(group: BaselineGroup) -> str:
    """Returns the kind, text and size of baselines, and their steps or ids where these matter."""
    shape = f", {group.shape:,} steps" if group.shape else ""
    if group.kind == "wide":
        shape = f", {group.shape:,} ids"
    return f"{group.kind}, {group.source}, {group.size}{shape}"


def _format_error(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ABSENT


def describe_waiting_baselines(table: StudyTable) -> str:
    """Returns the names of the baselines that are not done."""
    waiting = [
        name
        for name, run in table.runs.items()
        if run.state.state != "done" and run.spec.kind in grid.BASELINES
    ]
    return validity.join_few_names(waiting) if waiting else ""


def make_needed_table(effects: Effects) -> Table | None:
    """Returns the runs that would bring every use of a law between its baselines."""
    rows = []
    for needed in effects.needed:
        run = needed.run
        rows.append(
            [
                _format_group(needed.group),
                render_number(run.tokens, format_compact),
                run.seeds,
                render_number(run.seeds * run.tokens, format_compact),
                render_number(run.flops, format_compact),
                run.reason,
            ]
        )
    header = ["baseline", "tokens of a run", "seeds", "tokens in all", "FLOPs", "why"]
    caption = "Runs that would bring every use of a law between its baselines."
    return Table(header, rows, caption) if rows else None
