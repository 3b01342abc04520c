"""The mesh, and which device holds what.

One table, in mesh_shape.py, says along which mesh axis a dimension is cut. It is applied to
parameters by their names, and to the optimizer's moments, which share the names. The batch is cut
along data and fsdp together; everything else is held whole by every device. What is stacked for
the members of a pack is cut along member, in front of all that.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imbalance_jax.config import Config, MeshConfig, dimensions, mesh_shape
from imbalance_jax.config.mesh_shape import AXES, PARAMETER_AXES

BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device], *, packed: bool = False) -> Mesh:
    """Returns the mesh of a config over these devices; see `resolve_axis_sizes`.

    The axes are laid out so that the last ones, which talk most, have the fastest connections.
    Between slices of TPUs only members or copies of the model are apart.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or an axis other than
        member and data would lie across slices.
    """
    return _build_mesh(
        arrange_devices(mesh_shape.resolve_axis_sizes(config, len(devices), packed=packed), devices)
    )


def arrange_devices(sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns the devices in an array with a dimension of each axis, neighbours in it close.

    Args:
      sizes: of the axes, in their order; their product is the number of devices.
      devices: all of them.

    Raises:
      ValueError: there are several slices, and neither member nor data divides over them.
    """
    # jax's own jax.make_mesh knows neither slices nor shapes that split a torus.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(
            tuple(sizes.values()), devices, allow_split_physical_axes=True
        )
    outer = mesh_shape.find_slice_axis(sizes, slices)
    across = {axis: slices if axis == outer else 1 for axis in sizes}
    within = dict(sizes) | {outer: sizes[outer] // slices}
    return mesh_utils.create_hybrid_device_mesh(
        tuple(within.values()),
        tuple(across.values()),
        devices,
        allow_split_physical_axes=True,
    )


def _build_mesh(devices: np.ndarray) -> Mesh:
    # Auto: the compiler places what is between the shardings that we pin. (The default,
    # Explicit, would want every einsum annotated.)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def describe_axis_span(mesh: Mesh, axis: str) -> str:
    """Returns what an axis lies across: devices of a host, hosts, or slices."""
    along = np.moveaxis(mesh.devices, AXES.index(axis), 0).reshape(mesh.shape[axis], -1)
    for words, place in (("slices", "slice_index"), ("hosts", "process_index")):
        if any(len({getattr(d, place, 0) for d in line}) > 1 for line in along.T):
            return words
    return "devices of a host"


def make_one_member_mesh(mesh: Mesh) -> Mesh:
    """Returns a pack's mesh as that of one member on all devices, which share its data out."""
    member, data, *others = mesh.devices.shape
    return _build_mesh(mesh.devices.reshape(1, member * data, *others))


def check_batch(config: Config, mesh: Mesh) -> None:
    """Raises ValueError if the batch cannot be cut evenly over the devices."""
    mesh_shape.check_batch(config, mesh.shape)


def check_dimensions(config: Config, mesh: Mesh, vocab_size: int) -> None:
    """Raises ValueError if a dimension of the model cannot be cut evenly."""
    mesh_shape.check_dimensions(config, mesh.shape, vocab_size)


def parameter_spec(name: str, ndim: int, stacked: bool) -> PartitionSpec:
    """Returns the spec of `w_q_DHK` and its like; stacked ones have N in front."""
    dims = dimensions.parse_dimensions(name, stacked)
    if len(dims) != ndim:
        raise ValueError(f"{name} is named for {dims} but has {ndim} dimensions.")
    # A bias or a norm's scale is not worth a gather of its own.
    cut = len(dims) - stacked > 1
    return PartitionSpec(*(PARAMETER_AXES.get(dim) if cut else None for dim in dims))


def make_state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns the sharding of every array of a TrainState, or of parameters alone."""

    def of(path: tuple, leaf: Any) -> NamedSharding:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        stacked = "blocks" in names
        dims = dimensions.parse_dimensions(names[-1], stacked) if names else ""
        if dims.isupper() and leaf.ndim == len(dims) + 1 and _is_optimizer_state(path):
            # What it keeps of each language.
            spec = parameter_spec(names[-1], leaf.ndim - 1, stacked)
            return NamedSharding(mesh, PartitionSpec(None, *spec))
        # Counters, and what an optimizer keeps of a row or a column of a parameter.
        if not dims.isupper() or (len(dims) != leaf.ndim and _is_optimizer_state(path)):
            return make_replicated_sharding(mesh)
        return NamedSharding(mesh, parameter_spec(names[-1], leaf.ndim, stacked))

    return jax.tree_util.tree_map_with_path(of, state)


def _is_optimizer_state(path: tuple) -> bool:
    return any(getattr(entry, "name", "") == "opt_state" for entry in path)


def stack_shardings(shardings: Any) -> Any:
    """Returns the shardings of arrays with a dimension of members in front."""
    return jax.tree.map(
        lambda one: NamedSharding(one.mesh, PartitionSpec("member", *one.spec)), shardings
    )


def make_batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def make_replicated_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def bind_mesh_context(mesh: Mesh, function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Returns a function with its first arguments given, traced with a mesh in context.

    Kernels that the compiler cannot cut up ask there which part of an array is theirs.
    """

    @functools.wraps(function)
    def on_mesh(*rest: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, *rest)

    return on_mesh
