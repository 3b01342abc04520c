"""The script that compiles for a GPU says in a line what it lacks."""

import importlib.util
import subprocess
import sys

import pytest
from helpers import ROOT


def run_script(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "docs" / "compile_for_gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_without_a_case_it_prints_its_usage():
    done = run_script()
    assert done.returncode == 2 and done.stderr.startswith("usage: compile_for_gpu.py")


def test_a_case_that_cannot_be_read_is_one_line():
    done = run_script("huge:2:4")
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "case huge:2:4: no such scale. Write scale" in done.stderr


@pytest.mark.skipif(
    any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    reason="the plugin is installed",
)
def test_without_the_plugin_it_says_what_to_install():
    done = run_script("demo:2:4")
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "pip install jax-cuda13-plugin jax-cuda13-pjrt" in done.stderr
