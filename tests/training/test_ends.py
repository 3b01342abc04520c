"""How a run ends: what it leaves behind, and what it says, whatever happens to it."""

import copy
import dataclasses
import errno
import functools
import json
import math
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import types

import jax
import numpy as np
import pytest
from helpers import tiny_config

from imbalance_jax.compute import hardware, sharding, tuning
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute.checkpoint import Checkpoints, DamagedCheckpoint
from imbalance_jax.data.order import audit
from imbalance_jax.runs import storage
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import (
    ends,
    experiment,
    loading,
    loop,
    pack,
    recorder,
    run_progress,
    scoring,
)

STEPS = 6


@pytest.fixture(scope="module")
def trainer(data_dir, english) -> experiment.Experiment:
    changes = {"steps": STEPS, "model__N": 1, "log_every": 1, "checkpoint__every": 0}
    config = tiny_config(data_dir, **changes, evaluation__every=4, evaluation__stride=16)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    return experiment.Experiment.make(config, {"en": english}, mesh)


def make_pack(trainer, path="unused") -> pack.Pack:
    return pack.Pack([pack.PackMember("", trainer, RunDirectory(path))], trainer.mesh)


@pytest.fixture(scope="module")
def compiled(trainer):
    state = trainer.init_state()
    with pytest.MonkeyPatch.context() as patch:  # no bits are compared, so this may be quick
        options = {"cpu": {"xla_backend_optimization_level": "0"}}
        patch.setattr(tuning, "COMPILER_OPTIONS", options)
        return (*loop.compile_programs(make_pack(trainer)), jax.tree.map(np.asarray, state))


@pytest.fixture
def programs(trainer, compiled, monkeypatch) -> types.SimpleNamespace:
    """What `train` uses in place of what it would compile anew."""
    update, evaluator, state = compiled
    found = types.SimpleNamespace(update=update, evaluator=evaluator)
    monkeypatch.setattr(loop, "compile_programs", lambda _: (found.update, found.evaluator))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, trainer.abstract_state())
    monkeypatch.setattr(
        experiment.Experiment,
        "init_state",
        lambda *_: jax.device_put(state, shardings, may_alias=False),
    )
    return found


def start(trainer, run: RunDirectory, interrupts=None) -> str:
    """Trains a run, and returns what went wrong, or nothing."""
    interrupts = interrupts or distributed.SharedInterrupts()
    failed = loop.train_members(make_pack(trainer, run.path), recorder.RunTimer(), interrupts)
    return failed.get("", "")


# TensorStore reports to the event loop of orbax, which has ended with the first error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_last_checkpoint_that_cannot_be_written_fails_the_run_and_loses_nothing_else(
    trainer, programs, tmp_path, small_files
):
    run = RunDirectory(tmp_path / "run")
    small_files(20_000)
    assert re.search("checkpoints: File too large.*ulimit -f", start(trainer, run))
    small_files(resource.RLIM_INFINITY)
    details = run.read_json("FAILED.json")
    assert details["step"] == STEPS and details["error"] == "OSError"
    assert "checkpoints: File too large" in details["message"]
    assert run.read_json("evaluation.json")["step"] == STEPS and not run.done
    assert list(run.checkpoints.iterdir()) == []  # what is left of one may fill the disk

    before = [record for record in run.metrics() if record["step"] == 0]
    start(trainer, run)
    assert run.done and not (run.path / "FAILED.json").exists()
    assert run.newest_checkpoint() == STEPS and len(before) == 1


def test_metrics_that_cannot_be_written_fail_the_run(trainer, programs, tmp_path, monkeypatch):
    run, log = RunDirectory(tmp_path / "run"), RunDirectory.log

    def full(self, step, metrics):
        if step == 5:
            raise OSError(errno.ENOSPC, "no space", "metrics.jsonl")
        log(self, step, metrics)

    monkeypatch.setattr(RunDirectory, "log", full)
    assert "metrics.jsonl: No space left on device. Of the disk" in start(trainer, run)
    assert run.read_json("FAILED.json")["error"] == "OSError"


