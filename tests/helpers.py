"""What tests of several rooms share. Importing it must not import jax."""

import json
import os
import pathlib
import subprocess
import sys
import typing

from imbalance_jax import config as config_lib

if typing.TYPE_CHECKING:
    import jax
    import pytest

    from imbalance_jax.compute import model as model_lib

ROOT = pathlib.Path(__file__).parents[1]
# Compiling takes most of the time of most tests, and twice as long with LLVM's optimisations.
ONE_DEVICE = "--xla_backend_optimization_level=0"  # for processes that tests start
# A part of the embedded text: real English, extracted in well under a second.
PACKAGES = ("json", "email", "asyncio")


def tiny_config(data_dir: pathlib.Path, **changes: object) -> config_lib.Config:
    """Returns a run on two clones that trains in seconds; changes are dotted fields."""
    config = config_lib.cloned(scale="demo", ratio="3:1")
    config.data_dir = str(data_dir)
    config.steps, config.batch_size, config.log_every = 20, 8, 5
    config.sources.en.packages = PACKAGES
    config.sources.en.tokenizer.vocab_size = 384
    for name, value in {"L": 16, "D": 16, "H": 2, "K": 8, "F": 24, "N": 2}.items():
        config.model[name] = value
    config.evaluation.every, config.evaluation.max_windows = 10, 6
    config.evaluation.alignment.every = 0  # what measures it takes longer to compile than to run
    config.checkpoint.every = 10
    with config.unlocked():
        for name, value in changes.items():
            group, _, field = name.replace("__", ".").rpartition(".")
            target = config[group] if group else config
            target[field] = value
    return config_lib.resolve_config(config)


def list_parsed_json(monkeypatch: "pytest.MonkeyPatch") -> list[str | bytes]:
    """Returns a list that gets each JSON text that is parsed from now on."""
    parsed: list[str | bytes] = []
    loads = json.loads

    def note(text: str | bytes, **options: object) -> object:
        parsed.append(text)
        return loads(text, **options)

    monkeypatch.setattr(json, "loads", note)
    return parsed


def read_plain_json(path: pathlib.Path) -> dict[str, typing.Any]:
    """Returns a JSON file without its CRC-32, to be changed and written as if it had none."""
    plain = json.loads(path.read_text())
    plain.pop("crc32", None)
    return plain


def make_mesh(devices: int = -1, **sizes: int) -> "jax.sharding.Mesh":
    """Returns a mesh over the first devices, or over all."""
    import jax

    from imbalance_jax.compute import sharding

    chosen = jax.devices() if devices == -1 else jax.devices()[:devices]
    return sharding.make_mesh(config_lib.MeshConfig(**sizes), chosen)


def random_params(
    config: config_lib.ModelConfig,
    V: int,
    seed: int = 0,
    *,
    spread: float = 0.3,
    scale: float = 1.0,
    languages: int = 1,
) -> "model_lib.Params":
    """Returns parameters of which none is 0 or 1, and large enough for every part to count.

    They are NumPy arrays, so that a test can write others into them. `scale` is the mean of the
    norms' scales; that of all else is 0.
    """
    import jax
    import numpy as np

    from imbalance_jax.compute import model as model_lib

    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(lambda key: model_lib.init_params(config, V, key, languages), key)
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        centre = scale if path[-1].key.startswith("scale_") else 0.0
        return np.float32(centre + spread * rng.standard_normal(leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def no_poll(share: float) -> None:
    """A measurement's poll that does nothing."""


def write_jsonl(path: pathlib.Path, texts: list[str]) -> pathlib.Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def environment() -> dict[str, str]:
    # One device: what a user has who has set nothing.
    return os.environ | {"XLA_FLAGS": ONE_DEVICE, "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}


def run_main(*args: str, module: str = "main", **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"imbalance_jax.{module}", *args]
    env = environment() | env
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
