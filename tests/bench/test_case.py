"""A case is a few words, and the config that they stand for."""

import pytest

from imbalance_jax.bench import case as case_lib
from imbalance_jax.compute import model as model_lib
from imbalance_jax.data import prepare
from imbalance_jax.data.languages import build_vocabulary
from imbalance_jax.data.order.stream import Stream


def test_a_case_names_scale_languages_and_batch():
    case = case_lib.parse_case("small:10:32")
    assert (case.config.model.D, case.config.model.N) == (768, 12)
    assert len(case.config.languages) == 10 and case.config.batch_size == 32
    assert case.vocab_size == 163_840


def test_what_is_left_out_is_the_scales_own():
    case = case_lib.parse_case("medium")
    assert len(case.config.languages) == 2 and case.config.batch_size == 256


def test_fields_follow_the_name():
    case = case_lib.parse_case("mini:2:4 model.scan_layers=false model.N=2 optimizer.peak_lr=1e-3")
    model = case.config.model
    assert (model.scan_layers, model.N, case.config.optimizer.peak_lr) == (False, 2, 1e-3)
    assert case.name.startswith("mini:2:4 ")


def test_gpt2_is_the_model_that_others_time():
    case = case_lib.parse_case("gpt2")
    # 124.4 M parameters with its vocabulary of 50,257, of which 47 ids of padding are not.
    count = model_lib.count_parameters(case.config.model, 50_257)
    assert count == 124_439_808 and case.vocab_size == 50_304 and case.config.model.L == 1024


@pytest.mark.parametrize("name", ["demo:2", "pico:3:6", "small:10", "gpt2:1:2"])
def test_a_case_has_text_and_a_vocabulary_of_its_size(name):
    case = case_lib.parse_case(name)
    sources = prepare.prepare_run_sources(case.config)
    pieces = {source: found.pieces for source, found in sources.items()}
    assert build_vocabulary(case.config, pieces).size == case.vocab_size
    ids_BW = Stream(case.config, sources).batch(0).ids_BW
    assert ids_BW.shape == (case.config.batch_size, case.config.model.L + 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("huge:2", r"case huge:2: no such scale\. Write scale:languages:batch.* mini, small"),
        ("", r"case : no such scale. Write scale:languages:batch"),
        ("small:0", r"languages and batch are whole numbers from 1"),
        ("small:2:0", r"languages and batch are whole numbers from 1"),
        ("small:2 model.N", r"'model.N' has no value. Write model.N=VALUE"),
        ("small:2:3:4", r"case small:2:3:4: languages and batch are whole numbers from 1"),
        ("small:two", r"languages and batch are whole numbers"),
        ("small model.Q=2", r"there is no field config\.model\.Q"),
        ("small model.N=two", r"model\.N=two: config\.model\.N is of another kind, such as 12"),
        ("small model.scan_layers=maybe", r"write True or False"),
        ("small model.attention=magic", r"config\.model\.attention"),
    ],
)
def test_a_case_that_cannot_be_read_is_refused(text, expected):
    with pytest.raises(ValueError, match=expected):
        case_lib.parse_case(text)
