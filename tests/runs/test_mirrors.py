"""Mirrors show what metrics.jsonl holds, each step once."""

import itertools
import sys
import types

import pytest
from helpers import tiny_config

from imbalance_jax.runs import mirrors
from imbalance_jax.runs.run_directory import RunDirectory


@pytest.fixture
def config(data_dir):
    return tiny_config(data_dir)


def events(run: RunDirectory) -> list:
    """Returns all events of a run's TensorBoard files, in the order in which they are read."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted((run.path / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # records: length, its checksum, the event, its checksum
            length = int.from_bytes(data[at : at + 8], "little")
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def shown(run: RunDirectory) -> list[tuple[int, str, float]]:
    """Returns what TensorBoard shows: a session's start hides what is there from its step on."""
    from tensorboardX.proto.event_pb2 import SessionLog

    values: list[tuple[int, str, float]] = []
    for event in events(run):
        if event.session_log.status == SessionLog.START:
            values = [value for value in values if value[0] < event.step]
        values += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return values


def test_tensorboard_gets_every_metric_at_its_step(tmp_path, config):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    run = RunDirectory(tmp_path)
    mirror = mirrors.Mirrors(["tensorboard"], run, config)
    mirror.log(20, {"train/loss": 3.5, "eval/ppl/en2": 90.25})
    mirror.close()
    assert shown(run) == [(20, "train/loss", 3.5), (20, "eval/ppl/en2", 90.25)]


def train(names, run: RunDirectory, config, start: int, stop: int) -> None:
    """Mirrors the steps after `start` as a run does that logs each, and evaluates each tenth."""
    sent = max((record["step"] for record in run.metrics()), default=-1)
    run.truncate_metrics(start)
    mirror = mirrors.Mirrors(names, run, config, start, sent)
    for step in range(start + 1 if start else 0, stop + 1):
        records = [{"train/loss": 0.5, "time/total": float(step)}]
        if step % 10 == 0:
            records.append({"eval/loss/en1": 0.25, "time/total": step + 0.5})
        for record in records:
            run.log(step, record)
            mirror.log(step, record)
    mirror.close()


def test_a_run_that_goes_on_from_a_checkpoint_shows_each_metric_once(tmp_path, config, monkeypatch):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    # A file is named by the second in which it is begun.
    monkeypatch.setattr("time.time", itertools.count(1_000_000.0).__next__)
    run = RunDirectory(tmp_path)
    train(["tensorboard"], run, config, start=0, stop=37)
    train(["tensorboard"], run, config, start=20, stop=45)
    train(["tensorboard"], run, config, start=40, stop=45)
    keys = [(step, name) for step, name, _ in shown(run)]
    assert len(set(keys)) == len(keys)
    wanted = {(record["step"], name) for record in run.metrics() for name in record}
    assert set(keys) == {key for key in wanted if key[1] != "step"}


@pytest.fixture
def wandb(monkeypatch) -> types.ModuleType:
    """A stand-in that keeps what it is given: `sent` has (id, step, metrics)."""
    module = types.ModuleType("wandb")
    module.sent, module.begun, module.server_has = [], [], None

    def init(**settings):
        module.begun.append(settings)
        return types.SimpleNamespace(
            log=lambda metrics, step: module.sent.append((settings["id"], step, metrics)),
            finish=lambda: None,
            resumed=module.server_has is not None,
            starting_step=(module.server_has or 0) + 1,
        )

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def made(path) -> RunDirectory:
    path.mkdir(parents=True)
    return RunDirectory(path)


def test_weights_and_biases_gets_every_metric_under_the_name_of_the_run(tmp_path, config, wandb):
    mirror = mirrors.Mirrors(["wandb"], made(tmp_path / "90:10"), config)
    mirror.log(5, {"train/loss": 2.0})
    mirror.close()
    [settings] = wandb.begun
    assert settings["name"] == "90:10" and settings["id"].isalnum()
    assert wandb.sent == [(settings["id"], 5, {"train/loss": 2.0})]


def test_two_runs_of_one_name_have_two_ids_and_each_keeps_its_own(tmp_path, config, wandb):
    first, second = (made(tmp_path / parent / "seed0") for parent in "ab")
    for run in (first, second, first):
        mirrors.Mirrors(["wandb"], run, config).close()
    ids = [settings["id"] for settings in wandb.begun]
    assert ids[0] == ids[2] != ids[1]
    assert [settings["name"] for settings in wandb.begun] == ["seed0"] * 3


def test_a_run_whose_id_was_its_name_keeps_it(tmp_path, config, wandb):
    run = RunDirectory(tmp_path / "seed0")
    (run.path / "wandb" / "offline-run-20260101_000000-seed0").mkdir(parents=True)
    mirrors.Mirrors(["wandb"], run, config, start=10, sent=20).close()
    assert wandb.begun[0]["id"] == "seed0"


def test_weights_and_biases_gets_no_step_again(tmp_path, config, wandb):
    run = RunDirectory(tmp_path)
    train(["wandb"], run, config, start=0, stop=37)
    train(["wandb"], run, config, start=20, stop=45)
    steps = [step for _, step, metrics in wandb.sent if "train/loss" in metrics]
    assert steps == list(range(46))
    assert sum("time/total" in metrics for _, _, metrics in wandb.sent) == 46


def test_weights_and_biases_gets_the_steps_that_its_server_has_not(tmp_path, config, wandb):
    run = RunDirectory(tmp_path)
    train(["wandb"], run, config, start=0, stop=37)
    wandb.sent, wandb.server_has = [], 30  # the last ones were lost on the way
    train(["wandb"], run, config, start=20, stop=45)
    steps = [step for _, step, metrics in wandb.sent if "train/loss" in metrics]
    assert steps == list(range(31, 46))


def test_a_mirror_that_does_not_start_is_refused_by_the_field(tmp_path, config, wandb):
    wandb.init = lambda **settings: [][0]
    with pytest.raises(ValueError, match=r"config\.mirrors has 'wandb', which does not start"):
        mirrors.Mirrors(["wandb"], RunDirectory(tmp_path), config)


def test_a_mirror_that_fails_later_is_left_behind(tmp_path, config, wandb, capsys):
    mirror = mirrors.Mirrors(["wandb"], RunDirectory(tmp_path), config)
    mirror.log(1, {"train/loss": float("nan")})
    wandb.sent = None  # and what is sent next raises
    for step in (2, 3):
        mirror.log(step, {"train/loss": 2.0})
    mirror.close()
    assert capsys.readouterr().err.count("wandb gets no more metrics") == 1


def test_a_mirror_whose_package_is_absent_is_refused_with_its_extra(monkeypatch):
    monkeypatch.setattr(mirrors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[wandb\]'"):
        mirrors.check_mirror_packages(["wandb"])
