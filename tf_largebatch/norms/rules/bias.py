"""Biases: `y = z + b`, so `G_i` sums example i's output gradient over the axes along which b is broadcast."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import ops

from tf_largebatch.keras_internals import added_shape
from tf_largebatch.norms.recorder import Recorder, Tensor
from tf_largebatch.norms.shapes import Size, of_examples
from tf_largebatch.norms.sums import squared_norms_and_sum, sum_squares_per_example


@dataclasses.dataclass(frozen=True)
class Bias:
    """`y = z + reshape(w, broadcast_shape)` by NumPy's broadcasting, `broadcast_shape` as long as y's rank."""

    variable_shape: tuple[int, ...]
    broadcast_shape: tuple[int, ...]

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i = sum_t d_{i,t}` in float32, shape [b, *variable_shape]."""
        d = ops.cast(of_examples(d, examples), "float32")
        summed = [axis for axis, size in enumerate(self.broadcast_shape) if size == 1 and axis > 0]
        return ops.reshape(ops.sum(d, axis=tuple(summed)), [-1, *self.variable_shape])

    def all_norms_are_free(self, d: Tensor) -> bool:
        """Returns True: summing over each example's positions first is no more work."""
        del d
        return True

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `||G_i||^2` from the contributions: no more work than the bias's own gradient."""
        return sum_squares_per_example(self.contributions(d, examples))

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `||G_i||^2` and `sum_i G_i`, in place of the ordinary sum over examples and positions."""
        return squared_norms_and_sum(self.contributions(d, slice(None)))

    def over_rows(self, batch: Size, rows: Size) -> Bias:
        """Returns the contraction in which `rows` consecutive rows are positions of one example."""
        del batch, rows
        return Bias(self.variable_shape, (1, *self.broadcast_shape))


def add_bias(recorder: Recorder, bias: Any, y: Tensor, broadcast_shape: tuple[int, ...]) -> Tensor:
    """Records and returns `y + reshape(bias, broadcast_shape)`, as the layer's own Keras adds it.

    Keras's layers add it by `keras.ops.add`, which may take another axis of the same length: the record then has that
    axis. tf_keras's layers add it by NumPy's broadcasting.
    """
    missing = len(y.shape) - len(broadcast_shape)
    broadcast_shape = (1,) * missing + tuple(broadcast_shape)
    value, added = ops.reshape(recorder.value(bias), broadcast_shape), added_shape(tuple(y.shape), broadcast_shape)
    if added == broadcast_shape or isinstance(bias, keras.Variable):
        biased, broadcast_shape = ops.add(y, value), added
    else:
        biased = y + ops.cast(value, y.dtype)
    return recorder.record(bias, biased, Bias(tuple(bias.shape), broadcast_shape))
