"""Behaviours of config/identity.py, and of a run directory that belongs to another run."""

import dataclasses
import re

import pytest
from helpers import ROOT
from made_configs import (
    FRACTIONS,
    STEPS,
    resolved,
    spoken,
    stages,
)

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.runs import run_config
from imbalance_jax.runs import run_directory as runs


def test_differences_name_each_field_with_both_values():
    ours = config_lib.to_dict(resolved())
    theirs = config_lib.to_dict(resolved(steps=7, model__D=32, languages__en2__anchors=0.5))
    assert config_lib.find_differences(ours, theirs) == [
        ("config.steps", ours["steps"], 7),
        ("config.languages.en2.anchors", 0.0, 0.5),
        ("config.model.D", 64, 32),
    ]
    assert config_lib.find_differences(ours, ours) == []
    other = {"ratio": {"en1": 3}, "stages": [[0, {"en1": 3}]]}
    assert config_lib.find_differences({"ratio": {"en1": 3, "fr": 1}, "stages": []}, other) == [
        ("config.ratio.fr", 1, "absent"),
        ("config.stages", [], [[0, {"en1": 3}]]),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"steps": 999},
        {"batch_size": 16},
        {"sources__en__packages": ("json",)},
        {"sources__en__tokenizer__vocab_size": 512},
        {"languages__en2__anchors": 0.1},
        {"languages__en2__anchor_choice": "rare"},
        {"languages__en2__anchor_measure": "tokens"},
        {"languages__en2__words": "reversed"},
        {"languages__en2__words_block": 4},
        {"vocabulary__anchor_specials": "always"},
        {"vocabulary__layout": "merged"},
        {"vocabulary__separator": "own"},
        {"vocabulary__tokenizer__vocab_size": 2048},
        {"mixture__temperature": 2.0},
        {"mixture__stages": [[0, {"en1": 3, "en2": 1}], [9, {"en1": 1, "en2": 1}]]},
        {"mixture__sampler": "bernoulli"},
        {"mixture__order": "sequential"},
        {"mixture__switch": "document"},
        {"mixture__content": "disjoint"},
        {"mixture__reuse": "any"},
        {"mixture__on_exhaustion": "stop"},
        {"init_from": "runs/other"},
        {"sources__en__synthetic__depth": 4},
        {"mixture__ratio": {"en1": 1, "en2": 1}},
        {"mixture__seed": 3},
        {"model__N": 3},
        {"optimizer__b2": 0.99},
    ],
)
def test_another_run_is_refused_in_its_directory_naming_the_field(tmp_path, changes):
    run = runs.RunDirectory(tmp_path / "run")
    run.claim(resolved())
    [name] = changes
    field = re.escape("config." + name.replace("__", "."))
    with pytest.raises(ValueError, match=rf"belongs to a run with {field}.*Use another --workdir"):
        run.check(resolved(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"data_dir": "elsewhere"},
        {"log_every": 3},
        {"evaluation__every": 7},
        {"checkpoint__every": 7},
        {"mesh__fsdp": 2},
        {"mirrors": ("tensorboard",)},
        {"parallel": {}},
        {"parallel__en_fr__path": "other.jsonl"},
    ],
)
def test_what_does_not_change_the_training_may_change_in_a_run(tmp_path, changes):
    run = runs.RunDirectory(tmp_path / "run")
    run.claim(resolved(spoken))
    run.check(resolved(spoken, **changes))


def test_stages_by_fraction_and_by_their_steps_are_one_run(tmp_path):
    for ours, theirs in ((FRACTIONS, STEPS), (STEPS, FRACTIONS)):
        one, other = (resolved(mixture__stages=s, steps=1000) for s in (ours, theirs))
        assert config_lib.build_run_identity(one) == config_lib.build_run_identity(other)
        run = runs.RunDirectory(tmp_path / str(ours[1][0]))
        run.claim(one)
        run.check(other)
        with pytest.raises(ValueError, match=r"belongs to a run with config\.mixture\.stages="):
            run.check(resolved(mixture__stages=stages(0, 250, 501, en1=3), steps=1000))


def test_more_steps_may_not_move_a_stage_that_is_a_fraction(tmp_path):
    by_fraction = runs.RunDirectory(tmp_path / "fraction")
    by_fraction.claim(resolved(mixture__stages=FRACTIONS, steps=1000))
    with pytest.raises(
        ValueError, match=r"belongs to a run with config\.mixture\.stages=.*250.*500"
    ):
        by_fraction.check(resolved(mixture__stages=FRACTIONS, steps=2000), extend=True)
    # Written as steps, they stay where they are.
    by_fraction.check(resolved(mixture__stages=STEPS, steps=2000), extend=True)
    by_step = runs.RunDirectory(tmp_path / "step")
    by_step.claim(resolved(mixture__stages=STEPS, steps=1000))
    by_step.check(resolved(mixture__stages=STEPS, steps=2000), extend=True)


def test_a_run_that_goes_on_by_its_directory_keeps_the_steps_of_its_stages(tmp_path):
    run = runs.RunDirectory(tmp_path / "run")
    balanced = stages(0, 0.5, en1=3)
    run.claim(resolved(mixture__stages=FRACTIONS, mixture__same_total_as=FRACTIONS, steps=1000))
    longer = run_config.get_config(str(run.path))
    longer.steps = 2000
    found = config_lib.resolve_config(longer)
    run.check(found, extend=True)
    assert [first for first, _ in found.mixture.stages] == [0, 250, 500]
    assert found.mixture.same_total_as == found.mixture.stages
    # The whole config says fractions of the longer run. What it can do instead is said.
    again = resolved(mixture__stages=balanced, steps=2000)
    with pytest.raises(ValueError, match=r"or leave out --config\.$"):
        run.check(again, extend=True)


