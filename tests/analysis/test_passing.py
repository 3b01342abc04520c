"""When runs pass a bar: made curves whose crossings are known."""

import csv
import math
import re

import made_studies
import numpy as np
import pytest

from imbalance_jax.analysis import claims, effects, passing, study_table
from imbalance_jax.analysis.learning_curves import LearningCurve
from imbalance_jax.analysis.passing import Passing
from imbalance_jax.report.study import claims as claims_section

NAN = math.nan
STEPS = (100, 200, 300, 400)


def loss_curve(*values, steps=STEPS):
    return LearningCurve("loss", steps, values, [NAN] * len(values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((6.0, 5.0, 3.0, 2.0), Passing(250, True, 400, 100)),
        ((6.0, 5.0, 4.0, 2.0), Passing(300, True, 400, 100)),  # at the bar
        ((6.0, 3.0, 5.0, 2.0), Passing(100 + 100 * 2 / 3, True, 400, 100)),  # the first time
        ((6.0, NAN, 3.0, 2.0), Passing(100 + 200 * 2 / 3, True, 400, 200)),
        ((6.0, 5.5, 5.0, 4.5), Passing(400, False, 400)),
        ((3.0, 5.0, 5.0, 5.0), Passing(100, True, 400, 100)),  # begins past it
    ],
)
def test_a_loss_passes_where_the_line_between_two_measurements_meets_the_bar(values, expected):
    assert passing.find_passing(loss_curve(*values), 4.0) == expected


def test_an_alignment_passes_where_its_excess_over_shuffled_pairs_rises_to_the_bar():
    curve = LearningCurve("alignment", STEPS, (0.5, 0.6, 0.9, 0.9), (0.5, 0.5, 0.5, 0.5))
    assert passing.find_passing(curve, 0.25) == Passing(pytest.approx(250), True, 400, 100)
    assert passing.find_passing(curve, 0.45) == Passing(400, False, 400)
    # Earlier runs may have no baseline; the measure of claims takes it for 0 as well.
    bare = LearningCurve("alignment", STEPS, (0.0, 0.1, 0.3, 0.3), [NAN] * 4)
    assert passing.find_passing(bare, 0.2).step == pytest.approx(250)


def test_a_curve_without_a_value_is_refused():
    with pytest.raises(ValueError, match="without a finite value"):
        passing.find_passing(loss_curve(NAN, math.inf, NAN, NAN), 4.0)


def test_a_run_that_passes_after_the_last_step_that_counts_has_not_passed():
    late = Passing(390.0, True, 400, 100)
    assert passing.restrict_passing(late, 390) is late
    assert passing.restrict_passing(late, 300) == Passing(300, False, 300)


def compute_median_by_hand(passings):
    """Kaplan and Meier's product, from scratch."""
    left = 1.0
    for step in sorted({each.step for each in passings if each.passed}):
        at_risk = sum(each.step >= step for each in passings)
        events = sum(each.passed and each.step == step for each in passings)
        left *= 1 - events / at_risk
        if left <= 0.5 + 1e-9:
            return step
    return NAN


@pytest.mark.parametrize("seed", range(20))
def test_medians_are_those_of_kaplan_and_meier(seed):
    rng = np.random.default_rng(seed)
    passings = [
        Passing(float(rng.integers(1, 12)), bool(rng.random() < 0.6), 12)
        for _ in range(rng.integers(1, 9))
    ]
    count = passing.count_passed(passings)
    expected = compute_median_by_hand(passings)
    assert count.median == expected or (math.isnan(count.median) and math.isnan(expected))
    # Wilson 1927, in closed form.
    n, k, z = count.runs, count.passed, 1.959963984540054
    middle = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    assert count.interval == pytest.approx((middle - half, middle + half))


def test_no_runs_pass_nothing():
    count = passing.count_passed([])
    assert (count.passed, count.runs) == (0, 0) and math.isnan(count.median)


def test_a_difference_is_that_of_restricted_means_with_the_error_of_reading():
    first = {0: Passing(250.0, True, 1000, 100), 1: Passing(310.0, True, 1000, 100)}
    first[2] = Passing(1000.0, False, 1000)
    second = {0: Passing(800.0, True, 1000, 200), 1: Passing(1000.0, False, 1000)}
    second |= {2: Passing(1000.0, False, 1000), 3: Passing(1.0, True, 1000, 100)}
    found = passing.estimate_passing_difference(first, second)
    pairs = np.array([250 - 800, 310 - 1000, 1000 - 1000])
    assert found.value == pytest.approx(np.minimum(pairs, 1000).mean())
    reading = (100**2 + 100**2 + 200**2) / 12 / 3**2  # seed 3 is compared with nothing
    assert found.se == pytest.approx(math.sqrt(pairs.var(ddof=1) / 3 + reading))
    assert (found.df, found.n) == (2, 3)


