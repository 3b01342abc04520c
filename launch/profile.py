"""The profile of a place to train: engine, project, queue, machines, limits, from a TOML file.

    engine = "slurm"             which table below is read
    data_dir = "/data/text"      where prepared text is; the study's own if absent
    [mesh]                       sizes of axes, in place of the study's
    [env]                        environment variables of every run, none of them secret
    [hardware]                   gke, sky, tpuvm: the machines; slurm and local have own fields
    [slurm]                      the engine's own fields

Every field is declared below with its type, default and meaning, and any other is refused.
profile_page.py makes docs/profiles.md of it.
"""

import dataclasses
import os
import pathlib
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from imbalance_jax import config as config_lib
from imbalance_jax.config import mesh_shape
from imbalance_jax.config.bounds import Bounds, Count, FieldGroup, Size
from imbalance_jax.config.schema import MeshSize
from imbalance_jax.runs import storage
from launch import hardware, secret_rule
from launch.hardware import JobSize

PACKAGE = pathlib.Path(__file__).parent
# What the profiles of the package and the messages have where a user's own names belong. Names of
# projects and buckets are unique in the world, so these are somebody else's.
_UNUSABLE = r"\bmy-(bucket|project)\b|\bgs://BUCKET\b|\bREGISTRY/|sha256:0{64}"
_PLACEHOLDER = rf"\bmy-cluster\b|{_UNUSABLE}"
# As man sbatch has it: minutes, minutes:seconds, or days-hours and so on; "" is the partition's.
_SLURM_TIME = r"|\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|infinite|unlimited"


@dataclasses.dataclass(frozen=True)
class Hardware(FieldGroup):
    """The size of a job on the engines gke, sky and tpuvm."""

    family: str  # The accelerator: v4, v5e, v5p, v6e, a100, a100-80gb, h100 or h200.
    # Chips of a TPU slice along each axis, such as 4x4; or machines x GPUs of each, such as 2x8.
    topology: str
    num_slices: Size = 1  # TPU slices that train one run together, on gke or tpuvm.
    # Chips on each host of a TPU slice. 8 puts a 2x4 on one host. 0 is the usual host of GKE.
    chips_per_host: Count = 0


@dataclasses.dataclass(frozen=True)
class GkeSettings(FieldGroup):
    """A JobSet for each job, on a GKE cluster that has JobSet and Kueue."""

    project: str  # The Google Cloud project of the cluster.
    location: str  # The region or zone of the cluster.
    cluster: str  # The name of the cluster.
    queue: str  # The LocalQueue of Kueue, which an administrator makes.
    image: str  # The image with this package, by its digest: REGISTRY/NAME@sha256:...
    service_account: str  # The Kubernetes service account that may use the bucket.
    namespace: str = "default"  # The namespace of Kubernetes.
    spot: bool = False  # Whether jobs run on nodes that may be taken away.
    grace_seconds: Count = 30  # Seconds from SIGTERM to the end. Preemptible nodes give about 15.
    max_restarts: Count = 100  # How often a job is started again.
    secrets: tuple[str, ...] = ()  # Kubernetes Secrets whose keys become environment variables.

    @property
    def context(self) -> str:
        """What `gcloud container clusters get-credentials` calls the cluster."""
        return f"gke_{self.project}_{self.location}_{self.cluster}"


@dataclasses.dataclass(frozen=True)
class SlurmSettings(FieldGroup):
    """An array of jobs on a SLURM cluster. An empty field leaves the choice to the cluster."""

    nodes: Size = 1  # Nodes of a job.
    gpus_per_node: Count = 0  # GPUs that a job gets on each node. 0 trains on CPUs.
    gpu_type: str = ""  # The type of GPU, as the cluster's GRES calls it, such as h100.
    # Processes on each node. 1 with all GPUs of its node is the best choice.
    tasks_per_node: Size = 1
    cpus_per_task: Size = 1  # CPU cores of each process.
    mem: str = ""  # Memory on each node, such as 64G.
    time: str = ""  # The time limit of a job, such as 24:00:00, or 2-0 for two days.
    partition: str = ""  # The partition.
    account: str = ""  # The account that is charged.
    qos: str = ""  # The quality of service.
    constraint: str = ""  # Features that nodes must have.
    options: tuple[str, ...] = ()  # More options of sbatch, such as --exclude=node7.
    activate: str = ""  # A script that a job sources first, such as /home/me/venv/bin/activate.
    # Words in front of the command, such as apptainer exec --nv image.sif.
    container: tuple[str, ...] = ()
    max_restarts: Count = 100  # How often a job is started again.


