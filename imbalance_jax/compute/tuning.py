"""Which of several ways to compute the same is taken on a kind of device: all in one place.

A field of `config.model` that says "auto", or a chunk of 0, is settled here. Each choice has
the measurement it rests on beside it, or says that it rests on none yet; docs/performance.md
has the figures, and `bench` measures them anew.
"""

import dataclasses
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from imbalance_jax.config import Attention, ModelConfig, mesh_shape

# Logits that exist at once, by platform: this many tokens, or as many as fill this many bytes
# of fp32, whichever is more. Each chunk adds to the gradient of the whole head, which costs
# 12 V D bytes of traffic however few tokens it has; that is small beside a matrix product from
# some hundred tokens on. On two cores of a CPU, mini with V = 32,768: a step of 4 x 512 took
# 5.1 s in chunks of 32 tokens, 3.5 s in chunks of 512, 3.8 s in chunks of 1,024.
# On a GPU or TPU it is arithmetic, not yet a measurement: with ten languages at D = 768, chunks
# of 2,048 tokens cost 0.7 MB of that traffic a token, and their logits take 1.3 GB.
_CHUNK = {"cpu": (512, 1 << 22)}
_CHUNK_ELSEWHERE = (2048, 1 << 30)

# Where a device computes the head's logits twice, in tiles of the vocabulary that stay in its own
# memory: tokens at once, at most, and bytes of a tile's fp32 logits. Compiled for a v6e, a step of
# mini with 8 x 512 a chip reads and writes 2.8 GB in place of 5.3, with a fifth more products. For
# a v5p, XLA keeps no tile of 8 to 32 MB in that memory.
_TILED_KINDS = ("TPU v5 lite", "TPU v5e", "TPU v6 lite", "TPU v6e")
_TILED_TOKENS, _TILE_BYTES = 8192, 1 << 25
_LEAST_TILE = 256  # ids below which products are too narrow for the matrix units

# Options of XLA for every program of training, by platform. None has been tried yet.
COMPILER_OPTIONS: Mapping[str, Mapping[str, str]] = {"cpu": {}, "gpu": {}, "tpu": {}}

# How the members of a pack that share a device take an update: scan, in turn, or vmap, together.
# In turn, each is the run alone bit by bit, and one that is frozen takes no time. On two cores of
# a CPU, a step of eight runs of demo took 1.37 s by scan and 2.06 s by vmap (medians of five
# rounds on a busy machine), and 80 MB against 383 MB. On an H100, 32.4 ms by scan and 25.4 ms by
# vmap for eight of pico, 95.6 and 53.8 ms for eight of mini with 16 sequences each; for four of
# mini with 128, which fill it, 222 and 213 ms. bench --members times both.
_PACKING = {"cpu": "scan"}
_PACKING_ELSEWHERE = "vmap"

# Programs that measure run a few times and are many: at level 1 they compile in half the time
# on a CPU, and ran no slower.
MEASURING_OPTIONS: Mapping[str, Mapping[str, int]] = {"cpu": {"xla_backend_optimization_level": 1}}


def resolve_auto_fields(model: ModelConfig, device: jax.Device) -> ModelConfig:
    """Returns the model with each "auto" replaced by what it stands for on a kind of device."""
    platform = device.platform
    dtype = model.dtype
    if dtype == "auto":
        # bf16 is what the matrix units of accelerators are made for. Some CPUs have such units too
        # (a step of mini takes 1.0 s in place of 1.7 with AMX), but results should not depend on
        # which CPU it is.
        dtype = "float32" if platform == "cpu" else "bfloat16"
    attention = model.attention
    if attention == "auto":
        attention = _choose_attention(model, dtype, device)
    remat = model.remat
    if remat == "auto":
        # A scan keeps what the backward pass needs by copying it into one array for all blocks.
        # On a CPU, computing the elementwise part again took no longer (mini: 3.5 s a step
        # either way), in half the memory (454 MB of 1,030 MB). Compiled for a v5e with XLA's own
        # attention, small needs 18 GB of its 16 without, and 6 with it. Compiled for an H200,
        # small at 128 x 512 moves 319 GB a step with it and 391 GB without, and written out,
        # where nothing is copied, 257 GB without. No GPU has measured it.
        remat = "dots" if model.scan_layers else "none"
    return dataclasses.replace(model, dtype=dtype, attention=attention, remat=remat)


