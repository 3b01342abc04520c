"""Runs `python -m MODULE ARGS` several times, each in a fork of a process with the libraries.

Reads a JSON list of [module, args] and prints one of {code, out, err, jax}: the exit code, what the
command says, and whether it loaded jax.
"""

import importlib
import json
import os
import pathlib
import runpy
import sys
import tempfile

# What most commands import, so that each fork has it.
for name in ("cli", "data.inspect", "data.prepare", "study.study_runner", "transfer.tasks"):
    importlib.import_module(f"imbalance_jax.{name}")
importlib.import_module("launch.plan")


def run_command(module: str, args: list[str], files: list[pathlib.Path]) -> None:
    for number, file in enumerate(files[:2], 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [module, *args]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    files[2].write_text(json.dumps({"code": code, "jax": "jax" in sys.modules}))
    os._exit(0)


results = []
with tempfile.TemporaryDirectory() as folder:
    files = [pathlib.Path(folder, name) for name in ("out", "err", "result")]
    for module, args in json.load(sys.stdin):
        child = os.fork()
        if not child:
            run_command(module, args, files)
        os.waitpid(child, 0)
        out, err, result = (file.read_text() for file in files)
        results.append({"out": out, "err": err, **json.loads(result)})
print(json.dumps(results))
