"""Runs and texts drawn anew, against made data of which the truth is known."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from imbalance_jax.analysis import resampling as lib
from imbalance_jax.analysis.law_choice import FAMILIES
from imbalance_jax.analysis.laws import BoundedLaw
from imbalance_jax.analysis.resampling import CellLosses

LAW = BoundedLaw(E=2.0, A=1.0, beta=0.3, unit_tokens=1.0)
FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
BOUNDED = {"bounded": FAMILIES["bounded"]}


def made(rng, sd, *, seeds=3, common=0.0, single=()):
    """Returns baselines and a mixture with a true TEff of 1.5, as runs scatter around LAW."""
    shift = common * rng.normal(size=seeds)

    def cell(worth, own, other=0.0, n=seeds):
        loss = float(LAW.loss(worth))
        return CellLosses({s: loss + shift[s] + sd * rng.normal() for s in range(n)}, own, other)

    baselines = [cell(x, x, n=1 if x in single else seeds) for x in FRACTIONS]
    return baselines, {"rare": cell(0.15, 0.1, 0.9), "even": cell(0.5, 0.5, 0.5)}


def test_runs_without_noise_have_intervals_without_width():
    baselines, cells = made(np.random.default_rng(0), sd=0.0)
    found = lib.resample_efficiency(baselines, cells, 1.0, resamples=20)
    # As near as a fit comes to its parameters.
    assert found.teff("rare") == pytest.approx((1.5, 1.5), rel=1e-6)
    assert found.exchange("rare") == pytest.approx((0.05 / 0.9,) * 2, rel=1e-5)
    teff = {name: found.mlte[name] / found.efficiency[name].own_tokens for name in found.mlte}
    assert np.log(teff["rare"] / teff["even"]) == pytest.approx(np.log(1.5), rel=1e-5)
    assert found.choice.family == "bounded" and found.families == {"bounded": 20}


def test_a_resample_chooses_its_own_family_and_is_repeatable():
    baselines, cells = made(np.random.default_rng(1), sd=0.03)
    first, again = (
        lib.resample_efficiency(baselines, cells, 1.0, resamples=25, seed=4) for _ in range(2)
    )
    assert len(first.families) > 1 and sum(first.families.values()) == 25
    np.testing.assert_array_equal(first.mlte["rare"], again.mlte["rare"])
    other = lib.resample_efficiency(baselines, cells, 1.0, resamples=25, seed=5)
    assert not np.array_equal(first.mlte["rare"], other.mlte["rare"])


def test_runs_that_were_not_repeated_have_no_interval():
    baselines, cells = made(np.random.default_rng(2), sd=0.01, seeds=1)
    found = lib.resample_efficiency(baselines, cells, 1.0, resamples=10)
    assert found.efficiency["rare"].teff == pytest.approx(1.5, rel=0.2)
    assert np.isnan(found.teff("rare")).all() and np.isnan(found.exchange("rare")).all()


def test_what_a_seed_does_to_all_cells_alike_cancels():
    baselines, cells = made(np.random.default_rng(3), sd=0.0, common=0.05, seeds=4)
    found = lib.resample_efficiency(baselines, cells, 1.0, families=BOUNDED, resamples=60)
    # A shift of all losses moves the floor of the law and nothing else.
    assert found.teff("rare") == pytest.approx((1.5, 1.5), rel=1e-3)
    # Without a partner that moves with it, the same shift is scatter.
    still = [
        dataclasses.replace(b, losses={s: float(LAW.loss(b.own_tokens)) for s in range(4)})
        for b in baselines
    ]
    low, high = lib.resample_efficiency(still, cells, 1.0, families=BOUNDED, resamples=60).teff(
        "rare"
    )
    assert high / low > 1.1


def test_a_mixture_below_the_floor_of_the_law_keeps_its_resamples_in_order():
    baselines, cells = made(np.random.default_rng(4), sd=0.02)
    low_cell = dataclasses.replace(cells["rare"], losses={0: 1.5, 1: 1.51, 2: 1.49})
    found = lib.resample_efficiency(
        baselines, {"low": low_cell}, 1.0, families=BOUNDED, resamples=20
    )
    assert found.efficiency["low"].teff == np.inf
    assert np.isnan(found.teff("low")).all()


@pytest.mark.parametrize("single", [(), pytest.param((0.25, 0.5), marks=pytest.mark.slow)])
def test_resampled_intervals_cover_the_true_efficiency_as_often_as_they_say(single):
    rng = np.random.default_rng(21)
    repeats, covered = 40, 0  # with 39 resamples, whose ends leave out 1/40 on each side
    for _ in range(repeats):
        baselines, cells = made(rng, sd=0.01, single=single)
        found = lib.resample_efficiency(baselines, cells, 1.0, families=BOUNDED, resamples=39)
        low, high = found.teff("rare")
        covered += low <= 1.5 <= high
    least, _ = scipy.stats.binom.interval(0.99, repeats, 0.95)
    assert covered >= least


def test_test_text_is_drawn_in_the_same_way_for_all_runs():
    rng = np.random.default_rng(6)
    tokens = rng.integers(50, 200, size=30).astype(float)
    hardness = rng.normal(3.0, 0.5, size=30)
    loss_RC = np.stack([hardness, hardness + 0.1]) * tokens
    draws_SR = lib.resample_text(loss_RC, np.stack([tokens, tokens]), resamples=4000)
    assert draws_SR.shape == (4000, 2)
    np.testing.assert_allclose(draws_SR[:, 1] - draws_SR[:, 0], 0.1)
    # The spread of a ratio of sums, to first order.
    mean = loss_RC[0].sum() / tokens.sum()
    spread = np.sqrt((((hardness - mean) * tokens) ** 2).sum()) / tokens.sum()
    assert draws_SR[:, 0].mean() == pytest.approx(mean, rel=0.01)
    assert draws_SR[:, 0].std() == pytest.approx(spread, rel=0.1)


def test_one_text_cannot_be_resampled():
    with pytest.raises(ValueError, match="two or more documents"):
        lib.resample_text([[5.0]], [[2.0]])
    with pytest.raises(ValueError, match="shape"):
        lib.resample_text([[5.0, 6.0]], [2.0, 3.0])
