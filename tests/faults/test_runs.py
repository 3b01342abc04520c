"""A run that is killed, damaged, or out of room never ends with another result in silence."""

import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
from faults import undisturbed
from faults.damage import KINDS, damage_file, hash_files, is_valid_text
from faults.disks import fill_disk, mount_small_disk
from faults.forked import Ended, ForkServer
from faults.kills import (
    SIGNALS,
    Moment,
    check_killed,
    list_entries,
    list_run_moments,
    run_through_kills,
    send_after,
)
from faults.ledger import Case, Fault, Ledger, judge
from faults.stage import AREAS, PROBES, QUICK_PROBES, Stage
from helpers import ONE_DEVICE, ROOT

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory

MAIN = "imbalance_jax.main"

# Kills at random moments.


def check_same(run: pathlib.Path, expected: dict[str, object], history: object) -> None:
    differ = undisturbed.list_differences(undisturbed.read_results(run), expected)
    if differ:
        raise Fault("silent difference", f"{history}: {', '.join(differ)}")


def count_kills(ledger: Ledger, history: list[str]) -> None:
    for what in history:
        ledger.outcomes[f"killed by {what}"] += 1


def test_killed_runs(ledger: Ledger, heavy_server, stage, tmp_path) -> None:
    kills = ledger.length(1, 10)

    def check(case: Case) -> str:
        folder = tmp_path / str(case.number)
        run, data_dir = folder / "run", folder / "data"
        args = stage.begin(folder)
        moments = lambda: list_run_moments(heavy_server, run, data_dir, case.random)
        history = run_through_kills(heavy_server, MAIN, args, case.random, moments, kills=kills)
        count_kills(ledger, history)
        check_same(run, stage.results, history)
        undisturbed.check_nothing_is_left(folder)
        return "equal to an undisturbed run"

    ledger.run(check, short=1, full=30)


def test_killed_starts(ledger: Ledger, stage, tmp_path) -> None:
    """The whole command, from the first import on, at a random time of the clock."""
    ledger.skip_short("each start takes seconds")

    def check(case: Case) -> str:
        folder = tmp_path / str(case.number)
        folder.mkdir()
        args = [f"--config={undisturbed.write_tiny_config(folder)}", f"--workdir={folder}/run"]
        command = [sys.executable, "-m", MAIN, *args]
        env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ONE_DEVICE}
        history = []
        kills = ledger.length(1, 6)
        for number in range(kills + 1):
            how = case.random.choice(SIGNALS)
            began = time.monotonic()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            codes: tuple[int, ...] = ()
            if number < kills:
                try:
                    process.wait(case.random.uniform(0, 8))
                except subprocess.TimeoutExpired:
                    process.send_signal(how)
                codes = {signal.SIGKILL: (-signal.SIGKILL, 0)}.get(how, (75, 0, -how))
            out, err = process.communicate()
            spent = time.monotonic() - began
            what = f"{signal.Signals(how).name} after {spent:.2f} s" if codes else "no signal"
            if how == signal.SIGINT and process.returncode != 75 and "KeyboardInterrupt" in err:
                # Python's own answer to Ctrl-C while it imports, before a line of ours runs.
                ledger.outcomes["interrupted while Python imports"] += 1
            else:
                check_killed(Ended(process.returncode, out, err, spent), codes, what)
            if process.returncode == 0:
                break
            history.append(what)
            ledger.outcomes[f"killed by {signal.Signals(how).name} at any time"] += 1
        check_same(folder / "run", stage.results, history)
        undisturbed.check_nothing_is_left(folder)
        return "equal to an undisturbed run"

    ledger.run(check, short=0, full=8)


def two_seeds(folder: pathlib.Path, config: config_lib.Config) -> tuple[StudyDirectory, list[str]]:
    """Returns a study of two runs, and the arguments that train them as a pack."""
    runs = {
        f"r_s{seed}": grid.RunSpec(dataclasses.replace(config, seed=seed), cell="r")
        for seed in range(2)
    }
    directory = StudyDirectory(folder / "study")
    directory.claim(grid.StudyConfig("Two seeds.", unit_tokens=1, runs=runs))
    return directory, [f"--study={directory}", "--members=r_s0,r_s1"]


