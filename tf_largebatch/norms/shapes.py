"""Sizes and shapes: Python ints where they are known when the step is traced, tensors where they are not."""

from __future__ import annotations

from typing import Any, TypeAlias

from keras import ops

Size: TypeAlias = Any  # an int or a scalar int32 tensor


def static_or_dynamic_size(t: Any, axis: int) -> Size:
    """Returns the size of one axis: an int if it is known when the step is traced, else a scalar int32 tensor."""
    size = t.shape[axis]
    return ops.shape(t)[axis] if size is None else size


def static_or_dynamic_shape(t: Any) -> list[Size]:
    """Returns the sizes of all axes, each as `static_or_dynamic_size` gives it."""
    return [static_or_dynamic_size(t, axis) for axis in range(len(t.shape))]


def of_examples(t: Any, examples: slice) -> Any:
    """Returns the rows of a slice of examples; `t` itself for `slice(None)`, which keeps graphs small."""
    return t if examples == slice(None) else t[examples]


def split_rows(t: Any, batch: Size, rows: Size) -> Any:
    """Returns [batch * rows, ...] as [batch, rows, ...]."""
    return ops.reshape(t, [batch, rows, *static_or_dynamic_shape(t)[1:]])


def with_positions(t: Any) -> Any:
    """Returns [B, ..., C] as [B, T, C]; T is 1 where there is no axis between."""
    sizes = static_or_dynamic_shape(t)
    return ops.reshape(t, [sizes[0], product(sizes[1:-1]), sizes[-1]])


def product(sizes: list[Size]) -> Size:
    """Returns the product of sizes: an int if all of them are ints."""
    result: Size = 1
    for size in sizes:
        result = result * size
    return result
