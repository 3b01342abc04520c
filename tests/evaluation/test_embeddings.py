"""Cosines of rows, who is whose neighbour, and which pieces parallel text pairs up."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
import pytest
from helpers import make_mesh

from imbalance_jax.evaluation import embeddings
from imbalance_jax.evaluation.embeddings import PiecePairs
from imbalance_jax.evaluation.programs import MeasurementPrograms

U, D = 60, 16
V = 2 * U
FIRST, SECOND = np.arange(U), np.arange(U, V)
NONE = np.arange(0)


@pytest.fixture(scope="module")
def programs() -> MeasurementPrograms:
    return MeasurementPrograms(make_mesh(1), 8)


def random_table(rows: int = V, width: int = D, seed: int = 0) -> np.ndarray:
    """Returns rows that lean to one side, as those of a head do, and differ in their norm."""
    rng = np.random.default_rng(seed)
    table_VD = rng.standard_normal((rows, width)) + np.linspace(0, 1, width)
    return np.float32(table_VD * rng.uniform(0.1, 3, (rows, 1)))


@pytest.fixture(scope="module")
def table_VD() -> np.ndarray:
    return random_table()


def cosine(x_D: np.ndarray, y_D: np.ndarray) -> float:
    x_D, y_D = np.float64(x_D), np.float64(y_D)
    return float(x_D @ y_D / math.sqrt((x_D @ x_D) * (y_D @ y_D)))


def cosines(x_nD: np.ndarray, y_mD: np.ndarray) -> np.ndarray:
    return np.array([[cosine(x_D, y_D) for y_D in y_mD] for x_D in x_nD])


# Mean cosines.


@pytest.mark.parametrize("shared", [0, 7, U])
def test_the_mean_of_all_cosines_is_that_of_the_whole_matrix_with_its_diagonal(
    programs, table_VD, shared
):
    # The second language has the last ids of the first one in place of its first ones.
    second = np.concatenate([FIRST[U - shared :], SECOND[shared:]])
    ids = np.union1d(FIRST, second)
    assert len(ids) == V - shared
    all_pairs, between = programs.run(embeddings.mean_cosines, table_VD, FIRST, second)
    assert float(all_pairs) == pytest.approx(cosines(table_VD[ids], table_VD[ids]).mean(), rel=1e-5)
    expected = cosines(table_VD[FIRST], table_VD[second]).mean()
    assert float(between) == pytest.approx(expected, rel=1e-5)


def test_blocks_of_different_sizes_count_each_row_alike(programs, table_VD):
    first, second = FIRST[:13], np.concatenate([FIRST[:4], SECOND])
    ids = np.union1d(first, second)
    all_pairs, between = programs.run(embeddings.mean_cosines, table_VD, first, second)
    assert float(all_pairs) == pytest.approx(cosines(table_VD[ids], table_VD[ids]).mean(), rel=1e-5)
    expected = cosines(table_VD[first], table_VD[second]).mean()
    assert float(between) == pytest.approx(expected, rel=1e-5)


# Bins of frequency.


def test_bins_have_the_edges_of_the_reference_and_hold_their_lower_one():
    edges = [10 ** (k / 4) for k in range(33)]
    counts = [0, 1, 2, 9, 10, 17, 18, 99, 100, 10**7, 10**8]
    expected: dict[int, list[int]] = {}
    for place, count in enumerate(counts):
        for k, low in enumerate(edges):
            # Exactly for whole numbers: the edge 10^(k/4) is one only where 4 divides k.
            if low <= count and (k + 1 == len(edges) or count < edges[k + 1]):
                expected.setdefault(k, []).append(place)
    assert expected[4] == [4, 5] and 3 in expected[3] and 0 not in sum(expected.values(), [])
    cosine_n = np.float32(np.random.default_rng(0).uniform(-1, 1, len(counts)))
    found = embeddings.bin_by_frequency(cosine_n, np.array(counts))
    assert found["low"] == pytest.approx([edges[k] for k in expected])
    assert found["high"] == pytest.approx([10 ** ((k + 1) / 4) for k in expected])
    assert found["pieces"] == [len(places) for places in expected.values()]
    means = [np.mean([cosine_n[p] for p in places]) for places in expected.values()]
    assert found["cosine"] == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize("power", range(9))
def test_a_power_of_ten_is_in_the_bin_that_begins_with_it(power):
    found = embeddings.bin_by_frequency(np.ones(2), np.array([10**power, 10**power - 1]))
    assert found["low"][-1] == pytest.approx(10**power)
    assert found["pieces"] == ([1, 1] if power else [1])


def test_pieces_that_never_occur_are_in_no_bin():
    found = embeddings.bin_by_frequency(np.ones(3), np.zeros(3))
    assert found == {"low": [], "high": [], "pieces": [], "cosine": []}


# Neighbours.


def slow_retrieval(x_nD: np.ndarray, y_nD: np.ndarray, k: int, csls: bool) -> float:
    """How often the nearest of y is the right one, one pair after another; ties are parts."""
    cosine_nn = cosines(x_nD, y_nD)
    hits = 0.0
    for i in range(len(x_nD)):
        score = []
        for j in range(len(y_nD)):
            to_x = np.sort(cosine_nn[i])[-k:].mean()
            to_y = np.sort(cosine_nn[:, j])[-k:].mean()
            score.append(2 * cosine_nn[i, j] - to_x - to_y if csls else cosine_nn[i, j])
        best = [j for j, value in enumerate(score) if math.isclose(value, max(score), abs_tol=1e-9)]
        hits += (i in best) / len(best)
    return hits / len(x_nD)


def expected_retrieval(a_nD: np.ndarray, b_nD: np.ndarray, k: int) -> dict[str, float]:
    return {
        "forth": slow_retrieval(a_nD, b_nD, k, csls=False),
        "back": slow_retrieval(b_nD, a_nD, k, csls=False),
        "csls_forth": slow_retrieval(a_nD, b_nD, k, csls=True),
        "csls_back": slow_retrieval(b_nD, a_nD, k, csls=True),
    }


def noisy_copies(seed: int) -> np.ndarray:
    """Returns a table whose second half is near its first, but not always nearest."""
    table_VD = random_table(seed=seed)
    table_VD[SECOND] = table_VD[FIRST] + 0.8 * random_table(U, seed=seed + 1)
    return table_VD


@pytest.mark.parametrize("seed", [2, 4])
def test_neighbours_are_those_of_a_plain_double_loop(programs, seed):
    table_VD = noisy_copies(seed)
    found = programs.run(
        embeddings.compute_piece_retrieval, table_VD, FIRST, SECOND, NONE, NONE, k=5
    )
    expected = expected_retrieval(table_VD[FIRST], table_VD[SECOND], 5)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
    # They differ, and none is trivial.
    assert len(set(expected.values())) >= 3 and all(0.2 < x < 0.9 for x in expected.values())


def test_pieces_without_a_counterpart_are_found_instead_and_not_looked_for(programs):
    table_VD = noisy_copies(2)
    asked = np.arange(40)  # the other 20 of each language are only there to be found
    found = programs.run(
        embeddings.compute_piece_retrieval, table_VD, asked, U + asked, FIRST[40:], SECOND[40:], k=5
    )
    rows_a, rows_b = table_VD[FIRST], table_VD[SECOND]
    cosine = cosines(rows_a, rows_b)
    penalty_a = np.sort(cosine, axis=1)[:, -5:].mean(axis=1)
    penalty_b = np.sort(cosine, axis=0)[-5:].mean(axis=0)
    expected = {
        "forth": np.mean(cosine.argmax(axis=1)[:40] == asked),
        "back": np.mean(cosine.argmax(axis=0)[:40] == asked),
        "csls_forth": np.mean((2 * cosine - penalty_b).argmax(axis=1)[:40] == asked),
        "csls_back": np.mean((2 * cosine - penalty_a[:, None]).argmax(axis=0)[:40] == asked),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
    fewer = programs.run(
        embeddings.compute_piece_retrieval, table_VD, asked, U + asked, NONE, NONE, k=5
    )
    assert float(fewer["forth"]) > expected["forth"]


def test_of_several_that_are_equally_near_each_counts_as_a_part(programs):
    table_VD = noisy_copies(2)
    # Among the pieces of the second language some are one vector, of different lengths.
    table_VD[U + 3] = 2 * table_VD[U + 2]
    table_VD[U + 4] = 0.5 * table_VD[U + 2]
    table_VD[2] = table_VD[U + 2]
    # And two pieces are the same in both.
    table_VD[[10, 11, U + 10, U + 11]] = table_VD[10]
    expected = expected_retrieval(table_VD[FIRST], table_VD[SECOND], 5)
    assert not math.isclose(expected["forth"] * U, round(expected["forth"] * U))
    found = programs.run(
        embeddings.compute_piece_retrieval, table_VD, FIRST, SECOND, NONE, NONE, k=5
    )
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)


def test_more_pieces_than_exist_at_once_are_looked_through_whole(programs, monkeypatch):
    table_VD = noisy_copies(2)

    def in_chunks(table_VD: jax.Array, ids_a: jax.Array, ids_b: jax.Array) -> Any:
        return embeddings.compute_piece_retrieval(table_VD, ids_a, ids_b, ids_a[:0], ids_b[:0], k=5)

    monkeypatch.setattr(embeddings, "_CHUNK", 16)  # does not divide the number of pieces
    found = programs.run(in_chunks, table_VD, FIRST, SECOND)
    expected = expected_retrieval(table_VD[FIRST], table_VD[SECOND], 5)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)


# Suggested pairs.


def log_likelihood_ratio(x_P: np.ndarray, y_P: np.ndarray) -> float:
    """Dunning's: twice the log of how much likelier the counts are if x has a say in y."""

    def log_likelihood(hits: int, of: int, p: float) -> float:
        return (hits and hits * math.log(p)) + (of - hits and (of - hits) * math.log(1 - p))

    total, with_x, with_y = len(x_P), int(x_P.sum()), int(y_P.sum())
    both = int((x_P & y_P).sum())
    alone = with_y - both
    apart = log_likelihood(both, with_x, both / with_x)
    if with_x < total:
        apart += log_likelihood(alone, total - with_x, alone / (total - with_x))
    return 2 * (apart - log_likelihood(with_y, total, with_y / total))


