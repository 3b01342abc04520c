"""Where a model tells its languages apart: in what it predicts, and layer by layer.

The *leak* is the probability that a prediction gives to ids that are not of the sequence's
language. After the first ids of a sequence the language is known, so the leak is shown by
position, and by how often the id that was read, or the one to come, occurs in the text.

A *probe* reads the language off the hidden states. It is linear and in closed form (ridge
regression on one-hot labels), and it is scored on pieces and on documents that it has not
seen: what it knows then is the language and not a list of its ids. Beside it stands a control
task (Hewitt and Liang 2019), in which every id has a random label instead: what a probe of
this kind can learn by heart. High accuracy may rest on one faint direction, so the part of
the variance of the states that is between languages is given as well.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import objective
from imbalance_jax.compute.context import NO_CONTEXT, Context
from imbalance_jax.config import ModelConfig
from imbalance_jax.evaluation.embeddings import bin_by_frequency
from imbalance_jax.evaluation.programs import Measuring

# The ridge, as a part of the mean variance of a feature.
_RIDGE = 1e-3


def measure_leak(
    measuring: Measuring,
    tables: tuple[np.ndarray, np.ndarray],
    windows: Sequence[np.ndarray],
    counts: Sequence[np.ndarray],
    context: Context = NO_CONTEXT,
) -> list[dict[str, Any]]:
    """Returns for each language its leak and language nats by position and by frequency.

    Args:
      measuring: the model.
      tables: `map_GU` and `own_GV` of the vocabulary.
      windows: (n, W) base ids of each language.
      counts: how often each base id was trained on in each language.
      context: of all languages; that of a sequence is added.
    """
    rows = {"ids": np.concatenate(windows), "language": _label_languages(windows)}
    values, _ = measuring.rows(_compute_leak, rows, context, *tables)
    results = []
    for g, (ids_nW, count_U) in enumerate(zip(windows, counts, strict=True)):
        result: dict[str, Any] = {"windows": len(ids_nW)}
        for name, all_values_nL in values.items():
            values_nL = all_values_nL[rows["language"] == g]
            result[name] = {"by_position": values_nL.mean(axis=0, dtype=np.float64).tolist()}
            for place, ids_nL in (("read", ids_nW[:, :-1]), ("target", ids_nW[:, 1:])):
                bins = bin_by_frequency(values_nL.ravel(), count_U[ids_nL.ravel()])
                bins["tokens"], bins["mean"] = bins.pop("pieces"), bins.pop("cosine")
                result[name][f"by_own_frequency_{place}"] = bins
        results.append(result)
    return results


def _label_languages(windows: Sequence[np.ndarray]) -> np.ndarray:
    return np.repeat(np.arange(len(windows)), [len(x) for x in windows]).astype(np.int32)


def _compute_leak(
    params: model_lib.Params,
    context: Context,
    map_GU: jax.Array,
    own_GV: jax.Array,
    rows: Mapping[str, jax.Array],
    real_B: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    ids_BW = map_GU[rows["language"][:, None], rows["ids"].astype(jnp.int32)]
    hidden_BLD = model_lib.compute_last_hidden_state(
        params, config, ids_BW[:, :-1], _add_languages(context, rows)
    )
    found = objective.measure_predictions(
        hidden_BLD,
        model_lib.get_output_embeddings(params, config),
        ids_BW[:, 1:],
        own_GV[rows["language"]],
    )
    return {name: found[name] for name in ("leak", "language_nats")}, {}


def _add_languages(context: Context, rows: Mapping[str, jax.Array]) -> Context:
    return dataclasses.replace(context, language_B=rows["language"])


def probe_languages(
    measuring: Measuring,
    map_GU: np.ndarray,
    windows: Sequence[np.ndarray],
    context: Context = NO_CONTEXT,
) -> dict[str, Any]:
    """Returns how well the language can be read off the states of each layer.

    Each list has a value for every layer, 0 .. N + 1, as in hidden.py. The first half of the
    windows and half of the pieces are to learn from, the rest to be scored on; clones have the
    same pieces in either half. `control` is scored on pieces that it learned from, in the
    other half of the windows.

    Args:
      measuring: the model; polled with the share of each of two passes.
      map_GU: of the vocabulary.
      windows: (n, W) base ids of each language, as many for each.
      context: as `measure_leak`.
    """
    G, U = map_GU.shape
    draws = np.random.default_rng(0)
    learned_U = draws.permutation(U) < U // 2
    label_V = draws.integers(0, G, int(map_GU.max()) + 1).astype(np.int32)
    rows = {
        "ids": np.concatenate([ids_nW[:, :-1] for ids_nW in windows]),
        "language": _label_languages(windows),
        "learned": np.concatenate([np.arange(len(x)) < len(x) // 2 for x in windows]),
    }
    whole = (context, map_GU, learned_U, label_V)
    _, sums = measuring.rows(_compute_probe_moments, rows, *whole)
    weights = _fit_ridge_probes(sums)
    _, scores = measuring.rows(_score_probes, rows, *whole, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = {
            name: (scores[f"{name}_right_N"] / scores[f"{name}_count"]).tolist()
            for name in ("language", "control")
        }
    return {
        "chance": 1 / G,
        "accuracy": accuracy["language"],
        "control": accuracy["control"],
        "variance_explained": _compute_between_variance(sums).tolist(),
        "learned_from": int(sums["count_G"].sum()),
        "scored_on": int(scores["language_count"]),
    }


def _make_probe_inputs(
    params: model_lib.Params,
    context: Context,
    map_GU: jax.Array,
    learned_U: jax.Array,
    label_V: jax.Array,
    rows: Mapping[str, jax.Array],
    real_B: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """Returns states with a 1 behind (N, B, L, D + 1), labels (B, L), and which pieces learn."""
    ids_BL = rows["ids"].astype(jnp.int32)
    model_ids_BL = map_GU[rows["language"][:, None], ids_BL]
    states_NBLD = model_lib.compute_hidden_states(
        params, config, model_ids_BL, _add_languages(context, rows)
    ).astype(jnp.float32)
    ones = jnp.ones((*states_NBLD.shape[:3], 1))
    labels = {
        "language": jnp.broadcast_to(rows["language"][:, None], ids_BL.shape),
        "control": label_V[model_ids_BL],
    }
    return jnp.concatenate([states_NBLD, ones], axis=3), labels, learned_U[ids_BL]


def _compute_probe_moments(
    params: model_lib.Params,
    context: Context,
    map_GU: jax.Array,
    learned_U: jax.Array,
    label_V: jax.Array,
    rows: Mapping[str, jax.Array],
    real_B: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """What the probes are computed from, and the means and squares of each language's states."""
    states, labels, learned_BL = _make_probe_inputs(
        params, context, map_GU, learned_U, label_V, rows, real_B, config
    )
    G = map_GU.shape[0]
    weight_BL = learned_BL & (rows["learned"] & real_B)[:, None]
    weighted = states * weight_BL[None, :, :, None]
    language_BG = jax.nn.one_hot(rows["language"], G) * weight_BL.sum(axis=1, keepdims=True)
    return {}, {
        "xx_NDD": jnp.einsum("NBLD,NBLE->NDE", weighted, states),
        **{
            f"{name}_NDC": jnp.einsum("NBLD,BLC->NDC", weighted, jax.nn.one_hot(label, G))
            for name, label in labels.items()
        },
        "count_G": jnp.sum(language_BG, axis=0),
    }


