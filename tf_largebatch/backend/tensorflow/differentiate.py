"""A forward and backward pass without norms, by a gradient tape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


def value_and_gradients(
    forward: Callable[[], Any],
    loss: Callable[[Any], Any],
    variables: Sequence[Any],
    scale: Callable[[Any], Any] = lambda loss: loss,
) -> tuple[Any, list[Any], Any]:
    """Runs a model forward and differentiates a loss of its outputs.

    Args:
        forward: Computes the outputs.
        loss: Of the outputs, a scalar.
        variables: Variables of either Keras.
        scale: What of the loss is differentiated.

    Returns:
        The outputs; for each variable its gradient, None where the loss does not depend on it; and the loss.
    """
    with tf.GradientTape() as tape:
        outputs = forward()
        unscaled = loss(outputs)
        target = scale(unscaled)
    return outputs, tape.gradient(target, [_readable(v) for v in variables]), unscaled


def gradients_at(function: Callable[..., Any], tensors: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Returns a scalar function's value at some tensors and its gradients there, zeros where there is none.

    Args:
        function: Of the tensors, one argument each.
        tensors: Floating tensors.
    """
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    return value, tape.gradient(value, tensors, unconnected_gradients="zero")


def dense(gradient: Any) -> tf.Tensor:
    """Returns a gradient as a dense tensor."""
    return tf.convert_to_tensor(gradient)


def run_after(done: Sequence[Any], inputs: Any) -> Any:
    """Returns nested tensors that are there once the tensors `done` are."""
    with tf.control_dependencies(list(done)):
        return tf.nest.map_structure(tf.identity, inputs)


def _readable(variable: Any) -> Any:
    """Returns what a gradient tape takes for a variable."""
    return variable.value if isinstance(variable, keras.Variable) else variable
