"""The scripts of docs/results print and draw what the study and `evaluate` have."""

import csv
import runpy

import made_studies
import numpy as np
from helpers import ROOT

from imbalance_jax.analysis import study_table
from imbalance_jax.evaluation import sentences


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


def test_states_of_two_models_are_compared_as_evaluation_compares_those_of_one():
    compare = runpy.run_path(f"{ROOT}/docs/results/compare_models.py")
    rng = np.random.default_rng(0)
    a_PD, noise_PD, other_PD = rng.normal(size=(3, 64, 12))
    b_PD = a_PD + noise_PD
    rotation_DD = np.linalg.qr(rng.normal(size=(12, 12)))[0]

    k, l_ = (x @ x.T for x in (a_PD - a_PD.mean(0), b_PD - b_PD.mean(0)))
    k, l_ = k[None], l_[None]
    hsic = sentences.unbiased_hsic
    expected = float((hsic(k, l_) / np.sqrt(hsic(k, k) * hsic(l_, l_)))[0])
    cka, rotated = compare["compute_debiased_cka"], compare["score_rotated"]
    assert 0.1 < expected < 0.9
    np.testing.assert_allclose(cka(a_PD, b_PD), expected, rtol=1e-4)
    np.testing.assert_allclose(cka(a_PD @ rotation_DD, b_PD + 3), expected, rtol=1e-4)

    cosine = np.sum(a_PD * np.roll(a_PD, 1, axis=0)) / np.sum(a_PD**2)  # about, of shuffled pairs
    assert abs(rotated(a_PD, a_PD @ rotation_DD + 3) - 1 + cosine) < 0.1
    assert abs(cka(a_PD, other_PD)) < 0.1 and abs(rotated(a_PD, other_PD)) < 0.15

    # Of 3 runs there are six pairings; four of the second matrix have a sum of 1 or 3.
    p_value = compare["compute_pairing_p_value"]
    assert p_value(np.eye(3)) == 1 / 6
    assert p_value(np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]])) == 4 / 6
    assert p_value(-np.eye(3)) == p_value(np.ones((3, 3))) == 1
    # Of 8 runs one in 56 pairings keeps two given ones where they are.
    two_kept = np.zeros((8, 8))
    two_kept[0, 0] = two_kept[1, 1] = 1
    assert abs(p_value(two_kept) - 1 / 56) < 0.004


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


def test_a_trace_averages_what_all_runs_logged(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(f"{ROOT}/docs/results")
    trace = runpy.run_path(f"{ROOT}/docs/results/trace_states.py")
    directory = made_studies.make(tmp_path / "study", made_studies.small_grid())
    runs = trace["list_runs"](directory, "r90_10")
    assert len(runs) >= 2
    found = trace["average_logged"](runs, "train/loss")
    series = [dict(zip(*run.series("train/loss"), strict=True)) for run in runs]
    assert set(found) == set.intersection(*map(set, series)) != set()
    for step, value in found.items():
        np.testing.assert_allclose(value, np.mean([one[step] for one in series]))
