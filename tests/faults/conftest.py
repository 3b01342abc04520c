"""Each part of the harness at two lengths: a short one in every run of the tests, and the full."""

import pathlib
from collections.abc import Iterator

import pytest
from faults.forked import ForkServer
from faults.ledger import Ledger
from faults.stage import Stage
from helpers import ONE_DEVICE, ROOT


@pytest.fixture(params=["short", pytest.param("full", marks=pytest.mark.faults)])
def ledger(request, tmp_path: pathlib.Path, record_property) -> Iterator[Ledger]:
    """The cases of the part that the test is about."""
    name = request.node.originalname
    test = f"{request.path.relative_to(ROOT)}::{name}"
    made = Ledger(name.removeprefix("test_"), test, tmp_path, full=request.param == "full")
    yield made
    record_property("faults", made.summarize())


@pytest.fixture(scope="session")
def light_server(tmp_path_factory) -> Iterator[ForkServer]:
    """Runs commands in forks of a process without jax."""
    server = ForkServer(tmp_path_factory.mktemp("light"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def heavy_server(tmp_path_factory) -> Iterator[ForkServer]:
    """Runs commands in forks of a process with jax, on one device."""
    server = ForkServer(tmp_path_factory.mktemp("heavy"), heavy=True, XLA_FLAGS=ONE_DEVICE)
    yield server
    server.close()


@pytest.fixture(scope="session")
def stage(heavy_server, tmp_path_factory) -> Stage:
    """A tiny run that is done, to be damaged, stopped and gone on with."""
    return Stage(tmp_path_factory.mktemp("stage"), heavy_server)
