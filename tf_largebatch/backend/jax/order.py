"""Orders the work of a step, and loops over examples, on JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

_MOST_PARTS = 16  # of a loop that is written out when the step is traced


def after(values: Sequence[Any], tensor: Any) -> list[Any]:
    """Returns the values for work that could begin before `tensor` is known: compiled, they wait for it.

    Results that are computed too early lie idle in memory.
    """
    return list(jax.lax.optimization_barrier((tensor, *values))[1:])


def over_examples(work: Callable[[Any, int], Any], batch: int, examples: slice) -> Any:
    """Concatenates what `work(start, count)` returns for `count` examples from `start` on, a part at a time.

    Args:
        work: Returns float32, shape [count, ...].
        batch: The number of examples B.
        examples: The examples to run it for.
    """
    start, stop, _ = examples.indices(batch)
    part = max(1, -(-(stop - start) // _MOST_PARTS))
    return jnp.concatenate([work(at, min(part, stop - at)) for at in range(start, stop, part)], axis=0)
