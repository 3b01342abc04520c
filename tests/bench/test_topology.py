"""What a step compiled for a TPU is said to need, held against closed forms and XLA's counts."""

import importlib.util
import os
import pathlib
import sys
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import pytest

from imbalance_jax.bench import topology, traffic
from imbalance_jax.compute import sharding
from imbalance_jax.config import MeshConfig

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


def trace(config: Any, devices: int = 1) -> Any:
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    return topology.trace_step(config, V, mesh)


def compiled_text(function: Any, *shapes: tuple[int, ...]) -> str:
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*args).compile().as_text() or ""


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


def test_the_bound_is_the_slower_of_matrix_products_and_traffic():
    chip = topology.Chip(peak=100.0, hbm=1000, bandwidth=10.0)
    computing = topology.compute_roofline(chip, convention=300.0, flops=400.0, traffic=20.0)
    assert (computing["bound_seconds"], computing["bound_mfu"]) == (4.0, 0.75)
    moving = topology.compute_roofline(chip, convention=300.0, flops=400.0, traffic=60.0)
    assert (moving["bound_seconds"], moving["bound_mfu"]) == (6.0, 0.5)


def test_flops_hidden_in_kernels_do_not_lift_the_bound_above_the_peak():
    chip = topology.Chip(peak=100.0, hbm=1000, bandwidth=10.0)
    found = topology.compute_roofline(chip, convention=300.0, flops=200.0, traffic=20.0)
    assert (found["bound_seconds"], found["bound_mfu"]) == (3.0, 1.0)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("chunk", [2, 16])
def test_flops_are_those_of_the_matrices_and_of_all_pairs_of_positions(scan_layers, chunk):
    config = make_config(model__scan_layers=scan_layers, model__N=3, model__loss_chunk=chunk)
    m = config.model
    weights = m.N * (4 * m.D * m.H * m.K + 2 * m.D * m.F) + m.D * V
    per_token = 6 * weights + 12 * m.N * m.H * m.K * m.L
    expected = config.batch_size * m.L * per_token
    assert topology.count_matmul_flops(trace(config).jaxpr.jaxpr) == expected


def test_what_remat_computes_twice_counts_twice():
    plain, again = (
        topology.count_matmul_flops(trace(make_config(model__remat=remat)).jaxpr.jaxpr)
        for remat in ("none", "full")
    )
    m = make_config().model
    forward = 2 * m.N * (4 * m.D * m.H * m.K + 2 * m.D * m.F + 2 * m.H * m.K * m.L)
    tokens = make_config().batch_size * m.L
    # All of a block's forward pass, except its last product, whose result nothing needs.
    last = 2 * m.N * m.D * m.F
    assert again - plain in (tokens * forward, tokens * (forward - last))


def test_flops_within_a_shard_map_are_those_of_all_devices():
    mesh = sharding.make_mesh(MeshConfig(), jax.devices())
    rows = jax.sharding.PartitionSpec(("data", "fsdp"))
    whole = jax.sharding.PartitionSpec()
    multiply = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 5), (5, 3)))
    assert topology.count_matmul_flops(jax.make_jaxpr(multiply)(a, b).jaxpr) == 2 * 16 * 5 * 3


def test_matrix_products_in_a_loop_of_unknown_length_are_refused():
    def function(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="while loop"):
        topology.count_matmul_flops(jax.make_jaxpr(function)(jnp.ones((3, 3))).jaxpr)


