"""The mesh, and which device holds what.

One table, in mesh_shape.py, says along which mesh axis a dimension is cut. It is applied to
parameters by their names, and to the optimizer's moments, which share the names. The batch is cut
along data and fsdp together; everything else is held whole by every device. What is stacked for
the members of a pack is cut along member, in front of all that.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imbalance_jax import mesh_shape
from imbalance_jax.config import Config, MeshConfig
from imbalance_jax.mesh_shape import AXES, PARAMETER_AXES

BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device], *, packed: bool = False) -> Mesh:
    """Returns the mesh of a config over these devices; see `mesh_shape.of`.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = mesh_shape.of(config, len(devices), packed=packed)
    # Auto: the compiler places what is between the shardings that we pin. (The default,
    # Explicit, would want every einsum annotated.)
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def of_one_member(mesh: Mesh) -> Mesh:
    """Returns a pack's mesh as that of one member on all devices, which share its data out."""
    member, data, *others = mesh.devices.shape
    devices = mesh.devices.reshape(1, member * data, *others)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(config: Config, mesh: Mesh) -> None:
    """Raises ValueError if the batch cannot be cut evenly over the devices."""
    mesh_shape.check_batch(config, mesh.shape)


def check_dimensions(config: Config, mesh: Mesh, vocab_size: int) -> None:
    """Raises ValueError if a dimension of the model cannot be cut evenly."""
    mesh_shape.check_dimensions(config, mesh.shape, vocab_size)


def parameter_spec(name: str, ndim: int, stacked: bool) -> PartitionSpec:
    """Returns the spec of `w_q_DHK` and its like; stacked ones have N in front."""
    dims = "N" * stacked + name.rpartition("_")[2]
    if len(dims) != ndim:
        raise ValueError(f"{name} is named for {dims} but has {ndim} dimensions.")
    # A bias or a norm's scale is not worth a gather of its own.
    cut = len(dims) - stacked > 1
    return PartitionSpec(*(PARAMETER_AXES.get(dim) if cut else None for dim in dims))


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns the sharding of every array of a TrainState, or of parameters alone."""

    def of(path: tuple, leaf: Any) -> NamedSharding:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        if not names:  # counters
            return replicated(mesh)
        return NamedSharding(mesh, parameter_spec(names[-1], len(leaf.shape), "blocks" in names))

    return jax.tree_util.tree_map_with_path(of, state)


def stacked(shardings: Any) -> Any:
    """Returns the shardings of arrays with a dimension of members in front."""
    return jax.tree.map(
        lambda one: NamedSharding(one.mesh, PartitionSpec("member", *one.spec)), shardings
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def in_context(mesh: Mesh, function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Returns a function with its first arguments given, traced with a mesh in context.

    Kernels that the compiler cannot cut up ask there which part of an array is theirs.
    """

    @functools.wraps(function)
    def on_mesh(*rest: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, *rest)

    return on_mesh
