"""Convolutions' norms without the contributions: `||G_i||^2 = sum_{t,t'} (patch_t . patch_t') (d_t . d_t')`.

The patches' Gram matrix is a sum of shifted copies of the pixels' Gram matrix, one for each kernel offset, so that no
patches are stored: `T^2 (C + P + kernel offsets)` products, where the contributions take `T C P` for every offset.
"""

from __future__ import annotations

import itertools
import math

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels.chunks import chunk_of, squared_norms_in_chunks
from tf_largebatch.norms.shapes import static_or_dynamic_size
from tf_largebatch.norms.window import Window

CHUNK_BYTES = 8 * 2**20


def applies(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> bool:
    """Returns whether the form can be used: sizes known, one group, at most two spatial axes."""
    return (
        groups == 1
        and a.shape[1:].is_fully_defined()
        and d.shape[1:].is_fully_defined()
        and (len(window.kernel_size) <= 2 or window.is_pointwise)
    )


def squared_norms(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns `||G_i||^2`, shape [b], in float32 throughout: the terms of the sum cancel."""
    chunk = chunk_of(4 * math.prod(a.shape[1:-1]) ** 2, CHUNK_BYTES)
    return squared_norms_in_chunks(lambda a, d: _squared_norms(a, d, window), a, d, chunk)


def _squared_norms(a: tf.Tensor, d: tf.Tensor, window: Window) -> tf.Tensor:
    b, out, sizes = static_or_dynamic_size(a, 0), list(d.shape[1:-1]), list(a.shape[1:-1])
    if window.is_pointwise and any(s > 1 for s in window.strides):
        a = next(iter(window.shifted_inputs(a, out)))
        sizes = out
    patches = _gram(a, b)
    if not window.is_pointwise:
        patches = _gram_of_patches(tf.reshape(patches, [b, *sizes, *sizes]), a, window, out)
    product = tf.reshape(patches, [b, -1]) * tf.reshape(_gram(d, b), [b, -1])
    return tf.maximum(tf.reduce_sum(product, axis=1), 0.0)


def _gram(t: tf.Tensor, b: int | tf.Tensor) -> tf.Tensor:
    """Returns `t_p . t_q` for all positions p and q of each example, shape [b, T, T]."""
    t = tf.reshape(tf.cast(t, tf.float32), [b, math.prod(t.shape[1:-1]), t.shape[-1]])
    return tf.matmul(t, t, transpose_b=True)


def _gram_of_patches(pixels: tf.Tensor, a: tf.Tensor, window: Window, out: list[int]) -> tf.Tensor:
    """Returns the sum over the kernel offsets of `pixels` [b, *sizes, *sizes], shifted along both sets of axes."""
    padding = window.padding_of(a, out)
    pixels = tf.pad(pixels, [[0, 0], *padding, *padding])
    shifted = []
    for offset in itertools.product(*(range(k) for k in window.kernel_size)):
        at = tuple(
            slice(o * r, o * r + (n - 1) * s + 1, s)
            for o, n, s, r in zip(offset, out, window.strides, window.dilation_rate, strict=True)
        )
        examples_and_both = (slice(None), *at, *at)
        shifted.append(pixels[examples_and_both])
    return tf.add_n(shifted)
