"""Behaviours of config/schedule.py and of the ratios and stages that it reads."""

import fractions
import math

import pytest
from made_configs import resolved, stages, two_clones

from imbalance_jax import config as config_lib


def test_blocks_above_the_largest_are_refused_with_the_sum_and_the_sampler_that_has_none():
    huge = {"en1": 2**31 - 1, "en2": 1}
    with pytest.raises(ValueError, match=r"mixture\.ratio .*2,147,483,648.*2,147,483,647 at most"):
        resolved(mixture__ratio=huge)
    with pytest.raises(ValueError, match=r"mixture\.stages\[1\] .*mixture\.sampler=bernoulli"):
        resolved(mixture__stages=((0, {"en1": 1, "en2": 1}), (5, huge)))
    resolved(mixture__ratio=huge, mixture__sampler="bernoulli")
    resolved(mixture__ratio={"en1": 2**40, "en2": 2**40})  # one to one


@pytest.mark.parametrize("count", [0.9, -1, -0.5, float("nan"), float("inf")])
def test_a_count_that_is_not_a_whole_number_is_refused_by_its_field(count):
    fix = r" must be a whole number of sequences, 0 or more.*19 and 1"
    with pytest.raises(ValueError, match=rf"config\.mixture\.ratio\.en1={count}{fix}"):
        resolved(mixture__ratio={"en1": count, "en2": 1})
    stages = [[0, {"en1": 1, "en2": 1}], [5, {"en1": count, "en2": 1}]]
    with pytest.raises(ValueError, match=rf"config\.mixture\.stages\[1\]\.en1={count}{fix}"):
        resolved(mixture__stages=stages)


@pytest.mark.parametrize("count", ["3", True, None])
def test_a_count_that_is_not_a_number_is_refused_by_its_field(count):
    with pytest.raises(ValueError, match=rf"config\.mixture\.ratio\.en1={count!r} must be of type"):
        resolved(mixture__ratio={"en1": count, "en2": 1})


def test_a_whole_number_written_with_a_point_is_that_number():
    whole = resolved(mixture__ratio={"en1": 3.0, "en2": 1})
    assert whole == resolved() and config_lib.build_run_identity(
        whole
    ) == config_lib.build_run_identity(resolved())
    assert config_lib.reduce_ratio(whole.mixture.ratio) == {"en1": 3, "en2": 1}


def test_every_language_has_a_ratio_and_every_ratio_a_language():
    with pytest.raises(ValueError, match=r"ratio\.fr is the ratio of a language that is not decl"):
        resolved(mixture__ratio={"en1": 1, "en2": 1, "fr": 1})
    with pytest.raises(ValueError, match=r"mixture\.ratio says nothing of the language en2.*Set"):
        resolved(mixture__ratio={"en1": 1})
    with pytest.raises(ValueError, match=r"config\.mixture\.ratio is zero for every language"):
        resolved(mixture__ratio={"en1": 0, "en2": 0})
    assert dict(resolved(mixture__ratio={"en1": 0, "en2": 1}).mixture.ratio)["en1"] == 0


@pytest.mark.parametrize(
    "firsts, wrong", [((5,), 0), ((0, 5, 5), 2), ((0, 9, 5), 2), ((0, -3), 1), ((0, 0), 1)]
)
def test_stages_begin_at_step_zero_and_one_after_the_other(firsts, wrong):
    with pytest.raises(ValueError, match=rf"config\.mixture\.stages\[{wrong}\] begins at step"):
        resolved(mixture__stages=stages(*firsts))


def test_a_stage_is_a_step_and_a_ratio_of_all_languages():
    with pytest.raises(ValueError, match=r"config\.mixture\.stages\[0\]=5 must be a tuple"):
        resolved(mixture__stages=[5])
    with pytest.raises(ValueError, match=r"config\.mixture\.stages\[0\]=.* must have 2 parts"):
        resolved(mixture__stages=[[0]])
    for first in ("5", None, True, (5,)):
        with pytest.raises(ValueError, match=r"config\.mixture\.stages\[0\]\[0\]=.* must be a num"):
            resolved(mixture__stages=stages(first))
    with pytest.raises(
        ValueError, match=r"config\.mixture\.stages\[0\]\.fr is the ratio of a lang"
    ):
        resolved(mixture__stages=stages(0, fr=1))
    with pytest.raises(ValueError, match=r"config\.mixture\.stages\[0\] says nothing of .*en2"):
        resolved(mixture__stages=[[0, {"en1": 1}]])
    with pytest.raises(ValueError, match=r"config\.mixture\.stages\[0\] is zero for every"):
        resolved(mixture__stages=stages(0, en1=0, en2=0))


def test_a_stage_after_the_end_of_the_run_is_refused():
    with pytest.raises(ValueError, match=r"last stage at step 20, .*config\.steps=20"):
        resolved(mixture__stages=stages(0, 20), steps=20)
    assert len(resolved(mixture__stages=stages(0, 19), steps=20).mixture.stages) == 2


