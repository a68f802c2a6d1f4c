"""The calls of a model's layers in one forward pass, each to be repeated alone. Backend-neutral."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tf_largebatch import keras_internals
from tf_largebatch.norms.registry import own_trainable_variables
from tf_largebatch.norms.view import view


@dataclasses.dataclass
class LayerCall:
    """One call of a layer with variables of its own, to be repeated alone.

    `layer` is a view of the layer as it was before the call, with the dropout masks that it may have kept.
    """

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    training: bool | None
    state: list[tuple[Any, Any]]  # what variables that are not trained held before the call
    outputs: Any

    @property
    def floats(self) -> list[Any]:
        """The floating-point outputs."""
        return floats_of(self.outputs)

    def check_same(self, outputs: list[Any]) -> None:
        """Raises unless the layer alone gave these floating-point outputs in the model, too."""
        for found, expected in zip(outputs, self.floats, strict=True):
            dtype = keras.backend.standardize_dtype(expected.dtype)
            tolerance = {"float16": 1e-2, "bfloat16": 5e-2}.get(dtype, 1e-5)
            found, expected = ops.cast(found, "float32"), ops.cast(expected, "float32")
            differs = ops.any(ops.abs(found - expected) > tolerance * (1e-6 + ops.max(ops.abs(expected))))
            if bool(differs):
                raise ValueError(
                    f"The brute-force reference cannot repeat layer {self.layer.path!r}: alone it gives something else "
                    "than in the model, as a layer does that draws random numbers without a seed of its own."
                )


def record(
    model: Any, x: Any, training: bool, state: list[Any], passed_on: Callable[[Any, Any], Any]
) -> tuple[list[LayerCall], Any]:
    """Runs a model forward and records the calls of its layers with variables of their own.

    Args:
        model: The model.
        x: Its inputs.
        training: Whether it runs in training mode.
        state: What the forward pass may change.
        passed_on: Returns what goes on in place of a layer's outputs, given the layer and the outputs.

    Returns:
        The calls, and the model's outputs.
    """
    layers = [layer for layer in keras_internals.layers_within(model) if own_trainable_variables(layer)]
    calls: list[LayerCall] = []

    def recording(layer: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # Stateful recurrent layers hand on their state as the variable, which changes at the end of their call.
            args, kwargs = keras.tree.map_structure(_present_value, (args, kwargs))
            before = [(v, _present_value(v)) for v in state]
            as_it_was = view(layer)
            vars(as_it_was).pop("call", None)
            outputs = passed_on(layer, type(layer).call(layer, *args, **kwargs))
            mode = keras_internals.training_of_the_call(layer)
            calls.append(LayerCall(as_it_was, args, kwargs, mode, before, outputs))
            return outputs

        return call

    try:
        for layer in layers:
            object.__setattr__(layer, "call", recording(layer))
        y_pred = model(x, training=training)
    finally:
        for layer in layers:
            vars(layer).pop("call", None)
    return calls, y_pred


def floats_of(outputs: Any) -> list[Any]:
    """Returns the floating-point tensors of nested outputs."""
    return [t for t in keras.tree.flatten(outputs) if is_float(t)]


def is_float(t: Any) -> bool:
    """Returns whether it is a floating-point tensor."""
    return ops.is_tensor(t) and keras.backend.is_float_dtype(t.dtype)


def _present_value(t: Any) -> Any:
    """Returns the value now, where t is a variable."""
    return ops.copy(ops.convert_to_tensor(t)) if hasattr(t, "assign") else t
