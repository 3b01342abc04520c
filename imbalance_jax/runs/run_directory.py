"""A run directory: the config, metrics, markers and provenance of one run.

Analysis reads nothing else, so neither jax nor flax is imported here.

    config.json       the resolved config        metrics.jsonl     see metrics_log.py
    provenance.json   code, versions, devices,   mixture.csv       requested and realised ratio
                      text fingerprints          evaluation.json   final results on the test split
    checkpoints/      see checkpoint.py          test_texts.csv    test loss of each of its texts
    vocabulary.npz    the ids of each language   tokenizer-*.model of each source
    report.html       its page                   wandb.json        its id at Weights & Biases
    DONE | FAILED.json  how it ended

Results of an earlier step, and those of a run that was extended, are in evaluation-STEP.json and
test_texts-STEP.csv; transfer.json and word2vec* are of the commands of these names.
"""

import contextlib
import csv
import datetime
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.runs import metrics_log, storage
from imbalance_jax.runs.metrics_log import Record

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

# Orbax writes it into a checkpoint in a store when all else is there. (On a file system it gives
# the checkpoint its name then.)
_COMMITTED = "commit_success.txt"
# What a run writes besides config.json. Anything else may lie in its directory, such as what a
# job's scheduler writes there before the run begins.
_WRITTEN = (
    *("DONE", "FAILED.json", "checkpoints", "evaluation*.json", "metrics*.jsonl", "mixture.csv"),
    *("provenance.json", "report.html", "tensorboard", "test_texts*.csv", "tokenizer-*.model"),
    *("transfer.json", "vocabulary.npz", "wandb", "wandb.json", "word2vec*"),
)