@pytest.mark.parametrize(
    "firsts, wrong",
    [((0.5,), 0), ((0, 0.5, 0.5), 2), ((0, 0.7, 0.5), 2), ((0, -0.1), 1), ((0, float("nan")), 1)],
)
def test_stages_by_fraction_begin_at_zero_and_one_after_the_other(firsts, wrong):
    with pytest.raises(ValueError, match=rf"config\.mixture\.stages\[{wrong}\] begins at step"):
        resolved(mixture__stages=stages(*firsts))


@pytest.mark.parametrize("first", [1.0, 500.0, float("inf")])
def test_a_fraction_of_all_steps_or_more_is_refused(first):
    message = (
        rf"config\.mixture\.stages\[1\] begins at {first} of all steps. Write a fraction below"
    )
    with pytest.raises(ValueError, match=message):
        resolved(mixture__stages=stages(0, first))


def test_steps_and_fractions_do_not_mix():
    for firsts in ((0, 5, 0.5), (0, 0.1, 700), (0.0, 0.1, 700)):
        with pytest.raises(ValueError, match=r"config\.mixture\.stages mixes steps with fractions"):
            resolved(mixture__stages=stages(*firsts))
    for firsts in ((0, 0.1, 0.2), (0.0, 0.1), (0, 5, 700), (0.0, 5)):
        assert len(resolved(mixture__stages=stages(*firsts)).mixture.stages) == len(firsts)


def test_stages_that_fall_on_one_step_are_refused():
    for firsts in ((0, 0.001), (0, 0.5, 0.501)):
        with pytest.raises(
            ValueError, match=r"two stages that begin at the same one of .*steps=20"
        ):
            resolved(mixture__stages=stages(*firsts), steps=20)


