"""Splitting a batch into micro-batches that are worked off one after the other on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.norms.shapes import Size, static_or_dynamic_shape


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one forward and backward pass gives: scalars and tensors that average over equal parts of a batch.

    Attributes:
        loss: the unscaled loss, a scalar.
        gradients: for each variable its gradient or None.
        norms: for each variable `s_k`, a float32 scalar, or None; empty when nothing was measured.
    """

    loss: tf.Tensor
    gradients: list[Any]
    norms: list[Any]


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
    even = isinstance(batch_size, int) and batch_size % micro_batch_size == 0
    absent: list[list[bool]] = []  # which gradients and norms are None, known once the step has been traced

    def part(j: tf.Tensor) -> tuple[Any, tf.Tensor]:
        start = j * micro_batch_size
        stop = start + micro_batch_size if even else tf.minimum(start + micro_batch_size, batch_size)

        def cut(t: tf.Tensor | None) -> tf.Tensor | None:
            if t is None:
                return None
            if not even:
                return t[start:stop]
            # A size known when traced, which XLA needs.
            others = static_or_dynamic_shape(t)[1:]
            return tf.slice(t, [start, *(0 for _ in others)], [micro_batch_size, *others])

        weight = tf.cast(stop - start, tf.float32) / tf.cast(batch_size, tf.float32)
        return keras.tree.map_structure(cut, data), weight

    def body(j: tf.Tensor, *sums: Any) -> list[Any]:
        micro_batch, weight = part(j)
        result = step(micro_batch)
        found = [result.loss, *result.gradients, *result.norms]
        absent.append([value is None for value in found])
        added = []
        for total, value in zip(sums, found + [None] * (len(sums) - len(found)), strict=True):
            if value is not None:
                total = total + tf.cast(weight, total.dtype) * tf.cast(tf.convert_to_tensor(value), total.dtype)
            added.append(total)
        return [j + 1, *added]

    shapes = [
        ((), tf.float32),
        *((v.shape, v.dtype) for v in variables),
        *(((), tf.float32) for _ in variables),
    ]
    zeros = [tf.zeros(shape, dtype) for shape, dtype in shapes]
    last = count(batch_size, micro_batch_size)
    loop = tf.while_loop(lambda j, *_: j < last, body, [tf.constant(0), *zeros], parallel_iterations=1)
    known = absent[0]
    values = [None if missing else value for missing, value in zip(known, loop[1:], strict=False)]
    return StepResult(values[0], values[1 : 1 + len(variables)], values[1 + len(variables) :])
