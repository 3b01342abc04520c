"""Random bits and permutations as functions of a key and an index.

Everything is integer arithmetic of our own, so that no library's generator can change the order
of a run. Nothing is drawn in turn: any index can be asked for, in any order.
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

_ROUNDS = 8  # of a permutation


@functools.lru_cache(maxsize=4096)
def derive_key(*parts: int | str) -> int:
    """Returns a 64-bit key for a purpose, such as derive_key(seed, "languages", stage).

    Other parts give another key, because none of them has the sign that joins them. The name of a
    pool, which may have it, comes as the parts that `split_pool_name` returns.
    """
    text = "/".join(str(part) for part in parts)
    assert text.count("/") == len(parts) - 1, f"a part of {parts} has a slash in it"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def split_pool_name(pool: str) -> list[str]:
    """Returns the parts of a key that stand for a pool: SOURCE, or SOURCE and TAG."""
    return pool.split("/")


def draw_bits(key_: int | np.ndarray, index: np.ndarray | int) -> np.ndarray:
    """Returns the index-th 64 random bits of a key, for any indices, and their keys, at once.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014): its n-th output is a mix of seed + n * gamma, so no output depends on
    having made the ones before it.
    """
    with np.errstate(over="ignore"):
        z = np.asarray(index).astype(np.uint64) + np.uint64(1)
        z = z * np.uint64(0x9E3779B97F4A7C15) + np.asarray(key_, np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def permute_indices(key_: int | np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """Returns where a keyed permutation of range(size) sends each index.

    There is one key, or one (n,) for each index (n,).

    A Feistel network over the next power of two; an image outside the range is sent on
    until it falls inside (cycle walking), which keeps it a permutation. No table, so the
    memory does not grow with the corpus.
    """
    assert size > 0  # or no image would ever fall inside
    bits = max(2, (size - 1).bit_length())
    low_bits, high_bits = bits // 2, bits - bits // 2
    result = np.asarray(index).astype(np.uint64)
    keys_R = _derive_round_keys(key_)
    outside = np.ones(result.shape, bool)
    while outside.any():
        some_R = [key if isinstance(key, int) else key[outside] for key in keys_R]
        result[outside] = _apply_feistel_network(some_R, result[outside], low_bits, high_bits)
        outside = result >= size
    return result.astype(np.int64)


def _derive_round_keys(key_: int | np.ndarray) -> Sequence[int | np.ndarray]:
    """Returns the key, or those of each index, in each of R rounds.

    R is even: the halves of a number change places, and widths, in each.
    """
    if not isinstance(key_, np.ndarray):
        return [derive_key(key_, round_) for round_ in range(_ROUNDS)]
    key_k, of_key_n = np.unique(key_, return_inverse=True)
    keys_Rk = [[derive_key(each, round_) for each in key_k.tolist()] for round_ in range(_ROUNDS)]
    return [np.array(keys, np.uint64)[of_key_n] for keys in keys_Rk]


def _apply_feistel_network(
    keys_R: Sequence[int | np.ndarray], value: np.ndarray, low_bits: int, high_bits: int
) -> np.ndarray:
    """One pass over numbers of low_bits + high_bits bits; a bijection of them."""
    for key in keys_R:
        low = value & np.uint64((1 << low_bits) - 1)
        high = value >> np.uint64(low_bits)
        mixed = high ^ (draw_bits(key, low) >> np.uint64(64 - high_bits))
        value = (low << np.uint64(high_bits)) | mixed
        low_bits, high_bits = high_bits, low_bits
    return value


def draw_raw_order(n: int, key: int | np.ndarray) -> np.ndarray:
    """Returns range(n) in an order that depends on a key of NumPy's Philox alone.

    Raw bits are used: NumPy promises that they never change, unlike the methods of Generator.
    """
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")
