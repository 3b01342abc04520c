"""Behaviours of an experiment that need no training: what a run is scored on, and how."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from documented_names import find_undocumented, list_json_names
from helpers import tiny_config

from imbalance_jax import config as config_lib
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import sharding
from imbalance_jax.config import LanguageConfig, ParallelConfig, SourceConfig
from imbalance_jax.data import parallel, prepare
from imbalance_jax.data.text import synthetic
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import experiment, planning, scoring


def make_trainer(config: config_lib.Config) -> experiment.Experiment:
    prepared = prepare.prepare_run_sources(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    return experiment.Experiment.make(
        config, prepared, mesh, parallel.prepare_all_parallel_sets(config, prepared)
    )


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> experiment.Experiment:
    """Two toy languages of a merged vocabulary, a clone of the second, and their pairs."""
    sources = {}
    for index, name in enumerate(("toy0", "toy1")):
        source = config_lib.declared(SourceConfig, kind="synthetic")
        source.synthetic.update({"language": index, "lemmas": 40, "depth": 2, "overlap": 0.25})
        sources[name] = source
    config = config_lib.spoken(sources, scale="demo", ratio="1:1")
    config.data_dir = str(tmp_path_factory.mktemp("data"))
    config.steps, config.batch_size = 4, 8
    config.vocabulary.layout = "merged"
    config.languages.toy2 = config_lib.declared(LanguageConfig, clone_of="toy1")
    config.mixture.ratio.toy2 = 1
    config.model.update({"L": 32, "D": 16, "H": 2, "K": 8, "F": 24, "N": 1})
    config.parallel.both = config_lib.declared(ParallelConfig, sources=("toy0", "toy1"))
    return make_trainer(config_lib.resolve_config(config))


def nats_of(trainer, params, tag) -> float:
    """Returns the nats of a language's side of the pairs, text by text, from plain logits."""
    row = trainer.vocabulary.index(tag)
    map_U = trainer.vocabulary.map_GU[row]
    pairs = trainer.parallel["both"]
    name = "toy0" if tag == "toy0" else "toy1"
    separator = trainer.sources[name].pieces.separator
    total = 0.0
    for ids_L, length in zip(pairs.ids[name], pairs.lengths[name], strict=True):
        ids_W = map_U[np.array([separator, *ids_L[:length]])]
        logits_LV = np.asarray(
            model_lib.compute_next_token_logits(params, trainer.config.model, ids_W[None, :-1])[0],
            np.float64,
        )
        chosen_L = logits_LV[np.arange(length), ids_W[1:]]
        total += float(np.sum(np.log(np.exp(logits_LV).sum(axis=1)) - chosen_L))
    return total


def test_what_an_earlier_version_made_is_refused_before_a_run_goes_on(tmp_path, data_dir, english):
    config, run = tiny_config(data_dir), RunDirectory(tmp_path)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    made = experiment.Experiment.of_run(config, run, mesh).vocabulary
    run.write_bytes("vocabulary.npz", made.to_bytes())
    experiment.Experiment.of_run(config, run, mesh)
    run.write_bytes("vocabulary.npz", dataclasses.replace(made, map_GU=made.map_GU + 1).to_bytes())
    with pytest.raises(ValueError, match="gave its languages other ids of the model"):
        experiment.Experiment.of_run(config, run, mesh)
    about = {"fingerprint": english.fingerprint}  # of text in a format without a number
    run.write_json("provenance.json", {"sources": {"en": about}})
    with pytest.raises(ValueError, match="prepares source en in another format"):
        experiment.Experiment.of_run(config, run, mesh)


def test_a_run_goes_on_with_the_ratio_that_it_has_and_with_no_other_text(tmp_path, data_dir):
    config = tiny_config(data_dir, mixture__temperature=1.0, mixture__ratio={})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    run = RunDirectory(tmp_path / "run")
    assert dict(experiment.Experiment.of_run(config, run, mesh).config.mixture.ratio) == {
        "en1": 500,
        "en2": 500,
    }
    ratio = {"en1": 501, "en2": 499}  # as another version would have rounded it
    run.claim(tiny_config(data_dir, mixture__temperature=1.0, mixture__ratio=ratio))
    run.release()
    assert dict(experiment.Experiment.of_run(config, run, mesh).config.mixture.ratio) == ratio
    refused = "the study was begun with the text of fingerprint 0123"
    with pytest.raises(ValueError, match=refused):
        experiment.Experiment.of_run(config, RunDirectory(tmp_path / "other"), mesh, {"en": "0123"})
    with pytest.raises(ValueError, match=refused):
        prepare.prepare_runs({"r": config}, {"r": {"en": "0123"}})


