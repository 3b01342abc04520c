"""Decoder-only transformer over the vocabulary of all languages.

`init_params` makes the parameters and `compute_last_hidden_state` uses them; both are pure, and
nothing outside this file knows that flax stands behind them. Parameters are a nest of plain dicts
of arrays. Their names end in their dimensions, and sharding.py reads them from there; those
of the blocks have N in front, however the blocks are run.

The model is GPT-2 with learned positions, normalisation before each layer, biases, an untied
head without one, and token embeddings scaled by sqrt(D).
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imbalance_jax.compute import tuning
from imbalance_jax.compute.attention import SAVED, causal_attention
from imbalance_jax.config import ModelConfig

Params = dict[str, Any]

_INIT_STD = 0.02


@jax.custom_vjp
def layer_norm(x_BLD: jax.Array, scale_D: jax.Array, bias_D: jax.Array) -> jax.Array:
    """Normalises each position to mean 0 and variance 1 in fp32, then scales and shifts.

    It has a backward pass of its own: XLA fuses a differentiated one with the whole chain
    of residuals before it on a CPU, and then computes that chain again in every layer.
    """
    return _layer_norm_forward(x_BLD, scale_D, bias_D)[0]


@jax.named_scope("norm")
def _layer_norm_forward(x_BLD: jax.Array, scale_D: jax.Array, bias_D: jax.Array) -> tuple:
    x = x_BLD.astype(jnp.float32)
    mean_BL1 = jnp.mean(x, axis=-1, keepdims=True)
    variance_BL1 = jnp.mean(jnp.square(x - mean_BL1), axis=-1, keepdims=True)
    inverse_BL1 = jax.lax.rsqrt(variance_BL1 + 1e-5)
    y_BLD = (x - mean_BL1) * inverse_BL1 * scale_D[None, None] + bias_D[None, None]
    return y_BLD.astype(x_BLD.dtype), (x_BLD, scale_D, mean_BL1, inverse_BL1)


@jax.named_scope("norm")
def _layer_norm_backward(saved: tuple, dy_BLD: jax.Array) -> tuple:
    x_BLD, scale_D, mean_BL1, inverse_BL1 = saved
    normal_BLD = (x_BLD.astype(jnp.float32) - mean_BL1) * inverse_BL1
    dy = dy_BLD.astype(jnp.float32)
    dnormal_BLD = dy * scale_D[None, None]
    # What normalisation removes, its mean and its part along x, the gradient loses too.
    mean = jnp.mean(dnormal_BLD, axis=-1, keepdims=True)
    along = jnp.mean(dnormal_BLD * normal_BLD, axis=-1, keepdims=True)
    dx_BLD = (dnormal_BLD - mean - normal_BLD * along) * inverse_BL1
    dscale_D = jnp.sum(dy * normal_BLD, axis=(0, 1)).astype(scale_D.dtype)
    return dx_BLD.astype(x_BLD.dtype), dscale_D, jnp.sum(dy, axis=(0, 1)).astype(scale_D.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def multiply_weight(spec: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns the einsum of x and a weight, in the dtype of x; the weight's gradient is fp32.

    JAX's own gradient of a bf16 weight is bf16, and devices that share the batch would add
    theirs up in it.

    Args:
      spec: of the einsum, such as BLD,DF->BLF. No dimension of the weight is in both others.
      x: what the weight is multiplied with.
      weight: in fp32.
    """
    if x.dtype == weight.dtype:
        return jnp.einsum(spec, x, weight)
    return _multiply_weight_mixed(spec, x, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply_weight_mixed(spec: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    return _multiply_weight_forward(spec, x, weight)[0]


def _multiply_weight_forward(
    spec: str, x: jax.Array, weight: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.einsum(spec, x, weight.astype(x.dtype)), (x, weight)


def _multiply_weight_backward(
    spec: str, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    x_dims, weight_dims, y_dims = re.split(",|->", spec)
    dx = jnp.einsum(f"{y_dims},{weight_dims}->{x_dims}", dy, weight.astype(x.dtype))
    dweight = jnp.einsum(
        f"{x_dims},{y_dims}->{weight_dims}", x, dy, preferred_element_type=weight.dtype
    )
    return dx, dweight


_multiply_weight_mixed.defvjp(_multiply_weight_forward, _multiply_weight_backward)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias in the dtype of x; the gradient of the bias is summed in fp32.

    JAX's own gradient of a bf16 addition is a bf16 sum over all positions. Each step of it
    rounds to 8 bits: a sum of equal signs over 65,536 positions comes out a fifth too small.

    Args:
      x: of any shape and dtype.
      bias: with as many dimensions, of size 1 where it is the same for all of x.
    """
    return _add_bias_forward(x, bias)[0]


def _add_bias_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x + bias.astype(x.dtype), bias


def _add_bias_backward(bias: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    alike = tuple(axis for axis, size in enumerate(bias.shape) if size == 1)
    dbias = jnp.sum(dy, axis=alike, dtype=jnp.float32, keepdims=True)
    return dy, dbias.astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def _init_normal_param(
    rngs: nnx.Rngs, shape: tuple[int, ...], dtype: str, std: float = _INIT_STD
) -> Any:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, dtype))


def _init_zero_param(shape: tuple[int, ...], dtype: str) -> Any:
    return nnx.Param(jnp.zeros(shape, dtype))


class LayerNorm(nnx.Module):
    def __init__(self, config: ModelConfig) -> None:
        self.scale_D = nnx.Param(jnp.ones(config.D, config.param_dtype))
        self.bias_D = _init_zero_param((config.D,), config.param_dtype)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        return layer_norm(x_BLD, self.scale_D[...], self.bias_D[...])


class Attention(nnx.Module):
    """Causal self-attention; its inner width H K need not be D."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        D, H, K, dtype = config.D, config.H, config.K, config.param_dtype
        self.path = config.attention
        self.w_q_DHK = _init_normal_param(rngs, (D, H, K), dtype)
        self.w_k_DHK = _init_normal_param(rngs, (D, H, K), dtype)
        self.w_v_DHK = _init_normal_param(rngs, (D, H, K), dtype)
        # Not scaled down with depth, unlike that of the feed-forward layer: as the reference.
        self.w_o_HKD = _init_normal_param(rngs, (H, K, D), dtype)
        self.b_q_HK = _init_zero_param((H, K), dtype)
        self.b_k_HK = _init_zero_param((H, K), dtype)
        self.b_v_HK = _init_zero_param((H, K), dtype)
        self.b_o_D = _init_zero_param((D,), dtype)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        def project(w_DHK: nnx.Param, b_HK: nnx.Param) -> jax.Array:
            y_BHLK = multiply_weight("BLD,DHK->BHLK", x_BLD, w_DHK[...])
            return add_bias(y_BHLK, b_HK[...][None, :, None])

        mixed_BHLK = causal_attention(
            project(self.w_q_DHK, self.b_q_HK),
            project(self.w_k_DHK, self.b_k_HK),
            project(self.w_v_DHK, self.b_v_HK),
            self.path,
        )
        y_BLD = multiply_weight("BHLK,HKD->BLD", mixed_BHLK, self.w_o_HKD[...])
        return add_bias(y_BLD, self.b_o_D[...][None, None])


class FeedForward(nnx.Module):
    """Two projections around a GELU (its tanh approximation)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        D, F, dtype = config.D, config.F, config.param_dtype
        self.w_up_DF = _init_normal_param(rngs, (D, F), dtype)
        self.b_up_F = _init_zero_param((F,), dtype)
        self.w_down_FD = _init_normal_param(rngs, (F, D), dtype, _INIT_STD / (2 * config.N) ** 0.5)
        self.b_down_D = _init_zero_param((D,), dtype)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        up_BLF = multiply_weight("BLD,DF->BLF", x_BLD, self.w_up_DF[...])
        h_BLF = jax.nn.gelu(add_bias(up_BLF, self.b_up_F[...][None, None]), approximate=True)
        y_BLD = multiply_weight("BLF,FD->BLD", h_BLF, self.w_down_FD[...])
        return add_bias(y_BLD, self.b_down_D[...][None, None])


class Block(nnx.Module):
    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.norm_1 = LayerNorm(config)
        self.attention = Attention(config, rngs=rngs)
        self.norm_2 = LayerNorm(config)
        self.feed_forward = FeedForward(config, rngs=rngs)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        # The scopes name the operations in a profile; bench/profile.py adds them up.
        with jax.named_scope("attention"):
            x_BLD = x_BLD + self.attention(self.norm_1(x_BLD))
        with jax.named_scope("feed_forward"):
            return x_BLD + self.feed_forward(self.norm_2(x_BLD))


class Transformer(nnx.Module):
    """The whole model; `blocks` is one block whose parameters have N in front."""

    def __init__(self, config: ModelConfig, vocab_size: int, key: jax.Array) -> None:
        D, dtype = config.D, config.param_dtype
        ends_key, blocks_key = jax.random.split(key)
        rngs = nnx.Rngs(params=ends_key)
        self.dtype, self.remat, self.scan_layers = config.dtype, config.remat, config.scan_layers
        self.N = config.N
        self.embed_VD = _init_normal_param(rngs, (vocab_size, D), dtype)
        self.position_LD = _init_normal_param(rngs, (config.L, D), dtype)
        self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(params=key)))(
            jax.random.split(blocks_key, config.N)
        )
        self.final_norm = LayerNorm(config)
        if not config.tied:
            self.head_VD = _init_normal_param(rngs, (vocab_size, D), dtype)

    def embed(self, ids_BL: jax.Array) -> jax.Array:
        D = self.embed_VD.shape[1]
        positions_LD = self.position_LD[: ids_BL.shape[1]]
        return (self.embed_VD[ids_BL] * D**0.5 + positions_LD[None]).astype(self.dtype)

    def run_blocks(self, x_BLD: jax.Array, *, keep: bool) -> tuple[jax.Array, jax.Array | None]:
        """Returns the last block's output and, to keep, that of each one: (N, B, L, D)."""

        def run_block(x_BLD: jax.Array, block: Block) -> tuple[jax.Array, jax.Array | None]:
            x_BLD = block(x_BLD)
            return x_BLD, x_BLD if keep else None

        if self.remat != "none":
            policies = jax.checkpoint_policies
            # Matrix products, and of attention its result, without the weights.
            dots = policies.save_from_both_policies(
                policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(SAVED)
            )
            run_block = jax.checkpoint(run_block, policy={"dots": dots, "full": None}[self.remat])
        # A module is a pytree of its parameters, so jax scans over it and cuts it up.
        if self.scan_layers:
            return jax.lax.scan(run_block, x_BLD, self.blocks)
        outputs: list[Any] = []
        for block in _unstack_blocks(self.blocks, self.N):
            x_BLD, output_BLD = run_block(x_BLD, block)
            outputs.append(output_BLD)
        return x_BLD, jnp.stack(outputs) if keep else None


def _unstack_blocks(blocks: Block, N: int) -> list[Block]:
    """Returns each block by itself; gradients come back through one concatenation."""
    leaves, tree = jax.tree.flatten(blocks)
    parts = [jax.lax.split(leaf, (1,) * N, axis=0) for leaf in leaves]
    return [jax.tree.unflatten(tree, [part[n][0] for part in parts]) for n in range(N)]


def init_params(config: ModelConfig, vocab_size: int, key: jax.Array) -> Params:
    """Returns new parameters: a nest of dicts, with those of all blocks stacked."""
    _, state = nnx.split(Transformer(config, vocab_size, key))
    return nnx.to_pure_dict(state)


@functools.lru_cache
def _make_graph(config: ModelConfig, vocab_size: int) -> nnx.GraphDef:
    """Returns what a model is besides its parameters' values."""
    return nnx.graphdef(jax.eval_shape(lambda: Transformer(config, vocab_size, jax.random.key(0))))


def _build_model(params: Params, config: ModelConfig) -> Transformer:
    """Returns the model with these parameters, computed as suits the first device."""
    config = tuning.resolve_auto_fields(config, jax.devices()[0])
    return nnx.merge(_make_graph(config, params["embed_VD"].shape[0]), params)


def compute_last_hidden_state(params: Params, config: ModelConfig, ids_BL: jax.Array) -> jax.Array:
    """Returns the output of the final norm at every position: (B, L, D).

    Raises:
      ValueError: the sequences are longer than the model has positions.
    """
    return _run_forward_pass(params, config, ids_BL, keep=False)[0]


def compute_hidden_states(params: Params, config: ModelConfig, ids_BL: jax.Array) -> jax.Array:
    """Returns the state of every position between all layers: (N + 2, B, L, D).

    First the input of the first block, then the residual stream after each block, and last the
    output of the final norm, which `compute_last_hidden_state` returns.

    Raises:
      ValueError: the sequences are longer than the model has positions.
    """
    last_BLD, first_BLD, blocks_NBLD = _run_forward_pass(params, config, ids_BL, keep=True)
    return jnp.concatenate([first_BLD[None], blocks_NBLD, last_BLD[None]])


def _run_forward_pass(
    params: Params, config: ModelConfig, ids_BL: jax.Array, *, keep: bool
) -> tuple[jax.Array, jax.Array, Any]:
    """Returns the final norm's output, the first block's input and, to keep, each one's output."""
    if ids_BL.shape[1] > config.L:
        raise ValueError(f"Sequences of {ids_BL.shape[1]} exceed config.model.L={config.L}.")
    model = _build_model(params, config)
    with jax.named_scope("embedding"):
        first_BLD = model.embed(ids_BL)
    x_BLD, blocks_NBLD = model.run_blocks(first_BLD, keep=keep)
    return model.final_norm(x_BLD), first_BLD, blocks_NBLD


def gather_embedding_rows(params: Params, row_V: np.ndarray) -> Params:
    """Returns parameters whose tables have, for every id, the row of another id in them."""
    tables = {name: params[name] for name in ("embed_VD", "head_VD") if name in params}
    shardings = jax.tree.map(lambda table: table.sharding, tables)
    take = jax.jit(lambda tables: jax.tree.map(lambda t: t[row_V], tables), out_shardings=shardings)
    return {**params, **take(tables)}


def get_output_embeddings(params: Params) -> jax.Array:
    """Returns the output embeddings, (V, D): those of the input where they are tied."""
    return params["head_VD"] if "head_VD" in params else params["embed_VD"]


def compute_next_token_logits(params: Params, config: ModelConfig, ids_BL: jax.Array) -> jax.Array:
    """Returns fp32 logits of the next id at every position, whole: (B, L, V).

    For notebooks, generation and tests; objective.py never holds them all.
    """
    hidden_BLD = compute_last_hidden_state(params, config, ids_BL)
    head_VD = get_output_embeddings(params).astype(hidden_BLD.dtype)
    return jnp.einsum("BLD,VD->BLV", hidden_BLD, head_VD, preferred_element_type=jnp.float32)


def count_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Returns the number of parameters, without making them."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda key: init_params(config, vocab_size, key), key)
    return sum(leaf.size for leaf in jax.tree.leaves(params))
