"""word2vec on the stream of a run: vectors of pieces that know only their neighbours.

CBOW and skip-gram with negative sampling (Mikolov et al. 2013), as word2vec.c and gensim train
them: the window of each position is cut to a random width, frequent ids are left out now and
then before windows are taken, negatives are drawn by a power of the counts, the context's mean
predicts its centre (and each context id gets the whole of the mean's gradient), and the rate
falls linearly with the tokens gone through.

They update after each position, and their threads overwrite each other. Here an update is the
sum of those of `Settings.positions` neighbours, all taken at the vectors before it, and every
`Settings.group` of them share their negatives: the same gradient on average, as a few products
of small matrices. A sum and not a mean, so that the rate means what it means there; it is
stable as long as few positions of an update have one id, and groups are small. A group's
positions are far apart: contexts of neighbours are alike, and with the same negatives so would
be their errors (docs/word2vec.md has what that costs). The contexts of a position share them as
well where each predicts it alone, and are taken at once.

Dimensions of this file: S updates sent together, T positions of one, C = T + 2 window with what
is beside them, Q groups of t positions, n negatives, m = n + t output vectors of a group.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

METHODS = ("cbow", "skipgram")
_NOWHERE = -1  # the sentence of what fills the ends of the stream
# Positions that are sent to the device together.
_CHUNK = 1 << 15

Sentences = Callable[[], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Word2VecSettings:
    """How vectors are made; the defaults are the reference study's."""

    method: str = "cbow"  # or skipgram
    dimension: int = 768
    window: int = 5  # ids on either side, at most
    negatives: int = 20  # for each position
    exponent: float = 0.75  # of the counts that negatives are drawn by
    sample: float = 1e-3  # ids with a larger share of the tokens are left out at times; 0 is never
    min_count: int = 1  # rarer ids are left out
    epochs: int = 1
    start_rate: float = 0.025
    end_rate: float = 1e-4
    positions: int = 256  # of an update; a multiple of group
    group: int = 16  # positions that share their negatives
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"--method={self.method}: choose {' or '.join(METHODS)}.")
        sizes = ("dimension", "window", "negatives", "min_count", "epochs", "positions", "group")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}={getattr(self, name)}: it must be 1 or more.")
        if self.positions % self.group:
            raise ValueError(
                f"--positions={self.positions} are not whole groups of --group={self.group}. Set "
                "the first to a multiple of the second."
            )
        for name in ("sample", "exponent"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name}={getattr(self, name)}: it must be 0 or more.")
        if not 0 <= self.end_rate <= self.start_rate < math.inf:
            raise ValueError(
                f"--start_rate={self.start_rate} and --end_rate={self.end_rate}: the rate falls "
                "from the first to the second, which must be 0 or more."
            )


@dataclasses.dataclass(frozen=True)
class PieceVectors:
    """What was learnt of each id; those of ids that never occurred are as they began."""

    input_VD: np.ndarray  # of an id in a context
    output_VD: np.ndarray  # of an id that is predicted
    kept: int  # positions that were trained on, over all epochs


def count_ids(sentences: Sentences, size: int) -> np.ndarray:
    """Returns how often each of `size` ids occurs: (V,)."""
    count_V = np.zeros(size, np.int64)
    for ids_BL in sentences():
        count_V += np.bincount(ids_BL.ravel(), minlength=size)
    return count_V


def keep_probability(count_V: np.ndarray, settings: Word2VecSettings) -> np.ndarray:
    """Returns how likely an occurrence of each id is to be trained on: (V,).

    As word2vec.c: sqrt(t / f) + t / f for an id that is f of all tokens, with t = sample.
    """
    count_V = np.where(count_V >= settings.min_count, count_V, 0)
    if not settings.sample:
        return (count_V > 0).astype(float)
    ratio_V = settings.sample * count_V.sum() / np.maximum(count_V, 1)
    return np.where(count_V > 0, np.minimum(1, np.sqrt(ratio_V) + ratio_V), 0)


def train_vectors(
    sentences: Sentences,
    count_V: np.ndarray,
    settings: Word2VecSettings,
    poll: Callable[[float], None] = lambda share: None,
) -> PieceVectors:
    """Returns the vectors that a stream makes.

    Args:
      sentences: each call returns the same blocks of ids, (B, L) each; a row is a sentence,
        which no window leaves.
      count_V: of `count_ids`.
      settings: as they say.
      poll: called now and then with the share done.

    Raises:
      ValueError: nothing is left to train on.
    """
    keep_V = keep_probability(count_V, settings)
    if np.count_nonzero(keep_V) < 2:
        raise ValueError(
            f"--min_count={settings.min_count} leaves fewer than two ids. Set it lower, or use "
            "more text."
        )
    V, D = len(count_V), settings.dimension
    # As in gensim: the inputs within 1 / D of 0, the outputs at 0.
    input_VD = (2 * _draw_uniform((V, D), settings.seed, 0) - 1) / D
    tables = (jnp.asarray(input_VD, jnp.float32), jnp.zeros((V, D), jnp.float32))
    kept = 0
    for chunk in _make_chunks(sentences, count_V, keep_V, settings):
        kept += chunk.real
        tables = _update_tables(
            tables,
            (chunk.id_SC, chunk.sentence_SC, chunk.width_ST, chunk.negative_SQn, chunk.rate_S),
            method=settings.method,
            window=settings.window,
        )
        poll(chunk.share)
    input_, output = (np.asarray(table) for table in tables)
    return PieceVectors(input_, output, kept)


