"""Behaviours of fine-tuning in one language and scoring in others: encoding, protocols, command."""

import dataclasses
import errno
import functools
import json
import math
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from absl import flags
from documented_names import find_undocumented, list_json_names
from helpers import tiny_config

from imbalance_jax import config as config_lib
from imbalance_jax.analysis import transfer_results
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import sharding, tuning
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.checkpoint import Checkpoints
from imbalance_jax.compute.context import NO_CONTEXT
from imbalance_jax.data import languages
from imbalance_jax.report import record, transfer_section
from imbalance_jax.report import run_page as page
from imbalance_jax.report.study.alignment_panels import make_transfer_panels
from imbalance_jax.runs import storage
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import init_from, loading
from imbalance_jax.transfer import __main__ as command
from imbalance_jax.transfer import finetune as transfer
from imbalance_jax.transfer.examples import Examples
from imbalance_jax.transfer.finetune import ClassifierTrainer, EncodedExamples, FineTuningSettings
from imbalance_jax.transfer.transfer_run import TransferRun

# A model of two clones, and a task: which of two ids is somewhere in the text.

# The tiny run of helpers.py, so that the command's programs are the same ones.
CONFIG = tiny_config(pathlib.Path("none"), model__attention="einsum")
MODEL = dataclasses.replace(
    tuning.resolve_auto_fields(CONFIG.model, jax.devices()[0]), loss_chunk=0
)
U, L = 384, 16
MAP_GU = np.stack([np.arange(U), np.arange(U) + U * (np.arange(U) > 0)]).astype(np.int32)
QUICK = FineTuningSettings(
    seeds=2, epochs=8, batch_size=32, learning_rate=1e-2, length=L, evaluate_every=20
)


@functools.cache
def begun():
    mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
    return step_lib.init_state(CONFIG, 2 * U, mesh)


def pretrained():
    return begun().params


def examples(n, seed):
    rng = np.random.default_rng(seed)
    label_n = rng.integers(0, 2, n)
    texts = []
    for label in label_n:
        ids = rng.integers(5, 20, rng.integers(2, 11))
        ids[rng.integers(len(ids))] = 3 + label
        texts.append([ids.tolist()])
    encoded = transfer.encode_examples(texts, separator=2, pad=0, length=L)
    return encoded, label_n


TRAIN, TEST = examples(320, 0), examples(200, 1)


@functools.cache
def trained(protocol):
    """Returns the classifier, the weights of its seeds and the updates made."""
    classifier = ClassifierTrainer(MODEL, dataclasses.replace(QUICK, protocol=protocol))
    score = lambda params: transfer.compute_selection_score(
        classifier.predict(params, TEST[0]), TEST[1], 2
    )
    return classifier, *classifier.train(pretrained(), *TRAIN, 2, score)


def scored(classifier, params, language):
    predicted_Sn = classifier.predict(
        params, transfer.map_ids_to_language(TEST[0], MAP_GU[language])
    )
    return np.mean(predicted_Sn == TEST[1], axis=1)


@pytest.mark.parametrize("protocol", transfer.PROTOCOLS)
def test_what_can_be_learnt_is_and_rows_that_were_never_trained_are_at_chance(protocol):
    classifier, params, updates = trained(protocol)
    assert updates <= 80 and np.bincount(TEST[1]).max() / 200 < 0.6
    assert (scored(classifier, params, 0) > 0.95).all()
    # What a model says of rows that it does not know may go with the label one way or the other,
    # so the second language's are drawn again and again.
    rng = np.random.default_rng(0)
    found = []
    for _ in range(12):
        embed_SVD = np.array(params["model"]["embed_VD"])
        embed_SVD[:, U:] = 0.02 * rng.normal(size=embed_SVD[:, U:].shape)
        drawn = {**params, "model": {**params["model"], "embed_VD": embed_SVD}}
        found.append(scored(classifier, drawn, 1))
    # 24 accuracies that lie 0.1 apart or so.
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)


def with_copied_rows(params, row_V):
    return {**params, "model": jax.vmap(lambda p: {**p, **tables(p, row_V)})(params["model"])}


def tables(params, row_V):
    return {name: params[name][row_V] for name in ("embed_VD", "head_VD")}


def test_a_language_with_the_rows_of_another_is_scored_exactly_as_it():
    classifier, params, _ = trained("reference")
    row_V = np.tile(np.arange(U), 2)
    copied = with_copied_rows(params, row_V)
    encoded = [transfer.map_ids_to_language(TEST[0], map_U) for map_U in MAP_GU]
    assert not np.array_equal(encoded[0].ids_nL, encoded[1].ids_nL)
    first, second = (classifier.predict(copied, each) for each in encoded)
    np.testing.assert_array_equal(first, second)


