"""SimpleRNN, LSTM, GRU, ConvLSTM and RNN over their cells: Keras's own call, with our own loop over time."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as L
from keras import ops

from tf_largebatch.keras_internals import DROPOUT_MASKS, FUSED_DIRECTIONS, INNER_LOOP, layers_within, make_dropout_masks
from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.recurrent_cells import ConvLSTMRule, SimpleRNNRule, cell_rule
from tf_largebatch.norms.time_loop import scan, shown_steps
from tf_largebatch.norms.time_steps import aligned
from tf_largebatch.norms.view import view


def cells_of(layer: Any) -> list[Any]:
    """Returns the cells of an RNN layer, one or stacked."""
    return list(layer.cell.cells) if isinstance(layer.cell, L.StackedRNNCells) else [layer.cell]


def covered_cells(layer: Any) -> list[Any]:
    """Returns the cells and the layers in them: the layer's rule records their variables."""
    return layers_within(layer.cell) if isinstance(layer.cell, keras.layers.Layer) else []


def rule_class(layer: Any, cell: Any) -> type[SimpleRNNRule] | None:
    """Returns the rule of one cell of the layer."""
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
            make_dropout_masks(layer, cell, inputs, state)

    replaced: dict[str, Any] = {INNER_LOOP: inner_loop, DROPOUT_MASKS: dropout_masks}
    if recorder.checks_structure:  # with another batch size than that of the states
        replaced["stateful"] = False
    return type(layer).call(view(layer, **replaced), *args, **kwargs)


def bidirectional(layer: Any, recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
    """Runs Keras's own call, which calls the two layers inside where it may not compute both in one kernel."""
    del recorder
    separate = dict.fromkeys(FUSED_DIRECTIONS, lambda *args: False)
    return type(layer).call(view(layer, **separate), *args, **kwargs)


def cell_alone(cell: Any, recorder: Recorder, inputs: Any, states: Any, training: bool | None = False) -> Any:
    """Runs one step of a cell that is called by itself, outside an RNN layer."""
    rule_of_cell: Any = cell_rule(cell)  # cells without one have been refused
    rule = rule_of_cell(cell, recorder, training)
    before = list(states) if keras.tree.is_nested(states) else [states]
    h, after, reset = rule.step(rule.sites(inputs, inputs), None, before)
    rule.resolve(None, before[0], reset)
    return h, after if keras.tree.is_nested(states) else after[0]


def recorded_loop(layer: Any, recorder: Recorder, x: Any, initial_state: Any, mask: Any, training: Any) -> Any:
    """Returns what `RNN.inner_loop` does: last output, outputs [B, T, ...] in the order of processing, last states."""
    mask = _step_mask(mask)
    if layer.go_backwards:
        x = ops.flip(x, axis=1)
        mask = None if mask is None else ops.flip(mask, axis=1)
    # A stateful layer hands on the variables of its state.
    initial_state = keras.tree.map_structure(ops.convert_to_tensor, initial_state)
    cells = cells_of(layer)
    classes: list[Any] = [rule_class(layer, cell) for cell in cells]  # cells without one have been refused
    rules = [one(cell, recorder, training) for one, cell in zip(classes, cells, strict=True)]
    states = [list(s) for s in ([initial_state] if len(cells) == 1 and layer.cell is cells[0] else initial_state)]
    sites = [rule.sites(None if k else x, x) for k, rule in enumerate(rules)]
    outputs, resets, last = scan(rules, sites, states, mask)

    inputs = x
    for rule, start, h, reset in zip(rules, states, outputs, resets, strict=True):
        rule.resolve(inputs, ops.concatenate([start[0][:, None], h[:, :-1]], axis=1), reset)
        inputs = h
    y = outputs[-1]
    if mask is not None:
        y = ops.where(aligned(shown_steps(layer, mask, states[-1]), y), y, ops.zeros_like(y))
    return y[:, -1], y, keras.tree.pack_sequence_as(initial_state, keras.tree.flatten(last))


def _step_mask(mask: Any) -> Any:
    """Returns the mask as booleans [B, T]. Where there are several, Keras uses the first for all inputs."""
    if keras.tree.is_nested(mask):
        mask = keras.tree.flatten(mask)[0]
    if mask is None:
        return None
    mask = ops.cast(mask, "bool")
    return mask[..., 0] if len(mask.shape) == 3 else mask
