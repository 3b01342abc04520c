"""A run as a folder of Hugging Face with GPT-2's architecture, and such a folder as parameters.

    model.safetensors, config.json, generation_config.json     for AutoModelForCausalLM
    tokenizer.json, tokenizer_config.json                      for AutoTokenizer, of one language
    README.md                                                  what the model is

GPT-2's architecture holds ours but for factors. Our token embeddings are multiplied by sqrt(D);
theirs are not, so the product is written. Our tied head has the factor once; so a folder's head is
always untied. The factors of `base_width` are written into the head and the queries alike.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.config import ModelConfig
from imbalance_jax.data.hugging_face import build_tokenizer_json
from imbalance_jax.runs import storage
from imbalance_jax.runs.json_text import format_json
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import loading

# Theirs -> ours. A matrix has as many rows as it has inputs, there and here.
_OF_A_BLOCK = {
    "ln_1.weight": ("norm_1", "scale_D"),
    "ln_1.bias": ("norm_1", "bias_D"),
    "attn.c_proj.weight": ("attention", "w_o_HKD"),
    "attn.c_proj.bias": ("attention", "b_o_D"),
    "ln_2.weight": ("norm_2", "scale_D"),
    "ln_2.bias": ("norm_2", "bias_D"),
    "mlp.c_fc.weight": ("feed_forward", "w_up_DF"),
    "mlp.c_fc.bias": ("feed_forward", "b_up_F"),
    "mlp.c_proj.weight": ("feed_forward", "w_down_FD"),
    "mlp.c_proj.bias": ("feed_forward", "b_down_D"),
}


def check_export(config: config_lib.Config, language: str | None) -> None:
    """Raises ValueError if a run's config alone says that no folder can hold its model."""
    model = config.model
    dials = model.list_dials()
    if model.documents != "joined":
        dials["documents"] = model.documents
    if dials:
        stated = ", ".join(f"config.model.{dial}={value}" for dial, value in dials.items())
        raise ValueError(
            f"--format=huggingface writes GPT-2's architecture, and the model has {stated}. "
            "--format=safetensors writes the parameters under their names here."
        )
    if model.H * model.K != model.D:
        raise ValueError(
            f"--format=huggingface: GPT-2's attention is as wide as the model, and here "
            f"config.model.H * K = {model.H} * {model.K} is not D={model.D}. --format=safetensors "
            "writes the parameters under their names here."
        )
    tag = language or config.tags[0]
    if tag not in config.tags:
        raise ValueError(f"--language={tag}: the run has {', '.join(config.tags)}.")
    words = config.languages[tag].words
    if words != "as_written":
        raise ValueError(
            f"--format=huggingface: config.languages.{tag}.words={words!r}, and no tokenizer of "
            f"Hugging Face puts words into another order. Choose another --language, or write "
            "--format=safetensors."
        )


