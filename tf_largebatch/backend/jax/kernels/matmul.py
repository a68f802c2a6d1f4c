"""Computes norms and sum of per-example products `G_i = sum_t a_{i,t} (x) d_{i,t}`, added up in float32.

`a` is [B, ..., T, D] and `d` is [B, ..., T, P]; `G_i` is [..., D, P].
"""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp

from tf_largebatch.backend.jax.kernels.chunks import chunk_of, norms_and_gradient_in_chunks, squared_norms_in_chunks
from tf_largebatch.backend.jax.kernels.operands import inner_products, products
from tf_largebatch.norms.device import device
from tf_largebatch.norms.sums import squared_norms_and_sum

FLOAT_BYTES = 4
# Both sums are fused into a product on a TPU only while one example's contribution is no larger than this: 512 x 512.
_FUSED_ENTRIES = 2**18


def contributions(a: jax.Array, d: jax.Array) -> jax.Array:
    """Returns `G_i`, float32, shape [b, ..., D, P]."""
    return products("...td,...tp->...dp", a, d)


def squared_norms(a: jax.Array, d: jax.Array) -> jax.Array:
    """Returns `||G_i||^2` in float32, shape [b], by the cheaper form."""
    if a.shape[-2] == 1:
        return sum_squares_of_one_position(a, d)
    if gram_is_cheaper(a, d):
        bytes_per_example = 2 * FLOAT_BYTES * math.prod(a.shape[1:-2]) * a.shape[-2] ** 2
        return squared_norms_in_chunks(_gram_squared_norms, a, d, chunk_of(bytes_per_example))
    return norms_and_gradient_directly(a, d)[0]


def norms_and_gradient(a: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`; None where the norms are cheaper beside the gradient."""
    if a.shape[-2] == 1 or gram_is_cheaper(a, d):
        return None
    return norms_and_gradient_directly(a, d)


def norms_and_gradient_directly(a: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, from the `G_i` of a chunk of examples at a time.

    On a TPU from all of them, in blocks that never reach memory.
    """
    if device() == "tpu" and a.ndim == 3:
        return in_fused_blocks(a, d)
    chunk = chunk_of(FLOAT_BYTES * math.prod(a.shape[1:-2]) * a.shape[-1] * d.shape[-1])
    return norms_and_gradient_in_chunks(lambda a, d: squared_norms_and_sum(contributions(a, d)), a, d, chunk)


def in_fused_blocks(a: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the same from blocks of `G_i` so small that a TPU's compiler fuses both sums into their products.

    Args:
        a: Shape [B, T, D].
        d: Shape [B, T, P].
    """
    inputs, outputs = a.shape[-1], d.shape[-1]
    blocks = 1
    while inputs * outputs > _FUSED_ENTRIES * blocks and max(inputs, outputs) % (2 * blocks) == 0:
        blocks *= 2
    by_outputs = outputs >= inputs  # cut the longer side, for the shorter is read again for every block
    pairs = (
        [(a, part) for part in jnp.split(d, blocks, -1)]
        if by_outputs
        else [(part, d) for part in jnp.split(a, blocks, -1)]
    )
    squares, gradients = zip(*(squared_norms_and_sum(contributions(x, y)) for x, y in pairs), strict=True)
    return functools.reduce(operator.add, squares), jnp.concatenate(gradients, 1 if by_outputs else 0)


def sum_squares_of_one_position(a: jax.Array, d: jax.Array) -> jax.Array:
    """Returns `||a||^2 ||d||^2`, added over the axes between the example and the position."""
    a, d = (jnp.square(t.astype(jnp.float32)).sum((-2, -1)) for t in (a, d))
    return (a * d).sum(tuple(range(1, a.ndim)))


def gram_is_cheaper(a: jax.Array, d: jax.Array) -> bool:
    """Returns whether the Gram form, beside the ordinary gradient, costs less than the contributions.

    On a CPU where its `T^2 (D + P)` products are fewer than half of the `T D P`. Elsewhere memory decides, and with it
    how many positions there are; see `few_positions`.
    """
    positions, inputs, outputs = a.shape[-2], a.shape[-1], d.shape[-1]
    if device() == "gpu":
        return few_positions(positions, inputs, outputs)
    return 2 * positions * (inputs + outputs) < inputs * outputs


def few_positions(positions: int, inputs: int, outputs: int) -> bool:
    """Returns whether the Gram form pays on a GPU, as measured on an H100 (benchmarks/README.md)."""
    return positions <= 256 and inputs + outputs >= 512


def _gram_squared_norms(a: jax.Array, d: jax.Array) -> jax.Array:
    """Returns `sum_{t,t'} (a_t . a_t') (d_t . d_t')`, shape [b]; rounded terms may add up to less than zero."""
    terms = inner_products(a) * inner_products(d)
    return jnp.maximum(terms.sum(tuple(range(1, terms.ndim))), 0.0)
