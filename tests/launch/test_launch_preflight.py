"""What a plan's steps take on its TPUs; here the CPU's devices stand in for theirs."""

import dataclasses

import jax
import pytest
from made_plans import PROFILES, study

from imbalance_jax import cli
from imbalance_jax.bench import topology
from launch import plan, preflight, profile

BY_NAME = {path.stem: profile.read_profile(str(path)) for path in PROFILES}
V6E = BY_NAME["gke-v6e"]


def make(where: profile.Profile, **options: object) -> plan.Plan:
    return plan.make_plan(study(seeds=2), where, workdir="gs://b/ratio", **options)


def test_runs_that_compile_the_same_step_are_compiled_once():
    where = dataclasses.replace(V6E, mesh={"fsdp": 2})
    (shape,) = preflight.list_step_shapes(study(seeds=2), make(where), where)
    assert sorted(shape.runs) == sorted(study(seeds=2).runs)
    assert (shape.members, shape.config.mesh.fsdp) == (1, 2)
    packed = make(where, pack="member", pack_size=3)
    found = preflight.list_step_shapes(study(seeds=2), packed, where)
    assert [(shape.members, len(shape.runs)) for shape in found] == [(3, 3), (1, 1)]


def test_a_profile_without_tpus_is_sent_to_a_dry_run():
    where = BY_NAME["gke-h100"]
    with pytest.raises(ValueError, match=r"only TPUs .* --dry_run"):
        preflight.run_preflight(study(), make(where), where)


@pytest.mark.parametrize(
    ("pack", "hbm", "code"), [("none", 32 << 30, cli.DONE), ("member", 1000, cli.REFUSED)]
)
def test_each_shape_is_compiled_and_held_against_a_chips_memory(
    monkeypatch, capsys, pack, hbm, code
):
    asked = []

    def devices(name: str, num_slices: int) -> list[jax.Device]:
        asked.append((name, num_slices))
        return jax.devices()

    monkeypatch.setattr(topology, "get_topology_devices", devices)
    monkeypatch.setattr(topology, "CHIPS", {"v6e": topology.Chip(1e12, hbm, 1e12)})
    options = {"pack": pack, "pack_size": 2} if pack == "member" else {}
    mine = make(V6E, runs=["r50_50_s0", "r90_10_s0"][: 2 if options else 1], **options)
    assert preflight.run_preflight(study(seeds=2), mine, V6E) == code
    said = capsys.readouterr().out
    assert asked == [("v6e:4x4", 1)]
    assert ("in packs of 2" in said) == (pack == "member")
    assert ("1 of these do not fit v6e 4x4" in said) == (code == cli.REFUSED)
