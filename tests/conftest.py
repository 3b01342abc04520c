"""Eight simulated devices for every test, and text that needs no download."""

import os

from helpers import ONE_DEVICE, tiny_config

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    f" --xla_force_host_platform_device_count=8 {ONE_DEVICE}"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Arrays of different ranks never meet by chance, here and in processes that tests start.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import pathlib  # noqa: E402
import resource  # noqa: E402

import pytest  # noqa: E402

from imbalance_jax.data import prepare, sources  # noqa: E402


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where prepared text is kept for all tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def english(data_dir: pathlib.Path) -> sources.Source:
    """A small prepared source of real English."""
    config = tiny_config(data_dir)
    return prepare.prepare_source("en", config.sources["en"], config.data_dir)


@pytest.fixture
def small_files():
    """Lets this process write no file of more than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Files whose tests take minutes together. They begin first, so that no core waits at the end.
LONG = (
    "test_end_to_end",
    "test_pack",
    "test_study_end_to_end",
    "test_measurements",
    "test_alignment",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
    for item in items:
        if any(item.get_closest_marker(marker) for marker in ("slow", "slurm", "faults")):
            item.add_marker(pytest.mark.timeout(0))  # known to take long


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how the cases of tests/faults ended, where they ran at full length."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            found = dict(getattr(report, "user_properties", ())).get("faults")
            if found and found["full"] and report.when == "call":
                counts = ", ".join(f"{n} {name}" for name, n in found["outcomes"].items())
                terminalreporter.write_line(
                    f"{found['part']}, seed {found['seed']}, {found['seconds']} s: {counts}"
                )
