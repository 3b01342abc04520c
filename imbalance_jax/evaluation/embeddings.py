"""How alike two languages' rows of the embedding and of the head are.

Rows are compared in pairs of pieces that mean the same: a piece and its clone, or for
languages of different sources the pieces that `suggest_piece_pairs` finds in parallel text. Pairs
whose two ids are one id (anchors, equal pieces of a merged vocabulary) have cosine 1 by
construction and are counted apart.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imbalance_jax.evaluation.programs import MeasurementPrograms
from imbalance_jax.evaluation.similarity import scale_to_unit_norm

# Rows whose cosines to all others exist at once.
_CHUNK = 512
NEIGHBOURS = 10  # of CSLS, as in Conneau et al. 2018
# The least number of sequences that a suggested pair must occur in together.
_LEAST_TOGETHER = 5


@dataclasses.dataclass(frozen=True)
class PiecePairs:
    """Pieces that mean the same in two languages, by the model's ids."""

    ids: tuple[np.ndarray, np.ndarray]  # each (n,); those of one place mean the same
    # About how often the rarer of the two was trained on, in any language of its source.
    count_n: np.ndarray
    origin: str  # clones | suggested
    # Other pieces of each language, in which a counterpart is looked for as well.
    others: tuple[np.ndarray, np.ndarray] = (np.empty(0, np.int32), np.empty(0, np.int32))
    # The same as count_n in its own language alone; clones of one source differ in it.
    own_count_n: np.ndarray | None = None

    @property
    def distinct(self) -> np.ndarray:
        return self.ids[0] != self.ids[1]


