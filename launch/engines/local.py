"""This machine: the jobs one after another, each as so many processes that find each other."""

import shlex
import sys

from launch.engines import JobRequest, RenderedJobs, refuse_env_file, refuse_parallel
from launch.plan import Job, Plan
from launch.profile import LocalSettings, Profile


def render_jobs(plan: Plan, profile: Profile, request: JobRequest) -> RenderedJobs:
    local: LocalSettings = profile.settings
    refuse_parallel(request, "jobs run one after another. See `python -m imbalance_jax.study run`.")
    refuse_env_file(request, "Export secrets in the shell that submits.")
    commands = tuple(
        (sys.executable, "-m", "launch.processes", f"--processes={local.processes}")
        + (f"--platform={local.platform}", f"--devices_per_process={local.devices_per_process}")
        + (f"--output={plan.workdir}/logs/{job.members[0]}",)
        + tuple(f"--env={name}={value}" for name, value in plan.env.items())
        + ("--", sys.executable, *job.command[1:])
        for job in request.jobs
    )
    return RenderedJobs({}, commands)


def build_logs_command(plan: Plan, profile: Profile, job: Job) -> tuple[str, ...]:
    return ("tail", "-n", "+1", "-F", f"{plan.workdir}/logs/{job.members[0]}.0.log")


def name_log(plan: Plan, job: Job) -> str:
    return shlex.quote(f"{plan.workdir}/logs/{job.members[0]}.0.log")