def slow_suggested(occurs_a: np.ndarray, occurs_b: np.ndarray, least: int) -> list[tuple[int, int]]:
    score: dict[tuple[int, int], float] = {}
    for i in range(occurs_a.shape[1]):
        for j in range(occurs_b.shape[1]):
            x_P, y_P = occurs_a[:, i], occurs_b[:, j]
            together = (x_P & y_P).sum()
            if together >= least and together / len(x_P) > x_P.mean() * y_P.mean():
                score[i, j] = log_likelihood_ratio(x_P, y_P)

    def best(pair: tuple[int, int]) -> bool:
        rivals = [s for (i, j), s in score.items() if (i == pair[0]) != (j == pair[1])]
        return score[pair] > max(rivals, default=0)

    return sorted(pair for pair in score if best(pair))


def planted(rng: np.random.Generator, words: int, P: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of so many words each sequence has, and their translations: words[::-1].

    Words are of every frequency; one in ten is lost in translation, as many come in from
    nowhere, and both languages have a word that is everywhere and one that is nowhere.
    """
    often = np.geomspace(0.02, 0.6, words)
    occurs_a = rng.random((P, words)) < often
    kept, new = rng.random((P, words)) < 0.9, rng.random((P, words)) < often / 10
    occurs_b = ((occurs_a & kept) | new)[:, ::-1]
    ends = [np.ones((P, 1), bool), np.zeros((P, 1), bool)]
    return np.hstack([occurs_a, *ends]), np.hstack([occurs_b, *ends])


def test_planted_translations_are_found_in_parallel_sequences():
    words = 30
    occurs_a, occurs_b = planted(np.random.default_rng(0), words)
    first, second = embeddings.suggest_piece_pairs(occurs_a, occurs_b)
    assert len(first) > 20 and len(set(first)) == len(first)
    # What is not found is rare; what is found is right, but for at most one of them.
    assert set(range(10, words)) <= set(first)
    assert np.sum(second != words - 1 - first) <= 1


@pytest.mark.parametrize("least", [1, 5, 12])
@pytest.mark.parametrize("seed", [0, 1])
def test_suggestions_are_mutual_bests_of_the_plain_log_likelihood_ratio(seed, least):
    rng = np.random.default_rng(seed)
    occurs_a, occurs_b = planted(rng, 14, P=70)
    # Words that avoid each other are as far from chance as those that go together.
    occurs_b[:, 3] = ~occurs_a[:, 5]
    # Ties of the score would be broken by the order of ids: real text has next to none.
    occurs_a, occurs_b = occurs_a[:, :-2], np.hstack([occurs_b[:, :-2], rng.random((70, 5)) < 0.3])
    found = embeddings.suggest_piece_pairs(occurs_a, occurs_b, least)
    expected = slow_suggested(occurs_a, occurs_b, least)
    assert list(zip(*(ids.tolist() for ids in found), strict=True)) == expected
    assert len(expected) > 2 and (5, 3) not in expected


def test_nothing_is_suggested_where_no_piece_occurs_often_enough():
    occurs = np.random.default_rng(0).random((20, 6)) < 0.1
    for given in ((occurs, occurs), (occurs, np.ones((20, 2), bool))):
        first, second = embeddings.suggest_piece_pairs(*given, least=10)
        assert len(first) == len(second) == 0


# All of a table.


def pairs_of(count_n: np.ndarray | None = None, shared: int = 0) -> PiecePairs:
    """Returns clones, the last of them anchors."""
    second = SECOND.copy()
    second[U - shared :] = FIRST[U - shared :]
    return PiecePairs((FIRST, second), np.ones(U) if count_n is None else count_n, "clones")


def blocks_of(pairs: PiecePairs) -> tuple[np.ndarray, np.ndarray]:
    return np.sort(pairs.ids[0]), np.sort(pairs.ids[1])


@pytest.fixture(scope="module")
def measured(programs):
    def measure(table_VD: np.ndarray, pairs: PiecePairs, candidates: int = 0) -> dict[str, Any]:
        return embeddings.measure_embeddings(
            programs, table_VD, pairs, blocks_of(pairs), candidates=candidates
        )

    return measure


@pytest.mark.parametrize("shared", [0, 9])
def test_a_table_is_measured_as_plain_loops_over_its_rows_do(measured, shared):
    table_VD = noisy_copies(2)
    count_n = np.random.default_rng(3).permutation(np.geomspace(1, 1e5, U).astype(int))
    pairs = pairs_of(count_n, shared)
    found = measured(table_VD, pairs)
    a, b = (np.float64(table_VD[ids]) for ids in pairs.ids)
    own = U - shared
    every = [cosine(x, y) for x, y in zip(a, b, strict=True)]
    centred = [cosine(x, y) for x, y in zip(a - a.mean(0), b - b.mean(0), strict=True)][:own]
    ids = np.union1d(*pairs.ids)
    close = functools.partial(pytest.approx, rel=1e-5)
    assert (found["pairs"], found["shared"], found["origin"]) == (own, shared, "clones")
    assert found["cosine"] == close(np.mean(every[:own]))
    assert found["cosine_error"] == close(np.std(every[:own], ddof=1) / math.sqrt(own))
    assert found["centred"] == close(np.mean(centred))
    assert found["centred_error"] == close(np.std(centred, ddof=1) / math.sqrt(own))
    assert found["cosine_all_ids"] == close(np.mean(every))
    assert found["all_pairs"] == close(cosines(table_VD[ids], table_VD[ids]).mean())
    assert found["between"] == close(cosines(a, b).mean())
    assert sum(found["by_frequency"]["pieces"]) == own
    sums = np.dot(found["by_frequency"]["pieces"], found["by_frequency"]["cosine"])
    assert sums == close(np.sum(every[:own]))
    retrieval = expected_retrieval(a[:own], b[:own], k=10)
    assert found["retrieval"] == close(retrieval | {"candidates": own, "chance": 1 / own})
    # Anchors have cosine 1: they raise the mean of all ids, and no other.
    assert (found["cosine_all_ids"] > found["cosine"] + 0.01) == bool(shared)


def test_retrieval_is_among_the_most_frequent_pieces_that_differ(measured):
    table_VD = noisy_copies(2)
    count_n = np.random.default_rng(3).permutation(U)
    pairs = pairs_of(count_n, shared=9)
    asked = [n for n in sorted(range(U), key=lambda n: -count_n[n]) if n < U - 9][:20]
    found = measured(table_VD, pairs, candidates=20)["retrieval"]
    expected = expected_retrieval(table_VD[asked], table_VD[SECOND[asked]], k=10)
    assert found == pytest.approx(expected | {"candidates": 20, "chance": 1 / 20})


def test_pairs_are_placed_by_the_count_of_their_rarer_piece_in_its_own_language(measured):
    table_VD = noisy_copies(2)
    text_n = np.full(U, 1000)
    rare_n = np.where(np.arange(U) < 20, 10, 100)  # a tenth of the text or less is the rare clone's
    pairs = dataclasses.replace(pairs_of(text_n), own_count_n=rare_n)
    found = measured(table_VD, pairs)
    assert (found["by_frequency"]["low"], found["by_frequency"]["pieces"]) == ([1000.0], [U])
    own = found["by_own_frequency"]
    assert (own["low"], own["pieces"]) == (pytest.approx([10, 100]), [20, U - 20])
    every = [cosine(table_VD[n], table_VD[SECOND[n]]) for n in range(U)]
    assert own["cosine"] == pytest.approx([np.mean(every[:20]), np.mean(every[20:])], rel=1e-5)
    # Which pieces a counterpart is looked for among does not change with it.
    assert found["retrieval"] == measured(table_VD, pairs_of(text_n))["retrieval"]


def test_copied_rows_have_cosine_one_and_find_each_other(measured, table_VD):
    table_VD = table_VD.copy()
    table_VD[SECOND] = 3 * table_VD[FIRST]  # of another length: cosines do not see it
    found = measured(table_VD, pairs_of())
    for name in ("cosine", "cosine_all_ids"):
        assert found[name] == pytest.approx(1, abs=1e-6)
    assert found["centred"] == pytest.approx(1, abs=1e-6)
    for name in ("forth", "back", "csls_forth", "csls_back"):
        assert found["retrieval"][name] == 1
    assert found["between"] < 0.9
    assert found["by_frequency"]["cosine"] == pytest.approx([1], abs=1e-6)


def test_a_common_direction_makes_cosines_of_unrelated_rows_but_no_centred_ones(measured):
    rng = np.random.default_rng(5)
    wide = 256
    table_VD = np.float32(rng.standard_normal((V, wide)))
    few = 5 / math.sqrt(wide * U)  # standard errors of a mean of U cosines
    found = measured(table_VD, pairs_of())
    for name in ("cosine", "centred", "between", "cosine_all_ids"):
        assert abs(found[name]) < few, name
    # The diagonal alone: V of V^2 cosines are 1.
    assert found["all_pairs"] == pytest.approx(1 / V, abs=few)
    assert found["cosine_error"] == pytest.approx(1 / math.sqrt(wide * U), rel=0.3)
    for name in ("forth", "back", "csls_forth", "csls_back"):
        assert found["retrieval"][name] < 4 / U
    leaning = measured(table_VD + np.float32(3), pairs_of())
    assert leaning["cosine"] > 0.85 and leaning["between"] > 0.85
    assert leaning["centred"] == pytest.approx(found["centred"], abs=1e-4)


def test_languages_of_the_same_ids_have_no_pairs_to_compare(measured, table_VD):
    found = measured(table_VD, pairs_of(shared=U))
    assert (found["pairs"], found["shared"]) == (0, U)
    assert found["cosine_all_ids"] == pytest.approx(1, abs=1e-6)
    assert "cosine" not in found and "retrieval" not in found


def test_row_norms_are_means_over_each_languages_ids(programs, table_VD):
    own_GV = np.zeros((3, V), bool)
    own_GV[0, :30], own_GV[1, 20:90], own_GV[2, 95:] = True, True, True
    expected = []
    for own_V in own_GV:
        norms = [math.sqrt(sum(float(x) ** 2 for x in row_D)) for row_D in table_VD[own_V]]
        expected.append(sum(norms) / len(norms))
    found = programs.run(embeddings.compute_language_norms, table_VD, own_GV)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
