"""Held-out loss per language: which targets are scored, and that nothing else matters."""

import dataclasses
import math
from typing import Any

import helpers
import jax
import numpy as np
import pytest
from helpers import make_mesh, random_params
from jax.sharding import Mesh

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import sharding
from imbalance_jax.config import ModelConfig
from imbalance_jax.data import languages, sources
from imbalance_jax.data import word_order as views
from imbalance_jax.evaluation import perplexity
from imbalance_jax.training import experiment

# Every dimension has a size of its own, and the stride does not divide L.
L, STRIDE = 12, 5
MODEL = ModelConfig(L=L, D=16, H=2, K=7, F=22, N=3, attention="einsum", loss_chunk=4)


# Windows. The id of a target is its place in the text, so that a window says what it holds.


def places(length: int) -> np.ndarray:
    return np.arange(1, length + 1).astype(np.uint16)


def scored_targets(windows: perplexity.EvaluationWindows) -> list[int]:
    weight_nL = windows.weight_nL
    assert set(np.unique(weight_nL)) <= {0, 1}
    return sorted(windows.ids_nW[:, 1:][weight_nL.astype(bool)].tolist())


@pytest.mark.parametrize("stride", [1, 4, 5, 12])
@pytest.mark.parametrize("length", [14, 17, 18, 24, 25, 26, 61])
def test_strided_windows_score_every_target_once_after_the_first_context(length, stride):
    windows = perplexity.cut_strided_windows(places(length), L, stride)
    # Target t of a text is its id t + 1; the first L - stride of them are 2, 3, ...
    assert scored_targets(windows) == list(range(L - stride + 2, length + 1))


@pytest.mark.parametrize("stride", [4, 5])
def test_every_scored_target_follows_its_whole_context(stride):
    windows = perplexity.cut_strided_windows(places(62), L, stride)
    assert windows.ids_nW.shape[1] == L + 1 and windows.weight_nL.shape[1] == L
    for ids_W, weight_L in zip(windows.ids_nW, windows.weight_nL, strict=True):
        for t in np.flatnonzero(weight_L):
            assert t >= L - stride
            np.testing.assert_array_equal(ids_W[: t + 2], ids_W[t + 1] - np.arange(t + 1, -1, -1))
        # Beyond the text there is padding without a weight, and only there.
        np.testing.assert_array_equal(ids_W[ids_W > 0], ids_W[0] + np.arange(np.sum(ids_W > 0)))
        assert not np.any(weight_L[ids_W[1:] == 0])
        assert not np.any(weight_L[: L - windows.scored])
    assert np.any(windows.ids_nW[-1] == 0) and np.all(windows.ids_nW[:-1] > 0)
    assert windows.scored == stride


def test_a_text_shorter_than_the_context_has_no_scored_target():
    assert scored_targets(perplexity.cut_strided_windows(places(L - STRIDE + 1), L, STRIDE)) == []
    assert scored_targets(perplexity.cut_strided_windows(places(L - STRIDE + 2), L, STRIDE)) == [9]


def test_a_test_split_without_a_scored_target_is_refused_before_training(data_dir, english):
    count = english.count("test")

    def make(L: int, stride: int) -> experiment.Experiment:
        config = helpers.tiny_config(data_dir, model__L=L, evaluation__stride=stride)
        return experiment.Experiment.make(config, {"en": english}, make_mesh(8))

    # The first targets of a text are context: all of its count - 1 targets, or all but one.
    with pytest.raises(ValueError, match=rf"config\.evaluation\.stride={count + 8}"):
        make(count + 8, 9)
    for trainer in (make(count + 8, count + 8), make(count + 8, 10)):
        assert all(w.weight_nL.any() for w in trainer.test_windows())


@pytest.mark.parametrize("most", [0, 5, 100])
def test_windows_that_follow_each_other_score_every_target_once(most):
    windows = perplexity.cut_spread_windows(places(5 * L + 1), L, most)
    assert scored_targets(windows) == list(range(2, 5 * L + 2))
    assert windows.scored == L


def test_a_few_windows_are_spread_evenly_over_the_text():
    windows = perplexity.cut_spread_windows(places(103 * L + 4), L, most=10)
    starts = windows.ids_nW[:, 0].astype(int) - 1
    assert len(starts) == 10 and np.all(starts % L == 0)
    gaps = np.diff([*starts, 103 * L]) // L
    assert starts[0] == 0 and set(gaps) == {10, 11}
    assert len(scored_targets(windows)) == 10 * L


