"""A disk of a few megabytes, filled up to any level."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def mount_small_disk(folder: pathlib.Path, megabytes: int) -> Iterator[pathlib.Path]:
    """Yields the folder of a disk in memory; skips the test where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"no small disk can be mounted without mount (install it): {error}")
    if done.returncode:
        pytest.skip(f"a small disk can be mounted by root only: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_disk(folder: pathlib.Path, free: int) -> pathlib.Path:
    """Writes a file that leaves so many bytes of a disk, and returns its path."""
    status = os.statvfs(folder)
    size = max(0, status.f_bavail * status.f_frsize - free)
    ballast = folder / "ballast"
    with open(ballast, "wb") as file:
        file.write(bytes(size))
    return ballast