def _fit_ridge_probes(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weights of both probes, (N, D + 1, C) each; the constant is not shrunk."""
    xx_NDD = sums["xx_NDD"]
    D = xx_NDD.shape[1] - 1
    count = xx_NDD[:, -1, -1]
    mean_ND = xx_NDD[:, -1, :D] / count[:, None]
    variance_N = np.trace(xx_NDD[:, :D, :D], axis1=1, axis2=2) / count - (mean_ND**2).sum(axis=1)
    ridge_NDD = np.zeros_like(xx_NDD)
    ridge_NDD[:, range(D), range(D)] = (_RIDGE * count * variance_N / D)[:, None]
    return {
        name: np.linalg.solve(xx_NDD + ridge_NDD, sums[f"{name}_NDC"]).astype(np.float32)
        for name in ("language", "control")
    }


def _compute_between_variance(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the part of the states' variance that is between the languages' means: (N,)."""
    xx_NDD, count_G = sums["xx_NDD"], sums["count_G"]
    D = xx_NDD.shape[1] - 1
    count = count_G.sum()
    mean_NDG = sums["language_NDC"][:, :D] / count_G
    mean_ND = xx_NDD[:, -1, :D] / count
    total_N = np.trace(xx_NDD[:, :D, :D], axis1=1, axis2=2) - count * (mean_ND**2).sum(axis=1)
    apart_NG = ((mean_NDG - mean_ND[..., None]) ** 2).sum(axis=1)
    return apart_NG @ count_G / total_N


def _score_probes(
    params: model_lib.Params,
    context: Context,
    map_GU: jax.Array,
    learned_U: jax.Array,
    label_V: jax.Array,
    weights: Mapping[str, jax.Array],
    rows: Mapping[str, jax.Array],
    real_B: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """How many positions of the held-out windows each probe labels right, (N,), and of how many."""
    states, labels, learned_BL = _make_probe_inputs(
        params, context, map_GU, learned_U, label_V, rows, real_B, config
    )
    held_out_BL = (~rows["learned"] & real_B)[:, None]
    counted = {"language": held_out_BL & ~learned_BL, "control": held_out_BL & learned_BL}
    sums = {}
    for name, counted_BL in counted.items():
        guess_NBL = jnp.argmax(jnp.einsum("NBLD,NDC->NBLC", states, weights[name]), axis=-1)
        right_NBL = (guess_NBL == labels[name][None]) & counted_BL[None]
        sums[f"{name}_right_N"] = jnp.sum(right_NBL, axis=(1, 2))
        sums[f"{name}_count"] = jnp.sum(counted_BL)
    return {}, sums
