"""Behaviours of analysis/statistics.py, against closed forms, scipy and made data."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from imbalance_jax.analysis import statistics as lib
from imbalance_jax.analysis.laws import FAMILIES, BoundedLaw
from imbalance_jax.analysis.statistics import CellLosses, Estimate

LAW = BoundedLaw(E=2.0, A=1.0, beta=0.3, unit_tokens=1.0)
FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
BOUNDED = {"bounded": FAMILIES["bounded"]}


def test_a_pooled_interval_is_the_one_worked_out_by_hand():
    cells = {"a": np.exp([1.0, 1.2]), "b": np.exp([2.0, 2.4, 2.6]), "c": np.exp([3.0])}
    found = lib.pool_log_estimates(cells)
    # Squared deviations 0.02 and 0.186667 over 1 + 2 degrees of freedom; t(3) = 3.182446.
    variance = (0.02 + 0.1866667) / 3
    for name, mean, n in (("a", 1.1, 2), ("b", 7 / 3, 3), ("c", 3.0, 1)):
        half = 3.182446 * np.sqrt(variance / n)
        assert found[name].df == 3
        assert found[name].interval() == pytest.approx((mean - half, mean + half), rel=1e-5)
        assert found[name].exp_interval()[1] == pytest.approx(np.exp(mean + half), rel=1e-5)


def test_without_a_repeated_run_there_is_no_interval_and_no_p():
    found = lib.pool_log_estimates({"a": [1.5], "b": [2.0]})["a"]
    assert found.value == pytest.approx(np.log(1.5))
    assert np.isnan(found.interval()).all() and np.isnan(found.exp_interval()).all()
    assert np.isnan(found.p_value()) and np.isnan(lib.compute_equivalence_p(found, 0.1))
    alone = lib.estimate_difference({0: 1.0}, {0: 2.0})
    assert alone.value == -1 and np.isnan(alone.interval()).all()


def test_a_value_without_a_log_is_refused_by_the_name_of_its_cell():
    with pytest.raises(ValueError, match=r"Cell rare .*inf"):
        lib.pool_log_estimates({"rare": [1.0, np.inf]})


def test_runs_that_share_seeds_are_compared_in_pairs():
    # The seeds differ by 10 and more, the pairs by 1, 2 and 3.
    found = lib.estimate_difference(
        {0: 11.0, 1: 22.0, 2: 43.0, 9: 500.0}, {0: 10.0, 1: 20.0, 2: 40.0}
    )
    assert (found.value, found.n, found.df, found.how) == (2.0, 3, 2, "paired")
    t = 2 * np.sqrt(3)  # the distribution function of t with 2 degrees has this closed form
    assert found.p_value() == pytest.approx(1 - t / np.sqrt(2 + t**2))
    assert found.interval() == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)))


def test_runs_without_common_seeds_are_compared_by_welch():
    a, b = [1.0, 1.4, 1.1, 1.3], [0.7, 1.2]
    found = lib.estimate_difference(dict(enumerate(a)), dict(enumerate(b, start=3)))
    expected = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert found.how == "welch" and found.p_value() == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.9)
    assert found.interval(0.9) == pytest.approx((interval.low, interval.high))
    with pytest.raises(ValueError, match="no|none"):
        lib.estimate_difference({}, {0: 1.0})


def test_runs_that_do_not_scatter_leave_no_doubt():
    found = lib.estimate_difference({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.5})
    assert found.interval() == (0.5, 0.5)
    assert (found.p_value(), found.p_value(0.5)) == (0.0, 1.0)


def test_holm_agrees_with_an_example_worked_out_by_hand():
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 raised to the one before.
    np.testing.assert_allclose(
        lib.apply_holm_correction([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]
    )
    np.testing.assert_allclose(lib.apply_holm_correction([0.6, 0.7]), [1.0, 1.0])
    np.testing.assert_allclose(lib.apply_holm_correction([0.02, np.nan]), [0.04, np.nan])
    assert len(lib.apply_holm_correction([])) == 0


@pytest.mark.parametrize("value", [-0.09, -0.02, 0.0, 0.03, 0.0499, 0.2])
@pytest.mark.parametrize("se", [0.005, 0.02, 0.05])
def test_two_one_sided_tests_agree_with_the_interval(value, se):
    estimate = Estimate(value, se, df=4, n=5, how="paired")
    low, high = estimate.interval(0.9)
    assert (lib.compute_equivalence_p(estimate, 0.05) < 0.05) == (low > -0.05 and high < 0.05)


@pytest.mark.parametrize(
    ("value", "se", "direction", "word"),
    [
        (0.20, 0.02, "up", "supported"),
        (0.20, 0.02, "down", "contradicted"),
        (-0.20, 0.02, "down", "supported"),
        (0.00, 0.01, "up", "absent"),
        (0.02, 0.004, "up", "absent"),  # not 0, and smaller than of interest
        (0.00, 0.10, "up", "undecided"),  # a wide interval is no evidence of absence
        (0.20, 0.15, "up", "undecided"),
        (0.045, 0.01, "up", "undecided"),  # not 0, but large enough or not
        (0.20, np.nan, "up", "undecided"),
    ],
)
def test_a_verdict_takes_size_direction_and_doubt_into_account(value, se, direction, word):
    df = 0 if np.isnan(se) else 4
    found = lib.reach_verdict(Estimate(value, se, df, 5, "paired"), direction, smallest=0.05)
    assert found.word == word


def test_many_claims_are_judged_more_strictly_than_one():
    weak = lib.reach_verdict(Estimate(0.2, 0.055, 4, 5, "paired"), "up", 0.05)
    strong = lib.reach_verdict(Estimate(0.2, 0.005, 4, 5, "paired"), "up", 0.05)
    none = lib.reach_verdict(Estimate(0.0, 0.005, 4, 5, "paired"), "up", 0.05)
    found = lib.adjust_verdicts({"weak": weak, "strong": strong, "none": none, "again": weak})
    assert weak.word == "supported" and 0.01 < weak.p < 0.05
    words = [found[name].word for name in ("weak", "strong", "none")]
    assert words == ["undecided", "supported", "absent"]
    assert found["weak"].p == pytest.approx(3 * weak.p)


@pytest.mark.parametrize("seed", range(5))
def test_adjusted_words_p_values_and_intervals_say_the_same(seed):
    rng = np.random.default_rng(seed)
    smallest = 0.05
    for _ in range(40):
        verdicts = {
            str(n): lib.reach_verdict(
                Estimate(rng.normal(0, 0.1), 10 ** rng.uniform(-3, -1), df, 3, "paired"),
                rng.choice(["up", "down", "same"]),
                smallest,
            )
            for n, df in enumerate(rng.choice([0, 2, 4, 40], size=rng.integers(1, 8)))
        }
        for name, found in lib.adjust_verdicts(verdicts).items():
            low, high = found.interval
            inner_low, inner_high = found.equivalence_interval
            assert (found.p < 0.05) == (low > 0 or high < 0)
            assert found.equivalent == (-smallest < inner_low and inner_high < smallest)
            assert not found.p < verdicts[name].p and found.level <= 0.05
            positive = {"same": "supported"}.get(found.direction, "absent")
            assert (found.word == positive) or not found.equivalent
            low, high = found.shown_interval
            assert found.equivalent == (-smallest < low and high < smallest) or found.p < 0.05
            assert (found.p < 0.05) == (low > 0 or high < 0) or found.equivalent
            if found.word in ("supported", "contradicted") and not found.equivalent:
                assert found.p < 0.05 and abs(found.estimate.value) >= smallest
        # Holm's own p values decide what was claimed.
        directed = {n: v for n, v in verdicts.items() if v.direction != "same"}
        adjusted = lib.adjust_verdicts(directed)
        np.testing.assert_array_equal(
            [v.p for v in adjusted.values()],
            lib.apply_holm_correction([v.p for v in directed.values()]),
        )


def test_an_effect_among_many_is_not_absent_because_it_is_the_last_to_be_shown():
    # Five effects just as large as matters, estimated with luck and without: the smallest would
    # pass for absent in one study of five if it alone were tested at 5 %.
    values = 10 + scipy.stats.norm.ppf([0.03, 0.3, 0.5, 0.7, 0.9])
    alone = {
        i: lib.reach_verdict(Estimate(v, 1, 1e6, 9, "paired"), "up", 10)
        for i, v in enumerate(values)
    }
    assert alone[0].word == "absent" and alone[0].equivalence_p == pytest.approx(0.03, abs=1e-4)
    found = lib.adjust_verdicts(alone)
    assert found[0].word == "undecided" and found[0].equivalence_p == pytest.approx(0.15, abs=1e-3)
    assert all(v.p < 0.05 for v in found.values())
    assert found[0].equivalence_interval[1] > 10


def test_a_claim_whose_interval_alone_leaves_out_zero_is_shown_with_the_one_that_decides():
    # -1.096, -1.734 to -0.458 alone, among two others of which nothing is shown.
    alone = Estimate(-1.096, 0.638 / scipy.stats.t.ppf(0.975, 2), 2, 3, "paired")
    others = dict.fromkeys("ab", lib.reach_verdict(Estimate(0.0, 1.0, 2, 3, "paired"), "up", 0.01))
    found = lib.adjust_verdicts({"claim": lib.reach_verdict(alone, "down", 0.01), **others})[
        "claim"
    ]
    assert alone.interval()[1] == pytest.approx(-0.458) and found.p == pytest.approx(
        0.054, abs=1e-3
    )
    assert found.word == "undecided" and found.level == pytest.approx(0.05 / 3)
    assert found.shown_interval[0] < -1.734 and found.shown_interval[1] > 0


def test_a_claim_without_a_direction_or_a_size_is_refused():
    estimate = Estimate(0.1, 0.1, 3, 4, "paired")
    with pytest.raises(ValueError, match="direction='left'"):
        lib.reach_verdict(estimate, "left", 0.05)
    with pytest.raises(ValueError, match="smallest=0"):
        lib.reach_verdict(estimate, "up", 0)


def made(rng, sd, *, seeds=3, common=0.0, single=()):
    """Returns baselines and a mixture with a true TEff of 1.5, as runs scatter around LAW."""
    shift = common * rng.normal(size=seeds)

    def cell(worth, own, other=0.0, n=seeds):
        loss = float(LAW.loss(worth))
        return CellLosses({s: loss + shift[s] + sd * rng.normal() for s in range(n)}, own, other)

    baselines = [cell(x, x, n=1 if x in single else seeds) for x in FRACTIONS]
    return baselines, {"rare": cell(0.15, 0.1, 0.9), "even": cell(0.5, 0.5, 0.5)}


@pytest.mark.parametrize("by_seed", [True, False])
def test_runs_without_noise_have_intervals_without_width(by_seed):
    baselines, cells = made(np.random.default_rng(0), sd=0.0)
    found = lib.resample_efficiency(baselines, cells, 1.0, resamples=20, by_seed=by_seed)
    # As near as a fit comes to its parameters.
    assert found.teff("rare") == pytest.approx((1.5, 1.5), rel=1e-6)
    assert found.exchange("rare") == pytest.approx((0.05 / 0.9,) * 2, rel=1e-5)
    teff = {name: found.mlte[name] / found.efficiency[name].own_tokens for name in found.mlte}
    assert np.log(teff["rare"] / teff["even"]) == pytest.approx(np.log(1.5), rel=1e-5)
    assert found.choice.family == "bounded" and found.unfitted == 0


def test_a_resample_chooses_its_own_family_and_is_repeatable():
    baselines, cells = made(np.random.default_rng(1), sd=0.03)
    first, again = (
        lib.resample_efficiency(baselines, cells, 1.0, resamples=25, seed=4) for _ in range(2)
    )
    assert len(first.families) > 1 and sum(first.families.values()) + first.unfitted == 25
    np.testing.assert_array_equal(first.mlte["rare"], again.mlte["rare"])
    other = lib.resample_efficiency(baselines, cells, 1.0, resamples=25, seed=5)
    assert not np.array_equal(first.mlte["rare"], other.mlte["rare"])


def test_runs_that_were_not_repeated_have_no_interval():
    baselines, cells = made(np.random.default_rng(2), sd=0.01, seeds=1)
    found = lib.resample_efficiency(baselines, cells, 1.0, resamples=10)
    assert found.efficiency["rare"].teff == pytest.approx(1.5, rel=0.2)
    assert np.isnan(found.teff("rare")).all() and np.isnan(found.exchange("rare")).all()


def test_what_a_seed_does_to_all_cells_alike_cancels_if_drawn_by_seed():
    baselines, cells = made(np.random.default_rng(3), sd=0.0, common=0.05, seeds=4)
    paired, apart = (
        lib.resample_efficiency(baselines, cells, 1.0, families=BOUNDED, resamples=60, by_seed=by)
        for by in (True, False)
    )
    # A shift of all losses moves the floor of the law and nothing else.
    assert paired.teff("rare") == pytest.approx((1.5, 1.5), rel=1e-3)
    low, high = apart.teff("rare")
    assert high / low > 1.1


def test_a_mixture_below_the_floor_of_the_law_keeps_its_resamples_in_order():
    baselines, cells = made(np.random.default_rng(4), sd=0.02)
    low_cell = dataclasses.replace(cells["rare"], losses={0: 1.5, 1: 1.51, 2: 1.49})
    found = lib.resample_efficiency(
        baselines, {"low": low_cell}, 1.0, families=BOUNDED, resamples=20
    )
    assert found.efficiency["low"].teff == np.inf
    assert np.isnan(found.teff("low")).all()


@pytest.mark.parametrize(
    ("by_seed", "single"),
    [
        (True, ()),
        pytest.param(False, (), marks=pytest.mark.slow),
        pytest.param(False, (0.25, 0.5), marks=pytest.mark.slow),
    ],
)
def test_resampled_intervals_cover_the_true_efficiency_as_often_as_they_say(by_seed, single):
    rng = np.random.default_rng(21)
    repeats, covered = 60, 0  # with 39 resamples, whose ends leave out 1/40 on each side
    for _ in range(repeats):
        baselines, cells = made(rng, sd=0.01, single=single)
        found = lib.resample_efficiency(
            baselines, cells, 1.0, families=BOUNDED, resamples=39, by_seed=by_seed
        )
        low, high = found.teff("rare")
        covered += low <= 1.5 <= high
    least, _ = scipy.stats.binom.interval(0.99, repeats, 0.95)
    assert covered >= least


def test_a_widened_interval_of_normal_draws_is_the_t_interval():
    draws = 1 + 0.1 * scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    half = 0.1 * scipy.stats.t.ppf(0.975, 3)
    assert lib.compute_widened_interval(1.0, draws, 3) == pytest.approx(
        (1 - half, 1 + half), rel=1e-3
    )
    assert np.isnan(lib.compute_widened_interval(1.0, draws, 0)).all()


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
