"""What is concluded from studies whose law and effects are known."""

import json
import math
import re
import shutil

import made_studies
import pytest
from made_studies import CLAIMS, GAIN, lower

from imbalance_jax.analysis import baselines, claims, effects, study_table, validity
from imbalance_jax.report.study import worths
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory


def measured(directory, resamples=20):
    table = study_table.read_study_table(directory)
    found = effects.measure_effects(table, resamples=resamples)
    return table, found, {result.name: result for result in claims.judge_claims(table, found)}


@pytest.fixture(scope="module")
def gaining(tmp_path_factory):
    config = made_studies.small_grid(**CLAIMS)
    path = tmp_path_factory.mktemp("gaining") / "study"
    return measured(made_studies.make(path, config, rare_gain=GAIN), resamples=100)


@pytest.fixture(scope="module")
def gainless(tmp_path_factory):
    config = made_studies.small_grid(**CLAIMS)
    path = tmp_path_factory.mktemp("gainless") / "study"
    return measured(made_studies.make(path, config, rare_gain=0.0, noise=0.003), resamples=100)


@pytest.mark.parametrize("kind", ["monolingual", "matched"])
def test_a_known_gain_is_returned_within_its_interval(gaining, kind):
    _, found, _ = gaining
    rare = found.condition("r90_10", "en2")
    worth = rare.worths[kind, "loss"]
    assert worth.teff[0] < 1 + 9 * GAIN < worth.teff[1]
    assert worth.exchange[0] < GAIN < worth.exchange[1]
    assert worth.efficiency.teff == pytest.approx(1 + 9 * GAIN, rel=0.05)
    low, high = worth.log_teff.exp_interval()
    assert low < worth.efficiency.teff < high
    assert not worth.efficiency.extrapolated and worth.law_error < 0.05


def test_intervals_of_perplexity_hold_the_mean_and_pool_the_scatter(gaining):
    _, found, _ = gaining
    rare = found.condition("r90_10", "en2")
    losses = rare.by_seed("loss").values()
    assert rare.log_ppl.value == pytest.approx(sum(losses) / 3)
    low, high = rare.log_ppl.interval()
    assert low < rare.log_ppl.value < high
    # en2 is in r50_50, r90_10 and the placebo, with three seeds each.
    assert rare.log_ppl.df == 6


def test_a_gain_supports_its_claims(gaining):
    _, _, results = gaining
    for name in ("gains", "gains_matched", "gains_more", "beats_matched", "beats_placebo"):
        assert results[name].word == "supported", name
    assert math.exp(results["gains"].estimate.value) == pytest.approx(1.9, rel=0.05)


def test_what_makes_a_text_hard_for_all_runs_leaves_their_difference_alone(gaining):
    _, _, results = gaining
    (note,) = results["beats_placebo"].notes
    low, high = re.findall(r"[−+][\d.]+", note)
    assert low == high == f"{results['beats_placebo'].estimate.value:+.3f}".replace("-", "−")
    assert "20 groups of documents" in note


def test_without_a_gain_no_claim_of_one_is_supported(gainless):
    _, _, results = gainless
    for name in ("gains", "gains_matched", "gains_more", "beats_matched", "beats_placebo"):
        assert results[name].word in ("absent", "undecided"), name
    assert "absent" in {results[name].word for name in ("gains", "gains_matched", "gains_more")}


def test_the_same_is_claimed_and_shown_or_contradicted(gaining):
    _, _, results = gaining
    assert results["clones_are_equal"].word == "supported"
    assert results["parts_are_equal"].word == "contradicted"


def test_p_values_are_adjusted_over_all_claims(gaining):
    _, _, results = gaining
    alone = results["aligns"].estimate.p_value()
    assert results["aligns"].verdict.p > alone
    # The clearest claim is tested first, at the strictest level, and its interval says so.
    level = min(result.verdict.level for result in results.values())
    assert level == pytest.approx(0.05 / len(CLAIMS))


