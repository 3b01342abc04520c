"""A run directory: the config, metrics, markers and provenance of one run.

Analysis reads nothing else of a run.

    config.json       the resolved config        metrics.jsonl     see metrics_log.py
    provenance.json   code, versions, devices,   mixture.csv       requested and realised ratio
                      text fingerprints          evaluation.json   final results on the test split
    checkpoints/      see checkpoint.py          test_texts.csv    test loss of each of its texts
    vocabulary.npz    the ids of each language   tokenizer-*.model of each source
    report.html       its page                   wandb.json        its id at Weights & Biases
    DONE | FAILED.json  how it ended             first_updates.json  see training/resumption.py

Results of an earlier step, and those of a run that was extended, are in evaluation-STEP.json and
test_texts-STEP.csv; transfer.json and word2vec* are of the commands of these names.
"""

import contextlib
import csv
import datetime
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.runs import damaged_files, metrics_log, storage
from imbalance_jax.runs.damaged_files import DamagedFileError, Shape
from imbalance_jax.runs.metrics_log import Record
from imbalance_jax.runs.run_files import describe_run_file

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

# Orbax writes this file into a checkpoint in a store when all else is there. (On a file system it
# renames the checkpoint then.)
COMMITTED = "commit_success.txt"
# What was computed next after each checkpoint: training/resumption.py.
FIRST_UPDATES = "first_updates.json"
# What a run writes besides config.json. Anything else may lie in its directory, such as what a
# job's scheduler writes there before the run begins.
_WRITTEN = (
    *("DONE", "FAILED.json", "checkpoints", "evaluation*.json", "metrics*.jsonl", "mixture.csv"),
    *(
        "events.out.tfevents.*",
        "first_updates.json",
        "provenance.json",
        "report.html",
        "tensorboard",
        "test_texts*.csv",
        "tokenizer-*.model",
    ),
    *("transfer.json", "vocabulary.npz", "wandb", "wandb.json", "word2vec*"),
)


