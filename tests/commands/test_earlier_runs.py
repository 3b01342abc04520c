"""A run and a study of an earlier version are gone on with, scored and reported.

`tests/earlier_runs/README.txt` says what is there and how it was made. Everything is done by
commands, so that nothing here knows how the package is arranged inside.
"""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from safetensors.numpy import load_file

import imbalance_jax

FIXTURE = pathlib.Path(__file__).parents[1] / "earlier_runs"
# XLA_FLAGS decides on the bits; the fixture was made with these.
XLA_FLAGS = "--xla_backend_optimization_level=0"
# What other machines may round differently: ten times what XLA's optimisations did here.
TOLERANCE = 5e-6
# Of what a run measures, all that its config and text decide on.
SAID = ("train/loss", "train/grad_norm", "train/learning_rate", "eval/")
COUNTED = ("train/tokens", "data/order")  # the same on every machine, whatever it rounds
DONE = ("even_s0", "mono_toy0_50_s0")  # of the study, before it goes on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of the fixture, as it was when it was stopped."""
    found = tmp_path_factory.mktemp("earlier") / "copy"
    shutil.copytree(FIXTURE, found)
    for archive in sorted(found.glob("*.tar.gz")):
        with tarfile.open(archive) as packed:
            packed.extractall(found, filter="data")
    return found


