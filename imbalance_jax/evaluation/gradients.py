"""Whether two languages pull the parameters the same way.

For each pair of sequences that say the same, the gradient of the loss in either language,
parameter by parameter and layer by layer. Their cosine for single sequences is what the
reference study shows; training sees the mean over a large batch. A cosine shrinks with the
noise of both gradients, so it is taken for the mean gradients of batches of several sizes,
and beside each stand

    same_content      of the two languages, on the same content
    other_content     of the two languages, on different content
    within_a, _b      of one language with itself, on different content: the most that noise
                      leaves of `other_content`
    halves_a, _b      of two batches of half the size, as `within`

`corrected` is the cosine of the expected gradients, which noise does not shrink: of the mean
product of gradients on different content, over all pairs of sequences. `adam` is all of it
once more with each element divided by sqrt(v) + eps, as an update of Adam is.

The parameters are those of the blocks, as in the reference. A constant added to all keys
cancels in the softmax, so the gradient of the keys' bias is nothing but rounding: means leave
it out, and `mean_with_key_bias` has it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import objective, tuning
from imbalance_jax.compute.context import NO_CONTEXT, Context
from imbalance_jax.config import ModelConfig
from imbalance_jax.evaluation.programs import MeasurementPrograms, Measuring, subtract_trees

SIZES = (1, 8, 64, 512)  # of the batches that are reported

# Path of a parameter within a block -> its name in the reference's figure, in that order. Keys and
# values in fewer heads have J in place of H.
ROWS: Mapping[str, str] = {
    "attention/b_k_HK": "attn K.bias",
    "attention/b_k_JK": "attn K.bias",
    "attention/w_k_DHK": "attn K.weight",
    "attention/w_k_DJK": "attn K.weight",
    "attention/b_o_D": "attn O.bias",
    "attention/w_o_HKD": "attn O.weight",
    "attention/b_q_HK": "attn Q.bias",
    "attention/w_q_DHK": "attn Q.weight",
    "attention/b_v_HK": "attn V.bias",
    "attention/b_v_JK": "attn V.bias",
    "attention/w_v_DHK": "attn V.weight",
    "attention/w_v_DJK": "attn V.weight",
    "norm_1/bias_D": "ln1.bias",
    "norm_1/scale_D": "ln1.weight",
    "norm_2/bias_D": "ln2.bias",
    "norm_2/scale_D": "ln2.weight",
    "feed_forward/b_up_F": "mlp fc.bias",
    "feed_forward/w_up_DF": "mlp fc.weight",
    "feed_forward/b_down_D": "mlp proj.bias",
    "feed_forward/w_down_FD": "mlp proj.weight",
}
KEY_BIAS = "attn K.bias"  # left out of means: a softmax takes all but noise off its gradient

# Gradients of single sequences that exist at once, in bytes.
_GRADIENT_BYTES = {"cpu": 1 << 28}
_GRADIENT_BYTES_ELSEWHERE = 1 << 33

# The cosines of two sibling batches 0 and 1 in languages a and b that are averaged.
_A0, _B0, _A1, _B1 = ((language, batch) for batch in range(2) for language in range(2))
_COSINES = {
    "same_content": ((_A0, _B0), (_A1, _B1)),
    "other_content": ((_A0, _B1), (_A1, _B0)),
    "within_a": ((_A0, _A1),),
    "within_b": ((_B0, _B1),),
}
_TINY = 1e-300


def measure_gradients(
    measuring: Measuring,
    ids: tuple[np.ndarray, np.ndarray],
    text: tuple[np.ndarray, np.ndarray],
    divisor: model_lib.Params | None,
    contexts: tuple[Context, Context] = (NO_CONTEXT, NO_CONTEXT),
    *,
    chunk: int = 0,
) -> dict[str, Any]:
    """Returns the cosines of two languages' gradients, ready for JSON.

    `per_pair` is the mean over single pairs for each parameter and layer, [R][N], with `rows`
    its parameters; `corrected` likewise. `mean` and `batches` are means over all of these but
    the keys' bias, and `per_layer` over the parameters of a layer.

    Args:
      measuring: the model; polled between chunks.
      ids: (P, L) of either language, the model's; rows of one place say the same.
      text: (P, L) bool of either, which positions hold text.
      divisor: sqrt(v) + eps of the blocks' parameters, from `compute_adam_divisor`; None leaves
        `adam` out.
      contexts: what the model reads of either language besides ids.
      chunk: sequences whose gradients exist at once, a power of two; 0 chooses. The result
        does not depend on it.
    """
    P = len(ids[0])
    if P < 4:
        return {"sequences": P}
    # In an order that has nothing to do with the text's: siblings differ in content.
    order_P = np.random.default_rng(0).permutation(P)
    rows = {"ids_a": ids[0], "ids_b": ids[1], "text_a": text[0], "text_b": text[1]}
    rows = {name: values[order_P] for name, values in rows.items()}
    programs, params = measuring.programs, measuring.params
    chunk = chunk or _choose_chunk_size(params, programs.batch_size)
    divisors = [] if divisor is None else [divisor]
    names = list_rows(params["blocks"])
    counted_R = np.array([name != KEY_BIAS for name in names.values()])
    tree = _GradientTree(programs, divisors, counted_R)
    for first in range(0, P, chunk):
        place_B = np.arange(first, first + chunk)
        real_B = place_B < P
        part = {name: values[np.where(real_B, place_B, first)] for name, values in rows.items()}
        sums, halves, products = programs.run(
            _compute_chunk_gradients,
            params,
            programs.place(part),
            np.stack([real_B & (place_B % 2 == half) for half in range(2)]),
            divisors,
            contexts,
            config=measuring.config,
        )
        tree.add(sums, halves, jax.device_get(products), int(real_B.sum()))
        measuring.poll(min(1.0, (first + chunk) / P))
    tree.close()
    found = tree.results()
    result = {"sequences": P, "rows": list(names.values()), **found[0]}
    return result | ({"adam": found[1]} if divisor is not None else {})


def list_rows(blocks: model_lib.Params) -> dict[str, str]:
    """Returns the name of each parameter of a block by its path, those of the figure first.

    A parameter that the reference's model does not have goes by its path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(blocks)
    paths = sorted("/".join(entry.key for entry in path) for path, _ in leaves)
    known = {path: name for path, name in ROWS.items() if path in paths}
    return known | {path: path for path in paths if path not in known}


