"""Normalisation of each position: LayerNorm, and RMSNorm (arXiv 1910.07467)."""

import jax
import jax.numpy as jnp
from flax import nnx

from imbalance_jax.config import ModelConfig

_EPSILON = 1e-5


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
    inverse_BL1 = jax.lax.rsqrt(variance_BL1 + _EPSILON)
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


@jax.named_scope("norm")
def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Scales the last dimension to a mean square of 1 in fp32, then by its own factors.

    Args:
      x: of any shape and dtype.
      scale: one factor for each place of the last dimension.
    """
    wide = x.astype(jnp.float32)
    square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    scale = scale.reshape((1,) * (x.ndim - 1) + (-1,))
    return (wide * jax.lax.rsqrt(square + _EPSILON) * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    def __init__(self, config: ModelConfig) -> None:
        self.scale_D = nnx.Param(jnp.ones(config.D, config.param_dtype))
        self.has_bias = config.settle("bias") == "on"
        if self.has_bias:
            self.bias_D = nnx.Param(jnp.zeros(config.D, config.param_dtype))

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        scale_D = self.scale_D[...]
        return layer_norm(x_BLD, scale_D, self.bias_D[...] if self.has_bias else 0 * scale_D)


class RMSNorm(nnx.Module):
    def __init__(self, config: ModelConfig) -> None:
        self.scale_D = nnx.Param(jnp.ones(config.D, config.param_dtype))

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        return rms_norm(x_BLD, self.scale_D[...])


def make_norm(config: ModelConfig) -> LayerNorm | RMSNorm:
    """Returns a norm of the kind of the config."""
    return LayerNorm(config) if config.settle("norm") == "layer" else RMSNorm(config)
