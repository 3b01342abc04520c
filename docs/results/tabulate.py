"""Prints the tables of docs/results.md from the directories of finished studies, as Markdown.

    python docs/results/tabulate.py studies/grammar studies/grammar_size

For each study: the mean test loss of every language of every cell with its 95 % t interval over
seeds, how many runs passed a bar that a claim states and when, the alignment of each pair, and the
verdict of each claim with its interval, as on the study's page.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence

from imbalance_jax.analysis import claims, effects, statistics, study_table
from imbalance_jax.analysis.passing import collect_passings, count_passed
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.study.study_directory import StudyDirectory


def print_study(path: str) -> None:
    table = study_table.read_study_table(StudyDirectory(path))
    measured = effects.measure_effects(table)
    print(f"## {table.name}: {table.description}\n")
    print_table(["cell", "language", "test loss", "seeds"], _list_losses(table))
    print_table(
        ["cell", "language or pair", "bar", "passed", "median step"], _list_passed(table, measured)
    )
    print_table(["cell", "pair", "measure", "excess"], _list_alignments(measured))
    results = claims.judge_claims(table, measured)
    rows = [
        [
            result.claim.statement,
            result.word,
            _format_interval(result.estimate.value, result.verdict.shown_interval),
            f"{100 * result.verdict.confidence:.1f} %",
        ]
        for result in results
    ]
    print_table(["claim", "verdict", "effect, interval", "confidence"], rows)


def print_table(
    header: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]
) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def _list_losses(table: StudyTable) -> Iterator[Sequence[str]]:
    losses: defaultdict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for row in table.observations:
        losses[row.cell, row.language][row.seed] = row.loss
    for (cell, language), by_seed in losses.items():
        estimate = statistics.estimate_difference(by_seed, dict.fromkeys(by_seed, 0.0))
        yield (
            cell,
            language,
            _format_interval(estimate.value, estimate.interval()),
            str(len(by_seed)),
        )


def _list_passed(table: StudyTable, measured: effects.Effects) -> Iterator[Sequence[str]]:
    sides = dict.fromkeys(
        side
        for claim in table.claims.values()
        if claim.measure == "steps_to"
        for side in (
            (claim.cell, claim.language, claim.bar),
            (claim.against, claim.against_language or claim.language, claim.bar),
        )
    )
    for cell, of, bar in sides:
        passings, _ = collect_passings(table, cell, of, bar, measured.dropped)
        count = count_passed([*passings.values()])
        low, high = count.interval
        passed = f"{count.passed} of {count.runs} ({100 * low:.0f} to {100 * high:.0f} %)"
        median = "not reached" if math.isnan(count.median) else f"{count.median:.0f}"
        yield cell, of, f"{bar:g}", passed, median


def _list_alignments(measured: effects.Effects) -> Iterator[Sequence[str]]:
    for aligned in measured.alignments:
        if aligned.measure in ("hidden", "embed_in", "retrieval"):
            excess = aligned.excess
            text = _format_interval(excess.value, excess.interval())
            yield aligned.cell, aligned.pair, aligned.measure, text


def _format_interval(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    if math.isnan(low):
        return f"{value:.3f}"
    digits = 0 if abs(value) >= 50 else 3
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print_study(path)
