"""The examples of docs/examples run, and print what the run and the study have."""

import pathlib
import runpy
import shutil
import tarfile

import made_studies
import numpy as np
import pytest
from helpers import ROOT

from imbalance_jax.analysis import study_table

pd = pytest.importorskip("pandas")  # in the extras test and docs
EARLIER = ROOT / "tests" / "earlier_runs"


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
    """A folder with a small run and a made study where the example looks for them."""
    with tarfile.open(EARLIER / "run_checkpoint.tar.gz") as packed:
        packed.extractall(tmp_path, filter="data")
    shutil.copytree(EARLIER / "runs/stopped", tmp_path / "runs/stopped", dirs_exist_ok=True)
    (tmp_path / "runs/stopped").rename(tmp_path / "runs/90_10")
    directory = made_studies.make(tmp_path / "studies/grammar", made_studies.small_grid())
    study_table.write_study_table(study_table.read_study_table(directory), directory)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_reads_a_run_and_a_study(folder, capsys):
    example = runpy.run_path(f"{ROOT}/docs/examples/read_results.py")
    printed = capsys.readouterr().out
    run = example["run"]
    for language in ("en1", "en2"):
        loss = run.loss(example["TEXTS"][0], language).mean()
        assert f"{language}  {loss:.3f} nats" in printed
    cosines = example["cosines"]
    assert cosines.shape == (run.config.model.N + 2, 2)
    # Those of a text with itself, in one language.
    states = example["compute_mean_states"](example["TEXTS"][0], "en1")
    np.testing.assert_allclose(example["compute_cosines"](states, states), 1)
    assert (cosines.abs() <= 1).all(axis=None)
    rows = pd.read_csv(folder / "studies/grammar/table.csv")
    rare = rows[(rows.cell == "r90_10") & (rows.language == "en2")].loss
    assert example["losses"].loc["r90_10", "en2"]["mean"] == pytest.approx(np.mean(rare))
    assert example["losses"].loc["r90_10", "en2"]["count"] == 3