def _choose_chunk_size(params: model_lib.Params, most: int) -> int:
    """Returns how many sequences' gradients may exist at once: a power of two."""
    each = 4 * sum(leaf.size for leaf in jax.tree.leaves(params["blocks"]))
    limit = _GRADIENT_BYTES.get(jax.default_backend(), _GRADIENT_BYTES_ELSEWHERE)
    fitting = max(1, min(most, SIZES[-1], limit // (3 * each)))
    return 1 << (fitting.bit_length() - 1)


def _compute_chunk_gradients(
    params: model_lib.Params,
    rows: Mapping[str, jax.Array],
    half_2B: jax.Array,
    divisors: list[model_lib.Params],
    contexts: tuple[Context, Context],
    *,
    config: ModelConfig,
) -> tuple[dict[str, model_lib.Params], dict[str, model_lib.Params], jax.Array]:
    """The summed gradients of the rows in either half, those of the first, and all products.

    The products are (S, R, N, 2, B, 2, B): of a language and row with a language and row.
    """

    # The logits of all sequences exist at once, though each has a gradient of its own.
    B, L = rows["ids_a"].shape
    chunk = tuning.choose_loss_chunk(2 * B, L, params["embed_VD"].shape[0], jax.default_backend())

    def loss(
        blocks: model_lib.Params, ids_L: jax.Array, text_L: jax.Array, context: Context
    ) -> jax.Array:
        return _compute_text_loss(
            {**params, "blocks": blocks}, config, chunk, ids_L[None], text_L[None], context
        )

    ids, text = (jnp.stack([rows[f"{name}_a"], rows[f"{name}_b"]]) for name in ("ids", "text"))
    gradient = jax.vmap(jax.vmap(jax.grad(loss), (None, 0, 0, None)), (None, 0, 0, 0))
    context = jax.tree.map(lambda a, b: jnp.stack([a, b]), *contexts)
    grads = gradient(params["blocks"], ids, text, context)
    weight_2B = jnp.stack([jnp.any(half_2B, axis=0), half_2B[0]]).astype(jnp.float32)
    whole, first = (
        {
            side: jax.tree.map(lambda x, i=i, w=weight_B: jnp.tensordot(w, x[i], axes=1), grads)
            for i, side in enumerate("ab")
        }
        for weight_B in weight_2B
    )
    return whole, first, _compute_products(grads, divisors)


def _compute_text_loss(
    params: model_lib.Params,
    config: ModelConfig,
    chunk: int,
    ids_BL: jax.Array,
    text_BL: jax.Array,
    context: Context,
) -> jax.Array:
    """Returns the summed loss of all ids of the text but the first, over L."""
    hidden_BLD = model_lib.compute_last_hidden_state(params, config, ids_BL, context)
    target_BL = jnp.roll(ids_BL, -1, axis=1)
    weight_BL = jnp.roll(text_BL, -1, axis=1).at[:, -1].set(False)
    total, _ = objective.cross_entropy(
        hidden_BLD,
        model_lib.get_output_embeddings(params, config),
        target_BL,
        weight_BL.astype(jnp.float32),
        chunk=chunk,
    )
    return total / ids_BL.shape[1]


def _compute_products(grads: model_lib.Params, divisors: list[model_lib.Params]) -> jax.Array:
    """Returns the products of every two gradients, for each parameter and layer.

    (S, R, N, 2, B, 2, B), where S counts the gradients as they are, and after division by each
    of the divisors.

    Args:
      grads: of B batches in two languages, (2, B, N, ...) each.
      divisors: of each element, (N, ...) each.
    """

    def of(path: str) -> jax.Array:
        grad = _get_leaf(grads, path)
        grad_2BNx = grad.reshape(*grad.shape[:3], -1)
        scaled = [grad_2BNx]
        for divisor in divisors:
            scaled.append(grad_2BNx / _get_leaf(divisor, path).reshape(1, 1, grad.shape[2], -1))
        return jnp.stack([jnp.einsum("iaNx,jbNx->Niajb", x, x) for x in scaled])

    return jnp.stack([of(path) for path in list_rows(grads)], axis=1)


def _get_leaf(tree: Mapping[str, Any], path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _compute_sum_products(
    x: Mapping[str, model_lib.Params],
    y: Mapping[str, model_lib.Params],
    divisors: list[model_lib.Params],
) -> jax.Array:
    """The products of two sums, each in both languages: (S, R, N, 2, 2, 2, 2)."""
    both = [jax.tree.map(lambda x, y: jnp.stack([x, y]), x[side], y[side]) for side in "ab"]
    return _compute_products(jax.tree.map(lambda a, b: jnp.stack([a, b]), *both), divisors)


def _add_trees(x: Any, y: Any) -> Any:
    return jax.tree.map(jnp.add, x, y)


class _GradientTree:
    """Sums of gradients of 1, 2, 4, ... sequences, and the products of siblings at each level."""

    def __init__(
        self,
        programs: MeasurementPrograms,
        divisors: list[model_lib.Params],
        counted_R: np.ndarray,
    ) -> None:
        self._programs, self._divisors, self._counted_R = programs, divisors, counted_R
        self._waiting: dict[int, Any] = {}  # size -> a sum whose sibling is still to come
        self._total: Any = None
        self._first: Any = None  # of the first, third, ... sequences only
        # size -> name -> cosines, each (S, R, N)
        self._cosines: dict[int, dict[str, list[np.ndarray]]] = {}
        self._seen = 0  # sequences so far
        # Products of each sequence with itself, summed over either half: (2, S, R, N, 2, 2).
        self._own: Any = 0.0

    def add(self, sums: Any, first: Any, products: np.ndarray, real: int) -> None:
        """Takes in what `_compute_chunk_gradients` found of a chunk, of which so many sequences
        are real.
        """
        chunk = products.shape[-1]
        here = np.asarray(products, np.float64)
        own = np.einsum("...iaja->a...ij", here)[:real]
        odd = (self._seen + np.arange(real)) % 2 == 1
        self._own = self._own + np.stack([own[~odd].sum(axis=0), own[odd].sum(axis=0)])
        self._seen += real
        self._first = (
            first if self._first is None else self._programs.run(_add_trees, self._first, first)
        )
        size = 1
        while size < chunk:  # the chunk as a whole has a sibling elsewhere
            for left in range(0, real // size, 2):
                right = min(left + 2, real // size)
                self._keep(size, here[..., left:right, :, left:right])
            # Products of sums are sums of products.
            here = here[..., ::2, :, :] + here[..., 1::2, :, :]
            here = here[..., ::2] + here[..., 1::2]
            size *= 2
        self._total = (
            sums if self._total is None else self._programs.run(_add_trees, self._total, sums)
        )
        if real < size:
            return
        # Joined with its sibling, if that waits, and their sum with its own: like a counter.
        while size in self._waiting:
            before = self._waiting.pop(size)
            self._keep(size, self._products(before, sums))
            sums = self._programs.run(_add_trees, before, sums)
            size *= 2
        self._waiting[size] = sums

    def close(self) -> None:
        """Takes in the batches that have no sibling."""
        for size, sums in self._waiting.items():
            self._keep(size, self._products(sums, sums)[..., :1, :, :1])
        self._waiting = {}

    def _products(self, x: Any, y: Any) -> np.ndarray:
        found = jax.device_get(self._programs.run(_compute_sum_products, x, y, self._divisors))
        return np.asarray(found, np.float64)

    def _keep(self, size: int, products: np.ndarray) -> None:
        """Keeps the cosines of batches.

        Args:
          size: of the batches.
          products: (S, R, N, 2, n, 2, n), of two siblings or of one batch without one.
        """
        kept = self._cosines.setdefault(size, {})
        count = products.shape[-1]
        norm = np.sqrt(np.einsum("...iaia->...ia", products))
        for name, parts in _COSINES.items():
            for x, y in parts:
                if max(x[1], y[1]) < count:
                    norms = norm[(..., *x)] * norm[(..., *y)]
                    cosine = products[(..., *x, *y)] / np.maximum(norms, _TINY)
                    kept.setdefault(name, []).append(cosine)

    def results(self) -> list[dict[str, Any]]:
        """Returns what `measure_gradients` says of the gradients as they are, and divided."""
        cosines = {
            size: {name: np.stack(parts) for name, parts in found.items()}
            for size, found in self._cosines.items()
        }
        rest = self._programs.run(subtract_trees, self._total, self._first)
        sums = self._products(self._first, rest)
        totals = [sums.sum(axis=(-3, -1)), sums[..., 0, :, 0], sums[..., 1, :, 1]]
        owns = [self._own.sum(axis=0), *self._own]
        counts = [self._seen, (self._seen + 1) // 2, self._seen // 2]
        apart = []  # of all sequences, and of either half
        for total, own, count in zip(totals, owns, counts, strict=True):
            if count < 2:  # no two of them
                apart.append(np.full_like(total, np.nan))
                continue
            # In units of a sequence's own gradient: sums over parameters weigh all alike.
            norm = np.sqrt(np.maximum(np.einsum("...ii->...i", own), _TINY))
            # Products of different sequences: all of them, less those of each with itself.
            apart.append((total - own) / (norm[..., :, None] * norm[..., None, :]))
        return [
            _summarise_cosines(
                {s: {n: x[:, w] for n, x in c.items()} for s, c in cosines.items()},
                each,
                self._counted_R,
            )
            for w, each in enumerate(np.stack(apart, axis=1))
        ]


def _summarise_cosines(
    cosines: Mapping[int, Mapping[str, np.ndarray]], apart: np.ndarray, counted: np.ndarray
) -> dict[str, Any]:
    """Returns the results of gradients as they are, or divided.

    Args:
      cosines: size -> name -> (batches or siblings, R, N).
      apart: summed products of different sequences in the two languages, of all of them and
        of either half: (3, R, N, 2, 2).
      counted: (R,) bool, which parameters are in means.
    """
    single = cosines[1]["same_content"]
    mean_P = single[:, counted].mean(axis=(1, 2))
    batches = {}
    for size in SIZES:
        if size not in cosines:
            continue
        here = {name: float(x[:, counted].mean()) for name, x in cosines[size].items()}
        for name in ("within_a", "within_b"):
            if name in cosines.get(size // 2, {}):
                halves = float(cosines[size // 2][name][:, counted].mean())
                here[name.replace("within", "halves")] = halves
        batches[str(size)] = {"batches": len(cosines[size]["same_content"]), **here}
    corrected = _compute_cosines(apart[0])
    return {
        "per_pair": single.mean(axis=0).tolist(),
        "mean": float(mean_P.mean()),
        "mean_error": float(mean_P.std(ddof=1) / np.sqrt(len(mean_P))),
        "mean_with_key_bias": float(single.mean()),
        "per_layer": single[:, counted].mean(axis=(0, 1)).tolist(),
        "batches": batches,
        "corrected": [[_replace_nonfinite(x) for x in row] for row in corrected],
        # Of all parameters together: the noise of one is large beside what is left of it.
        "corrected_mean": _replace_nonfinite(_compute_pooled_cosine(apart[0], counted)),
        # Of either half of the sequences alone: how far they are apart is how sure it is.
        "corrected_halves": [
            _replace_nonfinite(_compute_pooled_cosine(half, counted)) for half in apart[1:]
        ],
    }


def _compute_pooled_cosine(apart: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return _compute_cosines(apart[counted].sum(axis=(0, 1)))


def _compute_cosines(products: np.ndarray) -> np.ndarray:
    """Returns the cosines in (..., 2, 2) products; NaN where noise has a square below 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        # A root of each: two squares below 0 have a product above it.
        return products[..., 0, 1] / (np.sqrt(products[..., 0, 0]) * np.sqrt(products[..., 1, 1]))


def _replace_nonfinite(value: float | np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None
