"""What evaluate writes down of a run, part by part, and never measures twice unasked."""

import math
import types
from collections.abc import Callable
from typing import Any

import jax
import pytest
from helpers import tiny_config

from imbalance_jax import evaluate
from imbalance_jax.config import MeshConfig
from imbalance_jax.evaluation.alignment import AlignmentPart
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import reopening, scoring


class Measured:
    """Stands for a trainer and its alignment: counts what is measured, and fails where asked."""

    def __init__(self, *, pairs: int = 12, fails: str = "") -> None:
        self.done: list[str] = []
        self.sequences, self.fails = pairs, fails
        alignment = types.SimpleNamespace(languages=())
        self.config = types.SimpleNamespace(
            tags=("en1", "en2"), evaluation=types.SimpleNamespace(alignment=alignment)
        )
        self.stream: Any = None
        self.programs = types.SimpleNamespace(compile_seconds=0.0)
        self.pairs = [types.SimpleNamespace(name="en1-en2")]
        self.notes, self.skipped = [], {}

    def alignment(self, split: str, most: int) -> "Measured":
        return self

    def score(self, state: Any, poll: Any) -> dict[str, Any]:
        self._note("losses")
        return {"languages": {tag: {"loss": 1.0} for tag in self.config.tags}}

    def parts(self, state: Any, stream: Any) -> list[AlignmentPart]:
        pair: Any = self.pairs[0]
        return [
            AlignmentPart(
                "rows", pair, ("embed_in", "embed_out"), self._part("embed_in", "embed_out")
            ),
            AlignmentPart("states", pair, ("hidden",), self._part("hidden")),
            AlignmentPart("leak", None, ("leak",), lambda poll: self._note("leak") or self._leak()),
            AlignmentPart("probe", None, ("probe",), self._part("probe")),
        ]

    def describe_pair(self, pair: Any) -> dict[str, Any]:
        return {"sequences": self.sequences}

    def describe_windows(self) -> dict[str, int]:
        return dict.fromkeys(self.config.tags, self.sequences)

    def _leak(self) -> dict[str, Any]:
        return {"leak": {tag: {"windows": self.sequences} for tag in self.config.tags}}

    def _part(self, *names: str) -> Callable[[Any], dict[str, Any]]:
        return lambda poll: self._note(names[-1]) or dict.fromkeys(names, len(self.done))

    def _note(self, name: str) -> None:
        if name == self.fails:
            raise RuntimeError(name)
        self.done.append(name)


STATE = types.SimpleNamespace(step=20)


@pytest.fixture(autouse=True)
def scored_by_the_stand_in(monkeypatch) -> None:
    monkeypatch.setattr(scoring, "score_state", lambda trainer, *rest: trainer.score(*rest))


def measure(trainer: Any, run: RunDirectory, **asked: Any) -> dict[str, Any]:
    state: Any = STATE
    known = evaluate.read_results(run, "evaluation.json", 20)
    return evaluate.evaluate_state(trainer, state, 8, known=known, write=run.write_results, **asked)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path)


ALL = ["losses", "embed_out", "hidden", "leak", "probe"]


@pytest.mark.parametrize("fails", ALL)
def test_what_was_measured_before_a_failure_is_kept_and_only_the_rest_is_measured(run, fails):
    first, second = Measured(fails=fails), Measured()
    with pytest.raises(RuntimeError, match=fails):
        measure(first, run)
    results = measure(second, run)
    assert first.done + second.done == ALL
    assert run.read_json("evaluation.json") == results
    assert set(results["alignment"]["pairs"]["en1-en2"]) == {
        *("sequences", "embed_in", "embed_out", "hidden")
    }


def test_nothing_is_measured_of_a_run_that_had_diverged(run):
    known = {"step": 20, "languages": {"en1": {"loss": 1.0}, "en2": {"loss": math.nan}}}
    run.write_json("evaluation.json", known)  # as a run of an earlier version has it
    stand_in = Measured()
    with pytest.raises(ValueError, match="The test loss of en2 is not finite at step 20.*--step"):
        measure(stand_in, run)
    assert stand_in.done == []
    stand_in.score = lambda *_: known
    before = (run.path / "evaluation.json").read_bytes()
    with pytest.raises(ValueError, match="The test loss of en2 is nan at step 20"):
        measure(stand_in, run, overwrite=True)
    assert (run.path / "evaluation.json").read_bytes() == before


def test_what_is_known_is_measured_again_only_where_it_is_asked_for(run):
    measure(Measured(), run)
    before = run.read_json("evaluation.json")
    again = Measured()
    measure(again, run)
    assert again.done == [] and run.read_json("evaluation.json") == before
    measure(again, run, overwrite=True)
    assert again.done == ALL


def test_other_sequences_are_refused_by_what_is_known(run):
    measure(Measured(pairs=12), run)
    with pytest.raises(ValueError, match="en1-en2 .* sequences=12 and not 16. --overwrite"):
        measure(Measured(pairs=16), run)
    more = Measured(pairs=16)
    measure(more, run, overwrite=True, losses=False)
    assert more.done == ALL[1:]


def test_results_of_another_step_are_kept_under_a_name_of_their_own(run):
    run.write_results({"step": 10, "languages": {}, "texts": {"en1": [(0, 1.0, 5)]}})
    assert evaluate.read_results(run, "evaluation.json", 20) == {}
    assert run.keep_results(10) == []
    lines = run.keep_results(20)
    assert run.read_json("evaluation-10.json")["step"] == 10
    assert run.read_csv("test_texts-10.csv")[0]["language"] == "en1"
    assert not (run.path / "evaluation.json").exists()
    assert lines[1] == "evaluation.json of step 10 is kept as evaluation-10.json."
    assert run.keep_results(20) == []


def test_results_that_are_half_renamed_when_a_run_is_killed_are_kept_in_the_end(run, monkeypatch):
    run.write_results({"step": 10, "languages": {}, "texts": {"en1": [(0, 1.0, 5)]}})
    path, renamed = type(run.path), []

    def rename_once(self, target):
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target)
        self.replace(target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(path, "rename", rename_once)
        run.keep_results(20)
    run.keep_results(20)
    assert run.read_csv("test_texts-10.csv") and run.read_json("evaluation-10.json")
    assert not run.read_csv("test_texts.csv")


def test_a_file_that_cannot_be_read_is_named(run):
    run.write_text("evaluation.json", "{")
    with pytest.raises(ValueError, match="evaluation.json is not valid JSON.* Delete it"):
        evaluate.read_results(run, "evaluation.json", 20)


def test_a_mesh_that_does_not_fit_these_devices_becomes_copies_of_the_model(data_dir):
    fitting = tiny_config(data_dir, mesh=MeshConfig(data=1, fsdp=-1).__dict__)
    for devices, sizes in {4: (1, 4), 3: (3, 1), 1: (1, 1)}.items():
        mesh = reopening.choose_mesh(fitting, 768, jax.devices()[:devices])
        assert (mesh.shape["data"], mesh.shape["fsdp"]) == sizes
    exact = tiny_config(data_dir, mesh__data=2)
    assert reopening.choose_mesh(exact, 768, jax.devices()[:3]).shape["data"] == 3
