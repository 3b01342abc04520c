"""One update: its learning rate, its Adam, its counts, and the devices that must not matter."""

import dataclasses
import functools
import pathlib
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from imbalance_jax import config as config_lib
from imbalance_jax.compute import optimizer, sharding
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.context import draw_dropout_keys
from imbalance_jax.config import Config, OptimizerConfig
from imbalance_jax.data.languages import Vocabulary

# Every dimension has a size of its own; D, F, H and V can be cut in two. H K = 28 is not D.
B, L, D, H, K, F, N, G, U = 8, 12, 18, 4, 7, 22, 3, 2, 21
V = G * U
STEPS = 5
MESHES = {"one": (1, {}), "eight": (8, {}), "2x2x2": (8, {"fsdp": 2, "tensor": 2})}


def make_config(**changes: Any) -> Config:
    model = {f"model__{name}": value for name, value in {"L": L, "D": D, "H": H, "K": K}.items()}
    model |= {"model__F": F, "model__N": N, "batch_size": B, "steps": 50}
    model |= {"model__scan_layers": True}  # which compiles sooner
    return helpers.tiny_config(pathlib.Path("unused"), **model | changes)


# Adam divides a gradient by its size, so one that is zero in exact arithmetic, such as that of
# the keys' bias, moves its parameter by rounding noise. This eps lies far above such noise.
CONFIG = make_config(optimizer__eps=1e-4)


def make_mesh(name: str) -> Mesh:
    devices, sizes = MESHES[name]
    return sharding.make_mesh(config_lib.MeshConfig(**sizes), jax.devices()[:devices])


def map_GU() -> np.ndarray:
    ids_GU = np.arange(V, dtype=np.int32).reshape(G, U)
    ids_GU[:, 0] = 0
    return ids_GU


def host_batch(step: int) -> step_lib.Batch:
    rng = np.random.default_rng(step)
    language_B = np.array([0, 0, 1, 0, 0, 1, 0, 0], np.int32)
    return step_lib.Batch(rng.integers(0, U, (B, L + 1)).astype(np.uint16), language_B)


@dataclasses.dataclass(frozen=True)
class Run:
    """A few steps on one mesh."""

    start: step_lib.TrainState  # donated to the first step
    start_values: Any  # the whole state in NumPy
    state: step_lib.TrainState
    metrics: list[dict[str, np.ndarray]]
    jitted: jax.stages.Wrapped
    after_one: Any


def label_batch(config: Config, batch: step_lib.Batch, step: int) -> step_lib.Batch:
    """Returns a batch with what the dials of a config read of it besides."""
    model, vocabulary = config.model, Vocabulary((), V, map_GU(), np.eye(2), np.array([3, U + 5]))
    labelled = step_lib.label_windows(model, vocabulary, batch.ids_BW, batch.language_B)
    key_B = draw_dropout_keys(config.seed, step, B) if model.dropout else None
    weight_B = step_lib.weigh_losses(config, batch.language_B)
    return dataclasses.replace(labelled, weight_B=weight_B, key_B=key_B)


def run_steps(config: Config, mesh: Mesh, steps: int = STEPS, like: Any = None) -> Run:
    """Args: like is the first state's values, if they are not to be drawn again."""
    if like is None:
        start = step_lib.init_state(config, V, mesh)
        like = jax.tree.map(np.array, start)
    shardings = sharding.make_state_shardings(mesh, like)
    state = start = jax.device_put(like, shardings, may_alias=False)
    jitted = step_lib.jit_step(config, config.steps, mesh, state)
    found, after_one = [], None
    for n in range(steps):
        batch = label_batch(config, host_batch(n), n)
        batch = jax.device_put(batch, sharding.make_batch_sharding(mesh))
        state, metrics = jitted(
            state, batch, jax.device_put(map_GU(), sharding.make_replicated_sharding(mesh))
        )
        found.append(jax.device_get(metrics))
        if n == 0:
            after_one = jax.tree.map(np.array, state)
    return Run(start, like, state, found, jitted, after_one)


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    one = run_steps(CONFIG, make_mesh("one"))
    eight = run_steps(CONFIG, make_mesh("eight"), like=one.start_values)
    return {"one": one, "eight": eight, "2x2x2": run_steps(CONFIG, make_mesh("2x2x2"))}


