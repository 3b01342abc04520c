"""A tiny run, and what has to be equal of it whatever happens on the way to its end."""

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from faults.ledger import Fault

STEPS, SAVED_EVERY = 60, 10
_CONFIG = """
from imbalance_jax import config as config_lib

def get_config(arg=""):
    config = config_lib.cloned(scale="demo", ratio="3:1")
    config.data_dir = {data_dir!r}
    config.steps, config.batch_size, config.log_every = {steps}, 8, 1
    config.seed = {seed}
    config.sources.en.packages = ("json", "email")
    config.sources.en.tokenizer.vocab_size = 384
    config.model.update(L=16, D=16, H=2, K=8, F=24, N=1)
    config.evaluation.every, config.evaluation.max_windows = 20, 6
    config.evaluation.stride, config.evaluation.max_test_windows = 16, 20
    config.evaluation.alignment.update(every=0, pairs=8)
    config.checkpoint.update(every={every}, keep=3)
    return config
"""


def write_tiny_config(
    folder: pathlib.Path, *, data_dir: pathlib.Path | None = None, seed: int = 0
) -> pathlib.Path:
    """Writes a file in the manner of configs/ and returns its path."""
    path = folder / "tiny.py"
    data_dir = data_dir or folder / "data"
    path.write_text(
        _CONFIG.format(data_dir=str(data_dir), steps=STEPS, every=SAVED_EVERY, seed=seed)
    )
    return path


# What a clock, a machine or the name of a folder decides, and the CRC-32 of a line that has it.
_OF_THE_CLOCK = ("time/", "perf/", "align/share", "crc32")
_OF_THE_MACHINE = ("seconds", "compile_seconds", "device", "crc32")


def read_results(run: pathlib.Path) -> dict[str, Any]:
    """Returns all that a run has computed, by the files where it stands."""
    results: dict[str, Any] = {"metrics.jsonl": read_metrics(run)}
    for name in ("mixture.csv", "test_texts.csv", "vocabulary.npz", "tokenizer-en.model"):
        results[name] = (run / name).read_bytes() if (run / name).exists() else None
    results["evaluation.json"] = read_evaluation(run)
    steps = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal()]
    results["checkpoint"] = {"step": max(steps), **read_arrays(run / f"checkpoints/{max(steps)}")}
    return results


def read_evaluation(run: pathlib.Path) -> dict[str, Any]:
    """Returns the results of a run's end, without what a machine says."""
    return _leave_out_machine(json.loads((run / "evaluation.json").read_text()))


def read_metrics(run: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a run, without what a clock says."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    records = [
        {
            name: value
            for name, value in json.loads(line).items()
            if not name.startswith(_OF_THE_CLOCK)
        }
        for line in lines
    ]
    return [record for record in records if len(record) > 1]


def _leave_out_machine(values: Any) -> Any:
    if isinstance(values, dict):
        return {
            name: _leave_out_machine(value)
            for name, value in values.items()
            if name not in _OF_THE_MACHINE
        }
    return values


def read_arrays(checkpoint: pathlib.Path) -> dict[str, str]:
    """Returns a digest of every chunk of every array, read by TensorStore and not by orbax."""
    import tensorstore

    store = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": f"file://{checkpoint}/default/"}
    ).result()
    return {
        key.decode(): hashlib.sha256(store.read(key).result().value).hexdigest()
        for key in store.list().result()
    }


def list_differences(results: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Returns the names of the files in which two runs differ."""
    return [
        name for name in sorted({*results, *expected}) if results.get(name) != expected.get(name)
    ]


# What docs/runs.md says that a kill may leave, and what else is unfinished.
_DOCUMENTED = re.compile(r"^\..*\.(tmp|unfinished)$|^\.digests\.json\.|^tmp[a-z0-9_]{8}$")
_UNFINISHED = re.compile(r"\.tmp$|\.unfinished$|-tmp$|^\.(?!lock$)|tmp[a-z0-9_]{8}$")


def check_nothing_is_left(folder: pathlib.Path) -> None:
    """Raises Fault if a folder holds something unfinished that docs/runs.md does not tell of."""
    documented = [path for path in folder.rglob("*") if _DOCUMENTED.search(path.name)]
    left = [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if _UNFINISHED.search(path.name) and not {path, *path.parents} & set(documented)
    ]
    if left:
        raise Fault("something is left", ", ".join(sorted(left)[:5]))
