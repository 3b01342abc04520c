"""The flags that commands share, and how a command line is parsed.

A wrong flag, field or value is refused with one message that names the nearest right one.
"""

import dataclasses
import os
import re
import sys
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from imbalance_jax import config as config_lib
from imbalance_jax.cli.config_files import load_config_file
from imbalance_jax.cli.exits import exit_with_error
from imbalance_jax.cli.help_text import list_own_flags
from imbalance_jax.config.bounds import INT32, LARGEST_RATE
from imbalance_jax.runs import run_config, storage

# So that --help of a command shows the flags that are declared here for it.
flags.disclaim_key_flags()


def define_config_flag(flag: str = "config", example: str = "90_10") -> None:
    """Declares --config=FILE[:CHOICES] and the override --config.FIELD=VALUE of any field."""
    config_flags.DEFINE_config_file(
        flag,
        None,
        f"FILE[:CHOICES]: A config file, or its name in configs/ such as {example}.",
        flag_values=flags.FLAGS,
    )
    flags.FLAGS[flag].parser = _ConfigFileParser(flag)


def define_compute_flags() -> None:
    """Declares the flags that change how an update is computed, and not what it is."""
    flags.DEFINE_integer(
        "accumulate", 0, "Micro-batches of an update; 0 is config.optimizer.accumulate.", 0
    )
    flags.DEFINE_enum(
        "remat",
        None,
        config_lib.REMAT,
        "What the backward pass computes again; by default config.model.remat.",
    )


def format_compute_flags() -> list[str]:
    """Returns the flags of `define_compute_flags` that were given, for another command."""
    values = {name: flags.FLAGS[name].value for name in ("accumulate", "remat")}
    return [f"--{name}={value}" for name, value in values.items() if value]


def require_config() -> ml_collections.ConfigDict:
    """Returns the config of the command line, with its overrides.

    Raises:
      ValueError: none was given.
    """
    if flags.FLAGS.config is None:
        raise ValueError("--config is missing. Give a file, such as --config=configs/90_10.py.")
    return flags.FLAGS.config


def require_run_config() -> config_lib.Config:
    """Returns the config of a run of the command line, with its overrides, typed and checked.

    Raises:
      ValueError: none was given, or it is that of a study, or wrong.
    """
    values = require_config()
    if "runs" in values:
        raise ValueError(
            f"--config={flags.FLAGS['config'].config_filename} "  # type: ignore[attr-defined]
            "is a study, and this command takes one run. To train all runs of the study: "
            "python -m imbalance_jax.study run, with the same --config."
        )
    return config_lib.resolve_config(values)


def get_config_name(flag: str = "config") -> str:
    """Returns the name of the config's file, without its folder and its choices.

    Raises:
      ValueError: none was given.
    """
    if flags.FLAGS[flag].value is None:
        raise ValueError(f"--{flag} is missing. Give a file, such as --{flag}=configs/90_10.py.")
    file = flags.FLAGS[flag].config_filename  # type: ignore[attr-defined]
    return os.path.basename(file.partition(":")[0]).removesuffix(".py")


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


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags of a command line and returns the other arguments; exits if one is wrong."""
    close_number_flags(flags.FLAGS)
    try:
        argv = insert_run_config(argv)
        typed, sys.argv = sys.argv, argv  # where config_flags looks for overrides
        try:
            return flags.FLAGS(argv)
        finally:
            sys.argv = typed
    except flags.UnrecognizedFlagError as error:
        exit_with_error(_describe_unknown_flag(error.flagname))
    except flags.IllegalFlagValueError as error:
        exit_with_error(_describe_illegal_value(str(error).removeprefix("flag ")))
    except (flags.Error, ValueError, TypeError) as error:
        exit_with_error(" ".join(str(error).split()))


class _FiniteParser(flags.FloatParser):
    """Parses a number that lies within bounds, which nan does not."""

    def is_outside_bounds(self, val: float) -> bool:
        assert self.lower_bound is not None and self.upper_bound is not None
        return not self.lower_bound <= val <= self.upper_bound


# Of flags whose declaration has no ends of its own.
_ENDS: dict[type, tuple[Any, float]] = {
    flags.IntegerParser: (flags.IntegerParser, INT32),
    flags.FloatParser: (_FiniteParser, LARGEST_RATE),
}


def close_number_flags(values: flags.FlagValues) -> None:
    """Gives each flag that is a number the ends that its declaration leaves open."""
    for flag in (values[name] for name in values):
        parser: Any = flag.parser
        if type(parser) in _ENDS:
            kind, end = _ENDS[type(parser)]
            lowest, highest = parser.lower_bound, parser.upper_bound
            flag.parser = kind(
                -end if lowest is None else lowest, end if highest is None else highest
            )


def _describe_unknown_flag(name: str) -> str:
    """Returns the message for a flag that the command does not have."""
    own = list_own_flags()
    known = [flag.name for flag in own]
    known += [f"no{flag.name}" for flag in own if isinstance(flag, flags.BooleanFlag)]
    first, dot, rest = name.partition(".")
    nearest = config_lib.suggest_nearest_name(first, known, f"--{{}}{dot}{rest}")
    if "config" in known and not dot:
        # --steps=100 is a field of the config.
        fields = [
            row.name for row in config_lib.list_field_rows() if row.name.rpartition(".")[2] == name
        ]
        if fields and (name not in known):
            nearest = f"Did you mean --{' or --'.join(fields[:3])}?"
            path = _read_flag_values(sys.argv[1:]).get("config", "")
            if path and "runs" in load_config_file(path):
                behind = "," if ":" in path else ":"
                nearest = (
                    f"A study has choices behind a colon: --config={path}{behind}{name}=VALUE."
                )
    return f"There is no flag --{name}. {nearest or 'See --help.'}"


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
    elif isinstance(flag, flags.EnumFlag):
        values = flag.parser.enum_values
        value = assignment.partition("=")[2]
        expected = (
            f"{' or '.join(values)}. {config_lib.suggest_nearest_name(value, values)}".strip()
        )
    elif "invalid literal" in message:
        expected = f"{type(flag.parser).syntactic_help}."
    else:
        return message
    return f"{assignment}: it must be {expected}"


_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def _list_config_flags() -> list[str]:
    """Returns the flags that `define_config_flag` declared."""
    return [n for n in flags.FLAGS if hasattr(type(flags.FLAGS[n]), "config_filename")]


def insert_run_config(argv: list[str]) -> list[str]:
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
            elsewhere = _find_field(config, part, flag) if group_value is config else []
            exit_with_error(
                config_lib.describe_unknown_field(group, part, list(group_value), elsewhere)
            )
        group_value = group_value[part]
        group += f".{part}"


def _find_field(group: ml_collections.ConfigDict, name: str, place: str) -> list[str]:
    """Returns the dotted names of all fields of a name, such as config.optimizer.peak_lr."""
    found = []
    for key, value in group.items():
        if key == name:
            found.append(f"{place}.{key}")
        if isinstance(value, ml_collections.ConfigDict):
            found += _find_field(value, name, f"{place}.{key}")
    return found
