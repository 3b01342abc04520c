"""The leak and the probe against whole softmaxes, plain ridge regression and known languages."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest
from helpers import make_mesh, random_params

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import sharding
from imbalance_jax.config import ModelConfig
from imbalance_jax.evaluation import leak_probe as telling
from imbalance_jax.evaluation.programs import MeasurementPrograms, Measuring

L, D, N = 12, 16, 2
MODEL = ModelConfig(L=L, D=D, H=2, K=8, F=24, N=N, attention="einsum", scan_layers=True)
G, U = 2, 40
SHARED = 5  # the last pieces of the second language are those of the first
V = G * U
WINDOWS = 21  # of each language; neither half nor all of them are a number of batches


ONE = make_mesh(1)


@functools.cache
def compiled(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    # Half the time to compile, as for what is measured.
    quick: Any = {"xla_backend_optimization_level": 1}
    return jax.jit(function, static_argnums=1, compiler_options=quick)


@pytest.fixture(scope="module")
def programs() -> MeasurementPrograms:
    return MeasurementPrograms(ONE, 16)


def with_rows(params: model_lib.Params, second_UD: np.ndarray) -> model_lib.Params:
    """Returns a model whose second language has these rows of the embedding."""
    embed_VD = np.concatenate([params["embed_VD"][:U], np.float32(second_UD)])
    return params | {"embed_VD": embed_VD}


@pytest.fixture(scope="module")
def params() -> model_lib.Params:
    return random_params(MODEL, V)


def map_of(shared: int = 0) -> np.ndarray:
    map_GU = np.arange(V, dtype=np.int32).reshape(G, U)
    map_GU[1, U - shared :] = map_GU[0, U - shared :]
    return map_GU


def own_of(map_GU: np.ndarray) -> np.ndarray:
    own_GV = np.zeros((G, V), bool)
    for g in range(G):
        own_GV[g, map_GU[g]] = True
    return own_GV


def random_windows(seed: int = 1, pieces: Sequence[int] = range(U)) -> list[np.ndarray]:
    """Returns windows of each language, whose frequent pieces come first."""
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(2, len(pieces) + 2)
    shape = (WINDOWS, L + 1)
    draw = functools.partial(rng.choice, np.array(pieces), shape, p=weight / weight.sum())
    return [draw().astype(np.uint16) for _ in range(G)]


def states_of(
    params: model_lib.Params, map_GU: np.ndarray, windows: Sequence[np.ndarray]
) -> np.ndarray:
    """Returns the states of all windows but their last id: (G, layers, windows, L, D)."""
    run = compiled(model_lib.compute_hidden_states)
    ids = [map_GU[g][ids_nW[:, :-1]] for g, ids_nW in enumerate(windows)]
    states = np.float64(run(params, MODEL, np.concatenate(ids)))
    return np.stack([states[:, g * WINDOWS : (g + 1) * WINDOWS] for g in range(G)])


# The leak.


def measured_leak(
    programs: MeasurementPrograms,
    params: model_lib.Params,
    shared: int,
    windows: Sequence[np.ndarray],
    counts: Sequence[np.ndarray],
) -> list[dict[str, Any]]:
    map_GU = map_of(shared)
    tables = (map_GU, own_of(map_GU))
    return telling.measure_leak(Measuring(programs, params, MODEL), tables, windows, counts)


@pytest.fixture(scope="module")
def counts() -> list[np.ndarray]:
    """How often each piece occurs, another number in each language, and some never."""
    counts = [np.geomspace(3e4, 0.3, U).astype(int), np.geomspace(2, 5e5, U).astype(int)]
    assert (counts[0] == 0).any() and not (counts[1] == 0).any()
    return counts


@pytest.fixture(scope="module")
def leaks(programs, params, counts) -> list[dict[str, Any]]:
    return measured_leak(programs, params, SHARED, random_windows(), counts)


def test_the_leak_is_what_whole_softmaxes_give_to_other_languages(params, counts, leaks):
    map_GU, windows = map_of(SHARED), random_windows()
    logits = compiled(model_lib.compute_next_token_logits)
    for g in range(G):
        logits_nLV = np.float64(logits(params, MODEL, map_GU[g][windows[g][:, :-1]]))
        p_nLV = np.exp(logits_nLV - logits_nLV.max(axis=-1, keepdims=True))
        p_nLV /= p_nLV.sum(axis=-1, keepdims=True)
        own_nL = p_nLV[..., sorted(set(map_GU[g].tolist()))].sum(axis=-1)
        assert leaks[g]["windows"] == WINDOWS
        for name, values_nL in (("leak", 1 - own_nL), ("language_nats", -np.log(own_nL))):
            found = leaks[g][name]
            close = functools.partial(np.testing.assert_allclose, rtol=1e-4, err_msg=name)
            close(found["by_position"], values_nL.mean(axis=0))
            # By frequency: each position is in the bin of the piece that is read or to come.
            for place, ids_nL in (("read", windows[g][:, :-1]), ("target", windows[g][:, 1:])):
                bins: dict[int, list[float]] = {}
                for value, base in zip(values_nL.ravel(), ids_nL.ravel(), strict=True):
                    if count := int(counts[g][base]):
                        k = max(k for k in range(40) if 10 ** (k / 4) <= count * (1 + 1e-12))
                        bins.setdefault(k, []).append(value)
                here = found[f"by_own_frequency_{place}"]
                assert sorted(here) == ["high", "low", "mean", "tokens"]
                close(here["low"], [10 ** (k / 4) for k in sorted(bins)])
                close(here["high"], [10 ** ((k + 1) / 4) for k in sorted(bins)])
                assert here["tokens"] == [len(bins[k]) for k in sorted(bins)]
                close(here["mean"], [np.mean(bins[k]) for k in sorted(bins)])
    assert (
        sum(leaks[0]["leak"]["by_own_frequency_read"]["tokens"]) < WINDOWS * L
    )  # some never occur
    assert sum(leaks[1]["leak"]["by_own_frequency_read"]["tokens"]) == WINDOWS * L


def test_copies_leak_the_half_everywhere(programs, params, counts):
    copies = with_rows(params, params["embed_VD"][:U])
    copies |= {"head_VD": np.tile(params["head_VD"][:U], (2, 1))}
    for found in measured_leak(programs, copies, 0, random_windows(), counts):
        np.testing.assert_allclose(found["leak"]["by_position"], 0.5, atol=1e-6)
        np.testing.assert_allclose(found["language_nats"]["by_position"], math.log(2), atol=1e-6)
        np.testing.assert_allclose(found["leak"]["by_own_frequency_target"]["mean"], 0.5, atol=1e-6)


def test_nothing_leaks_where_all_ids_are_everyones(programs, params, counts):
    tables = (map_of(), np.ones((G, V), bool))
    measuring = Measuring(programs, params, MODEL)
    for found in telling.measure_leak(measuring, tables, random_windows(), counts):
        for name in ("leak", "language_nats"):
            np.testing.assert_allclose(found[name]["by_position"], 0, atol=1e-6)


# The probe.


def measured_probe(
    programs: MeasurementPrograms,
    params: model_lib.Params,
    windows: Sequence[np.ndarray],
    shared: int = 0,
) -> dict[str, Any]:
    return telling.probe_languages(Measuring(programs, params, MODEL), map_of(shared), windows)


def slow_ridge(x_nD: np.ndarray, label_n: np.ndarray) -> Any:
    """Ridge regression on one-hot labels with a free constant; returns a classifier."""
    mean_D, target_nC = x_nD.mean(axis=0), np.eye(G)[label_n]
    centred_nD = x_nD - mean_D
    # A thousandth of the mean variance of a feature, for each of them, and each sample.
    shrink = 1e-3 * centred_nD.var(axis=0).mean() * len(x_nD)
    # As least squares with D more samples that ask for weights of zero.
    rows = np.vstack([centred_nD, math.sqrt(shrink) * np.eye(D)])
    wanted = np.vstack([target_nC - target_nC.mean(axis=0), np.zeros((D, G))])
    weight_DC = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return lambda x_mD: ((x_mD - mean_D) @ weight_DC + target_nC.mean(axis=0)).argmax(axis=1)


def slow_probe(
    params: model_lib.Params, windows: Sequence[np.ndarray], shared: int = 0
) -> dict[str, Any]:
    map_GU = map_of(shared)
    draws = np.random.default_rng(0)
    learned = set(np.flatnonzero(draws.permutation(U) < U // 2).tolist())
    label_V = draws.integers(0, G, int(map_GU.max()) + 1)
    assert len(learned) == U // 2
    states = states_of(params, map_GU, windows)
    samples: dict[tuple[bool, bool], list[tuple[int, int, int, int]]] = {}
    for g in range(G):
        for n in range(WINDOWS):
            for t in range(L):
                base = int(windows[g][n, t])
                first = n < WINDOWS // 2
                sample = (g, n, t, int(label_V[map_GU[g, base]]))
                samples.setdefault((first, base in learned), []).append(sample)
    seen, unseen, heart = (samples[key] for key in ((True, True), (False, False), (False, True)))
    found: dict[str, Any] = {"accuracy": [], "control": [], "variance_explained": []}
    for layer in range(N + 2):

        def x(chosen: list[tuple[int, int, int, int]], layer: int = layer) -> np.ndarray:
            return np.array([states[g, layer, n, t] for g, n, t, _ in chosen])

        language = [np.array([s[0] for s in chosen]) for chosen in (seen, unseen)]
        control = [np.array([s[3] for s in chosen]) for chosen in (seen, heart)]
        guess = slow_ridge(x(seen), language[0])(x(unseen))
        found["accuracy"].append(np.mean(guess == language[1]))
        guess = slow_ridge(x(seen), control[0])(x(heart))
        found["control"].append(np.mean(guess == control[1]))
        all_nD = x(seen)
        total = ((all_nD - all_nD.mean(axis=0)) ** 2).sum()
        within = sum(
            ((part - part.mean(axis=0)) ** 2).sum()
            for part in (all_nD[language[0] == g] for g in range(G))
        )
        found["variance_explained"].append((total - within) / total)
    return found | {
        "chance": 1 / G,
        "learned_from": len(seen),
        "scored_on": len(unseen),
    }


def assert_same_probe(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name in ("chance", "learned_from", "scored_on"):
        assert found[name] == expected[name], name
    for name in ("accuracy", "control"):
        # One sample may lie so near the line that rounding decides on which side.
        np.testing.assert_allclose(found[name], expected[name], atol=0.006, err_msg=name)
    np.testing.assert_allclose(
        found["variance_explained"], expected["variance_explained"], rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("shared", [0, SHARED])
def test_a_probe_is_a_ridge_regression_scored_on_what_it_has_not_seen(programs, params, shared):
    # Languages that can be told apart, but not every time.
    rows_UD = params["embed_VD"][U:] + 0.15
    told = with_rows(params, rows_UD)
    windows = random_windows()
    found, expected = (
        measured_probe(programs, told, windows, shared),
        slow_probe(told, windows, shared),
    )
    assert expected["scored_on"] > 1 / 0.006 / 2
    assert_same_probe(found, expected)
    # None of the numbers is trivial.
    assert all(0.55 < x < 0.99 for x in found["accuracy"][1:])
    assert all(0.5 < x < 1 for x in found["control"])


def test_a_language_with_a_direction_of_its_own_is_told_on_unseen_pieces(programs, params):
    # Copies, but for a step in one direction.
    step_D = np.zeros(D, np.float32)
    step_D[3] = 3
    first_UD = params["embed_VD"][:U].copy()
    first_UD[:, 3] *= 0.3
    told = with_rows(params | {"embed_VD": np.tile(first_UD, (2, 1))}, first_UD + step_D)
    windows = random_windows()
    same = [windows[0], windows[0]]
    found = measured_probe(programs, told, same)
    assert found["accuracy"][0] == 1 and min(found["accuracy"]) > 0.95
    # In closed form where texts are the same: half the step on each side of the mean.
    seen = slow_probe(told, same)
    np.testing.assert_allclose(found["variance_explained"], seen["variance_explained"], rtol=1e-4)
    states = states_of(told, map_of(), same)[0, 0]
    learned_U = np.random.default_rng(0).permutation(U) < U // 2
    chosen = states[: WINDOWS // 2][learned_U[windows[0][: WINDOWS // 2, :-1]]]
    between = (3 * math.sqrt(D) / 2) ** 2
    expected = between / (between + chosen.var(axis=0).sum())
    assert found["variance_explained"][0] == pytest.approx(expected, rel=1e-4)


def test_copies_cannot_be_told_apart(programs, params):
    copies = with_rows(params, params["embed_VD"][:U])
    text = random_windows()[0]
    found = measured_probe(programs, copies, [text, text])
    # Each state is there twice, under both languages: whatever is guessed is right once.
    np.testing.assert_allclose(found["accuracy"], 0.5, atol=0.01)
    np.testing.assert_allclose(found["variance_explained"], 0, atol=1e-6)
    # Of different texts the same holds on average.
    found = measured_probe(programs, copies, random_windows())
    few = 4 * 0.5 / math.sqrt(found["scored_on"] / L)  # positions of a window are alike
    np.testing.assert_allclose(found["accuracy"], 0.5, atol=few)
    assert max(found["variance_explained"]) < 0.05


def test_rows_without_a_pattern_are_learned_by_heart_and_not_told(programs, params):
    # Fewer learned ids than dimensions, and states that are the ids' rows alone.
    learned_U = np.random.default_rng(0).permutation(U) < U // 2
    pieces = [*np.flatnonzero(learned_U)[:6], *np.flatnonzero(~learned_U)]
    flat = params | {"position_LD": np.zeros((L, D), np.float32)}
    found = measured_probe(programs, flat, random_windows(pieces=pieces))
    # A probe of this kind may give any label to any id that it has seen ...
    assert found["control"][0] == 1
    # ... so what it says of unseen ids is what counts: these have no language in layer 0.
    assert abs(found["accuracy"][0] - 0.5) < 0.2
    # What was read before gives it away further up.
    assert found["accuracy"][1] > found["accuracy"][0] + 0.05


def test_neither_batches_nor_devices_change_leak_or_probe(params, programs, counts, leaks):
    windows = random_windows()
    eight = MeasurementPrograms(make_mesh(8, fsdp=2, tensor=2), 8)
    placed = jax.device_put(params, sharding.make_state_shardings(eight._whole.mesh, params))
    for found, expected in zip(
        measured_leak(eight, placed, SHARED, windows, counts), leaks, strict=True
    ):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected
        )
    found = measured_probe(eight, placed, windows, SHARED)
    assert_same_probe(found, measured_probe(programs, params, windows, SHARED))


def test_progress_may_stop_a_measurement(programs, params, counts):
    shares: list[float] = []
    map_GU, windows = map_of(), random_windows()
    telling.probe_languages(Measuring(programs, params, MODEL, shares.append), map_GU, windows)
    # Two passes over all windows.
    assert shares == pytest.approx(2 * [16 / 42, 32 / 42, 1])

    def stop(share: float) -> None:
        raise InterruptedError

    stopped = Measuring(programs, params, MODEL, stop)
    with pytest.raises(InterruptedError):
        telling.probe_languages(stopped, map_GU, windows)
    with pytest.raises(InterruptedError):
        tables = (map_GU, own_of(map_GU))
        telling.measure_leak(stopped, tables, windows, counts)
