"""The matrix of transfer coefficients, of made studies whose coefficients are known."""

import itertools

import made_studies
import pytest

from imbalance_jax import config as config_lib
from imbalance_jax.analysis.effects import measure_effects
from imbalance_jax.analysis.study_table import read_study_table
from imbalance_jax.analysis.transfer_matrix import measure_transfer_matrix
from imbalance_jax.report.study import transfer_matrix as page
from imbalance_jax.study import grid

# What a token of the second was worth to the first, in each run of the two.
WORTH = {"en-fr": 0.3, "en-sw": 0.05, "fr-sw": 0.1}


def make_pair(two):
    sources = {name: config_lib.declared(config_lib.SourceConfig) for name in two}
    config = config_lib.spoken(sources, scale="demo", ratio="50:50")
    config.steps, config.batch_size = made_studies.UNIT_STEPS, 20
    config.model.update(L=16, D=16, H=2, K=8, F=24, N=2)
    return config


def make_effects(path, pairs):
    made = grid.Grid("Each beside each.", unit=make_pair(("en", "fr")))
    for two in pairs:
        made.add("_".join(two), make_pair(two), seeds=range(2))
        for name in two:
            made.baselines(
                make_pair(two),
                name,
                fractions=(0.1, 0.25, 0.5, 0.75, 1),
                seeds=range(2),
                kinds=("matched",),
            )
    directory = made_studies.make(path, made.to_config(), noise=1e-6, alignment=False)
    study = directory.study()
    for name, spec in study.runs.items():
        gain = WORTH.get(spec.cell.replace("_", "-"))
        if gain is not None:
            made_studies.make_run(
                directory, name, spec, gain=gain, unit_tokens=study.unit_tokens, alignment=False
            )
    return measure_effects(read_study_table(directory), resamples=20)


def test_coefficients_are_what_a_token_was_worth_and_group_the_languages(tmp_path):
    pairs = [*itertools.combinations(("en", "sw", "fr"), 2)]
    pairs = [tuple(sorted(two, key="enfrsw".index)) for two in pairs]
    effects = make_effects(tmp_path / "matrix", pairs)
    matrix = measure_transfer_matrix(effects)
    assert matrix.kind == "matched" and len(matrix.coefficients) == 6
    for (target, helper), found in matrix.coefficients.items():
        pair = "-".join(sorted((target, helper), key="enfrsw".index))
        assert found.value == pytest.approx(WORTH[pair], abs=0.001)
        low, high = found.interval
        assert low - 1e-9 <= found.value <= high + 1e-9
    assert set(matrix.languages[:2]) == {"en", "fr"} or set(matrix.languages[1:]) == {"en", "fr"}
    (first, at), (last, mean) = matrix.merges
    assert set(first) == {"en", "fr"} and at == pytest.approx(0.3, abs=0.01)
    assert set(last) == {"en", "fr", "sw"} and mean == pytest.approx(0.075, abs=0.01)
    drawn = page.draw_transfer_matrix(effects)
    assert {(row["target"], row["helper"]) for row in drawn.rows} == set(matrix.coefficients)
    words = [text.get_text() for axes in drawn.drawing.axes for text in axes.texts]
    assert "helped" in words and "helper" in words
    starred = sum(each.extrapolated for each in matrix.coefficients.values())
    assert sum(word.endswith("*") for word in words) == starred
    assert len(page.make_transfer_table(effects).rows) == 3


def test_two_languages_are_no_matrix(tmp_path):
    assert measure_transfer_matrix(make_effects(tmp_path / "two", [("en", "fr")])) is None
