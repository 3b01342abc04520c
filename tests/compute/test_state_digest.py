"""The digest of a state is that of its values, and any change of them shows in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_mesh
from jax.sharding import NamedSharding, PartitionSpec

from imbalance_jax.compute import state_digest

RNG = np.random.default_rng(0)
VALUES = {
    "step": np.int32(7),
    "w_DF": RNG.standard_normal((4, 6)).astype(np.float32),
    "blocks": {"w_NDF": RNG.standard_normal((2, 4, 6)).astype(np.float32)},
    "half_D": np.asarray(jnp.asarray(RNG.standard_normal(4), jnp.bfloat16)),
    "count_G": np.array([3, -1], np.int32),
}
SPECS = {
    "step": PartitionSpec(),
    "w_DF": PartitionSpec("fsdp", "tensor"),
    "blocks": {"w_NDF": PartitionSpec(None, "tensor", "fsdp")},
    "half_D": PartitionSpec("fsdp"),
    "count_G": PartitionSpec(),
}
MESHES = {"one": {"devices": 1}, "eight": {"fsdp": 2}, "cube": {"fsdp": 2, "tensor": 2}}


def place(values, sizes):
    mesh = make_mesh(**sizes)
    return jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), values, SPECS
    )


def compute_slowly(values: np.ndarray) -> str:
    """Returns the digest of an array, an element at a time and with Python's numbers."""
    first = second = 0
    raw, width = values.tobytes(), values.dtype.itemsize
    for place in range(values.size):
        number = int.from_bytes(raw[place * width : (place + 1) * width], "little")
        number ^= place * 0x9E3779B1 % 2**32
        number = (number ^ number >> 16) * 0x85EBCA6B % 2**32
        number = (number ^ number >> 13) * 0xC2B2AE35 % 2**32
        number ^= number >> 16
        first, second = first + number, second + number**2
    return f"{first % 2**32:08x}{second % 2**32:08x}"


@pytest.mark.parametrize("mesh", MESHES)
def test_a_digest_is_the_same_on_any_mesh_and_where_it_is_compiled(mesh):
    placed = place(VALUES, MESHES[mesh])
    found = state_digest.digest_state(placed)
    expected = {
        name: f"{state_digest.describe_array(leaf)} {compute_slowly(np.asarray(leaf))}"
        for name, leaf in state_digest.name_arrays(VALUES).items()
    }
    assert found.arrays == expected and found.not_finite == ()
    assert found.arrays["half_D"].startswith("bfloat16[4] ")
    leaves = list(state_digest.name_arrays(placed).values())
    compiled = state_digest.jit_digests(NamedSharding(leaves[0].sharding.mesh, PartitionSpec()))
    words = [
        f"{first:08x}{second:08x}" for first, second, _ in np.asarray(compiled(leaves)).tolist()
    ]
    assert words == [text.split()[-1] for text in expected.values()]
    assert "all-gather" not in compiled.lower(leaves).compile().as_text()


def test_any_bit_and_any_two_numbers_that_change_places_show():
    values = np.array([1.5, -1.5, 1.5, 0.0, -0.0], np.float32)
    seen = set()
    for element in range(5):
        for bit in range(32):
            flipped = values.view(np.uint32).copy()
            flipped[element] ^= np.uint32(1 << bit)
            seen.add(
                state_digest.digest_state({"x": jnp.asarray(flipped.view(np.float32))}).arrays["x"]
            )
    for one, other in [(0, 1), (1, 2), (3, 4)]:
        swapped = values.copy()
        swapped[[one, other]] = values[[other, one]]
        seen.add(state_digest.digest_state({"x": jnp.asarray(swapped)}).arrays["x"])
    assert len(seen) == 5 * 32 + 3
    assert state_digest.digest_state({"x": jnp.asarray(values)}).arrays["x"] not in seen


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_array_that_is_not_finite_is_named(value):
    spoilt = VALUES["blocks"]["w_NDF"].copy()
    spoilt[1, 2, 3] = value
    placed = place(VALUES | {"blocks": {"w_NDF": spoilt}}, MESHES["cube"])
    assert state_digest.digest_state(placed).not_finite == ("blocks/w_NDF",)
    count_A = np.asarray(
        state_digest.jit_digests(None)(list(state_digest.name_arrays(placed).values()))
    )[:, 2]
    assert sorted(count_A) == [0, 0, 0, 0, 1]
