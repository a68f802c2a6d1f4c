"""TimeDistributed: one layer applied to every time step, so `G_i` is the sum over the steps of the inner layer's.

The steps are folded into the batch axis, so that the inner layer runs once and its rule takes the steps for further
positions. A layer inside that couples the steps, keeps state or draws random numbers would give something else then.
Keras's own loop over a known number of steps runs it instead, and its uses are added up.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tf_largebatch.keras_internals import layers_within, takes_mask, takes_training
from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.combinators import Folded
from tf_largebatch.norms.shapes import split_rows, static_or_dynamic_shape, static_or_dynamic_size


def time_distributed(
    layer: Any, recorder: Recorder, inputs: Any, training: bool | None = None, mask: Any = None
) -> Any:
    """Computes `y[:, t] = layer(x[:, t])`."""
    inner = layer.layer
    coupling = _layer_that_may_couple_steps(inner)
    if inputs.shape[1] is not None and (coupling is not None or _keeps_state(inner)):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    if coupling is not None:
        raise ValueError(
            f"Per-example gradient norms are not available: layer {layer.path!r} runs {coupling.name!r} "
            f"({type(coupling).__name__}) over a number of time steps unknown when the step is traced, and the steps "
            "may not be independent in it. Give the time axis a static size or train with gradient_norms='replica'."
        )
    kwargs: dict[str, Any] = {}
    if takes_mask(inner) and mask is not None:
        kwargs["mask"] = _steps_as_rows(mask)
    if takes_training(inner):
        kwargs["training"] = training
    batch, steps = recorder.batch_size, static_or_dynamic_size(inputs, 1)
    with recorder.folded(steps, Folded):
        y = inner.call(_steps_as_rows(inputs), **kwargs)
    return split_rows(y, batch, steps)


def _steps_as_rows(t: Any) -> Any:
    """Returns [B, T, ...] as [B T, ...]."""
    sizes = static_or_dynamic_shape(t)
    return ops.reshape(t, [sizes[0] * sizes[1], *sizes[2:]])


def _layer_that_may_couple_steps(layer: Any) -> Any:
    """Returns a layer inside that may compute something else from all steps together than from each alone, or None."""
    coupling = (keras.layers.BatchNormalization, keras.layers.Lambda)
    for sub in layers_within(layer):
        if isinstance(sub, coupling) or not type(sub).__module__.startswith("keras."):
            return sub
    return None


def _keeps_state(layer: Any) -> bool:
    """Returns whether a step may depend on the steps before.

    It does with seeds of random numbers, states, and vectors that are iterated.
    """
    return bool(layer.non_trainable_variables) or any(getattr(sub, "stateful", False) for sub in layers_within(layer))
