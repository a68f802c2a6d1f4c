"""The brute-force reference's forward and backward passes on TensorFlow, in eager execution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch import keras_internals
from tf_largebatch.norms.layer_calls import LayerCall, floats_of, record
from tf_largebatch.norms.registry import own_trainable_variables
from tf_largebatch.norms.rules.generic import in_mode


def recorded_run(model: Any, x: Any, training: bool, state: list[Any]) -> list[LayerCall]:
    """Returns the calls of the model's layers with variables of their own."""
    return record(model, x, training, state, _new_tensors)[0]


def differentiated_run(
    model: Any, x: Any, training: bool, state: list[Any], loss: Callable[[Any], Any], variables: Sequence[Any]
) -> tuple[list[LayerCall], list[list[Any]], list[Any]]:
    """Runs the model forward and backward.

    Returns:
        The calls; for each call the gradients of the loss at its floating-point outputs, and the gradients of the
        variables. Each is None where the loss does not depend on it.
    """
    with tf.GradientTape() as tape:
        calls, y_pred = record(model, x, training, state, _new_tensors)
        value = loss(y_pred)
    d_calls, gradients = tape.gradient(
        value, ([call.floats for call in calls], [v.value for v in variables]), unconnected_gradients="none"
    )
    return calls, d_calls, gradients


def gradients_of(call: LayerCall, d: Sequence[Any], check: bool = False) -> list[tuple[Any, tf.Tensor]]:
    """Returns the gradients of a layer's own variables against `d` at its outputs, float32, where there are any."""
    own = own_trainable_variables(call.layer)
    for variable, value in call.state:
        variable.assign(value)
    with tf.GradientTape() as tape:
        outputs = floats_of(in_mode(call.training, lambda: call.layer(*call.args, **call.kwargs)))
    if check:
        call.check_same(outputs)
    used = [(y, tf.cast(part, y.dtype)) for y, part in zip(outputs, d, strict=True) if part is not None]
    shares = tape.gradient([y for y, _ in used], [v.value for v in own], output_gradients=[part for _, part in used])
    return [
        (v, tf.cast(tf.convert_to_tensor(share), tf.float32))
        for v, share in zip(own, shares, strict=True)
        if share is not None
    ]


def _new_tensors(layer: Any, outputs: Any) -> Any:
    """Returns the outputs as tensors of their own, so that the gradient at them is that of this call."""
    outputs = keras.tree.map_structure(_identity, outputs)
    if any(not hasattr(t, "numpy") for t in floats_of(outputs)):
        raise ValueError(
            f"The brute-force reference cannot repeat layer {layer.path!r}, which runs inside a tf.function or loop of "
            "its own."
        )
    return outputs


def _identity(t: Any) -> Any:
    """Returns the tensor again, with the mask that Keras keeps at it; None stays."""
    if not isinstance(t, tf.Tensor):
        return t
    copy = tf.identity(t)
    mask = keras_internals.keras_mask(t)
    if mask is not None:
        keras_internals.set_keras_mask(copy, mask)
    return copy