# One fusion reads a slice of %p and one writes a slice of %q, in a loop of five; then a copy
# from HBM into memory S(1), and two collectives. Sizes in bytes: a block is 4 x 8 x 4 = 128.
PROGRAM = """HloModule example

%reading (a: f32[5,4,8], i: s32[]) -> f32[4,8] {
  %a = f32[5,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,4,8]{2,1,0} dynamic-slice(%a, %i, %zero, %zero), dynamic_slice_sizes={1,4,8}
  ROOT %flat = f32[4,8]{1,0} bitcast(%cut)
}

%writing (b: bf16[5,4,8], i: s32[], x: f32[4,8]) -> bf16[5,4,8] {
  %b = bf16[5,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[4,8]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %small = bf16[4,8]{1,0} convert(%x)
  %block = bf16[1,4,8]{2,1,0} bitcast(%small)
  ROOT %put = bf16[5,4,8]{2,1,0} dynamic-update-slice(%b, %block, %i, %zero, %zero)
}

%body (t: (s32[], f32[5,4,8], bf16[5,4,8])) -> (s32[], f32[5,4,8], bf16[5,4,8]) {
  %t = (s32[], f32[5,4,8]{2,1,0}, bf16[5,4,8]{2,1,0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%t), index=0
  %p = f32[5,4,8]{2,1,0} get-tuple-element(%t), index=1
  %q = bf16[5,4,8]{2,1,0} get-tuple-element(%t), index=2
  %read = f32[4,8]{1,0:T(8,128)} fusion(%p, %i), kind=kLoop, calls=%reading
  %sum = f32[4,8]{1,0:T(8,128)S(1)} all-reduce(%read), to_apply=%add
  %write = bf16[5,4,8]{2,1,0} fusion(%q, %i, %sum), kind=kLoop, calls=%writing
  ROOT %out = (s32[], f32[5,4,8]{2,1,0}, bf16[5,4,8]{2,1,0}) tuple(%i, %p, /*index=2*/%write)
}

%condition (t: (s32[], f32[5,4,8], bf16[5,4,8])) -> pred[] {
  %t = (s32[], f32[5,4,8]{2,1,0}, bf16[5,4,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (t: (s32[], f32[5,4,8], bf16[5,4,8]), w: f32[2,8]) -> f32[8,8] {
  %t = (s32[], f32[5,4,8]{2,1,0}, bf16[5,4,8]{2,1,0}) parameter(0)
  %w = f32[2,8]{1,0} parameter(1)
  %loop = (s32[], f32[5,4,8]{2,1,0}, bf16[5,4,8]{2,1,0}) while(%t), condition=%condition, body=%body
  %started = (f32[2,8]{1,0:S(1)}, f32[2,8]{1,0}, u32[]{:S(2)}) copy-start(%w)
  %near = f32[2,8]{1,0:S(1)} copy-done(%started)
  ROOT %all = f32[8,8]{1,0} all-gather(%near), dimensions={0}
}
"""


def test_loops_count_as_often_as_they_run_and_slices_as_what_they_are():
    reading, reduced, writing = 128 + 128, 128, 64
    copied, gathered = 64, 256
    found = traffic.read_program(PROGRAM)
    assert found.bytes == 5 * (reading + reduced + writing) + copied + gathered
    assert found.collectives == {
        "all-reduce": {"count": 5, "bytes": 5 * 128},
        "all-gather": {"count": 1, "bytes": 256},
    }


def test_without_loops_bytes_are_about_those_that_xla_counts():
    def function(x, a, b):
        return jnp.tanh(jnp.tanh(x @ a) @ b).sum(axis=0)

    shapes = ((64, 96), (96, 128), (128, 32))
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled: Any = jax.jit(function).lower(*args).compile()
    found = traffic.read_program(compiled.as_text()).bytes
    # XLA counts the parts of a fusion's inside in a few places where we count its ends.
    assert found == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.1)


def test_a_scanned_program_moves_what_the_extrapolation_of_unrolled_ones_says():
    def scanned(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    def moved(n):
        return traffic.read_program(compiled_text(scanned, (256, 64), (n, 64, 64))).bytes

    assert moved(9) - moved(6) == moved(6) - moved(3) > 0

    def unrolled(x, w):
        for n in range(6):
            x = jnp.tanh(x @ w[n])
        return x

    # Slices of the weights and copies of the carry are the scan's own: a part of the whole.
    plain = traffic.read_program(compiled_text(unrolled, (256, 64), (6, 64, 64))).bytes
    assert moved(6) == pytest.approx(plain, rel=0.35)


def test_a_step_without_loops_moves_what_xla_counts_and_adds_up_gradients_over_devices():
    config = make_config(model__scan_layers=False, model__loss_chunk=16, model__N=1)
    # What LLVM makes of it takes most of the time, and is not read.
    compiled = trace(config, devices=2).lower().compile({"xla_backend_optimization_level": 0})
    found = traffic.read_program(compiled.as_text())
    # Sums over devices are counted otherwise, and a few scalars.
    assert found.bytes == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.05)
    m = config.model
    matrices = 4 * m.D * m.H * m.K + 2 * m.D * m.F + 2 * V * m.D + m.L * m.D
    assert found.collectives["all-reduce"]["bytes"] == pytest.approx(4 * matrices, rel=0.05)


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
    assert found["memory"]["total"] >= found["memory"]["argument"] > 0
    assert 0 < found["roofline"]["bound_mfu"] < 1
    assert found["collectives"]["all-reduce"]["count"] > 0
    assert "MFU at most" in "\n".join(topology.describe_topology_step(found))
