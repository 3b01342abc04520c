"""Runs commands in forks of one process that has the libraries, which saves seconds of each.

`ForkServer` starts this file as a script, which reads a request a line and writes two lines for
each: the process id when the fork begins, and how it ended. So a test may kill it in between.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

HANG_SECONDS = 20  # after which a command hangs
_LIGHT = (
    "imbalance_jax.data.inspect",
    "imbalance_jax.data.prepare",
    "imbalance_jax.report.run_page",
    "imbalance_jax.report.study_page",
    "imbalance_jax.study.study_runner",
    "launch.plan",
    "sentencepiece",
    "pyarrow.parquet",
)
_HEAVY = (
    "tensorflow_datasets",
    "imbalance_jax.training.exporting",
    "imbalance_jax.training.loop",
    "imbalance_jax.training.planning",
    "imbalance_jax.training.reopening",
)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int  # negative is the number of a signal
    out: str
    err: str
    seconds: float
    hung: bool = False  # then it was killed


class ForkServer:
    """Starts commands one after another, each as `python -m MODULE ARGS` would.

    It has jax if it is `heavy`, and no device until a fork asks for one.
    """

    def __init__(self, folder: pathlib.Path, *, heavy: bool = False, **env: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._is_running = False
        self._server = subprocess.Popen(
            [sys.executable, __file__, "heavy" if heavy else "light"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(__file__).parents[2],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "COLUMNS": "200"} | env,
        )

    def start(
        self,
        module: str,
        args: Sequence[str],
        *,
        limits: Mapping[str, int] | None = None,
        user: int | None = None,
        cwd: pathlib.Path | None = None,
        timeout: float = HANG_SECONDS,
        **env: str,
    ) -> int:
        """Starts a command and returns its process id; `wait` is to follow.

        Args:
          limits: of resources, by their names without RLIMIT_.
          user: the id of the user to run it as; root has some limits not.
          timeout: seconds after which it is killed as one that hangs, on a machine whose cores
            are free; the more processes wait for them, the longer.
        """
        request = {
            "module": module,
            "args": list(args),
            "limits": dict(limits or {}),
            "user": user,
            "cwd": str(cwd) if cwd else None,
            "timeout": timeout,
            "env": env,
            "out": str(self.out),
            "err": str(self.err),
        }
        assert self._server.stdin is not None
        if self._is_running:  # a test ended before it waited for the command before
            self.wait()
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        self._is_running = True
        return self._read()["pid"]

    def wait(self) -> Ended:
        ended = self._read()
        self._is_running = False
        out, err = (file.read_text(errors="replace") for file in (self.out, self.err))
        return Ended(ended["code"], out, err, ended["seconds"], ended["hung"])

    def run(self, module: str, args: Sequence[str], **options: Any) -> Ended:
        self.start(module, args, **options)
        return self.wait()

    @property
    def out(self) -> pathlib.Path:
        return self.folder / "out"

    @property
    def err(self) -> pathlib.Path:
        return self.folder / "err"

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def _read(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the server of forks has ended"
        return json.loads(line)


def _run_in_fork(request: Mapping[str, Any]) -> None:
    os.setsid()
    for number, file in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["env"])
    if request["cwd"]:
        os.chdir(request["cwd"])
    sys.argv = [request["module"], *request["args"]]
    code = 0
    for name, limit in request["limits"].items():
        kind = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    if request["user"] is not None:
        os.setgid(request["user"])
        os.setuid(request["user"])
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _await_fork(pid: int, timeout: float) -> dict[str, Any]:
    began, hung = time.monotonic(), False
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        spent = time.monotonic() - began
        hung = hung or spent > timeout * max(1.0, os.getloadavg()[0])
        if hung:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.001 if spent < 0.1 else 0.005)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - began,
        "hung": hung,
    }


def _serve(kind: str) -> None:
    for name in (*_LIGHT, *(_HEAVY if kind == "heavy" else ())):
        __import__(name)
    for line in sys.stdin:
        request = json.loads(line)
        for file in (request["out"], request["err"]):
            pathlib.Path(file).write_bytes(b"")
        pid = os.fork()
        if not pid:
            _run_in_fork(request)
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps(_await_fork(pid, request["timeout"])), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
