"""Parts of batches: the share of one of several processes, and batches that several devices divide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tf_largebatch.data.batches import ArrayBatches


def part(batches: Any, number: int, count: int) -> Any:
    """Returns one of several equal parts of every batch.

    Args:
        batches: Batches of a size that `count` divides.
        number: Which part, from 0.
        count: Number of parts.
    """
    if count == 1:
        return batches

    def of_array(t: Any, size: Any) -> Any:
        return t[number * (size // count) : (number + 1) * (size // count)]

    return _changed(batches, lambda arrays, size, _: tuple(of_array(t, size) for t in arrays))


def filled_up(batches: Any, multiple: int, examples: int) -> Any:
    """Returns batches for evaluation, each of a multiple of some number of examples, with weights.

        weight = filled / examples  for the examples,  0 for what fills up,

    where `filled` counts both. So `sum(weight * value) / filled`, which is Keras's mean of the losses of batches
    weighted by their sizes, is the mean over the examples, as is its weighted mean of a metric.

    Args:
        batches: Pairs of images and labels; all but the last have a multiple of examples.
        multiple: The number.
        examples: Number of examples in all batches.
    """
    weight = (examples + -examples % multiple) / examples

    def filled(arrays: tuple[Any, ...], size: Any, functions: Any) -> tuple[Any, ...]:
        concatenate, repeat = functions
        missing = -size % multiple
        longer = [concatenate([t, repeat(t[:1], missing, axis=0)], axis=0) for t in arrays]
        ones = repeat(np.full(1, weight, np.float32), size, axis=0)
        return *longer, concatenate([ones, repeat(np.zeros(1, np.float32), missing, axis=0)], axis=0)

    return _changed(batches, filled)


def _changed(batches: Any, change: Callable[[tuple[Any, ...], Any, Any], tuple[Any, ...]]) -> Any:
    """Returns batches that a function has changed.

    Args:
        batches: The batches.
        change: Of the arrays of a batch, its size, and the functions `concatenate` and `repeat`, TensorFlow's or
            NumPy's.
    """
    if isinstance(batches, ArrayBatches):

        def batch(index: int) -> tuple[np.ndarray, ...]:
            arrays = batches[index]
            return change(arrays, len(arrays[0]), (np.concatenate, np.repeat))

        return ArrayBatches(len(batches), batch)
    import tensorflow as tf

    return batches.map(lambda *arrays: change(arrays, tf.shape(arrays[0])[0], (tf.concat, tf.repeat)))
