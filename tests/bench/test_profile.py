"""Each operation of a program belongs to one part of the model."""

import gzip
import json

import jax
import jax.numpy as jnp

from imbalance_jax.bench import profile

PROGRAM = """
HloModule jit_step
  %fusion.1 = f32[2]{0} fusion(%a), metadata={op_name="jit(step)/jvp(attention)/dot_general"}
  %fusion.2 = f32[2]{0} fusion(%b), metadata={op_name="jit(step)/jvp(attention)/norm/mul"}
  %dot.3 = f32[2]{0} dot(%c), metadata={op_name="jit(step)/transpose(jvp(feed_forward))/dot"}
  %copy.4 = f32[2]{0} copy(%d)
  ROOT %add.5 = f32[2]{0} add(%e), metadata={op_name="jit(step)/optimizer/add"}
  %overhead.6 = f32[2]{0} add(%e), metadata={op_name="jit(step)/overhead/add"}
"""


def test_an_operation_belongs_to_the_innermost_named_part():
    assert profile.find_operation_parts(PROGRAM) == {
        "fusion.1": "attention",
        "fusion.2": "norm",
        "dot.3": "feed_forward",
        "copy.4": "other",
        "add.5": "optimizer",
        "overhead.6": "other",
    }


def test_a_trace_of_a_gpu_counts_its_streams_only(tmp_path):
    def named(kind: str, name: str, **ids: int) -> dict:
        return {"ph": "M", "name": kind, "args": {"name": name}, **ids}

    def ran(name: str, dur: float, pid: int, tid: int, **args: str) -> dict:
        return {"ph": "X", "name": name, "dur": dur, "pid": pid, "tid": tid, "args": args}

    events = [
        named("process_name", "/device:GPU:0", pid=1),
        named("process_name", "/host:CPU", pid=2),
        named("thread_name", "Stream #13(Compute)", pid=1, tid=1),
        named("thread_name", "XLA Modules", pid=1, tid=2),
        ran("sm90_gemm", 5, 1, 1, hlo_op="fusion.1"),
        ran("jit_step", 50, 1, 2),
        ran("fusion.1", 500, 2, 1),
    ]
    with gzip.open(tmp_path / "a.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    assert [event["dur"] for event in profile._read_trace_events(str(tmp_path))] == [5]


def test_a_program_that_runs_is_split_into_its_parts():
    def step(x):
        with jax.named_scope("attention"):
            x = x @ x
        with jax.named_scope("optimizer"):
            return jnp.sin(x)

    x = jnp.ones((256, 256))
    compiled = jax.jit(step).lower(x).compile()
    seconds = profile.measure_part_seconds(compiled, lambda: jax.block_until_ready(compiled(x)))
    assert set(seconds) >= {"attention", "optimizer"}
