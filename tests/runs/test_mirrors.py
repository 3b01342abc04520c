"""Mirrors show what metrics.jsonl holds, each step once."""

import importlib.machinery
import itertools
import json
import pathlib
import sys
import types

import pytest
from etils import epath
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
    for file in sorted(pathlib.Path(run.path).rglob("events.out.tfevents.*")):
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


def test_tensorboard_names_a_run_by_its_directory_and_goes_on_where_an_earlier_version_wrote(
    tmp_path, config
):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    now, earlier = (made(tmp_path / "runs" / name) for name in ("r90_10_s0", "r50_50_s0"))
    (earlier.path / "tensorboard").mkdir()
    for run in (now, earlier):
        mirrors.Mirrors(["tensorboard"], run, config, start=5).close()
    # A run's name is that of the folder of its events, from --logdir on.
    files = (tmp_path / "runs").glob("**/events.out.tfevents.*")
    names = {file.parent.relative_to(tmp_path / "runs").as_posix() for file in files}
    assert names == {"r90_10_s0", "r50_50_s0/tensorboard"}


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
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.sent, module.begun, module.server_has = [], [], None

    def init(**settings):
        module.begun.append(settings)
        return types.SimpleNamespace(
            log=lambda metrics, step=None: module.sent.append((settings["id"], step, metrics)),
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


def test_runs_of_a_study_are_a_group_with_its_name(tmp_path, config, wandb, monkeypatch):
    alone, of_study = made(tmp_path / "alone" / "a"), made(tmp_path / "ratio" / "runs" / "r1_1_s0")
    (tmp_path / "ratio" / "study.json").touch()
    for run in (alone, of_study):
        mirrors.Mirrors(["wandb"], run, config).close()
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    mirrors.Mirrors(["wandb"], of_study, config).close()
    assert [settings["group"] for settings in wandb.begun] == [None, "ratio", "mine"]
    assert wandb.begun[1]["name"] == "r1_1_s0"


def read_wandb_records(path) -> list:
    """Returns what the client wrote while offline, by its own description of a record.

    The file is a log of LevelDB behind seven bytes: blocks of 32 KiB with parts of records, each
    behind its checksum, its length, and whether it is whole (1), begins (2), goes on or ends (4).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found, parts = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if left < 7 or kind == 0:
            at += left
            continue
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(parts))
            parts = b""
    return found


def test_the_real_client_keeps_names_steps_and_the_table_of_a_study(tmp_path, config, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "PROJECT": "p"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    study = tmp_path / "ratio"
    run = made(study / "runs" / "r90_10_s0")
    (study / "study.json").touch()
    train(["wandb"], run, config, start=0, stop=37)
    train(["wandb"], run, config, start=20, stop=45)
    rows = {"run": ["r90_10_s0", "r50_50_s0"], "loss": [2.5, float("nan")], "seed": [0, 1]}
    mirrors.push_table(epath.Path(study), "ratio", rows)
    starts = [read_wandb_records(file) for file in sorted(run.path.glob("wandb/offline*/*.wandb"))]
    assert len(starts) == 2
    first, again = ([r.run for r in records if r.HasField("run")][0] for records in starts)
    assert first.run_id == again.run_id == run.read_json("wandb.json")["id"]
    assert (again.display_name, again.run_group, again.project) == ("r90_10_s0", "ratio", "p")
    logged = [
        {"".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for records in starts
        for record in records
        if record.HasField("history")
    ]
    sent = [(values["_step"], values["train/loss"]) for values in logged if "train/loss" in values]
    assert sent == [(step, 0.5) for step in range(46)]
    [file] = study.glob("wandb/offline*/files/media/table/*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == [*rows]
    assert table["data"][0] == ["r90_10_s0", 2.5, 0] and table["data"][1][::2] == ["r50_50_s0", 1]


def test_a_table_is_sent_again_into_the_same_run(tmp_path, wandb):
    wandb.Table = lambda columns, data: (columns, data)
    for loss in (2.0, 1.5):
        mirrors.push_table(epath.Path(tmp_path), "ratio", {"run": ["a"], "loss": [loss]})
    assert [settings["id"] for settings in wandb.begun] == [wandb.begun[0]["id"]] * 2
    assert [metrics["table"] for _, _, metrics in wandb.sent] == [
        (["run", "loss"], [["a", loss]]) for loss in (2.0, 1.5)
    ]


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