def build_model_config(model: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """Returns the config.json of a model, without its tokens."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": model.L,
        "n_embd": model.D,
        "n_layer": model.N,
        "n_head": model.H,
        "n_inner": model.F,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.0,
        "embd_pdrop": model.dropout,
        "resid_pdrop": model.dropout,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }


def export_run(run: RunDirectory, path: epath.PathLike, language: str | None = None) -> epath.Path:
    """Writes the newest checkpoint of a run as a folder of Hugging Face; returns where.

    Args:
      language: whose tokenizer the folder has; None is the first.

    Raises:
      ValueError: such a folder cannot hold the model, or the tokenizer.
    """
    from safetensors.numpy import save

    check_export(run.config(), language)
    loaded = loading.load(run.path)
    config, vocabulary = loaded.config, loaded.vocabulary
    tag = language or config.tags[0]
    tokenizers = {each: loaded.tokenizers[config.source_of(each)] for each in config.tags}
    tokenizer = build_tokenizer_json(tag, tokenizers, vocabulary)
    separator = loaded.separator(tag)
    out = storage.parse_path(path)
    out.mkdir(parents=True, exist_ok=True)
    content = save(name_parameters(loaded.params, config.model), metadata={"format": "pt"})
    storage.write_file_atomically(out / "model.safetensors", content)
    strings = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    ends = {"bos_token_id": separator, "eos_token_id": separator}
    others = np.flatnonzero(~vocabulary.own_GV[vocabulary.index(tag)]).tolist()
    files = {
        "config.json": build_model_config(config.model, vocabulary.size) | ends,
        # As imbalance_jax.generate, which draws the language's own ids alone.
        "generation_config.json": ends
        | {"pad_token_id": separator}
        | ({"suppress_tokens": others} if others else {}),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.model.L,
            **dict.fromkeys(("bos_token", "eos_token", "pad_token"), strings[separator]),
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # a text that spells a special token is text
        },
    }
    for name, value in files.items():
        indent = None if name in ("tokenizer.json", "generation_config.json") else 2
        (out / name).write_text(format_json(value, indent=indent) + "\n")
    folder = epath.Path(storage.make_absolute_path(out)).name
    (out / "README.md").write_text(_format_model_card(run, loaded, tag, folder))
    return out


_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---

# {folder}

A GPT-2 of {parameters:,} parameters: {N} layers, width {D}, {H} heads, {L} positions.
imbalance_jax trained it for {step:,} steps of {batch} sequences. Its {V:,} ids are those of
{languages}. The tokenizer here is that of `{tag}`: `--language` of an export says which.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
ids = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40, do_sample=False)[0]))
```

The tokenizer puts the separator of documents, `{separator}`, before a text, as in training.
`generation_config.json` keeps generation to the ids of `{tag}`.

## Languages

{table}
"""
_EVALUATED = {"loss": "loss (nats a token)", "ppl": "perplexity", "bits_per_byte": "bits per byte"}


def _format_model_card(run: RunDirectory, loaded: loading.LoadedRun, tag: str, folder: str) -> str:
    """Returns README.md: the model, its languages, and what its evaluation found."""
    config, model = loaded.config, loaded.config.model
    evaluation = run.read_json("evaluation.json") or {}
    measured = evaluation.get("languages", {}) if evaluation.get("step") == loaded.step else {}
    columns = [name for name in _EVALUATED if any(name in each for each in measured.values())]
    sequences = dict.fromkeys(config.tags, 0)
    for row in run.read_csv("mixture.csv"):
        sequences[row["language"]] += int(float(row["realised_sequences"]))
    heads = ["language", "source", "training sequences"] + [_EVALUATED[name] for name in columns]
    rows = [
        [each, config.source_of(each), f"{sequences[each]:,}"]
        + [f"{measured.get(each, {}).get(name, float('nan')):.4g}" for name in columns]
        for each in config.tags
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    if measured:
        lines += ["", f"Measured on the {evaluation.get('split', 'test')} split."]
    separator = loaded.tokenizers[config.source_of(tag)]
    return _CARD.format(
        folder=folder,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(loaded.params)),
        step=loaded.step,
        batch=config.batch_size,
        V=loaded.vocabulary.size,
        languages=", ".join(f"`{each}`" for each in config.tags),
        tag=tag,
        separator=separator.strings[separator.separator],
        table="\n".join(lines),
        **{name: getattr(model, name) for name in "NDHL"},
    )


def name_parameters(params: Mapping[str, Any], model: ModelConfig) -> dict[str, np.ndarray]:
    """Returns the parameters of a model under GPT-2's names, in fp32."""
    embed_VD, blocks = np.asarray(params["embed_VD"], np.float32), params["blocks"]
    D, factor = model.D, np.float32(model.compute_attention_factor())
    named = {
        "transformer.wte.weight": embed_VD * np.float32(model.compute_embedding_factor()),
        "transformer.wpe.weight": params["position_LD"],
        "transformer.ln_f.weight": params["final_norm"]["scale_D"],
        "transformer.ln_f.bias": params["final_norm"]["bias_D"],
        "lm_head.weight": params.get("head_VD", embed_VD)
        / np.float32(model.compute_width_factor()),
    }
    for n in range(len(blocks["norm_1"]["bias_D"])):
        block = f"transformer.h.{n}."
        for theirs, (layer, ours) in _OF_A_BLOCK.items():
            leaf = np.asarray(blocks[layer][ours][n])
            named[block + theirs] = leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim == 3 else leaf
        at = {name: np.asarray(leaf[n]) for name, leaf in blocks["attention"].items()}
        at |= {name: at[name] * factor for name in ("w_q_DHK", "b_q_HK")}
        weights = [at[f"w_{x}_DHK"].reshape(D, -1) for x in "qkv"]
        named[block + "attn.c_attn.weight"] = np.concatenate(weights, axis=1)
        biases = [at[f"b_{x}_HK"].reshape(-1) for x in "qkv"]
        named[block + "attn.c_attn.bias"] = np.concatenate(biases)
    return {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in named.items()}


def parse_parameters(
    named: Mapping[str, np.ndarray], like: Mapping[str, Any], model: ModelConfig
) -> dict[str, Any]:
    """Returns GPT-2's parameters under our names; its two tables have their own number of rows.

    Args:
      named: the parameters of GPT2LMHeadModel or GPT2Model.
      like: ours, or their shapes.
      model: ours.

    Raises:
      ValueError: a parameter is missing, or has another shape than ours.
    """
    named = {name.removeprefix("transformer."): leaf for name, leaf in named.items()}

    def take(name: str, *shape: int) -> np.ndarray:
        if name not in named:
            raise ValueError(f"has no parameter {name}")
        if named[name].shape != shape:
            raise ValueError(f"has a parameter {name} of shape {named[name].shape}, not {shape}")
        return np.asarray(named[name], np.float32)

    N, D, H, K = like["blocks"]["attention"]["w_q_DHK"].shape
    blocks: dict[str, dict[str, Any]] = {}
    for theirs, (layer, ours) in _OF_A_BLOCK.items():
        shape = like["blocks"][layer][ours].shape[1:]
        flat = (H * K, D) if len(shape) == 3 else shape
        leaves = [take(f"h.{n}.{theirs}", *flat).reshape(shape) for n in range(N)]
        blocks.setdefault(layer, {})[ours] = np.stack(leaves)
    for place, x in enumerate("qkv"):
        columns = slice(place * D, (place + 1) * D)
        weights = [take(f"h.{n}.attn.c_attn.weight", D, 3 * D)[:, columns] for n in range(N)]
        biases = [take(f"h.{n}.attn.c_attn.bias", 3 * D)[columns] for n in range(N)]
        blocks["attention"][f"w_{x}_DHK"] = np.stack(weights).reshape(N, D, H, K)
        blocks["attention"][f"b_{x}_HK"] = np.stack(biases).reshape(N, H, K)
    for name in ("w_q_DHK", "b_q_HK"):
        blocks["attention"][name] /= np.float32(model.compute_attention_factor())
    rows = len(named["wte.weight"]) if "wte.weight" in named else 0
    embed_VD = take("wte.weight", rows, D)
    head = "lm_head.weight" if "lm_head.weight" in named else "wte.weight"
    return {
        "embed_VD": embed_VD / np.float32(model.compute_embedding_factor()),
        "position_LD": take("wpe.weight", *like["position_LD"].shape),
        "blocks": blocks,
        "final_norm": {"scale_D": take("ln_f.weight", D), "bias_D": take("ln_f.bias", D)},
        "head_VD": take(head, rows, D) * np.float32(model.compute_width_factor()),
    }
