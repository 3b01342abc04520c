"""word2vec: what gensim is given and what comes back, planted structure, and the command."""

import dataclasses
import functools
import math
import sys

import numpy as np
import pytest
from absl import flags
from helpers import tiny_config

from imbalance_jax import config as config_lib
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.word2vec import __main__ as command
from imbalance_jax.word2vec import vectors as word2vec
from imbalance_jax.word2vec.vectors import Word2VecSettings

SMALL = Word2VecSettings(dimension=16, window=2, negatives=4, sample=0)


def train(blocks, size, settings, poll=lambda share: None):
    return word2vec.train_vectors(
        lambda: blocks, word2vec.count_ids(lambda: blocks, size), settings, poll
    )


def small_blocks(L: int = 16, size: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, size, (20, L)) for _ in range(30)]


@pytest.mark.parametrize("method", word2vec.METHODS)
def test_the_same_tokens_settings_and_seed_give_the_same_vectors(method):
    settings = dataclasses.replace(SMALL, method=method, sample=1e-2)
    one, other = (train(small_blocks(), 40, settings) for _ in range(2))
    np.testing.assert_array_equal(one.input_VD, other.input_VD)
    np.testing.assert_array_equal(one.output_VD, other.output_VD)
    reseeded = train(small_blocks(), 40, dataclasses.replace(settings, seed=1))
    assert not np.array_equal(one.input_VD, reseeded.input_VD)


def test_every_token_is_trained_on_once_an_epoch_and_counted_in_the_share_done():
    shares = []
    settings = dataclasses.replace(SMALL, epochs=2)
    assert train(small_blocks(), 40, settings, shares.append).kept == 2 * 30 * 20 * 16
    np.testing.assert_allclose(shares, np.arange(1, 61) / 60)


# gensim cuts a sentence off at 10,000 words.
def test_no_token_of_a_very_long_sequence_is_left_out():
    blocks = [np.random.default_rng(0).integers(0, 9, (2, 10_500))]
    assert train(blocks, 9, dataclasses.replace(SMALL, dimension=2)).kept == 21_000


def test_frequent_ids_are_left_out_as_often_as_word2vec_says():
    count_V = np.array([9000, 900, 90, 90])
    tokens = np.random.default_rng(0).permutation(np.repeat(range(4), count_V))
    settings = dataclasses.replace(SMALL, sample=0.01)
    t = 0.01 * count_V.sum()
    likely_V = np.minimum(1, np.sqrt(t / count_V) + t / count_V)  # as word2vec.c
    kept = train([tokens.reshape(-1, 36)], 4, settings).kept
    assert kept == pytest.approx(count_V @ likely_V, rel=0.05)  # 4 standard errors


def test_ids_that_are_too_rare_or_never_occur_have_no_vectors():
    blocks = [np.array([[0, 1, 2, 0, 1, 5, 0, 1, 2]])]
    found = train(blocks, 7, dataclasses.replace(SMALL, min_count=2))
    assert np.flatnonzero(found.input_VD.any(axis=1)).tolist() == [0, 1, 2]
    assert np.flatnonzero(found.output_VD.any(axis=1)).tolist() == [0, 1, 2]
    assert found.kept == 8


def test_an_error_of_the_stream_is_raised_and_does_not_wait_for_gensim():
    def broken():
        yield from small_blocks()[:3]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        word2vec.train_vectors(broken, np.full(40, 24), SMALL)


# What is learnt, on ids in clusters: those of one have the same neighbours.

CLUSTERS, WORDS = 6, 8


def clustered(tokens: int, L: int, seed: int = 0) -> list[np.ndarray]:
    """Returns blocks of sentences, each about one cluster, with words of no cluster in between."""
    rng = np.random.default_rng(seed)
    rows = tokens // L
    theirs = rng.integers(0, CLUSTERS, (rows, 1)) * WORDS + rng.integers(0, WORDS, (rows, L))
    common = CLUSTERS * WORDS + rng.integers(0, WORDS, (rows, L))
    ids = np.where(rng.random((rows, L)) < 0.5, theirs, common)
    return list(ids.reshape(-1, 20, L))


