"""Estimates and their intervals, against closed forms and scipy."""

import numpy as np
import pytest
import scipy.stats

from imbalance_jax.analysis import statistics as lib


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
    assert np.isnan(found.p_value())
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
    assert (found.value, found.n, found.df) == (2.0, 3, 2)
    t = 2 * np.sqrt(3)  # the distribution function of t with 2 degrees has this closed form
    assert found.p_value() == pytest.approx(1 - t / np.sqrt(2 + t**2))
    assert found.interval() == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)))


def test_runs_without_common_seeds_are_compared_by_welch():
    a, b = [1.0, 1.4, 1.1, 1.3], [0.7, 1.2]
    found = lib.estimate_difference(dict(enumerate(a)), dict(enumerate(b, start=3)))
    expected = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert found.p_value() == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.9)
    assert found.interval(0.9) == pytest.approx((interval.low, interval.high))
    with pytest.raises(ValueError, match="no|none"):
        lib.estimate_difference({}, {0: 1.0})


def test_runs_that_do_not_scatter_leave_no_doubt():
    found = lib.estimate_difference({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.5})
    assert found.interval() == (0.5, 0.5)
    assert (found.p_value(), found.p_value(0.5)) == (0.0, 1.0)


def test_a_widened_interval_of_normal_draws_is_the_t_interval():
    draws = 1 + 0.1 * scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    half = 0.1 * scipy.stats.t.ppf(0.975, 3)
    assert lib.compute_widened_interval(1.0, draws, 3) == pytest.approx(
        (1 - half, 1 + half), rel=1e-3
    )
    assert np.isnan(lib.compute_widened_interval(1.0, draws, 0)).all()
