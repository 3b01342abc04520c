"""Rotary position embeddings (arXiv 2104.09864)."""

import jax
import jax.numpy as jnp


def rotate_by_position(x_BHLK: jax.Array, theta: float) -> jax.Array:
    """Turns each pair of a head's dimensions by an angle in proportion to the position.

    Dimension k is paired with k + K/2, as in Llama and GPT-NeoX, and their angle at position l is
    l theta^(-2 k / K). So a product of two rotated vectors depends on the distance of their
    positions alone.

    Args:
      x_BHLK: queries or keys, at positions 0 to L - 1; K is even.
      theta: the base of the wavelengths.
    """
    L, K = x_BHLK.shape[2:]
    rate_k = theta ** (-jnp.arange(0, K, 2, dtype=jnp.float32) / K)
    angle_Lk = jnp.arange(L, dtype=jnp.float32)[:, None] * rate_k[None]
    cos_Lk, sin_Lk = jnp.cos(angle_Lk)[None, None], jnp.sin(angle_Lk)[None, None]
    low, high = jnp.split(x_BHLK.astype(jnp.float32), 2, axis=-1)
    turned = (low * cos_Lk - high * sin_Lk, high * cos_Lk + low * sin_Lk)
    return jnp.concatenate(turned, axis=-1).astype(x_BHLK.dtype)
