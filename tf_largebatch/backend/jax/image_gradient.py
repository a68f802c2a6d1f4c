"""Gradients with respect to images alone: no weight gradient is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def image_gradient(forward: Callable[[Any], tuple[Any, Any]], x: Any) -> Any:
    """Returns the gradient of an objective with respect to images, in their shape.

    Args:
        forward: Function from images to a tensor z, or a list of them, and the gradient of the objective with respect
            to it.
        x: Images.

    Returns:
        The gradient; None if z does not depend on the images.
    """
    reached: list[bool] = []

    def arrive(_: None, d: Any) -> tuple[Any]:
        reached.append(True)
        return (d,)

    # JAX gives zeros where nothing depends on x. It calls this rule only where something does.
    images = jax.custom_vjp(lambda x: x)
    images.defvjp(lambda x: (x, None), arrive)
    _, pull_back, gradient = jax.vjp(lambda x: forward(images(x)), x, has_aux=True)
    (found,) = pull_back(gradient)
    return found if reached else None


def gradient_of(function: Callable[[Any], Any], x: Any) -> Any:
    """Returns the gradient of a scalar function by nested tensors x; zero where it does not depend on x."""
    return jax.grad(function)(x)
