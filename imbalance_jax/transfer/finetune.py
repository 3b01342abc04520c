"""Fine-tuning a model to classify texts in one language, and scoring it in any other.

A linear head with dropout reads the state of one position, after the last block and before the
final norm, and all weights are trained. There are two protocols:

    reference   what the reference study's code does. It reads the last position, which is padding
                for all but the longest texts, and padding was never trained; the weights after
                the last epoch are scored.
    intended    what that code was meant to do: the last position of the text is read, and the best
                weights are kept. No padding is seen: attention is causal, and padding comes
                after the text. Every `evaluate_every` updates the model is scored in the language
                that it is trained in (by F1 of the second of two classes, or by the accuracy of
                more), on the test examples, as there; after `patience` scores without a gain above
                `threshold` it stops. A training with fewer updates than that keeps its last
                weights.

Several seeds are trained together, each with a head, an order and dropout of its own: stacked, in
a first dimension S. C counts the classes, n the examples.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute.context import NO_CONTEXT, Context
from imbalance_jax.config import ModelConfig
from imbalance_jax.data.order.keyed_draws import draw_raw_order

PROTOCOLS = ("reference", "intended")
_DROPOUT = 0.1
_CLIP = 1.0  # of the gradient's norm


@dataclasses.dataclass(frozen=True)
class FineTuningSettings:
    """How a model is fine-tuned; the defaults are the reference study's, but for the seeds."""

    protocol: str = "reference"  # or intended
    seeds: int = 3
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 5e-5  # falls linearly to 0
    length: int = 128  # positions of an example
    evaluate_every: int = 200  # intended: updates between two scores
    patience: int = 10  # intended: scores without a gain before it stops
    threshold: float = 1e-3  # intended: what counts as a gain

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"--protocol={self.protocol}: choose {' or '.join(PROTOCOLS)}.")
        for name in ("seeds", "epochs", "batch_size", "length", "evaluate_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}={getattr(self, name)}: it must be 1 or more.")
        for name in ("learning_rate", "threshold"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name}={getattr(self, name)}: it must be 0 or more.")


# Examples.


@dataclasses.dataclass(frozen=True)
class EncodedExamples:
    """Texts as ids of one length."""

    ids_nL: np.ndarray  # int32
    last_n: np.ndarray  # the last position that is text
    cut: int = 0  # how many texts lost their end
    context: Context = Context()  # what the model reads of them besides

    def __len__(self) -> int:
        return len(self.ids_nL)


def encode_examples(
    texts: Sequence[Sequence[Sequence[int]]], *, separator: int, pad: int, length: int
) -> EncodedExamples:
    """Returns examples as a model reads them: each text, a separator after it, then padding.

    What is too long loses its end, the last separator with it.

    Args:
      texts: of each example, as ids of a tokenizer.
      separator: id that is put after each text.
      pad: id that fills what is left.
      length: positions of each example.
    """
    ids_nL = np.full((len(texts), length), pad, np.int32)
    last_n, cut = np.zeros(len(texts), np.int32), 0
    for row, parts in enumerate(texts):
        ids = [id_ for part in parts for id_ in (*part, separator)]
        cut += len(ids) > length
        ids = ids[:length]
        ids_nL[row, : len(ids)] = ids
        last_n[row] = len(ids) - 1
    return EncodedExamples(ids_nL, last_n, cut)


def map_ids_to_language(
    encoded: EncodedExamples, map_U: np.ndarray, context: Context = NO_CONTEXT
) -> EncodedExamples:
    """Returns the same texts in the model's ids: map_U is a language's row of Vocabulary.map_GU."""
    return dataclasses.replace(encoded, ids_nL=map_U[encoded.ids_nL], context=context)


# The model.


def init_head(D: int, C: int, key: jax.Array) -> model_lib.Params:
    """Returns a linear layer, uniform within 1 / sqrt(D) of 0 as PyTorch begins one."""
    w_key, b_key = jax.random.split(key)
    bound = D**-0.5
    return {
        "w_DC": jax.random.uniform(w_key, (D, C), minval=-bound, maxval=bound),
        "b_C": jax.random.uniform(b_key, (C,), minval=-bound, maxval=bound),
    }


def pool_states(
    params: model_lib.Params,
    config: ModelConfig,
    ids_BL: jax.Array,
    position_B: jax.Array,
    context: Context = NO_CONTEXT,
) -> jax.Array:
    """Returns the last block's output at one position of each sequence, in fp32: (B, D)."""
    # The last but one of all states; the last has been through the final norm.
    state_BLD = model_lib.compute_hidden_states(params, config, ids_BL, context)[-2]
    return jnp.take_along_axis(state_BLD, position_B[:, None, None], 1)[:, 0].astype(jnp.float32)


def compute_logits(head: model_lib.Params, pooled_BD: jax.Array) -> jax.Array:
    """Returns the logits of the classes: (B, C)."""
    return jnp.einsum("BD,DC->BC", pooled_BD, head["w_DC"]) + head["b_C"][None]