def test_an_interval_is_wide_where_all_runs_are_equal_or_censored():
    first = {seed: Passing(250.0, True, 1000, 100) for seed in range(4)}
    second = {seed: Passing(1000.0, False, 1000) for seed in range(4)}
    found = passing.estimate_passing_difference(first, second)
    assert found.value == -750 and found.se == pytest.approx(100 / math.sqrt(12 * 4))
    low, high = found.interval()
    assert low < -750 < high
    alone = passing.estimate_passing_difference({0: first[0]}, {0: second[0]})
    assert alone.value == -750 and math.isnan(alone.se)


def test_runs_of_other_seeds_are_compared_as_two_samples():
    first = {seed: Passing(step, True, 1000, 50) for seed, step in enumerate((210.0, 250.0, 260.0))}
    second = {9: Passing(700.0, True, 1000, 50), 8: Passing(1000.0, False, 1000)}
    found = passing.estimate_passing_difference(first, second)
    a, b = np.array([210, 250, 260]), np.array([700, 1000])
    assert found.value == a.mean() - b.mean()
    reading = 3 * 50**2 / 12 / 3**2 + 50**2 / 12 / 2**2
    assert found.se == pytest.approx(math.sqrt(a.var(ddof=1) / 3 + b.var(ddof=1) / 2 + reading))


def test_where_no_run_passes_there_is_no_difference():
    side = {seed: Passing(1000.0, False, 1000) for seed in range(4)}
    found = passing.estimate_passing_difference(side, side)
    assert math.isnan(found.value) and found.n == 4


def test_the_largest_difference_is_that_against_a_side_that_never_passes():
    first = {seed: Passing(step, True, 1500, 50) for seed, step in enumerate((900.0, 700.0, 100.0))}
    second = {0: Passing(1000.0, False, 1000), 1: Passing(990.0, True, 1500, 50)}
    # Seed 2 is compared with nothing.
    assert passing.compute_largest_difference(first, second, 1000) == 200
    assert passing.compute_largest_difference(second, first, 1000) == 200
    never = {seed: Passing(1000.0, False, 1000) for seed in range(2)}
    assert passing.compute_largest_difference(second, never, 1000) == 5
    assert abs(passing.estimate_passing_difference(second, never).value) == 5


# In studies.

SOONER = {
    "measure": "steps_to",
    "cell": "r90_10",
    "language": "en2",
    "against": "r50_50",
    "smallest": 50.0,
    "bar": 4.0,
}
MEETING = SOONER | {"language": "en1-en2", "bar": 0.2, "direction": "higher"}
ABSENT = SOONER | {"bar": 1.0}
OTHER_CELL = SOONER | {"against": "matched_en1_10", "against_language": "en1"}


