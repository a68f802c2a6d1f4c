"""The direction in which an attack moves a model's outputs.

The direction of a step does not depend on the size of the loss, and the gradient of a cross-entropy of a confident
classifier rounds to zero. For Keras's classification losses an attack therefore follows, for each image,

    softmax:  m = log P(other classes) - log P(c)       c: the image's own class, or the target
              dm/dz = softmax(z over the other classes) - softmax(z over c)
    sigmoid:  the binary cross-entropy, divided by the largest entry of its gradient with respect to the logits z

m increases with the cross-entropy of c, so its gradient has the same direction, but it is never small. Label smoothing
and the focusing factors of focal losses, which would stop or even turn the direction for confident images, have no
part in it. The gradient of any other loss is divided by its largest entry for each image; that of a weighted total of
several losses by its largest entry over all outputs, so that the weights keep their meaning.

All of this is float32 (float64 for such scores), whatever the precision of the network.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.conadv.backend import gradient_of, replicas
from tf_largebatch.conadv.class_labels import is_of_keras, loss_sum
from tf_largebatch.conadv.cross_entropies import without_cancellation
from tf_largebatch.conadv.probability_logarithms import log_odds, log_probabilities, logits_behind, plain_value
from tf_largebatch.core.rates import compute_dtype
from tf_largebatch.keras_internals import wrapped_function

# The size of the gradient at the logits is this number divided by their spread, so that float16 holds the gradients of
# the network's layers whatever the scale of its logits. The published ConAdv code multiplies the loss by 128 for
# logits whose spread is a few units.
_GRADIENT_SIZE = 1024.0
_SIZE_ON_REPLICAS = 128.0


class Scores(enum.Enum):
    """How a loss reads a classifier's outputs."""

    LOGITS = "logits of a softmax"
    PROBABILITIES = "probabilities"
    BINARY_LOGITS = "logits of one sigmoid for each class, or margins"
    BINARY_PROBABILITIES = "one probability for each class"
    OTHER = "unknown: the loss is the user's own"


_SOFTMAX = {
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "KLDivergence",
    "SparseCategoricalCrossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_generalized_cross_entropy",
    "kl_divergence",
    "sparse_categorical_crossentropy",
}
_SIGMOID = {
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
}
_MARGIN = {"CategoricalHinge", "categorical_hinge"}
_BINARY_MARGIN = {"Hinge", "SquaredHinge", "hinge", "squared_hinge"}


def scores_of(loss: Any) -> Scores:
    """Returns how a loss, an object or a function, reads the outputs."""
    if not is_of_keras(loss):
        return Scores.OTHER
    kind = loss if hasattr(loss, "__name__") else type(loss)
    logits = bool(getattr(loss, "from_logits", False))
    if kind.__name__ in _SOFTMAX:
        return Scores.LOGITS if logits else Scores.PROBABILITIES
    if kind.__name__ in _SIGMOID:
        return Scores.BINARY_LOGITS if logits else Scores.BINARY_PROBABILITIES
    if kind.__name__ in _BINARY_MARGIN:
        return Scores.BINARY_LOGITS
    return Scores.LOGITS if kind.__name__ in _MARGIN else Scores.OTHER


def direction(loss: Any, y: Any, own: Any, outputs: Any) -> tuple[Any, Any]:
    """Returns where to differentiate a classifier, and in which direction.

    Args:
        loss: A classification loss.
        y: Labels in the form that the loss takes, [B, ...].
        own: The classes whose probability the loss increases with, bool [B, classes].
        outputs: The classifier's outputs, [B, classes], or what `probability_logarithms.followed` returned: on JAX only
            that shows the logits behind a softmax.

    Returns:
        A tensor z, [B, classes], a function of the images; and the gradient of the objective with respect to it, up to
        a positive factor that all images share, in the dtype of z, without a gradient of its own.
    """
    kind = scores_of(loss)
    if kind is Scores.OTHER:
        z = _floating(outputs)
        found = _unit_max(gradient_of(lambda at: loss_sum(loss, y, at), ops.stop_gradient(z)))
    elif kind in (Scores.LOGITS, Scores.PROBABILITIES):
        z = _logits(outputs, "Softmax") if kind is Scores.LOGITS else log_probabilities(outputs)
        found = _softmax_over(z, ops.logical_not(own)) - _softmax_over(z, own)
        # Without a class on either side there is nothing to tell apart.
        both = ops.any(own, axis=-1, keepdims=True) & ops.any(ops.logical_not(own), axis=-1, keepdims=True)
        found = ops.where(both, found, ops.zeros_like(found))
    else:
        z = _logits(outputs, "Sigmoid") if kind is Scores.BINARY_LOGITS else log_odds(outputs)
        sign = ops.where(own, -ops.ones_like(z), ops.ones_like(z))
        logarithm = ops.log_sigmoid(sign * z)
        found = sign * ops.exp(logarithm - ops.max(logarithm, axis=-1, keepdims=True))
    return z, ops.stop_gradient(found * _size(z))


