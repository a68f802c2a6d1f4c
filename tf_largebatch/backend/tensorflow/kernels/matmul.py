"""Computes norms and sum of per-example products `G_i = sum_t a_{i,t} (x) d_{i,t}`, in float32, in chunks of examples.

`a` is [B, ..., T, D] and `d` is [B, ..., T, P]; `G_i` is [..., D, P]. Half-precision inputs are cast first: sums of
thousands of float16 terms would lose the result.
"""

from __future__ import annotations

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels.chunks import (
    chunk_of,
    norms_and_gradient_in_chunks,
    squared_norms_in_chunks,
)
from tf_largebatch.norms.sums import squared_norms_and_sum

FLOAT_BYTES = 4


def contributions(a: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """Returns `G_i`, float32, shape [b, ..., D, P]."""
    return tf.matmul(tf.cast(a, tf.float32), tf.cast(d, tf.float32), transpose_a=True)


def squared_norms(a: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """Returns `||G_i||^2` in float32, shape [b], by the form that takes fewer products."""
    if a.shape[-2] == 1:
        return sum_squares_of_one_position(a, d)
    if gram_is_cheaper(a, d):
        return squared_norms_in_chunks(_gram_squared_norms, a, d, chunk_of(2 * FLOAT_BYTES * _matrices(a) * _gram(a)))
    return norms_and_gradient_directly(a, d)[0]


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`; None where the norms are cheaper beside the ordinary kernel."""
    if a.shape[-2] == 1 or gram_is_cheaper(a, d):
        return None
    return norms_and_gradient_directly(a, d)


def norms_and_gradient_directly(a: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, from the `G_i` of a chunk of examples at a time."""
    shape = [*a.shape[1:-2], a.shape[-1], d.shape[-1]]
    chunk = chunk_of(FLOAT_BYTES * _matrices(a) * a.shape[-1] * d.shape[-1])
    return norms_and_gradient_in_chunks(lambda a, d: squared_norms_and_sum(contributions(a, d)), a, d, chunk, shape)


def sum_squares_of_one_position(a: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """Returns `||a||^2 ||d||^2`, added over the axes between the example and the position."""
    a, d = (tf.reduce_sum(tf.square(tf.cast(t, tf.float32)), axis=[-2, -1]) for t in (a, d))
    return tf.reduce_sum(a * d, axis=list(range(1, a.shape.rank)))


def gram_is_cheaper(a: tf.Tensor, d: tf.Tensor) -> bool:
    """Returns whether the Gram form's `T^2 (D + P)` products are fewer than half of the direct form's `T D P`.

    Half, because the direct form also gives the gradient, which the Gram form leaves to the ordinary kernel.
    """
    positions, inputs, outputs = a.shape[-2], a.shape[-1], d.shape[-1]
    return positions is not None and 2 * positions * (inputs + outputs) < inputs * outputs


def _gram_squared_norms(a: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """Returns `sum_{t,t'} (a_t . a_t') (d_t . d_t')`, shape [b].

    In float32: the terms of the sum cancel, so products of half-precision Gram matrices would lose the norm.
    """
    a, d = tf.cast(a, tf.float32), tf.cast(d, tf.float32)
    products = tf.matmul(a, a, transpose_b=True) * tf.matmul(d, d, transpose_b=True)
    return tf.maximum(tf.reduce_sum(products, axis=list(range(1, products.shape.rank))), 0.0)


def _matrices(a: tf.Tensor) -> int:
    """Returns how many matrices an example's contribution consists of."""
    count = 1
    for size in a.shape[1:-2]:
        count *= size or 1
    return count


def _gram(a: tf.Tensor) -> int:
    """Returns the number of entries of a Gram matrix."""
    return a.shape[-2] ** 2
