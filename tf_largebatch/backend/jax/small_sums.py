"""Measures biases, scales and offsets together, after the backward pass.

The contributions of such a variable are sums over each example's positions, [B, n], which XLA computes with the tensor
that it sums. All of them are small. Their squares and their sums over the examples are two reductions for all variables
of one size, where those of a hundred variables would be hundreds of kernels of a few microseconds each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tf_largebatch.norms.device import device
from tf_largebatch.norms.recorder import Use
from tf_largebatch.norms.rules.bias import Bias

# Contributions of so many numbers an example wait until the end; larger ones would take memory.
_SMALL = 4096


def are_small_sums(use: Use) -> bool:
    """Returns whether a use's contributions are sums over each example's positions, and small.

    Never on a TPU, whose compiler takes more memory for a step that keeps them (benchmarks/README.md).
    """
    if device() == "tpu":
        return False
    sums = use.contraction is None or isinstance(use.contraction, Bias)
    return sums and math.prod(use.variable.shape) <= _SMALL


def squares_and_sums(
    contributions: Mapping[int, jax.Array], window: slice | None
) -> dict[int, tuple[jax.Array, jax.Array]]:
    """Returns `||G_i||^2` of the measured examples, [b], and `sum_i G_i`, for each entry; all float32.

    Args:
        contributions: The `G_i` of each variable, float32, shape [B, *shape].
        window: The measured examples; None for all.
    """
    # Behind a barrier, since XLA would make one sum of that over positions and that over examples, beside the first.
    held: Any = jax.lax.optimization_barrier(dict(contributions))
    of_size: dict[int, list[int]] = {}
    for number, one in held.items():
        of_size.setdefault(one[0].size, []).append(number)
    found = {}
    for size, numbers in of_size.items():
        stacked = jnp.stack([held[n].reshape(-1, size) for n in numbers])
        measured = stacked if window is None else stacked[:, window]
        squares, sums = jnp.square(measured).sum(2), stacked.sum(1)
        for place, number in enumerate(numbers):
            found[number] = squares[place], sums[place].reshape(held[number].shape[1:])
    return found