# Training.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FineTuningState:
    """All that an update reads and writes."""

    params: dict[str, model_lib.Params]  # "model" and "head"
    opt_state: optax.OptState
    key: jax.Array  # of this training's dropout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExampleBatch:
    """Examples of one update or score; those that only fill up the batch weigh 0."""

    ids_BL: Any
    position_B: Any  # where each is read
    label_B: Any
    weight_B: Any


def _make_optimizer() -> optax.GradientTransformation:
    # The rate is multiplied in `_update_states`, where the number of updates need not be compiled
    # in.
    adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    return optax.chain(optax.clip_by_global_norm(_CLIP), adam)


@functools.partial(jax.jit, static_argnames=("seeds", "C"))
def init_states(params: model_lib.Params, *, seeds: int, C: int) -> FineTuningState:
    """Returns the states before the first update, stacked: the same model, each with its head."""

    def one(key: jax.Array) -> FineTuningState:
        head_key, key = jax.random.split(key)
        D = params["embed_VD"].shape[1]
        both = {"model": params, "head": init_head(D, C, head_key)}
        return FineTuningState(both, _make_optimizer().init(both), key)

    return jax.vmap(one)(jax.vmap(jax.random.key)(jnp.arange(seeds)))


@functools.partial(jax.jit, static_argnames=("config", "together"), donate_argnames="state")
def _update_states(
    state: FineTuningState,
    batch: ExampleBatch,
    context: Context,
    step: jax.Array,
    rate: jax.Array,
    config: ModelConfig,
    together: int,
) -> tuple[FineTuningState, jax.Array]:
    """Returns the states after an update, and the mean loss of each before it: (S,)."""

    def loss(params: dict[str, model_lib.Params], batch: ExampleBatch, key: jax.Array) -> jax.Array:
        pooled_BD = pool_states(params["model"], config, batch.ids_BL, batch.position_B, context)
        kept_BD = jax.random.bernoulli(key, 1 - _DROPOUT, pooled_BD.shape)
        pooled_BD = jnp.where(kept_BD, pooled_BD / (1 - _DROPOUT), 0)
        loss_B = optax.softmax_cross_entropy_with_integer_labels(
            compute_logits(params["head"], pooled_BD), batch.label_B
        )
        return jnp.sum(batch.weight_B * loss_B) / jnp.sum(batch.weight_B)

    def one(both: tuple[FineTuningState, ExampleBatch]) -> tuple[FineTuningState, jax.Array]:
        state, batch = both
        key = jax.random.fold_in(state.key, step)
        value, grads = jax.value_and_grad(loss)(state.params, batch, key)
        updates, opt_state = _make_optimizer().update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda leaf: -rate * leaf, updates)
        params = optax.apply_updates(state.params, updates)
        return FineTuningState(params, opt_state, state.key), value

    return jax.lax.map(one, (state, batch), batch_size=together)


@functools.partial(jax.jit, static_argnames=("config", "together"))
def _predict_classes(
    params: dict[str, model_lib.Params],
    ids_BL: jax.Array,
    position_B: jax.Array,
    context: Context,
    config: ModelConfig,
    together: int,
) -> jax.Array:
    """Returns the class that each model predicts for each example: (S, B)."""

    def one(params: dict[str, model_lib.Params]) -> jax.Array:
        pooled_BD = pool_states(params["model"], config, ids_BL, position_B, context)
        return jnp.argmax(compute_logits(params["head"], pooled_BD), 1)

    return jax.lax.map(one, params, batch_size=together)


@jax.jit
def _keep_better_weights(better_S: jax.Array, new: Any, old: Any) -> Any:
    """Returns the new weights of the seeds that are better for them, and the old of the others."""

    def choose(new_: jax.Array, old_: jax.Array) -> jax.Array:
        return jnp.where(better_S.reshape(-1, *[1] * (new_.ndim - 1)), new_, old_)

    return jax.tree.map(choose, new, old)


