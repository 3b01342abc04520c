"""Pairs of id sequences, joined into rows whose two sides say the same.

Pairs are packed as the reference study packs Europarl: whole pairs in their order, so that both
sides of a row say the same, though seldom at the same positions.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class PackedPairs:
    """Pairs of id sequences, joined into P rows of two sides.

    `counts` are of pairs: read, and of those too_long, packed, and dropped with a row that
    was too short. `row_n` has the row of each pair that was read; -1 is none.
    """

    ids: tuple[np.ndarray, np.ndarray]  # each (P, L), 0 after the end of a row
    lengths: tuple[np.ndarray, np.ndarray]  # each (P,), in ids
    pairs_P: np.ndarray
    row_n: np.ndarray
    counts: Mapping[str, int]


def pack_pairs(
    pairs: Iterable[tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]],
    L: int,
    dtype: npt.DTypeLike = np.int32,
) -> PackedPairs:
    """Joins pairs in their order, with nothing between them, into rows of at most L ids a side.

    A pair with a side above L ids is skipped. A pair that does not fit on both sides begins
    the next row, and the row before it is dropped if its shorter side has less than L // 4
    ids. The last row is kept however short it is, as the reference study does.
    """
    counts = dict.fromkeys(("read", "too_long", "packed", "dropped"), 0)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    row_n: list[int] = []
    first: list[int] = []
    second: list[int] = []
    held: list[int] = []  # the pairs in the row that first and second are

    def keep_row() -> None:
        for pair in held:
            row_n[pair] = len(rows)
        rows.append((np.array(first, dtype), np.array(second, dtype)))
        counts["packed"] += len(held)

    for number, (one, other) in enumerate(pairs):
        counts["read"] += 1
        row_n.append(-1)
        if len(one) > L or len(other) > L:
            counts["too_long"] += 1
            continue
        if len(first) + len(one) > L or len(second) + len(other) > L:
            if min(len(first), len(second)) < L // 4:
                counts["dropped"] += len(held)
            else:
                keep_row()
            first, second, held = [], [], []
        first.extend(one)
        second.extend(other)
        held.append(number)
    if held:
        keep_row()

    P = len(rows)
    ids = (np.zeros((P, L), dtype), np.zeros((P, L), dtype))
    lengths = (np.zeros(P, np.int32), np.zeros(P, np.int32))
    for p, row in enumerate(rows):
        for side_PL, length_P, side in zip(ids, lengths, row, strict=True):
            side_PL[p, : len(side)] = side
            length_P[p] = len(side)
    row_of_pair_n = np.array(row_n, np.int64)
    pairs_P = np.bincount(row_of_pair_n[row_of_pair_n >= 0], minlength=P).astype(np.int32)
    return PackedPairs(ids, lengths, pairs_P, row_of_pair_n, counts)
