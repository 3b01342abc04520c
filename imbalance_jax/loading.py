"""A trained run in one call, for notebooks, generation and runs that begin with another."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax import languages, sharding
from imbalance_jax import model as model_lib
from imbalance_jax import step as step_lib
from imbalance_jax.checkpoint import Checkpoints
from imbalance_jax.data import sources
from imbalance_jax.runs import RunDirectory, run_and_step

if TYPE_CHECKING:
    import sentencepiece


@dataclasses.dataclass(frozen=True, repr=False)
class LoadedRun:
    """A run's config, parameters and vocabulary, and what they do to text."""

    config: config_lib.Config
    step: int
    params: model_lib.Params
    vocabulary: languages.Vocabulary
    tokenizers: Mapping[str, "sentencepiece.SentencePieceProcessor"]  # by source

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"LoadedRun(step {self.step}, {size:,} parameters, languages "
            f"{', '.join(self.vocabulary.tags)}, vocabulary {self.vocabulary.size:,})"
        )

    def encode(self, text: str, language: str) -> np.ndarray:
        """Returns the model's ids for a text in a language."""
        row = self.vocabulary.index(language)
        return self.vocabulary.map_GU[row, self._tokenizer(language).encode(text)]

    def decode(self, ids: np.ndarray, language: str) -> str:
        """Returns the text of the model's ids; those of other languages are left out."""
        base = self.vocabulary.base_ids(self.vocabulary.index(language), np.asarray(ids))
        return self._tokenizer(language).decode([int(t) for t in base if t >= 0])

    def separator(self, language: str) -> int:
        """Returns the base id that stands between the documents of a language."""
        return sources.separator_id(self._tokenizer(language))

    def forward(self, ids_BL: jax.typing.ArrayLike) -> jax.Array:
        """Returns fp32 logits of the next id at every position: (B, L, V)."""
        return _logits(self.params, self.config.model, jnp.asarray(ids_BL))

    def _tokenizer(self, language: str) -> "sentencepiece.SentencePieceProcessor":
        return self.tokenizers[languages.source_of(self.config, language)]


_logits = jax.jit(model_lib.logits, static_argnums=1)


def load(path: str | epath.PathLike, step: int | None = None) -> LoadedRun:
    """Loads a run from its directory, at its newest checkpoint or another one.

        run = imbalance_jax.load("runs/90_10")
        ids = run.encode("The function returns", "en2")
        logits = run.forward(ids[None])

    Raises:
      FileNotFoundError: the directory holds no run, or no such checkpoint.
    """
    import sentencepiece

    run = RunDirectory(path)
    config = run.config()
    tokenizers = {}
    for name in sorted({languages.source_of(config, tag) for tag in config.tags}):
        file = run.path / f"tokenizer-{name}.model"
        if not file.exists():
            raise FileNotFoundError(f"{run} has no {file.name}: it stopped before its first step.")
        tokenizers[name] = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    vocabulary = _vocabulary(run)
    # One device is enough to look at a model; its checkpoint may come from any mesh.
    mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
    state = _restore(run, step, step_lib.abstract_state(config, vocabulary.size, mesh))
    return LoadedRun(config, int(state.step), state.params, vocabulary, tokenizers)


def check_init_from(config: config_lib.Config) -> None:
    """Raises ValueError if a run cannot begin with the parameters that its config names.

    Reads no weights, so that a mistake shows before any work is done.
    """
    if not config.init_from:
        return
    run, step = run_and_step(config.init_from)
    try:
        theirs = run.config().model
        _check_step(run, step, run.steps())
    except FileNotFoundError as error:
        raise ValueError(
            f"config.init_from={config.init_from!r} is not RUN or RUN@STEP: {error}"
        ) from error
    for name in (*"LDHKFN", "tied"):
        if getattr(theirs, name) != getattr(config.model, name):
            where = f"{run}/checkpoints" + (f"/{step}" if step is not None else "")
            raise ValueError(
                f"{where} was written with config.model.{name}={getattr(theirs, name)}, but this "
                f"run has config.model.{name}={getattr(config.model, name)}. Use another "
                f"config.init_from, or set config.model.{name}={getattr(theirs, name)}."
            )


def restore_params(init_from: str, mesh: jax.sharding.Mesh, vocab_size: int) -> model_lib.Params:
    """Returns the parameters of another run on this one's devices, after `check_init_from`.

    Raises:
      ValueError: it has no such checkpoint, or another vocabulary.
    """
    run, step = run_and_step(init_from)
    try:
        vocabulary = _vocabulary(run)
        if vocabulary.size != vocab_size:
            raise ValueError(
                f"{run} has a vocabulary of {vocabulary.size} ids, this run one of {vocab_size}. "
                "Give this run the languages and tokenizers of that one."
            )
        return _restore(run, step, step_lib.abstract_state(run.config(), vocab_size, mesh)).params
    except FileNotFoundError as error:
        raise ValueError(f"config.init_from={init_from!r}: {error}") from error


def _vocabulary(run: RunDirectory) -> languages.Vocabulary:
    content = (run.path / "vocabulary.npz").read_bytes()
    return languages.Vocabulary.from_bytes(run.config().tags, content)


def _check_step(run: RunDirectory, step: int | None, steps: Sequence[int]) -> None:
    """Raises FileNotFoundError if a run has no such checkpoint, or none at all for None."""
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise FileNotFoundError(f"{run} has no {wanted}. It has: {list(steps) or 'none'}.")


def _restore(run: RunDirectory, step: int | None, like: step_lib.TrainState) -> step_lib.TrainState:
    """Returns a run's state at its newest checkpoint or another one.

    Raises:
      FileNotFoundError: there is no such checkpoint.
    """
    checkpoints = Checkpoints(run.checkpoints)
    try:
        steps = checkpoints.steps()
        _check_step(run, step, steps)
        return checkpoints.restore(steps[-1] if step is None else step, like)
    finally:
        checkpoints.close()
