"""The transformer: its size, its value, its start, and what must not change any of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params

from imbalance_jax import config as config_lib
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import norms, objective, products, tuning
from imbalance_jax.compute.context import (
    NO_CONTEXT,
    Context,
    draw_dropout_keys,
    drop_out,
    fold_in_keys,
)
from imbalance_jax.config import ModelConfig, costs

# Every dimension has a size of its own, and H K = 12 is not D.
B, L, D, H, K, F, N, V = 5, 7, 10, 3, 4, 14, 2, 23
TINY = ModelConfig(L=L, D=D, H=H, K=K, F=F, N=N, attention="einsum")


# Jitted: one compilation takes less time than one for every operation.
logits = jax.jit(model_lib.compute_next_token_logits, static_argnums=1)


def ids(seed: int = 1, length: int = L) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (B, length)).astype(np.int32)


@pytest.fixture(scope="module")
def params() -> model_lib.Params:
    return random_params(TINY, V)


# Of 6 languages; two ids separate documents, one of them in one sequence only.
G = 6
LANGUAGES, SEPARATORS = (0, 5, 2, 5, 1), ((9, 9), (9, 9), (9, 9), (9, 8), (9, 9))


def ids_of_documents() -> np.ndarray:
    ids_BL = np.where(ids() == 9, 10, ids())
    ids_BL[0, 3] = ids_BL[1, 2] = ids_BL[1, 5] = ids_BL[2, 0] = ids_BL[3, 6] = 9
    ids_BL[3, 4] = ids_BL[4, 4] = 8
    return ids_BL


def numpy_logits(
    params: Mapping[str, Any],
    x_BL: np.ndarray,
    config: ModelConfig = TINY,
    kept: Callable[..., Any] = lambda *place: 1.0,
) -> np.ndarray:
    """The model as its specification writes it, in fp64, one sequence and one head at a time.

    What is there is used: a norm with a bias is a LayerNorm's, a gate makes a SwiGLU. `kept` is
    what dropout multiplies by: of the embedding kept(b), of a layer in a block kept(b, n, layer).
    """
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def scale(h_LK: np.ndarray, scale_K: np.ndarray) -> np.ndarray:
        return h_LK / np.sqrt((h_LK**2).mean(-1, keepdims=True) + 1e-5) * scale_K

    def norm(h_LD: np.ndarray, at: Mapping[str, np.ndarray]) -> np.ndarray:
        if config.settle("norm") == "rms":
            return scale(h_LD, at["scale_D"])
        h_LD = h_LD - h_LD.mean(-1, keepdims=True)
        return scale(h_LD, at["scale_D"]) + at.get("bias_D", 0)

    def rotate(h_LK: np.ndarray) -> np.ndarray:
        if config.settle("position") != "rope":
            return h_LK
        # As complex numbers: dimensions k and k + K/2 are the parts of one, which turns.
        low, high = np.split(h_LK, 2, axis=-1)
        rate = config.rope_theta ** (-2 * np.arange(K // 2) / K)
        turned = (low + 1j * high) * np.exp(1j * np.arange(len(h_LK))[:, None] * rate)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def attend(h_LD: np.ndarray, at: Mapping[str, np.ndarray]) -> np.ndarray:
        begins_L = np.zeros(len(h_LD), int)
        if config.documents == "apart":
            for t in range(len(h_LD)):
                opens = [s for s in range(t + 1) if x_L[s] in SEPARATORS[b]]  # noqa: B023
                begins_L[t] = max(opens, default=0)
        out_LD = np.zeros_like(h_LD) + at.get("b_o_D", 0)
        heads = "JK" if "w_k_DJK" in at else "HK"
        for n in range(H):
            j = n * config.count_kv_heads() // H

            def project(name: str, dims: str, head: int) -> np.ndarray:
                bias = at[f"b_{name}_{dims}"][head] if f"b_{name}_{dims}" in at else 0  # noqa: B023
                return h_LD @ at[f"w_{name}_D{dims}"][:, head] + bias

            q, k, v = project("q", "HK", n), project("k", heads, j), project("v", heads, j)
            if "q_scale_K" in at:
                q, k = scale(q, at["q_scale_K"]), scale(k, at["k_scale_K"])
            q, k = rotate(q), rotate(k)
            for t in range(len(h_LD)):
                seen = slice(begins_L[t], t + 1)
                score = np.exp(k[seen] @ q[t] * np.sqrt(config.base_head_width or K) / K)
                out_LD[t] += (score / score.sum()) @ v[seen] @ at["w_o_HKD"][n]
        return out_LD

    def feed(h_LD: np.ndarray, at: Mapping[str, np.ndarray]) -> np.ndarray:
        u = h_LD @ at["w_up_DF"] + at.get("b_up_F", 0)
        if "w_gate_DF" in at:
            gate = h_LD @ at["w_gate_DF"] + at.get("b_gate_F", 0)
            u = u * gate / (1 + np.exp(-gate))
        else:
            u = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        return u @ at["w_down_FD"] + at.get("b_down_D", 0)

    def around(layer: Callable[..., np.ndarray], part: str, number: int, h: np.ndarray) -> Any:
        inside = norm(h, block[f"norm_{number}"]) if f"norm_{number}" in block else h
        out = layer(inside, block[part])
        after = f"norm_after_{number}"
        out = norm(out, block[after]) if after in block else out
        return h + out * kept(b, n, number)

    logits_BLV = []
    for b, x_L in enumerate(x_BL):
        h = p["embed_VD"][x_L]
        if config.settle("embed_scale") == "sqrt":
            h = h * np.sqrt(config.base_width or D)
        if "position_GLD" in p:
            h = h + p["position_GLD"][LANGUAGES[b], : len(x_L)]
        elif config.settle("position") == "learned":
            h = h + p["position_LD"][: len(x_L)]
        h = h * kept(b)
        for n in range(N):
            block = jax.tree.map(lambda leaf: leaf[n], p["blocks"])  # noqa: B023
            h = around(attend, "attention", 1, h)
            h = around(feed, "feed_forward", 2, h)
        head_VD = p.get("head_VD", p["embed_VD"])
        logits_BLV.append(norm(h, p["final_norm"]) @ head_VD.T * (config.base_width or D) / D)
    return np.stack(logits_BLV)


@pytest.mark.parametrize(
    ("vocab_size", "mini", "small", "medium"),
    [
        (16_384, 27_549_696, 110_615_040, 336_390_144),
        (29_040, 40_509_440, 130_054_656, 362_309_632),
        (32_768, 44_326_912, 135_780_864, 369_944_576),
        (163_840, 178_544_640, 337_107_456, 638_380_032),
    ],
)
def test_the_reference_sizes_have_the_reference_parameter_counts(vocab_size, mini, small, medium):
    def count(scale: str) -> int:
        config = config_lib.resolve_config(config_lib.cloned(scale=scale, ratio="9:1"))
        return model_lib.count_parameters(config.model, vocab_size)

    assert (count("mini"), count("small"), count("medium")) == (mini, small, medium)


def test_logits_are_those_of_an_independent_numpy_model(params):
    found = logits(params, TINY, ids())
    assert found.dtype == jnp.float32
    # fp32 against fp64, on logits of up to about ten.
    np.testing.assert_allclose(found, numpy_logits(params, ids()), atol=1e-4)


# Every value of every dial, a few in each model; of H = 3 heads only 1 is a divisor.
DIALS: Mapping[str, Mapping[str, Any]] = {
    "rope": {"position": "rope", "rope_theta": 20.0, "bias": "off", "norm_place": "after"},
    "no positions": {"position": "none", "norm": "rms", "kv_heads": 1, "embed_scale": "none"},
    "swiglu": {"feed_forward": "swiglu", "norm_place": "both", "base_width": 4},
    "llama": {"preset": "llama"},
    "modern": {
        **{"preset": "modern", "kv_heads": 1, "norm_place": "both", "tied": True},
        **{"base_width": 4, "base_head_width": 2},
    },
    "languages": {"documents": "apart", "position_tables": "per_language"},
    "dropout": {"dropout": 0.4, "norm_place": "both"},
}


def make_masks(keys_B: np.ndarray, rate: float) -> Callable[..., np.ndarray]:
    """Returns what dropout multiplies by, from its keys: of layers 1 and 2 of block n, fold n."""
    ones_BLD = jnp.ones((B, L, D))
    embedding = drop_out(ones_BLD, rate, fold_in_keys(keys_B, N))
    layers = {
        (n, layer): drop_out(ones_BLD, rate, fold_in_keys(fold_in_keys(keys_B, n), layer))
        for n in range(N)
        for layer in (1, 2)
    }
    masks = {place: np.asarray(mask, np.float64) for place, mask in layers.items()}
    masks[()] = np.asarray(embedding, np.float64)
    # No two are alike, and none is all that is kept.
    assert len({mask.tobytes() for mask in masks.values()}) == 2 * N + 1
    for mask in masks.values():
        np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-6)
        assert abs((mask == 0).mean() - rate) < 0.1
    return lambda b, *place: masks[place][b]


@pytest.mark.parametrize("dials", DIALS.values(), ids=list(DIALS))
def test_every_dial_is_what_an_independent_numpy_model_has(dials):
    config = dataclasses.replace(TINY, **dials)
    params = random_params(config, V, languages=G)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == costs.compute_parameter_count(config, V, G)
    ids_BL, key_B = ids_of_documents(), draw_dropout_keys(1, 2, B) if config.dropout else None
    context = Context(np.array(LANGUAGES), np.array(SEPARATORS), key_B)
    kept = make_masks(key_B, config.dropout) if config.dropout else lambda *place: 1.0

    @functools.partial(jax.jit, static_argnums=1)
    def run(params: model_lib.Params, config: ModelConfig) -> tuple[jax.Array, Any]:
        def loss(params: model_lib.Params) -> tuple[jax.Array, jax.Array]:
            found = model_lib.compute_next_token_logits(params, config, ids_BL, context)
            return jnp.sum(jnp.sin(found)), found

        (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return found, gradient

    found, gradient = run(params, config)
    np.testing.assert_allclose(found, numpy_logits(params, ids_BL, config, kept), atol=2e-4)
    # The slope of the NumPy model along the gradient, and along a random direction.
    rng = np.random.default_rng(5)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    random = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), wide)
    for direction in (jax.tree.map(np.asarray, gradient), random):
        size = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(direction)))
        above, below = (
            np.sin(
                numpy_logits(
                    jax.tree.map(lambda p, d: p + step * d / size, wide, direction),  # noqa: B023
                    ids_BL,
                    config,
                    kept,
                )
            ).sum()
            for step in (1e-5, -1e-5)
        )
        along = sum(
            (np.asarray(g, np.float64) * d).sum()
            for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        np.testing.assert_allclose((above - below) / 2e-5, along / size, rtol=2e-3, atol=2e-3)
    # With dropout, what is computed again has the same masks.
    other = {"scan_layers": False, "attention": "blockwise"}
    other |= {"remat": "full"} if config.dropout else {}
    unrolled = run(params, dataclasses.replace(config, **other))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
        unrolled,
        (found, gradient),
    )


@pytest.mark.parametrize("name", ["rope", "modern"])
def test_with_dials_a_token_leaves_earlier_logits_bit_equal(name):
    config = dataclasses.replace(TINY, **DIALS[name])
    params, before = random_params(config, V), ids()
    after = before.copy()
    after[:, 4] = (after[:, 4] + 1) % V
    old, new = (np.asarray(logits(params, config, x)) for x in (before, after))
    np.testing.assert_array_equal(old[:, :4], new[:, :4])
    assert np.all(np.any(old[:, 4:] != new[:, 4:], axis=-1))


def test_a_document_is_predicted_from_its_separator_as_if_nothing_stood_before_it():
    config = dataclasses.replace(TINY, documents="apart")
    params, before = random_params(config, V), ids_of_documents()
    after = before.copy()
    after[:2, 1] = 10 + (after[:2, 1] + 1) % 10
    context = Context(separator_BS=np.array(SEPARATORS))
    old, new = (np.asarray(logits(params, config, x, context)) for x in (before, after))
    for b, separator in ((0, 3), (1, 2)):
        assert np.all(np.any(old[b, 1:separator] != new[b, 1:separator], axis=-1))
        np.testing.assert_array_equal(old[b, separator:], new[b, separator:])


@pytest.mark.parametrize(
    ("dials", "needed"),
    [
        ({"documents": "apart"}, "documents=apart cuts sequences at separators"),
        ({"position_tables": "per_language"}, "per_language needs the language of each sequence"),
    ],
)
def test_what_a_model_reads_besides_ids_must_be_given(params, dials, needed):
    with pytest.raises(ValueError, match=needed):
        model_lib.compute_last_hidden_state(
            params, dataclasses.replace(TINY, **dials), ids(), NO_CONTEXT
        )


@pytest.mark.parametrize(
    ("sizes", "vocab_size", "count"),
    [
        # As published: the released checkpoints of GPT-2, Llama 2 7B and TinyLlama 1.1B.
        ({"L": 1024, "tied": True}, 50_257, 124_439_808),
        (
            {"preset": "llama", "L": 4096, "D": 4096, "H": 32, "K": 128, "F": 11_008, "N": 32},
            32_000,
            6_738_415_616,
        ),
        (
            {"preset": "llama", "L": 2048, "D": 2048, "H": 32, "F": 5632, "N": 22, "kv_heads": 4},
            32_000,
            1_100_048_384,
        ),
    ],
)
def test_presets_have_the_parameters_of_published_models(sizes, vocab_size, count):
    config = ModelConfig(**sizes)
    assert model_lib.count_parameters(config, vocab_size) == count
    assert costs.compute_parameter_count(config, vocab_size) == count


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"kv_heads": 2}, "kv_heads=2 does not divide config.model.H=3"),
        ({"preset": "llama", "K": 5}, "K=5 is odd"),
        ({"position": "none", "position_tables": "per_language"}, "Set config.model.position=lear"),
        ({"dropout": 1.0}, "dropout=1.0 leaves next to nothing .* Set it to 0.99 or less"),
        ({"base_head_width": 2}, r"base_width=0 turns it off\. Set config\.model\.base_width"),
    ],
)
def test_dials_that_contradict_each_other_are_refused(dials, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **dials)


def test_sequences_shorter_than_the_model_use_its_first_positions(params):
    found = logits(params, TINY, ids(length=L - 3))
    np.testing.assert_allclose(found, numpy_logits(params, ids(length=L - 3)), atol=1e-4)


def test_sequences_longer_than_the_model_are_refused(params):
    with pytest.raises(ValueError, match=rf"Sequences of {L + 1} exceed config\.model\.L={L}"):
        model_lib.compute_last_hidden_state(params, TINY, ids(length=L + 1))


@pytest.fixture(scope="module")
def start() -> model_lib.Params:
    """Wide enough to tell 0.02 from 0.02 / sqrt(2 N) in every matrix, each by itself."""
    config = ModelConfig(L=60, D=64, H=6, K=16, F=80, N=3)
    return jax.jit(model_lib.init_params, static_argnums=(0, 1))(config, 500, jax.random.key(3))


def test_parameters_start_with_the_reference_spreads(start):
    stds = {
        "embed_VD": 0.02,
        "position_LD": 0.02,
        "head_VD": 0.02,
        "w_q_DHK": 0.02,
        "w_k_DHK": 0.02,
        "w_v_DHK": 0.02,
        "w_o_HKD": 0.02,
        "w_up_DF": 0.02,
        "w_down_FD": 0.02 / np.sqrt(2 * 3),
    }
    seen = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(start):
        name = path[-1].key
        seen.add(name)
        if name in stds:
            # A sample of n numbers has a relative error of 1 / sqrt(2 n); five of those.
            tolerance = 5 / np.sqrt(2 * leaf.size)
            np.testing.assert_allclose(np.std(leaf), stds[name], rtol=tolerance)
            assert abs(np.mean(leaf)) < 5 * stds[name] / np.sqrt(leaf.size)
        else:
            assert np.all(np.asarray(leaf) == (1 if name == "scale_D" else 0)), name
    assert set(stds) < seen


def test_blocks_and_matrices_start_from_different_draws(start):
    attention = start["blocks"]["attention"]
    assert not np.array_equal(attention["w_q_DHK"][0], attention["w_q_DHK"][1])
    assert not np.array_equal(attention["w_q_DHK"], attention["w_k_DHK"])
    assert not np.array_equal(start["embed_VD"], start["head_VD"])


@pytest.mark.parametrize("path", ["einsum", "blockwise", "fused"])
def test_changing_a_token_leaves_earlier_logits_bit_equal(path):
    # Three blocks of 16 queries, where the path has blocks; the third holds position 33.
    length, changed = 48, 33
    config = dataclasses.replace(TINY, L=length, attention=path)
    before = ids(length=length)
    after = before.copy()
    after[:, changed] = (after[:, changed] + 1) % V
    params = random_params(config, V)
    old, new = (np.asarray(logits(params, config, x)) for x in (before, after))
    np.testing.assert_array_equal(old[:, :changed], new[:, :changed])
    assert np.all(np.any(old[:, changed:] != new[:, changed:], axis=-1))


def test_scanned_unrolled_and_rematerialised_blocks_agree_in_value_and_gradient(params):
    def loss(params: model_lib.Params, config: ModelConfig) -> jax.Array:
        found = jax.nn.log_softmax(logits(params, config, ids()))
        return -found[..., 5].mean()

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, gradient = run(params, dataclasses.replace(TINY, scan_layers=True))
    for change in (
        {"scan_layers": False},
        {"scan_layers": True, "remat": "dots"},
        {"scan_layers": False, "remat": "full"},
    ):
        other_value, other_gradient = run(params, dataclasses.replace(TINY, **change))
        # The same sums, which XLA may fuse and so round otherwise.
        np.testing.assert_allclose(other_value, value, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            other_gradient,
            gradient,
        )


def test_rematerialisation_saves_fewer_arrays_for_the_backward_pass(params):
    def saved(remat: str) -> int:
        config = dataclasses.replace(TINY, remat=remat)
        backward = jax.eval_shape(
            lambda p: jax.vjp(lambda p: model_lib.compute_last_hidden_state(p, config, ids()), p)[
                1
            ],
            params,
        )
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert saved("full") < saved("dots") < saved("none")


@pytest.mark.parametrize(("remat", "times"), [("none", 1), ("dots", 1), ("full", 2)])
def test_cudnn_attention_runs_again_in_the_backward_pass_only_to_keep_nothing(
    remat, times, monkeypatch
):
    # Tracing asks for the version of cuDNN and the device; nothing is compiled.
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    changes = {"L": 64, "K": 8, "dtype": "bfloat16", "attention": "cudnn", "scan_layers": True}
    config = dataclasses.replace(TINY, remat=remat, **changes)
    params = jax.eval_shape(lambda: random_params(config, V))

    def total(params: model_lib.Params) -> jax.Array:
        hidden_BLD = model_lib.compute_last_hidden_state(params, config, ids(length=64))
        return jnp.sum(hidden_BLD.astype(jnp.float32))

    traced = str(jax.make_jaxpr(jax.grad(total))(params))
    assert traced.count("= dot_product_attention_fwd") == times
    assert traced.count("= dot_product_attention_bwd") == 1


def test_a_tied_head_is_the_input_embedding():
    config = dataclasses.replace(TINY, tied=True)
    params = random_params(config, V)
    assert "head_VD" not in params
    assert model_lib.get_output_embeddings(params, TINY) is params["embed_VD"]
    assert model_lib.count_parameters(TINY, V) - model_lib.count_parameters(config, V) == V * D
    found = logits(params, config, ids())
    np.testing.assert_allclose(found, numpy_logits(params, ids()), atol=1e-4)


def test_an_untied_head_is_a_table_of_its_own(params):
    assert model_lib.get_output_embeddings(params, TINY) is params["head_VD"]


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters(params):
    config = dataclasses.replace(TINY, dtype="bfloat16")
    key = jax.random.key(0)
    started = jax.eval_shape(lambda key: model_lib.init_params(config, V, key), key)
    assert {leaf.dtype for leaf in jax.tree.leaves(started)} == {jnp.dtype("float32")}

    def mean(params: model_lib.Params, config: ModelConfig) -> jax.Array:
        return jnp.mean(jnp.square(logits(params, config, ids())))

    gradient = jax.eval_shape(lambda p: jax.grad(mean)(p, config), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    hidden_BLD = jax.eval_shape(
        lambda p: model_lib.compute_last_hidden_state(p, config, ids()), params
    )
    assert hidden_BLD.dtype == jnp.bfloat16
    half = np.asarray(logits(params, config, ids()))
    full = np.asarray(logits(params, TINY, ids()))
    # bf16 keeps 8 bits, an error of up to 2^-9 = 0.002 per rounding. About ten roundings lie
    # on the way through two blocks, of which errors add up as a root: 1 % of the logits' size.
    error = np.sqrt(np.mean((half - full) ** 2) / np.mean(full**2))
    assert 1e-4 < error < 0.02


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields all equations of a program, also those inside of loops and functions."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@pytest.mark.parametrize("path", ["einsum", "blockwise", "fused"])
def test_no_gradient_is_summed_over_the_batch_in_bfloat16(params, path, monkeypatch):
    # As accelerators have it: on a CPU no product has a bf16 result at all.
    monkeypatch.setattr(tuning, "is_traced_for_cpu", lambda: False)
    config = dataclasses.replace(TINY, dtype="bfloat16", attention=path)

    def loss(params: model_lib.Params) -> jax.Array:
        hidden_BLD = model_lib.compute_last_hidden_state(params, config, ids())
        head_VD, weight_BL = model_lib.get_output_embeddings(params, config), jnp.ones((B, L))
        return objective.cross_entropy(hidden_BLD, head_VD, ids(), weight_BL, chunk=L)[0]

    summing = ("reduce_sum", "dot_general", "cumsum", "scatter-add")
    kept = [
        equation.outvars[0].aval.shape
        for equation in equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
        if equation.primitive.name in summing and equation.outvars[0].aval.dtype == jnp.bfloat16
    ]
    # Activations and their gradients; the sums over sequences have no B.
    assert len(kept) > 10 and all(B in shape for shape in kept), kept


def test_gradients_of_one_sign_over_65536_positions_are_those_of_float64():
    rng = np.random.default_rng(0)
    rows, length, width = 256, 256, 3
    x_BLD, dy_BLD, state_BLD = (
        jnp.asarray(rng.uniform(0, 1, (rows, length, width)), jnp.bfloat16) for _ in range(3)
    )
    weight_DF, scale_D, bias_D = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((width, 3), 3, 3)
    )
    x, dy, state = (np.asarray(x, np.float64) for x in (x_BLD, dy_BLD, state_BLD))
    normal = (state - state.mean(-1, keepdims=True)) / np.sqrt(state.var(-1, keepdims=True) + 1e-5)
    by_id, ids_BL = np.zeros((V, width)), rng.integers(0, V, (rows, length))
    np.add.at(by_id, ids_BL, dy * width**0.5)

    def embed(table_VD: jax.Array, position_LD: jax.Array) -> jax.Array:
        config = dataclasses.replace(TINY, L=length, D=width, dtype="bfloat16")
        tables = {"embed_VD": table_VD, "position_LD": position_LD}
        params = random_params(config, V) | tables
        return model_lib._build_model(params, config).embed(ids_BL)

    @jax.jit
    def gradients() -> list[jax.Array]:
        def pull(function: Any, *args: jax.Array) -> Any:
            return jax.vjp(function, *args)[1](dy_BLD)

        table_VD, position_LD = jnp.zeros((V, width)), jnp.zeros((length, width))
        multiply = functools.partial(products.multiply_weight, "BLD,DF->BLF", x_BLD)
        normalise = functools.partial(norms.layer_norm, state_BLD)
        return [
            *pull(functools.partial(products.add_bias, x_BLD), bias_D[None, None]),
            *pull(multiply, weight_DF),
            *pull(normalise, scale_D, bias_D),
            *pull(embed, table_VD, position_LD),
        ]

    expected = [
        dy.sum(axis=(0, 1), keepdims=True),
        np.einsum("BLD,BLF->DF", x, dy),
        (dy * normal).sum(axis=(0, 1)),
        dy.sum(axis=(0, 1)),
        by_id,
        dy.sum(axis=0),
    ]
    for found, exact in zip(gradients(), expected, strict=True):
        assert found.dtype == jnp.float32
        # fp32 sums of up to 65,536 terms; bf16 ones come out a fifth too small.
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_norm_has_the_gradient_that_jax_derives(dtype):
    rng = np.random.default_rng(0)
    x_BLD = jnp.asarray(3 * rng.standard_normal((2, 3, 5)) + 1, dtype)
    scale_D, bias_D, dy_BLD = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (5, 5, (2, 3, 5))
    )

    def plain(x_BLD: jax.Array, scale_D: jax.Array, bias_D: jax.Array) -> jax.Array:
        x = x_BLD.astype(jnp.float32)
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return (x * scale_D[None, None] + bias_D[None, None]).astype(x_BLD.dtype)

    def run(function) -> tuple[jax.Array, ...]:
        value, pull = jax.vjp(function, x_BLD, scale_D, bias_D)
        return value, *pull(dy_BLD.astype(dtype))

    ours, theirs = (jax.jit(run, static_argnums=0)(f) for f in (norms.layer_norm, plain))
    # bf16: one rounding at the end, where both may round the other way.
    rtol, atol = (1e-5, 1e-6) if dtype == "float32" else (2**-7, 2**-8)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_layer_norm_has_the_gradient_of_finite_differences():
    rng = np.random.default_rng(1)
    args = tuple(rng.standard_normal(shape) for shape in ((2, 3, 5), 5, 5))
    dy_BLD = rng.standard_normal((2, 3, 5))

    def dot(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> float:
        normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return float(np.sum(dy_BLD * (normal * scale + bias)))

    _, pull = jax.vjp(norms.layer_norm, *(jnp.asarray(a, jnp.float32) for a in args))
    for which, gradient in enumerate(pull(jnp.asarray(dy_BLD, jnp.float32))):
        for place in np.ndindex(args[which].shape):
            step = np.zeros_like(args[which])
            step[place] = 1e-5
            above = [a + step if n == which else a for n, a in enumerate(args)]
            below = [a - step if n == which else a for n, a in enumerate(args)]
            slope = (dot(*above) - dot(*below)) / 2e-5
            # fp32 against fp64 differences.
            np.testing.assert_allclose(gradient[place], slope, rtol=1e-4, atol=1e-5)


def test_flops_are_counted_by_hand():
    config = ModelConfig(L=7, D=10, H=3, K=4, F=14, N=2)
    q_k_v_o = 4 * 10 * 12
    up_down = 2 * 10 * 14
    weights = 2 * (q_k_v_o + up_down) + 10 * 23
    # Scores and mixtures: 2 products of 12 x 7 multiply-adds for a token that sees all 7
    # positions; half of that is masked; 2 FLOPs each, and twice as much backward.
    attention = 2 * (2 * 12 * 7) // 2 * 2 * 3
    assert costs.compute_flops_per_token(config, 23) == 6 * weights + attention
    modern = dataclasses.replace(config, preset="modern", kv_heads=1)
    weights = 2 * (2 * 10 * 12 + 2 * 10 * 4 + 3 * 10 * 14) + 10 * 23
    assert costs.compute_flops_per_token(modern, 23) == 6 * weights + attention
