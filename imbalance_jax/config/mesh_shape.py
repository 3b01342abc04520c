"""The sizes of the mesh, and the dimensions that have to divide by them.

`launch` checks a run's mesh by this arithmetic before there are any devices.
"""

import dataclasses
import math
from collections.abc import Mapping

from imbalance_jax.config import Config, MeshConfig

AXES = ("member", "data", "fsdp", "tensor")
# The axis along which a dimension of a parameter is cut.
PARAMETER_AXES = {"D": "fsdp", "F": "tensor", "H": "tensor", "J": "tensor", "V": "tensor"}


def resolve_axis_sizes(config: MeshConfig, devices: int, *, packed: bool = False) -> dict[str, int]:
    """Returns the size of each axis of a mesh.

    Args:
      config: the sizes that are asked for.
      devices: their number.
      packed: whether the mesh is for a pack. In the mesh of a run alone, the data axis takes the
        devices of the members.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    if not packed and config.member != 1:
        data = -1 if -1 in (config.member, config.data) else config.member * config.data
        config = dataclasses.replace(config, member=1, data=data)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    fixed = math.prod(size for size in sizes.values() if size > 0)
    rest = [axis for axis, size in sizes.items() if size == -1]
    if devices % fixed or (not rest and fixed != devices):
        wanted = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
        raise ValueError(
            f"{wanted} do not fit {devices} devices. Set sizes whose product is {devices}, with "
            "-1 for the rest."
        )
    return sizes | {axis: devices // fixed for axis in rest}


def find_slice_axis(sizes: Mapping[str, int], slices: int) -> str:
    """Returns the axis that lies across several slices; the others stay within a slice.

    Raises:
      ValueError: neither member nor data divides over them.
    """
    for axis in ("member", "data"):
        if sizes[axis] % slices == 0:
            return axis
    raise ValueError(
        f"config.mesh.data={sizes['data']} cannot be cut over {slices} slices, and the other axes "
        "stay within one, as the network between them is slow. Set config.mesh.data to a multiple "
        f"of {slices}."
    )


def list_micro_batch_counts(batch_size: int, sizes: Mapping[str, int]) -> list[int]:
    """Returns the numbers of micro-batches that cut a batch evenly over the devices."""
    parts, rest = divmod(batch_size, sizes["data"] * sizes["fsdp"])
    return [] if rest else list_divisors(parts)


def list_divisors(number: int) -> list[int]:
    """Returns the divisors of a number, the lowest first."""
    low = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return sorted({*low, *(number // k for k in low)})


def check_batch(config: Config, sizes: Mapping[str, int]) -> None:
    """Raises ValueError if the batch cannot be cut evenly over the devices."""
    rows = sizes["data"] * sizes["fsdp"]
    micro = config.batch_size // config.optimizer.accumulate
    if micro % rows:
        possible = list_micro_batch_counts(config.batch_size, sizes)
        if possible:
            # The most that fit, because a batch is cut where memory is short.
            most = max(k for k in possible if k <= max(config.optimizer.accumulate, possible[0]))
            raise ValueError(
                f"config.batch_size={config.batch_size} in {config.optimizer.accumulate} "
                f"micro-batches cannot be split over {rows} devices. Set "
                f"config.optimizer.accumulate={most}, as --accumulate={most} does."
            )
        each = rows * config.optimizer.accumulate
        below, above = micro // rows * each, -(-micro // rows) * each
        choices = f"{below} or {above}" if below else f"{above}"
        parts = f" in {config.optimizer.accumulate} micro-batches" * (each > rows)
        raise ValueError(
            f"config.batch_size={config.batch_size}{parts} cannot be split over {rows} "
            f"devices. Set config.batch_size to a multiple of {each}, such as {choices}."
        )


def check_dimensions(config: Config, sizes: Mapping[str, int], vocab_size: int) -> None:
    """Raises ValueError if a dimension of the model cannot be cut evenly."""
    model = config.model
    widths = {"D": model.D, "F": model.F, "H": model.H, "V": vocab_size}
    if model.kv_heads:
        widths["J"] = model.kv_heads
    for dim, width in widths.items():
        axis = PARAMETER_AXES[dim]
        if width % sizes[axis]:
            names = {"V": "the vocabulary", "J": "config.model.kv_heads"}
            name = names.get(dim, f"config.model.{dim}")
            raise ValueError(
                f"{name}={width} cannot be cut over config.mesh.{axis}={sizes[axis]}. "
                f"Set config.mesh.{axis} to a divisor of {width}."
            )
