"""What a model has to know of sequences besides their ids, where its dials read it.

The language of each sequence has its own positions under `config.model.position_tables`, and the
ids that separate documents cut a sequence up under `config.model.documents`. Keys are given in
training alone, for dropout.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imbalance_jax.config import ModelConfig
from imbalance_jax.data.languages import Vocabulary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """Of B sequences, or of all alike where B is 1. None is what no dial of the model reads."""

    language_B: Any = None  # the place of its language in config.tags
    separator_BS: Any = None  # the model's ids that separate documents
    key_B: Any = None  # uint32 (B, 2), the random bits of its dropout


NO_CONTEXT = Context()  # for a model whose dials read nothing of it


def make_context(model: ModelConfig, vocabulary: Vocabulary, *languages: int) -> Context:
    """Returns the context of sequences that are in one language, or in several by turns.

    Args:
      model: whose dials say what is in it.
      vocabulary: of the run.
      languages: by their places in config.tags. The positions are those of the last one.
    """
    separator_G = find_separators(model, vocabulary)
    own = model.position_tables == "per_language"
    return Context(
        np.array(languages[-1:], np.int32) if own else None,
        None if separator_G is None else separator_G[None, list(languages)],
    )


def find_separators(model: ModelConfig, vocabulary: Vocabulary) -> np.ndarray | None:
    """Returns the model's id of each language's separator, (G,), where documents are apart."""
    if model.documents == "joined":
        return None
    assert vocabulary.separator_G is not None, "who reads a vocabulary.npz adds its separators"
    return vocabulary.separator_G


def number_documents(ids_BL: jax.Array, separator_BS: jax.Array) -> jax.Array:
    """Returns the number of the document of each position, counted within its sequence: (B, L).

    A separator stands behind a document, and the next one is predicted from it. So it is the first
    position of the next one.
    """
    begins_BL = jnp.any(ids_BL[:, :, None] == separator_BS[:, None, :], axis=-1)
    return jnp.cumsum(begins_BL.astype(jnp.int32), axis=1)


def check_context(model: ModelConfig, context: Context) -> None:
    """Raises ValueError if a context lacks what the model reads."""
    if model.documents == "apart" and context.separator_BS is None:
        raise ValueError(
            "config.model.documents=apart cuts sequences at separators, and none are given. Call "
            "with context=Context(separator_BS=...); compute/context.py makes it."
        )
    if model.position_tables == "per_language" and context.language_B is None:
        raise ValueError(
            "config.model.position_tables=per_language needs the language of each sequence, and "
            "none is given. Name the language, or call with context=Context(language_B=...)."
        )


# Dropout.


def draw_dropout_keys(seed: int, step: int, rows: int) -> np.ndarray:
    """Returns the key of each sequence of an update: uint32 (B, 2).

    Each has its own, so that neither devices nor micro-batches change what is dropped. They are
    drawn apart from the order of data, and from the parameters, which have the seed too.
    """
    # Raw bits: numpy promises that they never change, unlike Generator's methods.
    entropy = np.random.SeedSequence([abs(seed), seed < 0, step], spawn_key=(0xD209,))
    return entropy.generate_state(2 * rows, np.uint32).reshape(rows, 2)


def fold_in_keys(key_B: jax.Array | None, number: int | jax.Array) -> jax.Array | None:
    """Returns other keys of the same sequences, one set for each number; None for none."""
    if key_B is None:
        return None

    def fold(key: jax.Array) -> jax.Array:
        return jax.random.key_data(jax.random.fold_in(_wrap_key(key), number))

    return jax.vmap(fold)(key_B)


def _wrap_key(key: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(key, impl="threefry2x32")


def drop_out(x_BLD: jax.Array, rate: float, key_B: jax.Array | None) -> jax.Array:
    """Returns x with a share `rate` of its elements zero, and the others divided by 1 - rate.

    Without keys it is x.
    """
    if key_B is None:
        return x_BLD

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(_wrap_key(key), 1 - rate, x_BLD.shape[1:])

    # In fp32: bf16 would round 1 - rate, so that the mean is off, alike everywhere.
    kept_BLD = (x_BLD.astype(jnp.float32) / (1 - rate)).astype(x_BLD.dtype)
    return jnp.where(jax.vmap(draw)(key_B), kept_BLD, 0)