def resolve_tiny_config(folder: pathlib.Path) -> config_lib.Config:
    return config_lib.resolve_config(
        cli.load_config_file(str(undisturbed.write_tiny_config(folder)))
    )


def test_killed_packs(ledger: Ledger, heavy_server, tmp_path) -> None:
    ledger.skip_short("a pack takes longer than a run to compile, and is killed as one is")
    (tmp_path / "whole").mkdir()
    config = resolve_tiny_config(tmp_path / "whole")
    directory, args = two_seeds(tmp_path / "whole", config)
    ended = heavy_server.run(MAIN, args)
    assert ended.code == 0, ended
    names = ("r_s0", "r_s1")
    runs = {name: pathlib.Path(directory.run(name).path) for name in names}
    expected = {name: undisturbed.read_results(run) for name, run in runs.items()}

    def check(case: Case) -> str:
        folder = tmp_path / str(case.number)
        folder.mkdir()
        directory, args = two_seeds(folder, resolve_tiny_config(folder))
        watched = pathlib.Path(directory.run(case.random.choice(names)).path)
        moments = lambda: list_run_moments(heavy_server, watched, folder / "data", case.random)
        history = run_through_kills(
            heavy_server, MAIN, args, case.random, moments, kills=ledger.length(1, 8)
        )
        count_kills(ledger, history)
        for name in names:
            check_same(pathlib.Path(directory.run(name).path), expected[name], (name, history))
        undisturbed.check_nothing_is_left(folder)
        return "equal to an undisturbed pack"

    ledger.run(check, short=0, full=6)


@pytest.fixture(scope="module")
def two_servers(tmp_path_factory):
    """Two processes of one run, each on one device."""
    flags = f"--xla_force_host_platform_device_count=1 {ONE_DEVICE}"
    servers = [
        ForkServer(tmp_path_factory.mktemp(f"process{index}"), heavy=True, XLA_FLAGS=flags)
        for index in range(2)
    ]
    yield servers
    for server in servers:
        server.close()


def start_together(servers: list[ForkServer], args: list[str]) -> list[int]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {"IMB_COORDINATOR": f"127.0.0.1:{port}", "IMB_NUM_PROCESSES": "2"}
    return [
        server.start(MAIN, args, timeout=60, **shared, IMB_PROCESS_ID=str(index))
        for index, server in enumerate(servers)
    ]


def test_killed_processes(ledger: Ledger, request, tmp_path) -> None:
    """Two processes are one run: a signal to one of them ends both, and both go on."""
    ledger.skip_short("a lost process is noticed after seconds")
    servers = request.getfixturevalue("two_servers")

    def begin(folder: pathlib.Path) -> list[str]:
        folder.mkdir()
        config = resolve_tiny_config(folder)
        (folder / "run").mkdir()
        RunDirectory(folder / "run").write_json("config.json", config_lib.to_dict(config))
        return [f"--workdir={folder}/run"]

    def run_whole(args: list[str]) -> None:
        start_together(servers, args)
        for ended in [server.wait() for server in servers]:
            check_killed(ended, (), "two processes, no signal")

    run_whole(begin(tmp_path / "whole"))
    expected = undisturbed.read_results(tmp_path / "whole" / "run")

    def check(case: Case) -> str:
        folder = tmp_path / str(case.number)
        args = begin(folder)
        history = []
        for _ in range(ledger.length(1, 5)):
            index, how = case.random.randrange(2), case.random.choice(SIGNALS)
            moments = list_run_moments(servers[0], folder / "run", folder / "data", case.random)
            moment = case.random.choice(moments)
            pids = start_together(servers, args)
            send_after(pids[index], moment, how, case.random)
            endings = [server.wait() for server in servers]
            what = f"{signal.Signals(how).name} to process {index} in {moment.name}"
            for number, ended in enumerate(endings):
                # The other one is told of a stop, and notices a loss.
                codes = (75, 0) if how != signal.SIGKILL else (cli.LOST, 0, -signal.SIGKILL)
                if number != index and how == signal.SIGKILL:
                    # jax aborts where it is the first to notice, and its threads may crash then.
                    codes = (cli.LOST, -signal.SIGABRT, -signal.SIGSEGV, 0)
                    ledger.outcomes["crashed with its peer"] += ended.code == -signal.SIGSEGV
                about = f"process {number} of {history}, then {what}"
                check_killed(ended, codes, about, speaks=number == 0)
            if [ended.code for ended in endings] == [0, 0]:
                break
            history.append(what)
            ledger.outcomes[f"killed by {what}"] += 1
        if not (folder / "run" / "DONE").exists():
            run_whole(args)
        check_same(folder / "run", expected, history)
        undisturbed.check_nothing_is_left(folder)
        return "equal to an undisturbed run of two processes"

    ledger.run(check, short=0, full=6)


