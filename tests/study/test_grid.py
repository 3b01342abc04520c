"""A grid: baselines counted once, nothing twice, claims that can be decided."""

import json

import ml_collections
import pytest
from made_studies import mixture, small_grid

from imbalance_jax import config as config_lib
from imbalance_jax.compute import model as model_lib
from imbalance_jax.config import costs
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory


def only(config: ml_collections.ConfigDict, cell: str) -> config_lib.Config:
    study = grid.resolve_study(config)
    return next(spec.config for spec in study.runs.values() if spec.cell == cell)


def test_baselines_are_added_once_however_many_mixtures_share_them():
    study = grid.Grid("Two ratios.", unit=mixture("50:50"))
    for ratio in ("50:50", "90:10"):
        study.baselines(mixture(ratio), "en2", fractions=(0.1, 1), seeds=(0, 1))
    cells = {spec.cell for spec in grid.resolve_study(study.to_config()).runs.values()}
    assert cells == {"mono_en1_10", "mono_en1_100", "matched_en1_10"}


def test_a_short_baseline_has_its_own_schedule_and_a_matched_one_the_mixtures_updates():
    study = small_grid()
    short, matched = only(study, "mono_en1_10"), only(study, "matched_en1_10")
    assert (short.steps, short.batch_size) == (100, 20)
    assert (matched.steps, matched.batch_size) == (1000, 2)
    assert costs.count_training_tokens(short) == costs.count_training_tokens(matched)
    assert short.tags == matched.tags == ("en1",)


@pytest.mark.parametrize("field", ["ratio", "stages"])
def test_a_ratio_that_is_zero_for_every_language_is_refused(field):
    config = mixture("50:50")
    nothing = {"en1": 0, "en2": 0}
    config.mixture[field] = (
        nothing if field == "ratio" else ((0, {"en1": 1, "en2": 1}), (9, nothing))
    )
    study = grid.Grid("Nothing.", unit=mixture("50:50"))
    study.add("nothing", config, seeds=[0])
    with pytest.raises(ValueError, match=rf"Run nothing_s0 .*{field}.* is zero for every language"):
        grid.resolve_study(study.to_config())


def test_a_run_is_the_same_in_any_number_of_micro_batches():
    configs = [mixture("90:10"), mixture("90:10")]
    configs[1].optimizer.accumulate = 4
    whole, parts = (grid.RunSpec(config_lib.resolve_config(config)) for config in configs)
    assert whole.hash == whole.earlier_hash == parts.hash != parts.earlier_hash


def test_a_wide_baseline_has_the_ids_of_the_mixture():
    config = mixture("90:10")
    wide = config_lib.resolve_config(grid.make_baseline(config, "en1", 0.5, "wide"))
    assert costs.compute_vocab_size(wide) == costs.compute_vocab_size(
        config_lib.resolve_config(config)
    )
    assert costs.count_language_tokens(wide)["en2"] == 0


def test_a_baseline_matched_in_epochs_goes_through_its_part_of_the_text_as_often():
    config = mixture("90:10")
    epochs = config_lib.resolve_config(grid.make_baseline(config, "en2", 0.1, "epochs"))
    mixed = config_lib.resolve_config(config)
    text = 1e6
    mine = costs.count_training_tokens(epochs) / (text * epochs.mixture.text_share)
    assert mine == pytest.approx(costs.count_training_tokens(mixed) / text)


def test_runs_that_would_repeat_each_other_are_refused_by_their_names():
    study = grid.Grid("Twice.", unit=mixture("50:50"))
    study.add("a", mixture("50:50"), seeds=(0,))
    study.add("b", mixture("5:5"), seeds=(0,))
    with pytest.raises(ValueError, match="Runs a_s0 and b_s0 of the study are the same run"):
        grid.resolve_study(study.to_config())


def test_one_cell_cannot_have_two_configs():
    study = grid.Grid("Twice.", unit=mixture("50:50"))
    study.add("a", mixture("50:50"), seeds=(0,))
    with pytest.raises(ValueError, match="two different runs a_s0"):
        study.add("a", mixture("90:10"), seeds=(0,))


