"""Measures whether a long run, or a study of many runs, takes more at its end than at its start.

    python docs/measure_long_runs.py run --steps=20000 --workdir=/tmp/long
    python docs/measure_long_runs.py study --runs=300 --workdir=/tmp/many

The process is watched from outside, through Linux's /proc, while it trains a tiny model. What its
parts took is in the run's own log. A run logs every step, saves every 50, evaluates every 100 and
measures alignment every 1,000. A study trains a tenth of its runs alone, the others in packs of 30.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

SAVED, EVALUATED = 50, 100  # steps between two
CONFIG = """
from imbalance_jax import config as config_lib
from imbalance_jax import grid


def make_run(steps, ratio="3:1"):
    config = config_lib.cloned(scale="demo", ratio=ratio)
    config.steps, config.batch_size, config.log_every = steps, 4, 1
    config.data_dir = {data_dir!r}
    config.sources.en.packages = ("json", "email", "asyncio")
    config.sources.en.tokenizer.vocab_size = 450
    config.model.update(L=32, D=32, H=2, K=16, F=64, N=1)
    config.evaluation.update(every={evaluated}, max_windows=8, stride=32, max_test_windows=100)
    config.evaluation.alignment.update(every={aligned}, pairs=8, budget=1.0)
    config.checkpoint.every = {saved}
    return config


def get_config(arg=""):
    if {runs} == 0:
        return make_run({steps})
    study = grid.Grid("Many runs.", unit=make_run({steps}, "1:1"))
    for number in range(1, {runs} // 10 + 1):
        study.add(f"r{{number}}", make_run({steps}, f"{{number}}:40"), seeds=range(10))
    return study.to_config()
"""


def write_config(folder: pathlib.Path, **values: int) -> str:
    """Returns the flag that names a config, which is written into a folder."""
    folder.mkdir(parents=True)
    file = folder / "config.py"
    file.write_text(CONFIG.format(data_dir=str(folder / "data"), **values))
    return f"--config={file}"


def sample_process(pid: int) -> dict[str, float]:
    """Returns what a process holds, and what it has read so far."""
    proc = pathlib.Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    io = dict(line.split(": ") for line in (proc / "io").read_text().splitlines())
    return {
        "memory, MB": int(status["VmRSS"].split()[0]) / 1e3,
        "threads": int(status["Threads"]),
        "open files": len(os.listdir(proc / "fd")),
        "read": int(io["rchar"]) / 1e6,
    }


def watch_command(command: list[str], log: pathlib.Path) -> list[dict[str, float]]:
    """Returns samples of a command while it runs, with the size of a file that it writes."""
    samples = []
    with subprocess.Popen([sys.executable, "-m", *command]) as process:
        while process.poll() is None:
            size = log.stat().st_size if log.exists() else 0
            try:
                samples.append({"size": size, **sample_process(process.pid)})
            except (OSError, KeyError):  # it has just ended
                break
            time.sleep(1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}.")
    return samples


def measure_command(command: list[str]) -> float:
    """Returns the seconds of processor time that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def find_highest(samples: list[dict[str, float]]) -> dict[str, float]:
    names = ("memory, MB", "threads", "open files")
    return {name: max(sample[name] for sample in samples) for name in names}


def measure_run(workdir: pathlib.Path, steps: int) -> list[dict[str, float]]:
    """Returns what a run took in its second tenth and in its last one."""
    every = {"saved": SAVED, "evaluated": EVALUATED, "aligned": 1000}
    config = write_config(workdir, steps=steps, runs=0, **every)
    file = workdir / "run" / "metrics.jsonl"
    command = ["imbalance_jax.main", config, f"--workdir={file.parent}"]
    samples = watch_command(command, file)
    lines = file.read_bytes().splitlines(keepends=True)
    ends, size = {}, 0  # step -> the size of the log, and the newest record that has times
    for line in lines:
        size += len(line)
        record = json.loads(line)
        ends[record["step"]] = (size, record)
    found = []
    for begin, end in ((steps // 10, steps // 5), (steps - steps // 10, steps - 1)):
        (first_size, first), (last_size, last) = ends[begin], ends[end]
        inside = [sample for sample in samples if first_size <= sample["size"] <= last_size]
        passed = end - begin

        def spend(*parts: str, first: dict = first, last: dict = last) -> float:
            return 1e3 * sum(last[f"time/{part}"] - first[f"time/{part}"] for part in parts)

        found.append(
            find_highest(inside)
            | {
                "MB read per 1,000 steps": (inside[-1]["read"] - inside[0]["read"]) / passed * 1000,
                "ms a step": spend("train", "data") / passed,
                "ms a save": spend("checkpoint") / (passed / SAVED),
                "ms an evaluation": spend("evaluate") / (passed / EVALUATED),
            }
        )
    return found


def measure_study(workdir: pathlib.Path, runs: int) -> list[dict[str, float]]:
    """Returns what a study took with a tenth of its runs, and with all."""
    every = {"saved": 5, "evaluated": 0, "aligned": 0}
    directory, found = f"--workdir={workdir / 'study'}", []
    config = write_config(workdir, steps=10, runs=runs, **every)
    first = ",".join(f"r{number}" for number in range(1, runs // 100 + 1))
    for flags in ([f"--only={first}"], ["--pack=30"]):
        command = ["imbalance_jax.study", "run", config, directory, *flags]
        samples = watch_command(command, workdir / "none")
        took = {
            f"s of study {name}": measure_command(["imbalance_jax.study", name, directory])
            for name in ("status", "collect")
        }
        page = (workdir / "study" / "report.html").stat().st_size / 1e3
        found.append(find_highest(samples) | took | {"page, kB": page})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("run", "study"))
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="one that is not there")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=300, help="a multiple of 100")
    args = parser.parse_args()
    if args.what == "run":
        start, end = measure_run(args.workdir.absolute(), args.steps)
    else:
        start, end = measure_study(args.workdir.absolute(), args.runs)
    print("| | start | end |\n|---|---|---|")
    for name, value in start.items():
        print(f"| {name} | {value:,.3g} | {end[name]:,.3g} |")


if __name__ == "__main__":
    main()
