"""The processes that train together: on TensorFlow `tf.distribute`'s, each of which writes where it is told to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np


class ProcessLost(RuntimeError):
    """Another process of the training is gone. TensorFlow raises errors of its own in that case."""


def is_first() -> bool:
    """Returns whether this process writes what callbacks write: always; the program gives each its own directory."""
    return True


def whole(value: Any) -> np.ndarray:
    """Returns a variable's value as an array; of a variable of several replicas, which Keras cannot convert, too."""
    return value.numpy() if hasattr(value, "numpy") else keras.ops.convert_to_numpy(value)


@contextlib.contextmanager
def explaining_lost_processes() -> Iterator[None]:
    """Does nothing: TensorFlow's own error says what was lost."""
    yield


def leave(status: int) -> None:
    """Does nothing: TensorFlow does not wait for other processes at the end."""
    del status
