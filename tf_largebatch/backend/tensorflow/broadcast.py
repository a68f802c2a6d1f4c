"""Uses whose output has no batch axis and meets the batch by broadcasting, such as a table of positions.

A tensor `u` without a batch axis has one gradient for the whole batch. Each example's part of it can still be seen
where `u` meets the batch: at `z = u + x`, with `x` [B, ...], the gradient `dLoss/dz` has one row for each example. So
the consumers of `u` are followed in the graph, through operations that move or cast its entries or combine it with
other tensors without a batch axis, to every operation that combines it with the batch.

Whether the result of an operation has the batch axis cannot be told from its size: a batch of one, or of as many
examples as there are positions, looks the same as a table. So the structure check (structure.py) takes that decision
for each operation, with a batch size that no other axis has, and the step's own trace repeats it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Container
from typing import Any

import numpy as np
import tensorflow as tf

from tf_largebatch.norms.shapes import static_or_dynamic_shape

_SAME_ENTRIES = {"Identity", "Cast", "ExpandDims", "Reshape", "Squeeze"}
_ELEMENTWISE = {"Add", "AddV2", "Sub", "Mul", "RealDiv"}
_REPEATING = {"BroadcastTo", "Tile"}

Derivative = Callable[[tf.Tensor], tf.Tensor]


class Result(enum.Enum):
    """What an operation makes of a tensor without a batch axis."""

    BATCH = "the batch is on axis 0"
    TABLE = "no batch axis"
    OTHER = "the batch is on another axis, or it cannot be told"


Decision = tuple[str, int, tuple[int, ...], Result]
"""Type of the operation, place of the operand, its shape, and the result."""

Decide = Callable[[tf.Operation, int, tf.Tensor, tf.Tensor], Result]


def deciding_by_size(batch_size: int, decisions: list[Decision]) -> Decide:
    """Returns a function that tells the batch axis by its size, which no other axis has, and notes each decision."""

    def decide(op: tf.Operation, place: int, t: tf.Tensor, z: tf.Tensor) -> Result:
        sizes = None if z.shape.rank is None else z.shape.as_list()
        result = Result.OTHER
        if sizes is not None and None not in sizes:
            batch_axes = [axis for axis, size in enumerate(sizes) if size and size % batch_size == 0]
            if not batch_axes:
                result = Result.TABLE
            elif batch_axes == [0] and sizes[0] == batch_size:
                result = Result.BATCH
        decisions.append((op.type, place, tuple(t.shape), result))
        return result

    return decide


def repeating(decisions: list[Decision]) -> Decide:
    """Returns a function that repeats decisions, one after the other; OTHER where the operations are not the same."""
    left = iter(decisions)

    def decide(op: tf.Operation, place: int, t: tf.Tensor, z: tf.Tensor) -> Result:
        del z
        *expected, result = next(left, (None, Result.OTHER))
        return result if expected == [op.type, place, tuple(t.shape)] else Result.OTHER

    return decide


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Where a tensor without a batch axis meets the batch.

    Attributes:
        output: The tensor `z` [B, ...] in which it is broadcast over the examples.
        derivative: Makes of `dLoss/dz` each example's gradient at the tensor, [B, *shape], float32.
    """

    output: tf.Tensor
    derivative: Derivative


@dataclasses.dataclass(frozen=True)
class Followed:
    """What became of a tensor without a batch axis.

    Attributes:
        meetings: Where it meets the batch.
        elsewhere: Other tensors made from it. If the loss depends on one of them, the use cannot be measured.
    """

    meetings: list[Meeting]
    elsewhere: list[tf.Tensor]


def follow(u: tf.Tensor, decide: Decide, identities: Container[tf.Operation] = ()) -> Followed:
    """Follows a tensor without a batch axis to where it meets the batch.

    Args:
        u: A tensor of the graph under construction, of static shape.
        decide: Says what an operation makes of a tensor without a batch axis: of the operation, the place of the
            operand, the operand and the result.
        identities: Operations with a gradient of their own which is known to be the identity's.
    """
    followed = Followed([], [])
    waiting: list[tuple[tf.Tensor, Derivative]] = [(u, lambda d: d)]
    while waiting:
        t, to_u = waiting.pop()
        for op in dict.fromkeys(t.consumers()):
            for place in [i for i, operand in enumerate(op.inputs) if operand is t]:
                own_gradient = op.type == "IdentityN" and op not in identities
                if own_gradient:
                    followed.elsewhere.append(op.outputs[place])
                elif op.type != "StopGradient":
                    _follow_through(op, place, t, to_u, decide, followed, waiting)
    return followed


