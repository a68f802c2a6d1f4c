"""Chooses how a convolution's norms are computed, from the device and the shapes.

Every form computes the same; they differ in cost. The measurements behind each threshold are in benchmarks/README.md.
"""

from __future__ import annotations

import jax

from tf_largebatch.backend.jax.kernels import convolution_direct
from tf_largebatch.norms.window import Window


def contributions(a: jax.Array, d: jax.Array, window: Window, groups: int) -> jax.Array:
    """Returns the `G_i` in float32, shape [b, *kernel_size, C / groups, P]: the direct form."""
    return convolution_direct.contributions(a, d, window, groups)


def squared_norms(a: jax.Array, d: jax.Array, window: Window, groups: int) -> jax.Array:
    """Returns `||G_i||^2` in float32, shape [b]."""
    return convolution_direct.squared_norms(a, d, window, groups)


def norms_and_gradient(a: jax.Array, d: jax.Array, window: Window, groups: int) -> tuple[jax.Array, jax.Array] | None:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, both float32.

    Returns None where the norms are cheaper beside the ordinary weight gradient.
    """
    return convolution_direct.norms_and_gradient(a, d, window, groups)


def all_norms_are_free(a: jax.Array, d: jax.Array, window: Window, groups: int) -> bool:
    """Returns whether the norms of all examples, with the gradient, cost no more than those of a few beside it."""
    del a, d, window, groups
    return False
