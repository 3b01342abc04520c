"""A trained run in a notebook, and runs that begin with another one's parameters."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import tiny_config
from safetensors import safe_open
from safetensors.numpy import load_file

import imbalance_jax
from imbalance_jax import config as config_lib
from imbalance_jax import generate
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import sharding
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.checkpoint import Checkpoints
from imbalance_jax.data import languages, sources
from imbalance_jax.evaluation import perplexity
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import experiment, exporting, init_from, loading

TEXT = "The function returns the value of the argument, or None where there is no argument."


def make_run(path: pathlib.Path, config: config_lib.Config, english: sources.Source) -> str:
    """Writes what a run has after its first checkpoint, with parameters that are sure of things."""
    run = RunDirectory(path)
    run.claim(config)
    run.release()
    run.write_bytes("tokenizer-en.model", english.model)
    vocabulary = languages.build_vocabulary(config, {"en": english.pieces})
    run.write_bytes("vocabulary.npz", vocabulary.to_bytes())
    mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
    state = step_lib.init_state(config, vocabulary.size, mesh)
    params = jax.tree.map(lambda leaf: 10 * leaf, state.params)
    checkpoints = Checkpoints(run.checkpoints)
    checkpoints.save(dataclasses.replace(state, params=params))
    checkpoints.close()
    return str(path)


@pytest.fixture(scope="module")
def begun(data_dir, english, tmp_path_factory) -> str:
    """The directory of a run on two clones."""
    return make_run(tmp_path_factory.mktemp("runs") / "run", tiny_config(data_dir), english)


@pytest.fixture(scope="module")
def run(begun) -> loading.LoadedRun:
    return imbalance_jax.load(begun)


def log_probabilities(
    run: loading.LoadedRun, ids: np.ndarray, language: str | None = None
) -> np.ndarray:
    """Returns those of the next id at every position, from whole softmaxes: (n, V)."""
    L = run.config.model.L  # always as long, so that one program does
    logits_LV = np.asarray(run.forward(np.pad(ids, (0, L - len(ids))), language), np.float64)
    top_L1 = logits_LV.max(-1, keepdims=True)
    log_p_LV = logits_LV - top_L1 - np.log(np.exp(logits_LV - top_L1).sum(-1, keepdims=True))
    return log_p_LV[: len(ids)]


def test_the_package_names_load_among_its_own():
    assert "load" in dir(imbalance_jax)
    code = "import imbalance_jax, sys; print(dir(imbalance_jax), 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "'load'" in done.stdout and done.stdout.endswith("False\n"), done.stderr


def test_the_separator_of_every_language_is_the_models(run, english):
    base = english.tokenizer.separator
    U = english.pieces.size
    assert [run.separator(tag) for tag in ("en1", "en2")] == [base, base + U]
    for tag in ("en1", "en2"):
        assert run.vocabulary.own_GV[run.vocabulary.index(tag), run.separator(tag)]


@pytest.mark.parametrize("tag", ["en1", "en2"])
def test_the_loss_of_a_short_text_is_that_of_whole_softmaxes_behind_a_separator(run, tag):
    text = TEXT[:24]
    ids = run.encode(text, tag)
    assert 4 < len(ids) < run.config.model.L
    log_p_LV = log_probabilities(run, np.concatenate([[run.separator(tag)], ids[:-1]]))
    expected = -log_p_LV[np.arange(len(ids)), ids]
    np.testing.assert_allclose(run.loss(text, tag), expected, rtol=1e-4)


def test_the_loss_of_a_long_text_is_the_evaluators(run, english):
    text, config = TEXT * 3, run.config
    L, stride = config.model.L, config.eval_stride
    mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
    evaluator = perplexity.PerplexityEvaluator(
        config.model, run.vocabulary, mesh, 4, np.dtype(np.uint16)
    )
    base = np.array([english.tokenizer.separator, *english.tokenizer.encode(text)])
    windows = perplexity.cut_strided_windows(base.astype(np.uint16), L, stride)
    assert len(windows.ids_nW) > 8
    found = evaluator(run.params, [windows, windows])
    for tag in ("en1", "en2"):
        loss_n = run.loss(text, tag)
        assert loss_n.shape == (len(base) - 1,)
        # The evaluator scores nothing of the first L - stride ids.
        assert loss_n[L - stride :].mean() == pytest.approx(found[tag]["loss"], rel=1e-5)
    # And those are what the first window alone says of them.
    first = english.tokenizer.decode(base[1 : L + 1].tolist())
    np.testing.assert_allclose(run.loss(first, "en1")[:L], run.loss(text, "en1")[:L], rtol=1e-4)


def test_one_sequence_needs_no_batch_axis(run):
    ids = run.encode(TEXT, "en2")[: run.config.model.L]
    logits_LV, states_NLD = run.forward(ids), run.hidden_states(ids)
    assert logits_LV.shape == (len(ids), run.vocabulary.size)
    assert states_NLD.shape == (run.config.model.N + 2, len(ids), run.config.model.D)
    np.testing.assert_array_equal(run.forward(ids[None])[0], logits_LV)
    np.testing.assert_array_equal(run.hidden_states(ids[None])[:, 0], states_NLD)
    # The head of the last of them makes the logits.
    head_VD = np.asarray(model_lib.get_output_embeddings(run.params, run.config.model))
    np.testing.assert_allclose(states_NLD[-1] @ head_VD.T, logits_LV, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([3, 768], "ids are 0 to 767, and these are 3 to 768"),
        ([-1, 3], "ids are 0 to 767, and these are -1 to 3"),
        ([0.5], r"whole numbers \(L,\)"),
        (5, r"whole numbers \(L,\)"),
        (np.zeros(0, int), "There are no ids"),
    ],
)
def test_what_is_no_id_of_the_model_is_refused(run, ids, said):
    with pytest.raises(ValueError, match=said):
        run.forward(np.array(ids))


@pytest.mark.parametrize("ids", [[3, 768], [-1, 3]])
def test_what_is_no_id_of_the_model_has_no_text(run, ids):
    with pytest.raises(ValueError, match="The model's ids are 0 to 767, and these are"):
        run.decode(np.array(ids), "en1")
    assert run.decode(np.array([]), "en1") == ""


def test_a_text_is_read_in_the_order_of_its_languages_words(run):
    language = dataclasses.replace(run.config.languages["en2"], words="reversed")
    config = dataclasses.replace(run.config, languages={**run.config.languages, "en2": language})
    turned = dataclasses.replace(run, config=config)
    assert turned.decode(turned.encode(" one two three", "en2"), "en2") == " three two one"
    assert turned.decode(turned.encode(" one two three", "en1"), "en1") == " one two three"


def test_a_model_of_documents_apart_and_of_languages_positions_is_read_as_it_was_trained(
    data_dir, english, tmp_path
):
    changes = {"model__documents": "apart", "model__position_tables": "per_language"}
    run = imbalance_jax.load(make_run(tmp_path / "run", tiny_config(data_dir, **changes), english))
    before, text = run.encode("The function", "en2"), run.encode("the value", "en2")
    cut, begin = run.separator("en2"), len(before) + 1
    log_p, other = (
        log_probabilities(run, np.array([cut, *first, cut, *text]), "en2")
        for first in (before, before[::-1])
    )
    np.testing.assert_array_equal(log_p[begin:], other[begin:])
    assert np.all(np.any(log_p[1 : begin - 1] != other[1 : begin - 1], axis=-1))
    # Text, and what is generated, as the whole forward pass has it in their language.
    log_p = log_probabilities(run, np.array([cut, *text]), "en2")
    expected = -log_p[np.arange(len(text)), text]
    np.testing.assert_allclose(run.loss("the value", "en2"), expected, atol=1e-4)
    assert np.any(log_p != log_probabilities(run, np.array([cut, *text]), "en1"))
    written = generate.generate_ids(run, "the value", "en2", tokens=1, temperature=0)
    own_V = run.vocabulary.own_GV[run.vocabulary.index("en2")]
    assert written[0, -1] == np.argmax(np.where(own_V, log_p[len(text)], -np.inf))
    with pytest.raises(ValueError, match="positions of each language. Name it: language='en1'"):
        run.forward(text)


def test_generation_begins_behind_the_separator_of_its_language(run):
    prompt = run.encode("Returns the", "en2")
    ids_BT = generate.generate_ids(run, "Returns the", "en2", tokens=1, temperature=0)
    np.testing.assert_array_equal(ids_BT[0, :-1], prompt)
    last_V = log_probabilities(run, np.concatenate([[run.separator("en2")], prompt]))[-1]
    own_V = run.vocabulary.own_GV[run.vocabulary.index("en2")]
    assert ids_BT[0, -1] == np.argmax(np.where(own_V, last_V, -np.inf))


@pytest.mark.parametrize(
    "dials",
    [
        pytest.param({"preset": "llama", "rope_theta": 500.0}, marks=pytest.mark.slow),
        {
            **{"preset": "modern", "kv_heads": 1, "norm_place": "both", "tied": True},
            **{"base_width": 4, "base_head_width": 2, "rope_theta": 500.0, "documents": "apart"},
        },
    ],
    ids=["llama", "modern"],
)
def test_a_run_with_dials_is_loaded_exported_and_written_on_as_it_is(
    data_dir, english, tmp_path, dials
):
    config = tiny_config(data_dir, **{f"model__{dial}": value for dial, value in dials.items()})
    run = imbalance_jax.load(make_run(tmp_path / "run", config, english))
    exporting.export_run(RunDirectory(tmp_path / "run"), tmp_path / "out")
    # Of the export's files alone: the config, and each parameter at the place that its name says.
    written = config_lib.resolve_config(json.loads((tmp_path / "out/config.json").read_text()))
    assert written.model == config.model
    with safe_open(tmp_path / "out/model.safetensors", "numpy") as file:
        convention = file.metadata()["convention"]
    dialled, *_, last = convention.split("; ")
    assert (
        dialled.startswith("GPT-2 with position=rope, norm=rms, ")
        and last == "weights act as x @ w"
    )
    assert ("logits are divided by 4;" in convention) == ("base_width" in dials)
    assert "the base of wavelengths is 500;" in convention
    assert ("attention stays within documents" in convention) == ("base_width" in dials)
    params: dict = {}
    for name, array in sorted(load_file(tmp_path / "out/model.safetensors").items()):
        *groups, last = name.split(".")
        place = params
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = array
    blocks = params["blocks"]
    params["blocks"] = jax.tree.map(
        lambda *each: np.stack(each), *(blocks[str(n)] for n in range(config.model.N))
    )
    ids = run.encode(TEXT, "en2")[: config.model.L]
    found = jax.jit(model_lib.compute_next_token_logits, static_argnums=1)(
        params, written.model, ids[None], run.context(None)
    )
    np.testing.assert_array_equal(found[0], run.forward(ids))

    prompt = run.encode("Returns the", "en2")
    (ids,) = generate.generate_ids(run, "Returns the", "en2", tokens=5, temperature=0)
    own_V = run.vocabulary.own_GV[run.vocabulary.index("en2")]
    seen = np.concatenate([[run.separator("en2")], ids[:-1]])
    # One forward pass of all that was written: its greedy choice at every place is the next id.
    greedy = np.argmax(np.where(own_V, log_probabilities(run, seen), -np.inf), axis=-1)
    np.testing.assert_array_equal(greedy[len(prompt) :], ids[len(prompt) :])


# Beginning with another run's parameters.


def going_on(begun: str, **changes: object) -> config_lib.Config:
    """Returns a run that begins with another one's parameters, otherwise its like."""
    return dataclasses.replace(RunDirectory(begun).config(), init_from=begun, **changes)


