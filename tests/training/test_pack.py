"""Runs that train as one program: each must be what it is alone, and leave what it leaves alone."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from helpers import ONE_DEVICE, tiny_config
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding

from imbalance_jax import cli, main
from imbalance_jax import config as config_lib
from imbalance_jax.compute import hardware, sharding, tuning
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute.checkpoint import Checkpoints
from imbalance_jax.config import Config, LanguageConfig, MeshConfig, pack_shape
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study import grid, study_runner
from imbalance_jax.training import experiment, loop, pack, recorder

# What members may differ in: ratio, stages, seed, anchors, and all of the learning rate.
MEMBERS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "decaying": {
        "seed": 4,
        "optimizer__peak_lr": 1e-3,
        "mixture__stages": ((0, {"en1": 1, "en2": 0}), (0.5, {"en1": 0, "en2": 1})),
        "optimizer__schedule": "warmup_stable_decay",
        "optimizer__warmup": 3.0,
        "languages__en2__anchors": 0.5,
    },
}
COMMON = {"steps": 12, "evaluation__every": 8, "checkpoint__every": 4, "model__scan_layers": True}
COMMON |= {"model__N": 1, "log_every": 4, "checkpoint__keep": 3}
COMMON |= {"evaluation__stride": 16}  # the test split by the program of the validation split


def make_config(data_dir: pathlib.Path, **changes: Any) -> Config:
    return tiny_config(data_dir, **COMMON | changes)


def make_pack(
    configs: dict[str, Config], english: Any, root: pathlib.Path, devices: int = 1
) -> pack.Pack:
    mesh_config = next(iter(configs.values())).mesh
    mesh = sharding.make_mesh(mesh_config, jax.devices()[:devices], packed=True)
    alone = sharding.make_one_member_mesh(mesh)
    return pack.Pack(
        [
            pack.PackMember(
                name,
                experiment.Experiment.make(config, {"en": english}, alone, training=False),
                RunDirectory(root / name),
            )
            for name, config in configs.items()
        ],
        mesh,
    )


def train_pack(made: pack.Pack) -> dict[str, str]:
    return loop.train_members(made, recorder.RunTimer(), distributed.SharedInterrupts())


def train_alone(config: Config, english: Any, path: pathlib.Path) -> None:
    made = make_pack({"": config}, english, path)
    assert made.way == "" and train_pack(made) == {}


def saved(path: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint, whatever wrote it."""
    checkpoints = Checkpoints(path / "checkpoints")
    try:
        state = checkpoints._manager.restore(step)
    finally:
        checkpoints.close()
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(where): np.asarray(leaf) for where, leaf in leaves}


