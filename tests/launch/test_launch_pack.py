"""Processes of one machine: those of a pack know nothing of each other, those of a job do."""

import os
import pathlib
import signal
import threading
import time
import types

import pytest
from made_plans import study
from made_studies import make_run

from imbalance_jax.study.study_directory import StudyDirectory
from launch import pack, processes
from launch.processes import ProcessSpec


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.3)


def sh(script: str, log: str = "") -> ProcessSpec:
    return ProcessSpec(["bash", "-c", script], {}, log)


@pytest.mark.parametrize(
    ("codes", "together"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0, 75], 75),
        ([137, 0], 75),
        ([134, 75], 75),
        ([75, 1], 1),
        ([0, 2], 1),
        ([137, 1], 1),
    ],
)
def test_a_pack_is_started_again_if_that_helps_a_member_and_none_has_failed(codes, together):
    assert pack.combine_exit_codes(codes) == together


def test_a_member_that_fails_does_not_end_the_others(tmp_path):
    children = [sh("exit 1"), sh(f"sleep 0.5; touch {tmp_path}/done")]
    assert processes.run_processes(children, together=False) == [1, 0]
    assert (tmp_path / "done").exists()


def test_a_process_that_ends_badly_takes_its_job_with_it():
    began = time.monotonic()
    stubborn = "trap '' TERM; exec sleep 60"
    children = [sh("sleep 0.3; exit 2"), sh("exec sleep 60"), sh(stubborn)]
    codes = processes.run_processes(children, together=True)
    assert codes == [2, -signal.SIGTERM, -signal.SIGKILL] and time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("script", "alone", "code"),
    [
        ("kill -ABRT $$", True, 1),  # there is no other process that it could have lost
        ("kill -ABRT $$", False, 134),  # as jax does when it notices that another has gone
        ("kill -KILL $$", True, 137),
        ("exit 134", True, 134),
    ],
)
def test_a_library_that_aborts_is_no_lost_process(script, alone, code):
    (ended,) = processes.run_processes([sh(f"ulimit -c 0; {script}")], together=False)
    assert processes.convert_exit_code(ended, alone=alone) == code


def test_a_process_that_was_preempted_leaves_the_others_to_save():
    codes = processes.run_processes([sh("exit 75"), sh("sleep 0.5; exit 75")], together=True)
    assert codes == [75, 75]


def test_sigterm_reaches_every_process(tmp_path):
    wait = "trap 'exit 75' TERM; touch {}; sleep 60 & wait"
    files = [tmp_path / "a", tmp_path / "b"]

    def stop() -> None:
        while not all(file.exists() for file in files):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    before = signal.getsignal(signal.SIGTERM)
    try:
        codes = processes.run_processes([sh(wait.format(file)) for file in files], together=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert codes == [75, 75]


def test_what_a_process_says_is_appended_to_its_log(tmp_path):
    log = str(tmp_path / "logs" / "a.log")
    for word in ("one", "two"):
        processes.run_processes([sh(f"echo {word}; echo also >&2", log)], together=False)
    assert pathlib.Path(log).read_text() == "one\nalso\ntwo\nalso\n"


def test_the_processes_of_a_job_share_a_port_and_those_of_a_pack_do_not():
    first, second = processes.make_peer_environments(2)
    assert first["IMB_COORDINATOR"] == second["IMB_COORDINATOR"]
    assert (first["IMB_PROCESS_ID"], second["IMB_PROCESS_ID"]) == ("0", "1")
    ((alone,), (other,)) = processes.make_peer_environments(1), processes.make_peer_environments(1)
    assert alone["IMB_NUM_PROCESSES"] == "1"
    assert alone["JAX_COORDINATOR_PORT"] != other["JAX_COORDINATOR_PORT"]


def test_each_process_sees_devices_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert processes.make_device_environment("cuda", 1, 2) == {"CUDA_VISIBLE_DEVICES": "6,7"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert processes.make_device_environment("cuda", 1, 2) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    tpu = processes.make_device_environment("tpu", 3, 1)
    assert tpu["TPU_VISIBLE_CHIPS"] == "3" and tpu["TPU_PROCESS_BOUNDS"] == "1,1,1"
    assert "device_count=2" in processes.make_device_environment("cpu", 0, 2)["XLA_FLAGS"]


@pytest.mark.parametrize("family", ["h100", "v5e", "cpu"])
def test_each_run_of_a_pack_that_is_left_is_trained_alone_on_its_part(
    tmp_path, monkeypatch, family
):
    directory, mine = StudyDirectory(tmp_path), study(seeds=2)
    directory.claim(mine)
    make_run(directory, "r50_50_s0", mine.runs["r50_50_s0"], gain=0.0, unit_tokens=1)
    asked = {"study": str(tmp_path), "members": list(mine.runs), "devices": 2, "family": family}
    flags = types.SimpleNamespace(**asked, mesh="fsdp=2", data_dir=None)
    monkeypatch.setattr(pack, "FLAGS", flags)
    started: list[ProcessSpec] = []
    monkeypatch.setattr(
        processes, "run_processes", lambda all_, together: started.extend(all_) or [0] * len(all_)
    )
    assert pack.main() == 0
    left = [name for name in mine.runs if name != "r50_50_s0"]
    assert [child.command[-3:] for child in started] == [
        [f"--members={name}", "--devices=2", "--mesh=fsdp=2"] for name in left
    ]
    assert len({child.env["JAX_COORDINATOR_PORT"] for child in started}) == 3
    shown = {"h100": "CUDA_VISIBLE_DEVICES", "v5e": "TPU_VISIBLE_CHIPS"}
    if family in shown:
        assert [child.env[shown[family]] for child in started] == ["0,1", "2,3", "4,5"]
    assert [child.log for child in started] == [str(directory.log(name)) for name in left]
