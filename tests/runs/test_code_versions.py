"""A run records the revision of this project's code, and of no other project."""

import pathlib
import runpy
import shutil
import subprocess

from helpers import ROOT

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]


def test_a_package_installed_inside_another_checkout_has_no_revision(tmp_path: pathlib.Path):
    package = tmp_path / ".venv" / "imbalance_jax"
    package.mkdir(parents=True)
    copy = shutil.copy(ROOT / "imbalance_jax/runs/code_versions.py", package)

    def git(*arguments: str) -> str:
        command = [*GIT, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def recorded() -> str:
        return runpy.run_path(str(copy))["get_code_versions"]()["git"]

    git("init")
    git("commit", "--allow-empty", "--message=theirs")
    assert recorded() == "unknown"
    # The same file, once it belongs to the checkout.
    git("add", ".")
    git("commit", "--message=ours")
    assert recorded() == git("rev-parse", "HEAD")
    pathlib.Path(copy).write_text(pathlib.Path(copy).read_text() + "\n")
    assert recorded() == git("rev-parse", "HEAD") + "-dirty"
