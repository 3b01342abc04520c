"""Optimizers beside Adam, held against NumPy, and what devices must not change of them."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest
from compute.test_step import CONFIG, V, host_batch, make_mesh, map_GU, run_steps

from imbalance_jax import config as config_lib
from imbalance_jax.bench import topology
from imbalance_jax.compute import optimizer, sharding
from imbalance_jax.compute import step as step_lib
from imbalance_jax.config import OptimizerConfig

FLAT = OptimizerConfig(schedule="constant", peak_lr=0.1, warmup=0.0, b1=0.8, b2=0.7, eps=1e-7)


def make_params(seed: int = 0) -> dict[str, Any]:
    """Two blocks whose matrices are higher and wider than long, and what Muon leaves to Adam."""
    rng = np.random.default_rng(seed)
    blocks = {
        "attention": {"w_q_DHK": (2, 6, 2, 4), "w_o_HKD": (2, 2, 4, 6), "b_q_HK": (2, 2, 4)},
        "feed_forward": {"w_up_DF": (2, 6, 10), "w_down_FD": (2, 10, 6)},
        "norm_1": {"scale_D": (2, 6)},
    }
    shapes = {"embed_VD": (5, 6), "head_VD": (5, 6), "blocks": blocks}
    draw = lambda shape: np.float32(rng.standard_normal(shape))
    return jax.tree.map(draw, shapes, is_leaf=lambda each: isinstance(each, tuple))


def optimize(config: OptimizerConfig, grads: list[Any], wider: float = 1.0) -> list[Any]:
    """Returns the parameters after each gradient."""

    def run(params: Any, grads: list[Any]) -> list[Any]:
        tx, found = optimizer.build_optimizer(config, steps=40, wider=wider), []
        state = tx.init(params)
        for grad in grads:
            updates, state = tx.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            found.append(params)
        return found

    return jax.jit(run)(make_params(), grads)


def turn_sgd(g: np.ndarray, m: Any, t: int) -> tuple[np.ndarray, Any]:
    m = 0.8 * m + g
    return m, m


def turn_lion(g: np.ndarray, m: Any, t: int) -> tuple[np.ndarray, Any]:
    return np.sign(0.8 * m + 0.2 * g), 0.7 * m + 0.3 * g


def turn_adafactor(g: np.ndarray, v: Any, t: int) -> tuple[np.ndarray, Any]:
    # No side has 128 places, so no matrix is factored.
    beta = 1 - t**-0.8
    v = beta * v + (1 - beta) * (g**2 + 1e-30)
    u = g / np.sqrt(v)
    return u / max(1.0, np.sqrt((u**2).mean())), v


def turn_adam(g: np.ndarray, mv: Any, t: int) -> tuple[np.ndarray, Any]:
    m, v = mv if t > 1 else (0, 0)
    m, v = 0.8 * m + 0.2 * g, 0.7 * v + 0.3 * g**2
    return m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.7**t)) + 1e-7), (m, v)


def orthogonalise(m: np.ndarray) -> np.ndarray:
    x = m / (np.linalg.norm(m) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x


def turn_muon(g: np.ndarray, m: Any, t: int) -> tuple[np.ndarray, Any]:
    """Of a matrix (inputs, outputs)."""
    m = 0.8 * m + 0.2 * g
    # Nesterov's look ahead, without the bias of the first steps.
    ahead = 0.8 * m / (1 - 0.8 ** (t + 1)) + 0.2 * g / (1 - 0.8**t)
    wide = ahead if ahead.shape[0] <= ahead.shape[1] else ahead.T
    found = orthogonalise(wide)
    found = found if ahead.shape[0] <= ahead.shape[1] else found.T
    return 0.2 * max(ahead.shape) ** 0.5 * found, m


def turn_of(name: str, path: tuple, shape: tuple[int, ...]) -> Any:
    """Returns the update of a parameter by the algorithm of this name."""
    if name != "muon":
        return {"sgd": turn_sgd, "lion": turn_lion, "adafactor": turn_adafactor}[name]
    if path[0].key != "blocks" or not path[-1].key.startswith("w_"):
        return turn_adam
    inputs = 3 if path[-1].key == "w_o_HKD" else 2

    def turn(g: np.ndarray, m: Any, t: int) -> tuple[np.ndarray, Any]:
        flat = lambda x: x.reshape(2, int(np.prod(shape[1:inputs])), -1)
        m = flat(m) if t > 1 else np.zeros_like(flat(g))
        blocks = [turn_muon(flat(g)[n], m[n], t) for n in range(2)]
        return tuple(np.stack(each).reshape(shape) for each in zip(*blocks, strict=True))

    return turn


@pytest.mark.parametrize("name", ["sgd", "lion", "adafactor", "muon"])
def test_three_updates_are_those_of_numpy(name):
    grads = [make_params(seed) for seed in (1, 2, 3)]
    found = optimize(dataclasses.replace(FLAT, name=name), grads)
    leaves = jax.tree_util.tree_leaves_with_path(make_params())
    for which, (path, start) in enumerate(leaves):
        turn, value, kept = turn_of(name, path, start.shape), np.float64(start), 0.0
        for t, grad in enumerate(grads, start=1):
            direction, kept = turn(np.float64(jax.tree.leaves(grad)[which]), kept, t)
            value = value - 0.1 * direction
            ours = jax.tree.leaves(found[t - 1])[which]
            np.testing.assert_allclose(ours, value, rtol=2e-4, atol=2e-5, err_msg=str(path))


# Means of each language's own.


def split_gradients(seed: int) -> tuple[Any, Any]:
    """Returns gradients, and what each of three languages has in the shared ones."""
    each = [make_params(10 * seed + g) for g in range(3)]
    shared_G = jax.tree.map(lambda *leaves: np.stack(leaves), *map(select_shared, each))
    return make_params(seed) | jax.tree.map(lambda leaf: leaf.sum(0), shared_G), shared_G


def select_shared(params: Any) -> Any:
    return {"blocks": params["blocks"]}


def update_per_language(config: OptimizerConfig, trained: list[list[bool]]) -> list[Any]:
    """Returns the parameters after each of the updates in which these languages were trained."""

    def run(params: Any, given: Any) -> list[Any]:
        tx, found = optimizer.build_optimizer(config, 40, languages=3), []
        state = tx.init(params)
        for (grads, grads_G), is_trained_G in given:
            of_languages = {"language_grads": grads_G, "is_trained_G": is_trained_G}
            updates, state = tx.update(grads, state, params, **of_languages)
            params = optax.apply_updates(params, updates)
            found.append(params)
        return found

    given = [(split_gradients(t), np.array(mask)) for t, mask in enumerate(trained, start=1)]
    return jax.jit(run)(make_params(), given)


@pytest.mark.parametrize("clip_norm", [0.0, 3.0])
def test_each_language_s_own_means_are_those_of_numpy(clip_norm):
    config = dataclasses.replace(FLAT, moments="per_language", clip_norm=clip_norm)
    trained = [[True, False, False], [True, True, False], [True, True, False]]
    found = update_per_language(config, trained)
    leaves = jax.tree_util.tree_leaves_with_path(make_params())
    factors = []
    for t in (1, 2, 3):
        norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(split_gradients(t)[0])))
        assert norm > 3
        factors.append(3 / norm if clip_norm else 1.0)
    for which, (path, start) in enumerate(leaves):
        value, own, kept_G = np.float64(start), 0.0, [0.0, 0.0, 0.0]
        for t, mask in enumerate(trained, start=1):
            grads, grads_G = split_gradients(t)
            if path[0].key in ("embed_VD", "head_VD"):
                grad = factors[t - 1] * np.float64(jax.tree.leaves(grads)[which])
                direction, own = turn_adam(grad, own, t)
            else:
                leaf_G = factors[t - 1] * np.float64(jax.tree.leaves(grads_G)[which])
                directions_G, kept_G = zip(
                    *(turn_adam(g, kept, t) for g, kept in zip(leaf_G, kept_G, strict=True)),
                    strict=True,
                )
                direction = np.mean(
                    [d for d, seen in zip(directions_G, mask, strict=True) if seen], 0
                )
            value = value - 0.1 * direction
            ours = jax.tree.leaves(found[t - 1])[which]
            np.testing.assert_allclose(ours, value, rtol=2e-4, atol=2e-5, err_msg=str(path))


def language_config(**changes: Any) -> Any:
    return dataclasses.replace(
        CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, moments="per_language", **changes)
    )


def test_languages_gradients_add_up_to_the_batch_s_and_are_those_of_their_windows():
    """Held against the gradients of batches in which all windows are of one language."""
    run = run_steps(CONFIG, make_mesh("one"), 0)
    params = run.start_values.params
    model = dataclasses.replace(CONFIG.model, attention="einsum", remat="none", dtype="float32")
    batch, G = host_batch(0), 2
    keep = lambda params: params
    losses, (grads, grads_G) = jax.jit(
        lambda params: step_lib._compute_language_gradients(keep, params, model, batch, map_GU())
    )(params)
    gradient = jax.jit(
        jax.value_and_grad(step_lib._compute_mean_loss, has_aux=True), static_argnums=1
    )
    whole_losses, whole = gradient(params, model, batch, map_GU())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), losses, whole_losses)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-7)
    jax.tree.map(close, grads, whole)
    assert set(grads_G) == {"blocks", "final_norm", "position_LD"}
    for language in range(G):
        mine_B = batch.language_B == language
        part = step_lib.Batch(batch.ids_BW[mine_B], batch.language_B[mine_B])
        _, alone = gradient(params, model, part, map_GU())
        alone = jax.tree.map(lambda leaf: leaf * mine_B.mean(), alone)  # noqa: B023
        jax.tree.map(lambda a, b: close(a[language], b), grads_G, {n: alone[n] for n in grads_G})  # noqa: B023


@pytest.mark.slow  # compilations of eight devices
def test_devices_and_micro_batches_do_not_change_the_updates_per_language():
    one = run_steps(language_config(), make_mesh("one"), steps=3)
    others = {
        "eight": run_steps(language_config(), make_mesh("eight"), steps=3),
        "2x2x2": run_steps(language_config(), make_mesh("2x2x2"), steps=3),
        "parts": run_steps(language_config(accumulate=4), make_mesh("one"), steps=3),
    }
    for name, other in others.items():
        for a, b in zip(one.metrics, other.metrics, strict=True):
            np.testing.assert_allclose(a["loss_G"], b["loss_G"], rtol=1e-4, err_msg=name)
    state = step_lib.make_abstract_state(language_config(), V, make_mesh("2x2x2"))
    kept = [
        leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape[:2] == (2, CONFIG.model.N)
    ]
    assert kept and not all(leaf.sharding.is_fully_replicated for leaf in kept)


# Weights of the languages' losses.


def weighted_config(**weights: float) -> Any:
    mixture = dataclasses.replace(CONFIG.mixture, loss_weights=weights)
    return dataclasses.replace(CONFIG, mixture=mixture)


def test_weights_of_losses_have_a_mean_of_one_over_the_sequences_of_the_run():
    # tiny_config is 3:1.
    assert config_lib.compute_loss_weights(weighted_config(en2=3.0)) == pytest.approx((2 / 3, 2))
    # Only their proportions count.
    many = config_lib.compute_loss_weights(weighted_config(en1=10.0, en2=30.0))
    assert many == pytest.approx((2 / 3, 2))
    stages = dataclasses.replace(
        weighted_config(en2=0.0).mixture,
        stages=((0, {"en1": 1, "en2": 0}), (0.5, {"en1": 1, "en2": 3})),
    )
    config = dataclasses.replace(CONFIG, mixture=stages)
    assert config_lib.compute_loss_weights(config) == pytest.approx((1 / 0.625, 0))
    # A run whose text ends where the second stage begins has no sequence of en2.
    assert config_lib.compute_loss_weights(config, CONFIG.steps // 2) == pytest.approx((1, 0))
    late = dataclasses.replace(config.mixture, loss_weights={"en1": 0.0, "en2": 1.0})
    with pytest.raises(ValueError, match=r"loss_weights is zero .* ends at step 10\. Give one"):
        config_lib.compute_loss_weights(dataclasses.replace(CONFIG, mixture=late), 10)


def test_a_weighted_gradient_is_the_weighted_sum_of_the_languages_gradients():
    plain = dataclasses.replace(CONFIG.optimizer, name="sgd", b1=0.0, accumulate=4)
    config = dataclasses.replace(weighted_config(en2=3.0), optimizer=plain)
    run = run_steps(config, make_mesh("one"), 1)
    start, batch = run.start_values.params, host_batch(0)
    model = dataclasses.replace(CONFIG.model, attention="einsum", remat="none", dtype="float32")

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        losses, sums_G = [], []
        for language, weight in enumerate((2 / 3, 2)):
            mine_B = batch.language_B == language
            part = step_lib.Batch(batch.ids_BW[mine_B], batch.language_B[mine_B])
            mean, loss_G = step_lib._compute_mean_loss(params, model, part, map_GU())
            losses.append(weight * mine_B.mean() * mean)
            sums_G.append(loss_G)
        return sum(losses), sum(sums_G)

    (value, loss_G), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(start)
    assert float(run.metrics[0]["loss"]) == pytest.approx(float(value), rel=1e-5)
    rate = float(run.metrics[0]["learning_rate"])
    moved = jax.tree.map(lambda a, b: (a - b) / rate, start, run.after_one.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), moved, gradient
    )
    # What is logged of a language has no weight.
    np.testing.assert_allclose(run.metrics[0]["loss_G"], loss_G, rtol=1e-5)


def test_adamw_is_adam_whose_decay_is_decoupled():
    grads = [make_params(1), make_params(2)]
    both = [
        optimize(dataclasses.replace(FLAT, name=name, weight_decay=0.3), grads)
        for name in ("adam", "adamw")
    ]
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_factors_scale_the_rate_and_the_decay_of_their_group_alone():
    def move(**factors: dict[str, float]) -> Any:
        changed = {name: dataclasses.replace(FLAT.rate_factors, **f) for name, f in factors.items()}
        config = dataclasses.replace(FLAT, name="sgd", weight_decay=0.5, **changed)
        (after,) = optimize(config, [make_params(1)])
        return jax.tree.map(lambda a, b: a - b, after, make_params())

    plain = move()
    faster = move(rate_factors={"embedding": 3.0})
    np.testing.assert_allclose(faster["embed_VD"], 3 * plain["embed_VD"], rtol=1e-4, atol=1e-5)
    for name in ("head_VD", "blocks"):
        jax.tree.map(np.testing.assert_array_equal, faster[name], plain[name])
    undecayed = move(decay_factors={"blocks": 0.0})
    matrix = ("blocks", "feed_forward", "w_up_DF")
    start = make_params()
    changed, same = undecayed, plain
    for key in matrix:
        changed, same, start = changed[key], same[key], start[key]
    np.testing.assert_allclose(changed - same, 0.1 * 0.5 * start, atol=1e-5)
    np.testing.assert_array_equal(undecayed["head_VD"], plain["head_VD"])


@pytest.mark.parametrize(
    ("name", "of_matrices", "of_others"),
    [
        ("adam", 1 / 9, 1),
        ("lion", 1 / 9, 1),
        ("adafactor", 1 / 9, 1),
        ("muon", 1 / 3, 1),
        ("sgd", 1, 9),
    ],
)
def test_at_nine_times_the_width_each_parameter_has_its_rate_and_the_same_decay(
    name, of_matrices, of_others
):
    matrices = ("w_q_DHK", "w_o_HKD", "w_up_DF", "w_down_FD")

    def move(wider: float, decay: float) -> Any:
        config = dataclasses.replace(FLAT, name=name, weight_decay=decay)
        (after,) = optimize(config, [make_params(1)], wider)
        return jax.tree.map(lambda a, b: a - b, after, make_params())

    base, wide, decayed = move(1.0, 0.0), move(9.0, 0.0), move(9.0, 0.5)

    def check(path: tuple, base: Any, wide: Any, decayed: Any, start: Any) -> None:
        key = path[-1].key
        factor = of_matrices if key in matrices else of_others
        np.testing.assert_allclose(wide, factor * base, rtol=1e-4, atol=1e-6, err_msg=key)
        lost = 0.1 * 0.5 * start if key in (*matrices, "embed_VD", "head_VD") else 0 * start
        np.testing.assert_allclose(wide - decayed, lost, rtol=1e-4, atol=1e-6, err_msg=key)

    jax.tree_util.tree_map_with_path(check, base, wide, decayed, make_params())


def test_a_linear_schedule_falls_from_the_peak_to_the_final_rate():
    config = OptimizerConfig(schedule="linear", peak_lr=1.0, final_lr=0.2, warmup=10.0)
    rate = optimizer.learning_rate(config, 100)
    for t, value in {1: 0.0992, 10: 0.92, 50: 0.6, 100: 0.2}.items():
        assert float(rate(t - 1)) == pytest.approx(value, rel=1e-5)


def test_at_its_base_width_a_run_is_the_same_program_as_without_one():
    def compile_to_text(config: Any) -> tuple[str, str]:
        mesh = make_mesh("one")
        step = topology.trace_step(config, V, mesh).lower().as_text()
        return step, step_lib.jit_init_state(config, V, mesh).lower(jax.random.key(0)).as_text()

    model = dataclasses.replace(CONFIG.model, base_width=CONFIG.model.D, base_head_width=7)
    assert CONFIG.model.K == 7 and CONFIG.model.settle("embed_scale") == "sqrt"
    scaled = dataclasses.replace(CONFIG, model=model)
    assert compile_to_text(scaled) == compile_to_text(CONFIG)
    model = dataclasses.replace(model, base_width=CONFIG.model.D - 1)
    wider = compile_to_text(dataclasses.replace(CONFIG, model=model))
    assert all(a != b for a, b in zip(wider, compile_to_text(CONFIG), strict=True))


@pytest.mark.slow  # two compilations of eight devices
def test_devices_do_not_change_the_updates_of_muon():
    config = dataclasses.replace(
        CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, name="muon", peak_lr=1e-3)
    )
    one, cut = (run_steps(config, make_mesh(mesh), steps=2) for mesh in ("one", "2x2x2"))
    for a, b in zip(one.metrics, cut.metrics, strict=True):
        np.testing.assert_allclose(a["loss_G"], b["loss_G"], rtol=1e-4)


def test_what_adafactor_keeps_of_rows_and_columns_lies_on_every_device():
    wide = dataclasses.replace(CONFIG.model, D=256, F=256)
    config = dataclasses.replace(
        CONFIG, model=wide, optimizer=dataclasses.replace(CONFIG.optimizer, name="adafactor")
    )
    state = step_lib.make_abstract_state(config, V, make_mesh("2x2x2"))
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.opt_state)}
    assert (wide.N, 256) in shapes  # a row or a column of w_up_DF in each block
    parameters = jax.tree.leaves(sharding.make_state_shardings(make_mesh("2x2x2"), state.params))
    assert any(not each.is_fully_replicated for each in parameters)
