"""Writes a run's final parameters as safetensors, for tools outside JAX.

    model.safetensors   every parameter under the path it has here, as fp32
    config.json         the run's config     vocabulary.json  ids and separator of every language
    tokenizer-*.model   SentencePiece models of the sources, or what a tokenizer.json has

Names and shapes, with dimensions as in `imbalance_jax/__init__.py`:

    embed_VD, head_VD           input and output embeddings; no head_VD where they are tied
    position_LD, position_GLD   learned positions, shared or of each language
    blocks.<n>.norm_1.scale_D, .bias_D                 before attention
    blocks.<n>.attention.w_q_DHK, .b_q_HK  (also k, v) x @ w, heads behind D
    blocks.<n>.attention.w_o_HKD, .b_o_D
    blocks.<n>.norm_2.scale_D, .bias_D                 before the feed-forward layer
    blocks.<n>.feed_forward.w_up_DF, .b_up_F, .w_down_FD, .b_down_D
    final_norm.scale_D, .bias_D

A PyTorch nn.Linear holds the transpose: its query weight is w_q_DHK.reshape(D, H*K).T. At the
defaults the model is GPT-2's, but for two things: token embeddings are multiplied by sqrt(D), and
the head is untied. What a dial of `config.model` leaves out has no parameters; what it adds is
norm_after_1, norm_after_2, w_gate_DF, q_scale_K and k_scale_K, and J in place of H for fewer heads
of keys and values. `metadata` in model.safetensors says the dials and factors of the model.
"""

import jax
import numpy as np
from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.runs import storage
from imbalance_jax.runs.json_text import format_json
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import loading


def flatten_params(params: dict) -> dict[str, np.ndarray]:
    """Returns every parameter by its exported name, those of blocks one by one."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [entry.key for entry in path]
        if names[0] == "blocks":
            for n, part in enumerate(np.asarray(leaf)):
                arrays[".".join(["blocks", str(n), *names[1:]])] = np.ascontiguousarray(part)
        else:
            arrays[".".join(names)] = np.asarray(leaf)
    return arrays


def _describe_convention(model: config_lib.ModelConfig) -> str:
    """Returns what the parameters' names do not say of a model."""
    dials = ", ".join(f"{dial}={value}" for dial, value in model.list_dials().items())
    parts = [f"GPT-2 with {dials}" if dials else "GPT-2"]
    if model.settle("position") == "rope":
        parts.append(f"the base of wavelengths is {model.rope_theta:.9g}")
    if model.documents == "apart":
        parts.append("attention stays within documents, which begin at separators")
    if model.settle("embed_scale") == "sqrt":
        parts.append(f"token embeddings are multiplied by sqrt({model.base_width or 'D'})")
    if (wider := model.compute_width_factor()) != 1:
        parts.append(f"logits are divided by {wider:.9g}")
    if (factor := model.compute_attention_factor()) != 1:
        parts.append(f"products of queries and keys are multiplied by {factor:.9g} / sqrt(K)")
    return "; ".join([*parts, "weights act as x @ w"])


def export_run(run: RunDirectory, path: epath.PathLike) -> epath.Path:
    """Writes the newest checkpoint of a run, and what is needed to use it; returns where."""
    from safetensors.numpy import save

    loaded = loading.load(run.path)
    out = storage.parse_path(path)
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "format": "imbalance_jax",
        "step": str(loaded.step),
        "convention": _describe_convention(loaded.config.model),
    }
    content = save(flatten_params(loaded.params), metadata=about)
    storage.write_file_atomically(out / "model.safetensors", content)
    config = format_json(config_lib.to_dict(loaded.config), indent=2) + "\n"
    (out / "config.json").write_text(config)
    vocabulary = loaded.vocabulary
    maps = {tag: vocabulary.map_GU[g].tolist() for g, tag in enumerate(vocabulary.tags)}
    separators = {tag: loaded.separator(tag) for tag in vocabulary.tags}
    ids = {"size": vocabulary.size, "id_of_base_id": maps, "separator": separators}
    (out / "vocabulary.json").write_text(format_json(ids) + "\n")
    for name in loaded.tokenizers:
        file = f"tokenizer-{name}.model"
        (out / file).write_bytes((run.path / file).read_bytes())
    return out
