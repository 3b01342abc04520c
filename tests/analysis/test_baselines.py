"""Which monolingual runs a study lacks."""

import math
from types import SimpleNamespace

import made_studies
import pytest
from helpers import ROOT
from made_configs import resolved

from imbalance_jax import cli
from imbalance_jax.analysis import study_table, validity
from imbalance_jax.analysis.baselines import (
    BaselineDemand,
    BaselineGroup,
    find_nearest_baseline,
    list_baseline_runs,
    list_missing_baselines,
)
from imbalance_jax.analysis.effects import measure_effects
from imbalance_jax.config.size import describe_size
from imbalance_jax.study import grid
from imbalance_jax.study.grid import resolve_study


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


def test_each_optimizer_and_architecture_is_held_against_baselines_of_its_own():
    arms = cli.load_config_file(f"{ROOT}/configs/studies/why.py:arms=sgd+own+tied+rope+llama")
    runs = {
        name: SimpleNamespace(spec=spec, config=spec.config)
        for name, spec in resolve_study(arms).runs.items()
    }
    found = {}
    for arm in ("adam", "sgd", "own", "tied", "rope", "llama"):
        mixture = runs[f"{arm}_r90_10_s0"].config
        group = BaselineGroup.of(mixture, mixture.source_of("en1"), "matched")
        baselines = list_baseline_runs(SimpleNamespace(runs=runs), group)
        found[arm] = {name.split("_")[0] for name in baselines}, group.dials
    assert found == {
        "adam": ({"adam"}, ""),
        "sgd": ({"sgd"}, "sgd"),
        "own": ({"adam"}, ""),
        "tied": ({"tied"}, "tied=True"),
        "rope": ({"rope"}, "position=rope"),
        "llama": ({"llama"}, "llama"),
    }


def test_a_size_is_the_same_however_its_dials_are_written():
    fields = ("position=rope", "norm=rms", "feed_forward=swiglu", "bias=off", "embed_scale=none")
    written = dict(field.split("=") for field in fields)
    by_field = resolved(**{f"model__{name}": value for name, value in written.items()})
    grouped = resolved(model__preset="llama", model__kv_heads=1, optimizer__name="muon")
    plain = describe_size(resolved())
    assert describe_size(resolved(optimizer__name="adamw")) == plain
    assert describe_size(by_field) == f"{plain}, llama"
    assert describe_size(grouped) == f"{plain}, llama, kv_heads=1, muon"


@pytest.mark.parametrize(("weights", "pairs"), [({}, 1), ({"en2": 1.0}, 1), ({"en2": 3.0}, 0)])
def test_clones_whose_losses_have_other_weights_are_not_expected_to_be_equal(weights, pairs):
    config = resolved(mixture__ratio={"en1": 1, "en2": 1}, mixture__loss_weights=weights)
    first = SimpleNamespace(source="en", tokens=100.0)
    conditions = [
        SimpleNamespace(
            cell="even", kind="mixture", language=tag, config=config, first=first, plain=True
        )
        for tag in config.tags
    ]
    found = validity._find_equal_pairs(SimpleNamespace(conditions=conditions))
    assert len(list(found)) == pairs
