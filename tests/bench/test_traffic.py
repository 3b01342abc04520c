"""What is read from a compiled program's text, held against closed forms and XLA's own counts."""

import pathlib
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import pytest

from imbalance_jax.bench import topology, traffic
from imbalance_jax.compute import sharding
from imbalance_jax.config import MeshConfig


def compile_function(function: Any, *shapes: tuple[int, ...]) -> Any:
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*args).compile()


def add_up(compiled: Any) -> tuple[float, float]:
    """Returns the FLOPs and the bytes of a program or of its text."""
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    costs = traffic.Program(text).list_costs()
    return sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs)


def test_an_elementwise_program_reads_its_operands_and_writes_its_result():
    compiled = compile_function(lambda x, y: jnp.tanh(x) * y + 1.0, (40, 30), (40, 30))
    assert add_up(compiled) == (0, 3 * 4 * 40 * 30)


def test_a_chain_of_matrix_products_costs_what_xla_counts():
    compiled = compile_function(
        lambda x, a, b: jnp.tanh(jnp.tanh(x @ a) @ b).sum(axis=0), (64, 96), (96, 128), (128, 32)
    )
    flops, moved = add_up(compiled)
    assert flops == 2 * 64 * (96 * 128 + 128 * 32)
    # XLA counts the parts of a fusion's inside in a few places where its ends count here.
    assert moved == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.1)


def test_a_scan_costs_as_many_times_more_as_it_is_long():
    def scan(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    costs = [add_up(compile_function(scan, (256, 64), (n, 64, 64))) for n in (3, 6, 9)]
    assert [flops for flops, _ in costs] == [2 * 256 * 64 * 64 * n for n in (3, 6, 9)]
    (_, three), (_, six), (_, nine) = costs
    assert nine - six == six - three > 0

    def unroll(x, w):
        for n in range(6):
            x = jnp.tanh(x @ w[n])
        return x

    # Slices of the weights and copies of the carry are the scan's own: a part of the whole.
    assert six == pytest.approx(
        add_up(compile_function(unroll, (256, 64), (6, 64, 64)))[1], rel=0.35
    )


def test_a_step_without_loops_costs_what_xla_and_the_convention_count():
    plain = {"model__attention": "einsum", "model__remat": "none", "model__N": 1}
    config = helpers.tiny_config(
        pathlib.Path("unused"), **plain, model__scan_layers=False, model__loss_chunk=16
    )
    m, V = config.model, 2 * 384
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:2])
    # What LLVM makes of it takes most of the time, and is not read.
    compiled: Any = topology.trace_step(config, V, mesh).lower()
    compiled = compiled.compile({"xla_backend_optimization_level": 0})
    flops, moved = add_up(compiled)
    weights = m.N * (4 * m.D * m.H * m.K + 2 * m.D * m.F) + m.D * V
    # All pairs of positions, also the masked ones.
    of_token = 6 * weights + 12 * m.N * m.H * m.K * m.L
    assert flops == config.batch_size // 2 * m.L * of_token
    # Sums over devices are counted otherwise, and a few scalars.
    assert moved == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.05)


