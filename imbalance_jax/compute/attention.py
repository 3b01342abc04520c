"""Causal attention: a plain path to compare with, and faster ones with the same value.

Heads come first, (B, H, L, K): the layout in which a head's keys lie together.
`config.model.attention` picks the path, and tuning.py what "auto" is. Every path takes the document
of each position, document_BL, where attention stays within documents; without it, None, a position
attends to all earlier ones.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from imbalance_jax.compute.products import scale

SAVED = "attention"  # names what the backward pass of attention needs, for policies of remat

# Queries of a block. With fewer a step takes as long and longer to compile: that of demo (L = 64)
# took 6.4 s with one block of 64 and 8.6 s with four of 16, on two cores with AVX-512.
_LEAST_BLOCK = 64


def causal_attention(
    q_BHLK: jax.Array,
    k_BHLK: jax.Array,
    v_BHLK: jax.Array,
    path: str,
    document_BL: jax.Array | None = None,
) -> jax.Array:
    """Returns the values that each position attends to, itself and earlier ones: (B, H, L, K).

    Args:
      document_BL: numbers of documents; positions of different ones do not attend to each other.
      path: einsum | blockwise | fused | cudnn | splash, the name of a function here.
    """
    functions = {
        "einsum": compute_einsum_attention,
        "blockwise": compute_blockwise_attention,
        "fused": compute_fused_attention,
        "cudnn": compute_cudnn_attention,
        "splash": compute_splash_attention,
    }
    return functions[path](q_BHLK, k_BHLK, v_BHLK, document_BL)


def compute_einsum_attention(
    q_BHLK: jax.Array,
    k_BHLK: jax.Array,
    v_BHLK: jax.Array,
    document_BL: jax.Array | None = None,
) -> jax.Array:
    """The definition: all pairs of positions, then a mask, then a softmax in fp32."""
    logits_BHLM = _compute_masked_logits(q_BHLK, k_BHLK, document_BL, 0, q_BHLK.shape[2])
    weights_BHLM = jax.nn.softmax(logits_BHLM, axis=-1).astype(v_BHLK.dtype)
    return jnp.einsum("BHLM,BHMK->BHLK", weights_BHLM, v_BHLK)


def compute_blockwise_attention(
    q_BHLK: jax.Array,
    k_BHLK: jax.Array,
    v_BHLK: jax.Array,
    document_BL: jax.Array | None = None,
    *,
    blocks: int = 4,
) -> jax.Array:
    """The same in blocks of queries, each against the keys up to its own end only.

    With four blocks, 5/8 of the pairs are computed. The backward pass keeps the result and one
    number a query and takes the weights from them, as flash attention does (arXiv 2205.14135).
    Faster than the other paths on a CPU, where the pairs do not fit the cache.
    """
    L = q_BHLK.shape[2]
    while blocks > 1 and (L % blocks or L // blocks < _LEAST_BLOCK):
        blocks -= 1
    return _attend_blockwise(q_BHLK, k_BHLK, v_BHLK, document_BL, L // blocks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend_blockwise(
    q_BHLK: jax.Array,
    k_BHLK: jax.Array,
    v_BHLK: jax.Array,
    document_BL: jax.Array | None,
    size: int,
) -> jax.Array:
    return _attend_blockwise_forward(q_BHLK, k_BHLK, v_BHLK, document_BL, size)[0]


def _attend_blockwise_forward(
    q_BHLK: jax.Array,
    k_BHLK: jax.Array,
    v_BHLK: jax.Array,
    document_BL: jax.Array | None,
    size: int,
) -> tuple[jax.Array, tuple]:
    outs, totals = [], []
    for first in range(0, q_BHLK.shape[2], size):
        logits_BHLM = _compute_masked_logits(q_BHLK, k_BHLK, document_BL, first, size)
        top_BHL1 = jnp.max(logits_BHLM, axis=-1, keepdims=True)
        weights_BHLM = jnp.exp(logits_BHLM - top_BHL1)
        sum_BHL1 = jnp.sum(weights_BHLM, axis=-1, keepdims=True)
        v = v_BHLK[:, :, : first + size]
        out = jnp.einsum(
            "BHLM,BHMK->BHLK", weights_BHLM.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        outs.append((out / sum_BHL1).astype(q_BHLK.dtype))
        totals.append(top_BHL1 + jnp.log(sum_BHL1))
    # What remat may keep, in place of all of this: model.py has the policy.
    out_BHLK = checkpoint_name(jnp.concatenate(outs, axis=2), SAVED)
    total_BHL1 = checkpoint_name(jnp.concatenate(totals, axis=2), SAVED)
    return out_BHLK, (q_BHLK, k_BHLK, v_BHLK, document_BL, out_BHLK, total_BHL1)


def _attend_blockwise_backward(size: int, saved: tuple, dout_BHLK: jax.Array) -> tuple:
    q_BHLK, k_BHLK, v_BHLK, document_BL, out_BHLK, total_BHL1 = saved
    L, K, dtype = q_BHLK.shape[2], q_BHLK.shape[3], q_BHLK.dtype
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # What the softmax's normalisation takes off the gradient of each weight.
    along_BHL1 = jnp.sum(
        dout_BHLK.astype(jnp.float32) * out_BHLK.astype(jnp.float32), axis=-1, keepdims=True
    )
    dqs = []
    dk_BHLK, dv_BHLK = jnp.zeros(k_BHLK.shape, jnp.float32), jnp.zeros(v_BHLK.shape, jnp.float32)
    for first in range(0, L, size):
        mine, seen = slice(first, first + size), slice(0, first + size)
        k, v, dout = k_BHLK[:, :, seen], v_BHLK[:, :, seen], dout_BHLK[:, :, mine]
        weights_BHLM = jnp.exp(
            _compute_masked_logits(q_BHLK, k_BHLK, document_BL, first, size)
            - total_BHL1[:, :, mine]
        )
        dweights_BHLM = product("BHLK,BHMK->BHLM", dout, v)
        dlogits_BHLM = weights_BHLM * (dweights_BHLM - along_BHL1[:, :, mine]) * K**-0.5
        dlogits_BHLM = dlogits_BHLM.astype(dtype)
        dqs.append(product("BHLM,BHMK->BHLK", dlogits_BHLM, k).astype(dtype))
        dk = product("BHLM,BHLK->BHMK", dlogits_BHLM, q_BHLK[:, :, mine])
        dv = product("BHLM,BHLK->BHMK", weights_BHLM.astype(dtype), dout)
        dk_BHLK = dk_BHLK.at[:, :, seen].add(dk)
        dv_BHLK = dv_BHLK.at[:, :, seen].add(dv)
    return jnp.concatenate(dqs, axis=2), dk_BHLK.astype(dtype), dv_BHLK.astype(dtype), None


_attend_blockwise.defvjp(_attend_blockwise_forward, _attend_blockwise_backward)


def _compute_masked_logits(
    q_BHLK: jax.Array,
    k_BHLK: jax.Array,
    document_BL: jax.Array | None,
    first: int,
    size: int,
) -> jax.Array:
    """Returns the fp32 logits of a block of queries, masked, with the keys up to its end."""
    q, k = q_BHLK[:, :, first : first + size], k_BHLK[:, :, : first + size]
    # Scaled in fp32: bf16 would round the factor, and every query once more.
    logits_BHLM = jnp.einsum("BHLK,BHMK->BHLM", q, k, preferred_element_type=jnp.float32)
    logits_BHLM *= q_BHLK.shape[3] ** -0.5
    visible_LM = jnp.arange(first + size)[None] <= first + jnp.arange(size)[:, None]
    visible_11LM = visible_LM[None, None]
    if document_BL is not None:
        mine_BL, seen_BM = document_BL[:, first : first + size], document_BL[:, : first + size]
        visible_11LM = visible_11LM & _mark_same_document(mine_BL, seen_BM)
    return jnp.where(visible_11LM, logits_BHLM, -jnp.inf)


def _mark_same_document(document_BL: jax.Array, document_BM: jax.Array) -> jax.Array:
    """Returns which pairs of positions are of one document: (B, 1, L, M)."""
    return document_BL[:, None, :, None] == document_BM[:, None, None, :]


def compute_fused_attention(
    q_BHLK: jax.Array,
    k_BHLK: jax.Array,
    v_BHLK: jax.Array,
    document_BL: jax.Array | None = None,
) -> jax.Array:
    """JAX's own attention, as XLA compiles it for the device."""
    return _call_jax_attention(q_BHLK, k_BHLK, v_BHLK, document_BL, "xla")


