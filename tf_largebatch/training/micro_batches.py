"""Splitting a batch into micro-batches that are worked off one after the other on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.norms.shapes import Size, static_or_dynamic_shape, static_or_dynamic_size


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one forward and backward pass gives: scalars and tensors that average over equal parts of a batch.

    Attributes:
        loss: the unscaled loss, a scalar.
        gradients: for each variable its gradient or None.
        norms: for each variable `s_k`, a float32 scalar, or None; empty when nothing was measured.
        mean_squares: for the K variables the mean of the squared norms of the examples' own gradients, float32 [K], or
            None when nobody asked for it.
    """

    loss: tf.Tensor
    gradients: list[Any]
    norms: list[Any]
    mean_squares: tf.Tensor | None = None


def count(batch_size: Size, micro_batch_size: int) -> Size:
    """How many micro-batches a batch makes, the last of which may be smaller."""
    return -(-batch_size // micro_batch_size)


def averaged_over_micro_batches(
    step: Callable[[Any], StepResult],
    data: Any,
    variables: list[Any],
    batch_size: Size,
    micro_batch_size: int,
) -> StepResult:
    """Runs the step on each micro-batch in one compiled loop and averages the results by number of examples.

    With a loss that is a mean over examples, the gradient and the norms are those of the whole batch, but for layers
    that couple examples (batch normalization sees one micro-batch at a time). Memory is that of one micro-batch.

    Args:
        step: the pass over one micro-batch.
        data: nested tensors with the examples on axis 0.
        variables: the trainable variables, which give the gradients' shapes.
        batch_size: number of examples in `data`.
        micro_batch_size: number of examples in a micro-batch.
    """
    cut = _Cut(data, batch_size, micro_batch_size)
    absent: list[list[bool]] = []  # which gradients and norms are None, known once the step has been traced

    def body(j: tf.Tensor, *sums: Any) -> list[Any]:
        micro_batch, weight = cut.part(j)
        result = step(micro_batch)
        found = [result.loss, result.mean_squares, *result.gradients, *result.norms]
        absent.append([value is None for value in found])
        added = []
        for total, value in zip(sums, found + [None] * (len(sums) - len(found)), strict=True):
            if value is not None:
                total = total + tf.cast(weight, total.dtype) * tf.cast(tf.convert_to_tensor(value), total.dtype)
            added.append(total)
        return [j + 1, *added]

    shapes = [
        ((), tf.float32),
        ((len(variables),), tf.float32),
        *((v.shape, v.dtype) for v in variables),
        *(((), tf.float32) for _ in variables),
    ]
    zeros = [tf.zeros(shape, dtype) for shape, dtype in shapes]
    last = count(batch_size, micro_batch_size)
    loop = tf.while_loop(lambda j, *_: j < last, body, [tf.constant(0), *zeros], parallel_iterations=1)
    known = absent[0]
    values = [None if missing else value for missing, value in zip(known, loop[1:], strict=False)]
    return StepResult(values[0], values[2 : 2 + len(variables)], values[2 + len(variables) :], values[1])


def mapped_over_micro_batches(
    function: Callable[[Any, tf.Tensor], tf.Tensor], data: Any, like: tf.Tensor, micro_batch_size: int
) -> tf.Tensor:
    """Applies a function to each micro-batch in one compiled loop and puts its results together again.

    Args:
        function: of a micro-batch and its number, int32; gives a tensor with the examples on axis 0.
        data: nested tensors with the examples on axis 0.
        like: a tensor in the shape and dtype of the result.
        micro_batch_size: number of examples in a micro-batch.
    """
    batch_size = static_or_dynamic_size(like, 0)
    cut = _Cut(data, batch_size, micro_batch_size)
    parts = count(batch_size, micro_batch_size)
    size = micro_batch_size if cut.even else None
    results = tf.TensorArray(like.dtype, parts, infer_shape=False, element_shape=[size, *like.shape[1:]])
    loop = tf.while_loop(
        lambda j, _: j < parts,
        lambda j, found: (j + 1, found.write(j, function(cut.part(j)[0], j))),
        [tf.constant(0), results],
        parallel_iterations=1,
    )
    together = loop[1].stack() if cut.even else loop[1].concat()
    return tf.reshape(together, static_or_dynamic_shape(like))


class _Cut:
    """A batch cut into micro-batches.

    Args:
        data: nested tensors with the examples on axis 0, or None.
        batch_size: number of examples in `data`.
        micro_batch_size: number of examples in a micro-batch.
    """

    def __init__(self, data: Any, batch_size: Size, micro_batch_size: int) -> None:
        self._data, self._batch_size, self._size = data, batch_size, micro_batch_size
        self.even = isinstance(batch_size, int) and batch_size % micro_batch_size == 0

    def part(self, j: tf.Tensor) -> tuple[Any, tf.Tensor]:
        """Micro-batch number j and its share of the examples."""
        start = j * self._size
        stop = start + self._size if self.even else tf.minimum(start + self._size, self._batch_size)

        def cut(t: tf.Tensor | None) -> tf.Tensor | None:
            if t is None:
                return None
            if not self.even:
                return t[start:stop]
            # A size known when traced, which XLA needs.
            others = static_or_dynamic_shape(t)[1:]
            return tf.slice(t, [start, *(0 for _ in others)], [self._size, *others])

        weight = tf.cast(stop - start, tf.float32) / tf.cast(self._batch_size, tf.float32)
        return keras.tree.map_structure(cut, self._data), weight
