"""What the engines make of a plan: held against golden files, schemas and the real commands."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml
from made_plans import PROFILES, made, study, text

from launch import engines, plan, profile
from launch.engines import JobRequest

GOLDEN = pathlib.Path(__file__).parent / "golden"
JOBSET = json.loads((pathlib.Path(__file__).parent / "jobset_v1alpha2.json").read_text())
BY_NAME = {path.stem: profile.read_profile(str(path)) for path in PROFILES}
GCLOUD = shutil.which("gcloud")


def parsed(rendered: engines.RenderedJobs) -> dict:
    (document,) = [yaml.safe_load(t) for n, t in rendered.files.items() if n.endswith(".yaml")]
    return document


def like(name: str, **tables: dict) -> profile.Profile:
    """Returns a profile of the package with other values in some of its tables."""
    import tomllib

    path = next(path for path in PROFILES if path.stem == name)
    values = tomllib.loads(path.read_text())
    for table, changes in tables.items():
        values[table] = {**values[table], **changes}
    return profile.parse_profile(name, values)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_profile_renders_what_its_golden_file_holds(name, monkeypatch):
    monkeypatch.setattr("sys.executable", "/usr/bin/python3")
    file = GOLDEN / f"{name}.txt"
    said = text(made(BY_NAME[name])[1])
    if "IMB_WRITE_GOLDEN" in os.environ:
        file.write_text(said)
    assert said == file.read_text(), "set IMB_WRITE_GOLDEN=1 if the difference is meant"


JOBSETS = {
    "tpu": like("gke-v6e"),
    "multislice": like("gke-v6e", hardware={"num_slices": 2}, gke={"spot": True}),
    "one chip": like("gke-v6e", hardware={"topology": "1x1"}),
    "gpu": like("gke-h100"),
}


@pytest.mark.parametrize("where", JOBSETS.values(), ids=JOBSETS)
def test_a_jobset_is_what_kubernetes_takes(where):
    jobset = parsed(made(where)[1])
    jsonschema.validate(jobset, JOBSET)
    for replicated in jobset["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
        job["spec"] = replicated["template"]["spec"]
        kubernetes_validate.validate(job, "1.33", strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "failurePolicy", "maxRestart"), 3),
        (("spec", "failurePolicy", "rules", 0, "action"), "FailJobset"),
        (("spec", "replicatedJobs", 0, "replicas"), "2"),
    ],
)
def test_the_schema_of_jobsets_finds_mistakes(path, value):
    jobset = parsed(made(JOBSETS["tpu"])[1])
    *parents, last = path
    here = jobset
    for part in parents:
        here = here[part]
    here[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(jobset, JOBSET)


def test_a_slice_is_a_job_and_a_host_is_a_pod():
    spec = parsed(made(JOBSETS["multislice"])[1])["spec"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (2, 4, 4)
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }


def test_a_jobset_ends_for_good_unless_its_pod_was_preempted_killed_or_left_alone():
    job = parsed(made(JOBSETS["tpu"])[1])["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    assert {75, 134, 137, 139, 143} <= set(rule["onExitCodes"]["values"])
    assert not {0, 1, 2} & set(rule["onExitCodes"]["values"])


def test_gpu_pods_are_told_where_the_first_of_them_is():
    jobset = parsed(made(JOBSETS["gpu"])[1])
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    env = {item["name"]: item.get("value", item) for item in pod["containers"][0]["env"]}
    name = jobset["metadata"]["name"]
    assert env["IMB_COORDINATOR"] == f"{name}-run-0-0.{name}:8476"
    assert env["IMB_NUM_PROCESSES"] == "2"
    assert "job-completion-index" in str(env["IMB_PROCESS_ID"])


def test_what_failed_on_kubernetes_is_deleted_before_it_is_applied_again():
    mine, rendered = made(JOBSETS["tpu"], again=True)
    delete, apply = rendered.commands
    assert delete[3:] == ("delete", "jobset", "--ignore-not-found", mine.jobs[0].name)
    assert apply[3] == "apply"


def slurm(**fields) -> profile.Profile:
    return profile.parse_profile("slurm", {"engine": "slurm", "data_dir": "/d", "slurm": fields})


def sbatch(where: profile.Profile, runs=None, **request) -> tuple[str, ...]:
    mine = plan.make_plan(study(seeds=5), where, workdir="/s/ratio", runs=runs)
    rendered = engines.load_engine("slurm").render_jobs(
        mine, where, JobRequest(mine.jobs, "OUT", **request)
    )
    (command,) = rendered.commands
    return command


def test_an_array_has_an_element_for_each_job_that_is_asked_for():
    assert "--array=0-9%3" in sbatch(slurm(), max_parallel=3)
    runs = ["r50_50_s0", "r90_10_s0", "r90_10_s3"]
    assert "--array=0-1,7" in sbatch(slurm(), runs)


def test_sbatch_is_told_to_signal_the_steps_and_not_the_script():
    command = sbatch(slurm(tasks_per_node=2, options=("--exclude=n7",)))
    wanted = {"--signal=TERM@120", "--requeue", "--open-mode=append", "--ntasks-per-node=2"}
    assert wanted | {"--exclude=n7", "--dependency=singleton"} < set(command)
    assert not any(arg.startswith(("--gpus", "--mem=", "--partition")) for arg in command)


def test_sbatch_gets_the_gpus_the_container_and_the_secrets_file():
    fields = {"gpus_per_node": 8, "gpu_type": "h100", "container": ("apptainer", "exec", "i.sif")}
    command = sbatch(slurm(**fields), env_file="/home/me/secrets")
    assert {"--gpus-per-node=h100:8", "--env_file=/home/me/secrets"} < set(command)
    behind = command[command.index("--") + 1 :]
    assert behind[:4] == ("apptainer", "exec", "i.sif", "python")
    assert "--devices=8" in behind and not any(a.startswith("--members=") for a in behind)


SKY_FIELDS = {
    "resources": {"infra", "accelerators", "accelerator_args", "use_spot", "job_recovery"},
    "job_recovery": {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"},
}
SKY = {
    "tpu": like("sky-v6e-spot"),
    "gpu": like(
        "sky-v6e-spot",
        hardware={"family": "h100", "topology": "2x8"},
        sky={"secrets": ["WANDB_API_KEY"]},
    ),
    "kubernetes": like("sky-v6e-spot", sky={"infra": "k8s/mine"}),
}


@pytest.mark.parametrize("where", SKY.values(), ids=SKY)
def test_a_task_of_skypilot_has_fields_and_names_that_it_knows(where, tmp_path):
    task = parsed(made(where)[1])
    resources = task["resources"]
    # What SkyPilot would take without a word, were it wrong.
    assert set(resources) <= SKY_FIELDS["resources"]
    assert set(resources["job_recovery"]) == SKY_FIELDS["job_recovery"]
    assert re.fullmatch(r"tpu-v6e-8|H100:8", resources["accelerators"])
    sky = pytest.importorskip("sky", reason="pip install skypilot, in an environment of its own")
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump(task))
    assert sky.Task.from_yaml(str(file)).name == task["name"]


def test_several_machines_of_gpus_are_nodes_of_skypilot_and_a_slice_is_one():
    assert parsed(made(SKY["gpu"])[1])["num_nodes"] == 2
    assert parsed(made(SKY["tpu"])[1])["num_nodes"] == 1


SECRET = {"secrets": {"WANDB_API_KEY": "wandb"}}
QUEUED = {
    "one slice": like("tpuvm-v5e"),
    "two slices": like(
        "tpuvm-v5e", hardware={"num_slices": 2}, tpuvm={"spot": True, "network": "mine", **SECRET}
    ),
}


@pytest.mark.skipif(
    GCLOUD is None, reason="install Google Cloud's command line, gcloud, and put it on PATH"
)
@pytest.mark.parametrize(
    "where",
    [pytest.param(QUEUED["one slice"], marks=pytest.mark.slow), QUEUED["two slices"]],
    ids=QUEUED,
)
def test_the_real_gcloud_takes_the_command_and_then_asks_for_an_account(where, tmp_path):
    mine = plan.make_plan(study(), where, workdir="gs://b/studies/ratio", runs=["r90_10_s0"])
    request = JobRequest(mine.jobs, out=str(tmp_path))
    rendered = engines.load_engine("tpuvm").render_jobs(mine, where, request)
    for name, content in rendered.files.items():
        (tmp_path / name).write_text(content)
    done = subprocess.run(
        rendered.commands[0],
        capture_output=True,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "CLOUDSDK_CONFIG": str(tmp_path / "config"),
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
            "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        },
    )
    assert done.returncode == 1, done.stderr  # 2 is a wrong command
    assert "active account" in done.stderr


def test_two_slices_are_named_by_a_prefix_and_one_by_its_own_name():
    one, two = (made(where)[1].commands[0] for where in QUEUED.values())
    name = made(QUEUED["one slice"])[0].jobs[0].name
    assert f"--node-id={name}" in one and not any(arg.startswith("--node-count") for arg in one)
    assert {"--node-count=2", f"--node-prefix={name}", "--spot"} < set(two)


@pytest.mark.parametrize("name", ["gke-v6e", "sky-v6e-spot", "tpuvm-v5e", "local"])
def test_an_engine_that_counts_jobs_itself_says_so(name):
    mine, _ = made(BY_NAME[name])
    for request, flag in (
        (JobRequest(mine.jobs, max_parallel=2), "max_parallel"),
        (JobRequest(mine.jobs, env_file="/x"), "env_file"),
    ):
        with pytest.raises(ValueError, match=flag):
            engines.load_engine(mine.engine).render_jobs(mine, BY_NAME[name], request)


@pytest.mark.parametrize("name", BY_NAME)
def test_no_secret_is_in_anything_that_is_written_or_run(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    where = {
        "gke-v6e": like("gke-v6e", gke={"secrets": ["wandb"]}),
        "sky-v6e-spot": like("sky-v6e-spot", sky={"secrets": ["WANDB_API_KEY"]}),
        "tpuvm-v5e": QUEUED["two slices"],
    }.get(name, BY_NAME[name])
    secrets = tmp_path / "secrets"
    secrets.write_text("WANDB_API_KEY=hunter2\n")
    mine, rendered = made(where, env_file=str(secrets) if where.engine == "slurm" else "")
    assert "hunter2" not in json.dumps([mine.to_dict(), rendered.files, rendered.commands])


@pytest.mark.parametrize("name", BY_NAME)
def test_every_engine_says_how_to_look_at_a_job(name):
    mine, _ = made(BY_NAME[name])
    command = " ".join(
        engines.load_engine(mine.engine).build_logs_command(mine, BY_NAME[name], mine.jobs[0])
    )
    assert mine.jobs[0].name in command or mine.name in command or "r90_10_s0" in command
