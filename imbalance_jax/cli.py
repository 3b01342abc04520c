"""What every command shares: reading the command line, and how errors leave it.

Exit codes: 0 done, 1 an error after the first step began, 2 an error found before it, 75 preempted
or interrupted and saved, 134 another process was lost. An error that a user can mend is one message
without a traceback.
"""

import dataclasses
import functools
import io
import os
import re
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from imbalance_jax import config as config_lib
from imbalance_jax.runs import children, run_config, storage

# So that --help of a command shows the flags that are declared here for it.
flags.disclaim_key_flags()

DONE = 0
FAILED = 1
REFUSED = 2
PREEMPTED = 75  # EX_TEMPFAIL: start again to go on
LOST = 134  # another process of the run has gone; jax exits with it where it notices first


def define_config_flag(flag: str = "config", example: str = "90_10.py") -> None:
    """Declares --config=FILE[:CHOICES] and the override --config.FIELD=VALUE of any field."""
    config_flags.DEFINE_config_file(
        flag, None, f"A file in configs/, such as {example}.", flag_values=flags.FLAGS
    )
    flags.FLAGS[flag].parser = _ConfigFileParser(flag)


def define_compute_flags() -> None:
    """Declares the flags that change how an update is computed, and not what it is."""
    flags.DEFINE_integer(
        "accumulate", 0, "Micro-batches, if not those of config.optimizer.accumulate.", 0
    )
    flags.DEFINE_enum(
        "remat",
        None,
        config_lib.REMAT,
        "What is computed again, if not what config.model.remat says.",
    )


def format_compute_flags() -> list[str]:
    """Returns the flags of `define_compute_flags` that were given, for another command."""
    values = {name: flags.FLAGS[name].value for name in ("accumulate", "remat")}
    return [f"--{name}={value}" for name, value in values.items() if value]


def run_command(main: Callable[..., int], *, names: bool = False) -> NoReturn:
    """Reads the flags that were defined, calls `main` and exits with what it returns.

    Args:
      main: the command.
      names: whether it takes the list of arguments that are no flags.
    """

    def checked(argv: list[str]) -> int:
        # Libraries would report each file that they open.
        logging.set_verbosity(logging.WARNING)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        sys.unraisablehook = functools.partial(_interrupt_again, sys.unraisablehook)
        children.end_with_parent()
        if len(argv) > 1 and not names:
            exit_with_error(f"{argv[1]!r} is not a flag. Write --name=value.")
        try:
            return main(argv[1:]) if names else main()
        except UnicodeError:
            raise  # a ValueError that is no mistake of the user and names no file
        except ValueError as error:
            exit_with_error(str(error))
        except BrokenPipeError:
            # The reader of the output has gone, as `head` does. The rest of it goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except OSError as error:
            exit_with_error(storage.describe_os_error(error))
        except KeyboardInterrupt:
            print("Interrupted. Start again to go on.", file=sys.stderr)
            return PREEMPTED

    _escape_unencodable_text()
    app.run(checked, flags_parser=_parse_flags)


def _interrupt_again(report: Callable[..., None], unraisable: "sys.UnraisableHookArgs") -> None:
    """Interrupts the main thread again if a KeyboardInterrupt was lost.

    Callbacks of the garbage collector lose exceptions, and jax has such a callback.

    Args:
      report: takes all other exceptions that cannot be raised.
      unraisable: the exception that was not raised.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # After a moment, or it would interrupt this function. By SIGTERM, because the background
        # jobs of a shell ignore Ctrl-C.
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        report(unraisable)


def _escape_unencodable_text() -> None:
    """Escapes characters that the encoding of the output does not have.

    A job without a locale prints ASCII, and a file name may have bytes that are no text.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def require_config() -> ml_collections.ConfigDict:
    """Returns the config of the command line, with its overrides.

    Raises:
      ValueError: none was given.
    """
    if flags.FLAGS.config is None:
        raise ValueError("--config is missing. Give a file, such as --config=configs/90_10.py.")
    return flags.FLAGS.config


def get_config_name(flag: str = "config") -> str:
    """Returns the name of the config's file, without its folder and its choices.

    Raises:
      ValueError: none was given.
    """
    if flags.FLAGS[flag].value is None:
        raise ValueError(f"--{flag} is missing. Give a file, such as --{flag}=configs/90_10.py.")
    file = flags.FLAGS[flag].config_filename  # type: ignore[attr-defined]
    return os.path.basename(file.partition(":")[0]).removesuffix(".py")


def exit_with_error(message: str) -> NoReturn:
    """Prints what is wrong and how to mend it, and exits with code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(REFUSED)


def check_same_measurement(what: str, known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError if results exist that were measured with other settings.

    Args:
      what: the beginning of the message: the results and their file.
      known: the settings of the results.
      now: the settings to measure with.
    """
    differences = [
        f"{key}={known.get(key)!r} and not {value!r}"
        for key, value in now.items()
        if known.get(key) != value
    ]
    if differences:
        raise ValueError(f"{what} already, with {'; '.join(differences)}. --overwrite replaces it.")


