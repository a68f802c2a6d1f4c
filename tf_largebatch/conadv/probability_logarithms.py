"""Logarithms of a classifier's probabilities, computed behind its softmax or sigmoid, where they do not underflow.

The probabilities of a confident classifier round to 0 and 1, and their gradients to 0. The logarithms are finite at any
scale of the logits z:

    log softmax(z) = z - logsumexp(z)          log sigmoid(z) = -softplus(-z)

Each backend finds the softmax or sigmoid in its own way: `backend.tensorflow.operations` reads the graph,
`backend.jax.operations` the traced program.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.conadv.backend import operations
from tf_largebatch.core.rates import compute_dtype

followed = operations.followed
plain_value = operations.value
logits_behind = operations.logits


def log_probabilities(probabilities: Any) -> Any:
    """Returns the logarithm of the probabilities that a classifier gives.

    Args:
        probabilities: The classifier's output, floating, of any shape, or what `followed` returned.

    Returns:
        Tensor in the same shape, float32 (float64 for such probabilities); `log(max(p, tiny))` where no softmax or
        sigmoid is found.
    """
    found = operations.logarithm(probabilities)
    if found is None and (logits := logits_behind(probabilities, "Softmax")) is not None:
        found = ops.log_softmax(logits)
    return _plain_logarithm(plain_value(probabilities)) if found is None else found


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


def _plain_logarithm(probabilities: Any) -> Any:
    probabilities = ops.cast(probabilities, compute_dtype(probabilities.dtype))
    return ops.log(ops.maximum(probabilities, _tiny(probabilities)))


def _tiny(tensor: Any) -> float:
    return float(np.finfo(keras.backend.standardize_dtype(tensor.dtype)).tiny)
