"""Mirrors show what metrics.jsonl holds."""

import sys
import types

import pytest
from conftest import tiny_config

from imbalance_jax import mirrors
from imbalance_jax.runs import RunDirectory


def test_tensorboard_gets_every_metric_at_its_step(tmp_path, data_dir):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401 (the format read below)

    run = RunDirectory(tmp_path)
    (mirror,) = mirrors.open_mirrors(["tensorboard"], run, tiny_config(data_dir))
    mirror.log(20, {"train/loss": 3.5, "eval/ppl/en2": 90.25})
    mirror.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found, at = file.read_bytes(), {}, 0
    while at < len(data):  # records: length, its checksum, the event, its checksum
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        found |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
        at += length + 16
    assert found == {(20, "train/loss"): 3.5, (20, "eval/ppl/en2"): 90.25}


def test_weights_and_biases_gets_every_metric_under_the_name_of_the_run(
    tmp_path, data_dir, monkeypatch
):
    seen = []
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **settings: types.SimpleNamespace(
        log=lambda metrics, step: seen.append((settings["name"], step, metrics)),
        finish=lambda: seen.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = RunDirectory(tmp_path / "90_10")
    (mirror,) = mirrors.open_mirrors(["wandb"], run, tiny_config(data_dir))
    mirror.log(5, {"train/loss": 2.0})
    mirror.close()
    assert seen == [("90_10", 5, {"train/loss": 2.0}), "finished"]


def test_a_mirror_whose_package_is_absent_is_refused_with_its_extra(monkeypatch):
    monkeypatch.setattr(mirrors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[wandb\]'"):
        mirrors.check(["wandb"])
