"""The one rule for what looks like a secret, by the name of a variable or by a value.

Environments and profiles are written into files of jobs, into plan.json and submitted.jsonl, and
stand in lists of processes. So what looks like a secret is refused, with how it is handed over.
"""

import re
from collections.abc import Iterable, Mapping

_HANDOVERS = {
    "gke": "Put it into a Kubernetes Secret and name that in gke.secrets.",
    "slurm": "Put it into a file of mode 600 and give that with --env_file.",
    "sky": "Export it here and name it in sky.secrets.",
    "tpuvm": "Put it into Secret Manager and name it in tpuvm.secrets.",
    "local": "Export it in the shell that submits.",
}

# A name is read as _WORD_WORD_. These words make it a secret wherever they stand in it.
_ALWAYS = re.compile(
    r"_(\w*(PASSWORD|PASSWD|PASSPHRASE|PASSCODE|SECRET)S?|CREDENTIALS?|CREDS?"
    r"|(API|ACCESS|PRIVATE|SECRET|SSH)_?KEYS?|(API|ACCESS|AUTH|BEARER|REFRESH|SESSION)_?TOKENS?"
    r"|(SSH|DB|PG|MYSQL|REDIS|FTP|SMTP)PASS)_"
)
# ... unless the last word says that the value is something about the secret. ID is no such word,
# because of Vault's SECRET_ID.
_ABOUT = re.compile(r"_(PATH|FILE|FILENAME|DIR|NAME|LENGTH|LEN|SIZE|COUNT|TIMEOUT|TTL|TYPE)_$")
# These have other meanings too. They count as the last word, but for a number or an environment.
_AT_END = re.compile(
    r"_((HF|GH|GITHUB|NPM|PYPI|BOT)?TOKEN|KEYS?|PASS|PWD|PAT|AUTH|JWT|DSN)"
    r"(_?\d+|_(PROD|DEV|STAGING|TEST|BACKUP|OLD|NEW|BASE64|B64|PEM|VALUE))*_$"
)
# ... unless a word before says that it is a key of a table, a token of a text or a pass of a loop,
_HARMLESS = re.compile(
    r"_(PAD|EOS|BOS|UNK|MASK|SEP|CLS|SPECIAL|STOP|START|NEXT|FIRST|SECOND|LAST|SINGLE|TWO|MULTI"
    r"|FORWARD|BACKWARD|HIGH|LOW|BAND|PUBLIC|PRIMARY|FOREIGN|SORT|CACHE|PARTITION|RANDOM|RNG|PRNG"
    r"|HASH|TEXT|DATA|IMAGE|LABEL|FEATURE|CONFIG|METRIC|DICT|GROUP|LOOKUP|ATTENTION|QUERY)"
    r"_(TOKEN|KEYS?|PASS)_"
    # ... a number, or a switch.
    r"|_(NUM|N|MAX|MIN|TOTAL|PER|ENABLE|DISABLE|USE|NO|SKIP|REQUIRE)_"
)
# The directory that a shell is in; and the path of a file with a key, not the key.
_NO_SECRETS = ("PWD", "GOOGLE_APPLICATION_CREDENTIALS")

_VALUES = {
    "a token of GitHub": r"\b(gh[opsur]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a token of GitLab": r"\bglpat-[\w-]{20,}",
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{30,}",
    "a token of npm or PyPI": r"\b(npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,})",
    "a token of Slack": r"\bxox[abeprs]-[\w-]{10,}",
    "a key of AWS": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a key of Google Cloud": r"\bAIza[\w-]{35}|\bya29\.[\w-]{20,}",
    "a key of an API": r"\bsk-[\w-]{20,}",
    "a web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "an address with a password": r"\b[a-z][a-z0-9+.-]*://[^\s/:@]*:[^\s/@$]+@",
}
# In text that a shell or another program reads: what follows is the value and no reference to it.
_ASSIGNMENT = re.compile(r"(?<![A-Za-z0-9_$])([A-Z][A-Z0-9_]*)=[\"']?(?=[^\s\"'$])")


def is_secret_name(name: str) -> bool:
    """Whether the value of an environment variable of this name looks like a secret."""
    if name in _NO_SECRETS:
        return False
    words = "_" + re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper().strip("_") + "_"
    if _ALWAYS.search(words):
        return not _ABOUT.search(words)
    return bool(_AT_END.search(words)) and not _HARMLESS.search(words)


def describe_secret_value(text: str) -> str:
    """Returns what a part of a text looks like, or "" if nothing in it looks like a secret."""
    for kind, pattern in _VALUES.items():
        if re.search(pattern, text):
            return kind
    for name in _ASSIGNMENT.findall(text):
        if is_secret_name(name):
            return f"a value of {name}"
    return ""


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError if one is no name of an environment variable."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of an environment variable.")


def check_env(env: Mapping[str, str], engine: str) -> None:
    """Raises ValueError if an environment variable has no name, or looks like a secret."""
    check_names(env)
    for name in env:
        if is_secret_name(name):
            raise ValueError(
                f"{name} looks like a secret, and would stand in files and process lists. "
                f"{_HANDOVERS[engine]}"
            )
    check_values(env, engine)


def check_values(values: Mapping[str, str], engine: str) -> None:
    """Raises ValueError if the value of a field, which is in no error, looks like a secret."""
    for field, value in values.items():
        if kind := describe_secret_value(value):
            raise ValueError(
                f"{field} holds what looks like {kind}, and would stand in files and process "
                f"lists. {_HANDOVERS[engine]}"
            )
