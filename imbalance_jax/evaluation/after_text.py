"""Whether what a model read in one language serves it in another: losses, not geometry.

Anisotropy cannot fake a loss. Two questions are asked of the model as it is:

`measure_seen_losses`   Windows that training showed in the first language only, against windows
         that it never showed, both scored in the second. The order of the data is a function of the
         step, so which windows those are is known after the fact.
`measure_prefix_losses` The same ids of the second language after a prefix in the first: one that
         belongs before them (for clones the text just before, for others its translation), against
         an unrelated one at the same positions, and against none. Without a prefix the ids
         stand at earlier positions, so `unrelated` is the one to compare with.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import objective
from imbalance_jax.compute.context import NO_CONTEXT, Context
from imbalance_jax.config import ModelConfig
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.evaluation.hidden import SequencePairs, choose_partners
from imbalance_jax.evaluation.programs import Measuring


class MissingWindows(Exception):
    """A run has no windows to ask the question of; the message says why."""


def measure_seen_losses(
    measuring: Measuring,
    stream: Stream,
    maps: tuple[np.ndarray, np.ndarray],
    languages: tuple[int, int],
    *,
    steps: int,
    most: int,
    contexts: tuple[Context, Context] = (NO_CONTEXT, NO_CONTEXT),
) -> dict[str, Any]:
    """Returns the loss of windows seen in one language only and never seen, in nats per token.

    `in_second` is what transfer is read off, `in_first` what the model remembers at all.
    `gain` is the loss of unseen windows less that of seen ones, with its standard error.

    Args:
      measuring: the model after `steps` updates.
      stream: of the run.
      maps: base ids to the model's, of both languages.
      languages: the first and the second, by their places in config.tags.
      steps: of the run, so far.
      most: windows to score of either kind.
      contexts: what the model reads of either language besides ids.

    Raises:
      MissingWindows: there are no such windows.
    """
    window_of = find_exposed_windows(stream, languages, steps)
    draws = np.random.default_rng(0)
    ids = {}
    for name, window_n in window_of.items():
        if len(window_n) < 2:
            why = "never seen" if name == "unseen" else "seen in that language only"
            raise MissingWindows(f"fewer than two windows of the training text were {why}")
        chosen_n = np.sort(draws.permutation(window_n)[:most])
        ids[name] = stream.windows_at(languages[0], chosen_n).astype(np.int64)
    result: dict[str, Any] = {name: len(ids_nW) for name, ids_nW in ids.items()}
    for name, map_U, context in zip(("in_first", "in_second"), maps, contexts, strict=True):
        loss = {
            kind: compute_sequence_losses(
                measuring,
                map_U[ids_nW[:, :-1]],
                map_U[ids_nW[:, 1:]],
                np.ones((len(ids_nW), ids_nW.shape[1] - 1), bool),
                context,
            )
            for kind, ids_nW in ids.items()
        }
        means = {kind: float(loss_n.mean()) for kind, loss_n in loss.items()}
        squared = sum(float(x.var(ddof=1) / len(x)) for x in loss.values())
        gain = {"gain": means["unseen"] - means["seen"], "gain_error": squared**0.5}
        result[name] = means | gain
    return result


def find_exposed_windows(
    stream: Stream, languages: tuple[int, int], steps: int
) -> dict[str, np.ndarray]:
    """Returns the windows seen as the first language only, and those never seen, by then.

    Raises:
      MissingWindows: the languages do not draw from one text, or from none at all, or windows have
        no fixed place.
    """
    first, second = languages
    if stream.pools[first] != stream.pools[second]:
        raise MissingWindows("the languages draw from different texts")
    pool = stream.pools[first]
    if pool not in stream.windows:
        raise MissingWindows("the languages are not trained on")
    if stream.sequential or stream.windows[pool] > 1 << 28:
        raise MissingWindows("windows have a fixed place in shuffled order over a text with an end")
    as_first = np.zeros(stream.windows[pool], bool)
    otherwise = np.zeros(stream.windows[pool], bool)
    sharing = [g for g, name in enumerate(stream.pools) if name == pool and g != first]
    for step in range(steps):
        language_B, window_B = stream.order_of(step)
        as_first[window_B[language_B == first]] = True
        otherwise[window_B[np.isin(language_B, sharing)]] = True
    return {
        "seen": np.flatnonzero(as_first & ~otherwise),
        "unseen": np.flatnonzero(~as_first & ~otherwise),
    }


def measure_prefix_losses(
    measuring: Measuring, sequences: SequencePairs, context: Context = NO_CONTEXT
) -> dict[str, Any]:
    """Returns the loss in the second language after several prefixes, in nats per token.

    The first half of a sequence is the prefix, or as many ids as `sequences.prefix` says. The loss
    is that of the ids after the first one behind it. `gain` is over the unrelated prefix in the
    same language, paired, with its standard error over sequences.

    Args:
      measuring: the model.
      sequences: that say the same in both languages.
      context: what the model reads of both together besides ids.
    """
    lengths = tuple(text_PL.sum(axis=1) for text_PL in sequences.text)
    half = sequences.prefix or sequences.ids[0].shape[1] // 2
    if sequences.aligned:  # one text: what comes before in it, and what comes after
        kept = np.flatnonzero(lengths[0] >= half + 4)
        rest = [ids_PL[kept, half:] for ids_PL in sequences.ids]
        rest_P = lengths[1][kept] - half
    else:  # two texts: the beginning of the one before that of the other
        kept = np.flatnonzero((lengths[0] >= 4) & (lengths[1] >= 4))
        width = sequences.ids[0].shape[1] - half
        rest = [ids_PL[kept, :width] for ids_PL in sequences.ids]
        rest_P = np.minimum(lengths[1][kept], width)
    if len(kept) < 4:
        return {"sequences": len(kept)}
    before = [ids_PL[kept, :half] for ids_PL in sequences.ids]
    before_P = [np.minimum(length_P[kept], half) for length_P in lengths]
    other_P = choose_partners((before_P[0], before_P[1]))
    asked = {"none": (before[0], np.zeros(len(kept), int))}
    for side, own in enumerate(("", "_own") if sequences.aligned else ("",)):
        # As many ids of either, or the rest would not stand at the same positions.
        length_P = np.minimum(before_P[side], before_P[side][other_P])
        asked[f"related{own}"] = (before[side], length_P)
        asked[f"unrelated{own}"] = (before[side][other_P], length_P)
    result: dict[str, Any] = {"sequences": len(kept)}
    loss = {}
    for name, (prefix_PL, length_P) in asked.items():
        joined = _join_prefixes(prefix_PL, length_P, rest[1], rest_P, sequences.ids[0].shape[1])
        ids_PL, target_PL, weight_PL = joined
        loss[name] = compute_sequence_losses(measuring, ids_PL, target_PL, weight_PL, context)
        result[name] = float(loss[name].mean())
    for own in ("", "_own"):
        if f"related{own}" in loss:
            gain_P = loss[f"unrelated{own}"] - loss[f"related{own}"]
            result[f"gain{own}"] = float(gain_P.mean())
            result[f"gain{own}_error"] = float(gain_P.std(ddof=1) / len(gain_P) ** 0.5)
    return result


def _join_prefixes(
    prefix_PL: np.ndarray, prefix_P: np.ndarray, rest_PL: np.ndarray, rest_P: np.ndarray, L: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns inputs, targets and weights (P, L) of each row's prefix with its rest behind."""
    ids_PW = np.zeros((len(prefix_PL), L + 1), prefix_PL.dtype)
    weight_PL = np.zeros((len(prefix_PL), L), bool)
    for p, (begin, length) in enumerate(zip(prefix_P.tolist(), rest_P.tolist(), strict=True)):
        ids_PW[p, :begin] = prefix_PL[p, :begin]
        ids_PW[p, begin : begin + length] = rest_PL[p, :length]
        # The first id of the rest has no context without a prefix, so it is never scored.
        weight_PL[p, begin : begin + length - 1] = True
    return ids_PW[:, :-1], ids_PW[:, 1:], weight_PL


def compute_sequence_losses(
    measuring: Measuring,
    ids_nL: np.ndarray,
    target_nL: np.ndarray,
    weight_nL: np.ndarray,
    context: Context = NO_CONTEXT,
) -> np.ndarray:
    """Returns the mean loss of each sequence over the targets that have a weight: (n,)."""
    rows = {
        "ids": ids_nL.astype(np.int32),
        "target": target_nL.astype(np.int32),
        "weight": weight_nL.astype(np.float32),
    }
    sums, _ = measuring.rows(_sum_row_losses, rows, context)
    return sums["loss"].astype(np.float64) / weight_nL.sum(axis=1)


def _sum_row_losses(
    params: model_lib.Params,
    context: Context,
    rows: Mapping[str, jax.Array],
    real_B: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    hidden_BLD = model_lib.compute_last_hidden_state(params, config, rows["ids"], context)
    _, loss_BL = objective.cross_entropy(
        hidden_BLD, model_lib.get_output_embeddings(params, config), rows["target"], rows["weight"]
    )
    return {"loss": jnp.sum(loss_BL * rows["weight"], axis=1)}, {}
