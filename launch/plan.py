"""The jobs of a study on a profile, written as plan.json. Pure.

A job trains one run or a pack of runs. It has the same name whenever it is planned, so that a
submitted job is found again. All errors that show without a machine are found here.
"""

import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, costs, mesh_shape
from imbalance_jax.runs import storage
from imbalance_jax.study import grid, study_runner
from launch import secret_rule
from launch.hardware import JobSize
from launch.profile import Profile

VERSION = 1
PACKS = ("none", "host", "member")
# Exit codes of a run that is to be started again: saved and left, its peer was lost, killed.
# Any other is final: what is wrong would be wrong again.
RESTART = (75, 134, 135, 137, 139, 143)
# xpk's limit. JobSet appends to a name, and the name of a host ends at 63 characters.
NAME_LENGTH = 39
_QUEUED_RESOURCES = 8


@dataclasses.dataclass(frozen=True)
class Job:
    """What an engine runs as one."""

    index: int  # the place of its first member among all of the study's runs
    name: str  # a DNS label, <study>-<8 hex digits of the runs' configs>
    members: tuple[str, ...]  # ids of the runs that it trains
    command: tuple[str, ...]
    hash: str  # of what it trains


@dataclasses.dataclass(frozen=True)
class Plan:
    """The jobs of a study, or of a part of it, on one profile."""

    study: str
    workdir: str  # the study's directory, as the jobs see it
    profile: str
    engine: str
    size: JobSize
    pack: str  # one of PACKS
    env: Mapping[str, str]
    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        """Stands for the study on the profile, where an engine has all jobs as one."""
        return make_job_name(self.study, [self.workdir, self.profile])

    @property
    def folder(self) -> str:
        """Where the plan lies in the study's directory."""
        return f"{self.workdir}/launch/{self.profile}"

    @property
    def local_folder(self) -> str:
        """Where the plan and the files of its jobs lie on this machine, unless --out says where."""
        here = f"studies/{self.study}/launch/{self.profile}"
        return os.path.abspath(here) if "://" in self.workdir else self.folder

    def to_dict(self) -> dict[str, Any]:
        plain = {"version": VERSION, **dataclasses.asdict(self)}
        plain["size"] |= {"devices": self.size.devices, "processes": self.size.processes}
        return plain


def make_plan(
    study: grid.StudyConfig,
    profile: Profile,
    *,
    workdir: str,
    runs: Sequence[str] | None = None,
    pack: str = "none",
    pack_size: int = 0,
    env: Mapping[str, str] | None = None,
) -> Plan:
    """Returns the plan of a study.

    Args:
      study: what to train.
      profile: where.
      workdir: the study's directory, as the jobs see it.
      runs: a part of the study's runs; all by default.
      pack: none, or the way to train several runs in a job: `host` is a process for each run on
        a part of one machine, `member` one program for runs of equal shapes.
      pack_size: how many runs a pack has at most. Only runs that are asked for are packed.
      env: environment variables on top of the profile's.

    Raises:
      ValueError: the study does not fit the profile.
    """
    _check_pack(profile, pack, pack_size)
    _check_workdir(profile, workdir)
    env = {**profile.env, **(env or {})}
    secret_rule.check_env(env, profile.engine)
    if "://" in workdir:
        # In the study's directory, because machines come and go.
        env.setdefault("JAX_COMPILATION_CACHE_DIR", f"{workdir}/compiled")
    size = profile.size
    each = size.devices // pack_size if pack == "host" else size.devices
    place = {name: index for index, name in enumerate(study.runs)}
    names = [name for name in study.runs if runs is None or name in runs]
    if pack == "host":
        packs = [tuple(names[i : i + pack_size]) for i in range(0, len(names), pack_size)]
    else:
        packs = study_runner.group_into_packs(study, names, pack_size)
    name = workdir.rstrip("/").rpartition("/")[2]
    jobs = tuple(
        _make_job(place[members[0]], name, study, profile, workdir, members, pack, each)
        for members in packs
    )
    _check_runs([member for job in jobs for member in job.members], study, profile, each, pack)
    _check_jobs(jobs, profile)
    return Plan(name, workdir, profile.name, profile.engine, size, pack, env, jobs)


