"""How often alignment is measured: within the budget, and no less often than it allows."""

import fractions

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalance_jax.training.cadence import Cadence, choose_interval

many = settings(max_examples=300, deadline=None)


def places(every: int, done: int, steps: int) -> list[int]:
    """Returns the steps of the measurements to come, counted one by one."""
    return [n for n in range(done + 1, steps + 1) if n % every == 0 or n == steps]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, float]:
    least = draw(st.integers(1, 40))
    every = least * draw(st.integers(1, 4))
    seconds = st.floats(1e-3, 1e2)
    spent = draw(seconds)
    return dict(
        every=every,
        least=least,
        budget=draw(st.floats(0.001, 0.999)),
        left=draw(st.integers(1, 300)),
        done=draw(st.integers(1, 100)),
        cost=draw(seconds),
        spent=spent,
        ahead=spent + draw(st.floats(1e-3, 1e4)),
    )


@given(case=cases())
@many
def test_the_least_multiple_is_chosen_that_keeps_within_the_budget(case):
    every, least, done = case["every"], case["least"], case["done"]
    steps = done + case["left"]

    def within(multiple: int) -> bool:
        cost = len(places(multiple, done, steps)) * fractions.Fraction(case["cost"])
        taken = fractions.Fraction(case["spent"]) + cost
        found = float(taken / (fractions.Fraction(case["ahead"]) + cost))
        # Where the share is the budget to the last digit, rounding decides.
        hypothesis.assume(abs(found - case["budget"]) > 1e-9 * case["budget"])
        return found < case["budget"]

    chosen = choose_interval(**case)
    if chosen == 0:
        # Even with one multiple beyond the end, so that the last step is all there is.
        assert not any(within(multiple) for multiple in range(every, steps + least, least))
        return
    assert chosen >= every and (chosen - every) % least == 0 and within(chosen)
    assert not any(within(multiple) for multiple in range(every, chosen, least))


@given(case=cases(), budget=st.sampled_from([1, 1.0]))
@settings(max_examples=50, deadline=None)
def test_a_budget_of_one_is_no_limit(case, budget):
    assert choose_interval(**case | {"budget": budget}) == case["every"]


def test_no_more_is_measured_when_not_even_the_last_is_within_the_budget():
    run = dict(every=10, least=10, budget=0.5, left=90, done=10)
    # 100 seconds of training, half of all time is as much: for two measurements, or not quite.
    assert choose_interval(cost=50.0, spent=50.0, ahead=150.0, **run) == 100
    assert choose_interval(cost=50.1, spent=50.1, ahead=150.1, **run) == 0


def test_a_measurement_that_takes_no_time_is_made_whenever_it_may_be():
    assert choose_interval(10, 10, 0.02, 90, 10, cost=0.0, spent=0.0, ahead=100.0) == 10


# Cadence.


def due(cadence: Cadence, steps: int, after: int = 0) -> list[int]:
    return [done for done in range(after, steps + 1) if cadence.due(done)]


def run_through(cadence: Cadence, steps: int, costs: list[float]) -> list[int]:
    """Returns when a run of a second a step measures, each time at the next of the costs."""
    made, spent = [], 0.0
    for done in range(1, steps + 1):
        if cadence.due(done):
            cost = costs[min(len(made), len(costs) - 1)]
            spent += cost
            made.append(done)
            cadence.settle(done, cost=cost, spent=spent, elapsed=done + spent, seconds_per_step=1.0)
    return made


def test_until_the_cost_is_known_measurements_are_due_at_every_multiple_and_after_the_last_step():
    assert due(Cadence(10, 0.02, steps=47), 47) == [10, 20, 30, 40, 47]
    assert due(Cadence(10, 0.02, steps=40), 40) == [10, 20, 30, 40]
    assert due(Cadence(10, 0.001, steps=9), 9) == [9]


def test_once_the_cost_is_known_those_that_follow_keep_within_the_budget():
    # It is 95 s, four of 20 s. Every 30 steps would be five: 10, 30, 60, 90, 95.
    assert run_through(Cadence(10, 0.5, steps=95), 95, [20.0]) == [10, 40, 80, 95]


def test_measurements_that_turn_out_dearer_are_made_less_often():
    # 2% are 20 s: at 1 s each there is one in 50, and at 3 s no more than four after that.
    assert len(run_through(Cadence(50, 0.02, steps=1000), 1000, [1.0])) == 20
    made = run_through(Cadence(50, 0.02, steps=1000), 1000, [1.0, 3.0])
    assert made[:2] == [50, 100] and made[-1] == 1000
    assert 1 + 3 * (len(made) - 1) <= 0.0205 * (1000 + 20)


@given(
    every=st.integers(1, 40),
    steps=st.integers(1, 400),
    budget=st.floats(0.01, 0.9),
    cost=st.floats(0.01, 50),
)
@many
def test_a_steady_cost_keeps_within_the_budget_to_the_end(every, steps, budget, cost):
    cadence = Cadence(every, budget, steps)
    made = run_through(cadence, steps, [cost])
    if steps <= every:
        assert made == [steps]
    elif cadence.every:
        taken = len(made) * cost
        assert taken <= budget * (steps + taken) * (1 + 1e-9)
        assert made == sorted({every, *places(cadence.every, every, steps)})
    else:
        assert made == [every]


def test_a_resumed_run_keeps_what_it_chose_before():
    for chosen, expected in ((40, [40, 80, 95]), (0, [])):
        cadence = Cadence(10, 0.5, steps=95, chosen=chosen)
        assert due(cadence, 95) == expected
        cheap = dict(cost=1e-3, spent=1e-3, elapsed=40.0, seconds_per_step=1.0)
        assert not cadence.settle(40, **cheap)
        assert cadence.every == chosen


def test_what_is_learned_after_the_last_step_changes_nothing():
    cadence = Cadence(10, 0.02, steps=10)
    assert not cadence.settle(10, cost=9.0, spent=9.0, elapsed=9.0, seconds_per_step=1.0)
    assert cadence.every == 10


@pytest.mark.parametrize("chosen", [None, 0, 250])
def test_without_a_cadence_nothing_is_ever_due(chosen):
    # Whatever was chosen before a resumed run's config turned measuring off.
    cadence = Cadence(0, 0.02, steps=1000, chosen=chosen)
    assert cadence.every == 0 and due(cadence, 1000) == []


def settled(cost: float) -> str:
    cadence = Cadence(50, 0.02, steps=10_000)
    cadence.settle(50, cost=cost, spent=cost, elapsed=50.0 + cost, seconds_per_step=1.0)
    return cadence.describe(cost)


def test_what_was_chosen_is_said_with_the_fields_that_change_it():
    assert settled(0.12) == "Alignment takes 0.12 s: measured every 50 steps."
    slower = settled(7.0)  # 2% are 204 s for 29 of them: every 350 steps would be 30 with the first
    assert slower.startswith("Alignment takes 7 s: measured every 400 steps rather than 50, ")
    assert "config.evaluation.alignment.budget=0.02" in slower
    never = settled(700.0)
    assert "more than config.evaluation.alignment.budget=0.02 of this run" in never
    assert "the last time" in never
    assert "Lower config.evaluation.alignment.pairs" in never
    assert "python -m imbalance_jax.evaluate" in never