def test_what_is_wrong_with_a_run_is_told_with_its_name():
    study = grid.Grid("Wrong.", unit=mixture("50:50"))
    wrong = mixture("50:50")
    wrong.optimizer.b1 = 2.0
    study.add("a", wrong, seeds=(0,))
    with pytest.raises(ValueError, match=r"Run a_s0 of the study: config\.optimizer\.b1=2\.0"):
        grid.resolve_study(study.to_config())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"cell": "r80_20"}, r"config\.claims\.x\.cell='r80_20' is no cell"),
        ({"measure": "joy"}, r"config\.claims\.x\.measure='joy' is not one of loss"),
        ({"against": ""}, r"config\.claims\.x\.against is empty"),
        ({"smallest": 0.0}, r"config\.claims\.x\.smallest=0\.0 must be above 0"),
        ({"language": "fr"}, r"cell r90_10 has no language 'fr'"),
        ({"measure": "log_teff", "baseline": "wide"}, "the grid has no such runs"),
        ({"against": "wide"}, r"config\.claims\.x\.against='wide': the grid has no such runs"),
        ({"measure": "alignment", "language": "en2-en1"}, "cell r90_10 has en1-en2"),
        ({"measure": "retrieval"}, "is of a pair of languages, and cell r90_10 has en1-en2"),
        (
            {"measure": "log_teff", "against": "", "against_language": "en1"},
            "against_language='en1' is of no cell",
        ),
        (
            {"measure": "alignment", "language": "en1-en2", "against_language": "en1"},
            "is that of the same pair",
        ),
        ({"trained_in": "en1"}, "trained_in='en1' is of accuracy alone"),
        ({"bar": 3.0}, r"config\.claims\.x\.bar=3\.0 is of steps_to alone"),
        ({"measure": "steps_to"}, r"config\.claims\.x\.bar=0\.0 must be above 0"),
        ({"measure": "steps_to", "bar": -1.0}, r"config\.claims\.x\.bar=-1\.0 must be above 0"),
        ({"measure": "steps_to", "bar": 3.0, "against": ""}, r"claims\.x\.against is empty"),
        (
            {"measure": "steps_to", "bar": 3.0, "against": "matched"},
            r"against='matched': steps_to is held against another cell\. Name one\.",
        ),
        (
            {"measure": "steps_to", "bar": 0.2, "language": "en2-en1"},
            "steps_to is of a pair of languages, and cell r90_10 has en1-en2",
        ),
        (
            {"measure": "steps_to", "bar": 3.0, "against_language": "fr"},
            "cell placebo90_10 has no language 'fr'",
        ),
    ],
)
def test_a_claim_that_cannot_be_decided_is_refused(fields, message):
    claim = {"cell": "r90_10", "language": "en2", "against": "placebo90_10"} | fields
    with pytest.raises(ValueError, match=message):
        grid.resolve_study(small_grid(x=claim))


def test_a_run_config_is_no_study():
    with pytest.raises(ValueError, match="no field `runs`"):
        grid.resolve_study(mixture("50:50"))


def test_every_cell_comes_with_its_first_seed_before_any_comes_with_its_second():
    seeds = [spec.config.seed for spec in grid.resolve_study(small_grid()).runs.values()]
    assert seeds == sorted(seeds)


def test_a_study_reads_back_as_it_was_written():
    study = grid.resolve_study(small_grid())
    plain = grid.convert_study_to_dict(study)
    for spec in plain["runs"].values():
        del spec["hash"], spec["seed"]
    assert grid.resolve_study(plain) == study


def test_a_claim_of_an_earlier_study_has_no_bar():
    claim = {"cell": "r90_10", "language": "en2", "against": "placebo90_10"}
    plain = grid.convert_study_to_dict(grid.resolve_study(small_grid(x=claim)))
    del plain["claims"]["x"]["bar"]
    assert grid.resolve_study(without_hashes(plain), begun=True).claims["x"].bar == 0


def without_hashes(plain):
    """Returns what to_dict made, without what a config does not have."""
    runs = {
        name: {key: value for key, value in spec.items() if key not in ("hash", "seed")}
        for name, spec in plain["runs"].items()
    }
    return {**plain, "runs": runs}


def test_a_study_that_was_begun_is_read_with_claims_and_runs_that_are_no_longer_allowed(tmp_path):
    plain = grid.convert_study_to_dict(
        grid.resolve_study(
            small_grid(x={"cell": "r90_10", "language": "en2", "against": "placebo90_10"})
        )
    )
    plain["claims"]["x"] |= {"measure": "alignment", "language": "en1", "against": "wide"}
    name, spec = next(iter(plain["runs"].items()))
    spec["config"]["optimizer"]["accumulate"] = 2
    plain["runs"]["again"] = {**spec, "config": json.loads(json.dumps(spec["config"]))}
    plain["runs"]["again"]["config"]["optimizer"]["accumulate"] = 1
    (tmp_path / "study.json").write_text(json.dumps({"version": 1, **plain}))
    study = StudyDirectory(tmp_path).study()
    assert study.claims["x"].against == "wide"
    assert study.runs["again"].hash == study.runs[name].hash
    with pytest.raises(ValueError, match="are the same run"):
        grid.resolve_study(without_hashes(plain))


@pytest.mark.parametrize("scale", ["demo", "mini", "medium"])
def test_the_costs_in_closed_form_are_those_of_the_model(scale):
    config = config_lib.resolve_config(config_lib.cloned(scale=scale, ratio="1:1"))
    V = costs.compute_vocab_size(config)
    assert costs.compute_parameter_count(config.model, V) == model_lib.count_parameters(
        config.model, V
    )


def test_a_tied_model_has_one_table():
    config = mixture("1:1")
    config.model.tied = True
    model = config_lib.resolve_config(config).model
    assert costs.compute_parameter_count(model, 768) == model_lib.count_parameters(model, 768)
