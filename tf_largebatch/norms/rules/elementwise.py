"""Layers whose variables multiply activations one by one, and the spectral normalisation of another layer's kernel."""

from __future__ import annotations

import sys
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_largebatch.norms.patched import patched
from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.registry import KERAS


@KERAS.register(keras.layers.PReLU)
def prelu(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """`y = max(x, 0) - alpha max(-x, 0)`: `G_i = -d max(-x, 0)`, summed over the shared axes."""
    with patched(layer, alpha=recorder.per_example(layer.alpha)):
        return type(layer).call(layer, inputs)


@KERAS.register(keras.layers.RMSNormalization)
def rms_normalization(layer: Any, recorder: Recorder, x: tf.Tensor) -> tf.Tensor:
    """`y = scale z` with `z = x / sqrt(mean(x^2) + epsilon)`: `G_i = sum_t d_{i,t} z_{i,t}`."""
    dtype = tf.as_dtype(keras.backend.result_type(x.dtype, "float32"))
    rank = x.shape.rank
    # The layer multiplies by NumPy's broadcasting: scale's axes meet the last ones, whichever the layer's axes are.
    scale = recorder.per_example(layer.scale, dtype)
    scale = tf.reshape(scale, [-1, *(1,) * (rank - scale.shape.rank), *layer.scale.shape])
    z = ops.rms_normalization(tf.cast(x, dtype), axis=layer.axis, epsilon=layer.epsilon)
    return tf.cast(z * scale, x.dtype)


def layer_scale(layer: Any, recorder: Recorder, x: tf.Tensor) -> tf.Tensor:
    """`y = gamma x`: `G_i = sum_t d_{i,t} x_{i,t}`."""
    gamma = recorder.per_example(layer.gamma)
    return x * tf.reshape(gamma, [-1, *(1,) * (x.shape.rank - 2), x.shape[-1]])


# ConvNeXt's layer of this name, which Keras does not export.
LayerScale = getattr(sys.modules[keras.applications.ConvNeXtTiny.__module__], "LayerScale", None)
if LayerScale is not None:
    KERAS.register(LayerScale)(layer_scale)


@KERAS.register(keras.layers.SpectralNormalization, methods=("call", "normalized_weights"), wraps=True)
def spectral_normalization(
    layer: Any, recorder: Recorder, inputs: tf.Tensor, training: bool | None = False
) -> tf.Tensor:
    """The inner layer, its kernel `W` replaced by `W / sigma(W)` before each training step.

    Keras assigns `W / sigma` to the variable and then calls the inner layer. The gradient therefore is taken at the
    assigned kernel and does not flow through sigma: it, and each example's contribution to it, is the inner layer's.
    So the assignment is hidden from the tape and the inner layer measured by its own rule.
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
