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
from imbalance_jax.config import ModelConfig
from imbalance_jax.evaluation.programs import (
    MeasurementPrograms,
    Measuring,
    ignore_progress,
)

_EPS = 1e-12
# How far a rotation is drawn towards none, in parts of the root mean square singular value.
_TOWARDS_NONE = 1e-3
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
        cross=rotate and sequences.aligned,
    )
    result: dict[str, Any] = {"sequences": len(kept)}
    means = _compute_fold_means(sums)
    result["sentences"] = _measure_sentences(measuring.programs, per_row, fold_P, other_P, rotate)
    if sequences.aligned:
        rotations = _fit_rotations(sums, means) if rotate else None
        scores, _ = measuring.rows(_score_aligned_positions, rows, means, rotations)
        result["positions"] = _compare_with_shuffled(scores)
    if match:
        result["matched"] = _measure_matched_positions(measuring, rows, means)
    return result


def _compute_states(params: model_lib.Params, config: ModelConfig, ids_BL: jax.Array) -> jax.Array:
    """Returns the states of all layers, with the rows first: (B, N + 2, L, D)."""
    states_NBLD = model_lib.compute_hidden_states(params, config, ids_BL).astype(jnp.float32)
    return jnp.moveaxis(states_NBLD, 0, 1)


def _compute_moments(
    params: model_lib.Params,
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
    states = [_compute_states(params, config, rows[f"ids_{side}"]) for side in "ab"]
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
    return _find_nearest_rotation(products_ENDD[::-1])


def _find_nearest_rotation(products_DD: np.ndarray) -> np.ndarray:
    """Returns U V' of the products' singular value decomposition, drawn a little towards I.

    Fewer pairs than dimensions leave a part of the rotation open, which rounding would decide
    otherwise; there it turns nothing. On the host: XLA's decompositions of a stack of matrices
    wait for each other's threads forever where a CPU has several simulated devices.
    """
    products_DD = products_DD.astype(np.float32)
    D = products_DD.shape[-1]
    size = np.sqrt(np.sum(np.square(products_DD), axis=(-2, -1), keepdims=True) / D)
    near_DD = products_DD + _TOWARDS_NONE * size * np.eye(D, dtype=np.float32)
    u_DD, _, v_DD = np.linalg.svd(near_DD)
    return u_DD @ v_DD


def _score_aligned_positions(
    params: model_lib.Params,
    means_ESND: jax.Array,
    rotations_ENDD: jax.Array | None,
    rows: Mapping[str, jax.Array],
    real_B: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The mean cosine of equal positions of every row and layer, (B, N) each."""
    a, b, c = (_compute_states(params, config, rows[f"ids_{side}"]) for side in "abc")
    same_BL = rows["mask_a"] & rows["mask_b"]
    other_BL = rows["mask_a"] & rows["mask_c"]
    mean_BSND = means_ESND[rows["fold"]]
    found = _compare_positions("cosine", a, b, c, same_BL, other_BL)
    a = a - mean_BSND[:, 0, :, None]
    b, c = (x - mean_BSND[:, 1, :, None] for x in (b, c))
    found |= _compare_positions("centred", a, b, c, same_BL, other_BL)
    if rotations_ENDD is not None:
        a = _rotate_states("BNLD,NDE->BNLE", a, rotations_ENDD, rows["fold"])
        found |= _compare_positions("procrustes", a, b, c, same_BL, other_BL)
    return found, {}


def _rotate_states(
    spec: str, states: jax.Array, rotations_ENDD: jax.Array, fold_B: jax.Array
) -> jax.Array:
    """Returns the states of each row, turned by the rotation of its fold.

    Every row is turned by both rotations, and one result is kept. A matrix for each row would be
    fewer products, but takes D^2 numbers for each layer of each row: 17 GB at D = 768 for 14
    layers of 512 rows.

    Args:
      spec: of the einsum of the states and one fold's rotations.
      states: rows first.
      rotations_ENDD: of each fold.
      fold_B: the fold of each row.
    """
    first, second = (jnp.einsum(spec, states, rotation_NDD) for rotation_NDD in rotations_ENDD)
    return jnp.where(fold_B.reshape(-1, *(1,) * (states.ndim - 1)) == 0, first, second)


def _compare_positions(
    name: str,
    a_BNLD: jax.Array,
    b_BNLD: jax.Array,
    c_BNLD: jax.Array,
    same_BL: jax.Array,
    other_BL: jax.Array,
) -> dict[str, jax.Array]:
    return {
        name: _average_masked(_compute_cosine(a_BNLD, b_BNLD), same_BL),
        f"{name}_shuffled": _average_masked(_compute_cosine(a_BNLD, c_BNLD), other_BL),
    }


def _compute_cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the cosine of the last dimensions; 0 where one of them is all zero."""
    norms = jnp.sqrt(jnp.sum(x * x, axis=-1) * jnp.sum(y * y, axis=-1))
    return jnp.sum(x * y, axis=-1) / jnp.maximum(norms, _EPS)


def _average_masked(values_BNL: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """Returns the mean over the marked positions; NaN where there is none: (B, N)."""
    mask_B1L = mask_BL[:, None].astype(jnp.float32)
    return jnp.sum(values_BNL * mask_B1L, axis=-1) / jnp.sum(mask_B1L, axis=-1)


def scale_to_unit_norm(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)), _EPS)


# Matching.


def _measure_matched_positions(
    measuring: Measuring, rows: Mapping[str, np.ndarray], means_ESND: np.ndarray
) -> dict[str, Any]:
    """Returns the mean cosine of assigned positions, in every layer, beside shuffled ones."""
    scores: dict[str, np.ndarray] = {}
    # A batch at a time: a cosine for each pair of positions is much to keep.
    size = measuring.programs.batch_size
    one_batch = dataclasses.replace(measuring, poll=ignore_progress)
    for first in range(0, len(rows["fold"]), size):
        part = {name: values[first : first + size] for name, values in rows.items()}
        cosines, _ = one_batch.rows(_compute_all_cosines, part, means_ESND)
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
        part_scores, _ = one_batch.rows(_compute_assigned_cosines, part, means_ESND)
        for name, values in part_scores.items():
            scores[name] = np.concatenate([scores[name], values]) if name in scores else values
        measuring.poll(min(1.0, (first + size) / len(rows["fold"])))
    return _compare_with_shuffled(scores)


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
    means_ESND: jax.Array,
    rows: Mapping[str, jax.Array],
    config: ModelConfig,
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns the states that are matched with each other, by the name of the score."""
    a, b, c = (_compute_states(params, config, rows[f"ids_{side}"]) for side in "abc")
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
        for name, (x, y) in _build_state_pairs(params, means_ESND, rows, config).items()
    }, {}


def _compute_assigned_cosines(
    params: model_lib.Params,
    means_ESND: jax.Array,
    rows: Mapping[str, jax.Array],
    real_B: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The mean cosine of the positions that are assigned to each other: (B, N) each."""
    found = {}
    for name, (x, y) in _build_state_pairs(params, means_ESND, rows, config).items():
        to_BL = rows[f"{name}/to"]
        y = jnp.take_along_axis(y, jnp.maximum(to_BL, 0)[:, None, :, None], axis=2)
        found[name] = _average_masked(_compute_cosine(x, y), to_BL >= 0)
    return found, {}


# Sequences as wholes.


def _measure_sentences(
    programs: MeasurementPrograms,
    per_row: Mapping[str, np.ndarray],
    fold_P: np.ndarray,
    other_P: np.ndarray,
    rotate: bool,
) -> dict[str, Any]:
    """Returns how alike the mean states of whole sequences are."""
    a_PND, b_PND = per_row["mean_a"], per_row["mean_b"]
    rotations = _fit_sentence_rotations(a_PND, b_PND, fold_P) if rotate else None
    found = programs.run(
        _score_sentences, a_PND, b_PND, fold_P, other_P.astype(np.int32), rotations
    )
    values = jax.device_get(found)
    scores = {name: value for name, value in values.items() if value.ndim == 2}
    result = _compare_with_shuffled(scores)
    for name, value in values.items():
        if value.ndim == 1:
            result[name] = _convert_to_floats(value)
    result["chance"] = 1 / len(fold_P)
    return result


def _fit_sentence_rotations(a_PND: np.ndarray, b_PND: np.ndarray, fold_P: np.ndarray) -> np.ndarray:
    """Returns what `_fit_rotations` does, from the mean states of sequences: (E, N, D, D)."""
    found = []
    for fold in range(2):
        a, b = (x_PND[fold_P != fold].swapaxes(0, 1) for x_PND in (a_PND, b_PND))
        a, b = (x_NPD - x_NPD.mean(axis=1, keepdims=True) for x_NPD in (a, b))
        found.append(_find_nearest_rotation(a.swapaxes(1, 2) @ b))
    return np.stack(found)


def _score_sentences(
    a_PND: jax.Array,
    b_PND: jax.Array,
    fold_P: jax.Array,
    other_P: jax.Array,
    rotations_ENDD: jax.Array | None,
) -> dict[str, jax.Array]:
    """Cosines of each pair and layer (P, N), and what is one number a layer (N,)."""
    found = _compute_sentence_cosines("cosine", a_PND, b_PND, other_P)
    fold_EP = jnp.stack([fold_P == 1, fold_P == 0]).astype(jnp.float32)  # of the other fold
    weight_EP = fold_EP / jnp.sum(fold_EP, axis=1, keepdims=True)

    def centre(x_PND: jax.Array) -> jax.Array:
        return x_PND - jnp.einsum("EP,PND->END", weight_EP, x_PND)[fold_P]

    centred_a, centred_b = centre(a_PND), centre(b_PND)
    found |= _compute_sentence_cosines("centred", centred_a, centred_b, other_P)
    if rotations_ENDD is not None:
        turned_PND = _rotate_states("PND,NDE->PNE", centred_a, rotations_ENDD, fold_P)
        found |= _compute_sentence_cosines("procrustes", turned_PND, centred_b, other_P)
    for name, (x_PND, y_PND) in {
        "retrieval": (a_PND, b_PND),
        "centred_retrieval": (centred_a, centred_b),
    }.items():
        cosine_NPQ = jnp.einsum(
            "PND,QND->NPQ", scale_to_unit_norm(x_PND), scale_to_unit_norm(y_PND)
        )
        found[f"{name}_forth"], found[f"{name}_back"] = compute_sentence_retrieval(cosine_NPQ)
    found |= _compute_cka(a_PND, b_PND, other_P)
    return found


def _compute_sentence_cosines(
    name: str, x_PND: jax.Array, y_PND: jax.Array, other_P: jax.Array
) -> dict[str, jax.Array]:
    return {
        name: _compute_cosine(x_PND, y_PND),
        f"{name}_shuffled": _compute_cosine(x_PND, y_PND[other_P]),
    }


def compute_sentence_retrieval(cosine_NPQ: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns how often the nearest is the right one, rows to columns and back: (N,) each.

    The right column of row p is p. Of several that are equally near, each counts as a part.
    """
    right_NP = jnp.diagonal(cosine_NPQ, axis1=1, axis2=2)

    def found(values_NPQ: jax.Array) -> jax.Array:
        best_NP1 = jnp.max(values_NPQ, axis=-1, keepdims=True)
        # Equal up to rounding, as copies of a sequence are.
        ties_NP = jnp.sum(values_NPQ >= best_NP1 - 1e-6, axis=-1)
        hit_NP = right_NP >= best_NP1[..., 0] - 1e-6
        return jnp.mean(hit_NP / ties_NP, axis=-1)

    return found(cosine_NPQ), found(jnp.swapaxes(cosine_NPQ, 1, 2))


def _compute_cka(a_PND: jax.Array, b_PND: jax.Array, other_P: jax.Array) -> dict[str, jax.Array]:
    """Linear CKA of the pairs' states in each layer, also debiased, and of shuffled pairs.

    CKA (Kornblith et al. 2019) is biased towards 1 where pairs are few and dimensions many;
    with the unbiased estimate of HSIC (Song et al. 2012) it is not.
    """

    def gram(x_PND: jax.Array) -> jax.Array:
        x_PND = x_PND - jnp.mean(x_PND, axis=0, keepdims=True)
        # Scaled, as fp32 is short of digits for fourth powers.
        size_1N1 = jnp.sqrt(jnp.mean(x_PND * x_PND, axis=(0, 2), keepdims=True))
        x_PND = x_PND / jnp.maximum(size_1N1, _EPS)
        return jnp.einsum("PND,QND->NPQ", x_PND, x_PND) / x_PND.shape[2]

    def shuffled(gram_NPQ: jax.Array) -> jax.Array:
        return gram_NPQ[:, other_P][:, :, other_P]

    ka, kb = gram(a_PND), gram(b_PND)
    found = {}
    for name, hsic in {"cka": biased_hsic, "cka_debiased": unbiased_hsic}.items():
        scale_N = jnp.sqrt(jnp.maximum(hsic(ka, ka) * hsic(kb, kb), _EPS**2))
        found[name] = hsic(ka, kb) / scale_N
        found[f"{name}_shuffled"] = hsic(ka, shuffled(kb)) / scale_N
    return found


def biased_hsic(k_NPQ: jax.Array, l_NPQ: jax.Array) -> jax.Array:
    """Returns the inner product of two doubly centred Gram matrices, up to a constant."""
    return jnp.sum(_double_centre_gram(k_NPQ) * l_NPQ, axis=(1, 2)) / k_NPQ.shape[1] ** 2


def _double_centre_gram(k_NPQ: jax.Array) -> jax.Array:
    rows = jnp.mean(k_NPQ, axis=2, keepdims=True)
    columns = jnp.mean(k_NPQ, axis=1, keepdims=True)
    return k_NPQ - rows - columns + jnp.mean(rows, axis=1, keepdims=True)


def unbiased_hsic(k_NPQ: jax.Array, l_NPQ: jax.Array) -> jax.Array:
    """Returns the unbiased estimate of HSIC from two Gram matrices (Song et al. 2012, eq. 5)."""
    P = k_NPQ.shape[1]
    off = 1 - jnp.eye(P)[None]
    k, l_ = k_NPQ * off, l_NPQ * off
    sum_k, sum_l = jnp.sum(k, axis=(1, 2)), jnp.sum(l_, axis=(1, 2))
    both = jnp.einsum("NPQ,NQR->N", k, l_)
    value = jnp.sum(k * l_, axis=(1, 2)) + sum_k * sum_l / ((P - 1) * (P - 2)) - 2 * both / (P - 2)
    return value / (P * (P - 3))


# Results.


def _compare_with_shuffled(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the mean over rows of each score, and its excess over that of shuffled pairs.

    `<score>_error` is the standard error of the excess over the rows.
    """
    found: dict[str, Any] = {}
    for name, value_PN in scores.items():
        if name.endswith("_shuffled"):
            continue
        shuffled_PN = scores[f"{name}_shuffled"]
        excess_PN = np.asarray(value_PN, np.float64) - shuffled_PN
        count_N = np.maximum(np.isfinite(excess_PN).sum(axis=0), 1)
        found[name] = _convert_to_floats(np.nanmean(value_PN, axis=0))
        found[f"{name}_shuffled"] = _convert_to_floats(np.nanmean(shuffled_PN, axis=0))
        found[f"{name}_excess"] = _convert_to_floats(np.nanmean(excess_PN, axis=0))
        error_N = np.nanstd(excess_PN, axis=0) / np.sqrt(np.maximum(count_N - 1, 1))
        found[f"{name}_error"] = _convert_to_floats(error_N)
    return found


def _convert_to_floats(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.asarray(values, np.float64)]