def test_killed_preparations(ledger: Ledger, heavy_server, tmp_path) -> None:
    ledger.skip_short("killed while text is prepared by test_killed_runs")

    def prepare(folder: pathlib.Path) -> list[str]:
        folder.mkdir()
        return [f"--config={undisturbed.write_tiny_config(folder)}"]

    module = "imbalance_jax.data.prepare"
    assert heavy_server.run(module, prepare(tmp_path / "whole")).code == 0
    expected = read_prepared(tmp_path / "whole" / "data")

    def check(case: Case) -> str:
        folder = tmp_path / str(case.number)
        args, data_dir = prepare(folder), folder / "data"
        moments = lambda: [
            Moment("a start", 0.8, lambda: data_dir.exists()),
            Moment("writing", 0.2, lambda: bool(list_entries(data_dir, ".*.unfinished"))),
        ]
        history = run_through_kills(
            heavy_server, module, args, case.random, moments, kills=ledger.length(1, 4)
        )
        count_kills(ledger, history)
        if read_prepared(data_dir) != expected:
            raise Fault("silent difference", str(history))
        undisturbed.check_nothing_is_left(folder)
        return "equal to undisturbed text"

    ledger.run(check, short=0, full=14)


def test_killed_studies(ledger: Ledger, heavy_server, tmp_path) -> None:
    """A study's process is killed; its runs end with it, and the next start goes on."""
    ledger.skip_short("a study starts a process for each run")
    module = "imbalance_jax.study"

    def begin(folder: pathlib.Path) -> tuple[StudyDirectory, list[str]]:
        folder.mkdir()
        directory, _ = two_seeds(folder, resolve_tiny_config(folder))
        return directory, ["run", f"--workdir={directory}"]

    directory, args = begin(tmp_path / "whole")
    ended = heavy_server.run(module, args, timeout=120)
    assert ended.code == 0, ended
    names = ("r_s0", "r_s1")
    expected = {
        name: undisturbed.read_results(pathlib.Path(directory.run(name).path)) for name in names
    }

    def check(case: Case) -> str:
        folder = tmp_path / str(case.number)
        directory, args = begin(folder)
        run = pathlib.Path(directory.run(case.random.choice(names)).path)
        moments = lambda: [
            Moment("a start", 2.0, lambda: "train" in heavy_server.out.read_text().lower()),
            *list_run_moments(heavy_server, run, folder / "data", case.random)[-5:-2],
        ]
        history = run_through_kills(
            heavy_server, module, args, case.random, moments, kills=ledger.length(1, 4), timeout=120
        )
        count_kills(ledger, history)
        for name in names:
            check_same(pathlib.Path(directory.run(name).path), expected[name], (name, history))
        undisturbed.check_nothing_is_left(folder)
        return "equal to an undisturbed study"

    ledger.run(check, short=0, full=4)


# Damaged files.


def list_names(file: pathlib.PurePath) -> list[str]:
    """Returns what the message about a file may name: it, a field, its checkpoint, its text."""
    names = [file.name, "config."]
    for parent in file.parents:
        if parent.parent.name == "checkpoints" or parent.name.startswith("en-"):
            names.append(f"{parent.parent.name}/{parent.name}")
    return names