def test_no_verdict_differs_from_the_interval_and_the_p_beside_it(gaining, gainless):
    for results in (gaining[2], gainless[2]):
        for result in results.values():
            low, high = result.verdict.shown_interval
            smallest = result.claim.smallest
            within = -smallest < low and high < smallest
            assert within == result.verdict.equivalent, result.name
            assert result.verdict.equivalent == (
                result.word == ("supported" if result.claim.direction == "same" else "absent")
            )
            if not within:
                assert (low > 0 or high < 0) == (result.verdict.p < 0.05), result.name
            if result.word == "undecided":
                assert low <= 0 <= high or abs(result.estimate.value) < smallest, result.name


def test_a_placebo_with_the_same_ratio_is_found(gaining, gainless):
    for (_, found, _), gain in ((gaining, GAIN), (gainless, 0.0)):
        rare = found.condition("r90_10", "en2")
        expected = made_studies.law(0.1 + 0.9 * gain, 1) - made_studies.law(0.1, 1)
        assert rare.placebo == "placebo90_10"
        assert rare.beyond_placebo.value == pytest.approx(expected, abs=0.02)
        assert found.condition("r50_50", "en2").placebo == ""


def test_a_shuffled_partner_is_held_against_no_law(gaining):
    _, found, _ = gaining
    assert not found.condition("placebo90_10", "en1").worths
    assert found.condition("placebo90_10", "en2").worths


def test_the_whole_monolingual_run_is_a_matched_baseline_too(gaining):
    table, found, _ = gaining
    group = baselines.BaselineGroup("en", "2x16", "matched", 1000)
    runs = baselines.list_baseline_runs(table, group)
    assert "mono_en1_100_s0" in runs and "mono_en1_90_s0" not in runs
    assert len(found.laws[group, "loss"].tokens) == 5
    # Of another length nothing is matched.
    assert not baselines.list_baseline_runs(
        table, baselines.BaselineGroup("en", "2x16", "matched", 2000)
    )


def test_own_loss_is_held_against_the_plain_law(gaining):
    _, found, _ = gaining
    worths = found.condition("r90_10", "en2").worths
    whole, own = worths["matched", "loss"], worths["matched", "loss_own"]
    # The made mixtures spend 0.01 nats on telling the language, and their baselines none.
    assert own.efficiency.loss == pytest.approx(whole.efficiency.loss - 0.01)
    assert own.law is whole.law and own.efficiency.teff > whole.efficiency.teff
    assert ("matched", "language_nats") not in worths


def test_alignment_is_what_rises_above_shuffled_pairs(gaining):
    _, found, results = gaining
    hidden = found.alignment("r90_10", "en1-en2", "hidden")
    assert hidden.excess.value == pytest.approx(0.05, abs=0.02)
    assert hidden.placebo == "placebo90_10" and hidden.beyond_placebo.n == 3
    assert found.alignment("r90_10", "en1-en2", "gradient").excess.value == pytest.approx(
        0.2, abs=0.02
    )
    assert results["is_aligned"].word == "supported"
    assert results["aligns"].word == "absent"


def test_a_matched_baseline_is_the_nearest_or_else_its_law(gaining, tmp_path):
    _, _, results = gaining
    assert "matched_en1_10, which has as many tokens" in results["beats_matched"].against
    config = made_studies.small_grid(fractions=(0.05, 0.5, 1), beats=CLAIMS["beats_matched"])
    directory = made_studies.make(tmp_path / "study", config, rare_gain=GAIN)
    result = measured(directory)[2]["beats"]
    assert "the law of the matched baselines" in result.against
    assert result.estimate.value == pytest.approx(-0.53, abs=0.1)


def test_claims_whose_runs_are_not_done_are_not_measured(tmp_path):
    few = ("gains", "beats_placebo", "clones_are_equal")
    config = made_studies.small_grid(**{name: CLAIMS[name] for name in few})
    directory = made_studies.make(tmp_path / "study", config, rare_gain=GAIN)
    shutil.rmtree(directory.run("placebo90_10_s2").path)
    shutil.rmtree(directory.run("mono_en1_25_s0").path)
    _, _, results = measured(directory)
    assert results["beats_placebo"].word == claims.NOT_MEASURED
    assert results["beats_placebo"].missing == ["placebo90_10_s2"]
    assert results["beats_placebo"].estimate.value < -0.4  # so far
    assert math.isnan(results["beats_placebo"].verdict.p)
    assert results["gains"].missing == ["mono_en1_25_s0"]
    assert results["clones_are_equal"].word == "supported"


