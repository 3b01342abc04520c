"""The mesh, what it refuses, and what its messages advise."""

import dataclasses
import pathlib
import re
import types
from typing import Any

import helpers
import jax
import numpy as np
import pytest
from helpers import make_mesh
from jax.sharding import PartitionSpec

from imbalance_jax import config as config_lib
from imbalance_jax.compute import sharding
from imbalance_jax.config import Config, MeshConfig


def make_config(**changes: Any) -> Config:
    return helpers.tiny_config(pathlib.Path("unused"), **changes)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"tensor": 2}, (4, 1, 2)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": -1}, (1, 8, 1)),
        ({"data": 2, "fsdp": 1, "tensor": 4}, (2, 1, 4)),
    ],
)
def test_the_rest_of_the_devices_goes_to_the_axis_that_asks_for_it(sizes, shape):
    mesh = make_mesh(**sizes)
    assert (mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"]) == shape
    assert sorted(d.id for d in mesh.devices.ravel()) == [d.id for d in jax.devices()]


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "fsdp": 2, "tensor": 1},  # too few
        {"data": 4, "fsdp": 2, "tensor": 2},  # too many
        {"fsdp": 3},  # no rest
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused_by_their_fields(sizes):
    with pytest.raises(ValueError) as error:
        make_mesh(**sizes)
    for name, size in ({"data": -1, "fsdp": 1, "tensor": 1} | sizes).items():
        assert f"config.mesh.{name}={size}" in str(error.value)
    assert "do not fit 8 devices" in str(error.value)


def test_two_rests_are_refused():
    with pytest.raises(ValueError, match=r"config\.mesh\.data and config\.mesh\.fsdp are -1"):
        MeshConfig(data=-1, fsdp=-1)


@pytest.mark.parametrize("size", [0, -2])
def test_an_axis_without_devices_is_refused(size):
    with pytest.raises(ValueError, match=rf"config\.mesh\.tensor={size} must be 1 or more"):
        MeshConfig(tensor=size)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(12, 1), (7, 1), (20, 4), (4, 1)])
def test_a_batch_that_cannot_be_split_is_refused_with_sizes_that_can(batch_size, accumulate):
    mesh = make_mesh(data=4, fsdp=2)
    changes = {"optimizer__accumulate": accumulate}
    with pytest.raises(ValueError, match=rf"config\.batch_size={batch_size} ") as error:
        sharding.check_batch(make_config(batch_size=batch_size, **changes), mesh)
    advice = [int(n) for n in re.findall(r"\d+", str(error.value).partition("such as")[2])]
    assert advice
    for size in advice:
        sharding.check_batch(make_config(batch_size=size, **changes), mesh)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(24, 2), (8, 4), (48, 4)])
def test_micro_batches_that_cannot_be_split_are_refused_with_a_number_that_can(
    batch_size, accumulate
):
    mesh = make_mesh(data=4, fsdp=2)
    with pytest.raises(ValueError, match=r"accumulate=\d+, as --") as error:
        sharding.check_batch(
            make_config(batch_size=batch_size, optimizer__accumulate=accumulate), mesh
        )
    (most,) = re.findall(r"--accumulate=(\d+)", str(error.value))
    config = make_config(batch_size=batch_size, optimizer__accumulate=int(most))
    sharding.check_batch(config, mesh)


@pytest.mark.parametrize(
    ("dim", "axis", "model", "vocab_size"),
    [
        ("D", "fsdp", {"D": 18}, 64),
        ("F", "tensor", {"F": 22}, 64),
        ("H", "tensor", {"H": 3}, 64),
        ("kv_heads", "tensor", {"kv_heads": 2}, 64),
        ("V", "tensor", {}, 66),
    ],
)
def test_a_dimension_that_cannot_be_cut_is_refused_with_its_mesh_axis(dim, axis, model, vocab_size):
    sizes = {"D": 16, "F": 24, "H": 4} | model
    config = make_config(batch_size=16, **{f"model__{name}": v for name, v in sizes.items()})
    size = model.get(dim, vocab_size)
    name = "the vocabulary" if dim == "V" else f"config.model.{dim}"
    with pytest.raises(ValueError) as error:
        sharding.check_dimensions(config, make_mesh(**{axis: 4}), vocab_size)
    assert f"{name}={size} cannot be cut over config.mesh.{axis}=4" in str(error.value)
    assert f"Set config.mesh.{axis} to a divisor of {size}" in str(error.value)
    sharding.check_dimensions(config, make_mesh(**{axis: 1}), vocab_size)