# The learning rate.


def test_the_learning_rate_is_the_references_at_its_first_200th_and_last_update():
    config = OptimizerConfig(peak_lr=6e-4, final_lr=6e-6, warmup=200.0)
    steps = 18_265
    rate = step_lib.learning_rate(config, steps)
    assert float(rate(0)) == pytest.approx(3.0e-6, rel=1e-3)
    assert float(rate(199)) == pytest.approx(5.998e-4, rel=1e-4)
    assert float(rate(steps - 1)) == pytest.approx(6e-6, rel=1e-4)
    for t in (1, 37, 199, 200, 201, 5000, 18_000, steps):
        cosine = 6e-6 + 0.5 * (1 + np.cos(np.pi * t / steps)) * (6e-4 - 6e-6)
        # fp32: a cosine near -1 keeps 1e-7 of the peak, which is 1e-5 of the final rate.
        assert float(rate(t - 1)) == pytest.approx(min(t, 200) / 200 * cosine, rel=2e-5)


def test_a_fractional_warmup_is_a_share_of_all_updates():
    config = OptimizerConfig(schedule="constant", peak_lr=2e-3, warmup=0.1)
    rate = step_lib.learning_rate(config, 300)
    for t, share in ((1, 1 / 30), (15, 0.5), (29, 29 / 30), (30, 1), (31, 1), (300, 1)):
        assert float(rate(t - 1)) == pytest.approx(share * 2e-3, rel=1e-5)


@pytest.mark.parametrize("warmup", [0.0, 0.001, 1.0])
def test_without_a_warmup_the_first_update_has_the_whole_rate(warmup):
    config = OptimizerConfig(schedule="constant", peak_lr=2e-3, warmup=warmup)
    assert float(step_lib.learning_rate(config, 300)(0)) == pytest.approx(2e-3, rel=1e-6)


def test_warmup_stable_decay_rises_stays_and_falls_to_the_final_rate():
    config = OptimizerConfig(
        schedule="warmup_stable_decay", peak_lr=1e-2, final_lr=1e-3, warmup=10.0, decay=0.2
    )
    rate = step_lib.learning_rate(config, 100)
    expected = {1: 1e-3, 5: 5e-3, 10: 1e-2, 50: 1e-2, 80: 1e-2, 90: 5.5e-3, 99: 1.45e-3, 100: 1e-3}
    for t, value in expected.items():
        assert float(rate(t - 1)) == pytest.approx(value, rel=1e-5)


# The optimizer.


def small_params() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"embed_VD": (5, 3), "position_LD": (4, 3), "w_up_DF": (3, 2)}
    shapes |= {"b_up_F": (2,), "b_q_HK": (2, 4), "scale_D": (3,), "bias_D": (3,)}
    return {name: np.float32(rng.standard_normal(shape)) for name, shape in shapes.items()}


