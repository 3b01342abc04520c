"""Accuracy on minimal pairs: what counts, how sure it is, and what the model is asked."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import scipy.stats
from documented_names import find_undocumented, list_json_names
from helpers import make_mesh, no_poll

from imbalance_jax import config as config_lib
from imbalance_jax import evaluate
from imbalance_jax.compute import model as model_lib
from imbalance_jax.config import LanguageConfig, SourceConfig
from imbalance_jax.data import prepare
from imbalance_jax.data.minimal_pairs import PairSet
from imbalance_jax.data.own_pairs import MinimalPair
from imbalance_jax.evaluation import minimal_pairs
from imbalance_jax.training import experiment, scoring

L = 10  # two sentences of a depth of 2 fit, with their period; four words more do not


@pytest.fixture(scope="module")
def trainer(tmp_path_factory) -> experiment.Experiment:
    """A toy language and its clone, whose final test scores a file of pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    source = config_lib.declared(SourceConfig, kind="synthetic")
    source.synthetic.update({"lemmas": 40, "depth": 2})
    config = config_lib.spoken({"toy": source}, scale="demo", ratio="1")
    config.languages.copy = config_lib.declared(LanguageConfig, clone_of="toy")
    config.mixture.ratio.copy = 1
    config.data_dir, config.steps, config.batch_size = str(folder), 4, 64
    config.model.update({"L": L, "D": 16, "H": 2, "K": 8, "F": 24, "N": 1})
    config.evaluation.update(minimal_pairs="own", max_test_windows=4, stride=L)
    config = config_lib.resolve_config(config)
    sources = prepare.prepare_run_sources(config)
    return experiment.Experiment.make(config, sources, make_mesh(1))


@pytest.fixture(scope="module", autouse=True)
def compiled_once(trainer):
    """One evaluator for all, so that its program compiles once."""
    evaluator = trainer.evaluator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.Experiment, "evaluator", lambda self: evaluator)
        yield


def make_set(trainer, pairs: list[tuple[str, str, str]]) -> PairSet:
    encode = trainer.sources["toy"].tokenizer.encode_arrays
    good, bad = (encode([pair[side] for pair in pairs]) for side in (1, 2))
    return PairSet("toys.jsonl", [MinimalPair(*pair) for pair in pairs], good, bad)


def sum_log_probabilities(trainer, params, tag: str, sentences: list[np.ndarray]) -> list[float]:
    """Returns the log probability of each sentence behind a separator, an id at a time."""
    map_U = trainer.vocabulary.map_GU[trainer.vocabulary.index(tag)]
    separator = trainer.sources["toy"].pieces.separator
    ids_nW = np.full((len(sentences), L + 1), map_U[separator])
    for row, sentence in zip(ids_nW, sentences, strict=True):
        row[1 : 1 + len(sentence)] = map_U[sentence]
    logits = jax.jit(model_lib.compute_next_token_logits, static_argnums=1)
    logits_nLV = np.asarray(logits(params, trainer.config.model, ids_nW[:, :-1]), np.float64)
    totals = []
    for n, sentence in enumerate(sentences):
        total = 0.0
        for place in range(len(sentence)):
            logits_V = logits_nLV[n, place]
            total += logits_V[ids_nW[n, place + 1]] - np.log(np.sum(np.exp(logits_V)))
        totals.append(total)
    return totals


def test_accuracy_is_that_of_sums_of_log_probabilities_in_a_loop_for_a_clone_too(trainer):
    words = [" " + word for word in trainer.sources["toy"].language.words()]
    draws = np.random.default_rng(0).choice(words, (24, 2, 4))
    pairs = [
        (("swap", "other")[n % 2], *("".join(side) for side in both))
        for n, both in enumerate(draws)
    ]
    pairs += [("other", words[0], words[0]), ("other", "".join(words[: L + 1]), words[1])]
    state, set_ = trainer.init_state(), make_set(trainer, pairs)
    sets = {"copy": set_, "toy": set_}
    results = scoring.score_minimal_pairs(
        trainer, trainer.evaluator(), state, sets, trainer.pair_windows(sets), no_poll
    )
    differ = []
    for tag, found in results.items():
        good_n, bad_n = (
            sum_log_probabilities(trainer, state.params, tag, side[:24])
            for side in (set_.good, set_.bad)
        )
        points = [float(good > bad) for good, bad in zip(good_n, bad_n, strict=True)]
        differ.append(points)
        assert found["phenomena"]["swap"]["accuracy"] == pytest.approx(np.mean(points[::2]))
        other = np.mean([*points[1::2], 0.5])  # a tie, and what is too long, which is left out
        assert found["phenomena"]["other"]["accuracy"] == pytest.approx(other)
        assert (found["pairs"], found["ties"], found["left_out"]) == (25, 1, 1)
        assert 0 < found["accuracy"] < 1 and found["file"] == "toys.jsonl"
    assert differ[0] != differ[1]  # the clone's ids are other ids to a model without training


