"""Finds out, from a few examples, whether a loss is a mean or a sum over them, or couples them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch import keras_internals
from tf_largebatch.training.differentiate import gradients_at
from tf_largebatch.training.micro_batches import batch_size_of, composite_examples
from tf_largebatch.training.trainer import scratch_scope

_SAMPLE = 8  # examples
_TOLERANCE = 1e-3  # float32 sums of losses and gradients in another order; coupled losses differ by percents


def kind_of_loss(loss: Callable[[Any], Any], data: tuple[Any, ...]) -> str | None:
    """Compares the loss of a few examples with the losses of two parts of them, in value and gradient.

    Args:
        loss: Of `data`; a scalar, or values to add up.
        data: Inputs, targets, predictions and weights, nested eager tensors with 2 examples or more on axis 0.

    Returns:
        "mean" or "sum" if the loss is that over the examples, at the predictions and near them; None if neither.
    """
    x, y, y_pred, sample_weight = data
    size = int(batch_size_of(y_pred))
    cut = size // 3 + 1
    kinds = {"mean": (cut / size, (size - cut) / size), "sum": (1.0, 1.0)}
    for factors in (np.ones(size), np.random.default_rng(1).uniform(0.5, 1.0, size)):
        nearby = keras.tree.map_structure(lambda t, factors=factors: _scaled(t, factors), y_pred)
        data = x, y, nearby, sample_weight
        whole, first, second = (_value_and_gradient(loss, data, *part) for part in ((0, size), (0, cut), (cut, size)))
        for kind, weights in list(kinds.items()):
            value, gradient = (
                ops.concatenate([weights[0] * a, weights[1] * b]) for a, b in zip(first, second, strict=True)
            )
            if not (_close(whole[0], ops.sum(value)) and _close(whole[1], gradient)):
                del kinds[kind]
    return next(iter(kinds), None)


def adds_means(model: keras.Model, x: Any) -> bool:
    """Returns whether what the layers add to the loss (`add_loss`) are means over the examples.

    Args:
        model: The model that is wrapped.
        x: Its inputs, nested eager tensors with 2 examples or more on axis 0.
    """

    def added(start: int, stop: int) -> float:
        with scratch_scope(collect_losses=True):
            model(examples(x, start, stop), training=False)
            with keras_internals.without_weight_regularizers(model):
                return sum(float(ops.sum(loss)) for loss in model.losses)

    size = int(batch_size_of(x))
    cut = size // 3 + 1
    whole = added(0, size)
    mean = (cut * added(0, cut) + (size - cut) * added(cut, size)) / size if whole else 0.0
    differs = abs(whole - mean) > _TOLERANCE * max(abs(whole), abs(mean))
    return not differs


def examples(data: Any, start: int, stop: int) -> Any:
    """Returns some examples of nested eager tensors, with their masks."""

    def cut(t: Any) -> Any:
        if t is None:
            return None
        part = composite_examples(t, start, stop)
        if part is not None:
            return part
        mask = keras_internals.keras_mask(t)
        part = t[start:stop]
        if mask is not None:
            keras_internals.set_keras_mask(part, mask[start:stop])
        return part

    return keras.tree.map_structure(cut, data)


def spread_examples(data: Any) -> Any:
    """Returns at most 8 examples, spread over nested arrays or tensors with the examples on axis 0, as tensors."""

    def take(t: Any) -> Any:
        if t is None:
            return None
        part = composite_examples(t, 0, _SAMPLE)
        if part is not None:
            return part
        array = t if ops.is_tensor(t) else np.asarray(t)
        rows = np.unique(np.linspace(0, len(array) - 1, _SAMPLE).astype(int))
        found = ops.take(array, rows, axis=0)
        floating = keras.backend.is_float_dtype(keras.backend.standardize_dtype(found.dtype))
        return ops.cast(found, keras.config.floatx()) if floating else found

    return keras.tree.map_structure(take, data)


def _value_and_gradient(loss: Callable[[Any], Any], data: tuple[Any, ...], start: int, stop: int) -> tuple[Any, Any]:
    """Returns the loss of some examples, [1], and its gradient by their predictions, [examples, values], float32."""
    x, y, y_pred, sample_weight = examples(data, start, stop)
    flat = keras.tree.flatten(y_pred)
    places = [i for i, t in enumerate(flat) if t is not None]

    def of_predictions(*predictions: Any) -> Any:
        arguments = list(flat)
        for i, t in zip(places, predictions, strict=True):
            _copy_mask(flat[i], t)
            arguments[i] = t
        return ops.sum(loss((x, y, keras.tree.pack_sequence_as(y_pred, arguments), sample_weight)))

    value, gradients = gradients_at(of_predictions, [flat[i] for i in places])
    rows = [ops.cast(ops.reshape(g, [stop - start, -1]), "float32") for g in gradients]
    return ops.reshape(ops.cast(value, "float32"), [1]), ops.concatenate(rows, axis=1)


def _close(a: Any, b: Any) -> bool:
    """Returns whether two tensors are equal but for rounding, relative to the largest entry."""
    scale = ops.maximum(ops.max(ops.abs(a)), ops.max(ops.abs(b)))
    return bool(ops.max(ops.abs(a - b)) <= _TOLERANCE * scale)


def _scaled(t: Any, factors: np.ndarray) -> Any:
    """Predictions, each example's multiplied by its factor: probabilities stay in [0, 1]."""
    if t is None:
        return None
    scaled = t * ops.cast(np.reshape(factors, [-1, *(1,) * (len(t.shape) - 1)]), t.dtype)
    _copy_mask(t, scaled)
    return scaled


def _copy_mask(source: Any, target: Any) -> None:
    """Gives a tensor the mask of another one."""
    mask = keras_internals.keras_mask(source)
    if mask is not None and target is not source:
        keras_internals.set_keras_mask(target, mask)