class RunDirectory:
    """Reads and writes the files of one run.

    Nothing is cached, except metrics on their way to a store.
    """

    def __init__(self, path: str | epath.PathLike) -> None:
        self.path = storage.parse_path(path)
        self._metrics = metrics_log.open_metrics_log(self.path)
        self._lock: contextlib.ExitStack | None = None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / "checkpoints"

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    def newest_checkpoint(self) -> int:
        """Returns the step of the newest checkpoint, or 0."""
        return max(self.steps(), default=0)

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, in order."""
        return list_checkpoint_steps(self.checkpoints)

    def check_writable(self, flag: str = "--workdir") -> None:
        """Raises ValueError, with the flag that names the directory, if it cannot be written to."""
        storage.check_directory_writable(flag, self.path)

    def config(self) -> config_lib.Config:
        """Returns the config that the run was started with.

        Raises:
          FileNotFoundError: this is not a run directory.
          DamagedFileError: the file is damaged, or says what no config can.
        """
        plain = self.read_json("config.json")
        if plain is None:
            raise FileNotFoundError(f"{self.path} holds no run: it has no config.json.")
        try:
            return config_lib.resolve_config(plain)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            file, problem = self.path / "config.json", f"is no config of this version ({error})"
            remedy = describe_run_file("config.json", self.path).remedy
            raise DamagedFileError(file, problem, remedy) from error

    def begun(self) -> config_lib.Config | None:
        """Returns the config that the run was started with, or None where there is no run."""
        return self.config() if (self.path / "config.json").exists() else None

    def check(self, config: config_lib.Config, *, extend: bool = False) -> None:
        """Raises ValueError if the directory belongs to another run, or holds something else.

        Args:
          extend: whether the run may have more steps than it was started with.
        """
        if (self.path / "config.json").exists():
            self._check_same(config, extend)
            self._check_files()
            return
        in_the_way = [file for name in _WRITTEN for file in sorted(self.path.glob(name))]
        if in_the_way:
            raise ValueError(
                f"{in_the_way[0]} would be written over, and {self.path} holds no run (it has no "
                "config.json). Move it away, or use another --workdir."
            )

    def check_checkpoints(self) -> None:
        """Raises ValueError if the run has lost its checkpoints: it would begin anew in silence.

        A run that was killed before its first checkpoint was whole does begin anew.
        """
        if self.steps() or not (self.path / "config.json").exists():
            return
        last = max(0, self.newest_step())
        every = self.config().checkpoint.every
        # `first_updates.json` is written when a checkpoint is whole, and a save begins when the
        # one before it is. (The second is what a run of an earlier version leaves.)
        had_some = bool(self.read_json(FIRST_UPDATES)) or self.done or 0 < 2 * every < last
        # Those of a run that diverged from the start were renamed: it begins anew.
        diverged = self.checkpoints.exists() and any(self.checkpoints.glob("*.diverged"))
        if last and had_some and not diverged:
            raise ValueError(
                f"{self.path} has metrics up to step {last:,}, and the checkpoints that it had are "
                f"not in {self.checkpoints}. Put them back from a copy, or move {self.path} away "
                "to train it again from the beginning."
            )

    def check_format(self) -> None:
        """Raises ValueError if a run was begun on text in a format that is no longer written.

        It reads no text, so that a run is refused before its text is prepared again.
        """
        for name, source in self.read_provenance()["sources"].items():
            # The fingerprint of synthetic text has a version of its own.
            if "format" not in source and source.get("kind") != "synthetic":
                raise ValueError(
                    f"{self.path} was started on text that an earlier version of this program "
                    f"prepared, and this one prepares source {name} in another format. Use "
                    "another --workdir, or the version that the run was started with (git in "
                    "provenance.json)."
                )

    def read_provenance(self) -> dict[str, Any]:
        """Returns what provenance.json says, with {} for sources and parallel where it is absent.

        Raises:
          DamagedFileError: it is damaged.
        """
        return {"sources": {}, "parallel": {}, **(self.read_json("provenance.json") or {})}

    def texts(self, kind: str = "sources") -> dict[str, str]:
        """Returns the fingerprint of each text that the run was begun with.

        Args:
          kind: sources, or parallel for the sets of parallel texts.
        """
        provenance = self.read_provenance()
        self._check_provenance(provenance, {kind: {"*": {"fingerprint": str}}})
        return {name: text["fingerprint"] for name, text in provenance[kind].items()}

    def _check_provenance(self, provenance: Mapping[str, Any], shape: Shape) -> None:
        remedy = describe_run_file("provenance.json", self.path).remedy
        damaged_files.check_shape(provenance, shape, self.path / "provenance.json", remedy)

    def check_text(self, fingerprints: Mapping[str, str], order_version: int) -> None:
        """Raises ValueError if the run was begun with other text, or another order of the data.

        Args:
          fingerprints: of the text and tokenizer of each source.
          order_version: the version of the order that this code makes.
        """
        provenance = self.read_json("provenance.json")
        if provenance is None:
            return
        recorded = {name: {"fingerprint": str} for name in fingerprints}
        self._check_provenance(provenance, {"sources": recorded, "order_version": int})
        for name, fingerprint in fingerprints.items():
            started_with = provenance["sources"][name]["fingerprint"]
            if started_with != fingerprint:
                raise ValueError(
                    f"{self.path} was started with another text or tokenizer of source {name}: "
                    f"fingerprint {started_with}, now {fingerprint}. Use another --workdir, or put "
                    "the text back as it was (that of kind docstrings changes with the installed "
                    "packages)."
                )
        if provenance["order_version"] != order_version:
            raise ValueError(
                f"{self.path} was started with version {provenance['order_version']} of the order "
                f"of the data, and this code has version {order_version}. Use another --workdir."
            )

    def claim(self, config: config_lib.Config) -> None:
        """Makes the directory this run's own, after `check`, until `release`.

        Raises:
          ValueError: another process trains in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = contextlib.ExitStack()
            self._lock.enter_context(lock_directory(self.path))
        if not (self.path / "config.json").exists():
            self.start(config)

    def start(self, config: config_lib.Config) -> None:
        """Writes down the config that the run goes on with, and that it has not ended."""
        self.write_json("config.json", config_lib.to_dict(config))
        (self.path / "FAILED.json").unlink(missing_ok=True)
        (self.path / "DONE").unlink(missing_ok=True)

    def release(self) -> None:
        """Lets other processes train in the directory again, as the end of this one does."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def _check_same(self, config: config_lib.Config, extend: bool) -> None:
        identity = config_lib.build_run_identity(config)
        started_with = config_lib.build_run_identity(self.config())
        differences = config_lib.find_differences(identity, started_with)
        if extend:
            differences = [item for item in differences if item[0] != "config.steps"]
            if config.steps < started_with["steps"]:
                raise ValueError(
                    f"{self.path} was started with config.steps={started_with['steps']}; --extend "
                    f"cannot shorten it to {config.steps}."
                )
        if differences:
            field, now, before = differences[0]
            more = len(differences) - 1
            what = "1 more field differs" if more == 1 else f"{more} more fields differ"
            others = f" ({what})" * (more > 0)
            hint = " or pass --extend" * (field == "config.steps" and now > before)
            raise ValueError(
                f"{self.path} belongs to a run with {field}={before!r}, but this one has "
                f"{now!r}{others}. Use another --workdir, or "
                f"{self._advise(field, before, config)}{hint}."
            )

    def _check_files(self) -> None:
        """Raises DamagedFileError if a run cannot go on with a file that it has written."""
        for name in ("provenance.json", "evaluation.json"):
            self.read_json(name)
        for _ in self.metrics():
            pass

    def _advise(self, field: str, before: Any, config: config_lib.Config) -> str:
        """Returns how a config gets what the run has of a field of its identity."""
        begun = self.config()
        if field.startswith("config.mixture.sequences") and config.steps != begun.steps:
            return (
                f"keep config.steps={begun.steps}: documents are given out, and losses weighted, "
                "in proportion to the sequences of all steps"
            )
        stated: Any = config_lib.to_dict(begun)
        for part in field.split(".")[1:]:
            stated = stated.get(part) if isinstance(stated, dict) else None
        # What the identity makes of several fields can be set in none of them.
        return f"set {field}={before!r}" if stated == before else "leave out --config"

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, damaged_files.format_checked_json(value))

    def write_results(self, results: Mapping[str, Any], name: str = "evaluation.json") -> None:
        """Writes what was measured on the test split; `texts` of it go into test_texts.csv."""
        rows = [
            {"language": tag, "text": text, "loss": loss, "tokens": tokens}
            for tag, texts in results.get("texts", {}).items()
            for text, loss, tokens in texts
        ]
        if rows and name == "evaluation.json":
            self.write_csv("test_texts.csv", rows)
        self.write_json(name, {key: value for key, value in results.items() if key != "texts"})

    def keep_results(self, last: int) -> list[str]:
        """Renames evaluation.json and test_texts.csv after their step, if that is not the last.

        A run that is extended would replace them. Returns a line on each file.

        Args:
          last: the last step of the run.
        """
        results = self.read_json("evaluation.json") or {}
        step = results.get("step", last)
        lines = []
        # evaluation.json goes last, because it says the step: after a kill, both are tried again.
        for file in ("test_texts.csv", "evaluation.json") if step != last else ():
            stem, _, kind = file.partition(".")
            kept = f"{stem}-{step}.{kind}"
            if (self.path / file).exists():
                (self.path / file).rename(self.path / kept)
                lines.append(f"{file} of step {step:,} is kept as {kept}.")
        return lines

    def write_text(self, name: str, text: str) -> None:
        # The text may name a file whose name is not UTF-8.
        self.write_bytes(name, text.encode(errors="backslashreplace"))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file whole or not at all."""
        storage.write_file_atomically(self.path / name, content)

    def read_json(self, name: str) -> Any:
        """Returns a JSON file of the run, or None where it is absent.

        Raises:
          DamagedFileError: it is not what was written.
        """
        file, kind = self.path / name, describe_run_file(name, self.path)
        if not file.exists():
            return None
        return damaged_files.read_json(file, kind.remedy, kind.shape)

    def read_bytes(self, name: str) -> bytes:
        """Returns the bytes of a file of the run.

        Raises:
          FileNotFoundError: it is absent.
        """
        remedy = describe_run_file(name, self.path).remedy
        return damaged_files.read_file(self.path / name, remedy)

    def finish(self) -> None:
        self.flush()
        self.write_text("DONE", datetime.datetime.now(datetime.UTC).isoformat() + "\n")
        self.release()

    def fail(self, step: int, error: BaseException, message: str = "") -> None:
        """Writes FAILED.json.

        Args:
          step: the updates done before.
          error: what ended the run.
          message: in place of the error's own.
        """
        with contextlib.suppress(OSError):  # of a store; the error that ended the run matters more
            self.flush()
        self.write_json(
            "FAILED.json",
            {
                "step": step,
                "error": type(error).__name__,
                "message": message or str(error),
                "time": datetime.datetime.now(datetime.UTC).isoformat(),
            },
        )

    def metrics(self) -> Iterator[Record]:
        """Yields all that was logged, in order of step."""
        return self._metrics.read()

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Returns the steps and values of one metric."""
        records = [record for record in self.metrics() if name in record]
        return [record["step"] for record in records], [record[name] for record in records]

    def newest_step(self) -> int:
        """Returns the newest step that was logged, or -1."""
        return next((record["step"] for record in self._metrics.read_backwards()), -1)

    def records_of(self, step: int) -> list[Record]:
        """Returns what was logged of a step, the newest first."""
        newer = itertools.takewhile(
            lambda record: record["step"] >= step, self._metrics.read_backwards()
        )
        return [record for record in newer if record["step"] == step]

    def has(self, step: int, prefix: str) -> bool:
        """Whether a record of a step has a metric whose name begins so."""
        return any(name.startswith(prefix) for record in self.records_of(step) for name in record)

    def newest_with(self, name: str) -> Record:
        """Returns the newest record that has a metric; {} where none has."""
        return next((record for record in self._metrics.read_backwards() if name in record), {})

    def truncate_metrics(self, step: int) -> None:
        """Drops the records after a step: a run that resumes there writes them anew."""
        self._metrics.truncate(step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one record."""
        self._metrics.append({"step": step, **metrics})

    def flush(self) -> None:
        """Returns when other processes can read all that was logged."""
        self._metrics.flush()

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write_text(name, text.getvalue())

    def read_csv(self, name: str) -> list[dict[str, str]]:
        """Returns the rows of a CSV file of the run; none where it is absent.

        Raises:
          DamagedFileError: it lacks a column or a cell, or a cell is no number.
        """
        file, kind = self.path / name, describe_run_file(name, self.path)
        if not file.exists():
            return []
        text = damaged_files.read_text(file, kind.remedy)
        return damaged_files.parse_csv(
            text, file, kind.remedy, required=kind.required, words=kind.words
        )