# One fusion reads a slice of %p and one writes a slice of %q, in a loop of five. Sizes in bytes: a
# block is 4 x 8 x 4 = 128.
LOOP = """HloModule example

%reading (a: f32[5,4,8], i: s32[]) -> f32[4,8] {
  %a = f32[5,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %view = f32[5,4,8]{2,1,0} fusion(%a), kind=kLoop, calls=%viewing
  %cut = f32[1,4,8]{2,1,0} dynamic-slice(%view, %i, %zero, %zero), dynamic_slice_sizes={1,4,8}
  ROOT %flat = f32[4,8]{1,0} bitcast(%cut)
}

%viewing (v: f32[5,4,8]) -> f32[5,4,8] {
  %v = f32[5,4,8]{2,1,0} parameter(0)
  ROOT %same = f32[5,4,8]{2,1,0} bitcast(%v)
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
  %read = f32[4,8]{1,0} fusion(%p, %i), kind=kLoop, calls=%reading
  %sum = f32[4,8]{1,0:T(8,128)S(1)} all-reduce(%read), to_apply=%add
  %write = bf16[5,4,8]{2,1,0} fusion(%q, %i, %sum), kind=kLoop, calls=%writing
  %one = s32[]{:S(6)} constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  ROOT %out = (s32[], f32[5,4,8]{2,1,0}, bf16[5,4,8]{2,1,0}) tuple(%next, %p, /*index=2*/%write)
}

%condition (t: (s32[], f32[5,4,8], bf16[5,4,8])) -> pred[] {
  %t = (s32[], f32[5,4,8]{2,1,0}, bf16[5,4,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[5,4,8], q: bf16[5,4,8]) -> (s32[], f32[5,4,8], bf16[5,4,8]) {
  %p = f32[5,4,8]{2,1,0} parameter(0)
  %q = bf16[5,4,8]{2,1,0} parameter(1)
  %zero = s32[]{:S(6)} constant(0)
  %begin = s32[]{:S(6)} copy(%zero)
  %t = (s32[], f32[5,4,8]{2,1,0}, bf16[5,4,8]{2,1,0}) tuple(%begin, %p, %q)
  ROOT %loop = (s32[], f32[5,4,8], bf16[5,4,8]) while(%t), condition=%condition, body=%body
}
"""


def test_a_loop_counts_as_often_as_it_runs_and_a_slice_as_what_it_is():
    reading, reduced, writing = 128 + 128, 128, 64
    assert add_up(LOOP)[1] == 5 * (reading + reduced + writing)
    said = LOOP.replace("body=%body", 'body=%body, config={"known_trip_count":{"n":"7"}}')
    assert add_up(said)[1] == 7 * (reading + reduced + writing)


@pytest.mark.parametrize(
    ("said", "otherwise"),
    [
        ("direction=LT", "direction=LE"),
        ("%begin = s32[]{:S(6)} copy(%zero)", "%begin = s32[]{:S(6)} constant(3)"),
        ("%one = s32[]{:S(6)} constant(1)", "%one = s32[]{:S(6)} constant(2)"),
        ("%next = s32[]{:S(6)} add(%i, %one)", "%next = s32[]{:S(6)} multiply(%i, %one)"),
        ("%n = s32[] constant(5)", "%n = f32[] constant(5)"),
        ("%n = s32[] constant(5)", "%n = s32[] get-tuple-element(%t), index=3"),
        ("tuple(%begin, %p, %q)", "parameter(2)"),
    ],
)
def test_a_loop_whose_counter_is_not_understood_is_refused(said, otherwise):
    assert said in LOOP
    with pytest.raises(ValueError, match="does not say how often it runs"):
        add_up(LOOP.replace(said, otherwise))


def test_a_loop_that_the_data_ends_is_refused():
    compiled = compile_function(
        lambda a, b: jax.lax.while_loop(lambda x: jnp.sum(x) > 3.0, lambda x: jnp.tanh(x @ b), a),
        *((64, 96), (96, 96)),
    )
    with pytest.raises(ValueError, match="does not say how often it runs"):
        add_up(compiled)


def write_entry(*lines: str) -> str:
    return "\n".join(["ENTRY %main () -> f32[] {", *(f"  {line}" for line in lines), "}", ""])


@pytest.mark.parametrize("made", ["donated", "zeros"])
def test_a_scatter_moves_its_rows_and_not_the_table(made):
    V, D, N = 5000, 64, 300
    table = jax.ShapeDtypeStruct((V, D), jnp.float32)
    ids = jax.ShapeDtypeStruct((N,), jnp.int32)
    updates = jax.ShapeDtypeStruct((N, D), jnp.float32)
    if made == "donated":
        add = jax.jit(lambda t, i, u: t.at[i].add(u), donate_argnums=0)
        compiled, written = add.lower(table, ids, updates).compile(), 0
    else:
        add = jax.jit(lambda i, u: jnp.zeros((V, D)).at[i].add(u))
        compiled, written = add.lower(ids, updates).compile(), 4 * V * D
    # The ids are made positive, and read; a scalar is what zeros are made of.
    assert 0 <= add_up(compiled)[1] - written - 3 * 4 * N * D <= 3 * 4 * N + 4


