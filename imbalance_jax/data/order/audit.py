"""Proof of what a run was trained on: a rolling hash of its order, and its table of counts.

The hash after a step stands for the text with its tokenizer, the length of windows, and the
language and place in the text of every window that any row drew so far. It is written into
metrics.jsonl. Two runs with equal hashes saw equal tokens in equal languages, as ids of the
sources' tokenizers; `python -m imbalance_jax.data.inspect` makes it again from the config.

A hash begins with its version, as in v2:0123456789abcdef. Those without one are of version 1,
which stands for the numbers of windows and not for their places: under another
`mixture.text_share` equal numbers are other text, so that equal hashes of version 1 prove
nothing between runs. A run can still be held against its own.
"""

import array
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imbalance_jax.config import Config
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.runs.run_directory import RunDirectory

ORDER_METRIC = "data/order"
REPEATS_METRIC = "data/cross_language_repeats"  # sequences so far, per language
HASH_VERSION = 2
# Rows of mixture.csv per language, about.
_MOST_WINDOWS = 25


def parse_hash_version(recorded: str) -> int:
    """Returns the version of a recorded hash of the order."""
    version, colon, _ = recorded.partition(":")
    return int(version.removeprefix("v")) if colon else 1


def check_begun_text(
    run: RunDirectory, config: Config, stream: Stream, fingerprints: Mapping[str, str]
) -> str:
    """Raises ValueError if a run was begun with other text, or another order of the data.

    provenance.json says which text that was. Where it is missing, a hash of the order in
    metrics.jsonl does, since that stands for the text too.

    Args:
      fingerprints: of the text and tokenizer of each source.

    Returns:
      A line on what was compared in place of provenance.json; "" if nothing was.
    """
    run.check_text(fingerprints, stream.order_version)
    file = run.path / "provenance.json"
    if file.exists() or not run.newest_checkpoint():
        return ""
    record = next((record for record in run.metrics() if ORDER_METRIC in record), None)
    if record is None:
        raise ValueError(
            f"{file} is missing, and metrics.jsonl has no hash of the order of the data: nothing "
            "says which text the run was begun with. Copy one of them back, or use another "
            "--workdir."
        )
    recorded = record[ORDER_METRIC]
    audit = OrderAudit(config, stream, hash_version=parse_hash_version(recorded))
    audit.resume((), record["step"])
    if audit.digest != recorded:
        raise ValueError(
            f"{run} was started with another text, tokenizer or order of the data: the hash of its "
            f"order at step {record['step']} is {recorded} in metrics.jsonl, and now "
            f"{audit.digest}. Use another --workdir, or put the text back as it was. "
            f"({file} is missing, which would say more.)"
        )
    return (
        f"{file} is missing. The hash of the order at step {record['step']:,} in metrics.jsonl "
        "shows that the text is the one that the run was begun with."
    )


class OrderAudit:
    """Follows the batches of a run in turn.

    `repeats_G` counts the sequences whose text an earlier sequence had in another language,
    which is possible where clones share text that `reuse` does not keep apart.
    """

    def __init__(self, config: Config, stream: Stream, *, hash_version: int = HASH_VERSION) -> None:
        """Args: hash_version is that of the hashes to make, 1 or 2."""
        self._stream, self._tags, self._version = stream, config.tags, hash_version
        self._pools = np.array(stream.pools)
        self.step = 0  # batches followed so far
        self._hex = stream.digest()
        G = len(config.tags)
        self.repeats_G = np.zeros(G, np.int64)
        # Which languages had the text of each place of a pool.
        self._seen = {
            pool: np.zeros((stream.places(pool), G), bool) for pool in stream.repeating_pools()
        }

    @property
    def digest(self) -> str:
        """The hash of the order so far."""
        return f"v{self._version}:{self._hex}" if self._version > 1 else self._hex

    @property
    def counts_repeats(self) -> bool:
        """Whether any sequence of the run can be a repeat in another language."""
        return bool(self._seen)

    def follow(self) -> None:
        """Takes in the next batch."""
        language_B, window_B = self._stream.order_of(self.step)
        where_B = window_B if self._version == 1 else self._stream.starts_of(self.step)[1]
        drawn = language_B.astype("<i4").tobytes() + where_B.astype("<i8").tobytes()
        rolled = hashlib.blake2b(bytes.fromhex(self._hex) + drawn, digest_size=8)
        self._hex = rolled.hexdigest()
        for pool, seen_nG in self._seen.items():
            row_n = np.nonzero(self._pools[language_B] == pool)[0]
            place_n = self._stream.place_of(pool, row_n, window_B[row_n])
            # One by one: two rows of a batch may hold the same text.
            for place, g in zip(place_n.tolist(), language_B[row_n].tolist(), strict=True):
                others = seen_nG[place].sum() - seen_nG[place, g]
                self.repeats_G[g] += bool(others)
                seen_nG[place, g] = True
        self.step += 1

    def resume(self, records: Iterable[Mapping[str, Any]], step: int) -> None:
        """Goes on after a step, from the newest of a run's records up to there.

        Where repeats are counted, or all hashes are of another version, what was seen is gone
        through again from the first step.
        """
        for record in records:
            if self._seen or ORDER_METRIC not in record or record["step"] > step:
                continue
            recorded = record[ORDER_METRIC]
            if parse_hash_version(recorded) == self._version:
                self.step, self._hex = record["step"], recorded.rpartition(":")[2]
        while self.step < step:
            self.follow()

    def metrics(self) -> dict[str, Any]:
        """Returns what a record of a run says of its order."""
        metrics: dict[str, Any] = {ORDER_METRIC: self.digest}
        if self.counts_repeats:
            for tag, count in zip(self._tags, self.repeats_G.tolist(), strict=True):
                metrics[f"{REPEATS_METRIC}/{tag}"] = count
        return metrics


