"""Runs commands of `python -m launch`, each in a fork of a process that imports them once.

Reads a JSON object a line: args, cwd, env, and out and err, the files of what the command says.
Answers each with its exit code.
"""

import json
import os
import sys

from imbalance_jax import cli
from launch import __main__ as command

for line in sys.stdin:
    call = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(call["cwd"])
        os.environ.update(call["env"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(call[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["launch", *call["args"]]
        command.define_flags()
        cli.run_command(command.main, subcommands=command.SUBCOMMANDS)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