def test_what_fine_tuning_teaches_carries_over_to_rows_that_began_as_copies():
    # Only the first language's rows are trained, so that the two part a little.
    row_V = np.tile(np.arange(U), 2)
    model = {**pretrained(), **tables(pretrained(), row_V)}
    model["embed_VD"] = 10 * model["embed_VD"]  # so that it parts little in few updates
    classifier = ClassifierTrainer(MODEL, dataclasses.replace(QUICK, learning_rate=5e-3))
    params, _ = classifier.train(model, *TRAIN, 2, lambda params: np.zeros(2))
    assert (scored(classifier, params, 1) > 0.9).all()


# Encoding.


def test_texts_get_a_separator_each_and_padding_up_to_the_length():
    found = transfer.encode_examples([[[5, 6], [7]], [[9]]], separator=2, pad=0, length=8)
    assert found.ids_nL.tolist() == [[5, 6, 2, 7, 2, 0, 0, 0], [9, 2, 0, 0, 0, 0, 0, 0]]
    assert found.last_n.tolist() == [4, 1]


def test_the_end_of_the_second_text_is_what_truncation_loses_with_its_separator():
    found = transfer.encode_examples(
        [[[5, 6], [7, 8, 9]], [[5] * 5, [8]]], separator=2, pad=0, length=6
    )
    assert found.ids_nL.tolist() == [[5, 6, 2, 7, 8, 9], [5, 5, 5, 5, 5, 2]]
    assert found.last_n.tolist() == [5, 5] and found.cut == 2
    assert transfer.encode_examples([[[5], [7]]], separator=2, pad=0, length=4).cut == 0


def test_a_clone_has_all_ids_but_padding_moved_by_the_vocabulary():
    encoded = transfer.encode_examples([[[5, 6]]], separator=2, pad=0, length=5)
    moved = transfer.map_ids_to_language(encoded, MAP_GU[1])
    assert moved.ids_nL.tolist() == [[5 + U, 6 + U, 2 + U, 0, 0]]
    assert moved.last_n.tolist() == encoded.last_n.tolist()


# Protocols.


@jax.jit
def states(params, ids_BL, position_B):
    """Returns what is pooled, and what the model makes of all positions."""
    pooled_BD = transfer.pool_states(params, MODEL, ids_BL, position_B)
    return pooled_BD, model_lib.compute_last_hidden_state(params, MODEL, ids_BL)


def test_the_reference_reads_the_last_position_and_intended_that_of_the_text():
    encoded = transfer.encode_examples([[[5, 6]], [[7] * 20]], separator=2, pad=0, length=L)
    places = {
        protocol: ClassifierTrainer(MODEL, dataclasses.replace(QUICK, protocol=protocol))
        .positions(encoded)
        .tolist()
        for protocol in transfer.PROTOCOLS
    }
    assert places == {"reference": [15, 15], "intended": [2, 15]}


