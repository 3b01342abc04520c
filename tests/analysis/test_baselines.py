"""Which monolingual runs a study lacks."""

import math

import made_studies
import pytest

from imbalance_jax.analysis import study_table
from imbalance_jax.analysis.baselines import (
    BaselineDemand,
    find_nearest_baseline,
    list_missing_baselines,
)
from imbalance_jax.analysis.effects import measure_effects
from imbalance_jax.study import grid


def test_missing_baselines_are_named_with_what_they_cost():
    have = [2e6, 5e6, 1e7]
    assert list_missing_baselines(BaselineDemand([3e6, 1e7]), have) == []
    low, high = list_missing_baselines(BaselineDemand([1e6, 4e6, 3e7], 2, 10.0), have)
    assert (low.tokens, low.flops, high.tokens, high.flops) == (1e6, 2e7, 3e7, 6e8)
    assert "2,000,000" in low.reason and "10,000,000" in high.reason
    [endless] = list_missing_baselines(BaselineDemand([math.inf]), have)
    assert endless.tokens == 2e7 and math.isnan(endless.flops)
    none = list_missing_baselines(BaselineDemand([1e6, 1e8]), [])
    assert [run.tokens for run in none] == pytest.approx([1e6, 1e7, 1e8])
    assert list_missing_baselines(BaselineDemand([]), []) == []


def test_of_tuned_epochs_the_best_of_each_text_stands_for_the_mixtures_tokens(tmp_path):
    mixture = made_studies.mixture("50:50")
    made = grid.Grid("Tuned.", unit=mixture)
    made.add("r50_50", mixture, seeds=range(2))
    parts = (0.1, 0.25, 0.5)
    made.baselines(mixture, "en1", fractions=(*parts, 1), seeds=range(2), kinds=("epochs",))
    made.baselines(mixture, "en1", fractions=(1,), seeds=range(2))
    plain = made.to_config().runs.keys()
    cells = made.tune_epochs(
        mixture, "en1", fractions=parts, epochs=(1, 2), decays=(0.0, 0.1), seeds=range(2)
    )
    assert len(cells) == 12 and "epochs_en1_10_e2_wd0p1" in cells
    assert set(cells) & {name.rpartition("_s")[0] for name in plain} == {
        "epochs_en1_10", "epochs_en1_25", "epochs_en1_50"
    }  # fmt: skip
    directory = made_studies.make(tmp_path / "study", made.to_config(), noise=0, alignment=False)
    for seed in range(2):  # decay helps the run that has a tenth of the text
        name = f"epochs_en1_10_e2_wd0p1_s{seed}"
        made_studies.lower(directory, name, "en1", 4.0)
    table = study_table.read_study_table(directory)
    (law,) = (
        law
        for (group, part), law in measure_effects(table, resamples=10).laws.items()
        if (group.kind, part) == ("epochs", "loss")
    )
    group = law.group
    unit = table.unit_tokens
    used = {row.cell: (row.tokens / unit, row.loss) for row in law.observations}
    assert used["epochs_en1_10_e2_wd0p1"] == (0.1, 4.0)
    # Made losses follow the tokens alone, so that twice as many epochs are best.
    for part in (0.25, 0.5):
        (cell,) = (c for c in used if c.startswith(f"epochs_en1_{grid.percent(part)}"))
        assert cell.endswith(("_e2_wd0", "_e2_wd0p1"))
        assert used[cell] == (part, pytest.approx(made_studies.law(2 * part * unit, unit)))
    assert used["mono_en1_100"][0] == 1 and len(used) == 4
    # A claim is held against the mixture's own setting.
    assert find_nearest_baseline(table, group, 0.25 * unit) == "epochs_en1_25_s0"
