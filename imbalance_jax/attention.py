"""Causal attention: a plain path to compare with, and faster ones with the same value.

Heads come first, (B, H, L, K): the layout in which a head's keys lie together.
`config.model.attention` picks the path, and tuning.py what "auto" is.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def causal_attention(
    q_BHLK: jax.Array, k_BHLK: jax.Array, v_BHLK: jax.Array, path: str
) -> jax.Array:
    """Returns the values that each position attends to, itself and earlier ones: (B, H, L, K).

    Args:
      path: einsum | blockwise | fused | cudnn | splash, the name of a function here.
    """
    functions = {
        "einsum": einsum,
        "blockwise": blockwise,
        "fused": fused,
        "cudnn": cudnn,
        "splash": splash,
    }
    return functions[path](q_BHLK, k_BHLK, v_BHLK)


def einsum(q_BHLK: jax.Array, k_BHLK: jax.Array, v_BHLK: jax.Array) -> jax.Array:
    """The definition: all pairs of positions, then a mask, then a softmax in fp32."""
    return _attend(q_BHLK, k_BHLK, v_BHLK, first=0)


def blockwise(
    q_BHLK: jax.Array, k_BHLK: jax.Array, v_BHLK: jax.Array, *, blocks: int = 4
) -> jax.Array:
    """The same in blocks of queries, each against the keys up to its own end only.

    With four blocks, 5/8 of the pairs are computed. Faster than the other paths on a CPU,
    where the pairs do not fit the cache.
    """
    L = q_BHLK.shape[2]
    # Below 16 queries a block is all overhead.
    while blocks > 1 and (L % blocks or L // blocks < 16):
        blocks -= 1
    size = L // blocks
    outs = []
    for first in range(0, L, size):
        q = q_BHLK[:, :, first : first + size]
        k, v = k_BHLK[:, :, : first + size], v_BHLK[:, :, : first + size]
        outs.append(_attend(q, k, v, first=first))
    return jnp.concatenate(outs, axis=2)


def fused(q_BHLK: jax.Array, k_BHLK: jax.Array, v_BHLK: jax.Array) -> jax.Array:
    """JAX's own attention, as XLA compiles it for the device."""
    return _library(q_BHLK, k_BHLK, v_BHLK, "xla")


def cudnn(q_BHLK: jax.Array, k_BHLK: jax.Array, v_BHLK: jax.Array) -> jax.Array:
    """The flash attention of cuDNN: half precision, K a multiple of 8, NVIDIA from Ampere on.

    It takes whole blocks of 64 positions; other lengths are left to XLA.
    """
    if q_BHLK.shape[2] % 64:
        return fused(q_BHLK, k_BHLK, v_BHLK)
    return _library(q_BHLK, k_BHLK, v_BHLK, "cudnn")


def splash(
    q_BHLK: jax.Array, k_BHLK: jax.Array, v_BHLK: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """The kernel for TPUs that comes with JAX: no weights in memory, no blocks of later keys.

    It takes whole blocks of 128 positions; other lengths go blockwise. The compiler cannot cut
    a kernel up, so each device of the mesh in context runs it on its own sequences and heads.

    Args:
      interpret: run it in Python, on any device, to test it.
    """
    L, K = q_BHLK.shape[2:]
    if L % 128:
        return blockwise(q_BHLK, k_BHLK, v_BHLK)
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = next(size for size in (512, 384, 256, 128) if L % size == 0)
    # The gradients of queries, keys and values in one pass over the blocks.
    sizes = kernel.BlockSizes(*(block,) * 6, use_fused_bwd_kernel=True)

    def local(q_BHLK: jax.Array, k_BHLK: jax.Array, v_BHLK: jax.Array) -> jax.Array:
        mask = masks.MultiHeadMask([masks.CausalMask((L, L))] * q_BHLK.shape[1])
        attend = kernel.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
        return jax.vmap(attend)(q_BHLK * K**-0.5, k_BHLK, v_BHLK)

    if jax.sharding.get_abstract_mesh().empty:
        return local(q_BHLK, k_BHLK, v_BHLK)
    spec = PartitionSpec(("data", "fsdp"), "tensor")
    # check_vma: the kernel does not say how its results vary over the mesh.
    return jax.shard_map(local, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(
        q_BHLK, k_BHLK, v_BHLK
    )


def _library(
    q_BHLK: jax.Array, k_BHLK: jax.Array, v_BHLK: jax.Array, implementation: Literal["xla", "cudnn"]
) -> jax.Array:
    q, k, v = (x.swapaxes(1, 2) for x in (q_BHLK, k_BHLK, v_BHLK))
    found = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
    return found.swapaxes(1, 2)


def _attend(q_BHLK: jax.Array, k_BHMK: jax.Array, v_BHMK: jax.Array, *, first: int) -> jax.Array:
    """Attention of queries at positions first, first + 1, ... to keys at 0, 1, ..."""
    L, M, K = q_BHLK.shape[2], k_BHMK.shape[2], q_BHLK.shape[3]
    logits_BHLM = jnp.einsum(
        "BHLK,BHMK->BHLM", q_BHLK * K**-0.5, k_BHMK, preferred_element_type=jnp.float32
    )
    visible_LM = jnp.arange(M) <= first + jnp.arange(L)[:, None]
    logits_BHLM = jnp.where(visible_LM[None, None], logits_BHLM, -jnp.inf)
    weights_BHLM = jax.nn.softmax(logits_BHLM, axis=-1).astype(v_BHMK.dtype)
    return jnp.einsum("BHLM,BHMK->BHLK", weights_BHLM, v_BHMK)
