"""The coordinate check of muP (arXiv 2203.03466): sizes of activations over the width.

Held against what happens without scaling: there they grow with the width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute.optimizer import build_optimizer
from imbalance_jax.config import ModelConfig, OptimizerConfig

B, L, V, N, BASE = 4, 8, 40, 2, 32
STEPS = 5


def measure_changes(
    D: int, optimizer: OptimizerConfig, *, scaled: bool, **dials: Any
) -> np.ndarray:
    """Returns how far activations and logits move from those at the start, after some updates.

    Returns:
      root mean squares, (STEPS, N + 2): of the input of the first block, the output of each block,
      and the logits of a batch that the model is trained on.
    """
    heads: dict[str, Any] = {"H": D // 16, "K": 16}
    if scaled:
        dials |= {"base_width": BASE}
    if dials.pop("wide_heads", False):
        heads = {"H": 2, "K": D // 2}
        dials |= {"base_head_width": BASE // 2} if scaled else {}
    ways = {"attention": "einsum", "dtype": "float32", "remat": "none"}
    config = ModelConfig(L=L, D=D, F=4 * D, N=N, **heads, **ways, **dials)
    ids_BW = np.random.default_rng(0).integers(0, V, (B, L + 1)).astype(np.int32)

    def loss(params: model_lib.Params) -> tuple[jax.Array, Any]:
        states_NBLD = model_lib.compute_hidden_states(params, config, ids_BW[:, :-1])
        head_VD = model_lib.get_output_embeddings(params, config)
        logits_BLV = jnp.einsum("BLD,VD->BLV", states_NBLD[-1], head_VD)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_BLV, ids_BW[:, 1:])
        return jnp.mean(losses), (states_NBLD[:-1], logits_BLV)

    @jax.jit
    def train(key: jax.Array) -> jax.Array:
        params = model_lib.init_params(config, V, key)
        tx = build_optimizer(optimizer, STEPS, wider=config.compute_width_factor())

        def update(carry: Any, _: None) -> tuple[Any, Any]:
            params, state = carry
            grads, found = jax.grad(loss, has_aux=True)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), found

        _, found = jax.lax.scan(update, (params, tx.init(params)), None, STEPS + 1)
        states, logits = (jax.tree.map(lambda x: x[1:] - x[:1], each) for each in found)
        of_states = jnp.sqrt(jnp.mean(states**2, axis=(2, 3, 4)))
        return jnp.column_stack([of_states, jnp.sqrt(jnp.mean(logits**2, axis=(1, 2, 3)))])

    return np.asarray(train(jax.random.key(0)))


ADAM = OptimizerConfig(schedule="constant", warmup=0.0, peak_lr=1e-2)


@pytest.mark.slow  # three compilations each
@pytest.mark.parametrize(
    ("changes", "dials"),
    [
        ({}, {}),
        ({}, {"preset": "modern", "tied": True, "wide_heads": True}),
        ({"name": "lion", "peak_lr": 3e-3}, {}),
        ({"name": "adafactor"}, {}),
        ({"name": "muon"}, {}),
        ({"name": "sgd", "peak_lr": 1.0}, {}),
    ],
    ids=str,
)
def test_at_eight_times_the_width_states_and_logits_move_as_far_as_at_the_base(changes, dials):
    optimizer = dataclasses.replace(ADAM, **changes)
    base = measure_changes(BASE, optimizer, scaled=False, **dials)
    wide, plain = (
        measure_changes(8 * BASE, optimizer, scaled=scaled, **dials) for scaled in (True, False)
    )
    # Logits may move less: a part of their movement at the base comes from the weights that the
    # head begins with, and falls as the root of the width.
    assert np.all(wide / base < 1.25) and np.all(wide / base > 0.5), wide / base
    assert np.max(plain / base) > 2.5, plain / base
