"""Depthwise convolutions' norms by a depthwise convolution with `d` as its kernel.

`G_i[o, c] = sum_t a_i[s t + r o, c] d_i[t, c]` is, as a function of o, the convolution of example i's input with the
kernel `d_i`: the stride s becomes its dilation and the dilation r its stride. As in depthwise_kernel.py the examples of
a chunk lie side by side as channels. The forward kernel sums over the positions t in registers, so that its time hardly
depends on the size of the kernel and the map.
"""

from __future__ import annotations

import math

import tensorflow as tf

from tf_largebatch.norms.kernels.chunks import chunk_of, norms_and_gradient_in_chunks
from tf_largebatch.norms.kernels.depthwise_kernel import examples_as_channels, sums
from tf_largebatch.norms.kernels.window import Window
from tf_largebatch.norms.shapes import static_or_dynamic_size

# As in depthwise_kernel.py. A quarter or four times as much costs up to a third more.
CHUNK_BYTES = 4 * 2**20


def applies(a: tf.Tensor, d: tf.Tensor, window: Window) -> bool:
    """Returns whether the form can be used: at most two spatial axes with the same dilation, sizes known."""
    return (
        len(window.kernel_size) <= 2
        and len(set(window.dilation_rate)) == 1
        and (max(window.strides) == 1 or max(window.dilation_rate) == 1)  # TensorFlow's kernels have one of the two
        and a.shape[1:].is_fully_defined()
        and d.shape[1:].is_fully_defined()
    )


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, M]; both float32."""
    channels, out = a.shape[-1], list(d.shape[1:-1])
    multiplier = d.shape[-1] // channels
    shape = [*window.kernel_size, channels, multiplier]
    missing = [1] * (2 - len(out))  # an image of one row, where there is one axis only
    strides, rate = [*missing, *window.strides], window.dilation_rate[0]

    def work(a: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        b = static_or_dynamic_size(a, 0)
        a = _padded(tf.cast(a, tf.float32), window, out)
        a = examples_as_channels(tf.reshape(a, [b, *missing, *a.shape[1:]]), b)
        d = examples_as_channels(tf.reshape(tf.cast(d, tf.float32), [b, *missing, *out, d.shape[-1]]), b)
        d = tf.reshape(d, [*missing, *out, b * channels, multiplier])
        g = tf.nn.depthwise_conv2d(a, d, [1, rate, rate, 1], "VALID", dilations=strides)
        return sums(g, b, shape)

    chunk = chunk_of(4 * (math.prod(a.shape[1:]) + math.prod(d.shape[1:])), CHUNK_BYTES)
    return norms_and_gradient_in_chunks(work, a, d, chunk, shape)


def _padded(a: tf.Tensor, window: Window, out: list[int]) -> tf.Tensor:
    """Returns `a` with as many positions along each axis as all offsets meet together."""
    padding, cut = [], []
    for i, (before, _) in enumerate(window.padding_of(a, out)):
        met = (out[i] - 1) * window.strides[i] + (window.kernel_size[i] - 1) * window.dilation_rate[i] + 1
        cut.append(slice(0, met - before))
        padding.append([before, max(0, met - before - a.shape[1 + i])])
    examples_and_cut = (slice(None), *cut)
    return tf.pad(a[examples_and_cut], [[0, 0], *padding, [0, 0]])