def gradients(size: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {n: np.float32(size * rng.standard_normal(p.shape)) for n, p in small_params().items()}


def optimize(config: OptimizerConfig, grads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the parameters after each gradient."""

    def both(params: Any, grads: list[Any]) -> list[Any]:
        tx, found = optimizer.build_optimizer(config, steps=40), []
        state = tx.init(params)
        for grad in grads:
            updates, state = tx.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            found.append(params)
        return found

    return jax.jit(both)(small_params(), grads)


def numpy_adam(grads: list[dict[str, Any]], rates: list[float]) -> list[dict[str, Any]]:
    params, found = {n: np.float64(p) for n, p in small_params().items()}, []
    m = {n: 0.0 for n in params}
    v = dict(m)
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        m = {n: 0.9 * m[n] + 0.1 * np.float64(grad[n]) for n in params}
        v = {n: 0.95 * v[n] + 0.05 * np.float64(grad[n]) ** 2 for n in params}
        for n in params:
            m_hat, v_hat = m[n] / (1 - 0.9**t), v[n] / (1 - 0.95**t)
            params[n] = params[n] - rate * m_hat / (np.sqrt(v_hat) + 1e-8)
        found.append(dict(params))
    return found


def assert_all_close(ours: Any, theirs: Any, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


# Large enough that an update is far from rounding in the parameters.
FLAT = OptimizerConfig(schedule="constant", peak_lr=0.1, warmup=0.0)


# Gradients as small as eps would show an eps inside the root, or a forgotten bias correction.
@pytest.mark.parametrize("size", [1.0, 1e-8])
def test_two_updates_are_those_of_adam_in_numpy(size):
    config = dataclasses.replace(FLAT, warmup=2.0)
    grads = [gradients(size, seed=1), gradients(size, seed=2)]
    # fp32 parameters of size one.
    assert_all_close(optimize(config, grads), numpy_adam(grads, [0.05, 0.1]), rtol=1e-5, atol=1e-6)


def test_the_default_optimizer_is_the_references_adam():
    config = OptimizerConfig()
    assert (config.b1, config.b2, config.eps) == (0.9, 0.95, 1e-8)
    assert (config.weight_decay, config.clip_norm) == (0.0, 0.0)
    assert (config.peak_lr, config.final_lr, config.schedule) == (6e-4, 6e-6, "cosine")


def test_weight_decay_shrinks_matrices_and_embeddings_only():
    grads = [gradients(1.0, seed=1)]
    plain, decayed = (
        optimize(dataclasses.replace(FLAT, weight_decay=decay), grads)[0] for decay in (0.0, 0.5)
    )
    for name, start in small_params().items():
        matrix = name in ("embed_VD", "position_LD", "w_up_DF")
        shrunk = 0.1 * 0.5 * start if matrix else 0 * start
        np.testing.assert_allclose(plain[name] - decayed[name], shrunk, atol=1e-6)


def test_the_norm_of_all_gradients_together_is_clipped():
    # One gradient above the limit, one below, which stays as it is.
    grads = [gradients(1.0, seed=1), gradients(0.01, seed=2)]
    norms = [np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in grad.values())) for grad in grads]
    assert norms[0] > 0.5 > norms[1]
    clipped = [{n: g * np.float32(0.5 / norms[0]) for n, g in grads[0].items()}, grads[1]]
    found = optimize(dataclasses.replace(FLAT, clip_norm=0.5), grads)
    assert_all_close(found, numpy_adam(clipped, [0.1, 0.1]), rtol=1e-5, atol=1e-6)


# The step.


def test_the_update_count_and_learning_rate_go_on_with_the_state(runs):
    run = runs["one"]
    assert int(run.state.step) == STEPS
    rate = step_lib.learning_rate(CONFIG.optimizer, CONFIG.steps)
    # A constant of the compiled step, and the same formula by itself: the cosine's last bit.
    found = [m["learning_rate"] for m in run.metrics]
    np.testing.assert_allclose(found, [rate(n) for n in range(STEPS)], rtol=1e-6)


def test_losses_and_tokens_per_language_sum_to_those_of_the_batch(runs):
    for metrics in runs["one"].metrics:
        np.testing.assert_array_equal(metrics["tokens_G"], [6 * L, 2 * L])
        # Both are sums of B L losses in fp32, in another order.
        np.testing.assert_allclose(metrics["loss_G"].sum() / (B * L), metrics["loss"], rtol=1e-5)
    # At its start a model knows nothing: every language costs about ln V.
    first = runs["one"].metrics[0]
    np.testing.assert_allclose(first["loss_G"] / first["tokens_G"], np.log(V), rtol=0.02)


def test_sequences_are_counted_where_they_are_trained(runs):
    for n, metrics in enumerate(runs["2x2x2"].metrics, start=1):
        np.testing.assert_array_equal(metrics["trained_G"], [6 * n, 2 * n])
    np.testing.assert_array_equal(runs["2x2x2"].state.sequences_G, [6 * STEPS, 2 * STEPS])


def test_only_ids_of_the_batchs_languages_are_embedded(runs):
    # Adam's second moment is zero exactly where there never was a gradient. The head's rows all
    # have one, of the input's those that were read.
    _, second = moments(runs["one"].state)
    read = {int(i) for n in range(STEPS) for i in ids_of(host_batch(n))[:, :-1].ravel()}
    touched = np.flatnonzero(np.any(np.asarray(second["embed_VD"]) > 0, axis=1))
    assert set(touched.tolist()) == read
    assert np.all(np.any(np.asarray(second["head_VD"]) > 0, axis=1))


def ids_of(batch: step_lib.Batch) -> np.ndarray:
    return np.asarray(step_lib.map_to_model_ids(batch, jnp.asarray(map_GU())))


def moments(state: step_lib.TrainState) -> tuple[Any, Any]:
    adam = next(s for s in state.opt_state if isinstance(s, optax.ScaleByAdamState))
    return adam.mu, adam.nu


def test_base_ids_are_mapped_by_their_rows_language():
    batch = host_batch(0)
    found = ids_of(batch)
    for row, language in enumerate(batch.language_B):
        shifted = batch.ids_BW[row].astype(int) + U * language
        np.testing.assert_array_equal(found[row], np.where(batch.ids_BW[row] == 0, 0, shifted))


def test_accumulated_gradients_are_those_of_the_whole_batch(runs):
    config = make_config(optimizer__eps=1e-4, optimizer__accumulate=4)
    whole = runs["one"]
    parts = run_steps(config, make_mesh("one"), 1, runs["one"].start_values)
    for name in ("loss", "loss_G", "grad_norm", "tokens_G", "trained_G"):
        np.testing.assert_allclose(parts.metrics[0][name], whole.metrics[0][name], rtol=1e-5)
    # The first moment after one update is a tenth of the gradient. Sums over the batch in
    # another order: fp32 rounding of terms that are up to 100 times as large as some sums.
    gradient, expected = moments(parts.after_one)[0], moments(whole.after_one)[0]
    assert_all_close(gradient, expected, rtol=1e-4, atol=1e-7)


LANGUAGE_DIALS = {
    **{"model__documents": "apart", "model__position_tables": "per_language"},
    "model__dropout": 0.3,
}


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "micro"), [("2x2x2", 2), ("eight", 1)])
def test_neither_devices_nor_micro_batches_change_what_dials_of_languages_and_dropout_do(
    mesh, micro
):
    config = make_config(optimizer__eps=1e-4, model__N=1, **LANGUAGE_DIALS)
    one = run_steps(config, make_mesh("one"), 2)
    cut = dataclasses.replace(config.optimizer, accumulate=micro)
    other = run_steps(dataclasses.replace(config, optimizer=cut), make_mesh(mesh), 2)
    # Equal parameters, as no key depends on a mesh, and fp32 sums in another order.
    assert_all_close(other.start_values, one.start_values, rtol=1e-6)
    for found, expected in zip(other.metrics, one.metrics, strict=True):
        for name in ("loss", "loss_G", "grad_norm"):
            np.testing.assert_allclose(found[name], expected[name], rtol=2e-5)
    _, second = moments(one.state)
    trained_GL = np.any(np.asarray(second["position_GLD"]) > 0, axis=2)
    assert trained_GL.shape == (G, L) and trained_GL.all()


PLAIN = {
    **{"attention": "einsum", "remat": "none", "scan_layers": False, "loss_chunk": L},
    "dtype": "float32",
}
WAYS = {
    "blockwise attention": {"attention": "blockwise"},
    "the library's attention": {"attention": "fused"},
    "elementwise parts computed again": {"remat": "dots", "scan_layers": True},
    "everything computed again": {"remat": "full", "scan_layers": True},
    "layers scanned": {"scan_layers": True},
    "a chunk of one position": {"loss_chunk": 1},
    "a chunk of three": {"loss_chunk": 3},
    "tiles of the vocabulary": {"loss_chunk": 3, "loss_tile": V // 4},
    "as a CPU has it": {"attention": "auto", "remat": "auto", "scan_layers": True, "loss_chunk": 0},
}


@pytest.fixture(scope="module")
def spread() -> Any:
    """Parameters at which attention is neither flat nor sure of itself."""
    shapes = step_lib.make_abstract_state(make_config(), V, make_mesh("one")).params
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(0.15 * rng.standard_normal(x.shape)), shapes)


@pytest.fixture(scope="module")
def plain(spread) -> tuple[Any, Any]:
    return loss_and_gradient(spread, PLAIN)


def loss_and_gradient(params: Any, changes: dict[str, Any]) -> tuple[Any, Any]:
    """Returns the mean loss of a batch, and its gradient."""
    config = make_config(**{f"model__{name}": value for name, value in changes.items()})
    mesh = make_mesh("one")
    model = step_lib.resolve_auto_in_config(config, mesh, V).model
    whole = jax.value_and_grad(step_lib._compute_mean_loss, has_aux=True)
    (loss, _), grads = jax.jit(whole, static_argnums=1)(params, model, host_batch(0), map_GU())
    return jax.device_get((loss, grads))


def apart(ours: Any, theirs: Any) -> dict[str, float]:
    """Returns how far two gradients of each parameter are apart, in parts of their length."""
    lengths = jax.tree.map(lambda x, y: np.linalg.norm(x - y) / np.linalg.norm(y), ours, theirs)
    named = jax.tree_util.tree_flatten_with_path(lengths)[0]
    # The keys' bias has a gradient of zero in exact arithmetic: what it holds is rounding.
    return {str(path): v for path, v in named if "b_k_HK" not in str(path)}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_compute_a_step_has_the_plain_ones_loss_and_gradient(spread, plain, way):
    loss, gradient = loss_and_gradient(spread, PLAIN | WAYS[way])
    # The same sums in another order, in fp32.
    np.testing.assert_allclose(loss, plain[0], rtol=1e-6)
    assert max(apart(gradient, plain[1]).values()) < 1e-5


@pytest.mark.parametrize(
    "way",
    [
        "plain",
        "blockwise attention",
        "the library's attention",
        "everything computed again",
        "a chunk of three",
        "tiles of the vocabulary",
    ],
)
def test_bfloat16_changes_loss_and_gradient_by_its_rounding_only(spread, plain, way):
    loss, gradient = loss_and_gradient(spread, PLAIN | WAYS.get(way, {}) | {"dtype": "bfloat16"})
    # bf16 keeps 8 bits: an error of up to 2^-9 = 0.2 % in each rounding, of either sign. Some 20
    # lie on the way through three blocks, the head and back, and add up as a root: 1 % at most
    # for most parameters, more for the biases, whose gradient is what remains of a sum over
    # positions. The loss is a mean over 96 positions, whose errors cancel.
    np.testing.assert_allclose(loss, plain[0], rtol=1e-4)
    found = apart(gradient, plain[1])
    assert 1e-3 < np.median(list(found.values())) < 0.01, found
    assert max(found.values()) < 0.03, found
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}


@pytest.mark.slow
def test_a_loss_curve_in_bfloat16_is_as_near_to_float32_as_another_seed_is():
    """300 updates on text that can be learned: each id is followed by one that it decides."""
    follows_U = np.random.default_rng(1).permutation(U)

    rng = np.random.default_rng(7)
    ids_SBW = rng.integers(0, U, (300, B, L + 1))
    follow_SBW = rng.random(ids_SBW.shape) < 0.8
    for i in range(L):
        followed_SB = follows_U[ids_SBW[..., i]]
        ids_SBW[..., i + 1] = np.where(follow_SBW[..., i], followed_SB, ids_SBW[..., i + 1])
    languages_SB = np.tile(host_batch(0).language_B, (300, 1))
    batches = step_lib.Batch(ids_SBW.astype(np.uint16), languages_SB)

    @functools.cache
    def trained_in(dtype: str) -> Any:
        config = make_config(model__dtype=dtype, steps=300, optimizer__peak_lr=3e-3)
        update = functools.partial(
            step_lib.train_step, step_lib.resolve_auto_in_config(config, make_mesh("one"), V), 300
        )
        return jax.jit(
            lambda state: jax.lax.scan(
                lambda state, batch: update(state, batch, jnp.asarray(map_GU())), state, batches
            )
        )

    def curve(dtype: str, seed: int) -> np.ndarray:
        state = step_lib.init_state(make_config(seed=seed), V, make_mesh("one"))
        _, metrics = trained_in(dtype)(state)
        return np.array(metrics["loss"])

    full, half, other = curve("float32", 0), curve("bfloat16", 0), curve("float32", 1)
    assert full[-50:].mean() < full[:50].mean() - 1  # it learns
    # Steps 50 to 300, in means of 50: the curves of two seeds are 0.03 apart or so.
    means = [x[50:].reshape(5, 50).mean(axis=1) for x in (full, half, other)]
    between_dtypes, between_seeds = (np.abs(means[0] - x).max() for x in means[1:])
    assert between_dtypes < between_seeds
    assert between_dtypes < 0.02


# Updates that are left out.


@pytest.fixture(scope="module")
def skipping(runs) -> Run:
    config = make_config(optimizer__eps=1e-4, optimizer__skip_nonfinite=2)
    return run_steps(config, make_mesh("2x2x2"), like=runs["2x2x2"].start_values)


def assert_same_bits(ours: Any, theirs: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_that_updates_may_be_left_out_changes_no_bit_of_those_that_are_made(runs, skipping):
    assert_same_bits(skipping.state, runs["2x2x2"].state)
    assert_same_bits(skipping.metrics, runs["2x2x2"].metrics)


def update_once(run: Run, values: Any, batch: step_lib.Batch) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns the values of a state after an update by a run's program, and its metrics."""
    mesh = make_mesh("2x2x2")
    shardings = sharding.make_state_shardings(mesh, values)
    state = jax.device_put(values, shardings, may_alias=False)
    batch = jax.device_put(batch, sharding.make_batch_sharding(mesh))
    maps = jax.device_put(map_GU(), sharding.make_replicated_sharding(mesh))
    state, metrics = run.jitted(state, batch, maps)
    return jax.tree.map(np.array, state), jax.device_get(metrics)


def test_an_update_that_is_not_finite_changes_the_step_alone(runs, skipping):
    def draw(n: int, spoilt: bool = False) -> step_lib.Batch:
        batch = host_batch(n)
        batch.ids_BW[:] = np.minimum(batch.ids_BW, U - 2)
        if spoilt:  # an id whose row is nan, in a sequence of the second language
            batch.ids_BW[2, 5] = U - 1
        return batch

    before = jax.tree.map(np.array, skipping.start_values)
    before.params["embed_VD"][V - 1] = np.nan
    for n in (0, 1):
        before, _ = update_once(skipping, before, draw(n))
    skipped, metrics = update_once(skipping, before, draw(2, spoilt=True))
    assert np.isnan(metrics["loss"]) and np.isnan(metrics["grad_norm"])
    np.testing.assert_array_equal(metrics["trained_G"], [12, 4])
    assert_same_bits(skipped, dataclasses.replace(before, step=np.int32(3)))

    # What follows is the update of a run that has no such batch, at the learning rate of its step.
    after, metrics = update_once(skipping, skipped, draw(3))
    assert_same_bits(after, update_once(runs["2x2x2"], skipped, draw(3))[0])
    rate = float(step_lib.learning_rate(CONFIG.optimizer, CONFIG.steps)(3))
    np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
    first, second = moments(after)

    def update_by_hand(p: np.ndarray, m: np.ndarray, v: np.ndarray) -> np.ndarray:
        m_hat, v_hat = np.float64(m) / (1 - 0.9**3), np.float64(v) / (1 - 0.95**3)  # the third
        return p - rate * m_hat / (np.sqrt(v_hat) + 1e-4)

    expected = jax.tree.map(update_by_hand, skipped.params, first, second)
    assert_all_close(after.params, expected, rtol=1e-5, atol=1e-7)


def test_several_steps_compile_once(runs):
    assert [run.jitted._cache_size() for run in runs.values()] == [1, 1, 1]


def test_a_step_takes_over_the_memory_of_the_state_before_it(runs):
    for run in runs.values():
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(run.start.params))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(run.state))