def test_a_run_says_of_its_text_what_the_ratio_alone_does_not_show(data_dir, english):
    config = tiny_config(data_dir)
    plain = config_lib.to_dict(config)
    plain["sources"]["same"] = plain["sources"]["en"]
    plain["languages"]["en2"] |= {"clone_of": "", "source": "same"}
    plain["mixture"] |= {"content": "disjoint", "ratio": {"en1": 1, "en2": 0}}
    config = config_lib.resolve_config(plain)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    trainer = experiment.Experiment.make(config, {"en": english, "same": english}, mesh)
    said = planning.describe_planned_run(trainer)
    assert "\n  en2 gets none of the 160 sequences of this run: its ratio is 0" in said
    assert "\n  100.0% of the documents of same have an id that another source has too" in said
    assert "\n  content=disjoint takes NOTHING away" in said


def test_nats_a_pair_are_those_of_every_id_of_its_text_and_of_no_other(toys):
    pairs = toys.parallel["both"]
    # A few rows, of different lengths, are enough to add up by hand.
    few = parallel.ParallelSet(
        **{
            **{name: getattr(pairs, name) for name in ("name", "sources", "L", "about")},
            "ids": {name: ids_PL[-5:] for name, ids_PL in pairs.ids.items()},
            "lengths": {name: lengths_P[-5:] for name, lengths_P in pairs.lengths.items()},
            "bytes": {name: bytes_P[-5:] for name, bytes_P in pairs.bytes.items()},
            "pairs_P": pairs.pairs_P[-5:],
        }
    )
    trainer = experiment.Experiment(
        toys.config, toys.sources, toys.stream, toys.vocabulary, toys.mesh, {"both": few}
    )
    state = trainer.init_state()
    windows = trainer.parallel_windows(few)
    scores = scoring.score_parallel_set(
        trainer, trainer.evaluator(), state, few, windows, lambda share: None
    )
    assert scores["pairs"] == few.pairs_P.sum() > 5
    assert set(scores["languages"]) == {"toy0", "toy1", "toy2"}
    written = list_json_names({"parallel": {"both": scores}})
    assert find_undocumented("evaluation.json", written) == []
    for tag, values in scores["languages"].items():
        expected = nats_of(trainer, state.params, tag)
        assert values["nats_per_pair"] * scores["pairs"] == pytest.approx(expected, rel=1e-5)
        name = "toy0" if tag == "toy0" else "toy1"
        assert values["tokens"] == few.lengths[name].sum()
        assert values["bytes"] == few.bytes[name].sum() > 100


def test_the_least_loss_of_a_toy_language_is_its_entropy_and_less_than_an_untrained_model_s(toys):
    known = toys.entropy("toy2")
    config = toys.config.sources["toy1"].synthetic
    assert (
        known["per_token"]
        == synthetic.compute_language_entropy(config).per_token
        == known["least_loss"][0]
    )
    assert known["least_loss"][0] < known["least_loss"][1] < np.log(toys.vocabulary.size)


