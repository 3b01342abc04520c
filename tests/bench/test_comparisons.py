"""Programs to compare with run without this package, and say in a sentence what they lack."""

import json
import pathlib
import subprocess
import sys

import pytest

from imbalance_jax.bench import case as case_lib
from imbalance_jax.bench import compare, comparisons

FOLDER = pathlib.Path(comparisons.__file__).parent
# What each looks for in a checkout, and the first package that it needs.
PROGRAMS = {
    "xling_imbalance.py": ("languini/projects/gpt/model.py", "torch"),
    "nanodo.py": ("nanodo/train.py", "flax"),
}


def run(program: str, code: pathlib.Path) -> subprocess.CompletedProcess:
    case = case_lib.parse_case("demo:2:4")
    asked = compare.describe_case(case, case.vocab_size, "float32", 1)
    # -S: an environment in which nothing is installed, this package included.
    command = [sys.executable, "-S", str(FOLDER / program), f"--code={code}"]
    return subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_missing_checkout_is_one_sentence_that_says_what_to_clone(program, tmp_path):
    done = run(program, tmp_path)
    assert done.returncode == 2 and "git clone https://github.com/" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_missing_package_is_one_sentence_that_says_what_to_install(program, tmp_path):
    file, package = PROGRAMS[program]
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    done = run(program, tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"{package} is missing: pip install")
    assert len(done.stderr.splitlines()) == 1 and not done.stdout
