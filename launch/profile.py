"""The profile of a place to train: engine, project, queue, machines, limits, from a TOML file.

    engine = "slurm"             which table below is read
    data_dir = "/data/text"      where prepared text is; the study's own if absent
    [mesh]                       sizes of axes, in place of the study's
    [env]                        environment variables of every run, none of them secret
    [hardware]                   gke, sky, tpuvm: the machines; slurm and local have own fields
    [slurm]                      the engine's own fields

Every field is declared below with its type and default, and any other is refused.
"""

import dataclasses
import os
import pathlib
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from imbalance_jax import config as config_lib
from imbalance_jax.config import mesh_shape
from imbalance_jax.runs import storage
from launch import hardware
from launch.hardware import JobSize

_PROFILES = pathlib.Path(__file__).parent / "profiles"
# What the profiles of the package have where a user's own names belong.
_PLACEHOLDER = re.compile(r"\bmy-(bucket|project|cluster)\b|sha256:0{64}")
# As man sbatch has it: minutes, minutes:seconds, or days-hours and so on; "" is the partition's.
_SLURM_TIME = r"|\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|infinite|unlimited"


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The size of a job; see hardware.py."""

    family: str
    topology: str
    num_slices: int = 1
    chips_per_host: int = 0  # TPUs on GKE: 8 for a 2x4 on one machine; 0 is the usual machine


@dataclasses.dataclass(frozen=True)
class GkeSettings:
    """JobSets on a GKE cluster that has JobSet and Kueue; the queue is the admin's."""

    project: str
    location: str  # region or zone of the cluster
    cluster: str
    queue: str  # Kueue's LocalQueue
    image: str  # by digest: REGISTRY/NAME@sha256:...
    service_account: str  # Kubernetes' own, which Workload Identity lets into the bucket
    namespace: str = "default"
    spot: bool = False
    grace_seconds: int = 30  # from SIGTERM to the end; preemptible nodes give 15
    max_restarts: int = 100
    secrets: tuple[str, ...] = ()  # Kubernetes Secrets whose keys become environment variables

    @property
    def context(self) -> str:
        """What `gcloud container clusters get-credentials` calls the cluster."""
        return f"gke_{self.project}_{self.location}_{self.cluster}"


@dataclasses.dataclass(frozen=True)
class SlurmSettings:
    """An array of jobs on a SLURM cluster; where a field is empty, the cluster decides."""

    nodes: int = 1
    gpus_per_node: int = 0  # 0 trains on CPUs
    gpu_type: str = ""  # as the cluster's GRES are called, such as h100
    tasks_per_node: int = 1  # one task with all GPUs of its node is the shape that works best
    cpus_per_task: int = 1
    mem: str = ""  # of a node, such as 64G
    time: str = ""  # such as 24:00:00
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    options: tuple[str, ...] = ()  # more of sbatch, such as --exclude=node7
    activate: str = ""  # a script to source first, such as /home/me/venv/bin/activate
    container: tuple[str, ...] = ()  # put before the command: apptainer exec --nv image.sif
    max_restarts: int = 100


@dataclasses.dataclass(frozen=True)
class SkySettings:
    """Managed jobs of SkyPilot."""

    infra: str  # such as gcp/us-east5 or k8s/my-context
    setup: str  # shell commands that install the package, once on each machine
    code: str = ""  # a directory of this machine that setup finds there; none if empty
    spot: bool = False
    strategy: Literal["EAGER_NEXT_REGION", "FAILOVER"] = "EAGER_NEXT_REGION"
    max_restarts: int = 3  # after errors; preemptions do not count
    runtime_version: str = ""  # of TPU VMs; the family's own if empty
    secrets: tuple[str, ...] = ()  # names; the values are taken from the environment of `submit`


@dataclasses.dataclass(frozen=True)
class TpuvmSettings:
    """Queued resources of Cloud TPU, each with a startup script."""

    project: str
    zone: str
    code: str  # a .tar.gz of the repository: gs://...
    service_account: str
    spot: bool = False
    valid_for: str = "24h"  # how long a request waits for capacity
    network: str = ""
    runtime_version: str = ""  # the family's own if empty
    max_restarts: int = 100
    # Environment variable -> its secret in Secret Manager.
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LocalSettings:
    """Processes of this machine, one job after another."""

    processes: int = 1
    platform: Literal["cpu", "cuda"] = "cpu"
    devices_per_process: int = 1  # simulated ones of a CPU, or GPUs