def check(config: config_lib.Config, english: sources.Source) -> None:
    init_from.check_init_from(config)
    vocabulary = languages.build_vocabulary(config, {"en": english.pieces})
    init_from.check_vocabulary(config, vocabulary, {"en": english.model})


def test_the_same_languages_may_go_on_in_another_ratio_or_in_one_of_them(begun, english):
    before = RunDirectory(begun).config()
    ratio = dataclasses.replace(before.mixture, ratio={"en1": 0, "en2": 1})
    check(going_on(begun, mixture=ratio, steps=5), english)
    check(config_lib.resolve_config(config_lib.continued(before, begun, "en2", 5)), english)


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        (
            {"preset": "llama"},
            r"position=learned, .* has config\.model\.position=rope\. .* set con",
        ),
        ({"kv_heads": 1}, r"set config\.model\.kv_heads=2\."),
        ({"base_width": 8}, r"set config\.model\.base_width=0\."),
    ],
)
def test_parameters_of_another_architecture_are_refused_with_the_field_to_set(begun, dials, said):
    model = dataclasses.replace(RunDirectory(begun).config().model, **dials)
    with pytest.raises(ValueError, match=said):
        init_from.check_init_from(going_on(begun, model=model))


def test_rotations_of_another_base_are_refused_with_the_base_to_set(begun, monkeypatch):
    before = RunDirectory(begun).config()
    turned = dataclasses.replace(before.model, position="rope", rope_theta=500.0)
    monkeypatch.setattr(
        RunDirectory, "config", lambda run: dataclasses.replace(before, model=turned)
    )
    other = going_on(begun, model=dataclasses.replace(turned, rope_theta=1e4))
    with pytest.raises(ValueError, match=r"set config\.model\.rope_theta=500\.0"):
        init_from.check_init_from(other)
    init_from.check_init_from(going_on(begun, model=turned))


