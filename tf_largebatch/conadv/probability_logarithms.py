"""Logarithms of a classifier's probabilities, computed behind its softmax or sigmoid, where they do not underflow.

The probabilities of a confident classifier round to 0 and 1, and their gradients to 0. The logarithms are finite at any
scale of the logits z:

    log softmax(z) = z - logsumexp(z)          log sigmoid(z) = -softplus(-z)

In a TensorFlow graph, the operations between an output and its softmax or sigmoid are known. This module goes back
through them (casts, reshapes, clips, sums, means, products with positive constants, stacked members of an ensemble) and
computes the logarithm of each. In eager execution only a softmax or sigmoid directly at the output is found, where
Keras keeps the logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_largebatch.core.rates import compute_dtype
from tf_largebatch.keras_internals import logits_kept_by_keras


def log_probabilities(probabilities: Any) -> Any:
    """Returns the logarithm of the probabilities that a classifier gives.

    Args:
        probabilities: The classifier's output, floating, of any shape.

    Returns:
        Tensor in the same shape, float32 (float64 for such probabilities); `log(max(p, tiny))` where no softmax or
        sigmoid is found.
    """
    found = _logarithm(probabilities)
    if found is None and (logits := logits_behind(probabilities, "Softmax")) is not None:
        found = ops.log_softmax(logits)
    return _plain_logarithm(probabilities) if found is None else found


def log_odds(probabilities: Any) -> Any:
    """Returns `log p - log(1 - p)` for the probabilities that a classifier gives: the logits of a sigmoid.

    Args:
        probabilities: As in `log_probabilities`.
    """
    logits = logits_behind(probabilities, "Sigmoid")
    if logits is not None:
        return logits
    logarithm = log_probabilities(probabilities)
    complement = ops.maximum(-ops.expm1(logarithm), _tiny(logarithm))
    return logarithm - ops.log(complement)


def logits_behind(outputs: Any, kind: str) -> Any:
    """Returns the logits z where outputs are directly `softmax(z)` or `sigmoid(z)`, else None.

    Args:
        outputs: The classifier's output.
        kind: "Softmax" or "Sigmoid". In eager execution, where Keras keeps the logits of both alike, it is not checked.
    """
    operation = _operation(outputs)
    if operation is None:
        logits = logits_kept_by_keras(outputs)
        return None if logits is None else _cast(logits)
    while operation.type in _UNCHANGED:
        operation = operation.inputs[0].op
    return _cast(operation.inputs[0]) if operation.type == kind else None


def _logarithm(tensor: Any) -> Any:
    """The logarithm of a tensor of a graph; None if it is not known to be made of probabilities."""
    operation = _operation(tensor)
    rule = None if operation is None else _RULES.get(operation.type)
    return None if rule is None else rule(operation, list(operation.inputs))


def _operation(tensor: Any) -> Any:
    """The operation that gives a tensor of a graph; None for an eager tensor."""
    return tensor.op if tf.is_symbolic_tensor(tensor) else None


def _of_first(change: Callable[[Any, Any], Any], operation: Any, inputs: Sequence[Any]) -> Any:
    """`change(operation, logarithm of the first input)`."""
    found = _logarithm(inputs[0])
    return None if found is None else change(operation, found)


def _of_all(combine: Callable[[Any, list[Any]], Any], operation: Any, inputs: Sequence[Any]) -> Any:
    """`combine(operation, logarithms of all inputs)`."""
    found = [_logarithm(tensor) for tensor in inputs]
    return None if any(logarithm is None for logarithm in found) else combine(operation, found)


def _clipped(operation: Any, inputs: Sequence[Any]) -> Any:
    """A clip keeps probabilities from 0 and 1, which logarithms need not: it is left out, gradient and all."""
    return next((found for found in map(_logarithm, inputs) if found is not None), None)


def _product(sign: int, operation: Any, inputs: Sequence[Any]) -> Any:
    """Of probabilities and positive constants, such as the weights of an ensemble."""
    factors = [_logarithm(tensor) for tensor in inputs]
    if all(factor is None for factor in factors):
        return None
    for i, tensor in enumerate(inputs):
        if factors[i] is None:
            constant = tf.get_static_value(tensor)
            if constant is None or not np.all(constant > 0):
                return None
            factors[i] = np.log(np.asarray(constant, "float64"))
    first, second = factors
    dtype = first.dtype if ops.is_tensor(first) else second.dtype
    return ops.cast(first, dtype) + sign * ops.cast(second, dtype)


def _summed(mean: bool, operation: Any, inputs: Sequence[Any]) -> Any:
    found, axes = _logarithm(inputs[0]), tf.get_static_value(inputs[1])
    if found is None or axes is None:
        return None
    axes = [int(axis) for axis in np.ravel(axes)]
    total = ops.logsumexp(found, axis=axes, keepdims=operation.get_attr("keep_dims"))
    if not mean:
        return total
    return total - ops.log(ops.cast(tf.reduce_prod(tf.gather(tf.shape(found), axes)), total.dtype))


def _joined(operation: Any, inputs: Sequence[Any]) -> Any:
    axis = int(tf.get_static_value(inputs[-1]))
    return _of_all(lambda _, found: ops.concatenate(found, axis=axis), operation, inputs[:-1])


def _reshaped(operation: Any, found: Any) -> Any:
    return tf.reshape(found, tf.shape(operation.outputs[0]))


def _softmax(operation: Any, inputs: Sequence[Any]) -> Any:
    return ops.log_softmax(_cast(inputs[0]))


def _sigmoid(operation: Any, inputs: Sequence[Any]) -> Any:
    return ops.log_sigmoid(_cast(inputs[0]))


def _exponential(operation: Any, inputs: Sequence[Any]) -> Any:
    return _cast(inputs[0])


def _added(operation: Any, found: list[Any]) -> Any:
    return functools.reduce(ops.logaddexp, found)


def _stacked(operation: Any, found: list[Any]) -> Any:
    return ops.stack(found, axis=operation.get_attr("axis"))


def _same(operation: Any, found: Any) -> Any:
    return found


_UNCHANGED = ("Identity", "PreventGradient", "CheckNumerics", "Cast")
_RULES: dict[str, Callable[[Any, Sequence[Any]], Any]] = {
    "Softmax": _softmax,
    "Sigmoid": _sigmoid,
    "Exp": _exponential,
    **dict.fromkeys(_UNCHANGED, functools.partial(_of_first, _same)),
    **dict.fromkeys(("Reshape", "Squeeze", "ExpandDims"), functools.partial(_of_first, _reshaped)),
    **dict.fromkeys(("Maximum", "Minimum", "ClipByValue"), _clipped),
    **dict.fromkeys(("Add", "AddV2", "AddN"), functools.partial(_of_all, _added)),
    "Mul": functools.partial(_product, 1),
    "RealDiv": functools.partial(_product, -1),
    "Sum": functools.partial(_summed, False),
    "Mean": functools.partial(_summed, True),
    "Pack": functools.partial(_of_all, _stacked),
    "ConcatV2": _joined,
}


def _plain_logarithm(probabilities: Any) -> Any:
    probabilities = _cast(probabilities)
    return ops.log(ops.maximum(probabilities, _tiny(probabilities)))


def _cast(tensor: Any) -> Any:
    return ops.cast(tensor, compute_dtype(tensor.dtype))


def _tiny(tensor: Any) -> float:
    return float(np.finfo(keras.backend.standardize_dtype(tensor.dtype)).tiny)
