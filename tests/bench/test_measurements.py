"""The command that measures: what it prints and writes, and what it refuses."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest
from helpers import ONE_DEVICE

from imbalance_jax.bench import alignment, packing, start, training
from imbalance_jax.bench import case as case_lib
from imbalance_jax.compute import tuning
from imbalance_jax.config import costs

TINY = "demo:2:8 model.L=16 model.D=16 model.H=2 model.K=8 model.F=24 model.N=2"


def run_bench(*args: str) -> subprocess.CompletedProcess:
    env = os.environ | {"XLA_FLAGS": ONE_DEVICE, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "imbalance_jax.bench", *args]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def found() -> dict:
    config = case_lib.parse_case(TINY).config
    experiment = case_lib.build_experiment(config, jax.devices()[:1])
    return training.measure_training_step(experiment, seconds=0.05)


def test_speed_and_shares_follow_from_the_time_of_a_step(found):
    assert found["tokens_per_second"] == pytest.approx(8 * 16 / found["seconds"]["step"])
    per_token = costs.compute_flops_per_token(case_lib.parse_case(TINY).config.model, 2048)
    assert found["flops_per_token"] == per_token
    # The older convention counts attention to later positions too.
    assert found["flops_per_token_full"] - per_token == 6 * 2 * (2 * 8) * 16
    share = found["tokens_per_second"] * per_token / found["matmul_peak"]["flops"]
    assert found["mfu_of_matmul_peak"] == pytest.approx(share)
    assert found["mfu_of_datasheet"] is None  # a CPU has none


def test_the_parts_of_a_step_are_all_there(found):
    assert set(found["parts"]) >= {"norm", "attention", "feed_forward", "head", "optimizer"}
    assert found["seconds"]["data"] > 0 and found["seconds"]["dispatch"] > 0
    assert found["seconds"]["device_least"] <= found["seconds"]["device"]


def test_memory_counts_state_and_temporary_arrays(found):
    state = 3 * 4 * found["parameters"]  # parameters and two moments in fp32
    memory = found["memory"]
    assert state < memory["arguments"] < 1.2 * state
    assert memory["peak"] >= memory["arguments"] + memory["temporary"]


def test_the_tables_name_what_was_computed(found):
    text = "\n".join(training.describe_training_step("a case", found))
    for words in ("a case: 8 x 16", "float32", "blockwise", "tokens/s", "attention", "MB"):
        assert words in text


@pytest.mark.slow
def test_a_second_start_takes_its_programs_from_the_cache():
    found = start.measure_start_times(TINY)
    cold, cached = found["cold"], found["cached"]
    assert cached["programs"] < cold["programs"]
    for seconds in (cold, cached):
        parts = sum(value for name, value in seconds.items() if name != "whole")
        assert parts <= seconds["whole"]


@pytest.mark.slow
def test_a_pack_is_timed_against_its_runs_in_turn(monkeypatch):
    options = {"cpu": {"xla_backend_optimization_level": "0"}}
    monkeypatch.setattr(tuning, "COMPILER_OPTIONS", options)
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    config = case_lib.parse_case(f"{TINY} model.N=1 model.scan_layers=True").config
    found = packing.measure_packing(config, 2, seconds=0.01)
    for way in ("scan", "vmap"):
        alone, packed = found["alone"], found[way]
        assert packed["tokens_per_second"] == pytest.approx(2 * 8 * 16 / packed["step_seconds"])
        in_turn = 2 * (alone["compile_seconds"] + 1500 * alone["step_seconds"])
        together = packed["compile_seconds"] + 1500 * packed["step_seconds"]
        assert packed["in_turn_over_pack_whole_runs"] == pytest.approx(in_turn / together)
    text = "\n".join(packing.describe_packing("a case", found))
    assert "2 runs of 8 x 16" in text and "pack, vmap" in text


def test_cases_are_measured_one_by_one_and_written_down(tmp_path):
    out = tmp_path / "bench.json"
    done = run_bench(
        f"--case={TINY}",
        "--case=demo:2:9 mesh.data=3",
        "--seconds=0.05",
        "--noprofile",
        f"--out={out}",
    )
    assert done.returncode == 1, done.stderr  # as one of them failed
    written = json.loads(out.read_text())
    assert written["cpu"] and "XLA_FLAGS" in written["environment"]
    assert written["device"]["platform"] == "cpu" and "causal" in written["flop_convention"]
    assert f"--out={out}" in written["command"] and "jax" in done.stdout.splitlines()[0]
    first, second = written["cases"].values()
    assert first["training"]["tokens_per_second"] > 0
    # One that cannot run keeps no other from it.
    assert "config.mesh.data=3" in second["error"] and "mesh.data=3" in done.stdout


def test_memory_alone_is_said_without_running_a_step(tmp_path):
    out = tmp_path / "bench.json"
    # 8 x 512 positions over ten vocabularies: whole logits would take 2.7 GB in fp32.
    case = "demo:10:8 tokenizer.vocab_size=16384 model.L=512 model.N=1"
    done = run_bench(f"--case={case}", "--compile-only", f"--out={out}")
    assert done.returncode == 0 and "as XLA plans it: arguments" in done.stdout
    memory = json.loads(out.read_text())["cases"][case]["memory"]
    logits = 4 * 8 * 512 * 163_840
    assert 0 < memory["temporary"] < logits / 2


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--case=demo:2", "--case=small model.Q=1"], "no field config.model.Q"),
        (["--case=demo:2", "--topology=v9:2x2"], "there is no chip 'v9' in the table"),
        (["--config=90_10", "--case=demo:2"], "--config and --case are two measurements"),
        (["--config=90_10", "--compile-only"], "--compile-only is nothing to --config"),
        (["--alignment=run", "--members=8"], "--members is nothing to --alignment"),
        (["--case=demo:2", "--members=2", "--meshes"], "--meshes are two measurements"),
        (["--case=demo:2", "--out=/"], "--out=/ names no file"),
        (["--case=demo:2", "--out=no/such/folder/a.json"], "there is no folder no/such/folder"),
        (["--pairs=100"], "--pairs is nothing to --case"),
    ],
)
def test_a_mistake_is_one_message_before_anything_runs(args, expected):
    done = run_bench(*args)
    assert done.returncode == 2 and expected in done.stderr
    assert "Traceback" not in done.stderr and "tokens/s" not in done.stdout


def test_alignment_without_networkx_is_refused_before_the_run_is_opened(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"networkx.*pip install -e '\.\[bench\]'"):
        alignment.measure_alignment_speed(str(tmp_path / "no_run"), 8, 1)
