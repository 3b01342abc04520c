"""Arrays that are made once, kept in a file of the cache, and mapped into memory.

A file has its name only when it is whole. Beside it lies a stamp: its digest, size, times and
inode. Whoever opens the file trusts it while it is as its stamp says, so that a start
does not read gigabytes, and makes it again where it is not.
"""

import contextlib
import glob
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Self

import numpy as np

from imbalance_jax.runs import storage


class AtomicFile:
    """A file that takes its name when it is kept, and is gone when it is not."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self.digest = hashlib.sha256()
        self.size = 0  # bytes

    def __enter__(self) -> Self:
        with storage.name_file_in_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.NamedTemporaryFile(dir=self._path.parent, delete=False)
        return self

    def write(self, array: np.ndarray) -> None:
        content = array.tobytes()
        self.digest.update(content)
        self.size += len(content)
        with storage.name_file_in_errors(self._path):
            self._file.write(content)

    def keep(self) -> None:
        with storage.name_file_in_errors(self._path):
            self._file.close()
        os.replace(self._file.name, self._path)
        _write_stamp(self._path, self.digest.hexdigest())

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses what is left once more
            self._file.close()
        pathlib.Path(self._file.name).unlink(missing_ok=True)


def is_file_intact(path: pathlib.Path, size: int, digest: str) -> bool:
    """Whether a file holds what it should; read only if touched since that was found last.

    `digest` is the sha256 of its content. Finding it takes about a second per gigabyte.
    """
    if not path.exists() or path.stat().st_size != size:
        return False
    if _read_stamp(path) == _format_stamp(path, digest):
        return True
    if not has_digest(path, digest):
        return False
    _write_stamp(path, digest)
    return True


def has_digest(path: pathlib.Path, digest: str) -> bool:
    """Whether a file, all of which is read, has a sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def find_damaged_arrays(prefix: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files whose paths begin so and whose bytes are not what was written."""
    damaged = []
    for stamp in sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}*.stamp")):
        path = stamp.with_suffix("")
        if path.exists() and not has_digest(path, _read_stamp(path).partition(" ")[0]):
            damaged.append(path)
    return damaged


def load_or_make_array(
    path: pathlib.Path, dtype: np.dtype, count: int, make: Callable[[AtomicFile], None]
) -> np.ndarray:
    """Returns an array of the cache that follows from others, made where it is not there.

    The name of its file stands for all that the content follows from.
    """
    size = count * dtype.itemsize
    whole = path.exists() and path.stat().st_size == size
    if not whole or _read_stamp(path) != _format_stamp(path, _read_stamp(path).partition(" ")[0]):
        with AtomicFile(path) as file:
            make(file)
            assert file.size == size
            file.keep()
    return np.memmap(path, dtype=dtype, mode="r") if count else np.zeros(0, dtype)


def _stamp_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.stamp")


def _format_stamp(path: pathlib.Path, digest: str) -> str:
    return f"{digest} {storage.format_file_status(path.stat())}\n"


def _read_stamp(path: pathlib.Path) -> str:
    try:
        return _stamp_path(path).read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _write_stamp(path: pathlib.Path, digest: str) -> None:
    # Only a shortcut: where it cannot be written, the next start hashes again.
    with contextlib.suppress(OSError):
        _stamp_path(path).write_text(_format_stamp(path, digest))