class MixtureTable:
    """What mixture.csv says of a run: what was requested and realised of each language.

    It keeps the counts of every record, in 8 bytes a number, because the stretches of its rows
    grow with the run.
    """

    def __init__(self, config: Config, stream: Stream) -> None:
        self._config, self._stream = config, stream
        self._tokens = [f"train/tokens/{tag}" for tag in config.tags]
        self._repeats = [f"{REPEATS_METRIC}/{tag}" for tag in config.tags]
        self._counts = array.array("q")  # step, tokens and repeats of each language, in turn
        self._built: dict[tuple[int, ...], list[dict[str, Any]]] = {}  # by what a stretch counted

    def add(self, step: int, record: Mapping[str, Any]) -> None:
        """Takes in a record of the run's metrics, whose tokens were counted on the devices."""
        if all(name in record for name in self._tokens):
            self._counts.append(step)
            self._counts.extend(record[name] for name in self._tokens)
            self._counts.extend(record.get(name, 0) for name in self._repeats)

    def follow(self, records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Yields records that it has taken in."""
        for record in records:
            self.add(record["step"], record)
            yield record

    def build_rows(self) -> list[dict[str, Any]]:
        """Returns the rows, each of one stretch of steps; the stretches follow each other."""
        width = 1 + len(self._tokens) + len(self._repeats)
        count = len(self._counts) // width
        # A power of two: then most stretches of a save are those of the one before.
        every = 1 << max(0, -(-count // _MOST_WINDOWS) - 1).bit_length()
        ends = [*range(every, count, every), count] if count else []
        found = [self._counts[(n - 1) * width : n * width].tolist() for n in ends]
        built = {}
        for before, now in itertools.pairwise([[0] * width, *found]):
            key = (*before, *now)
            built[key] = self._built.get(key) or self._build_stretch(before, now)
        self._built = built
        return list(itertools.chain.from_iterable(built.values()))

    def _build_stretch(self, before: Sequence[int], now: Sequence[int]) -> list[dict[str, Any]]:
        config, stream, L = self._config, self._stream, self._config.model.L
        G, (first, last) = len(config.tags), (before[0], now[0])
        asked_G = stream.requested(last) - stream.requested(first)
        rows = []
        for g, tag in enumerate(config.tags):
            tokens = now[1 + g] - before[1 + g]
            pool = stream.pools[g]
            windows = stream.windows.get(pool, 0)  # none where it is never drawn from
            used = stream.order.uses_before(pool, last * config.batch_size)
            ratios = [str(ratio[tag]) for ratio in stream.ratios(first, last)]
            rows.append(
                {
                    "first_step": first,
                    "last_step": last,
                    "language": tag,
                    "pool": pool,
                    "ratio": ", then ".join(ratios),
                    "requested_sequences": _drop_zero_fraction(asked_G[g]),
                    "realised_sequences": tokens // L,
                    "requested_tokens": _drop_zero_fraction(asked_G[g] * L),
                    "realised_tokens": tokens,
                    "cross_language_repeats": now[1 + G + g] - before[1 + G + g],
                    "pool_windows": windows,
                    "pool_epochs": round(used / windows, 6) if windows else 0,
                }
            )
        return rows


def build_mixture_rows(
    config: Config, stream: Stream, records: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns the rows of mixture.csv for the records of a run's metrics."""
    table = MixtureTable(config, stream)
    for record in records:
        table.add(record["step"], record)
    return table.build_rows()


def _drop_zero_fraction(value: float) -> float | int:
    """Returns a number without a fraction where it has none."""
    return round(value) if abs(value - round(value)) < 1e-6 else round(value, 6)
