"""How often alignment is measured: within the budget, and no less often than it allows."""

import fractions

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalance_jax.cadence import Cadence, choose

many = settings(max_examples=300, deadline=None)


def measured(every: int, chosen: int, steps: int) -> list[int]:
    """Returns the steps of all measurements, counted one by one."""
    return [
        done
        for done in range(1, steps + 1)
        # The first one shows the cost, and the last step's is always made.
        if done in (every, steps) or done % chosen == 0
    ]


def share(count: int, steps: int, cost: float, per_step: float) -> fractions.Fraction:
    """Returns the share of all time that so many measurements take."""
    taken = count * fractions.Fraction(cost)
    return taken / (taken + steps * fractions.Fraction(per_step))


@st.composite
def runs(draw: st.DrawFn) -> dict[str, float]:
    every = draw(st.integers(1, 40))
    steps = draw(st.integers(1, 400))
    budget = draw(st.floats(0.001, 0.999))
    seconds = st.floats(1e-3, 1e2)
    return dict(
        every=every, budget=budget, steps=steps, cost=draw(seconds), seconds_per_step=draw(seconds)
    )


@given(run=runs())
@many
def test_the_least_multiple_is_chosen_that_keeps_within_the_budget(run):
    every, budget, steps = run["every"], run["budget"], run["steps"]

    def within(multiple: int) -> bool:
        count = len(measured(every, multiple, steps))
        found = float(share(count, steps, run["cost"], run["seconds_per_step"]))
        # Where the share is the budget to the last digit, rounding decides.
        hypothesis.assume(abs(found - budget) > 1e-9 * budget)
        return found < budget

    chosen = choose(**run)
    if steps <= every:
        assert chosen == every
        return
    multiples = range(every, steps + every, every)
    if chosen == 0:
        assert not any(within(multiple) for multiple in multiples)
        # The last multiple leaves the two that there are always.
        assert measured(every, multiples[-1], steps) == sorted({every, steps})
        return
    assert chosen in multiples and within(chosen)
    assert not any(within(multiple) for multiple in range(every, chosen, every))


@given(run=runs(), budget=st.sampled_from([1, 1.0]))
@settings(max_examples=50, deadline=None)
def test_a_budget_of_one_is_no_limit(run, budget):
    assert choose(**run | {"budget": budget}) == run["every"]


def test_no_more_is_measured_when_not_even_two_are_within_the_budget():
    run = dict(every=10, budget=0.5, steps=100, seconds_per_step=1.0)
    # Half of all time is 100 seconds: for two measurements, or not quite.
    assert choose(cost=50.0, **run) == 100
    assert choose(cost=50.1, **run) == 0


def test_a_run_of_no_more_steps_than_the_cadence_is_measured_once_at_any_cost():
    for steps in (1, 9, 10):
        assert choose(10, 0.001, steps, cost=1e6, seconds_per_step=1e-6) == 10
    cadence = Cadence(10, 0.001, steps=9)
    assert due(cadence, 9) == [9]


def test_a_measurement_that_takes_no_time_is_made_whenever_it_may_be():
    assert choose(10, 0.02, 100, cost=0.0, seconds_per_step=1.0) == 10


# Cadence.


def due(cadence: Cadence, steps: int) -> list[int]:
    return [done for done in range(steps + 1) if cadence.due(done)]


def test_until_the_cost_is_known_measurements_are_due_at_every_multiple_and_after_the_last_step():
    assert due(Cadence(10, 0.02, steps=47), 47) == [10, 20, 30, 40, 47]
    assert due(Cadence(10, 0.02, steps=40), 40) == [10, 20, 30, 40]


def test_once_the_cost_is_known_those_that_follow_keep_within_the_budget():
    cadence = Cadence(10, 0.5, steps=95)
    assert cadence.every == 10
    # At 1 s a step it is 95 s, four of 20 s. Every 30 steps would be five: 10, 30, 60, 90, 95.
    assert cadence.settle(cost=20.0, rest=10.0, done=10)
    assert cadence.every == 40
    assert [10, *(done for done in due(cadence, 95) if done > 10)] == [10, 40, 80, 95]


@given(run=runs())
@many
def test_all_that_is_due_in_a_run_is_what_was_counted_when_it_was_chosen(run):
    every, steps = run["every"], run["steps"]
    hypothesis.assume(steps > every)
    cadence, made = Cadence(every, run["budget"], steps), []
    for done in range(1, steps + 1):
        if cadence.due(done):
            made.append(done)
            rest = done * run["seconds_per_step"]
            # The first measurement settles it, and none after that.
            assert cadence.settle(run["cost"], rest, done) == (len(made) == 1)
    if cadence.every:
        assert made == measured(every, cadence.every, steps)
        found = share(len(made), steps, run["cost"], run["seconds_per_step"])
        assert float(found) <= run["budget"] * (1 + 1e-9)
    else:
        assert made == [every]


def test_a_resumed_run_keeps_what_it_chose_before():
    for chosen, expected in ((40, [40, 80, 95]), (0, [])):
        cadence = Cadence(10, 0.5, steps=95, chosen=chosen)
        assert not cadence.settle(cost=1e-3, rest=1e3, done=50)
        assert cadence.every == chosen and due(cadence, 95) == expected


@pytest.mark.parametrize("chosen", [None, 0, 250])
def test_without_a_cadence_nothing_is_ever_due(chosen):
    # Whatever was chosen before a resumed run's config turned measuring off.
    cadence = Cadence(0, 0.02, steps=1000, chosen=chosen)
    assert cadence.every == 0 and due(cadence, 1000) == []


def settled(cost: float) -> str:
    cadence = Cadence(50, 0.02, steps=10_000)
    cadence.settle(cost, rest=50.0, done=50)
    return cadence.describe(cost)


def test_what_was_chosen_is_said_with_the_fields_that_change_it():
    assert settled(0.12) == "Alignment takes 0.12 s: measured every 50 steps."
    slower = settled(7.0)  # 2% are 204 s for 29 of them: every 350 steps would be 30 with the first
    assert slower.startswith("Alignment takes 7 s: measured every 400 steps rather than 50, ")
    assert "config.evaluation.alignment.budget=0.02" in slower
    never = settled(700.0)
    assert "more than config.evaluation.alignment.budget=0.02 of this run" in never
    assert "the only time" in never
    assert "Lower config.evaluation.alignment.pairs" in never
    assert "python -m imbalance_jax.evaluate" in never
