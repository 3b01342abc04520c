"""The table of what each device holds, against the arrays themselves."""

import pathlib
import re

import helpers
import jax

from imbalance_jax.compute import sharding, step
from imbalance_jax.config import MeshConfig
from imbalance_jax.training import planning

UNITS = {"B": 1, "KB": 1e3, "MB": 1e6}


def test_the_table_says_what_a_device_really_holds():
    config = helpers.tiny_config(pathlib.Path("unused"))
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
    lines = list(
        planning.render_sharding_table(step.make_abstract_state(config, 96, mesh), mesh, (8, 17))
    )
    state = step.jit_init_state(config, 96, mesh)(jax.random.key(0))
    held = {
        name: sum(leaf.addressable_shards[3].data.nbytes for leaf in jax.tree.leaves(part))
        for name, part in {"parameters": state.params, "optimizer": state.opt_state}.items()
    }
    for name, size in held.items():
        found = next(line for line in lines if line.strip().startswith(name))
        value, unit = re.search(r"([\d.]+) (\w+)$", found).groups()
        assert abs(float(value) * UNITS[unit] / size - 1) < 0.005
    assert "data 2 (devices of a host)" in lines[0]
    embedding = next(line for line in lines if "embed_VD" in line)
    assert "96 x 16" in embedding and "V tensor, D fsdp" in embedding
    assert lines[-1].split() == ["batch", "8", "x", "17", "B", "data", "x", "fsdp", "2", "x", "17"]