class Stop(distributed.SharedInterrupts):
    """Is asked to stop when some function says so."""

    def __init__(self, when) -> None:
        super().__init__()
        self._when = when

    def poll(self) -> bool:
        return self._when()


def test_a_run_that_is_stopped_in_the_step_that_diverges_has_failed(trainer, programs, tmp_path):
    run, update, steps = RunDirectory(tmp_path / "run"), programs.update, []

    def diverge(*args):
        state, metrics = update(*args)
        steps.append(metrics)
        return state, metrics | {"loss": np.float32("nan")} if len(steps) == 2 else metrics

    programs.update = diverge
    failed = start(trainer, run, Stop(lambda: len(steps) == 2))
    assert "The loss of step 2 is nan" in failed
    assert run.read_json("FAILED.json")["error"] == "FloatingPointError"
    assert run.steps() == []


def spoil(programs, steps) -> list[int]:
    """Lets the loss of some steps be nan, and returns the steps that were made, which grows."""
    update, made = programs.update, []

    def diverge(state, *rest):
        made.append(int(state.step) + 1)
        state, metrics = update(state, *rest)
        return state, metrics | {"loss": np.float32("nan")} if made[-1] in steps else metrics

    programs.update = diverge
    return made


def alter(trainer, **changes) -> experiment.Experiment:
    """Returns the experiment with other fields of its config, which its programs do not read."""
    altered = copy.copy(trainer)
    for group, fields in changes.items():
        value = dataclasses.replace(getattr(altered.config, group), **fields)
        altered.config = dataclasses.replace(altered.config, **{group: value})
    return altered