@dataclasses.dataclass(frozen=True)
class ClassifierTrainer:
    """How the tasks of a run are trained and scored, which is the same for all of them."""

    config: ModelConfig
    settings: FineTuningSettings
    together: int = 1  # seeds that are computed at once; the others wait

    def positions(self, encoded: EncodedExamples) -> np.ndarray:
        """Returns where each example is read: (n,)."""
        if self.settings.protocol == "intended":
            return encoded.last_n
        return np.full(len(encoded), self.settings.length - 1, np.int32)

    def updates(self, examples: int) -> int:
        """Returns how many updates an uninterrupted training has."""
        return self.settings.epochs * -(-examples // self.settings.batch_size)

    def never_scored(self, examples: int) -> bool:
        """Whether `intended` has no weights to choose from, for want of updates."""
        every = self.settings.evaluate_every
        return self.settings.protocol == "intended" and self.updates(examples) < every

    def train(
        self,
        params: model_lib.Params,
        encoded: EncodedExamples,
        label_n: np.ndarray,
        classes: int,
        score: Callable[[dict[str, model_lib.Params]], np.ndarray],
        poll: Callable[[int, float | None], None] = lambda done, loss: None,
    ) -> tuple[dict[str, model_lib.Params], int]:
        """Returns the weights of all seeds that the protocol keeps, and the updates made.

        Args:
          params: of the pretrained model.
          encoded: the examples, in the model's ids.
          label_n: the class of each.
          classes: how many there are.
          score: of weights, in the language that is trained in: (S,). Asked for by `intended`.
          poll: called after each update with their number and the mean loss of the one before,
            if there was one, so that the device need not wait.

        Raises:
          FloatingPointError: a loss is no longer a finite number.
        """
        settings = self.settings
        state = init_states(params, seeds=settings.seeds, C=classes)
        total = self.updates(len(encoded))
        intended = settings.protocol == "intended"
        best_S = np.full(settings.seeds, -np.inf)
        waited_S = np.zeros(settings.seeds, int)
        best: dict[str, model_lib.Params] | None = None
        done, loss_S = 0, None
        for batch in self._batches(encoded, label_n):
            rate = settings.learning_rate * (total - done) / total
            before_S = loss_S
            number, rate_now = jnp.asarray(done), jnp.asarray(rate)
            state, loss_S = _update_states(
                state, batch, encoded.context, number, rate_now, self.config, self.together
            )
            done += 1
            poll(done, None if before_S is None else _check_finite_loss(before_S, done - 1))
            if not intended or done % settings.evaluate_every:
                continue
            score_S = score(state.params)
            going_S = waited_S < settings.patience
            better_S = going_S & (score_S > best_S)
            gained_S = going_S & (score_S > best_S + settings.threshold)
            waited_S = np.where(gained_S, 0, waited_S + 1)
            best = _keep_better_weights(jnp.asarray(better_S), state.params, best or state.params)
            best_S = np.where(better_S, score_S, best_S)
            if not (waited_S < settings.patience).any():
                break
        if loss_S is not None:
            _check_finite_loss(loss_S, done)
        return best or state.params, done

    def predict(self, params: dict[str, model_lib.Params], encoded: EncodedExamples) -> np.ndarray:
        """Returns the class that the model of each seed predicts for each example: (S, n)."""
        rows, position_n = self.settings.batch_size, self.positions(encoded)
        predicted = []
        for first in range(0, len(encoded), rows):
            # The last one is filled up with its own first examples: one shape, one compilation.
            chosen_B = np.resize(np.arange(first, min(first + rows, len(encoded))), rows)
            ids_BL, position_B = encoded.ids_nL[chosen_B], position_n[chosen_B]
            predicted.append(
                _predict_classes(
                    params, ids_BL, position_B, encoded.context, self.config, self.together
                )
            )
        return np.concatenate([np.asarray(part) for part in predicted], 1)[:, : len(encoded)]

    def _batches(self, encoded: EncodedExamples, label_n: np.ndarray) -> Iterator[ExampleBatch]:
        """Yields stacked batches: every seed sees all examples once an epoch, in its own order."""
        rows, n, position_n = self.settings.batch_size, len(encoded), self.positions(encoded)
        for epoch in range(self.settings.epochs):
            order_Sn = np.stack([draw_epoch_order(n, s, epoch) for s in range(self.settings.seeds)])
            for first in range(0, n, rows):
                chosen_SB = order_Sn[:, first : first + rows]
                real = chosen_SB.shape[1]
                chosen_SB = np.pad(chosen_SB, ((0, 0), (0, rows - real)), mode="edge")
                weight_B = (np.arange(rows) < real).astype(np.float32)
                yield ExampleBatch(
                    encoded.ids_nL[chosen_SB],
                    position_n[chosen_SB],
                    label_n[chosen_SB].astype(np.int32),
                    np.broadcast_to(weight_B, chosen_SB.shape),
                )


def _check_finite_loss(loss_S: jax.Array, update: int) -> float:
    """Returns the mean loss, which waits for it, or raises FloatingPointError."""
    mean = float(loss_S.mean())
    if not math.isfinite(mean):
        raise FloatingPointError(f"the loss of update {update} is not a finite number.")
    return mean


def draw_epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order in which a seed goes through n examples."""
    return draw_raw_order(n, np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64))


def compute_selection_score(
    predicted_Sn: np.ndarray, label_n: np.ndarray, classes: int
) -> np.ndarray:
    """Returns what `intended` chooses by: F1 of the second of two classes, or accuracy; (S,)."""
    if classes != 2:
        return np.mean(predicted_Sn == label_n, axis=1)
    hits_S = np.sum((predicted_Sn == 1) & (label_n == 1), axis=1)
    positives_S = np.sum(predicted_Sn == 1, axis=1) + np.sum(label_n == 1)
    return 2 * hits_S / np.maximum(positives_S, 1)
