"""A digest of the values of a state, by which a checkpoint that was damaged shows.

It is a property of the numbers and not of the files: sums of whole numbers, which are the same
on any mesh, kind of device and number of processes.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from imbalance_jax.compute import hardware

_SPREAD = np.uint32(0x9E3779B1)  # makes a key of a place: 2^32 over the golden ratio, odd
_SHIFTS, _FACTORS = (16, 13, 16), (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))
_BLOCK = 1 << 16  # elements that NumPy takes at once, so that they stay in a core's cache


@dataclasses.dataclass(frozen=True)
class StateDigest:
    """What is known of the arrays of a state, by their paths in it.

    `arrays` has the dtype, shape and digest of each, as in "float32[42,18] 0123456789abcdef".
    """

    arrays: Mapping[str, str]
    not_finite: tuple[str, ...]  # the arrays that have a value which is not finite


def digest_state(state: Any) -> StateDigest:
    """Returns the digest of a nest of arrays, which may lie on the devices of several processes.

    Each element is mixed with its place, and what comes out is added up, as it is and squared.
    One element that changes changes the first sum for sure, because the mixing is one to one;
    several that change, or change places, leave both sums as they are with a probability of
    about 2^-59. All processes call it, and all get the same.
    """
    leaves = name_arrays(state)
    found_A3 = _digest_arrays(list(leaves.values()))
    digests = {
        name: f"{describe_array(leaf)} {first:08x}{second:08x}"
        for (name, leaf), (first, second, _) in zip(leaves.items(), found_A3.tolist(), strict=True)
    }
    spoilt = [name for name, found_3 in zip(leaves, found_A3, strict=True) if found_3[2]]
    return StateDigest(digests, tuple(spoilt))


def name_arrays(tree: Any) -> dict[str, Any]:
    """Returns every array, or shape of one, by its path, however the nodes are made."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(str(getattr(e, "key", getattr(e, "name", getattr(e, "idx", e)))) for e in path): (
            leaf
        )
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


def describe_array(array: Any) -> str:
    """Returns the dtype and shape of an array, as in float32[42,18]."""
    return f"{np.dtype(array.dtype).name}[{','.join(map(str, array.shape))}]"


def _digest_arrays(arrays: list[jax.Array]) -> np.ndarray:
    """Returns the two sums of each array, and how many of its values are not finite: (A, 3)."""
    if not arrays:
        return np.zeros((0, 3), np.uint32)
    placed: Any = arrays[0].sharding
    if next(iter(placed.device_set)).platform != "cpu":
        whole = NamedSharding(placed.mesh, PartitionSpec()) if hasattr(placed, "mesh") else None
        return np.asarray(jit_digests(whole)(arrays))
    # In the host's memory NumPy is as fast, and compiles nothing.
    workers = (
        hardware.count_usable_cores() if sum(array.size for array in arrays) > 16 * _BLOCK else 1
    )
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        found_A3 = np.array(list(threads.map(_digest_shards, arrays)), np.uint32)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        found_PA3 = np.asarray(multihost_utils.process_allgather(found_A3))
        found_A3 = found_PA3.sum(axis=0, dtype=np.uint32)
    return found_A3


@functools.cache
def jit_digests(whole: NamedSharding | None) -> jax.stages.Wrapped:
    """Returns the function that digests arrays where they lie, with its result on all devices."""

    def digest(arrays: list[jax.Array]) -> jax.Array:
        return jnp.stack([_digest_on_devices(array) for array in arrays])

    return jax.jit(digest, out_shardings=whole)


def _digest_on_devices(array: jax.Array) -> jax.Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    # No reshape, which would bring an array that is cut over devices together.
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, stride in enumerate(_count_strides(array.shape)):
        place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * np.uint32(stride)
    mixed = _mix(bits, place * _SPREAD)
    spoilt = ~jnp.isfinite(array) if _is_float(array) else jnp.zeros((), bool)
    return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in (mixed, mixed * mixed, spoilt)])


def _digest_shards(array: jax.Array) -> list[int]:
    """Returns the same of the parts that this process holds, each part of the array once."""
    parts = [
        _digest_part(np.asarray(shard.data), shard.index, array.shape)
        for shard in array.addressable_shards
        if not shard.replica_id
    ]
    return [sum(column) % 2**32 for column in zip((0, 0, 0), *parts, strict=True)]


def _digest_part(
    values: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]
) -> tuple[int, int, int]:
    """Returns the same of a part of an array of some shape, a block of rows at a time."""
    keys = [np.zeros(1, np.uint32)] * 2  # along each axis, after two of size one
    for axis, stride in enumerate(_count_strides(shape)):
        first, end, _ = index[axis].indices(shape[axis])
        places = np.arange(first, end, dtype=np.uint64) * np.uint64(stride)
        keys.append(places.astype(np.uint32) * _SPREAD)
    *before, key_C = keys
    key_R = functools.reduce(lambda x, y: np.add.outer(x, y).reshape(-1), before)
    values_RC = values.reshape(len(key_R), len(key_C))
    sums = (0, 0, 0)
    each = max(1, _BLOCK // max(1, len(key_C)))
    mixed_RC, spare_RC = np.empty((2, min(each, len(key_R)), len(key_C)), np.uint32)
    for row in range(0, len(key_R), each):
        block = values_RC[row : row + each]
        mixed, spare = mixed_RC[: len(block)], spare_RC[: len(block)]
        np.add(key_R[row : row + each, None], key_C, out=mixed)
        mixed ^= block.view(f"u{block.dtype.itemsize}")
        # As `_mix`, in place, which takes half of the time.
        for shift, factor in zip(_SHIFTS, (*_FACTORS, None), strict=True):
            np.right_shift(mixed, shift, out=spare)
            mixed ^= spare
            if factor is not None:
                mixed *= factor
        np.multiply(mixed, mixed, out=spare)
        spoilt = _count_nonfinite(block) if _is_float(block) else 0
        found = int(mixed.sum(dtype=np.uint32)), int(spare.sum(dtype=np.uint32)), spoilt
        sums = (sums[0] + found[0], sums[1] + found[1], sums[2] + found[2])
    return sums


def _count_nonfinite(block: np.ndarray) -> int:
    # A sum of products is not finite if one of them is not, and takes a tenth of the time.
    flat = block.reshape(-1)
    if flat.dtype == np.float32:
        with np.errstate(all="ignore"):
            if np.isfinite(np.dot(flat, flat)):
                return 0
    return block.size - int(np.isfinite(block).sum())


def _count_strides(shape: tuple[int, ...]) -> list[int]:
    """Returns how far apart the elements along each axis are, modulo 2^32."""
    return [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]


def _is_float(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def _mix(bits: jax.Array, key: jax.Array) -> jax.Array:
    """Returns a number for the bits of each element and its key; one to one for each key.

    It is the last step of MurmurHash3 (Appleby, public domain).
    """
    mixed = bits ^ key
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return mixed ^ (mixed >> _SHIFTS[-1])
