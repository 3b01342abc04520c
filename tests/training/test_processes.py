"""Several real processes are one run: same losses, stopped together, resumed as any number."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from helpers import ONE_DEVICE, tiny_config

from imbalance_jax import cli, main
from imbalance_jax import config as config_lib
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import sharding
from imbalance_jax.config import Config
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory
from imbalance_jax.training import experiment, loop, pack, recorder

STEPS = 24
# Of fp32 sums in another order: 1, 2 or 4 devices add up parts of a batch.
TOLERANCE = 2e-6
MAIN = "from imbalance_jax import cli, main; main.define_flags(); cli.run_command(main.main)"
# What happens in process 1 when it reads the batch of a step.
AT_STEP = """
import os, signal, time
from imbalance_jax.data.order.stream import Stream
batch = Stream.batch
def hurt(self, step, *rows):
    if step == {step} and os.environ["IMB_PROCESS_ID"] == "1":
        {what}
    return batch(self, step, *rows)
Stream.batch = hurt
"""
STOPPED = AT_STEP.format(step=7, what="os.kill(os.getpid(), signal.SIGTERM); time.sleep(1)")
BROKEN = AT_STEP.format(step=7, what="raise OSError('the disk of process 1 is gone')")
KILLED = AT_STEP.format(step=7, what="os.kill(os.getpid(), signal.SIGKILL)")
# What process 0 cannot write of one of two runs.
UNLOGGED = """
from imbalance_jax.runs import RunDirectory
log = RunDirectory.log
def fail(self, step, metrics):
    if step == 7 and self.path.name == "r_s1":
        raise OSError(28, "no space", "metrics.jsonl")
    log(self, step, metrics)
RunDirectory.log = fail
"""
UNPRINTED = """
from imbalance_jax.runs.progress import Progress
line = Progress.line
def fail(self, text):
    if text.startswith("r_s1: step") and os.environ["IMB_PROCESS_ID"] == "0":
        raise OSError(28, "no space", "stdout")
    line(self, text)
import os
Progress.line = fail
"""
# Each process holds one member, whose seed is the number of the process. (Of step 0, any row says
# what all are like.)
OWN_ROWS = """
import os
from imbalance_jax.data.order.stream import Stream
batch = Stream.batch
def check(self, step, *rows):
    assert step == 0 or self._config.seed == int(os.environ["IMB_PROCESS_ID"])
    return batch(self, step, *rows)
Stream.batch = check
"""
REFUSING = """
import os
from imbalance_jax.data import prepare
prepare_all = prepare.prepare_run_sources
def refuse(config, *recorded):
    if os.environ["IMB_PROCESS_ID"] == "1":
        raise ValueError("config.data_dir cannot be read here.")
    return prepare_all(config, *recorded)
prepare.prepare_run_sources = refuse
"""


def make_config(data_dir: pathlib.Path) -> Config:
    changes = {"model__N": 1, "steps": STEPS, "log_every": 1, "checkpoint__every": 12}
    return tiny_config(data_dir, **changes, evaluation__every=12, evaluation__stride=16)


def begin(path: pathlib.Path, config: Config) -> pathlib.Path:
    """Makes a run directory that `main --workdir` goes on with."""
    path.mkdir()
    RunDirectory(path).write_json("config.json", config_lib.to_dict(config))
    return path


def run_together(
    count: int, run: pathlib.Path, code: str = "", args: tuple[str, ...] = ()
) -> list[tuple[int, str]]:
    """Returns the exit code and the output of each process of a run."""
    return start_together(count, code, (f"--workdir={run}", *args))


def start_together(count: int, code: str, args: tuple[str, ...]) -> list[tuple[int, str]]:
    """Returns the exit code and the output of each process of one command."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    xla = f"--xla_force_host_platform_device_count=1 {ONE_DEVICE}"
    shared = dict(os.environ, XLA_FLAGS=xla, IMB_COORDINATOR=f"127.0.0.1:{port}")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code + MAIN, *args],
            env=shared | {"IMB_NUM_PROCESSES": str(count), "IMB_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=480)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, out) for process, out in zip(processes, outputs, strict=True)]


def train_alone(config: Config, english, path: pathlib.Path) -> None:
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    trainer = experiment.Experiment.make(config, {"en": english}, mesh)
    member = pack.PackMember("", trainer, RunDirectory(path))
    interrupts = distributed.SharedInterrupts()
    assert not loop.train_members(pack.Pack([member], mesh), recorder.RunTimer(), interrupts)


def losses(path: pathlib.Path) -> dict[tuple[int, str], float]:
    found = {}
    for record in RunDirectory(path).metrics():
        for name, value in record.items():
            if name.startswith(("train/loss", "train/grad_norm", "eval/loss")):
                found[record["step"], name] = value
    return found


def assert_same_run(path: pathlib.Path, alone: pathlib.Path) -> None:
    theirs, mine = losses(alone), losses(path)
    assert mine.keys() == theirs.keys()
    np.testing.assert_allclose(
        [mine[key] for key in theirs], list(theirs.values()), rtol=TOLERANCE, atol=0
    )
    assert (path / "mixture.csv").read_bytes() == (alone / "mixture.csv").read_bytes()
    assert (path / "DONE").exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data_dir, english) -> pathlib.Path:
    """The run of one process, never interrupted."""
    path = tmp_path_factory.mktemp("alone") / "run"
    train_alone(make_config(data_dir), english, path)
    return path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, data_dir, english) -> Iterator[types.SimpleNamespace]:
    """The run of two processes, after SIGTERM to one of them."""
    run = begin(tmp_path_factory.mktemp("stopped") / "run", make_config(data_dir))
    ended = run_together(2, run, STOPPED)
    yield types.SimpleNamespace(run=run, ended=ended)