def check_damage(stage: Stage, file: pathlib.PurePath, name: str, case: Case) -> str:
    probe = PROBES[name]
    expected = stage.expect(name)
    stage.reset(probe.state)
    path = stage.path / file
    if not path.exists():
        return "a file that a stopped run does not have"
    kind = case.random.choice(KINDS)
    about = f"{file} {damage_file(path, kind, stage.list_alike(file), case.random)}, {name}"
    edited = kind in ("flip", "swap") and is_valid_text(path)
    before = hash_files(stage.path / "run")
    ended = stage.probe(name)
    if name == "inspect" and ended.code == 1 and "disagreement" in ended.out:
        return "found by inspect"
    outcome = judge(ended, list_names(file), codes=(1, 2), about=about)
    if outcome == "refused":
        after = hash_files(stage.path / "run")
        harmed = [each for each, digest in before.items() if after.get(each) != digest]
        if ended.code == 2 and harmed:
            raise Fault("harmed by a refusal", f"{about}: {harmed}")
        return f"refused with exit {ended.code}"
    values = probe.read(stage.path, ended)
    if values == expected:
        return "same values"
    if name == "resume" and f"{file.name} " in ended.out and " is lost" in ended.out:
        return "says what is lost"
    if name == "report" and "metrics.jsonl ends at step" in values:
        return "says what is lost"
    if name == "resume":
        differ = undisturbed.list_differences(values, expected)
        if edited and differ == [file.name]:
            return "shows the values of an edited file"
        raise Fault("silent difference", f"{about}: {', '.join(differ)}; {ended.out[-300:]}")
    named = any(each in ended.out + ended.err for each in list_names(file)[2:])
    if named and "checkpoints" in file.parts:
        return "an older checkpoint, and said so"
    if edited and (name in ("report", "evaluate", "inspect") or file.name == "config.json"):
        return "shows the values of an edited file"
    if kind == "delete" and name == "report":
        return "a page without what is absent"
    raise Fault("silent difference", f"{about}: {ended.out[-300:]}")


def run_area(ledger: Ledger, stage: Stage, area: str, *, short: int, full: int) -> None:
    if ledger.full:
        stage.measure_alignment()
    files = stage.list_files(area)

    def check(case: Case) -> str:
        name = case.random.choice(AREAS[area] if ledger.full else QUICK_PROBES)
        # Most cases damage the checkpoint that is read, which is not the last if that is gone.
        stopped = PROBES[name].state == "stopped"
        read = undisturbed.STEPS - undisturbed.SAVED_EVERY * stopped
        newest = [file for file in files if file.is_relative_to(f"{area}/{read}")]
        chosen = newest if newest and case.random.random() < 0.9 else files
        return check_damage(stage, chosen[case.number % len(chosen)], name, case)

    ledger.run(check, short=short, full=full)


def test_damaged_checkpoints(ledger: Ledger, stage) -> None:
    run_area(ledger, stage, "run/checkpoints", short=2, full=400)


def test_damaged_runs(ledger: Ledger, stage) -> None:
    run_area(ledger, stage, "run", short=2, full=250)


def test_damaged_texts(ledger: Ledger, stage) -> None:
    run_area(ledger, stage, "data", short=2, full=250)


# Full disks and small limits.


@pytest.fixture
def small_disk(ledger, tmp_path) -> Iterator[pathlib.Path]:
    ledger.skip_short("tests/training/test_ends.py has a full disk")
    with mount_small_disk(tmp_path / "disk", megabytes=12) as folder:
        yield folder


def read_prepared(data_dir: pathlib.Path) -> dict[str, bytes]:
    """Returns the files of a prepared source, but for one with a path and a time."""
    [prepared] = data_dir.glob("en-*")
    skipped = "dataset_info.json"
    return {p.name: p.read_bytes() for p in prepared.iterdir() if p.name != skipped}


