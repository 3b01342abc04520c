"""A study directory: study.json and runs/<id>/, each an ordinary run directory.

Neither jax nor the text is needed: what is done, and what is left, is read from the files.
"""

import contextlib
import dataclasses
import math
import shlex
import types
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config
from imbalance_jax.runs import damaged_files, divergence, run_directory, storage
from imbalance_jax.runs.damaged_files import NUMBER, DamagedFileError, MissingFileError
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.runs.run_files import describe_run_file
from imbalance_jax.study import grid

VERSION = 1
# What a study writes besides study.json, apart from logs, which only grow. Anything else may lie
# in its directory, such as a plan of how to send its runs somewhere.
_WRITTEN = (
    *("runs", "report.html", "reference.html", "figures", "table.csv", "table.parquet"),
    *("alignment.csv", "alignment.parquet", "curves.csv", "curves.parquet", "proposals"),
)
_LOSSES = ("loss", "language_nats", "loss_own")
_FEW = 5  # studies that are named in place of one that is not there
_REMEDY = "Copy it back, or use another --workdir."
_SHAPE = {"runs": {"*": {"config": dict, "hash": str, "seed": int, "text?": {"*": str}}}}


@dataclasses.dataclass(frozen=True)
class RunState:
    """How far a run of a study is."""

    state: str  # absent | begun | failed | damaged | done
    step: int = 0
    steps: int = 0
    error: str = ""
    reused_from: str = ""  # the directory of another study that has this run