@dataclasses.dataclass(frozen=True)
class SkySettings(FieldGroup):
    """A managed job of SkyPilot for each job."""

    infra: str  # The cloud, and its region if only one will do: gcp, gcp/us-east5, k8s/my-context.
    setup: str  # Shell commands that install the package, once on each machine.
    code: str = ""  # A directory of this machine that is copied to where setup runs.
    spot: bool = False  # Whether jobs run on machines that may be taken away.
    # Where SkyPilot looks for a machine after a preemption.
    strategy: Literal["EAGER_NEXT_REGION", "FAILOVER"] = "EAGER_NEXT_REGION"
    # How often a job is started again after an error. Preemptions do not count.
    max_restarts: Count = 3
    runtime_version: str = ""  # The image of TPU VMs. Empty is the usual one of the family.
    # Names of secrets. Their values are taken from the environment of `submit`.
    secrets: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TpuvmSettings(FieldGroup):
    """A queued resource of Cloud TPU for each job, with a startup script."""

    project: str  # The Google Cloud project.
    zone: str  # The zone of the TPUs.
    code: str  # A .tar.gz of this repository: gs://...
    service_account: str  # The service account of the machines, which may use the bucket.
    spot: bool = False  # Whether jobs run on TPUs that may be taken away.
    valid_for: str = "24h"  # How long a request waits for capacity.
    network: str = ""  # The network of the machines. Empty is the project's default.
    runtime_version: str = ""  # The image of TPU VMs. Empty is the usual one of the family.
    max_restarts: Count = 100  # How often the startup script starts the command again.
    # Environment variable -> its secret in Secret Manager.
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict)


_Local = Annotated[int, Bounds(1, 4096, "is more than one machine runs")]


@dataclasses.dataclass(frozen=True)
class LocalSettings(FieldGroup):
    """Processes of this machine, one job after another."""

    processes: _Local = 1  # Processes of a job, which stand for hosts.
    platform: Literal["cpu", "cuda"] = "cpu"  # The devices to train on.
    devices_per_process: _Local = 1  # Devices of each process: simulated ones of a CPU, or GPUs.


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
class ProfileFields(FieldGroup):
    """The fields above the first table of a file, and the tables that every engine reads."""

    engine: str  # What runs the jobs: gke, slurm, sky, tpuvm or local.
    data_dir: str = ""  # Where jobs find prepared text. Empty is config.data_dir of each run.
    # Sizes of axes of the device mesh, in place of config.mesh: data, fsdp, tensor, member.
    mesh: Mapping[str, MeshSize] = dataclasses.field(default_factory=dict)
    # Environment variables of every run. Secrets do not belong here.
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
    files = sorted(folder.glob("*.toml")) or sorted(PACKAGE.glob("profiles/*.toml"))
    where = os.path.relpath(files[0].parent)
    return f"{where} has {', '.join(file.name for file in files)}."


def describe_placeholders(profile: Profile, workdir: str) -> str:
    """Returns a line on names of the examples that nobody has replaced, or ""."""
    left = _list_matching_fields(profile, workdir, _PLACEHOLDER)
    if not left:
        return ""
    digest = " `docker push` prints the digest of an image." if "gke.image" in left else ""
    return f"An example's name is still in {', '.join(left)}. Write your own there.{digest}"


def check_placeholders(profile: Profile, workdir: str) -> None:
    """Raises ValueError if jobs would be sent to where an example's name points."""
    if _list_matching_fields(profile, workdir, _UNUSABLE):
        raise ValueError(f"{profile.name}.toml: {describe_placeholders(profile, workdir)}")


def _list_matching_fields(profile: Profile, workdir: str, pattern: str) -> list[str]:
    fields = {"--workdir": workdir, "data_dir": profile.data_dir}
    fields |= {f"env.{name}": value for name, value in profile.env.items()}
    fields |= list_settings(profile.engine, profile.settings)
    return [name for name, value in fields.items() if re.search(pattern, value)]


def list_settings(engine: str, settings: Any) -> dict[str, str]:
    """Returns the settings of an engine as text by their fields."""
    return {
        f"{engine}.{name}": " ".join(value) if isinstance(value, tuple) else str(value)
        for name, value in vars(settings).items()
    }


def parse_profile(name: str, values: Mapping[str, Any]) -> Profile:
    """Returns the profile of a file's values, as tomllib reads them.

    Raises:
      ValueError: a field is missing, unknown, mistyped or wrong.
    """
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise ValueError(f"The name {name!r} of a profile is made of a-z, 0-9 and - only.")
    tables = {"hardware", *ENGINES}
    top = config_lib.parse_dataclass(
        ProfileFields,
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
    secret_rule.check_env(top.env, top.engine)
    texts = {"data_dir": top.data_dir, **list_settings(top.engine, settings)}
    secret_rule.check_values(texts, top.engine)
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
    devices = local.processes * local.devices_per_process
    return JobSize(
        "cpu" if local.platform == "cpu" else "gpu", f"1x{devices}", 1, 1, devices, local.processes
    )


def _check_gke(gke: GkeSettings, size: JobSize) -> JobSize:
    if size.family == "cpu":
        raise ValueError("hardware.family='cpu' is for the engines slurm and local.")
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
    if not tpuvm.code.startswith("gs://"):
        raise ValueError(f"tpuvm.code={tpuvm.code!r} must be a .tar.gz on gs://.")
    storage.check_store_path("tpuvm.code", tpuvm.code)
    secret_rule.check_names(tpuvm.secrets)
    for name in tpuvm.secrets.values():
        if not re.fullmatch(r"[\w-]+", name, re.ASCII):
            raise ValueError(f"tpuvm.secrets has {name!r}, which is no name of a secret.")
    if not re.fullmatch(r"\d+[smhd]", tpuvm.valid_for):
        raise ValueError(f"tpuvm.valid_for={tpuvm.valid_for!r}: write a duration, such as 24h.")
    return hardware.convert_to_tpu_vm(size)