def within_cluster(input_VD: np.ndarray) -> float:
    """Returns how many of a word's WORDS - 1 nearest are of its cluster."""
    unit = input_VD / np.linalg.norm(input_VD, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(len(unit))
    near = np.argsort(-cosine, axis=1)[: CLUSTERS * WORDS, : WORDS - 1]
    cluster = np.arange(len(unit)) // WORDS
    return float(np.mean(cluster[near] == cluster[: CLUSTERS * WORDS, None]))


V = (CLUSTERS + 1) * WORDS


@pytest.mark.parametrize("method", word2vec.METHODS)
def test_words_with_the_same_neighbours_become_each_others(method):
    settings = Word2VecSettings(
        method=method, dimension=24, window=3, negatives=5, sample=0, start_rate=0.05, epochs=4
    )
    found = train(clustered(12_800, 16), V, settings)
    assert within_cluster(found.input_VD) > 0.95  # 0.13 by chance


# The command.


@pytest.fixture
def given(monkeypatch):
    """Returns a function that gives the command its flags."""
    values = flags.FlagValues()
    for name in ("string", "enum", "integer", "float", "bool"):
        define = getattr(flags, f"DEFINE_{name}")
        monkeypatch.setattr(flags, f"DEFINE_{name}", functools.partial(define, flag_values=values))
    monkeypatch.setattr(
        command.cli, "define_config_flag", lambda: flags.DEFINE_string("config", None, "A file.")
    )
    command.define_flags()
    monkeypatch.setattr(command, "FLAGS", values)
    return lambda *args: values(["word2vec", *args])


def test_the_flags_are_the_settings_with_their_defaults(given):
    given()
    for field in dataclasses.fields(Word2VecSettings):
        assert command.FLAGS[field.name].default == field.default, field.name


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "glove"}, "--method=glove: choose cbow or skipgram"),
        ({"window": 0}, "--window=0"),
        ({"seed": -1}, "--seed=-1"),
        ({"sample": -1}, "--sample=-1"),
        ({"end_rate": 0.1}, "--end_rate=0.1"),
        ({"sample": math.nan}, "--sample=nan"),
        ({"exponent": math.inf}, "--exponent=inf"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_be_is_refused_by_its_flag(wrong, said):
    with pytest.raises(ValueError, match=said):
        Word2VecSettings(**wrong)


def test_text_without_two_ids_that_are_frequent_enough_is_refused():
    settings = dataclasses.replace(SMALL, min_count=9)
    with pytest.raises(ValueError, match="--min_count=9 leaves fewer than two ids"):
        word2vec.train_vectors(lambda: [], np.array([10, 8, 8]), settings)


@pytest.mark.parametrize("flag", ["positions", "group"])
def test_a_flag_of_the_earlier_trainer_is_refused(flag, given, capsys):
    given(f"--{flag}=16")
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert f"leave out --{flag}" in capsys.readouterr().err


def test_without_gensim_the_command_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(ValueError, match=r"pip install gensim"):
        word2vec.import_gensim()


def test_what_an_earlier_version_trained_is_known_and_replaced_only_on_request(
    data_dir, english, tmp_path, given, capsys
):
    run = RunDirectory(tmp_path / "run")
    run.claim(tiny_config(data_dir))
    run.release()
    settings = dataclasses.asdict(Word2VecSettings()) | {"positions": 256, "group": 16}
    earlier = {"settings": settings, "steps": 20, "tokens": 5, "kept": 4, "seconds": 1.0}
    earlier |= {"tokens_per_second": 5, "skipped": {}, "pairs": {}}
    run.write_json(command.RESULTS, {"cbow": earlier})
    given(f"--workdir={run}")
    assert command.main() == 0
    assert "cbow is known already; --overwrite trains it again" in capsys.readouterr().out
    assert run.read_json(command.RESULTS) == {"cbow": earlier}


def test_a_run_is_measured_on_its_own_tokens_and_what_other_methods_found_is_kept(
    english, data_dir, tmp_path, given, monkeypatch
):
    run = RunDirectory(tmp_path / "run")
    run.claim(tiny_config(data_dir))
    run.release()
    run.write_json(command.RESULTS, {"skipgram": {"tokens": 1}})
    given(f"--workdir={run}", "--dimension=8", "--epochs=2")
    assert command.main() == 0
    found = run.read_json(command.RESULTS)
    assert found["skipgram"] == {"tokens": 1}
    with np.load(run.path / "word2vec-cbow.npz") as vectors:
        input_VD, output_VD, count_V = (vectors[name] for name in vectors.files)
    assert found["cbow"]["tokens"] == 2 * count_V.sum() == 2 * 20 * 8 * 16
    assert found["cbow"]["kept"] < found["cbow"]["tokens"]
    # The clone of the first id is the dead row of padding; all others are U apart.
    U = 384
    both = (count_V[:U] > 0) & (count_V[U:] > 0)
    seen = [np.flatnonzero(count_V[:U]), U + np.flatnonzero(count_V[U:])]
    for where, table_VD in (("input", input_VD), ("output", output_VD)):
        rows = found["cbow"]["pairs"]["en1-en2"][where]
        assert rows["pairs"] == both.sum() and rows["origin"] == "clones"
        unit = table_VD / np.maximum(np.linalg.norm(table_VD, axis=1, keepdims=True), 1e-9)
        cosine = np.sum(unit[:U][both] * unit[U:][both], axis=1)
        assert rows["cosine"] == pytest.approx(cosine.mean(), abs=1e-5)
        by_count = np.argsort(-np.minimum(count_V[:U], count_V[U:])[both], kind="stable")
        a, b = unit[:U][both][by_count], unit[U:][both][by_count]
        next_one = [np.dot(a[k], b[(k + 1) % len(b)]) for k in range(len(a))]
        assert rows["shuffled"] == pytest.approx(np.mean(next_one), abs=1e-5)
        any_two = unit[seen[0]] @ unit[seen[1]].T
        assert rows["between"] == pytest.approx(any_two.mean(), abs=1e-5)
        assert rows["retrieval"]["candidates"] == sum(map(len, seen)) // 2
    page = (run.path / "report.html").read_text()
    assert "word2vec on the same tokens" in page and "CBOW, en1-en2, output" in page

    # It is not trained again, and not replaced unasked.
    monkeypatch.setattr(command, "train_and_measure_vectors", None)
    assert command.main() == 0
    assert run.read_json(command.RESULTS) == found
    given(f"--workdir={run}", "--dimension=8", "--epochs=1")
    with pytest.raises(ValueError, match=r"has cbow already, with epochs=2 and not 1\. --overwri"):
        command.main()


def test_a_directory_without_a_run_is_refused(tmp_path, given, capsys):
    given(f"--workdir={tmp_path}/none")
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "none holds no run" in capsys.readouterr().err


def test_a_directory_of_something_else_is_refused(tmp_path, given, monkeypatch):
    (tmp_path / "report.html").write_text("of someone")
    config = config_lib.resolve_config(config_lib.cloned(scale="demo", ratio="3:1"))
    monkeypatch.setattr(command.cli, "require_run_config", lambda: config)
    given(f"--workdir={tmp_path}", "--config=any.py")
    with pytest.raises(ValueError, match=r"report\.html would be written over"):
        command.main()
