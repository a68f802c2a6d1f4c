"""The loop over time of recurrent layers on JAX: `jax.lax.scan`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tf_largebatch.norms.time_steps import one_step, time_major


def scan(rules: list[Any], sites: list[list[jax.Array]], states: list[list[jax.Array]], mask: Any) -> Any:
    """Runs the cells over the time steps; arguments and results are those of the TensorFlow loop."""

    def step(before: list[list[jax.Array]], at_t: tuple[Any, Any]) -> tuple[Any, Any]:
        sites_t, keep = at_t
        after, resets = one_step(rules, sites_t, before, keep)
        return after, ([new[0] for new in after], resets)

    over_time = jax.tree.map(time_major, (sites, mask))
    last, (h, resets) = jax.lax.scan(step, states, over_time)
    emitted = iter(resets)
    by_cell = [time_major(next(emitted)) if rule.emits_reset else None for rule in rules]
    return [time_major(t) for t in h], by_cell, last


def shown_steps(layer: Any, mask: jax.Array, states: list[jax.Array]) -> jax.Array:
    """Returns at which steps a masked layer shows its state; at the others its output is zero.

    On JAX Keras's loop shows the state at masked steps, the initial one before the first step that is not masked, or
    zeros with `zero_output_for_mask`. Unrolled it repeats the last output, and gives zeros before the first, always.

    Raises:
        ValueError: Where Keras broadcasts the mask over the wrong axes.
    """
    if layer.unroll:
        return jnp.cumsum(mask.astype("int32"), axis=1) > 0
    if states[0].ndim > 2:
        raise ValueError(
            f"Per-example gradient norms are not available: layer {layer.path!r} is masked, and on JAX Keras "
            "broadcasts the mask of a recurrent layer over images along the wrong axes. Set unroll=True or pass no "
            "mask."
        )
    return mask if layer.zero_output_for_mask else jnp.ones_like(mask)