def test_a_text_shorter_than_a_window_is_padded_and_scored_to_its_end():
    windows = perplexity.cut_spread_windows(places(6), L, most=3)
    assert scored_targets(windows) == [2, 3, 4, 5, 6]
    np.testing.assert_array_equal(windows.ids_nW, [[1, 2, 3, 4, 5, 6, *[0] * 7]])


# The evaluator.


ONE = make_mesh(1)


@pytest.fixture(scope="module")
def vocabulary(data_dir, english) -> languages.Vocabulary:
    return languages.build_vocabulary(helpers.tiny_config(data_dir), {"en": english.pieces})


def placed(params: model_lib.Params, mesh: Mesh) -> model_lib.Params:
    return jax.device_put(params, sharding.make_state_shardings(mesh, params))


def make_evaluator(vocabulary, mesh: Mesh, batch_size: int) -> perplexity.PerplexityEvaluator:
    return perplexity.PerplexityEvaluator(MODEL, vocabulary, mesh, batch_size, np.dtype(np.uint16))


@pytest.fixture(scope="module")
def params(vocabulary) -> model_lib.Params:
    return random_params(MODEL, vocabulary.size)


@pytest.fixture(scope="module")
def evaluator(vocabulary) -> perplexity.PerplexityEvaluator:
    return make_evaluator(vocabulary, ONE, 8)


@pytest.fixture(scope="module")
def windows(english) -> list[perplexity.EvaluationWindows]:
    """Real text, another part for each language so that mixing them up would show."""
    tokens = english.tokens("train")
    # 69 and 39 windows: no batch size below divides their number.
    parts = tokens[:350], tokens[1000:1203]
    made = [perplexity.cut_strided_windows(part, L, STRIDE) for part in parts]
    assert [len(w.ids_nW) for w in made] == [69, 39]
    return made


@pytest.fixture(scope="module")
def found(evaluator, params, windows) -> dict[str, dict[str, float]]:
    return evaluator(placed(params, ONE), windows)


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    for tag in ours:
        # fp32 sums over the rows of a batch, in another order and of other lengths.
        assert ours[tag] == pytest.approx(theirs[tag], rel=1e-5)


@pytest.mark.parametrize(
    ("sizes", "batch_size"), [({}, 16), ({}, 24), ({"fsdp": 2, "tensor": 2}, 8)]
)
def test_neither_batch_size_nor_devices_change_the_result(
    vocabulary, params, windows, found, sizes, batch_size
):
    mesh = make_mesh(8, **sizes)
    other = make_evaluator(vocabulary, mesh, batch_size)(placed(params, mesh), windows)
    assert_same(other, found)


def test_the_result_is_the_mean_over_scored_targets_of_whole_softmaxes(
    vocabulary, params, windows, found
):
    logits = jax.jit(model_lib.compute_next_token_logits, static_argnums=1)
    for g, tag in enumerate(vocabulary.tags):
        ids_nW = vocabulary.map_GU[g][windows[g].ids_nW]
        logits_nLV = np.asarray(logits(params, MODEL, ids_nW[:, :-1]), np.float64)
        p_nLV = np.exp(logits_nLV - logits_nLV.max(-1, keepdims=True))
        p_nLV /= p_nLV.sum(-1, keepdims=True)
        scored_nL = windows[g].weight_nL.astype(bool)
        p_mV, target_m = p_nLV[scored_nL], ids_nW[:, 1:][scored_nL]
        p_m = p_mV[np.arange(len(target_m)), target_m]
        own_m = p_mV[:, np.unique(vocabulary.map_GU[g])].sum(-1)
        expected = {
            "loss": -np.log(p_m).mean(),
            "ppl": np.exp(-np.log(p_m).mean()),
            "language_nats": -np.log(own_m).mean(),
            "loss_own": -np.log(p_m / own_m).mean(),
            "leak": 1 - own_m.mean(),
            "top1": np.mean(p_mV.argmax(-1) == target_m),
            "tokens": len(target_m),
        }
        # fp32 logits of size ten; the exponential of the loss multiplies its error by it.
        assert {name: found[tag][name] for name in expected} == pytest.approx(expected, rel=5e-5)
    assert found["en1"]["tokens"] == 350 - 1 - (L - STRIDE)
    assert found["en1"]["loss"] != pytest.approx(found["en2"]["loss"], rel=1e-3)


