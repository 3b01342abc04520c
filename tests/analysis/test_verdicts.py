"""Verdicts on claims, one alone and among many."""

import numpy as np
import pytest
import scipy.stats

from imbalance_jax.analysis import verdicts as lib
from imbalance_jax.analysis.statistics import Estimate


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
    estimate = Estimate(value, se, df=4, n=5)
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
    found = lib.reach_verdict(Estimate(value, se, df, 5), direction, smallest=0.05)
    assert found.word == word and np.isnan(found.equivalence_p) == (df == 0)


def test_many_claims_are_judged_more_strictly_than_one():
    weak = lib.reach_verdict(Estimate(0.2, 0.055, 4, 5), "up", 0.05)
    strong = lib.reach_verdict(Estimate(0.2, 0.005, 4, 5), "up", 0.05)
    none = lib.reach_verdict(Estimate(0.0, 0.005, 4, 5), "up", 0.05)
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
                Estimate(rng.normal(0, 0.1), 10 ** rng.uniform(-3, -1), df, 3),
                rng.choice(["up", "down", "same"]),
                smallest,
            )
            for n, df in enumerate(rng.choice([0, 2, 4, 40], size=rng.integers(1, 8)))
        }
        for name, found in lib.adjust_verdicts(verdicts).items():
            low, high = found.estimate.interval(1 - found.level)
            inner_low, inner_high = found.estimate.interval(1 - 2 * found.equivalence_level)
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
    alone = {i: lib.reach_verdict(Estimate(v, 1, 1e6, 9), "up", 10) for i, v in enumerate(values)}
    assert alone[0].word == "absent" and alone[0].equivalence_p == pytest.approx(0.03, abs=1e-4)
    found = lib.adjust_verdicts(alone)
    assert found[0].word == "undecided" and found[0].equivalence_p == pytest.approx(0.15, abs=1e-3)
    assert all(v.p < 0.05 for v in found.values())
    assert found[0].estimate.interval(1 - 2 * found[0].equivalence_level)[1] > 10


def test_a_claim_whose_interval_alone_leaves_out_zero_is_shown_with_the_one_that_decides():
    # -1.096, -1.734 to -0.458 alone, among two others of which nothing is shown.
    alone = Estimate(-1.096, 0.638 / scipy.stats.t.ppf(0.975, 2), 2, 3)
    others = dict.fromkeys("ab", lib.reach_verdict(Estimate(0.0, 1.0, 2, 3), "up", 0.01))
    found = lib.adjust_verdicts({"claim": lib.reach_verdict(alone, "down", 0.01), **others})[
        "claim"
    ]
    assert alone.interval()[1] == pytest.approx(-0.458) and found.p == pytest.approx(
        0.054, abs=1e-3
    )
    assert found.word == "undecided" and found.level == pytest.approx(0.05 / 3)
    assert found.shown_interval[0] < -1.734 and found.shown_interval[1] > 0


def test_a_claim_without_a_direction_or_a_size_is_refused():
    estimate = Estimate(0.1, 0.1, 3, 4)
    with pytest.raises(ValueError, match="direction='left'"):
        lib.reach_verdict(estimate, "left", 0.05)
    with pytest.raises(ValueError, match="smallest=0"):
        lib.reach_verdict(estimate, "up", 0)
