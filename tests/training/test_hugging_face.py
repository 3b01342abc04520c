"""A run as a folder of Hugging Face, against GPT-2 in NumPy and in transformers, and back."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params, tiny_config
from safetensors.numpy import load_file, save_file

from imbalance_jax import config as config_lib
from imbalance_jax import generate
from imbalance_jax.compute import sharding
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.checkpoint import Checkpoints
from imbalance_jax.data import languages
from imbalance_jax.data.tokenizer import parse_tokenizer
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import hugging_face, init_from, init_hugging_face, loading

MESH = config_lib.MeshConfig()
TEXT = "The function returns <D> the  value\nof the argument, or \u2581None."


@pytest.fixture(scope="module")
def make_folder(data_dir, english, tmp_path_factory) -> Callable:
    """Returns a function from a config to a loaded run of it, and its folder for en2."""

    def make(**changes: object) -> tuple[loading.LoadedRun, pathlib.Path]:
        config = tiny_config(data_dir, **changes)
        run = RunDirectory(tmp_path_factory.mktemp("run"))
        run.claim(config)
        run.release()
        run.write_bytes("tokenizer-en.model", english.model)
        vocabulary = languages.build_vocabulary(config, {"en": english.pieces})
        run.write_bytes("vocabulary.npz", vocabulary.to_bytes())
        mesh = sharding.make_mesh(MESH, jax.devices()[:1])
        state = step_lib.init_state(config, vocabulary.size, mesh)
        drawn = random_params(config.model, vocabulary.size, spread=0.2, scale=1)
        params = jax.tree.map(
            lambda mine, leaf: jax.device_put(mine, leaf.sharding), drawn, state.params
        )
        checkpoints = Checkpoints(run.checkpoints)
        checkpoints.save(dataclasses.replace(state, params=params))
        checkpoints.close()
        folder = hugging_face.export_run(run, run.path / "folder", "en2")
        return loading.load(run.path), pathlib.Path(folder)

    return make


@pytest.fixture(scope="module")
def exported(make_folder) -> tuple[loading.LoadedRun, pathlib.Path]:
    return make_folder()


def numpy_gpt2_logits(folder: pathlib.Path, ids_BL: np.ndarray) -> np.ndarray:
    """GPT-2 as its paper and its checkpoints have it, in fp64."""
    p = {
        name: leaf.astype(np.float64)
        for name, leaf in load_file(folder / "model.safetensors").items()
    }
    config = json.loads((folder / "config.json").read_text())
    H = config["n_head"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["layer_norm_epsilon"])
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def project(x: np.ndarray, name: str) -> np.ndarray:
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def attend(x: np.ndarray, name: str) -> np.ndarray:
        heads = project(x, f"{name}.c_attn").reshape(*x.shape[:2], 3, H, -1)
        q, k, v = np.moveaxis(heads, 2, 0)
        scores = np.einsum("blhk,bmhk->bhlm", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bhlm,bmhk->blhk", weights / weights.sum(-1, keepdims=True), v)
        return project(mixed.reshape(x.shape), f"{name}.c_proj")

    x = p["transformer.wte.weight"][ids_BL] + p["transformer.wpe.weight"][: ids_BL.shape[1]]
    for n in range(config["n_layer"]):
        block = f"transformer.h.{n}"
        x = x + attend(norm(x, f"{block}.ln_1"), f"{block}.attn")
        u = project(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        u = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        x = x + project(u, f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ p["lm_head.weight"].T


def draw_ids(run: loading.LoadedRun) -> np.ndarray:
    return np.random.default_rng(0).integers(0, run.vocabulary.size, (2, run.config.model.L))


@pytest.mark.parametrize(
    "changes", [{}, {"model__tied": True, "model__base_width": 4, "model__base_head_width": 2}]
)
def test_a_folder_holds_a_gpt2_with_the_logits_of_the_run(make_folder, changes):
    run, folder = make_folder(**changes)
    ids_BL = draw_ids(run)
    # fp32 against fp64.
    np.testing.assert_allclose(run.forward(ids_BL), numpy_gpt2_logits(folder, ids_BL), atol=1e-4)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    back = restore(run, folder)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), back, run.params)


def test_transformers_has_the_logits_and_the_greedy_text_of_the_run(exported):
    reason = "needs PyTorch: pip install torch"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    run, folder = exported
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    ids_BL = draw_ids(run)
    with torch.no_grad():
        found = model(torch.tensor(ids_BL)).logits.numpy()
    np.testing.assert_allclose(found, run.forward(ids_BL), atol=1e-4)
    ours = generate.generate_ids(run, "The", "en2", tokens=8, temperature=0)[0]
    prompt = torch.tensor([[run.separator("en2"), *run.encode("The", "en2")]])
    theirs = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False
    )[0, 1:].tolist()
    assert theirs == ours[: len(theirs)].tolist()
    assert len(theirs) == len(ours) or theirs[-1] == run.separator("en2")


def test_transformers_reads_the_tokenizer_of_the_language(exported):
    transformers = pytest.importorskip(
        "transformers", reason="needs transformers: pip install transformers"
    )
    run, folder = exported
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    separator = run.separator("en2")
    assert tokenizer(TEXT)["input_ids"] == [separator, *run.encode(TEXT, "en2").tolist()]
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"], skip_special_tokens=True) == TEXT
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == separator
    assert len(tokenizer) == run.vocabulary.size
    assert tokenizer.model_max_length == run.config.model.L


def test_a_folder_says_what_it_holds(exported):
    run, folder = exported
    card = (folder / "README.md").read_text()
    assert "`en1`, `en2`" in card and "| en2 | en | 0 |" in card
    for file in folder.glob("*.json"):
        assert "crc32" not in json.loads(file.read_text())
    own_V = run.vocabulary.own_GV[run.vocabulary.index("en2")]
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == np.flatnonzero(~own_V).tolist()


@pytest.mark.parametrize(
    ("changes", "language", "message"),
    [
        ({"model__K": 4}, None, r"config\.model\.H \* K = 2 \* 4 is not D=16.*=safetensors writes"),
        ({"model__documents": "apart"}, None, r"the model has config\.model\.documents=apart"),
        ({"model__position_tables": "per_language"}, None, r"\.position_tables=per_language"),
        ({"model__preset": "llama"}, None, r"has config\.model\.position=rope, c.*=safetensors"),
        ({"model__kv_heads": 1}, None, r"has config\.model\.kv_heads=1\. --format=safetensors"),
        ({"model__norm_place": "both"}, None, r"has config\.model\.norm_place=both\. --format=s"),
        ({}, "fr", "--language=fr: the run has en1, en2"),
        ({"languages.en2.words": "reversed"}, "en2", r"config\.languages\.en2\.words='reversed'"),
    ],
)
def test_what_a_folder_cannot_hold_is_refused_by_the_config(data_dir, changes, language, message):
    with pytest.raises(ValueError, match=message):
        hugging_face.check_export(tiny_config(data_dir, **changes), language)


# And back.


def restore(run: loading.LoadedRun, folder: pathlib.Path, **model: object) -> dict:
    """Returns the parameters that a run with the tokenizers of another one begins with."""
    model_config = dataclasses.replace(run.config.model, **model)
    config = dataclasses.replace(run.config, init_from=str(folder), model=model_config)
    init_from.check_init_from(config)
    mesh = sharding.make_mesh(MESH, jax.devices()[:1])
    models = {name: each.content for name, each in run.tokenizers.items()}
    # Of these, only the shapes count: every id has a row of the folder.
    fresh = jax.tree.map(jnp.zeros_like, run.params)
    return init_from.restore_params(config, mesh, run.vocabulary, models, fresh)


def test_a_language_with_the_tokenizer_of_a_folder_gets_its_rows(exported, data_dir):
    pytest.importorskip("tokenizers", reason="needs tokenizers: pip install -e '.[huggingface]'")
    run, folder = exported
    path = folder / "tokenizer.json"
    changes = {"sources.en.tokenizer.path": str(path), "languages.en2.rows": "copied"}
    config = dataclasses.replace(tiny_config(data_dir, **changes), init_from=str(folder))
    init_from.check_init_from(config)
    content = path.read_bytes()
    vocabulary = languages.build_vocabulary(config, {"en": parse_tokenizer(content).pieces()})
    V = run.vocabulary.size
    assert vocabulary.size == 2 * V
    mesh = sharding.make_mesh(MESH, jax.devices()[:1])
    fresh = step_lib.init_state(config, 2 * V, mesh).params
    models = {"en": content}
    found = init_from.restore_params(config, mesh, vocabulary, models, fresh)
    own = dataclasses.replace(config.languages["en2"], rows="own")
    apart = dataclasses.replace(config, languages={**config.languages, "en2": own})
    alone = init_from.restore_params(apart, mesh, vocabulary, models, fresh)
    for name in ("embed_VD", "head_VD"):
        np.testing.assert_allclose(found[name][:V], run.params[name], rtol=1e-6)
        np.testing.assert_array_equal(found[name][V:], found[name][:V])
        np.testing.assert_array_equal(alone[name][V:], fresh[name][V:])


def test_a_folder_of_another_vocabulary_is_refused_with_the_field_to_set(exported):
    run, folder = exported
    fewer = dataclasses.replace(
        run.vocabulary,
        size=run.vocabulary.size - 1,
        map_GU=run.vocabulary.map_GU[:, :-1],
        own_GV=run.vocabulary.own_GV[:, :-1],
    )
    config = dataclasses.replace(run.config, init_from=str(folder))
    models = {name: each.content for name, each in run.tokenizers.items()}
    swapped = dataclasses.replace(run.vocabulary, map_GU=run.vocabulary.map_GU[:, ::-1])
    for vocabulary in (fewer, swapped):
        with pytest.raises(ValueError, match=r"Set config\.sources\.en\.tokenizer\.path=.*\.json"):
            init_hugging_face.find_folder_rows(config, vocabulary, models)


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ({}, {"L": 8, "D": 32}, "which has L=8, D=32. Set --config.model.L=16 --config.model.D=16"),
        ({"tie_word_embeddings": True}, {"tied": True}, "Set --config.model.tied=False"),
        ({"activation_function": "relu"}, {}, "activation_function='relu', and .* 'gelu_new'"),
        ({}, {"kv_heads": 1}, r"kv_heads=1 is another\. Set config\.model\.preset=gpt2"),
        ({"model_type": "llama"}, {}, "has model_type='llama'"),
    ],
)
def test_a_folder_of_another_model_is_refused(exported, tmp_path, theirs, ours, message):
    run, folder = exported
    changed = json.loads((folder / "config.json").read_text()) | theirs
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    (tmp_path / "config.json").write_text(json.dumps(changed))
    model = dataclasses.replace(run.config.model, **ours)
    config = dataclasses.replace(run.config, init_from=str(tmp_path), model=model)
    with pytest.raises(ValueError, match=message):
        init_from.check_init_from(config)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"has no tokenizer\.json\. Write it with transformers"):
        init_from.check_init_from(dataclasses.replace(config, model=run.config.model))


def test_parameters_that_are_not_those_of_their_config_are_refused(exported, tmp_path):
    run, folder = exported
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    file, named = tmp_path / "model.safetensors", load_file(folder / "model.safetensors")
    name = "transformer.h.1.attn.c_attn.weight"
    save_file(named | {name: np.zeros((16, 24), np.float32)}, file)
    with pytest.raises(ValueError, match=r"c_attn\.weight of shape \(16, 24\), not \(16, 48\)"):
        restore(run, tmp_path)
    save_file({each: leaf for each, leaf in named.items() if each != name}, file)
    with pytest.raises(ValueError, match=r"safetensors has no parameter h\.1\.attn\.c_attn\.wei"):
        restore(run, tmp_path)
    file.write_bytes(b"\x08")
    with pytest.raises(ValueError, match=r"model\.safetensors .*Copy the folder anew"):
        restore(run, tmp_path)
    save_file(named, file)
    with pytest.raises(ValueError, match=r"has a head of its own\. Set config\.model\.tied=False"):
        restore(run, tmp_path, tied=True)
