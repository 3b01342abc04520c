"""Alignment of the languages of each cell of a study: a sentence and a table."""

import math
from collections.abc import Sequence

from imbalance_jax.analysis import validity
from imbalance_jax.analysis.effects import CellAlignment, Effects
from imbalance_jax.drawing.numbers import ABSENT
from imbalance_jax.drawing.pages import Table, render_number
from imbalance_jax.report.study.alignment_panels import MEASURE_NAMES
from imbalance_jax.report.study.intervals import format_signed, render_estimate


def list_alignments(effects: Effects) -> list[CellAlignment]:
    return [aligned for aligned in effects.alignments if aligned.kind != "sweep"]


def describe_excess(alignments: Sequence[CellAlignment]) -> str:
    """Returns in which cells hidden states are more alike than those of shuffled pairs."""
    sentences = {
        "above": "Hidden states are more alike than those of shuffled pairs in {}.",
        "below": "Hidden states are less alike than those of shuffled pairs in {}.",
        "open": "Whether hidden states are more alike than those of shuffled pairs is not decided "
        "in {}: the 95 % interval of the difference holds 0.",
        "unknown": "With one seed there is no interval of hidden states in {}.",
    }
    cells: dict[str, list[str]] = {side: [] for side in sentences}
    for aligned in alignments:
        if aligned.measure == "hidden":
            low, high = aligned.excess.interval()
            side = "above" if low > 0 else "below" if high < 0 else "open"
            cells["unknown" if math.isnan(low) else side].append(f"{aligned.cell} ({aligned.pair})")
    return " ".join(
        sentences[side].format(validity.join_few_names(names))
        for side, names in cells.items()
        if names
    )


def make_alignment_table(alignments: Sequence[CellAlignment]) -> Table:
    placebos = any(aligned.beyond_placebo is not None for aligned in alignments)
    rows = []
    for aligned in alignments:
        values, baselines = aligned.values.values(), aligned.baselines.values()
        row = [
            f"{aligned.cell} {aligned.pair}",
            MEASURE_NAMES[aligned.measure].partition(",")[0],
            str(len(values)),
            render_number(sum(values) / len(values), format_signed),
            render_number(sum(baselines) / len(baselines), format_signed) if baselines else ABSENT,
            render_estimate(aligned.excess, format_signed),
        ]
        if placebos:
            row.append(render_estimate(aligned.beyond_placebo, format_signed))
        rows.append(row)
    header = ["cell, languages", "measure", "seeds", "value", "nothing shared, or chance"]
    header += ["above it", *["more than the placebo"] * placebos]
    return Table(header, rows, "With 95 % intervals.")