def _choose_attention(model: ModelConfig, dtype: str, device: jax.Device) -> Attention:
    if device.platform == "cpu":
        return "blockwise"  # 5/8 of the pairs: a step of mini in 3.3 s, with einsum in 3.5 s
    if device.platform == "tpu":
        return "splash"  # as compiled for a v5e, less traffic than blocks or XLA's own
    if model.documents == "apart":
        # cuDNN takes documents as a bias, whose gradient it computes too: not measured yet.
        return "fused"
    if device.platform == "gpu" and dtype == "bfloat16" and model.K % 8 == 0 and model.K <= 128:
        # What cuDNN's flash attention takes, from Ampere on. JAX never chooses it by itself.
        try:
            return "cudnn" if float(device.compute_capability) >= 8.0 else "fused"
        except (AttributeError, ValueError):  # not one of NVIDIA's
            return "fused"
    return "fused"


def check_attention_on_device(model: ModelConfig, device: jax.Device) -> None:
    """Raises ValueError where the config asks for a kernel of another kind of device."""
    platform = {"cudnn": "gpu", "splash": "tpu"}.get(model.attention, device.platform)
    if platform != device.platform:
        raise ValueError(
            f"config.model.attention={model.attention} is a kernel of {platform.upper()}s, and "
            f"this is a {device.platform.upper()}. Set config.model.attention=auto."
        )


def is_traced_for_cpu() -> bool:
    """Whether a program is traced for CPUs: those of the mesh in context, or the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device.device_kind if device else jax.default_backend()) == "cpu"


def choose_packing(mesh: Mesh) -> str:
    """Returns how the members of a pack that share a device take an update: scan or vmap."""
    return _PACKING.get(mesh.devices.flat[0].platform, _PACKING_ELSEWHERE)


def choose_loss_chunk(rows: int, L: int, V: int, platform: str) -> int:
    """Returns how many positions of each sequence have their logits exist at once.

    Args:
      rows: sequences on one device.
      L: positions of a sequence; the result divides it.
      V: ids of the vocabulary on one device.
      platform: of the device.
    """
    tokens, size = _CHUNK.get(platform, _CHUNK_ELSEWHERE)
    return _choose_chunk(rows, L, max(tokens, size // (4 * V)))


def _choose_chunk(rows: int, L: int, tokens: int) -> int:
    return max((c for c in mesh_shape.list_divisors(L) if rows * c <= tokens), default=1)


def resolve_auto_on_mesh(
    mesh: Mesh, model: ModelConfig, batch_size: int, vocab_size: int
) -> ModelConfig:
    """Returns what `resolve_auto_fields` does for the devices of a mesh, with the loss's chunk
    and tile chosen too. A tile of 0 is all ids.

    Args:
      mesh: of the devices.
      model: the config.
      batch_size: sequences that are worked on at once, on all devices.
      vocab_size: ids of all languages.
    """
    device = mesh.devices.flat[0]
    rows = -(-batch_size // (mesh.shape["data"] * mesh.shape["fsdp"]))
    chunk, tile = model.loss_chunk, 0
    if model.loss_tile:
        tile = max(t for t in mesh_shape.list_divisors(vocab_size) if t <= model.loss_tile)
    elif device.device_kind in _TILED_KINDS and mesh.shape["tensor"] == mesh.shape["fsdp"] == 1:
        tiled_chunk = chunk or _choose_chunk(rows, model.L, _TILED_TOKENS)
        most = _TILE_BYTES // (4 * rows * tiled_chunk)
        widest = max((t for t in mesh_shape.list_divisors(vocab_size) if t <= most), default=1)
        if widest >= _LEAST_TILE:
            chunk, tile = tiled_chunk, widest
    chunk = chunk or choose_loss_chunk(
        rows, model.L, vocab_size // mesh.shape["tensor"], device.platform
    )
    return dataclasses.replace(resolve_auto_fields(model, device), loss_chunk=chunk, loss_tile=tile)
