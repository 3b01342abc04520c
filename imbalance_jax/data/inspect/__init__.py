"""Shows what a run trains on, and proves what it was trained on.

    python -m imbalance_jax.data.inspect --config=configs/90_10.py --step=3
    python -m imbalance_jax.data.inspect --workdir=runs/90_10 --step=3 --rows=4
    python -m imbalance_jax.data.inspect --diff runs/a runs/b
    python -m imbalance_jax.data.inspect --check runs/90_10
    python -m imbalance_jax.data.inspect --totals configs/a.py configs/b.py

`--step` prints a batch decoded, with the language, pool and window of every row. `--diff`
says up to which step two runs see the same text, as ids of the sources' tokenizers, in the same
languages; which ids of a model these become is a matter of the vocabulary, and said apart.
Hashes that an earlier version of this code recorded do not prove equal tokens (see audit.py): then
it says so, and compares all batches.
`--check` makes the order of a run again from its config and its prepared text, and compares
every hash and every count that the run recorded. It says where metrics.jsonl has holes, and reads
all bytes of the prepared text, to hold them against the digests that were written beside them.
`--totals` says whether two configs give each language the same number of sequences.

Exit code 1 says that a check failed, or that two things differ.
"""

import collections
import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config
from imbalance_jax.data import languages, prepare
from imbalance_jax.data.order import audit, corpora
from imbalance_jax.data.order.ratio import resolve_ratio
from imbalance_jax.data.order.stream import HostBatch, Stream
from imbalance_jax.data.text.selection import describe_left_out
from imbalance_jax.runs.json_text import format_json
from imbalance_jax.runs.progress import Progress
from imbalance_jax.runs.run_directory import RunDirectory

DIFFERENT = 1


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """A config's stream, and the text that it is made of."""

    config: Config
    sources: Mapping[str, corpora.AnySource]
    stream: Stream

    @classmethod
    def of(
        cls,
        config: Config,
        begun: Config | None = None,
        recorded: Mapping[str, str] = types.MappingProxyType({}),
    ) -> "TrainingData":
        """Opens the prepared text of a config, and prepares what is not there.

        A run was begun with a config, and with text whose fingerprints it recorded by source.
        """
        prepared = prepare.prepare_run_sources(config, recorded)
        config = resolve_ratio(config, prepared, begun)
        return cls(config, prepared, Stream(config, prepared))

    @classmethod
    def of_run(cls, path: str) -> "TrainingData":
        """Opens what a run was trained on.

        Raises:
          ValueError: its text is not what it was when the run was started.
        """
        run = RunDirectory(path)
        run.check_format()
        opened = cls.of(run.config(), run.begun(), run.texts())
        fingerprints = {name: source.fingerprint for name, source in opened.sources.items()}
        line = audit.check_begun_text(run, opened.config, opened.stream, fingerprints)
        if line:
            print(line)
        return opened


# One batch


def describe_batch(opened: TrainingData, step: int, rows: int) -> str:
    """Returns rows of the batch after so many updates, decoded; 0 rows are all.

    Raises:
      ValueError: the run has no such step.
    """
    config, stream = opened.config, opened.stream
    if not 0 <= step < stream.steps:
        raise ValueError(f"--step={step}: the run has steps 0 to {stream.steps - 1}.")
    batch = stream.batch(step)
    language_B, start_B = stream.starts_of(step)
    counts = np.bincount(language_B, minlength=len(config.tags))
    held = ", ".join(f"{tag} {n}" for tag, n in zip(config.tags, counts, strict=True))
    lines = [f"step {step}: {len(language_B)} sequences of {config.model.L} tokens ({held})"]
    for row in range(min(rows or len(language_B), len(language_B))):
        g = language_B[row]
        source = opened.sources[config.source_of(config.tags[g])]
        # Line ends and the like, so that a row is a line.
        text = format_json(source.tokenizer.decode(batch.ids_BW[row]), ensure_ascii=False)
        where = f"{stream.pools[g]} window {start_B[row] // config.model.L}"
        lines.append(f"row {row:>3}  {config.tags[g]:<6} {where:<24} {text[1:-1]}")
    return "\n".join(lines)


# Two runs


def compare_runs(
    first: TrainingData, second: TrainingData, hashes: list[dict[int, str]]
) -> tuple[bool, str]:
    """Returns whether two runs see the same tokens, and up to which step.

    The hashes are those that each run recorded: step -> hash of the order after it. Up to the
    last step with equal ones, batches need no comparing. Hashes of an earlier version prove
    nothing.
    """
    proven = _find_last_proven_step(first, second, hashes)
    same, verdict = _compare_batches(first, second, proven)
    versions = set().union(*map(_list_hash_versions, hashes))
    if not proven and versions - {audit.HASH_VERSION}:
        verdict += (
            f"\nHashes of the order that these runs recorded are of version "
            f"{', '.join(map(str, sorted(versions)))}. Those of version 1 do not determine the "
            "tokens and are not compared with any; batches were compared in their place."
        )
    return same, verdict


