"""Depthwise convolutions' contributions by the definition, right for every geometry and on every device."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tf_largebatch.norms.sums import squared_norms_and_sum
from tf_largebatch.norms.window import Window


def contributions(a: jax.Array, d: jax.Array, window: Window) -> jax.Array:
    """Returns `G_i[o, c, m] = sum_t a[s t + r o, c] d[t, c m]` in float32, shape [b, *kernel_size, C, M]."""
    batch, *out, outputs = d.shape
    channels = a.shape[-1]
    spatial = tuple(range(1, d.ndim - 1))
    d = d.astype(jnp.float32).reshape(batch, *out, channels, outputs // channels)
    parts = [
        (shifted.astype(jnp.float32)[..., None] * d).sum(spatial) for shifted in window.shifted_inputs(a, list(out))
    ]
    return jnp.stack(parts, 1).reshape(batch, *window.kernel_size, channels, outputs // channels)


def norms_and_gradient(a: jax.Array, d: jax.Array, window: Window) -> tuple[jax.Array, jax.Array]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, M]; both float32."""
    return squared_norms_and_sum(contributions(a, d, window))
