"""Cosines and rotations of states, and how a score compares with that of shuffled pairs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EPS = 1e-12
# How far a rotation is drawn towards none, in parts of the root mean square singular value.
TOWARDS_NONE = 1e-3


def find_nearest_rotation(products_DD: np.ndarray) -> np.ndarray:
    """Returns U V' of the products' singular value decomposition, drawn a little towards I.

    Fewer pairs than dimensions leave a part of the rotation open, which rounding would decide
    otherwise; there it turns nothing. On the host: XLA's decompositions of a stack of matrices
    wait for each other's threads forever where a CPU has several simulated devices.
    """
    products_DD = products_DD.astype(np.float32)
    D = products_DD.shape[-1]
    size = np.sqrt(np.sum(np.square(products_DD), axis=(-2, -1), keepdims=True) / D)
    near_DD = products_DD + TOWARDS_NONE * size * np.eye(D, dtype=np.float32)
    u_DD, _, v_DD = np.linalg.svd(near_DD)
    return u_DD @ v_DD


def compute_cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the cosine of the last dimensions; 0 where one of them is all zero."""
    norms = jnp.sqrt(jnp.sum(x * x, axis=-1) * jnp.sum(y * y, axis=-1))
    return jnp.sum(x * y, axis=-1) / jnp.maximum(norms, EPS)


def scale_to_unit_norm(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)), EPS)


def compare_with_shuffled(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
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
        found[name] = convert_to_floats(np.nanmean(value_PN, axis=0))
        found[f"{name}_shuffled"] = convert_to_floats(np.nanmean(shuffled_PN, axis=0))
        found[f"{name}_excess"] = convert_to_floats(np.nanmean(excess_PN, axis=0))
        error_N = np.nanstd(excess_PN, axis=0) / np.sqrt(np.maximum(count_N - 1, 1))
        found[f"{name}_error"] = convert_to_floats(error_N)
    return found


def convert_to_floats(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.asarray(values, np.float64)]


def rotate_states(
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
