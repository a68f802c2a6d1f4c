"""Something that a step does or leaves: a function that assigns variables, in one branch of `tf.cond`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def do_if(condition: Any, function: Callable[[], None], variables: Sequence[Any]) -> None:
    """Calls a function if a condition holds, which is known only when the step runs.

    Args:
        condition: A boolean scalar.
        function: What to do; it may assign variables.
        variables: The variables that it may assign, as the JAX backend must know.
    """
    del variables

    def done() -> tf.Tensor:
        function()
        return tf.constant(0)

    tf.cond(condition, done, lambda: tf.constant(0))
