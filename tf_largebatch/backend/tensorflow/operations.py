"""The operations that made a classifier's output: logits and logarithms of probabilities are read behind them.

In a TensorFlow graph, the operations between an output and its softmax or sigmoid are known. This module goes back
through them (casts, reshapes, clips, sums, means, products with positive constants, stacked members of an ensemble) and
computes the logarithm of each. In eager execution only a softmax or sigmoid directly at the output is found, where
Keras keeps the logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from tf_largebatch.core.rates import compute_dtype
from tf_largebatch.keras_internals import logits_kept_by_keras


def followed(function: Callable[[Any], Any], x: Any) -> Any:
    """Returns `function(x)`, whose operations `logits` and `logarithm` can read: a graph's tensors know theirs."""
    return function(x)


def value(outputs: Any) -> Any:
    """Returns what the function returned, without its operations."""
    return outputs


def logits(outputs: Any, kind: str) -> Any:
    """Returns the logits z where outputs are directly `softmax(z)` or `sigmoid(z)`, else None.

    Args:
        outputs: A tensor, or what `followed` returned.
        kind: "Softmax" or "Sigmoid". In eager execution, where Keras keeps the logits of both alike, it is not checked.
    """
    operation = _operation(outputs)
    if operation is None:
        kept = logits_kept_by_keras(outputs)
        return None if kept is None else _cast(kept)
    while operation.type in _UNCHANGED:
        operation = operation.inputs[0].op
    return _cast(operation.inputs[0]) if operation.type == kind else None


def logarithm(outputs: Any) -> Any:
    """Returns the logarithm of probabilities; None if no softmax, sigmoid or exponential is found behind them.

    Args:
        outputs: A tensor, or what `followed` returned.
    """
    operation = _operation(outputs)
    rule = None if operation is None else _RULES.get(operation.type)
    return None if rule is None else rule(operation, list(operation.inputs))


def _operation(tensor: Any) -> Any:
    """Returns the operation that gives a tensor of a graph; None for an eager tensor."""
    return tensor.op if tf.is_symbolic_tensor(tensor) else None


def _of_first(change: Callable[[Any, Any], Any], operation: Any, inputs: Sequence[Any]) -> Any:
    """Returns `change(operation, logarithm of the first input)`."""
    found = logarithm(inputs[0])
    return None if found is None else change(operation, found)


def _of_all(combine: Callable[[Any, list[Any]], Any], operation: Any, inputs: Sequence[Any]) -> Any:
    """Returns `combine(operation, logarithms of all inputs)`."""
    found = [logarithm(tensor) for tensor in inputs]
    return None if any(one is None for one in found) else combine(operation, found)


def _clipped(operation: Any, inputs: Sequence[Any]) -> Any:
    """A clip keeps probabilities from 0 and 1, which logarithms need not: it is left out, gradient and all."""
    return next((found for found in map(logarithm, inputs) if found is not None), None)


def _product(sign: int, operation: Any, inputs: Sequence[Any]) -> Any:
    """Of probabilities and positive constants, such as the weights of an ensemble."""
    factors = [logarithm(tensor) for tensor in inputs]
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
    found, axes = logarithm(inputs[0]), tf.get_static_value(inputs[1])
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


def _cast(tensor: Any) -> Any:
    return ops.cast(tensor, compute_dtype(tensor.dtype))
