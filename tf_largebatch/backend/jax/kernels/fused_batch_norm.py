"""Training-mode batch normalization with the gradient of its scale and offset split among the examples.

XLA fuses the passes over the activations itself, so this is the equation written out, differentiated by JAX.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def fused_batch_norm(
    x: jax.Array, gamma: jax.Array, beta: jax.Array, scale: jax.Array, offset: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes `y = gamma (x - mean) / sqrt(variance + epsilon) + beta` over all axes but the last.

    Args:
        x: shape [B, ..., C], float32.
        gamma: the scale, repeated for each example, shape [B, C], float32; it receives the gradient.
        beta: the offset, repeated for each example, shape [B, C], float32; it receives the gradient.
        scale: the scale once, shape [C]; unused.
        offset: the offset once, shape [C]; unused.
        epsilon: added to the variance.

    Returns:
        `y` of x's shape; the mean and the biased variance, shape [C], through which no gradient flows.
    """
    del scale, offset
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    variance = jnp.square(x - mean).mean(axes)
    shape = (x.shape[0], *(1 for _ in axes[1:]), x.shape[-1])
    inverse = lax.rsqrt(variance + epsilon) * gamma.reshape(shape)
    y = (x - mean) * inverse + beta.reshape(shape)
    return y, lax.stop_gradient(mean), lax.stop_gradient(variance)
