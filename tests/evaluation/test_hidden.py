"""Similarity of states against plain loops, closed forms, and what it is for languages we make."""

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from helpers import make_mesh, no_poll, random_params
from scipy import linalg, optimize

from imbalance_jax import config as config_lib
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import sharding
from imbalance_jax.config import LanguageConfig, ModelConfig, SourceConfig
from imbalance_jax.data import parallel
from imbalance_jax.data.text.synthetic import FIRST_WORD, SyntheticSource
from imbalance_jax.evaluation import hidden, sentences, similarity
from imbalance_jax.evaluation.hidden import SequencePairs
from imbalance_jax.evaluation.programs import MeasurementPrograms, Measuring

L, D, N = 12, 16, 2
MODEL = ModelConfig(L=L, D=D, H=2, K=8, F=24, N=N, attention="einsum", scan_layers=True)
U = 40  # pieces of a language
V = 2 * U
# More pairs in a fold than dimensions, so that every rotation is determined. No batch size
# below divides their number.
P = 70
SHARED = 6  # the first pieces, where both languages have them


ONE = make_mesh(1)


@pytest.fixture(scope="module")
def programs() -> MeasurementPrograms:
    return MeasurementPrograms(ONE, 16)


# Models and sequences.


def with_rows(params: model_lib.Params, second_UD: np.ndarray) -> model_lib.Params:
    """Returns a model whose second language has these rows of the embedding."""
    embed_VD = np.concatenate([params["embed_VD"][:U], np.float32(second_UD)])
    return params | {"embed_VD": embed_VD}


@pytest.fixture(scope="module")
def params() -> model_lib.Params:
    """A model whose languages are alike, not the same."""
    params = random_params(MODEL, V)
    return with_rows(params, params["embed_VD"][:U] + 0.5 * params["embed_VD"][U:])


@pytest.fixture(scope="module")
def copies(params) -> model_lib.Params:
    copied = with_rows(params, params["embed_VD"][:U])
    return copied | {"head_VD": np.tile(params["head_VD"][:U], (2, 1))}


def as_sequences(
    bases: tuple[np.ndarray, np.ndarray],
    lengths: tuple[np.ndarray, np.ndarray],
    shared: int,
    aligned: bool,
) -> SequencePairs:
    """Returns sequences of two languages that have their first pieces in common."""
    ids, text, own = [], [], []
    for g, (base_PL, length_P) in enumerate(zip(bases, lengths, strict=True)):
        text_PL = np.arange(L) < length_P[:, None]
        ids_PL = np.where(base_PL < shared, base_PL, base_PL + g * U)
        ids.append(np.where(text_PL, ids_PL, 0).astype(np.int32))
        text.append(text_PL)
        own.append(text_PL & (base_PL >= shared))
    return SequencePairs((ids[0], ids[1]), (text[0], text[1]), (own[0], own[1]), aligned)


def clones(shared: int = 0) -> SequencePairs:
    """Returns sequences that say the same at the same positions."""
    rng = np.random.default_rng(1)
    base_PL, length_P = rng.integers(0, U, (P, L)), rng.integers(4, L + 1, P)
    base_PL[[3, 8]] %= shared or U  # of these nothing is left without the shared pieces
    return as_sequences((base_PL, base_PL), (length_P, length_P), shared, aligned=True)


def translations(shared: int = 0) -> SequencePairs:
    """Returns sequences that say the same, but a few pieces, in an order of their own."""
    rng = np.random.default_rng(3)
    base_PL, length_P = rng.integers(0, U, (P, L)), rng.integers(4, L + 1, P)
    base_PL[[3, 8]] %= shared or U
    order_PL = np.argsort(np.arange(L) + rng.uniform(0, 4, (P, L)), axis=1)
    other_PL = np.take_along_axis(base_PL, order_PL, axis=1)
    other_P = np.clip(length_P + rng.integers(-2, 3, P), 3, L)
    return as_sequences((base_PL, other_PL), (length_P, other_P), shared, aligned=False)


# Half the time to compile, as for what is measured.
compiled = functools.partial(
    jax.jit, static_argnums=1, compiler_options={"xla_backend_optimization_level": 1}
)
states_of = compiled(model_lib.compute_hidden_states)


