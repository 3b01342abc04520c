"""What two languages have in common in the mean states of whole sequences: retrieval and CKA."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imbalance_jax.evaluation.programs import (
    MeasurementPrograms,
)
from imbalance_jax.evaluation.similarity import (
    EPS,
    compare_with_shuffled,
    compute_cosine,
    convert_to_floats,
    find_nearest_rotation,
    rotate_states,
    scale_to_unit_norm,
)


def measure_sentences(
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
    result = compare_with_shuffled(scores)
    for name, value in values.items():
        if value.ndim == 1:
            result[name] = convert_to_floats(value)
    result["chance"] = 1 / len(fold_P)
    return result


def _fit_sentence_rotations(a_PND: np.ndarray, b_PND: np.ndarray, fold_P: np.ndarray) -> np.ndarray:
    """Returns what `_fit_rotations` does, from the mean states of sequences: (E, N, D, D)."""
    found = []
    for fold in range(2):
        a, b = (x_PND[fold_P != fold].swapaxes(0, 1) for x_PND in (a_PND, b_PND))
        a, b = (x_NPD - x_NPD.mean(axis=1, keepdims=True) for x_NPD in (a, b))
        found.append(find_nearest_rotation(a.swapaxes(1, 2) @ b))
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
        turned_PND = rotate_states("PND,NDE->PNE", centred_a, rotations_ENDD, fold_P)
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
        name: compute_cosine(x_PND, y_PND),
        f"{name}_shuffled": compute_cosine(x_PND, y_PND[other_P]),
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
        x_PND = x_PND / jnp.maximum(size_1N1, EPS)
        return jnp.einsum("PND,QND->NPQ", x_PND, x_PND) / x_PND.shape[2]

    def shuffled(gram_NPQ: jax.Array) -> jax.Array:
        return gram_NPQ[:, other_P][:, :, other_P]

    ka, kb = gram(a_PND), gram(b_PND)
    found = {}
    for name, hsic in {"cka": biased_hsic, "cka_debiased": unbiased_hsic}.items():
        scale_N = jnp.sqrt(jnp.maximum(hsic(ka, ka) * hsic(kb, kb), EPS**2))
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