def make_job_name(study: str, hashes: Sequence[str]) -> str:
    """Returns `<study>-<8 hex digits>`, a DNS label of 39 characters at most.

    Args:
      study: any name; what a label cannot have in it becomes a dash.
      hashes: what tells the job from others, such as the hashes of its runs.
    """
    digits = hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:8]
    label = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    label = label if label[:1].isalpha() else f"study-{label}"
    return f"{label[: NAME_LENGTH - 9].strip('-')}-{digits}"


def _make_job(
    index: int,
    name: str,
    study: grid.StudyConfig,
    profile: Profile,
    workdir: str,
    members: tuple[str, ...],
    pack: str,
    devices: int,
) -> Job:
    module = "launch.pack" if pack == "host" else "imbalance_jax.main"
    command = ["python", "-m", module, f"--study={workdir}", f"--members={','.join(members)}"]
    command.append(f"--devices={devices}")
    if profile.mesh:
        command.append("--mesh=" + ",".join(f"{axis}={n}" for axis, n in profile.mesh.items()))
    if profile.data_dir:
        command.append(f"--data_dir={profile.data_dir}")
    if pack == "host":
        command.append(f"--family={profile.size.family}")
    hashes = [study.runs[member].hash for member in members]
    return Job(
        index,
        make_job_name(name, hashes),
        members,
        tuple(command),
        config_lib.hash_plain_values(hashes),
    )


def select_jobs(plan: Plan, wanted: Iterable[str]) -> tuple[Job, ...]:
    """Returns the jobs that train any of these runs."""
    chosen = set(wanted)
    return tuple(job for job in plan.jobs if chosen.intersection(job.members))


def _check_pack(profile: Profile, pack: str, pack_size: int) -> None:
    if pack not in PACKS:
        raise ValueError(f"--pack={pack} is not one of {', '.join(PACKS)}.")
    size = profile.size
    if pack == "none":
        if pack_size > 1:
            raise ValueError(f"--pack_size={pack_size} needs --pack=host or --pack=member.")
        return
    if pack_size < 2:
        raise ValueError(f"--pack={pack} needs --pack_size: how many runs a job trains, 2 or more.")
    if pack == "member":
        return
    if size.hosts * size.num_slices > 1:
        raise ValueError(
            f"--pack=host puts runs on one machine, and {size} has "
            f"{size.hosts * size.num_slices}. Choose a smaller size, or --pack=member."
        )
    if size.processes > 1:
        raise ValueError(
            f"--pack=host starts from one process a machine, and the profile has "
            f"{size.processes}. Set {profile.engine}'s tasks or processes to 1."
        )
    if size.devices % pack_size:
        raise ValueError(
            f"--pack_size={pack_size} does not divide the {size.devices} devices of {size}. Set "
            "it to a divisor."
        )


def check_path_is_one_line(field: str, path: str) -> None:
    """Raises ValueError if a path cannot stand in a line of a file, or of what is printed."""
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in path):
        raise ValueError(
            f"{field}={path!r} has a line break or another character that does not print. Choose "
            "another name."
        )


def _check_workdir(profile: Profile, workdir: str) -> None:
    check_path_is_one_line("--workdir", workdir)
    secret_rule.check_values({"--workdir": workdir}, profile.engine)
    remote = "://" in workdir
    if profile.engine in ("gke", "sky", "tpuvm") and not remote:
        raise ValueError(
            f"--workdir={workdir} is on this machine, and jobs of the engine {profile.engine} run "
            "on others. Set --workdir=gs://BUCKET/STUDY."
        )
    if profile.engine == "slurm" and remote:
        raise ValueError(
            f"--workdir={workdir}: the jobs' list and logs lie there, and SLURM writes files. Set "
            "--workdir to a directory that all nodes share."
        )


