"""Convolutions' norms by TensorFlow's own weight-gradient kernel, called for one example at a time."""

from __future__ import annotations

import tensorflow as tf

from tf_largebatch.norms.shapes import static_or_dynamic_size
from tf_largebatch.norms.window import Window

# Two examples at a time: while the kernel works on one, the sums of the one before are taken.
_EXAMPLES_AT_ONCE = 2


def applies(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> bool:
    """Returns whether the kernel can be used: one to three spatial axes, no dilation, one group."""
    return (
        groups == 1
        and len(window.kernel_size) <= 3
        and all(r == 1 for r in window.dilation_rate)
        and window.padding in ("same", "valid")
    )


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, P]; both float32."""
    shape = [*window.kernel_size, a.shape[-1], d.shape[-1]]
    batch = static_or_dynamic_size(d, 0)

    def body(i: tf.Tensor, squares: tf.TensorArray, total: tf.Tensor) -> list[object]:
        part = _one(tf.cast(a[i : i + 1], tf.float32), tf.cast(d[i : i + 1], tf.float32), shape, window)
        return [i + 1, squares.write(i, 2.0 * tf.nn.l2_loss(part)), total + part]

    start = [tf.constant(0), tf.TensorArray(tf.float32, batch, element_shape=[]), tf.zeros(shape)]
    _, squares, total = tf.while_loop(lambda i, *_: i < batch, body, start, parallel_iterations=_EXAMPLES_AT_ONCE)
    return squares.stack(), total


def squared_norms(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns `||G_i||^2` in float32, shape [b]."""
    return norms_and_gradient(a, d, window, groups)[0]


def _one(a: tf.Tensor, d: tf.Tensor, shape: list[int], window: Window) -> tf.Tensor:
    """Returns `G_i`, from `a` and `d` of one example."""
    strides, padding = [1, *window.strides, 1], window.padding.upper()
    if len(window.kernel_size) == 3:
        return tf.raw_ops.Conv3DBackpropFilterV2(
            input=a, filter_sizes=shape, out_backprop=d, strides=strides, padding=padding
        )
    if len(window.kernel_size) == 2:
        return tf.raw_ops.Conv2DBackpropFilter(
            input=a, filter_sizes=shape, out_backprop=d, strides=strides, padding=padding
        )
    part = tf.raw_ops.Conv2DBackpropFilter(  # an image of one row
        input=a[:, tf.newaxis],
        filter_sizes=[1, *shape],
        out_backprop=d[:, tf.newaxis],
        strides=[1, *strides],
        padding=padding,
    )
    return tf.reshape(part, shape)