class RunDirectory:
    """Reads and writes the files of one run.

    Nothing is cached, the directory is the truth; but for metrics that a store has not got yet.
    """

    def __init__(self, path: str | epath.PathLike) -> None:
        self.path = storage.parse_path(path)
        self._metrics = metrics_log.open_metrics_log(self.path)
        self._held: contextlib.ExitStack | None = None

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
        if not self.checkpoints.exists():
            return []
        found = [path for path in self.checkpoints.iterdir() if path.name.isdecimal()]
        if storage.is_store(self.path):
            found = [path for path in found if (path / _COMMITTED).exists()]
        return sorted(int(path.name) for path in found)

    def check_writable(self) -> None:
        """Raises ValueError if nothing can be written here, before what would be is computed."""
        if not storage.is_store(self.path) and not os.access(self.path, os.W_OK):
            raise ValueError(f"{self.path} cannot be written to. Copy the run to where it can.")

    def config(self) -> config_lib.Config:
        """Returns the config that the run was started with.

        Raises:
          FileNotFoundError: this is not a run directory.
        """
        file = self.path / "config.json"
        if not file.exists():
            raise FileNotFoundError(f"{self.path} holds no run: it has no config.json.")
        return config_lib.resolve_config(json.loads(file.read_text(encoding="utf-8")))

    def begun(self) -> config_lib.Config | None:
        """Returns the config that the run was started with; None where it was not."""
        return self.config() if (self.path / "config.json").exists() else None

    def check(self, config: config_lib.Config, *, extend: bool = False) -> None:
        """Raises ValueError if the directory belongs to another run, or holds something else.

        Args:
          extend: more steps than the run was started with are welcome.
        """
        if (self.path / "config.json").exists():
            self._check_same(config, extend)
            return
        in_the_way = [file for name in _WRITTEN for file in sorted(self.path.glob(name))]
        if in_the_way:
            raise ValueError(
                f"{in_the_way[0]} would be written over, and {self.path} holds no run (it has no "
                "config.json). Move it away, or use another --workdir."
            )

    def check_format(self) -> None:
        """Raises ValueError if a run was begun on text in a format that is no longer written.

        No text is read, so that this shows before any is prepared again.
        """
        before = self.read_json("provenance.json") or {"sources": {}}
        for name, source in before["sources"].items():
            # Synthetic text is made and not read, and knows its version by itself.
            if "format" not in source and source.get("kind") != "synthetic":
                raise ValueError(
                    f"{self.path} was started on text that an earlier version of this program "
                    f"prepared, and this one prepares source {name} in another format. Use "
                    "another --workdir, or the version that the run was started with (git in "
                    "provenance.json)."
                )

    def texts(self, kind: str = "sources") -> dict[str, str]:
        """Returns source -> fingerprint of the text that the run was begun with; {} if it was not.

        Args:
          kind: sources, or parallel for its sets.
        """
        before = self.read_json("provenance.json") or {}
        return {name: about["fingerprint"] for name, about in before.get(kind, {}).items()}

    def check_text(self, fingerprints: Mapping[str, str], order_version: int) -> None:
        """Raises ValueError if a run that was begun would go on with other text, or order.

        Args:
          fingerprints: source name -> what stands for its text and tokenizer.
        """
        before = self.read_json("provenance.json")
        if before is None:
            return
        for name, fingerprint in fingerprints.items():
            theirs = before["sources"][name]["fingerprint"]
            if theirs != fingerprint:
                raise ValueError(
                    f"{self.path} was started with another text or tokenizer of source {name}: "
                    f"fingerprint {theirs}, now {fingerprint}. Use another --workdir, or put the "
                    "text back as it was (that of kind docstrings changes with the installed "
                    "packages)."
                )
        if before["order_version"] != order_version:
            raise ValueError(
                f"{self.path} was started with version {before['order_version']} of the order of "
                f"the data, and this code has version {order_version}. Use another --workdir."
            )

    def claim(self, config: config_lib.Config) -> None:
        """Makes the directory this run's own, after `check`, until `release`.

        Raises:
          ValueError: another process trains in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._hold()
        self.write_json("config.json", config_lib.to_dict(config))
        (self.path / "FAILED.json").unlink(missing_ok=True)
        (self.path / "DONE").unlink(missing_ok=True)

    def _hold(self) -> None:
        """Keeps other processes of this machine from training in the directory."""
        if self._held is None:
            self._held = contextlib.ExitStack()
            self._held.enter_context(lock_directory(self.path))

    def release(self) -> None:
        """Lets other processes train in the directory again, as the end of this one does."""
        if self._held:
            self._held.close()
            self._held = None

    def _check_same(self, config: config_lib.Config, extend: bool) -> None:
        ours = config_lib.build_run_identity(config)
        theirs = config_lib.build_run_identity(self.config())
        found = config_lib.find_differences(ours, theirs)
        if extend:
            found = [item for item in found if item[0] != "config.steps"]
            if config.steps < theirs["steps"]:
                raise ValueError(
                    f"{self.path} was started with config.steps={theirs['steps']}; --extend "
                    f"cannot shorten it to {config.steps}."
                )
        if found:
            field, mine, other = found[0]
            more = f" ({len(found) - 1} more fields differ)" if len(found) > 1 else ""
            hint = " or pass --extend" if field == "config.steps" and mine > other else ""
            raise ValueError(
                f"{self.path} belongs to a run with {field}={other!r}, but this one has "
                f"{mine!r}{more}. Use another --workdir, or "
                f"{self._advise(field, other, config)}{hint}."
            )

    def _advise(self, field: str, theirs: Any, config: config_lib.Config) -> str:
        """Returns how a config gets what the run has of a field of `config_lib.identity`."""
        begun = self.config()
        if field.startswith("config.mixture.sequences") and config.steps != begun.steps:
            return (
                f"keep config.steps={begun.steps}: the documents were given out in proportion to "
                "the sequences of all steps"
            )
        stated: Any = config_lib.to_dict(begun)
        for part in field.split(".")[1:]:
            stated = stated.get(part) if isinstance(stated, dict) else None
        # What identity makes of several fields can be set in none of them.
        return f"set {field}={theirs!r}" if stated == theirs else "leave out --config"

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_results(self, results: Mapping[str, Any], name: str = "evaluation.json") -> None:
        """Writes what was measured on the test split.

        The loss of each of its texts, `texts`, goes into test_texts.csv, in whole or not at all.
        """
        rows = [
            {"language": tag, "text": text, "loss": loss, "tokens": tokens}
            for tag, found in results.get("texts", {}).items()
            for text, loss, tokens in found
        ]
        if rows and name == "evaluation.json":
            self.write_csv("test_texts.csv", rows)
        self.write_json(name, {key: value for key, value in results.items() if key != "texts"})

    def keep_results(self, last: int) -> list[str]:
        """Renames evaluation.json and test_texts.csv after their step, if that is not the last.

        So a longer run does not replace them, and nobody takes them for its own. Returns a line
        on each.

        Args:
          last: the last step of the run.
        """
        results = self.read_json("evaluation.json") or {}
        step = results.get("step", last)
        lines = []
        # Last the one that says the step: whoever is killed before that begins anew.
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
        """Returns a JSON file of the run, or None where it is absent."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def finish(self) -> None:
        self.flush()
        self.write_text("DONE", datetime.datetime.now(datetime.UTC).isoformat() + "\n")
        self.release()

    def fail(self, step: int, error: BaseException, message: str = "") -> None:
        """Writes FAILED.json.

        Args:
          step: the updates done before.
          error: what ended the run.
          message: what to do about it, if the error does not say so itself.
        """
        with contextlib.suppress(OSError):  # of a store; what ended the run is known already
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

    # Metrics.

    def metrics(self) -> Iterator[Record]:
        """Yields all that was logged, in order of step."""
        return self._metrics.read()

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Returns the steps and values of one metric."""
        found = [(r["step"], r[name]) for r in self.metrics() if name in r]
        return [step for step, _ in found], [value for _, value in found]

    def has(self, step: int, prefix: str) -> bool:
        """Whether a record of a step has a metric whose name begins so."""
        return any(
            record["step"] == step and any(name.startswith(prefix) for name in record)
            for record in self.metrics()
        )

    def newest(self, prefix: str) -> Record:
        """Returns the newest value of every metric whose name begins so."""
        found: Record = {}
        for record in self.metrics():
            found |= {name: value for name, value in record.items() if name.startswith(prefix)}
        return found

    def truncate_metrics(self, step: int) -> None:
        """Drops the records after a step, which a run resumed there writes anew."""
        self._metrics.truncate(step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one record."""
        self._metrics.append({"step": step, **metrics})

    def flush(self) -> None:
        """Returns when other processes can read all that was logged."""
        self._metrics.flush()

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        written = io.StringIO()
        writer = csv.DictWriter(written, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write_text(name, written.getvalue())

    def read_csv(self, name: str) -> list[dict[str, str]]:
        """Returns the rows of a CSV file of the run; none where it is absent."""
        file = self.path / name
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return list(csv.DictReader(text.splitlines()))


def run_and_step(name: str) -> tuple[RunDirectory, int | None]:
    """Returns the run and the step that RUN or RUN@STEP names; no step is None.

    A directory's name may have an @ of its own. Where one could be read either way, as in a@5,
    it is the directory if that holds a run.
    """
    whole = RunDirectory(name)
    path, at, step = name.rpartition("@")
    if not at or not step.isdecimal() or (whole.path / "config.json").exists():
        return whole, None
    return RunDirectory(path), int(step)


@contextlib.contextmanager
def lock_directory(directory: epath.Path) -> Iterator[None]:
    """Keeps other processes of this machine out of a directory, until the end of this one.

    A directory in a store cannot be held.

    Raises:
      ValueError: another one is in it.
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
