"""What differs between a file system and an object store, Google Cloud Storage.

A path in a store has a scheme, as in gs://bucket/runs. An object of a store appears when it is
whole, cannot be appended to or locked, and is renamed by copying it. A directory exists there
while something is in it. `epath.Path` hides all other differences.
"""

import contextlib
import errno
import functools
import logging
import os
import pathlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath


def is_store(path: epath.PathLike) -> bool:
    return "://" in os.fspath(path)


def parse_path(path: epath.PathLike) -> epath.Path:
    """Returns a path on a file system or in a store.

    Raises:
      ValueError: it is in another kind of store or in no bucket, a package is missing, or its name
        is not UTF-8, which Orbax needs.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{os.fspath(path)} is not a name in UTF-8. Rename it, or use another."
        ) from error
    if is_store(path):
        _check_store_name(os.fspath(path))
        _prepare_store()
    return epath.Path(path)


def check_store_path(field: str, path: str) -> None:
    """Raises ValueError if the path that a field names is in a store that cannot be used."""
    if is_store(path):
        try:
            _check_store_name(path)
        except ValueError as error:
            raise ValueError(f"{field}={error}") from error


def _check_store_name(path: str) -> None:
    scheme, _, rest = path.partition("://")
    if scheme != "gs":
        raise ValueError(f"{path}: {scheme}:// paths cannot be used: take a local path, or gs://.")
    if not rest.partition("/")[0]:
        raise ValueError(f"{path} names no bucket. Write gs://BUCKET{rest.rstrip('/')}.")


@functools.cache
def _prepare_store() -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError as error:
        raise ValueError(
            f"gs:// paths need the package gcsfs ({error}). Run pip install -e '.[gcs]'."
        ) from error
    # It logs a traceback of each request that it gives up, and then raises the same error.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # Cached listings would hide what other processes write.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def check_local_path(field: str, path: str) -> None:
    """Raises ValueError if the path that a field names is in a store."""
    if is_store(path):
        raise ValueError(
            f"{field}: {path} is not on a file system, and text is read from files only. Copy it "
            "to a local disk, or mount the bucket and name the path there."
        )


def format_file_status(status: os.stat_result) -> str:
    """Returns a text that changes whenever the content of a file does.

    It has the time of change (ctime), which no program can set; tools that copy and unpack set
    the time of modification back. It has the inode, by which a file that takes the place of
    another one shows.
    """
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def make_absolute_path(path: epath.PathLike) -> str:
    """Returns a path that means the same wherever a process runs."""
    return os.fspath(path) if is_store(path) else os.path.abspath(path)


def write_file_atomically(path: epath.Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
      OSError: it cannot be written; the error names the file.
    """
    if is_store(path):
        path.write_bytes(content)
        return
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with name_file_in_errors(path):
        try:
            unfinished.write_bytes(content)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)  # on a full disk, what is left takes room
            raise


