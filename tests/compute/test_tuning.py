"""What "auto" stands for: chosen from the device, and never without a way to set it."""

import contextlib
import dataclasses
import math
import types
from typing import Any

import numpy as np
import pytest
from helpers import make_mesh

from imbalance_jax import config as config_lib
from imbalance_jax.compute import tuning
from imbalance_jax.config import ModelConfig


def device(platform: str, compute_capability: str = "") -> types.SimpleNamespace:
    found = types.SimpleNamespace(platform=platform)
    if compute_capability:
        found.compute_capability = compute_capability
    return found


def test_nothing_is_left_to_choose_on_any_device():
    for platform in ("cpu", "gpu", "tpu"):
        model = tuning.resolve_auto_fields(ModelConfig(), device(platform))
        assert "auto" not in dataclasses.asdict(model).values()
        assert (
            tuning.resolve_auto_fields(model, device("cpu")) == model
        )  # settled once is settled for good


@pytest.mark.parametrize(("path", "has_it"), [("cudnn", "gpu"), ("splash", "tpu")])
def test_a_kernel_that_a_device_lacks_is_refused_by_its_field(path, has_it):
    for platform in ("cpu", "gpu", "tpu"):
        expected = (
            contextlib.nullcontext()
            if platform == has_it
            else pytest.raises(
                ValueError,
                match=rf"config\.model\.attention={path} is a kernel of {has_it.upper()}s",
            )
        )
        with expected:
            tuning.check_attention_on_device(ModelConfig(attention=path), device(platform))


def test_only_a_cpu_computes_in_float32():
    chosen = {
        p: tuning.resolve_auto_fields(ModelConfig(), device(p)).dtype for p in ("cpu", "gpu", "tpu")
    }
    assert chosen == {"cpu": "float32", "gpu": "bfloat16", "tpu": "bfloat16"}


def test_what_a_config_sets_is_kept():
    model = ModelConfig(dtype="float32", attention="einsum", remat="full", loss_chunk=8)
    assert tuning.resolve_auto_fields(model, device("gpu", "9.0")) == model
    mesh = make_mesh(1)
    assert tuning.resolve_auto_on_mesh(mesh, model, 4, 100) == model


@pytest.mark.parametrize(
    ("changes", "capability", "path"),
    [
        ({}, "9.0", "cudnn"),
        ({"K": 32}, "8.0", "cudnn"),
        ({}, "7.5", "fused"),  # before Ampere
        ({}, "gfx942", "fused"),  # of another maker
        ({}, "", "fused"),
        ({"K": 36}, "9.0", "fused"),
        ({"K": 256}, "9.0", "fused"),
        ({"dtype": "float32"}, "9.0", "fused"),
    ],
)
def test_cudnn_attention_is_chosen_where_it_can_run(changes, capability, path):
    model = tuning.resolve_auto_fields(ModelConfig(**changes), device("gpu", capability))
    assert model.attention == path


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_blocks_that_are_written_out_compute_nothing_again(platform):
    for scanned, remat in ((False, "none"), (True, "dots")):
        model = ModelConfig(scan_layers=scanned)
        assert tuning.resolve_auto_fields(model, device(platform)).remat == remat


def test_the_chunk_of_the_loss_is_the_largest_divisor_that_fits(monkeypatch):
    def chosen(tokens: int, size: int) -> int:
        monkeypatch.setitem(tuning._CHUNK, "cpu", (tokens, size))
        return tuning.choose_loss_chunk(rows=3, L=12, V=29, platform="cpu")

    assert chosen(tokens=3 * 5, size=0) == 4  # 5 positions fit, 5 is no divisor
    assert chosen(tokens=1, size=4 * 29 * 3 * 6) == 6  # so many bytes of fp32
    assert chosen(tokens=1, size=1) == 1
    assert chosen(tokens=1 << 20, size=0) == 12


def test_the_chunk_is_that_of_one_devices_part_of_the_batch():
    mesh = make_mesh(data=4, tensor=2)
    whole = tuning.resolve_auto_on_mesh(mesh, ModelConfig(L=512), 16, 64_000)
    assert whole.loss_chunk == tuning.choose_loss_chunk(4, 512, 32_000, "cpu") == 128


def test_a_tpu_takes_the_logits_of_a_vocabulary_it_has_whole_in_tiles_that_fit_its_memory():
    def chosen(kind: str, V: int, model: ModelConfig | None = None, **axes: int) -> Any:
        shape = {"data": 1, "fsdp": 1, "tensor": 1} | axes
        one = device(kind.split()[0].lower())
        one.device_kind = kind
        mesh: Any = types.SimpleNamespace(
            shape=shape, devices=np.array([one]), size=math.prod(shape.values())
        )
        settled = tuning.resolve_auto_on_mesh(mesh, model or ModelConfig(L=512), 32, V)
        return settled.loss_chunk, settled.loss_tile

    # 32 x 256 positions, and 1,024 ids of them: 32 MB in fp32.
    v6e = "TPU v6 lite"
    assert chosen(v6e, 163_840) == (256, 1024)
    assert chosen(v6e, 163_840, data=4) == (512, 2048)
    whole = [chosen(v6e, 163_840, tensor=2), chosen(v6e, 163_840, fsdp=2), chosen(v6e, 32_749)]
    whole += [chosen(kind, 163_840) for kind in ("TPU v5", "cpu", "gpu")]
    assert {tile for _, tile in whole} == {0}  # 32,749 is a prime
    assert chosen("cpu", 163_840, ModelConfig(L=512, loss_tile=5000))[1] == 4096


def test_ten_languages_never_have_all_their_logits_at_once():
    """128 x 512 positions over 163,840 ids take 43 GB in fp32."""
    for platform in ("cpu", "gpu", "tpu"):
        chunk = tuning.choose_loss_chunk(128, 512, 163_840, platform)
        assert 4 * 128 * chunk * 163_840 <= 1.4e9


def test_a_run_goes_on_however_it_is_computed():
    config = config_lib.resolve_config(config_lib.cloned(scale="demo", ratio="1:1"))
    ways = {"attention": "einsum", "remat": "full", "scan_layers": True, "loss_chunk": 2}
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, **ways))
    assert config_lib.build_run_identity(other) == config_lib.build_run_identity(config)
    rounded = dataclasses.replace(config.model, dtype="bfloat16")
    other = dataclasses.replace(config, model=rounded)
    assert config_lib.build_run_identity(other) != config_lib.build_run_identity(config)
