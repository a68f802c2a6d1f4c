"""The range of a model's inputs, as its first layers tell it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.keras_internals import layers_that_take
from tf_largebatch.training.wrapper import Wrapper

UNKNOWN = (0.0, 255.0)
# The usual ranges of images, each within the next: statistics of the data are looked up in this order.
_INPUTS = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
# What a Rescaling makes of one of them.
_RESCALED = ((0.0, 1.0), (-1.0, 1.0), (-0.5, 0.5), (0.0, 255.0))
# Layers that move the values of an image and leave its range.
_OF_THE_SAME_RANGE = (
    keras.layers.InputLayer,
    keras.layers.Identity,
    keras.layers.Resizing,
    keras.layers.CenterCrop,
    keras.layers.RandomCrop,
    keras.layers.RandomFlip,
    keras.layers.RandomRotation,
    keras.layers.RandomTranslation,
    keras.layers.RandomZoom,
    keras.layers.ZeroPadding2D,
)


def inferred_range(model: keras.Model) -> list[float]:
    """Returns the range of valid inputs that the first layers of a model tell.

    * A `Rescaling` that maps one of the ranges [0, 1], [-1, 1], [0, 255] onto another one or [-0.5, 0.5], to 1 % of its
      width, tells that range: `Rescaling(1 / 255)` and `Rescaling(1 / 127.5, offset=-1)` take [0, 255].
    * A `Normalization` with mean m and variance v, or any other `Rescaling` (m = -offset / scale, v = 1 / scale^2),
      tells the smallest of the three that data of that mean and variance can lie in. Data in [l, u] have

          v <= (u - m) (m - l)                                           (Bhatia and Davis)

      so that [0, 255] is not missed where pixels are above 1; bright images in [-1, 1] may be taken for [0, 1], which
      the first batch contradicts.

    Args:
        model: A model of images. The graph of a Functional or Sequential model is read; a subclassed one tells nothing.

    Returns:
        [lower, upper]; [0, 255] where nothing tells it.
    """
    return list(_range_before(_first_layer(model)) or UNKNOWN)


def _first_layer(model: Any) -> Any:
    """Returns the layer that changes the values of the input, in models within models; None if there are several."""
    layer = model
    while isinstance(layer, keras.Model):
        if isinstance(layer, Wrapper):
            layer = layer.model
        elif isinstance(layer, keras.Sequential):
            layer = next((one for one in layer.layers if not isinstance(one, _OF_THE_SAME_RANGE)), None)
        else:
            layer = _first_of_graph(layer)
    return layer


def _first_of_graph(model: Any) -> Any:
    """Returns the layer that takes the input of a Functional model, behind those that leave its range; else None."""
    tensors = keras.tree.flatten(getattr(model, "inputs", None) or [])
    if len(tensors) != 1:
        return None
    tensor = tensors[0]
    while True:
        takers = layers_that_take(model, tensor)
        if len(takers) != 1:
            return None
        layer, output = takers[0]
        if not isinstance(layer, _OF_THE_SAME_RANGE):
            return layer
        tensor = output


def _range_before(layer: Any) -> tuple[float, float] | None:
    """Returns the range of a layer's inputs; None if it does not tell it."""
    if isinstance(layer, keras.layers.Rescaling):
        scale, offset = np.broadcast_arrays(*(np.asarray(v, "float64") for v in (layer.scale, layer.offset)))
        for lower, upper in _INPUTS:
            ends = scale * lower + offset, scale * upper + offset
            for target in _RESCALED:
                off = [np.abs(end - bound) for end, bound in zip(ends, target, strict=True)]
                if target != (lower, upper) and np.all(np.maximum(*off) < 0.01 * (target[1] - target[0])):
                    return lower, upper
        if np.any(scale == 0) or not np.any(offset):
            return None
        return _smallest_range(-offset / scale, 1 / scale**2)
    if isinstance(layer, keras.layers.Normalization) and not layer.invert:
        statistics = [
            getattr(layer, name, None) if getattr(layer, name, None) is not None else getattr(layer, f"input_{name}")
            for name in ("mean", "variance")
        ]
        if any(one is None for one in statistics):
            return None
        mean, variance = (np.asarray(ops.convert_to_numpy(one), "float64") for one in statistics)
        # Not adapted yet, or made to change nothing.
        return None if np.all(mean == 0) and np.all(variance == 1) else _smallest_range(mean, variance)
    return None


def _smallest_range(mean: Any, variance: Any) -> tuple[float, float] | None:
    """Returns the smallest usual range that data with this mean and variance can lie in; None for no variance."""
    if np.any(variance <= 0):
        return None
    for lower, upper in _INPUTS:
        if np.all(variance <= (upper - mean) * (mean - lower)) and np.all((mean >= lower) & (mean <= upper)):
            return lower, upper
    return None
