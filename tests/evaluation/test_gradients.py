"""Gradients of two languages: each measure against plain gradients, added up in NumPy.

`measure` is run on a model and compared with `jax.grad` of one sequence at a time. What its sums
of many gradients make of noise is seen on gradients that are planted, whose truth is known.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_mesh, no_poll, random_params
from jax.sharding import Mesh

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import optimizer, sharding
from imbalance_jax.compute import step as step_lib
from imbalance_jax.config import ModelConfig, OptimizerConfig
from imbalance_jax.evaluation import gradients, updates
from imbalance_jax.evaluation.programs import MeasurementPrograms, Measuring

# Every dimension has a size of its own, and those of the mesh divide those that are cut.
L, N, U = 12, 3, 20
V = 2 * U
MODEL = ModelConfig(L=L, D=16, H=2, K=7, F=22, N=N, attention="einsum")
# No power of two, no multiple of a chunk: two batches of 8 and five sequences beside them.
P = 21
SIZES = (1, 2, 4, 8, 16)

# The rows of the reference's figure, and the parameter of a block that each one shows.
ROWS = {
    "attn K.bias": ("attention", "b_k_HK"),
    "attn K.weight": ("attention", "w_k_DHK"),
    "attn O.bias": ("attention", "b_o_D"),
    "attn O.weight": ("attention", "w_o_HKD"),
    "attn Q.bias": ("attention", "b_q_HK"),
    "attn Q.weight": ("attention", "w_q_DHK"),
    "attn V.bias": ("attention", "b_v_HK"),
    "attn V.weight": ("attention", "w_v_DHK"),
    "ln1.bias": ("norm_1", "bias_D"),
    "ln1.weight": ("norm_1", "scale_D"),
    "ln2.bias": ("norm_2", "bias_D"),
    "ln2.weight": ("norm_2", "scale_D"),
    "mlp fc.bias": ("feed_forward", "b_up_F"),
    "mlp fc.weight": ("feed_forward", "w_up_DF"),
    "mlp proj.bias": ("feed_forward", "b_down_D"),
    "mlp proj.weight": ("feed_forward", "w_down_FD"),
}
R = len(ROWS)
QUICK = {"xla_backend_optimization_level": 0}  # compiles in two thirds of the time
Gradients = list[np.ndarray]  # for each of the rows: (P, N, size of the parameter)


def make_programs(mesh: Mesh) -> MeasurementPrograms:
    found = MeasurementPrograms(mesh, batch_size=8)
    found._options = QUICK
    return found


@pytest.fixture(scope="module")
def programs() -> MeasurementPrograms:
    return make_programs(make_mesh(1))


@pytest.fixture(scope="module")
def params() -> model_lib.Params:
    """Parameters that are sure of something, and differ in every row."""
    return random_params(MODEL, V, scale=0.0)


@dataclasses.dataclass(frozen=True)
class Pairs:
    ids: tuple[np.ndarray, np.ndarray]
    text: tuple[np.ndarray, np.ndarray]

    def first(self, count: int) -> "Pairs":
        ids, text = (tuple(x[:count] for x in values) for values in (self.ids, self.text))
        return Pairs(ids, text)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Sequences of several lengths, of which every second id says the same in both languages."""
    rng = np.random.default_rng(1)
    ids_a = rng.integers(1, U, (P, L))
    ids_b = U + np.where(np.arange(L) % 2, rng.integers(1, U, (P, L)), ids_a)
    text = [np.arange(L) < rng.integers(4, L + 1, P)[:, None] for _ in range(2)]
    assert all(0 < np.sum(text_PL.all(axis=1)) < P for text_PL in text)
    ids = [
        np.where(text_PL, ids_PL, 0) for ids_PL, text_PL in zip((ids_a, ids_b), text, strict=True)
    ]
    return Pairs((ids[0], ids[1]), (text[0], text[1]))


# What is compared with.