def records(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns a run's metrics, without what a clock says."""
    return [
        {name: v for name, v in record.items() if name[:5] not in ("time/", "perf/")}
        for record in RunDirectory(path).metrics()
    ]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Takes programs that several tests compile from a cache."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(tmp_path_factory.mktemp("compiled")))
    jax.config.update(names[1], 0.1)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def alone(data_dir, english, tmp_path_factory) -> pathlib.Path:
    """The members' runs, each trained alone."""
    root = tmp_path_factory.mktemp("alone")
    for name, changes in MEMBERS.items():
        train_alone(make_config(data_dir, **changes), english, root / name)
    return root


@pytest.fixture(scope="module")
def packed(data_dir, english, tmp_path_factory) -> tuple[pathlib.Path, dict[str, str]]:
    """The same runs trained together, with one more that diverges; and what failed."""
    root = tmp_path_factory.mktemp("packed")
    configs = {name: make_config(data_dir, **changes) for name, changes in MEMBERS.items()}
    configs["absurd"] = make_config(data_dir, optimizer__peak_lr=1e30)
    return root, train_pack(make_pack(configs, english, root))


@pytest.fixture(scope="module")
def configs(data_dir) -> dict[str, Config]:
    return {name: make_config(data_dir, **changes) for name, changes in MEMBERS.items()}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_the_run_alone_to_the_bit(alone, packed, name):
    ours, theirs = saved(packed[0] / name, 12), saved(alone / name, 12)
    assert ours.keys() == theirs.keys()
    for array in ours:
        np.testing.assert_array_equal(ours[array], theirs[array], err_msg=array)
    assert records(packed[0] / name) == records(alone / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_leaves_what_a_run_alone_leaves(alone, packed, name):
    ours, theirs = RunDirectory(packed[0] / name), RunDirectory(alone / name)
    assert {p.name for p in ours.path.iterdir()} == {p.name for p in theirs.path.iterdir()}
    for file in ("config.json", "evaluation.json"):
        assert ours.read_json(file) == theirs.read_json(file)
    assert ours.read_csv("mixture.csv") == theirs.read_csv("mixture.csv")
    assert ours.done
    provenance = ours.read_json("provenance.json")
    others = [other for other in (*MEMBERS, "absurd") if other != name]
    assert provenance.pop("packed") == {"with": others, "on_a_device": "scan"}
    assert provenance == theirs.read_json("provenance.json")


def test_a_member_that_diverges_is_frozen_and_the_others_go_on(packed):
    root, failed = packed
    assert set(failed) == {"absurd"} and "config.optimizer.peak_lr" in failed["absurd"]
    run = RunDirectory(root / "absurd")
    details = run.read_json("FAILED.json")
    assert not run.done and details["error"] == "FloatingPointError" and details["step"] < 5
    assert all(record["step"] <= details["step"] for record in run.metrics())


def test_members_begin_as_they_do_alone(configs, english, initial, tmp_path):
    made = make_pack(configs, english, tmp_path)
    state_E = made.init_state()
    for place, member in enumerate(made.members):
        assert_bit_equal(made.take(state_E, place), initial[member.name])


def assert_bit_equal(ours: Any, theirs: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(*map(bits, (x, y))), ours, theirs)


def bits(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).view(np.uint32)


@pytest.fixture(scope="module")
def initial(configs, english, tmp_path_factory) -> dict[str, Any]:
    """The members' first states, in NumPy."""
    made = make_pack(configs, english, tmp_path_factory.mktemp("initial"))
    return {member.name: jax.device_get(member.experiment.init_state()) for member in made.members}


def updated(made: pack.Pack, initial: Mapping[str, Any], steps: int) -> tuple[dict[str, Any], str]:
    """Returns the members' states after some updates, and the text of the program."""
    update = made.compile_step(made.abstract_state())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, made.first.abstract_state())
    # A twin begins as its sibling.
    of = lambda member: initial.get(member.name, initial["cosine"])
    state_E = made.stack(lambda member: jax.device_put(of(member), shardings))
    map_EGU = made.map_EGU()
    alive_E = np.arange(made.size) < len(made.members)
    for step in range(steps):
        state_E, _ = update(state_E, made.place(step, alive_E), map_EGU)
    states = {
        member.name: jax.device_get(made.take(state_E, place))
        for place, member in enumerate(made.members)
    }
    return states, update.as_text()


def assert_near(states: Mapping[str, Any], alone: pathlib.Path) -> None:
    """Compares states after four updates with those of the runs alone."""
    for name, state in states.items():
        theirs = saved(alone / name, 4)
        for where, leaf in jax.tree_util.tree_leaves_with_path(state.params):
            # fp32 sums in another order, which Adam carries on: 4 updates of up to 3e-3 each,
            # and a thousandth of that where a gradient is hardly more than rounding.
            np.testing.assert_allclose(
                leaf, theirs["['params']" + jax.tree_util.keystr(where)], rtol=0, atol=1.2e-5
            )


@pytest.fixture
def quickly(monkeypatch) -> None:
    """Compiles steps at a lower level, where no bits are compared."""
    options = {"cpu": {"xla_backend_optimization_level": "0"}}
    monkeypatch.setattr(tuning, "COMPILER_OPTIONS", options)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_members_mapped_at_once_are_the_runs_alone_up_to_rounding(
    configs, english, alone, initial, tmp_path
):
    made = make_pack(configs, english, tmp_path)
    made = pack.Pack(made.members, made.mesh, "vmap")
    assert_near(updated(made, initial, 4)[0], alone)


@pytest.mark.slow
def test_dials_of_languages_and_dropout_are_those_of_the_run_alone(data_dir, english, tmp_path):
    common = {"optimizer__moments": "per_language", "steps": 4, "checkpoint__every": 0}
    common |= {"model__documents": "apart", "model__position_tables": "per_language"}
    common |= {"model__dropout": 0.2}
    weights = {"one": {"en2": 3.0}, "other": {"en1": 2.0, "en2": 0.5}}
    configs = {
        name: make_config(data_dir, **common, mixture__loss_weights=each, seed=seed)
        for seed, (name, each) in enumerate(weights.items())
    }
    assert train_pack(make_pack(configs, english, tmp_path / "packed")) == {}
    for name, config in configs.items():
        train_alone(config, english, tmp_path / "alone" / name)
        packed, alone = (saved(tmp_path / place / name, 4) for place in ("packed", "alone"))
        jax.tree.map(np.testing.assert_array_equal, packed, alone)


_COLLECTIVES = re.compile(r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-\w+")


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("devices", [2, 8])  # two members on each, or one and some with none
def test_members_on_devices_of_their_own_do_not_communicate(
    configs, english, alone, initial, tmp_path, devices
):
    configs = with_mesh(configs, member=-1, data=1)
    made = make_pack(configs | {"twin": configs["cosine"]}, english, tmp_path, devices)
    states, text = updated(made, initial, 4)
    assert not _COLLECTIVES.findall(text)
    assert_near({name: states[name] for name in MEMBERS}, alone)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_members_beside_other_axes_communicate_within_themselves_only(
    configs, english, alone, initial, tmp_path
):
    configs = with_mesh(configs, member=2, data=2, fsdp=2)
    made = make_pack(configs, english, tmp_path, 8)
    states, text = updated(made, initial, 4)
    found = re.findall(r"replica_groups=(\{\{.*?\}\}|\[[^\s]*)", text)
    assert found
    for groups in found:
        for group in device_groups(groups):
            assert len({device // 4 for device in group}) == 1, groups
    assert_near(states, alone)


def device_groups(text: str) -> list[list[int]]:
    """Returns the groups of an instruction: {{0,1},{2,3}}, or [2,2]<=[4] and its transposes."""
    if text.startswith("{"):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"[\d,]+\d|\d", text)]
    shape, dims, order = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    split = lambda numbers: [int(n) for n in numbers.split(",")]
    devices = np.arange(np.prod(split(dims))).reshape(split(dims))
    return devices.transpose(split(order) if order else None).reshape(split(shape)).tolist()


def with_mesh(configs: Mapping[str, Config], **sizes: int) -> dict[str, Config]:
    mesh = MeshConfig(**sizes)
    return {name: dataclasses.replace(config, mesh=mesh) for name, config in configs.items()}


def test_a_state_goes_into_a_stack_and_out_of_it_bit_by_bit(configs, english, tmp_path):
    configs = with_mesh(configs, member=2, data=2)
    made = make_pack(configs, english, tmp_path, 4)
    rng = np.random.default_rng(0)

    def drawn(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.standard_normal(leaf.shape).astype(leaf.dtype)
        if values.dtype == np.float32 and values.ndim:
            values[..., 0], values[..., 1] = -0.0, np.nan
        return jax.device_put(values, leaf.sharding)

    states = [jax.tree.map(drawn, made.first.abstract_state()) for _ in made.members]
    left = iter(states)
    state_E = made.stack(lambda member: next(left))
    for place, state in enumerate(states):
        taken = made.take(state_E, place)
        assert_bit_equal(taken, state)
        assert jax.tree.all(
            jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), taken, state)
        )


def test_members_that_another_process_trains_meanwhile_are_refused(configs, english, tmp_path):
    made = make_pack(configs, english, tmp_path)
    assert made.find_start() == 0
    (tmp_path / "decaying" / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(ValueError, match="cosine 0, decaying 4. Start this command again"):
        made.find_start()


def test_a_process_reads_the_rows_that_its_devices_hold(configs, english, tmp_path, monkeypatch):
    configs = with_mesh(configs, member=2, data=2)
    whole, part = (make_pack(configs, english, tmp_path, 4) for _ in range(2))
    mine = set(part.mesh.devices[1, 1].flat)  # of the second member, the second half of its rows

    def restrict(self: NamedSharding, shape: tuple[int, ...]) -> dict[jax.Device, Any]:
        return {d: index for d, index in self.devices_indices_map(shape).items() if d in mine}

    with monkeypatch.context() as patch:
        patch.setattr(NamedSharding, "addressable_devices_indices_map", restrict)
        assert [rows.tolist() for rows in part._rows_E] == [[], [4, 5, 6, 7]]
    batches = [made.place(3, np.ones(2, bool)).batch for made in (whole, part)]
    theirs_EBW, ours_EBW = (np.asarray(batch.ids_BW) for batch in batches)
    assert (ours_EBW[1, 4:] == theirs_EBW[1, 4:]).all() and theirs_EBW[1, 4:].any()
    assert not ours_EBW[0].any() and not ours_EBW[1, :4].any() and theirs_EBW[0].any()


@pytest.fixture
def study(configs, tmp_path) -> pathlib.Path:
    configs = configs | {"twin": configs["cosine"]}
    runs = {name: {"config": config_lib.to_dict(config)} for name, config in configs.items()}
    (tmp_path / "study.json").write_text(json.dumps({"runs": runs}))
    return tmp_path


@pytest.fixture
def command(study, monkeypatch) -> Callable[..., int]:
    """What `main --study=... --members=...` does, in this process and on one device."""

    def call(*members: str, dry_run: bool = False) -> int:
        flags = {"study": str(study), "members": members, "dry_run": dry_run}
        flags |= {"data_dir": None, "mesh": [], "devices": 0, "accumulate": 0, "remat": None}
        flags |= {"config": None, "workdir": None, "extend": False}
        flags |= {"export": None, "format": None, "language": None}
        monkeypatch.setattr(main, "FLAGS", types.SimpleNamespace(**flags))
        return main.main()

    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    monkeypatch.setattr(hardware, "use_compilation_cache", lambda path: None)
    return call


def test_members_take_the_number_of_micro_batches_that_the_command_gives(
    study, configs, monkeypatch
):
    given = {"study": str(study), "members": ["cosine"], "mesh": [], "data_dir": None}
    given |= dict.fromkeys(("config", "workdir", "extend", "export"))
    for flags, expected in (
        ({"accumulate": 2, "remat": "full"}, (2, "full")),
        ({"accumulate": 0, "remat": None}, (1, configs["cosine"].model.remat)),
    ):
        monkeypatch.setattr(main, "FLAGS", types.SimpleNamespace(**given, **flags))
        (requested,) = main._read_study_runs()
        config = requested.config
        assert (config.optimizer.accumulate, config.model.remat) == expected
        assert config_lib.build_run_identity(config) == config_lib.build_run_identity(
            configs["cosine"]
        )


def steps_of(path: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdecimal())


def test_a_dry_run_says_what_a_pack_would_take_and_writes_nothing(command, study, capsys):
    assert command("cosine", "decaying", "twin", dry_run=True) == cli.DONE
    said = capsys.readouterr().out
    for words in ("3 runs as one program", "cosine: en1 0.75, en2 0.25", "per device", "s a step"):
        assert words in said
    assert not (study / "runs").exists()


@pytest.mark.slow  # test_study_end_to_end.py kills a pack of real processes
def test_a_study_s_runs_that_were_stopped_go_on_in_groups_and_alone_to_the_same_bits(
    command, study, english, alone, configs, monkeypatch, capsys
):
    interrupts, place = distributed.SharedInterrupts(), pack.Pack.place
    monkeypatch.setattr(distributed, "SharedInterrupts", lambda: interrupts)

    def stopping(self: pack.Pack, step: int, alive_E: np.ndarray) -> Any:
        interrupts.requested = step == 5
        return place(self, step, alive_E)

    with monkeypatch.context() as patch:
        patch.setattr(pack.Pack, "place", stopping)
        assert command("cosine", "decaying", "twin") == cli.PREEMPTED
    interrupts.requested = False
    runs = study / "runs"
    assert [steps_of(runs / name) for name in ("cosine", "decaying", "twin")] == [[4, 6]] * 3
    shutil.copytree(runs / "decaying", runs / "itself")
    train_alone(configs["decaying"], english, runs / "itself")
    # As if it had been killed while the members saved a step.
    shutil.rmtree(runs / "cosine" / "checkpoints" / "6")
    shutil.rmtree(runs / "twin" / "checkpoints")
    capsys.readouterr()
    assert command("cosine", "decaying", "twin") == cli.DONE
    assert re.findall(r"Going on from step (\d+)", capsys.readouterr().out) == ["4", "6"]
    for name, whole in (
        ("cosine", "cosine"),
        ("decaying", "decaying"),
        ("itself", "decaying"),
        ("twin", "cosine"),
    ):
        ours, theirs = saved(runs / name, 12), saved(alone / whole, 12)
        for array in ours:
            np.testing.assert_array_equal(ours[array], theirs[array], err_msg=array)
        evaluations = [
            [record for record in records(directory) if "eval/loss/en1" in record]
            for directory in (runs / name, alone / whole)
        ]
        assert evaluations[0] == evaluations[1]
        assert RunDirectory(runs / name).done
    assert (runs / "cosine" / "report.html").exists()
    assert command("cosine", "decaying", "twin") == cli.DONE
    assert capsys.readouterr().out.count("is done") == 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model__D": 24}, "config.model.D is 16 in one and 24 in other"),
        ({"steps": 16}, "config.steps is 12 in one and 16 in other"),
        ({"batch_size": 16}, "config.batch_size is 8 in one and 16 in other"),
        ({"optimizer__clip_norm": 1.0}, "config.optimizer.clip_norm"),
        ({"evaluation__every": 6}, "config.evaluation.every"),
        ({"mixture__loss_weights": {"en2": 3.0}}, "config.mixture.loss_weights is 'none' in one"),
        (
            {
                "languages__en3": config_lib.declared(LanguageConfig, clone_of="en1"),
                "mixture__ratio": {"en1": 1, "en2": 1, "en3": 1},
            },
            "config.languages is ['en1', 'en2'] in one and ['en1', 'en2', 'en3'] in other",
        ),
    ],
)
def test_runs_of_other_shapes_are_refused_by_the_field(data_dir, english, tmp_path, changes, field):
    configs = {"one": make_config(data_dir), "other": make_config(data_dir, **changes)}
    with pytest.raises(ValueError, match=re.escape(field)) as error:
        make_pack(configs, english, tmp_path)
    assert "one and other cannot train in one program" in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 5, "log_every": 2, "mirrors": ("tensorboard",), "init_from": "runs/a"},
        {"mixture__ratio": {"en1": 1, "en2": 1}, "optimizer__warmup": 1.0},
        {"languages__en2__anchors": 0.5, "languages__en2__words": "reversed"},
    ],
)
def test_runs_that_a_study_packs_can_be_stacked(data_dir, english, tmp_path, changes):
    configs = {"one": make_config(data_dir), "other": make_config(data_dir, **changes)}
    assert len({pack_shape.compute_pack_key(config) for config in configs.values()}) == 1
    assert len(make_pack(configs, english, tmp_path).members) == 2