@pytest.mark.parametrize("way", ["failed", "done with NaN", "done with null"])
def test_a_failed_run_is_left_out_and_named(tmp_path, way):
    config = made_studies.small_grid(beats_placebo=CLAIMS["beats_placebo"])
    directory = made_studies.make(tmp_path / "study", config, rare_gain=GAIN)
    run = directory.run("placebo90_10_s2")
    if way == "failed":
        (run.path / "DONE").unlink()
        run.fail(100, FloatingPointError("the loss is not finite"))
    else:  # earlier versions took a run for done whose last update had diverged
        results = run.read_json("evaluation.json")
        spoilt = math.nan if way == "done with NaN" else None
        results["languages"]["en2"].update(loss=spoilt, ppl=spoilt, loss_own=spoilt)
        (run.path / "evaluation.json").write_text(json.dumps(results))
    table, found, results = measured(directory)
    assert "the loss" in (error := table.runs["placebo90_10_s2"].state.error) or (
        "The test loss of en2 is" in error and "lower config.optimizer.peak_lr" in error
    )
    assert results["beats_placebo"].word == "supported"
    assert results["beats_placebo"].failed == ["placebo90_10_s2"]
    [check] = [c for c in validity.check_validity(table, found) if c.name == "Runs"]
    assert check.state == "look" and "placebo90_10_s2" in check.text


def test_one_seed_decides_nothing(tmp_path):
    config = made_studies.small_grid(seeds=1, **CLAIMS)
    directory = made_studies.make(tmp_path / "study", config, rare_gain=GAIN)
    table, found, results = measured(directory)
    assert {result.word for result in results.values()} == {"undecided"}
    assert math.isnan(found.condition("r90_10", "en2").log_ppl.interval()[0])
    [check] = [c for c in validity.check_validity(table, found) if c.name == "Seeds"]
    assert check.state == "look" and "Every cell has one seed" in check.text


def test_a_loss_below_the_law_has_a_limit_and_is_undecided(tmp_path):
    config = made_studies.small_grid(gains=CLAIMS["gains"])
    directory = made_studies.make(tmp_path / "study", config, noise=0.0005)
    for seed in range(3):
        lower(directory, f"r90_10_s{seed}", "en2", 1.0 + 0.01 * seed)
    _, found, results = measured(directory)
    worth = found.condition("r90_10", "en2").worths["monolingual", "loss"]
    # The longest baseline has ten times the tokens of the rare language.
    assert worth.limit == "above" and worth.bound == pytest.approx(10)
    assert results["gains"].word == "undecided" and "TEff > 10" in results["gains"].notes[0]
    assert any("is below all" in needed.run.reason for needed in found.needed)


def test_missing_baselines_are_named_with_their_cost(tmp_path):
    config = made_studies.small_grid(fractions=())
    directory = made_studies.make(tmp_path / "study", config, rare_gain=GAIN)
    _, found, _ = measured(directory)
    assert not found.laws
    needed = [each for each in found.needed if each.group.kind == "monolingual"]
    assert [each.run.seeds for each in needed] == [3, 3, 3]
    assert needed[0].run.tokens == 32_000 and needed[-1].run.tokens == 288_000
    assert all(each.run.flops > 0 for each in needed)


def test_wide_baselines_give_language_nats_a_law_of_its_own(tmp_path):
    even = made_studies.mixture("50:50")
    study = grid.Grid("With wide baselines.", unit=even)
    study.add("r50_50", even, seeds=range(2))
    study.baselines(even, "en1", fractions=(0.25, 0.5, 1), seeds=range(2), kinds=("wide",))
    directory = made_studies.make(tmp_path / "study", study.to_config())
    for name in directory.study().runs:
        if name.startswith("wide"):
            run = directory.run(name)
            results = run.read_json("evaluation.json")
            nats = 0.002 * 1000 / run.config().steps
            for found in results["languages"].values():
                found.update(language_nats=nats, loss_own=found["loss"] - nats)
            (run.path / "evaluation.json").write_text(json.dumps(results))
    _, found, _ = measured(directory)
    parts = {part for (group, part) in found.laws if group.kind == "wide"}
    assert parts == {"loss", "language_nats", "loss_own"}
    # 0.01 nats of telling, where the baselines reach 0.008 on a quarter of the tokens.
    worth = found.condition("r50_50", "en1").worths["wide", "language_nats"]
    assert worth.efficiency.teff < 0.5 and worth.efficiency.extrapolated