# On the host: what is drawn, and what is left of the stream.


@dataclasses.dataclass(frozen=True)
class _UpdateChunk:
    """What a number of updates is made from."""

    id_SC: np.ndarray
    sentence_SC: np.ndarray  # its number in the stream; _NOWHERE beyond the ends
    width_ST: np.ndarray  # of each position's window; 0 beyond the end
    negative_SQn: np.ndarray  # ids, of each group
    rate_S: np.ndarray
    real: int  # positions that are not beyond the end
    share: float  # of all tokens that are gone through after it


def _draw_uniform(shape: tuple[int, ...], seed: int, *place: int) -> np.ndarray:
    """Returns float64 in [0, 1), of a stream of their own for each seed and place."""
    key = np.random.SeedSequence([seed, *place]).generate_state(2, np.uint64)
    # Raw bits: numpy promises that they never change, unlike Generator's methods.
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)


def _subsample_blocks(
    sentences: Sentences, keep_V: np.ndarray, settings: Word2VecSettings
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields what is left of each block: ids, sentences, and tokens gone through before."""
    tokens = sentence = 0
    for epoch in range(settings.epochs):
        for number, ids_BL in enumerate(sentences()):
            drawn_BL = _draw_uniform(ids_BL.shape, settings.seed, 1, epoch, number)
            row_n, place_n = np.nonzero(drawn_BL < keep_V[ids_BL])
            before_n = tokens + row_n * ids_BL.shape[1] + place_n
            yield ids_BL[row_n, place_n], sentence + row_n, before_n
            tokens += ids_BL.size
            sentence += len(ids_BL)


def _make_chunks(
    sentences: Sentences, count_V: np.ndarray, keep_V: np.ndarray, settings: Word2VecSettings
) -> Iterator[_UpdateChunk]:
    """Yields all updates of a training."""
    T, w = settings.positions, settings.window
    total = int(count_V.sum()) * settings.epochs
    S = max(1, min(_CHUNK, total) // T)
    weight_V = np.where(keep_V > 0, count_V, 0) ** settings.exponent
    upto_V = np.cumsum(weight_V) / weight_V.sum()

    def drawn(waiting: list[np.ndarray], number: int, real: int) -> _UpdateChunk:
        id_n, sentence_n, before_n = waiting
        windows = [
            np.lib.stride_tricks.sliding_window_view(values[: S * T + 2 * w], T + 2 * w)[::T]
            for values in (id_n, sentence_n)
        ]
        width_ST = 1 + (w * _draw_uniform((S, T), settings.seed, 2, number)).astype(np.int32)
        shape = (S, T // settings.group, settings.negatives)
        drawn_SQn = _draw_uniform(shape, settings.seed, 3, number)
        negative_SQn = np.searchsorted(upto_V, drawn_SQn, side="right")
        share_S = before_n[w : w + S * T : T] / total
        rate_S = settings.start_rate - (settings.start_rate - settings.end_rate) * share_S
        return _UpdateChunk(
            id_SC=windows[0].astype(np.int32),
            sentence_SC=windows[1].astype(np.int32),
            width_ST=np.where(windows[1][:, w : w + T] == _NOWHERE, 0, width_ST),
            negative_SQn=negative_SQn.astype(np.int32),
            rate_S=rate_S.astype(np.float32),
            real=real,
            share=float(before_n[w + real - 1] + 1) / total,
        )

    def beyond(length: int, before: int) -> tuple[np.ndarray, ...]:
        return np.zeros(length, int), np.full(length, _NOWHERE), np.full(length, before)

    number = 0
    waiting = list(beyond(w, 0))
    for block in _subsample_blocks(sentences, keep_V, settings):
        waiting = [np.concatenate(pair) for pair in zip(waiting, block, strict=True)]
        while len(waiting[0]) >= S * T + 2 * w:
            yield drawn(waiting, number, S * T)
            number += 1
            waiting = [values[S * T :] for values in waiting]
    left = len(waiting[0]) - w  # positions; a few more than a chunk has, at most
    end = beyond(2 * S * T + 2 * w, total)
    waiting = [np.concatenate(pair) for pair in zip(waiting, end, strict=True)]
    while left > 0:
        yield drawn(waiting, number, min(left, S * T))
        number += 1
        left -= S * T
        waiting = [values[S * T :] for values in waiting]


# On the device.


@functools.partial(jax.jit, static_argnames=("method", "window"), donate_argnames="tables")
def _update_tables(
    tables: tuple[jax.Array, jax.Array], chunk: tuple[jax.Array, ...], *, method: str, window: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the input and output vectors after the updates of a chunk."""
    w, learn = (
        window,
        {"cbow": _compute_cbow_changes, "skipgram": _compute_skipgram_changes}[method],
    )

    def one(tables, update):
        input_VD, output_VD = tables
        id_C, sentence_C, width_T, negative_Qn, rate = update
        within = {
            o: (abs(o) <= width_T)
            & (_take_at_offset(sentence_C, o, w) == _take_at_offset(sentence_C, 0, w))
            for o in (*range(-w, 0), *range(1, w + 1))
        }
        # Neighbours go to different groups: their contexts are alike, and so would be what
        # the same negatives make of them.
        centre_Qt = _take_at_offset(id_C, 0, w).reshape(-1, len(negative_Qn)).T
        # A table is read and written once; XLA copies it where there is more.
        out_Qm = jnp.concatenate([negative_Qn, centre_Qt], axis=1)
        x_CD, y_QmD = input_VD[id_C], output_VD[out_Qm]
        change_CD, change_QmD = learn(x_CD, y_QmD, within, _compute_roles(negative_Qn, centre_Qt))
        input_VD = input_VD.at[id_C].add(rate * change_CD)
        return (input_VD, output_VD.at[out_Qm].add(rate * change_QmD)), None

    return jax.lax.scan(one, tables, chunk)[0]


def _compute_roles(negative_Qn: jax.Array, centre_Qt: jax.Array) -> jax.Array:
    """Returns what each output vector of a group is to each of its positions: (Q, t, m).

    1 for the position's own, -1 for a negative, and 0 for other positions' own and for a
    negative that is the id itself.
    """
    Q, t = centre_Qt.shape
    negative_Qtn = -(negative_Qn[:, None] != centre_Qt[..., None]).astype(jnp.float32)
    own_Qtt = jnp.broadcast_to(jnp.eye(t), (Q, t, t))
    return jnp.concatenate([negative_Qtn, own_Qtt], axis=2)


def _take_at_offset(values_C: jax.Array, o: int, w: int) -> jax.Array:
    """Returns what stands o places after each position: (T, ...)."""
    return values_C[w + o : len(values_C) - w + o]


def _scatter_to_windows(values_TD: jax.Array, within: dict[int, jax.Array], w: int) -> jax.Array:
    """Adds each position's values to all places of its window: (C, D)."""
    around = jnp.pad(values_TD, ((2 * w, 2 * w), (0, 0)))
    total_CD = jnp.zeros((len(values_TD) + 2 * w, values_TD.shape[1]))
    for o, inside_T in within.items():
        total_CD += _take_at_offset(jnp.pad(inside_T, 2 * w)[:, None] * around, -o, w)
    return total_CD


def _compute_prediction_updates(
    h_TD: jax.Array, y_QmD: jax.Array, role_Qtm: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns minus the gradients of h and y where each h is to tell its own y from negatives."""
    Q, t, _ = role_Qtm.shape
    h_QtD = h_TD.reshape(t, Q, -1).swapaxes(0, 1)
    score_Qtm = jnp.einsum("QtD,QmD->Qtm", h_QtD, y_QmD)
    error_Qtm = role_Qtm * jax.nn.sigmoid(-role_Qtm * score_Qtm)
    back_QtD = jnp.einsum("Qtm,QmD->QtD", error_Qtm, y_QmD)
    change_QmD = jnp.einsum("Qtm,QtD->QmD", error_Qtm, h_QtD)
    return back_QtD.swapaxes(0, 1).reshape(h_TD.shape), change_QmD


def _compute_cbow_changes(
    x_CD: jax.Array, y_QmD: jax.Array, within: dict[int, jax.Array], role_Qtm: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the changes of x and y where the mean of its window predicts a position.

    Args:
      x_CD: input vectors of the positions and of what is beside them.
      y_QmD: output vectors of each group.
      within: offset -> whether a position's window has what stands there, (T,).
      role_Qtm: of `_compute_roles`.
    """
    w = max(within)
    total_TD, size_T = jnp.zeros(()), jnp.zeros(())
    for o, inside_T in within.items():
        total_TD += inside_T[:, None] * _take_at_offset(x_CD, o, w)
        size_T += inside_T
    back_TD, change_QmD = _compute_prediction_updates(
        total_TD / jnp.maximum(1, size_T)[:, None], y_QmD, role_Qtm
    )
    return _scatter_to_windows(back_TD, within, w), change_QmD


def _compute_skipgram_changes(
    x_CD: jax.Array, y_QmD: jax.Array, within: dict[int, jax.Array], role_Qtm: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the same as `_compute_cbow_changes`, where each id of the window predicts the
    position alone.
    """
    w, (Q, t, _) = max(within), role_Qtm.shape
    change_CD, change_QmD = jnp.zeros_like(x_CD), jnp.zeros_like(y_QmD)
    for o, inside_T in within.items():
        inside_Qt1 = inside_T.reshape(t, Q).T[..., None]
        back_TD, more_QmD = _compute_prediction_updates(
            _take_at_offset(x_CD, o, w), y_QmD, inside_Qt1 * role_Qtm
        )
        change_CD += _scatter_to_windows(back_TD, {o: inside_T}, w)
        change_QmD += more_QmD
    return change_CD, change_QmD
