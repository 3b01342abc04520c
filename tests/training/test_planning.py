"""What each device holds and what takes disk, against arrays and files; what cannot fit."""

import pathlib
import re

import helpers
import jax
import pytest

from imbalance_jax.compute import hardware, model, sharding, step, tuning
from imbalance_jax.config import MeshConfig, costs
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


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_the_least_that_a_device_needs_is_no_more_than_what_it_holds(sizes):
    config = helpers.tiny_config(pathlib.Path("unused"))
    mesh = sharding.make_mesh(MeshConfig(**sizes), jax.devices())
    state = step.make_abstract_state(config, 384, mesh)
    held = sum(map(planning._count_shard_bytes, jax.tree.leaves((state.params, state.opt_state))))
    least = costs.estimate_least_bytes(config, mesh.shape)
    assert 0.7 * held < least["state"] <= held
    rows = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    # The ids of the batch, and the inputs of two blocks, of 16 positions of width 16.
    inputs = 2 * 2 * rows * 16 * 16 // mesh.shape["tensor"]
    assert least["activations"] == 2 * rows * 17 + inputs


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "sgd"},
        {"name": "lion"},
        {"name": "muon"},
        {"name": "adafactor"},
        {"moments": "per_language"},
    ],
    ids=str,
)
@pytest.mark.parametrize("D", [16, 128])
def test_the_bytes_of_a_state_are_those_that_the_optimizer_keeps(changes, D):
    optimizer = {f"optimizer__{name}": value for name, value in changes.items()}
    config = helpers.tiny_config(
        pathlib.Path("unused"), model__D=D, model__F=2 * D, model__kv_heads=1, **optimizer
    )
    state = step.make_abstract_state(config, 384, helpers.make_mesh(1))
    held = sum(map(planning._count_shard_bytes, jax.tree.leaves((state.params, state.opt_state))))
    # Adafactor's rows and columns, and its squares of norms and biases.
    tolerance = 0.04 if changes.get("name") == "adafactor" else 1e-3
    assert costs._count_state_bytes(config, 384) == pytest.approx(held, rel=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["einsum", "blockwise"])
def test_the_least_of_a_step_is_no_more_than_what_it_is_compiled_to_take(attention):
    changes = {"L": 64, "N": 6, "remat": "full", "scan_layers": True, "attention": attention}
    config = helpers.tiny_config(
        pathlib.Path("unused"), **{f"model__{name}": value for name, value in changes.items()}
    )
    mesh = helpers.make_mesh(1)
    state = step.make_abstract_state(config, 384, mesh)
    batch = step.Batch(jax.ShapeDtypeStruct((8, 65), "uint16"), jax.ShapeDtypeStruct((8,), "int32"))
    ids_GU = jax.ShapeDtypeStruct((2, 192), "int32")
    compiled = step.jit_step(config, 20, mesh, state).lower(state, batch, ids_GU).compile()
    taken = hardware.count_program_memory(compiled.memory_analysis())
    least = costs.estimate_least_bytes(config, mesh.shape)
    assert least["state"] <= taken["arguments"] and 0 < least["activations"] <= taken["temporary"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__N": 10**6, "model__scan_layers": True}, "parameters and .*config.model.N=1000"),
        ({"model__D": 2**31 - 1}, r"at least .* TB .*config\.model\.D=2147483647"),
        ({"steps": 1, "batch_size": 10**8}, r"activations, with config\.batch_size=100000000 in "),
        ({"model__L": 2**31 - 1}, r"config\.model\.L=2147483647, .*A device has 10 GB\. Use"),
        ({"sources__en__tokenizer__vocab_size": 2**24, "model__D": 256}, "parameters and optimi"),
    ],
)
def test_what_cannot_fit_is_refused_by_arithmetic(monkeypatch, changes, message):
    monkeypatch.setattr(hardware, "get_device_memory", lambda: 10**10)
    mesh = helpers.make_mesh(1)
    planning.check_memory(helpers.tiny_config(pathlib.Path("unused")), mesh)
    with pytest.raises(ValueError, match=message) as refused:
        planning.check_memory(helpers.tiny_config(pathlib.Path("unused"), **changes), mesh)
    assert len(str(refused.value).splitlines()) == 1


def test_a_run_within_twice_the_memory_is_left_to_the_compiler(monkeypatch):
    config, mesh = helpers.tiny_config(pathlib.Path("unused")), helpers.make_mesh(1)
    model = tuning.resolve_auto_fields(config.model, jax.devices()[0])
    config = helpers.tiny_config(pathlib.Path("unused"), model__attention=model.attention)
    need = sum(costs.estimate_least_bytes(config, mesh.shape).values())
    for memory, members in ((-(-need // 2), 1), (need // 2 - 1, 2), (None, 10**6)):
        monkeypatch.setattr(hardware, "get_device_memory", lambda memory=memory: memory)
        if members == 2:
            with pytest.raises(ValueError, match="needs at least"):
                planning.check_memory(config, mesh, members)
        else:
            planning.check_memory(config, mesh, members)


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