def test_a_learning_rate_at_the_edge_of_its_sweep_is_pointed_out(tmp_path):
    even = made_studies.mixture("50:50")
    study = grid.Grid("With a sweep.", unit=even)
    study.add("r50_50", even, seeds=range(2))
    study.sweep("r50_50", even, factors=(0.5, 2))
    directory = made_studies.make(tmp_path / "study", study.to_config())

    def state():
        checks = validity.check_validity(*measured(directory)[:2])
        return [(c.state, c.text) for c in checks if c.name == "Learning rate of r50_50"]

    for language in ("en1", "en2"):
        lower(directory, "r50_50_lr2_s0", language, 3.9)
        lower(directory, "r50_50_lr0p5_s0", language, 3.9)
    assert state()[0][0] == "good"
    lower(directory, "r50_50_lr2_s0", "en2", 3.0)
    [(edge, text)] = state()
    assert edge == "look" and "en2 is best at 2 times its rate" in text


def test_what_the_text_and_ratio_did_is_checked(tmp_path, gaining):
    table, found, _ = gaining
    states = {check.name: check.state for check in validity.check_validity(table, found)}
    assert states["Ratio, realised"] == "good" and states["Clones equal at 50:50"] == "good"
    assert states["Epochs"] == "good" and states["Law error"] == "good"
    config = made_studies.small_grid(ratios=("50:50",), seeds=2)
    directory = made_studies.make(tmp_path / "study", config)
    run = directory.run("r50_50_s1")
    rows = run.read_csv("mixture.csv")
    for row in rows:
        row["cross_language_repeats"] = 100
        row["realised_tokens"] = 1.02 * float(row["realised_tokens"])
        # Of the text that content=disjoint left to it, not of all that its source has.
        row["pool_windows"], row["pool_epochs"] = 40, 1.87
    run.write_csv("mixture.csv", rows)
    other = directory.run("r50_50_s0")
    whole = [
        row | {"pool_windows": 900, "pool_epochs": 0.5} for row in other.read_csv("mixture.csv")
    ]
    other.write_csv("mixture.csv", whole)
    table, found, _ = measured(directory)
    checks = {check.name: check for check in validity.check_validity(table, found)}
    assert "+2.00 %" in checks["Ratio, realised"].text
    assert checks["Text repeated across languages"].state == "look"
    assert "r50_50_s1" in checks["Text repeated across languages"].text
    assert {row.epochs for row in table.observations if row.run == "r50_50_s1"} == {1.87}
    assert checks["Epochs"].state == "look" and "up to 1.87 times" in checks["Epochs"].text
    L = other.config().model.L
    apart = f"en1 of r50_50_s1 draws from {40 * L:,} tokens of text, en1 of r50_50_s0 from"
    assert checks["Text of each language"].state == "look"
    assert f"{apart} {900 * L:,}." in checks["Text of each language"].text


