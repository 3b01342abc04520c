"""How a run ends: what it leaves behind, and what it says, whatever happens to it."""

import errno
import os
import re
import resource
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
from imbalance_jax.compute.checkpoint import Checkpoints
from imbalance_jax.runs import storage
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import ends, experiment, loop, pack, recorder, scoring

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


@pytest.fixture
def small_files():
    """Lets this process write no file of more than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


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
        ("open('/')", 2, "error: /: Is a directory.\n"),
        ("b'\\xe9'.decode()", 1, "UnicodeDecodeError"),
        ("raise ValueError('caf\\xe9')", 2, "error: caf\\xe9\n"),
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
