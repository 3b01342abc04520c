"""How alike a model's states are where two languages say the same.

Two languages of one source say the same at the same position: there the cosine is taken
position by position. Others say the same somewhere in the sequence: there each position of
the shorter side is assigned one of the other, so that the sum of cosines, on average over
the blocks, is the largest possible (the reference study's *maximum matching*). For both,
sequences are compared as wholes too, by the mean of their states.

A raw value alone says nothing: cosines of a narrow cone are high, matching picks the best of
many, few pairs in many dimensions look alike. So each stands beside what sequences of the
same lengths get that say different things (`shuffled`), and again after each language's mean
is taken away (`centred`) and after the best rotation of one onto the other (`procrustes`).
Means and rotations are estimated on the pairs of the other fold, never on those they score.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute.context import NO_CONTEXT, Context
from imbalance_jax.config import ModelConfig
from imbalance_jax.evaluation.programs import (
    Measuring,
    ignore_progress,
)
from imbalance_jax.evaluation.sentences import measure_sentences
from imbalance_jax.evaluation.similarity import (
    compare_with_shuffled,
    compute_cosine,
    find_nearest_rotation,
    rotate_states,
    scale_to_unit_norm,
)

# Sequences of like length among which a partner with another content is chosen.
_PARTNERS = 16


@dataclasses.dataclass(frozen=True)
class SequencePairs:
    """P sequences in each of two languages; those of one row say the same.

    `own` marks the positions that hold text in an id that only one of the languages has.
    """

    ids: tuple[np.ndarray, np.ndarray]  # each (P, L), the model's ids
    text: tuple[np.ndarray, np.ndarray]  # each (P, L) bool, which positions hold text
    own: tuple[np.ndarray, np.ndarray]  # each (P, L) bool
    aligned: bool  # whether equal positions say the same
    prefix: int = 0  # positions before the place where after_text.py parts them; 0 is half
    # What the model reads of either side besides its ids.
    contexts: tuple[Context, Context] = (NO_CONTEXT, NO_CONTEXT)

    @property
    def shares_ids(self) -> bool:
        """Whether some of the text is in ids that both languages have."""
        return any(bool((text & ~own).any()) for text, own in zip(self.text, self.own, strict=True))


def choose_partners(lengths: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Returns for each row another one, whose two lengths are like its own: (P,).

    Rows are put in order of their lengths, and every 16 of them change places with those 8
    further on; so each row is the partner of one other.
    """
    order_P = np.lexsort((lengths[1], lengths[0]))
    found_P = np.empty(len(order_P), np.int64)
    for first in range(0, len(order_P), _PARTNERS):
        group = order_P[first : first + _PARTNERS]
        if len(group) == 1 and len(order_P) > 1:  # takes the place of the row before it
            before = order_P[first - 1]
            found_P[group], found_P[before] = found_P[before], group[0]
            continue
        found_P[group] = np.roll(group, -max(1, len(group) // 2))
    return found_P


def measure_hidden_states(
    measuring: Measuring, sequences: SequencePairs, *, match: bool, rotate: bool
) -> dict[str, Any]:
    """Returns what two languages have in common in every layer, ready for JSON.

    Each list has a value for every layer, 0 .. N + 1: the embedding output, the blocks, and
    the final norm. `positions` is there where positions correspond, `matched` on request,
    `sentences` always; `without_shared` repeats all of it without the positions whose id
    both languages have, where there are such.

    Args:
      measuring: the model.
      sequences: in the two languages.
      match: whether to assign positions to each other.
      rotate: whether to look for rotations.
    """
    result = _measure_masked_states(measuring, sequences, sequences.text, match, rotate)
    if sequences.shares_ids:
        result["without_shared"] = _measure_masked_states(
            measuring, sequences, sequences.own, match, rotate
        )
    return result


def _measure_masked_states(
    measuring: Measuring,
    sequences: SequencePairs,
    counted: tuple[np.ndarray, np.ndarray],
    match: bool,
    rotate: bool,
) -> dict[str, Any]:
    # Sequences of which nothing is left say nothing.
    kept = np.flatnonzero(counted[0].any(axis=1) & counted[1].any(axis=1))
    if len(kept) < 4:
        return {"sequences": len(kept)}
    ids_a, ids_b = (ids_PL[kept] for ids_PL in sequences.ids)
    mask_a, mask_b = (mask_PL[kept] for mask_PL in counted)
    fold_P = (np.arange(len(kept)) % 2).astype(np.int32)
    # Of the same fold, so that means and rotations are not estimated on partners either.
    other_P = np.empty(len(kept), np.int64)
    for fold in range(2):
        mine = np.flatnonzero(fold_P == fold)
        other_P[mine] = mine[choose_partners((mask_a[mine].sum(axis=1), mask_b[mine].sum(axis=1)))]
    rows = {
        "ids_a": ids_a,
        "ids_b": ids_b,
        "ids_c": ids_b[other_P],
        "mask_a": mask_a,
        "mask_b": mask_b,
        "mask_c": mask_b[other_P],
        "fold": fold_P,
    }
    per_row, sums = measuring.rows(
        _compute_moments,
        {name: rows[name] for name in ("ids_a", "ids_b", "mask_a", "mask_b", "fold")},
        sequences.contexts,
        cross=rotate and sequences.aligned,
    )
    result: dict[str, Any] = {"sequences": len(kept)}
    means = _compute_fold_means(sums)
    result["sentences"] = measure_sentences(measuring.programs, per_row, fold_P, other_P, rotate)
    if sequences.aligned:
        rotations = _fit_rotations(sums, means) if rotate else None
        scores, _ = measuring.rows(
            _score_aligned_positions, rows, sequences.contexts, means, rotations
        )
        result["positions"] = compare_with_shuffled(scores)
    if match:
        result["matched"] = _measure_matched_positions(measuring, rows, sequences.contexts, means)
    return result


def _compute_states(
    params: model_lib.Params,
    contexts: tuple[Context, Context],
    config: ModelConfig,
    rows: Mapping[str, jax.Array],
    side: str,
) -> jax.Array:
    """Returns the states of all layers, with the rows first: (B, N + 2, L, D).

    Side a is the first language, and b and c are the second.
    """
    states_NBLD = model_lib.compute_hidden_states(
        params, config, rows[f"ids_{side}"], contexts[side != "a"]
    )
    return jnp.moveaxis(states_NBLD.astype(jnp.float32), 0, 1)


def _compute_moments(
    params: model_lib.Params,
    contexts: tuple[Context, Context],
    rows: Mapping[str, jax.Array],
    real_B: jax.Array,
    *,
    config: ModelConfig,
    cross: bool,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The mean state of each row, and what means and rotations are estimated from, by fold.

    With E the folds and S the two languages, and layers counted as N:
    `total_ESND` adds up the states of all positions, `count_ES` the positions, and
    `cross_ENDD` the products of the two languages' states at equal positions.
    """
    states = [_compute_states(params, contexts, config, rows, side) for side in "ab"]
    masks = [rows[f"mask_{side}"].astype(jnp.float32) for side in "ab"]
    sums = [
        jnp.einsum("BNLD,BL->BND", states_BNLD, mask_BL)
        for states_BNLD, mask_BL in zip(states, masks, strict=True)
    ]
    counts = [jnp.sum(mask_BL, axis=1) for mask_BL in masks]
    fold_BE = jax.nn.one_hot(rows["fold"], 2) * real_B[:, None]
    total_ESND = jnp.stack([jnp.einsum("BND,BE->END", sum_BND, fold_BE) for sum_BND in sums], 1)
    added = {
        "total_ESND": total_ESND,
        "count_ES": jnp.stack([count_B @ fold_BE for count_B in counts], 1),
    }
    if cross:
        both_BL = masks[0] * masks[1]
        # One fold after the other: weights inside the product would copy all states for each.
        added["cross_ENDD"] = jnp.stack(
            [
                jnp.einsum(
                    "BNLD,BNLE->NDE",
                    states[0] * (both_BL * fold_BE[:, fold, None])[:, None, :, None],
                    states[1],
                )
                for fold in range(2)
            ]
        )
    mean = {
        f"mean_{side}": sum_BND / count_B[:, None, None]
        for side, sum_BND, count_B in zip("ab", sums, counts, strict=True)
    }
    return mean, added


def _compute_fold_means(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the mean state of each language for each fold, from the other one: (E, S, N, D)."""
    means_ESND = sums["total_ESND"] / np.maximum(sums["count_ES"], 1)[..., None, None]
    return means_ESND[::-1].astype(np.float32)


def _fit_rotations(sums: Mapping[str, np.ndarray], means_ESND: np.ndarray) -> np.ndarray:
    """Returns the rotation of the first language onto the second for each fold, (E, N, D, D).

    That which brings the centred states of the other fold nearest to those at the same
    positions: U V' of the singular value decomposition of their products (Schönemann 1966).
    """
    count_E = sums["count_ES"][:, 0]
    means = means_ESND[::-1].astype(np.float64)  # of each fold itself
    products_ENDD = sums["cross_ENDD"] - count_E[:, None, None, None] * np.einsum(
        "END,ENF->ENDF", means[:, 0], means[:, 1]
    )
    return find_nearest_rotation(products_ENDD[::-1])


def _score_aligned_positions(
    params: model_lib.Params,
    contexts: tuple[Context, Context],
    means_ESND: jax.Array,
    rotations_ENDD: jax.Array | None,
    rows: Mapping[str, jax.Array],
    real_B: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The mean cosine of equal positions of every row and layer, (B, N) each."""
    a, b, c = (_compute_states(params, contexts, config, rows, side) for side in "abc")
    same_BL = rows["mask_a"] & rows["mask_b"]
    other_BL = rows["mask_a"] & rows["mask_c"]
    mean_BSND = means_ESND[rows["fold"]]
    found = _compare_positions("cosine", a, b, c, same_BL, other_BL)
    a = a - mean_BSND[:, 0, :, None]
    b, c = (x - mean_BSND[:, 1, :, None] for x in (b, c))
    found |= _compare_positions("centred", a, b, c, same_BL, other_BL)
    if rotations_ENDD is not None:
        a = rotate_states("BNLD,NDE->BNLE", a, rotations_ENDD, rows["fold"])
        found |= _compare_positions("procrustes", a, b, c, same_BL, other_BL)
    return found, {}


def _compare_positions(
    name: str,
    a_BNLD: jax.Array,
    b_BNLD: jax.Array,
    c_BNLD: jax.Array,
    same_BL: jax.Array,
    other_BL: jax.Array,
) -> dict[str, jax.Array]:
    return {
        name: _average_masked(compute_cosine(a_BNLD, b_BNLD), same_BL),
        f"{name}_shuffled": _average_masked(compute_cosine(a_BNLD, c_BNLD), other_BL),
    }


def _average_masked(values_BNL: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """Returns the mean over the marked positions; NaN where there is none: (B, N)."""
    mask_B1L = mask_BL[:, None].astype(jnp.float32)
    return jnp.sum(values_BNL * mask_B1L, axis=-1) / jnp.sum(mask_B1L, axis=-1)


# Matching.


def _measure_matched_positions(
    measuring: Measuring,
    rows: Mapping[str, np.ndarray],
    contexts: tuple[Context, Context],
    means_ESND: np.ndarray,
) -> dict[str, Any]:
    """Returns the mean cosine of assigned positions, in every layer, beside shuffled ones."""
    scores: dict[str, np.ndarray] = {}
    # A batch at a time: a cosine for each pair of positions is much to keep.
    size = measuring.programs.batch_size
    one_batch = dataclasses.replace(measuring, poll=ignore_progress)
    for first in range(0, len(rows["fold"]), size):
        part = {name: values[first : first + size] for name, values in rows.items()}
        cosines, _ = one_batch.rows(_compute_all_cosines, part, contexts, means_ESND)
        for name, cosine_BLM in cosines.items():
            side = "c" if name.endswith("_shuffled") else "b"
            part[f"{name}/to"] = np.stack(
                [
                    assign_positions(cosine_LM, row_L, column_M)
                    for cosine_LM, row_L, column_M in zip(
                        cosine_BLM, part["mask_a"], part[f"mask_{side}"], strict=True
                    )
                ]
            )
        part_scores, _ = one_batch.rows(_compute_assigned_cosines, part, contexts, means_ESND)
        for name, values in part_scores.items():
            scores[name] = np.concatenate([scores[name], values]) if name in scores else values
        measuring.poll(min(1.0, (first + size) / len(rows["fold"])))
    return compare_with_shuffled(scores)


def assign_positions(cosine_LM: np.ndarray, row_L: np.ndarray, column_M: np.ndarray) -> np.ndarray:
    """Returns the column of each row in the assignment with the largest sum, or -1: (L,).

    Args:
      cosine_LM: of each pair of positions.
      row_L: which rows take part; the shorter of the two sides is assigned whole.
      column_M: which columns do.
    """
    from scipy import optimize

    rows, columns = np.flatnonzero(row_L), np.flatnonzero(column_M)
    chosen = optimize.linear_sum_assignment(cosine_LM[np.ix_(rows, columns)], maximize=True)
    to_L = np.full(len(row_L), -1, np.int32)
    to_L[rows[chosen[0]]] = columns[chosen[1]]
    return to_L


def _build_state_pairs(
    params: model_lib.Params,
    contexts: tuple[Context, Context],
    means_ESND: jax.Array,
    rows: Mapping[str, jax.Array],
    config: ModelConfig,
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns the states that are matched with each other, by the name of the score."""
    a, b, c = (_compute_states(params, contexts, config, rows, side) for side in "abc")
    mean_BSND = means_ESND[rows["fold"]]
    mean_a, mean_b = mean_BSND[:, 0, :, None], mean_BSND[:, 1, :, None]
    return {
        "cosine": (a, b),
        "cosine_shuffled": (a, c),
        "centred": (a - mean_a, b - mean_b),
        "centred_shuffled": (a - mean_a, c - mean_b),
    }


def _compute_all_cosines(
    params: model_lib.Params,
    contexts: tuple[Context, Context],
    means_ESND: jax.Array,
    rows: Mapping[str, jax.Array],
    real_B: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The cosine of every two positions, on average over the blocks: (B, L, M) each."""
    blocks = slice(1, config.N + 1)
    return {
        name: jnp.einsum(
            "BNLD,BNMD->BLM", scale_to_unit_norm(x[:, blocks]), scale_to_unit_norm(y[:, blocks])
        )
        / config.N
        for name, (x, y) in _build_state_pairs(params, contexts, means_ESND, rows, config).items()
    }, {}


def _compute_assigned_cosines(
    params: model_lib.Params,
    contexts: tuple[Context, Context],
    means_ESND: jax.Array,
    rows: Mapping[str, jax.Array],
    real_B: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The mean cosine of the positions that are assigned to each other: (B, N) each."""
    found = {}
    for name, (x, y) in _build_state_pairs(params, contexts, means_ESND, rows, config).items():
        to_BL = rows[f"{name}/to"]
        y = jnp.take_along_axis(y, jnp.maximum(to_BL, 0)[:, None, :, None], axis=2)
        found[name] = _average_masked(compute_cosine(x, y), to_BL >= 0)
    return found, {}