def test_sizes_that_fit_are_accepted():
    config = make_config(batch_size=16, optimizer__accumulate=2)
    mesh = make_mesh(fsdp=2, tensor=2)
    sharding.check_batch(config, mesh)
    sharding.check_dimensions(config, mesh, 640)


@pytest.mark.parametrize(
    ("name", "stacked", "spec"),
    [
        ("embed_VD", False, ("tensor", "fsdp")),
        ("position_LD", False, (None, "fsdp")),
        ("w_q_DHK", True, (None, "fsdp", "tensor", None)),
        ("w_o_HKD", True, (None, "tensor", None, "fsdp")),
        ("w_down_FD", True, (None, "tensor", "fsdp")),
        ("scale_D", False, (None,)),
        ("b_up_F", True, (None, None)),
    ],
)
def test_a_parameters_name_says_how_it_is_cut(name, stacked, spec):
    assert sharding.parameter_spec(name, len(spec), stacked) == PartitionSpec(*spec)


@pytest.mark.parametrize(
    ("name", "ndim", "stacked"),
    [("w_q_DHK", 3, True), ("w_q_DHK", 4, False), ("embed", 2, False), ("w_up_DF", 1, False)],
)
def test_a_name_that_does_not_fit_its_array_is_refused(name, ndim, stacked):
    with pytest.raises(ValueError, match=rf"{name} is named for N?\w+ but has {ndim} dimensions"):
        sharding.parameter_spec(name, ndim, stacked)


def test_counters_are_held_whole():
    mesh = make_mesh(fsdp=2, tensor=2)
    found = sharding.make_state_shardings(mesh, jax.ShapeDtypeStruct((), "int32"))
    assert found.spec == PartitionSpec()
    assert config_lib.MeshConfig().data == -1


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the arrangement of devices looks at."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "chip"


def chips(slices: int, each: int) -> list[Chip]:
    """Returns the chips of slices with hosts of four, in an order that says nothing."""
    found = [Chip(n, n // each, n // 4) for n in range(slices * each)]
    return found[::2] + found[1::2]


@pytest.mark.parametrize(
    ("sizes", "outer"),
    [
        ({"member": 1, "data": 4, "fsdp": 4, "tensor": 1}, "data"),
        ({"member": 1, "data": 2, "fsdp": 2, "tensor": 4}, "data"),
        ({"member": 4, "data": 1, "fsdp": 2, "tensor": 2}, "member"),
    ],
)
def test_only_members_or_copies_of_the_model_lie_across_slices(sizes, outer):
    found = sharding.arrange_devices(sizes, chips(slices=2, each=8))
    assert found.shape == tuple(sizes.values())
    assert len({chip.id for chip in found.ravel()}) == 16
    for axis in range(4):
        lines = np.moveaxis(found, axis, -1).reshape(-1, found.shape[axis])
        across = any(len({chip.slice_index for chip in line}) > 1 for line in lines)
        assert across == (list(sizes)[axis] == outer)


def test_an_axis_that_would_lie_across_slices_is_refused():
    sizes = {"member": 1, "data": 1, "fsdp": 16, "tensor": 1}
    with pytest.raises(ValueError, match=r"config\.mesh\.data=1 cannot be cut over 2 slices"):
        sharding.arrange_devices(sizes, chips(slices=2, each=8))


def test_an_axis_knows_what_it_lies_across():
    shape = {"member": 1, "data": 4, "fsdp": 2, "tensor": 2}
    devices = np.array(sorted(chips(2, 8), key=lambda chip: chip.id)).reshape(*shape.values())
    mesh = types.SimpleNamespace(devices=devices, shape=shape)
    assert sharding.describe_axis_span(mesh, "data") == "slices"
    assert sharding.describe_axis_span(mesh, "tensor") == "devices of a host"
    shape = {"member": 1, "data": 2, "fsdp": 4, "tensor": 2}
    mesh = types.SimpleNamespace(devices=devices.reshape(*shape.values()), shape=shape)
    assert sharding.describe_axis_span(mesh, "fsdp") == "hosts"
