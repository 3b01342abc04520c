"""What a step compiled for a TPU is said to need, held against closed forms and XLA's counts."""

import importlib.util
import os
import pathlib
import sys
from typing import Any

import helpers
import jax
import pytest

from imbalance_jax.bench import topology, traffic

# These tests use no TPU: another process may, and there is no cloud machine to ask about one.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -e '.[tpu]'",
)

V = 2 * 384


def make_config(**changes: Any) -> Any:
    plain = {"model__attention": "einsum", "model__loss_chunk": 4, "model__remat": "none"}
    return helpers.tiny_config(pathlib.Path("unused"), **{**plain, **changes})


@pytest.mark.parametrize("name", ["v9:2x2", "nonsense", "", "cpu:2x2"])
def test_an_unknown_chip_is_refused_with_those_that_are_known(name):
    with pytest.raises(ValueError, match=r"Choose v4, v5e, v5p, v6e"):
        topology.get_topology_devices(name)


@pytest.mark.parametrize("shape", ["", "4", "2x", "0x2", "2x2x2x2", "2x-2"])
def test_a_shape_that_cannot_be_read_is_refused(shape):
    with pytest.raises(ValueError, match=r"write chip:shape, such as v5e:4x4"):
        topology.get_topology_devices(f"v5e:{shape}")


def test_other_names_of_a_chip_are_understood():
    assert (
        topology.parse_topology("v5litepod:4x4")
        == topology.parse_topology("v5e:4x4")
        == ("v5e", (4, 4))
    )


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[tpu\]'"):
        topology.get_topology_devices("v5e:2x2")


def make_cost(flops: float, moved: int, kind: str = "fusion") -> traffic.Cost:
    return traffic.Cost(traffic.Instruction(kind, (), (), "", ""), 1, flops, moved)


def test_the_bound_is_the_slowest_of_products_traffic_and_instructions_in_turn():
    chip = topology.Chip(peak=100.0, hbm=1000, bandwidth=10.0)

    def bound(*program: traffic.Cost, flops: float = 300.0) -> tuple[float, float]:
        found = topology.compute_bound(chip, flops, program)
        return found["bound_seconds"], found["bound_mfu"]

    assert bound(make_cost(400.0, 20)) == (4.0, 0.75)
    assert bound(make_cost(100.0, 60, "copy-start")) == (6.0, 0.5)
    # One waits for its product and the other for its bytes.
    assert bound(make_cost(400.0, 0), make_cost(0.0, 20)) == (6.0, 0.5)
    # What is copied beside them adds no time of its own.
    assert bound(make_cost(400.0, 0), make_cost(0.0, 20, "copy-start")) == (4.0, 0.75)
    # A kernel's products are not seen, and are not fewer than the convention's.
    assert bound(make_cost(100.0, 20)) == (3.0, 1.0)


def test_a_step_is_described_by_its_own_sizes(monkeypatch):
    monkeypatch.setattr(topology, "get_topology_devices", lambda *_: jax.devices()[:2])
    monkeypatch.setattr(topology, "CHIPS", {"v5e": topology.Chip(1e12, 16 << 30, 1e11)})
    config = make_config(model__scan_layers=False, model__loss_chunk=16, model__N=1)
    found = topology.measure_step_on_topology(config, V, "v5e:1x2")
    m = config.model
    matrices = 4 * m.D * m.H * m.K + 2 * m.D * m.F + 2 * V * m.D + m.L * m.D
    # Parameters and two moments; norms and biases are a small part, and the batch a smaller one.
    assert 3 * 4 * matrices < found["memory"]["arguments"] < 1.2 * 3 * 4 * matrices
    assert found["fits"] and found["memory"]["peak"] > found["memory"]["arguments"]
    # All pairs of positions, where the convention has those of earlier ones.
    assert 1 < found["bound"]["program_flops"] / found["bound"]["flops"] < 1.5
    text = "\n".join(topology.describe_topology_step(found))
    assert "MFU at most" in text and "fits" in text and "2 chips (data 2)" in text


def test_a_step_that_is_too_large_is_described_by_the_compilers_words():
    lines = topology.describe_topology_step(
        {
            **{
                "topology": "v5e:2x2",
                "slices": 1,
                "chips": 4,
                "mesh": {"data": 4},
                "hbm": 16 << 30,
            },
            **{"fits": False, "error": "RESOURCE_EXHAUSTED: 18.27G exceeds 15.75G."},
        }
    )
    assert "18.27G exceeds 15.75G" in "\n".join(lines)


@needs_libtpu
def test_libtpus_refusal_of_a_shape_is_passed_on():
    with pytest.raises(ValueError, match=r"v5e:3x3: libtpu refuses it: .*2x2, 2x4 and 4x4"):
        topology.get_topology_devices("v5e:3x3")


@needs_libtpu
@pytest.mark.parametrize(("name", "count"), [("v5e:1x1", 1), ("v4:2x2x1", 4), ("v6e:2x4", 8)])
def test_a_chip_is_one_device(name, count):
    assert len(topology.get_topology_devices(name)) == count


@needs_libtpu
def test_a_step_compiles_for_a_tpu_that_is_not_there():
    config = make_config(model__dtype="bfloat16", model__scan_layers=True)
    found = topology.measure_step_on_topology(config, V, "v5e:2x2")
    assert found["fits"] and found["chips"] == 4
    # So small a step needs no temporary HBM at all.
    assert found["memory"]["peak"] >= found["memory"]["arguments"] > 0
    assert 0 < found["bound"]["bound_mfu"] <= 1
    assert "MFU at most" in "\n".join(topology.describe_topology_step(found))
