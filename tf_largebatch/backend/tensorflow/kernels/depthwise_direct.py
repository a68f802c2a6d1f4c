"""Depthwise convolutions' contributions by the definition, right for every geometry and on every device."""

from __future__ import annotations

import tensorflow as tf

from tf_largebatch.norms.shapes import static_or_dynamic_shape
from tf_largebatch.norms.sums import squared_norms_and_sum
from tf_largebatch.norms.window import Window


def contributions(a: tf.Tensor, d: tf.Tensor, window: Window) -> tf.Tensor:
    """Returns `G_i[o, c, m] = sum_t a[s t + r o, c] d[t, c m]` in float32, shape [b, *kernel_size, C, M]."""
    a, d = tf.cast(a, tf.float32), tf.cast(d, tf.float32)
    sizes, channels = static_or_dynamic_shape(d), a.shape[-1]
    multiplier = d.shape[-1] // channels
    spatial = list(range(1, d.shape.rank - 1))
    d = tf.reshape(d, [*sizes[:-1], channels, multiplier])
    parts = [
        tf.reduce_sum(shifted[..., tf.newaxis] * d, axis=spatial) for shifted in window.shifted_inputs(a, sizes[1:-1])
    ]
    return tf.reshape(tf.stack(parts, axis=1), [sizes[0], *window.kernel_size, channels, multiplier])


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, M]; both float32."""
    return squared_norms_and_sum(contributions(a, d, window))
