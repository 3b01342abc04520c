"""The chunked loss is the plain loss, and its split into languages adds up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbalance_jax.compute import objective

# Every dimension has a size of its own; L has the divisors 1, 2, 3, 4, 6 and 12.
B, L, D, V = 3, 12, 5, 28
CHUNKS = (0, 1, 3, 4, 12)


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    hidden_BLD = np.float32(rng.standard_normal((B, L, D)))
    head_VD = np.float32(2 * rng.standard_normal((V, D)))
    target_BL = rng.integers(0, V, (B, L)).astype(np.int32)
    target_BL[:, 5] = (hidden_BLD @ head_VD.T).argmax(-1)[:, 5]  # some that are predicted
    return {
        "hidden_BLD": hidden_BLD,
        "head_VD": head_VD,
        "target_BL": target_BL,
        # None of them 1, and some positions that do not count.
        "weight_BL": np.float32(rng.uniform(0.2, 3, (B, L)) * (rng.random((B, L)) > 0.2)),
    }


def numpy_log_p(hidden_BLD: np.ndarray, head_VD: np.ndarray) -> np.ndarray:
    logits_BLV = np.float64(hidden_BLD) @ np.float64(head_VD).T
    return logits_BLV - np.log(np.exp(logits_BLV).sum(-1, keepdims=True))


@pytest.mark.parametrize(("chunk", "tile"), [*((chunk, 0) for chunk in CHUNKS), (4, V // 4)])
def test_the_chunked_loss_equals_a_plain_log_softmax_in_value_and_gradient(inputs, chunk, tile):
    target_BL, weight_BL = inputs["target_BL"], inputs["weight_BL"]

    def chunked(hidden_BLD: jax.Array, head_VD: jax.Array) -> tuple[jax.Array, jax.Array]:
        return objective.cross_entropy(
            hidden_BLD, head_VD, target_BL, weight_BL, chunk=chunk, tile=tile
        )

    args = inputs["hidden_BLD"], inputs["head_VD"]
    both = jax.value_and_grad(chunked, argnums=(0, 1), has_aux=True)
    (total, loss_BL), (dhidden_BLD, dhead_VD) = jax.jit(both)(*args)
    total_alone, loss_alone_BL = jax.jit(chunked)(*args)

    log_p_BLV = numpy_log_p(*args)
    plain_BL = -np.take_along_axis(log_p_BLV, target_BL[..., None], -1)[..., 0]
    dlogits_BLV = (np.exp(log_p_BLV) - np.eye(V)[target_BL]) * weight_BL[..., None]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(loss_BL, plain_BL)
    close(total, np.sum(plain_BL * weight_BL))
    close(dhidden_BLD, dlogits_BLV @ inputs["head_VD"])
    close(dhead_VD, np.einsum("BLV,BLD->VD", dlogits_BLV, inputs["hidden_BLD"]))
    # Without a gradient another pass runs, with the same result.
    close(total_alone, total)
    close(loss_alone_BL, loss_BL)


def test_the_gradient_follows_what_the_sum_is_multiplied_with(inputs):
    def loss(hidden_BLD: jax.Array, factor: float) -> jax.Array:
        total, _ = objective.cross_entropy(
            hidden_BLD, inputs["head_VD"], inputs["target_BL"], inputs["weight_BL"], chunk=4
        )
        return factor * total

    gradient = jax.jit(jax.grad(loss))
    once, thrice = (gradient(inputs["hidden_BLD"], factor) for factor in (1.0, 3.0))
    np.testing.assert_allclose(thrice, 3 * np.asarray(once), rtol=1e-6)


def test_bfloat16_hidden_states_give_a_float32_loss_and_head_gradient(inputs):
    hidden_BLD = jnp.asarray(inputs["hidden_BLD"], jnp.bfloat16)

    def loss(hidden_BLD: jax.Array, head_VD: jax.Array) -> jax.Array:
        targets = inputs["target_BL"], inputs["weight_BL"]
        return objective.cross_entropy(hidden_BLD, head_VD, *targets, chunk=3)[0]

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    total, (dhidden_BLD, dhead_VD) = both(hidden_BLD, inputs["head_VD"])
    assert (total.dtype, dhead_VD.dtype) == (jnp.float32, jnp.float32)
    assert dhidden_BLD.dtype == jnp.bfloat16
    log_p_BLV = numpy_log_p(inputs["hidden_BLD"], inputs["head_VD"])
    plain_BL = -np.take_along_axis(log_p_BLV, inputs["target_BL"][..., None], -1)[..., 0]
    # Hidden states and head lose 2^-9 of each product's size each; logits reach about ten.
    np.testing.assert_allclose(total, np.sum(plain_BL * inputs["weight_BL"]), rtol=0.01)


def test_a_mean_in_bfloat16_scales_its_gradient_as_in_float32(inputs):
    hidden_BLD = jnp.asarray(inputs["hidden_BLD"], jnp.bfloat16)

    def loss(hidden_BLD: jax.Array, factor: jax.Array) -> jax.Array:
        head_VD, target_BL = inputs["head_VD"], inputs["target_BL"]
        return (
            factor * objective.cross_entropy(hidden_BLD, head_VD, target_BL, inputs["weight_BL"])[0]
        )

    gradient = jax.jit(jax.grad(loss))
    whole, third = (np.asarray(gradient(hidden_BLD, f), np.float64) for f in (1.0, 1 / 3))
    # Each value is rounded on its own, to either side; 1/3 rounded to bf16 is 0.2 % too large.
    assert abs(3 * (whole * third).sum() / (whole * whole).sum() - 1) < 5e-4


@pytest.mark.parametrize("which", ["loss", "gradient", "measure"])
def test_all_logits_never_exist_at_once(which):
    big_V, chunk = 50_000, 2
    shape = jax.ShapeDtypeStruct
    hidden_BLD, head_VD = shape((B, L, D), jnp.float32), shape((big_V, D), jnp.float32)
    target_BL, weight_BL = shape((B, L), jnp.int32), shape((B, L), jnp.float32)

    def loss(hidden_BLD, head_VD, target_BL, weight_BL):
        return objective.cross_entropy(hidden_BLD, head_VD, target_BL, weight_BL, chunk=chunk)[0]

    if which == "measure":
        function = functools.partial(objective.measure_predictions, chunk=chunk)
        args = (hidden_BLD, head_VD, target_BL, shape((B, big_V), jnp.bool_))
    else:
        function = jax.grad(loss, argnums=(0, 1)) if which == "gradient" else loss
        args = (hidden_BLD, head_VD, target_BL, weight_BL)
    memory = jax.jit(function).lower(*args).compile().memory_analysis()
    all_logits = 4 * B * L * big_V
    # The gradient keeps the logits of a chunk twice, and the head's gradient.
    assert memory.temp_size_in_bytes < all_logits - 4 * big_V * D


@pytest.fixture(scope="module")
def own_BV() -> np.ndarray:
    """Ids of the languages of three sequences, one of which shares the first five ids."""
    own_BV = np.zeros((B, V), bool)
    own_BV[0, :12], own_BV[1, 12:], own_BV[2, 15:], own_BV[2, :5] = True, True, True, True
    return own_BV


@pytest.mark.parametrize("chunk", CHUNKS)
def test_measurements_equal_those_of_whole_probabilities(inputs, own_BV, chunk):
    measure = jax.jit(functools.partial(objective.measure_predictions, chunk=chunk))
    args = inputs["hidden_BLD"], inputs["head_VD"], inputs["target_BL"]
    found = measure(*args, own_BV)

    p_BLV = np.exp(numpy_log_p(*args[:2]))
    target_BL = np.take_along_axis(p_BLV, args[2][..., None], -1)[..., 0]
    own_BL = np.sum(p_BLV * own_BV[:, None], axis=-1)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(found["loss"], -np.log(target_BL))
    close(found["language_nats"], -np.log(own_BL))
    close(found["loss_own"], -np.log(target_BL / own_BL))
    close(found["leak"], 1 - own_BL)
    np.testing.assert_array_equal(found["top1"], p_BLV.argmax(-1) == args[2])
    assert 0 < np.mean(found["top1"]) < 1


def test_the_loss_is_the_sum_of_telling_the_language_and_predicting_within_it(inputs, own_BV):
    found = jax.jit(objective.measure_predictions)(
        inputs["hidden_BLD"], inputs["head_VD"], inputs["target_BL"], own_BV
    )
    # A difference of logs of fp32 sums, rounded twice at a size of about ten.
    np.testing.assert_allclose(
        found["loss"], found["language_nats"] + found["loss_own"], rtol=1e-6, atol=2e-6
    )


def test_leak_is_a_share_even_where_logits_are_extreme(inputs, own_BV):
    measure = jax.jit(objective.measure_predictions)
    hidden_BLD = 100 * inputs["hidden_BLD"]
    leak_BL = np.asarray(
        measure(hidden_BLD, inputs["head_VD"], inputs["target_BL"], own_BV)["leak"]
    )
    assert np.all((leak_BL >= 0) & (leak_BL <= 1))
    assert leak_BL.min() < 1e-6 and leak_BL.max() > 1 - 1e-6  # so both ends were reached
