"""Convolutions' norms in the forms that are cheap on a TPU.

Memory traffic decides there. The compiler fuses a product for every example with the two sums taken of it, the sum of
squares and the sum over examples, so that the contributions never reach memory. What is left is reading `a` and `d`
once for each product, and copying tensors that lie with the examples innermost, where no product for each example can
be formed. The tables behind every choice are in benchmarks/README.md.
"""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels.xla_convolution import kept_apart, row_contributions
from tf_largebatch.norms.sums import sum_squares_per_example
from tf_largebatch.norms.window import Window

# Both sums are fused into a product only while one example's contribution is no larger than this: 512 x 512.
_FUSED_ENTRIES = 2**18
# Channels side by side in a register; fewer leave the rest of it empty.
_LANES = 128

_Sums = tuple[tf.Tensor, tf.Tensor]  # `||G_i||^2`, shape [B], and `sum_i G_i`


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> _Sums | None:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`; None where the general form is to be used."""
    if not _applies(a, d, window, groups):
        return None
    if _gram_is_cheaper(a, d, window):
        # The ordinary kernel's gradient, asked for here so that it is not put off until the end of the step.
        return _shifted_gram(a, d, window), _ordinary_gradient(a, d, window)
    if window.is_pointwise:
        squares, gradient = _pointwise(a, d, window)
    elif _pairs_apply(a, d, window):
        squares, gradient = _pairs_of_columns(a, d, window)
    else:
        squares, gradient = _columns(a, d, window)
    return squares, tf.reshape(gradient, [*window.kernel_size, a.shape[-1], d.shape[-1]])


def squared_norms(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tf.Tensor | None:
    """Returns `||G_i||^2`, shape [b]; None where the general form is to be used."""
    if not _applies(a, d, window, groups):
        return None
    if _gram_is_cheaper(a, d, window):
        return _shifted_gram(a, d, window)
    # These are a few examples of the batch: cut them out first, then rearrange only them.
    a, d = kept_apart(a, d)
    together = norms_and_gradient(a, d, window, groups)
    return None if together is None else together[0]


def all_norms_are_free(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> bool:
    """Returns whether `norms_and_gradient` of all examples is cheaper than the gradient and `squared_norms` of a few.

    It is cheaper where one product gives both at the traffic of the ordinary kernel: a few examples would have to be
    cut out and read once more.
    """
    return _applies(a, d, window, groups) and window.is_pointwise and not _gram_is_cheaper(a, d, window)


def _applies(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> bool:
    """Returns whether there are two spatial axes, one group, and sizes that are known when the step is traced."""
    return groups == 1 and a.shape.rank == 4 and a.shape.is_fully_defined() and d.shape.is_fully_defined()


def _geometry(a: tf.Tensor, d: tf.Tensor, window: Window) -> list[list[int]]:
    """Returns, for each axis, the zeros before and after `a` with which every kernel offset meets all of `d`.

    The second number is negative where `a` goes on after the last row that is used.
    """
    before = [side[0] for side in window.padding_of(a, list(d.shape[1:-1]))]
    sizes = zip(a.shape[1:-1], d.shape[1:-1], window.kernel_size, window.strides, window.dilation_rate, strict=True)
    used = [(out - 1) * s + (k - 1) * r + 1 for _, out, k, s, r in sizes]
    return [[first, last - size - first] for first, last, size in zip(before, used, a.shape[1:-1], strict=True)]


def _with_columns(a: tf.Tensor, padding: list[int]) -> tf.Tensor:
    """Returns `a` with that many columns of zeros before and after it."""
    before, after = padding
    return tf.pad(a[:, :, : a.shape[2] + min(after, 0)], [[0, 0], [0, 0], [before, max(after, 0)], [0, 0]])


def _sums(contributions: tf.Tensor) -> _Sums:
    return sum_squares_per_example(contributions), tf.reduce_sum(contributions, axis=0)


def _pointwise(a: tf.Tensor, d: tf.Tensor, window: Window) -> _Sums:
    """Forms `G_i = a_i^T d_i` in as many blocks as it takes for the sums to be fused into the product."""
    rows, columns = window.strides
    a = a[:, ::rows, ::columns] if max(window.strides) > 1 else a
    a, d = (tf.reshape(t, [t.shape[0], -1, t.shape[-1]]) for t in (a, d))
    inputs, outputs = a.shape[-1], d.shape[-1]
    blocks = 1
    while inputs * outputs > _FUSED_ENTRIES * blocks and max(inputs, outputs) % (2 * blocks) == 0:
        blocks *= 2
    by_outputs = outputs >= inputs  # cut the longer side, for the shorter is read again for every block
    parts = [
        _sums(tf.matmul(x, y, transpose_a=True, output_type=tf.float32))
        for x, y in (
            zip([a] * blocks, tf.split(d, blocks, axis=-1), strict=True)
            if by_outputs
            else zip(tf.split(a, blocks, axis=-1), [d] * blocks, strict=True)
        )
    ]
    squares, gradients = zip(*parts, strict=True)
    return tf.add_n(squares), tf.concat(gradients, axis=1 if by_outputs else 0)


def _columns(a: tf.Tensor, d: tf.Tensor, window: Window) -> _Sums:
    """Forms one product for every column of the kernel; the rows slide within it."""
    rows, columns = _geometry(a, d, window)
    a = _with_columns(a, columns)
    width, stride, dilation = d.shape[2], window.strides[1], window.dilation_rate[1]
    starts = range(0, window.kernel_size[1] * dilation, dilation)
    shifted = [a[:, :, start : start + (width - 1) * stride + 1 : stride] for start in starts]
    if a.shape[-1] * window.kernel_size[1] <= _LANES:
        # The inputs for all columns fit beside each other, as in a first layer: one product.
        shifted = [tf.concat(shifted, axis=-1)]
    parts = [_sums(row_contributions(x, d, rows, window.strides[0], window.dilation_rate[0])) for x in shifted]
    squares, gradients = zip(*parts, strict=True)
    return tf.add_n(squares), tf.concat(gradients, axis=1)  # [rows, columns C, P]


def _pairs_apply(a: tf.Tensor, d: tf.Tensor, window: Window) -> bool:
    """Returns whether a kernel of three columns meets an even number of columns, and channels fill half a register."""
    return (
        window.kernel_size[1] == 3
        and window.strides[1] == 1
        and window.dilation_rate[1] == 1
        and window.padding == "same"
        and a.shape[2] % 2 == 0
        and max(a.shape[-1], d.shape[-1]) <= _LANES // 2
    )


def _pairs_of_columns(a: tf.Tensor, d: tf.Tensor, window: Window) -> _Sums:
    """Puts two neighbouring columns side by side in the channels, so that no register is half empty.

    With columns 2m and 2m + 1 of `a` beside those of `d`, one product gives all that the kernel's middle column wants
    and half of what the outer two want, whose other halves join neighbouring pairs.
    """
    rows, _ = _geometry(a, d, window)
    inputs, outputs = a.shape[-1], d.shape[-1]
    a, d = (tf.reshape(t, [t.shape[0], t.shape[1], t.shape[2] // 2, 2 * t.shape[3]]) for t in (a, d))

    def product(a: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
        return row_contributions(a, d, rows, window.strides[0], window.dilation_rate[0])

    within = product(a, d)
    parts = [
        within[..., :inputs, outputs:] + product(a[:, :, :-1, inputs:], d[:, :, 1:, :outputs]),
        within[..., :inputs, :outputs] + within[..., inputs:, outputs:],
        within[..., inputs:, :outputs] + product(a[:, :, 1:, :inputs], d[:, :, :-1, outputs:]),
    ]
    squares, gradients = zip(*(_sums(part) for part in parts), strict=True)
    return tf.add_n(squares), tf.stack(gradients, axis=1)


def _gram_is_cheaper(a: tf.Tensor, d: tf.Tensor, window: Window) -> bool:
    """Returns whether positions are few and channels many: the Gram form takes `T^2 (C + P)` products."""
    inputs, outputs = a.shape[-1], d.shape[-1]
    positions = math.prod(d.shape[1:3] if window.is_pointwise else a.shape[1:3])
    return 8 * positions * (inputs + outputs) < math.prod(window.kernel_size) * inputs * outputs


def _shifted_gram(a: tf.Tensor, d: tf.Tensor, window: Window) -> tf.Tensor:
    """Returns `sum_{t,t'} (patch_t . patch_t') (d_t . d_t')`, the first factors as sums of shifted pixels' products."""
    if window.is_pointwise and max(window.strides) > 1:
        a = a[:, :: window.strides[0], :: window.strides[1]]
        window = dataclasses.replace(window, strides=(1, 1))
    height, width = d.shape[1:3]
    pixels = tf.reshape(a, [a.shape[0], -1, a.shape[-1]])
    pixels = tf.matmul(pixels, pixels, transpose_b=True, output_type=tf.float32)
    gram = tf.reshape(pixels, [-1, *a.shape[1:3], *a.shape[1:3]])
    padding = _geometry(a, d, window)
    sizes = a.shape[1:3]
    cut = [slice(0, size + min(after, 0)) for size, (_, after) in zip(sizes, padding, strict=True)]
    gram = gram[:, cut[0], cut[1], cut[0], cut[1]]
    gram = tf.pad(gram, [[0, 0], *([before, max(after, 0)] for before, after in padding * 2)])
    patches = []
    for i in range(window.kernel_size[0]):
        for j in range(window.kernel_size[1]):
            (r, s), (x, y) = window.dilation_rate, window.strides
            row = slice(i * r, i * r + (height - 1) * x + 1, x)
            column = slice(j * s, j * s + (width - 1) * y + 1, y)
            patches.append(gram[:, row, column, row, column])
    d = tf.reshape(d, [d.shape[0], height * width, -1])
    d = tf.reshape(tf.matmul(d, d, transpose_b=True, output_type=tf.float32), [-1, height, width, height, width])
    # The terms cancel: a sum of rounded ones may fall below zero.
    return tf.maximum(tf.reduce_sum(tf.add_n(patches) * d, axis=[1, 2, 3, 4]), 0.0)


def _ordinary_gradient(a: tf.Tensor, d: tf.Tensor, window: Window) -> tf.Tensor:
    """Returns `sum_i G_i` in float32."""
    gradient = tf.raw_ops.Conv2DBackpropFilter(
        input=a,
        filter_sizes=[*window.kernel_size, a.shape[-1], d.shape[-1]],
        out_backprop=d,
        strides=[1, *window.strides, 1],
        padding=window.padding.upper(),
        dilations=[1, *window.dilation_rate, 1],
    )
    return tf.cast(gradient, tf.float32)
