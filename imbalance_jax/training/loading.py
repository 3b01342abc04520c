"""A trained run in one call, for notebooks and generation."""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import objective, sharding
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.checkpoint import Checkpoints, DamagedCheckpoint
from imbalance_jax.compute.context import Context, make_context
from imbalance_jax.data import languages
from imbalance_jax.data import word_order as views
from imbalance_jax.data.text_tokenizer import TextTokenizer
from imbalance_jax.data.tokenizer import open_tokenizer, parse_tokenizer
from imbalance_jax.evaluation import perplexity
from imbalance_jax.runs.damaged_files import DamagedFileError
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.runs.run_files import describe_run_file


@dataclasses.dataclass(frozen=True, repr=False)
class LoadedRun:
    """A run's config, parameters and vocabulary, and their use on text.

    All ids that its methods take and give are the model's. A sequence needs no batch axis.
    """

    config: config_lib.Config
    step: int
    params: model_lib.Params
    vocabulary: languages.Vocabulary
    tokenizers: Mapping[str, TextTokenizer]  # by source

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"LoadedRun(step {self.step}, {size:,} parameters, languages "
            f"{', '.join(self.vocabulary.tags)}, vocabulary {self.vocabulary.size:,})"
        )

    def encode(self, text: str, language: str) -> np.ndarray:
        """Returns the model's ids for a text in a language, its words in the language's order."""
        row = self.vocabulary.index(language)
        base_n = np.asarray(self._tokenizer(language).encode(text), np.int64)
        words = self.config.languages[language]
        if words.words != "as_written":
            pieces = self._tokenizer(language).pieces()
            order = views.WordOrder(pieces, words.words, words.words_block)
            base_n = order(base_n, 0)
        return self.vocabulary.map_GU[row, base_n]

    def decode(self, ids: np.ndarray, language: str) -> str:
        """Returns the text of the model's ids; those of other languages are left out.

        Raises:
          ValueError: an id is none of the model's.
        """
        array = np.asarray(ids)
        self._check_ids(array)
        base = self.vocabulary.base_ids(self.vocabulary.index(language), array.astype(np.int64))
        return self._tokenizer(language).decode([int(t) for t in base if t >= 0])

    def separator(self, language: str) -> int:
        """Returns the model's id that stands between the documents of a language."""
        row = self.vocabulary.index(language)
        return int(self.vocabulary.map_GU[row, self._tokenizer(language).separator])

    def context(self, language: str | None) -> Context:
        """Returns what the model reads of sequences in a language besides their ids.

        It has the positions of the language, where each has its own. Documents are cut at the
        separators of all languages.

        Raises:
          ValueError: the model has no such language, or needs to know it.
        """
        model, tags = self.config.model, self.vocabulary.tags
        if language is None:
            if model.position_tables == "per_language":
                raise ValueError(
                    "config.model.position_tables=per_language: the run has positions of each "
                    f"language. Name it: language={tags[0]!r}."
                )
            return make_context(model, self.vocabulary, *range(len(tags)))
        own = self.vocabulary.index(language)
        others = [g for g in range(len(tags)) if g != own]
        return make_context(model, self.vocabulary, *others, own)

    def forward(self, ids: jax.typing.ArrayLike, language: str | None = None) -> jax.Array:
        """Returns fp32 logits of the next id at every position: (L, V), or (B, L, V).

        Args:
          ids: the model's ids of a sequence, (L,), or of several, (B, L).
          language: in which they are. Only a model with positions of each language needs it.

        Raises:
          ValueError: an id is none of the model's, or there are none, or more than it has
            positions; or as `context`.
        """
        ids_BL, alone = self._batch(ids)
        context = self.context(language)
        logits_BLV = _logits(self.params, self.config.model, ids_BL, context)
        return logits_BLV[0] if alone else logits_BLV

    def hidden_states(self, ids: jax.typing.ArrayLike, language: str | None = None) -> jax.Array:
        """Returns the state of every position between all layers: (N + 2, L, D), or with B.

        First what enters the first block, then the residual stream after each block, and last
        the output of the final norm. Of several sequences it is (N + 2, B, L, D).

        Args and raises: as `forward`.
        """
        ids_BL, alone = self._batch(ids)
        context = self.context(language)
        states_NBLD = _hidden_states(self.params, self.config.model, ids_BL, context)
        return states_NBLD[:, 0] if alone else states_NBLD

    def loss(self, text: str, language: str) -> np.ndarray:
        """Returns the loss of each id of a text in nats, as `encode` gives them: (n,).

        The text is read as a document of its own: after a separator, whose loss is not in it.
        Its mean is a loss per token as evaluation.json has it, exp of that a perplexity. A text
        beyond L ids is read in windows as the final test is, `evaluation.stride` apart: each
        id has all ids before it, or at least L - stride of them.
        """
        ids = np.concatenate([[self.separator(language)], self.encode(text, language)])
        L, stride = self.config.model.L, self.config.eval_stride
        windows = perplexity.cut_strided_windows(ids.astype(np.int32), L, stride)
        assert windows.starts_n is not None
        # The ids before the first that a window scores: all that are in the first window.
        windows.weight_nL[0] = np.arange(1, L + 1) < len(ids)
        loss_n = np.zeros(len(ids) - 1)
        rows, context = min(_TOGETHER, len(windows.ids_nW)), self.context(language)
        for first in range(0, len(windows.ids_nW), rows):
            # The first window fills the last rows up, so that nothing compiles again.
            place_B = np.arange(first, first + rows)
            place_B[place_B >= len(windows.ids_nW)] = 0
            ids_BW = windows.ids_nW[place_B]
            loss_BL = np.asarray(_compute_losses(self.params, self.config.model, ids_BW, context))
            target_BL = windows.starts_n[place_B, None] + np.arange(L)
            weight_BL = windows.weight_nL[place_B].astype(bool)
            loss_n[target_BL[weight_BL]] = loss_BL[weight_BL]
        return loss_n

    def _tokenizer(self, language: str) -> TextTokenizer:
        return self.tokenizers[self.config.source_of(language)]

    def _check_ids(self, ids: np.ndarray) -> None:
        """Raises ValueError if an id is none of the model's."""
        # A gather would take the nearest row there is, or count from the end, and say nothing.
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary.size:
            raise ValueError(
                f"The model's ids are 0 to {self.vocabulary.size - 1}, and these are "
                f"{ids.min()} to {ids.max()}. `encode` gives them."
            )

    def _batch(self, ids: jax.typing.ArrayLike) -> tuple[jax.Array, bool]:
        """Returns ids as a batch, and whether they are one sequence."""
        if not isinstance(ids, jax.core.Tracer):
            array = np.asarray(ids)
            if not np.issubdtype(array.dtype, np.integer) or array.ndim not in (1, 2):
                raise ValueError(
                    f"The ids of a sequence are whole numbers (L,), or (B, L) of several, and "
                    f"these are {array.dtype} of shape {array.shape}."
                )
            if not array.size:
                raise ValueError("There are no ids. Give one at least, such as `separator`'s.")
            self._check_ids(array)
        ids = jnp.asarray(ids)
        return (ids[None], True) if ids.ndim == 1 else (ids, False)


