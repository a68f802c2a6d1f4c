"""What Keras's own losses divide by, and which of them couple the examples of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch import keras_internals

_MEANS = ("sum_over_batch_size", "mean")


def depends_on_the_data(losses: Sequence[Any], model: keras.Model) -> bool:
    """Returns whether one of these losses of a model may divide by anything but the number of its elements."""
    weighted = any(getattr(loss, "reduction", None) == "mean_with_sample_weight" for loss in losses)
    ignoring = any(keras_internals.wrapped_function(loss)[1].get("ignore_class") is not None for loss in losses)
    return weighted or ignoring or makes_masks(model)


def divisor(loss: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
    """Returns what Keras divides a loss by, up to a factor that is the same for all micro-batches.

    None for the examples.
    """
    mask = keras_internals.keras_mask(y_pred)
    if keras_internals.wrapped_function(loss)[1].get("ignore_class") is not None:
        values = loss.call(ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred))
        own = keras_internals.keras_mask(values)
        mask = own if mask is None else mask & own
    if loss.reduction in _MEANS:
        return None if mask is None else ops.sum(ops.cast(mask, "float32"))
    if mask is None and sample_weight is None:
        return None
    weights = None if sample_weight is None else ops.cast(sample_weight, "float32")
    if mask is None:
        return ops.sum(weights)
    mask = ops.cast(mask, "float32")
    if weights is not None:
        mask, weights = keras_internals.of_same_rank(mask, weights)
        mask = mask * weights
    return ops.sum(mask)


def keras_function(loss: Any) -> Any:
    """Returns the function of Keras's behind one of Keras's own losses; None for other losses."""
    if isinstance(loss, keras.losses.Loss) and not type(loss).__module__.startswith("keras."):
        return None
    wrapped, _ = keras_internals.wrapped_function(loss)
    function = loss if wrapped is None else wrapped
    return function if (getattr(function, "__module__", None) or "").startswith("keras.") else None


def couples_examples(loss: Any, y_pred: Any) -> bool:
    """Returns whether one of Keras's own losses reduces over axis 0, the examples, or compares them."""
    name = keras_function(loss).__name__
    axis = keras_internals.wrapped_function(loss)[1].get("axis", None if name in ("dice", "tversky") else -1)
    if name == "circle" or axis is None:
        return True
    rank = len(y_pred.shape)
    return any(one % rank == 0 for one in (axis if isinstance(axis, tuple | list) else [axis])) and rank > 1


def makes_masks(model: keras.Model) -> bool:
    """Returns whether a layer may make a mask that is not another one's."""
    for layer in keras_internals.layers_within(model):
        if isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False):
            return True
        if (
            is_own(layer)
            and not isinstance(layer, keras.Model)
            and type(layer).compute_mask is not keras.layers.Layer.compute_mask
        ):
            return True
    return False


def is_own(layer: Any) -> bool:
    """Returns whether a layer's or model's class is none of Keras's."""
    return not type(layer).__module__.startswith("keras.")
