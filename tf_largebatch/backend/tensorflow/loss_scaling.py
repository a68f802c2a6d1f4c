"""Dynamic loss scaling with several replicas: a step that overflows on one of them is skipped on all.

`keras.optimizers.LossScaleOptimizer` looks at the gradients of the first replica only, before they are summed. Where
only another replica overflows, it would apply the infinite sum to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.core.gradient_norms import GradientNorms


def agree_on_overflow(gradients: Sequence[Any], norms: GradientNorms | None = None) -> list[Any]:
    """Makes one gradient NaN on every replica if any gradient or norm of any replica is not finite.

    Call it in replica context before `LossScaleOptimizer.apply`, which then skips the step and halves the scale. With
    several replicas it sends one number; with one replica it looks at the norms only, since Keras looks at the
    gradients.

    Args:
        gradients: This replica's gradients, dense or `tf.IndexedSlices`, or None.
        norms: This replica's gradient norms, if there are any.

    Returns:
        The gradients.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    checked = [] if norms is None else [norms.values]
    present = [i for i, gradient in enumerate(gradients) if gradient is not None]
    if not present or (replicas == 1 and not checked):
        return list(gradients)
    if replicas > 1:
        checked += [_values(gradients[i]) for i in present]
    finite = tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(value)) for value in checked]))
    overflows = 1.0 - tf.cast(finite, tf.float32)
    if replicas > 1:
        context = tf.distribute.get_replica_context()
        overflows = context.all_reduce(tf.distribute.ReduceOp.SUM, overflows)
    poison = tf.where(overflows > 0, float("nan"), 0.0)
    poisoned = list(gradients)
    # The smallest dense one if there is one.
    chosen = min(
        present,
        key=lambda i: (isinstance(gradients[i], tf.IndexedSlices), _values(gradients[i]).shape.num_elements() or 0),
    )
    gradient = gradients[chosen]
    values = _values(gradient) + tf.cast(poison, _values(gradient).dtype)
    if isinstance(gradient, tf.IndexedSlices):
        values = tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    poisoned[chosen] = values
    return poisoned


def apply(optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Calls `optimizer.apply(gradients, variables)`; on JAX loss scaling needs more."""
    optimizer.apply(gradients, variables)


def _values(gradient: Any) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else tf.convert_to_tensor(gradient)
