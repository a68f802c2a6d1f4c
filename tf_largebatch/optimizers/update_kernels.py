"""The layer-wise update by TensorFlow's training kernels: one pass over weights, velocity and gradient.

Written with ordinary operations, a step of momentum reads and writes its three tensors once for each product and sum,
and the update of a large network is bound by memory. These kernels do it in one pass; `benchmarks/update.py` measures
the difference. The reference is `core/momentum.py`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# Other dtypes are updated in float32 and stored rounded, which the kernels, computing in the variable's own, cannot.
DTYPES = ("float32", "float64")

# The factor 1 / momentum of `decay_velocity` must not leave the range of the dtype.
SMALLEST_MOMENTUM_TO_DECAY_BY = 0.01


def l2_norm(tensor: tf.Tensor) -> tf.Tensor:
    """Euclidean norm of all entries, in one pass without a copy of the squares.

    Args:
        tensor: Dense tensor of any shape, of a dtype that holds its own square sum (float32 or float64).

    Returns:
        Scalar of the same dtype.
    """
    return tf.sqrt(2.0 * tf.nn.l2_loss(tensor))


def decay_velocity(velocity: Any, weight: tf.Tensor, factor: Any, momentum: float) -> None:
    """Lets the next momentum step add `factor * w` to the velocity, without forming the decayed gradient.

        u <- u + factor / momentum * w        so that        momentum * u  holds  momentum * u + factor * w

    Valid where the gradient enters the weights through the velocity alone: not with Nesterov momentum.

    Args:
        velocity: `tf.Variable` `u`, here on this device.
        weight: The weights `w`, same shape and dtype.
        factor: Scalar.
        momentum: Number of `SMALLEST_MOMENTUM_TO_DECAY_BY` or more.
    """
    tf.raw_ops.ResourceApplyGradientDescent(
        var=velocity.handle, alpha=tf.cast(-factor / momentum, weight.dtype), delta=weight
    )


def classic_step(
    variable: Any, velocity: Any, gradient: tf.Tensor, step_size: Any, momentum: float, nesterov: bool
) -> None:
    """`core.momentum.classic_step`, assigned; the velocity holds `u = -v`, as in `keras.optimizers.SGD`.

        u <- momentum * u - step_size * g
        w <- w + u                                           or, with Nesterov,
        w <- w + (momentum * u - step_size * g)

    Args:
        variable: `tf.Variable` `w`.
        velocity: `tf.Variable` `u`, or None without momentum.
        gradient: `g`, same shape and dtype.
        step_size: Scalar, the learning rate times the layer-wise rate.
        momentum: Number in [0, 1).
        nesterov: Whether to look ahead along the new velocity.
    """
    step_size = tf.cast(step_size, gradient.dtype)
    if velocity is None:
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=step_size, delta=gradient)
        return
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle,
        accum=velocity.handle,
        lr=step_size,
        grad=gradient,
        momentum=tf.constant(momentum, gradient.dtype),
        use_nesterov=nesterov,
    )


def popular_step(
    variable: Any, velocity: Any, gradient: tf.Tensor, step_size: Any, momentum: float, nesterov: bool
) -> None:
    """`core.momentum.popular_step`, assigned.

        v <- momentum * v + g
        w <- w - step_size * v                               or, with Nesterov,
        w <- w - step_size * (g + momentum * v)

    Args:
        variable: `tf.Variable` `w`.
        velocity: `tf.Variable` `v`, or None without momentum.
        gradient: `g`, same shape and dtype.
        step_size: Scalar, the learning rate times the layer-wise rate.
        momentum: Number in [0, 1).
        nesterov: Whether to look ahead along the new velocity.
    """
    if velocity is None:
        classic_step(variable, None, gradient, step_size, momentum, nesterov)
        return
    tf.raw_ops.ResourceApplyMomentum(
        var=variable.handle,
        accum=velocity.handle,
        lr=tf.cast(step_size, gradient.dtype),
        grad=gradient,
        momentum=tf.constant(momentum, gradient.dtype),
        use_nesterov=nesterov,
    )
