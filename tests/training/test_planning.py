"""The table of what each device holds, and what takes disk, against the arrays and the files."""

import pathlib
import re

import helpers
import jax
import pytest

from imbalance_jax.compute import model, sharding, step
from imbalance_jax.config import MeshConfig
from imbalance_jax.runs import storage
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import experiment, pack, planning

UNITS = {"B": 1, "KB": 1e3, "MB": 1e6}


def test_the_table_says_what_a_device_really_holds():
    config = helpers.tiny_config(pathlib.Path("unused"))
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
    lines = list(
        planning.render_sharding_table(step.make_abstract_state(config, 96, mesh), mesh, (8, 17))
    )
    state = step.jit_init_state(config, 96, mesh)(jax.random.key(0))
    held = {
        name: sum(leaf.addressable_shards[3].data.nbytes for leaf in jax.tree.leaves(part))
        for name, part in {"parameters": state.params, "optimizer": state.opt_state}.items()
    }
    for name, size in held.items():
        found = next(line for line in lines if line.strip().startswith(name))
        value, unit = re.search(r"([\d.]+) (\w+)$", found).groups()
        assert abs(float(value) * UNITS[unit] / size - 1) < 0.005
    assert "data 2 (devices of a host)" in lines[0]
    embedding = next(line for line in lines if "embed_VD" in line)
    assert "96 x 16" in embedding and "V tensor, D fsdp" in embedding
    assert lines[-1].split() == ["batch", "8", "x", "17", "B", "data", "x", "fsdp", "2", "x", "17"]


def read_size(line: str) -> float:
    value, unit = re.search(r"takes? ([\d.]+) (\w+)", line).groups()
    return float(value) * UNITS[unit]


@pytest.mark.parametrize("saved", [0, 1])
def test_a_plan_says_what_each_directory_takes_and_warns_where_it_will_not_fit(
    data_dir, english, tmp_path, monkeypatch, saved
):
    config = helpers.tiny_config(data_dir, checkpoint__keep=2)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    trainer, run = experiment.Experiment.make(config, {"en": english}, mesh), RunDirectory(tmp_path)
    english.tokens("train")
    if saved:
        (run.checkpoints / "10").mkdir(parents=True)
    planned = pack.Pack([pack.PackMember("", trainer, run)], mesh)
    # Parameters and two moments in 32 bits, and the numbers of two steps.
    size = 3 * 4 * model.count_parameters(config.model, trainer.vocabulary.size) + 2 * 4
    places = [run.checkpoints, english.path, english.cache]
    free = {str(place): (3 - saved) * size - 1 for place in (*places, run.path)}
    monkeypatch.setattr(storage, "count_free_bytes", lambda place: free[str(place)])
    *lines, warning = planning.describe_disks(planned)
    assert [line.rpartition(": ")[2] for line in lines] == list(map(str, places))
    cached = english.cache.glob(f"{english.cached('').name}*")
    prepared = pathlib.Path(english.path).iterdir()
    files = [sum(file.stat().st_size for file in each) for each in (prepared, cached)]
    for line, expected in zip(lines, [size, *files], strict=True):
        assert read_size(line) == pytest.approx(expected, rel=0.005)
    assert f"up to {planning.format_bytes(3 * size)} on disk, where" in lines[0]
    assert read_size(warning) == pytest.approx((3 - saved) * size, rel=0.005)
    assert "Free some of it" in warning and "config.checkpoint.keep=2" in warning
    free[str(run.path)] *= 1.005
    assert planning.warn_of_full_disk(planned) == []
