"""What a forward pass may change in a model, and giving it back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf


def state_of(model: keras.Model) -> list[Any]:
    """What a forward pass in training mode may change, beyond Keras's own list the states of stateful recurrent layers
    and the kernels to which SpectralNormalization assigns.
    """
    layers = model._flatten_layers()
    recurrent = [layer for layer in layers if getattr(layer, "stateful", False) and hasattr(layer, "cell")]
    spectral = [layer for layer in layers if isinstance(layer, keras.layers.SpectralNormalization)]
    states = [state for layer in recurrent for state in keras.tree.flatten(layer.states)]
    return [*model.non_trainable_variables, *states, *(layer.kernel for layer in spectral)]


@contextlib.contextmanager
def restored(variables: list[Any]) -> Iterator[None]:
    """Gives the variables their values back on leaving."""
    values = [tf.identity(v) if isinstance(v, tf.Variable) else tf.identity(v.value) for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
