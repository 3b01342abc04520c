"""Which monolingual runs a study lacks."""

import math

import pytest

from imbalance_jax.analysis.baselines import BaselineDemand, list_missing_baselines


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
