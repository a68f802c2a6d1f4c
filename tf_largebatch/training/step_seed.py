"""Random numbers that depend on a seed and the number of the step alone, so that any step can be done again."""

from __future__ import annotations

import enum
from typing import Any

import tensorflow as tf


class Purpose(enum.IntEnum):
    """What random numbers are for: each draws its own."""

    TARGETS = 0
    START = 1
    NOISE = 2
    LAYERS = 3
    AUGMENTATION = 4


def step_seed(seed: int, step: Any, purpose: Purpose, replica: Any = 0, part: Any = 0) -> tf.Tensor:
    """A seed for stateless random numbers.

    Args:
        seed: the user's.
        step: number of the training step.
        purpose: what it is for.
        replica: number of the replica.
        part: number of the micro-batch, or of the layer.

    Returns:
        int32 [2].
    """
    mixed = tf.constant([seed & 0x7FFFFFFF, (seed >> 31) & 0x7FFFFFFF], tf.int32)
    for number in (step, int(purpose), replica, part):
        mixed = tf.random.experimental.stateless_fold_in(mixed, tf.cast(number, tf.int32), alg="philox")
    return mixed
