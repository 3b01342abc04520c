"""Every shell command of the documentation works, as far as a machine without a cluster can tell.

Our own commands are read as a shell and absl read them, and what their flags name is resolved:
configs with their choices, studies, cases, tasks, profiles (parsing_commands.py). `RUN_BY` names
the test that really runs each of them, and `NEEDS` says what the other programs need.
"""

import ast
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from helpers import ROOT, environment

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.runs.run_directory import RunDirectory

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from command_lines import PROGRAMS, Command, find_commands  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "launch" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
# Command -> the test that runs it.
RUN_BY = {
    "imbalance_jax": "commands/test_help.py::"
    "test_the_list_has_every_command_in_a_line_and_loads_no_library",
    "imbalance_jax.main": "training/test_end_to_end.py::"
    "test_a_run_leaves_everything_that_its_directory_promises",
    "imbalance_jax.evaluate": "training/test_end_to_end.py::test_evaluate_writes_everything_down",
    "imbalance_jax.generate": "training/test_end_to_end.py::"
    "test_generated_text_stays_in_its_language",
    "imbalance_jax.report": "report/test_pages.py::test_the_command_writes_the_page_and_says_where",
    "imbalance_jax.data.prepare": "data/test_prepare.py::"
    "test_the_command_prepares_what_a_run_needs_and_says_what_it_is",
    "imbalance_jax.data.inspect": "data/test_inspect.py::"
    "test_the_command_says_by_its_exit_code_whether_a_record_holds",
    "imbalance_jax.transfer": "transfer/test_finetune.py::"
    "test_a_task_is_kept_beside_others_and_shown_in_the_report",
    "imbalance_jax.word2vec": "word2vec/test_vectors.py::"
    "test_a_run_is_measured_on_its_own_tokens_and_what_other_methods_found_is_kept",
    "imbalance_jax.bench": "bench/test_measurements.py::"
    "test_cases_are_measured_one_by_one_and_written_down",
    "imbalance_jax.config": "config/test_fields.py::"
    "test_the_command_prints_a_config_as_json_and_as_a_table",
    "imbalance_jax.study": "commands/test_earlier_runs.py::"
    "test_a_study_trains_the_run_that_is_left_and_has_its_page",
    "launch": "launch/test_launch_submit.py::"
    "test_a_dry_run_submits_nothing_and_shows_the_command_that_submit_then_runs",
}
# Program -> what it needs, which is why no test runs it.
NEEDS = {
    "docker": "Docker",
    "gcloud": "an account of Google Cloud; launch/test_launch_submit.py (slow) tries where gcloud "
    "is installed whether it understands each command",
    "kubectl": "a cluster of Kubernetes",
    "pip": "the network; .ci/run and .ci/versions install",
    "pip-audit": "the network, and a service that knows vulnerabilities",
    "rsync": "another machine",
    "sky": "SkyPilot and an account of a cloud",
    "srun": "a SLURM cluster with GPUs",
}
CHECKED_BY_CI = {"mkdocs", "mypy", "pytest", "ruff"}  # .ci/run runs them
SHELL = {".", "cd", "cp", "export", "git", "mkdir"}


def commands_of(page: pathlib.Path) -> list[Command]:
    return find_commands(str(page.relative_to(ROOT)), page.read_text())


def is_ours(command: Command) -> bool:
    return re.match(r"(imbalance_jax|launch)\b", command.module) is not None


def simplify_word(word: str) -> str:
    """Returns an argument with an example for a name that a reader replaces, and few seeds."""
    word = re.sub(r"^--config=(\.\.\.|[A-Z_]+(\.py)?)$", "--config=configs/90_10.py", word)
    word = re.sub(r"^--study=(\.\.\.|[A-Z_]+\.py)$", "--study=configs/studies/ratio.py", word)
    if re.match(r"--(config|study)=(configs/)?(studies|paper)/", word) and "seeds=" not in word:
        word += ",seeds=1" if ":" in word else ":seeds=1"
    return word


ALL = [command for page in PAGES for command in commands_of(page)]
OURS = {command.text: command for command in ALL if is_ours(command)}


