"""Cross-entropies of logits whose gradients do not cancel for confident classifiers.

The gradient of a cross-entropy by the logit of the label is p - 1, which rounds to 0 once p is near 1. Written as

    -log p_c  =  softplus(log sum_{k != c} exp z_k  -  z_c)                               softmax
    binary    =  y softplus(-z) + (1 - y) softplus(z)                                     sigmoid

no difference of nearly equal numbers is left. The values are those of Keras's losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.keras_internals import reading_logits, wrapped_function


def without_cancellation(loss: Any) -> Any:
    """Returns a loss of Keras's as one of logits that has such a gradient.

    Args:
        loss: A loss object.

    Returns:
        A loss with the same reduction. With label smoothing, whose gradient does not vanish, a focusing factor or
        classes to be ignored it is Keras's own; None if the loss reads no logits.
    """
    function, arguments = wrapped_function(loss)
    own = _OWN.get(getattr(function, "__name__", ""))
    is_plain = arguments.get("axis", -1) == -1 and not arguments.get("label_smoothing")
    if own is None or not is_plain or arguments.get("ignore_class") is not None:
        return reading_logits(loss)
    return reading_logits(loss, own)


def _sparse(y: Any, z: Any, **_: Any) -> Any:
    if len(y.shape) == len(z.shape):
        y = ops.squeeze(y, -1)
    return _of_class(ops.one_hot(ops.cast(y, "int32"), z.shape[-1], dtype="bool"), z)


def _categorical(y: Any, z: Any, **_: Any) -> Any:
    """Returns the cross-entropy of rows y: its largest entry without cancellation, the others as they are."""
    y = ops.cast(y, z.dtype)
    top = ops.one_hot(ops.argmax(y, axis=-1), z.shape[-1], dtype="bool")
    rest = ops.sum(ops.where(top, ops.zeros_like(z), -y * ops.log_softmax(z, axis=-1)), axis=-1)
    return ops.max(y, axis=-1) * _of_class(top, z) + rest


def _of_class(own: Any, z: Any) -> Any:
    lowest = float(np.finfo(keras.backend.standardize_dtype(z.dtype)).min) / 2
    others = ops.logsumexp(ops.where(own, ops.full_like(z, lowest), z), axis=-1)
    return ops.softplus(others - ops.sum(ops.where(own, z, ops.zeros_like(z)), axis=-1))


def _binary(y: Any, z: Any, **_: Any) -> Any:
    y = ops.cast(y, z.dtype)
    return ops.mean(y * ops.softplus(-z) + (1.0 - y) * ops.softplus(z), axis=-1)


_OWN: dict[str, Callable[..., Any]] = {
    "binary_crossentropy": _binary,
    "categorical_crossentropy": _categorical,
    "sparse_categorical_crossentropy": _sparse,
}
