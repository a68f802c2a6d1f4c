"""Depthwise convolutions' norms by a depthwise convolution with `d` as its kernel.

`G_i[o, c] = sum_t a_i[s t + r o, c] d_i[t, c]` is, as a function of o, the convolution of example i's input with the
kernel `d_i`: the stride s becomes its dilation and the dilation r its stride. As in depthwise_kernel.py the examples of
a chunk lie side by side as channels. The forward kernel sums over the positions t in registers, so that its time hardly
depends on the size of the kernel and the map.

Rows in front of one or two spatial axes, along which the kernel does not reach, lie beside each other as channels too,
and are added up afterwards.
"""

from __future__ import annotations

import math

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels.chunks import chunk_of, norms_and_gradient_in_chunks
from tf_largebatch.backend.tensorflow.kernels.depthwise_kernel import examples_as_channels, sums
from tf_largebatch.norms.shapes import static_or_dynamic_size
from tf_largebatch.norms.window import Window

# As in depthwise_kernel.py. A quarter or four times as much costs up to a third more.
CHUNK_BYTES = 4 * 2**20


def applies(a: tf.Tensor, d: tf.Tensor, window: Window) -> bool:
    """Returns whether the form can be used: at most two spatial axes with the same dilation, and rows; sizes known."""
    return (
        len(window.kernel_size) <= 2 + (_rows(a, window) > 1)
        and len(set(window.dilation_rate[-2:])) == 1
        and (max(window.strides) == 1 or max(window.dilation_rate) == 1)  # TensorFlow's kernels have one of the two
        and a.shape[1:].is_fully_defined()
        and d.shape[1:].is_fully_defined()
    )


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, M]; both float32."""
    channels, out, rows = a.shape[-1], list(d.shape[1:-1]), _rows(a, window)
    multiplier = d.shape[-1] // channels
    shape = [*window.kernel_size, channels, multiplier]
    images = out[1:] if rows > 1 else out
    images = [*([1] * (2 - len(images))), *images]  # of one line, where there is one axis only
    strides, rate = [1, *window.strides][-2:], window.dilation_rate[-1]

    def work(a: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        b = static_or_dynamic_size(a, 0)
        a = _padded(tf.cast(a, tf.float32), window, out)
        lines = a.shape[-3] if len(out) - (rows > 1) == 2 else 1
        a = examples_as_channels(tf.reshape(a, [b * rows, lines, a.shape[-2], channels]), b * rows)
        d = examples_as_channels(tf.reshape(tf.cast(d, tf.float32), [b * rows, *images, d.shape[-1]]), b * rows)
        d = tf.reshape(d, [*images, b * rows * channels, multiplier])
        g = tf.nn.depthwise_conv2d(a, d, [1, rate, rate, 1], "VALID", dilations=strides)
        if rows > 1:
            g = tf.reduce_sum(tf.reshape(g, [math.prod(window.kernel_size), b, rows, channels, multiplier]), axis=2)
        return sums(g, b, shape)

    chunk = chunk_of(4 * (math.prod(a.shape[1:]) + math.prod(d.shape[1:])), CHUNK_BYTES)
    return norms_and_gradient_in_chunks(work, a, d, chunk, shape)


def _rows(a: tf.Tensor, window: Window) -> int:
    """Returns how many rows an example has that are convolved one by one; 1 if the first axis is convolved too."""
    apart = len(window.kernel_size) > 1 and window.kernel_size[0] == window.strides[0] == window.dilation_rate[0] == 1
    return (a.shape[1] or 1) if apart else 1


def _padded(a: tf.Tensor, window: Window, out: list[int]) -> tf.Tensor:
    """Returns `a` with as many positions along each axis as all offsets meet together."""
    padding, cut = [], []
    for i, (before, _) in enumerate(window.padding_of(a, out)):
        met = (out[i] - 1) * window.strides[i] + (window.kernel_size[i] - 1) * window.dilation_rate[i] + 1
        cut.append(slice(0, met - before))
        padding.append([before, max(0, met - before - a.shape[1 + i])])
    examples_and_cut = (slice(None), *cut)
    return tf.pad(a[examples_and_cut], [[0, 0], *padding, [0, 0]])