@pytest.fixture(scope="module")
def parse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Returns what is wrong with a command, or "".

    It is read in a folder with configs/, launch/, and the runs and texts that pages speak of.
    """
    folder = tmp_path_factory.mktemp("pages")
    for name in ("configs", "docs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    config = config_lib.resolve_config(cli.load_config_file(f"{ROOT}/configs/90_10.py"))
    for command in OURS.values():
        for name in re.findall(r"\bruns/[\w:]+", command.text):
            if not (folder / name).exists():
                run = RunDirectory(folder / name)
                run.claim(config)
                run.release()
        for name in re.findall(r"\bfiles=(\w+)", command.text):
            (folder / name).mkdir(exist_ok=True)
            [languages] = re.findall(r"\blanguages=(\w+)", command.text) or ["en_fr"]
            for language in languages.split("_"):
                (folder / name / f"{language}.txt").touch()
    with subprocess.Popen(
        [sys.executable, pathlib.Path(__file__).parent / "parsing_commands.py", *RUN_BY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(ROOT)},
    ) as server:
        assert server.stdin and server.stdout

        def ask(text: str) -> str:
            [command] = find_commands("page", f"\n\n    {text}\n")
            args = [simplify_word(word) for word in command.words[3:] if word != "..."]
            if not args and importlib.util.find_spec(command.module):
                return ""  # its name alone, in a sentence
            assert server.stdin and server.stdout
            server.stdin.write(json.dumps([command.module, *args]) + "\n")
            server.stdin.flush()
            code, said = json.loads(server.stdout.readline())
            return said or f"exit code {code}" if code else ""

        yield ask
        server.stdin.close()


def test_our_commands_are_read_and_what_they_name_exists(parse):
    assert len(OURS) > 60
    wrong = {text: f"{OURS[text].page}: {said}" for text in OURS if (said := parse(text))}
    assert wrong == {}


def test_each_of_our_commands_is_run_by_a_test():
    assert {command.module for command in OURS.values()} <= set(RUN_BY)
    for place in RUN_BY.values():
        file, _, name = place.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("imbalance_jax.main --config=configs/90_10.py --workdr=runs/a", "workdr"),
        ("imbalance_jax.main --config=configs/90_11.py", "90_11"),
        ("imbalance_jax.main --config=configs/90_10.py:scale=huge", "huge"),
        ("imbalance_jax.main --config=configs/90_10.py:size=demo", "size"),
        ("imbalance_jax.main --config=configs/90_10.py --config.steeps=3", "steeps"),
        ("imbalance_jax.main --config=configs/90_10.py --config.steps=-3", "steps"),
        ("imbalance_jax.study plan --config=configs/studies/grammar.py:parts=some", "some"),
        ("imbalance_jax.study plot --config=configs/studies/ratio.py", "plot"),
        ("imbalance_jax.evaluates --workdir=runs/90_10", "evaluates"),
        ("imbalance_jax.bench --case=tiny:2", "tiny"),
        ("imbalance_jax.transfer --workdir=runs/90_10 --tasks=guess", "guess"),
        ("imbalance_jax.data.inspect --totals configs/schedule.py configs/none.py", "none"),
        ("launch plan --study=configs/studies/ratio.py --runs='x*'", "x*"),
        ("launch plan --study=configs/studies/ratio.py --profile=launch/none.toml", "none.toml"),
    ],
)
def test_a_command_that_names_what_is_not_there_is_found(parse, wrong, said):
    assert said in parse(f"python -m {wrong}")


def test_the_other_programs_are_there_or_it_is_said_what_they_need():
    ci = (ROOT / ".ci" / "run").read_text()
    for command in ALL:
        program, *args = command.words
        place = f"{command.page}: {command.text}"
        if is_ours(command) or command.words[1:3] == ("-m", "venv"):
            continue
        if program in ("python", "python3"):
            if args[0] == "-c":
                compile(args[1], place, "exec")
                continue
            script, *args = args
            text = (ROOT / script).read_text()
            flags = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
            assert all(f'"{flag}"' in text for flag in flags), place
        elif "/" in program:
            assert (ROOT / program).stat().st_mode & 0o100, place
        elif program in CHECKED_BY_CI:
            assert re.search(rf"(?m)^ *(\w+=\w+ )?{program}\b", ci), place
            paths = [arg for arg in args if "/" in arg]
            assert all((ROOT / path).exists() for path in paths), place
        else:
            assert program in SHELL or NEEDS[program], place


def test_commands_are_found_in_every_kind_of_block():
    page = """
Text with `python -m launch status --workdir=a` in a line.

    X=1 pip install -e '.[test]' && \\
        pytest    # a comment

    for SIZE in demo pico; do
      python -m imbalance_jax.main --config=configs/90_10.py:scale=$SIZE > log &
    done

* a list, then flags of a run:

    --config.steps=3

```bash
python -c "
print('a;b')
" | cat
```

    from imbalance_jax import config

    step 0  held-out loss
"""
    found = find_commands("page", page.replace(" | cat", ""))
    assert sorted(command.text for command in found) == sorted(
        [
            "python -m launch status --workdir=a",
            "pip install -e '.[test]'",
            "pytest",
            "python -m imbalance_jax.main --config=configs/90_10.py:scale=demo",
            "python -m imbalance_jax.main --config=configs/90_10.py --config.steps=3",
            "python -c '\nprint('\"'\"'a;b'\"'\"')\n'",
        ]
    )
    with pytest.raises(ValueError, match="'pyhton' a program"):
        find_commands("page", "\n\n    pyhton -m imbalance_jax.main\n")
    assert "pyhton" not in PROGRAMS
