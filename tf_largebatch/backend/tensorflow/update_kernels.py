"""The layer-wise update with TensorFlow's training kernels: one pass over weights, velocity and gradient.

Written with ordinary operations, a step of momentum reads and writes its three tensors once for each product and sum,
and memory bounds the update of a large network. These kernels need one pass; `benchmarks/update.py` measures the
difference. The reference is `core/momentum.py`. The kernels compute in the variable's own dtype, float32 or float64.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.core import rates


def l2_norm(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the Euclidean norm of all entries, in one pass without a copy of the squares.

    Args:
        tensor: Dense tensor of any shape, of a dtype that holds its own square sum (float32 or float64).

    Returns:
        Scalar of the same dtype.
    """
    return tf.sqrt(2.0 * tf.nn.l2_loss(tensor))


def dense(gradient: Any, variable: Any) -> Any:
    """Returns a sparse gradient as a dense tensor, with repeated indices added up; others, and None, as given."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])


def takes(dtype: str) -> bool:
    """Returns whether the kernels update variables of this dtype.

    The kernels compute in it, so it must be the update's own.
    """
    return dtype == rates.compute_dtype(dtype)


def can_decay_velocity(momentum: float, nesterov: bool) -> bool:
    """Returns whether `decay_velocity` is exact: the gradient enters the weights through the velocity alone.

    The factor 1 / momentum must not leave the range of the dtype, either.
    """
    return not nesterov and momentum >= 0.01


def decay_velocity(velocity: Any, weight: tf.Tensor, factor: Any, momentum: float) -> None:
    """Lets the next momentum step add `factor * w` to the velocity, without forming the decayed gradient.

        u <- u + factor / momentum * w        so that        momentum * u  holds  momentum * u + factor * w

    Args:
        velocity: Variable `u`, here on this device.
        weight: The weights `w`, same shape and dtype.
        factor: Scalar.
        momentum: As `can_decay_velocity` allows it.
    """
    tf.raw_ops.ResourceApplyGradientDescent(
        var=_handle(velocity), alpha=tf.cast(-factor / momentum, weight.dtype), delta=weight
    )


def classic_step(
    variable: Any, velocity: Any, gradient: tf.Tensor, step_size: Any, momentum: float, nesterov: bool
) -> None:
    """Takes and assigns the step of `core.momentum.classic_step`; the velocity holds `u = -v`, as in Keras's SGD.

        u <- momentum * u - step_size * g
        w <- w + u                                           or, with Nesterov,
        w <- w + (momentum * u - step_size * g)

    Args:
        variable: Variable `w`.
        velocity: Variable `u`, or None without momentum.
        gradient: `g`, same shape and dtype.
        step_size: Scalar, the learning rate times the layer-wise rate.
        momentum: Number in [0, 1).
        nesterov: Whether to use Nesterov momentum.
    """
    step_size = tf.cast(step_size, gradient.dtype)
    if velocity is None:
        tf.raw_ops.ResourceApplyGradientDescent(var=_handle(variable), alpha=step_size, delta=gradient)
        return
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=_handle(variable),
        accum=_handle(velocity),
        lr=step_size,
        grad=gradient,
        momentum=tf.constant(momentum, gradient.dtype),
        use_nesterov=nesterov,
    )


def popular_step(
    variable: Any, velocity: Any, gradient: tf.Tensor, step_size: Any, momentum: float, nesterov: bool
) -> None:
    """Takes and assigns the step of `core.momentum.popular_step`.

        v <- momentum * v + g
        w <- w - step_size * v                               or, with Nesterov,
        w <- w - step_size * (g + momentum * v)

    Args:
        variable: Variable `w`.
        velocity: Variable `v`, or None without momentum.
        gradient: `g`, same shape and dtype.
        step_size: Scalar, the learning rate times the layer-wise rate.
        momentum: Number in [0, 1).
        nesterov: Whether to use Nesterov momentum.
    """
    if velocity is None:
        classic_step(variable, None, gradient, step_size, momentum, nesterov)
        return
    tf.raw_ops.ResourceApplyMomentum(
        var=_handle(variable),
        accum=_handle(velocity),
        lr=tf.cast(step_size, gradient.dtype),
        grad=gradient,
        momentum=tf.constant(momentum, gradient.dtype),
        use_nesterov=nesterov,
    )


def _handle(variable: Any) -> tf.Tensor:
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
