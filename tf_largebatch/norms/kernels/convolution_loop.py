"""Convolutions' norms by TensorFlow's own weight-gradient kernel, called for one example at a time."""

from __future__ import annotations

import tensorflow as tf

from tf_largebatch.norms.kernels.window import Window
from tf_largebatch.norms.shapes import static_or_dynamic_size


def applies(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> bool:
    """Whether the kernel can be used: two spatial axes, no dilation, one group."""
    return (
        groups == 1 and len(window.kernel_size) == 2 and all(r == 1 for r in window.dilation_rate)
    ) and window.padding in ("same", "valid")


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tuple[tf.Tensor, tf.Tensor]:
    """`||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, P]; both float32."""
    shape = [*window.kernel_size, a.shape[-1], d.shape[-1]]
    batch = static_or_dynamic_size(d, 0)

    def body(i: tf.Tensor, squares: tf.TensorArray, total: tf.Tensor) -> list[object]:
        part = _one(a, d, i, shape, window)
        return [i + 1, squares.write(i, 2.0 * tf.nn.l2_loss(part)), total + part]

    start = [tf.constant(0), tf.TensorArray(tf.float32, batch, element_shape=[]), tf.zeros(shape)]
    _, squares, total = tf.while_loop(lambda i, *_: i < batch, body, start, parallel_iterations=1)
    return squares.stack(), total


def squared_norms(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """`||G_i||^2` in float32, shape [b]."""
    return norms_and_gradient(a, d, window, groups)[0]


def _one(a: tf.Tensor, d: tf.Tensor, i: tf.Tensor, shape: list[int], window: Window) -> tf.Tensor:
    """`G_i`."""
    part = tf.raw_ops.Conv2DBackpropFilter(
        input=a[i : i + 1],
        filter_sizes=shape,
        out_backprop=d[i : i + 1],
        strides=[1, *window.strides, 1],
        padding=window.padding.upper(),
    )
    return tf.cast(part, tf.float32)
