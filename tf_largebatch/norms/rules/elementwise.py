"""Layers whose variables multiply activations one by one, and the spectral normalization of another layer's kernel."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tf_largebatch.norms.recorder import Recorder, Tensor


def scaled(recorder: Recorder, variable: Any, t: Tensor) -> Tensor:
    """Returns `t` times the variable, whose axes meet the last axes of `t`: `G_i = sum_t d_{i,t} t_{i,t}`.

    The product is in float32, because the backward pass sums over an example's positions in the dtype of the product.
    """
    dtype = wide_dtype(t)
    shape = tuple(variable.shape)
    repeated = ops.reshape(recorder.per_example(variable, dtype), [-1, *(1,) * (len(t.shape) - 1 - len(shape)), *shape])
    return ops.cast(ops.cast(t, dtype) * repeated, t.dtype)


def wide_dtype(t: Tensor) -> str:
    """Returns the dtype in which Keras normalizes inputs of this dtype: float32, or float64 for float64."""
    return keras.backend.result_type(keras.backend.standardize_dtype(t.dtype), "float32")


def prelu(layer: Any, recorder: Recorder, inputs: Tensor) -> Tensor:
    """Computes `y = max(x, 0) - alpha max(-x, 0)`: `G_i = -d max(-x, 0)`, summed over the shared axes."""
    return ops.relu(inputs) - scaled(recorder, layer.alpha, ops.relu(-inputs))


def rms_normalization(layer: Any, recorder: Recorder, x: Tensor) -> Tensor:
    """Computes `y = scale z` with `z = x / sqrt(mean(x^2) + epsilon)`: `G_i = sum_t d_{i,t} z_{i,t}`."""
    # The layer multiplies by NumPy's broadcasting: scale's axes meet the last ones, whichever the layer's axes are.
    z = ops.rms_normalization(ops.cast(x, wide_dtype(x)), axis=layer.axis, epsilon=layer.epsilon)
    return ops.cast(scaled(recorder, layer.scale, z), x.dtype)


def layer_scale(layer: Any, recorder: Recorder, x: Tensor) -> Tensor:
    """Computes `y = gamma x`: `G_i = sum_t d_{i,t} x_{i,t}`."""
    return scaled(recorder, layer.gamma, x)


def spectral_normalization(layer: Any, recorder: Recorder, inputs: Tensor, training: bool | None = False) -> Tensor:
    """Returns the inner layer, its kernel `W` replaced by `W / sigma(W)` before each training step.

    Keras assigns `W / sigma` to the variable and then calls the inner layer. The gradient therefore is taken at the
    assigned kernel and does not flow through sigma: it, and each example's contribution to it, is the inner layer's.
    So the assignment is hidden from the tape and the inner layer measured by its own rule. This is what Keras does on
    TensorFlow. On JAX its trainer differentiates through the division and drops the assigned kernel; here both
    backends train alike.
    """
    if training:
        with recorder.unseen():
            vector_u, kernel = ops.cond(
                ops.all(ops.equal(layer.kernel.value, 0)),
                lambda: (layer.vector_u.value, layer.kernel.value),
                layer.normalized_weights,
            )
            layer.vector_u.assign(vector_u)
            layer.kernel.assign(kernel)
    return ops.cast(layer.layer(inputs), inputs.dtype)
