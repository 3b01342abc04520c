"""A study from one command, on real text: killed in the middle, started again, and read."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from helpers import ONE_DEVICE

from imbalance_jax import cli
from imbalance_jax.study.study_directory import StudyDirectory

STUDY = """
from imbalance_jax import config as config_lib
from imbalance_jax import grid

def mixture(ratio, data_dir):
    config = config_lib.cloned(scale="demo", ratio=ratio)
    config.steps, config.batch_size, config.log_every = 40, 8, 4
    config.data_dir = data_dir
    config.sources.en.packages = ("json", "email", "asyncio")
    config.sources.en.tokenizer.vocab_size = 384
    config.model.update(L=16, D=16, H=2, K=8, F=24, N=1)
    config.evaluation.update(every=0, max_windows=6, stride=16, max_test_windows=200)
    config.evaluation.alignment.every = 0
    config.checkpoint.every = 4
    return config

def get_config(arg=""):
    choice = config_lib.parse_arg(arg, data_dir="data", fails="")
    study = grid.Grid("Two ratios.", unit=mixture("1:1", choice.data_dir))
    study.add("even", mixture("1:1", choice.data_dir), seeds=range(1))
    uneven = mixture("3:1", choice.data_dir)
    study.add("uneven", uneven, seeds=range(1))
    if choice.fails:
        uneven.optimizer.peak_lr = 1e30
        study.add("absurd", uneven, seeds=range(1))
    return study.to_config()
"""


def study(folder: pathlib.Path, *args: str, choices: str = "") -> list[str]:
    file = folder / "two.py"
    file.write_text(STUDY)
    command = [sys.executable, "-m", "imbalance_jax.study", *args]
    return [*command, f"--config={file}:{choices}", f"--workdir={folder / 'study'}", "--pack=4"]


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | {"XLA_FLAGS": ONE_DEVICE, "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_a_killed_study_goes_on_and_a_run_that_diverges_stops_no_other(
    tmp_path, data_dir, english, environment
):
    directory = StudyDirectory(tmp_path / "study")
    choices = f"data_dir={data_dir},fails=yes"
    command = study(tmp_path, "run", choices=choices)
    # A group of its own, so that the kill takes the study and what it has begun together.
    with subprocess.Popen(command, env=environment, start_new_session=True) as first:
        saved = directory.run("even_s0").checkpoints
        deadline = time.monotonic() + 300
        while not any(p.name.isdecimal() for p in (saved.iterdir() if saved.exists() else ())):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGKILL)
    assert not directory.run("even_s0").done
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == cli.FAILED, done.stdout + done.stderr
    assert "Failed: absurd_s0. To try again: --only=failed" in done.stdout
    failed = directory.state("absurd_s0", directory.study())
    assert "lower config.optimizer.peak_lr" in failed.error
    states = {n: s.state for n, s in directory.states(directory.study()).items()}
    assert states == {"even_s0": "done", "uneven_s0": "done", "absurd_s0": "failed"}
    logged = directory.run("even_s0").series("train/loss")[0]
    assert logged == list(range(4, 41, 4))  # no step lost, none twice
    for name in ("table.csv", "table.parquet", "report.html"):
        assert (tmp_path / "study" / name).stat().st_size > 0
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "Nothing is to be trained" in again.stdout