def test_sigterm_to_one_process_stops_all_at_the_same_step(stopped):
    assert [code for code, _ in stopped.ended] == [cli.PREEMPTED] * 2, stopped.ended
    saved = RunDirectory(stopped.run).newest_checkpoint()
    assert 8 <= saved < STEPS
    assert f"Saved step {saved} in" in stopped.ended[0][1]
    assert "Saved step" not in stopped.ended[1][1]  # process 0 speaks for all


def test_two_processes_have_the_losses_of_one(stopped, alone):
    theirs, mine = losses(alone), losses(stopped.run)
    assert len(mine) > 16
    for key, value in mine.items():
        assert value == pytest.approx(theirs[key], rel=TOLERANCE)


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_of_two_processes_goes_on_as_any_number(
    stopped, alone, tmp_path, data_dir, english, count
):
    run = tmp_path / "run"
    shutil.copytree(stopped.run, run)
    if count == 1:
        train_alone(make_config(data_dir), english, run)
    else:
        ended = run_together(count, run, args=(f"--devices={count}",))
        assert [code for code, _ in ended] == [cli.DONE] * count, ended
    assert_same_run(run, alone)


def test_an_error_of_one_process_ends_all_and_is_written_down(tmp_path, data_dir, english):
    run = begin(tmp_path / "run", make_config(data_dir))
    ended = run_together(2, run, BROKEN)
    assert [code for code, _ in ended] == [cli.FAILED] * 2, ended
    failed = json.loads((run / "FAILED.json").read_text())
    assert (failed["error"], failed["step"]) == ("OSError", 7)
    assert "the disk of process 1 is gone" in ended[1][1]


def test_a_process_that_is_lost_before_the_first_step_asks_for_a_restart(monkeypatch, capsys):
    def prepare(*args: object, **options: object) -> int:
        raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer [::1]:68")

    monkeypatch.setattr(main, "_plan_and_train_runs", prepare)
    monkeypatch.setattr(main, "FLAGS", types.SimpleNamespace(devices=0))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "join_processes", lambda devices: None)
    monkeypatch.setattr(distributed, "exit_process", lambda code, *, seconds: code)
    assert main._train_runs([], packed=False) == cli.LOST
    assert "another process was lost" in capsys.readouterr().err


@pytest.mark.slow
def test_a_lost_process_ends_the_others_with_a_code_that_asks_for_a_restart(
    tmp_path, data_dir, english
):
    run = begin(tmp_path / "run", make_config(data_dir))
    (code, said), (killed, _) = run_together(2, run, KILLED)
    assert (code, killed) == (cli.LOST, -9), said
    assert re.search(r"another process was lost after step \d+", said)
    assert not (run / "FAILED.json").exists()


def test_a_process_that_refuses_to_start_keeps_all_from_starting(tmp_path, data_dir, english):
    run = begin(tmp_path / "run", make_config(data_dir))
    (first, said), (second, why) = run_together(2, run, REFUSING)
    assert (first, second) == (cli.REFUSED, cli.REFUSED), (said, why)
    assert "config.data_dir cannot be read here" in why
    assert "Process 1 cannot start" in said
    assert not (run / "checkpoints").exists()


def two_seeds(path: pathlib.Path, config: Config) -> tuple[StudyDirectory, tuple[str, ...]]:
    """Returns a study of two runs, and the arguments that train them as a pack."""
    runs = {
        f"r_s{seed}": grid.RunSpec(dataclasses.replace(config, seed=seed), cell="r")
        for seed in range(2)
    }
    directory = StudyDirectory(path / "study")
    directory.claim(grid.StudyConfig("Two seeds.", unit_tokens=1, runs=runs))
    return directory, (f"--study={directory}", "--members=r_s0,r_s1", "--mesh=member=2,data=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "file", "step"),
    [
        pytest.param(UNLOGGED, "metrics.jsonl", 12, id="unlogged"),  # where all learn of it
        pytest.param(UNPRINTED, "stdout", 0, id="unprinted"),
    ],
)
def test_a_member_that_cannot_be_written_is_left_behind_by_all_processes(
    tmp_path, alone, data_dir, english, code, file, step
):
    directory, args = two_seeds(tmp_path, make_config(data_dir))
    ended = start_together(2, code, args)
    assert [code for code, _ in ended] == [cli.FAILED] * 2, ended
    assert f"r_s1: {file}: No space left on device" in ended[0][1]
    failed = directory.run("r_s1").read_json("FAILED.json")
    assert (failed["error"], failed["step"]) == ("OSError", step)
    assert_same_run(pathlib.Path(directory.run("r_s0").path), alone)


@pytest.mark.slow
def test_a_pack_on_two_processes_is_stopped_and_goes_on_to_the_runs_alone(
    tmp_path, alone, data_dir, english
):
    directory, args = two_seeds(tmp_path, make_config(data_dir))
    ended = start_together(2, STOPPED.replace("step == 7", "step >= 7"), args)
    assert [code for code, _ in ended] == [cli.PREEMPTED] * 2, ended
    saved = [directory.run(name).newest_checkpoint() for name in ("r_s0", "r_s1")]
    assert saved[0] == saved[1] and 8 <= saved[0] < STEPS
    ended = start_together(2, OWN_ROWS, args)
    assert [code for code, _ in ended] == [cli.DONE] * 2, ended
    assert_same_run(pathlib.Path(directory.run("r_s0").path), alone)
    assert directory.run("r_s1").done
