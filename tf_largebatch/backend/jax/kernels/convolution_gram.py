"""Convolutions' norms without the contributions: `||G_i||^2 = sum_{t,t'} (patch_t . patch_t') (d_t . d_t')`.

The patches' Gram matrix is a sum of shifted parts of the pixels' Gram matrix, one for each kernel offset, so that no
patches are stored: `T^2 (C + P + kernel offsets)` products, where the contributions take `T C P` for every offset. A
stride s splits the pixels into s phases along each axis. An offset meets the pixels of one phase only, so each phase
has a Gram matrix of its own.
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
    entries = entries_of_a(d, window) + math.prod(d.shape[1:-1]) ** 2
    return squared_norms_in_chunks(lambda a, d: _squared_norms(a, d, window), a, d, chunk_of(4 * entries))


def entries_of_a(d: jax.Array, window: Window) -> int:
    """Returns how many inner products of an example's pixels are taken, zeros of the padding among them."""
    return sum(math.prod(_pixels(d, window, phase)) ** 2 for phase in _phases(window))


def _squared_norms(a: jax.Array, d: jax.Array, window: Window) -> jax.Array:
    out = list(d.shape[1:-1])
    a = window.pad(a, out)
    parts = []
    for phase, offsets in _phases(window).items():
        # A barrier: XLA for GPUs (JAX 0.11) fails where it fuses strided slices with the products that read them.
        pixels = lax.optimization_barrier(every(a, phase, window.strides, _pixels(d, window, phase)))
        sizes = pixels.shape[1:-1]
        gram = inner_products(_by_position(pixels)).reshape(a.shape[0], *sizes, *sizes, 1)
        parts += [every(gram, 2 * offset, (1,) * 2 * len(out), 2 * out) for offset in offsets]
    gram = functools.reduce(operator.add, parts).reshape(a.shape[0], -1)
    return jnp.maximum((gram * inner_products(_by_position(d)).reshape(a.shape[0], -1)).sum(1), 0.0)


def _phases(window: Window) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Returns, for each phase of the input, the places in it at which the kernel offsets that meet it begin."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for offset in itertools.product(*(range(k) for k in window.kernel_size)):
        reach = [o * r for o, r in zip(offset, window.dilation_rate, strict=True)]
        phase = tuple(n % s for n, s in zip(reach, window.strides, strict=True))
        found.setdefault(phase, []).append(tuple(n // s for n, s in zip(reach, window.strides, strict=True)))
    return found


def _pixels(d: jax.Array, window: Window, phase: tuple[int, ...]) -> list[int]:
    """Returns how many pixels of a phase the kernel meets along each axis."""
    furthest = [max(place) for place in zip(*_phases(window)[phase], strict=True)]
    return [size + place for size, place in zip(d.shape[1:-1], furthest, strict=True)]


def _by_position(t: jax.Array) -> jax.Array:
    return t.reshape(t.shape[0], math.prod(t.shape[1:-1]), t.shape[-1])
