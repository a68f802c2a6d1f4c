"""Batches of images and labels: a `tf.data.Dataset` where TensorFlow is installed, else a `keras.utils.PyDataset`.

Keras trains on both, on every backend. Both give the same images in the same order.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import keras
import numpy as np


@functools.cache
def tensorflow_is_installed() -> bool:
    """Returns whether TensorFlow makes the batches.

    Where Keras runs on JAX, TensorFlow then leaves the accelerators to JAX.
    """
    try:
        if importlib.util.find_spec("tensorflow") is None:
            return False
    except (ImportError, ValueError):  # a program hides it
        return False
    if keras.backend.backend() != "tensorflow":
        import tensorflow as tf

        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
    return True


class ArrayBatches(keras.utils.PyDataset):
    """Batches that a function makes from their number.

    Args:
        count: Number of batches.
        batch: Returns the batch of a number, a tuple of arrays.
    """

    def __init__(self, count: int, batch: Callable[[int], tuple[np.ndarray, ...]]) -> None:
        super().__init__()
        self.count, self.batch = count, batch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.batch(index)


def with_images(batches: Any, function: Callable[[Any], Any]) -> Any:
    """Returns batches whose images a function has changed.

    Args:
        batches: The batches.
        function: Of images, arithmetic alone: it gets tensors of TensorFlow or arrays of NumPy.
    """
    if isinstance(batches, ArrayBatches):

        def batch(index: int) -> tuple[np.ndarray, ...]:
            images, *labels = batches[index]
            return function(images), *labels

        return ArrayBatches(len(batches), batch)
    return batches.map(lambda images, labels: (function(images), labels))


def with_one_hot_labels(batches: Any, num_classes: int) -> Any:
    """Returns batches whose integer labels are one-hot, float32 `(batch, num_classes)`."""
    if isinstance(batches, ArrayBatches):
        identity = np.eye(num_classes, dtype=np.float32)

        def batch(index: int) -> tuple[np.ndarray, ...]:
            images, labels = batches[index]
            return images, identity[labels]

        return ArrayBatches(len(batches), batch)
    import tensorflow as tf

    return batches.map(lambda image, label: (image, tf.one_hot(label, num_classes)))
