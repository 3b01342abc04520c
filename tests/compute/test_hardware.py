"""The peaks that MFU is a share of."""

import types
import warnings

import jax
import pytest

from imbalance_jax.compute import hardware


@pytest.fixture
def pretend(monkeypatch):
    """Has JAX see devices of some kind, and a matrix product that is not really timed."""

    def see(kind: str, count: int = 2, platform: str = "gpu") -> None:
        device = types.SimpleNamespace(device_kind=kind, platform=platform)
        monkeypatch.setattr(jax, "devices", lambda: [device] * count)
        monkeypatch.setattr(jax, "device_count", lambda: count)
        monkeypatch.setattr(hardware, "measure_matmul_peak", measured)
        hardware.get_peak_flops.cache_clear()

    def measured(dtype: str, tries: int = 4) -> float:
        return {"bfloat16": 8e12, "float32": 1e12}[dtype]

    yield see
    hardware.get_peak_flops.cache_clear()


@pytest.mark.parametrize("fails", ["at once", "later"])
def test_programs_that_cannot_be_kept_are_one_line_and_end_nothing(
    tmp_path, monkeypatch, capsys, fails
):
    changed, show = {}, warnings.showwarning
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(hardware, "_has_warned", False)
    hardware._catch_cache_warnings.cache_clear()
    (tmp_path / "file").touch()
    place = tmp_path / ("file" if fails == "at once" else "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        hardware.use_compilation_cache(place)
        for name in ("jit_a", "jit_b"):
            # As jax/_src/compiler.py warns.
            warnings.warn(
                f"Error writing persistent compilation cache entry for '{name}': OSError: [Errno "
                "28] No space left on device",
                stacklevel=1,
            )
    assert changed.get("jax_enable_compilation_cache", True) == (fails == "later")
    said = {"at once": f"{place}: Not a directory", "later": "OSError: [Errno 28] No space"}[fails]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Warning: every start compiles its programs again. {said}")


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("TPU v3", 123 / 2),  # a device is half a chip
        ("TPU7x", 2307 / 2),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_each_kind_of_device_has_the_peak_of_its_own_datasheet(pretend, kind, teraflops):
    pretend(kind)
    peak = hardware.get_peak_flops("bfloat16")
    assert peak.value == pytest.approx(2 * teraflops * 1e12)
    assert peak.source == "datasheet: dense bf16, 2 devices"


@pytest.mark.parametrize(
    "kind", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "TPU v2"]
)
def test_a_device_of_no_known_datasheet_is_measured_in_the_precision_of_the_run(pretend, kind):
    pretend(kind)
    assert hardware.find_datasheet_flops() is None
    peak = hardware.get_peak_flops("bfloat16")
    assert peak.value == 2 * 8e12
    assert peak.source == "measured: best bfloat16 matmul of 8192^3 in this process"


def test_a_run_in_float32_is_no_share_of_a_bfloat16_peak(pretend):
    pretend("NVIDIA H100 PCIe")
    assert hardware.get_peak_flops("float32").value == 2 * 1e12


def test_simulated_devices_of_a_cpu_share_one_measured_peak(pretend):
    pretend("cpu", count=8, platform="cpu")
    peak = hardware.get_peak_flops("float32")
    assert (peak.value, peak.source) == (
        1e12,
        "measured: best float32 matmul of 2048^3 in this process",
    )
