"""The sizes of every accelerator, and their names in each engine.

A size is a family, a topology and a number of slices, as in ("v6e", "4x4", 2). Product names are
not used: v5p-16 has 8 chips, v6e-16 has 16. A TPU's topology is its chips along each axis; that of
GPUs and CPUs is machines x devices of each, as in "2x8".
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A family of TPUs."""

    topologies: tuple[str, ...]
    accelerator: str  # accelerator type of the TPU API, up to the dash
    cores_per_chip: int  # which the accelerator type counts
    gke: str  # cloud.google.com/gke-tpu-accelerator
    libtpu: str  # platform of libtpu's topologies
    runtime_version: str  # of TPU VMs


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A type of GPU."""

    gke: str  # cloud.google.com/gke-accelerator
    sky: str
    slurm: str  # the usual name of its GRES type


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# The topology of each number of chips, as the accelerator type counts them.
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x12", "8x8x16"),
    "8x16x16",
)
TPUS = {
    "v4": Tpu(_CUBES, "v4", 2, "tpu-v4-podslice", "v4", "tpu-ubuntu2204-base"),
    "v5e": Tpu(_FLAT, "v5litepod", 1, "tpu-v5-lite-podslice", "v5e", "v2-alpha-tpuv5-lite"),
    "v5p": Tpu((*_CUBES, "16x16x16"), "v5p", 2, "tpu-v5p-slice", "v5p", "v2-alpha-tpuv5"),
    "v6e": Tpu(_FLAT, "v6e", 1, "tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
}
GPUS = {
    "a100": Gpu("nvidia-tesla-a100", "A100", "a100"),
    "a100-80gb": Gpu("nvidia-a100-80gb", "A100-80GB", "a100"),
    "h100": Gpu("nvidia-h100-80gb", "H100", "h100"),
    "h200": Gpu("nvidia-h200-141gb", "H200", "h200"),
}
FAMILIES = (*TPUS, *GPUS, "cpu")


@dataclasses.dataclass(frozen=True)
class JobSize:
    """The machines of one job."""

    family: str
    topology: str
    num_slices: int
    hosts: int  # of a slice
    devices_per_host: int
    processes_per_host: int = 1

    @property
    def devices(self) -> int:
        return self.num_slices * self.hosts * self.devices_per_host

    @property
    def processes(self) -> int:
        return self.num_slices * self.hosts * self.processes_per_host

    @property
    def is_tpu(self) -> bool:
        return self.family in TPUS

    def __str__(self) -> str:
        slices = f" x {self.num_slices} slices" if self.num_slices > 1 else ""
        return f"{self.family} {self.topology}{slices}"

    @property
    def accelerator_type(self) -> str:
        """The TPU API's name of a slice, such as v5litepod-16."""
        tpu = TPUS[self.family]
        return f"{tpu.accelerator}-{self.hosts * self.devices_per_host * tpu.cores_per_chip}"

    @property
    def sky(self) -> str:
        """SkyPilot's name of a slice, or of a machine's GPUs."""
        if self.is_tpu:
            return f"tpu-{self.accelerator_type}"
        return f"{GPUS[self.family].sky}:{self.devices_per_host}"

    @property
    def xpk(self) -> str:
        """xpk's device type of a slice, by its topology."""
        return f"{TPUS[self.family].accelerator}-{self.topology}"

    @property
    def libtpu(self) -> str:
        return f"{TPUS[self.family].libtpu}:{self.topology}"


def compute_job_size(
    family: str, topology: str, num_slices: int = 1, chips_per_host: int = 0
) -> JobSize:
    """Returns the size of a job.

    Args:
      family: one of FAMILIES.
      topology: a TPU's, or machines x devices of each.
      num_slices: how many of them, joined by the data center's network; TPUs only.
      chips_per_host: of a TPU; 0 is that of Kubernetes' usual machine. A 2x4 of v5e or v6e may
        also have all 8 on one host, as TPU VMs always have.

    Raises:
      ValueError: there is no such size.
    """
    if family not in FAMILIES:
        raise ValueError(f"hardware.family={family!r} is not one of {', '.join(FAMILIES)}.")
    if num_slices < 1:
        raise ValueError(f"hardware.num_slices={num_slices} must be 1 or more.")
    if family in TPUS:
        return _compute_tpu_size(family, topology, num_slices, chips_per_host)
    parts = topology.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"hardware.topology={topology!r} must be machines x devices of each for "
            f"{family}, such as 2x8."
        )
    hosts, devices = map(int, parts)
    if num_slices > 1 or chips_per_host:
        raise ValueError(
            f"hardware.num_slices={num_slices} and hardware.chips_per_host={chips_per_host} are "
            f"of TPUs. Leave them out for {family}, and say all in hardware.topology."
        )
    if family in GPUS and devices not in (1, 2, 4, 8):
        raise ValueError(
            f"hardware.topology={topology!r}: a machine has 1, 2, 4 or 8 {family}, not {devices}."
        )
    return JobSize(family, topology, 1, hosts, devices)


def _compute_tpu_size(family: str, topology: str, num_slices: int, chips_per_host: int) -> JobSize:
    topologies = TPUS[family].topologies
    if topology not in topologies:
        raise ValueError(
            f"hardware.topology={topology!r} does not exist for {family}. It has: "
            f"{', '.join(topologies)}."
        )
    chips = math.prod(map(int, topology.split("x")))
    allowed = (4, 8) if topology == "2x4" else (min(chips, 4),)
    if chips_per_host and chips_per_host not in allowed:
        raise ValueError(
            f"hardware.chips_per_host={chips_per_host}: a host of {family} {topology} has "
            f"{' or '.join(map(str, allowed))}. Leave it out for the usual machine."
        )
    each = chips_per_host or allowed[0]
    return JobSize(family, topology, num_slices, chips // each, each)


def convert_to_tpu_vm(size: JobSize) -> JobSize:
    """Returns the size of a job on TPU VMs, one of which has all chips of a 2x4."""
    if size.topology == "2x4" and size.is_tpu:
        return dataclasses.replace(size, hosts=1, devices_per_host=8)
    return size
