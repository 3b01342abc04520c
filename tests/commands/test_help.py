"""Behaviours of help, of the list of commands, and of what a mistyped word is answered with."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from helpers import ROOT

from imbalance_jax import __main__ as listing
from imbalance_jax.cli import config_files

SUBCOMMANDS = {
    "imbalance_jax.study": ("plan", "run", "status", "collect", "propose", "check"),
    "launch": ("plan", "preflight", "render", "submit", "status", "logs"),
}
HELP = [(module, []) for module in listing.COMMANDS]
HELP += [(module, [name]) for module, names in SUBCOMMANDS.items() for name in names]
CONFIG = "--config=90_10"
MISTAKES = [
    ("main", ["--wrokdir=x"], "There is no flag --wrokdir. Did you mean --workdir?"),
    ("main", [CONFIG, "--steps=5"], "Did you mean --config.steps?"),
    ("main", [CONFIG, "--conifg.steps=5"], "Did you mean --config.steps?"),
    (
        "study",
        ["plan", "--config=studies/grammar:parts=none", "--steps=5"],
        "choices behind a colon: --config=studies/grammar:parts=none,steps=VALUE.",
    ),
    ("main", [CONFIG, "--nodryrun"], "Did you mean --nodry_run?"),
    ("main", [CONFIG, "--xyzzy=5"], "There is no flag --xyzzy. See --help."),
    (
        "main",
        [CONFIG, "--remat=ful"],
        "it must be auto or none or dots or full. Did you mean full?",
    ),
    ("main", [CONFIG, "--config.modle.N=5"], "Did you mean config.model?"),
    ("main", [CONFIG, "--config.peak_lr=1"], "Did you mean config.optimizer.peak_lr?"),
    ("main", [f"{CONFIG}:scale=pcio"], "there is no such scale. Did you mean pico?"),
    ("main", [f"{CONFIG}:sclae=pico"], "joins=. Did you mean scale?"),
    ("main", ["--config=90_1O"], "Did you mean 90_10?"),
    ("main", ["--config=ratio"], "Did you mean studies/ratio?"),
    ("main", ["--config=configs/studies/grammer.py"], "Did you mean studies/grammar?"),
    ("main", ["--config=studies/ratio"], "is a study, and this command takes one run"),
    ("study", ["rnu", "--config=studies/ratio"], "'rnu' is none. Did you mean run?"),
    ("study", ["run", "--config=studies/ratio", "--only=r90_01"], "Did you mean r90_10?"),
    ("evaluate", ["--workdri=x"], "Did you mean --workdir?"),
]


@pytest.fixture(scope="module")
def results() -> list[dict]:
    calls = [(module, [*args, "--help"]) for module, args in HELP]
    calls += [(f"imbalance_jax.{name}", args) for name, args, _ in MISTAKES]
    done = subprocess.run(
        [sys.executable, pathlib.Path(__file__).parent / "forked_commands.py"],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)},
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(HELP)), ids=[" ".join([m, *a]) for m, a in HELP])
def test_help_is_one_screen_that_begins_with_an_example(results, number):
    (module, args), result = HELP[number], results[number]
    assert result["code"] == 0 and result["err"] == "" and not result["jax"]
    lines = result["out"].splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert lines[0].endswith(".") and lines[2].startswith(
        f"    python -m {' '.join([module, *args])}"
    )
    # Its own flags, of which absl's are none, and every one with a help.
    flags = [line.split() for line in lines if line.startswith("  --")]
    assert flags and all(len(words) > 1 or len(words[0]) > 24 for words in flags)
    assert not {"--alsologtostderr", "--pdb", "--helpxml"} & {words[0] for words in flags}


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[m[1][-1] for m in MISTAKES])
def test_a_mistyped_word_is_answered_with_the_nearest_in_one_line(results, number):
    result = results[len(HELP) + number]
    assert result["code"] == 2 and result["out"] == "" and not result["jax"]
    assert result["err"].startswith("error: ") and len(result["err"].splitlines()) == 1
    assert MISTAKES[number][2] in result["err"]


def test_help_of_a_subcommand_has_its_own_flags(results):
    text = {" ".join([m, *a]): results[i]["out"] for i, (m, a) in enumerate(HELP)}
    assert "--jobs" in text["imbalance_jax.study run"]
    assert "--jobs" not in text["imbalance_jax.study status"]
    assert all(name in text["imbalance_jax.study"] for name in SUBCOMMANDS["imbalance_jax.study"])
    assert "--execute" in text["launch submit"] and "--execute" not in text["launch plan"]


def test_helpfull_lists_the_flags_of_absl_too():
    call = [sys.executable, "-m", "imbalance_jax.report", "--helpfull"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--alsologtostderr" in done.stdout.replace("[no]", "")


def test_the_list_has_every_command_in_a_line_and_loads_no_library():
    code = (
        "import runpy, sys; sys.argv = ['imbalance_jax']\n"
        "try: runpy.run_module('imbalance_jax', run_name='__main__')\n"
        "finally: assert not {'absl', 'jax', 'numpy', 'ml_collections'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith("    ")]
    assert all(len(line) <= 100 and line.endswith(".") for line in lines)
    listed = [line.split()[2] for line in lines]
    paths = [*(ROOT / "imbalance_jax").glob("*.py"), *(ROOT / "imbalance_jax").rglob("__main__.py")]
    guarded = [path for path in paths if 'if __name__ == "__main__":' in path.read_text()]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in guarded}
    commands = {module.removesuffix(".__main__") for module in modules}
    assert set(listed) == (commands - {"imbalance_jax"}) | {"launch"}
    assert len(listed) == len(set(listed)) == len(listing.COMMANDS)


@pytest.mark.parametrize("word, meant", [("study", "study"), ("tranfser", "transfer"), ("x", "")])
def test_a_word_behind_the_package_is_answered_with_the_command(capsys, word, meant):
    assert listing.main([word]) == 2
    said = capsys.readouterr().err
    assert (f"Did you mean python -m imbalance_jax.{meant}?" if meant else "lists the") in said


def test_a_config_is_found_by_its_name_and_an_existing_path_is_taken_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs/90_10.py", "configs/studies/mine.py", "mine.py", "ratio"):
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).write_text(
            "def get_config(arg=''): return {'file': __file__, 'arg': arg}"
        )
    found = config_files.find_config_file
    # Here before the checkout's.
    assert found("90_10") == found("90_10.py") == found("configs/90_10") == "configs/90_10.py"
    assert found("studies/mine") == "configs/studies/mine.py"
    assert found("mine") == found("mine.py") == "mine.py" and found("ratio") == "ratio"
    # Elsewhere the checkout's.
    assert found("studies/ratio") == str(ROOT / "configs" / "studies" / "ratio.py")
    assert config_files.load_config_file("90_10:scale=pico,ratio=3:1") == {
        "file": "configs/90_10.py",
        "arg": "scale=pico,ratio=3:1",
    }
    (tmp_path / "configs" / "50_50.py").mkdir()  # a folder is no config
    assert found("50_50") == str(ROOT / "configs" / "50_50.py")
    with pytest.raises(ValueError, match=r"there is no file minee, .* Did you mean studies/mine\?"):
        found("minee")
    with pytest.raises(ValueError, match=r"in configs/\.$"):
        found("nothing like it")
