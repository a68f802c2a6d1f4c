"""Slices of a batch: its size, its micro-batches, and a function mapped over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tf_largebatch.backend.jax.distribution import devices_of_a_batch, sharding_of_data
from tf_largebatch.backend.jax.scopes import assign, inner_scope
from tf_largebatch.training.splitting import SplitBatch


def batch_size_of(data: Any) -> int:
    """Returns the number of examples in nested arrays with the examples on axis 0."""
    return int(next(leaf for leaf in jax.tree.leaves(data)).shape[0])


class MicroBatches(SplitBatch):
    """A batch split into micro-batches: those of equal size run in `lax.scan`, a smaller last one after it."""

    def added(
        self,
        run: Callable[[Any, Any], tuple[Sequence[Any], Sequence[Any]]],
        zeros: Sequence[jax.Array],
        specs: Sequence[Any] = (),
        state: Sequence[Any] = (),
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """See `SplitBatch.added`."""

        def body(sums: list[jax.Array], part: Any, _: Any, examples: int) -> tuple[list[jax.Array], list[jax.Array]]:
            values, outputs = run(part, jnp.float32(examples / self._batch_size))
            sums = [
                total if value is None else total + jnp.asarray(value, total.dtype)
                for total, value in zip(sums, values, strict=True)
            ]
            return sums, list(outputs[: len(specs)])

        return self._run(body, list(zeros), state)

    def mapped(self, function: Callable[[Any, Any], jax.Array], like: jax.Array) -> jax.Array:
        """See `SplitBatch.mapped`."""
        del like
        _, (result,) = self._run(lambda carry, part, j, _: (carry, [function(part, j)]), [], ())
        return result

    def _run(
        self, body: Callable[[Any, Any, Any, int], tuple[Any, list[jax.Array]]], carry: Any, state: Sequence[Any]
    ) -> tuple[Any, list[jax.Array]]:
        """Calls `body(carry, micro-batch, its number, its size)` for each; returns the last carry and all outputs."""
        equal, rest = divmod(self._batch_size, self._size)
        parts: list[list[jax.Array]] = []
        if equal == 1:
            carry, outputs = body(carry, self._examples(0, self._size), jnp.int32(0), self._size)
            parts.append(outputs)
        elif equal > 1:
            carry, outputs = self._scan(body, carry, state, equal)
            parts.append([jnp.reshape(t, (-1, *t.shape[2:])) for t in outputs])
        if rest:
            part = self._examples(equal * self._size, self._batch_size)
            carry, outputs = body(carry, part, jnp.int32(equal), rest)
            parts.append(outputs)
        return carry, [ts[0] if len(ts) == 1 else jnp.concatenate(ts) for ts in zip(*parts, strict=True)]

    def _scan(self, body: Callable[..., Any], carry: Any, state: Sequence[Any], number: int) -> tuple[Any, Any]:
        """Calls `body` for the first micro-batches, which are of equal size; assigns what it assigns to variables."""
        carried = list({id(v): v for v in state}.values())
        assigned: list[Any] = []

        def step(values: tuple[Any, list[jax.Array]], numbered: tuple[jax.Array, Any]) -> tuple[Any, Any]:
            carry, state = values
            j, part = numbered
            with inner_scope(zip(carried, state, strict=True)) as scope:
                carry, outputs = body(carry, part, j, self._size)
            assigned[:] = scope.assigned
            return (carry, [scope.get_current_value(v) for v in carried]), outputs

        parts = jax.tree.map(self._stacked, self.data)
        while True:
            start = carry, [v.value for v in carried]
            (result, values), outputs = jax.lax.scan(step, start, (jnp.arange(number, dtype="int32"), parts))
            known = {id(v) for v in carried}
            missing = [v for v in assigned if id(v) not in known]
            if not missing:
                break
            carried += missing
        value_of = {id(v): value for v, value in zip(carried, values, strict=True)}
        assign(assigned, [value_of[id(v)] for v in assigned])
        return result, outputs

    def _stacked(self, t: jax.Array) -> jax.Array:
        """Returns the micro-batches of equal size on an axis of their own, in front."""
        number = self._batch_size // self._size
        parts = jnp.reshape(t[: number * self._size], (number, self._size, *t.shape[1:]))
        return _on_all_devices(parts)

    def _examples(self, start: int, stop: int) -> Any:
        return jax.tree.map(lambda t: t[start:stop], self.data)


def _on_all_devices(parts: jax.Array) -> jax.Array:
    """Micro-batches [number, size, ...], each spread over the devices of Keras's distribution as a batch is.

    Left alone, JAX would give each device whole micro-batches, which run one after the other.
    """
    sharding = sharding_of_data(parts.shape[1:])
    if sharding is None or parts.shape[1] % devices_of_a_batch():
        return parts
    spec = jax.sharding.PartitionSpec(None, *sharding.spec)
    return jax.lax.with_sharding_constraint(parts, jax.sharding.NamedSharding(sharding.mesh, spec))


def unless_empty(function: Callable[[], jax.Array], like: jax.Array) -> jax.Array:
    """Returns the function's result; for a batch without examples the array in whose shape and dtype it would be."""
    return function() if like.shape[0] else like


def composite_examples(t: Any, start: int, stop: int) -> Any:
    """Returns None: an array is none of TensorFlow's sparse and ragged tensors."""
    del t, start, stop