def test_retrieval_is_claimed_above_chance_and_accuracies_and_bytes_can_be_claimed(tmp_path):
    pair = {"cell": "r90_10", "language": "en1-en2", "direction": "higher"}
    of_text = {"cell": "r90_10", "language": "en2", "against": "placebo90_10", "smallest": 0.001}
    accuracy = {"measure": "accuracy", "cell": "r90_10", "language": "en2", "trained_in": "en1"}
    config = made_studies.small_grid(
        retrieves=pair | {"measure": "retrieval", "smallest": 0.05},
        retrieves_more=pair | {"measure": "retrieval", "against": "r50_50"},
        bytes=of_text | {"measure": "bits_per_byte"},
        top1=of_text | {"measure": "top1", "direction": "same"},
        accuracy=accuracy | {"direction": "higher"},
        missing=accuracy | {"against": "r50_50", "direction": "higher"},
    )
    directory = made_studies.make(tmp_path / "study", config, rare_gain=GAIN)
    for seed in range(3):
        row = {
            "accuracy": 0.7,
            "majority": 0.5,
            "seeds": [0.7 + seed / 100],
            "interval": [0.6, 0.8],
        }
        row |= {"error": 0.01, "groups": 100, "over_seeds": None, "over_examples": [0.6, 0.8]}
        task = {"settings": {"epochs": 1}, "step": 1000, "languages": {"en1": row, "en2": row}}
        directory.run(f"r90_10_s{seed}").write_json(
            "transfer.json", {"intended": {"en1": {"mine": task}}}
        )
    _, _, results = measured(directory)
    assert results["retrieves"].against == "chance"
    assert results["retrieves"].estimate.value == pytest.approx(0.5 - 1 / 32, abs=0.02)
    assert results["retrieves"].word == "supported"
    assert "By chance it is 0.0312 in cell r90_10" in results["retrieves"].notes[0]
    assert results["retrieves_more"].estimate.value == pytest.approx(0, abs=0.02)
    assert results["bytes"].estimate.value == pytest.approx(-0.53 / 3, abs=0.05)
    assert results["top1"].estimate.value == 0 and results["top1"].word == "supported"
    assert results["accuracy"].estimate.value == pytest.approx(0.21)
    assert results["accuracy"].word == "supported"
    assert "always saying the most frequent label has an accuracy of 0.5" in str(
        results["accuracy"].notes
    )
    # A run that has not learnt them is named with the command that does it.
    assert results["missing"].word == claims.NOT_MEASURED
    assert "not learnt in r50_50_s0" in results["missing"].notes[0]
    assert "--train_language=en1" in results["missing"].notes[0]


def test_minimal_pairs_are_claimed_above_chance_and_held_against_the_same_sentences(tmp_path):
    claim = {"measure": "minimal_pairs", "cell": "r90_10", "language": "en2", "smallest": 0.02}
    config = made_studies.small_grid(
        seeds=2,
        fractions=(1,),
        knows=claim | {"direction": "higher"},
        less=claim | {"against": "r50_50"},
        unlike=claim | {"against": "placebo90_10"},
        unknown=claim | {"against": "monolingual"},
    )
    directory = made_studies.make(tmp_path / "study", config)
    for cell, accuracy in {"r90_10": 0.8, "r50_50": 0.9, "placebo90_10": 0.5}.items():
        for seed in range(2):
            run = directory.run(f"{cell}_s{seed}")
            pairs = {"pairs": 100, "accuracy": accuracy + seed / 100, "interval": [0.4, 0.95]}
            pairs["digest"] = "other" if cell == "placebo90_10" else "same"
            evaluation = run.read_json("evaluation.json")
            run.write_json("evaluation.json", evaluation | {"minimal_pairs": {"en2": pairs}})
    table, found, results = measured(directory)
    assert results["knows"].estimate.value == pytest.approx(0.305)
    assert results["knows"].word == "supported" and "chance" in results["knows"].against
    assert results["less"].estimate.value == pytest.approx(-0.1)
    assert results["unlike"].notes == ("The runs’ minimal pairs are not the same sentences.",)
    assert results["unlike"].word == results["unknown"].word == claims.NOT_MEASURED
    rows = {(row.run, row.language): row for row in table.observations}
    assert rows["r90_10_s1", "en2"].minimal_pairs == pytest.approx(0.81)
    assert math.isnan(rows["r90_10_s1", "en1"].minimal_pairs)
    cells = worths.make_cell_table(found)
    column = cells.header.index("minimal pairs")
    shown = {row[0]: str(row[column]) for row in cells.rows}
    assert "80.5 %" in shown["r90_10 en2"] and shown["r90_10 en1"] == "–"


def test_a_claim_of_accuracy_waits_for_a_study_of_which_nothing_is_done(tmp_path):
    claim = {"measure": "accuracy", "cell": "r90_10", "language": "en2", "direction": "higher"}
    study = grid.resolve_study(made_studies.small_grid(seeds=1, fractions=(1,), waits=claim))
    directory = StudyDirectory(tmp_path / "study")
    directory.claim(study)
    _, _, results = measured(directory)
    assert results["waits"].word == claims.NOT_MEASURED
    assert results["waits"].missing == ["r90_10_s0"]