@contextlib.contextmanager
def name_file_in_errors(path: epath.PathLike) -> Iterator[None]:
    """Puts a file's name into an OSError raised within.

    A failed write names no file, and other errors name a temporary one.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = os.fspath(path)
        raise


_ADVICE = {
    errno.EDQUOT: "Remove files of this user, or ask for a larger quota.",
    errno.EFBIG: "Raise the limit on the size of a file: ulimit -f.",
    errno.EEXIST: "Something else than a directory is there: name another place.",
    errno.ENOTDIR: "A part of it is a file, and a directory is needed there: name another place.",
    errno.EISDIR: "Name a file.",
    errno.ELOOP: "Its symbolic links lead in a circle: name the place itself.",
    errno.ENAMETOOLONG: "Use shorter names.",
    errno.EIO: "Its disk cannot be read or written: look at the log of the system.",
    errno.ESTALE: "Its network file system has lost it: mount that again.",
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), "Raise the limit on the number of open files: ulimit -n."
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "Allow this user to read and write there, or name another place.",
    ),
}


def describe_os_error(error: OSError) -> str:
    """Returns what the operating system refused, and what to do about it, in one line."""
    if error.errno == errno.EPIPE:
        return (
            "What read the output of this program has gone, as head and a lost terminal do. Start "
            "it again with its output in a file, as in > out.txt 2>&1."
        )
    if error.errno is None or (error.filename is None and error.errno == errno.ENOENT):
        return " ".join(str(error.strerror or error).split())
    path = "" if error.filename is None else os.fsdecode(error.filename)
    advice = _ADVICE.get(error.errno, "")
    if error.errno == errno.ENOSPC:
        advice = f"{_describe_disk(path)} Free some of it."
    place = f"{path}: " if path else ""
    return f"{place}{os.strerror(error.errno)}. {advice}".rstrip()


def _describe_disk(path: str) -> str:
    if not path:
        return f"A disk is full: that of the run, its text, {tempfile.gettempdir()} or the output."
    try:
        directory = find_existing_parent(path)
        usage = shutil.disk_usage(directory)
    except OSError:
        return "The disk is full."
    free, total = usage.free / 1e6, usage.total / 1e6
    return f"Of the disk of {directory}, {free:,.1f} of {total:,.1f} MB are free."


def find_os_error(error: BaseException, path: epath.PathLike = "") -> OSError | None:
    """Returns the error of the operating system that is behind a library's error, if one is.

    The errors of TensorStore, which writes the arrays of checkpoints, are of whatever class their
    status has: a full disk is a ValueError with RESOURCE_EXHAUSTED. The number is a field at the
    end of their text. ArrayRecord, which writes prepared text, raises RuntimeErrors, with the
    system's words and the file.

    Args:
      path: of the file where no error names one.
    """
    cause: BaseException | None = error
    while cause is not None:
        number, file = _parse_system_words(str(cause))
        if isinstance(cause, OSError) and cause.errno is not None:
            number, file = cause.errno, cause.filename
        if number:
            named = file or getattr(error, "filename", None) or os.fspath(path) or None
            return OSError(number, os.strerror(number), named)
        cause = cause.__cause__ or cause.__context__
    return None


def _parse_system_words(text: str) -> tuple[int, str]:
    """Returns the number and the file of a system's error that a library puts in words, or 0."""
    code = re.search(r"\[os_error_code='(\d+)'", text)
    if code:
        return int(code.group(1)), ""
    words = re.search(r"\w+\(\) failed: ([^;]+); (?:reading|writing) ([^;]+)", text)
    numbers = [n for n in errno.errorcode if words and os.strerror(n) == words.group(1)]
    return (numbers[0], words.group(2)) if words and numbers else (0, "")


def check_directory_writable(field: str, path: epath.PathLike) -> None:
    """Raises ValueError if a directory that a flag or a field names cannot be used to write."""
    try:
        try_directory(path)
    except OSError as error:
        raise ValueError(
            f"{field}={os.fspath(path)} cannot be written to. {describe_os_error(error)}"
        ) from error


def check_file_writable(field: str, path: str) -> None:
    """Raises ValueError if a file that a flag names cannot be written; leaves it as it was."""
    file = pathlib.Path(path)
    if not path or file.is_dir():
        raise ValueError(f"{field}={path} names no file. Name one, such as figures.json.")
    if not file.parent.is_dir():
        raise ValueError(f"{field}={path}: there is no folder {file.parent}. Make it first.")
    is_new = not file.exists()
    try:
        file.open("a").close()
    except OSError as error:
        why = describe_os_error(error)
        raise ValueError(f"{field}={path} cannot be written. {why}") from error
    if is_new:
        file.unlink()


