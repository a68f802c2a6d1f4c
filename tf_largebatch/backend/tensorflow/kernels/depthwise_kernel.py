"""Depthwise convolutions' norms by TensorFlow's own weight-gradient kernel, the examples side by side as channels.

The kernel keeps channels apart. So the examples of a chunk, laid side by side as channels of one image, are kept apart
too: one call gives every example's contribution.
"""

from __future__ import annotations

import math

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels.chunks import chunk_of, norms_and_gradient_in_chunks
from tf_largebatch.norms.shapes import Size, static_or_dynamic_size
from tf_largebatch.norms.window import Window

# Bytes of a chunk's input and output gradient, of which both the chunk and its transpose are held.
CHUNK_BYTES = 4 * 2**20


def applies(a: tf.Tensor, d: tf.Tensor, window: Window) -> bool:
    """Returns whether the kernel can be used: two spatial axes with the same stride, no dilation, sizes known."""
    return (
        len(window.kernel_size) == 2
        and len(set(window.strides)) == 1
        and all(r == 1 for r in window.dilation_rate)
        and window.padding in ("same", "valid")
        and a.shape[1:].is_fully_defined()
        and d.shape[1:].is_fully_defined()
    )


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, M]; both float32."""
    channels = a.shape[-1]
    shape = [*window.kernel_size, channels, d.shape[-1] // channels]

    def work(a: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        b = static_or_dynamic_size(a, 0)
        g = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=examples_as_channels(tf.cast(a, tf.float32), b),
            filter_sizes=[*window.kernel_size, b * channels, shape[-1]],
            out_backprop=examples_as_channels(tf.cast(d, tf.float32), b),
            strides=[1, *window.strides, 1],
            padding=window.padding.upper(),
        )
        return sums(g, b, shape)

    chunk = chunk_of(4 * (math.prod(a.shape[1:]) + math.prod(d.shape[1:])), CHUNK_BYTES)
    return norms_and_gradient_in_chunks(work, a, d, chunk, shape)


def examples_as_channels(t: tf.Tensor, b: Size) -> tf.Tensor:
    """Returns [b, H, W, C] as [1, H, W, b C]."""
    return tf.reshape(tf.transpose(t, [1, 2, 0, 3]), [1, *t.shape[1:-1], b * t.shape[-1]])


def sums(g: tf.Tensor, b: Size, shape: list[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns squared norms and sum of contributions that lie side by side as channels, shape [..., b C, M]."""
    g = tf.reshape(g, [math.prod(shape[:-2]), b, *shape[-2:]])
    return tf.reduce_sum(tf.square(g), axis=[0, 2, 3]), tf.reshape(tf.reduce_sum(g, axis=1), shape)