class StudyDirectory:
    """Reads and writes the files of a study.

    The directory is the truth: nothing is cached but the grids of studies that are reused.
    """

    def __init__(self, path: str | epath.PathLike) -> None:
        self.path = storage.parse_path(path)
        self._reused: dict[str, tuple[StudyDirectory, dict[str, list[str]]]] = {}

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return epath.Path(storage.make_absolute_path(self.path)).name

    def study(self) -> grid.StudyConfig:
        """Returns the study that the directory holds.

        Raises:
          FileNotFoundError: it holds none.
          ValueError: study.json was written by another version, or edited by hand.
        """
        file, plain = self.path / "study.json", self._read_plain_study()
        if plain.pop("version", None) != VERSION:
            raise ValueError(
                f"{file} was not written by this version of the program ({VERSION}), or not whole. "
                "Use another --workdir."
            )
        damaged_files.check_shape(plain, _SHAPE, file, _REMEDY)
        hashes = {}
        for name, spec in plain["runs"].items():
            hashes[name] = spec.pop("hash")
            spec.pop("seed")
        try:
            study = grid.resolve_study(plain, begun=True)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            problem = f"is no study of this version ({error})"
            raise DamagedFileError(file, problem, _REMEDY) from error
        for name, spec in study.runs.items():
            if hashes[name] not in (spec.hash, spec.earlier_hash):
                raise ValueError(
                    f"{file}: run {name} does not have the hash that is written beside it, so it "
                    "was changed by hand. Change the config file of the study instead, and give "
                    "the changed run another cell."
                )
        return study

    def read_recorded_runs(self) -> dict[str, Any]:
        """Returns the plain values of all runs in study.json, with their configs.

        Raises:
          FileNotFoundError: the directory holds no study.
          DamagedFileError: the file is damaged.
        """
        plain = self._read_plain_study()
        file, runs = self.path / "study.json", {"*": {"config": dict, "text?": {"*": str}}}
        damaged_files.check_shape(plain, {"runs": runs}, file, _REMEDY)
        return plain["runs"]

    def _read_plain_study(self) -> dict[str, Any]:
        file = self.path / "study.json"
        if not file.exists():
            raise FileNotFoundError(
                f"{self.path} holds no study: it has no study.json. {self._list_near()}".strip()
            )
        return damaged_files.read_json(file, _REMEDY)

    def _list_near(self) -> str:
        """Returns a sentence that names studies beside the directory and in it, or ""."""
        if storage.is_store(self.path):
            return ""
        folders = [folder for folder in (self.path, self.path.parent) if folder.is_dir()]
        found = sorted(str(file.parent) for each in folders for file in each.glob("*/study.json"))
        nearest = config_lib.suggest_nearest_name(str(self.path), found)
        few = f"There are {', '.join(found[:_FEW])}" + ", ..." * (len(found) > _FEW) + "."
        return nearest or (few if found else "")

    def check(self, study: grid.StudyConfig) -> None:
        """Raises ValueError if the directory belongs to another grid, or holds something else.

        More runs than it has are welcome, and so are other claims; a run that it has must stay.
        """
        if not (self.path / "study.json").exists():
            in_the_way = [name for name in _WRITTEN if (self.path / name).exists()]
            if in_the_way:
                raise ValueError(
                    f"{self.path / in_the_way[0]} would be written over, and {self.path} holds no "
                    "study (it has no study.json). Move it away, or use another --workdir."
                )
            return
        before = self.study()
        for name, spec in before.runs.items():
            wanted = study.runs.get(name)
            if wanted is None:
                raise ValueError(
                    f"{self.path} holds the study of another grid: it has a run {name}, and this "
                    "grid has none. Use another --workdir, or add to the grid it was begun with."
                )
            if wanted.hash != spec.hash:
                field, new, old = _list_differences(wanted.config, spec.config)[0]
                raise ValueError(
                    f"{self.path} holds the study of another grid: its run {name} has "
                    f"{field}={old!r}, and this grid's has {new!r}. Use another --workdir, or "
                    "give what is new a cell of its own."
                )

    def texts(self) -> dict[str, Mapping[str, str]]:
        """Returns source -> fingerprint of its prepared text for each run that has it recorded."""
        if not (self.path / "study.json").exists():
            return {}
        return {name: spec.text for name, spec in self.study().runs.items() if spec.text}

    def binding_texts(self) -> dict[str, Mapping[str, str]]:
        """Returns `texts` once any run has begun; until then a study's text may change."""
        return self.texts() if any(self.path.glob("runs/*/config.json")) else {}

    def claim(
        self,
        study: grid.StudyConfig,
        texts: Mapping[str, Mapping[str, str]] = types.MappingProxyType({}),
    ) -> None:
        """Makes the directory this study's own, after `check`.

        Args:
          study: of the config, or of the directory itself.
          texts: source -> fingerprint of its prepared text for some runs. The others keep what
            is recorded of them.
        """
        recorded = self.texts() | dict(texts)
        runs = {
            name: dataclasses.replace(spec, text=recorded.get(name, spec.text))
            for name, spec in study.runs.items()
        }
        plain = grid.convert_study_to_dict(dataclasses.replace(study, runs=runs))
        self.path.mkdir(parents=True, exist_ok=True)
        text = damaged_files.format_checked_json({"version": VERSION, **plain}, indent=1)
        storage.write_file_atomically(self.path / "study.json", text.encode())

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes of this machine from training the study meanwhile.

        Raises:
          ValueError: another one does.
        """
        with run_directory.lock_directory(self.path):
            yield

    def run(self, name: str) -> RunDirectory:
        return RunDirectory(self.path / "runs" / name)

    def log(self, name: str) -> epath.Path:
        """Returns the file that the output of a run goes to."""
        return self.path / "logs" / f"{name}.log"

    def find_run(self, name: str, study: grid.StudyConfig) -> tuple[RunDirectory, str]:
        """Returns where a run is: here, or finished in a study that is reused, with its path."""
        own = self.run(name)
        if not own.done:
            for path in study.reuse:
                other, names = self._open_reused_study(path)
                for other_name in names.get(study.runs[name].hash, ()):
                    if other.run(other_name).done:
                        return other.run(other_name), str(other)
        return own, ""

    def _open_reused_study(self, path: str) -> "tuple[StudyDirectory, dict[str, list[str]]]":
        """Returns another study, and its runs by their hash.

        Its grid is read once: to read it for every run would take the square of their number.
        """
        if path not in self._reused:
            other, names = StudyDirectory(path), defaultdict(list)
            for name, spec in _read_reused_study(other).runs.items():
                names[spec.hash].append(name)
            self._reused[path] = other, names
        return self._reused[path]

    def state(self, name: str, study: grid.StudyConfig) -> RunState:
        """Returns how far a run is; one of whose files is damaged says which.

        Raises:
          ValueError: its directory was changed by hand, or belongs to another run.
        """
        try:
            return self._read_state(name, study)
        except DamagedFileError as error:
            return RunState("damaged", 0, study.runs[name].config.steps, str(error))

    def _read_state(self, name: str, study: grid.StudyConfig) -> RunState:
        run, reused = self.find_run(name, study)
        spec = study.runs[name]
        if not (run.path / "config.json").exists():
            if run.done or any(run.metrics()):
                raise MissingFileError(
                    run.path / "config.json",
                    "is missing beside results of the run",
                    "Put it back, or delete the directory, which trains the run anew.",
                )
            return RunState("absent", steps=spec.config.steps)
        check_run_untouched(run, spec)
        step = max(0, run.newest_step(), run.newest_checkpoint())
        if run.done:
            diverged = divergence.describe_divergence(run)
            if diverged:
                return RunState("failed", step, spec.config.steps, diverged)
            return RunState("done", step, spec.config.steps, reused_from=reused)
        failed = run.read_json("FAILED.json")
        if failed:
            return RunState("failed", failed["step"], spec.config.steps, failed["message"])
        return RunState("begun", step, spec.config.steps)

    def states(self, study: grid.StudyConfig) -> dict[str, RunState]:
        return {name: self.state(name, study) for name in study.runs}


def _list_differences(first: Config, second: Config) -> list[tuple[str, Any, Any]]:
    """Returns (field, first's, second's) of all in which two runs differ."""
    return config_lib.find_differences(
        config_lib.build_run_identity(first), config_lib.build_run_identity(second)
    )


def _read_reused_study(other: StudyDirectory) -> grid.StudyConfig:
    try:
        return other.study()
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"config.reuse names {other}, which cannot be used: {error}") from error


def describe_losses(run: RunDirectory) -> str:
    """Returns the loss of each language of a run that is done, on a line."""
    languages = run.read_json("evaluation.json")["languages"]
    return "   ".join(f"{tag} {result['loss']:.4f}" for tag, result in languages.items())


def check_run_untouched(run: RunDirectory, spec: grid.RunSpec) -> None:
    """Raises ValueError if a run directory is not what its study made.

    Its config has to be that of the study, and a run that is done has to have the results of
    its last step: a number edited into evaluation.json is not found, but a file that was
    lost, cut or copied from elsewhere is.
    """
    try:
        config = run.config()
    except DamagedFileError as error:
        remedy = "Put it back, or delete the directory, which trains the run anew."
        raise DamagedFileError(error.path, error.problem, remedy) from error
    differences = _list_differences(config, spec.config)
    if differences:
        field, present, wanted = differences[0]
        raise ValueError(
            f"{run} was changed by hand, or belongs to another study: its config.json has "
            f"{field}={present!r}, and the study asks for {wanted!r}. Put config.json back, or "
            "delete the directory, which trains the run anew."
        )
    if not run.done:
        return
    results, quoted = run.read_json("evaluation.json"), shlex.quote(str(run))
    missing = [tag for tag in config.tags if tag not in (results or {}).get("languages", {})]
    if results is None or missing or results["step"] > config.steps:
        what = f"nothing of {', '.join(missing)}" if results else "no evaluation.json"
        raise ValueError(
            f"{run} was changed by hand: it says that it is done and has {what}. Score it again "
            f"with python -m imbalance_jax.evaluate --workdir={quoted}, or delete the directory."
        )
    if divergence.find_nonfinite_loss(results["languages"]):
        return  # nothing adds up in a run that diverged
    numbers = dict.fromkeys(_LOSSES, (float, int)) | {"ppl": NUMBER, "bits_per_byte": NUMBER}
    remedy = describe_run_file("evaluation.json", run).remedy
    damaged_files.check_shape(
        results, {"languages": {"*": numbers}}, run.path / "evaluation.json", remedy
    )
    for tag, result in results["languages"].items():
        parts = result["language_nats"] + result["loss_own"]
        adds_up = math.isclose(result["loss"], parts, rel_tol=1e-3)
        if adds_up and result["loss"] < 700:  # beyond e^700 there is no float
            adds_up = math.isclose(result["ppl"] or 0.0, math.exp(result["loss"]), rel_tol=1e-6)
        if not adds_up:
            raise ValueError(
                f"{run} was changed by hand: the loss of {tag} in evaluation.json is "
                f"{result['loss']}, and its parts and perplexity do not add up to it. Score it "
                f"again with python -m imbalance_jax.evaluate --workdir={quoted} --overwrite."
            )
