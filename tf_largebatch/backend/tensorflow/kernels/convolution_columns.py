"""Convolutions' norms with the kernel's columns side by side in the channels, for inputs of few channels.

The first layer of a network for images, sound or video has one to three input channels. A product for one kernel
offset then has that many rows only. Here the inputs that the offsets along the last axis meet become channels: a kernel
of K columns and C channels becomes one of a single column and K C channels. With one spatial axis that is one product
for the whole kernel.

With stride s, s neighbouring inputs of C channels are s C channels of one position, so that every shift is a slice of
whole runs: a strided slice on a CPU goes element by element.
"""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels import convolution_direct, convolution_grid
from tf_largebatch.backend.tensorflow.kernels.chunks import chunk_of, norms_and_gradient_in_chunks
from tf_largebatch.norms.window import Window


def applies(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> bool:
    """Returns whether the form can be used: sizes known, one group, no dilation along the last axis."""
    return (
        groups == 1
        and a.shape[1:].is_fully_defined()
        and d.shape[1:].is_fully_defined()
        and window.dilation_rate[-1] == 1
    )


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, P]; both float32."""
    shape = [*window.kernel_size, a.shape[-1], d.shape[-1]]
    one_column = dataclasses.replace(
        window, kernel_size=(*window.kernel_size[:-1], 1), strides=(*window.strides[:-1], 1)
    )
    form = convolution_direct if one_column.is_pointwise else convolution_grid

    def work(a: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        a, d = _columns_side_by_side(tf.cast(a, tf.float32), d, window), tf.cast(d, tf.float32)
        squares, gradient = form.sums(a, d, one_column, groups)
        return squares, tf.reshape(gradient, shape)

    inputs = math.prod(a.shape[1:-2]) * d.shape[-2] * window.kernel_size[-1] * a.shape[-1]
    chunk = chunk_of(4 * (inputs + math.prod(d.shape[1:])))
    return norms_and_gradient_in_chunks(work, a, d, chunk, shape)


def squared_norms(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns `||G_i||^2` in float32, shape [b]."""
    return norms_and_gradient(a, d, window, groups)[0]


def _columns_side_by_side(a: tf.Tensor, d: tf.Tensor, window: Window) -> tf.Tensor:
    """Returns [b, ..., W, C] as [b, ..., columns of d, K C]: what each position of `d` meets along the last axis."""
    columns, kernel, stride, channels = d.shape[-2], window.kernel_size[-1], window.strides[-1], a.shape[-1]
    before = window.padding_of(a, list(d.shape[1:-1]))[-1][0]
    runs = -(-kernel // stride)  # of `stride` inputs each, that a kernel reaches
    width = (columns + runs - 1) * stride
    a = a[..., : width - before, :]
    after = width - before - a.shape[-2]
    a = tf.pad(a, [*([0, 0] for _ in a.shape[:-2]), [before, after], [0, 0]])
    a = tf.reshape(a, [-1, *a.shape[1:-2], columns + runs - 1, stride * channels])
    a = tf.concat([a[..., i : i + columns, :] for i in range(runs)], axis=-1)
    return a[..., : kernel * channels]