def _follow_through(
    op: tf.Operation,
    place: int,
    t: tf.Tensor,
    to_u: Derivative,
    decide: Decide,
    followed: Followed,
    waiting: list[tuple[tf.Tensor, Derivative]],
) -> None:
    """Notes what one operation makes of `t`, its operand at this place; `to_u` leads from gradients at `t` to `u`."""
    outputs = [op.outputs[place]] if op.type == "IdentityN" else op.outputs
    for z in outputs:
        if not z.dtype.is_floating:
            continue
        if (place == 0 and _keeps_entries(op, t, z)) or op.type == "IdentityN":
            waiting.append((z, lambda d: to_u(tf.reshape(d, [-1, *t.shape]))))
        elif op.type == "Transpose" and place == 0 and tf.get_static_value(op.inputs[1]) is not None:
            waiting.append((z, _chain(to_u, _transposed_back(tf.get_static_value(op.inputs[1])))))
        elif t.shape.is_fully_defined() and (op.type in _ELEMENTWISE or (op.type in _REPEATING and place == 0)):
            result = decide(op, place, t, z)
            from_z = _chain(_summed_to(t), _of_operand(op, place)) if op.type in _ELEMENTWISE else _summed_to(t)
            sizes = z.shape[1:] if result is Result.BATCH else z.shape
            if result is Result.OTHER or (op.type in _REPEATING and not _repeats_ones(t, sizes)):
                followed.elsewhere.append(z)
            elif result is Result.TABLE and z.shape.is_fully_defined():
                waiting.append((z, _chain(to_u, from_z)))
            elif result is Result.BATCH and _is_repeated_over_examples(t, z):
                followed.meetings.append(Meeting(z, _chain(to_u, from_z)))
            else:
                followed.elsewhere.append(z)
        else:
            followed.elsewhere.append(z)


def _keeps_entries(op: tf.Operation, t: tf.Tensor, z: tf.Tensor) -> bool:
    """Returns whether `z` has the entries of `t` in the same order, as `t[:, None]` does."""
    if op.type != "StridedSlice":
        return op.type in _SAME_ENTRIES
    strides = tf.get_static_value(op.inputs[3])
    same_number = z.shape.is_fully_defined() and z.shape.num_elements() == t.shape.num_elements()
    return strides is not None and bool(np.all(strides == 1)) and same_number


def _transposed_back(axes: Any) -> Derivative:
    """Returns the inverse of a transposition, of each example's gradient."""
    inverse = [0, *(1 + int(axis) for axis in np.argsort(axes))]
    return lambda d: tf.transpose(d, inverse)


def _chain(*steps: Derivative) -> Derivative:
    """Runs one step after the other, the last one first."""

    def chained(d: tf.Tensor) -> tf.Tensor:
        for step in reversed(steps):
            d = step(d)
        return d

    return chained


def _is_repeated_over_examples(t: tf.Tensor, z: tf.Tensor) -> bool:
    """Returns whether `t` is broadcast along axis 0 of `z`, by its shape, and has all other axes of its own."""
    if t.shape.rank is None or z.shape.rank is None or not t.shape.is_fully_defined():
        return False
    return z.shape.rank > t.shape.rank or (z.shape.rank == t.shape.rank and t.shape[0] == 1)


def _repeats_ones(t: tf.Tensor, sizes: tf.TensorShape) -> bool:
    """Returns whether a result of these sizes repeats `t` along new axes and axes of size 1 alone."""
    return all(b in (1, a) for a, b in zip(reversed(sizes), reversed(t.shape), strict=False))


def _of_operand(op: tf.Operation, place: int) -> Derivative:
    """Returns the derivative of an elementwise operation with respect to one operand."""
    if op.type in ("Add", "AddV2"):
        return lambda d: d
    if op.type == "Sub":
        return (lambda d: d) if place == 0 else tf.negative
    a, b = (tf.cast(operand, tf.float32) for operand in op.inputs)
    if op.type == "Mul":
        return (lambda d: d * b) if place == 0 else (lambda d: d * a)
    return (lambda d: d / b) if place == 0 else (lambda d: -d * a / tf.square(b))


def _summed_to(t: tf.Tensor) -> Derivative:
    """Sums over the axes along which `t` was broadcast, but for the examples': [B, ...] to [B, *t.shape]."""

    def summed(d: tf.Tensor) -> tf.Tensor:
        sizes = static_or_dynamic_shape(d)
        padded = [1] * (len(sizes) - t.shape.rank) + list(t.shape)
        axes = [axis for axis in range(1, len(sizes)) if padded[axis] == 1]
        return tf.reshape(tf.reduce_sum(d, axis=axes), [sizes[0], *t.shape])

    return summed


@dataclasses.dataclass(frozen=True)
class Met:
    """A contraction at a tensor `u` without a batch axis, seen where it meets the batch."""

    inner: Any
    derivative: Derivative

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Returns the inner contributions, at each example's gradient of `u`."""
        return self.inner.contributions(self.derivative(tf.cast(d, tf.float32)), examples)

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Returns the inner squared norms, at each example's gradient of `u`."""
        return self.inner.squared_norms(self.derivative(tf.cast(d, tf.float32)), examples)

    def norms_and_gradient(self, d: tf.Tensor) -> None:
        """The ordinary gradient is at hand: it needs no sum over the examples."""
        del d
        return None