def _list_hash_versions(hashes: Mapping[int, str]) -> set[int]:
    return {audit.parse_hash_version(recorded) for recorded in hashes.values()}


def _find_last_proven_step(
    first: TrainingData, second: TrainingData, hashes: list[dict[int, str]]
) -> int:
    """Returns the last step up to which recorded hashes prove that two runs saw the same."""
    steps = min(first.stream.steps, second.stream.steps)
    equal = [
        step
        for step, recorded in hashes[0].items()
        if step <= steps
        and hashes[1].get(step) == recorded
        and audit.parse_hash_version(recorded) == audit.HASH_VERSION
    ]
    return max(equal, default=0)


def _compare_batches(first: TrainingData, second: TrainingData, same: int) -> tuple[bool, str]:
    """Returns what `compare_runs` does, of runs that saw the same up to a step."""
    steps = min(first.stream.steps, second.stream.steps)
    tags = [np.array(opened.config.tags) for opened in (first, second)]
    with Progress("Comparing batches", steps, start=same) as progress:
        for step in range(same, steps):
            batches = [first.stream.batch(step), second.stream.batch(step)]
            difference = _describe_batch_difference(batches, tags)
            if difference:
                return False, f"The same tokens up to step {step}; then {difference}"
            progress.show(step + 1)
    if first.stream.steps != second.stream.steps:
        return False, (
            f"The same tokens in all {steps:,} steps that both have; one goes on to step "
            f"{max(first.stream.steps, second.stream.steps):,}."
        )
    verdict = f"The same tokens in the same languages in all {steps:,} steps."
    if _serialize_vocabulary(first) != _serialize_vocabulary(second):
        verdict += " The vocabularies differ, so they are other ids to the models."
    return True, verdict


def _serialize_vocabulary(opened: TrainingData) -> bytes:
    pieces = {name: source.pieces for name, source in opened.sources.items()}
    return languages.build_vocabulary(opened.config, pieces).to_bytes()


def _describe_batch_difference(batches: list[HostBatch], tags: list[np.ndarray]) -> str:
    """Returns how two batches differ; "" where they do not."""
    ids = [batch.ids_BW for batch in batches]
    if ids[0].shape != ids[1].shape:
        sizes = [f"{ids_BW.shape[0]} x {ids_BW.shape[1] - 1}" for ids_BW in ids]
        return f"batches of {sizes[0]} and of {sizes[1]} tokens."
    tags_B = [names[batch.language_B] for names, batch in zip(tags, batches, strict=True)]
    differs_B = (tags_B[0] != tags_B[1]) | (ids[0] != ids[1]).any(axis=1)
    if not differs_B.any():
        return ""
    row = int(np.argmax(differs_B))
    shown = [f"{tags_B[i][row]} {ids[i][row, :8].tolist()}..." for i in range(2)]
    return (
        f"{differs_B.sum()} of {len(differs_B)} rows differ, first row {row}: "
        f"{shown[0]} and {shown[1]}"
    )


def read_order_hashes(run: RunDirectory) -> dict[int, str]:
    return {r["step"]: r[audit.ORDER_METRIC] for r in run.metrics() if audit.ORDER_METRIC in r}


# One run's record


def check_run(run: RunDirectory, opened: TrainingData) -> list[str]:
    """Makes the audit of a run again, and returns what does not agree with its record.

    Raises:
      ValueError: the run has recorded nothing yet.
    """
    config, stream = opened.config, opened.stream
    records = [record for record in run.metrics() if audit.ORDER_METRIC in record]
    if not records:
        raise ValueError(
            f"{run.path / 'metrics.jsonl'} has no step: the run has recorded none yet."
        )
    versions = _list_hash_versions(read_order_hashes(run))
    if max(versions) > audit.HASH_VERSION:
        raise ValueError(
            f"{run} has hashes of version {max(versions)}, and this code makes those up to "
            f"{audit.HASH_VERSION}. Use the version of the code that the run was trained with."
        )
    wrong = _find_gaps(run, config)
    audits = {v: audit.OrderAudit(config, stream, hash_version=v) for v in versions}
    total = records[-1]["step"]
    sequences_G = np.zeros(len(config.tags), np.int64)
    # The batches of updates that were left out have been drawn, and not trained on.
    skipped = {r["step"] for r in run.metrics() if "train/skipped_in_a_row" in r}
    with Progress("Checking the order", total) as progress:
        for record in records:
            again = audits[audit.parse_hash_version(record[audit.ORDER_METRIC])]
            while again.step < record["step"]:
                language_B, _ = stream.order_of(again.step)
                if again.step + 1 not in skipped:
                    sequences_G += np.bincount(language_B, minlength=len(sequences_G))
                for each in audits.values():
                    each.follow()
            for name, value in again.metrics().items():
                if record.get(name) != value:
                    wrong.append(f"step {again.step}: {name} is {record.get(name)}, not {value}.")
            for tag, sequences in zip(config.tags, sequences_G.tolist(), strict=True):
                name = f"train/tokens/{tag}"
                counted = record.get(name, 0)
                if counted != sequences * config.model.L:
                    wrong.append(
                        f"step {again.step}: {counted:,} tokens of {tag} were counted on the "
                        f"device, and the order holds {sequences * config.model.L:,}."
                    )
            progress.show(again.step)
    written = run.read_csv("mixture.csv")
    rows = audit.build_mixture_rows(config, stream, records)
    as_text = [{name: str(value) for name, value in row.items()} for row in rows]
    # A run that goes on has a table of its newest checkpoint.
    if run.done and written != as_text:
        wrong.append("mixture.csv is not the table that follows from the order.")
    return wrong


