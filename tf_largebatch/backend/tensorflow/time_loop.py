"""The loop over time of recurrent layers on TensorFlow: a `tf.while_loop` with an array for each sequence."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_largebatch.norms.shapes import static_or_dynamic_size
from tf_largebatch.norms.time_steps import grouped, one_step, time_major


def scan(rules: list[Any], sites: list[list[tf.Tensor]], states: list[list[tf.Tensor]], mask: Any) -> Any:
    """Runs the cells over the time steps.

    Args:
        rules: The cells' rules, from the lowest cell up.
        sites: For each cell its sites, [B, T, ...].
        states: For each cell its initial states, [B, ...].
        mask: booleans [B, T], or None.

    Returns:
        For each cell its states h after each step [B, T, ...], carried over masked steps; for each cell its reset
        gates [B, T, ...] if it emits them, else None; the last states.
    """
    length = static_or_dynamic_size(sites[0][0], 1)
    n_states, n_sites = [len(s) for s in states], [len(s) for s in sites]

    def reader(t: tf.Tensor) -> tf.TensorArray:
        array = tf.TensorArray(t.dtype, size=length, element_shape=[t.shape[0], *t.shape[2:]])
        return array.unstack(time_major(t))

    def writer(state: tf.Tensor) -> tf.TensorArray:
        return tf.TensorArray(state.dtype, size=length, element_shape=state.shape)

    site_arrays = [reader(site) for of_cell in sites for site in of_cell]
    mask_array = None if mask is None else reader(mask)
    h_arrays = [writer(of_cell[0]) for of_cell in states]
    reset_arrays = [writer(of_cell[0]) for of_cell, rule in zip(states, rules, strict=True) if rule.emits_reset]

    def body(t: tf.Tensor, flat_states: list, h_arrays: list, reset_arrays: list) -> tuple[Any, ...]:
        at_t = grouped([array.read(t) for array in site_arrays], n_sites)
        keep = None if mask_array is None else mask_array.read(t)
        after, resets = one_step(rules, at_t, grouped(flat_states, n_states), keep)
        h_arrays = [array.write(t, new[0]) for array, new in zip(h_arrays, after, strict=True)]
        reset_arrays = [array.write(t, r) for array, r in zip(reset_arrays, resets, strict=True)]
        return t + 1, [s for new in after for s in new], h_arrays, reset_arrays

    _, last, h_arrays, reset_arrays = tf.while_loop(
        lambda t, *_: t < length,
        body,
        (tf.constant(0), [s for of_cell in states for s in of_cell], h_arrays, reset_arrays),
        maximum_iterations=length,
        swap_memory=True,
    )
    emitted = iter(reset_arrays)
    resets = [time_major(next(emitted).stack()) if rule.emits_reset else None for rule in rules]
    return [time_major(array.stack()) for array in h_arrays], resets, grouped(last, n_states)


def shown_steps(layer: Any, mask: tf.Tensor, states: list[tf.Tensor]) -> tf.Tensor:
    """Returns at which steps a masked layer shows its state; at the others its output is zero.

    Keras repeats the last output at masked steps and gives zeros before the first, or zeros at all masked steps with
    `zero_output_for_mask`.

    Args:
        layer: The recurrent layer.
        mask: booleans [B, T], in the order of processing.
        states: The initial states of the last cell, unused here.

    Raises:
        ValueError: Where Keras takes the mask in another order than the steps.
    """
    del states
    if layer.unroll and layer.go_backwards and layer.zero_output_for_mask:
        raise ValueError(
            f"Per-example gradient norms are not available: layer {layer.path!r} is unrolled and goes backwards over "
            "masked steps with zero outputs, and Keras takes the mask in forward order there. Set unroll=False."
        )
    return mask if layer.zero_output_for_mask else tf.cumsum(tf.cast(mask, tf.int32), axis=1) > 0
