"""SimpleRNN, LSTM, GRU, ConvLSTM and RNN over their cells: Keras's own call, with our own loop over time."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers as L

from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.recurrent_cells import ConvLSTMRule, SimpleRNNRule, cell_rule
from tf_largebatch.norms.shapes import static_or_dynamic_size
from tf_largebatch.norms.view import view


def cells_of(layer: Any) -> list[Any]:
    """The cells of an RNN layer, one or stacked."""
    return list(layer.cell.cells) if isinstance(layer.cell, L.StackedRNNCells) else [layer.cell]


def covered_cells(layer: Any) -> list[Any]:
    """The cells and the layers in them: the layer's rule records their variables."""
    return layer.cell._flatten_layers() if isinstance(layer.cell, keras.layers.Layer) else []


def rule_class(layer: Any, cell: Any) -> type[SimpleRNNRule] | None:
    """The rule of one cell of the layer."""
    if isinstance(layer, (L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D)):
        return ConvLSTMRule
    return cell_rule(cell)


def refuse_recurrent(layer: Any) -> str | None:
    """The cells must be known, and compute in the layer's dtype."""
    if type(layer.cell) is not L.StackedRNNCells and isinstance(layer.cell, L.StackedRNNCells):
        return f"the stack of cells {type(layer.cell).__name__} may stack them in its own way"
    for cell in cells_of(layer):
        if rule_class(layer, cell) is None:
            return f"the equations of its cell {type(cell).__name__} are not known"
        if cell.compute_dtype != layer.compute_dtype:
            return f"its cell computes in {cell.compute_dtype}, the layer in {layer.compute_dtype}"
        if getattr(cell, "data_format", "channels_last") != "channels_last":
            return "data_format must be 'channels_last'"
    return None


def refuse_cell(cell: Any) -> str | None:
    """A cell's equations must be known."""
    return None if cell_rule(cell) else f"the equations of {type(cell).__name__} are not known"


