"""The rule for any layer, slow: that of Keras 3, with tf_keras's way of running a layer on other variables.

It is run only where the registry is `TF_KERAS.allowing_generic()`. `tf_largebatch.norms.rules.generic` has its cost,
and what it finds out: layers that couple examples or draw random numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf_largebatch.keras_internals import layers_within
from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.generic import Alone, LayerAlone, join, unjoin
from tf_largebatch.tf_keras.keras_internals import adds_losses
from tf_largebatch.tf_keras.norms.registry import TF_KERAS


@TF_KERAS.register_generic
def generic(layer: Any, recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
    """Returns the layer's own call on private values of all variables in it, its outputs recorded as one tensor."""
    if layer.non_trainable_variables:
        _refuse(layer, "has variables that are not trained")
    variables = layer.trainable_variables
    values = [recorder.value(v, v.dtype) for v in variables]
    with _in_place_of(variables, values, layer):
        outputs = type(layer).call(layer, *args, **kwargs)
    if adds_losses(layer):
        _refuse(layer, "adds a loss, which its outputs do not show")
    joined = join(outputs, recorder.batch_size, layer)
    alone = _LayerAlone(layer, args, kwargs, variables, values, recorder.batch_size, joined)
    for index, variable in enumerate(variables):
        joined = recorder.record(variable, joined, Alone(alone, index))
    return unjoin(joined, outputs)


class _LayerAlone(LayerAlone):
    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], values: list[tf.Tensor]) -> Any:
        with _in_place_of(self.variables, values, self.layer):
            return self.layer(*args, **kwargs)


@contextlib.contextmanager
def _in_place_of(variables: Sequence[Any], tensors: Sequence[tf.Tensor], layer: Any) -> Iterator[None]:
    """Within it the attributes of a layer, and of those inside it, that are variables are these tensors.

    A variable that a layer keeps elsewhere, in a list for example, is read as it is, which `measure` finds and refuses.
    """
    tensor_of = {id(v): tensor for v, tensor in zip(variables, tensors, strict=True)}
    replaced = []
    try:
        for inner in layers_within(layer):
            for name, value in list(vars(inner).items()):
                if id(value) in tensor_of:
                    replaced.append((inner, name, value))
                    tensor = tensor_of[id(value)]
                    is_cast = "AutoCast" in type(value).__name__
                    # Past Keras's tracking: this is no state of the layer.
                    vars(inner)[name] = tf.cast(tensor, inner.compute_dtype) if is_cast else tensor
        yield
    finally:
        for inner, name, value in replaced:
            vars(inner)[name] = value


def _refuse(layer: Any, why: str) -> None:
    raise ValueError(
        f"Per-example gradient norms are not available: layer {layer.name!r} {why}. Give it a rule "
        "(tf_largebatch.tf_keras.norms.TF_KERAS.register) or train with task.gradient_norms.mode=replica."
    )
