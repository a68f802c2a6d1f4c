"""Sizes and shapes: Python ints where they are known when the step is traced, tensors where they are not."""

from __future__ import annotations

from typing import TypeAlias

import tensorflow as tf

Size: TypeAlias = int | tf.Tensor


def static_or_dynamic_size(t: tf.Tensor, axis: int) -> Size:
    """Returns the size of one axis: an int if it is known when the step is traced, else a scalar int32 tensor."""
    size = t.shape[axis]
    return tf.shape(t)[axis] if size is None else size


def static_or_dynamic_shape(t: tf.Tensor) -> list[Size]:
    """Returns the sizes of all axes, each as `static_or_dynamic_size` gives it."""
    return [static_or_dynamic_size(t, axis) for axis in range(t.shape.rank)]


def of_examples(t: tf.Tensor, examples: slice) -> tf.Tensor:
    """Returns the rows of a slice of examples; `t` itself for `slice(None)`, which keeps graphs small."""
    return t if examples == slice(None) else t[examples]


def split_rows(t: tf.Tensor, batch: Size, rows: Size) -> tf.Tensor:
    """Returns [batch * rows, ...] as [batch, rows, ...]."""
    return tf.reshape(t, [batch, rows, *static_or_dynamic_shape(t)[1:]])


def with_positions(t: tf.Tensor) -> tf.Tensor:
    """Returns [B, ..., C] as [B, T, C]; T is 1 where there is no axis between."""
    sizes = static_or_dynamic_shape(t)
    return tf.reshape(t, [sizes[0], product(sizes[1:-1]), sizes[-1]])


def product(sizes: list[Size]) -> Size:
    """Returns the product of sizes: an int if all of them are ints."""
    result: Size = 1
    for size in sizes:
        result = result * size
    return result
