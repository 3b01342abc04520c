"""docs/results/tabulate.py prints what the study's own tables have."""

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
