"""A run directory belongs to one run, and to one process at a time."""

import contextlib
import subprocess
import sys
import textwrap

import pytest
from made_studies import mixture

from imbalance_jax import config as config_lib
from imbalance_jax.runs.run_directory import RunDirectory, run_and_step

HOLD = textwrap.dedent(
    """
    import sys
    from imbalance_jax.runs import RunDirectory
    run = RunDirectory(sys.argv[1])
    run.claim(run.config())
    print("held", flush=True)
    sys.stdin.read()
    """
)


def test_two_processes_cannot_train_in_one_directory(tmp_path):
    config = config_lib.resolve_config(mixture("1:1"))
    run = RunDirectory(tmp_path / "run")
    run.claim(config)
    run.release()
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="run is being trained in by another process"):
            run.claim(config)
        other.communicate("")
    run.claim(config)  # what a process held is free when it has ended
    run.release()


@pytest.mark.parametrize(
    "name",
    [
        *("DONE", "FAILED.json", "checkpoints", "evaluation.json", "evaluation-20.json"),
        *("metrics.jsonl", "mixture.csv", "provenance.json", "report.html", "tensorboard"),
        *("test_texts.csv", "test_texts-20.csv", "tokenizer-en.model", "transfer.json"),
        "events.out.tfevents.1.host",
        *("vocabulary.npz", "wandb", "wandb.json", "word2vec.json", "word2vec-cbow.npz"),
    ],
)
def test_what_a_run_would_write_over_is_in_its_way_and_nothing_else_is(tmp_path, name):
    config = config_lib.resolve_config(mixture("1:1"))
    (tmp_path / "slurm-1.out").touch()
    RunDirectory(tmp_path).check(config)
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"/{name} would be written over"):
        RunDirectory(tmp_path).check(config)


@pytest.mark.parametrize(
    ("name", "path", "step"),
    [
        ("runs/a", "runs/a", None),
        ("runs/a@20", "runs/a", 20),
        ("runs/me@home/a", "runs/me@home/a", None),
        ("runs/a@last", "runs/a@last", None),
        ("runs/me@home/a@20", "runs/me@home/a", 20),
    ],
)
def test_a_step_comes_after_the_last_at_sign(name, path, step):
    run, found = run_and_step(name)
    assert (str(run), found) == (path, step)


def test_a_run_whose_name_ends_like_a_step_is_itself(tmp_path):
    RunDirectory(tmp_path / "a@5").claim(config_lib.resolve_config(mixture("1:1")))
    run, step = run_and_step(f"{tmp_path}/a@5")
    assert (str(run), step) == (f"{tmp_path}/a@5", None)
    assert run_and_step(f"{tmp_path}/a@5@20")[1] == 20


def test_a_directory_that_was_only_held_is_still_empty(tmp_path):
    run = RunDirectory(tmp_path)
    (tmp_path / ".lock").touch()
    run.check(config_lib.resolve_config(mixture("1:1")))


def test_a_run_says_which_text_it_was_begun_with(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.texts() == run.texts("parallel") == {}
    sources, sets = {"en": {"fingerprint": "a", "kind": "files"}}, {"en_fr": {"fingerprint": "b"}}
    run.write_json("provenance.json", {"sources": sources, "parallel": sets})
    assert (run.texts(), run.texts("parallel")) == ({"en": "a"}, {"en_fr": "b"})


FIRST_UPDATE = '{"10": {"checkpoint": "", "metrics": {}, "conditions": {}}}'


@pytest.mark.parametrize(
    ("left", "last", "refused"),
    [
        ({"first_updates.json": FIRST_UPDATE}, 12, True),
        ({"DONE": ""}, 20, True),
        ({}, 21, True),  # of an earlier version: step 20 is saved when step 10 is whole
        ({}, 20, False),  # killed while the first checkpoint was written
        ({}, 0, False),
        ({"checkpoints/10/x": "", "first_updates.json": FIRST_UPDATE}, 12, False),
    ],
)
def test_a_run_that_lost_its_checkpoints_is_refused_and_one_that_had_none_is_not(
    tmp_path, left, last, refused
):
    values = mixture("1:1")
    values.checkpoint.every = 10
    run = RunDirectory(tmp_path / "run")
    run.check_checkpoints()
    run.claim(config_lib.resolve_config(values))
    for step in range(last + 1):
        run.log(step, {"train/loss": 1.0})
    for name, content in left.items():
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(content)
    with (
        pytest.raises(ValueError, match=f"metrics up to step {last}, .*from a copy, or move")
        if refused
        else contextlib.nullcontext()
    ):
        run.check_checkpoints()
