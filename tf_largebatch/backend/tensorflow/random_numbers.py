"""TensorFlow's random numbers from a seed, see `core/random_numbers.py`."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# Named, since TensorFlow's default algorithm differs between devices.
_ALGORITHM = "philox"


def split(seed: Any, number: int) -> Any:
    """Returns `number` independent seeds, int32 [number, 2]."""
    return tf.random.split(seed, number, alg=_ALGORITHM)


def fold_in(seed: Any, number: Any) -> tf.Tensor:
    """Returns a seed, int32 [2], that depends on a seed and a number of any integer dtype."""
    return tf.random.experimental.stateless_fold_in(seed, tf.cast(number, tf.int32), alg=_ALGORITHM)


def uniform(shape: Any, seed: Any, dtype: str, low: float = 0.0, high: float = 1.0) -> Any:
    """Returns numbers that are uniform in [low, high)."""
    return tf.random.stateless_uniform(shape, seed, low, high, dtype, alg=_ALGORITHM)


def normal(shape: Any, seed: Any, dtype: str) -> Any:
    """Returns normal numbers of mean 0 and standard deviation 1."""
    return tf.random.stateless_normal(shape, seed, dtype=dtype, alg=_ALGORITHM)


def integers(shape: Any, seed: Any, low: int, high: int) -> Any:
    """Returns int32 numbers that are uniform in low, ..., high - 1."""
    return tf.random.stateless_uniform(shape, seed, low, high, tf.int32, alg=_ALGORITHM)
