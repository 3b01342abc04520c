"""Texts that say the same in two languages, packed into rows that lie side by side.

`prepare_parallel_set` makes a `ParallelSet` of the pairs of two sources, each side in the ids of
its own source's tokenizer, and keeps it on disk like a prepared source. `find_aligned_sequences`
finds for any two languages of a run the sequences that say the same in both.

    pairs      the files of a set: what may be wrong with them, and the pairs of texts in them
    packing    pairs of id sequences, joined into rows
    sets       the prepared set, made or opened
    aligned    the sequences of two languages of a run that say the same
"""

from imbalance_jax.data.parallel.aligned import (
    AlignedSequences,
    find_aligned_sequences,
    list_aligned_pairs,
)
from imbalance_jax.data.parallel.packing import PackedPairs, pack_pairs
from imbalance_jax.data.parallel.pairs import are_files_here
from imbalance_jax.data.parallel.sets import (
    SYNTHETIC_PAIRS,
    ParallelSet,
    check_all_parallel_sets,
    check_parallel_set,
    list_sets,
    matches_config,
    prepare_all_parallel_sets,
    prepare_parallel_set,
)

__all__ = [
    "SYNTHETIC_PAIRS",
    "AlignedSequences",
    "PackedPairs",
    "ParallelSet",
    "are_files_here",
    "check_all_parallel_sets",
    "check_parallel_set",
    "find_aligned_sequences",
    "list_aligned_pairs",
    "list_sets",
    "matches_config",
    "pack_pairs",
    "prepare_all_parallel_sets",
    "prepare_parallel_set",
]
