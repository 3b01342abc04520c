"""SkyPilot: a managed job for each job, which finds machines, recovers and starts again."""

import shlex
from typing import Any

from launch import hardware
from launch.engines import JobRequest, RenderedJobs, dump_yaml, refuse_env_file, refuse_parallel
from launch.plan import RESTART, Job, Plan
from launch.profile import Profile, SkySettings


def render_jobs(plan: Plan, profile: Profile, request: JobRequest) -> RenderedJobs:
    sky: SkySettings = profile.settings
    refuse_parallel(request, "SkyPilot's jobs controller says how many run.")
    refuse_env_file(request, "Name secrets in sky.secrets.")
    files = {
        f"{job.name}.yaml": dump_yaml(build_sky_task(plan, profile, job)) for job in request.jobs
    }
    secrets = [arg for name in sky.secrets for arg in ("--secret", name)]
    commands = tuple(
        ("sky", "jobs", "launch", "--name", job.name, "--yes", "--async", *secrets)
        + (f"{request.out}/{job.name}.yaml",)
        for job in request.jobs
    )
    return RenderedJobs(files, commands)


def build_sky_task(plan: Plan, profile: Profile, job: Job) -> dict[str, Any]:
    """Returns SkyPilot's task of a job."""
    sky: SkySettings = profile.settings
    size = plan.size
    resources: dict[str, Any] = {"infra": sky.infra, "accelerators": size.sky}
    if size.is_tpu and not sky.infra.startswith(("k8s", "kubernetes")):
        version = sky.runtime_version or hardware.TPUS[size.family].runtime_version
        resources["accelerator_args"] = {"runtime_version": version, "tpu_vm": True}
    resources["use_spot"] = sky.spot
    resources["job_recovery"] = {
        "strategy": sky.strategy,
        "max_restarts_on_errors": sky.max_restarts,
        "recover_on_exit_codes": list(RESTART),
    }
    return {
        "name": job.name,
        # A slice of several hosts is one node of SkyPilot.
        "num_nodes": 1 if size.is_tpu else size.hosts,
        **({"workdir": sky.code} if sky.code else {}),
        "resources": resources,
        "envs": dict(plan.env),
        **({"secrets": dict.fromkeys(sky.secrets)} if sky.secrets else {}),
        "setup": sky.setup,
        "run": f"exec {shlex.join(job.command)}\n",
    }


def build_logs_command(plan: Plan, profile: Profile, job: Job) -> tuple[str, ...]:
    return ("sky", "jobs", "logs", "--name", job.name)


def name_log(plan: Plan, job: Job) -> str:
    return f"of the managed job {job.name}"