def compute_cudnn_attention(
    q_BHLK: jax.Array,
    k_BHLK: jax.Array,
    v_BHLK: jax.Array,
    document_BL: jax.Array | None = None,
) -> jax.Array:
    """The flash attention of cuDNN: half precision, K a multiple of 8, NVIDIA from Ampere on.

    It takes whole blocks of 64 positions; other lengths are left to XLA. The documents become a
    bias of every pair of positions in half precision, (B, 1, L, M).
    """
    if q_BHLK.shape[2] % 64:
        return compute_fused_attention(q_BHLK, k_BHLK, v_BHLK, document_BL)
    return _call_jax_attention(q_BHLK, k_BHLK, v_BHLK, document_BL, "cudnn")


def is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of remat: keeps what cuDNN's backward pass reads, which JAX gives no name."""
    return primitive.name.startswith("dot_product_attention_fwd")


def compute_splash_attention(
    q_BHLK: jax.Array,
    k_BHLK: jax.Array,
    v_BHLK: jax.Array,
    document_BL: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """The kernel for TPUs that comes with JAX: no weights in memory, no blocks of later keys.

    It takes whole blocks of 128 positions; other lengths go blockwise. The compiler cannot cut
    a kernel up, so each device of the mesh in context runs it on its own sequences and heads.

    Args:
      interpret: run it in Python, on any device, to test it.
    """
    L, K = q_BHLK.shape[2:]
    if L % 128:
        return compute_blockwise_attention(q_BHLK, k_BHLK, v_BHLK, document_BL)
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = next(size for size in (512, 384, 256, 128) if L % size == 0)
    # Positions vary fastest, as K of less than 128 would be filled up to 128. The gradients of
    # queries, keys and values are taken in one pass over the blocks.
    layouts = dict.fromkeys(("q_layout", "k_layout", "v_layout"), kernel.QKVLayout.SEQ_MINOR)
    sizes = kernel.BlockSizes(*(block,) * 6, use_fused_bwd_kernel=True, **layouts)

    def local(
        q_BHLK: jax.Array, k_BHLK: jax.Array, v_BHLK: jax.Array, document_BL: jax.Array | None
    ) -> jax.Array:
        mask = masks.MultiHeadMask([masks.CausalMask((L, L))] * q_BHLK.shape[1])
        attend = kernel.make_splash_mha_single_device(
            mask, block_sizes=sizes, residual_checkpoint_name=SAVED, interpret=interpret
        )
        segments = None if document_BL is None else kernel.SegmentIds(document_BL, document_BL)
        return jax.vmap(attend)(scale(q_BHLK, K**-0.5), k_BHLK, v_BHLK, segments)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q_BHLK, k_BHLK, v_BHLK, document_BL)
    rows = ("data", "fsdp")
    spec = PartitionSpec(rows, "tensor")
    # In a pack, members are apart already. check_vma: the kernel does not say how its results
    # vary over the mesh.
    mapped = jax.shard_map(
        local,
        in_specs=(spec, spec, spec, PartitionSpec(rows)),
        out_specs=spec,
        axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
        check_vma=False,
    )
    return mapped(q_BHLK, k_BHLK, v_BHLK, document_BL)


def _call_jax_attention(
    q_BHLK: jax.Array,
    k_BHLK: jax.Array,
    v_BHLK: jax.Array,
    document_BL: jax.Array | None,
    implementation: Literal["xla", "cudnn"],
) -> jax.Array:
    q, k, v = (x.swapaxes(1, 2) for x in (q_BHLK, k_BHLK, v_BHLK))
    mask_B1LM = None if document_BL is None else _mark_same_document(document_BL, document_BL)
    found = jax.nn.dot_product_attention(
        q, k, v, mask=mask_B1LM, is_causal=True, implementation=implementation
    )
    return found.swapaxes(1, 2)