def _check_runs(
    names: Sequence[str], study: grid.StudyConfig, profile: Profile, devices: int, pack: str
) -> None:
    """Raises ValueError if runs do not fit the devices of a job, or their part of them."""
    refused: dict[str, str] = {}
    for name in names:
        _check_data_dir(profile.data_dir or study.runs[name].config.data_dir, profile)
        try:
            _check_run(study.runs[name].config, profile, devices, pack)
        except ValueError as error:
            refused[name] = str(error)
    if not refused:
        return
    first = next(iter(refused))
    others = f" So it is with {len(refused) - 1} others." if len(refused) > 1 else ""
    cells = dict.fromkeys(study.runs[name].cell or name for name in refused)
    patterns = ",".join(f"!{cell}*" for cell in cells)
    ways = f"leave them out here with --runs='{patterns}' and send them to a smaller size"
    if len(refused) == len(names):
        ways = "take a smaller size"
    mesh = ", or change [mesh] of the profile" if profile.mesh else ""
    raise ValueError(
        f"Run {first} on {profile.size}: {refused[first]}{others} Or {ways} with another "
        f"profile{mesh}."
    )


def _check_run(config: Config, profile: Profile, devices: int, pack: str) -> None:
    mesh = dataclasses.replace(config.mesh, **profile.mesh)
    sizes = mesh_shape.resolve_axis_sizes(mesh, devices, packed=pack == "member")
    if profile.size.num_slices > 1:
        mesh_shape.find_slice_axis(sizes, profile.size.num_slices)
    mesh_shape.check_batch(config, sizes)
    mesh_shape.check_dimensions(config, sizes, _assume_vocab_size(config, sizes))


def _check_data_dir(data_dir: str, profile: Profile) -> None:
    """Raises ValueError if the text is not where a job could find it."""
    field = f"{profile.name}.toml: data_dir" if profile.data_dir else "config.data_dir"
    check_path_is_one_line(field, data_dir)
    storage.check_store_path(field, data_dir)
    if profile.engine != "local" and not data_dir.startswith("/") and "://" not in data_dir:
        raise ValueError(
            f"config.data_dir={data_dir} depends on where a job runs. Set data_dir in the profile "
            "to where its jobs find the text, such as "
            f"{'/shared/data' if profile.engine == 'slurm' else 'gs://BUCKET/data'}."
        )


def _assume_vocab_size(config: Config, sizes: Mapping[str, int]) -> int:
    """Returns the vocabulary's size, or one that divides where only the text tells it."""
    guessed = config.vocabulary.layout == "merged" or any(
        source.tokenizer.path for source in config.sources.values()
    )
    return sizes["tensor"] if guessed else costs.compute_vocab_size(config)


def _check_jobs(jobs: Sequence[Job], profile: Profile) -> None:
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        raise ValueError("Two jobs have the same name. Give the study's directory another name.")
    if profile.engine == "tpuvm" and len(jobs) > _QUEUED_RESOURCES:
        raise ValueError(
            f"{len(jobs)} jobs are too many for queued resources, which have no queue of jobs: "
            f"{_QUEUED_RESOURCES} at most. Use the engine gke or sky."
        )


def describe_jobs(plan: Plan, logs: Sequence[str]) -> str:
    """Returns the plan in words: a line for each job, with the place of its log."""
    size = plan.size
    lines = [
        f"{plan.study} on {plan.profile}: {len(plan.jobs)} jobs of {size}, {size.devices} devices "
        f"in {size.processes} processes each",
        "",
    ]
    members = [", ".join(job.members) for job in plan.jobs]
    # A pack's runs can be many, and would push the logs out of sight.
    width = min(max(len("runs"), *map(len, members)), 40)
    lines.append(f"{'index':>5}  {'job':<{len(plan.jobs[0].name)}}  {'runs':<{width}}  log")
    lines += [
        f"{job.index:>5}  {job.name}  {runs:<{width}}  {log}"
        for job, runs, log in zip(plan.jobs, members, logs, strict=True)
    ]
    return "\n".join(lines)