def suggest_piece_pairs(
    occurs_a: np.ndarray, occurs_b: np.ndarray, least: int = _LEAST_TOGETHER
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pieces of two languages that parallel sequences suggest mean the same.

    A pair is taken if each is the other's best by Dunning's log-likelihood ratio of occurring
    in the same sequences (the statistic that Moore 2004 builds lexicons with), if they occur
    together more often than by chance, and in `least` sequences.

    Args:
      occurs_a: (P, U) bool, which pieces of the first language each sequence holds.
      occurs_b: (P, U') bool, of the second.
      least: the number of sequences.
    """
    used_a, used_b = (np.flatnonzero(x.sum(axis=0) >= least) for x in (occurs_a, occurs_b))
    if not len(used_a) or not len(used_b):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    x, y = occurs_a[:, used_a].astype(np.float32), occurs_b[:, used_b].astype(np.float32)
    best_b, score_a = np.zeros(len(used_a), np.int64), np.zeros(len(used_a))
    best_a, score_b = np.zeros(len(used_b), np.int64), np.zeros(len(used_b))
    for first in range(0, len(used_a), _CHUNK):
        rows = slice(first, first + _CHUNK)
        score = _likelihood_ratio(x[:, rows], y, least)
        best_b[rows], score_a[rows] = score.argmax(axis=1), score.max(axis=1)
        better = score.max(axis=0) > score_b
        best_a[better] = first + score.argmax(axis=0)[better]
        score_b[better] = score.max(axis=0)[better]
    mutual = (best_a[best_b] == np.arange(len(used_a))) & (score_a > 0)
    return used_a[mutual], used_b[best_b[mutual]]


def _likelihood_ratio(x: np.ndarray, y: np.ndarray, least: int) -> np.ndarray:
    """Returns Dunning's statistic of every column of x with every one of y; 0 for no pair."""
    total, both = len(x), (x.T @ y).astype(np.float64)
    first, second = x.sum(axis=0)[:, None].astype(float), y.sum(axis=0)[None].astype(float)
    score = np.zeros_like(both)
    for seen, margin_a, margin_b in (
        (both, first, second),
        (first - both, first, total - second),
        (second - both, total - first, second),
        (total - first - second + both, total - first, total - second),
    ):
        expected = margin_a * margin_b / total
        with np.errstate(divide="ignore", invalid="ignore"):
            score += np.where(seen > 0, 2 * seen * np.log(seen / expected), 0)
    score[(both * total <= first * second) | (both < least)] = 0
    return score


def measure_embeddings(
    programs: MeasurementPrograms,
    table_VD: jax.Array,
    pairs: PiecePairs,
    blocks: tuple[np.ndarray, np.ndarray],
    *,
    candidates: int,
) -> dict[str, Any]:
    """Returns how alike the rows of a table are in two languages, ready for JSON.

    With all ids of the pairs, as the reference counts: `cosine_all_ids`, and `all_pairs` over
    the two languages' ids together, diagonal and all. Of ids that differ: `cosine` with its
    standard error over pieces, beside `between`, the mean cosine of every piece of the one to
    every piece of the other; `centred`, after each language's mean row is taken away;
    `bin_by_frequency`, over how often the rarer piece was trained on in any language of its source,
    as the reference counts, and `by_own_frequency`, in its own language; and `retrieval`, among
    the pieces of the other language.

    Args:
      programs: what compiles and runs the measurement.
      table_VD: the embedding or the head.
      pairs: pieces that mean the same.
      blocks: all ids of each language.
      candidates: retrieval is among so many pieces at most, first those of the most frequent
        pairs; 0 takes all.
    """
    ids_a, ids_b = pairs.ids
    cosine_n, centred_n = map(
        np.asarray, programs.run(_pair_cosines, table_VD, ids_a, ids_b, *blocks)
    )
    all_pairs, between = map(float, programs.run(mean_cosines, table_VD, *blocks))
    distinct_n = pairs.distinct
    found: dict[str, Any] = {
        "origin": pairs.origin,
        "pairs": int(distinct_n.sum()),
        "shared": int((~distinct_n).sum()),
        "cosine_all_ids": float(cosine_n.mean()) if len(cosine_n) else None,
        "all_pairs": all_pairs,
        "between": between,
    }
    if found["pairs"] < 2:
        return found
    chosen = np.flatnonzero(distinct_n)
    for name, values in (("cosine", cosine_n), ("centred", centred_n)):
        found[name] = float(values[chosen].mean())
        found[f"{name}_error"] = float(values[chosen].std(ddof=1) / np.sqrt(len(chosen)))
    found["by_frequency"] = bin_by_frequency(cosine_n[chosen], pairs.count_n[chosen])
    if pairs.own_count_n is not None:
        found["by_own_frequency"] = bin_by_frequency(cosine_n[chosen], pairs.own_count_n[chosen])
    by_count = chosen[np.argsort(-pairs.count_n[chosen], kind="stable")]
    asked = by_count[: candidates or None]
    more = candidates - len(asked) if candidates else None
    others = tuple(ids[:more] for ids in pairs.others)
    sizes = [len(asked) + len(ids) for ids in others]
    scores = programs.run(
        compute_piece_retrieval,
        table_VD,
        ids_a[asked],
        ids_b[asked],
        *others,
        k=min(NEIGHBOURS, *sizes),
    )
    found["retrieval"] = {name: float(value) for name, value in scores.items()}
    found["retrieval"] |= {
        "candidates": sum(sizes) // 2,
        "chance": sum(1 / size for size in sizes) / 2,
    }
    return found


def _pair_cosines(
    table_VD: jax.Array, ids_a: jax.Array, ids_b: jax.Array, block_a: jax.Array, block_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The cosine of each pair, and that after each language's mean row is taken away: (n,)."""
    rows_a, rows_b = table_VD[ids_a], table_VD[ids_b]
    mean_a, mean_b = (jnp.mean(table_VD[block], axis=0)[None] for block in (block_a, block_b))

    def cosine(x_nD: jax.Array, y_nD: jax.Array) -> jax.Array:
        return jnp.sum(scale_to_unit_norm(x_nD) * scale_to_unit_norm(y_nD), axis=1)

    return cosine(rows_a, rows_b), cosine(rows_a - mean_a, rows_b - mean_b)


def mean_cosines(
    table_VD: jax.Array, block_a: jax.Array, block_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean cosine of all pairs of rows of both blocks together, and between them.

    The mean of all inner products is the inner product of the means, so that no matrix of
    pairs is made. The first counts every row with itself, and a row of both blocks once.
    """
    unit_a, unit_b = scale_to_unit_norm(table_VD[block_a]), scale_to_unit_norm(table_VD[block_b])
    rest_b = ~jnp.isin(block_b, block_a)
    total_D = jnp.sum(unit_a, axis=0) + rest_b.astype(jnp.float32) @ unit_b
    mean_D = total_D / (len(block_a) + jnp.sum(rest_b))
    between = jnp.sum(jnp.mean(unit_a, axis=0) * jnp.mean(unit_b, axis=0))
    return jnp.sum(mean_D * mean_D), between


def bin_by_frequency(cosine_n: np.ndarray, count_n: np.ndarray) -> dict[str, list[float]]:
    """Returns the mean cosine of the pieces in each bin of their count.

    As the reference: edges 10^(k/4), each bin with its lower edge; pieces that never occur
    are in none, and empty bins are left out.
    """
    seen = count_n >= 1
    bin_n = np.floor(4 * np.log10(np.maximum(count_n, 1)) + 1e-9).astype(int)
    found: dict[str, list[float]] = {"low": [], "high": [], "pieces": [], "cosine": []}
    for k in np.unique(bin_n[seen]):
        inside = seen & (bin_n == k)
        found["low"].append(float(10 ** (k / 4)))
        found["high"].append(float(10 ** ((k + 1) / 4)))
        found["pieces"].append(int(inside.sum()))
        found["cosine"].append(float(cosine_n[inside].mean()))
    return found


def compute_piece_retrieval(
    table_VD: jax.Array,
    ids_a: jax.Array,
    ids_b: jax.Array,
    others_a: jax.Array,
    others_b: jax.Array,
    *,
    k: int,
) -> dict[str, jax.Array]:
    """Returns how often a piece's nearest one in the other language is its own counterpart.

    P@1 by cosine, from the first language to the second and back, and by CSLS (Conneau et al.
    2018), which takes from each cosine how near both are to everything: the mean cosine to
    their k nearest in the other language.

    Args:
      table_VD: the embedding or the head.
      ids_a: pieces of the first language, each looked for.
      ids_b: their counterparts.
      others_a: more pieces of the first language that may be found instead.
      others_b: of the second.
      k: as above.
    """
    unit_a = scale_to_unit_norm(table_VD[jnp.concatenate([ids_a, others_a])])
    unit_b = scale_to_unit_norm(table_VD[jnp.concatenate([ids_b, others_b])])

    def near(x_nD: jax.Array, y_mD: jax.Array) -> jax.Array:
        def of(x_D: jax.Array) -> jax.Array:
            return jnp.mean(jax.lax.top_k(y_mD @ x_D, k)[0])

        return jax.lax.map(of, x_nD, batch_size=_CHUNK)

    near_a, near_b = near(unit_a, unit_b), near(unit_b, unit_a)

    def right(x_nD: jax.Array, y_mD: jax.Array, penalty_m: jax.Array) -> jax.Array:
        def of(row: tuple[jax.Array, jax.Array]) -> jax.Array:
            x_D, place = row
            score_m = y_mD @ x_D - penalty_m
            best = jnp.max(score_m)
            # Equal up to rounding, as copies of a row are: each counts as a part.
            ties = jnp.sum(score_m >= best - 1e-6)
            return (score_m[place] >= best - 1e-6) / ties

        places = jnp.arange(len(ids_a))
        return jnp.mean(jax.lax.map(of, (x_nD[: len(ids_a)], places), batch_size=_CHUNK))

    return {
        "forth": right(unit_a, unit_b, jnp.zeros(len(unit_b))),
        "back": right(unit_b, unit_a, jnp.zeros(len(unit_a))),
        # Twice the cosine, less both means; that of the piece itself is the same for all.
        "csls_forth": right(2 * unit_a, unit_b, near_b),
        "csls_back": right(2 * unit_b, unit_a, near_a),
    }


def compute_language_norms(table_VD: jax.Array, own_GV: jax.Array) -> jax.Array:
    """Returns the mean norm of each language's rows of a table, (G,); shared ids count as well."""
    norm_V = jnp.sqrt(jnp.sum(jnp.square(table_VD.astype(jnp.float32)), axis=1))
    own = own_GV.astype(jnp.float32)
    return own @ norm_V / jnp.sum(own, axis=1)
