"""What others depend on: a wheel that works alone, the versions that are promised, the licence."""

import configparser
import hashlib
import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from helpers import ROOT, environment
from packaging.requirements import Requirement

import imbalance_jax

# Those whose lowest versions .ci/versions installs. The others have no lowest version.
TESTED_EXTRAS = ("bench", "huggingface", "launch", "tensorboard", "wandb", "word2vec")


def read_setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What a wheel would hold, without the checkout."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel") / "lib"
    command = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_a_wheel_holds_every_file_of_the_package_and_the_configs(built):
    for source, target in (
        ("imbalance_jax", "imbalance_jax"),
        ("configs", "imbalance_jax/configs"),
        ("launch", "launch"),
    ):
        files = {
            file.relative_to(ROOT / source)
            for file in (ROOT / source).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        there = {file.relative_to(built / target) for file in (built / target).rglob("*")}
        assert len(files) > 10 and {str(file) for file in files - there} == set()


def test_a_wheel_finds_its_configs_in_an_empty_folder(built, tmp_path):
    args = ["--totals", "configs/schedule.py", "configs/50_50.py"]
    done = subprocess.run(
        [sys.executable, "-m", "imbalance_jax.data.inspect", *args],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(built)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_config_file_of_the_users_own_comes_before_that_of_the_package(built, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "50_50.py").write_text("raise SystemExit('mine')\n")
    done = subprocess.run(
        [sys.executable, "-m", "imbalance_jax.data.inspect"]
        + ["--totals", "configs/schedule.py", "configs/50_50.py"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(built)},
        capture_output=True,
        text=True,
    )
    assert "mine" in done.stderr


def test_the_lowest_versions_of_setup_are_those_that_are_tested():
    setup = read_setup()
    extras = "\n".join(setup["options.extras_require"][extra] for extra in TESTED_EXTRAS)
    required = dict(
        re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", line).groups()
        for line in (setup["options"]["install_requires"] + extras).split()
    )
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert tested.pop("jaxlib") == tested["jax"]
    assert tested == required
    assert f"-e '.[{','.join(TESTED_EXTRAS)}]'" in (ROOT / ".ci" / "versions").read_text()


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", [("linux", "Linux"), ("darwin", "Darwin"), ("win32", "Windows")])
def test_the_locked_versions_are_one_of_each_dependency_that_setup_allows(python, system):
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "index" not in text  # pip asks what its user has configured
    places = {"python_version": python, "python_full_version": f"{python}.1"}
    places |= {"sys_platform": system[0], "platform_system": system[1]}
    locked = {}
    for entry in text.replace("\\\n", "").splitlines():
        if entry.startswith("#"):
            continue
        line, *hashes = entry.split("--hash=")
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64} *", hash_) for hash_ in hashes)
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate(places):
            [pinned] = wanted.specifier
            assert pinned.operator == "==" and wanted.name not in locked
            locked[wanted.name] = pinned.version
    for line in read_setup()["options"]["install_requires"].split():
        required = Requirement(line)
        assert required.specifier.contains(locked[required.name]), line


def test_the_version_is_that_of_the_newest_changes_and_stands_nowhere_else():
    version = imbalance_jax.__version__
    assert re.search(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())[1] == version
    assert read_setup()["metadata"]["version"] == "attr: imbalance_jax.__version__"
    for name in ("CITATION.cff", "README.md", "pyproject.toml", "mkdocs.yml"):
        assert version not in (ROOT / name).read_text(), name


def test_the_licence_is_the_one_that_is_claimed():
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    # Of https://www.apache.org/licenses/LICENSE-2.0.txt.
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert read_setup()["metadata"]["license"] == citation["license"] == "Apache-2.0"
    [study] = citation["references"]
    assert study["url"].endswith("2404.07982") and len(study["authors"]) == 5
