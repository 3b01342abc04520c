"""A transformer block: attention and a feed-forward layer, each with its norms and a residual.

The dials of `config.model` choose its parts; at their defaults it is GPT-2's. What a dial leaves
out has no parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from imbalance_jax.compute.attention import causal_attention
from imbalance_jax.compute.context import drop_out, fold_in_keys
from imbalance_jax.compute.norms import make_norm, rms_norm
from imbalance_jax.compute.products import add_bias, multiply_weight, scale
from imbalance_jax.compute.rotary import rotate_by_position
from imbalance_jax.config import ModelConfig

_INIT_STD = 0.02


def init_normal_param(
    rngs: nnx.Rngs, shape: tuple[int, ...], dtype: str, std: float = _INIT_STD
) -> Any:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, dtype))


def _init_zero_param(shape: tuple[int, ...], dtype: str) -> Any:
    return nnx.Param(jnp.zeros(shape, dtype))


def compute_init_std(config: ModelConfig) -> float:
    """Returns the spread that matrices of the blocks begin with.

    At m times the base width they sum over m times more inputs, so that it is sqrt(m) times less.
    """
    return _INIT_STD / config.compute_width_factor() ** 0.5


class Attention(nnx.Module):
    """Causal self-attention; its inner width H K need not be D.

    With fewer heads of keys and values than of queries, each serves as many queries in a row
    (arXiv 2305.13245).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        D, H, K, dtype = config.D, config.H, config.K, config.param_dtype
        std = compute_init_std(config)
        self.path = config.attention
        self.factor = config.compute_attention_factor()
        self.theta = config.rope_theta if config.settle("position") == "rope" else 0.0
        self.has_bias = config.settle("bias") == "on"
        self.has_qk_norm = config.settle("qk_norm") == "on"
        self.group = H // config.count_kv_heads()
        self.w_q_DHK = init_normal_param(rngs, (D, H, K), dtype, std)
        if self.group == 1:
            self.w_k_DHK = init_normal_param(rngs, (D, H, K), dtype, std)
            self.w_v_DHK = init_normal_param(rngs, (D, H, K), dtype, std)
        else:
            self.w_k_DJK = init_normal_param(rngs, (D, H // self.group, K), dtype, std)
            self.w_v_DJK = init_normal_param(rngs, (D, H // self.group, K), dtype, std)
        # Not scaled down with depth, unlike that of the feed-forward layer: as the reference.
        self.w_o_HKD = init_normal_param(rngs, (H, K, D), dtype, std)
        if self.has_bias:
            self.b_q_HK = _init_zero_param((H, K), dtype)
            if self.group == 1:
                self.b_k_HK = _init_zero_param((H, K), dtype)
                self.b_v_HK = _init_zero_param((H, K), dtype)
            else:
                self.b_k_JK = _init_zero_param((H // self.group, K), dtype)
                self.b_v_JK = _init_zero_param((H // self.group, K), dtype)
            self.b_o_D = _init_zero_param((D,), dtype)
        if self.has_qk_norm:
            self.q_scale_K = nnx.Param(jnp.ones(K, dtype))
            self.k_scale_K = nnx.Param(jnp.ones(K, dtype))

    def __call__(self, x_BLD: jax.Array, document_BL: jax.Array | None = None) -> jax.Array:
        q_BHLK = self._project(x_BLD, self.w_q_DHK, "b_q_HK")
        if self.group == 1:
            k_BHLK = self._project(x_BLD, self.w_k_DHK, "b_k_HK")
            v_BHLK = self._project(x_BLD, self.w_v_DHK, "b_v_HK")
        else:
            k_BHLK = self._project(x_BLD, self.w_k_DJK, "b_k_JK")
            v_BHLK = self._project(x_BLD, self.w_v_DJK, "b_v_JK")
        if self.has_qk_norm:
            q_BHLK = rms_norm(q_BHLK, self.q_scale_K[...])
            k_BHLK = rms_norm(k_BHLK, self.k_scale_K[...])
        if self.theta:
            q_BHLK = rotate_by_position(q_BHLK, self.theta)
            k_BHLK = rotate_by_position(k_BHLK, self.theta)
        if self.factor != 1:
            q_BHLK = scale(q_BHLK, self.factor)
        if self.group > 1:
            k_BHLK, v_BHLK = (jnp.repeat(x, self.group, axis=1) for x in (k_BHLK, v_BHLK))
        mixed_BHLK = causal_attention(q_BHLK, k_BHLK, v_BHLK, self.path, document_BL)
        y_BLD = multiply_weight("BHLK,HKD->BLD", mixed_BHLK, self.w_o_HKD[...])
        return add_bias(y_BLD, self.b_o_D[...][None, None]) if self.has_bias else y_BLD

    def _project(self, x_BLD: jax.Array, weight: Any, bias: str) -> jax.Array:
        y_BHLK = multiply_weight("BLD,DHK->BHLK", x_BLD, weight[...])
        if not self.has_bias:
            return y_BHLK
        return add_bias(y_BHLK, getattr(self, bias)[...][None, :, None])


class FeedForward(nnx.Module):
    """Two projections around a GELU (its tanh approximation)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        D, F, dtype = config.D, config.F, config.param_dtype
        self.has_bias = config.settle("bias") == "on"
        std = compute_init_std(config)
        self.w_up_DF = init_normal_param(rngs, (D, F), dtype, std)
        self.w_down_FD = init_normal_param(rngs, (F, D), dtype, std / (2 * config.N) ** 0.5)
        if self.has_bias:
            self.b_up_F = _init_zero_param((F,), dtype)
            self.b_down_D = _init_zero_param((D,), dtype)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        up_BLF = multiply_weight("BLD,DF->BLF", x_BLD, self.w_up_DF[...])
        if self.has_bias:
            up_BLF = add_bias(up_BLF, self.b_up_F[...][None, None])
        h_BLF = self.activate(x_BLD, up_BLF)
        y_BLD = multiply_weight("BLF,FD->BLD", h_BLF, self.w_down_FD[...])
        return add_bias(y_BLD, self.b_down_D[...][None, None]) if self.has_bias else y_BLD

    def activate(self, x_BLD: jax.Array, up_BLF: jax.Array) -> jax.Array:
        """Returns the hidden layer, from the layer's input and its projection up."""
        return jax.nn.gelu(up_BLF, approximate=True)


class GatedFeedForward(FeedForward):
    """A third projection, through a SiLU, gates the one up: SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        std = compute_init_std(config)
        self.w_gate_DF = init_normal_param(rngs, (config.D, config.F), config.param_dtype, std)
        if self.has_bias:
            self.b_gate_F = _init_zero_param((config.F,), config.param_dtype)

    def activate(self, x_BLD: jax.Array, up_BLF: jax.Array) -> jax.Array:
        gate_BLF = multiply_weight("BLD,DF->BLF", x_BLD, self.w_gate_DF[...])
        if self.has_bias:
            gate_BLF = add_bias(gate_BLF, self.b_gate_F[...][None, None])
        return jax.nn.silu(gate_BLF) * up_BLF


class Block(nnx.Module):
    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.norm_place, self.dropout = config.settle("norm_place"), config.dropout
        kinds = {"gelu": FeedForward, "swiglu": GatedFeedForward}
        if self.norm_place != "after":
            self.norm_1 = make_norm(config)
            self.norm_2 = make_norm(config)
        if self.norm_place != "before":
            self.norm_after_1 = make_norm(config)
            self.norm_after_2 = make_norm(config)
        self.attention = Attention(config, rngs=rngs)
        self.feed_forward = kinds[config.settle("feed_forward")](config, rngs=rngs)

    def __call__(
        self,
        x_BLD: jax.Array,
        document_BL: jax.Array | None = None,
        key_B: jax.Array | None = None,
    ) -> jax.Array:
        """Args: as `causal_attention` has the documents, and `drop_out` the keys."""

        def attend(x_BLD: jax.Array) -> jax.Array:
            return self.attention(x_BLD, document_BL)

        # The scopes name the operations in a profile; bench/profile.py adds them up.
        with jax.named_scope("attention"):
            x_BLD = x_BLD + self._normalise(x_BLD, attend, 1, key_B)
        with jax.named_scope("feed_forward"):
            return x_BLD + self._normalise(x_BLD, self.feed_forward, 2, key_B)

    def _normalise(
        self, x_BLD: jax.Array, layer: Any, number: int, key_B: jax.Array | None
    ) -> jax.Array:
        """Returns what a layer makes of x, with the norms before it and after it, and dropout."""
        if self.norm_place != "after":
            x_BLD = getattr(self, f"norm_{number}")(x_BLD)
        y_BLD = layer(x_BLD)
        if self.norm_place != "before":
            y_BLD = getattr(self, f"norm_after_{number}")(y_BLD)
        return drop_out(y_BLD, self.dropout, fold_in_keys(key_B, number))