def with_languages(begun: str, **changed: config_lib.LanguageConfig | None) -> config_lib.Config:
    before = RunDirectory(begun).config()
    both = {**before.languages, **changed}
    kept = {tag: language for tag, language in both.items() if language}
    mixture = dataclasses.replace(before.mixture, ratio=dict.fromkeys(kept, 1))
    return going_on(begun, languages=kept, mixture=mixture)


def test_clones_that_were_added_or_taken_away_are_refused_before_any_text_is_read(begun):
    third = config_lib.LanguageConfig(clone_of="en1")
    for changed in ({"en3": third}, {"en2": None}, {"en2": None, "fr": third}):
        config = with_languages(begun, **changed)
        with pytest.raises(
            ValueError, match=f"has the languages en1, en2, and .* {config.tags[-1]}"
        ):
            init_from.check_init_from(config)


def test_rows_that_would_be_copied_from_nothing_are_refused(begun):
    copied = config_lib.LanguageConfig(clone_of="en1", rows="copied")
    with pytest.raises(ValueError, match=r"languages\.en2\.rows='copied' would copy nothing"):
        init_from.check_init_from(with_languages(begun, en2=copied))


def test_languages_of_other_ids_are_refused_with_a_piece_as_an_example(begun, english):
    anchored = config_lib.LanguageConfig(clone_of="en1", anchors=0.5)
    with pytest.raises(ValueError, match=r"other ids for 19\d of the 384 pieces of en2: .* here"):
        check(with_languages(begun, en2=anchored), english)
    merged = dataclasses.replace(RunDirectory(begun).config().vocabulary, separator="shared")
    with pytest.raises(ValueError, match="other ids for 1 of the 384 pieces of en2: '<D>' is 386"):
        check(going_on(begun, vocabulary=merged), english)


