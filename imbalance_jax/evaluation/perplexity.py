"""Loss per language on held-out text, and its exact split into two parts.

The windows are fixed and the same for all clones of a source. They never follow the
training ratio. One jitted pass gives sums per language; they are divided once, by the host.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import objective, sharding, tuning
from imbalance_jax.compute.step import Batch, label_windows, map_to_model_ids
from imbalance_jax.config import ModelConfig
from imbalance_jax.data.languages import Vocabulary

# What is summed over the scored positions of each language, on the devices.
_SUMMED = ("loss", "language_nats", "loss_own", "leak", "top1", "tokens")
SUMS = (*_SUMMED, "bytes")


@dataclasses.dataclass(frozen=True)
class EvaluationWindows:
    """Windows of one source's ids (n, W), and the weight of each target (n, L), 0 or 1.

    Only the last `scored` targets of a window have a weight: the others are context. What bits
    per byte count is known by the host alone, as it depends on the text and not on its ids.
    """

    ids_nW: np.ndarray
    weight_nL: np.ndarray
    scored: int
    starts_n: np.ndarray | None = None  # where each begins in its text, if in one
    bytes_n: np.ndarray | None = None  # UTF-8 bytes of the text of its scored targets, if known

    @property
    def scored_bytes(self) -> int:
        """Bytes of all scored text; 0 where they are not known."""
        return 0 if self.bytes_n is None else int(self.bytes_n.sum())


def cut_spread_windows(
    tokens: np.ndarray, L: int, most: int, bytes_t: np.ndarray | None = None
) -> EvaluationWindows:
    """Returns windows that follow each other, or `most` of them spread over the text.

    Every target is scored. `most=0` takes all windows. `bytes_t` are those of each token.
    """
    count = max(1, (len(tokens) - 1) // L)
    return _cut_windows(tokens, bytes_t, _choose_window_numbers(count, most) * L, L, scored=L)


def cut_strided_windows(
    tokens: np.ndarray, L: int, stride: int, most: int = 0, bytes_t: np.ndarray | None = None
) -> EvaluationWindows:
    """Returns windows `stride` apart, of which the last `stride` targets are scored.

    All of them, or `most` spread over the text. `bytes_t` are those of each token.

    So every scored target has at least L - stride ids before it. The first L - stride
    targets of the text are never scored, every later one exactly once; the last window may
    reach beyond the text. As the reference study does, with L=512 and stride=128.
    """
    targets = len(tokens) - 1
    count = max(1, -(-(targets - (L - stride)) // stride))
    return _cut_windows(
        tokens, bytes_t, _choose_window_numbers(count, most) * stride, L, scored=stride
    )


def _choose_window_numbers(count: int, most: int) -> np.ndarray:
    """Returns the numbers of all windows, or of `most` of them."""
    if most and most < count:
        return (np.arange(most) * count) // most
    return np.arange(count)


def sum_loss_by_text(
    loss_n: np.ndarray, windows: EvaluationWindows, starts_d: np.ndarray, most: int
) -> list[tuple[int, float, int]]:
    """Returns (number, loss, tokens) of each text of a split, from those of its windows.

    A window counts as the document in which its first scored target lies. Documents that
    follow each other go together where there are more than `most`.

    Args:
      loss_n: the loss of each window, in nats.
      windows: as `cut_strided_windows` makes them.
      starts_d: where each document begins.
      most: texts.
    """
    assert windows.starts_n is not None
    first_n = windows.starts_n + windows.weight_nL.shape[1] - windows.scored + 1
    document_n = np.searchsorted(starts_d, first_n, side="right") - 1
    text_n = document_n * min(most, len(starts_d)) // len(starts_d)
    tokens_n = windows.weight_nL.sum(axis=1)
    return [
        (int(text), float(loss_n[text_n == text].sum()), int(tokens_n[text_n == text].sum()))
        for text in np.unique(text_n)
    ]


def _cut_windows(
    tokens: np.ndarray, bytes_t: np.ndarray | None, starts: np.ndarray, L: int, scored: int
) -> EvaluationWindows:
    place_nW = starts[:, None] + np.arange(L + 1)
    inside_nW = place_nW < len(tokens)
    ids_nW = np.where(inside_nW, tokens[np.minimum(place_nW, len(tokens) - 1)], 0)
    weight_nL = inside_nW[:, 1:] & (np.arange(L) >= L - scored)
    bytes_n = None
    if bytes_t is not None:
        place_nL = np.minimum(place_nW[:, -scored:], len(tokens) - 1)
        bytes_n = (bytes_t[place_nL] * weight_nL[:, -scored:]).sum(axis=1, dtype=np.int64)
    return EvaluationWindows(ids_nW.astype(tokens.dtype), weight_nL, scored, starts, bytes_n)


class PerplexityEvaluator:
    """Scores every language on its source's windows, with one function, compiled once."""

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        mesh: Mesh,
        batch_size: int,
        dtype: np.dtype,
    ) -> None:
        """Args:
        batch_size: sequences that are scored at once, over all hosts.
        dtype: of the ids in windows.
        """
        self._batch_size = batch_size
        self._whole = whole = sharding.make_replicated_sharding(mesh)
        self._place(vocabulary)
        self._sharding, self._dtype = sharding.make_batch_sharding(mesh), dtype
        self._rows = distributed.HostRows(self._sharding, batch_size)
        whole_head = dataclasses.replace(config, loss_tile=vocabulary.size)  # there is no gradient
        self._model = tuning.resolve_auto_on_mesh(mesh, whole_head, batch_size, vocabulary.size)
        self._jitted = jax.jit(
            sharding.bind_mesh_context(mesh, _score_batch, self._model),
            static_argnums=0,
            out_shardings=whole,
        )
        self._compiled: dict[int, jax.stages.Compiled] = {}

    def _place(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        tables = (vocabulary.map_GU, vocabulary.own_GV)
        self._tables = distributed.place_whole_arrays(tables, self._whole)

    def of(self, vocabulary: Vocabulary) -> "PerplexityEvaluator":
        """Returns one for other id maps of the same shapes, with the same compiled programs."""
        other = copy.copy(self)
        other._place(vocabulary)
        return other

    def compile(self, params: model_lib.Params, scored: int) -> None:
        """Compiles the scoring of so many targets a window, ahead of its first use."""
        if scored in self._compiled:
            return

        def shape(one_row: np.ndarray) -> jax.ShapeDtypeStruct:
            dims = (self._batch_size, *one_row.shape[1:])
            return jax.ShapeDtypeStruct(dims, one_row.dtype, sharding=self._sharding)

        L = self._model.L
        one_row = self._label(np.zeros((1, L + 1), self._dtype), np.zeros(1, np.int32))
        batch, weight_BL = jax.tree.map(shape, (one_row, np.zeros((1, L), np.float32)))
        lowered = self._jitted.lower(scored, params, batch, weight_BL, *self._tables)
        self._compiled[scored] = lowered.compile()

    def _label(self, ids_BW: np.ndarray, language_B: np.ndarray) -> Batch:
        return label_windows(self._model, self._vocabulary, ids_BW, language_B)

    def __call__(
        self,
        params: model_lib.Params,
        windows: Sequence[EvaluationWindows],
        poll: Callable[[float], None] = lambda done: None,
    ) -> dict[str, dict[str, float]]:
        """Returns the metrics of each language by its tag: `summaries` of its `sums`."""
        return self.summaries(self.sums(params, windows, poll))

    def summaries(self, sums: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """Returns the metrics of each language by its tag, from its sums."""
        whole_G = np.all(self._vocabulary.own_GV, axis=1).tolist()
        found = {tag: compute_language_metrics(values) for tag, values in sums.items()}
        for g, tag in enumerate(self._vocabulary.tags):
            # Nothing lies outside a language that has the whole of a joint vocabulary.
            if whole_G[g] and len(whole_G) > 1:
                del found[tag]["leak"]
        return found

    def sums(
        self,
        params: model_lib.Params,
        windows: Sequence[EvaluationWindows],
        poll: Callable[[float], None] = lambda done: None,
    ) -> dict[str, dict[str, float]]:
        """Returns the sums over the scored targets of each language by its tag.

        Args: as for `measure`.
        """
        return self.measure(params, windows, poll)[0]

    def measure(
        self,
        params: model_lib.Params,
        windows: Sequence[EvaluationWindows],
        poll: Callable[[float], None] = lambda done: None,
    ) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
        """Returns the sums of each language by its tag, and the loss of each of its windows.

        Args:
          params: of the model.
          windows: of each language, in the vocabulary's order, all with the same `scored`;
            a language may have none.
          poll: called between batches with the share done; may raise to stop.
        """
        G = len(self._vocabulary.tags)
        totals = {name: np.zeros(G) for name in _SUMMED}
        losses: list[np.ndarray] = []
        total_rows = sum(len(w.ids_nW) for w in windows)
        scored = windows[0].scored
        self.compile(params, scored)
        score = self._compiled[scored]
        pending = None
        for number, (batch, weight_BL) in enumerate(self._batches(windows)):
            placed = jax.tree.map(self._rows.place, batch)
            found = score(params, placed, self._rows.place(weight_BL), *self._tables)
            # One batch late, so that the device never waits for the host.
            if pending:
                losses.append(_add_batch_sums(totals, pending))
            pending = found
            poll(number * self._batch_size / total_rows)
        if pending:
            losses.append(_add_batch_sums(totals, pending))
        poll(1.0)
        sums = {
            tag: {name: float(totals[name][g]) for name in _SUMMED}
            | {"bytes": float(windows[g].scored_bytes)}
            for g, tag in enumerate(self._vocabulary.tags)
        }
        loss_n = np.concatenate([*losses, np.zeros(0)])
        ends = np.cumsum([len(w.ids_nW) for w in windows])
        parts = np.split(loss_n[: ends[-1]], ends[:-1])
        return sums, dict(zip(self._vocabulary.tags, parts, strict=True))

    def _batches(self, windows: Sequence[EvaluationWindows]) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yields this host's rows of batches of all languages' windows."""
        place = [(g, n) for g, w in enumerate(windows) for n in range(len(w.ids_nW))]
        mine = self._rows.index_B
        for first in range(0, len(place), self._batch_size):
            rows = place[first : first + self._batch_size]
            # Rows of weight 0 fill the last batch, so that nothing compiles again.
            filled = [rows[b] if b < len(rows) else rows[0] for b in mine]
            ids_BW = np.stack([windows[g].ids_nW[n] for g, n in filled]).astype(self._dtype)
            weight_BL = np.stack([windows[g].weight_nL[n] for g, n in filled]).astype(np.float32)
            real = mine < len(rows)
            language_B = np.array([g for g, _ in filled], np.int32)
            yield self._label(ids_BW, language_B), weight_BL * real[:, None]


def _add_batch_sums(totals: dict[str, np.ndarray], found: Mapping[str, jax.Array]) -> np.ndarray:
    """Adds a batch's sums to the totals, and returns the loss of each of its rows."""
    for name in totals:
        totals[name] += np.asarray(found[name], np.float64)
    return np.asarray(found["loss_B"], np.float64)


def _score_batch(
    config: ModelConfig,
    scored: int,
    params: model_lib.Params,
    batch: Batch,
    weight_BL: jax.Array,
    map_GU: jax.Array,
    own_GV: jax.Array,
) -> dict[str, jax.Array]:
    """Returns sums per language over the scored positions of one batch, and each row's loss."""
    ids_BW = map_to_model_ids(batch, map_GU)
    hidden_BLD = model_lib.compute_last_hidden_state(params, config, ids_BW[:, :-1], batch.context)
    # Only what is scored goes through the head. L now counts those positions.
    hidden_BLD, weight_BL = hidden_BLD[:, -scored:], weight_BL[:, -scored:]
    found = objective.measure_predictions(
        hidden_BLD,
        model_lib.get_output_embeddings(params, config),
        ids_BW[:, -scored:],
        own_GV[batch.language_B],
        # The largest divisor, for strides that the chunk of training does not divide.
        chunk=max(c for c in range(1, config.loss_chunk + 1) if scored % c == 0),
    )
    found["tokens"] = jnp.ones_like(weight_BL)
    rows = {name: jnp.sum(found[name] * weight_BL, axis=1) for name in _SUMMED}
    G = map_GU.shape[0]
    sums = {name: jax.ops.segment_sum(rows[name], batch.language_B, G) for name in _SUMMED}
    return sums | {"loss_B": rows["loss"]}


def compute_language_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of one language from its sums.

    Perplexity is per token. Bits per byte count the UTF-8 bytes of the text that was scored,
    whatever a tokenizer makes of it; a separator is no text, so it adds loss and no byte.
    """
    tokens = sums["tokens"]
    means = {name: sums[name] / tokens for name in SUMS[:5]}
    return {
        "loss": means["loss"],
        "ppl": float(np.exp(means["loss"])),
        "bits_per_byte": sums["loss"] / np.log(2) / sums["bytes"] if sums["bytes"] else 0.0,
        "language_nats": means["language_nats"],
        "loss_own": means["loss_own"],
        "leak": means["leak"],
        "top1": means["top1"],
        "tokens": int(tokens),
        "bytes": int(sums["bytes"]),
    }
