"""Runs the commands that submit jobs, and keeps submitted.jsonl, the record of them.

A job has a name of its own for the runs that it trains. So another pack, or another profile, is
another job to the engine, and nothing but the record shows that both train the same run.
"""

import dataclasses
import datetime
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from imbalance_jax.runs import code_versions, damaged_files, storage
from imbalance_jax.runs.json_text import format_json
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory
from launch import processes
from launch.plan import Job, Plan

_LINE = {"code": int, "time": str, "engine?": str, "jobs?": {"*": list}}


@dataclasses.dataclass(frozen=True)
class SubmittedJob:
    """A job that an engine has taken."""

    record: str  # the file that says so
    profile: str
    engine: str
    name: str
    members: tuple[str, ...]
    time: str


def describe_shared_runs(
    directory: StudyDirectory,
    study: grid.StudyConfig,
    plan: Plan,
    jobs: Sequence[Job],
    *,
    reach: bool,
) -> str:
    """Returns a line on a run that a job which was submitted before may train now, or "".

    Args:
      directory: of the study.
      study: the plan's.
      plan: of the jobs.
      jobs: those to be submitted.
      reach: whether to look into stores. What this machine submitted is recorded here too.
    """
    folders = dict.fromkeys(
        epath.Path(folder).parent
        for folder in (plan.local_folder, plan.folder)
        if reach or not storage.is_store(folder)
    )
    # The same job is known to the engine, an array of SLURM waits for the one before it, and jobs
    # of this machine have ended when they are recorded.
    names = {job.name for job in plan.jobs}
    others = [
        other
        for folder in folders
        for other in _read_submitted_jobs(folder)
        if other.engine != "local"
        and (other.profile != plan.profile or (plan.engine != "slurm" and other.name not in names))
    ]
    if not others:
        return ""
    running = {run for job in jobs for run in job.members}
    if reach or not storage.is_store(directory.path):
        states = directory.states(study)
        running = {run for run in running if states[run].state not in ("done", "failed")}
    for other in others:
        if shared := running.intersection(other.members):
            return (
                f"{', '.join(sorted(shared))}: also in the job {other.name} of the profile "
                f"{other.profile}, submitted {other.time}, and two jobs must not train one run at "
                "a time. Submit that job again, with the same --profile, --runs, --pack and "
                f"--pack_size. Or delete it, and then its line in {other.record}."
            )
    return ""


def _read_submitted_jobs(folder: epath.Path) -> Iterator[SubmittedJob]:
    """Yields the jobs that the records in a study's folder `launch` name.

    Lines of earlier versions name none.
    """
    for record in sorted(folder.glob("*/submitted.jsonl")) if folder.exists() else ():
        remedy = "Take the line out, or move the file away."
        content = damaged_files.read_file(record, remedy)
        for _, line in damaged_files.read_json_lines(content, record, remedy, _LINE):
            if line["code"] == 0:
                for name, members in line.get("jobs", {}).items():
                    yield SubmittedJob(
                        *(str(record), record.parent.name, line["engine"], name),
                        *(tuple(members), line["time"]),
                    )


def list_submitted_members(
    command: Sequence[str], jobs: Sequence[Job]
) -> dict[str, tuple[str, ...]]:
    """Returns the runs of each job that a command submits: those it names, or else all."""
    text = " ".join(command)
    named = {job.name: job.members for job in jobs if job.name in text}
    return named or {job.name: job.members for job in jobs}


def execute_command(command: Sequence[str], local: bool) -> dict[str, Any]:
    """Runs a command, and returns what submitted.jsonl says of it.

    Args:
      command: its argv.
      local: whether it trains on this machine. Then its output is shown as it comes, and an
        interrupt is passed on to it.

    Raises:
      ValueError: there is no such command.
    """
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    output = ""
    if local:
        (ended,) = processes.run_processes([processes.ProcessSpec(command, {}, "")], together=False)
        code = processes.convert_exit_code(ended, alone=True)
    else:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        except FileNotFoundError as error:
            raise ValueError(f"{command[0]} is not installed here.") from error
        code, output = done.returncode, done.stdout.strip()
        print(output)
    return {
        "time": began,
        "argv": command,
        "code": code,
        "output": output,
        "git": code_versions.get_code_versions()["git"],
    }


def append_line(plan: Plan, line: Mapping[str, Any]) -> None:
    """Appends what submitted.jsonl says of a command of a plan."""
    for folder in dict.fromkeys((plan.local_folder, plan.folder)):
        record = epath.Path(folder) / "submitted.jsonl"
        # Object stores cannot append, so all that is there is written again, whatever it is.
        before = record.read_bytes() if record.exists() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        record.parent.mkdir(parents=True, exist_ok=True)
        storage.write_file_atomically(record, before + f"{format_json(line)}\n".encode())