# Sizes in bytes: the table 4 x 100 x 8 = 3200, and ten rows of it 320.
SCATTERING = """%scattering (t: f32[100,8], i: s32[10], u: f32[10,8]) -> f32[100,8] {
  %t = f32[100,8]{1,0} parameter(0)
  %i = s32[10]{0} parameter(1)
  %u = f32[10,8]{1,0} parameter(2)
  %put = f32[100,8]{1,0} scatter(%t, %i, %u), update_window_dims={1}, to_apply=%add
  ROOT %same = f32[100,8]{1,0} bitcast(%put)
}

"""
FUSED_SCATTER = (
    "%t = f32[100,8]{1,0} parameter(0)",
    "%i = s32[10]{0} parameter(1)",
    "%u = f32[10,8]{1,0} parameter(2)",
    "ROOT %s = f32[100,8]{1,0} fusion(%t, %i, %u), kind=kCustom, calls=%scattering",
)


def test_a_scatter_in_a_fusion_is_in_place_where_it_is_its_result():
    near = [line.replace("{1,0}", "{1,0:S(1)}") for line in FUSED_SCATTER]
    fused = SCATTERING + write_entry(*FUSED_SCATTER)
    assert add_up(fused)[1] == 3 * 320 + 40
    assert add_up(SCATTERING + write_entry(*near))[1] == 40
    # What follows in the fusion reads the whole table, and writes another one.
    assert add_up(fused.replace("bitcast(%put)", "negate(%put)"))[1] == 2 * 3200 + 320 + 40
    # A table that is made in the fusion is written whole.
    made = fused.replace("f32[100,8]{1,0} parameter(0)", "f32[100,8]{1,0} broadcast()", 1)
    made = made.replace("parameter(1)", "parameter(0)", 1).replace(
        "parameter(2)", "parameter(1)", 1
    )
    assert add_up(made.replace("fusion(%t, %i, %u)", "fusion(%i, %u)"))[1] == 3200 + 320 + 40
    nested = """%outer (i: s32[10], u: f32[10,8]) -> f32[100,8] {
  %i = s32[10]{0} parameter(0)
  %u = f32[10,8]{1,0} parameter(1)
  %t = f32[100,8]{1,0} broadcast()
  ROOT %s = f32[100,8]{1,0} fusion(%t, %i, %u), kind=kCustom, calls=%scattering
}

"""
    fusion = "ROOT %s = f32[100,8]{1,0} fusion(%i, %u), kind=kCustom, calls=%outer"
    text = SCATTERING + nested + write_entry(*FUSED_SCATTER[1:3], fusion)
    assert add_up(text)[1] == 3200 + 320 + 40


def test_a_scatter_of_two_tables_moves_the_rows_of_both_and_no_more_than_the_tables():
    text = write_entry(
        *FUSED_SCATTER[:3],
        "%w = bf16[100,8]{1,0} parameter(3)",
        "%v = bf16[10,8]{1,0} parameter(4)",
        "ROOT %s = (f32[100,8]{1,0}, bf16[100,8]{1,0}) scatter(%t, %w, %i, %u, %v), to_apply=%add",
    )
    assert add_up(text)[1] == 3 * 320 + 3 * 160 + 40
    # Five rows of 32 bytes take ten updates.
    small = write_entry(*FUSED_SCATTER[:3], "ROOT %s = f32[5,8]{1,0} scatter(%t, %i, %u)")
    assert add_up(small.replace("100,8", "5,8"))[1] == 320 + 2 * 160 + 40


BRANCHES = """%moving (x: f32[10,10]) -> f32[10,10] {
  %x = f32[10,10]{1,0} parameter(0)
  %y = f32[10,10]{1,0} negate(%x)
  ROOT %z = f32[10,10]{1,0} negate(%y)
}

%computing (x: f32[10,10]) -> f32[10,10] {
  %x = f32[10,10]{1,0} parameter(0)
  ROOT %y = f32[10,10]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%both (x: f32[10,10]) -> f32[10,10] {
  %x = f32[10,10]{1,0} parameter(0)
  %y = f32[10,10]{1,0} negate(%x)
  ROOT %z = f32[10,10]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

"""


