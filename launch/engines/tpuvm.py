"""Queued resources of Cloud TPU: a slice for each job, which a startup script trains on.

The script is static. It runs at every boot of every host, so that it starts and resumes alike;
what it runs, and where, it reads from the metadata of its machine.
"""

import re
import shlex
from collections.abc import Iterable

from launch import engines, hardware, scripts
from launch.engines import JobRequest, RenderedJobs, refuse_env_file, refuse_parallel
from launch.plan import Job, Plan
from launch.profile import Profile, TpuvmSettings


def render_jobs(plan: Plan, profile: Profile, request: JobRequest) -> RenderedJobs:
    tpuvm: TpuvmSettings = profile.settings
    refuse_parallel(request, "queued resources wait for capacity, not for each other.")
    refuse_env_file(request, "Put secrets into Secret Manager and name them in tpuvm.secrets.")
    files = {"tpuvm_startup.sh": scripts.read_script("tpuvm_startup.sh")}
    for job in request.jobs:
        files[f"{job.name}.command"] = _join_lines(job.command)
        files[f"{job.name}.env"] = _join_lines(
            f"{name}={value}" for name, value in plan.env.items()
        )
    commands = tuple(_build_create_command(plan, tpuvm, job, request.out) for job in request.jobs)
    notes = tuple(
        engines.format_note("when done", _build_delete_command(tpuvm, job)) for job in request.jobs
    )
    return RenderedJobs(files, commands, notes)


def _build_delete_command(tpuvm: TpuvmSettings, job: Job) -> tuple[str, ...]:
    return (
        *("gcloud", "compute", "tpus", "queued-resources", "delete", job.name),
        *(f"--project={tpuvm.project}", f"--zone={tpuvm.zone}", "--force", "--async", "--quiet"),
    )


def _build_create_command(plan: Plan, tpuvm: TpuvmSettings, job: Job, out: str) -> tuple[str, ...]:
    for character in "*?[]#":
        engines.refuse_character("--workdir", plan.workdir, character, "gcloud storage")
    size = plan.size
    version = tpuvm.runtime_version or hardware.TPUS[size.family].runtime_version
    nodes = (
        (f"--node-id={job.name}",)
        if size.num_slices == 1
        else (f"--node-count={size.num_slices}", f"--node-prefix={job.name}")
    )
    metadata = {
        "imb-code": tpuvm.code,
        "imb-logs": f"{plan.workdir}/logs/{job.name}",
        "imb-max-restarts": str(tpuvm.max_restarts),
    }
    from_file = {
        "startup-script": f"{out}/tpuvm_startup.sh",
        "imb-command": f"{out}/{job.name}.command",
        "imb-env": f"{out}/{job.name}.env",
    }
    if tpuvm.secrets:
        # Names alone: the script asks Secret Manager for the values.
        metadata["imb-secrets"] = " ".join(f"{env}={name}" for env, name in tpuvm.secrets.items())
    return (
        *("gcloud", "compute", "tpus", "queued-resources", "create", job.name),
        *(f"--project={tpuvm.project}", f"--zone={tpuvm.zone}"),
        *(f"--accelerator-type={size.accelerator_type}", f"--runtime-version={version}"),
        *nodes,
        *(["--spot"] if tpuvm.spot else ()),
        f"--valid-until-duration={tpuvm.valid_for}",
        *([f"--network={tpuvm.network}"] if tpuvm.network else ()),
        f"--service-account={tpuvm.service_account}",
        "--scopes=https://www.googleapis.com/auth/cloud-platform",
        f"--metadata={_join_pairs(metadata)}",
        f"--metadata-from-file={_join_pairs(from_file)}",
        *("--async", "--quiet"),
    )


def _join_pairs(values: dict[str, str]) -> str:
    """Returns a dictionary as gcloud reads it, where no value may have a comma."""
    for name, value in values.items():
        engines.refuse_character(name, value, ",", "gcloud")
    return ",".join(f"{name}={value}" for name, value in values.items())


def _join_lines(values: Iterable[str]) -> str:
    """Returns a file of a value a line, as the script reads them."""
    lines = list(values)
    for line in lines:
        if re.search(r"[\r\n]", line):
            raise ValueError(f"{line!r} has a line break, and is given to the machine as a line.")
    return "".join(f"{line}\n" for line in lines)


def build_logs_command(plan: Plan, profile: Profile, job: Job) -> tuple[str, ...]:
    return ("gcloud", "storage", "cat", f"{plan.workdir}/logs/{job.name}/*.log")


def name_log(plan: Plan, job: Job) -> str:
    return shlex.quote(f"{plan.workdir}/logs/{job.name}/") + "*.log"
