"""The scripts of docs/results print and draw what the study's own tables have."""

import csv
import runpy

import made_studies
import numpy as np
from helpers import ROOT

from imbalance_jax.analysis import study_table


def test_tables_of_results_are_those_of_the_study(tmp_path, capsys):
    directory = made_studies.make(tmp_path / "study", made_studies.small_grid())
    table = study_table.read_study_table(directory)
    study_table.write_study_table(table, directory)
    tabulate = runpy.run_path(f"{ROOT}/docs/results/tabulate.py")
    tabulate["print_study"](str(directory.path))
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((directory.path / "table.csv").open()))
    losses = [
        float(row["loss"]) for row in rows if (row["cell"], row["language"]) == ("r90_10", "en2")
    ]
    assert len(losses) >= 2
    [line] = [line for line in printed.splitlines() if line.startswith("| r90_10 | en2 | ")]
    assert f"{np.mean(losses):.3f} (" in line and line.endswith(f"| {len(losses)} |")
    for claim in table.claims.values():
        assert f"| {claim.statement} |" in printed


def test_the_figure_of_alignment_has_the_means_of_the_study(tmp_path):
    directory = made_studies.make(tmp_path / "study", made_studies.small_grid())
    table = study_table.read_study_table(directory)
    study_table.write_study_table(table, directory)
    script = runpy.run_path(f"{ROOT}/docs/results/draw_alignment.py")
    panels = {panel.title: panel for panel in script["build_panels"](table)}
    same, shuffled, _ = panels["cosine: 90:10"].lines
    rows = [
        row
        for row in csv.DictReader((directory.path / "alignment.csv").open())
        if (row["cell"], row["measure"]) == ("r90_10", "hidden")
    ]
    by_layer = [[row for row in rows if row["layer"] == str(layer)] for layer in range(4)]
    assert {len(each) for each in by_layer} == {3} and len(same.points) == 4
    for line, column in ((same, "value"), (shuffled, "baseline")):
        means = [np.mean([float(row[column]) for row in each]) for each in by_layer]
        np.testing.assert_allclose([point.y for point in line.points], means)
