"""Biases: `y = z + b`, so `G_i` sums example i's output gradient over the axes along which b is broadcast."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf
from keras import ops

from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.shapes import Size, of_examples
from tf_largebatch.norms.sums import squared_norms_and_sum, sum_squares_per_example


@dataclasses.dataclass(frozen=True)
class Bias:
    """`y = z + reshape(w, broadcast_shape)` by NumPy's broadcasting, `broadcast_shape` as long as y's rank."""

    variable_shape: tuple[int, ...]
    broadcast_shape: tuple[int, ...]

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Returns `G_i = sum_t d_{i,t}` in float32, shape [b, *variable_shape]."""
        d = tf.cast(of_examples(d, examples), tf.float32)
        summed = [axis for axis, size in enumerate(self.broadcast_shape) if size == 1 and axis > 0]
        return tf.reshape(tf.reduce_sum(d, axis=summed), [-1, *self.variable_shape])

    def all_norms_are_free(self, d: tf.Tensor) -> bool:
        """Returns True: summing over each example's positions first is no more work."""
        del d
        return True

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Returns `||G_i||^2` from the contributions: no more work than the bias's own gradient."""
        return sum_squares_per_example(self.contributions(d, examples))

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `||G_i||^2` and `sum_i G_i`, in place of the ordinary sum over examples and positions."""
        return squared_norms_and_sum(self.contributions(d, slice(None)))

    def over_rows(self, batch: Size, rows: Size) -> Bias:
        """Returns the contraction in which `rows` consecutive rows are positions of one example."""
        del batch, rows
        return Bias(self.variable_shape, (1, *self.broadcast_shape))


def add_bias(recorder: Recorder, bias: Any, y: tf.Tensor, broadcast_shape: tuple[int, ...]) -> tf.Tensor:
    """Records and returns `y + reshape(bias, broadcast_shape)`."""
    variable_shape = tuple(bias.shape)
    missing = y.shape.rank - len(broadcast_shape)
    broadcast_shape = (1,) * missing + tuple(broadcast_shape)
    biased = ops.add(y, ops.reshape(recorder.value(bias), broadcast_shape))
    return recorder.record(bias, biased, Bias(variable_shape, broadcast_shape))
