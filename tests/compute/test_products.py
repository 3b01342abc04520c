"""Matrix products in bfloat16, against exact products of the same factors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import tuning
from imbalance_jax.compute.context import draw_dropout_keys, drop_out
from imbalance_jax.compute.products import multiply_weight, scale
from imbalance_jax.config import ModelConfig

B, L, D, F, N = 2, 32, 64, 96, 3


def draw(*shape: int, dtype: str = "bfloat16") -> jax.Array:
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.standard_normal(shape), dtype)


def multiply_exactly(spec: str, *factors: jax.Array) -> np.ndarray:
    return np.einsum(spec, *(np.asarray(factor, np.float64) for factor in factors))


@pytest.mark.parametrize("constant", [48**-0.5, 0.1])
def test_a_constant_in_bfloat16_is_off_nowhere_alike(constant):
    """Each place is rounded up or down by 2^-9 at most, 1e-4 in the mean of 128 values."""
    x_BD = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (512, 512)), jnp.bfloat16)
    scaled_BD = scale(x_BD, constant)
    assert scaled_BD.dtype == jnp.bfloat16
    ratio = np.asarray(scaled_BD, np.float64).sum() / np.asarray(x_BD, np.float64).sum()
    np.testing.assert_allclose(ratio, constant, rtol=3e-4)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_dropout_in_bfloat16_keeps_the_mean(rate):
    x_BLD = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (1, 512, 512)), jnp.bfloat16)
    y_BLD, pull = jax.vjp(lambda x_BLD: drop_out(x_BLD, rate, draw_dropout_keys(0, 0, 1)), x_BLD)
    assert y_BLD.dtype == jnp.bfloat16
    x, y, dx = (np.asarray(z, np.float64) for z in (x_BLD, y_BLD, *pull(x_BLD)))
    for kept in (y, dx):
        np.testing.assert_allclose(kept.sum() / x[kept > 0].sum(), 1 / (1 - rate), rtol=3e-4)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_product_in_bfloat16_is_rounded_once(on_cpu, monkeypatch):
    monkeypatch.setattr(tuning, "is_traced_for_cpu", lambda: on_cpu)
    x_BLD, dy_BLF = draw(B, L, D), draw(B, L, F)
    weight_DF = jnp.asarray(draw(D, F), jnp.float32)  # a weight that bf16 holds exactly
    multiply = functools.partial(multiply_weight, "BLD,DF->BLF")
    y_BLF, pull = jax.vjp(multiply, x_BLD, weight_DF)
    dx_BLD, dweight_DF = pull(dy_BLF)
    exact = {
        "y": (y_BLF, multiply_exactly("BLD,DF->BLF", x_BLD, weight_DF)),
        "dx": (dx_BLD, multiply_exactly("BLF,DF->BLD", dy_BLF, weight_DF)),
    }
    for found, expected in exact.values():
        assert found.dtype == jnp.bfloat16
        # Rounding to 8 bits is off by 2^-8 of the value at most, and sums in fp32 by 1e-5.
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8, atol=1e-5)
    expected = multiply_exactly("BLD,BLF->DF", x_BLD, dy_BLF)
    assert dweight_DF.dtype == jnp.float32
    np.testing.assert_allclose(dweight_DF, expected, rtol=1e-5, atol=1e-5)


def find_shapes(jaxpr: Any, primitive: str, dtype: str) -> list[tuple[int, ...]]:
    """Returns the shapes of all results of a primitive in a dtype, those within loops too."""
    shapes = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            shapes += [v.aval.shape for v in equation.outvars if v.aval.dtype == dtype]
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    shapes += find_shapes(inner, primitive, dtype)
    return shapes


def test_a_cpu_gets_products_that_its_bfloat16_units_take():
    """XLA has kernels for them only where the result is fp32: 4 times as fast with AMX."""
    config = ModelConfig(
        L=L, D=D, N=N, H=2, K=32, F=F, dtype="bfloat16", remat="dots", scan_layers=True
    )
    params = model_lib.init_params(config, 128, jax.random.key(0))
    ids_BL = jnp.zeros((B, L), jnp.int32)

    def total(params: model_lib.Params) -> jax.Array:
        hidden_BLD = model_lib.compute_last_hidden_state(params, config, ids_BL)
        return jnp.sum(hidden_BLD.astype(jnp.float32) ** 2)

    program = jax.make_jaxpr(jax.grad(total))(params).jaxpr
    assert find_shapes(program, "dot_general", "float32")
    assert not find_shapes(program, "dot_general", "bfloat16")
    # What the backward pass is given of all layers is rounded: fp32 would be twice the memory.
    stacked = (N, B, L, F)
    assert stacked in find_shapes(program, "scan", "bfloat16")
    assert stacked not in find_shapes(program, "scan", "float32")