def try_directory(path: epath.PathLike) -> None:
    """Makes a directory that is not in a store, writes a file there, and leaves nothing behind.

    Raises:
      OSError: one of them is refused.
    """
    if is_store(path):
        return
    tried = pathlib.Path(os.path.abspath(path))
    made: list[pathlib.Path] = []
    try:
        for left in reversed(range(5)):
            try:
                return _write_trial_file(tried, made)
            except FileNotFoundError:  # another process has removed what it had made to try
                if not left:
                    raise
    finally:
        for directory in reversed(made):
            with contextlib.suppress(OSError):  # another process uses it
                directory.rmdir()


def _write_trial_file(directory: pathlib.Path, made: list[pathlib.Path]) -> None:
    """Makes a directory and those above it, notes them in `made`, and writes a file there."""
    for each in (*reversed(directory.parents), directory):
        if not each.exists():
            each.mkdir()
            made.append(each)
    trial = directory / f".{secrets.token_hex(4)}.tmp"
    try:
        with name_file_in_errors(directory):
            trial.write_bytes(b"x" * 4096)
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()


def count_free_bytes(path: epath.PathLike) -> int | None:
    """Returns the free bytes of the disk where a path is or will be; None for a store."""
    return None if is_store(path) else shutil.disk_usage(find_existing_parent(path)).free


def find_existing_parent(path: epath.PathLike) -> pathlib.Path:
    """Returns a path, or the innermost directory above it that exists."""
    directory = pathlib.Path(os.path.abspath(path))
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory


def upload_directory(directory: epath.PathLike, path: epath.Path, *, last: str = "") -> None:
    """Copies the files in and below a local directory into a directory of a store.

    Args:
      directory: the local one.
      path: the one of the store.
      last: the file that is copied after all others.
    """
    directory = pathlib.Path(directory)
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file == directory / last):
        epath.Path(file).copy(path / file.relative_to(directory).as_posix(), overwrite=True)


@contextlib.contextmanager
def stage_directory(path: epath.PathLike) -> Iterator[pathlib.Path]:
    """Yields a local directory for libraries that can only write to one. The caller makes it.

    It is the directory itself, or for a store a temporary one that is copied there in the end.
    """
    if not is_store(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder) / "files"
        yield local
        upload_directory(local, parse_path(path))


def find_complete_directory(path: epath.Path, marker: str) -> epath.Path | None:
    """Returns the directory that `make_directory_atomically` made at a path, or None."""
    if (path / marker).exists():
        return path
    # In a store, several processes may have made one each. All of them are complete.
    return min((file.parent for file in path.glob(f"*/{marker}")), default=None)


@contextlib.contextmanager
def make_directory_atomically(path: epath.Path, marker: str) -> Iterator[epath.Path]:
    """Yields an empty local directory to fill, which is at `path` when everything is in it.

    Two processes may make the same directory at once. On a file system, the first one to rename
    its directory wins. In a store, which cannot tell who was first, each makes its own below
    `path`, and `find_complete_directory` takes one of them.

    Args:
      path: of the directory.
      marker: a file in it. A directory without it is not complete.
    """
    if is_store(path):
        with tempfile.TemporaryDirectory() as folder:
            yield epath.Path(folder)
            if find_complete_directory(path, marker) is None:
                upload_directory(folder, path / secrets.token_hex(4), last=marker)
        return
    # Random, because process ids recur, in containers above all: one would meet the directory of a
    # process that was killed.
    unfinished = path.parent / f".{path.name}.{secrets.token_hex(4)}.unfinished"
    with name_file_in_errors(path):
        unfinished.mkdir(parents=True)
    try:
        yield unfinished
        try:
            unfinished.rename(path)
        except OSError:
            # Another process was faster; its directory has the same content.
            if not (path / marker).exists():
                raise
            shutil.rmtree(unfinished, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        system = find_os_error(error, path) if isinstance(error, (OSError, RuntimeError)) else None
        if system is None:
            raise
        if str(unfinished) in str(system.filename):
            system.filename = os.fspath(path)
        raise system from error
