"""A tiny run with its text at one place, and the commands that read what may be damaged of it."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

from faults import undisturbed
from faults.forked import HANG_SECONDS, Ended, ForkServer


class Probe(NamedTuple):
    """A command that reads a run, and what it makes of it."""

    module: str
    args: Callable[[pathlib.Path], list[str]]  # of the stage
    read: Callable[[pathlib.Path, Ended], Any]  # the values, from the stage and what was said
    state: str = "done"  # of the run that it reads: done, stopped or unscored


def read_page(stage: pathlib.Path, ended: Ended) -> str:
    return (stage / "run" / "report.html").read_text()


def read_last_line(stage: pathlib.Path, ended: Ended) -> str:
    return ended.out.splitlines()[-1]


PROBES = {
    "resume": Probe(
        "imbalance_jax.main",
        lambda stage: [f"--config={stage}/tiny.py", f"--workdir={stage}/run"],
        lambda stage, ended: undisturbed.read_results(stage / "run"),
        state="stopped",
    ),
    "load": Probe("load_run", lambda stage: [f"{stage}/run"], read_last_line),
    "generate": Probe(
        "imbalance_jax.generate",
        lambda stage: [f"--workdir={stage}/run", "--tokens=3", "--temperature=0"],
        lambda stage, ended: ended.out,
    ),
    "report": Probe("imbalance_jax.report", lambda stage: [f"--workdir={stage}/run"], read_page),
    "inspect": Probe(
        "imbalance_jax.data.inspect",
        lambda stage: [f"--check={stage}/run"],
        read_last_line,
    ),
    "evaluate": Probe(
        "imbalance_jax.evaluate",
        lambda stage: [f"--workdir={stage}/run", "--pairs=8"],
        lambda stage, ended: undisturbed.read_evaluation(stage / "run"),
        state="unscored",
    ),
}
# What reads which files; twice is twice as often.
AREAS = {
    "run/checkpoints": ("resume", "resume", "load", "load", "generate", "evaluate"),
    "run": ("resume", "load", "report", "report", "inspect", "evaluate"),
    "data": ("resume", "inspect", "inspect"),
}
QUICK_PROBES = ("load", "report", "inspect")


class Stage:
    """A run with its text at one place, which is put back to what it was before each case."""

    def __init__(self, folder: pathlib.Path, server: ForkServer) -> None:
        self.path, self._kept, self._server = folder / "stage", folder / "kept", server
        self._compiled = folder / "compiled"
        self._compiled.mkdir()
        self.begin(self.path)
        ended = self.probe("resume")
        assert ended.code == 0, ended
        self.results = undisturbed.read_results(self.path / "run")
        self._expected: dict[str, Any] = {"resume": self.results}
        shutil.copytree(self.path, self._kept, symlinks=True)
        self._contents = {
            file: file.read_bytes() for file in self._kept.rglob("*") if self._is_damaged(file)
        }

    def begin(self, folder: pathlib.Path) -> list[str]:
        """Makes a folder for a run like this one, and returns the arguments that train it."""
        cache = folder / "data" / "cache"
        cache.mkdir(parents=True)
        # Compiled once for all runs, and apart, so that a copy of the text is small.
        (cache / "compiled").symlink_to(self._compiled)
        return [f"--config={undisturbed.write_tiny_config(folder)}", f"--workdir={folder}/run"]

    def measure_alignment(self) -> None:
        """Measures the run's alignment, once: `evaluate` then has losses to score alone."""
        kept = self._kept / "run" / "evaluation.json"
        if "alignment" not in json.loads(kept.read_text()):
            self.reset()
            ended = self.probe("evaluate")
            assert ended.code == 0, ended
            shutil.copy(self.path / "run" / "evaluation.json", kept)

    def list_files(self, area: str) -> list[pathlib.PurePath]:
        """Returns the files of an area, relative to the stage and in one order."""
        files = [file.relative_to(self._kept) for file in self._contents]
        inner = [name for name in AREAS if name.startswith(f"{area}/")]
        return sorted(
            file
            for file in files
            if file.is_relative_to(area) and not any(file.is_relative_to(name) for name in inner)
        )

    def reset(self, state: str = "done") -> None:
        """Puts everything back, to a run that is done, was stopped, or has no losses of its end."""
        shutil.rmtree(self.path)
        shutil.copytree(self._kept, self.path, symlinks=True)
        run = self.path / "run"
        if state == "stopped":
            for name in ("DONE", "evaluation.json", "test_texts.csv", "report.html"):
                (run / name).unlink()
            shutil.rmtree(run / "checkpoints" / str(undisturbed.STEPS))
        if state == "unscored":
            results = json.loads((run / "evaluation.json").read_text())
            del results["languages"], results["crc32"]
            (run / "evaluation.json").write_text(json.dumps(results, indent=2))

    def list_alike(self, file: pathlib.PurePath) -> list[bytes]:
        """Returns the contents of files that might be taken for this one."""
        alike = [
            content
            for other, content in self._contents.items()
            if other.suffix == file.suffix and other.relative_to(self._kept) != file
        ]
        return alike or list(self._contents.values())

    def expect(self, name: str) -> Any:
        """Returns what a probe makes of the run where nothing is damaged."""
        if name not in self._expected:
            self.reset(PROBES[name].state)
            ended = self.probe(name)
            assert ended.code == 0, ended
            self._expected[name] = PROBES[name].read(self.path, ended)
        return self._expected[name]

    def probe(self, name: str, **options: Any) -> Ended:
        """Runs a command on the run as it is now."""
        probe = PROBES[name]
        options = {"timeout": 60 if name == "evaluate" else HANG_SECONDS} | options
        return self._server.run(probe.module, probe.args(self.path), **options)

    def _is_damaged(self, file: pathlib.Path) -> bool:
        skipped = {"compiled", "tiny.py", ".lock"}
        return file.is_file() and not file.is_symlink() and not skipped & set(file.parts)
