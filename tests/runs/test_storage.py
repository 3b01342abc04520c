"""What the operating system refuses is said in a line; a directory is tried before it is used."""

import errno
import os
import pathlib

import pytest

from imbalance_jax.runs import storage


@pytest.mark.parametrize("below", ["", "/run"])
@pytest.mark.parametrize("kind", ["file", "loop", "long", "read-only", "full"])
def test_a_directory_that_cannot_be_written_is_refused_by_its_flag_and_nothing_is_left(
    tmp_path, monkeypatch, kind, below
):
    place = tmp_path / ("a" * 300 if kind == "long" else kind)
    words = {
        "file": "Not a directory",
        "loop": "File exists",
        "long": "File name too long. Use shorter names",
        "read-only": "Read-only file system. Allow this user",
        "full": "No space left on device. Of the disk of .* MB are free. Free some of it.",
    }[kind]
    if kind == "file":
        place.touch()
    if kind == "loop":
        place.symlink_to(place)
    number = {"read-only": errno.EROFS, "full": errno.ENOSPC}.get(kind)
    if number:
        refused = {"read-only": "mkdir", "full": "write_bytes"}[kind]

        def refuse(path, *args):
            raise OSError(number, "any words")

        monkeypatch.setattr(pathlib.Path, refused, refuse)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"^--workdir={place}{below} cannot be.*{words}") as said:
        storage.check_directory_writable("--workdir", f"{place}{below}")
    assert "\n" not in str(said.value) and sorted(tmp_path.iterdir()) == before


def test_a_directory_that_can_be_written_is_left_as_it_was(tmp_path):
    storage.check_directory_writable("--workdir", tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    storage.check_directory_writable("--workdir", "gs://bucket/run")  # not tried


def test_a_directory_is_tried_again_where_another_process_has_removed_it(tmp_path, monkeypatch):
    write, removed = pathlib.Path.write_bytes, []

    def remove_once(path, content):
        if not removed:
            removed.append(path.parent.rmdir())
        return write(path, content)

    monkeypatch.setattr(pathlib.Path, "write_bytes", remove_once)
    storage.try_directory(tmp_path / "run")
    assert removed and list(tmp_path.iterdir()) == []


NAMES = "EACCES EPERM EROFS ENOTDIR EISDIR EEXIST ELOOP ENAMETOOLONG EMFILE ENFILE ENOSPC EIO"
NAMES += " ESTALE EDQUOT EFBIG"


@pytest.mark.parametrize("name", NAMES.split())
def test_an_error_of_the_system_is_a_line_with_the_path_and_a_way_out(name):
    number = getattr(errno, name)
    said = storage.describe_os_error(OSError(number, "any words", "/a/file"))
    start = f"/a/file: {os.strerror(number)}. "
    assert said.startswith(start) and len(said) > len(start) + 10 and "\n" not in said
    unnamed = storage.describe_os_error(OSError(number, "any words"))
    assert unnamed.startswith(f"{os.strerror(number)}. ") and len(unnamed) > len(start)


@pytest.mark.parametrize(
    ("text", "number", "file"),
    [
        (
            "write() failed: No space left on device; writing a/b-0; at byte 9",
            errno.ENOSPC,
            "a/b-0",
        ),
        ("open() failed: Too many open files; reading a/b", errno.EMFILE, "a/b"),
        ("Error writing x [os_error_code='122']", errno.EDQUOT, "given"),
        ("write() failed: the moon is full; writing a/b", None, None),
        ("no space left", None, None),
    ],
)
def test_an_error_of_the_system_is_found_in_the_words_of_a_library(text, number, file):
    found = storage.find_os_error(RuntimeError(text), "given")
    assert (found and found.errno, found and found.filename) == (number, file)
