"""A study's results in the figures and tables of the reference study."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from imbalance_jax.analysis import statistics
from imbalance_jax.analysis.effects import Effects
from imbalance_jax.analysis.statistics import Interval
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.reference import paper_check, paper_figures, paper_results, paper_tables
from imbalance_jax.reference.reported import PaperResult, read_reference_results


def draw_paper_section(
    table: StudyTable, effects: Effects, folder: pathlib.Path
) -> dict[str, Any] | None:
    """Writes the figures and tables that the study has results for into a folder.

    Returns:
      Figures and tables for the page, and names of those that wait for results; None for a study
      whose runs belong to none.
    """
    named = {name for run in table.runs.values() for name in run.spec.figures}
    if not named:
        return None
    results = _collect_paper_results(table, effects)
    if not any(result.values for result in results):
        return {"figures": [], "tables": [], "waiting": []}
    reported = read_reference_results()
    figures = []
    for name in paper_figures.FIGURES:
        drawn = paper_figures.draw_paper_figure(name, results, reported)
        if drawn is not None:
            folder.mkdir(exist_ok=True)
            drawn.write(folder)
            figures.append(dataclasses.replace(drawn, reading=f"As reported: {drawn.reading}"))
    folder.mkdir(exist_ok=True)
    paper_figures.write_paper_tables(results, folder, reported)
    tables = (
        paper_tables.make_paper_table(name, results, reported) for name in paper_tables.TABLES
    )
    left_out = paper_figures.list_left_out_figures(results)
    return {
        "figures": figures,
        "tables": [paper_tables.make_page_table(each) for each in tables if each is not None],
        "waiting": [name for name in left_out if name in named],
    }


def _collect_paper_results(table: StudyTable, effects: Effects) -> list[PaperResult]:
    """Returns the study's rows for the figures, TEff by the reference's law among them."""
    evaluations = {
        name: paper_results.read_run_evaluation(run.directory)
        for name, run in table.runs.items()
        if run.state.state == "done" and run.spec.figures
    }
    worths, _ = paper_check.compute_reference_efficiencies(table)
    results = paper_results.collect_study_results(
        table, worths, interval=_estimate_seed_interval, evaluations=evaluations
    )
    models = {
        f"{run.config.model.N}x{run.config.model.D}": run.spec.reference["model"]
        for run in table.runs.values()
        if "model" in run.spec.reference
    }
    for (group, part), law in effects.laws.items():
        if (group.kind, part) == ("monolingual", "loss") and law.reference is not None:
            results += paper_results.make_law_results(
                group.source.upper(),
                models.get(group.size, group.size),
                (law.reference.a, law.reference.b, law.reference.c),
                unit_tokens=table.unit_tokens,
                source=table.name,
            )
    return results


def _estimate_seed_interval(values: Sequence[float]) -> Interval:
    by_seed = dict(enumerate(values))
    return statistics.estimate_difference(by_seed, dict.fromkeys(by_seed, 0.0)).interval()