def recurrent(layer: Any, recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
    """Runs Keras's own call, which prepares states and dropout masks, with a loop over time that is recorded."""

    def inner_loop(sequences: Any, initial_state: Any, mask: Any, training: Any = False) -> tuple[Any, Any, Any]:
        return recorded_loop(layer, recorder, sequences, initial_state, mask, training)

    def dropout_masks(cell: Any, inputs: Any, state: Any) -> None:
        # With stacked cells Keras calls each to learn the shape of the next one's inputs.
        with recorder.unseen():
            type(layer)._maybe_config_dropout_masks(layer, cell, inputs, state)

    replaced: dict[str, Any] = {"inner_loop": inner_loop, "_maybe_config_dropout_masks": dropout_masks}
    if recorder.checks_structure:  # with another batch size than that of the states
        replaced["stateful"] = False
    return type(layer).call(view(layer, **replaced), *args, **kwargs)


def cell_alone(cell: Any, recorder: Recorder, inputs: tf.Tensor, states: Any, training: bool | None = False) -> Any:
    """Runs one step of a cell that is called by itself, outside an RNN layer."""
    rule_of_cell: Any = cell_rule(cell)  # cells without one have been refused
    rule = rule_of_cell(cell, recorder, training)
    before = list(states) if keras.tree.is_nested(states) else [states]
    h, after, reset = rule.step(rule.sites(inputs, inputs), None, before)
    rule.resolve(None, before[0], reset)
    return h, after if keras.tree.is_nested(states) else after[0]


def recorded_loop(layer: Any, recorder: Recorder, x: tf.Tensor, initial_state: Any, mask: Any, training: Any) -> Any:
    """Returns what `RNN.inner_loop` does: last output, outputs [B, T, ...] in the order of processing, last states."""
    mask = _step_mask(mask)
    if mask is not None and layer.unroll and layer.go_backwards and layer.zero_output_for_mask:
        raise ValueError(
            f"Per-example gradient norms are not available: layer {layer.path!r} is unrolled and goes backwards over "
            "masked steps with zero outputs, and Keras takes the mask in forward order there. Set unroll=False."
        )
    if layer.go_backwards:
        x = tf.reverse(x, [1])
        mask = None if mask is None else tf.reverse(mask, [1])
    # A stateful layer hands on the variables of its state.
    initial_state = keras.tree.map_structure(tf.convert_to_tensor, initial_state)
    cells = cells_of(layer)
    classes: list[Any] = [rule_class(layer, cell) for cell in cells]  # cells without one have been refused
    rules = [one(cell, recorder, training) for one, cell in zip(classes, cells, strict=True)]
    states = [list(s) for s in ([initial_state] if len(cells) == 1 and layer.cell is cells[0] else initial_state)]
    sites = [rule.sites(None if k else x, x) for k, rule in enumerate(rules)]
    outputs, resets, last = scan(rules, sites, states, mask)

    inputs = x
    for rule, start, h, reset in zip(rules, states, outputs, resets, strict=True):
        rule.resolve(inputs, tf.concat([start[0][:, tf.newaxis], h[:, :-1]], axis=1), reset)
        inputs = h
    y = outputs[-1]
    if mask is not None:
        # Keras repeats the last output at masked steps and gives zeros before the first.
        shown = mask if layer.zero_output_for_mask else tf.cumsum(tf.cast(mask, tf.int32), axis=1) > 0
        y = tf.where(_aligned(shown, y), y, tf.zeros_like(y))
    return y[:, -1], y, keras.tree.pack_sequence_as(initial_state, keras.tree.flatten(last))


def scan(rules: list[Any], sites: list[list[tf.Tensor]], states: list[list[tf.Tensor]], mask: Any) -> Any:
    """Runs the cells over the time steps.

    Returns:
        For each cell its states h after each step [B, T, ...], carried over masked steps; for each cell its reset
        gates [B, T, ...] if it emits them, else None; the last states.
    """
    length = static_or_dynamic_size(sites[0][0], 1)
    n_states, n_sites = [len(s) for s in states], [len(s) for s in sites]

    def reader(t: tf.Tensor) -> tf.TensorArray:
        array = tf.TensorArray(t.dtype, size=length, element_shape=[t.shape[0], *t.shape[2:]])
        return array.unstack(_time_major(t))

    def writer(state: tf.Tensor) -> tf.TensorArray:
        return tf.TensorArray(state.dtype, size=length, element_shape=state.shape)

    site_arrays = [reader(site) for of_cell in sites for site in of_cell]
    mask_array = None if mask is None else reader(mask)
    h_arrays = [writer(of_cell[0]) for of_cell in states]
    reset_arrays = [writer(of_cell[0]) for of_cell, rule in zip(states, rules, strict=True) if rule.emits_reset]

    def body(t: tf.Tensor, flat_states: list, h_arrays: list, reset_arrays: list) -> tuple[Any, ...]:
        at_t = _grouped([array.read(t) for array in site_arrays], n_sites)
        keep = None if mask_array is None else mask_array.read(t)
        x, after, resets = None, [], []
        for rule, of_cell, before in zip(rules, at_t, _grouped(flat_states, n_states), strict=True):
            x, new, reset = rule.step(of_cell, x, before)
            if keep is not None:
                new = [tf.where(_aligned(keep, s), s, old) for s, old in zip(new, before, strict=True)]
            after.append(new)
            resets += [] if reset is None else [reset]
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
    resets = [_time_major(next(emitted).stack()) if rule.emits_reset else None for rule in rules]
    return [_time_major(array.stack()) for array in h_arrays], resets, _grouped(last, n_states)


def _grouped(flat: list[Any], sizes: list[int]) -> list[list[Any]]:
    """Splits a flat list into lists of these sizes."""
    rest = iter(flat)
    return [[next(rest) for _ in range(size)] for size in sizes]


def _time_major(t: tf.Tensor) -> tf.Tensor:
    """[B, T, ...] as [T, B, ...] and back."""
    return tf.transpose(t, [1, 0, *range(2, t.shape.rank)])


def _aligned(mask: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """Appends axes of size 1 to the mask, so that it broadcasts over t."""
    return tf.reshape(mask, [*tf.unstack(tf.shape(mask)), *(1,) * (t.shape.rank - mask.shape.rank)])


def _step_mask(mask: Any) -> tf.Tensor | None:
    """Returns the mask as booleans [B, T]. Where there are several, Keras uses the first for all inputs."""
    if keras.tree.is_nested(mask):
        mask = keras.tree.flatten(mask)[0]
    if mask is None:
        return None
    mask = tf.cast(mask, tf.bool)
    return mask[..., 0] if mask.shape.rank == 3 else mask
