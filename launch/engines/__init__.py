"""The engines: what each makes of a plan.

Every module has a pure `render_jobs(plan, profile, request) -> RenderedJobs`, a
`build_logs_command` whose result shows a job's output, and a `name_log` that says where that is.
Files are data dumped as it is, or lists; commands are argv.
"""

import dataclasses
import importlib
import types
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


def refuse_parallel(request: JobRequest, instead: str) -> None:
    """Raises ValueError if jobs are to be counted by an engine that has a queue for that."""
    if request.max_parallel:
        raise ValueError(f"--max_parallel={request.max_parallel}: {instead}")


def refuse_env_file(request: JobRequest, instead: str) -> None:
    """Raises ValueError if secrets are to be read from a file that the engine does not see."""
    if request.env_file:
        raise ValueError(f"--env_file={request.env_file} is for the engine slurm. {instead}")
