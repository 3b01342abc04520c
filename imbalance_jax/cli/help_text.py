"""The help of a command: what it does, an example, and its own flags, on one screen.

The docstring of a command's module is the first part. The help of a flag may begin with what
stands for its value, in capitals and with a colon: "DIR: the run's directory.".
"""

import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import app, flags

from imbalance_jax import config as config_lib
from imbalance_jax.cli.exits import DONE


class Subcommand(NamedTuple):
    """One of several commands of a module, such as `plan` of imbalance_jax.study."""

    summary: str
    example: str  # its arguments
    flags: Sequence[str]  # the names of those that it reads


_SHORT = ("--help", "-help", "-h", "-?", "--helpshort", "-helpshort")
_FULL = ("--helpfull", "-helpfull")


def print_help(argv: Sequence[str], subcommands: Mapping[str, Subcommand]) -> None:
    """Prints the help and exits with code 0, if a command line asks for it."""
    args = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if any(arg in _FULL for arg in args):
        app.usage(writeto_stdout=True)
        sys.exit(DONE)
    if any(arg in _SHORT for arg in args):
        chosen = next((arg for arg in args if arg in subcommands), "")
        width = min(100, shutil.get_terminal_size((100, 24)).columns)
        print(format_help(width, subcommands, chosen))
        sys.exit(DONE)


def format_help(width: int, subcommands: Mapping[str, Subcommand], chosen: str = "") -> str:
    """Returns the help of the program that is running.

    Args:
      width: characters of a line.
      subcommands: of the program, if it has any.
      chosen: the one whose help is asked for; "" is the whole program's.
    """
    own = list_own_flags()
    if chosen:
        command = subcommands[chosen]
        start = f"{get_program()} {chosen}"
        parts = [command.summary, f"    {start} {command.example}"]
        own = [flag for flag in own if flag.name in command.flags]
    else:
        parts = [(sys.modules["__main__"].__doc__ or "").strip()]
        rows = [(name, command.summary) for name, command in subcommands.items()]
        parts += [_format_columns(rows, width)] if rows else []
    rows = [row for flag in own for row in _describe_flag(flag)]
    parts.append(_format_columns(rows, width))
    more = ["--helpfull lists the flags of all libraries too."]
    if subcommands and not chosen:
        more.insert(0, f"{get_program()} COMMAND --help shows the flags of one command.")
    parts.append("\n".join(more))
    return "\n\n".join(part for part in parts if part)


def get_program() -> str:
    """Returns how the running command is started, such as `python -m imbalance_jax.study`."""
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        return sys.argv[0]
    return f"python -m {spec.name.removesuffix('.__main__')}"


def list_own_flags() -> list[flags.Flag]:
    """Returns the flags of the running command that have a help, in the order of declaration.

    Neither absl's own flags nor overrides of a config's fields are among them.
    """
    found = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    # An alias has a hyphen here. absl writes this in place of a help.
    return [
        flag
        for flag in found
        if not {".", "-"} & set(flag.name) and flag.help != "(no help available)"
    ]


def _describe_flag(flag: flags.Flag) -> list[tuple[str, str]]:
    """Returns the lines of a flag: how it is written, and its help."""
    placeholder, text = _split_placeholder(flag)
    if isinstance(flag, flags.BooleanFlag):
        written = f"--[no]{flag.name}" if flag.default else f"--{flag.name}"
    else:
        written = f"--{flag.name}={placeholder}"
        if flag.default not in (None, "", [], 0, -1):  # of 0 and -1 the help says what they do
            default = flag.default
            text += f" [{','.join(default) if isinstance(default, list) else default}]"
    rows = [(written, text)]
    if hasattr(type(flag), "config_filename"):
        listed = "python -m imbalance_jax.config lists them"
        rows.append((f"--{flag.name}.FIELD=VALUE", f"Sets a field of it; {listed}."))
    return rows


def _split_placeholder(flag: flags.Flag) -> tuple[str, str]:
    """Returns what stands for the value of a flag, and its help without it."""
    text = " ".join((flag.help or "").split())
    # absl adds this to flags that may be repeated.
    text = text.replace("; repeat this option to specify a list of values", " It may be repeated.")
    found = re.match(r"([A-Z][A-Z:@,|\[\]=.]*): ", text)
    if found:
        return found.group(1), text[found.end() :]
    if isinstance(flag, flags.EnumFlag):
        values = "|".join(flag.parser.enum_values)
        return values, re.sub(r"^<.*?>: ", "", text)
    kinds = {flags.IntegerParser: "N", flags.FloatParser: "X", flags.ListParser: "A,B"}
    return next((n for kind, n in kinds.items() if isinstance(flag.parser, kind)), "TEXT"), text


def _format_columns(rows: Sequence[tuple[str, str]], width: int) -> str:
    """Returns rows in two columns; a long left cell has a line of its own."""
    left = min(26, max((len(first) for first, _ in rows), default=0))
    lines = []
    for first, second in rows:
        wrapped = textwrap.wrap(second, max(20, width - left - 4)) or [""]
        if len(first) > left:
            lines.append(f"  {first}")
            first = ""
        lines.append(f"  {first:<{left}}  {wrapped[0]}".rstrip())
        lines += [f"{'':{left + 4}}{line}" for line in wrapped[1:]]
    return "\n".join(lines)


def choose_subcommand(names: Sequence[str], subcommands: Mapping[str, Subcommand]) -> str:
    """Returns the only name on a command line, if it is a subcommand.

    Raises:
      ValueError: it is none; the message names the nearest one.
    """
    if len(names) == 1 and names[0] in subcommands:
        return names[0]
    problem = f"{' '.join(names)!r} is none" if names else "there is none"
    nearest = config_lib.suggest_nearest_name(names[0], subcommands) if names else ""
    raise ValueError(f"Give one command of {', '.join(subcommands)}: {problem}. {nearest}".strip())
