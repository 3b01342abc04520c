"""Lists all commands.

    python -m imbalance_jax

The line of a command is the first line of its docstring, which is read without importing it.
"""

import ast
import difflib
import pathlib
import sys

COMMANDS = (
    "imbalance_jax.main",
    "imbalance_jax.report",
    "imbalance_jax.generate",
    "imbalance_jax.evaluate",
    "imbalance_jax.study",
    "imbalance_jax.config",
    "imbalance_jax.data.prepare",
    "imbalance_jax.data.inspect",
    "imbalance_jax.transfer",
    "imbalance_jax.word2vec",
    "imbalance_jax.bench",
    "launch",
)


def read_summary(command: str) -> str:
    """Returns the first line of the docstring of a command."""
    path = pathlib.Path(__file__).parents[1].joinpath(*command.split("."))
    module = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    return (text or "").partition("\n")[0]


def format_command_list() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"    python -m {name:<{width}}  {read_summary(name)}" for name in COMMANDS]
    return "\n".join(
        [
            "The commands of imbalance_jax. Each shows its flags with --help.",
            "",
            *lines,
            "",
            "To begin: python -m imbalance_jax.main --config=90_10",
        ]
    )


def main(args: list[str]) -> int:
    unknown = [arg for arg in args if not arg.startswith("-")]
    if not unknown:
        print(format_command_list())
        return 0
    # Such as `python -m imbalance_jax study`, with a blank for a dot.
    names = {name.removeprefix("imbalance_jax."): name for name in COMMANDS}
    close = difflib.get_close_matches(unknown[0], names, n=1)
    nearest = f"Did you mean python -m {names[close[0]]}?" if close else ""
    otherwise = "python -m imbalance_jax lists the commands."
    print(f"error: {unknown[0]!r} is no command here. {nearest or otherwise}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