_TOGETHER = 8  # windows of a text that are scored at once
_logits = jax.jit(model_lib.compute_next_token_logits, static_argnums=1)
_hidden_states = jax.jit(model_lib.compute_hidden_states, static_argnums=1)


@functools.partial(jax.jit, static_argnums=1)
def _compute_losses(
    params: model_lib.Params, config: config_lib.ModelConfig, ids_BW: jax.Array, context: Context
) -> jax.Array:
    """Returns the loss of each id but the first of every window, in nats: (B, L)."""
    hidden_BLD, target_BL = (
        model_lib.compute_last_hidden_state(params, config, ids_BW[:, :-1], context),
        ids_BW[:, 1:],
    )
    weight_BL = jnp.ones(target_BL.shape, jnp.float32)
    return objective.cross_entropy(
        hidden_BLD, model_lib.get_output_embeddings(params, config), target_BL, weight_BL
    )[1]


def load(path: str | epath.PathLike, step: int | None = None) -> LoadedRun:
    """Loads a run from its directory, at its newest checkpoint or another one.

        run = imbalance_jax.load("runs/90_10")
        ids = run.encode("The function returns", "en2")  # the model's, as everywhere here
        logits = run.forward(ids)
        loss = run.loss("The function returns", "en2").mean()

    Raises:
      FileNotFoundError: the directory holds no run, or no such checkpoint.
      ValueError: it holds an export.
    """
    run = RunDirectory(path)
    check_not_export(run)
    config = run.config()
    tokenizers = {
        config.source_of(tag): parse_tokenizer(read_tokenizer_model(run, config, tag))
        for tag in config.tags
    }
    vocabulary = read_vocabulary(run)
    separators = [
        vocabulary.map_GU[g, tokenizers[config.source_of(tag)].separator]
        for g, tag in enumerate(config.tags)
    ]
    vocabulary = dataclasses.replace(vocabulary, separator_G=np.array(separators, np.int32))
    # One device is enough to look at a model; its checkpoint may come from any mesh.
    mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
    state = restore_state(run, step, step_lib.make_abstract_state(config, vocabulary.size, mesh))
    return LoadedRun(config, int(state.step), state.params, vocabulary, tokenizers)


