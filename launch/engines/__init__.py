"""The engines: what each makes of a plan.

Every module has a pure `render_jobs(plan, profile, request) -> RenderedJobs`, a
`build_logs_command` whose result shows a job's output, and a `name_log` that says where that is.
Files are data dumped as it is, or lists; commands are argv. No value is pasted into shell text:
what a person or a shell reads as a command line comes from `shlex`.
"""

import dataclasses
import importlib
import shlex
import types
from collections.abc import Sequence
from typing import Any

from launch.plan import Job


@dataclasses.dataclass(frozen=True)
class JobRequest:
    """Which jobs of a plan are asked for, and how."""

    jobs: tuple[Job, ...]
    out: str = "."  # the directory that the files are written to
    again: bool = False  # they have failed before
    max_parallel: int = 0  # jobs at a time; 0 is as many as the engine likes
    env_file: str = ""  # with secrets


@dataclasses.dataclass(frozen=True)
class RenderedJobs:
    """What an engine needs to run jobs."""

    files: dict[str, str]  # name within JobRequest.out -> text
    commands: tuple[tuple[str, ...], ...]  # argv, to be run in this order
    notes: tuple[str, ...] = ()  # what a person may want to run besides


def load_engine(name: str) -> types.ModuleType:
    """Returns the module of an engine of profile.ENGINES."""
    return importlib.import_module(f"launch.engines.{name}")


def dump_yaml(data: dict[str, Any]) -> str:
    """Returns data as YAML.

    Raises:
      ValueError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise ValueError(
            "PyYAML is not installed, and this engine reads YAML. Run pip install -e '.[launch]'."
        ) from error
    return yaml.safe_dump(data, sort_keys=False, width=1000)


def format_note(label: str, command: Sequence[str]) -> str:
    """Returns a note on a command that a person may want to run."""
    return f"{label}: {shlex.join(command)}"


def refuse_character(field: str, value: str, character: str, reader: str) -> None:
    """Raises ValueError if a value has a character that a tool gives a meaning of its own."""
    if character in value:
        raise ValueError(
            f"{field}={value!r} has {character!r}, which {reader} does not take as it is. Choose "
            "another name."
        )


def refuse_parallel(request: JobRequest, instead: str) -> None:
    """Raises ValueError if jobs are to be counted by an engine that has a queue for that."""
    if request.max_parallel:
        raise ValueError(f"--max_parallel={request.max_parallel}: {instead}")


def refuse_env_file(request: JobRequest, instead: str) -> None:
    """Raises ValueError if secrets are to be read from a file that the engine does not see."""
    if request.env_file:
        raise ValueError(f"--env_file={request.env_file} is for the engine slurm. {instead}")
