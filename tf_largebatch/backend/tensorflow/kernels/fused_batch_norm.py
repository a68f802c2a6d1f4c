"""Computes training-mode batch normalization by TensorFlow's fused kernels, and each example's gamma and beta gradient.

Keras writes batch normalization out in elementwise operations, each of which reads and writes all activations. The
fused kernels do it in two passes forwards and two backwards. On a CPU that saves more than the sums over every
example's positions cost.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_largebatch.norms.shapes import product, static_or_dynamic_shape


def fused_batch_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes `y = gamma (x - mean) / sqrt(variance + epsilon) + beta` over all axes but the last.

    The gradient with respect to gamma and beta is split among the examples: row i holds
    `sum_t d_{i,t} (x_{i,t} - mean) / sqrt(variance + epsilon)` and `sum_t d_{i,t}`.

    Args:
        x: Shape [B, ..., C], float32.
        gamma: The scale, repeated for each example, shape [B, C], float32; it receives the gradient.
        beta: The offset, repeated for each example, shape [B, C], float32; it receives the gradient.
        scale: The scale once, shape [C]; of no examples there is none in `gamma`.
        offset: The offset once, shape [C].
        epsilon: Added to the variance.

    Returns:
        `y` of x's shape; the mean and the biased variance, shape [C], through which no gradient flows.
    """
    sizes = static_or_dynamic_shape(x)
    as_images = [sizes[0], product(sizes[1:-1]), 1, sizes[-1]]

    statistics: list[tf.Tensor] = []

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
        images = tf.reshape(x, as_images)
        y, mean, unbiased, *reserved = tf.raw_ops.FusedBatchNormV3(
            x=images, scale=scale, offset=offset, mean=[], variance=[], epsilon=epsilon, is_training=True
        )
        count = tf.cast(product(as_images[:-1]), tf.float32)
        variance = unbiased * ((count - 1.0) / count)

        statistics.extend([tf.stop_gradient(mean), tf.stop_gradient(variance)])

        def gradient(d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            d = tf.reshape(d, as_images)
            dx = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=d,
                x=images,
                scale=scale,
                reserve_space_1=reserved[0],
                reserve_space_2=reserved[1],
                reserve_space_3=reserved[2],
                epsilon=epsilon,
                is_training=True,
            )[0]
            d_beta = tf.reduce_sum(d, axis=[1, 2])
            d_gamma = (tf.reduce_sum(d * images, axis=[1, 2]) - mean * d_beta) * tf.math.rsqrt(variance + epsilon)
            # Otherwise nothing waits for the sums, and the executor keeps every layer's d until it computes them.
            with tf.control_dependencies([d_gamma, d_beta]):
                return tf.reshape(dx, sizes), d_gamma, d_beta

        return tf.reshape(y, sizes), gradient

    y = normalize(x, gamma, beta)
    return y, *statistics
