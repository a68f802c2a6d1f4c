"""Differentiates a layer alone, example by example, on JAX: in chunks, by `jax.vmap` of `jax.vjp`."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from tf_largebatch.backend.jax.scopes import inner_scope
from tf_largebatch.norms.shapes import Size, of_examples
from tf_largebatch.norms.sums import sum_squares_per_example


def contributions(alone: Any, d: jax.Array, examples: slice) -> list[jax.Array]:
    """For each variable of a `LayerAlone` `G_i` of the examples of the slice, float32, [b, *w.shape]."""
    batched, rebuild = alone.split_arguments()
    cut = [of_examples(t, examples) for t in (*batched, d, alone.joined)]
    return _contributions(alone, cut[:-2], rebuild, *cut[-2:])


def _contributions(alone: Any, batched: list[jax.Array], rebuild: Any, d: jax.Array, joined: jax.Array) -> Any:
    def of_one(inputs: list[jax.Array], d_one: jax.Array, expected: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        args, kwargs = rebuild([t[None] for t in inputs])
        y, backward = jax.vjp(lambda values: alone.run(args, kwargs, values, 1)[0], list(alone.values))
        (shares,) = backward(d_one)
        error = jnp.max(jnp.abs(y.astype("float32") - expected.astype("float32")), initial=0.0)
        return error, [share.astype("float32") for share in shares]

    errors, shares = jax.vmap(of_one)(batched, d, joined)
    # A compiled step cannot raise: what differs becomes NaN. Rounding may differ, and NaN is not checked.
    tolerance = alone.tolerance * jnp.max(jnp.abs(alone.joined.astype("float32")), initial=0.0)
    poison = jnp.where(jnp.max(errors, initial=0.0) > tolerance, jnp.nan, 0.0)
    return [share + poison for share in shares]


def norms_and_gradients(alone: Any, d: jax.Array, start: int, stop: int) -> tuple[jax.Array, list[jax.Array]]:
    """Returns `||G_i||^2` of the examples from start to stop, [variables, b], and for each variable `sum_i G_i`.

    Every chunk has the same size. The last one is filled up with its last example, whose `d` is zero there.
    """
    batched, rebuild = alone.split_arguments()
    examples = [*batched, d, alone.joined]
    count = stop - start
    size = max(1, min(alone.chunk_size, count))

    def add_chunk(sums: list[jax.Array], first: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        places = first + jnp.arange(size)
        rows = jnp.minimum(places, stop - 1)
        inside = (places < stop).astype(d.dtype).reshape([size, *(1 for _ in d.shape[1:])])
        cut = [t[rows] for t in examples]
        shares = _contributions(alone, cut[:-2], rebuild, cut[-2] * inside, cut[-1])
        squares = jnp.stack([sum_squares_per_example(share) for share in shares])
        return [total + jnp.sum(share, axis=0) for total, share in zip(sums, shares, strict=True)], squares

    zeros = [jnp.zeros(value.shape) for value in alone.values]
    sums, squares = jax.lax.scan(add_chunk, zeros, jnp.arange(start, stop, size))
    return jnp.moveaxis(squares, 0, 1).reshape([len(zeros), -1])[:, :count], sums


def on_these_values(state: list[tuple[Any, Any]]) -> Any:
    """Returns a scope in which variables have these values, no variable changes, and losses are collected."""
    return inner_scope(state, collect_losses=True)


def require_rows(found: Size, rows: Size, message: str) -> None:
    """Raises if two numbers of rows differ."""
    if found != rows:
        raise ValueError(message)


def identity(d: jax.Array) -> Any:
    """Returns the array, which is handed from one variable of a layer to the next in the backward pass."""
    return d


def split_columns(t: jax.Array, sizes: list[int]) -> list[jax.Array]:
    """Splits the last axis of [B, N] into parts of these sizes."""
    return jnp.split(t, list(itertools.accumulate(sizes))[:-1], axis=1)
