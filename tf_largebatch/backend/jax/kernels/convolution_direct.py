"""Convolutions' norms by the definition: one product of each example's shifted input with `d` for every kernel offset.

Right for every number of spatial axes, stride, dilation, padding and number of groups, and on every device. Only one
chunk of examples, and of it one kernel offset, need be in memory at a time.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from tf_largebatch.backend.jax.kernels.chunks import chunk_of, norms_and_gradient_in_chunks
from tf_largebatch.backend.jax.kernels.operands import operands, products
from tf_largebatch.norms.device import device
from tf_largebatch.norms.sums import sum_squares_per_example
from tf_largebatch.norms.window import Window


def contributions(a: jax.Array, d: jax.Array, window: Window, groups: int) -> jax.Array:
    """Returns `G_i` in float32, shape [b, *kernel_size, C / groups, P]."""
    parts = list(contributions_by_offset(a, d, window, groups))
    return jnp.stack(parts, 1).reshape(-1, *window.kernel_size, *parts[0].shape[1:])


def norms_and_gradient(a: jax.Array, d: jax.Array, window: Window, groups: int) -> tuple[jax.Array, jax.Array]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C / groups, P]; both float32."""
    entries = a.shape[-1] // groups * d.shape[-1]
    if device() != "gpu" or not window.is_pointwise or max(window.strides) > 1:  # a GPU's products read `a` itself
        entries += math.prod(d.shape[1:-1]) * a.shape[-1]
    return norms_and_gradient_in_chunks(lambda a, d: sums(a, d, window, groups), a, d, chunk_of(4 * entries))


def squared_norms(a: jax.Array, d: jax.Array, window: Window, groups: int) -> jax.Array:
    """Returns `||G_i||^2` in float32, shape [b]."""
    return norms_and_gradient(a, d, window, groups)[0]


def sums(a: jax.Array, d: jax.Array, window: Window, groups: int) -> tuple[jax.Array, jax.Array]:
    """Returns what `norms_and_gradient` returns, of all examples at once."""
    parts = [(sum_squares_per_example(part), part.sum(0)) for part in contributions_by_offset(a, d, window, groups)]
    squares, gradients = zip(*parts, strict=True)
    return functools.reduce(operator.add, squares), jnp.stack(gradients).reshape(
        *window.kernel_size, *gradients[0].shape
    )


def contributions_by_offset(a: jax.Array, d: jax.Array, window: Window, groups: int) -> Iterator[jax.Array]:
    """Yields `G_i` in float32 of one kernel offset after the other, each [b, C / groups, P]."""
    batch, *out, outputs = d.shape
    channels, positions = a.shape[-1] // groups, math.prod(out)
    a, d = operands(a, d)
    d = d.reshape(batch, positions, groups, outputs // groups)
    for shifted in window.shifted_inputs(a, out):
        if device() == "gpu" and max(window.strides) > 1:
            # XLA for GPUs (JAX 0.11) may fail where it fuses strided slices with the products that read them.
            shifted = lax.optimization_barrier(shifted)
        # Group g joins the g-th C / groups inputs with the g-th P / groups outputs.
        shifted = shifted.reshape(batch, positions, groups, channels)
        yield products("btgc,btgp->bcgp", shifted, d).reshape(batch, channels, outputs)
