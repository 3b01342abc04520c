"""Trains what a study has left: each run, or pack of runs, in a process of its own.

A process is `python -m imbalance_jax.main --study=DIR --members=ID,...`, so that a run that
fails, or takes its machine's memory, fails alone. How far the study is, is read from the run
directories, and nothing is kept besides them.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from etils import epath

from imbalance_jax import cli
from imbalance_jax.config import pack_shape
from imbalance_jax.runs import children, run_directory, storage
from imbalance_jax.runs.interrupts import Interrupts
from imbalance_jax.runs.progress import Progress, format_duration
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory, describe_losses

_POLL_SECONDS = 1.0
# Between two readings of how far running processes are; each costs requests in a store.
_READ_SECONDS = {False: 0.0, True: 30.0}


@dataclasses.dataclass
class _Job:
    """A process that trains one run, or a pack of them."""

    members: tuple[str, ...]
    process: subprocess.Popen
    began: float
    output: epath.Path  # its log, or what becomes the log in a store when it ends


def group_into_packs(
    study: grid.StudyConfig, names: Sequence[str], most: int
) -> list[tuple[str, ...]]:
    """Returns runs in packs of at most so many, in the order of their first members."""
    if most < 2:
        return [(name,) for name in names]
    groups: dict[str, list[str]] = {}
    for name in names:
        config = study.runs[name].config
        alone = pack_shape.find_packing_obstacle(config)
        groups.setdefault(name if alone else pack_shape.compute_pack_key(config), []).append(name)
    packs = [
        tuple(group[i : i + most]) for group in groups.values() for i in range(0, len(group), most)
    ]
    return sorted(packs, key=lambda members: names.index(members[0]))


class StudyRunner:
    """Trains runs of a study, so many processes at a time."""

    def __init__(
        self,
        directory: StudyDirectory,
        study: grid.StudyConfig,
        *,
        command: Sequence[str] = (sys.executable, "-m", "imbalance_jax.main"),
        options: Sequence[str] = (),
    ) -> None:
        """Reads how far each run is; `command` trains the members it is given, with `options`."""
        self._directory, self._study = directory, study
        self._command, self._options = command, options
        self._states = directory.states(study)
        self._read_seconds = _READ_SECONDS[storage.is_store(directory.path)]
        self.failed: dict[str, str] = {}  # by run: why

    def left(self, *, retry: bool) -> list[str]:
        """Returns the runs to train; those that failed only to try them again."""
        return [
            name
            for name, progress in self._states.items()
            if progress.state not in ("done", "damaged") and (retry or progress.state != "failed")
        ]

    def run(self, work: Sequence[tuple[str, ...]], *, jobs: int) -> int:
        """Trains each pack of runs, and returns the exit code of the command.

        An interruption is passed on to every process, which saves its state first. Runs that
        another process trains, such as one that an earlier command left behind, are waited for:
        they have the machine until it ends, and are gone on with where it saved.
        """
        waiting, running, read_at = list(work), list[_Job](), 0.0
        named = set[str]()  # the runs that are waited for
        total = float(sum(spec.tokens for spec in self._study.runs.values()))
        preempted = False
        with (
            Interrupts() as interrupts,
            Progress("Study", total, start=self._count_trained_tokens(), every=30) as progress,
        ):
            while running or (waiting and not interrupts.requested):
                held = {name for members in waiting for name in self._list_held(members)}
                for name in sorted(held - named):
                    progress.line(f"waiting {name}: another process is training it")
                named = held
                free = [members for members in waiting if held.isdisjoint(members)]
                busy = len(waiting) - len(free)
                while free and len(running) + busy < jobs and not interrupts.requested:
                    pack = free.pop(0)
                    waiting.remove(pack)
                    self._read_states(pack)
                    if all(self._states[name].state == "done" for name in pack):
                        progress.line(f"done    {_describe_pack(pack)}, by another process")
                        continue
                    running.append(self._start(pack, jobs))
                    progress.line(f"begun   {_describe_pack(running[-1].members)}")
                if interrupts.requested and not preempted:
                    preempted = True
                    progress.line("Stopping: every run saves its state first.")
                    for job in running:
                        job.process.send_signal(signal.SIGTERM)
                time.sleep(_POLL_SECONDS)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    if job.process.returncode == cli.REFUSED and self._list_held(job.members):
                        waiting.append(job.members)  # it was begun elsewhere meanwhile
                        continue
                    for line in self._describe_end(job, preempted):
                        progress.line(line)
                if time.monotonic() - read_at >= self._read_seconds:
                    read_at = time.monotonic()
                    for job in running:
                        self._read_states(job.members)
                members = sum(len(job.members) for job in running)
                scored = [name for job in running for name in job.members if self._is_scored(name)]
                doing = f"scoring {len(scored)}" * (0 < len(scored) == members)
                progress.show(self._count_trained_tokens(), self._describe(members), doing=doing)
        if preempted:
            print("Stopped. Start the same command again to go on.")
            return cli.PREEMPTED
        return cli.FAILED if self.failed else cli.DONE

    def _list_held(self, members: Sequence[str]) -> list[str]:
        """Returns the runs that a process of this machine is training."""
        return [
            name
            for name in members
            if run_directory.is_directory_locked(self._directory.run(name).path)
        ]

    def _start(self, members: tuple[str, ...], jobs: int) -> _Job:
        options = (f"--study={self._directory}", f"--members={','.join(members)}")
        environment = dict(os.environ)
        if jobs > 1:  # or the first process would take the memory of a GPU for itself
            environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / jobs:.2f}")
        # XLA asks for a step's memory anew each time. In pages of 2 MB, which glibc has on Linux,
        # a step of mini on a CPU takes a tenth less. A process can only be started with it.
        environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        output = self._prepare_log(members)
        with open(output, "a") as file:
            process = subprocess.Popen(
                [*self._command, *options, *self._options],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                **children.make_tied_popen_arguments(environment),
            )
        return _Job(members, process, time.monotonic(), output)

    def _prepare_log(self, members: Sequence[str]) -> epath.Path:
        """Returns the file that a process writes to, with what is in it already."""
        log = self._directory.log(members[0])
        if not storage.is_store(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            return log
        output = epath.Path(tempfile.mkdtemp()) / log.name
        if log.exists():
            log.copy(output)
        return output

    def _read_states(self, members: Sequence[str]) -> None:
        for name in members:
            self._states[name] = self._directory.state(name, self._study)

    def _is_scored(self, name: str) -> bool:
        """Returns whether a run has all its updates, and is measured on the test text."""
        run = self._states[name]
        return run.state not in ("done", "failed") and 0 < run.steps <= run.step

    def _count_trained_tokens(self) -> float:
        """Returns the tokens that all runs of the study were trained on so far."""
        return sum(
            spec.tokens
            * (1.0 if (run := self._states[name]).state == "done" else run.step / run.steps)
            for name, spec in self._study.runs.items()
        )

    def _describe_end(self, job: _Job, preempted: bool) -> list[str]:
        """Returns what became of the runs of a process, which may have been asked to stop."""
        log = self._directory.log(job.members[0])
        if job.output != log:
            job.output.copy(log, overwrite=True)
            job.output.parent.rmtree()
        stopped = job.process.returncode == cli.PREEMPTED
        # Asked before it listened, it has saved nothing new and lost nothing either.
        stopped |= preempted and job.process.returncode == -signal.SIGTERM
        self._read_states(job.members)
        took, lines = format_duration(time.monotonic() - job.began), []
        for name in job.members:
            run = self._states[name]
            if run.state == "done":
                losses = describe_losses(self._directory.run(name))
                lines.append(f"done    {name}, in {took}: {losses}")
            elif stopped:
                lines.append(f"saved   {name} at step {run.step:,} of {run.steps:,}")
            else:
                self.failed[name] = run.error or self._last_words(job)
                lines.append(f"FAILED  {name} at step {run.step:,}: {self.failed[name]}")
        return lines

    def _last_words(self, job: _Job) -> str:
        """Returns why a process ended that left no FAILED.json."""
        log = self._directory.log(job.members[0])
        code = job.process.returncode
        if code < 0:
            return f"{children.describe_exit(code)}. See {log}."
        lines = log.read_bytes().decode(errors="replace").strip().splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        why = errors[-1] if errors else f"{children.describe_exit(code)}. See {log}."
        # What was wrong with one run ended the program of all.
        return f"its program of {len(job.members)} runs: {why}" if len(job.members) > 1 else why

    def _describe(self, running: int) -> str:
        states = [run.state for run in self._states.values()]
        text = f"{states.count('done')} of {len(states)} runs done, {running} running"
        return text + (f", {len(self.failed)} failed" if self.failed else "")


def _describe_pack(members: Sequence[str]) -> str:
    if len(members) == 1:
        return members[0]
    return f"{len(members)} runs in one program: {', '.join(members)}"
