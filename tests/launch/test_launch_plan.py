"""A study and a profile make the same jobs every time, or are refused."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_plans import PROFILES, made, study, workdir
from made_studies import mixture

from imbalance_jax.study import grid
from launch import plan, profile

BY_NAME = {path.stem: profile.read_profile(str(path)) for path in PROFILES}


def make(name: str, runs=None, mine: grid.StudyConfig | None = None, **options) -> plan.Plan:
    where = BY_NAME[name]
    options.setdefault("workdir", workdir(where.engine))
    return plan.make_plan(mine or study(), where, runs=runs, **options)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80), st.lists(st.text(max_size=20), max_size=3))
def test_the_name_of_a_job_is_a_dns_label_of_39_characters_at_most(name, hashes):
    label = plan.make_job_name(name, hashes)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", label) and len(label) <= 39
    assert label == plan.make_job_name(name, hashes)
    assert label != plan.make_job_name(name, [*hashes, "more"])


def test_the_host_names_that_jobset_makes_of_a_name_fit():
    assert len(plan.make_job_name("x" * 99, ["h"]) + "-run-1023-1023") <= 63


@pytest.mark.parametrize("name", BY_NAME)
def test_the_same_study_makes_the_same_plan(name):
    first, second = (json.dumps(make(name).to_dict()) for _ in range(2))
    assert first == second


def test_more_runs_leave_the_names_of_the_others_as_they_are():
    few = {job.members: job.name for job in make("slurm-gpu").jobs}
    many = {job.members: job.name for job in make("slurm-gpu", mine=study(seeds=3)).jobs}
    assert few.items() < many.items()


def test_a_job_keeps_its_index_whichever_runs_are_asked_for():
    everything = {job.name: job.index for job in make("slurm-gpu", mine=study(seeds=3)).jobs}
    (job,) = make("slurm-gpu", runs=["r90_10_s2"], mine=study(seeds=3)).jobs
    assert everything[job.name] == job.index == 5


def test_a_command_says_what_to_train_and_on_what():
    (job,) = make("gke-h100", runs=["r90_10_s0"]).jobs
    assert " ".join(job.command) == (
        "python -m imbalance_jax.main --study=gs://my-bucket/studies/ratio --members=r90_10_s0 "
        "--devices=16 --mesh=fsdp=8 --data_dir=gs://my-bucket/data"
    )


def test_a_run_that_does_not_fit_is_refused_by_its_name():
    small = grid.Grid("A small batch.", unit=mixture("50:50"))
    small.add("r", mixture("50:50"), seeds=[0])
    with pytest.raises(ValueError, match=r"Run r_s0 on v6e 4x4: config\.batch_size=20 .* over 16"):
        make("gke-v6e", mine=grid.resolve_study(small.to_config()))


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"data": 3}, r"do not fit 16 devices"),
        ({"fsdp": 16, "tensor": 4}, r"do not fit 16 devices"),
        ({"tensor": 8}, r"config\.model\.H=2 cannot be cut over config\.mesh\.tensor=8"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(mesh, message):
    where = dataclasses.replace(BY_NAME["gke-v6e"], mesh=mesh)
    with pytest.raises(ValueError, match=message):
        plan.make_plan(study(), where, workdir="gs://b/ratio")


def test_more_processes_than_rows_are_refused():
    values = {
        "engine": "slurm",
        "data_dir": "/d",
        "slurm": {"tasks_per_node": 128},
    }
    with pytest.raises(ValueError, match=r"batch_size=64 cannot be split over 128 devices"):
        plan.make_plan(study(), profile.parse_profile("x", values), workdir="/shared/ratio")


def test_what_lies_where_the_jobs_cannot_reach_it_is_refused():
    with pytest.raises(ValueError, match=r"Set --workdir=gs://"):
        make("gke-v6e", workdir="/home/me/ratio")
    with pytest.raises(ValueError, match=r"a directory that all nodes share"):
        make("slurm-gpu", workdir="gs://b/ratio")


def test_text_that_is_named_by_where_a_job_runs_is_refused():
    where = dataclasses.replace(BY_NAME["gke-v6e"], data_dir="")
    with pytest.raises(ValueError, match=r"Set data_dir in the profile .* gs://BUCKET/data"):
        plan.make_plan(study(), where, workdir="gs://b/ratio")
    where = dataclasses.replace(BY_NAME["local"], data_dir="")
    assert plan.make_plan(study(), where, workdir="/home/me/ratio").jobs


def test_a_path_without_a_bucket_is_refused_by_its_field():
    where = dataclasses.replace(BY_NAME["gke-v6e"], data_dir="gs:///data")
    with pytest.raises(ValueError, match=r"gke-v6e\.toml: data_dir=gs:///data names no bucket"):
        plan.make_plan(study(), where, workdir="gs://b/ratio")


def test_a_large_study_is_sent_elsewhere_than_to_queued_resources():
    many = study(seeds=5)
    with pytest.raises(ValueError, match=r"10 jobs are too many .* Use the engine gke or sky"):
        make("tpuvm-v5e", mine=many)
    assert len(make("tpuvm-v5e", mine=many, runs=list(many.runs)[:8]).jobs) == 8
    assert len(make("gke-v6e", mine=many).jobs) == 10


def test_members_of_a_pack_are_runs_of_one_shape():
    mine = study(seeds=3)
    jobs = make("slurm-gpu", mine=mine, pack="member", pack_size=4).jobs
    assert [len(job.members) for job in jobs] == [4, 2]
    assert f"--members={','.join(jobs[0].members)}" in jobs[0].command


@pytest.mark.parametrize("pack", ["host", "member"])
def test_packs_are_made_of_the_runs_that_were_chosen(pack):
    where = profile.parse_profile(
        "x", {"engine": "slurm", "data_dir": "/d", "slurm": {"gpus_per_node": 4}}
    )
    mine = study(seeds=4)
    chosen = [name for name in mine.runs if name.startswith("r90_10")]
    options = {"workdir": "/s/ratio", "pack": pack, "pack_size": 2}
    jobs = plan.make_plan(mine, where, runs=chosen, **options).jobs
    assert [name for job in jobs for name in job.members] == chosen
    assert [len(job.members) for job in jobs] == [2, 2]
    # The index of a job is that of its first run, so that no two jobs have the same.
    alone = {job.members: job.index for job in plan.make_plan(mine, where, workdir="/s/ratio").jobs}
    assert [job.index for job in jobs] == [alone[job.members[:1]] for job in jobs]
    everything = plan.make_plan(mine, where, **options).jobs
    assert len({job.index for job in everything}) == len(everything) == 4


def test_a_host_pack_gives_each_run_a_part_of_the_machine():
    where = profile.parse_profile(
        "x", {"engine": "slurm", "data_dir": "/d", "slurm": {"gpus_per_node": 8}}
    )
    mine = plan.make_plan(study(seeds=3), where, workdir="/s/ratio", pack="host", pack_size=4)
    assert [len(job.members) for job in mine.jobs] == [4, 2]
    assert mine.jobs[0].command[:3] == ("python", "-m", "launch.pack")
    assert "--devices=2" in mine.jobs[0].command


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("slurm-gpu", {"pack": "host"}, r"needs --pack_size"),
        ("slurm-gpu", {"pack_size": 2}, r"needs --pack=host or --pack=member"),
        ("slurm-gpu", {"pack": "host", "pack_size": 2}, r"does not divide the 1 devices"),
        ("gke-v6e", {"pack": "host", "pack_size": 2}, r"v6e 4x4 has 4.*--pack=member"),
        ("local", {"pack": "host", "pack_size": 2}, r"starts from one process a machine"),
        ("slurm-gpu", {"env": {"HF_TOKEN": "x"}}, r"HF_TOKEN looks like a secret"),
        ("slurm-gpu", {"env": {"A B": "x"}}, r"'A B' is no name"),
    ],
)
def test_what_the_flags_ask_for_and_cannot_have_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_plan_holds_all_that_plan_json_promises(name):
    mine, _ = made(BY_NAME[name])
    plain = json.loads(json.dumps(mine.to_dict()))
    assert plain["size"]["devices"] == mine.size.devices
    assert set(plain["jobs"][0]) == {"index", "name", "members", "command", "hash"}


def test_neither_jax_nor_flax_is_imported():
    code = "import sys, launch.__main__, launch.pack; print({'jax', 'flax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
