"""Parameters that a run begins with from a folder of Hugging Face with GPT-2's architecture.

The folder has config.json, model.safetensors and tokenizer.json. Its rows go to ids of this run in
one of two ways:

    the vocabulary is the folder's      every id has the folder's row. So it is for a run with the
                                        languages and tokenizers of the run that was exported.
    a language has its tokenizer.json   the ids of that language, the first of several, have the
                                        rows. Other ids begin as in any run; with `rows=copied`
                                        a clone's are copies of its parent's.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import model as model_lib
from imbalance_jax.data import languages
from imbalance_jax.data.hugging_face import build_tokenizer_json
from imbalance_jax.data.text_tokenizer import TextTokenizer
from imbalance_jax.data.tokenizer import parse_tokenizer
from imbalance_jax.runs import damaged_files, storage
from imbalance_jax.training.hugging_face import parse_parameters

_REMEDY = "Copy the folder anew, or use another config.init_from."
# What our model computes, by the fields of theirs; their defaults come first.
_COMPUTED: Mapping[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def is_hugging_face_folder(name: str) -> bool:
    """Whether config.init_from names a folder of Hugging Face, not a run."""
    file = storage.parse_path(name) / "config.json"
    try:
        return "model_type" in damaged_files.read_json(file, "")
    except ValueError:  # a run's damaged config.json is refused where the run is read
        return False


def check_folder(config: config_lib.Config) -> None:
    """Raises ValueError if a run's model is not that of the folder that it begins with.

    Reads neither weights nor text.
    """
    folder, theirs = _read_folder_config(config)
    field = f"config.init_from={config.init_from!r}"
    if theirs["model_type"] != "gpt2":
        raise ValueError(
            f"{field} has model_type={theirs['model_type']!r}. A run begins with a folder of "
            "model_type='gpt2', whose architecture is that of the models here."
        )
    for name, values in _COMPUTED.items():
        if (value := theirs.get(name, values[0])) not in values:
            raise ValueError(f"{field} has {name}={value!r}, and the models here {values[0]!r}.")
    for name in ("model.safetensors", "tokenizer.json"):
        if not (folder / name).exists():
            raise ValueError(
                f"{field} has no {name}. Write it with transformers: "
                "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER, "
                "max_shard_size='1TB') and AutoTokenizer.from_pretrained(FOLDER)."
                "save_pretrained(FOLDER)."
            )
    if dials := config.model.list_dials():
        raise ValueError(
            f"{field} has GPT-2's architecture, and config.model.{next(iter(dials))}="
            f"{next(iter(dials.values()))} is another. Set config.model.preset=gpt2, and leave its "
            "other fields as they are."
        )
    D, H = theirs.get("n_embd", 768), theirs.get("n_head", 12)
    sizes = {"L": theirs.get("n_positions", 1024), "D": D, "H": H, "K": D // H}
    sizes |= {"F": theirs.get("n_inner") or 4 * D, "N": theirs.get("n_layer", 12)}
    wanted = {name: size for name, size in sizes.items() if getattr(config.model, name) != size}
    if config.model.tied and theirs.get("tie_word_embeddings", True):
        # The logits of ours would be sqrt(D) times smaller.
        wanted["tied"] = False
    if wanted:
        ours = ", ".join(f"{name}={getattr(config.model, name)}" for name in wanted)
        flags = " ".join(f"--config.model.{name}={value}" for name, value in wanted.items())
        raise ValueError(
            f"{field} is not of this run's config.model, which has {ours}. Set {flags}."
        )


def find_folder_rows(
    config: config_lib.Config, vocabulary: languages.Vocabulary, models: Mapping[str, bytes]
) -> np.ndarray:
    """Returns the row of the folder's tables that each id begins with, (V,); -1 is none of them.

    Args:
      config: with `init_from`.
      vocabulary: of this run.
      models: source name -> this run's tokenizer.

    Raises:
      ValueError: no id of this run means what one of the folder does.
    """
    folder, theirs = _read_folder_config(config)
    rows = theirs.get("vocab_size", 50257)
    tokenizer = damaged_files.read_json(folder / "tokenizer.json", _REMEDY)
    for tag in config.tags:
        source = config.source_of(tag)
        if _is_same_tokenizer(_parse_json(models[source]), tokenizer):
            map_U = vocabulary.map_GU[vocabulary.index(tag)]
            base_U = np.flatnonzero(map_U >= 0)
            if base_U[-1] >= rows:
                raise ValueError(
                    f"config.init_from={config.init_from!r}: its tokenizer.json has the id "
                    f"{base_U[-1]}, and its model {rows} rows. {_REMEDY}"
                )
            row_V = np.full(vocabulary.size, -1)
            row_V[map_U[base_U]] = base_U
            return row_V
    tokenizers = {tag: parse_tokenizer(models[config.source_of(tag)]) for tag in config.tags}
    if vocabulary.size == rows:
        for tag in config.tags:
            if _is_same_tokenizer(_try_build(tag, tokenizers, vocabulary), tokenizer):
                return np.arange(rows)
    name = config.source_of(config.tags[0])
    raise ValueError(
        f"config.init_from={config.init_from!r} has a vocabulary of {rows} ids, and no language of "
        f"this run is tokenized with its tokenizer. Set config.sources.{name}.tokenizer.path="
        f"{folder / 'tokenizer.json'}; or, of a run that was exported, give this one its "
        "config.languages, config.vocabulary and tokenizers."
    )


def _try_build(
    tag: str, tokenizers: Mapping[str, TextTokenizer], vocabulary: languages.Vocabulary
) -> dict[str, Any] | None:
    """Returns what an export of a language would have as tokenizer.json; None if nothing."""
    try:
        return build_tokenizer_json(tag, tokenizers, vocabulary)
    except ValueError:
        return None


def _is_same_tokenizer(one: dict[str, Any] | None, other: dict[str, Any]) -> bool:
    """Whether two tokenizer.json give the same ids to the same pieces."""
    if one is None:
        return False
    parts = [(each["model"]["vocab"], each["model"].get("merges")) for each in (one, other)]
    return parts[0] == parts[1]


def restore_folder_params(
    config: config_lib.Config,
    vocabulary: languages.Vocabulary,
    models: Mapping[str, bytes],
    params: model_lib.Params,
) -> model_lib.Params:
    """Returns the parameters that a run begins with, on its devices, after `check_folder`.

    Args:
      config, vocabulary, models: as `find_folder_rows`.
      params: those that the run would begin with otherwise.

    Raises:
      ValueError: as `find_folder_rows`, or the folder's parameters are not those of its config.
    """
    from safetensors import SafetensorError
    from safetensors.flax import load

    row_V = find_folder_rows(config, vocabulary, models)
    file = storage.parse_path(config.init_from) / "model.safetensors"
    try:
        named = load(damaged_files.read_file(file, _REMEDY))
        found = parse_parameters(
            {name: np.asarray(named[name]) for name in named}, params, config.model
        )
        if row_V.max() >= len(found["embed_VD"]):
            raise ValueError(f"has {len(found['embed_VD'])} rows in its table")
    except (SafetensorError, ValueError) as error:
        raise damaged_files.DamagedFileError(file, str(error), _REMEDY) from error
    if config.model.tied:
        # As in an export of a tied model.
        if not np.allclose(found["embed_VD"], found["head_VD"], rtol=1e-5, atol=0):
            raise ValueError(
                f"config.init_from={config.init_from!r} has a head of its own. Set "
                "config.model.tied=False."
            )
        del found["head_VD"]
    tables = [name for name in ("embed_VD", "head_VD") if name in found]
    for name in tables:
        found[name] = np.where(row_V[:, None] >= 0, found[name][row_V], 0)
    placed = distributed.place_whole_arrays(
        jax.tree.map(lambda mine, leaf: np.asarray(mine, leaf.dtype), found, dict(params)),
        jax.tree.map(lambda leaf: leaf.sharding, dict(params)),
    )
    if row_V.min() >= 0:
        return placed
    choose = jax.jit(
        lambda mine, leaf: jnp.where(row_V[:, None] >= 0, mine, leaf),
        out_shardings=params["embed_VD"].sharding,
    )
    placed |= {name: choose(placed[name], params[name]) for name in tables}
    copied_V = languages.find_initial_rows(config, vocabulary)
    return model_lib.gather_embedding_rows(
        placed, np.where(row_V >= 0, np.arange(len(row_V)), copied_V)
    )


def _read_folder_config(config: config_lib.Config) -> tuple[epath.Path, dict[str, Any]]:
    folder = storage.parse_path(config.init_from)
    return folder, damaged_files.read_json(folder / "config.json", _REMEDY)


def _parse_json(content: bytes) -> dict[str, Any] | None:
    """Returns a tokenizer.json; None where it is another kind of tokenizer."""
    try:
        return damaged_files.parse_json(content.decode(), "tokenizer", "")
    except ValueError:
        return None
