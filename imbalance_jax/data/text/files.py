"""Reads files line by line, decompressed and as UTF-8 or JSON, and remembers their digests."""

import bz2
import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import pathlib
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NoReturn

from etils import epath

from imbalance_jax.runs import damaged_files, storage

# Nanoseconds by which the clock of a file system may lag: a file that has changed since may
# change again without another time to show it. FAT counts in twos of seconds.
_CLOCK = 2_000_000_000
_SAMPLE = 4096  # bytes of a file's beginning, middle and end
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2"}  # by a file's ending


# Lines


def read_file_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (bytes of the file consumed so far, line), decompressed as its ending says.

    Raises:
      ValueError: the compressed data is truncated or corrupt, naming the file and how many
        lines of it could be read.
    """
    number = 0
    with open(path, "rb") as file:
        try:
            for number, line in enumerate(_decompress_file(file, path), start=1):  # noqa: B007
                yield file.tell(), line
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            _raise_read_error(path, f"after line {number}", error)


def read_file_beginning(path: str, size: int) -> bytes:
    """Returns the first bytes of a file, decompressed.

    Raises:
      ValueError: the compressed data is corrupt.
    """
    with open(path, "rb") as file:
        try:
            return _decompress_file(file, path).read(size)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            _raise_read_error(path, "after line 0", error)


def split_compression(path: str) -> tuple[str, str]:
    """Returns the name of a file without the ending of its compression, and that ending."""
    stem, ending = os.path.splitext(path)
    return (stem, ending) if ending in COMPRESSIONS else (path, "")


def _decompress_file(file: BinaryIO, path: str) -> Any:
    _, ending = split_compression(path)
    if ending == ".gz":
        return gzip.GzipFile(fileobj=file)
    if ending == ".xz":
        return lzma.LZMAFile(file)
    if ending == ".bz2":
        return bz2.BZ2File(file)
    if ending == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
    return file


def _raise_read_error(path: str, where: str, error: Exception) -> NoReturn:
    """Raises the error of a disk as it is, with its file, and that of compressed data as ours."""
    if isinstance(error, OSError) and error.errno:
        error.filename = error.filename or path
        raise error
    if "too much memory" in str(error):  # of Zstandard, whose readers take windows up to 128 MiB
        raise ValueError(
            f"{path}: was compressed with a window (zstd --long=28 or more) that is larger than "
            f"the 128 MiB which are read here. Compress it again: zstd -dc --long=31 {path} | zstd "
            f"-o {path.removesuffix('.zst')}.again.zst"
        ) from error
    kind = COMPRESSIONS.get(split_compression(path)[1], "text")
    raise make_damaged_file_error(path, kind, where, error) from error


def make_damaged_file_error(path: str, kind: str, where: str, error: Exception) -> ValueError:
    reason = str(error).rstrip(".") or type(error).__name__
    remedy = "compress" if kind in COMPRESSIONS.values() else "write"
    return ValueError(
        f"{path}, {where}: the {kind} data is truncated or corrupt ({reason}). "
        f"Copy or {remedy} the file again."
    )


def decode_utf8(data: bytes, path: str, line: int = 1, *, of: str = "line") -> str:
    """Returns text from UTF-8, without the byte order mark that may begin a file.

    Args:
      data: what `of` says: a line of a file, or all of the file.
      line: where in the file the data begins, from 1 on.

    Raises:
      ValueError: it is not UTF-8, naming file, line and byte.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        problem = describe_utf8_error(error, of)
        raise ValueError(f"{path}, line {line}: {problem}. Convert the file to UTF-8.") from error
    return text.removeprefix("\ufeff") if line == 1 else text


def describe_utf8_error(error: UnicodeDecodeError, of: str) -> str:
    """Returns what is wrong with bytes, for a message; `of` says what they are."""
    byte = error.object[error.start]
    return f"is not UTF-8 text (byte 0x{byte:02x}, at offset {error.start} of the {of})"


def parse_json_object(data: bytes, path: str, number: int, example: str) -> dict[str, Any]:
    """Returns a line of a file as a JSON object; messages show an example of such an object.

    Raises:
      ValueError: it is not UTF-8 or not an object, naming file and line.
    """
    where = f"{path}, line {number}"
    text = decode_utf8(data, path, number).removeprefix("\ufeff")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError alone: a number of 5,000 digits
        marked = "}\ufeff" in text
        raise ValueError(
            f"{where}: is not valid JSON ({error}). "
            + "There is a byte order mark in it, where files were joined of which the first does "
            "not end in a line end: put one there. " * marked + "Write one JSON object a line."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{where}: is a JSON {name_json_type(values)}, not an object. Write one JSON object a "
            f"line, such as {example}."
        )
    return values


