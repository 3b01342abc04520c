"""Runs `python -m MODULE ARGS` several times, each in a fork of a process with the libraries.

Reads a JSON list of [module, args] and prints one of {code, out, err, jax}: the exit code, what the
command says, and whether it loaded jax.
"""

import json
import os
import runpy
import sys
import tempfile


def run_command(module: str, args: list[str], files: list[str]) -> None:
    for number, file in enumerate(files[:2], 1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    sys.argv = [module, *args]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(files[2], "w") as file:
        json.dump({"code": code, "jax": "jax" in sys.modules}, file)
    os._exit(0)


results = []
with tempfile.TemporaryDirectory() as folder:
    for module, args in json.load(sys.stdin):
        files = [os.path.join(folder, name) for name in ("out", "err", "result")]
        for file in files:
            open(file, "w").close()
        child = os.fork()
        if not child:
            run_command(module, args, files)
        os.waitpid(child, 0)
        out, err, result = (open(file).read() for file in files)
        results.append({"out": out, "err": err, **json.loads(result)})
print(json.dumps(results))
