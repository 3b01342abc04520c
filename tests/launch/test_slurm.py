"""A study on a real SLURM of one node, which the test starts and stops: needs root and Debian's
slurm-wlm, munge. `pytest -m slurm` runs it alone."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator

import pytest
from helpers import ONE_DEVICE

from imbalance_jax import cli
from imbalance_jax.study.study_directory import StudyDirectory

DAEMONS = ("munged", "slurmctld", "slurmd")
STEPS = 200
STUDY = f"""
from imbalance_jax import config as config_lib
from imbalance_jax import grid

def get_config(arg=""):
    config = config_lib.cloned(scale="demo", ratio="3:1")
    config.data_dir = config_lib.parse_arg(arg, data_dir="").data_dir
    config.steps, config.batch_size, config.log_every = {STEPS}, 8, 1
    config.sources.en.packages = ("json", "email", "asyncio")
    config.sources.en.tokenizer.vocab_size = 384
    config.model.update(L=16, D=16, H=2, K=8, F=24, N=1)
    config.evaluation.update(every=0, max_windows=6, stride=16, max_test_windows=200)
    config.evaluation.alignment.every = 0
    config.checkpoint.every = 1000
    study = grid.Grid("Two seeds.", unit=config)
    study.add("r", config, seeds=range(2))
    return study.to_config()
"""
# Put before the command of every task: seed 1 fails at its third step until a file is there.
FAULTY = """
import os, sys
from imbalance_jax import cli, main
from imbalance_jax.data.order.stream import Stream
batch = Stream.batch
def fail(self, step, *rows):
    if step == 3:
        raise OSError("the scratch disk is full")
    return batch(self, step, *rows)
if "r_s1" in " ".join(sys.argv) and not os.path.exists({mended!r}):
    Stream.batch = fail
sys.argv = ["main", *sys.argv[4:]]  # without python -m imbalance_jax.main
main.define_flags()
cli.run_command(main.main)
"""
PROFILE = """
engine = "slurm"
[env]
JAX_PLATFORMS = "cpu"
XLA_FLAGS = "{xla}"
[slurm]
tasks_per_node = 2
partition = "low"
activate = "{activate}"
container = ["python", "{faulty}"]
options = ["--overcommit"]
"""
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={path}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={path}/state
SlurmdSpoolDir={path}/spool
SlurmctldPidFile={path}/slurmctld.pid
SlurmdPidFile={path}/slurmd.pid
SlurmctldLogFile={path}/slurmctld.log
SlurmdLogFile={path}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in DAEMONS)
        or os.geteuid() != 0,
        reason="as root, install slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge",
    ),
]


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A cluster of this machine, with a directory of its own; its commands find it."""
    # munge wants every directory above its socket open to all, and pytest's are not.
    path = pathlib.Path(tempfile.mkdtemp())
    path.chmod(0o755)
    for name in ("state", "spool"):
        (path / name).mkdir()
    host, ports = socket.gethostname().partition(".")[0], [_free_port(), _free_port()]
    conf = path / "slurm.conf"
    conf.write_text(CONF.format(host=host, ctld=ports[0], slurmd=ports[1], path=path))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    key = path / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    names = {"key": key, "socket": "munge.socket", "pid": "munged.pid", "log": "munged.log"}
    files = [f"--{name}-file={path / file}" for name, file in names.items() if name != "socket"]
    try:
        run("munged", *files, f"--socket={path}/munge.socket", f"--seed-file={path}/seed")
        run("slurmctld", "-f", str(conf))
        run("slurmd", "-f", str(conf), "-N", host)
        wait_for(lambda: run("sinfo", "-h", "-o", "%T", "-p", "low") == "idle", 30)
        yield path
        run("scancel", "--user=root")
    finally:
        for name in reversed(DAEMONS):
            file = path / f"{name}.pid"
            if file.exists():
                subprocess.run(["kill", file.read_text().strip()])
        shutil.rmtree(path, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def wait_for(happened: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.2)


def queue() -> str:
    return run("squeue", "-h", "-o", "%i %T %r")


def test_a_study_goes_through_preemption_and_a_failure(slurm, tmp_path, data_dir, english):
    mended, activate, faulty = (tmp_path / name for name in ("mended", "activate", "faulty.py"))
    activate.write_text(f'export PATH="{pathlib.Path(sys.executable).parent}:$PATH"\n')
    faulty.write_text(textwrap.dedent(FAULTY.format(mended=str(mended))))
    (tmp_path / "study.py").write_text(STUDY)
    (tmp_path / "cpus.toml").write_text(
        PROFILE.format(xla=ONE_DEVICE, activate=activate, faulty=faulty)
    )
    workdir = tmp_path / "two"
    directory = StudyDirectory(workdir)

    def launch(command: str, *args: str) -> str:
        study = f"--study={tmp_path / 'study.py'}:data_dir={data_dir}"
        fixed = (study, f"--profile={tmp_path / 'cpus.toml'}", f"--workdir={workdir}")
        return run(sys.executable, "-m", "launch", command, *fixed, *args)

    launch("submit", "--execute")
    first, other = directory.run("r_s0"), directory.run("r_s1")
    wait_for(lambda: first.series("train/loss")[0])
    # A job that is more important takes the node away, for a moment.
    run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: first.newest_checkpoint())
    stopped_at = first.newest_checkpoint()
    assert 0 < stopped_at < STEPS
    wait_for(lambda: not queue())
    said = next((workdir / "logs").glob("*_0.out")).read_text()
    assert f"Saved step {stopped_at}" in said and f"exit code {cli.PREEMPTED}" in said
    assert f"Going on from step {stopped_at}" in said
    assert first.series("train/loss")[0] == list(range(1, STEPS + 1))  # none lost, none twice
    assert '"processes": 2' in (first.path / "provenance.json").read_text()

    states = json.loads(launch("status", "--format=json"))
    assert [states[name]["state"] for name in ("r_s0", "r_s1")] == ["done", "failed"]
    assert "the scratch disk is full" in states["r_s1"]["error"]
    assert other.newest_checkpoint() == 0
    mended.touch()
    launch("submit", "--only=failed", "--execute")
    wait_for(lambda: not queue())
    states = json.loads(launch("status", "--format=json"))
    assert [state["state"] for state in states.values()] == ["done", "done"]
    assert len(list((workdir / "logs").glob("*_1.out"))) == 2  # it alone was sent again
    assert len(list((workdir / "logs").glob("*_0.out"))) == 1
