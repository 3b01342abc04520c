"""Behaviours of the studies of the toy language: what their cells have in common, and what not."""

import functools
import runpy
from fractions import Fraction

import numpy as np
import pytest
from helpers import ROOT

from imbalance_jax import config as config_lib
from imbalance_jax.study import grid, study_presets


@functools.cache  # what it returns is frozen
def study(name, arg=""):
    values = runpy.run_path(f"{ROOT}/configs/studies/{name}.py")["get_config"](arg)
    return grid.resolve_study(values)


def cells(found):
    return {spec.cell: spec.config for spec in reversed(found.runs.values())}


def totals(config):
    return config_lib.compute_sequence_totals(config)


@pytest.mark.parametrize("name", ["grammar", "grammar_languages", "grammar_dials", "ladder"])
def test_a_rare_language_has_exactly_the_tokens_and_updates_of_its_baseline(name):
    found = study(name)
    by_cell = cells(found)
    compared = [
        c for c in found.claims.values() if "as many" in c.statement or "alone" in c.against
    ]
    compared += [c for c in found.claims.values() if "matched" in c.against]
    assert compared
    for claim in compared:
        mixture, alone = by_cell[claim.cell], by_cell[claim.against]
        tag = claim.against_language or claim.language
        assert totals(alone) == {tag: totals(mixture)[claim.language]}
        assert mixture.steps == alone.steps
        assert mixture.optimizer == alone.optimizer
        assert Fraction(alone.batch_size, mixture.batch_size) == Fraction(1, 10)


def test_parts_none_is_the_mixture_and_its_baseline_alone():
    found = study("grammar", "parts=none,seeds=1")
    assert set(found.runs) == {"r90_10_s0", "matched_toy1_10_s0"}
    assert set(found.claims) == {"beats_matched", "finds_grammar_sooner", "aligns"}


def test_every_part_adds_its_cells_and_claims():
    added = {
        "alone": {"matched_toy1_25", "matched_toy1_50", "mono_toy1_100"},
        "even": {"r50_50"},
        "placebo": {"placebo"},
        "stranger": {"stranger"},
        "copied": {"copied"},
        "schedule": {"s10_90", "s90_10"},
    }
    first = set(cells(study("grammar", "parts=none")))
    for part, expected in added.items():
        assert set(cells(study("grammar", f"parts={part}"))) == first | expected
    assert set(cells(study("grammar"))) == first.union(*added.values())


def test_a_stranger_has_the_form_of_the_language_and_another_world():
    by_cell = cells(study("grammar"))
    clone, stranger = by_cell["r90_10"], by_cell["stranger"]
    assert stranger.source_of("toy2") == "toy" and stranger.source_of("toy1") == "stranger"
    # The text of the rare language is the same, and so are the dials of the dominant one.
    assert stranger.sources["toy"] == clone.sources["toy"]
    ours, theirs = (s.synthetic for s in (stranger.sources["toy"], stranger.sources["stranger"]))
    assert ours.world != theirs.world
    assert (ours.lemmas, ours.topics, ours.depth) == (theirs.lemmas, theirs.topics, theirs.depth)
    assert totals(stranger) == totals(clone)


def test_schedules_are_balanced_in_all_and_imbalanced_at_every_moment():
    by_cell = cells(study("grammar"))
    for cell in ("s10_90", "s90_10"):
        assert totals(by_cell[cell]) == totals(by_cell["r50_50"])
        assert all(set(ratio.values()) == {1, 9} for _, ratio in by_cell[cell].mixture.stages)


