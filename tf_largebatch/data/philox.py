"""TensorFlow's stateless random numbers in NumPy: the same order and augmentation where TensorFlow is not installed.

A key is a pair of integers, as the seeds of `tf.random.stateless_*` are. With alg="philox" those functions return the
numbers that the functions here return, bit for bit.

Source: J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011, Philox4x32-10.
"""

from __future__ import annotations

import numpy as np

Key = tuple[int, int]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# The key under which TensorFlow encrypts a seed first, so that seeds that are close give unrelated numbers.
_SCRAMBLER = (0x3EC8F720, 0x02461E29)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MASK = 0xFFFFFFFF


def fold_in(key: Key, number: int, bits: int = 64) -> Key:
    """Returns the key of the stream with this number, as `tf.random.fold_in` does.

    Args:
        key: The key.
        number: The number.
        bits: 64 for an int64 number, 32 for an int32 number, which a Python number is to TensorFlow.
    """
    folded = sum(int(word) << 32 * place for place, word in enumerate(_words(key, bits // 32)))
    return (folded - (1 << bits) if folded >> bits - 1 else folded), number


def integers(key: Key, count: int, bound: int) -> np.ndarray:
    """Returns integers from 0 to `bound - 1`, int32 `(count,)`, as `tf.random.stateless_uniform` does for int32."""
    return (_words(key, count) % np.uint32(bound)).astype(np.int32)


def uniform(key: Key, count: int) -> np.ndarray:
    """Returns numbers in [0, 1), float32 `(count,)`, as `tf.random.stateless_uniform` does."""
    mantissa = _words(key, count) & np.uint32(0x7FFFFF)
    return (mantissa | np.uint32(127 << 23)).view(np.float32) - np.float32(1)


def permutation(key: Key, count: int) -> np.ndarray:
    """Returns the numbers from 0 to `count - 1` shuffled, int32, as `tf.random.experimental.stateless_shuffle` does."""
    order = list(range(count))
    steps = np.arange(count - 1)
    partners = (steps + _words(key, max(count - 1, 0)) % np.arange(count, 1, -1, dtype=np.uint32)).tolist()
    for here, there in enumerate(partners):
        order[here], order[there] = order[there], order[here]
    return np.array(order, np.int32)


def _words(key: Key, count: int) -> np.ndarray:
    """Returns the first words of the key's stream, uint32 `(count,)`."""
    seed = [number >> shift & _MASK for number in key for shift in (0, 32)]
    scrambled = _philox(np.array([seed], np.uint64), _SCRAMBLER)[0]
    counters = np.empty((-(-count // 4), 4), np.uint64)
    counters[:, 0], counters[:, 1] = np.arange(len(counters)), 0
    counters[:, 2:] = scrambled[2:]
    return _philox(counters, (int(scrambled[0]), int(scrambled[1]))).astype(np.uint32).reshape(-1)[:count]


def _philox(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Encrypts counters, uint64 `(n, 4)` of 32-bit words, in ten rounds."""
    a, b, c, d = counters.T
    for number in range(_ROUNDS):
        keys = [np.uint64((k + number * w) & _MASK) for k, w in zip(key, _WEYL, strict=True)]
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (second >> _HALF) ^ b ^ keys[0], second & _LOW, (first >> _HALF) ^ d ^ keys[1], first & _LOW
    return np.stack([a, b, c, d], axis=1)