def test_the_loss_is_the_sum_of_its_two_parts(found):
    for values in found.values():
        assert values["loss"] == pytest.approx(
            values["language_nats"] + values["loss_own"], rel=1e-6
        )


def test_all_positions_of_windows_may_be_scored_by_the_same_evaluator(
    evaluator, params, english, windows, found
):
    # Windows L apart score all that those STRIDE apart do, with another context: other losses.
    # The same windows with every weight but those of the tail taken away: the same losses.
    whole = [
        dataclasses.replace(w, scored=L, weight_nL=w.weight_nL.astype(np.float32)) for w in windows
    ]
    assert_same(evaluator(placed(params, ONE), whole), found)


def test_doubling_a_vocabulary_by_copying_rows_gives_each_clone_twice_the_perplexity(
    vocabulary, evaluator, windows
):
    U = vocabulary.size // 2
    single = languages.Vocabulary(
        ("en1",),
        U,
        vocabulary.map_GU[:1],
        vocabulary.own_GV[:1, :U],
    )
    params = random_params(MODEL, U)
    before = make_evaluator(single, ONE, 8)(placed(params, ONE), windows[:1])["en1"]
    doubled = params | {name: np.tile(params[name], (2, 1)) for name in ("embed_VD", "head_VD")}
    after = evaluator(placed(doubled, ONE), [windows[0], windows[0]])
    for tag in ("en1", "en2"):
        assert after[tag]["loss"] == pytest.approx(before["loss"] + math.log(2), rel=1e-6)
        assert after[tag]["ppl"] == pytest.approx(2 * before["ppl"], rel=1e-5)
        assert after[tag]["language_nats"] == pytest.approx(math.log(2), rel=1e-6)
        assert after[tag]["leak"] == pytest.approx(0.5, rel=1e-6)
        assert after[tag]["loss_own"] == pytest.approx(before["loss"], rel=1e-6)
        assert after[tag]["tokens"] == before["tokens"]
    assert before["leak"] == pytest.approx(0, abs=1e-6)


def test_bits_per_byte_count_the_bytes_of_the_scored_text(evaluator, params, english):
    tokenizer = english.tokenizer
    separator = tokenizer.separator
    texts = ("def plain(text): return text  # as is", "naïve café – ≤ 3 €, 😀 日本", " and\n  more")
    encoded = [[*tokenizer.encode(text), separator] for text in texts]
    tokens = np.concatenate(encoded).astype(np.uint16)
    assert np.isin(tokens, list(tokenizer.byte_ids.values())).any()
    starts = np.cumsum([0, *map(len, encoded[:-1])])
    sizes = np.array([len(text.encode()) for text in texts])
    bytes_t = sources.compute_bytes_per_id(tokens, english.pieces, starts, sizes)
    windows = perplexity.cut_strided_windows(tokens, L, STRIDE, bytes_t=bytes_t)
    values = evaluator(placed(params, ONE), [windows, windows])["en2"]
    # All but the first L - STRIDE + 1 ids are scored; those lie in the first text.
    documents, document = [], []
    for t in tokens[L - STRIDE + 1 :].tolist():
        if t == separator:
            documents.append(tokenizer.decode(document))
            document = []
        else:
            document.append(t)
    assert documents[1:] == list(texts[1:]) and texts[0].endswith(documents[0])
    size = sum(len(text.encode()) for text in documents)
    assert values["bytes"] == size
    assert values["tokens"] == len(tokens) - (L - STRIDE + 1)
    bits = values["loss"] * values["tokens"] / math.log(2)
    assert values["bits_per_byte"] == pytest.approx(bits / size, rel=1e-6)


