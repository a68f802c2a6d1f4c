"""Sums over one example's contribution and over the examples."""

from __future__ import annotations

from typing import Any

from keras import ops


def sum_squares_per_example(t: Any) -> Any:
    """Sum of squares over all axes but the first, in float32, shape [b]."""
    t = ops.cast(t, "float32")
    return ops.sum(ops.square(t), axis=tuple(range(1, len(t.shape))))


def squared_norms_and_sum(contributions: Any) -> tuple[Any, Any]:
    """Returns `||G_i||^2`, shape [b], and `sum_i G_i`, both float32, from the `G_i`, shape [b, *w.shape].

    A sum over thousands of examples in float16 is wrong in its first digit.
    """
    contributions = ops.cast(contributions, "float32")
    return sum_squares_per_example(contributions), ops.sum(contributions, axis=0)
