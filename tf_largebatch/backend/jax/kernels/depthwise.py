"""Chooses how a depthwise convolution's norms are computed, from the device and the shapes."""

from __future__ import annotations

import jax

from tf_largebatch.backend.jax.kernels import depthwise_direct
from tf_largebatch.norms.window import Window


def contributions(a: jax.Array, d: jax.Array, window: Window) -> jax.Array:
    """Returns the `G_i` in float32: the direct form."""
    return depthwise_direct.contributions(a, d, window)


def norms_and_gradient(a: jax.Array, d: jax.Array, window: Window) -> tuple[jax.Array, jax.Array]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, M]; both float32."""
    return depthwise_direct.norms_and_gradient(a, d, window)