@pytest.mark.parametrize("name", ["eight", "2x2x2"])
def test_devices_and_their_mesh_do_not_change_training(runs, name):
    one, many = runs["one"], runs[name]
    # Random numbers do not depend on how they are cut.
    jax.tree.map(np.testing.assert_array_equal, many.start_values, one.start_values)
    for ours, theirs in zip(many.metrics, one.metrics, strict=True):
        # fp32 sums over devices in another order.
        assert_all_close(ours, theirs, rtol=1e-4)
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), one.state.params, one.start_values.params
    )
    assert min(jax.tree.leaves(moved)) > 0
    # Five updates of up to 3e-3 each, which carry the gradients' rounding on: a thousandth.
    assert_all_close(many.state.params, one.state.params, rtol=0, atol=1.5e-5)


@pytest.mark.slow  # three compilations for each architecture
@pytest.mark.parametrize(
    "dials",
    [
        {"preset": "llama"},
        {
            **{"preset": "modern", "kv_heads": 2, "norm_place": "both", "tied": True},
            **{"base_width": 6, "base_head_width": 2},
        },
    ],
    ids=["llama", "modern"],
)
def test_devices_and_their_mesh_do_not_change_training_with_dials(dials):
    changes = {f"model__{dial}": value for dial, value in dials.items()}
    config = make_config(optimizer__eps=1e-4, model__K=8, **changes)
    one = run_steps(config, make_mesh("one"), 3)
    for mesh in ("eight", "2x2x2"):
        many = run_steps(config, make_mesh(mesh), 3)
        jax.tree.map(np.testing.assert_array_equal, many.start_values, one.start_values)
        assert_all_close(many.metrics, one.metrics, rtol=1e-4)
        assert_all_close(many.state.params, one.state.params, rtol=0, atol=1.5e-5)


