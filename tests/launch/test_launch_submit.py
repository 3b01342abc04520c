"""The command, as a user types it: nothing is written that is wrong, nothing run but as shown."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator

import made_studies
import pytest
from etils import epath
from made_plans import PROFILES, study

from imbalance_jax import cli
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory
from launch import plan, profile, submissions

ROOT = pathlib.Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT), *sys.path])  # with what a test imports
BY_NAME = {path.stem: str(path) for path in PROFILES}
STUDY = f"--study={pathlib.Path(__file__).parent}/small_study.py"
_ENGLISH = "--study.runs.r50_50_s0.config.sources.en"
NO_TEXT = (STUDY, f"{_ENGLISH}.kind=files", f"{_ENGLISH}.train=gone.jsonl")


Launch = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Runs `python -m launch` in a directory, with some more environment."""
    out, err = (tmp_path_factory.mktemp("said") / name for name in ("out", "err"))
    with subprocess.Popen(
        [sys.executable, pathlib.Path(__file__).parent / "forked.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    ) as process:
        assert process.stdin and process.stdout

        def call(cwd: pathlib.Path, *args: str, **env: str) -> subprocess.CompletedProcess:
            asked = {"cwd": str(cwd), "args": args, "env": env, "out": str(out), "err": str(err)}
            print(json.dumps(asked), file=process.stdin, flush=True)
            code = int(process.stdout.readline())
            return subprocess.CompletedProcess(args, code, out.read_text(), err.read_text())

        yield call


def stub(tmp_path: pathlib.Path, *names: str, code: int = 0) -> dict[str, str]:
    """Puts commands first on PATH that record their arguments and print an id."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name in names:
        file = folder / name
        file.write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"print(json.dumps(sys.argv[1:]), file=open({str(tmp_path / 'argv')!r}, 'a'))\n"
            f"print('id-7')\nsys.exit({code})\n"
        )
        file.chmod(file.stat().st_mode | stat.S_IEXEC)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def recorded(tmp_path: pathlib.Path) -> list[list[str]]:
    file = tmp_path / "argv"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def begun(tmp_path: pathlib.Path) -> StudyDirectory:
    """Returns a study of which one run is done, one failed and two are absent."""
    directory = StudyDirectory(tmp_path / "ratio")
    mine = study(seeds=2)
    directory.claim(mine)
    run = directory.run("r50_50_s0")
    run.claim(mine.runs["r50_50_s0"].config)
    run.fail(3, FloatingPointError("The loss of step 3 is nan."))
    return directory


def test_a_dry_run_submits_nothing_and_shows_the_command_that_submit_then_runs(launch, tmp_path):
    env = stub(tmp_path, "sbatch")
    args = ["submit", STUDY, "--workdir=w", f"--profile={BY_NAME['slurm-gpu']}", "--runs=r9*s0"]
    args.append("--out=o")
    dry = launch(tmp_path, *args, **env)
    assert dry.returncode == 0, dry.stderr
    assert not recorded(tmp_path) and not (tmp_path / "w/study.json").exists()
    shown = dry.stdout.splitlines()[0]
    done = launch(tmp_path, *args, "--execute", **env)
    assert done.returncode == 0, done.stderr
    assert [["sbatch", *argv] for argv in recorded(tmp_path)] == [shlex.split(shown)]
    assert (tmp_path / "w/study.json").exists()
    folder = tmp_path / "w/launch/slurm-gpu"
    (line,) = map(json.loads, (folder / "submitted.jsonl").read_text().splitlines())
    assert (line["argv"], line["code"], line["output"]) == (shlex.split(shown), 0, "id-7")
    written = {file.name for file in (tmp_path / "o").iterdir()}
    assert written == {file.name for file in folder.iterdir()} - {"submitted.jsonl"}
    (members,) = (tmp_path / "o").glob("members-*.txt")
    assert f"--members_file={members}" in line["argv"] and "1 r90_10_s0" in members.read_text()


def test_an_interruption_of_local_jobs_reaches_the_run_and_is_its_exit_code(tmp_path):
    trainer = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        print("ready", flush=True)
        time.sleep(60)
    """
    folder = tmp_path / "fake/imbalance_jax"
    shutil.copytree(ROOT / "imbalance_jax", folder, ignore=shutil.ignore_patterns("main.py"))
    (folder / "main.py").write_text(textwrap.dedent(trainer))
    args = [STUDY, "--workdir=w", f"--profile={BY_NAME['local']}", "--runs=r90*", "--execute"]
    path = os.pathsep.join([str(tmp_path / "fake"), PYTHONPATH])
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "submit", *args],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    logs = [tmp_path / f"w/logs/r90_10_s0.{k}.log" for k in range(2)]
    while not all(log.exists() and "ready" in log.read_text() for log in logs):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    (line,) = (tmp_path / "w/launch/local/submitted.jsonl").read_text().splitlines()
    assert json.loads(line)["code"] == 75


@pytest.mark.parametrize("command", ["render", "submit"])
def test_what_is_printed_names_files_that_are_there_and_says_what_the_rest_needs(
    launch, tmp_path, command
):
    done = launch(
        *(tmp_path, command, STUDY, "--workdir=w", f"--profile={BY_NAME['slurm-gpu']}", "--out=o")
    )
    sbatch, *notes = done.stdout.splitlines()
    words = [word.rpartition("=")[2] for word in shlex.split(sbatch)]
    named = [word for word in words if word.startswith(f"{tmp_path}/o/")]
    assert len(named) == 2 and all(pathlib.Path(file).is_file() for file in named)
    (needed,) = [note for note in notes if "--execute" in note and "study.json" in note]
    assert f"study.json and logs/ into {tmp_path}/w, which these commands need" in needed


def test_a_plan_says_where_the_log_of_each_job_is_and_how_long_runs_take(launch, tmp_path):
    directory = begun(tmp_path)
    flags = ("--workdir=ratio", f"--profile={BY_NAME['slurm-gpu']}")
    said = launch(tmp_path, "plan", *flags).stdout
    sbatch = launch(tmp_path, "submit", *flags).stdout.splitlines()[0]
    (name,) = re.findall(r"--job-name=(\S+)", sbatch)
    (pattern,) = re.findall(r"--output=(\S+)", sbatch)
    for index, run in enumerate(study(seeds=2).runs):
        log = pattern.replace("%x", name).replace("%A", "*").replace("%a", str(index))
        assert re.search(rf"(?m)^ +{index}  \S+  {run} +{re.escape(log)}$", said), said
    assert "no speed is known for 4 runs" in said
    assert "imbalance_jax.study plan --workdir=ratio --measure" in said
    # One run is done: two of its length at its speed, and the others have its shape too.
    mine = directory.study()
    made_studies.make_run(
        directory, "r90_10_s0", mine.runs["r90_10_s0"], gain=0.0, unit_tokens=mine.unit_tokens
    )
    directory.run("r90_10_s0").log(
        1000, {"time/total": 3900.0, "time/compile": 200.0, "time/setup": 100.0}
    )
    said = launch(tmp_path, "plan", *flags).stdout
    assert "Time: 1:00:00 for r50_50_s0, the longest, and 4:00:00 for 4 runs together" in said, said


def test_a_pack_is_of_chosen_runs_and_is_sent_whole(launch, tmp_path):
    begun(tmp_path)
    flags = ["submit", "--workdir=ratio", f"--profile={BY_NAME['slurm-gpu']}", "--out=o"]
    flags += ["--pack=member", "--pack_size=4", "--runs=*_s0"]
    said = launch(tmp_path, *flags, "--only=failed").stdout
    (members,) = (tmp_path / "o").glob("members-*.txt")
    assert members.read_text() == "0 r50_50_s0,r90_10_s0\n" and "--array=0 " in said
    assert "--only=failed here also trains r90_10_s0." in said


def test_a_command_that_fails_stops_the_submission(launch, tmp_path):
    env = stub(tmp_path, "sbatch", code=3)
    args = ["submit", STUDY, "--workdir=w", f"--profile={BY_NAME['slurm-gpu']}", "--execute"]
    assert launch(tmp_path, *args, **env).returncode == 1
    assert len(recorded(tmp_path)) == 1


def test_a_study_on_a_bucket_is_rendered_without_looking_there(launch, tmp_path):
    pytest.importorskip("gcsfs", reason="pip install -e '.[gcs]'")
    env = stub(tmp_path, "kubectl")
    args = [STUDY, "--workdir=gs://b/studies/x", f"--profile={BY_NAME['gke-v6e']}", "--runs=r9*s0"]
    done = launch(tmp_path, "submit", *args, "--out=o", "--format=json", **env)
    assert done.returncode == 0, done.stderr
    rendered = json.loads(done.stdout)
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == sorted(
        ["plan.json", *rendered["files"]]
    )
    assert all(
        f"--filename={tmp_path}/o/{name}" in rendered["commands"][0] for name in rendered["files"]
    )
    assert not recorded(tmp_path)


def test_only_what_failed_is_submitted_again_under_its_old_index(launch, tmp_path):
    begun(tmp_path)
    args = ["--workdir=ratio", f"--profile={BY_NAME['slurm-gpu']}"]
    everything = json.loads(launch(tmp_path, "plan", *args, "--format=json").stdout)
    index = {job["members"][0]: job["index"] for job in everything["jobs"]}
    done = launch(tmp_path, "submit", *args, "--only=failed")
    assert f"--array={index['r50_50_s0']}" in shlex.split(done.stdout.splitlines()[0])
    done = launch(tmp_path, "submit", *args, "--only=missing")
    assert "--array=1-3" in shlex.split(done.stdout.splitlines()[0])


def test_a_plan_as_json_says_what_the_readable_plan_says(launch, tmp_path):
    begun(tmp_path)
    flags = ("plan", "--workdir=ratio", f"--profile={BY_NAME['slurm-gpu']}")
    said = launch(tmp_path, *flags).stdout
    plain = json.loads(launch(tmp_path, *flags, "--format=json").stdout)
    assert all(job["log"] in said for job in plain["jobs"])
    assert all(f"  {text['source']}: {text['place']}" in said for text in plain["text"])
    assert all(f"{text['run']} takes {text['run_tokens']:,.0f}" in said for text in plain["text"])
    assert plain["text"] and plain["time"] == {"seconds": dict.fromkeys(study(seeds=2).runs)}
    stored = json.loads((tmp_path / "ratio/launch/slurm-gpu/plan.json").read_text())
    assert stored.items() <= {**plain, "jobs": stored["jobs"]}.items()


def test_lines_that_are_printed_can_be_given_to_a_shell(launch, tmp_path):
    env = stub(tmp_path, "sbatch", "tail")
    name = "-a b'c\"$(touch PWNED)`touch PWNED`;touch PWNED"
    flags = [STUDY, f"--workdir={name}", f"--profile={BY_NAME['slurm-gpu']}", f"--out=o{name}"]
    said = [launch(tmp_path, command, *flags).stdout for command in ("render", "submit", "logs")]
    done = subprocess.run(
        ["bash", "-c", "".join(said)],
        cwd=tmp_path,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert not (tmp_path / "PWNED").exists() and done.stdout == b"id-7\n" * 4
    first, second, *logs = recorded(tmp_path)
    assert first == second and f"--study={tmp_path}/{name}" in first
    assert all(argv[-1].startswith(f"{tmp_path}/{name}/logs/") for argv in logs)


@pytest.mark.parametrize("letter", ["\n", "\x1b"])
def test_files_are_written_to_no_directory_that_no_line_can_name(launch, tmp_path, letter):
    flags = [STUDY, "--workdir=w", f"--profile={BY_NAME['slurm-gpu']}", f"--out=o{letter}x"]
    done = launch(tmp_path, "render", *flags)
    assert done.returncode == 2 and done.stderr.startswith("error: --out=") and not done.stdout
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_sent_to_two_places_at_a_time(launch, tmp_path):
    env = stub(tmp_path, "sbatch")
    other = tmp_path / "other.toml"
    shutil.copy(BY_NAME["slurm-gpu"], other)
    flags = [STUDY, "--workdir=w", "--runs=r90*"]
    first = [*flags, f"--profile={BY_NAME['slurm-gpu']}"]
    for _ in range(2):  # the second array waits for the first
        assert launch(tmp_path, "submit", *first, "--execute", **env).returncode == 0
    second = [*flags, f"--profile={other}"]
    said = launch(tmp_path, "plan", *second).stdout.splitlines()
    note = next(line for line in said if line.startswith("# "))
    done = launch(tmp_path, "submit", *second, "--execute", **env)
    assert done.returncode == 2 and len(recorded(tmp_path)) == 2
    assert note == f"# {done.stderr.strip().removeprefix('error: ')}"
    assert note.startswith("# r90_10_s0: also in the job w-") and "profile slurm-gpu" in note
    # Other runs can be sent, and a run that has ended.
    others = [*second[:-1], "--runs=r50*", second[-1]]
    assert launch(tmp_path, "submit", *others, "--execute", **env).returncode == 0
    directory = StudyDirectory(tmp_path / "w")
    run = directory.run("r90_10_s0")
    run.claim(directory.study().runs["r90_10_s0"].config)
    run.fail(3, FloatingPointError("The loss of step 3 is nan."))
    assert launch(tmp_path, "submit", *second, "--execute", **env).returncode == 0


def test_other_packs_of_the_same_runs_are_other_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = profile.read_profile(BY_NAME["gke-v6e-chip"])
    mine, directory = study(seeds=2), StudyDirectory(tmp_path / "ratio")

    def make_packs(*runs: str) -> plan.Plan:
        options = {"workdir": "gs://b/ratio", "pack": "member", "pack_size": 2}
        return plan.make_plan(mine, where, runs=runs, **options)

    def describe(packs: plan.Plan) -> str:
        return submissions.describe_shared_runs(directory, mine, packs, packs.jobs, reach=False)

    before = make_packs("r50_50_s0", "r90_10_s0")
    assert describe(before) == ""
    folder = pathlib.Path(before.local_folder)
    folder.mkdir(parents=True)
    line = {"time": "T", "code": 0, "engine": "gke"}
    line["jobs"] = submissions.list_submitted_members((), before.jobs)
    (folder / "submitted.jsonl").write_text(
        json.dumps({"time": "T", "code": 0}) + f"\n{json.dumps(line)}\n"
    )
    assert describe(before) == describe(make_packs("r50_50_s1", "r90_10_s1")) == ""
    (job,) = before.jobs
    said = describe(make_packs("r90_10_s0", "r90_10_s1"))
    assert said.startswith(f"r90_10_s0: also in the job {job.name} of the profile gke-v6e-chip")
    (folder / "submitted.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"submitted\.jsonl, line 1 .*Take the line out"):
        describe(before)


def test_status_reads_markers_and_needs_no_profile(launch, tmp_path):
    begun(tmp_path)
    done = launch(tmp_path, "status", "--workdir=ratio", "--format=json")
    states = json.loads(done.stdout)
    assert states["r50_50_s0"]["state"] == "failed" and "nan" in states["r50_50_s0"]["error"]
    assert states["r90_10_s0"]["state"] == "absent"
    said = launch(tmp_path, "status", "--workdir=ratio").stdout
    assert said.endswith("1 failed, 3 absent\n")


def test_a_plan_may_lie_in_the_directory_before_the_study_does(launch, tmp_path):
    args = [STUDY, "--workdir=w", f"--profile={BY_NAME['slurm-gpu']}"]
    launch(tmp_path, "plan", *args)
    done = launch(tmp_path, "plan", *args)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (tmp_path / "w").iterdir()] == ["launch"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Give one command of plan"),
        (["plan"], "--study is missing"),
        (["plan", STUDY, "--study.runs.r50_50_s0.config.stepz=3"], "Did you mean"),
        (["plan", STUDY, f"--profile={BY_NAME['slurm-gpu']}", "--runs=x*"], "x* is no run"),
        (["plan", STUDY, f"--profile={BY_NAME['slurm-gpu']}", "--spot"], "--spot says nothing to"),
        (["plan", STUDY, f"--profile={BY_NAME['slurm-gpu']}", "--env=A"], "write --env=NAME=VALUE"),
        (["plan", STUDY, f"--profile={BY_NAME['gke-v6e']}"], "Set --workdir=gs://BUCKET/STUDY"),
        (["plan", STUDY, "--workdir=gs:///s"], "--workdir=gs:///s names no bucket"),
        (["status", "--workdir=w"], "Until then, give --study=FILE too"),
        (
            ["submit", STUDY, f"--profile={BY_NAME['slurm-gpu']}", "--env_file=secrets"],
            "can be read by others. Run chmod 600",
        ),
        *(
            ([command, *NO_TEXT, f"--profile={BY_NAME['local']}"], "config.sources.en is not here")
            for command in ("plan", "render", "preflight", "submit")
        ),
    ],
)
def test_a_mistake_is_one_message_with_code_2_and_nothing_written(launch, tmp_path, args, message):
    (tmp_path / "secrets").touch(mode=0o644)
    done = launch(tmp_path, *args)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert message in done.stderr and done.stdout == ""
    assert [file.name for file in tmp_path.iterdir()] == ["secrets"]


def test_runs_are_asked_for_and_left_out_by_patterns(launch, tmp_path):
    begun(tmp_path)
    args = ["status", "--workdir=ratio", "--format=json"]
    asked = json.loads(launch(tmp_path, *args, "--runs=r50*,*_s1,!*90*").stdout)
    assert list(asked) == ["r50_50_s0", "r50_50_s1"]


README = (ROOT / "launch/README.md").read_text()


@pytest.mark.slow
def test_the_commands_of_the_readme_are_understood(tmp_path):
    lines = re.findall(r"^    ((?:python -m launch|gcloud) .*)$", README, re.MULTILINE)
    lines = [line for line in lines if "(not run)" not in line and " ..." not in line]
    assert len(lines) > 20
    ratio = f"{ROOT}/configs/studies/ratio.py:scale=small,files=text"
    mine = grid.resolve_study(cli.load_config_file(ratio))
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    StudyDirectory(tmp_path / "studies/ratio").claim(mine)
    (tmp_path / "data").mkdir()
    env = {
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CLOUDSDK_CONFIG": str(tmp_path / "config"),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
    }
    for line in lines:
        ours = line.startswith("python")
        compiles = "launch preflight" in line and not importlib.util.find_spec("libtpu")
        if compiles or (not ours and not shutil.which("gcloud")):
            continue  # what it takes is not installed
        done = subprocess.run(
            ["bash", "-c", line.replace("--only=failed", "--only=missing")],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env | ({"PYTHONPATH": PYTHONPATH} if ours else {}),
        )
        account = "active account" in done.stderr  # which gcloud asks for once it has understood
        assert done.returncode == 0 or (not ours and account), (line, done.stderr)


def test_a_damaged_record_of_submissions_is_kept_and_what_is_no_file_is_found_first(tmp_path):
    mine, directory = study(seeds=2), StudyDirectory(tmp_path / "ratio")
    where = profile.read_profile(BY_NAME["slurm-gpu"])
    made = plan.make_plan(mine, where, workdir=str(tmp_path / "ratio"))
    record = epath.Path(made.folder) / "submitted.jsonl"
    record.parent.mkdir(parents=True)
    record.write_bytes(b"\xff half a li")
    assert not submissions.describe_shared_runs(directory, mine, made, made.jobs, reach=True)
    submissions.append_line(made, submissions.execute_command(["true"], False))
    kept, line = record.read_bytes().splitlines()
    assert kept == b"\xff half a li" and json.loads(line)["argv"] == ["true"]
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(ValueError, match=r"submitted\.jsonl is a pipe .*move the file away"):
        submissions.describe_shared_runs(directory, mine, made, made.jobs, reach=True)
