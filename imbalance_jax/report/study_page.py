"""The page of a study: a self-contained report.html with a verdict per claim on top.

`write_study_page` turns a `StudyTable` into figures and a page. Anything may be missing, because a
study can be looked at while it runs. The sections are in study.html.j2, and what they show is
worked out by subject in report/study/.
"""

from collections import Counter
from typing import Any

from etils import epath

from imbalance_jax.analysis import effects as study_effects
from imbalance_jax.analysis import validity
from imbalance_jax.analysis.claims import judge_claims
from imbalance_jax.analysis.effects import Effects
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.drawing.pages import Table, get_pieces, render_template
from imbalance_jax.report.study import (
    alignments,
    claims,
    laws,
    proposal_figures,
    proposals,
    transfer_matrix,
    worths,
)
from imbalance_jax.report.study.figures import draw_study_figures
from imbalance_jax.report.study.paper_section import draw_paper_section
from imbalance_jax.report.study.passing_panels import make_passing_table
from imbalance_jax.runs import storage
from imbalance_jax.study.study_directory import StudyDirectory

_STATES = {"failed": "failed", "damaged": "damaged", "begun": "begun", "absent": "not begun"}


def write_study_page(
    table: StudyTable, directory: StudyDirectory, *, resamples: int = study_effects.RESAMPLES
) -> epath.Path:
    """Writes report.html and figures/ into a study directory, and returns the page.

    Args:
      table: of the study, finished or not.
      directory: its directory.
      resamples: of runs, for the intervals that refit the laws.
    """
    effects = study_effects.measure_effects(table, resamples=resamples)
    with storage.stage_directory(directory.path / "figures") as folder:
        figures = draw_study_figures(table, effects)
        figures += proposal_figures.draw_proposals(table, directory)
        if figures:
            folder.mkdir(exist_ok=True)
        for figure in figures:
            figure.write(folder)
        page = render_template(
            "study",
            title=table.name,
            figures={figure.name: figure for figure in figures},
            paper=draw_paper_section(table, effects, folder),
            files=_list_files(directory),
            directory=directory.name,
            proposals=proposals.list_proposals(table, directory),
            ratio_laws=proposals.make_ratio_law_table(table),
            **_describe_runs(table),
            **_describe_effects(table, effects),
        )
    path = directory.path / "report.html"
    storage.write_file_atomically(path, page.encode(errors="backslashreplace"))
    return path


def _describe_effects(table: StudyTable, effects: Effects) -> dict[str, Any]:
    """Returns what the sections show of the effects, by its name in the template."""
    results = judge_claims(table, effects)
    aligned = alignments.list_alignments(effects)
    return {
        "headline": claims.describe_verdicts(results),
        "claims": [claims.describe_claim(result) for result in results],
        "verdict_words": claims.explain_words(results),
        "passed": make_passing_table(table, effects),
        "missing_law": worths.explain_missing_law(table, effects),
        "missing_efficiency": worths.explain_missing_efficiency(effects),
        "outside": worths.describe_outside_of_laws(effects),
        "excess": alignments.describe_excess(aligned),
        "alignment": alignments.make_alignment_table(aligned),
        "checks": validity.check_validity(table, effects),
        "waiting": laws.describe_waiting_baselines(table),
        "needed": laws.make_needed_table(effects),
        "measured": bool(effects.conditions),
        "cells": worths.make_cell_table(effects),
        "worths": worths.make_worth_tables(effects),
        "transfer": transfer_matrix.make_transfer_table(effects),
        "baselines": worths.make_baseline_table(effects),
        "loss_parts": worths.make_loss_part_table(effects),
        "laws": laws.make_law_table(effects),
        "over_sizes": laws.describe_laws_over_sizes(effects),
    }


def _describe_runs(table: StudyTable) -> dict[str, Any]:
    """Returns how far the study is, and its runs as tables."""
    states = Counter(run.state.state for run in table.runs.values())
    done, total = states["done"], len(table.runs)
    rest = [f"{states[state]} {name}" for state, name in _STATES.items() if states[state]]
    text = f"{done} of {total} runs are done" + (f"; {', '.join(rest)}" if rest else "")
    rows, failed = [], []
    for name, run in table.runs.items():
        state = run.state
        detail = state.error or (f"of {state.reused_from}" if state.reused_from else "")
        marks = {"done": "done", "failed": "failed", "damaged": "failed"}
        mark = marks.get(state.state, "unfinished")
        word = {**_STATES, "done": "done"}[state.state]
        steps = f"{state.step:,} of {state.steps:,}"
        row = [name, run.spec.kind, get_pieces().marked(mark, word), steps, detail[:300]]
        rows.append(row)
        if state.state in ("failed", "damaged"):
            failed.append(row)
    header = ["run", "kind", "state", "steps", "detail"]
    caption = "All runs; each is a run directory with a page of its own."
    return {
        "state": {"mark": "done" if done == total else "unfinished", "text": text},
        "description": table.description,
        "runs": Table(header, rows, caption),
        "failed_runs": Table(header, failed, "Runs that failed or have a damaged file, and why."),
    }


def _list_files(directory: StudyDirectory) -> list[str]:
    stems = ("table", "alignment", "curves")
    names = [f"{stem}.{kind}" for stem in stems for kind in ("csv", "parquet")]
    return ["study.json", *(name for name in names if (directory.path / name).exists())]
