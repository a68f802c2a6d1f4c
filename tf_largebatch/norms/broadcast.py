"""Uses whose output has no batch axis and meets the batch by broadcasting, such as a table of positions.

A tensor `u` without a batch axis has one gradient for the whole batch. Each example's part of it can still be seen
where `u` meets the batch: at `z = u + x`, with `x` [B, ...], the gradient `dLoss/dz` has one row for each example. So
the consumers of `u` are followed in the graph, through operations that only move or cast its entries, to every
operation that combines it with the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container
from typing import Any

import numpy as np
import tensorflow as tf

from tf_largebatch.norms.shapes import static_or_dynamic_shape

_SAME_ENTRIES = {"Identity", "IdentityN", "Cast", "ExpandDims", "Reshape", "Squeeze"}
_ELEMENTWISE = {"Add", "AddV2", "Sub", "Mul", "RealDiv"}
_REPEATING = {"BroadcastTo", "Tile"}

Derivative = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Where a tensor without a batch axis meets the batch.

    Attributes:
        output: the tensor `z` [B, ...] in which it is broadcast over the examples.
        derivative: makes of `dLoss/dz` each example's gradient at the tensor, [B, *shape], float32.
    """

    output: tf.Tensor
    derivative: Derivative


@dataclasses.dataclass(frozen=True)
class Followed:
    """What became of a tensor without a batch axis.

    Attributes:
        meetings: where it meets the batch.
        elsewhere: other tensors made from it. If the loss depends on one of them, the use cannot be measured.
    """

    meetings: list[Meeting]
    elsewhere: list[tf.Tensor]


def follow(u: tf.Tensor, identities: Container[tf.Operation] = ()) -> Followed:
    """Follows a tensor without a batch axis to where it meets the batch.

    Args:
        u: a tensor of the graph under construction, of static shape.
        identities: operations with a gradient of their own which is known to be the identity's.
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
                    _follow_through(op, place, t, to_u, followed, waiting)
    return followed


def _follow_through(
    op: tf.Operation,
    place: int,
    t: tf.Tensor,
    to_u: Derivative,
    followed: Followed,
    waiting: list[tuple[tf.Tensor, Derivative]],
) -> None:
    """Notes what one operation makes of `t`, its operand at this place; `to_u` leads from gradients at `t` to `u`."""
    outputs = [op.outputs[place]] if op.type == "IdentityN" else op.outputs
    for z in outputs:
        if not z.dtype.is_floating:
            continue
        if op.type in _SAME_ENTRIES and (place == 0 or op.type == "IdentityN"):
            waiting.append((z, lambda d: to_u(tf.reshape(d, [-1, *t.shape]))))
        elif op.type == "Transpose" and place == 0 and tf.get_static_value(op.inputs[1]) is not None:
            waiting.append((z, _chain(to_u, _transposed_back(tf.get_static_value(op.inputs[1])))))
        elif op.type in _ELEMENTWISE and z.shape == t.shape and t.shape.is_fully_defined():
            waiting.append((z, _chain(to_u, _of_operand(op, place))))
        elif op.type in _ELEMENTWISE and _is_repeated_over_examples(t, z):
            followed.meetings.append(Meeting(z, _chain(to_u, _summed_to(t), _of_operand(op, place))))
        elif op.type in _REPEATING and place == 0 and _is_repeated_over_examples(t, z) and _repeats_ones(t, z):
            followed.meetings.append(Meeting(z, _chain(to_u, _summed_to(t))))
        else:
            followed.elsewhere.append(z)


def _transposed_back(axes: Any) -> Derivative:
    """The inverse of a transposition, of each example's gradient."""
    inverse = [0, *(1 + int(axis) for axis in np.argsort(axes))]
    return lambda d: tf.transpose(d, inverse)


def _chain(*steps: Derivative) -> Derivative:
    """One step after the other, the last one first."""

    def chained(d: tf.Tensor) -> tf.Tensor:
        for step in reversed(steps):
            d = step(d)
        return d

    return chained


def _is_repeated_over_examples(t: tf.Tensor, z: tf.Tensor) -> bool:
    """Whether `t` is broadcast along axis 0 of `z`, by its shape, and has all other axes of its own."""
    if t.shape.rank is None or z.shape.rank is None or not t.shape.is_fully_defined():
        return False
    return z.shape.rank > t.shape.rank or (z.shape.rank == t.shape.rank and t.shape[0] == 1)


def _repeats_ones(t: tf.Tensor, z: tf.Tensor) -> bool:
    """Whether `z` repeats `t` along new axes and axes of size 1 alone, as broadcasting does."""
    return all(b in (1, a) for a, b in zip(reversed(z.shape[1:]), reversed(t.shape), strict=False))


def _of_operand(op: tf.Operation, place: int) -> Derivative:
    """The derivative of an elementwise operation with respect to one operand."""
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
        """The inner contributions, at each example's gradient of `u`."""
        return self.inner.contributions(self.derivative(tf.cast(d, tf.float32)), examples)

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """The inner squared norms, at each example's gradient of `u`."""
        return self.inner.squared_norms(self.derivative(tf.cast(d, tf.float32)), examples)

    def norms_and_gradient(self, d: tf.Tensor) -> None:
        """The ordinary gradient is at hand: it needs no sum over the examples."""
        del d
        return None
