"""Behaviours of word2vec: against the update by hand, planted structure and gensim; the command."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from helpers import tiny_config

from imbalance_jax import config as config_lib
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.word2vec import __main__ as command
from imbalance_jax.word2vec import vectors as word2vec
from imbalance_jax.word2vec.vectors import Word2VecSettings

SMALL = Word2VecSettings(dimension=16, window=2, negatives=4, sample=0, positions=12, group=3)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def one_update_by_hand(
    tables, id_C, sentence_C, width_T, negative_Qn, rate, *, method, window
):  # fmt: skip
    """word2vec.c's gradients of each position in turn, all at the vectors before the update."""
    before = [table.astype(float) for table in tables]
    after = [table.copy() for table in before]
    for i, width in enumerate(width_T):
        place, group = i + window, i % len(negative_Qn)
        context = [
            id_C[place + o]
            for o in range(-width, width + 1)
            if o and sentence_C[place + o] == sentence_C[place]
        ]
        centre = id_C[place]
        negatives = [v for v in negative_Qn[group] if v != centre]
        for ids in [context] if method == "cbow" else [[c] for c in context]:
            if not ids:
                continue
            h = before[0][ids].mean(axis=0)
            error = np.zeros_like(h)
            for v, label in [(centre, 1), *((v, 0) for v in negatives)]:
                g = rate * (label - sigmoid(h @ before[1][v]))
                error += g * before[1][v]
                after[1][v] += g * h
            for c in ids:
                after[0][c] += error
    return after


