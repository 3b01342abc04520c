"""The shell scripts, run for real with stand-ins for the scheduler, the cloud and the trainer."""

import http.server
import os
import pathlib
import shutil
import signal
import subprocess
import textwrap
import threading
import time

import pytest

from launch import scripts

FOLDER = pathlib.Path(scripts.__file__).parent
SCRIPTS = sorted(FOLDER.glob("*.sh"))


def executable(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip())
    path.chmod(0o755)
    return path


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="install the package shellcheck")
def test_shellcheck_has_nothing_to_say():
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_entrypoint_becomes_its_command():
    done = subprocess.run(
        ["bash", FOLDER / "entrypoint.sh", "sh", "-c", 'echo $PPID "$1"; exit 75', "sh", "a b"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 75
    assert done.stdout == f"{os.getpid()} a b\n"


class Slurm:
    """An element of an array, with an srun that runs the command once and records it."""

    def __init__(self, tmp_path: pathlib.Path, ends: str = "exit 0", after: str = "") -> None:
        self.path, self.study = tmp_path, tmp_path / "study"
        (self.study / "logs").mkdir(parents=True)
        self.members = tmp_path / "members.txt"
        self.members.write_text("1 r1\n11 r2,r3\n")
        options = "--label) shift;; --kill-on-bad-exit=1) shift;; --export=ALL) shift;; *) break;;"
        executable(
            tmp_path / "bin/srun",
            f"""
            #!/bin/bash
            while true; do case $1 in {options} esac; done
            "$@"
            code=$?
            {after}
            exit $code
            """,
        )
        executable(tmp_path / "bin/scontrol", f'#!/bin/bash\necho "$@" >> {tmp_path}/requeued\n')
        self.command = executable(
            tmp_path / "bin/train", f'#!/bin/bash\necho "$@" $MINE >> {tmp_path}/trained\n{ends}\n'
        )

    def run(self, index: int = 11, restarts: int = 0, *options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", FOLDER / "slurm_job.sh", f"--members_file={self.members}"]
            + [f"--study={self.study}", "--max_restarts=2", *options, "--", "train", "a b"],
            capture_output=True,
            text=True,
            env={
                "PATH": f"{self.path}/bin:{os.environ['PATH']}",
                "SLURM_ARRAY_TASK_ID": str(index),
                "SLURM_JOB_ID": "42",
                "SLURM_RESTART_COUNT": str(restarts),
            },
        )

    def mark(self, run: str, name: str) -> None:
        (self.study / "runs" / run).mkdir(parents=True)
        (self.study / "runs" / run / name).touch()

    def lines(self, name: str) -> list[str]:
        file = self.path / name
        return file.read_text().splitlines() if file.exists() else []


def test_an_element_trains_the_runs_behind_its_index(tmp_path):
    slurm = Slurm(tmp_path)
    assert slurm.run(11).returncode == slurm.run(1).returncode == 0
    assert slurm.lines("trained") == ["a b --members=r2,r3", "a b --members=r1"]


@pytest.mark.parametrize("code", [75, 134, 137, 143])
def test_a_job_that_was_preempted_or_killed_comes_back(tmp_path, code):
    slurm = Slurm(tmp_path, ends=f"exit {code}")
    assert slurm.run().returncode == code
    assert slurm.lines("requeued") == ["requeue 42"]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_job_that_ended_for_good_does_not_come_back(tmp_path, code):
    slurm = Slurm(tmp_path, ends=f"exit {code}")
    assert slurm.run().returncode == code
    assert not slurm.lines("requeued")


def test_a_config_error_of_one_task_is_not_taken_for_the_signal_that_ended_the_others(tmp_path):
    slurm = Slurm(tmp_path, ends="exit 2", after="code=143")
    assert slurm.run().returncode == 2
    assert not slurm.lines("requeued")
    assert not list((slurm.study / "logs").iterdir())


def test_a_job_comes_back_no_more_than_its_profile_allows(tmp_path):
    slurm = Slurm(tmp_path, ends="exit 75")
    slurm.run(restarts=1)
    assert len(slurm.lines("requeued")) == 1
    assert "which is the most" in slurm.run(restarts=2).stderr
    assert len(slurm.lines("requeued")) == 1


def test_a_job_whose_runs_all_ended_does_not_come_back(tmp_path):
    slurm = Slurm(tmp_path, ends="exit 75")
    slurm.mark("r2", "DONE")
    slurm.run()
    assert len(slurm.lines("requeued")) == 1
    slurm.mark("r3", "FAILED.json")
    slurm.run()
    assert len(slurm.lines("requeued")) == 1


def test_what_is_done_is_not_trained_again_and_what_failed_is(tmp_path):
    slurm = Slurm(tmp_path)
    slurm.mark("r1", "DONE")
    assert "done before" in slurm.run(1).stdout and not slurm.lines("trained")
    slurm.mark("r2", "FAILED.json")
    slurm.run(11)
    assert len(slurm.lines("trained")) == 1


def test_an_index_that_the_list_does_not_have_is_refused(tmp_path):
    done = Slurm(tmp_path).run(7)
    assert done.returncode == 2 and "no line for element 7" in done.stderr


def test_secrets_come_from_a_file_that_only_its_owner_reads(tmp_path):
    slurm, secrets = Slurm(tmp_path), tmp_path / "secrets"
    secrets.write_text("MINE=hush\n")
    secrets.chmod(0o644)
    done = slurm.run(1, 0, f"--env_file={secrets}")
    assert done.returncode == 2 and "must have mode 600" in done.stderr
    secrets.chmod(0o600)
    assert slurm.run(1, 0, f"--env_file={secrets}").returncode == 0
    assert slurm.lines("trained") == ["a b --members=r1 hush"]


class Machine:
    """A TPU VM: its metadata server on loopback, a gcloud, and a Python that installs nothing."""

    def __init__(self, tmp_path: pathlib.Path, train: str) -> None:
        self.path, self.home = tmp_path, tmp_path / "home"
        self.attributes = {
            "agent-worker-number": "3",
            "imb-command": "python\n-m\nimbalance_jax.main\n--study=gs://b/my study\n",
            "imb-env": "MINE=two words\n",
            "imb-secrets": "WANDB_API_KEY=wandb",
            "imb-logs": "gs://b/logs/job",
            "imb-code": "gs://b/code.tar.gz",
            "imb-max-restarts": "2",
        }
        subprocess.run(["tar", "-czf", tmp_path / "code.tar.gz", "-T", "/dev/null"], check=True)
        executable(
            tmp_path / "bin/gcloud",
            f"""
            #!/bin/bash
            echo "$@" >> {tmp_path}/gcloud
            case "$*" in
              secrets*) echo hush ;;
              *code.tar.gz*) cp {tmp_path}/code.tar.gz code.tar.gz ;;
            esac
            """,
        )
        python = executable(tmp_path / "python", f"#!/bin/bash\n{train}\n")
        executable(
            tmp_path / "bin/python3",
            f"""
            #!/bin/bash
            mkdir -p venv/bin && cp {python} venv/bin/python
            printf '#!/bin/bash\\necho "$@" >> {tmp_path}/pip\\n' > venv/bin/pip
            chmod +x venv/bin/pip
            """,
        )

    def start(self) -> subprocess.Popen:
        attributes = self.attributes

        class Metadata(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                value = attributes.get(self.path.removeprefix("/"))
                self.send_response(200 if value is not None else 404)
                self.end_headers()
                self.wfile.write((value or "no such attribute").encode())

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return subprocess.Popen(
            ["bash", FOLDER / "tpuvm_startup.sh"],
            env={
                "PATH": f"{self.path}/bin:{os.environ['PATH']}",
                "IMB_METADATA": f"http://127.0.0.1:{self.server.server_port}",
                "IMB_HOME": str(self.home),
                "IMB_RESTART_SECONDS": "0",
                "IMB_UPLOAD_SECONDS": "1000",
            },
        )

    def boot(self) -> int:
        process = self.start()
        try:
            return process.wait(timeout=30)
        finally:
            self.server.shutdown()

    def lines(self, name: str) -> list[str]:
        return (self.path / name).read_text().splitlines()


COUNTS = 'echo "$#:$4 $MINE $WANDB_API_KEY" >> {path}/trained; n=$(wc -l < {path}/trained); '


def test_a_machine_installs_the_code_trains_and_uploads_its_log(tmp_path):
    machine = Machine(tmp_path, COUNTS.format(path=tmp_path) + "echo said; exit 0")
    study = "--study=gs://b/my study$(touch PWNED)`touch PWNED`;*'\""
    machine.attributes["imb-command"] = f"python\n-m\nimbalance_jax.main\n{study}\n"
    machine.attributes["imb-env"] = "MINE=two words$(touch PWNED)*\n"
    assert machine.boot() == 0
    # Three arguments, the last with a space in it; one word of it is $4 only if it was split.
    assert machine.lines("trained") == ["3: two words$(touch PWNED)* hush"]
    assert not list(tmp_path.rglob("PWNED"))
    assert machine.lines("pip") == ["install --quiet ./code[tpu,gcs]"]
    (log,) = machine.home.glob("host-3-*.log")
    assert "said" in log.read_text() and "hush" not in log.read_text()
    assert machine.lines("gcloud")[-1] == f"storage cp --quiet {log} gs://b/logs/job/"


def test_a_machine_that_boots_again_does_not_install_again(tmp_path):
    machine = Machine(tmp_path, "exit 0")
    assert machine.boot() == machine.boot() == 0
    assert len(machine.lines("pip")) == 1


@pytest.mark.parametrize(("code", "starts"), [(75, 3), (137, 3), (1, 1), (2, 1)])
def test_a_machine_starts_a_run_again_only_if_that_can_help(tmp_path, code, starts):
    machine = Machine(tmp_path, COUNTS.format(path=tmp_path) + f"exit {code}")
    assert machine.boot() == code
    assert len(machine.lines("trained")) == starts


def test_a_run_that_comes_back_and_ends_well_is_done(tmp_path):
    machine = Machine(tmp_path, COUNTS.format(path=tmp_path) + "((n == 2)) || exit 75")
    assert machine.boot() == 0 and len(machine.lines("trained")) == 2


def test_a_machine_that_is_taken_away_lets_the_run_save_and_does_not_start_it_again(tmp_path):
    save = "trap 'sleep 0.3; echo saved; exit 75' TERM; touch {0}/ready; sleep 60 & wait"
    machine = Machine(tmp_path, save.format(tmp_path))
    process = machine.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    machine.server.shutdown()
    (log,) = machine.home.glob("*.log")
    assert "saved\nexit code 75 after 0 restarts" in log.read_text()


def test_code_that_cannot_be_fetched_is_an_error_that_nothing_repeats(tmp_path):
    machine = Machine(tmp_path, "exit 0")
    (tmp_path / "code.tar.gz").unlink()
    assert machine.boot() == 2
