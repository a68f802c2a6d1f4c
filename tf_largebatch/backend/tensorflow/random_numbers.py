"""TensorFlow's random numbers from a seed, see `core/random_numbers.py`."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def _algorithm() -> str:
    """Returns the name of Philox.

    In a graph it must be named, since the default differs between devices: then a dozen operations in Python make a key
    of the seed. Eager operations run on a CPU or a GPU, where Philox is the default, and one operation makes the key.
    """
    return "auto_select" if tf.executing_eagerly() else "philox"


def split(seed: Any, number: int) -> Any:
    """Returns `number` independent seeds, int32 [number, 2]."""
    return tf.random.split(seed, number, alg=_algorithm())


def fold_in(seed: Any, number: Any) -> tf.Tensor:
    """Returns a seed, int32 [2], that depends on a seed and a number of any integer dtype."""
    seed, number = tf.convert_to_tensor(seed), tf.cast(number, tf.int32)
    if tf.executing_eagerly():
        return tf.random.experimental.stateless_fold_in(seed, number, alg=_algorithm())
    return _fold_in_a_graph(seed, number)


@tf.function(autograph=False)
def _fold_in_a_graph(seed: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """As `fold_in`: a step folds in dozens of numbers, and only the first has the operations of the key traced."""
    return tf.random.experimental.stateless_fold_in(seed, number, alg="philox")


def uniform(shape: Any, seed: Any, dtype: str, low: float = 0.0, high: float = 1.0) -> Any:
    """Returns numbers that are uniform in [low, high)."""
    return tf.random.stateless_uniform(shape, seed, low, high, dtype, alg=_algorithm())


def normal(shape: Any, seed: Any, dtype: str) -> Any:
    """Returns normal numbers of mean 0 and standard deviation 1."""
    return tf.random.stateless_normal(shape, seed, dtype=dtype, alg=_algorithm())


def integers(shape: Any, seed: Any, low: int, high: int) -> Any:
    """Returns int32 numbers that are uniform in low, ..., high - 1."""
    return tf.random.stateless_uniform(shape, seed, low, high, tf.int32, alg=_algorithm())