def test_another_size_of_tokenizer_is_refused_before_any_text_is_read(begun):
    before = RunDirectory(begun).config()
    tokenizer = dataclasses.replace(before.sources["en"].tokenizer, vocab_size=400)
    source = dataclasses.replace(before.sources["en"], tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"384 pieces of en1, .*en.tokenizer.vocab_size=400. Set"):
        init_from.check_init_from(going_on(begun, sources={"en": source}))


def test_another_tokenizer_of_the_same_size_is_refused_and_the_message_mends_it(
    begun, english, tmp_path
):
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(english.model)
    proto.pieces[-1].piece, proto.pieces[-2].piece = proto.pieces[-2].piece, proto.pieces[-1].piece
    other = tmp_path / "other.model"
    other.write_bytes(proto.SerializeToString())
    before = RunDirectory(begun).config()

    def read_with(path: object) -> config_lib.Config:
        tokenizer = dataclasses.replace(before.sources["en"].tokenizer, path=str(path))
        source = dataclasses.replace(before.sources["en"], tokenizer=tokenizer)
        return going_on(begun, sources={"en": source})

    with pytest.raises(ValueError, match="another tokenizer of en1: its piece 382 is") as refused:
        init_from.check_init_from(read_with(other))
    with pytest.raises(ValueError, match="another tokenizer of en1: its piece 382 is"):
        vocabulary = languages.build_vocabulary(before, {"en": english.pieces})
        init_from.check_vocabulary(going_on(begun), vocabulary, {"en": other.read_bytes()})
    path = str(refused.value).partition("config.sources.en.tokenizer.path=")[2].partition(",")[0]
    init_from.check_init_from(read_with(path))


def test_what_a_trainer_cannot_begin_with_is_refused_as_its_text_is_ready(
    begun, english, data_dir, tmp_path
):
    mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
    anchored = config_lib.LanguageConfig(clone_of="en1", anchors=0.5)
    config = with_languages(begun, en2=anchored)
    with pytest.raises(ValueError, match="other ids for"):
        experiment.Experiment.of_run(config, RunDirectory(tmp_path / "new"), mesh)
    same = going_on(begun)
    vocabulary = languages.build_vocabulary(same, {"en": english.pieces})
    params = init_from.restore_params(same, mesh, vocabulary, {"en": english.model}, {})
    jax.tree.map(np.testing.assert_array_equal, params, imbalance_jax.load(begun).params)


def test_a_run_that_has_begun_needs_the_other_one_no_more(begun, tmp_path):
    from imbalance_jax import main

    config = dataclasses.replace(going_on(begun), init_from="no/run")
    with pytest.raises(ValueError, match="config.init_from='no/run' .*: no/run holds no run"):
        main._check_run_inputs(RunDirectory(tmp_path / "new"), config)
    main._check_run_inputs(RunDirectory(begun), config)


def test_an_exported_vocabulary_names_the_separator_of_every_language(begun, run, tmp_path):
    exporting.export_run(RunDirectory(begun), tmp_path)
    written = json.loads((tmp_path / "vocabulary.json").read_text())
    assert written["separator"] == {tag: run.separator(tag) for tag in ("en1", "en2")}