@pytest.mark.parametrize("words", ["as_written", "reversed", "shuffled"])
def test_windows_of_a_language_hold_the_bytes_of_its_text(data_dir, english, words):
    config = helpers.tiny_config(data_dir, languages__en2__words=words)
    trainer = experiment.Experiment.make(config, {"en": english}, make_mesh(8))
    found = {"validation": trainer.validation_windows()[1], "test": trainer.test_windows()[1]}
    bytes_t = {
        split: views.count_bytes(
            english, split, config.languages["en2"], trainer.held_out("en2", split)
        )
        for split in found
    }
    for split, windows in found.items():
        # Our tokenizer loses nothing, so the bytes are those of the pieces that are scored.
        bytes_nL = english.pieces.bytes_U[windows.ids_nW[:, 1:]] * windows.weight_nL
        assert windows.bytes_n.tolist() == bytes_nL.sum(axis=1).tolist()
        assert bytes_t[split].sum() == english.about["bytes"][split]
    # All of the text is scored but for its context.
    context = bytes_t["test"][: config.model.L - config.eval_stride + 1].sum()
    assert found["test"].scored_bytes + context == english.about["bytes"]["test"]


def test_progress_is_reported_up_to_its_end_and_may_stop_the_evaluation(evaluator, params, windows):
    shares = []
    evaluator(placed(params, ONE), windows, shares.append)
    assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] == 1

    def stop(share: float) -> None:
        if share > 0.5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        evaluator(placed(params, ONE), windows, stop)


def test_the_losses_of_windows_add_up_to_those_of_their_language(evaluator, params, windows):
    sums, losses = evaluator.measure(placed(params, ONE), windows)
    for g, tag in enumerate(evaluator._vocabulary.tags):
        assert len(losses[tag]) == len(windows[g].ids_nW)
        assert losses[tag].sum() == pytest.approx(sums[tag]["loss"], rel=1e-5)


def test_a_window_counts_as_the_document_of_its_first_scored_target():
    # Documents begin at 0, 8 and 20; windows of stride 4 score targets 5-8, 9-12, 13-16, ...
    windows = perplexity.cut_strided_windows(places(30), L=8, stride=4)
    starts, loss_n = np.array([0, 8, 20]), np.arange(1.0, 1 + len(windows.ids_nW))
    assert scored_targets(windows)[:4] == [6, 7, 8, 9]  # ids count from 1, places from 0
    found = perplexity.sum_loss_by_text(loss_n, windows, starts, most=10)
    assert found == [(0, 1.0, 4), (1, 2.0 + 3.0 + 4.0, 12), (2, 5.0 + 6.0 + 7.0, 9)]
    together = perplexity.sum_loss_by_text(loss_n, windows, starts, most=1)
    assert together == [(0, 28.0, 25)]


def test_an_evaluator_compiles_once_for_windows_of_a_kind(evaluator, params, windows, monkeypatch):
    evaluator(placed(params, ONE), windows)
    monkeypatch.setattr(evaluator, "_jitted", None)  # nothing is left to compile with
    evaluator(placed(params, ONE), windows)


def test_a_summary_divides_sums_once():
    sums = {"loss": 30.0, "language_nats": 6.0, "loss_own": 24.0, "leak": 3.0, "top1": 5.0}
    found = perplexity.compute_language_metrics(sums | {"tokens": 15.0, "bytes": 60.0})
    assert found == pytest.approx(
        {
            "loss": 2.0,
            "ppl": math.e**2,
            "bits_per_byte": 30 / math.log(2) / 60,
            "language_nats": 0.4,
            "loss_own": 1.6,
            "leak": 0.2,
            "top1": 1 / 3,
            "tokens": 15,
            "bytes": 60,
        }
    )


def test_a_text_without_bytes_has_no_bits_per_byte():
    sums = dict.fromkeys(perplexity.SUMS, 1.0) | {"bytes": 0.0}
    assert perplexity.compute_language_metrics(sums)["bits_per_byte"] == 0


def test_a_part_of_the_test_windows_is_spread_over_the_text():
    every = perplexity.cut_strided_windows(places(200), L=8, stride=4)
    some = perplexity.cut_strided_windows(places(200), L=8, stride=4, most=5)
    assert len(some.ids_nW) == 5 and set(some.starts_n) < set(every.starts_n)
    assert some.starts_n[0] == 0 and some.starts_n[-1] > 120
    counted = perplexity.sum_loss_by_text(np.ones(5), some, np.array([0, 100]), most=10)
    assert [(text, loss) for text, loss, _ in counted] == [(0, 3.0), (1, 2.0)]
