"""Dense on a SparseTensor: `y = x W` with `x` [B, D], so `G_i = x_i (x) d_i` has as many rows as `x_i` has entries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tf_largebatch.norms.kernels import matmul
from tf_largebatch.norms.shapes import of_examples, with_positions
from tf_largebatch.norms.sums import sum_squares_per_example


@dataclasses.dataclass(frozen=True)
class SparseMatMul:
    """`y = a w` with a sparse `a` [B, D] or, for several uses joined, [B, T, D]; `w` [D, P]; `y` [B, P] or [B, T, P].

    Entries of `a` at one place add up. Norms take time linear in the number of entries: no [B, D] array is formed.
    """

    a: tf.SparseTensor

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Returns `G_i = sum_t a_{i,t} (x) d_{i,t}`, dense, float32, shape [b, D, P]."""
        a = _of_examples(self.a, examples)
        dense = tf.scatter_nd(a.indices, tf.cast(a.values, tf.float32), a.dense_shape)
        dense = tf.ensure_shape(dense, [None, *self.a.shape[1:]])
        return matmul.contributions(with_positions(dense), with_positions(of_examples(d, examples)))

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Returns `||a_i||^2 ||d_i||^2` for one position. For several, row c of `G_i` is `sum_t a_{i,t,c} d_{i,t}`."""
        a, d = _of_examples(self.a, examples), tf.cast(of_examples(d, examples), tf.float32)
        values = tf.cast(a.values, tf.float32)
        example, column = a.indices[:, 0], a.indices[:, -1]
        places, slots = tf.unique(example * a.dense_shape[-1] + column)
        if self.a.shape.rank == 2:
            squares = tf.square(tf.math.unsorted_segment_sum(values, slots, tf.size(places)))
        else:
            terms = values[:, tf.newaxis] * tf.gather_nd(d, a.indices[:, :2])
            rows = tf.math.unsorted_segment_sum(terms, slots, tf.size(places))
            squares = tf.reduce_sum(tf.square(rows), axis=1)
        totals = tf.math.unsorted_segment_sum(squares, places // a.dense_shape[-1], tf.shape(d)[0])
        return totals * sum_squares_per_example(d) if self.a.shape.rank == 2 else totals

    def norms_and_gradient(self, d: tf.Tensor) -> None:
        """Returns None: the ordinary gradient is sparse, which no sum of contributions is."""
        del d
        return None

    @classmethod
    def joined(cls, uses: Sequence[SparseMatMul], ds: Sequence[tf.Tensor]) -> tuple[SparseMatMul, tf.Tensor]:
        """Returns the uses of one variable as one use whose positions are those of all, and its `d`."""
        width = uses[0].a.shape[-1]
        a = tf.sparse.concat(1, [tf.sparse.expand_dims(tf.cast(use.a, tf.float32), 1) for use in uses])
        a = tf.SparseTensor(a.indices, a.values, a.dense_shape)
        a.set_shape([None, len(uses), width])
        return cls(a), tf.stack([tf.cast(d, tf.float32) for d in ds], axis=1)


def _of_examples(a: tf.SparseTensor, examples: slice) -> tf.SparseTensor:
    """Returns the rows of a slice of examples."""
    if examples == slice(None):
        return a
    start = tf.cast(0 if examples.start is None else examples.start, tf.int64)
    stop = a.dense_shape[0] if examples.stop is None else tf.cast(examples.stop, tf.int64)
    others = a.dense_shape[1:]
    start = tf.concat([start[tf.newaxis], tf.zeros_like(others)], axis=0)
    size = tf.concat([stop[tf.newaxis] - start[:1], others], axis=0)
    return tf.sparse.slice(a, start, size)
