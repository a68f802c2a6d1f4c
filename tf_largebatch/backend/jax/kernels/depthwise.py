"""Chooses how a depthwise convolution's norms are computed, from the device and the shapes."""

from __future__ import annotations

from types import ModuleType

import jax

from tf_largebatch.backend.jax.kernels import depthwise_direct, depthwise_pallas
from tf_largebatch.norms.device import device
from tf_largebatch.norms.window import Window


def contributions(a: jax.Array, d: jax.Array, window: Window) -> jax.Array:
    """Returns the `G_i` in float32: the direct form."""
    return depthwise_direct.contributions(a, d, window)


def norms_and_gradient(a: jax.Array, d: jax.Array, window: Window) -> tuple[jax.Array, jax.Array]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, M]; both float32."""
    return cheapest_form(a, d, window).norms_and_gradient(a, d, window)


def cheapest_form(a: jax.Array, d: jax.Array, window: Window) -> ModuleType:
    """Returns the module of the form to use; the direct form reads the input once for each kernel offset."""
    if device() == "gpu" and depthwise_pallas.applies(a, d, window):
        return depthwise_pallas
    return depthwise_direct
