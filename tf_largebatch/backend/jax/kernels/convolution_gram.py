"""Convolutions' norms without the contributions: `||G_i||^2 = sum_{t,t'} (patch_t . patch_t') (d_t . d_t')`.

The patches' Gram matrix is a sum of shifted parts of the pixels' Gram matrix, one for each kernel offset, so that no
patches are stored: `T^2 (C + P + kernel offsets)` products, where the contributions take `T C P` for every offset.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from tf_largebatch.backend.jax.kernels.chunks import chunk_of, squared_norms_in_chunks
from tf_largebatch.backend.jax.kernels.operands import inner_products
from tf_largebatch.norms.window import Window, every


def applies(a: jax.Array, d: jax.Array, window: Window, groups: int) -> bool:
    """Returns whether the form can be used: one group."""
    del a, d, window
    return groups == 1


def squared_norms(a: jax.Array, d: jax.Array, window: Window, groups: int) -> jax.Array:
    """Returns `||G_i||^2`, shape [b], from Gram matrices in float32: the terms of the sum cancel."""
    del groups
    entries = pixels(a, d, window) ** 2 + math.prod(d.shape[1:-1]) ** 2
    return squared_norms_in_chunks(lambda a, d: _squared_norms(a, d, window), a, d, chunk_of(4 * entries))


def pixels(a: jax.Array, d: jax.Array, window: Window) -> int:
    """Returns the number of input positions, zeros of the padding among them, whose inner products are taken."""
    out = d.shape[1:-1]
    if window.is_pointwise:
        return math.prod(out)
    return math.prod(
        size + sum(padding) for size, padding in zip(a.shape[1:-1], window.padding_of(a, list(out)), strict=True)
    )


def _squared_norms(a: jax.Array, d: jax.Array, window: Window) -> jax.Array:
    out = list(d.shape[1:-1])
    a = next(iter(window.shifted_inputs(a, out))) if window.is_pointwise else window.pad(a, out)
    # A barrier: XLA for GPUs (JAX 0.11) fails where it fuses strided slices with the products that read them.
    a = lax.optimization_barrier(a)
    gram = inner_products(_by_position(a))
    if not window.is_pointwise:
        gram = _gram_of_patches(gram.reshape(a.shape[0], *a.shape[1:-1], *a.shape[1:-1]), window, out)
    terms = gram.reshape(a.shape[0], -1) * inner_products(_by_position(d)).reshape(a.shape[0], -1)
    return jnp.maximum(terms.sum(1), 0.0)


def _by_position(t: jax.Array) -> jax.Array:
    return t.reshape(t.shape[0], math.prod(t.shape[1:-1]), t.shape[-1])


def _gram_of_patches(gram: jax.Array, window: Window, out: list[int]) -> jax.Array:
    """Returns the sum over the kernel offsets of `gram` [b, *sizes, *sizes], shifted along both sets of axes."""
    shifted = []
    for offset in itertools.product(*(range(k) for k in window.kernel_size)):
        first = [o * r for o, r in zip(offset, window.dilation_rate, strict=True)]
        shifted.append(every(gram[..., None], 2 * first, 2 * list(window.strides), 2 * out))
    return functools.reduce(operator.add, shifted)
