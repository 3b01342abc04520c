"""The shell commands of a page of documentation, as lists of words."""

import dataclasses
import re
import shlex
import textwrap

# The programs that the pages use. A block of code that begins with one of them is shell.
PROGRAMS = frozenset(
    ("python", "python3", "pip", "git", "mkdocs", "mypy", "pytest", "ruff", "rsync", "export", "cd")
    + (".", "docker", "gcloud", "kubectl", "sky", "source", "srun", "sbatch", "mkdir", "cp", "ls")
)
_KEYWORDS = ("do", "then", "else")
_NO_COMMANDS = ("for", "done", "fi", "if", "while")
_ASSIGNMENT = re.compile(r"[A-Z_]+=")
_OURS = re.compile(r"-m (imbalance_jax|launch)\b")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page."""

    page: str
    words: tuple[str, ...]  # without assignments in front and without redirections
    text: str

    @property
    def module(self) -> str:
        """What `python -m` starts, or ""."""
        starts = self.words[0] in ("python", "python3") and self.words[1:2] == ("-m",)
        return self.words[2] if starts else ""


def find_commands(page: str, text: str) -> list[Command]:
    """Returns the shell commands of a page: of blocks of code, and `python -m` within a line.

    Raises:
      ValueError: a block starts a module of this project, but is no shell.
    """
    blocks, prose = _split_blocks(text)
    commands = []
    for block in blocks:
        block = textwrap.dedent(block)
        if block.startswith("--"):  # flags that a page shows alone are those of a run
            block = f"python -m imbalance_jax.main --config=configs/90_10.py {block}"
        words = block.split()
        first = next((word for word in words if not _ASSIGNMENT.match(word)), "")
        if first in PROGRAMS or first == "for" or "/" in first:
            commands += _parse_shell(page, block)
        elif _OURS.search(block):
            raise ValueError(f"{page}: is this shell, and is {first!r} a program?\n{block}")
    for code in re.findall(r"`(python3? -m [^`]+)`", prose):
        commands += _parse_shell(page, " ".join(code.split()))
    return commands


def _split_blocks(text: str) -> tuple[list[str], str]:
    """Returns the blocks of code of a page, fenced or indented, and the rest of it."""
    blocks = re.findall(r"(?ms)^```[^\n]*\n(.*?)^```", text)
    prose: list[str] = []
    indented: list[str] = []
    lines = re.sub(r"(?ms)^```.*?^```", "a block", text).splitlines()
    for line in [*lines, "end"]:
        begins = not prose or not prose[-1].strip() or indented
        if line.startswith("    ") and begins or (indented and not line.strip()):
            indented.append(line)
            continue
        if indented:
            blocks.append("\n".join(indented))
            indented = []
            prose.append("")
        prose.append(line)
    return [block for block in blocks if block.strip()], "\n".join(prose[:-1])


def _parse_shell(page: str, script: str) -> list[Command]:
    """Returns the commands of a script. Variables of its loops have their first values."""
    script = re.sub(r"\\\n\s*", " ", script)
    script = re.sub(r"(?m)(^|\s)#.*$", r"\1", script)
    for name, first in re.findall(r"\bfor (\w+) in (\S+)", script):
        script = re.sub(rf"\$(?:{name}\b|{{{name}}})", first, script)
    lexer = shlex.shlex(script, posix=True, punctuation_chars=";<>|&\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    commands, words = [], []
    for token in [*lexer, "\n"]:
        if not set(token) <= set(";|&\n"):
            words.append(token)
            continue
        while words and (words[0] in _KEYWORDS or _ASSIGNMENT.match(words[0])):
            words = words[1:]
        if words and words[0] not in _NO_COMMANDS:
            if ">" in words:
                words = words[: words.index(">")]
            commands.append(Command(page, tuple(words), shlex.join(words)))
        words = []
    return commands
