"""Convolutions' norms by the definition: one product of each example's shifted input with `d` for every kernel offset.

Right for every number of spatial axes, stride, dilation, padding and number of groups, and on every device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels.chunks import chunk_of, norms_and_gradient_in_chunks
from tf_largebatch.norms.shapes import Size, product, static_or_dynamic_shape
from tf_largebatch.norms.sums import sum_squares_per_example
from tf_largebatch.norms.window import Window


def contributions(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns `G_i` in float32, shape [b, *kernel_size, C / groups, P]."""
    parts = list(contributions_by_offset(a, d, window, groups))
    return tf.reshape(tf.stack(parts, axis=1), [-1, *window.kernel_size, parts[0].shape[-2], parts[0].shape[-1]])


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C / groups, P]; both float32."""
    channels, outputs = a.shape[-1] // groups, d.shape[-1]
    positions = math.prod(size or 1 for size in d.shape[1:-1])
    # What is held of each example is its shifted input and its contribution, of one kernel offset.
    chunk = chunk_of(4 * (positions * a.shape[-1] + channels * outputs))
    return norms_and_gradient_in_chunks(
        lambda a, d: sums(a, d, window, groups), a, d, chunk, [*window.kernel_size, channels, outputs]
    )


def squared_norms(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns `||G_i||^2` in float32, shape [b]."""
    return norms_and_gradient(a, d, window, groups)[0]


def sums(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `norms_and_gradient` returns, of all examples at once."""
    squares, gradients = [], []
    for part in contributions_by_offset(a, d, window, groups):
        squares.append(sum_squares_per_example(part))
        gradients.append(tf.reduce_sum(part, axis=0))
    return tf.add_n(squares), tf.reshape(tf.stack(gradients), [*window.kernel_size, *gradients[0].shape])


def contributions_by_offset(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> Iterator[tf.Tensor]:
    """Yields `G_i` in float32 of one kernel offset after the other, each [b, C / groups, P]."""
    a, d = tf.cast(a, tf.float32), tf.cast(d, tf.float32)
    sizes = static_or_dynamic_shape(d)
    positions = product(sizes[1:-1])
    channels, outputs = a.shape[-1] // groups, d.shape[-1]
    d_flat = tf.reshape(d, [sizes[0], positions, outputs])
    for shifted in window.shifted_inputs(a, sizes[1:-1]):
        if groups == 1:
            flat = tf.reshape(shifted, [sizes[0], positions, channels])
            yield tf.matmul(flat, d_flat, transpose_a=True)
        else:
            yield _grouped(shifted, d_flat, groups, sizes[0], positions)


def _grouped(shifted: tf.Tensor, d: tf.Tensor, groups: int, batch: Size, positions: Size) -> tf.Tensor:
    """Group g joins the g-th C / groups inputs with the g-th P / groups outputs."""
    channels, outputs = shifted.shape[-1] // groups, d.shape[-1]
    a = tf.reshape(shifted, [batch, positions, groups, channels])
    d = tf.reshape(d, [batch, positions, groups, outputs // groups])
    return tf.reshape(tf.einsum("btgc,btgp->bcgp", a, d), [batch, channels, outputs])
