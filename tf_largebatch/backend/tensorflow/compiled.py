"""Functions that read variables, compiled to a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def compiled(function: Callable[..., Any], variables: Sequence[Any] = ()) -> Callable[..., Any]:
    """Returns a function of tensors, compiled to a graph, that reads the variables' present values when it is called.

    Args:
        function: A function of nested tensors, which writes no variable.
        variables: The Keras variables that it reads. TensorFlow finds them by itself.
    """
    del variables
    return tf.function(tf.autograph.experimental.do_not_convert(function), reduce_retracing=True)