def test_a_run_scores_its_own_pairs_at_its_end_and_evaluate_finds_the_same(trainer, capsys):
    state = trainer.init_state()
    at_end = {"step": 0, **scoring.score_state(trainer, state, no_poll)}
    later = dataclasses.replace(
        trainer.config,
        evaluation=dataclasses.replace(trainer.config.evaluation, minimal_pairs=""),
    )
    reopened = dataclasses.replace(trainer, config=later)
    known = {name: value for name, value in at_end.items() if name != "minimal_pairs"}
    sets, written = trainer.minimal_pairs, []
    one = {"copy": sets["copy"]}
    results = evaluate.evaluate_minimal_pairs(
        reopened, state, one, known=known, write=written.append
    )
    assert written == [results] and set(results["minimal_pairs"]) == {"copy"}
    results = evaluate.evaluate_minimal_pairs(reopened, state, sets, known=results)
    assert results["minimal_pairs"] == at_end["minimal_pairs"]
    assert set(at_end["minimal_pairs"]["toy"]["phenomena"]) == {"selection", "word_order"}
    del at_end["texts"]
    assert find_undocumented("evaluation.json", list_json_names(at_end)) == []
    assert "minimal pairs  copy" in "".join(evaluate.describe_results(results))
    other = {"toy": make_set(trainer, [("x", "a", "b")])}
    with pytest.raises(ValueError, match="pairs of toy .* file='own' and not 'toys.jsonl'.*--over"):
        evaluate.evaluate_minimal_pairs(reopened, state, other, known=results)
    capsys.readouterr()
    evaluate.evaluate_minimal_pairs(reopened, state, sets, known=results)
    assert "known already" in capsys.readouterr().out


def test_a_model_that_prefers_every_good_sentence_is_always_right_and_ties_count_half():
    pairs = [MinimalPair("a", "x", "y", f"p{n % 2}") for n in range(6)]
    ids = [np.array([n]) for n in range(12)]
    set_ = PairSet("f", pairs, ids[:6], ids[6:])
    good_n, bad_n = np.full(6, 3.0), np.full(6, 3.5)
    right = minimal_pairs.summarize_pairs(set_, np.concatenate([good_n, bad_n]), 4)
    assert right["accuracy"] == 1.0 and right["interval"][1] == 1.0
    wrong = minimal_pairs.summarize_pairs(set_, np.concatenate([bad_n, good_n]), 4)
    assert wrong["accuracy"] == 0.0 and wrong["phenomena"]["a"]["accuracy"] == 0.0
    equal = minimal_pairs.summarize_pairs(set_, np.concatenate([good_n, good_n]), 4)
    assert equal["accuracy"] == 0.5 and equal["ties"] == 6
    assert {name: found["pairs"] for name, found in equal["paradigms"].items()} == {
        "p0": 3,
        "p1": 3,
    }
    none = minimal_pairs.summarize_pairs(set_, np.zeros(0), 0)
    assert (none["pairs"], none["left_out"]) == (0, 6) and "accuracy" not in none


@pytest.mark.parametrize(("right", "n"), [(0, 7), (3, 7), (231, 287), (40, 40)])
def test_the_interval_is_wilsons(right, n):
    wilson = scipy.stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    found = minimal_pairs.compute_wilson_interval(right / n, n)
    assert found == pytest.approx([wilson.low, wilson.high], abs=1e-12)
    assert all(math.isfinite(end) for end in found)
