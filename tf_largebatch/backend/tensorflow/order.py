"""Orders the work of a step, and loops over examples, on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def after(values: Sequence[tf.Tensor], tensor: tf.Tensor) -> list[tf.Tensor]:
    """Returns the values for work that could begin before `tensor` is known: in a graph they wait for it.

    Results that are computed too early lie idle in memory.
    """
    with tf.control_dependencies([tensor]):
        return [tf.identity(value) for value in values]


def over_examples(work: Callable[[Any, int], tf.Tensor], batch: Any, examples: slice) -> tf.Tensor:
    """Concatenates what `work(start, count)` returns for `count` examples from `start` on, one after the other.

    Args:
        work: Returns float32, shape [count, ...].
        batch: The number of examples B.
        examples: The examples to run it for.
    """
    return tf.map_fn(lambda i: work(i, 1)[0], tf.range(batch)[examples], fn_output_signature=tf.float32)
