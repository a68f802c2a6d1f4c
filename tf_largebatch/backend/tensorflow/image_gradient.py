"""Gradients with respect to images alone: no weight gradient is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def image_gradient(forward: Callable[[Any], tuple[Any, Any]], x: Any) -> Any:
    """Returns the gradient of an objective with respect to images, in their shape.

    Args:
        forward: Function from images to a tensor z, or a list of them, and the gradient of the objective with respect
            to it.
        x: Images.

    Returns:
        The gradient; None if z does not depend on the images.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        z, gradient = forward(x)
    return tape.gradient(z, x, output_gradients=gradient)


def gradient_of(function: Callable[[Any], Any], x: Any) -> Any:
    """Returns the gradient of a scalar function by nested tensors x; zero where it does not depend on x."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        value = function(x)
    return tape.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