def replace_lone_surrogates(text: str) -> str:
    r"""Replaces halves of surrogate pairs: JSON can spell them as \ud800, UTF-8 cannot."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def name_json_type(value: object) -> str:
    names = {str: "string", list: "array", dict: "object", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


# Digests


def compute_file_digests(paths: Iterable[str], cache: pathlib.Path | None) -> dict[str, str]:
    """Returns the sha256 of each file; what the cache knows is not read.

    A file is known by `storage.format_file_status` and a sample of its bytes. One that has changed
    within the last seconds is hashed, and not remembered. So a change is missed only on a file
    system that does not keep the time of change itself, if size, time of modification and inode
    stay as well, and only where the sample is not.
    """
    cached = _load_digest_cache(cache)
    digests, fresh = {}, {}
    for path in paths:
        with open(path, "rb") as file:
            now, before = time.time_ns(), os.fstat(file.fileno())
            key, status = _identify_file(file, path), storage.format_file_status(before)
            digests[path] = cached.get(key) or hashlib.file_digest(file, "sha256").hexdigest()
            unchanged = storage.format_file_status(os.fstat(file.fileno())) == status
            if key not in cached and unchanged and before.st_ctime_ns <= now - _CLOCK:
                fresh[key] = digests[path]
    if cache is not None and fresh:
        # Hashing may have taken long, and other runs add to the same file.
        _save_digest_cache(cache, _load_digest_cache(cache) | fresh)
    return digests


def compute_reading_digest(
    what: str, compute: Callable[[], tuple[str, list[str]]], cache: pathlib.Path | None
) -> str:
    """Returns a digest of what is read of some files; where the cache knows it, nothing is read.

    It is known while the files that were read are, as `compute_file_digests` says.

    Args:
      what: stands for all files that might be read, by their paths, and for what is read of them.
      compute: reads, and returns the digest and the paths of the files that it read.
    """
    known = _load_digest_cache(cache).get(f"reading:{what}", "")
    digest, *identities = known.split("\n")
    paths = [identity.rpartition(":")[0].rpartition(":")[0] for identity in identities]
    with contextlib.suppress(OSError):
        if digest and _identify_files(paths) == identities:
            return digest
    began = time.time_ns()
    digest, paths = compute()
    if cache is not None and all(os.stat(path).st_ctime_ns <= began - _CLOCK for path in paths):
        value = "\n".join([digest, *_identify_files(paths)])
        _save_digest_cache(cache, _load_digest_cache(cache) | {f"reading:{what}": value})
    return digest


def _identify_files(paths: Iterable[str]) -> list[str]:
    identities = []
    for path in paths:
        with open(path, "rb") as file:
            identities.append(_identify_file(file, path))
    return identities


def _identify_file(file: BinaryIO, path: str) -> str:
    """Returns what tells a file from a changed one, by its status and a sample of its bytes."""
    status = storage.format_file_status(os.fstat(file.fileno()))
    return f"{os.path.abspath(path)}:{status}:{_hash_file_sample(file)}"


def _hash_file_sample(file: BinaryIO) -> str:
    """Returns a digest of the beginning, the middle and the end of a file, left at its start."""
    size = os.fstat(file.fileno()).st_size
    sample = hashlib.blake2b(digest_size=8)
    for start in (0, (size - _SAMPLE) // 2, size - _SAMPLE):
        file.seek(max(0, start))
        sample.update(file.read(_SAMPLE))
    file.seek(0)
    return sample.hexdigest()


def _load_digest_cache(cache: pathlib.Path | None) -> dict[str, str]:
    """Returns what the cache knows: nothing where it is damaged, and files are read again."""
    if cache is None:
        return {}
    try:
        cached = damaged_files.read_json(epath.Path(cache), "")
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in cached.items() if isinstance(value, str)}


def _save_digest_cache(cache: pathlib.Path, digests: dict[str, str]) -> None:
    # Only a shortcut: where it cannot be written, the next run hashes again.
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(dir=cache.parent, prefix=f".{cache.name}.")
        try:
            with open(descriptor, "w") as file:
                file.write(damaged_files.format_checked_json(digests))
            os.replace(unfinished, cache)
        except BaseException:
            os.unlink(unfinished)
            raise