@pytest.mark.parametrize("method", word2vec.METHODS)
def test_an_update_is_the_sum_of_what_word2vec_does_at_each_position(method):
    settings = dataclasses.replace(SMALL, method=method)
    rng = np.random.default_rng(0)
    V, T, w = 9, settings.positions, settings.window  # so few ids that they collide
    tables = [rng.normal(size=(V, 16)).astype(np.float32) for _ in range(2)]
    id_C = rng.integers(0, V, T + 2 * w).astype(np.int32)
    sentence_C = np.repeat([4, 5, -1], [7, 7, 2]).astype(np.int32)
    width_T = rng.integers(1, w + 1, T).astype(np.int32)
    negative_Qn = rng.integers(0, V, (T // settings.group, settings.negatives)).astype(np.int32)
    update = (id_C, sentence_C, width_T, negative_Qn, np.float32(0.1))
    expected = one_update_by_hand(tables, *update, method=method, window=w)
    found = word2vec._update_tables(
        tuple(map(jnp.asarray, tables)), tuple(x[None] for x in update), method=method, window=w
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def collected(blocks, settings, V):
    count_V = word2vec.count_ids(lambda: blocks, V)
    keep_V = word2vec.keep_probability(count_V, settings)
    return list(word2vec._make_chunks(lambda: blocks, count_V, keep_V, settings))


# What is left for the last chunk is a part of one, or a little more than one, or nothing.
@pytest.mark.parametrize(("L", "epochs"), [(7, 2), (5, 1), (24, 1)])
def test_every_token_is_a_position_once_an_epoch_beside_its_own_neighbours(monkeypatch, L, epochs):
    monkeypatch.setattr(word2vec, "_CHUNK", 24)  # two updates
    settings = dataclasses.replace(SMALL, epochs=epochs)
    tokens = 5 * L
    blocks = list(np.arange(tokens).reshape(5, 1, L))  # each token its own id
    chunks = collected(blocks, settings, tokens)
    w, T = settings.window, settings.positions
    ids, seen = [], []
    for chunk in chunks:
        for id_C, sentence_C in zip(chunk.id_SC, chunk.sentence_SC, strict=True):
            real = sentence_C >= 0
            # Wherever an update begins, all places hold the stream as it is.
            steps = np.diff(id_C)[real[1:] & real[:-1]]
            assert set(steps.tolist()) <= {1, 1 - tokens}
            ids += id_C[w : w + T][real[w : w + T]].tolist()
            seen += sentence_C[w : w + T][real[w : w + T]].tolist()
            assert real[w + T :].all() or len(ids) >= epochs * tokens - w
    assert ids == epochs * list(range(tokens))
    assert seen == [place // L for place in range(epochs * tokens)]
    assert sum(chunk.real for chunk in chunks) == epochs * tokens and chunks[-1].share == 1


def test_the_rate_falls_linearly_with_the_tokens_from_the_first_to_the_last():
    settings = dataclasses.replace(SMALL, start_rate=0.5, end_rate=0.1)
    (chunk,) = collected([np.arange(240).reshape(8, 30)], settings, 240)
    expected = 0.5 - 0.4 * np.arange(20) * settings.positions / 240
    np.testing.assert_allclose(chunk.rate_S[:20], expected, rtol=1e-6)


def test_frequent_ids_are_left_out_as_often_as_word2vec_says_and_rare_ones_always():
    count_V = np.array([900, 90, 9, 1])
    settings = dataclasses.replace(SMALL, sample=0.01, min_count=2)
    keep_V = word2vec.keep_probability(count_V, settings)
    t = 0.01 * 999  # of those that are kept
    assert keep_V[0] == pytest.approx(np.sqrt(t / 900) + t / 900)
    assert keep_V[2:].tolist() == [1, 0]
    blocks = [np.random.default_rng(s).permutation(np.repeat(range(4), count_V)) for s in range(4)]
    kept = np.concatenate(
        [
            ids
            for ids, _, _ in word2vec._subsample_blocks(
                lambda: [b[None] for b in blocks], keep_V, settings
            )
        ]
    )
    assert np.bincount(kept, minlength=4)[2:].tolist() == [36, 0]
    assert np.sum(kept == 0) == pytest.approx(3600 * keep_V[0], rel=0.15)  # 4 standard errors


def test_negatives_are_drawn_by_the_power_of_the_counts():
    count_V = np.array([0, 1, 16, 81])
    blocks = [np.repeat(range(4), count_V)[None]] * 40
    chunks = collected(blocks, dataclasses.replace(SMALL, exponent=0.5, epochs=5), 4)
    drawn = np.concatenate([chunk.negative_SQn.ravel() for chunk in chunks])
    found = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(found, np.array([0, 1, 4, 9]) / 14, atol=0.01)


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
PLANTED = Word2VecSettings(
    dimension=24, window=3, negatives=5, sample=0, positions=4, group=1, start_rate=0.05
)


@pytest.mark.parametrize("method", word2vec.METHODS)
def test_words_with_the_same_neighbours_become_each_others(method):
    blocks = clustered(12_800, 16)
    settings = dataclasses.replace(PLANTED, method=method, positions=32, group=8, epochs=2)
    found = word2vec.train_vectors(lambda: blocks, word2vec.count_ids(lambda: blocks, V), settings)
    assert found.kept == 2 * 12_800
    assert within_cluster(found.input_VD) > 0.95  # 0.13 by chance


# A position's contexts share its negatives here, and its sums are larger than gensim's steps.
@pytest.mark.parametrize(("method", "tolerance"), [("cbow", 0.05), ("skipgram", 0.2)])
def test_vectors_and_their_neighbours_are_like_those_of_gensim(method, tolerance):
    models = pytest.importorskip("gensim.models", reason="pip install -e '.[test]'")
    blocks = clustered(12_800, 16)
    settings = dataclasses.replace(PLANTED, method=method)
    ours = word2vec.train_vectors(lambda: blocks, word2vec.count_ids(lambda: blocks, V), settings)
    theirs = models.Word2Vec(
        [[str(v) for v in row] for block in blocks for row in block],
        vector_size=settings.dimension,
        window=settings.window,
        negative=settings.negatives,
        sample=settings.sample,
        min_count=1,
        alpha=settings.start_rate,
        min_alpha=settings.end_rate,
        epochs=settings.epochs,
        sg=int(method == "skipgram"),
        batch_words=32,  # between two rates
        workers=1,
        seed=1,
    )
    order = np.array([theirs.wv.key_to_index[str(v)] for v in range(V)])
    scores = within_cluster(ours.input_VD), within_cluster(theirs.wv.vectors[order])
    # After so few tokens CBOW is not through, so that its score says how far it has come.
    assert min(scores) > 0.8 and abs(scores[0] - scores[1]) < 0.1
    for mine, its in ((ours.input_VD, theirs.wv.vectors), (ours.output_VD, theirs.syn1neg)):
        norms = [np.linalg.norm(table, axis=1).mean() for table in (mine, its)]
        assert norms[0] == pytest.approx(norms[1], rel=tolerance)


# The command.


@pytest.fixture
def given(monkeypatch):
    """Returns a function that gives the command its flags."""
    values = flags.FlagValues()
    for name in ("string", "enum", "integer", "float", "bool"):
        define = getattr(flags, f"DEFINE_{name}")
        monkeypatch.setattr(flags, f"DEFINE_{name}", functools.partial(define, flag_values=values))
    monkeypatch.setattr(
        command.cli, "define_config", lambda: flags.DEFINE_string("config", None, "A file.")
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
        ({"positions": 100}, "--positions=100 are not whole groups of --group=16"),
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
    config = config_lib.cloned(scale="demo", ratio="3:1")
    monkeypatch.setattr(command.cli, "required_config", lambda: config)
    given(f"--workdir={tmp_path}", "--config=any.py")
    with pytest.raises(ValueError, match=r"report\.html would be written over"):
        command.main()
