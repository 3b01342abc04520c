"""All attention paths are one function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbalance_jax.compute import attention, sharding
from imbalance_jax.config import MeshConfig

B, H, K = 2, 3, 5
# Four blocks, three, two (34 = 2 x 17), no divisor at all, and shorter than any block.
LENGTHS = (64, 48, 34, 37, 6, 1)


@pytest.fixture(autouse=True)
def blocks_of_16_queries(monkeypatch):
    """So that short sequences have several blocks."""
    monkeypatch.setattr(attention, "_LEAST_BLOCK", 16)


def draw(L: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(np.float32(rng.standard_normal((B, H, L, K))) for _ in range(3))


def draw_documents(rows: int, L: int) -> np.ndarray:
    """Returns the numbers of documents that begin at other positions in each sequence."""
    begins_BL = np.random.default_rng(3).uniform(size=(rows, L)) < 0.1
    begins_BL[0, L // 2], begins_BL[1, L // 3] = True, True
    return np.cumsum(begins_BL, axis=1).astype(np.int32)


def numpy_attention(
    q_BHLK: np.ndarray, k_BHLK: np.ndarray, v_BHLK: np.ndarray, document_BL: np.ndarray
) -> np.ndarray:
    q, k, v = (np.asarray(x, np.float64) for x in (q_BHLK, k_BHLK, v_BHLK))
    out = np.zeros_like(q)
    for b, h, t in np.ndindex(q.shape[:3]):
        first = int(np.flatnonzero(document_BL[b] == document_BL[b, t])[0])
        score = np.exp(k[b, h, first : t + 1] @ q[b, h, t] / np.sqrt(K))
        out[b, h, t] = score / score.sum() @ v[b, h, first : t + 1]
    return out


@pytest.mark.parametrize("L", LENGTHS)
def test_einsum_is_softmax_attention_to_earlier_positions_and_itself(L):
    for document_BL in (None, draw_documents(B, L)):
        whole_BL = np.zeros((B, L), np.int32)
        np.testing.assert_allclose(
            jax.jit(attention.compute_einsum_attention)(*draw(L), document_BL),
            numpy_attention(*draw(L), whole_BL if document_BL is None else document_BL),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("path", ["blockwise", "fused"])
@pytest.mark.parametrize(
    ("L", "apart"), [*((L, False) for L in LENGTHS), (64, True), (34, True), (37, True)]
)
def test_other_paths_equal_einsum_in_value_and_gradient(path, L, apart):
    qkv = draw(L)
    weight_BHLK, document_BL = draw(L, seed=1)[0], draw_documents(B, L) if apart else None

    def run(path: str) -> tuple[jax.Array, jax.Array]:
        value, pull = jax.vjp(
            lambda *qkv: attention.causal_attention(*qkv, path, document_BL), *qkv
        )
        return value, *pull(weight_BHLK)

    run = jax.jit(run, static_argnums=0)
    for ours, plain in zip(run(path), run("einsum"), strict=True):
        # fp32 sums over up to 64 positions, in another order.
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("path", ["einsum", "blockwise", "fused"])
@pytest.mark.parametrize("L", [64, 37])
def test_later_keys_and_values_do_not_reach_earlier_positions(path, L):
    q, k, v = draw(L)
    t = L // 2 + 1
    run = jax.jit(attention.causal_attention, static_argnums=3)
    before = np.asarray(run(q, k, v, path))
    # Keys and values that would show: a masked pair must have a weight of exactly zero.
    k[:, :, t:], v[:, :, t:] = 50.0, 1e6
    after = np.asarray(run(q, k, v, path))
    np.testing.assert_array_equal(before[:, :, :t], after[:, :, :t])
    assert np.all(before[:, :, t:] != after[:, :, t:])


@pytest.mark.parametrize("devices", [1, 8])
def test_the_kernel_for_tpus_equals_einsum_in_value_and_gradient(devices):
    """Interpreted: it takes a TPU to compile it, and test_topology.py does for one."""
    rng = np.random.default_rng(0)
    q, k, v, weight = np.float32(rng.standard_normal((4, 4, 2, 128, 8)))
    mesh = sharding.make_mesh(
        MeshConfig(fsdp=devices // 4 or 1, tensor=devices // 4 or 1), jax.devices()[:devices]
    )

    # On several devices, of documents apart.
    document_BL = draw_documents(4, 128) if devices > 1 else None

    def run(path, q, k, v):
        value, pull = jax.vjp(lambda *qkv: path(*qkv, document_BL), q, k, v)
        return value, *pull(weight)

    def splash(*args: jax.Array) -> jax.Array:
        return attention.compute_splash_attention(*args, interpret=True)

    whole = sharding.make_replicated_sharding(mesh)
    ours = jax.jit(sharding.bind_mesh_context(mesh, run, splash), in_shardings=whole)(q, k, v)
    for found, plain in zip(
        ours,
        jax.jit(functools.partial(run, attention.compute_einsum_attention))(q, k, v),
        strict=True,
    ):
        # fp32 sums over up to 128 positions, in another order.
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)


def test_the_kernel_for_tpus_leaves_other_lengths_to_blocks():
    args = (*draw(48), draw_documents(B, 48))
    np.testing.assert_array_equal(
        attention.compute_splash_attention(*args), attention.compute_blockwise_attention(*args)
    )


def test_blocks_compute_fewer_pairs_than_einsum():
    def flops(function) -> float:
        return jax.jit(function).lower(*draw(64)).compile().cost_analysis()["flops"]

    # 5/8 of the pairs in four blocks.
    np.testing.assert_allclose(
        flops(attention.compute_blockwise_attention) / flops(attention.compute_einsum_attention),
        5 / 8,
        rtol=0.1,
    )


def test_softmax_is_taken_in_float32_under_bfloat16():
    q, k, v = (x.astype(jnp.bfloat16) for x in draw(48))
    wide = (np.asarray(x.astype(jnp.float32)) for x in (q, k, v))
    exact = numpy_attention(*wide, np.zeros((B, 48)))
    for path in (
        attention.compute_einsum_attention,
        attention.compute_blockwise_attention,
        attention.compute_fused_attention,
    ):
        found = jax.jit(path)(q, k, v)
        assert found.dtype == jnp.bfloat16
        # Roundings of scaled queries, of weights and of results, 2^-9 each, to values up to 3.
        np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.03)


@pytest.mark.parametrize("path", ["einsum", "blockwise", "fused"])
def test_bfloat16_changes_value_and_gradient_by_its_rounding_only(path):
    exact, rounded = draw(64), tuple(jnp.asarray(x, jnp.bfloat16) for x in draw(64))
    weight_BHLK = draw(64, seed=1)[0]

    def run(path: str, qkv: tuple) -> tuple[jax.Array, ...]:
        value, pull = jax.vjp(lambda *qkv: attention.causal_attention(*qkv, path), *qkv)
        return value, *pull(jnp.asarray(weight_BHLK, value.dtype))

    run = jax.jit(run, static_argnums=0)
    for half, full in zip(run(path, rounded), run("einsum", exact), strict=True):
        assert half.dtype == jnp.bfloat16
        # Queries, keys and values are rounded, then weights, then results: 2^-9 = 0.2 % each.
        # An error of a logit is one of its weight, and the gradient goes through both.
        error = np.linalg.norm(half.astype(jnp.float32) - full) / np.linalg.norm(full)
        assert 1e-4 < error < 0.01


@pytest.mark.parametrize("K", [12, 32])
@pytest.mark.parametrize("path", ["einsum", "blockwise", "fused"])
def test_the_factor_of_the_logits_is_not_rounded_in_bfloat16(path, K):
    """Sharp logits, as of a trained model: an error of all alike would be that of a temperature."""
    rng = np.random.default_rng(0)
    q, k, v, weight = (jnp.asarray(rng.standard_normal((B, H, 64, K)), "bfloat16") for _ in "qkvw")
    q, k = 3 * q, 3 * k

    def pull_query(path: str, *arrays: jax.Array) -> np.ndarray:
        q, k, v, weight = arrays
        _, pull = jax.vjp(lambda q: attention.causal_attention(q, k, v, path), q)
        return np.asarray(pull(weight)[0], np.float64)

    exact = pull_query("einsum", *(x.astype(jnp.float32) for x in (q, k, v, weight)))
    found = pull_query(path, q, k, v, weight)
    # Roundings of weights, of their gradients and of the result, 2^-9 each, up and down.
    assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.008
