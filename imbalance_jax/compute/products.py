"""A parameter times, or added to, what flows through the model; its gradient is fp32."""

import functools
import re

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from imbalance_jax.compute import tuning

PRODUCT = "product"  # names results of matrix products, for policies of remat


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
    return _multiply_mixed(spec, x, weight), (x, weight)


def _multiply_weight_backward(
    spec: str, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    x_dims, weight_dims, y_dims = re.split(",|->", spec)
    dx = _multiply_mixed(f"{y_dims},{weight_dims}->{x_dims}", dy, weight)
    dweight = jnp.einsum(
        f"{x_dims},{y_dims}->{weight_dims}", x, dy, preferred_element_type=weight.dtype
    )
    return dx, dweight


def _multiply_mixed(spec: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    return checkpoint_name(multiply_rounded(spec, x, weight.astype(x.dtype)), PRODUCT)


def multiply_rounded(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the einsum of two arrays of one dtype, in that dtype, summed in fp32.

    Accelerators sum in fp32 whatever the dtype of the result. XLA has kernels for a CPU's bf16
    units (AVX512-BF16, AMX) only for products whose result is fp32, so that it is rounded after.
    """
    wide = jnp.float32 if tuning.is_traced_for_cpu() else None
    return jnp.einsum(spec, x, y, preferred_element_type=wide).astype(x.dtype)


def scale(x: jax.Array, factor: float) -> jax.Array:
    """Returns x times a constant, which stays in fp32: one rounded to bf16 is off everywhere."""
    return (x.astype(jnp.float32) * factor).astype(x.dtype)


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
