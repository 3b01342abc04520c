"""Which monolingual runs a study lacks."""

import math
from types import SimpleNamespace

import pytest
from helpers import ROOT
from made_configs import resolved

from imbalance_jax import cli
from imbalance_jax.analysis import validity
from imbalance_jax.analysis.baselines import (
    BaselineDemand,
    BaselineGroup,
    list_baseline_runs,
    list_missing_baselines,
)
from imbalance_jax.analysis.study_table import describe_size
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