def test_the_state_is_that_after_the_last_block_and_before_the_final_norm():
    ids_BL, position_B = jnp.array([[5, 6, 2, 0], [7, 8, 9, 2]]), jnp.array([2, 3])
    scale = np.linspace(0.5, 2, 16)
    norm = {"scale_D": jnp.array(scale), "bias_D": jnp.arange(16.0)}
    params = {**pretrained(), "final_norm": norm}
    pooled_BD, last_BLD = map(np.asarray, states(params, ids_BL, position_B))
    centred = pooled_BD - pooled_BD.mean(1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    after = last_BLD[np.arange(2), position_B]
    np.testing.assert_allclose(normal * scale + np.arange(16), after, atol=1e-4)


def test_padding_is_seen_by_the_reference_and_not_by_intended():
    ids_BL, last_B = jnp.array([[5, 6, 2, 0], [7, 2, 0, 0]]), jnp.array([2, 1])
    other = {**pretrained(), "embed_VD": pretrained()["embed_VD"].at[0].add(1.0)}
    at = lambda params, position_B: states(params, ids_BL, position_B)[0]
    np.testing.assert_array_equal(at(pretrained(), last_B), at(other, last_B))
    end_B = jnp.array([3, 3])
    assert not np.allclose(at(pretrained(), end_B), at(other, end_B), atol=1e-2)


def scripted(protocol, scores, **changes):
    """Trains nothing, with scores as given, and returns weights' marks, updates, and calls.

    The weights of a seed are marked by how many updates they have had: Adam's first steps with a
    gradient that stays the same are all alike.
    """
    settings = dataclasses.replace(
        QUICK, protocol=protocol, epochs=1, batch_size=1, evaluate_every=1, learning_rate=1.0
    )
    classifier = ClassifierTrainer(MODEL, dataclasses.replace(settings, **changes))
    n, given, calls = 6, iter(scores), []
    encoded = EncodedExamples(np.full((n, L), 5, np.int32), np.zeros(n, np.int32))

    def score(params):
        calls.append(1)
        return np.array(next(given), float)

    def update(state, batch, context, step, rate, config, together):
        params = {"mark": state.params["mark"] + 1}
        return dataclasses.replace(state, params=params), jnp.zeros(2)

    begun = transfer.FineTuningState({"mark": jnp.zeros((2, 1))}, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "init_states", lambda params, seeds, C: begun)
        patch.setattr(transfer, "_update_states", update)
        found, updates = classifier.train({}, encoded, np.zeros(n, int), 2, score)
    return found["mark"][:, 0].tolist(), updates, len(calls)


def test_the_reference_keeps_the_last_weights_and_never_asks_for_a_score():
    assert scripted("reference", []) == ([6, 6], 6, 0)


def test_intended_keeps_the_best_weights_of_each_seed():
    scores = [(0.1, 0.9), (0.5, 0.1), (0.3, 0.2), (0.4, 0.3), (0.2, 0.2), (0.1, 0.1)]
    assert scripted("intended", scores) == ([2, 1], 6, 6)


def test_intended_stops_when_no_seed_has_gained_for_as_long_as_its_patience():
    scores = [(0.1, 0.9), (0.5, 0.1), (0.5, 0.2), (0.5, 0.3)]
    assert scripted("intended", scores, patience=2) == ([2, 1], 4, 4)
    # Less than the threshold is no gain, though it is better.
    scores = [(0.1, 0.9), (0.5, 0.1), (0.5004, 0.2), (0.5008, 0.3)]
    assert scripted("intended", scores, patience=2) == ([4, 1], 4, 4)


def test_a_seed_that_has_stopped_stays_as_it_was():
    scores = [(0.5, 0.1), (0.4, 0.2), (0.4, 0.3), (0.9, 0.4), (0.9, 0.5), (0.9, 0.6)]
    assert scripted("intended", scores, patience=2)[0] == [1, 6]


def test_a_training_too_short_to_be_scored_keeps_its_last_weights():
    assert scripted("intended", [], evaluate_every=7) == ([6, 6], 6, 0)


def test_intended_chooses_by_f1_of_the_second_class_or_by_accuracy():
    said = np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
    assert transfer.compute_selection_score(said, np.array([1, 0, 1, 0]), 2).tolist() == [0.5, 0.0]
    assert transfer.compute_selection_score(said, np.array([1, 1, 1, 0]), 2).tolist() == [0.8, 0.0]
    assert transfer.compute_selection_score(said, np.array([1, 0, 0, 0]), 3).tolist() == [
        0.75,
        0.75,
    ]


# Training.


def test_the_rate_falls_to_zero_and_the_last_batch_of_an_epoch_has_what_is_left():
    seen = []
    classifier = ClassifierTrainer(MODEL, dataclasses.replace(QUICK, epochs=2))
    n = 40  # 2 updates an epoch, the second with 8 examples
    encoded, label_n = EncodedExamples(TRAIN[0].ids_nL[:n], TRAIN[0].last_n[:n]), TRAIN[1][:n]
    original = transfer._update_states

    def watched(state, batch, context, step, rate, config, together):
        seen.append((int(step), float(rate), np.sum(batch.weight_B, axis=1).tolist()))
        return original(state, batch, context, step, rate, config, together)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_update_states", watched)
        classifier.train(pretrained(), encoded, label_n, 2, lambda params: np.zeros(2))
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    np.testing.assert_allclose([rate for _, rate, _ in seen], [1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert [weight for _, _, weight in seen] == [[32, 32], [8, 8]] * 2


def test_the_first_update_is_adams_after_clipping():
    state = transfer.init_states(pretrained(), seeds=2, C=2)
    encoded, label_n = EncodedExamples(TRAIN[0].ids_nL[:32], TRAIN[0].last_n[:32]), TRAIN[1][:32]
    stacked = lambda values: np.stack([values] * 2)
    batch = transfer.ExampleBatch(
        stacked(encoded.ids_nL),
        stacked(np.full(32, L - 1, np.int32)),
        stacked(label_n.astype(np.int32)),
        np.ones((2, 32), np.float32),
    )
    before = np.asarray(state.params["head"]["b_C"])
    after, loss_S = transfer._update_states(
        state, batch, NO_CONTEXT, jnp.asarray(0), jnp.asarray(1e-2), MODEL, 1
    )
    assert np.isfinite(loss_S).all()
    # Adam's first step is the sign of the gradient, whatever clipping made of its size.
    moved = np.asarray(after.params["head"]["b_C"]) - before
    np.testing.assert_allclose(np.abs(moved), 1e-2, rtol=1e-3)
    mu = [np.asarray(leaf) for leaf in jax.tree.leaves(after.opt_state[1].mu)]
    norms_S = np.sqrt(sum(np.sum(leaf.reshape(2, -1) ** 2, axis=1) for leaf in mu))
    assert (norms_S <= 0.1 * (1 + 1e-5)).all()  # (1 - b1) times a gradient of norm 1 at most


def test_what_fills_up_a_batch_is_not_learnt_from():
    ids_BL, position_B = TRAIN[0].ids_nL[:4], np.full(4, L - 1, np.int32)
    weight_B = np.array([1, 1, 1, 0], np.float32)

    def update(label_B):
        state = transfer.init_states(pretrained(), seeds=1, C=2)
        given = (ids_BL, position_B, np.asarray(label_B, np.int32), weight_B)
        batch = transfer.ExampleBatch(*(value[None] for value in given))
        head = jax.tree.map(np.asarray, state.params["head"])
        # No other test has batches of this size, which are compiled without dropout from here on.
        after, (loss,) = transfer._update_states(
            state, batch, NO_CONTEXT, jnp.asarray(0), jnp.asarray(1e-2), MODEL, 1
        )
        return head, jax.tree.leaves(after.params), float(loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_DROPOUT", 0.0)
        head, first, loss = update([0, 1, 1, 0])
        _, second, other = update([0, 1, 1, 1])
    assert loss == other and all(map(np.array_equal, first, second))
    # And the mean is over what is left: minus the log of a softmax by hand.
    pooled_BD = np.asarray(states(pretrained(), ids_BL, position_B)[0], float)
    logits_BC = pooled_BD @ head["w_DC"][0] + head["b_C"][0]
    log_BC = logits_BC - np.log(np.exp(logits_BC).sum(1, keepdims=True))
    assert loss == pytest.approx(-np.mean(log_BC[np.arange(3), [0, 1, 1]]), rel=1e-5)


def test_every_seed_goes_through_all_examples_once_an_epoch_in_an_order_of_its_own():
    classifier = ClassifierTrainer(MODEL, dataclasses.replace(QUICK, batch_size=3, epochs=2))
    n = 7
    ids_nL = np.repeat(np.arange(n, dtype=np.int32)[:, None], L, 1)
    batches = list(
        classifier._batches(EncodedExamples(ids_nL, np.zeros(n, np.int32)), np.arange(n))
    )
    assert classifier.updates(n) == len(batches) == 6
    orders = np.array(
        [
            [v for b in batches for v, w in zip(b.ids_BL[s, :, 0], b.weight_B[s], strict=True) if w]
            for s in range(2)
        ]
    ).reshape(2, 2, n)
    assert (np.sort(orders, axis=2) == np.arange(n)).all()
    assert len({tuple(order) for order in orders.reshape(4, n)}) == 4
    assert all((b.label_B == b.ids_BL[..., 0]).all() for b in batches)


def test_the_head_begins_as_pytorch_begins_a_linear_layer():
    head = transfer.init_states(pretrained(), seeds=2, C=2).params["head"]
    for name in ("w_DC", "b_C"):
        assert np.abs(head[name]).max() <= 1 / 4
    # 64 values: three standard errors.
    assert np.std(head["w_DC"]) == pytest.approx(1 / 4 / math.sqrt(3), rel=0.17)


def test_seeds_have_heads_of_their_own():
    heads = np.asarray(trained("reference")[1]["head"]["w_DC"])
    assert not np.allclose(heads[0], heads[1], atol=1e-2)


# Results.


def seeds_of(*shares, n=10):
    """Returns whether each seed is right on each of n examples, for as many as a share of them."""
    return np.array([np.arange(n) < share * n for share in shares])


def row(*shares, majority=0.5, n=10):
    return transfer_results.estimate_accuracy(seeds_of(*shares, n=n), range(n), majority=majority)


def test_intervals_are_those_of_scipy():
    found = row(0.6, 0.7, 0.8, n=50)
    assert found["accuracy"] == pytest.approx(0.7)
    expected = scipy.stats.t.interval(0.95, 2, 0.7, scipy.stats.sem([0.6, 0.7, 0.8]))
    assert found["over_seeds"] == pytest.approx(expected)
    # Of Student's t with 49 degrees of freedom, by the level at which the normal is that wide.
    level = 2 * scipy.stats.norm.cdf(scipy.stats.t.ppf(0.975, 49)) - 1
    wilson = scipy.stats.binomtest(35, 50).proportion_ci(level, method="wilson")
    alone = row(0.7, n=50)
    # A single seed says nothing of others.
    assert alone["over_examples"] == alone["interval"] == pytest.approx((wilson.low, wilson.high))
    assert alone["over_seeds"] is None
    low, high = row(1.0)["interval"]  # ten of ten are not all there are
    assert 0.6 < low < 0.8 and high == pytest.approx(1)
    assert transfer_results.estimate_t_interval([0.5]) is None
    assert transfer_results.estimate_t_interval([0.4, 0.9]) == [0, 1]  # no accuracy is beyond


def test_examples_of_one_text_count_as_one():
    once = transfer_results.estimate_accuracy(seeds_of(0.7, n=50), range(50), majority=0.5)
    eight_times = np.repeat(seeds_of(0.7, n=50), 8, axis=1)
    groups = np.repeat(np.arange(50), 8)
    found = transfer_results.estimate_accuracy(eight_times, groups, majority=0.5)
    for name in ("accuracy", "error", "interval", "over_examples", "groups"):
        assert found[name] == pytest.approx(once[name]), name
    alone = transfer_results.estimate_accuracy(eight_times, range(400), majority=0.5)
    assert alone["error"] == pytest.approx(once["error"] / math.sqrt(8))


def test_what_was_measured_before_there_were_intervals_is_not_shown(tmp_path):
    run = RunDirectory(tmp_path)
    assert transfer_results.read_transfer_results(run) == {}
    old = {"languages": {"en1": {"accuracy": 0.5, "seeds": [0.5], "majority": 0.5}}}
    new = {"languages": {"en1": row(0.5)}}
    run.write_json("transfer.json", {"reference": {"en1": {"rte": old}, "en2": {"rte": new}}})
    assert list(transfer_results.read_transfer_results(run)["reference"]) == ["en2"]


def test_a_single_text_says_next_to_nothing_of_others():
    found = transfer_results.estimate_accuracy(seeds_of(0.6, 0.7, 0.8), [0] * 10, majority=0.5)
    for name in ("interval", "over_examples"):
        low, high = found[name]
        assert low < 0.02 and high > 0.98
    assert found["over_seeds"] == row(0.6, 0.7, 0.8)["over_seeds"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_covers_other_seeds_on_other_examples_as_often_as_it_says(seeds):
    # Whether an example is right: how easy it is, and its group, and how good the seed is.
    rng = np.random.default_rng(0)
    spread = {"example": 0.5, "group": 1.0, "seed": 0.2 * (seeds > 1)}
    total = math.sqrt(1 + sum(value**2 for value in spread.values()))
    truth, trials, covered = scipy.stats.norm.cdf(0.5 / total), 400, 0
    groups = np.repeat(np.arange(60), 4)
    for _ in range(trials):
        level = 0.5 + spread["example"] * rng.normal(size=240)
        level += spread["group"] * rng.normal(size=60)[groups]
        level = level + spread["seed"] * rng.normal(size=(seeds, 1))
        correct = level + rng.normal(size=(seeds, 240)) > 0
        low, high = transfer_results.estimate_accuracy(correct, groups, majority=0.5)["interval"]
        covered += low <= truth <= high
    # 0.95 in 400 trials, within three standard errors below; adding the two parts counts what a
    # seed and an example have between them twice, so that it may be more.
    assert 0.917 < covered / trials < 0.99


def test_the_mean_is_over_tasks_and_of_languages_that_have_all_of_them():
    tasks = {
        "a": {"languages": {"en1": row(0.8, 0.6), "fr": row(0.5)}},
        "b": {"languages": {"en1": row(0.4, 0.6, majority=0.7)}},
    }
    found = transfer_results.average_over_tasks(tasks)
    assert list(found) == ["en1"] and found["en1"]["accuracy"] == pytest.approx(0.6)
    assert found["en1"]["seeds"] == pytest.approx([0.6, 0.6])
    assert found["en1"]["majority"] == pytest.approx(0.6)
    errors = [tasks[name]["languages"]["en1"]["error"] for name in "ab"]
    assert found["en1"]["error"] == pytest.approx(math.sqrt(sum(np.square(errors))) / 2)
    # What was learnt in different ways has no mean.
    assert (
        transfer_results.average_over_tasks(
            {**tasks, "b": {**tasks["b"], "settings": {"epochs": 1}}}
        )
        == {}
    )


def test_a_study_shows_accuracy_over_the_part_of_the_other_languages():
    runs, observations = {}, []
    for name, ratio, second in (("a0", "9:1", 0.7), ("a1", "9:1", 0.8), ("b0", "1:1", 0.5)):
        config = config_lib.resolve_config(config_lib.cloned(scale="pico", ratio=ratio))
        languages_ = {"en1": row(0.9), "en2": row(second)}
        found = {"reference": {"en1": {"rte": {"languages": languages_}}}}
        runs[name] = types.SimpleNamespace(
            spec=types.SimpleNamespace(kind="mixture", cell=name[0]),
            state=types.SimpleNamespace(state="done"),
            config=config,
            directory=types.SimpleNamespace(read_json=lambda _, found=found: found),
        )
        share = config.mixture.ratio["en1"] / sum(config.mixture.ratio.values())
        observations.append(types.SimpleNamespace(run=name, language="en1", share=share))
    table = types.SimpleNamespace(runs=runs, observations=observations)
    (panel,) = make_transfer_panels(table)
    assert panel.title == "rte, fine-tuned in en1 (reference): accuracy"
    lines = {line.name: line for line in panel.lines}
    assert [point.y for point in lines[""].points] == [0.5]  # the most frequent label
    rare, even = lines["en2"].points
    assert (round(rare.x), round(even.x)) == (10, 50)
    assert rare.y == pytest.approx(0.75) and rare.runs == (0.7, 0.8)
    low, high = scipy.stats.t.interval(0.95, 1, 0.75, scipy.stats.sem([0.7, 0.8]))
    assert high > 1 and (rare.low, rare.high) == pytest.approx((low, 1))
    assert math.isnan(even.low)
    # Runs that were fine-tuned in another way are no points of the same line.
    runs["b0"].directory.read_json("")["reference"]["en1"]["rte"]["settings"] = {"epochs": 1}
    runs["a0"].directory.read_json("")["reference"]["en1"]["rte"]["settings"] = {"epochs": 2}
    runs["a1"].directory.read_json("")["reference"]["en1"]["rte"]["settings"] = {"epochs": 2}
    first, second = make_transfer_panels(table)
    assert first.title.endswith("accuracy, epochs=2") and second.title.endswith("epochs=1")


# The command.


@pytest.fixture(scope="module")
def run_directory(english, data_dir, tmp_path_factory):
    """A run that has just begun: its config, tokenizer and vocabulary, and its first weights."""
    config = tiny_config(data_dir, model__attention="einsum")
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "run")
    run.claim(config)
    run.release()
    run.write_bytes("tokenizer-en.model", english.model)
    vocabulary = languages.build_vocabulary(config, {"en": english.pieces})
    run.write_bytes("vocabulary.npz", vocabulary.to_bytes())
    checkpoints = Checkpoints(run.checkpoints)
    checkpoints.save(begun())
    checkpoints.close()
    return run


@pytest.fixture
def given(monkeypatch):
    """Returns a function that gives the command its flags, and calls it."""
    values = flags.FlagValues()
    for name in ("string", "enum", "integer", "float", "list", "bool"):
        define = getattr(flags, f"DEFINE_{name}")
        monkeypatch.setattr(flags, f"DEFINE_{name}", functools.partial(define, flag_values=values))
    command.define_flags()
    monkeypatch.setattr(command, "FLAGS", values)

    def call(*args):
        values(["transfer", *args])
        return command.main()

    return call


SMALL = ("--seeds=2", "--epochs=1", "--batch_size=32", "--length=16")


def task_files(directory):
    words = {"good": "a fine and good thing", "bad": "a poor and bad thing"}
    for part, count in (("train", 4), ("valid", 3)):
        rows = [{"sentence": text, "label": label} for label, text in words.items()] * count
        (directory / f"sst2.{part}.json").write_text("\n".join(map(json.dumps, rows)))


def test_a_task_is_kept_beside_others_and_shown_in_the_report(run_directory, tmp_path, given):
    task_files(tmp_path)
    other = {
        "settings": dataclasses.asdict(QUICK),
        "step": 0,
        "examples": {"train": 1, "test": {"en": 1}},
        "updates": 1,
        "languages": {},
    }
    known = {"reference": {"en1": {"cola": other}}, "intended": {}}
    run_directory.write_json("transfer.json", known)
    where = (f"--workdir={run_directory}", f"--tasks_dir={tmp_path}")
    assert given("--tasks=sst2", *where, *SMALL) == 0
    results = run_directory.read_json("transfer.json")
    assert results["intended"] == {} and list(results["reference"]["en1"]) == ["cola", "sst2"]
    assert find_undocumented("transfer.json", list_json_names(results)) == []
    found = results["reference"]["en1"]["sst2"]
    assert found["examples"] == {"train": 8, "test": {"en": 6}} and found["updates"] == 1
    assert found["labels"] == ["bad", "good"] and found["step"] == 0
    for tag in ("en1", "en2"):
        row = found["languages"][tag]
        assert row["majority"] == 0.5 and len(row["seeds"]) == 2
    report = (run_directory.path / "report.html").read_text()
    assert "Tasks learnt in one language" in report and "<svg" in report
    assert f'<data value="{found["languages"]["en2"]["accuracy"]:.12g}">' in report


def test_each_language_is_scored_under_its_own_ids(run_directory, tmp_path, given, monkeypatch):
    task_files(tmp_path)
    rows = [{"sentence": "a thing", "label": label} for label in ("bad", "bad", "good")]
    (tmp_path / "sst2.valid.json").write_text("\n".join(map(json.dumps, rows)))
    # A classifier that tells the languages apart: bad in the first, good in the second.
    predict = lambda self, params, encoded: np.array([encoded.ids_nL.max(axis=1) >= U] * 2, int)
    monkeypatch.setattr(ClassifierTrainer, "predict", predict)
    args = (f"--workdir={run_directory}", f"--tasks_dir={tmp_path}", "--tasks=sst2", *SMALL)
    assert given(*args, "--overwrite") == 0
    found = run_directory.read_json("transfer.json")["reference"]["en1"]["sst2"]["languages"]
    assert found["en1"]["seeds"] == pytest.approx([2 / 3] * 2)
    assert found["en2"]["seeds"] == pytest.approx([1 / 3] * 2)
    assert found["en1"]["majority"] == found["en2"]["majority"] == pytest.approx(2 / 3)


def test_what_is_known_is_not_measured_again_and_not_replaced_unasked(
    run_directory, tmp_path, given, capsys, monkeypatch
):
    task_files(tmp_path)
    run_directory.write_json("transfer.json", {})
    args = (f"--workdir={run_directory}", f"--tasks_dir={tmp_path}", "--tasks=sst2", *SMALL)
    assert given(*args) == 0
    before = run_directory.read_json("transfer.json")
    with monkeypatch.context() as patch:
        patch.setattr(TransferRun, "measure", None)
        assert given(*args) == 0
    assert "sst2 is known already" in capsys.readouterr().out
    # Said before anything is trained on.
    with pytest.raises(ValueError, match=r"with learning_rate=5e-05 and not 0\.1\. --overwr"):
        given(*args, "--learning_rate=0.1")
    assert run_directory.read_json("transfer.json") == before
    assert given(*args, "--learning_rate=0.1", "--overwrite") == 0
    found = run_directory.read_json("transfer.json")["reference"]["en1"]["sst2"]
    assert found["settings"]["learning_rate"] == 0.1


def test_a_loss_that_is_no_number_ends_the_command_and_writes_nothing(
    run_directory, tmp_path, given, capsys
):
    task_files(tmp_path)
    run_directory.write_json("transfer.json", {})
    args = (f"--workdir={run_directory}", f"--tasks_dir={tmp_path}", "--tasks=sst2", *SMALL)
    assert given(*args, "--learning_rate=1e38", "--epochs=3") == 1
    assert "is not a finite number. Set a lower --learning_rate" in capsys.readouterr().err
    assert run_directory.read_json("transfer.json") == {}


def test_the_flags_are_the_settings_with_their_defaults(given):
    for field in dataclasses.fields(FineTuningSettings):
        default = command.FLAGS[field.name].default
        assert default == (None if field.name == "length" else field.default), field.name
    command.FLAGS(["transfer"])
    assert command._read_settings(512) == FineTuningSettings()
    # A smaller model has all of its positions read.
    assert command._read_settings(64) == FineTuningSettings(length=64)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--train_language=de"], "--train_language=de: the run has no such language. It has: en1"),
        (["--languages=en1,de"], "--languages=de: the run has no such language"),
        (["--length=128"], "--length=128: the model has 16 positions. Set --length=16"),
        (["--tasks=colo"], r"--tasks=colo: there is no such task. Did you mean cola\?"),
        (["--tasks=rte", "--tasks_dir=nowhere"], "rte.train.json and rte.valid.json"),
        (["--seeds=0"], "--seeds=0: it must be 1 or more"),
        (["--threshold=-1"], "--threshold=-1.0: it must be 0 or more"),
    ],
)
def test_a_mistake_is_refused_by_its_flag_before_anything_is_trained(
    run_directory, given, args, said
):
    with pytest.raises(ValueError, match=said):
        given(f"--workdir={run_directory}", *SMALL, *args)


def test_a_directory_that_cannot_be_written_to_is_refused_before_anything_is_trained(
    run_directory, given, monkeypatch
):
    def refuse(path):
        raise PermissionError(errno.EACCES, "refused", str(path))

    monkeypatch.setattr(storage, "try_directory", refuse)
    with pytest.raises(ValueError, match=f"{run_directory} cannot be written to"):
        given(f"--workdir={run_directory}", "--tasks=origin")


def test_a_training_too_short_to_choose_from_is_said_to_be():
    settings = dataclasses.replace(QUICK, epochs=2, protocol="intended")
    assert ClassifierTrainer(MODEL, settings).never_scored(32 * 9)  # 18 updates, and 20 are scored
    assert not ClassifierTrainer(MODEL, settings).never_scored(32 * 10)
    reference = dataclasses.replace(settings, protocol="reference")
    assert not ClassifierTrainer(MODEL, reference).never_scored(1)


def test_tasks_are_not_made_of_another_text_than_the_run_was_trained_on(
    run_directory, english, given
):
    assert english.about["text"]
    recorded = {"sources": {"en": {"text": english.about["text"]}}}
    command.check_run_text(run_directory, run_directory.config())  # an earlier run says nothing
    try:
        run_directory.write_json("provenance.json", recorded)
        command.check_run_text(run_directory, run_directory.config())
        recorded["sources"]["en"]["text"] = "another"
        run_directory.write_json("provenance.json", recorded)
        with pytest.raises(ValueError, match=r"config\.sources\.en of .* has another text now"):
            given(f"--workdir={run_directory}", "--tasks=next_sentence")
    finally:
        (run_directory.path / "provenance.json").unlink()


def test_one_of_several_processes_is_refused(run_directory, given, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(SystemExit, match="2"):
        given(f"--workdir={run_directory}")
    assert "one process" in capsys.readouterr().err


def test_a_language_in_another_order_of_words_is_left_out(run_directory):
    run = loading.load(run_directory.path)
    shuffled = dataclasses.replace(run.config.languages["en2"], words="shuffled")
    config = dataclasses.replace(run.config, languages={**run.config.languages, "en2": shuffled})
    run = dataclasses.replace(run, config=config)
    settings = dataclasses.replace(QUICK, length=16)
    found = TransferRun.make(run, settings)
    assert found.scored == ("en1",) and "en2 is left out" in found.notes[0]
    with pytest.raises(ValueError, match="--train_language=en2: its words are shuffled"):
        TransferRun.make(run, settings, "en2")


def test_texts_are_encoded_by_the_runs_tokenizer_in_either_language(run_directory, english):
    run = loading.load(run_directory.path)
    transferring = TransferRun.make(run, dataclasses.replace(QUICK, length=16))
    encoded = {
        tag: transferring.encode(Examples([("a b", "c")], np.zeros(1, int), [""]), tag)
        for tag in run.vocabulary.tags
    }
    separator = [english.tokenizer.separator]
    first, second = (english.tokenizer.encode(text) for text in ("a b", "c"))
    expected = first + separator + second + separator
    row = encoded["en1"].ids_nL[0]
    assert row.tolist() == expected + [0] * (16 - len(expected))
    moved = np.where(row > 0, row + english.pieces.size, 0)
    assert encoded["en2"].ids_nL[0].tolist() == moved.tolist()


# Going on in one language.


def test_a_run_goes_on_in_one_language_and_its_page_has_what_the_others_lost(
    run_directory, tmp_path
):
    from imbalance_jax.cli import load_config_file

    choices = f"run={run_directory},language=en2,steps=30"
    config = config_lib.resolve_config(load_config_file(f"configs/lm_transfer.py:{choices}"))
    before = run_directory.config()
    assert config.init_from == str(run_directory) and config.steps == 30
    assert config.mixture.ratio == {"en1": 0, "en2": 1} and config.evaluation.every == 3
    assert config.optimizer.peak_lr == pytest.approx(before.optimizer.peak_lr / 10)
    assert (config.sources, config.model) == (before.sources, before.model)
    init_from.check_init_from(config)
    wrong = dataclasses.replace(config, init_from=f"{run_directory}@7")
    with pytest.raises(ValueError, match=r"has no checkpoint of step 7. It has: \[0\]"):
        init_from.check_init_from(wrong)
    run = RunDirectory(tmp_path / "on")
    run.claim(config)
    run.log(0, {"eval/loss/en1": 3.0, "eval/loss/en2": 4.0})
    run.log(30, {"eval/loss/en1": 3.5, "eval/loss/en2": 3.25})
    found = transfer_section.find_first_last_losses(record.read_run_contents(run))
    assert found == {"en1": (3.0, 3.5), "en2": (4.0, 3.25)}
    written = page.write_run_page(run).read_text()
    assert "What was gained and forgotten" in written
    assert "+0.500" in written and "−0.750" in written


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ("", "run= is missing"),
        ("run={},language=fr", "language=fr: .* has no such language"),
        ("run={}", "language= is missing. .* has: en1, en2"),
        ("run={},language=en2,steps=x", "steps=x: it must be a whole number"),
    ],
)
def test_a_run_to_go_on_from_is_asked_for(run_directory, choices, said):
    import runpy

    get_config = runpy.run_path("configs/lm_transfer.py")["get_config"]
    with pytest.raises(ValueError, match=said):
        get_config(choices.format(run_directory))
