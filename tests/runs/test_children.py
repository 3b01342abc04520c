"""Children end with their parent, however it ends, and save first."""

import os
import pathlib
import subprocess
import sys
import textwrap
import time

import pytest

from imbalance_jax.runs import children


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", "exit code 3"),
        ("exit 134", "exit code 134: another process of its run was lost"),
        ("kill -ABRT $$", "ended by SIGABRT, as a library does that gets no memory"),
        ("kill -KILL $$", "ended by SIGKILL, as the system does with a process that takes all"),
        ("kill -SEGV $$", "ended by SIGSEGV, a library read or wrote"),
        ("kill -TERM $$", "ended by SIGTERM"),
        ("kill -40 $$", "ended by signal 40"),
    ],
)
def test_a_child_is_reported_by_what_ended_it(script, said):
    code = subprocess.run(["bash", "-c", f"ulimit -c 0; {script}"]).returncode
    assert children.describe_exit(code).startswith(said)


# A command that writes that it listens, and then that it was asked to end.
CHILD = """
import pathlib, time
from imbalance_jax import cli
def main(names):
    file = pathlib.Path(names[0])
    file.write_text("listens")
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        file.write_text("saved")
    return cli.PREEMPTED
cli.run_command(main, names=True)
"""


def run_until(ready, *args: str) -> subprocess.Popen:
    """Starts a program and returns once `ready()` holds."""
    process = subprocess.Popen([sys.executable, *args], stdout=subprocess.PIPE, text=True)
    wait_for(ready)
    return process


def wait_for(ready, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)


def content(file: pathlib.Path) -> str:
    return file.read_text() if file.exists() else ""


def test_a_child_saves_when_its_parent_is_killed_and_its_siblings_do_not_keep_it(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    parent = textwrap.dedent(
        """
        import os, subprocess, sys, time
        from imbalance_jax.runs import children
        for file in sys.argv[2:]:
            tied = children.make_tied_popen_arguments(os.environ)
            subprocess.Popen([sys.executable, sys.argv[1], file], **tied)
        time.sleep(60)
        """
    )
    files = [tmp_path / "first", tmp_path / "second"]
    process = run_until(
        lambda: [content(file) for file in files] == ["listens"] * 2,
        "-c", parent, str(script), *map(str, files),
    )  # fmt: skip
    process.kill()
    wait_for(lambda: [content(file) for file in files] == ["saved"] * 2)
    # Its end is the end of its output: nobody holds it any more.
    process.communicate(timeout=30)


def test_another_file_of_the_number_is_not_taken_for_the_parent(monkeypatch):
    read, write = os.pipe()
    try:
        monkeypatch.setenv(children.VARIABLE, f"{read}:{os.fstat(read).st_ino + 1}")
        children.end_with_parent()
        monkeypatch.setenv(children.VARIABLE, "99999:1")
        children.end_with_parent()
    finally:
        os.close(write)
        os.close(read)
    assert children.VARIABLE not in os.environ


def test_workers_that_read_the_embedded_text_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "reads.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from imbalance_jax.data.text import docstrings
            docstrings.count_cores = lambda: 2
            found = docstrings._extract_chunks([[]] * 2, 1000)
            next(found)
            print("reads", flush=True)
            sys.stdin.read()
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "reads\n"
    process.kill()
    # The workers had its output open for ever.
    process.communicate(timeout=30)
