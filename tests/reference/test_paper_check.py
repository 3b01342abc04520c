"""A study held against the reported results, on studies whose runs are made up."""

import dataclasses
import math

import made_studies
import pytest

from imbalance_jax.analysis import study_table
from imbalance_jax.analysis.laws import ReferenceLaw
from imbalance_jax.reference import paper_check, paper_presets
from imbalance_jax.study import grid

SPLITS = ("95/5", "90/10", "70/30", "50/50")


@pytest.fixture(autouse=True)
def reference_law(monkeypatch):
    """Makes up losses by the law of the reference's small model of English."""
    law = ReferenceLaw(a=0.03868393, b=0.20725316, c=0.08406527, unit_tokens=1)
    monkeypatch.setattr(made_studies, "law", lambda tokens, unit: float(law.loss(tokens / unit)))


def paper_grid(seeds=2, figure="Figure 1 left"):
    """Returns the grid of a figure of the paper, at the size of a made study."""
    study = grid.Grid("A made figure.", unit=made_studies.mixture("50:50"))
    for split in SPLITS:
        share = f"{int(split.split('/')[1]) / 100:g}"
        setting = paper_presets.setting("EN1+EN2", split, paper_presets.CLONED, p_EN2=share)
        study.add(
            made_studies.cell_of(split.replace("/", ":")),
            made_studies.mixture(split.replace("/", ":")),
            seeds=range(seeds),
            figures=(figure,),
            reference=setting,
        )
    mixture = made_studies.mixture("50:50")
    fractions = (0.04, 0.1, 0.25, 0.5, 0.9, 2)
    study.baselines(mixture, "en1", fractions=fractions, seeds=[0], kinds=("monolingual",))
    return study.to_config()


def made(path, *, values=None, **arguments):
    config = paper_grid(**(values or {}))
    return study_table.read_study_table(made_studies.make(path / "study", config, **arguments))


def of_kind(checks, kind):
    return [check for check in checks if isinstance(check, kind)]


def test_a_study_of_no_figure_of_the_paper_is_refused(tmp_path):
    directory = made_studies.make(tmp_path / "study", made_studies.small_grid(seeds=1))
    with pytest.raises(ValueError, match="study is not one of configs/paper/"):
        paper_check.compare_with_reference(study_table.read_study_table(directory))


def test_values_stand_beside_those_that_were_reported(tmp_path):
    cells = of_kind(paper_check.compare_with_reference(made(tmp_path)), paper_check.CellCheck)
    [rare] = [c for c in cells if c.metric == "ppl_EN2" and c.setting["split"] == "90/10"]
    assert rare.reported == 32.805344 and rare.seeds == 2
    assert rare.difference == pytest.approx(math.log(rare.value / 32.805344))
    assert {cell.metric.partition("_")[0] for cell in cells} == {"ppl", "teff", "mlte", "mlpe"}
    # Tokens are compared in units of each study's own 1x.
    [mlte] = [c for c in cells if c.metric == "mlte_EN2" and c.setting["split"] == "70/30"]
    assert 0.25 < mlte.reported < 0.35 and 0.25 < mlte.value < 0.35


def test_one_seed_is_never_tested_against_noise(tmp_path):
    checks = paper_check.compare_with_reference(made(tmp_path, values={"seeds": 1}))
    cells = of_kind(checks, paper_check.CellCheck)
    assert cells and all(c.agrees is None and math.isnan(c.in_noise) for c in cells)
    said = paper_check.describe_checks(checks)
    assert "one seed: not tested against noise" in said and "noise of seeds" not in said


def test_a_difference_is_counted_in_seed_noise():
    cell = paper_check.CellCheck(
        "Figure 1 left", "ppl_EN2", {}, value=30.0, reported=30.0 * math.exp(-0.05), seeds=3,
        noise=0.01, freedom=8,
    )  # fmt: skip
    assert cell.in_noise == pytest.approx(5.0) and cell.agrees is False
    # t of 8 degrees at 97.5 % is 2.306, times sqrt(1 + 1 / 3).
    for noise, agrees in ((0.05 / 2.6, True), (0.05 / 2.7, False)):
        assert dataclasses.replace(cell, noise=noise).agrees is agrees
    cosine = dataclasses.replace(cell, metric="hidden_cossim", value=0.5, reported=0.48)
    assert cosine.difference == pytest.approx(0.02) and cosine.same_side