def list_checkpoint_steps(directory: epath.Path) -> list[int]:
    """Returns the steps of all checkpoints in a directory, in order."""
    if not directory.exists():
        return []
    in_store = storage.is_store(directory)
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        if path.name.isdecimal() and (not in_store or (path / COMMITTED).exists())
    )


def run_and_step(name: str) -> tuple[RunDirectory, int | None]:
    """Returns the run and the step that RUN or RUN@STEP names; the step of RUN is None.

    A directory's name may have an @ of its own: a@5 is that directory if it holds a run.
    """
    run = RunDirectory(name)
    path, at, step = name.rpartition("@")
    if not at or not step.isdecimal() or (run.path / "config.json").exists():
        return run, None
    return RunDirectory(path), int(step)


@contextlib.contextmanager
def lock_directory(directory: epath.Path) -> Iterator[None]:
    """Keeps other processes of this machine out of a directory; one in a store stays open to all.

    Raises:
      ValueError: another process is in it.
    """
    if fcntl is None or storage.is_store(directory):
        yield
        return
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{directory} is being trained in by another process. Wait until that ends, or "
                "stop it first."
            ) from error
        yield


def is_directory_locked(directory: epath.Path) -> bool:
    """Says whether another process of this machine is in a directory."""
    lock = directory / ".lock"
    if fcntl is None or storage.is_store(directory) or not lock.exists():
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
