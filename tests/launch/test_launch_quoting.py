"""A name reaches the program that it is for as it is, whatever a shell would make of it."""

import pathlib
import re
import shlex
import subprocess
import tomllib

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_plans import PROFILES, made

from launch import engines, profile

# A profile of each engine; of gke's, that of TPUs, for which there is a note on xpk.
BY_ENGINE = {path.stem.partition("-")[0]: path for path in PROFILES}
TOOLS = ("gcloud", "kubectl", "sbatch", "sky", "xpk", "python", "srun", "tail")
# All that a shell gives a meaning, in one name.
HAZARDS = "-a b'c\"d$(touch PWNED)`touch PWNED`;touch PWNED;e&f|g>h<i*?[j]~k#l!m{n}=100%j^$HOME ü文"
NAMES = st.text(st.sampled_from("ab -'\"$(){}`;&|<>*?[]~#!=%^:@+ü文"), min_size=1, max_size=12)
# What a tool gives a meaning and cannot be told otherwise.
REFUSED = {"gke": ',"', "slurm": "\\", "tpuvm": ",*?[]#"}
# Fields of the engines that a test on this machine needs, or that hold what a script splits.
FIELDS = {"tpuvm": {"secrets": {"WANDB_API_KEY": "wandb"}}, "slurm": {"activate": ""}}


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Runs text in bash, with stand-ins that record, and returns what each of them was given."""
    folder = tmp_path_factory.mktemp("shell")
    stub = '#!/bin/bash\nprintf "%s\\0" "${0##*/}" "$@" "MINE=$MINE" "" >> "$RECORD"\n'
    for tool in TOOLS:
        (folder / tool).write_text(stub)
        (folder / tool).chmod(0o755)

    def run(text: str, **env: str) -> list[tuple[list[str], str]]:
        record = folder / "record"
        record.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=folder,
            capture_output=True,
            text=True,
            env={"PATH": f"{folder}:/usr/bin:/bin", "RECORD": str(record), **env},
        )
        assert done.returncode == 0, (text, done.stderr)
        assert not list(folder.glob("PWNED*")), text
        calls = record.read_text().split("\0\0") if record.exists() else []
        return [
            (words[:-1], words[-1].removeprefix("MINE="))
            for words in (call.split("\0") for call in calls if call)
        ]

    return run


def expand_as_kubernetes(text: str) -> str:
    """Puts $ for $$ and the value of a variable, none here, for $(NAME), as its reference says."""
    return re.sub(r"\$(\$|\((\w+)\))", lambda found: "$" if found[1] == "$" else "", text)


def read_profile(path: pathlib.Path) -> profile.Profile:
    values = tomllib.loads(path.read_text())
    values[values["engine"]] |= FIELDS.get(values["engine"], {})
    return profile.parse_profile(path.stem, values)


@pytest.mark.parametrize("path", BY_ENGINE.values(), ids=BY_ENGINE)
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(HAZARDS)
@given(NAMES)
def test_a_name_reaches_the_program_that_it_is_for(shell, monkeypatch, tmp_path, path, name):
    monkeypatch.setattr("sys.executable", "python")
    where = read_profile(path)
    root = tmp_path if where.engine in ("slurm", "local") else "gs://b"
    directory = re.sub("[{}]".format(re.escape(REFUSED.get(where.engine, "\0"))), "", name) or "a"
    mine, rendered = made(
        where, workdir=f"{root}/{directory}", out=f"{tmp_path}/out {directory}", env={"MINE": name}
    )
    (job,) = mine.jobs
    assert f"--study={root}/{directory}" in job.command
    # Every line that is printed, as bash reads it.
    printed = [*map(shlex.join, rendered.commands)]
    assert [call for call, _ in shell("\n".join(printed))] == list(map(list, rendered.commands))
    by_hand = [note.partition(": ")[2] for note in rendered.notes]
    noted = [call for call, _ in shell("\n".join(by_hand))]
    assert len(noted) == len(by_hand) and all(job.name in " ".join(call) for call in noted)
    # What starts the run, as the shell of its machine or Kubernetes reads it.
    documents = [yaml.safe_load(t) for n, t in rendered.files.items() if n.endswith(".yaml")]
    if where.engine == "sky":
        assert documents[0]["envs"]["MINE"] == name
        assert shell(documents[0]["run"], MINE=name) == [(list(job.command), name)]
    elif where.engine == "gke":
        pod = documents[0]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert list(map(expand_as_kubernetes, container["args"])) == list(job.command)
        assert name in [expand_as_kubernetes(e.get("value", "")) for e in container["env"]]
        for call in noted:  # of xpk, whose --command is a line of a shell
            line = call[-1].removeprefix("--command=")
            assert shell(line) == [(list(job.command), "")]
    elif where.engine == "tpuvm":
        assert tuple(rendered.files[f"{job.name}.command"].splitlines()) == job.command
        assert f"MINE={name}" in rendered.files[f"{job.name}.env"].splitlines()
    elif where.engine == "slurm":
        check_element(shell, tmp_path, mine, rendered, name)
    check_logs(shell, mine, where, job)


def check_element(shell, tmp_path, mine, rendered, name):
    """Runs the script that sbatch is given, as the node does, with an srun that records."""
    (command,) = rendered.commands
    (number,) = [i for i, word in enumerate(command) if word.endswith("/slurm_job.sh")]
    folder = pathlib.Path(command[number]).parent
    folder.mkdir(exist_ok=True)
    for file, text in rendered.files.items():
        (folder / file).write_text(text)
    subprocess.run(["bash", "-n", command[number]], check=True)
    element = {"SLURM_ARRAY_TASK_ID": str(mine.jobs[0].index), "SLURM_JOB_ID": "7"}
    ((call, value),) = shell(shlex.join(["bash", *command[number:]]), **element)
    # The script puts --members last.
    assert sorted(call[-len(mine.jobs[0].command) :]) == sorted(mine.jobs[0].command)
    assert value == name


def check_logs(shell, mine, where, job):
    """The command that shows a log, and the path that `plan` prints, name the file."""
    engine = engines.load_engine(mine.engine)
    log = ""
    if where.engine in ("slurm", "local"):
        ends = {"slurm": f"{mine.name}-7_{job.index}.out", "local": f"{job.members[0]}.0.log"}
        log = f"{mine.workdir}/logs/{ends[where.engine]}"
        pathlib.Path(log).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(log).touch()
        assert shell(f"tail {engine.name_log(mine, job)}") == [(["tail", log], "")]
    ((call, _),) = shell(shlex.join(engine.build_logs_command(mine, where, job)))
    assert call[-1] == log if log else job.name in " ".join(call)


@pytest.mark.parametrize("path", BY_ENGINE.values(), ids=BY_ENGINE)
@pytest.mark.parametrize("letter", ["\n", "\r", "\x1b", "\u2028", "\udc80"])
def test_a_directory_whose_name_is_no_line_is_refused(path, letter):
    where = read_profile(path)
    root = "/shared" if where.engine in ("slurm", "local") else "gs://b"
    with pytest.raises(ValueError, match=r"^--workdir=.* has a line break or another character"):
        made(where, workdir=f"{root}/a{letter}touch PWNED")


@pytest.mark.parametrize(("engine", "letters"), REFUSED.items())
def test_a_letter_that_a_tool_would_not_take_as_it_is_is_refused(engine, letters):
    root = "/shared" if engine == "slurm" else "gs://b"
    for letter in letters:
        with pytest.raises(ValueError, match="does not take as it is"):
            made(
                read_profile(BY_ENGINE[engine]),
                workdir=f"{root}/a{letter}b",
                out=f"/out{letter}put",
            )


def test_sbatch_is_told_that_a_percent_sign_is_one():
    """As man sbatch has it: %% is one, %j and its like are replaced."""
    _, rendered = made(read_profile(BY_ENGINE["slurm"]), workdir="/shared/100%j")
    assert "--output=/shared/100%%j/logs/%x-%A_%a.out" in rendered.commands[0]
    assert "--chdir=/shared/100%j" in rendered.commands[0]


def test_a_secret_of_secret_manager_has_a_name_that_no_shell_splits():
    values = tomllib.loads(BY_ENGINE["tpuvm"].read_text())
    for secrets in ({"A": "b c"}, {"A": "$(x)"}, {"A B": "c"}):
        values["tpuvm"]["secrets"] = secrets
        with pytest.raises(ValueError, match="no name of"):
            profile.parse_profile("mine", values)