class _ConfigFileParser(flags.ArgumentParser):
    """Loads a config file, and refuses overrides of fields that it does not have.

    The parser of config_flags refuses them too, but does not say which fields there are.
    """

    def __init__(self, flag: str) -> None:
        self._flag = flag

    def parse(self, path: str) -> ml_collections.ConfigDict:
        config = load_config_file(path, self._flag)
        for name in _read_flag_values(sys.argv[1:]):
            if re.match(rf"(no)?{self._flag}\.", name):  # as in --noconfig.model.tied
                _check_override_field(config, name.removeprefix("no"))
        if isinstance(config, ml_collections.ConfigDict):
            config.lock()
        return config


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        argv = _insert_run_config(argv)
        typed, sys.argv = sys.argv, argv  # where config_flags looks for overrides
        try:
            return flags.FLAGS(argv)
        finally:
            sys.argv = typed
    except flags.IllegalFlagValueError as error:
        exit_with_error(_describe_illegal_value(str(error).removeprefix("flag ")))
    except (flags.Error, ValueError, TypeError) as error:
        exit_with_error(" ".join(str(error).split()))


def _describe_illegal_value(message: str) -> str:
    """Returns absl's message on --NAME=VALUE with what kind of value the flag takes."""
    assignment = message.partition(": ")[0]
    name = assignment.removeprefix("--").partition("=")[0]
    if name not in flags.FLAGS:
        return message
    flag = flags.FLAGS[name]
    if name.startswith("config.mixture.ratio."):
        expected = "a whole number of sequences. Write 92.5% to 7.5% as 37 and 3."
    elif name.partition(".")[0] in _list_config_flags() and type(flag.default) in _KINDS:
        expected = f"{_KINDS[type(flag.default)]}, such as {flag.default}."
    elif "invalid literal" in message:
        expected = f"{flag.parser.syntactic_help}."
    else:
        return message
    return f"{assignment}: it must be {expected}"


_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def _list_config_flags() -> list[str]:
    """Returns the flags that `define_config_flag` declared."""
    return [n for n in flags.FLAGS if hasattr(type(flags.FLAGS[n]), "config_filename")]


def _insert_run_config(argv: list[str]) -> list[str]:
    """Adds the config of the run in --workdir to a command line with overrides but no --config."""
    values = _read_flag_values(argv[1:])
    overrides = [name for name in values if name.removeprefix("no").startswith("config.")]
    if "config" not in _list_config_flags() or values.get("config") or not overrides:
        return argv
    workdir = values.get("workdir", "")
    if not workdir or not (storage.parse_path(workdir) / "config.json").exists():
        of_run = ", or the --workdir of a run that has begun" if "workdir" in flags.FLAGS else ""
        exit_with_error(
            f"--{overrides[0]} changes a field of a config, and there is none. Give "
            f"--config=FILE{of_run}."
        )
    return [argv[0], f"--config={run_config.__file__}:{workdir}", *argv[1:]]


def _read_flag_values(args: list[str]) -> dict[str, str]:
    """Returns the value of each flag of a command line by its name, before it is parsed."""
    values = {}
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        if arg.startswith("-"):
            name, equals, value = arg.lstrip("-").partition("=")
            values[name] = value if equals else following
    return values


def find_config_file(path: str) -> str:
    """Returns where a config file lies: as written, or else among the package's own configs/.

    A wheel has these files in imbalance_jax/configs. An editable install has those of its checkout.
    """
    folder, _, name = path.partition("/")
    if folder != "configs" or os.path.isfile(path):
        return path
    package = os.path.dirname(os.path.abspath(__file__))
    own = os.path.join(package, "configs")
    if not os.path.isdir(own):
        own = os.path.join(os.path.dirname(package), "configs")
    found = os.path.join(own, name)
    return found if os.path.isfile(found) else path


def load_config_file(value: str, flag: str = "config") -> ml_collections.ConfigDict:
    """Returns the config of a `--config=FILE[:CHOICES]`, without overrides."""
    path, _, choices = value.partition(":")
    path = find_config_file(path)
    if not os.path.isfile(path):
        exit_with_error(f"--{flag}={value}: there is no file {path}.")
    try:
        names = runpy.run_path(path)
        if "get_config" not in names:
            exit_with_error(f"--{flag}={value}: {path} defines no function get_config().")
        get_config = names["get_config"]
        return get_config(choices) if choices else get_config()
    except (ValueError, FileNotFoundError) as error:
        exit_with_error(str(error))
    except Exception as error:
        exit_with_error(f"--{flag}={value}: {path} fails with {type(error).__name__}: {error}")


_FIELDS_OF_A_RUN = frozenset(field.name for field in dataclasses.fields(config_lib.Config))


def _check_override_field(config: ml_collections.ConfigDict, name: str) -> None:
    """Exits if a dotted name is not in the config, and names the last group that is."""
    group_value: Any = config
    flag, *parts = name.split(".")
    group = flag
    for part in parts:
        if not isinstance(group_value, ml_collections.ConfigDict):
            exit_with_error(f"--{name}: {group} is a value and has no fields.")
        if part not in group_value:
            if group == "config.mixture.ratio":
                exit_with_error(
                    f"--{name} is the ratio of a language that is not declared. "
                    f"config.languages has: {', '.join(config.languages)}."
                )
            if not group_value:
                exit_with_error(
                    f"--{name}: {group} is empty. Set all of it, as in "
                    f"--{group}=\"{{'{part}': ...}}\"."
                )
            if group_value is config and "runs" in config and part in _FIELDS_OF_A_RUN:
                for_all = f", or --{part}=... for all" if part in flags.FLAGS else ""
                exit_with_error(
                    f"--{name} is a field of a run, and this config is a study. Set "
                    f"--{flag}.runs.NAME.config.{'.'.join(parts)} for one run{for_all}."
                )
            exit_with_error(config_lib.describe_unknown_field(group, part, list(group_value)))
        group_value = group_value[part]
        group += f".{part}"
