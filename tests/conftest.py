"""Eight simulated devices for every test, and text that needs no download."""

import os

# Compiling takes most of the time of most tests, and twice as long with LLVM's optimisations.
ONE_DEVICE = "--xla_backend_optimization_level=0"  # for processes that tests start
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    f" --xla_force_host_platform_device_count=8 {ONE_DEVICE}"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import json  # noqa: E402
import pathlib  # noqa: E402

import pytest  # noqa: E402

from imbalance_jax import config as config_lib  # noqa: E402
from imbalance_jax.data import prepare, sources  # noqa: E402

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
    return config_lib.resolve(config)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where prepared text is kept for all tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def english(data_dir: pathlib.Path) -> sources.Source:
    """A small prepared source of real English."""
    config = tiny_config(data_dir)
    return prepare.prepare("en", config.sources["en"], config.data_dir)


# Files whose tests take minutes together. They begin first, so that no core waits at the end.
LONG = ("test_end_to_end", "test_pack", "test_study_end_to_end", "test_bench", "test_alignment")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def write_jsonl(path: pathlib.Path, texts: list[str]) -> pathlib.Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
