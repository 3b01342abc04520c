"""The cross-entropy of the next id, without ever holding all logits.

Logits of 128 x 512 positions over ten languages' vocabulary would take 43 GB in fp32. Here
those of a few positions of each sequence exist at once, in a scan. Their gradient is taken
in the same pass, so that nothing is computed twice; or, in tiles of the vocabulary, in a second
pass, so that no logits leave a TPU's own memory.
"""

import functools

import jax
import jax.numpy as jnp

from imbalance_jax.compute import tuning
from imbalance_jax.compute.products import multiply_rounded


def cross_entropy(
    hidden_BLD: jax.Array,
    head_VD: jax.Array,
    target_BL: jax.Array,
    weight_BL: jax.Array,
    *,
    chunk: int = 0,
    tile: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted sum of all losses, and the loss of each position in nats.

    Only the sum can be differentiated; the losses are for looking at.

    Args:
      chunk: positions of each sequence whose logits exist at once; 0 chooses for the default
        device, as if it had the whole batch.
      tile: ids whose logits exist at once where there is a gradient; 0 is all.
    """
    chunk = chunk or _choose_chunk(target_BL, head_VD)
    with jax.named_scope("head"):
        total, loss_BL = _chunked_cross_entropy(
            hidden_BLD, head_VD, target_BL, weight_BL, chunk, tile
        )
    return total, jax.lax.stop_gradient(loss_BL)


def _choose_chunk(target_BL: jax.Array, head_VD: jax.Array) -> int:
    B, L = target_BL.shape
    return tuning.choose_loss_chunk(B, L, head_VD.shape[0], jax.default_backend())


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _chunked_cross_entropy(
    hidden_BLD: jax.Array,
    head_VD: jax.Array,
    target_BL: jax.Array,
    weight_BL: jax.Array,
    chunk: int,
    tile: int,
) -> tuple[jax.Array, jax.Array]:
    def body(_: None, part: tuple) -> tuple[None, jax.Array]:
        hidden_BcD, target_Bc = part
        logits_BcV = _compute_chunk_logits(hidden_BcD, head_VD)
        return None, jax.nn.logsumexp(logits_BcV, axis=-1) - _pick_target_logits(
            logits_BcV, target_Bc
        )

    _, losses = jax.lax.scan(
        body, None, (_split_chunks(hidden_BLD, chunk), _split_chunks(target_BL, chunk))
    )
    loss_BL = _join_chunks(losses)
    return jnp.sum(loss_BL * weight_BL), loss_BL


def _cross_entropy_forward(
    hidden_BLD: jax.Array,
    head_VD: jax.Array,
    target_BL: jax.Array,
    weight_BL: jax.Array,
    chunk: int,
    tile: int,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The loss, and the gradients of the weighted sum while the logits are at hand."""

    def body(dhead_VD: jax.Array, part: tuple) -> tuple[jax.Array, tuple]:
        hidden_BcD, target_Bc, weight_Bc = part
        if 0 < tile < head_VD.shape[0]:
            loss_Bc, dhidden_BcD, more_VD = _compute_tiled_gradients(
                hidden_BcD, target_Bc, weight_Bc, head_VD, tile
            )
            return dhead_VD + more_VD, (loss_Bc, dhidden_BcD)
        logits_BcV = _compute_chunk_logits(hidden_BcD, head_VD)
        top_Bc1 = jnp.max(logits_BcV, axis=-1, keepdims=True)
        exp_BcV = jnp.exp(logits_BcV - top_Bc1)
        sum_Bc1 = jnp.sum(exp_BcV, axis=-1, keepdims=True)
        loss_Bc = (top_Bc1 + jnp.log(sum_Bc1))[..., 0] - _pick_target_logits(logits_BcV, target_Bc)
        hit_BcV = jnp.arange(head_VD.shape[0])[None, None] == target_Bc[..., None]
        dlogits_BcV = (exp_BcV / sum_Bc1 - hit_BcV) * weight_Bc[..., None]
        dlogits_BcV = dlogits_BcV.astype(hidden_BcD.dtype)
        head = head_VD.astype(hidden_BcD.dtype)
        dhidden_BcD = multiply_rounded("BcV,VD->BcD", dlogits_BcV, head)
        # Summed over chunks in fp32, whatever the matrix products run in.
        dhead_VD += _compute_head_gradient(hidden_BcD, dlogits_BcV)
        return dhead_VD, (loss_Bc, dhidden_BcD)

    parts = (
        _split_chunks(hidden_BLD, chunk),
        _split_chunks(target_BL, chunk),
        _split_chunks(weight_BL, chunk),
    )
    zero_VD = jnp.zeros(head_VD.shape, jnp.float32)
    dhead_VD, (losses, dhiddens) = jax.lax.scan(body, zero_VD, parts)
    loss_BL = _join_chunks(losses)
    saved = (_join_chunks(dhiddens), dhead_VD.astype(head_VD.dtype))
    return (jnp.sum(loss_BL * weight_BL), loss_BL), saved


def _compute_tiled_gradients(
    hidden_BcD: jax.Array,
    target_Bc: jax.Array,
    weight_Bc: jax.Array,
    head_VD: jax.Array,
    tile: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the losses of a chunk and its gradients, from the logits of a few ids at a time.

    The logits of each tile are computed twice, first for the sums and then for the gradients, and
    can stay in the device's own memory.
    """
    V, D = head_VD.shape
    tiles = (head_VD.reshape(V // tile, tile, D), jnp.arange(0, V, tile))

    def add_tile(sums: tuple, part: tuple) -> tuple[tuple, None]:
        (top_Bc1, sum_Bc1, picked_Bc), (head_vD, first) = sums, part
        logits_Bcv = _compute_chunk_logits(hidden_BcD, head_vD)
        higher_Bc1 = jnp.maximum(top_Bc1, jnp.max(logits_Bcv, axis=-1, keepdims=True))
        added_Bc1 = jnp.sum(jnp.exp(logits_Bcv - higher_Bc1), axis=-1, keepdims=True)
        picked_Bc += _pick_target_logits(logits_Bcv, target_Bc - first)
        return (higher_Bc1, sum_Bc1 * jnp.exp(top_Bc1 - higher_Bc1) + added_Bc1, picked_Bc), None

    zero_Bc = jnp.zeros(target_Bc.shape, jnp.float32)
    start = (jnp.full((*zero_Bc.shape, 1), -jnp.inf), zero_Bc[..., None], zero_Bc)
    (top_Bc1, sum_Bc1, picked_Bc), _ = jax.lax.scan(add_tile, start, tiles)
    total_Bc1 = top_Bc1 + jnp.log(sum_Bc1)

    def differentiate_tile(dhidden_BcD: jax.Array, part: tuple) -> tuple[jax.Array, jax.Array]:
        head_vD, first = part
        logits_Bcv = _compute_chunk_logits(hidden_BcD, head_vD)
        hit_Bcv = jnp.arange(tile)[None, None] == (target_Bc - first)[..., None]
        dlogits_Bcv = (jnp.exp(logits_Bcv - total_Bc1) - hit_Bcv) * weight_Bc[..., None]
        dlogits_Bcv = dlogits_Bcv.astype(hidden_BcD.dtype)
        head_vD = head_vD.astype(hidden_BcD.dtype)
        dhidden_BcD += jnp.einsum(
            "Bcv,vD->BcD", dlogits_Bcv, head_vD, preferred_element_type=jnp.float32
        )
        return dhidden_BcD, _compute_head_gradient(hidden_BcD, dlogits_Bcv)

    zero_BcD = jnp.zeros(hidden_BcD.shape, jnp.float32)
    dhidden_BcD, dheads = jax.lax.scan(differentiate_tile, zero_BcD, tiles)
    # Or XLA moves the shape behind the optimizer's first steps, which it then cannot fuse with the
    # others: 2 GB of traffic more in small with ten languages, compiled for a v6e.
    dhead_VD = jax.lax.optimization_barrier(dheads.reshape(V, D))
    loss_Bc = total_Bc1[..., 0] - picked_Bc
    return loss_Bc, dhidden_BcD.astype(hidden_BcD.dtype), dhead_VD


def _cross_entropy_backward(
    chunk: int,
    tile: int,
    saved: tuple[jax.Array, jax.Array],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple:
    dhidden_BLD, dhead_VD = saved
    dtotal, _ = cotangents
    return (
        # In fp32: 1 / (B L) rounded to bf16 would be up to 0.4 % off, everywhere alike.
        (dhidden_BLD.astype(jnp.float32) * dtotal).astype(dhidden_BLD.dtype),
        dhead_VD * dtotal.astype(dhead_VD.dtype),
        None,
        None,
    )


_chunked_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def measure_predictions(
    hidden_BLD: jax.Array,
    head_VD: jax.Array,
    target_BL: jax.Array,
    own_BV: jax.Array,
    *,
    chunk: int = 0,
) -> dict[str, jax.Array]:
    """Returns what evaluation wants to know of every position, each (B, L), in fp32.

    With p the model's distribution and q the mass that it gives to the ids of the
    sequence's own language:

        loss           -log p(target), which is exactly language_nats + loss_own
        language_nats  -log q: telling the language
        loss_own       -log (p(target) / q): predicting within it
        leak           1 - q
        top1           whether the target is the most probable id of all

    Args:
      own_BV: which ids belong to the language of each sequence.
    """
    chunk = chunk or _choose_chunk(target_BL, head_VD)

    def body(_: None, part: tuple) -> tuple[None, dict[str, jax.Array]]:
        hidden_BcD, target_Bc = part
        logits_BcV = _compute_chunk_logits(hidden_BcD, head_VD)
        all_Bc = jax.nn.logsumexp(logits_BcV, axis=-1)
        own_BcV = jnp.where(own_BV[:, None], logits_BcV, -jnp.inf)
        own_Bc = jax.nn.logsumexp(own_BcV, axis=-1)
        picked_Bc = _pick_target_logits(logits_BcV, target_Bc)
        top_Bc = jnp.argmax(logits_BcV, axis=-1)
        return None, {
            "loss": all_Bc - picked_Bc,
            "language_nats": all_Bc - own_Bc,
            "loss_own": own_Bc - picked_Bc,
            "leak": -jnp.expm1(own_Bc - all_Bc),
            "top1": (top_Bc == target_Bc).astype(jnp.float32),
        }

    _, found = jax.lax.scan(
        body, None, (_split_chunks(hidden_BLD, chunk), _split_chunks(target_BL, chunk))
    )
    return jax.tree.map(_join_chunks, found)


def _compute_chunk_logits(hidden_BcD: jax.Array, head_VD: jax.Array) -> jax.Array:
    head = head_VD.astype(hidden_BcD.dtype)
    return jnp.einsum("BcD,VD->BcV", hidden_BcD, head, preferred_element_type=jnp.float32)


def _compute_head_gradient(hidden_BcD: jax.Array, dlogits_BcV: jax.Array) -> jax.Array:
    if hidden_BcD.dtype == jnp.float32:
        # A CPU turns the first factor by copying it, and that of the logits is large: this
        # saves it a tenth of the head's time. (In bf16 it does not know this product.)
        return jnp.einsum("BcD,BcV->DV", hidden_BcD, dlogits_BcV).T
    return jnp.einsum("BcV,BcD->VD", dlogits_BcV, hidden_BcD, preferred_element_type=jnp.float32)


def _pick_target_logits(logits_BcV: jax.Array, target_Bc: jax.Array) -> jax.Array:
    """Returns the logit of each target. A masked sum: a gather would not shard over V."""
    hit_BcV = jnp.arange(logits_BcV.shape[-1])[None, None] == target_Bc[..., None]
    return jnp.sum(jnp.where(hit_BcV, logits_BcV, 0), axis=-1)


def _split_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """(B, L, ...) -> (L / chunk, B, chunk, ...). Along L, so that B stays sharded."""
    B, L = x.shape[:2]
    return jnp.moveaxis(x.reshape(B, L // chunk, chunk, *x.shape[2:]), 1, 0)


def _join_chunks(x: jax.Array) -> jax.Array:
    """The inverse of `_split_chunks`."""
    joined = jnp.moveaxis(x, 0, 1)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])