def test_a_refusal_advises_no_field_that_does_not_exist(tmp_path):
    by_document = {"mixture__stages": STEPS, "mixture__switch": "document"}
    run = runs.RunDirectory(tmp_path / "run")
    run.claim(resolved(**by_document, steps=1000))
    with pytest.raises(ValueError, match=r"or keep config\.steps=1000: documents are given"):
        run.check(resolved(**by_document, steps=2000), extend=True)
    warm = runs.RunDirectory(tmp_path / "warm")
    warm.claim(resolved(mixture__temperature=2.0, mixture__ratio={}))
    temperature = {"mixture__ratio": {"en1": 2, "en2": 1}}
    with pytest.raises(ValueError, match=r"or set config\.mixture\.temperature=2\.0\.$"):
        warm.check(resolved(**temperature))


def test_a_ratio_that_a_temperature_filled_in_is_not_part_of_the_run(tmp_path):
    config = resolved(mixture__temperature=2.0, mixture__ratio={})
    filled = [
        dataclasses.replace(
            config, mixture=dataclasses.replace(config.mixture, ratio={"en1": n, "en2": 1})
        )
        for n in (3, 5)
    ]
    assert (
        len(
            {
                config_lib.hash_plain_values(config_lib.build_run_identity(one))
                for one in [config, *filled]
            }
        )
        == 1
    )
    run = runs.RunDirectory(tmp_path / "run")
    run.claim(filled[0])
    run.check(config)
    for changes in ({}, {"mixture__temperature": 3.0}):
        with pytest.raises(
            ValueError, match=r"belongs to a run with config\.mixture\.temperature=2"
        ):
            run.check(resolved(**changes))


def test_only_more_steps_are_an_extension(tmp_path):
    run = runs.RunDirectory(tmp_path / "run")
    run.claim(resolved(steps=20))
    with pytest.raises(ValueError, match=r"config\.steps=20.*or pass --extend"):
        run.check(resolved(steps=30))
    run.check(resolved(steps=30), extend=True)
    with pytest.raises(ValueError, match=r"--extend cannot shorten"):
        run.check(resolved(steps=10), extend=True)
    with pytest.raises(ValueError, match=r"config\.seed=0"):
        run.check(resolved(steps=30, seed=1), extend=True)


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "slurm-1.out").write_text("")
    runs.RunDirectory(tmp_path).check(resolved())  # nothing of a run's is in its way
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"metrics\.jsonl would be written over.* --workdir"):
        runs.RunDirectory(tmp_path).check(resolved())


def test_whether_ids_are_shared_is_part_of_a_run_only_where_documents_are_parted():
    def identity(ids, content):
        config = cli.load_config_file(f"{ROOT}/configs/dials.py:dial=tokenizer")
        config.sources.en1.ids, config.mixture.content = ids, content
        return config_lib.build_run_identity(config_lib.resolve_config(config))

    assert identity("own", "shared") == identity("shared", "shared")
    assert identity("own", "disjoint") != identity("shared", "disjoint")


def test_more_steps_that_would_part_documents_or_weigh_losses_anew_are_refused(tmp_path):
    stages = ((0, {"en1": 1, "en2": 0}), (10, {"en1": 1, "en2": 1}))
    for changes in (
        {"mixture__switch": "document"},
        {"mixture__content": "disjoint"},
        {"mixture__loss_weights": {"en2": 3.0}},
    ):
        run = runs.RunDirectory(tmp_path / next(iter(changes)))
        run.claim(resolved(steps=20, mixture__stages=stages, **changes))
        with pytest.raises(ValueError, match=r"config\.mixture\.sequences"):
            run.check(resolved(steps=40, mixture__stages=stages, **changes), extend=True)
        # One ratio throughout parts them the same whatever the steps.
        even = runs.RunDirectory(tmp_path / f"{next(iter(changes))}-even")
        even.claim(resolved(steps=20, **changes))
        even.check(resolved(steps=40, **changes), extend=True)


def test_runs_keep_the_identity_that_earlier_versions_wrote_into_study_json():
    # The hashes of revision 8043688. A new field that changes them turns every older study away.
    staged = config_lib.cloned(scale="small", ratio="90:10:5")
    staged.mixture.stages = (
        (0, {"en1": 1, "en2": 0, "en3": 1}),
        (0.5, {"en1": 1, "en2": 2, "en3": 0}),
    )
    for values, written in (
        (config_lib.cloned(scale="demo", ratio="90:10"), "eb3223aa6aca5424"),
        (staged, "2722714b6338b746"),
        # Documents were parted by their ids then as they are now where ids are shared.
        (cli.load_config_file(f"{ROOT}/configs/en_fr.py:content=disjoint"), "c42e2bfdf99ca36f"),
        (cli.load_config_file(f"{ROOT}/configs/dials.py:dial=tokenizer"), "40b8407cf581cd87"),
    ):
        assert (
            config_lib.hash_plain_values(
                config_lib.build_run_identity(config_lib.resolve_config(values))
            )
            == written
        )