def command(folder: pathlib.Path, name: str, *args: str) -> str:
    """Runs a command of the package in the folder; returns what it printed."""
    environment = os.environ | {"XLA_FLAGS": XLA_FLAGS, "JAX_PLATFORMS": "cpu"}
    # The package that is tested, though the command starts elsewhere.
    environment["PYTHONPATH"] = str(pathlib.Path(imbalance_jax.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", f"imbalance_jax.{name}", *args],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def json_of(path: pathlib.Path):
    return json.loads(path.read_text())


def chosen(path: pathlib.Path, prefixes: tuple[str, ...]) -> dict[tuple[int, str], object]:
    """Returns the values of some metrics, by step and name."""
    records = map(json.loads, path.read_text().splitlines())
    return {
        (record["step"], name): value
        for record in records
        for name, value in record.items()
        if name.startswith(prefixes)
    }


def flat(value: object, name: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}/{key}").items()}
    return {name: value}


def bits_are_due(run: pathlib.Path, stored: pathlib.Path) -> bool:
    """Whether all that bits rest on is as it was, but for the code, which is what is tested."""
    mine, theirs = (json_of(path / "provenance.json")["conditions"] for path in (run, stored))
    return all(mine.get(name) == value for name, value in theirs.items() if name != "code")


def assert_same(found: dict, expected: dict, *, bits: bool) -> None:
    """Asserts equal values: to the bit, or up to what machines round differently."""
    assert expected and found.keys() >= expected.keys()
    found = {name: found[name] for name in expected}
    if bits:
        assert found == expected
        return
    for name, value in expected.items():
        if isinstance(value, float):
            # A perplexity and a gradient's norm are not of the size of a loss.
            assert found[name] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), name
        elif "top1" not in str(name):  # counts of a few tokens, which a tie may move
            assert found[name] == value, name


def assert_same_run(run: pathlib.Path, expected: pathlib.Path, *, bits: bool) -> None:
    metrics = run / "metrics.jsonl"
    assert chosen(metrics, COUNTED) == chosen(expected / "metrics.jsonl", COUNTED)
    assert_same(chosen(metrics, SAID), chosen(expected / "metrics.jsonl", SAID), bits=bits)
    found, known = (flat(json_of(path / "evaluation.json")) for path in (run, expected))
    assert_same(found, known, bits=bits)
    rows = (run / "mixture.csv").read_text().splitlines()
    assert rows == (expected / "mixture.csv").read_text().splitlines()


@pytest.fixture(scope="module")
def resumed(folder: pathlib.Path) -> pathlib.Path:
    said = command(folder, "main", "--workdir=runs/stopped", "--export=exported/stopped")
    assert (folder / "runs/stopped/DONE").exists(), said
    return folder / "runs/stopped"


@pytest.fixture(scope="module")
def fresh(folder: pathlib.Path, resumed: pathlib.Path) -> pathlib.Path:
    """The same run, begun and ended by the code that is tested."""
    run = folder / "runs/fresh"
    run.mkdir()
    shutil.copy(FIXTURE / "runs/stopped/config.json", run)
    command(folder, "main", "--workdir=runs/fresh", "--export=exported/fresh")
    return run


def test_a_stopped_run_goes_on_to_what_it_would_have_been(resumed, folder):
    expected = folder / "expected/run"
    bits = bits_are_due(resumed, FIXTURE / "runs/stopped")
    assert_same_run(resumed, expected, bits=bits)
    logged = [step for step, name in chosen(resumed / "metrics.jsonl", ("train/loss/en1",))]
    assert logged == list(range(1, 13))
    # Steps that were logged before are as they were.
    before = (FIXTURE / "runs/stopped/metrics.jsonl").read_text()
    assert (resumed / "metrics.jsonl").read_text().startswith(before)


def test_the_same_config_begins_and_ends_as_the_same_run(fresh, resumed, folder):
    bits = bits_are_due(fresh, FIXTURE / "runs/stopped")
    assert_same_run(fresh, folder / "expected/run", bits=bits)
    one, other = (
        load_file(folder / "exported" / name / "model.safetensors") for name in ("fresh", "stopped")
    )
    assert one.keys() == other.keys()
    for name in one:
        if bits:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        else:
            np.testing.assert_allclose(one[name], other[name], atol=1e-3, err_msg=name)


def test_runs_are_set_side_by_side(fresh, resumed, folder):
    assert "<svg" in (resumed / "report.html").read_text()
    said = command(folder, "report", "--workdir=runs/stopped,runs/fresh")
    assert "stopped" in (folder / said.split()[-1]).read_text()


@pytest.mark.slow  # alignment is compiled for a while
def test_a_run_that_was_gone_on_with_is_evaluated_with_its_alignment(resumed, folder):
    losses = json_of(resumed / "evaluation.json")["languages"]
    (resumed / "report.html").unlink()
    command(folder, "evaluate", "--workdir=runs/stopped", "--pairs=8")
    found = json_of(resumed / "evaluation.json")
    assert found["languages"] == losses and "en1-en2" in found["alignment"]["pairs"]
    assert "en1-en2" in (resumed / "report.html").read_text()


def test_a_finished_run_is_scored_again_as_it_was_and_reported(folder):
    name = "studies/toys/runs/mono_toy0_50_s0"
    expected = flat(json_of(FIXTURE / name / "evaluation.json"))
    (folder / name / "evaluation.json").unlink()
    command(folder, "evaluate", f"--workdir={name}")
    # No provenance is written, so whether the bits are due is not known.
    assert_same(flat(json_of(folder / name / "evaluation.json")), expected, bits=False)
    assert "<svg" in (folder / name / "report.html").read_text()


def test_a_study_trains_the_run_that_is_left_and_has_its_page(folder):
    study = folder / "studies/toys"
    done = {name: (study / "runs" / name / "DONE").read_text() for name in DONE}
    said = command(folder, "study", "run", "--workdir=studies/toys")
    assert "3 of 3 runs are done." in said
    for name, when in done.items():  # they were not trained again
        assert (study / "runs" / name / "DONE").read_text() == when
    run, before = study / "runs/uneven_s0", FIXTURE / "studies/toys/runs/uneven_s0"
    bits = bits_are_due(run, before)
    assert_same_run(run, folder / "expected/study", bits=bits)
    found, expected = (
        list(csv.DictReader(path.open()))
        for path in (study / "table.csv", folder / "expected/study/table.csv")
    )
    assert len(found) == len(expected) == 5
    # What is told apart on another machine is its sixth digit; later columns are welcome.
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(*({k: number(v) for k, v in row.items()} for row in (mine, theirs)), bits=bits)
    (study / "report.html").unlink()
    command(folder, "report", "--workdir=studies/toys")
    page = (study / "report.html").read_text()
    assert "3 of 3 runs are done" in page and "At 3:1 the rare language" in page


def number(text: str) -> object:
    try:
        value = float(text)
    except ValueError:
        return text
    return text if np.isnan(value) else value