def read_strictly(file) -> list:
    """Returns the lines of a file of JSON, which may hold no NaN and no Infinity."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    return [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]


@pytest.mark.parametrize("split", ["validation", "test", "parallel pairs"])
def test_a_run_whose_last_update_diverged_has_failed(
    trainer, programs, tmp_path, monkeypatch, split
):
    run, evaluator, score = RunDirectory(tmp_path / "run"), programs.evaluator, scoring.score_state
    evaluated = []

    class Spoilt:
        def __call__(self, *args):
            evaluated.append(evaluator(*args))
            if split == "validation" and len(evaluated) == 3:  # after steps 0, 4 and 6
                evaluated[-1]["en2"] |= {"loss": math.nan, "ppl": math.inf}
            return evaluated[-1]

        def __getattr__(self, name):
            return getattr(evaluator, name)

    def score_badly(*args):
        results = score(*args)
        results["parallel"] = {
            "pairs": {"pairs": 2, "languages": copy.deepcopy(results["languages"])}
        }
        for metrics in results["parallel"]["pairs"]["languages"].values():
            metrics["nats_per_pair"] = math.inf
        spoilt = results if split == "test" else results["parallel"]["pairs"]
        spoilt["languages"]["en2"]["loss"] = math.nan
        return results

    programs.evaluator = Spoilt()
    monkeypatch.setattr(scoring, "score_state", score_badly)
    failed = start(alter(trainer, checkpoint={"every": 2}), run)
    assert f"The {split} loss of en2 is nan after step 6." in failed
    assert not run.done and run.read_json("evaluation.json") is None
    assert run.read_json("FAILED.json")["message"] == failed
    # That of step 6 is of the state that is spoilt.
    assert run.newest_checkpoint() == 4 and f"{run.checkpoints}/4" in failed
    records = read_strictly(run.path / "metrics.jsonl")
    assert (split == "validation") == any(r.get("eval/loss/en2", 0) is None for r in records)
    read_strictly(run.path / "FAILED.json")
    again = [r["eval/loss/en2"] for r in run.metrics() if "eval/loss/en2" in r]
    assert np.isnan(again[-1]) == (split == "validation")


def test_every_checkpoint_of_a_run_that_diverged_is_one_that_goes_on(trainer, programs, tmp_path):
    run, update = RunDirectory(tmp_path / "run"), programs.update
    each = alter(trainer, checkpoint={"every": 1, "keep": 1})
    spoil(programs, {5})
    failed = start(each, run)
    # The loss of step 5 is that of the state after 4, which was saved before it was known.
    assert run.steps() == [3] and (run.checkpoints / "4.diverged").exists()
    assert f"{run.checkpoints}/3" in failed and f"config.init_from={run}@3" in failed
    assert "lower config.optimizer.peak_lr" in failed
    assert "--config.optimizer.skip_nonfinite=10" in failed

    programs.update = update
    made = spoil(programs, {5})
    assert start(each, run) == failed and made[0] == 4
    programs.update = update
    assert start(each, run) == "" and run.done
    assert run.steps() == [STEPS]  # as config.checkpoint.keep has it


def test_updates_are_left_out_and_counted_across_a_resume_up_to_as_many_in_a_row(
    trainer, programs, tmp_path
):
    run, update = RunDirectory(tmp_path / "run"), programs.update
    skipping = alter(trainer, optimizer={"skip_nonfinite": 2}, checkpoint={"every": 1})
    made = spoil(programs, {1, 3, 4})
    with pytest.raises(ends.Preempted):
        start(skipping, run, Stop(lambda: made[-1:] == [4]))
    newest = run.newest_with("train/skipped_in_a_row")
    assert (newest["train/skipped"], newest["train/skipped_in_a_row"]) == (3, 2)

    assert run.steps() == [2, 4]  # none of a step that was left out, but where the run was stopped
    shutil.copytree(run.path, tmp_path / "copy")
    programs.update = update
    spoil(programs, {5})
    failed = start(skipping, run)
    assert "The loss of step 5 is nan" in failed and "2 updates before it were left out" in failed
    assert run.steps() == [2] and "--config.optimizer.skip_nonfinite=10" in failed
    programs.update = update
    spoil(programs, {6})
    copied = RunDirectory(tmp_path / "copy")
    assert start(skipping, copied) == "" and copied.done
    counted = dict(zip(*copied.series("train/skipped"), strict=True))
    assert counted == {1: 1, 2: 1, 3: 2, 4: 3, 5: 3, 6: 4}
    # The mean over steps of which none has a loss is not known.
    assert [
        record["train/loss"]
        for record in read_strictly(copied.path / "metrics.jsonl")
        if record["step"] == 6 and "train/loss" in record
    ] == [None]


def test_a_run_that_is_stopped_in_its_last_evaluation_makes_up_for_it(trainer, programs, tmp_path):
    run, evaluator, begun = RunDirectory(tmp_path / "run"), programs.evaluator, []

    class Watched:
        def __call__(self, *args):
            begun.append("evaluation")
            return evaluator(*args)

        def __getattr__(self, name):
            return getattr(evaluator, name)

    programs.evaluator = Watched()
    with pytest.raises(ends.Preempted):  # of steps 0, 4 and 6
        start(trainer, run, Stop(lambda: len(begun) == 3))
    assert run.newest_checkpoint() == STEPS and not run.has(STEPS, "eval/")
    programs.evaluator = evaluator
    killed = run.checkpoints / "5.orbax-checkpoint-tmp"  # by SIGKILL, while it was written
    killed.mkdir()
    (run.path / "mixture.csv").unlink()
    start(trainer, run)
    assert not killed.exists()
    assert run.read_csv("mixture.csv")[-1]["last_step"] == str(STEPS)
    assert run.done and [r["step"] for r in run.metrics() if "eval/loss/en1" in r] == [0, 4, 6]


# Going on.


def stop_at(trainer, run: RunDirectory, *steps: int) -> None:
    """Trains a run, and stops and starts it at each of these steps."""
    for step in steps:

        def has_come(step=step) -> bool:
            return run.newest_checkpoint() < step <= count_steps(run) + 1

        with pytest.raises(ends.Preempted):
            start(trainer, run, Stop(has_come))
    assert run.newest_checkpoint() == steps[-1]


def count_steps(run: RunDirectory) -> int:
    return max((record["step"] for record in run.metrics() if "train/loss" in record), default=0)


def read_all(run: RunDirectory) -> dict[pathlib.Path, bytes]:
    files = [file for file in pathlib.Path(run.path).rglob("*") if file.is_file()]
    return {file: file.read_bytes() for file in files}


def read_resume(run: RunDirectory) -> dict:
    return run.read_json("provenance.json")["resumes"][-1]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("stopped") / "run"


@pytest.fixture
def stopped(trainer, programs, made_once, tmp_path) -> RunDirectory:
    """A run that was stopped after steps 2 and 4."""
    if not made_once.exists():
        stop_at(trainer, RunDirectory(made_once), 2, 4)
    return RunDirectory(shutil.copytree(made_once, tmp_path / "run"))


def test_a_resume_is_held_to_the_bit_against_the_update_that_followed_the_save(
    trainer, stopped, capsys
):
    kept = stopped.read_json("first_updates.json")
    assert list(kept) == ["2", "4"] and set(kept["4"]["metrics"]) >= {"loss", "grad_norm"}
    # What was computed ahead is what the run then logs, and it was not logged twice.
    assert start(trainer, stopped) == ""
    by_step = {r["step"]: r for r in stopped.metrics() if "train/loss" in r}
    assert kept["2"]["metrics"]["grad_norm"] == by_step[3]["train/grad_norm"]
    assert sorted(by_step) == [1, 2, 3, 4, 5, 6]
    assert "Resumed at step 4, verified to the bit." in capsys.readouterr().out
    lines = [resume["line"] for resume in stopped.read_json("provenance.json")["resumes"]]
    assert lines == [f"Resumed at step {step}, verified to the bit." for step in (2, 4)]


@pytest.mark.parametrize("change", ["parameter", "cores", "nothing known"])
def test_a_resume_says_what_differs_and_beside_which_conditions(trainer, stopped, change, capsys):
    if change == "parameter":  # in a checkpoint that is whole and has its digest
        saved = Checkpoints(stopped.checkpoints, keep=2)
        state = saved.restore(4, trainer.abstract_state())
        saved.set_aside(4)
        state.params["embed_VD"] *= 1.25
        saved.save(state)
        saved.wait()
        saved.close()
        first = stopped.read_json("first_updates.json")
        first["4"]["checkpoint"] = saved.fingerprints[4]
        stopped.write_json("first_updates.json", first)
    elif change == "cores":
        first = stopped.read_json("first_updates.json")
        first["4"]["conditions"]["cores"] += 6
        first["4"]["metrics"]["loss"] *= 1.5
        stopped.write_json("first_updates.json", first)
    else:
        (stopped.path / "first_updates.json").unlink()
    start(trainer, stopped)
    found = read_resume(stopped)
    assert found["line"] in capsys.readouterr().out
    if change == "nothing known":
        assert found["verified"] is None and "no update after it was recorded" in found["line"]
    elif change == "cores":
        assert list(found["differences"]) == ["loss"] and found["verified"] is False
        assert re.search(
            r"not to the bit: 1 of \d+ .*by 3\.3e-01 of.*cores? instead of", found["line"]
        )
    else:
        assert "loss" in found["differences"] and "tokens/en1" not in found["differences"]
        assert "and no condition that is recorded changed" in found["line"]


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
    trainer, stopped, capsys
):
    for file in pathlib.Path(stopped.checkpoints / "4").rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(ends.CheckpointSetAside):
        start(trainer, stopped)
    said = capsys.readouterr().out
    assert re.search(
        r"checkpoints/4 is damaged: .* It is kept as 4\.damaged\.\n.* step 2 inst", said
    )
    assert start(trainer, stopped) == ""
    assert "Resumed at step 2, verified to the bit." in capsys.readouterr().out
    assert stopped.done and (stopped.checkpoints / "4.damaged").exists()


def test_a_reader_of_the_newest_takes_an_older_one_and_of_a_named_step_refuses(
    trainer, stopped, capsys
):
    for file in pathlib.Path(stopped.checkpoints / "4").rglob("d/*"):
        file.write_bytes(b"")
    before, like = read_all(stopped), trainer.abstract_state()
    assert int(loading.restore_state(stopped, None, like).step) == 2
    assert "4 is damaged" in (said := capsys.readouterr().err) and "Step 2 is read inst" in said
    with pytest.raises(DamagedCheckpoint, match=r"4 is damaged.*Other checkpoints of the run: 2"):
        loading.restore_state(stopped, 4, like)
    assert read_all(stopped) == before


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left_as_it_is(trainer, stopped):
    for file in pathlib.Path(stopped.checkpoints).rglob("d/*"):
        file.write_bytes(b"")
    before = read_all(stopped)
    with pytest.raises(DamagedCheckpoint, match=r"4 is damaged.*2 is damaged.*from a copy"):
        start(trainer, stopped)
    assert read_all(stopped) == before


def test_a_run_reads_its_log_once_at_a_start_and_not_at_a_save(
    trainer, programs, tmp_path, monkeypatch
):
    checkpoint = dataclasses.replace(trainer.config.checkpoint, every=1)
    config = dataclasses.replace(trainer.config, checkpoint=checkpoint)
    trainer = dataclasses.replace(trainer, config=config)
    run, metrics, read = RunDirectory(tmp_path / "run"), RunDirectory.metrics, []
    monkeypatch.setattr(
        RunDirectory, "metrics", lambda self: (read.append(self.newest_step()), metrics(self))[1]
    )
    with pytest.raises(ends.Preempted):
        start(trainer, run, Stop(lambda: run.newest_checkpoint() > 2))
    stopped_at = run.newest_checkpoint()
    start(trainer, run)
    assert run.done and read == [-1, stopped_at] and 2 < stopped_at < STEPS
    rows = audit.build_mixture_rows(config, trainer.stream, metrics(run))
    as_text = [{name: str(value) for name, value in row.items()} for row in rows]
    assert run.read_csv("mixture.csv") == as_text and len(rows) == 2 * STEPS


def test_a_step_moves_no_array_that_the_loop_has_not_placed(trainer, programs, tmp_path):
    update = programs.update
    programs.update = lambda state, batch, maps: update(state, batch, np.asarray(maps))
    failed = start(trainer, RunDirectory(tmp_path / "run"))
    assert "Disallowed host-to-device transfer" in failed


def test_progress_says_100_percent_when_the_run_is_scored_and_not_before(
    trainer, programs, tmp_path, monkeypatch, capsys
):
    shown, show = [], loop.Progress.show

    def note(self, done, text=""):
        shown.append((done / self._total, text))
        show(self, done, text)

    monkeypatch.setattr(loop.Progress, "show", note)
    start(trainer, RunDirectory(tmp_path / "run"))
    shares = [share for share, _ in shown]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    assert {text for share, text in shown if share > 1 - 1e-9} == {"scoring the test split"}
    # A third of a step for each sequence of a step: what a forward pass takes.
    costs = [
        scoring.estimate_scoring_cost(trainer, windows)
        for windows in scoring.list_scored_windows(trainer)
    ]
    share_scored = next(share for share, text in shown if text == "scoring the test split")
    evaluations = 3 * 12 / 8 / 3
    expected = (STEPS + evaluations) / (STEPS + evaluations + sum(costs))
    assert share_scored == pytest.approx(expected)
    assert capsys.readouterr().out.count("Training 100%") == 1


# What errors say.


ONE_DEVICE = {"data": 1, "fsdp": 1}


def test_running_out_of_memory_suggests_accumulation(data_dir):
    said = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."
    error = jax.errors.JaxRuntimeError(said)

    def flags(devices: int, **changes: object) -> list[str]:
        mesh = {"data": devices, "fsdp": 1}
        said = ends.explain_error(tiny_config(data_dir, **changes), error, mesh)
        return re.findall(r"--[a-z]+=\w+", said)

    assert flags(1) == ["--accumulate=2", "--remat=full"]
    assert flags(2, batch_size=18) == ["--accumulate=3", "--remat=full"]  # 9 do not divide by 2
    assert flags(8) == ["--remat=full"]  # one sequence each
    assert flags(8, model__remat="full") == []
    config = tiny_config(data_dir)
    assert "This machine is out of memory" in ends.explain_error(config, MemoryError(), ONE_DEVICE)
    other = jax.errors.JaxRuntimeError("INTERNAL: RESOURCE_EXHAUSTED of a callback")
    assert ends.explain_error(config, other, ONE_DEVICE) == str(other)


# What TensorStore says of a full disk, as a ValueError.
FULL = (
    'RESOURCE_EXHAUSTED: Error writing "w/0.0" in OCDBT database at local file "/x/": Failed to '
    "write 1628564 bytes to file 11: No space left on device [os_error_code='28']"
)


def test_a_full_disk_is_not_taken_for_memory(tmp_path, data_dir, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def refuse(*args, **kwargs):
        raise ValueError(FULL)

    monkeypatch.setattr(checkpoints._manager, "save", refuse)
    state = types.SimpleNamespace(step=3)
    with pytest.raises(OSError) as raised:
        checkpoints.save(state)
    checkpoints.close()
    error = raised.value
    assert error.errno == errno.ENOSPC and not hardware.is_out_of_memory(error)
    said = ends.explain_error(tiny_config(data_dir), error, ONE_DEVICE)
    assert f"{tmp_path}/checkpoints: No space left on device. Of the disk of" in said
    assert "MB are free" in said and "accumulate" not in said


def test_an_error_of_the_system_names_the_file_and_the_fix():
    describe = lambda number: storage.describe_os_error(OSError(number, "any words", "/a/file"))
    assert describe(errno.EACCES).startswith("/a/file: Permission denied. Allow this user")
    assert describe(errno.EDQUOT).endswith("ask for a larger quota.")
    assert describe(errno.ENOENT) == "/a/file: No such file or directory."
    assert "its output in a file" in storage.describe_os_error(BrokenPipeError(errno.EPIPE, "any"))
    assert storage.describe_os_error(FileNotFoundError("ours, in words")) == "ours, in words"


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path, small_files):
    small_files(1000)
    with pytest.raises(OSError, match="File too large: .*results.json"):
        storage.write_file_atomically(storage.parse_path(tmp_path / "results.json"), b"x" * 5000)
    assert list(tmp_path.iterdir()) == []


def test_an_error_names_the_file_and_not_what_it_is_written_as(tmp_path):
    file = tmp_path / "results.json"
    with pytest.raises(PermissionError, match="/results.json"), storage.name_file_in_errors(file):
        raise PermissionError(errno.EACCES, "refused", "/.results.1a2b.tmp")


def test_a_directory_whose_name_is_not_text_is_refused():
    with pytest.raises(ValueError, match="is not a name in UTF-8"):
        RunDirectory(os.fsdecode(b"caf\xe9"))


def test_a_page_may_name_a_file_whose_name_is_not_text(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_text("report.html", os.fsdecode(b"caf\xe9 caf\xc3\xa9"))
    assert (tmp_path / "report.html").read_bytes() == b"caf\\udce9 caf\xc3\xa9"


# What commands do with errors.
COMMAND = textwrap.dedent(
    """
    import sys
    from absl import flags
    from imbalance_jax import cli

    def main():
        print("caf\\xe9")
        {what}
        return cli.DONE

    cli.run_command(main)
    """
)
IN_AN_IMPORT = "raise ImportError('initialization failed') from KeyboardInterrupt()"
# An interrupt where an exception cannot be raised, as jax's callback of garbage collections is.
LOST = "; ".join(
    [
        "import gc, signal, time",
        "raise_once = lambda *_: gc.callbacks.clear() or signal.raise_signal(signal.SIGTERM)",
        "gc.callbacks.append(raise_once)",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",  # as of a background job of a shell
        "gc.collect()",
        "time.sleep(10)",
    ]
)


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("pass", 0, ""),
        ("open('/')", 2, "error: /: Is a directory. Name a file.\n"),
        ("b'\\xe9'.decode()", 1, "UnicodeDecodeError"),
        ("raise ValueError('caf\\xe9')", 2, "error: caf\\xe9\n"),
        ("raise MemoryError('of 9 GB')", 2, "error: This machine is out of memory: of 9 GB.\n"),
        (
            "raise RuntimeError('write() failed: File too large; writing a/b; at byte 9')",
            2,
            "error: a/b: File too large. Raise the limit on the size of a file: ulimit -f.\n",
        ),
        (LOST, 75, "Interrupted. Start again to go on.\n"),
        (IN_AN_IMPORT, 75, "Interrupted. Start again to go on.\n"),
    ],
)
def test_a_command_without_a_locale_prints_all_and_tells_errors_apart(what, code, said):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", COMMAND.format(what=what)]
    done = subprocess.run(command, capture_output=True, env=os.environ | ascii_only)
    assert done.returncode == code and done.stdout == b"caf\\xe9\n"
    assert said in done.stderr.decode() and ("Traceback" in done.stderr.decode()) == (code == 1)


# Several processes, of which one has the error.


def test_all_processes_raise_what_the_writer_had_alone(monkeypatch):
    from jax.experimental import multihost_utils

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    flags = []
    gather = lambda flag: flags.append(int(flag)) or np.array([1, 0])
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    writer, other = distributed.WriterErrors(), distributed.WriterErrors()
    with writer.kept():
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError, match="full"):
        writer.agree()
    with pytest.raises(distributed.ElsewhereError):
        other.agree()
    assert flags == [1, 0]
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda flag: np.array([0, 0]))
    writer.agree()  # once raised, it is over


# Of a pack, one of whose members cannot be restored.


def test_a_member_without_a_good_checkpoint_is_refused_by_name_and_a_run_alone_as_it_is():
    class Damaged:
        def restore(self, step, like):
            raise DamagedCheckpoint("checkpoints/20 is damaged.")

        restore_newest = functools.partialmethod(restore, 20)

    with pytest.raises(ends.MemberRefused, match="a_s1: .* is damaged") as refused:
        loop._restore_member(Damaged(), 20, None, "a_s1")
    assert refused.value.name == "a_s1"
    with pytest.raises(DamagedCheckpoint):
        loop._restore_member(Damaged(), 20, None, "")


@pytest.mark.parametrize(
    ("start", "kept", "said"),
    [(0, 0, ""), (95, 9, ""), (95, 4, "ends at step 40: "), (95, 0, "is missing or empty: ")],
)
def test_a_run_that_goes_on_says_what_of_its_metrics_is_lost(tmp_path, capsys, start, kept, said):
    run = RunDirectory(tmp_path / "run")
    config = tiny_config(tmp_path, steps=100, log_every=10)
    run.claim(config)
    for step in range(10, 10 * kept + 1, 10):
        run.log(step, {"train/loss/en1": 1.0})
    run.flush()
    begun = types.SimpleNamespace(
        config=config,
        stream=types.SimpleNamespace(steps=100),
        vocabulary=types.SimpleNamespace(to_bytes=lambda: b""),
        sources={},
    )
    run_progress.record_run_start(begun, run, start, {"conditions": {}})
    out = capsys.readouterr().out
    assert ("lost" in out) == bool(said)
    assert not said or f"metrics.jsonl {said}what was logged from there to step 95 is lost" in out