@pytest.mark.parametrize(
    "changes",
    [
        *({"model__D": 24}, {"evaluation__every": 6}, {"optimizer__clip_norm": 1.0}),
        # What only their text could say.
        *({"sources__en__tokenizer__vocab_size": 400}, {"vocabulary__separator": "own"}),
        {"mixture__loss_weights": {"en2": 3.0}},
    ],
)
def test_runs_that_may_not_be_stacked_are_not_packed_by_a_study(data_dir, changes):
    configs = make_config(data_dir), make_config(data_dir, **changes)
    assert len({pack_shape.compute_pack_key(config) for config in configs}) == 2


def test_runs_whose_anchors_widen_the_vocabulary_are_not_packed_by_a_study(
    data_dir, english, tmp_path
):
    own = {"vocabulary__separator": "own", "vocabulary__anchor_specials": "always"}
    configs = {
        f"anchors{share}": make_config(data_dir, **own, languages__en2__anchors=share)
        for share in (0.0, 0.5)
    }
    with pytest.raises(ValueError, match=r"config\.vocabulary\.size"):
        make_pack(configs, english, tmp_path)
    assert len({pack_shape.compute_pack_key(config) for config in configs.values()}) == 2


def test_runs_that_end_with_their_text_are_packed_if_they_read_the_same(data_dir):
    stop = {"mixture__on_exhaustion": "stop"}
    more = {"mixture__ratio": {"en1": 1, "en2": 1}}
    first, same, other = (make_config(data_dir, **stop, **c) for c in ({}, {"log_every": 2}, more))
    keys = [pack_shape.compute_pack_key(config) for config in (first, same, other)]
    assert keys[0] == keys[1] != keys[2]