def fall(step, count):
    """Returns losses of 6 and 2, every 100 steps, that meet 4 at a step."""
    return [float(np.interp(100 * (n + 1), [step - 50, step + 50], [6, 2])) for n in range(count)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    names = {"sooner": SOONER, "meeting": MEETING, "never": ABSENT, "other_cell": OTHER_CELL}
    config = made_studies.small_grid(fractions=(0.1,), **names)
    directory = made_studies.make(tmp_path_factory.mktemp("passing") / "study", config)
    for seed in range(3):
        fast, slow = fall(250 + 10 * seed, 10), fall(650 + 30 * seed, 10)
        up = [0.0] * 4 + [0.4] * 6
        made_studies.log_curves(
            directory, f"r90_10_s{seed}", {"en1": fast, "en2": fast, "en1-en2": up[seed:]}
        )
        made_studies.log_curves(
            directory, f"r50_50_s{seed}", {"en1": slow, "en2": slow, "en1-en2": [0.4] * 10}
        )
        late = [6.0] * 7 if seed else fall(650, 7)
        made_studies.log_curves(directory, f"matched_en1_10_s{seed}", {"en1": late})
    return directory


def judge(directory):
    table = study_table.read_study_table(directory)
    measured = effects.measure_effects(table, resamples=10)
    return table, {each.name: each for each in claims.judge_claims(table, measured)}


def test_a_cell_that_falls_sooner_supports_its_claim(study):
    result = judge(study)[1]["sooner"]
    assert result.word == "supported" and result.estimate.n == 3
    # Lines through points 100 steps apart cross where the made ones do.
    assert result.estimate.value == pytest.approx(260 - 680, abs=25)
    (note,) = result.notes
    assert note.startswith("By step 1,000, 3 of 3 runs of r90_10 en2 (median by Kaplan and Meier: ")
    assert "and 3 of 3 runs of r50_50 en2" in note and "larger than 1,000" in note


def test_cells_of_different_length_are_restricted_at_the_shorter_one(study):
    result = judge(study)[1]["other_cell"]
    own = [passing.find_passing(loss_curve(*fall(250 + 10 * s, 10), steps=range(100, 1001, 100)), 4)
           for s in range(3)]  # fmt: skip
    late = passing.find_passing(loss_curve(*fall(650, 7), steps=range(100, 701, 100)), 4)
    differences = np.array([each.step for each in own]) - [late.step, 700, 700]
    assert result.estimate.value == pytest.approx(differences.mean())
    assert result.estimate.se == pytest.approx(
        math.sqrt(differences.var(ddof=1) / 3 + 4 * 100**2 / 12 / 9)
    )
    assert result.word == "supported"
    assert result.against == "en1 of cell matched_en1_10"
    assert (
        "1 of 3 runs of matched_en1_10 en1 (median by Kaplan and Meier: not reached)"
        in (result.notes[0])
    )


def test_a_pair_meets_when_its_excess_passes_the_bar(study):
    table, results = judge(study)
    # Zeros to step 400 - 100 x seed, then 0.4: half way. The others begin past the bar.
    expected = np.mean([450, 350, 250]) - 100
    assert results["meeting"].estimate.value == pytest.approx(expected)
    assert table.curves["r90_10_s0", "en1-en2"].heights == pytest.approx([0.0] * 4 + [0.4] * 6)
    assert table.curves["r90_10_s0", "en1-en2"].baselines[0] == pytest.approx(0.15)


def test_the_last_excess_is_the_one_that_alignment_is_judged_by(study):
    table = study_table.read_study_table(study)
    measured = effects.measure_effects(table, resamples=10)
    for cell in ("r90_10", "placebo90_10"):
        aligned = measured.alignment(cell, "en1-en2", "hidden")
        for seed, excess in aligned.excess_by_seed.items():
            curve = table.curves[f"{cell}_s{seed}", "en1-en2"]
            assert curve.heights[-1] == pytest.approx(excess)
            assert curve.values[-1] == pytest.approx(aligned.values[seed])


def test_where_no_run_passes_nothing_is_decided_and_the_reason_is_given(study):
    result = judge(study)[1]["never"]
    assert math.isnan(result.estimate.value) and result.word == "undecided"
    assert result.notes == ("No run of either cell passed the bar by step 1,000.",)


def test_runs_that_hardly_pass_do_not_show_that_there_is_no_difference(tmp_path):
    config = made_studies.small_grid(
        fractions=(), sooner=SOONER | {"smallest": 300.0}, wide=SOONER | {"smallest": 1.0}
    )
    directory = made_studies.make(tmp_path / "study", config)
    for seed in range(3):  # one run of six passes, 10 steps before the end
        late = fall(990 if seed == 0 else 5000, 10)
        made_studies.log_curves(directory, f"r90_10_s{seed}", {"en2": late})
        made_studies.log_curves(directory, f"r50_50_s{seed}", {"en2": [6.0] * 10})
    results = judge(directory)[1]
    passed = passing.find_passing(loss_curve(*fall(990, 10), steps=range(100, 1001, 100)), 4.0)
    mean = (passed.step - 1000) / 3
    assert passed.passed and -50 < mean < 0
    # By the scatter of the runs alone it would be absent: well within 300 steps of 0.
    assert results["sooner"].word == "undecided"
    assert results["sooner"].estimate.value == pytest.approx(mean)
    assert results["sooner"].notes[0].startswith("By step 1,000, 1 of 3 runs of r90_10 en2")
    assert f"would be {-mean:.3g}: too few to decide anything on 300" in results["sooner"].notes[1]
    assert len(results["wide"].notes) == 1 and not math.isnan(results["wide"].estimate.se)
    told = claims_section.describe_claim(results["sooner"])["effect"]
    assert told[2] == " steps (3 seeds: no interval)."


def test_a_claim_of_steps_is_told_in_steps(study):
    told = {n: claims_section.describe_claim(r) for n, r in judge(study)[1].items()}
    before, number, after = told["sooner"]["effect"]
    assert (before, number[0]) == ("", "−") and re.match(r" steps, interval −\d+ to −\d+ ", after)
    assert "the estimate is 50 steps or more" in after
    assert (
        "the first step at which the held-out loss is 4 nats or less, of en2 in cell r90_10"
        in (told["sooner"]["notes"][0])
    )
    assert (
        "hidden states above shuffled pairs is 0.2 or more, of en1-en2"
        in (told["meeting"]["notes"][0])
    )
    assert told["never"]["effect"][0] == "No effect can be stated."


def test_runs_that_measured_nothing_are_named(tmp_path):
    directory = made_studies.make(
        tmp_path / "study", made_studies.small_grid(seeds=2, fractions=(), sooner=SOONER)
    )
    result = judge(directory)[1]["sooner"]
    assert math.isnan(result.estimate.value)
    assert result.notes == (
        "No held-out loss was measured in training of r90_10_s0, r90_10_s1, r50_50_s0, r50_50_s1.",
    )


def test_every_measured_step_is_a_row_of_a_table(study):
    table = study_table.read_study_table(study)
    study_table.write_study_table(table, study)
    rows = list(csv.DictReader((study.path / "curves.csv").open()))
    assert (study.path / "curves.parquet").exists()
    assert list(rows[0]) == (
        ["run", "cell", "kind", "seed", "of", "measure", "step", "value", "baseline"]
    )
    wanted = [row for row in rows if (row["run"], row["of"]) == ("r90_10_s1", "en2")]
    assert [int(row["step"]) for row in wanted] == list(range(100, 1001, 100))
    assert [float(row["value"]) for row in wanted] == fall(260, 10)
    assert {row["measure"] for row in rows if row["of"] == "en1-en2"} == {"alignment"}
