"""Value, gradient and Hessian-vector product of a function of a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


class Derivatives:
    """Traces a function of lists of tensors, and its derivatives by the first of its arguments.

    Args:
        function: Takes the weights and further arguments, returns a scalar.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        function = _with_exact_moments(function)

        def gradient(weights: list[Any], *arguments: Any) -> list[Any]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                value = function(weights, *arguments)
            return tape.gradient(value, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        def product(weights: list[Any], vectors: list[Any], *arguments: Any) -> list[Any]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                gradients = gradient(weights, *arguments)
            zero = tf.UnconnectedGradients.ZERO
            return tape.gradient(gradients, weights, output_gradients=vectors, unconnected_gradients=zero)

        functions = function, gradient, product
        self._value, self._gradient, self._product = (
            tf.function(f, reduce_retracing=True, autograph=False) for f in functions
        )

    def value(self, weights: Sequence[Any], *arguments: Any) -> Any:
        """Returns the function's value."""
        return self._value(_tensors(weights), *arguments)

    def gradient(self, weights: Sequence[Any], *arguments: Any) -> list[Any]:
        """Returns its gradient, in the shapes of the weights."""
        return list(self._gradient(_tensors(weights), *arguments))

    def product(self, weights: Sequence[Any], vectors: Sequence[Any], *arguments: Any) -> list[Any]:
        """Returns its Hessian times vectors in the shapes of the weights."""
        return list(self._product(_tensors(weights), _tensors(vectors), *arguments))


def _tensors(values: Sequence[Any]) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(value) for value in values]


def _with_exact_moments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Traces a function with moments that can be differentiated twice.

    `tf.nn.moments`, which Keras calls in normalizations, stops the gradient from the variance to the mean. This leaves
    the first derivative as it is, since the variance is smallest at the mean, but not the second.
    """

    def traced(*arguments: Any) -> Any:
        saved = tf.nn.moments
        tf.nn.moments = _moments
        try:
            return function(*arguments)
        finally:
            tf.nn.moments = saved

    return traced


def _moments(
    x: tf.Tensor, axes: Sequence[int], shift: Any = None, keepdims: bool = False, name: str | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    del shift, name
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=keepdims)
    return mean if keepdims else tf.squeeze(mean, axes), variance
