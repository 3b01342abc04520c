"""Which code a run was made with: revision, Python and packages."""

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

_PACKAGES = (
    "imbalance-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "sentencepiece",
    "ml-collections",
    "numpy",
)


def get_code_versions() -> dict[str, Any]:
    """Returns what code ran: git revision, Python, and the packages that matter."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {"git": _read_git_revision(), "python": platform.python_version(), "packages": packages}


def _read_git_revision() -> str:
    """Returns the revision of the checkout that this file belongs to, or "unknown".

    A package that was installed into a folder of another project's checkout belongs to none.
    `git describe --dirty` would write the checkout's index, and leave a lock there if it cannot.
    """
    try:
        _run_git("ls-files", "--error-unmatch", pathlib.Path(__file__).name)
        revision = _run_git("describe", "--always", "--abbrev=40")
        changed = _run_git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision + "-dirty" * bool(changed)


def _run_git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(pathlib.Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