def check_full_disk(run: Callable[[], Ended], folder: pathlib.Path, free: int, about: str) -> str:
    """Runs a command on a full disk, and again with room, after which all has to be there."""
    ballast = fill_disk(folder, free)
    about += f" with {free:,} bytes free"
    ended = run()
    outcome = judge(ended, [str(folder)], codes=(1, 2), about=about)
    ballast.unlink()
    if outcome == "refused":
        again = judge(run(), [], codes=(), about=f"{about}, then again with room")
        assert again == "done"
        return f"refused with exit {ended.code}, then done"
    return "done in what was free"


def test_full_disks(ledger: Ledger, heavy_server, stage, small_disk) -> None:
    """On a full disk every command says so in a line, and goes on when there is room."""
    whole = small_disk.parent / "whole"
    config = [f"--config={undisturbed.write_tiny_config(small_disk.parent)}"]
    prepare = ("imbalance_jax.data.prepare", [*config, f"--config.data_dir={whole}"])
    assert heavy_server.run(*prepare).code == 0
    expected = read_prepared(whole)

    def check(case: Case) -> str:
        for path in small_disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        kind = case.random.choice(("prepare", "train", "train", "save", "report"))
        if kind == "prepare":
            data = small_disk / "data"
            args = [*config, f"--config.data_dir={data}"]
            run = lambda: heavy_server.run("imbalance_jax.data.prepare", args)
            outcome = check_full_disk(run, small_disk, case.random.randrange(500_000), kind)
            if read_prepared(data) != expected:
                raise Fault("silent difference", f"{kind}: {outcome}")
            return f"{kind} {outcome}"
        stage.reset("stopped" if kind == "save" else "done")
        folder = small_disk / "run"
        if kind == "train":
            free, module = case.random.randrange(1_000_000), MAIN
        else:
            shutil.copytree(stage.path / "run", folder)
            free = case.random.randrange(400_000)
            module = MAIN if kind == "save" else "imbalance_jax.report"
        args = [] if kind == "report" else [f"--config={stage.path}/tiny.py"]
        run = lambda: heavy_server.run(module, [*args, f"--workdir={folder}"])
        outcome = check_full_disk(run, small_disk, free, kind)
        whole_run = stage.results
        if kind == "report":
            whole_run = undisturbed.read_results(stage.path / "run")
        check_same(folder, whole_run, f"{kind} {outcome}")
        undisturbed.check_nothing_is_left(small_disk)
        return f"{kind} {outcome}"

    ledger.run(check, short=0, full=50)


# Which limits, and from where to where.
LIMITS = {
    "NOFILE": (4, 200),
    "FSIZE": (0, 300_000),
    "AS": (1 << 28, 6 << 30),
    "NPROC": (1, 60),
}


def test_small_limits(ledger: Ledger, heavy_server, stage) -> None:
    """Under a limit of the system a start is refused in a line, and is done without the limit."""
    ledger.skip_short("each start takes seconds")

    def check(case: Case) -> str:
        name = case.random.choice(sorted(LIMITS))
        limit = case.random.randint(*LIMITS[name])
        about = f"{name}={limit}"
        stage.reset("stopped")
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place, "stage")
            shutil.copytree(stage.path, folder, symlinks=True)
            (folder / "data" / "cache" / "compiled").unlink()
            for path in (folder.parent, folder, *folder.rglob("*")):
                path.chmod(0o777)  # for a user without a name
            args = [f"--config={folder}/tiny.py", f"--config.data_dir={folder}/data"]
            args.append(f"--workdir={folder}/run")
            user = 65534 if name == "NPROC" and os.getuid() == 0 else None  # root has no such limit
            ended = heavy_server.run(MAIN, args, limits={name: limit}, user=user)
            outcome = judge(ended, [], codes=(1, 2), about=about)
            if outcome == "refused":
                again = heavy_server.run(MAIN, args)
                judge(again, [], codes=(), about=f"{about}, then without it")
            check_same(folder / "run", stage.results, about)
        return f"{name} {outcome}"

    ledger.run(check, short=0, full=40)
