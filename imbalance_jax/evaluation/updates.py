"""Adam's divisor, and what each language has in an update of the optimizer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import objective
from imbalance_jax.compute.step import Batch, map_to_model_ids
from imbalance_jax.config import ModelConfig, OptimizerConfig
from imbalance_jax.evaluation.programs import MeasurementPrograms, Measuring, subtract_trees


def compute_adam_divisor(
    programs: MeasurementPrograms, opt_state: optax.OptState, config: OptimizerConfig
) -> model_lib.Params | None:
    """Returns what Adam divides each element of an update by, of the blocks' parameters.

    sqrt(v / (1 - b2^t)) + eps, with v its running mean of squared gradients after t updates;
    None before the first one, for another optimizer, and where languages have their own.
    """
    if config.name not in ("adam", "adamw") or config.moments != "shared":
        return None
    found = [
        node
        for node in jax.tree.leaves(opt_state, is_leaf=_is_adam_state)
        if isinstance(node, optax.ScaleByAdamState)
    ]
    if not found or not int(found[0].count):
        return None
    nu = found[0].nu["blocks"]
    return programs.run(_compute_divisor, nu, found[0].count, b2=config.b2, eps=config.eps)


def _compute_divisor(
    nu: model_lib.Params, count: jax.Array, *, b2: float, eps: float
) -> model_lib.Params:
    correction = 1 - b2 ** count.astype(jnp.float32)
    return jax.tree.map(lambda v: jnp.sqrt(v / correction) + eps, nu)


def _is_adam_state(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def measure_language_shares(
    measuring: Measuring, batch: Batch, map_GU: np.ndarray
) -> dict[str, list[float]]:
    """Returns the part that each language has in the gradient of a training batch, each (G,).

    The loss is that of training, with `mixture.loss_weights` and without dropout.

    With g the batch's gradient and g_l that of the loss of language l's sequences in it, so
    that g is the sum of all g_l:

        gradient_share          <g_l, g> / <g, g>: they add up to 1; below 0 pulls back
        gradient_share_blocks   the same of the parameters of the blocks alone
        gradient_norm           the norm of g_l

    Args:
      measuring: the model.
      batch: all its rows, on the host; any number, whatever the devices.
      map_GU: of the vocabulary.
    """
    programs, config = measuring.programs, measuring.config
    if batch.weight_B is None:
        ones_B = np.ones(len(batch.language_B), np.float32)
        batch = dataclasses.replace(batch, weight_B=ones_B)
    named = {name: rows for name, rows in vars(batch).items() if rows is not None}
    placed, real_B = programs.place_filled(named)
    inputs = (measuring.params, Batch(**placed), real_B, map_GU)
    whole = programs.run(_compute_batch_gradient, *inputs, np.int32(-1), config=config)
    squared = jax.device_get(programs.run(_compute_inner_products, whole, whole))
    G = map_GU.shape[0]
    names = ("gradient_share", "gradient_share_blocks", "gradient_norm")
    found = {name: [0.0] * G for name in names}
    *others, last = np.unique(batch.language_B)
    rest = whole
    for language in (*others, last):
        mine = rest  # of the last language: what the others leave
        if language != last:
            mine = programs.run(_compute_batch_gradient, *inputs, np.int32(language), config=config)
            rest = programs.run(subtract_trees, rest, mine)
        along = jax.device_get(programs.run(_compute_inner_products, mine, whole))
        own = jax.device_get(programs.run(_compute_inner_products, mine, mine))
        found["gradient_share"][language] = float(along["all"] / squared["all"])
        found["gradient_share_blocks"][language] = float(along["blocks"] / squared["blocks"])
        found["gradient_norm"][language] = float(own["all"]) ** 0.5
    return found


def _compute_batch_gradient(
    params: model_lib.Params,
    batch: Batch,
    real_B: jax.Array,
    map_GU: jax.Array,
    language: jax.Array,
    *,
    config: ModelConfig,
) -> model_lib.Params:
    """The gradient of the mean loss of a batch, of one language's part of it; -1 is all.

    Rows that are not real fill the batch up and count nowhere.
    """
    ids_BW = map_to_model_ids(batch, map_GU)
    counted_B = real_B & ((batch.language_B == language) | (language < 0))

    def loss(params: model_lib.Params) -> jax.Array:
        hidden_BLD = model_lib.compute_last_hidden_state(
            params, config, ids_BW[:, :-1], batch.context
        )
        target_BL = ids_BW[:, 1:]
        weight_B = counted_B * batch.weight_B
        weight_BL = jnp.broadcast_to(weight_B[:, None], target_BL.shape).astype(jnp.float32)
        total, _ = objective.cross_entropy(
            hidden_BLD, model_lib.get_output_embeddings(params, config), target_BL, weight_BL
        )
        return total / (jnp.sum(real_B) * target_BL.shape[1])

    return jax.grad(loss)(params)


def _compute_inner_products(x: model_lib.Params, y: model_lib.Params) -> dict[str, jax.Array]:
    """The inner product of two gradients, of all parameters and of those of the blocks."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), x, y)
    zero = jnp.zeros(())
    return {
        "all": sum(jax.tree.leaves(products), zero),
        "blocks": sum(jax.tree.leaves(products["blocks"]), zero),
    }
