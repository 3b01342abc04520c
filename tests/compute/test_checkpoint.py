"""A state comes back from disk as it was, wherever it is to lie."""

import dataclasses
import functools
import logging
import pathlib
import re
import shutil
import types
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_mesh
from jax.sharding import Mesh

from imbalance_jax.compute import checkpoint as checkpoint_lib
from imbalance_jax.compute import sharding
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.checkpoint import Checkpoints, DamagedCheckpoint
from imbalance_jax.config import Config

V, D = 42, 18


def make_config(**changes: Any) -> Config:
    model = {f"model__{n}": v for n, v in {"L": 12, "H": 4, "K": 7, "F": 22, "N": 3}.items()}
    return helpers.tiny_config(pathlib.Path("unused"), **model | {"model__D": D} | changes)


CONFIG = make_config()


@pytest.fixture(scope="module")
def values() -> step_lib.TrainState:
    """A state of NumPy arrays, all different, as after two updates."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.dtype == jnp.int32:
            return rng.integers(1, 1000, leaf.shape).astype(np.int32)
        return np.float32(rng.standard_normal(leaf.shape))

    drawn = jax.tree.map(draw, step_lib.make_abstract_state(CONFIG, V, make_mesh(1)))
    return dataclasses.replace(drawn, step=np.int32(2))


def placed(values: step_lib.TrainState, mesh: Mesh, step: int = 2) -> step_lib.TrainState:
    """Returns the state on devices, in memory that is its own."""
    values = dataclasses.replace(values, step=np.int32(step))
    shardings = sharding.make_state_shardings(mesh, values)
    return jax.device_put(jax.tree.map(np.array, values), shardings, may_alias=False)


def assert_bit_equal(ours: Any, theirs: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype, ours, theirs)
    assert all(jax.tree.leaves(same))


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints", keep=2)
    yield made
    made.close()


def test_a_restored_state_is_bit_equal_to_the_saved_one(checkpoints, values):
    checkpoints.save(placed(values, make_mesh(1)))
    checkpoints.wait()
    assert checkpoints.steps() == [2]
    found = checkpoints.restore(2, step_lib.make_abstract_state(CONFIG, V, make_mesh(1)))
    assert isinstance(found, step_lib.TrainState)
    assert jax.tree.structure(found) == jax.tree.structure(values)
    assert_bit_equal(found, values)


def test_another_process_finds_what_was_saved(checkpoints, values):
    checkpoints.save(placed(values, make_mesh(1)))
    checkpoints.wait()
    other = Checkpoints(str(checkpoints.path))
    assert other.steps() == [2]
    assert_bit_equal(
        other.restore(2, step_lib.make_abstract_state(CONFIG, V, make_mesh(1))), values
    )
    other.close()


def test_only_the_newest_checkpoints_are_kept(checkpoints, values):
    for step in (3, 10, 20, 100):
        checkpoints.save(placed(values, make_mesh(1), step))
    checkpoints.wait()
    assert checkpoints.steps() == [20, 100]
    assert not (checkpoints.path / "3").exists()


def test_a_step_that_is_saved_already_is_not_saved_again(checkpoints, values):
    checkpoints.save(placed(values, make_mesh(1)))
    other = dataclasses.replace(values, sequences_G=values.sequences_G + 1)
    checkpoints.save(placed(other, make_mesh(1)))
    checkpoints.wait()
    found = checkpoints.restore(2, step_lib.make_abstract_state(CONFIG, V, make_mesh(1)))
    assert_bit_equal(found, values)


def test_a_step_that_an_earlier_start_has_saved_has_its_fingerprint(checkpoints, values):
    # As of a run that is stopped twice before its first step.
    checkpoints.save(placed(values, make_mesh(1)))
    checkpoints.wait()
    later = Checkpoints(checkpoints.path, keep=2)
    later.save(placed(values, make_mesh(1)))
    later.close()
    assert later.fingerprints == checkpoints.fingerprints != {}


@pytest.mark.parametrize("way", ["to a larger mesh", "to a smaller mesh"])
def test_a_state_is_restored_onto_another_mesh(checkpoints, values, way):
    one, cube = make_mesh(1), make_mesh(8, fsdp=2, tensor=2)
    before, after = (one, cube) if way == "to a larger mesh" else (cube, one)
    checkpoints.save(placed(values, before))
    checkpoints.wait()
    like = step_lib.make_abstract_state(CONFIG, V, after)
    found = checkpoints.restore(2, like)
    assert_bit_equal(found, values)
    jax.tree.map(lambda leaf, shape: leaf.sharding == shape.sharding or pytest.fail(), found, like)
    shards = found.params["embed_VD"].addressable_shards
    shape = (V // 2, D // 2) if after is cube else (V, D)
    assert {shard.data.shape for shard in shards} == {shape} and len(shards) == after.size


@pytest.mark.parametrize(
    ("change", "of_blocks"),
    [({"model__D": 20}, False), ({"model__N": 2}, True), ({"model__F": 24}, True)],
)
def test_a_model_of_another_size_is_refused_by_the_checkpoints_path(
    checkpoints, values, change, of_blocks
):
    checkpoints.save(placed(values, make_mesh(1)))
    checkpoints.wait()
    like = step_lib.make_abstract_state(make_config(**change), V, make_mesh(1))
    with pytest.raises(ValueError) as error:
        checkpoints.restore(2, like)
    assert str(checkpoints.path / "2") in str(error.value)
    assert "holds" in str(error.value) and "config.model" in str(error.value)
    assert "blocks" in str(error.value) or not of_blocks


def test_a_state_without_a_part_that_is_asked_for_is_refused(checkpoints, values):
    tied = dict(values.params)
    del tied["head_VD"]
    checkpoints.save(placed(dataclasses.replace(values, params=tied), make_mesh(1)))
    checkpoints.wait()
    with pytest.raises(ValueError, match=r"2 has no array \S*head_VD"):
        checkpoints.restore(2, step_lib.make_abstract_state(CONFIG, V, make_mesh(1)))


def test_training_may_take_over_the_memory_of_a_state_that_is_being_saved(checkpoints, values):
    mesh = make_mesh(8, fsdp=2, tensor=2)
    shardings = sharding.make_state_shardings(mesh, values)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=shardings)
    def overwrite(state: step_lib.TrainState) -> step_lib.TrainState:
        return jax.tree.map(lambda leaf: leaf * 3 + 1, state)

    state = placed(values, mesh)
    overwrite.lower(state).compile()  # so that nothing delays what follows
    checkpoints.save(state)
    later = overwrite(state)
    del state  # nothing of ours keeps its memory alive
    state = later
    for _ in range(20):
        state = overwrite(state)
    jax.block_until_ready(state)
    assert later.params["embed_VD"].is_deleted()
    checkpoints.wait()
    assert_bit_equal(checkpoints.restore(2, step_lib.make_abstract_state(CONFIG, V, mesh)), values)


# What cannot be written.


def test_closing_ends_all_threads_and_raises_no_error_again(tmp_path, monkeypatch):
    checkpoints, closed = Checkpoints(tmp_path), []
    close = checkpoints._manager.close

    def fail_once():
        closed.append(len(closed))
        if len(closed) == 1:
            raise PermissionError("known already")
        close()

    monkeypatch.setattr(checkpoints._manager, "close", fail_once)
    checkpoints.close()
    assert closed == [0, 1]


def test_what_is_left_of_a_checkpoint_is_removed_and_nothing_else(tmp_path):
    for name in ("7.orbax-checkpoint-tmp/default", "6/default"):
        (tmp_path / name).mkdir(parents=True)
    checkpoint_lib.remove_unfinished_checkpoints(tmp_path)
    checkpoint_lib.remove_unfinished_checkpoints(tmp_path / "absent")
    assert [path.name for path in tmp_path.iterdir()] == ["6"]


def test_an_error_of_orbax_is_raised_and_not_printed_as_a_traceback_too():
    def record(pathname: str, error: Exception | None) -> logging.LogRecord:
        known = (type(error), error, None) if error else None
        return logging.LogRecord("absl", logging.ERROR, pathname, 1, "failed", (), known)

    assert not checkpoint_lib._is_no_traceback(record("/lib/orbax/future.py", OSError()))
    assert checkpoint_lib._is_no_traceback(record("/lib/orbax/future.py", None))
    assert checkpoint_lib._is_no_traceback(record("/lib/other.py", OSError()))
    late = RuntimeError("Event loop is closed")  # one for each array, by TensorStore
    others = types.SimpleNamespace(object=len, exc_value=late)
    reported = []
    for unraisable in (types.SimpleNamespace(object=None, exc_value=late), others):
        checkpoint_lib._report_unraisable(reported.append, unraisable)
    assert reported == [others]


# What is not what was saved.

LIKE = functools.cache(lambda: step_lib.make_abstract_state(CONFIG, V, make_mesh(1)))


@pytest.fixture(scope="module")
def two_saved(values, tmp_path_factory) -> pathlib.Path:
    """Checkpoints of the steps 10 and 20."""
    made = Checkpoints(tmp_path_factory.mktemp("two") / "checkpoints", keep=2)
    for step in (10, 20):
        made.save(placed(values, make_mesh(1), step))
    made.wait()
    made.close()
    return pathlib.Path(made.path)


@pytest.fixture
def two(two_saved, tmp_path) -> Checkpoints:
    return Checkpoints(shutil.copytree(two_saved, tmp_path / "two"), keep=2)


def list_array_files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in directory.rglob("d/*") if file.stat().st_size > 5000)


def flip_bit(file: pathlib.Path, share: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= 4
    file.write_bytes(content)


def test_a_flipped_bit_in_any_file_of_arrays_is_seen_or_changes_nothing(two, values):
    files, seen = list_array_files(pathlib.Path(two.path) / "20"), 0
    for file in files:
        for share in (0.2, 0.5, 0.8):
            whole = file.read_bytes()
            flip_bit(file, share)
            try:  # a part of a file may belong to no array
                assert_bit_equal(two.restore(20, LIKE()).params, values.params)
            except DamagedCheckpoint as error:
                assert re.fullmatch(r"\S*two/20 is damaged: .*\.", str(error)), error
                assert "config" not in str(error)
                seen += 1
            file.write_bytes(whole)
    assert seen  # some files hold nothing that is referred to any more


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "default/_METADATA", "arrays"])
@pytest.mark.parametrize("content", ["empty", "cut", "missing"])
def test_a_file_that_is_not_whole_is_a_damaged_checkpoint_and_an_older_one_is_read(
    two, values, name, content
):
    directory = pathlib.Path(two.path) / "20"
    file = list_array_files(directory)[0] if name == "arrays" else directory / name
    whole = file.read_bytes()
    file.unlink() if content == "missing" else file.write_bytes(
        whole[: len(whole) // 2 * (content == "cut")]
    )
    state, damaged = two.restore_newest(LIKE())
    if (name, content) == ("_CHECKPOINT_METADATA", "missing"):  # as before there were digests
        assert int(state.step) == 20 and two.unchecked == {20} and not damaged
        return
    assert int(state.step) == 10 and list(damaged) == [20] and "\n" not in damaged[20]
    assert_bit_equal(state.params, values.params)


def test_a_copy_under_another_step_is_refused_with_or_without_digests(two):
    shutil.copytree(two.path / "20", two.path / "30")
    with pytest.raises(DamagedCheckpoint, match=r"30 holds the state of step 20: it is a copy"):
        two.restore(30, LIKE())
    (two.path / "30" / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"30 holds the state of step 20: it is a copy"):
        two.restore(30, LIKE())


def test_with_no_other_checkpoint_left_nothing_is_touched(two):
    for step in (10, 20):
        flip_bit(list_array_files(pathlib.Path(two.path) / str(step))[0], 0.5)
    with pytest.raises(DamagedCheckpoint, match=r"20 is damaged.*10 is damaged.*No other.*a copy"):
        two.restore_newest(LIKE())
    assert two.steps() == [10, 20]


def test_a_checkpoint_that_is_set_aside_is_none_and_can_be_saved_again(two, values):
    assert two.set_aside(20).name == "20.damaged" and two.steps() == [10]
    two.save(placed(values, make_mesh(1), 20))
    two.wait()
    assert two.steps() == [10, 20] and two.is_whole(20)
    assert two.set_aside(20).name == "20.damaged-1"
    two.close()


def test_an_older_checkpoint_that_orbax_cannot_list_does_not_keep_others_from_being_saved(
    two, values
):
    file = two.path / "10" / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace('"commit_', '"cpmmit_'))
    (line,) = two.open()
    assert "10 is damaged: _CHECKPOINT_METADATA cannot be read" in line and "10.damaged" in line
    two.save(placed(values, make_mesh(1), 30))
    two.wait()
    assert two.steps() == [20, 30]
    two.close()


def test_a_state_that_is_not_finite_is_never_saved(checkpoints, values):
    mu = jax.tree.map(np.array, values.opt_state)
    jax.tree.leaves(mu)[1].flat[-1] = np.nan
    with pytest.raises(FloatingPointError, match=r"step 2 is not saved.*opt_state/"):
        checkpoints.save(placed(dataclasses.replace(values, opt_state=mu), make_mesh(1)))
    assert checkpoints.steps() == []


def test_what_orbax_leaves_behind_of_a_damaged_array_is_not_reported():
    made, reported = {}, []
    exec(compile("async def read(): pass", "site-packages/orbax/read.py", "exec"), made)
    left = made["read"]()
    for thing, error in ((left, "no array"), (None, "Event loop is closed"), (None, "another")):
        unraisable = types.SimpleNamespace(object=thing, exc_value=Exception(error))
        checkpoint_lib._report_unraisable(
            lambda each: reported.append(str(each.exc_value)), unraisable
        )
    left.close()
    assert reported == ["another"]