ENGINES = {
    "gke": GkeSettings,
    "slurm": SlurmSettings,
    "sky": SkySettings,
    "tpuvm": TpuvmSettings,
    "local": LocalSettings,
}


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where a study's runs are sent."""

    name: str  # of the file
    engine: str
    size: JobSize
    settings: Any  # of the engine: one of ENGINES
    data_dir: str = ""
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _TopLevelFields:
    """The fields of a file outside the tables of `hardware` and of the engine."""

    engine: str
    data_dir: str = ""
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_profile(path: str) -> Profile:
    """Returns the profile of a TOML file.

    Raises:
      ValueError: the file cannot be read, or a field is missing, unknown, mistyped or wrong.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"--profile={path}: there is no such file. {_list_profiles(file.parent)}")
    try:
        return parse_profile(file.stem, tomllib.loads(file.read_text(encoding="utf-8")))
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _list_profiles(folder: pathlib.Path) -> str:
    """Returns a sentence that names the profiles of a folder, or else those of the package."""
    files = sorted(folder.glob("*.toml")) or sorted(_PROFILES.glob("*.toml"))
    where = os.path.relpath(files[0].parent)
    return f"{where} has {', '.join(file.name for file in files)}."


def describe_placeholders(profile: Profile, workdir: str) -> str:
    """Returns a line on names of the examples that nobody has replaced, or ""."""
    table = dataclasses.asdict(profile.settings)
    fields = {"--workdir": workdir, "data_dir": profile.data_dir}
    fields |= {f"{profile.engine}.{name}": value for name, value in table.items()}
    left = [name for name, value in fields.items() if _PLACEHOLDER.search(str(value))]
    if not left:
        return ""
    return f"An example's name is still in {', '.join(left)}. Write your own there."


def parse_profile(name: str, values: Mapping[str, Any]) -> Profile:
    """Returns the profile of a file's values, as tomllib reads them.

    Raises:
      ValueError: a field is missing, unknown, mistyped or wrong.
    """
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise ValueError(f"The name {name!r} of a profile is made of a-z, 0-9 and - only.")
    tables = {"hardware", *ENGINES}
    top = config_lib.parse_dataclass(
        _TopLevelFields,
        {key: value for key, value in values.items() if key not in tables},
        "profile",
    )
    if top.engine not in ENGINES:
        raise ValueError(f"engine={top.engine!r} is not one of {', '.join(ENGINES)}.")
    for table in sorted(tables & values.keys() - {"hardware", top.engine}):
        raise ValueError(f"[{table}] is not read, as engine={top.engine!r}. Take it out.")
    settings = config_lib.parse_dataclass(
        ENGINES[top.engine], values.get(top.engine, {}), top.engine
    )
    for axis in top.mesh:
        if axis not in mesh_shape.AXES:
            raise ValueError(config_lib.describe_unknown_field("mesh", axis, mesh_shape.AXES))
    check_env(top.env, top.engine)
    size = _resolve_job_size(top.engine, settings, values.get("hardware"))
    return Profile(name, top.engine, size, settings, top.data_dir, top.mesh, top.env)


def _resolve_job_size(engine: str, settings: Any, table: Any) -> JobSize:
    """Returns the size of a job, after checks that depend on the engine."""
    if engine in ("slurm", "local"):
        if table is not None:
            raise ValueError(
                f"[hardware] is not read, as engine={engine!r}: [{engine}] says how big a job is. "
                "TPUs are reached with the engines gke, sky or tpuvm."
            )
        return _compute_slurm_size(settings) if engine == "slurm" else _compute_local_size(settings)
    if table is None:
        raise ValueError(f"[hardware] is missing; engine={engine!r} needs its family and topology.")
    machines = config_lib.parse_dataclass(Hardware, table, "hardware")
    size = hardware.compute_job_size(**dataclasses.asdict(machines))
    checks: dict[str, Callable[[Any, JobSize], JobSize]] = {
        "gke": _check_gke,
        "sky": _check_sky,
        "tpuvm": _check_tpuvm,
    }
    return checks[engine](settings, size)


def _compute_slurm_size(slurm: SlurmSettings) -> JobSize:
    _check_minima("slurm", slurm, nodes=1, gpus_per_node=0, tasks_per_node=1, cpus_per_task=1)
    _check_minima("slurm", slurm, max_restarts=0)
    if slurm.gpus_per_node % slurm.tasks_per_node:
        raise ValueError(
            f"slurm.gpus_per_node={slurm.gpus_per_node} cannot be shared by "
            f"slurm.tasks_per_node={slurm.tasks_per_node}. Set slurm.tasks_per_node=1."
        )
    if slurm.gpu_type.startswith(("tpu", "v4", "v5", "v6")):
        raise ValueError(
            f"slurm.gpu_type={slurm.gpu_type!r}: TPUs are not on SLURM. Use the engines gke, sky "
            "or tpuvm."
        )
    if not re.fullmatch(_SLURM_TIME, slurm.time, re.IGNORECASE):
        raise ValueError(
            f"slurm.time={slurm.time!r} is no time limit of sbatch. Write HOURS:MINUTES:SECONDS or "
            "DAYS-HOURS, such as 24:00:00 or 2-0."
        )
    for option in slurm.options:
        if not option.startswith("--"):
            raise ValueError(f"slurm.options has {option!r}. Write --NAME=VALUE.")
    devices = slurm.gpus_per_node or slurm.tasks_per_node
    family = (slurm.gpu_type or "gpu") if slurm.gpus_per_node else "cpu"
    topology = f"{slurm.nodes}x{devices}"
    return JobSize(family, topology, 1, slurm.nodes, devices, slurm.tasks_per_node)


def _compute_local_size(local: LocalSettings) -> JobSize:
    _check_minima("local", local, processes=1, devices_per_process=1)
    devices = local.processes * local.devices_per_process
    return JobSize(
        "cpu" if local.platform == "cpu" else "gpu", f"1x{devices}", 1, 1, devices, local.processes
    )


def _check_gke(gke: GkeSettings, size: JobSize) -> JobSize:
    if size.family == "cpu":
        raise ValueError("hardware.family='cpu' is for the engines slurm and local.")
    _check_minima("gke", gke, grace_seconds=0, max_restarts=0)
    check_image(gke.image)
    return size


def check_image(image: str) -> None:
    """Raises ValueError if an image is not named by its digest, which never changes."""
    if not re.fullmatch(r"[^\s@]+@sha256:[0-9a-f]{64}", image):
        raise ValueError(
            f"gke.image={image!r} must name its digest, so that every restart runs the same code: "
            "NAME@sha256:... as `docker push` prints it."
        )


def _check_sky(sky: SkySettings, size: JobSize) -> JobSize:
    if size.family == "cpu":
        raise ValueError("hardware.family='cpu' is for the engines slurm and local.")
    _check_minima("sky", sky, max_restarts=0)
    if size.num_slices > 1:
        raise ValueError(
            f"hardware.num_slices={size.num_slices}: SkyPilot cannot join slices. Use the engine "
            "gke, or tpuvm for a few runs."
        )
    kubernetes = sky.infra.startswith(("k8s", "kubernetes"))
    if kubernetes and size.is_tpu and size.devices > 8:
        raise ValueError(
            f"sky.infra={sky.infra!r}: SkyPilot has TPUs of one host only on Kubernetes, 8 chips "
            f"at most, and {size} has {size.devices}. Use the engine gke."
        )
    if not re.fullmatch(r"[a-z0-9]+(/[^/\s]+){0,2}", sky.infra):
        raise ValueError(f"sky.infra={sky.infra!r}: write CLOUD/REGION, such as gcp/us-east5.")
    return hardware.convert_to_tpu_vm(size)


def _check_tpuvm(tpuvm: TpuvmSettings, size: JobSize) -> JobSize:
    if not size.is_tpu:
        raise ValueError(
            f"hardware.family={size.family!r}: queued resources are TPUs. Use the engines gke, "
            "slurm or sky for GPUs."
        )
    _check_minima("tpuvm", tpuvm, max_restarts=0)
    if not tpuvm.code.startswith("gs://"):
        raise ValueError(f"tpuvm.code={tpuvm.code!r} must be a .tar.gz on gs://.")
    storage.check_store_path("tpuvm.code", tpuvm.code)
    if not re.fullmatch(r"\d+[smhd]", tpuvm.valid_for):
        raise ValueError(f"tpuvm.valid_for={tpuvm.valid_for!r}: write a duration, such as 24h.")
    return hardware.convert_to_tpu_vm(size)


def _check_minima(table: str, settings: Any, **minima: int) -> None:
    for name, minimum in minima.items():
        if getattr(settings, name) < minimum:
            raise ValueError(f"{table}.{name}={getattr(settings, name)} must be {minimum} or more.")


_SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD)S?$")
_FOR_SECRETS = {
    "gke": "Put it into a Kubernetes Secret and name that in gke.secrets.",
    "slurm": "Put it into a file of mode 600 and give that with --env_file.",
    "sky": "Export it here and name it in sky.secrets.",
    "tpuvm": "Put it into Secret Manager and name it in tpuvm.secrets.",
    "local": "Export it in the shell that submits.",
}


def check_env(env: Mapping[str, str], engine: str) -> None:
    """Raises ValueError if an environment variable has no name, or looks like a secret."""
    for name in env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of an environment variable.")
        if any(_SECRET.search(part) for part in name.upper().split("_")):
            raise ValueError(
                f"{name} looks like a secret, and would stand in files and process lists. "
                f"{_FOR_SECRETS[engine]}"
            )
