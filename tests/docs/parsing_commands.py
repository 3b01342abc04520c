"""Reads command lines as `python -m` does, each in a fork, and does none of their work.

The arguments of this program are the modules to import first. It reads a JSON list of words a line:
a module and its arguments. It answers with a JSON list: the exit code, and what the command says.
In place of its `main` a command gets `check_flags`, which looks at what the flags name: the config
or study is resolved, files are there, choices exist.
"""

import fnmatch
import gc
import json
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable

from absl import flags

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.bench import case
from imbalance_jax.study import grid
from imbalance_jax.transfer import tasks
from launch import profile

FLAGS = flags.FLAGS
MODULES = sys.argv[1:]  # which are imported once, and not in every fork


def check_flags(main: Callable[..., int], names: list[str]) -> int:
    """Raises ValueError or exits where a flag names something that does not exist.

    Args:
      main: the command that would be called.
      names: its arguments that are no flags.
    """
    commands = main.__globals__.get("COMMANDS", ())
    if commands and names[:1] and names[0] not in commands:
        raise ValueError(f"{names[0]} is not one of {', '.join(commands)}.")
    for flag in ("config", "study"):
        config = FLAGS[flag].value if flag in FLAGS else None
        if isinstance(config, str):
            continue  # the directory of a study
        if config is not None and "runs" in config:
            study = grid.resolve_study(config)
            for pattern in FLAGS.runs if "runs" in FLAGS else ():
                if not fnmatch.filter(study.runs, pattern.removeprefix("!")):
                    raise ValueError(f"--runs={pattern} is no run of the study.")
        elif config is not None:
            config_lib.resolve_config(config)
    for text in FLAGS.case if "case" in FLAGS else ():
        case.parse_case(text)
    if "tasks" in FLAGS:
        known = [task for task in FLAGS.tasks if not task.endswith(".toml")]
        if known:
            tasks.find_tasks(known)
    if "profile" in FLAGS and isinstance(FLAGS.profile, str):
        profile.read_profile(FLAGS.profile)
    if "totals" in FLAGS and FLAGS.totals:
        for file in [FLAGS.totals, *names]:
            config_lib.resolve_config(cli.load_config_file(file))
    return cli.DONE


def run_checked(module: str, args: list[str]) -> None:
    """Runs a command up to the call of its main, and exits."""
    run_command = cli.run_command

    def run_without_work(main: Callable[..., int], **options: object) -> None:
        def check(names: str | list[str] = ()) -> int:
            # Where a module has several commands, `main` may get the name of one.
            return check_flags(main, [names] if isinstance(names, str) else list(names))

        run_command(check, **options)

    cli.run_command = run_without_work
    sys.argv = [module, *args]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ImportError as error:
        sys.exit(f"{module} cannot be started: {error}")
    sys.exit(f"{module} is no command: it called no cli.run_command.")


def answer(line: str) -> list:
    """Returns the exit code of a command line and what it says."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            module, *args = json.loads(line)
            code = 0
            try:
                run_checked(module, args)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
                print("" if code == end.code else end.code)
            except BaseException:
                code = 1
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)  # at once: to take all modules down would take a second
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return [code, said.read().decode(errors="replace")]


for name in MODULES:
    runpy.run_module(name, run_name="imported")
gc.disable()
for request in sys.stdin:
    print(json.dumps(answer(request)), flush=True)
