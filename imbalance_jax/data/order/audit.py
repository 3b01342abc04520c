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

import hashlib
from collections.abc import Iterable, Mapping, Sequence
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
        if not self._seen:
            for record in records:
                if ORDER_METRIC not in record or record["step"] > step:
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


def build_mixture_rows(
    config: Config, stream: Stream, records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns the rows of mixture.csv: what was requested and realised of each language.

    Each row is of one stretch of steps; the stretches follow each other. The records are those of
    the run's metrics, whose tokens per language were counted on the devices.
    """
    L, tags = config.model.L, config.tags
    counted = [r for r in records if all(f"train/tokens/{tag}" in r for tag in tags)]
    if not counted:
        return []
    every = -(-len(counted) // _MOST_WINDOWS)
    ends = counted[every - 1 :: every]
    if ends[-1] is not counted[-1]:
        ends = [*ends, counted[-1]]
    rows = []
    before: Mapping[str, Any] = {"step": 0}
    for record in ends:
        first, last = before["step"], record["step"]
        asked_G = stream.requested(last) - stream.requested(first)
        for g, tag in enumerate(tags):
            name = f"train/tokens/{tag}"
            tokens = record[name] - before.get(name, 0)
            pool = stream.pools[g]
            windows = stream.windows.get(pool, 0)  # none where it is never drawn from
            used = stream.order.uses_before(pool, last * config.batch_size)
            ratios = [str(ratio[tag]) for ratio in stream.ratios(first, last)]
            repeats = f"{REPEATS_METRIC}/{tag}"
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
                    "cross_language_repeats": record.get(repeats, 0) - before.get(repeats, 0),
                    "pool_windows": windows,
                    "pool_epochs": round(used / windows, 6) if windows else 0,
                }
            )
        before = record
    return rows


def _drop_zero_fraction(value: float) -> float | int:
    """Returns a number without a fraction where it has none."""
    return round(value) if abs(value - round(value)) < 1e-6 else round(value, 6)