def test_a_fraction_is_rounded_down_to_a_step_and_is_what_it_looks_like():
    def first_of(fraction, steps):
        config = resolved(mixture__stages=stages(0, fraction), steps=steps)
        return config_lib.list_stages(config)[1][0]

    for tenths in range(1, 10):
        for steps in (10, 1000, 18265, 18270):
            assert first_of(tenths / 10, steps) == tenths * steps // 10
    assert first_of(0.5, 18265) == 9132 and first_of(0.999, 1000) == 999
    assert first_of(0.12345, 100_000) == 12345
    for parts in range(2, 30):
        for steps in (parts, 30 * parts, 30 * parts + 1):
            schedule = stages(*(part / parts for part in range(parts)))
            found = config_lib.list_stages(resolved(mixture__stages=schedule, steps=steps))
            assert [first for first, _ in found] == [part * steps // parts for part in range(parts)]


@pytest.mark.parametrize(
    "text, lengths, total",
    [
        ("0.1_0.9", (9132, 9133), 0.5),
        ("0.0_1.0", (9132, 9133), 0.5),
        ("0.1_0.9_0.5_0.5", (4566, 4566, 4566, 4567), 0.5),
        ("0.05_0.65_0.65_0.65", (4566, 4566, 4566, 4567), 0.5),
        ("0.25", (18265,), 0.25),
    ],
)
def test_equal_stages_are_those_of_the_reference(text, lengths, total):
    schedule = config_lib.equal_stages(text, "en1", "en2")
    config = resolved(mixture__stages=schedule, steps=18265)
    found = config_lib.list_stages(config)
    ends = [first for first, _ in found[1:]] + [18265]
    assert tuple(e - first for e, (first, _) in zip(ends, found, strict=True)) == lengths
    shares = [fractions.Fraction(part) for part in text.split("_")]
    for share, (_, ratio) in zip(shares, found, strict=True):
        assert fractions.Fraction(ratio["en2"], sum(ratio.values())) == share
    totals = config_lib.compute_sequence_totals(config)
    assert sum(totals.values()) == 18265 * config.batch_size
    share = float(totals["en2"] / sum(totals.values()))
    # The last stage takes the remainder, as in the reference.
    assert abs(share - total) < 3e-5


@pytest.mark.parametrize("text", ["0_0.5_1", "0.2_0.5_0.5_0.5_0.5_0.8", "1_0.5_0", "0_1_0_1_0_1"])
@pytest.mark.parametrize("steps", [1500, 2100, 18264])
def test_stages_that_are_balanced_are_not_refused_for_their_rounding(text, steps):
    changes = {
        "mixture__stages": config_lib.equal_stages(text, "en1", "en2"),
        "mixture__same_total_as": stages(0),
    }
    config = resolved(**changes, steps=steps)
    [firsts, _] = zip(*config_lib.list_stages(config), strict=True)
    assert firsts == tuple(range(0, steps, steps // len(firsts)))
    assert config_lib.compute_sequence_totals(config)["en1"] == steps * config.batch_size / 2


def test_a_total_is_that_of_all_stages_together():
    schedule = [[0, {"en1": 3, "en2": 1}], [40, {"en1": 0, "en2": 1}], [60, {"en1": 1, "en2": 2}]]
    config = resolved(mixture__stages=schedule, steps=100, batch_size=8)
    assert config_lib.compute_sequence_totals(config) == {
        "en1": 8 * (40 * fractions.Fraction(3, 4) + 40 * fractions.Fraction(1, 3)),
        "en2": 8 * (10 + 20 + 40 * fractions.Fraction(2, 3)),
    }
    assert config_lib.compute_sequence_totals(resolved(steps=100, batch_size=8)) == {
        "en1": 600,
        "en2": 200,
    }


def test_a_run_that_asks_for_another_one_s_total_is_refused_where_it_has_not():
    schedule = [[0, {"en1": 9, "en2": 1}], [0.5, {"en1": 1, "en2": 9}]]
    changes = {"mixture__stages": schedule, "steps": 1000, "batch_size": 32}
    resolved(**changes, mixture__same_total_as=stages(0))
    resolved(**changes, mixture__same_total_as=stages(0, 0.3, 0.7))
    resolved(
        **changes, mixture__same_total_as=[schedule[1], [500, schedule[0][1]]][:2] and schedule
    )
    with pytest.raises(
        ValueError, match=r"same_total_as gives en1 24,000 sequences .* gives it 16,0"
    ):
        resolved(**changes, mixture__same_total_as=stages(0, en1=3))
    # Of the ratio, where there are no stages.
    resolved(mixture__ratio={"en1": 2, "en2": 2}, mixture__same_total_as=schedule, steps=1000)
    with pytest.raises(ValueError, match=r"gives en1 16,000 sequences .* gives it 24,000. Change"):
        resolved(mixture__same_total_as=schedule, steps=1000)
    # Less than a step apart is as near as a schedule can be; a step is not.
    near = [[0, {"en1": 9, "en2": 1}], [501, {"en1": 1, "en2": 9}]]
    resolved(**{**changes, "mixture__stages": near}, mixture__same_total_as=stages(0))
    far = [[0, {"en1": 1, "en2": 0}], [501, {"en1": 0, "en2": 1}]]
    with pytest.raises(ValueError, match=r"same_total_as gives en1 16,000 .* gives it 16,032"):
        resolved(**{**changes, "mixture__stages": far}, mixture__same_total_as=stages(0))


def test_a_schedule_to_compare_with_is_checked_like_the_stages():
    with pytest.raises(ValueError, match=r"config\.mixture\.same_total_as\[1\] begins at step 0"):
        resolved(mixture__same_total_as=stages(0, 0))
    with pytest.raises(
        ValueError, match=r"config\.mixture\.same_total_as\[0\]\.fr is the ratio of"
    ):
        resolved(mixture__same_total_as=stages(0, fr=1))
    with pytest.raises(
        ValueError, match=r"config\.mixture\.same_total_as\[0\]\.en1=0\.5 must be a w"
    ):
        resolved(mixture__same_total_as=stages(0, en1=0.5))
    with pytest.raises(ValueError, match=r"same_total_as begins its last stage at step 20, .*=20"):
        resolved(mixture__same_total_as=stages(0, 20), steps=20)


def test_with_a_temperature_the_ratio_may_be_anything_or_nothing():
    for ratio in ({}, {"en1": 3, "en2": 1}, {"en1": 0, "en2": 0}):
        assert resolved(mixture__temperature=2.0, mixture__ratio=ratio).mixture.temperature == 2


def test_stages_can_be_set_in_a_config_file():
    config = two_clones()
    config.mixture.stages = ((0, {"en1": 1, "en2": 0}), (500, {"en1": 1, "en2": 3}))
    [(_, first), (step, second)] = config_lib.resolve_config(config).mixture.stages
    assert (dict(first), step, dict(second)) == ({"en1": 1, "en2": 0}, 500, {"en1": 1, "en2": 3})


# Stages by rule


@pytest.mark.parametrize("rule", ["linear", "cosine"])
@pytest.mark.parametrize("count", [2, 7, 16, 20, 100])
@pytest.mark.parametrize("steps", [1000, 1009])
def test_a_change_by_rule_has_the_total_of_a_balanced_run(rule, count, steps):
    schedule = config_lib.changing_stages(rule, "0.1_0.9", "en1", "en2", count=count)
    config = resolved(
        steps=steps,
        mixture__stages=schedule,
        mixture__same_total_as=((0, {"en1": 1, "en2": 1}),),
    )
    assert len(config_lib.list_stages(config)) == count
    assert all(sum(ratio.values()) == 100 for _, ratio in schedule)
    shares = [ratio["en2"] for _, ratio in schedule]
    assert shares == sorted(shares)
    # What the rule has at the middle of each stage, of all in percent.
    for i, share in enumerate(shares):
        u = (i + 0.5) / count
        if rule == "cosine":
            u = math.sin(math.pi * u / 2) ** 2
        assert abs(share - (10 + 80 * u)) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("rule", "text"), [("square", "0.1_0.9"), ("linear", "0.1"), ("cosine", "0.1_0.5_0.9")]
)
def test_a_rule_that_is_none_or_without_two_shares_is_refused(rule, text):
    with pytest.raises(ValueError, match="rule=square is not one of|Write two shares"):
        config_lib.changing_stages(rule, text, "en1", "en2")