@functools.partial(jax.jit, compiler_options=QUICK)
def plain_gradient(params: model_lib.Params, ids_W: jax.Array, length: jax.Array) -> Any:
    """Returns the gradient of the losses of ids 1 .. length - 1 of one sequence, over L."""

    def loss(params: model_lib.Params) -> jax.Array:
        logits_LV = model_lib.compute_next_token_logits(params, MODEL, ids_W[None, :-1])[0]
        nll_L = -jax.nn.log_softmax(logits_LV)[jnp.arange(L), ids_W[1:]]
        return jnp.sum(jnp.where(jnp.arange(1, L + 1) < length, nll_L, 0)) / L

    return jax.grad(loss)(params)


def rows_of(tree: Any) -> list[np.ndarray]:
    """Returns the parameters of the blocks in the order of the rows, each (N, ...)."""
    return [np.asarray(tree[group][name], np.float64) for group, name in ROWS.values()]


def plain_gradients(params: model_lib.Params, ids_PL: np.ndarray, text_PL: np.ndarray) -> Gradients:
    ids_PW = np.pad(ids_PL.astype(np.int32), ((0, 0), (0, 1)))
    found = [
        rows_of(plain_gradient(params, ids_W, length)["blocks"])
        for ids_W, length in zip(ids_PW, text_PL.sum(axis=1), strict=True)
    ]
    return [np.stack(row).reshape(len(found), N, -1) for row in zip(*found, strict=True)]


@pytest.fixture(scope="module")
def plain(params, pairs) -> tuple[Gradients, Gradients]:
    a, b = (
        plain_gradients(params, ids, text) for ids, text in zip(pairs.ids, pairs.text, strict=True)
    )
    return a, b


def cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sum(x * y, axis=-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))


def mean_over(cells: list[np.ndarray]) -> float:
    """Returns the mean over batches, layers and all rows but that of the keys' bias."""
    assert next(iter(ROWS)) == "attn K.bias"
    return float(np.mean(cells[1:]))


