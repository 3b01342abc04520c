"""What messages and pages of documentation tell users to install."""

import configparser
import pathlib
import re

from helpers import ROOT

PLACES = ("README.md", "setup.cfg", ".ci", "configs", "docs", "imbalance_jax", "launch", "tests")
KINDS = {"", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".cfg"}


def texts() -> dict[str, str]:
    """Returns the text of every file that may tell a user to install something, by its path."""
    found = {}
    for place in PLACES:
        here = ROOT / place
        for file in sorted(here.rglob("*")) if here.is_dir() else [here]:
            if file.is_file() and file.suffix in KINDS and file != pathlib.Path(__file__):
                # Strings that Python joins over lines are one.
                text = re.sub(r'"\n\s*f?"', "", file.read_text())
                found[str(file.relative_to(ROOT))] = text
    return found


def test_no_message_installs_this_project_by_a_name_that_anybody_could_take():
    by_name = re.compile(r"pipx? install[^\n&;|]*?\bimbalance[-_]jax\b(?!/)")
    extra = re.compile(r"\bimbalance[-_]jax\[[a-z0-9,]+\]")
    wrong = {
        path: found.group()
        for path, text in texts().items()
        if (found := by_name.search(text) or extra.search(text))
    }
    assert wrong == {}


def test_every_extra_that_is_named_is_there():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    known = set(parser["options.extras_require"])
    named = {
        (path, extra)
        for path, text in texts().items()
        for extras in re.findall(
            r"pip install(?: --?[a-z-]+)* ['\"]?\./?(?:code)?\[([\w,]+)\]", text
        )
        for extra in extras.split(",")
    }
    assert {extra for _, extra in named} >= {"tpu", "launch", "gcs", "test", "tfds"}
    assert {(path, extra) for path, extra in named if extra not in known} == set()
