"""What a forward pass may change in a model, and giving it back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from tf_largebatch import keras_internals


def state_of(model: keras.Model) -> list[Any]:
    """Lists what a forward pass in training mode may change.

    Beyond Keras's own list these are the states of stateful recurrent layers, the kernels to which
    SpectralNormalization assigns, and the random state of layers without a seed of their own.
    """
    layers = keras_internals.layers_within(model)
    recurrent = [layer for layer in layers if getattr(layer, "stateful", False) and hasattr(layer, "cell")]
    spectral = [layer for layer in layers if isinstance(layer, keras.layers.SpectralNormalization)]
    states = [state for layer in recurrent for state in keras.tree.flatten(layer.states)]
    kernels = [layer.kernel for layer in spectral]
    random_state = keras_internals.global_random_state()
    drawn_from = [] if random_state is None else [random_state]
    return [*model.non_trainable_variables, *states, *kernels, *drawn_from]


@contextlib.contextmanager
def restored(variables: list[Any]) -> Iterator[None]:
    """Gives the variables their values back on leaving."""
    on_jax = keras.backend.backend() == "jax"  # arrays do not change
    values = [v.value if on_jax else ops.copy(v) for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