def check_not_export(run: RunDirectory) -> None:
    """Raises ValueError if a directory holds what `--export` wrote, and not a run."""
    if (run.path / "model.safetensors").exists() and not run.checkpoints.exists():
        raise ValueError(
            f"{run.path} is an export of a run, for other programs, which nothing here reads. Name "
            "the run's own directory."
        )


def find_tokenizer_file(run: RunDirectory, config: config_lib.Config, tag: str) -> epath.Path:
    return run.path / f"tokenizer-{config.source_of(tag)}.model"


def read_tokenizer_model(run: RunDirectory, config: config_lib.Config, tag: str) -> bytes:
    file = find_tokenizer_file(run, config, tag)
    if not file.exists() and not run.newest_checkpoint():
        raise FileNotFoundError(f"{run} has no {file.name}: it stopped before its first step.")
    model, remedy = run.read_bytes(file.name), describe_run_file(file.name, run).remedy
    open_tokenizer(model, file, remedy)
    recorded = run.read_provenance()["sources"].get(config.source_of(tag), {}).get("tokenizer")
    if recorded and hashlib.sha256(model).hexdigest() != recorded:
        problem = "is not the tokenizer whose sha256 is in provenance.json"
        raise DamagedFileError(file, problem, remedy)
    return model


def read_vocabulary(run: RunDirectory, tags: tuple[str, ...] | None = None) -> languages.Vocabulary:
    """Returns the ids of each language of a run, whose languages are `tags` or of its config.

    Raises:
      FileNotFoundError: the run has no vocabulary.npz.
      DamagedFileError: it is damaged.
    """
    file = run.path / "vocabulary.npz"
    remedy = describe_run_file(file.name, run).remedy
    tags = run.config().tags if tags is None else tags
    return languages.Vocabulary.from_bytes(tags, run.read_bytes(file.name), str(file), remedy)


def check_checkpoint_exists(run: RunDirectory, step: int | None, steps: Sequence[int]) -> None:
    """Raises FileNotFoundError if a run has no such checkpoint, or none at all for None."""
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise FileNotFoundError(f"{run} has no {wanted}. It has: {list(steps) or 'none'}.")


def restore_state(
    run: RunDirectory, step: int | None, like: step_lib.TrainState
) -> step_lib.TrainState:
    """Returns a run's state at its newest checkpoint, or at the one that is named.

    Where the newest is damaged, it is the newest of those that are not, and a line says so.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      DamagedCheckpoint: the one that is named is damaged, or all are.
    """
    checkpoints = Checkpoints(run.checkpoints)
    steps = checkpoints.steps()
    check_checkpoint_exists(run, step, steps)
    if step is None:
        state, damaged = checkpoints.restore_newest(like)
        for line in damaged.values() if distributed.is_writer() else ():
            print(f"{line} Step {int(state.step):,} is read instead.", file=sys.stderr)
        return state
    try:
        return checkpoints.restore(step, like)
    except DamagedCheckpoint as error:
        others = ", ".join(str(other) for other in steps if other != step) or "none"
        raise DamagedCheckpoint(f"{error} Other checkpoints of the run: {others}.") from None