def test_parameters_and_moments_are_really_cut_over_a_mesh(runs):
    state = runs["2x2x2"].state
    expected = {
        ("embed_VD",): (V // 2, D // 2),
        ("head_VD",): (V // 2, D // 2),
        ("position_LD",): (L, D // 2),
        ("final_norm", "scale_D"): (D,),
        ("blocks", "attention", "w_q_DHK"): (N, D // 2, H // 2, K),
        ("blocks", "attention", "w_o_HKD"): (N, H // 2, K, D // 2),
        ("blocks", "attention", "b_q_HK"): (N, H // 2, K),
        ("blocks", "feed_forward", "w_up_DF"): (N, D // 2, F // 2),
        ("blocks", "feed_forward", "w_down_FD"): (N, F // 2, D // 2),
        ("blocks", "feed_forward", "b_up_F"): (N, F),
        ("blocks", "norm_1", "bias_D"): (N, D),
    }
    for tree in (state.params, *moments(state)):
        for path, shape in expected.items():
            leaf = tree
            for key in path:
                leaf = leaf[key]
            shards = leaf.addressable_shards
            assert {shard.data.shape for shard in shards} == {shape}, path
            assert len(shards) == 8
    # On eight devices of data alone every one holds all.
    whole = runs["eight"].state.params["embed_VD"].addressable_shards
    assert {shard.data.shape for shard in whole} == {(V, D)}


def test_an_abstract_state_has_the_shapes_and_shardings_of_a_real_one(runs):
    abstract = step_lib.make_abstract_state(CONFIG, V, make_mesh("2x2x2"))

    def compare(shape: jax.ShapeDtypeStruct, leaf: jax.Array) -> None:
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
        assert shape.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)

    jax.tree.map(compare, abstract, runs["2x2x2"].state)
