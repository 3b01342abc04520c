"""What a run's measurements are given: pairs, pieces, counts; and what is logged of them."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from helpers import make_mesh, no_poll

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.compute import sharding
from imbalance_jax.config import AlignmentConfig, Config, LanguageConfig, MeshConfig, SourceConfig
from imbalance_jax.data import parallel, prepare
from imbalance_jax.evaluation.alignment import AlignmentEvaluator
from imbalance_jax.evaluation.piece_counts import count_pieces
from imbalance_jax.training import experiment


def toy_config(data_dir: str, **alignment: object) -> Config:
    """Returns three toy languages, two of them with parallel text, and a clone of the second."""
    sources = {}
    for index, name in enumerate(("toy0", "toy1", "toy2")):
        sources[name] = config_lib.declared(SourceConfig, kind="synthetic")
        # The third has a world of its own, so that nothing says the same in it.
        world = {"world": int(index == 2), "language": index % 2}
        sources[name].synthetic.update(world | {"lemmas": 40, "depth": 2, "overlap": 0.25})
    config = config_lib.spoken(sources, scale="demo", ratio="1:1:1")
    config.data_dir = data_dir
    config.steps, config.batch_size = 40, 8
    config.vocabulary.layout = "merged"
    config.languages.toy3 = config_lib.declared(LanguageConfig, clone_of="toy1")
    config.mixture.ratio.toy3 = 1
    config.model.update({"L": 32, "D": 16, "H": 2, "K": 8, "F": 24, "N": 1})
    config.parallel.both = config_lib.declared(config_lib.ParallelConfig, sources=("toy0", "toy1"))
    config.evaluation.alignment.update(alignment)
    return config_lib.resolve_config(config)


def make_trainer(config: Config, mesh: MeshConfig, devices: int) -> experiment.Experiment:
    config = dataclasses.replace(config, mesh=mesh)
    prepared = prepare.prepare_run_sources(config)
    made = sharding.make_mesh(mesh, jax.devices()[:devices])
    return experiment.Experiment.make(
        config, prepared, made, parallel.prepare_all_parallel_sets(config, prepared)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def toys(data) -> experiment.Experiment:
    return make_trainer(toy_config(data), MeshConfig(), 1)


def names(alignment: AlignmentEvaluator) -> list[str]:
    return [pair.name for pair in alignment.pairs]


def test_every_pair_that_says_the_same_somewhere_is_measured_and_the_rest_named(toys):
    alignment = toys.alignment("test", 8)
    assert names(alignment) == ["toy0-toy1", "toy0-toy3", "toy1-toy3"]
    assert [pair.set for pair in alignment.pairs] == ["both", "both", ""]
    assert [pair.sequences.aligned for pair in alignment.pairs] == [False, False, True]
    assert set(alignment.skipped) == {"toy0-toy2", "toy1-toy2", "toy2-toy3"}
    message = alignment.skipped["toy0-toy2"]
    assert "Give config.parallel a set with sources=('toy0', 'toy2') and a path" in message
    assert not alignment.notes


def test_a_pair_with_fewer_sequences_than_asked_is_compared_on_those_there_are(toys):
    rows = len(toys.parallel["both"].pairs_P)
    alignment = toys.alignment("test", rows + 1)
    first = alignment.pairs[0].sequences
    assert len(first.ids[0]) == len(first.ids[1]) == rows
    assert f"toy0-toy1 is compared on {rows} sequences, not {rows + 1}" in alignment.notes[0]
    assert "config.parallel.both has no more" in alignment.notes[0]
    assert names(toys.alignment("test", rows)) == names(alignment)


def test_a_language_with_words_in_another_order_is_left_out_with_the_reason(data):
    config = toy_config(data)
    reordered = dataclasses.replace(config.languages["toy1"], words="reversed")
    changed = dataclasses.replace(config, languages=dict(config.languages) | {"toy1": reordered})
    alignment = make_trainer(changed, MeshConfig(), 1).alignment("test", 8)
    assert "words in another order" in alignment.skipped["toy0-toy1"]
    # With its clone, which has them as they were written, it is compared as texts are.
    (pair,) = [pair for pair in alignment.pairs if pair.name == "toy1-toy3"]
    assert not pair.sequences.aligned
    assert (np.sort(pair.sequences.ids[0]) != np.sort(pair.sequences.ids[1])).any()


def test_results_of_windows_that_an_earlier_version_cut_elsewhere_get_no_others_beside(toys):
    alignment = toys.alignment("test", 8)
    of_set, _, of_text = (alignment.describe_pair(pair) for pair in alignment.pairs)
    # Sentences of four ids, of which the fifth begins at 16 and is parted behind its head.
    assert of_text["prefix_ids"] == 17 and "prefix_ids" not in of_set
    earlier = {name: value for name, value in of_text.items() if name != "prefix_ids"}
    with pytest.raises(ValueError, match="prefix_ids=None and not 17. --overwrite replaces it"):
        cli.check_same_measurement("toy1-toy3 is measured", earlier, of_text)


def test_languages_asked_for_are_the_only_ones_that_are_measured(data):
    config = toy_config(data, languages=("toy3", "toy1"))
    assert names(make_trainer(config, MeshConfig(), 1).alignment("test", 8)) == ["toy1-toy3"]


def test_positions_and_ids_are_those_of_the_parallel_rows(toys):
    pair = toys.alignment("test", 8).pairs[0]
    rows = toys.parallel["both"]
    for g, name in enumerate(("toy0", "toy1")):
        length_P = rows.lengths[name][:8]
        np.testing.assert_array_equal(pair.sequences.text[g].sum(axis=1), length_P)
        for p in range(8):
            expected = toys.vocabulary.map_GU[g, rows.ids[name][p, : length_P[p]]]
            np.testing.assert_array_equal(pair.sequences.ids[g][p, : length_P[p]], expected)
            other = set(toys.vocabulary.map_GU[1 - g].tolist())
            own = [text_id not in other for text_id in expected.tolist()]
            np.testing.assert_array_equal(pair.sequences.own[g][p, : length_P[p]], own)
    assert pair.sequences.shares_ids


def test_suggested_pieces_are_the_words_of_one_meaning(toys):
    pair = toys.alignment("test", 8).pairs[0]
    strings = [toys.sources[name].pieces.strings for name in ("toy0", "toy1")]
    # What the languages have in common is spelled alike; it finds itself.
    both = set(strings[0]) & set(strings[1])
    found = [(strings[0][a], strings[1][b]) for a, b in zip(*pair.bases, strict=True)]
    assert len(found) > 20
    alike = [(a, b) for a, b in found if a in both or b in both]
    assert len(alike) > 4 and sum(a == b for a, b in alike) / len(alike) > 0.8


def test_pieces_count_as_often_as_they_were_trained_on_in_their_language_and_in_their_source(toys):
    count = functools.partial(count_pieces, toys.config, toys.sources, toys.vocabulary.map_GU)
    found = count(np.array([10, 20, 0, 180]))
    for g, (name, own, together) in enumerate(
        (("toy0", 10, 10), ("toy1", 20, 200), ("toy2", 0, 0), ("toy1", 180, 200))
    ):
        counts_U = np.asarray(toys.sources[name].pieces.counts_U)
        share_U = counts_U / toys.sources[name].count("train")
        close = functools.partial(np.testing.assert_allclose, rtol=1e-12)
        close(found.own_GU[g, : len(counts_U)], share_U * own * 32)
        close(
            found.source_GU[g, : len(counts_U)], share_U * together * 32 if together else counts_U
        )
    # Before any training, the text's own counts stand for both.
    fresh = count(np.zeros(4, int))
    np.testing.assert_array_equal(fresh.own_GU, fresh.source_GU)


@pytest.fixture(scope="module")
def watched(toys) -> dict[str, float]:
    state = toys.init_state()
    shares: list[float] = []
    found = toys.alignment("validation", 8).watch(state, toys.stream, shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0
    return found


def test_a_run_logs_every_pair_layer_and_language(watched):
    for name in ("toy0-toy1", "toy0-toy3", "toy1-toy3"):
        for metric in ("embed_in", "embed_in_between", "embed_in_centred", "embed_out"):
            assert f"align/{metric}/{name}" in watched
        for metric in ("hidden", "hidden_shuffled", "hidden_centred", "retrieval", "cka"):
            assert [f"align/{metric}/{name}/{n}" in watched for n in range(4)] == [True] * 3 + [
                False
            ]
        assert f"align/gradient/{name}" in watched
    shares = [watched[f"align/gradient_share/toy{n}"] for n in range(4)]
    assert math.isclose(sum(shares), 1, abs_tol=1e-5)
    assert all(math.isfinite(value) for value in watched.values())


@pytest.mark.slow
def test_what_is_logged_does_not_depend_on_the_mesh(data, toys, watched):
    other = make_trainer(toy_config(data), MeshConfig(data=2, fsdp=2, tensor=2), 8)
    state = other.init_state()
    # The same parameters, whatever the devices that they are made on.
    params = jax.tree.map(
        lambda new, leaf: jax.device_put(np.asarray(new), leaf.sharding),
        toys.init_state().params,
        state.params,
    )
    state = dataclasses.replace(state, params=params)
    found = other.alignment("validation", 8).watch(state, other.stream, no_poll)
    assert found.keys() == watched.keys()
    for name, value in found.items():
        if "corrected" not in name:  # a quotient of what is left between noise and noise
            assert value == pytest.approx(watched[name], abs=2e-4), name


def test_languages_share_a_gradient_alike_on_devices_that_do_not_divide_the_batch(toys, watched):
    mesh = make_mesh(3)
    assert toys.config.batch_size == 8
    state = jax.device_put(toys.init_state(), sharding.make_replicated_sharding(mesh))
    alignment = dataclasses.replace(toys, mesh=mesh).alignment("validation", 8)
    found = alignment._optimizer(state, toys.stream)
    for name, by_tag in found.items():
        for tag, value in by_tag.items():
            assert value == pytest.approx(watched[f"align/{name}/{tag}"], rel=1e-4), name


def test_rows_that_were_copied_are_found_alike_in_every_way(toys):
    state = toys.init_state()
    params = dict(state.params)
    map_GU = toys.vocabulary.map_GU
    size = toys.sources["toy1"].pieces.size
    for table in ("embed_VD", "head_VD"):
        rows_VD = np.array(params[table])
        rows_VD[map_GU[3, :size]] = rows_VD[map_GU[1, :size]]
        params[table] = jax.numpy.asarray(rows_VD)
    config = dataclasses.replace(
        toys.config.evaluation, alignment=AlignmentConfig(languages=("toy1", "toy3"))
    )
    only = dataclasses.replace(toys, config=dataclasses.replace(toys.config, evaluation=config))
    state = dataclasses.replace(state, params=params)
    found = only.alignment("validation", 8).watch(state, toys.stream, no_poll)
    for name in ("embed_in", "embed_out", "embed_in_retrieval", "gradient"):
        assert found[f"align/{name}/toy1-toy3"] == pytest.approx(1, abs=1e-5), name
    for layer in range(3):
        for name in ("hidden", "cka", "retrieval"):
            assert found[f"align/{name}/toy1-toy3/{layer}"] == pytest.approx(1, abs=1e-4), name


@pytest.mark.parametrize(
    ("alignment", "message"),
    [
        ({"languages": ("toy0", "xx")}, "config.evaluation.alignment.languages has 'xx'"),
        ({"languages": ("toy0",)}, "must name two or more"),
        ({"languages": ("toy0", "toy0")}, "must name two or more"),
        ({"budget": 0.0}, "config.evaluation.alignment.budget=0.0"),
        ({"budget": 1.5}, "config.evaluation.alignment.budget=1.5"),
        ({"pairs": 7}, "config.evaluation.alignment.pairs=7"),
        ({"every": -1}, "config.evaluation.alignment.every=-1"),
    ],
)
def test_a_wrong_field_is_refused_by_name(data, alignment, message):
    with pytest.raises(ValueError, match=message):
        toy_config(data, **alignment)