def test_the_least_loss_of_a_toy_language_is_that_of_its_order_of_words(toys):
    def known(words):
        changed = dataclasses.replace(toys.config.languages["toy2"], words=words)
        languages = dict(toys.config.languages) | {"toy2": changed}
        config = dataclasses.replace(toys.config, languages=languages)
        made = make_trainer(dataclasses.replace(config, parallel={}))
        entropy = made.entropy("toy2")
        lower, upper = entropy["least_loss"]
        said = f"words {words}, " if words != "as_written" else "clone of toy1, "
        said += f"least loss {lower:.4f} to {upper:.4f} nats per token"
        assert said in planning.describe_planned_run(made)
        return made, entropy

    _, written = known("as_written")
    made, shuffled = known("shuffled")
    assert "per_sentence" in written and "per_sentence" not in shuffled
    lower, upper = shuffled["least_loss"]
    assert written["least_loss"][1] < lower == shuffled["per_token"] < upper
    # What a model pays that knows the separators and how often the other ids occur.
    ids = made.held_out("toy2", "test")
    seen = np.bincount(ids)[3:]
    share = seen[seen > 0] / seen.sum()
    paid = -(share * np.log(share)).sum() * seen.sum() / len(ids)
    assert paid == pytest.approx(lower, abs=2e-3)
    # And it would not pay less if it knew the id before, as it would in text as it was written.
    size = made.source("toy2").pieces.size
    bigrams = np.zeros((size, size))
    np.add.at(bigrams, (ids[:-1], ids[1:]), 1)
    joint, before = bigrams[bigrams > 0], bigrams.sum(axis=1)[np.nonzero(bigrams)[0]]
    assert -(joint * np.log(joint / before)).sum() / len(ids) > lower - 0.02
    for words in ("reversed", "permuted"):
        reordered = known(words)[1]
        assert reordered["per_token"] == reordered["least_loss"][0] == written["per_token"]
        assert reordered["least_loss"][1] == reordered["unigram"] == written["unigram"]


def test_a_cap_that_leaves_no_text_to_test_on_is_named(tmp_path):
    texts = (json.dumps({"text": f"{n} words of a document"}) for n in range(200))
    (tmp_path / "en.jsonl").write_text("\n".join(texts))
    source = config_lib.declared(SourceConfig, kind="files", train=str(tmp_path / "en.jsonl"))
    source.max_documents = 20
    config = config_lib.spoken({"en": source}, scale="demo", ratio="1")
    config.sources.en.tokenizer.vocab_size = 300
    config.data_dir = str(tmp_path / "data")
    with pytest.raises(ValueError, match=r"file, raise config\.sources\.en\.max_documents, or use"):
        make_trainer(config_lib.resolve_config(config))


def test_a_text_that_is_not_synthetic_has_no_known_entropy(data_dir, english):
    assert make_trainer(tiny_config(data_dir)).entropy("en1") == {}


def test_a_language_is_scored_on_its_own_order_of_words(data_dir, english):
    trainer = make_trainer(tiny_config(data_dir, languages__en2__words="reversed"))
    for windows in (trainer.test_windows(), trainer.validation_windows()):
        first, second = windows
        assert first.ids_nW.shape == second.ids_nW.shape
        assert (first.ids_nW != second.ids_nW).any()
    written, reversed_ = (trainer.held_out(tag, "test") for tag in ("en1", "en2"))
    assert (written == english.tokens("test")).all()
    assert (np.bincount(written) == np.bincount(reversed_)).all()


def test_a_language_of_other_words_is_left_out_of_the_parallel_texts(toys):
    plain = config_lib.to_dict(toys.config)
    for source in plain["sources"].values():
        source["synthetic"]["tokens"] = 5000
    plain["languages"]["toy2"]["words"] = "reversed"
    trainer = make_trainer(config_lib.resolve_config(plain))
    counts = [len(w.ids_nW) for w in trainer.parallel_windows(trainer.parallel["both"])]
    assert counts[0] == counts[1] > 0 and counts[2] == 0


def test_a_clone_with_copied_rows_starts_with_those_of_its_parent(data_dir, english):
    config = tiny_config(data_dir, languages__en2__rows="copied")
    mesh = sharding.make_mesh(config.mesh, jax.devices())
    trainer = experiment.Experiment.make(config, {"en": english}, mesh)
    params, alone = trainer.init_state().params, tiny_config(data_dir)
    plain = experiment.Experiment.make(alone, {"en": english}, mesh).init_state().params
    en1_U, en2_U = trainer.vocabulary.map_GU
    for name in ("embed_VD", "head_VD"):
        table, before = np.asarray(params[name]), np.asarray(plain[name])
        assert np.array_equal(table[en1_U], before[en1_U])
        assert np.array_equal(table[en2_U], before[en1_U])
