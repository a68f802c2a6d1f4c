"""Computes norms of per-example sums of rows: row r of `G_i` is the sum of `d_{i,t}` over the positions t with id r.

`ids` is [B, T], `d` is [B, T, P], and a table has `rows` rows. Ids outside the table take no part. No form makes the
dense contributions, [B, rows, P], but `contributions`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from tf_largebatch.backend.jax.kernels.chunks import chunk_of, squared_norms_in_chunks
from tf_largebatch.backend.jax.kernels.operands import inner_products, products
from tf_largebatch.norms.device import device

FLOAT_BYTES = 4
# Up to so many positions an example, products of all pairs of its rows cost less on a GPU or TPU than adding rows up.
FEW_POSITIONS = 512


def contributions(ids: jax.Array, d: jax.Array, rows: int) -> jax.Array:
    """Returns `G_i`, dense, float32, shape [B, rows, P]."""
    batch, _, width = d.shape
    at = jnp.where((ids >= 0) & (ids < rows), ids, rows)
    example = jnp.arange(batch)[:, None]
    return jnp.zeros((batch, rows, width), jnp.float32).at[example, at].add(d.astype(jnp.float32), mode="drop")


def squared_norms(ids: jax.Array, d: jax.Array, rows: int) -> jax.Array:
    """Returns `||G_i||^2` in float32, shape [B]."""
    _, positions, width = d.shape
    if positions < 2:
        squares = jnp.square(d.astype(jnp.float32)).sum(2)
        return jnp.where((ids >= 0) & (ids < rows), squares, 0.0).sum(1)
    by_pairs = device() != "cpu" and positions <= FEW_POSITIONS
    form = squared_norms_by_pairs if by_pairs else squared_norms_by_runs
    entries = 2 * positions**2 if by_pairs else 3 * positions * width
    return squared_norms_in_chunks(lambda ids, d: form(ids, d, rows), ids, d, chunk_of(FLOAT_BYTES * entries))


def inner_product(ids: jax.Array, d: jax.Array, a: jax.Array, d_product: jax.Array) -> jax.Array:
    """Returns `<G_i, G'_i>`, shape [B], with the contribution to a product `y' = a w^T` with the same table.

    It is `sum_{t,t'} d'_{t'}[id_t] (d_t . a_{t'})`.

    Args:
        ids: [B, T], all within the table.
        d: [B, T, P].
        a: The product's input, [B, T', P].
        d_product: The gradient `d'` at the product's output, [B, T', rows].
    """
    looked_up = jnp.take_along_axis(d_product.astype(jnp.float32), ids[:, None, :], 2)  # [B, T', T]
    return (looked_up * products("bup,btp->but", a, d)).sum((1, 2))


def squared_norms_by_pairs(ids: jax.Array, d: jax.Array, rows: int) -> jax.Array:
    """Returns `sum_{t,t'} [id_t = id_t'] (d_t . d_t')`, shape [B]."""
    in_table = (ids >= 0) & (ids < rows)
    same = (ids[:, :, None] == ids[:, None, :]) & in_table[:, :, None]
    return jnp.maximum(jnp.where(same, inner_products(d), 0.0).sum((1, 2)), 0.0)


def squared_norms_by_runs(ids: jax.Array, d: jax.Array, rows: int) -> jax.Array:
    """Returns the same from sums over runs of equal ids, after each example's positions are sorted by id."""
    batch, positions, width = d.shape
    order = jnp.argsort(ids, axis=1)
    ordered = jnp.take_along_axis(ids, order, 1)
    begins = jnp.concatenate([jnp.zeros((batch, 1), bool), ordered[:, 1:] != ordered[:, :-1]], 1)
    run = jnp.cumsum(begins, 1) + positions * jnp.arange(batch)[:, None]
    in_table = (ordered >= 0) & (ordered < rows)
    d = jnp.take_along_axis(d, order[:, :, None], 1).astype(jnp.float32)
    d = jnp.where(in_table[:, :, None], d, 0.0).reshape(batch * positions, width)
    sums = jax.ops.segment_sum(d, run.reshape(-1), math.prod(ids.shape), indices_are_sorted=True)
    return jnp.square(sums).reshape(batch, -1).sum(1)
