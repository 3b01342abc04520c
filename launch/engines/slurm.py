"""SLURM: one array for the study, an element for each job.

The script that runs is static; what differs stands on the command line of sbatch, and which
runs an element trains in a list beside the plan. An element's index is that of its job among
all of the study, so that what failed has the same one when it is submitted again. The list's
name has a hash of its lines: an array that is still queued keeps its own when the study grows.
"""

import hashlib
import shlex
from collections.abc import Sequence

from launch import engines, scripts
from launch.engines import JobRequest, RenderedJobs
from launch.plan import Job, Plan
from launch.profile import Profile, SlurmSettings

# What a job inherits of the environment of `sbatch`; SLURM's own variables are always there.
_INHERITED = ("PATH", "HOME", "USER", "LANG", "TMPDIR")
_GRACE_SECONDS = 120  # from SIGTERM to the end of the time limit


def render_jobs(plan: Plan, profile: Profile, request: JobRequest) -> RenderedJobs:
    lines = "".join(f"{job.index} {','.join(job.members)}\n" for job in plan.jobs)
    members = f"members-{hashlib.sha256(lines.encode()).hexdigest()[:8]}.txt"
    array = _format_index_ranges(sorted(job.index for job in request.jobs))
    if request.max_parallel:
        array += f"%{request.max_parallel}"
    slurm: SlurmSettings = profile.settings
    # sbatch reads the script right away; the list is read by every node, when an element starts.
    # So the nodes have to see `out`.
    command = (
        *("sbatch", "--parsable", f"--job-name={plan.name}", f"--array={array}"),
        *_list_sbatch_options(plan, slurm),
        *(f"{request.out}/slurm_job.sh", f"--members_file={request.out}/{members}"),
        *(f"--study={plan.workdir}", f"--max_restarts={slurm.max_restarts}"),
        *([f"--activate={slurm.activate}"] if slurm.activate else ()),
        *(f"--env={name}={value}" for name, value in plan.env.items()),
        *([f"--env_file={request.env_file}"] if request.env_file else ()),
        *("--", *slurm.container, *_extract_common_command(plan.jobs)),
    )
    return RenderedJobs(
        {members: lines, "slurm_job.sh": scripts.read_script("slurm_job.sh")}, (command,)
    )


def _list_sbatch_options(plan: Plan, slurm: SlurmSettings) -> list[str]:
    """Returns the options of sbatch that do not depend on which jobs are asked for."""
    options = {
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.tasks_per_node,
        "cpus-per-task": slurm.cpus_per_task,
        "gpus-per-node": _format_gpu_request(slurm),
        "mem": slurm.mem,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
    }
    # sbatch replaces %x in a file's name, and nothing at all in one that has a backslash.
    engines.refuse_character("--workdir", plan.workdir, "\\", "sbatch --output")
    folder = plan.workdir.replace("%", "%%")
    return [
        *(f"--{name}={value}" for name, value in options.items() if value),
        # To the steps, not (B:) to the script, whose srun would then end them unsaved.
        f"--signal=TERM@{_GRACE_SECONDS}",
        # Submitted twice, the second array waits for the first, and then leaves out what is done.
        "--dependency=singleton",
        "--requeue",
        "--open-mode=append",
        f"--chdir={plan.workdir}",
        f"--output={folder}/logs/%x-%A_%a.out",
        # The script sets the rest, because --export has no way to write a comma or a quote.
        f"--export={','.join(_INHERITED)}",
        *slurm.options,
    ]


def _format_gpu_request(slurm: SlurmSettings) -> str:
    if not slurm.gpus_per_node:
        return ""
    return f"{slurm.gpu_type}:{slurm.gpus_per_node}" if slurm.gpu_type else f"{slurm.gpus_per_node}"


def _extract_common_command(jobs: Sequence[Job]) -> tuple[str, ...]:
    """Returns what the commands of all jobs have in common; the script adds --members."""
    first, *others = [
        tuple(arg for arg in job.command if not arg.startswith("--members=")) for job in jobs
    ]
    assert all(other == first for other in others)
    return first


def _format_index_ranges(indexes: Sequence[int]) -> str:
    """Returns whole numbers in ascending order as sbatch takes them: 0-3,7."""
    parts: list[list[int]] = []
    for index in indexes:
        if parts and index == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)


def build_logs_command(plan: Plan, profile: Profile, job: Job) -> tuple[str, ...]:
    return ("sh", "-c", 'tail -n +1 -F "$1"*"$2"', "sh", *_split_log_name(plan, job))


def name_log(plan: Plan, job: Job) -> str:
    return "*".join(map(shlex.quote, _split_log_name(plan, job)))


def _split_log_name(plan: Plan, job: Job) -> tuple[str, str]:
    """Returns what stands in a log's path before and after the number of the array."""
    return f"{plan.workdir}/logs/{plan.name}-", f"_{job.index}.out"
