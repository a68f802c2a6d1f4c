"""Normalisations: `y = gamma z + beta` with `z` normalised; per-example copies of gamma and beta give `G_i`.

With `z` known, `G_i = sum_t d_{i,t} z_{i,t}` for gamma and `sum_t d_{i,t}` for beta. Repeating gamma and beta for each
example lets the ordinary backward pass sum over one example's positions where it would have summed over all, so the
norms cost no pass over the activations.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_largebatch.norms.kernels.device import device
from tf_largebatch.norms.kernels.fused_batch_norm import fused_batch_norm
from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.registry import KERAS
from tf_largebatch.norms.shapes import static_or_dynamic_size


def without_scale_and_center(layer: Any) -> Any:
    """A view of the layer whose `call` returns the normalised inputs, neither scaled nor shifted.

    It shares all variables with the layer, which stays as it is: another replica's thread may be in the middle of it.
    """
    view = object.__new__(type(layer))
    # Past Keras's tracking, which would take the missing variables for a new state.
    vars(view).update(vars(layer))
    plain = {"scale": False, "center": False, "gamma": None, "beta": None}
    vars(view).update({name: value for name, value in plain.items() if hasattr(layer, name)})
    return view


def per_example_affine(layer: Any, recorder: Recorder, dtype: Any, rank: int, axes: list[int]) -> tuple[Any, Any]:
    """Gamma and beta repeated for each example, ready to broadcast; None where the layer has none.

    Args:
        layer: the normalisation layer.
        recorder: the record.
        dtype: the dtype in which the layer normalises.
        rank: the rank of the layer's input.
        axes: the axes of the input, none negative, on which gamma and beta lie.
    """

    def repeated(variable: Any) -> tf.Tensor | None:
        if variable is None:
            return None
        copies = recorder.per_example(variable, dtype)
        sizes = dict(zip(axes, variable.shape, strict=True))
        return tf.reshape(copies, [recorder.batch_size, *(sizes.get(axis, 1) for axis in range(1, rank))])

    return repeated(layer.gamma), repeated(layer.beta)


def affine(z: tf.Tensor, gamma: tf.Tensor | None, beta: tf.Tensor | None) -> tf.Tensor:
    """`gamma z + beta`, either of which may be None."""
    z = z if gamma is None else z * gamma
    return z if beta is None else z + beta


def normalise_then_affine(
    layer: Any, recorder: Recorder, inputs: tf.Tensor, axes: list[int], **kwargs: Any
) -> tf.Tensor:
    """The layer's own normalisation, whatever it does, followed by a per-example scale and shift."""
    dtype = tf.as_dtype(keras.backend.result_type(inputs.dtype, "float32"))
    rank = inputs.shape.rank
    z = type(layer).call(without_scale_and_center(layer), tf.cast(inputs, dtype), **kwargs)
    gamma, beta = per_example_affine(layer, recorder, dtype, rank, [axis % rank for axis in axes])
    return ops.cast(affine(tf.cast(z, dtype), gamma, beta), layer.compute_dtype)


@KERAS.register(keras.layers.BatchNormalization)
def batch_normalization(
    layer: Any, recorder: Recorder, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """`y = gamma (x - mean) / sqrt(variance + epsilon) + beta`, with complete batch statistics in training.

    On a CPU by the fused kernels. Elsewhere, and where these do not apply, written out, so that gamma and beta join the
    inverse deviation before they meet the activations, as in the ordinary step. Masked inputs and batch renormalisation
    go the longer way through the layer's own call.
    """
    if mask is not None or getattr(layer, "renorm", False):
        return normalise_then_affine(layer, recorder, inputs, [layer.axis], training=training, mask=mask)
    dtype = tf.as_dtype(keras.backend.result_type(inputs.dtype, "float32"))
    x = tf.cast(inputs, dtype)
    rank = x.shape.rank
    axis = layer.axis % rank
    in_training = bool(training) and layer.trainable
    if in_training and axis == rank - 1 and dtype == tf.float32 and not layer.synchronized and device() == "cpu":
        rows = [static_or_dynamic_size(x, 0), x.shape[axis]]
        gamma = tf.ones(rows) if layer.gamma is None else recorder.per_example(layer.gamma, dtype)
        beta = tf.zeros(rows) if layer.beta is None else recorder.per_example(layer.beta, dtype)
        y, mean, variance = fused_batch_norm(x, gamma, beta, layer.epsilon)
        _move_averages(layer, mean, variance, dtype)
        return ops.cast(y, layer.compute_dtype)
    if in_training:
        axes = [i for i in range(rank) if i != axis]
        mean, variance = ops.moments(x, axes=axes, synchronized=layer.synchronized)
        _move_averages(layer, mean, variance, dtype)
    else:
        mean, variance = ops.cast(layer.moving_mean, dtype), ops.cast(layer.moving_variance, dtype)
    shape = [1] * rank
    shape[axis] = x.shape[axis]
    mean, inverse = tf.reshape(mean, shape), tf.reshape(tf.math.rsqrt(variance + layer.epsilon), shape)
    gamma, beta = per_example_affine(layer, recorder, dtype, rank, [axis])
    inverse = inverse if gamma is None else inverse * gamma
    offset = -mean * inverse if beta is None else beta - mean * inverse
    return ops.cast(x * inverse + offset, layer.compute_dtype)


def _move_averages(layer: Any, mean: tf.Tensor, variance: tf.Tensor, dtype: tf.DType) -> None:
    """Moves the averages that inference uses towards the batch's statistics."""
    keep = layer.momentum
    layer.moving_mean.assign(ops.cast(layer.moving_mean, dtype) * keep + mean * (1.0 - keep))
    layer.moving_variance.assign(ops.cast(layer.moving_variance, dtype) * keep + variance * (1.0 - keep))


@KERAS.register(keras.layers.LayerNormalization)
def layer_normalization(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """`y = gamma z + beta` with `z` normalised over the layer's axes."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return normalise_then_affine(layer, recorder, inputs, list(axes))


@KERAS.register(keras.layers.GroupNormalization)
def group_normalization(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """`y = gamma z + beta` with `z` normalised over each group of channels."""
    return normalise_then_affine(layer, recorder, inputs, [layer.axis])