def measured(
    programs: MeasurementPrograms,
    params: model_lib.Params,
    sequences: SequencePairs,
    *,
    match: bool = True,
    rotate: bool = True,
    poll: Callable[[float], None] = no_poll,
) -> dict[str, Any]:
    placed = jax.device_put(params, sharding.make_state_shardings(programs._whole.mesh, params))
    measuring = Measuring(programs, placed, MODEL, poll)
    return hidden.measure_hidden_states(measuring, sequences, match=match, rotate=rotate)


# The states themselves.


def test_states_are_those_between_all_layers_from_the_embedding_to_the_final_norm(params):
    ids_BL = clones().ids[0]
    states_NBLD = np.asarray(states_of(params, MODEL, ids_BL))
    assert states_NBLD.shape == (N + 2, P, L, D)
    embedded = params["embed_VD"][ids_BL] * math.sqrt(D) + params["position_LD"]
    np.testing.assert_allclose(states_NBLD[0], embedded, rtol=1e-5, atol=1e-6)
    forward = compiled(model_lib.compute_last_hidden_state)
    np.testing.assert_allclose(states_NBLD[-1], forward(params, MODEL, ids_BL), atol=1e-5)
    # The first block's output is that of a model of one block, before its final norm.
    first = params | {"blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}
    short = states_of(first, dataclasses.replace(MODEL, N=1, scan_layers=False), ids_BL)
    np.testing.assert_allclose(states_NBLD[1], short[1], atol=1e-5)
    unrolled = states_of(params, dataclasses.replace(MODEL, scan_layers=False), ids_BL)
    np.testing.assert_allclose(states_NBLD, unrolled, rtol=1e-5, atol=1e-5)


# A plain version of all that is measured, one row and one layer at a time, in fp64.


def cosine(x_D: np.ndarray, y_D: np.ndarray) -> float:
    return float(x_D @ y_D / math.sqrt((x_D @ x_D) * (y_D @ y_D)))


def slow_beside(scores: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Means over rows of scores (rows, layers), of shuffled ones, and of their differences."""
    found = {}
    for name in [name for name in scores if not name.endswith("_shuffled")]:
        excess = scores[name] - scores[f"{name}_shuffled"]
        count = np.isfinite(excess).sum(axis=0)
        found[name] = np.nanmean(scores[name], axis=0)
        found[f"{name}_shuffled"] = np.nanmean(scores[f"{name}_shuffled"], axis=0)
        found[f"{name}_excess"] = np.nanmean(excess, axis=0)
        found[f"{name}_error"] = np.nanstd(excess, axis=0, ddof=1) / np.sqrt(count)
    return {name: values.tolist() for name, values in found.items()}


def slow_retrieval(x_PD: np.ndarray, y_PD: np.ndarray) -> float:
    nearest = [np.argmax([cosine(x_D, y_D) for y_D in y_PD]) for x_D in x_PD]
    return float(np.mean(nearest == np.arange(len(x_PD))))


def slow_cka(x_PD: np.ndarray, y_PD: np.ndarray) -> float:
    """Kornblith et al. 2019, eq. 4 with linear kernels, by features and not by Gram matrices."""
    x_PD, y_PD = x_PD - x_PD.mean(axis=0), y_PD - y_PD.mean(axis=0)
    norms = linalg.norm(x_PD.T @ x_PD) * linalg.norm(y_PD.T @ y_PD)
    return float(linalg.norm(y_PD.T @ x_PD) ** 2 / norms)


def slow_hsic(k_PP: np.ndarray, l_PP: np.ndarray) -> float:
    """Song et al. 2012, eq. 5, as it is printed: traces and products with ones."""
    n, one = len(k_PP), np.ones(len(k_PP))
    k, l_ = k_PP - np.diag(np.diag(k_PP)), l_PP - np.diag(np.diag(l_PP))
    found = np.trace(k @ l_)
    found += (one @ k @ one) * (one @ l_ @ one) / ((n - 1) * (n - 2))
    found -= 2 / (n - 2) * (one @ k @ l_ @ one)
    return float(found / (n * (n - 3)))


def slow_debiased_cka(x_PD: np.ndarray, y_PD: np.ndarray) -> float:
    k_PP, l_PP = x_PD @ x_PD.T, y_PD @ y_PD.T
    return slow_hsic(k_PP, l_PP) / math.sqrt(slow_hsic(k_PP, k_PP) * slow_hsic(l_PP, l_PP))


def slow_rotation(x_PD: np.ndarray, y_PD: np.ndarray) -> np.ndarray:
    """The rotation of x onto y, with a few pairs added that are not turned at all."""
    size = linalg.norm(x_PD.T @ y_PD) / math.sqrt(D)
    few_DD = math.sqrt(similarity.TOWARDS_NONE * size) * np.eye(D)
    return linalg.orthogonal_procrustes(np.vstack([x_PD, few_DD]), np.vstack([y_PD, few_DD]))[0]


def slow_measure(
    params: model_lib.Params, sequences: SequencePairs, counted: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """What hidden.measure says it measures, with a match and with rotations."""
    kept = [p for p in range(P) if counted[0][p].any() and counted[1][p].any()]
    a, b = (
        np.float64(states_of(params, MODEL, ids_PL)).swapaxes(0, 1)[kept]
        for ids_PL in sequences.ids
    )
    mask_a, mask_b = (mask_PL[kept] for mask_PL in counted)
    n = len(kept)
    fold = np.arange(n) % 2
    lengths = mask_a.sum(axis=1), mask_b.sum(axis=1)
    other = np.empty(n, int)
    for e in range(2):  # what a row is compared with is in its own fold
        mine = np.flatnonzero(fold == e)
        other[mine] = mine[hidden.choose_partners((lengths[0][mine], lengths[1][mine]))]
    sentences: dict[str, Any] = {}
    positions: dict[str, np.ndarray] = {}
    matched: dict[str, np.ndarray] = {}

    def note(scores: dict[str, np.ndarray], name: str, p: int, layer: int, value: float) -> None:
        scores.setdefault(name, np.full((n, N + 2), np.nan))[p, layer] = value

    def pairs(p: int) -> list[tuple[str, int]]:
        return [("", p), ("_shuffled", other[p])]

    # Per fold and layer, from the other fold: means of positions and of sequences.
    mean_a, mean_b, turn = {}, {}, {}
    whole_a = np.stack([[a[p, k][mask_a[p]].mean(axis=0) for k in range(N + 2)] for p in range(n)])
    whole_b = np.stack([[b[p, k][mask_b[p]].mean(axis=0) for k in range(N + 2)] for p in range(n)])
    scores: dict[str, np.ndarray] = {}
    for e, k in itertools.product(range(2), range(N + 2)):
        rest = [p for p in range(n) if fold[p] != e]
        mine = [p for p in range(n) if fold[p] == e]
        all_a = np.concatenate([a[p, k][mask_a[p]] for p in rest])
        all_b = np.concatenate([b[p, k][mask_b[p]] for p in rest])
        mean_a[e, k], mean_b[e, k] = all_a.mean(axis=0), all_b.mean(axis=0)
        if sequences.aligned:
            turn[e, k] = slow_rotation(all_a - mean_a[e, k], all_b - mean_b[e, k])
        centre_a, centre_b = whole_a[rest, k].mean(axis=0), whole_b[rest, k].mean(axis=0)
        turned = slow_rotation(whole_a[rest, k] - centre_a, whole_b[rest, k] - centre_b)
        for p in mine:
            for suffix, q in pairs(p):
                x, y = whole_a[p, k], whole_b[q, k]
                note(scores, f"cosine{suffix}", p, k, cosine(x, y))
                note(scores, f"centred{suffix}", p, k, cosine(x - centre_a, y - centre_b))
                turned_x = (x - centre_a) @ turned
                note(scores, f"procrustes{suffix}", p, k, cosine(turned_x, y - centre_b))
    sentences |= slow_beside(scores)
    centred = {}
    for name, whole in (("a", whole_a), ("b", whole_b)):
        centred[name] = np.stack([whole[p] - whole[fold != fold[p]].mean(axis=0) for p in range(n)])
    for k in range(N + 2):
        for name, x, y in (("", whole_a, whole_b), ("centred_", centred["a"], centred["b"])):
            for way, one, two in (("forth", x, y), ("back", y, x)):
                sentences.setdefault(f"{name}retrieval_{way}", []).append(
                    slow_retrieval(one[:, k], two[:, k])
                )
        for name, cka in (("cka", slow_cka), ("cka_debiased", slow_debiased_cka)):
            x, y = whole_a[:, k], whole_b[:, k]
            sentences.setdefault(name, []).append(cka(x, y))
            sentences.setdefault(f"{name}_shuffled", []).append(cka(x, y[other]))
    sentences["chance"] = 1 / n

    for p in range(n):
        for suffix, q in pairs(p):
            here_a, here_b = np.flatnonzero(mask_a[p]), np.flatnonzero(mask_b[q])
            both = sorted(set(here_a) & set(here_b)) if sequences.aligned else []
            for k in range(N + 2) if both else ():
                x, y = a[p, k][both], b[q, k][both]
                cx, cy = x - mean_a[fold[p], k], y - mean_b[fold[p], k]
                for name, one, two in (
                    ("cosine", x, y),
                    ("centred", cx, cy),
                    ("procrustes", cx @ turn[fold[p], k], cy),
                ):
                    value = np.mean([cosine(u, v) for u, v in zip(one, two, strict=True)])
                    note(positions, f"{name}{suffix}", p, k, value)
            for name, less in (("cosine", 0), ("centred", 1)):
                x = [a[p, k][here_a] - less * mean_a[fold[p], k] for k in range(N + 2)]
                y = [b[q, k][here_b] - less * mean_b[fold[p], k] for k in range(N + 2)]
                table = [[[cosine(u, v) for v in y[k]] for u in x[k]] for k in range(N + 2)]
                table_NLM = np.array(table)
                chosen = optimize.linear_sum_assignment(-table_NLM[1:-1].mean(axis=0))
                assert len(chosen[0]) == min(len(here_a), len(here_b))
                for k in range(N + 2):
                    note(matched, f"{name}{suffix}", p, k, table_NLM[k][chosen].mean())
    found = {"sequences": n, "sentences": sentences, "matched": slow_beside(matched)}
    if sequences.aligned:
        found["positions"] = slow_beside(positions)
    return found


def assert_close(found: Any, expected: Any, tolerance: float, where: str = "") -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            assert_close(found[name], expected[name], tolerance, f"{where}/{name}")
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=where)


@pytest.fixture(scope="module")
def aligned_found(programs, params) -> dict[str, Any]:
    return measured(programs, params, clones(SHARED))


@pytest.fixture(scope="module")
def matched_found(programs, params) -> dict[str, Any]:
    return measured(programs, params, translations(SHARED))


@pytest.mark.parametrize("make", [clones, translations])
def test_all_that_is_measured_equals_plain_loops_over_rows_and_layers(request, params, make):
    name = "aligned_found" if make is clones else "matched_found"
    found, sequences = dict(request.getfixturevalue(name)), make(SHARED)
    own = found.pop("without_shared")
    assert (found["sequences"], own["sequences"]) == (P, P - 2)
    # fp32 states, and a singular value decomposition of their products.
    assert_close(found, slow_measure(params, sequences, sequences.text), 2e-5)
    assert_close(own, slow_measure(params, sequences, sequences.own), 2e-5)
    # Something to find, and not all of it found.
    assert all(0.05 < x < 1 for x in found["sentences"]["centred_retrieval_forth"])
    assert "positions" in found if sequences.aligned else "positions" not in found


def test_positions_of_shared_ids_are_what_is_left_out(aligned_found, params):
    # Their embeddings are equal, so that with them the languages are more alike.
    with_, without = aligned_found, aligned_found["without_shared"]
    assert with_["positions"]["cosine"][0] > without["positions"]["cosine"][0] + 0.01
    sequences = clones(SHARED)
    np.testing.assert_array_equal(
        sequences.text[0] & ~sequences.own[0],
        sequences.text[0] & (sequences.ids[0] == sequences.ids[1]),
    )


@pytest.fixture(scope="module")
def plain_found(programs, params) -> dict[str, Any]:
    return measured(programs, params, clones())


@pytest.mark.slow
def test_batches_do_not_change_the_result(programs, params, plain_found):
    fours = copy.copy(programs)  # what has no batches is compiled already
    fours.batch_size = 4
    assert_close(measured(fours, params, clones()), plain_found, 1e-5)


@pytest.mark.slow
def test_eight_devices_find_the_same_as_one(params, plain_found):
    eight = MeasurementPrograms(make_mesh(8, fsdp=2, tensor=2), 8)
    expected = {name: plain_found[name] for name in ("sequences", "positions", "sentences")}
    assert_close(measured(eight, params, clones(), match=False), expected, 1e-5)


def test_matches_and_rotations_are_only_looked_for_on_request(programs, params, plain_found):
    shares: list[float] = []
    found = measured(programs, params, clones(), match=False, rotate=False, poll=shares.append)
    expected = {
        "sequences": P,
        **{
            kind: {
                name: values
                for name, values in plain_found[kind].items()
                if not name.startswith("procrustes")
            }
            for kind in ("positions", "sentences")
        },
    }
    assert_close(found, expected, 1e-5)
    assert all(0 < share <= 1 for share in shares) and shares[-1] == 1

    def stop(share: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        measured(programs, params, clones(), match=False, rotate=False, poll=stop)


# Languages whose likeness is known.


def whole_ones(found: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Returns all scores that are 1 where two languages are one."""
    named = [
        (f"{kind}/{name}", found[kind][name])
        for kind in ("positions", "sentences", "matched")
        for name in ("cosine", "centred", "procrustes")
        if name in found[kind]
    ]
    wholes = ("cka", "cka_debiased", "retrieval_forth", "retrieval_back")
    wholes += ("centred_retrieval_forth", "centred_retrieval_back")
    return named + [(name, found["sentences"][name]) for name in wholes]


def assert_one(found: dict[str, Any]) -> None:
    ones = whole_ones(found)
    assert len(ones) == 14
    for name, values in ones:
        # fp32; the rest of a state that is centred is smaller than what was taken away.
        np.testing.assert_allclose(values, 1, atol=1e-5, err_msg=name)
    for kind in ("positions", "sentences", "matched"):
        for name in ("cosine", "centred"):
            excess, error = (np.array(found[kind][f"{name}_{x}"]) for x in ("excess", "error"))
            assert np.all(excess > 0.02) and np.all(excess > 3 * error), (kind, name)
    assert max(found["sentences"]["cka_debiased_shuffled"]) < 0.5


def test_a_model_with_copied_rows_has_the_same_states_in_both_languages(programs, copies):
    assert_one(measured(programs, copies, clones()))


def test_a_language_is_like_itself(programs, params):
    sequences = clones()
    none_PL = np.zeros((P, L), bool)
    itself = SequencePairs((sequences.ids[0],) * 2, (sequences.text[0],) * 2, (none_PL,) * 2, True)
    found = measured(programs, params, itself)
    # All of its ids are shared.
    assert found.pop("without_shared") == {"sequences": 0}
    assert_one(found)


def test_sequences_that_say_different_things_have_no_excess(programs):
    one = clones()
    text_PL = one.text[0]
    ids_b = np.where(text_PL, np.random.default_rng(5).integers(U, V, (P, L)), 0)
    unrelated = SequencePairs(
        (one.ids[0], ids_b.astype(np.int32)), (text_PL,) * 2, (text_PL,) * 2, True
    )
    found = measured(programs, random_params(MODEL, V), unrelated)
    for kind in ("positions", "sentences", "matched"):
        for name in ("cosine", "centred", "procrustes"):
            if name in found[kind]:
                excess, error = (found[kind][f"{name}_{x}"] for x in ("excess", "error"))
                assert np.all(np.abs(excess) < 4 * np.array(error)), (kind, name)
    # The raw cosine of what is unrelated is high, and that of what was matched higher still.
    assert found["positions"]["cosine"][-1] > 0.4
    assert found["matched"]["cosine"][-1] > found["positions"]["cosine"][-1] + 0.05
    assert np.all(np.abs(found["sentences"]["cka_debiased"]) < 0.1)
    assert max(found["sentences"]["centred_retrieval_forth"]) < 5 / P


def test_a_model_that_knows_the_phase_alone_has_no_excess_in_windows_of_one_phase(tmp_path):
    config = config_lib.default()
    config.sources.toy = config_lib.declared(SourceConfig, kind="synthetic")
    config.sources.toy.synthetic.update({"lemmas": 24, "depth": 2})
    config.languages.a = config_lib.declared(LanguageConfig, source="toy")
    config.languages.b = config_lib.declared(LanguageConfig, clone_of="a")
    config.mixture.ratio.update({"a": 1, "b": 1})
    config.data_dir, config.model.L = str(tmp_path), 6
    config = config_lib.resolve_config(config)
    source = SyntheticSource("toy", config.sources["toy"].synthetic)
    size, rows = source.pieces.size, 48
    model = dataclasses.replace(MODEL, L=6)
    # An untrained model to which all words look alike, and so do both languages: its states
    # depend on where sentences end and on nothing else.
    params = random_params(model, 2 * size)
    kind_U = np.where(np.arange(size) < FIRST_WORD, np.arange(size), FIRST_WORD)
    params |= {"embed_VD": params["embed_VD"][np.tile(kind_U, 2)]}
    measuring = Measuring(MeasurementPrograms(ONE, 16), jax.device_put(params), model, no_poll)

    def measure(base_PL: np.ndarray) -> dict[str, Any]:
        text_PL = np.ones(base_PL.shape, bool)
        ids = tuple((base_PL.astype(np.int32) + g * size) for g in range(2))
        both = SequencePairs(ids, (text_PL, text_PL), (text_PL, text_PL), True)
        return hidden.measure_hidden_states(measuring, both, match=False, rotate=False)

    # Windows at the multiples of L, which is no divisor of a document's length.
    before = measure(source.tokens("test")[: rows * 6].reshape(rows, 6))
    assert min(before["positions"]["cosine_excess"]) > 0.02
    assert min(before["sentences"]["retrieval_forth"]) > 3 / rows
    found = parallel.find_aligned_sequences(config, {"toy": source}, {}, "a", "b", rows)
    assert found.ids[0].tolist() == found.ids[1].tolist()
    now = measure(found.ids[0])
    assert now["positions"]["cosine"] == pytest.approx([1] * (N + 2), abs=1e-5)
    assert now["positions"]["cosine_excess"] == pytest.approx([0] * (N + 2), abs=1e-5)
    assert now["sentences"]["cosine_excess"] == pytest.approx([0] * (N + 2), abs=1e-5)
    for way in ("forth", "back"):
        assert now["sentences"][f"retrieval_{way}"] == pytest.approx([1 / rows] * (N + 2))


def test_turned_rows_are_alike_after_a_rotation_only(programs, params):
    turn_DD = random_rotation(4)
    turned = with_rows(params, params["embed_VD"][:U] @ turn_DD)
    turned |= {"position_LD": np.zeros((L, D), np.float32)}
    found = measured(programs, turned, clones(), match=False)
    # In the embedding output: blocks do not commute with a rotation.
    for kind in ("positions", "sentences"):
        assert found[kind]["procrustes"][0] > 0.999
        assert abs(found[kind]["cosine"][0]) < 0.3 and abs(found[kind]["centred"][0]) < 0.3
        assert abs(found[kind]["procrustes_shuffled"][0]) < 0.3


def test_fewer_than_four_sequences_say_nothing(programs, params):
    few = clones()
    three = [tuple(x[:3] for x in part) for part in (few.ids, few.text, few.own)]
    assert measured(programs, params, SequencePairs(*three, aligned=True)) == {"sequences": 3}


# Partners.


@pytest.mark.parametrize("rows", [2, 3, 4, 15, 16, 17, 18, 31, 32, 33, 40, 300])
def test_each_row_is_the_partner_of_one_other_of_like_lengths(rows):
    rng = np.random.default_rng(rows)
    lengths = rng.integers(5, 200, rows), rng.integers(5, 200, rows)
    other = hidden.choose_partners(lengths)
    assert sorted(other) == list(range(rows))
    assert np.all(other != np.arange(rows))
    rank = np.empty(rows, int)
    rank[sorted(range(rows), key=lambda p: (lengths[0][p], lengths[1][p]))] = range(rows)
    # Within the same sixteen, but for one row that would be alone.
    assert np.all(np.abs(rank[other] - rank) <= 16)
    assert np.sum(rank[other] // 16 != rank // 16) in ((0, 2) if rows % 16 == 1 else (0,))


# Whole sequences, as arrays.


def random_rotation(seed: int) -> np.ndarray:
    q_DD, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((D, D)))
    return q_DD


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sentence_scores(
    programs: MeasurementPrograms, a_PND: np.ndarray, b_PND: np.ndarray
) -> dict[str, Any]:
    rows = len(a_PND)
    fold_P = (np.arange(rows) % 2).astype(np.int32)
    other_P = np.roll(np.arange(rows), 2).astype(np.int32)
    rotations = sentences._fit_sentence_rotations(a_PND, b_PND, fold_P)
    found = programs.run(sentences._score_sentences, a_PND, b_PND, fold_P, other_P, rotations)
    return {name: np.asarray(value) for name, value in found.items()}


def test_unrelated_vectors_are_unlike_after_centring(programs):
    a, b = normal(1, P, N + 2, D) + 2, normal(2, P, N + 2, D) + 2
    found = sentence_scores(programs, a, b)
    assert found["cosine"].mean() > 0.7
    few = 5 / math.sqrt(P * (N + 2) * D)
    for name in ("centred", "centred_shuffled", "procrustes", "procrustes_shuffled"):
        assert abs(found[name].mean()) < few, name
    assert np.all(np.abs(found["cka_debiased"]) < 0.05) and found["cka"].min() > 0.1
    assert found["centred_retrieval_forth"].max() < 5 / P


def test_cka_of_few_unrelated_pairs_in_many_dimensions_is_high_unless_debiased(programs):
    a, b = normal(1, 30, 1, 120), normal(2, 30, 1, 120)
    found = programs.run(sentences._compute_cka, a, b, np.roll(np.arange(30), 2))
    for suffix in ("", "_shuffled"):
        assert found[f"cka{suffix}"] > 0.7
        assert abs(found[f"cka_debiased{suffix}"]) < 0.1


def test_a_rotation_learned_from_other_pairs_makes_turned_vectors_alike(programs):
    a = normal(1, P, N + 2, D)
    b = a @ random_rotation(3).astype(np.float32) + 1
    found = sentence_scores(programs, a, b)
    assert found["procrustes"].min() > 0.99 and found["procrustes"].mean() > 0.999
    assert abs(found["cosine"].mean()) < 0.3 and abs(found["centred"].mean()) < 0.3
    assert abs(found["procrustes_shuffled"].mean()) < 0.1
    np.testing.assert_allclose(found["cka"], 1, atol=1e-5)
    np.testing.assert_allclose(found["cka_debiased"], 1, atol=1e-5)


@pytest.mark.parametrize(("spec", "inner"), [("PND,NDE->PNE", ()), ("BNLD,NDE->BNLE", (3,))])
def test_turning_takes_no_matrix_for_each_row(spec, inner):
    rows, layers, width = 16, 2, 96
    states = normal(1, rows, layers, *inner, width)
    rotations_ENDD = normal(2, 2, layers, width, width)
    fold_P = np.random.default_rng(3).integers(0, 2, rows).astype(np.int32)
    turn = jax.jit(functools.partial(similarity.rotate_states, spec))
    compiled = turn.lower(states, rotations_ENDD, fold_P).compile()
    matrices = rows * layers * width * width * 4
    assert compiled.memory_analysis().temp_size_in_bytes < matrices / 4
    found = compiled(states, rotations_ENDD, fold_P)
    for row, fold in enumerate(fold_P):
        for layer in range(layers):
            expected = np.float64(states[row, layer]) @ np.float64(rotations_ENDD[fold, layer])
            np.testing.assert_allclose(found[row, layer], expected, rtol=1e-4, atol=1e-4)


def test_means_and_rotations_of_a_pair_come_from_the_other_fold(programs):
    a, b = normal(1, P, N + 2, D), normal(2, P, N + 2, D)
    before = sentence_scores(programs, a, b)
    changed = b.copy()
    changed[10] += 3  # of the first fold
    after = sentence_scores(programs, a, changed)
    # Row 12 is compared with row 10 as its shuffled partner.
    same = [p for p in range(0, P, 2) if p not in (10, 12)]
    for name in ("centred", "procrustes"):
        for suffix in ("", "_shuffled"):
            x, y = before[f"{name}{suffix}"], after[f"{name}{suffix}"]
            np.testing.assert_allclose(x[same], y[same], atol=1e-6)
            assert np.all(np.abs(x - y).max(axis=1)[1::2] > 1e-3), name
    np.testing.assert_array_equal(before["centred"][12], after["centred"][12])


def test_the_nearest_rotation_is_that_of_procrustes():
    x_PD, y_PD = np.float64(normal(1, 40, D)), np.float64(normal(2, 40, D))
    found = np.asarray(similarity.find_nearest_rotation(np.float32(x_PD.T @ y_PD)))
    np.testing.assert_allclose(found @ found.T, np.eye(D), atol=1e-5)
    np.testing.assert_allclose(found, slow_rotation(x_PD, y_PD), atol=1e-4)
    plain, _ = linalg.orthogonal_procrustes(x_PD, y_PD)
    # Drawn towards none a little: that costs next to nothing of what it is the best for.
    best = linalg.norm(x_PD @ plain - y_PD)
    assert best <= linalg.norm(x_PD @ found - y_PD) < best * 1.001
    assert best < linalg.norm(x_PD - y_PD) * 0.9


def test_what_few_pairs_leave_open_is_not_turned():
    x_PD, y_PD = normal(1, 9, D), normal(2, 9, D)
    x_PD[:, 5:], y_PD[:, 5:] = 0, 0
    products_DD = x_PD.T @ y_PD
    found = np.asarray(similarity.find_nearest_rotation(products_DD))
    np.testing.assert_allclose(found[5:, 5:], np.eye(D - 5), atol=1e-5)
    np.testing.assert_allclose(found[:5, :5], slow_rotation(x_PD, y_PD)[:5, :5], atol=1e-4)
    # Nor does rounding decide it.
    noise_DD = 3e-7 * linalg.norm(products_DD) * normal(3, D, D)
    again = np.asarray(similarity.find_nearest_rotation(products_DD + noise_DD))
    np.testing.assert_allclose(again, found, atol=5e-3)


# Matching.


def brute_force(cosine_LM: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    """The largest sum of an assignment of the shorter side, by trying all of them."""
    if len(rows) > len(columns):
        return brute_force(cosine_LM.T, columns, rows)
    return max(
        sum(cosine_LM[i, j] for i, j in zip(rows, chosen, strict=True))
        for chosen in itertools.permutations(columns, len(rows))
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("height", "width"), [(5, 5), (4, 6), (7, 4), (1, 6), (6, 1)])
def test_an_assignment_is_the_best_of_all(height, width, seed):
    rng = np.random.default_rng(seed)
    cosine_LM = np.float32(rng.uniform(-1, 1, (height, width)))
    row_L, column_M = rng.random(height) < 0.8, rng.random(width) < 0.8
    row_L[0] = column_M[-1] = True
    to_L = hidden.assign_positions(cosine_LM, row_L, column_M)
    taken = np.flatnonzero(to_L >= 0)
    assert len(taken) == min(row_L.sum(), column_M.sum())
    assert np.all(row_L[taken]) and np.all(column_M[to_L[taken]])
    assert len(set(to_L[taken])) == len(taken) and np.all(to_L[to_L < 0] == -1)
    expected = brute_force(cosine_LM, np.flatnonzero(row_L), np.flatnonzero(column_M))
    assert np.sum(cosine_LM[taken, to_L[taken]]) == pytest.approx(expected, rel=1e-5)


# Retrieval and CKA.


def test_of_several_sequences_that_are_equally_near_each_counts_as_a_part():
    cosine_NPQ = np.float32(
        [
            [[0.9, 0.1, 0.9, 0.9], [0.5, 0.4, 0.3, 0.2], [0.7, 0.1, 0.7, 0.2], [0, 0, 0, 0.1]],
            [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        ]
    )
    forth, back = sentences.compute_sentence_retrieval(cosine_NPQ)
    np.testing.assert_allclose(forth, [(1 / 3 + 0 + 1 / 2 + 1) / 4, 1], rtol=1e-6)
    # Columns: the first has its own at the top alone, the second too, the others do not.
    np.testing.assert_allclose(back, [(1 + 1 + 0 + 0) / 4, 1], rtol=1e-6)


def grams(rows: int) -> tuple[np.ndarray, np.ndarray]:
    x_PD, y_PD = np.float64(normal(1, rows, 5)), np.float64(normal(2, rows, 3))
    y_PD[:, 0] += x_PD[:, 1]
    return (x_PD + 1) @ (x_PD + 1).T, (y_PD - 1) @ (y_PD - 1).T


def test_the_unbiased_estimate_is_the_mean_over_all_four_different_pairs():
    k, l_ = grams(7)
    terms = [
        k[i, j] * l_[i, j] + k[i, j] * l_[q, r] - 2 * k[i, j] * l_[i, q]
        for i, j, q, r in itertools.permutations(range(7), 4)
    ]
    found = sentences.unbiased_hsic(np.float32(k)[None], np.float32(l_)[None])
    np.testing.assert_allclose(found, [np.mean(terms)], rtol=1e-4)
    assert slow_hsic(k, l_) == pytest.approx(np.mean(terms))


def test_the_biased_estimate_is_the_trace_of_centred_gram_matrices():
    k, l_ = grams(7)
    centre = np.eye(7) - np.ones((7, 7)) / 7
    expected = np.trace(k @ centre @ l_ @ centre) / 7**2
    found = sentences.biased_hsic(np.float32(k)[None], np.float32(l_)[None])
    np.testing.assert_allclose(found, [expected], rtol=1e-4)
