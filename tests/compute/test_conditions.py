"""What a run's bits rest on, and the line that says what of it changed."""

import jax
import pytest

from imbalance_jax.compute import conditions, hardware
from imbalance_jax.runs import code_versions

DEVICE = {"platform": "cpu", "kind": "cpu", "count": 8, "processes": 1}
MESH = {"member": 1, "data": 8, "fsdp": 1, "tensor": 1}
COMPUTED = {"dtype": "float32", "attention": "blockwise", "remat": "dots"}

KNOWN = code_versions.get_code_versions()


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(hardware, "describe_devices", lambda: DEVICE)
    monkeypatch.setattr(hardware, "count_usable_cores", lambda: 2)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_cpu_enable_fast_min_max=true")


def record(**changes):
    return conditions.record_conditions(KNOWN, MESH, COMPUTED, 1) | changes


def test_what_decides_on_the_bits_is_recorded(two_cores):
    found = record()
    assert (found["cores"], found["mesh"]["data"], found["micro_batches"]) == (2, 8, 1)
    assert (found["device"], found["devices"]) == ("cpu", 8)
    assert found["packages"]["jax"] == jax.__version__
    assert found["xla_flags"] == ["--xla_cpu_enable_fast_min_max=true"]
    assert found["cpu"] and found["matmul_precision"] == "default"


def test_going_on_as_before_says_nothing(two_cores):
    assert conditions.describe_change(record(), record()) == ""
    assert conditions.describe_change({}, record()) == ""  # by a version that recorded none


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cores": 1}, "1 core instead of 2 cores"),
        ({"device": "NVIDIA H200"}, "NVIDIA H200 instead of cpu"),
        ({"devices": 3}, "3 devices instead of 8 devices"),
        ({"mesh": MESH | {"data": 2}}, "data=2 instead of data=8"),
        ({"micro_batches": 4}, "4 micro-batches instead of 1 micro-batch"),
        ({"packages": {"jax": "9.9"}}, "jax 9.9 instead of jax "),
        ({"computed": COMPUTED | {"remat": "full"}}, "remat=full instead of remat=dots"),
        ({"xla_flags": []}, "XLA_FLAGS=none instead of XLA_FLAGS=--xla_cpu"),
        ({"members_at_once": 2}, "2 members at once instead of none"),
    ],
)
def test_what_changed_is_said_in_one_line(two_cores, changes, words):
    said = conditions.describe_change(record(), record(**changes))
    assert words in said and "need not have the bits" in said and "\n" not in said


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert hardware.count_usable_cores() == 2
    monkeypatch.setenv("PJRT_NPROC", "1")
    assert hardware.count_usable_cores() == 1