def test_a_run_that_weights_and_biases_follows_is_trained_alone(data_dir, english, tmp_path):
    config = make_config(data_dir, mirrors=("wandb",))
    assert make_pack({"": config}, english, tmp_path).way == ""
    with pytest.raises(ValueError, match=r"one: config\.mirrors has 'wandb'"):
        make_pack({"one": config, "other": config}, english, tmp_path)
    runs = {name: grid.RunSpec(config, cell="r") for name in ("r_s0", "r_s1")}
    study = grid.StudyConfig("Two.", unit_tokens=1, runs=runs)
    assert study_runner.group_into_packs(study, list(runs), 8) == [("r_s0",), ("r_s1",)]


def test_a_run_alone_gives_the_devices_of_members_to_its_data():
    for sizes, data in (({"member": -1, "data": 1}, 8), ({"member": 2}, 8), ({"member": 4}, 8)):
        shape = sharding.make_mesh(MeshConfig(**sizes), jax.devices()).shape
        assert (shape["member"], shape["data"]) == (1, data)
    mesh = sharding.make_mesh(MeshConfig(member=2, fsdp=2), jax.devices(), packed=True)
    assert dict(mesh.shape) == {"member": 2, "data": 2, "fsdp": 2, "tensor": 1}
    one = sharding.make_one_member_mesh(mesh)
    assert dict(one.shape) == {"member": 1, "data": 4, "fsdp": 2, "tensor": 1}


# The command.


def run_main(*args: str) -> subprocess.CompletedProcess:
    env = os.environ | {"XLA_FLAGS": ONE_DEVICE, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "imbalance_jax.main", *args]
    return subprocess.run(command, capture_output=True, text=True, env=env)


WRONG = {
    "no members": ([], "needs --members"),
    "an unknown one": (["--members=cosin,decaying"], "has 'cosin', which is no run of"),
    "a directory beside": (["--members=cosine,decaying", "--workdir=x"], "--workdir is for a run"),
    "a config beside": (["--members=cosine", "--config=configs/90_10.py"], "--config is for a run"),
    "another run's directory": (["--members=cosine,decaying"], "belongs to a run with config.seed"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_in_a_study_s_runs_is_one_message(study, configs, mistake):
    args, expected = WRONG[mistake]
    if mistake == "another run's directory":
        RunDirectory(study / "runs" / "decaying").claim(configs["cosine"])
    done = run_main(f"--study={study}", *args)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_members_without_a_study_are_refused():
    done = run_main("--members=a,b")
    assert done.returncode == 2 and "--study=DIR" in done.stderr