def test_a_measure_that_runs_have_not_is_not_measured_and_their_names_are_said(tmp_path):
    beside = {"cell": "r90_10", "language": "en2", "smallest": 0.001}
    config = made_studies.small_grid(
        bytes=beside | {"measure": "bits_per_byte", "against": "matched"},
        top1=beside | {"measure": "top1", "against": "r50_50"},
    )
    directory = made_studies.make(tmp_path / "study", config)
    run = directory.run("r90_10_s1")
    evaluation = run.read_json("evaluation.json")
    for found in evaluation["languages"].values():
        del found["top1"]
        found["bits_per_byte"] = math.nan
    run.write_json("evaluation.json", evaluation)
    _, _, results = measured(directory)
    for name, field in (("bytes", "bits_per_byte"), ("top1", "top1")):
        assert results[name].word == claims.NOT_MEASURED
        assert results[name].notes == (f"No {field} is known of r90_10_s1.",)


def test_other_test_text_is_drawn_for_the_runs_that_were_compared(tmp_path):
    config = made_studies.small_grid(beats_placebo=CLAIMS["beats_placebo"])
    del config.runs["placebo90_10_s0"]
    directory = made_studies.make(tmp_path / "study", config, rare_gain=GAIN, noise=0.1)
    _, _, results = measured(directory)
    # Of the text alone nothing varies here, so that the two ends are the effect.
    low, high = re.findall(r"[−+][\d.]+", results["beats_placebo"].notes[0])
    assert results["beats_placebo"].estimate.n == 2
    assert low == high == f"{results['beats_placebo'].estimate.value:+.3f}".replace("-", "−")


def test_a_baseline_whose_batch_was_rounded_is_corrected_by_the_law_and_says_so(tmp_path):
    def uneven(ratio):
        config = made_studies.mixture(ratio)
        config.batch_size = 32
        return config

    study = grid.Grid("A tenth of 32.", unit=uneven("50:50"))
    study.add("r90_10", uneven("90:10"), seeds=range(3))
    study.baselines(uneven("50:50"), "en1", fractions=(0.1, 0.25, 0.5, 1), seeds=range(3))
    for name, fields in (("nats", {}), ("bytes", {"measure": "bits_per_byte"})):
        study.claim(name, "", cell="r90_10", language="en2", against="matched", **fields)
    study.claim("top1", "", cell="r90_10", language="en2", against="matched", measure="top1")
    directory = made_studies.make(tmp_path / "study", study.to_config(), noise=0.001)
    table, found, results = measured(directory)
    # 3 of 32 sequences are 9.375 %, and the made loss falls by this much up to 10 %.
    missed = made_studies.law(0.09375, 1) - made_studies.law(0.1, 1)
    assert missed == pytest.approx(0.058, abs=0.001)
    assert results["nats"].estimate.value == pytest.approx(0, abs=0.004)
    assert results["bytes"].estimate.value == pytest.approx(0, abs=0.002)
    assert "matched_en1_10, which has 6.25 % fewer tokens" in results["nats"].against
    assert "is 0.0585 nats lower than at those of matched_en1_10" in results["nats"].notes[0]
    assert results["nats"].verdict.estimate.se >= 0.9 * min(
        missed, found.condition("r90_10", "en2").worths["matched", "loss"].law.choice.error
    )
    assert "no law of this measure" in results["top1"].notes[0]
    [check] = [
        c for c in validity.check_validity(table, found) if c.name == "Tokens of the baselines"
    ]
    assert check.state == "look" and "nats in favour of transfer" in check.text
    assert "matched_en1_10 has 6.25 % fewer tokens than r90_10 en2" in check.text


def test_baselines_with_exactly_the_tokens_of_a_language_are_good(gaining):
    table, found, _ = gaining
    [check] = [
        c for c in validity.check_validity(table, found) if c.name == "Tokens of the baselines"
    ]
    assert check.state == "good"