def by_batches(a: Gradients, b: Gradients, size: int) -> dict[str, float]:
    """Returns the mean cosines of batches of a size, whose gradients are added up one by one."""
    found: dict[str, list] = {}
    count = len(a[0])
    order = np.random.default_rng(0).permutation(count)
    for name in ("same_content", "other_content", "within_a", "within_b"):
        cells = []
        for a_PNx, b_PNx in zip(a, b, strict=True):
            batches = [order[k * size : (k + 1) * size] for k in range(count // size)]
            A = [sum(a_PNx[p] for p in batch) for batch in batches]
            B = [sum(b_PNx[p] for p in batch) for batch in batches]
            siblings = [(2 * i, 2 * i + 1) for i in range(len(batches) // 2)]
            cells.append(
                {
                    "same_content": [cosine(A[k], B[k]) for k in range(len(batches))],
                    "other_content": [
                        cosine(A[k], B[m]) for i, j in siblings for k, m in ((i, j), (j, i))
                    ],
                    "within_a": [cosine(A[i], A[j]) for i, j in siblings],
                    "within_b": [cosine(B[i], B[j]) for i, j in siblings],
                }[name]
            )
        if cells[0]:
            found[name] = mean_over(cells)
    return found


def naive_apart(a_PX: np.ndarray, b_PX: np.ndarray) -> np.ndarray:
    """Returns the summed products (2, 2) of gradients of different sequences."""
    both, total = (np.float64(a_PX), np.float64(b_PX)), np.zeros((2, 2))
    for i in range(len(a_PX)):
        for j in range(len(a_PX)):
            if i != j:
                for s in range(2):
                    for t in range(2):
                        total[s, t] += both[s][i] @ both[t][j]
    return total


def naive_cosine(products: np.ndarray) -> float:
    if products[0, 0] <= 0 or products[1, 1] <= 0:
        return np.nan
    return float(products[0, 1] / np.sqrt(products[0, 0] * products[1, 1]))


def naive_corrected(a: Gradients, b: Gradients) -> tuple[np.ndarray, float]:
    """Returns the corrected cosines (R, N), and that of all cells but the keys' bias."""
    found, pooled = np.zeros((R, N)), np.zeros((2, 2))
    for r in range(R):
        for n in range(N):
            of = (a[r][:, n], b[r][:, n])
            apart = naive_apart(*of)
            found[r, n] = naive_cosine(apart)
            # Each cell in units of what a single sequence's gradient in it measures.
            unit = [np.sqrt(np.sum(x**2)) for x in of]
            if r > 0:
                pooled += apart / np.outer(unit, unit)
    return found, naive_cosine(pooled)


def numbers(values: Any) -> np.ndarray:
    """Returns nested lists as an array, with NaN where there is None."""
    return np.array(values, float)


def check(found: dict[str, Any], a: Gradients, b: Gradients) -> None:
    """Compares all results with plain gradients; that of the keys' bias is only rounding."""
    # Gradients in fp32, whose sums of a dozen terms are in another order.
    close = {"rtol": 1e-3, "atol": 2e-4}
    single_PRN = np.stack([cosine(x, y) for x, y in zip(a, b, strict=True)], axis=1)
    np.testing.assert_allclose(numbers(found["per_pair"])[1:], single_PRN.mean(axis=0)[1:], **close)
    mean_P = single_PRN[:, 1:].mean(axis=(1, 2))
    assert found["mean"] == pytest.approx(mean_P.mean(), rel=1e-3)
    error = mean_P.std(ddof=1) / np.sqrt(len(mean_P))
    assert found["mean_error"] == pytest.approx(error, rel=1e-3)
    np.testing.assert_allclose(found["per_layer"], single_PRN[:, 1:].mean(axis=(0, 1)), **close)
    sizes = [size for size in SIZES if size <= len(mean_P)]
    assert list(found["batches"]) == [str(size) for size in sizes]
    for size in sizes:
        batch = dict(found["batches"][str(size)])
        assert batch.pop("batches") == len(mean_P) // size
        expected = by_batches(a, b, size)
        halves = by_batches(a, b, size // 2) if size > 1 else {}
        for side in "ab":
            if f"within_{side}" in halves:
                expected[f"halves_{side}"] = halves[f"within_{side}"]
        assert batch == pytest.approx(expected, rel=1e-3, abs=2e-4)
    corrected_RN, pooled = naive_corrected(a, b)
    np.testing.assert_allclose(numbers(found["corrected"])[1:], corrected_RN[1:], **close)
    assert np.isfinite(corrected_RN[1:]).mean() > 0.9
    assert found["corrected_mean"] == pytest.approx(pooled, rel=1e-3)


# A model's gradients.


@dataclasses.dataclass(frozen=True)
class Adam:
    """A real state after two updates, and what it was made of."""

    config: OptimizerConfig
    before: Any
    state: Any
    divisor: list[np.ndarray]  # in the order of the rows, as the definition has it


@pytest.fixture(scope="module")
def adam(params) -> Adam:
    # An eps that is felt beside the gradients that v is made of.
    config = OptimizerConfig(eps=1e-3, clip_norm=1e9, weight_decay=0.1)
    tx, rng = optimizer.build_optimizer(config, steps=10), np.random.default_rng(2)
    blocks = {"blocks": params["blocks"]}

    def draw(leaf: np.ndarray) -> np.ndarray:
        size = 10.0 ** rng.uniform(-4, -1, leaf.shape)
        return np.float32(size * rng.standard_normal(leaf.shape))

    grads = [jax.tree.map(draw, blocks) for _ in range(2)]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def states(blocks: Any, grads: list[Any]) -> tuple[Any, Any]:
        before = state = tx.init(blocks)
        for grad in grads:
            _, state = tx.update(grad, state, blocks)
        return before, state

    before, state = states(blocks, grads)
    first, second = (rows_of(grad["blocks"]) for grad in grads)
    b2 = config.b2
    divisor = [
        np.sqrt((b2 * (1 - b2) * g**2 + (1 - b2) * h**2) / (1 - b2**2)) + config.eps
        for g, h in zip(first, second, strict=True)
    ]
    return Adam(config, before, state, divisor)


@pytest.fixture(scope="module", autouse=True)
def more_sizes():
    """Reports batches of sizes that a few sequences fill."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "SIZES", SIZES)
        yield


@dataclasses.dataclass(frozen=True)
class Measured:
    """A model's measurements, four sequences at once, with one compiled program for all."""

    programs: MeasurementPrograms
    params: model_lib.Params
    divisor: model_lib.Params

    def __call__(self, pairs: Pairs, poll: Any = no_poll) -> dict[str, Any]:
        measuring = Measuring(self.programs, self.params, MODEL, poll)
        return gradients.measure_gradients(measuring, pairs.ids, pairs.text, self.divisor, chunk=4)


@pytest.fixture(scope="module")
def measure(programs, params, adam) -> Measured:
    return Measured(
        programs, params, updates.compute_adam_divisor(programs, adam.state, adam.config)
    )


@pytest.fixture(scope="module")
def found(measure, pairs) -> dict[str, Any]:
    return measure(pairs)


def test_every_measure_is_that_of_plain_gradients_added_up_in_numpy(found, plain):
    check(found, *plain)
    assert found["sequences"] == P
    # It would not say much if the languages had nothing, or all, in common.
    assert 0.1 < abs(found["mean"]) < 0.9
    values = found["batches"]["8"]
    assert len({round(values[name], 2) for name in values}) == len(values)


def test_adam_divides_by_the_root_of_a_real_states_second_moment(found, plain, adam):
    scaled = [
        [grad / divisor.reshape(N, -1) for grad, divisor in zip(side, adam.divisor, strict=True)]
        for side in plain
    ]
    check(found["adam"], *scaled)
    plainly, divided = (numbers(x["per_pair"])[1:] for x in (found, found["adam"]))
    assert np.abs(plainly - divided).max() > 0.05


def test_before_the_first_update_adam_divides_by_nothing(programs, adam):
    assert updates.compute_adam_divisor(programs, adam.before, adam.config) is None


def test_rows_are_named_and_ordered_as_in_the_references_figure(found):
    assert found["rows"] == list(ROWS)
    assert numbers(found["per_pair"]).shape == numbers(found["corrected"]).shape == (R, N)


def test_keys_and_values_in_fewer_heads_have_the_names_of_the_others():
    grouped = random_params(dataclasses.replace(MODEL, kv_heads=1), V)
    assert list(gradients.list_rows(grouped["blocks"]).values()) == list(ROWS)


def test_the_gradient_of_the_keys_bias_is_rounding_and_means_leave_it_out(found, plain):
    for grads in plain:
        norms = [np.linalg.norm(grad) for grad in grads]
        assert norms[0] < 1e-5 * min(norms[1:])
    for result in (found, found["adam"]):
        per_pair = numbers(result["per_pair"])
        assert result["mean"] == pytest.approx(per_pair[1:].mean())
        assert result["mean_with_key_bias"] == pytest.approx(per_pair.mean())
        # They differ, so that one in the other's place would show.
        assert abs(per_pair.mean() - per_pair[1:].mean()) > 1e-3


def test_what_stands_in_the_padding_does_not_matter(measure, pairs, found):
    rng = np.random.default_rng(3)
    ids = [
        np.where(text_PL, ids_PL, rng.integers(0, V, ids_PL.shape))
        for ids_PL, text_PL in zip(pairs.ids, pairs.text, strict=True)
    ]
    noisy = Pairs((ids[0], ids[1]), pairs.text)
    assert any(np.any(x != y) for x, y in zip(noisy.ids, pairs.ids, strict=True))
    assert_same(measure(noisy), found, rtol=1e-6)


def assert_same(x: Any, y: Any, **tolerance: float) -> None:
    """Compares two results in all but what the keys' bias has a part in."""
    assert x.keys() == y.keys()
    for name in x.keys() - {"mean_with_key_bias"}:
        if name == "rows":
            assert x[name] == y[name]
        elif isinstance(x[name], dict):
            assert_same(x[name], y[name], **tolerance)
        else:
            ours, theirs = numbers(x[name]), numbers(y[name])
            if name in ("per_pair", "corrected"):
                ours, theirs = ours[1:], theirs[1:]
            np.testing.assert_allclose(ours, theirs, err_msg=name, **tolerance)


def test_as_many_sequences_are_worked_on_at_once_as_the_batch_size_allows(params):
    chosen = [gradients._choose_chunk_size(params, most) for most in (1, 2, 3, 5, 8, 12)]
    assert chosen == [1, 2, 2, 4, 8, 8]


def test_the_halves_are_the_corrected_cosines_of_every_other_sequence(found, plain):
    order_P = np.random.default_rng(0).permutation(P)
    for half, value in enumerate(found["corrected_halves"]):
        mine = order_P[half::2]
        _, pooled = naive_corrected(*([x[mine] for x in grads] for grads in plain))
        expected = pooled if np.isfinite(pooled) else None
        assert value == (expected if expected is None else pytest.approx(expected, rel=1e-3))


def test_three_pairs_are_too_few_to_say_anything_of(measure, pairs):
    assert measure(pairs.first(3)) == {"sequences": 3}


@pytest.mark.parametrize("count", [5, 13, 16])
def test_any_number_of_pairs_is_cut_into_batches_in_one_way(measure, pairs, plain, count):
    few = measure(pairs.first(count))
    a, b = ([grad[:count] for grad in side] for side in plain)
    check_sizes = [size for size in SIZES if size <= count]
    assert list(few["batches"]) == [str(size) for size in check_sizes]
    for size in check_sizes:
        expected = by_batches(a, b, size)
        batch = {name: few["batches"][str(size)][name] for name in expected}
        assert batch == pytest.approx(expected, rel=1e-3, abs=2e-4)
        # Without a sibling there is nothing to compare with.
        assert ("other_content" in few["batches"][str(size)]) == (count // size > 1)
    _, pooled = naive_corrected(a, b)
    if count > 5:  # or noise may have squares below 0
        assert few["corrected_mean"] == pytest.approx(pooled, rel=1e-3)


def test_a_language_is_in_all_things_like_itself(measure, pairs):
    itself = Pairs((pairs.ids[0],) * 2, (pairs.text[0],) * 2)
    same = measure(itself)
    # Dot products in fp32, one of them summed in another order.
    exact = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(numbers(same["per_pair"]), 1, **exact)
    assert same["mean"] == pytest.approx(1, abs=1e-6)
    for batch in same["batches"].values():
        assert batch["same_content"] == pytest.approx(1, abs=1e-6)
        if "within_a" in batch:
            assert batch["other_content"] == pytest.approx(batch["within_a"], abs=1e-6)
            assert batch["within_a"] == pytest.approx(batch["within_b"], abs=1e-6)
            assert batch["within_a"] < 0.99
    corrected = numbers(same["corrected"])[1:]
    assert np.isfinite(corrected).mean() > 0.9
    np.testing.assert_allclose(corrected[np.isfinite(corrected)], 1, rtol=0, atol=1e-4)
    assert same["corrected_mean"] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_devices_and_how_many_sequences_they_work_on_do_not_change_gradients(params, pairs, found):
    mesh = make_mesh(8, fsdp=2, tensor=2)
    placed = jax.device_put(params, sharding.make_state_shardings(mesh, params))
    measuring = Measuring(make_programs(mesh), placed, MODEL)
    # It chooses to have 8 gradients at once; and without a divisor there is no `adam`.
    expected = {name: value for name, value in found.items() if name != "adam"}
    # Sums of fp32 gradients in another order.
    result = gradients.measure_gradients(measuring, pairs.ids, pairs.text, None)
    assert_same(result, expected, rtol=1e-3, atol=1e-5)


def test_progress_is_told_until_all_pairs_are_done(measure, pairs):
    shares: list[float] = []
    measure(pairs, poll=shares.append)
    np.testing.assert_allclose(shares, [4 / 21, 8 / 21, 12 / 21, 16 / 21, 20 / 21, 1])


# Gradients that are planted: a part that all sequences of a language have, and noise.

X = 200  # elements of every parameter


def results_of(
    programs: MeasurementPrograms, a_PRNX: np.ndarray, b_PRNX: np.ndarray, chunk: int = 16
) -> dict[str, Any]:
    """Returns what is said of these gradients of each sequence, for each row and layer."""
    tree = gradients._GradientTree(programs, [], np.arange(R) > 0)
    for first in range(0, len(a_PRNX), chunk):
        part = np.stack([x[first : first + chunk] for x in (a_PRNX, b_PRNX)])
        filled = np.pad(part, ((0, 0), (0, chunk - part.shape[1]), *[(0, 0)] * 3), mode="wrap")
        products = np.einsum("iarnx,jbrnx->rniajb", filled, filled, optimize=True)[None]
        sums: list[dict[str, dict[str, Any]]] = [{"a": {}, "b": {}}, {"a": {}, "b": {}}]
        even = np.arange(first, first + part.shape[1]) % 2 == 0
        for which, of in zip(sums, (slice(None), even), strict=True):
            for side, x_BRNX in zip("ab", part, strict=True):
                for r, (group, name) in enumerate(ROWS.values()):
                    total = np.float32(x_BRNX[of].sum(axis=0)[r])
                    which[side].setdefault(group, {})[name] = total
        tree.add(*jax.device_put(sums), products, part.shape[1])
    tree.close()
    return tree.results()[0]


def planted(true: np.ndarray, count: int, noise: float, shared: float) -> tuple:
    """Returns gradients in two languages, (P, R, N, X) each.

    Args:
      true: cosine of the expected gradients, (R, N).
      count: of sequences.
      noise: norm of each sequence's own part; that of the expected gradient is 1.
      shared: cosine of the two languages' noise on the same content.
    """
    rng = np.random.default_rng(4)
    shape = (R, N, X)
    basis = np.linalg.qr(rng.standard_normal((*shape, 2)))[0]
    one, other = basis[..., 0], basis[..., 1]
    signal_b = true[..., None] * one + np.sqrt(1 - true[..., None] ** 2) * other
    draws = noise / np.sqrt(X) * rng.standard_normal((2, count, *shape))
    return one + draws[0], signal_b + shared * draws[0] + np.sqrt(1 - shared**2) * draws[1]


def test_the_corrected_cosine_is_the_truth_where_noise_shrinks_all_others(programs):
    true_RN = np.linspace(-0.9, 0.9, R * N).reshape(R, N)
    found = results_of(programs, *planted(true_RN, count=256, noise=3.0, shared=0.0))
    # The error of a cell is about noise / sqrt(X count) = 0.013 times a little.
    np.testing.assert_allclose(numbers(found["corrected"]), true_RN, rtol=0, atol=0.07)
    # A cosine of means over n sequences shrinks by 1 + noise^2 / n.
    slope = {
        size: np.polyfit(true_RN.ravel(), numbers(values).ravel(), 1)[0]
        for size, values in (("1", found["per_pair"]), ("corrected", found["corrected"]))
    }
    assert slope["1"] == pytest.approx(1 / 10, abs=0.01)
    assert slope["corrected"] == pytest.approx(1, abs=0.02)


def test_larger_batches_come_nearer_to_the_corrected_cosine_and_within_says_how_near(programs):
    true = 0.6
    found = results_of(programs, *planted(np.full((R, N), true), 256, noise=3.0, shared=0.0))
    assert found["corrected_mean"] == pytest.approx(true, abs=0.01)
    for size in SIZES:
        shrunk = 1 / (1 + 9 / size)
        batch = found["batches"][str(size)]
        # Means over 48 cells and at least 8 pairs of batches.
        for name in ("same_content", "other_content"):
            assert batch[name] == pytest.approx(true * shrunk, abs=0.02)
        for name in ("within_a", "within_b"):
            assert batch[name] == pytest.approx(shrunk, abs=0.02)


def test_what_two_languages_share_of_their_noise_is_no_common_direction(programs):
    found = results_of(programs, *planted(np.zeros((R, N)), 256, noise=3.0, shared=0.8))
    # Of the 1 + 9 of each squared norm, 0.8 x 9 is in common on the same content.
    assert found["mean"] == pytest.approx(0.72, abs=0.01)
    for size in SIZES:
        batch = found["batches"][str(size)]
        assert batch["same_content"] == pytest.approx(7.2 / size / (1 + 9 / size), abs=0.02)
        assert batch["other_content"] == pytest.approx(0, abs=0.02)
    assert found["corrected_mean"] == pytest.approx(0, abs=0.01)


def test_gradients_that_are_noise_alone_have_nothing_in_common(programs):
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((2, 32, R, N, X))
    found = results_of(programs, a, b)
    for size in SIZES:
        for name in ("same_content", "other_content", "within_a", "within_b"):
            assert found["batches"][str(size)][name] == pytest.approx(0, abs=0.02)


def test_a_corrected_cosine_without_a_positive_square_is_left_open(programs):
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((2, 32, R, N, X))
    squares = np.array(
        [
            [np.diag(naive_apart(noise[0][:, r, n], noise[1][:, r, n])) for n in range(N)]
            for r in range(R)
        ]
    )
    below = (squares < 0).sum(axis=-1)
    assert {0, 1, 2} == set(below.ravel().tolist())
    found = results_of(programs, *noise)
    np.testing.assert_array_equal(np.isnan(numbers(found["corrected"])), below > 0)


@pytest.mark.parametrize("count", [3, 8, 13, 16, 21])
def test_how_many_sequences_are_taken_at_once_does_not_matter(programs, count):
    given = planted(np.full((R, N), 0.5), count, noise=1.0, shared=0.5)
    whole, *others = (results_of(programs, *given, chunk=chunk) for chunk in (16, 8, 4, 2, 1))
    assert list(whole["batches"]) == [str(size) for size in SIZES if size <= count]
    for other in others:
        # Sums in fp32 in place of fp64.
        assert_same(other, whole, rtol=1e-4, atol=1e-5)


def test_a_corrected_cosine_is_that_of_a_sum_over_different_sequences(programs):
    a, b = planted(np.full((R, N), 0.3), 16, noise=2.0, shared=0.5)
    found = results_of(programs, a, b)
    as_rows = [[np.moveaxis(x, 1, 0)[r] for r in range(R)] for x in (a, b)]
    expected_RN, pooled = naive_corrected(*as_rows)
    np.testing.assert_allclose(numbers(found["corrected"]), expected_RN, rtol=1e-4)
    assert found["corrected_mean"] == pytest.approx(pooled, rel=1e-4)


# What each language has in an update.


def flat(grads: Any, name: str) -> np.ndarray:
    """Returns all elements of a gradient, or those of the blocks."""
    leaves = jax.tree.leaves(grads if name == "all" else grads[name])
    return np.concatenate([np.ravel(leaf).astype(float) for leaf in leaves])


@pytest.mark.slow
def test_each_languages_share_is_that_of_its_part_of_the_gradient(programs, params):
    B, G = 6, 3
    rng = np.random.default_rng(6)
    language_B = np.array([0, 1, 0, 0, 1, 0], np.int32)  # none of the third
    ids_BW = rng.integers(0, U, (B, L + 1)).astype(np.uint16)
    map_GU = np.stack([np.arange(U), U + np.arange(U), V - 1 - np.arange(U)]).astype(np.int32)
    batch = step_lib.Batch(ids_BW, language_B)
    found = updates.measure_language_shares(Measuring(programs, params, MODEL), batch, map_GU)

    grads = [
        plain_gradient(params, map_GU[language, ids_W], L + 1)
        for language, ids_W in zip(language_B, ids_BW, strict=True)
    ]
    parts = {}
    for name in ("all", "blocks"):
        parts[name] = np.zeros((G, flat(grads[0], name).size))
        for language, grad in zip(language_B, grads, strict=True):
            parts[name][language] += flat(grad, name) / B
    for name, field in (("all", "gradient_share"), ("blocks", "gradient_share_blocks")):
        whole = parts[name].sum(axis=0)
        expected_G = parts[name] @ whole / (whole @ whole)
        np.testing.assert_allclose(found[field], expected_G, rtol=1e-4)
        assert sum(found[field]) == pytest.approx(1, abs=1e-5)
        assert found[field][2] == 0
    assert found["gradient_share"][0] != pytest.approx(found["gradient_share_blocks"][0], rel=1e-3)
    norm_G = np.linalg.norm(parts["all"], axis=1)
    np.testing.assert_allclose(found["gradient_norm"], norm_G, rtol=1e-4)
    assert found["gradient_norm"][2] == 0