def test_one_run_of_a_width_stands_for_all_lengths():
    by_cell = cells(study("grammar_size", "widths=16+32"))
    assert set(by_cell) == {"d16_r50_50", "d16_r90_10", "d32_r50_50", "d32_r90_10"}
    for cell, config in by_cell.items():
        width = int(cell.removeprefix("d").partition("_")[0])
        model = config.model
        assert (width, width, 4 * width) == (model.D, model.H * model.K, model.F)
        # After its warm-up the rate says nothing of how long the run will be.
        rates = {
            steps: config_lib.compute_learning_rate(config.optimizer, steps, 200, np)
            for steps in (config.steps // 2, config.steps)
        }
        assert len(set(map(float, rates.values()))) == 1


def test_what_fills_the_place_of_the_dominant_clone_leaves_the_rare_one_its_tokens():
    by_cell = cells(study("grammar_removed"))
    rare = {totals(config)["toy2"] for config in by_cell.values()}
    others = {t["toy1"] + t["toy3"] for t in map(totals, by_cell.values())}
    assert len(rare) == len(others) == 1
    assert 9 * rare.pop() == others.pop()
    assert totals(by_cell["steady"])["toy3"] == totals(by_cell["filler"])["toy1"] == 0
    for step in (300, 500):
        removed, joins = (by_cell[f"{name}_{step}"] for name in ("removed", "joins"))
        assert totals(removed)["toy1"] == totals(joins)["toy3"] == step * 36


def test_each_dial_changes_what_it_names_and_nothing_else():
    by_cell = cells(study("grammar_dials"))
    base = config_lib.to_dict(by_cell["base"])

    def differs(cell):
        return {
            name.removeprefix("config.")
            for name, *_ in config_lib.find_differences(base, config_lib.to_dict(by_cell[cell]))
        }

    assert differs("lr2") == {"optimizer.peak_lr", "optimizer.final_lr"}
    assert differs("batch80") == {"batch_size"}
    assert differs("depth3") == {"sources.toy.synthetic.depth"}
    assert differs("lemmas512") == {"sources.toy.synthetic.lemmas"}
    assert differs("separator") == {"vocabulary.separator"}
    assert differs("anchors5") == {"languages.toy2.anchors"}
    assert differs("world1") == {"sources.toy.synthetic.world"}
    nine = by_cell["clones9"]
    assert len(set(totals(nine).values())) == 1 and len(nine.tags) == 10


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("seeds=5-3", "seeds=5-3: write how many, such as 3, or which, such as 10-14"),
        ("seeds=a-3", "such as 10-14"),
        ("parts=some", "there is no 'some'"),
        ("D=wide", "D=wide: write a whole number, such as 64"),
        ("zipf=much", "zipf=much: write a number, such as 0.5"),
        ("bar=low", "bar=low: write one number, 0 or more"),
        ("ratio=90:10", "no choice 'ratio'"),
    ],
)
def test_a_wrong_choice_says_what_to_write(choice, message):
    with pytest.raises(ValueError, match=message):
        study("grammar", choice)


def test_seeds_may_be_named_by_their_first_and_last():
    found = study("grammar", "parts=none,seeds=10-14")
    assert {spec.config.seed for spec in found.runs.values()} == {10, 11, 12, 13, 14}
    assert list(grid.parse_seeds("3")) == [0, 1, 2]


@pytest.mark.parametrize("seeds", ["0-999999999", "1000000000", "5" * 20])
def test_more_seeds_than_a_grid_can_hold_are_refused_before_any_run_is_made(seeds):
    with pytest.raises(ValueError, match=r"seeds from 0 on are more than 10,000.*fewer seeds"):
        grid.parse_seeds(seeds)
    config = config_lib.cloned(scale="demo", ratio="1:1")
    made = grid.Grid("Too many.", unit=config)
    for add in (made.add, made.sweep):
        with pytest.raises(ValueError, match="seeds from 0 on are more than"):
            add("cell", config, seeds=range(10**9))
    assert not made.to_config().runs


def test_two_ways_to_see_an_event_are_told_apart_by_what_matters():
    choice = study_presets.parse_grammar("steps=600")
    config = study_presets.grammatical(choice, "90:10")
    assert choice.soon == 2 * config.evaluation.every


@pytest.mark.parametrize(
    ("name", "arg", "reason"),
    [
        ("grammar", "bar=3+4", r"bar=3\+4: write one number, such as 3\."),
        ("grammar", "meets=x", "meets=x: write one number, 0 or more"),
        ("ladder", "scales=1+2", r"scales=1\+2: write one number, such as 1\."),
        ("grammar_removed", "steps=400", r"steps_at=300\+500: the runs have 400 steps"),
        ("grammar", "D=0", r"model\.[A-Z]=0 must be 1 or more"),
        ("grammar", "L=0", r"model\.L=0 must be 1 or more"),
    ],
)
def test_a_choice_that_no_run_can_have_is_refused_by_name(name, arg, reason):
    with pytest.raises(ValueError, match=reason):
        study(name, arg)