def direction_of_total(calls: Sequence[tuple[Any, float | None, tuple[Any, Any, Any]]]) -> tuple[list[Any], list[Any]]:
    """Returns where to differentiate a model, and in which direction, for a weighted total of losses.

        L = sum over the losses of  weight * loss(y, outputs, sample_weight)

    Args:
        calls: Each loss, an object of Keras's or a function of the same arguments; its weight, None for 1; and what it
            compares: labels, outputs (nested, as in `direction`), and weights of the examples or None.

    Returns:
        Tensors z, functions of the images: outputs, or the logits behind them where a loss of Keras's can read these.
        And for each the gradient of L with respect to it, divided for each image by its largest entry over all z, up to
        a positive factor that all images share; without a gradient of its own.
    """
    losses, places = zip(*(_readable(loss, outputs) for loss, _, (_, outputs, _) in calls), strict=True)

    def total(places: Sequence[Any]) -> Any:
        value: Any = 0.0
        for loss, place, (_, weight, (y, _, sample_weight)) in zip(losses, places, calls, strict=True):
            value += ops.sum(loss(y, place, sample_weight)) * (1.0 if weight is None else weight)
        return value

    z = keras.tree.flatten(list(places))
    found = keras.tree.flatten(gradient_of(total, keras.tree.map_structure(ops.stop_gradient, list(places))))
    largest = functools.reduce(ops.maximum, [_largest_of_each(gradient) for gradient in found])
    size = _size_for(functools.reduce(ops.maximum, [_largest(t) for t in z]))
    scale = size / ops.where(largest > 0, largest, ops.ones_like(largest))
    scaled = [g * ops.cast(ops.reshape(scale, [-1] + [1] * (len(g.shape) - 1)), g.dtype) for g in found]
    return z, [ops.stop_gradient(gradient) for gradient in scaled]


def _readable(loss: Any, outputs: Any) -> tuple[Any, Any]:
    """Returns a loss and the outputs that it reads.

    Where a loss of Keras's can read logits, it is that loss of the logits, also behind probabilities: the gradient at a
    confident probability, or that of a confident cross-entropy, rounds to zero.
    """
    function, arguments = wrapped_function(loss)
    of_logits = without_cancellation(loss)
    if of_logits is not None and not keras.tree.is_nested(outputs):
        softmax = scores_of(function) in (Scores.LOGITS, Scores.PROBABILITIES)
        logits = logits_behind(outputs, "Softmax" if softmax else "Sigmoid")
        if logits is not None:
            return of_logits, logits
        if arguments.get("from_logits"):
            return of_logits, _floating(outputs)
    return loss, keras.tree.map_structure(_floating, outputs)


def _logits(outputs: Any, end: str) -> Any:
    """Returns the outputs; their logits where they are probabilities nonetheless, which Keras's losses see, too."""
    logits = logits_behind(outputs, end)
    return _floating(outputs) if logits is None else logits


def _floating(outputs: Any) -> Any:
    outputs = plain_value(outputs)
    return ops.cast(outputs, compute_dtype(outputs.dtype))


def _softmax_over(z: Any, chosen: Any) -> Any:
    """Returns the softmax over the chosen classes of each image, 0 elsewhere."""
    lowest = float(np.finfo(keras.backend.standardize_dtype(z.dtype)).min)
    largest = ops.max(ops.where(chosen, z, ops.full_like(z, lowest)), axis=-1, keepdims=True)
    powers = ops.where(chosen, ops.exp(ops.minimum(z - largest, 0.0)), ops.zeros_like(z))
    return powers / ops.maximum(ops.sum(powers, axis=-1, keepdims=True), 1.0)


def _unit_max(gradient: Any) -> Any:
    largest = ops.max(ops.abs(gradient), axis=-1, keepdims=True)
    return gradient / ops.where(largest > 0, largest, ops.ones_like(largest))


def _largest_of_each(t: Any) -> Any:
    """Returns each image's largest absolute entry, [B]."""
    return ops.max(ops.abs(t), axis=tuple(range(1, len(t.shape)))) if len(t.shape) > 1 else ops.abs(t)


def _largest(z: Any) -> Any:
    """Returns the largest absolute entry of all images, 1 where there is no image."""
    return ops.max(ops.abs(z)) if z.shape[0] != 0 else ops.ones((), z.dtype)


def _size(z: Any) -> Any:
    """Returns the size of the gradient at the scores of a classifier, [B, classes]."""
    if z.shape[-1] == 1:  # the other class has the score 0
        return _size_for(_largest(z))
    return _size_for(ops.max(ops.max(z, axis=-1) - ops.min(z, axis=-1)) if z.shape[0] != 0 else ops.ones((), z.dtype))


def _size_for(spread: Any) -> Any:
    """Returns a power of two that falls as the spread of the logits grows, the same for all images of a batch.

    It is the same for all because batch normalization couples them, and a power of two because that rounds nothing. On
    several devices, whose images synchronized batch norm couples too, it is a constant: each sees the logits of its own
    images alone, and the attack is to need no communication.
    """
    if replicas.have_parts_of_the_batch():
        return ops.full((), _SIZE_ON_REPLICAS, dtype=spread.dtype)
    spread = ops.where(ops.isfinite(spread), ops.minimum(ops.maximum(spread, 0.5), 1e5), ops.ones_like(spread))
    return ops.power(ops.cast(2.0, spread.dtype), ops.round(ops.log2(_GRADIENT_SIZE / spread)))