def test_the_side_of_one_and_the_clone_that_is_higher_are_compared(tmp_path):
    helped = paper_check.compare_with_reference(
        made(tmp_path / "helped", rare_gain=0.12, noise=0.001)
    )
    alone = paper_check.compare_with_reference(
        made(tmp_path / "alone", rare_gain=-0.02, noise=0.001)
    )
    # It was reported to be 0.936.
    for checks, agrees in ((helped, False), (alone, True)):
        [rare] = [
            c
            for c in of_kind(checks, paper_check.CellCheck)
            if c.metric == "teff_EN2" and c.setting["split"] == "70/30"
        ]
        assert rare.same_side is agrees
        [pair] = [
            c
            for c in of_kind(checks, paper_check.PairCheck)
            if c.metric == "ppl" and c.setting["split"] == "90/10"
        ]
        assert pair.agrees and pair.languages == ("EN1", "EN2")
        said = paper_check.describe_checks(checks)
        assert ("the other side of 1" in said) is not agrees


def test_clones_that_were_reported_as_equal_are_not_put_in_order(tmp_path):
    pairs = of_kind(paper_check.compare_with_reference(made(tmp_path)), paper_check.PairCheck)
    splits = {pair.setting["split"] for pair in pairs if pair.metric == "ppl"}
    assert splits == {"95/5", "90/10", "70/30"}


def test_the_order_of_cells_is_that_of_kendall(tmp_path):
    checks = paper_check.compare_with_reference(made(tmp_path, noise=0.0001))
    orders = {c.metric: c for c in of_kind(checks, paper_check.OrderCheck)}
    assert (orders["ppl_EN2"].tau, orders["ppl_EN2"].cells) == (pytest.approx(1.0), 4)
    assert "Kendall's tau +1.00" in paper_check.describe_checks(checks)


def test_what_is_missing_is_said(tmp_path):
    directory = made_studies.make(tmp_path / "study", paper_grid(seeds=1))
    (directory.run("r90_10_s0").path / "DONE").unlink()
    checks = paper_check.compare_with_reference(study_table.read_study_table(directory))
    whole = [c for c in of_kind(checks, paper_check.MissingCheck) if not c.metric]
    assert [c.why for c in whole] == ["1 of its 4 runs are not done: r90_10_s0"]
    assert "missing: ppl_EN2: 3 reported values have none of ours" in paper_check.describe_checks(
        checks
    )


def test_what_no_run_measures_is_missing_too(tmp_path):
    checks = paper_check.compare_with_reference(made(tmp_path, values={"figure": "Figure 1 right"}))
    assert {c.metric for c in of_kind(checks, paper_check.MissingCheck)} == {
        "glue_acc_EN1",
        "glue_acc_EN2",
    }
    assert not of_kind(checks, paper_check.CellCheck)


def test_without_enough_baselines_nothing_is_said_of_efficiency(tmp_path):
    study = made(tmp_path)
    few = [o for o in study.observations if o.kind != "monolingual"]
    few = dataclasses.replace(study, observations=few)
    worth, [why] = paper_check.compute_reference_efficiencies(few)
    assert worth == {} and why.startswith("no law for en at 2x16: This law needs monolingual")
    checks = paper_check.compare_with_reference(few)
    metrics = {c.metric for c in of_kind(checks, paper_check.CellCheck)}
    assert metrics == {"ppl_EN1", "ppl_EN2"}
    assert f"missing: teff: {why}" in paper_check.describe_checks(checks)


def test_efficiency_is_that_of_the_reference_law(tmp_path):
    study = made(tmp_path, noise=1e-6, rare_gain=0.12)
    worth, without = paper_check.compute_reference_efficiencies(study)
    # 0.12 tokens for each of nine times as many.
    assert worth["r90_10_s0", "en2"].teff == pytest.approx(1 + 0.12 * 9, rel=1e-3)
    assert not without


def test_hidden_states_are_compared_by_layer(tmp_path):
    """From what a run logged at its end, as long as it was not measured on its own."""
    checks = paper_check.compare_with_reference(made(tmp_path, values={"figure": "Table 2"}))
    cells = of_kind(checks, paper_check.CellCheck)
    # The made model has two blocks; of the reference's splits the grid has 50/50 and 90/10.
    assert {(c.setting["layer"], c.setting["split"]) for c in cells} == {
        ("1", "50/50"), ("2", "50/50"), ("1", "90/10"), ("2", "90/10"),
    }  # fmt: skip
