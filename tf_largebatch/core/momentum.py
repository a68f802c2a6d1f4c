"""The two conventions of momentum, which differ once the learning rate changes between steps.

Classic momentum keeps past learning rates inside the velocity; popular momentum applies the present rate to
all of it. TensorFlow's LARS implementations call the choice `classic_momentum`; the code released with
"Large Batch Training Does Not Need Warmup" (arXiv 2002.01576) uses the popular form.
"""

from __future__ import annotations

from typing import Any


def classic_step(
    gradient: Any, velocity: Any, learning_rate: Any, momentum: Any, nesterov: bool = False
) -> tuple[Any, Any]:
    """Takes one step with the learning rate inside the velocity.

        v <- momentum * v + learning_rate * g
        w <- w - v                                           or, with Nesterov,
        w <- w - (momentum * v + learning_rate * g)

    Args:
        gradient: `g`, any shape, floating.
        velocity: `v`, same shape and dtype.
        learning_rate: Scalar, the learning rate times the layer-wise rate.
        momentum: Scalar in [0, 1).
        nesterov: Whether to use Nesterov momentum.

    Returns:
        The new velocity and the decrement of the weights, both like `gradient`.
    """
    scaled = learning_rate * gradient
    velocity = momentum * velocity + scaled
    return velocity, momentum * velocity + scaled if nesterov else velocity


def popular_step(
    gradient: Any, velocity: Any, learning_rate: Any, momentum: Any, nesterov: bool = False
) -> tuple[Any, Any]:
    """Takes one step with the learning rate outside the velocity.

        v <- momentum * v + g
        w <- w - learning_rate * v                           or, with Nesterov,
        w <- w - learning_rate * (g + momentum * v)

    Args:
        gradient: `g`, any shape, floating.
        velocity: `v`, same shape and dtype.
        learning_rate: Scalar, the learning rate times the layer-wise rate.
        momentum: Scalar in [0, 1).
        nesterov: Whether to use Nesterov momentum.

    Returns:
        The new velocity and the decrement of the weights, both like `gradient`.
    """
    velocity = momentum * velocity + gradient
    direction = gradient + momentum * velocity if nesterov else velocity
    return velocity, learning_rate * direction