def _find_gaps(run: RunDirectory, config: Config) -> list[str]:
    """Returns what is missing in metrics.jsonl, is there twice, or is out of order."""
    wrong, before = [], 0
    for record in run.metrics():
        if record["step"] < before:
            wrong.append(f"metrics.jsonl has step {record['step']:,} after step {before:,}.")
        before = record["step"]
    # A run that was stopped while it evaluated has saved the step all the same.
    done, newest = run.done, run.newest_checkpoint()
    due = {
        audit.ORDER_METRIC: (config.log_every, config.steps if done else newest),
        f"eval/loss/{config.tags[0]}": (config.evaluation.every, config.steps if done else 0),
    }
    for name, (every, last) in due.items():
        if every and (name != audit.ORDER_METRIC or not done):
            last -= last % every  # the last step of all is always logged
        steps = [record["step"] for record in run.metrics() if name in record]
        twice = sorted(step for step, count in collections.Counter(steps).items() if count > 1)
        wrong += [f"metrics.jsonl has {name} of step {step:,} twice." for step in twice]
        for first, end in _find_holes(sorted(set(steps)), every, last) if steps else ():
            wrong.append(
                f"metrics.jsonl has no {name} between steps {first:,} and {end:,}, and one is due "
                f"every {every:,} steps."
            )
    return wrong


def _find_holes(steps: Sequence[int], every: int, last: int) -> list[tuple[int, int]]:
    """Returns (step, next step) of neighbours between which a record of every `every` is missing.

    There is one at the step `last`.

    `every` may be changed when a run goes on. So two steps that are farther apart have no hole
    between them where the steps on either side are as far apart.
    """
    if not every:
        return []
    apart = np.diff([0, *steps]).tolist()
    holes = []
    for place, gap in enumerate(apart):
        beside = [*apart[max(0, place - 1) : place], *apart[place + 1 : place + 2]]
        if gap > every and all(gap > other for other in beside):
            holes.append((steps[place] - gap, steps[place]))
    newest = max(steps, default=0)
    return [*holes, (newest, last)] if newest < last else holes


def describe_balance(opened: TrainingData, records: Sequence[Mapping[str, Any]]) -> str:
    """Returns what was asked for and trained on, per language, up to the newest record.

    Lines follow on what was left out of the text, and on what of it is held out as well.
    """
    config = opened.config
    rows = audit.build_mixture_rows(config, opened.stream, records)
    lines = ["language   requested    realised  sequences"]
    for tag in config.tags:
        of_tag = [row for row in rows if row["language"] == tag]
        requested = sum(row["requested_sequences"] for row in of_tag)
        realised = sum(row["realised_sequences"] for row in of_tag)
        lines.append(f"{tag:<8} {requested:>11,.10g} {realised:>11,}")
    for name, source in opened.sources.items():
        lines += describe_left_out(f"config.sources.{name}", source.about)
    return "\n".join(lines)


# Two schedules


def compare_totals(first: Config, second: Config) -> tuple[bool, str]:
    """Returns whether two configs give each language the same sequences, and how many.

    Same means nearer than one update: a stage cannot begin within one.
    """
    totals = [config_lib.compute_sequence_totals(config) for config in (first, second)]
    tolerance = max(first.batch_size, second.batch_size)
    lines, same = [], True
    for tag in [*first.tags, *(tag for tag in second.tags if tag not in first.tags)]:
        values = [float(total.get(tag, 0)) for total in totals]
        same &= abs(values[0] - values[1]) < tolerance
        lines.append(f"{tag:<8} {values[0]:>14,.10g} {values[1]:>14,.10g} sequences")
    verdict = "The same total per language." if same else "Different totals."
    return same, "\n".join([*lines, verdict])
