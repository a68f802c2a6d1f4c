"""Computes a contraction in chunks of examples, so that memory does not grow with the batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from tf_largebatch.norms.device import device

# The working set of a chunk. A CPU should keep it in its caches; a GPU or TPU wants few, large steps of a loop.
CHUNK_BYTES = {"cpu": 16 * 2**20, "gpu": 512 * 2**20, "tpu": 512 * 2**20}


def chunk_of(bytes_per_example: int, budget: int | None = None) -> int:
    """Returns how many examples fit into the budget of a chunk, the device's `CHUNK_BYTES` by default; at least one."""
    return max(1, (budget or CHUNK_BYTES[device()]) // max(1, bytes_per_example))


def norms_and_gradient_in_chunks(
    work: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]], a: jax.Array, d: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Concatenates the norms and adds up the gradients that `work` returns for each chunk.

    A chunk takes every n-th example, not neighbours: where the batch is spread over devices, each of them has its share
    of every chunk, and no example moves.

    Args:
        work: Maps `a` and `d` of b examples to their squared norms, shape [b], and the sum of their contributions, both
            float32.
        a: The layer's input, examples on axis 0.
        d: The gradient at the layer's output, examples on axis 0.
        chunk: The largest number of examples of a chunk.

    Returns:
        Squared norms, shape [B], and the sum of contributions, both float32.
    """
    batch = d.shape[0]
    if batch <= chunk:
        return work(a, d)
    count = _number_of_chunks(batch, chunk)
    size = batch // count
    whole = size * count
    chunks = [t[:whole].reshape(size, count, *t.shape[1:]) for t in (a, d)]

    def step(total: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        squares, part = work(*(lax.dynamic_index_in_dim(t, at, 1, keepdims=False) for t in chunks))
        return total + part, squares

    shape = jax.eval_shape(work, a[:size], d[:size])[1]
    total, squares = lax.scan(step, jnp.zeros(shape.shape, shape.dtype), jnp.arange(count))
    squares = squares.T.reshape(-1)
    if whole == batch:
        return squares, total
    rest_squares, rest_total = work(a[whole:], d[whole:])
    return jnp.concatenate([squares, rest_squares]), total + rest_total


def squared_norms_in_chunks(
    work: Callable[[jax.Array, jax.Array], jax.Array], a: jax.Array, d: jax.Array, chunk: int
) -> jax.Array:
    """Concatenates the squared norms that `work` returns for each chunk, shape [B]."""
    return norms_and_gradient_in_chunks(lambda a, d: (work(a, d), jnp.zeros(())), a, d, chunk)[0]


def _number_of_chunks(batch: int, chunk: int) -> int:
    """Returns as few chunks as memory allows, or up to twice as many if these divide the batch."""
    fewest = -(-batch // chunk)
    return next((count for count in range(fewest, min(2 * fewest, batch) + 1) if batch % count == 0), fewest)