@pytest.mark.parametrize(
    ("named", "instructions", "moved"),
    [
        ("true_computation=%moving, false_computation=%computing", 1, 1600),
        ("branch_computations={%computing, %moving, %computing}", 1, 1600),
        ("branch_computations={%computing, %both, %moving}", 2, 2000),
    ],
)
def test_a_conditional_costs_the_most_of_each_of_any_branch(named, instructions, moved):
    text = BRANCHES + write_entry(
        "%x = f32[10,10]{1,0} parameter(0)",
        "%p = s32[] parameter(1)",
        f"ROOT %c = f32[10,10]{{1,0}} conditional(%p, %x, %x, %x), {named}",
    )
    assert add_up(text) == (2 * 10 * 10 * 10, moved)
    costs = traffic.Program(text).list_costs()
    # A branch that has the most of both counts by its instructions.
    assert len([cost for cost in costs if cost.instruction.kind != "parameter"]) == instructions


def test_an_array_takes_whole_tiles_and_only_hbm_counts():
    text = write_entry(
        "%x = bf16[3,10,32]{2,1,0:T(8,128)(2,1)} parameter(0)",
        "%near = bf16[3,10,32]{2,1,0:T(8,128)(2,1)S(1)} negate(%x)",
        "%turned = bf16[3,10,32]{0,1,2:T(8,128)(2,1)} negate(%near)",
        "ROOT %last = bf16[3,10,32]{0,1,2:T(8,128)(2,1)S(1)} negate(%near)",
    )
    assert add_up(text)[1] == 2 * 3 * 16 * 128 + 2 * 128 * 16 * 32


def test_what_goes_on_beside_others_counts_once():
    text = write_entry(
        "%w = f32[2,8]{1,0} parameter(0)",
        "%started = (f32[2,8]{1,0:S(1)}, f32[2,8]{1,0}, u32[]{:S(2)}) copy-start(%w)",
        "%near = f32[2,8]{1,0:S(1)} copy-done(%started)",
        "%part = ((f32[2,8]{1,0}), f32[1,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%w)",
        "ROOT %row = f32[1,8]{1,0:S(1)} slice-done(%part)",
    )
    assert add_up(text)[1] == 64 + 32
    copy, _ = [cost for cost in traffic.Program(text).list_costs() if cost.bytes]
    assert copy.is_asynchronous


def test_a_pallas_kernel_moves_its_operands_and_results():
    text = write_entry(
        "%q = f32[4,8]{1,0} parameter(0)",
        "%k = (f32[4,8]{1,0}, f32[4]{0}) custom-call(%q, %q), "
        'custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={',
        '"xprof_metadata":"{}"',
        '}}, metadata={op_name="attention"}',
        "ROOT %out = f32[4]{0} get-tuple-element(%k), index=1",
    ).replace('\n  "', '\n"')
    (kernel,) = [cost for cost in traffic.Program(text).list_costs() if cost.is_kernel]
    assert (kernel.runs, kernel.bytes) == (1, 3 * 128 + 16)


def test_a_convolution_does_the_products_of_its_matrices_and_none_with_padding():
    # As a TPU has BLD,DHK->BHLK: B is an axis of the window that only the right one has.
    B, L, D, H, K = 2, 7, 5, 3, 4
    text = write_entry(
        f"%w = f32[{D},{H},{K},1]{{3,2,1,0}} parameter(0)",
        f"%x = f32[{B},{L},{D},1]{{3,2,1,0}} parameter(1)",
        f"ROOT %q = f32[{H},{K},{B},{L}]{{3,2,1,0}} convolution(%w, %x), "
        "window={size=2x1 pad=1_1x0_0 rhs_reversal=1x0}, dim_labels=f1b0_0oi1->1b0f",
    )
    assert add_up(text)[0] == 2 * B * L * D * H * K
