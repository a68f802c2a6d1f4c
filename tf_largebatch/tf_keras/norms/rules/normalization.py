"""Normalizations: `y = gamma z + beta`, so `G_i = sum_t d_{i,t} z_{i,t}` for gamma and `sum_t d_{i,t}` for beta."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf
import tf_keras

from tf_largebatch.norms.overrides import overridden_method, reached_methods
from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.bias import Bias
from tf_largebatch.norms.rules.elementwise import wide_dtype
from tf_largebatch.norms.rules.normalization import (
    affine,
    normalize_then_affine,
    per_example_affine,
    without_scale_and_center,
)
from tf_largebatch.norms.shapes import product, static_or_dynamic_shape
from tf_largebatch.norms.sums import sum_squares_per_example
from tf_largebatch.tf_keras import keras_internals
from tf_largebatch.tf_keras.norms.registry import TF_KERAS

# What tf.nn.fused_batch_norm makes of any smaller epsilon.
SMALLEST_FUSED_EPSILON = 1.001e-5


@dataclasses.dataclass(frozen=True)
class Scaling:
    """`y = w (x - mean) inverse + ...`, `w` on one axis; `mean` and `inverse` [size of that axis], float32.

    Nothing is added to the forward pass, which keeps tf_keras's fused kernel.
    """

    x: tf.Tensor
    mean: tf.Tensor
    inverse: tf.Tensor
    axis: int

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Returns `G_i = inverse sum_t d_{i,t} (x_{i,t} - mean)`, shape [b, size], without a copy of the centred x."""
        x, d = tf.cast(self.x[examples], self.mean.dtype), tf.cast(d[examples], self.mean.dtype)
        others = [axis for axis in range(1, x.shape.rank) if axis != self.axis]
        return self.inverse * (tf.reduce_sum(d * x, axis=others) - self.mean * tf.reduce_sum(d, axis=others))

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Directly."""
        return sum_squares_per_example(self.contributions(d, examples))

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The contributions add up to the gradient."""
        contributions = self.contributions(d, slice(None))
        return sum_squares_per_example(contributions), tf.reduce_sum(contributions, axis=0)


def refuse_batch_normalization(layer: Any) -> str | None:
    """An axis of the batch has a scale for each example, which no batch of another size can use."""
    return f"axis={list(layer.axis)}" if 0 in _axes(layer) else None


# Without the methods that `call` reaches: a subclass with its own is measured through its own call.
@TF_KERAS.register(
    tf_keras.layers.BatchNormalization,
    tf_keras.layers.experimental.SyncBatchNormalization,
    methods=("call",),
    refuse=refuse_batch_normalization,
)
def batch_normalization(
    layer: Any, recorder: Recorder, inputs: tf.Tensor, training: Any = None, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """Computes `y = gamma (x - mean) / sqrt(variance + epsilon) + beta`, with complete batch statistics in training.

    Batch renormalization, virtual batches, adjustments, several axes and subclasses with a method of their own go the
    longer way through the layer's own call.
    """
    if _normalizes_otherwise(layer):
        return _own_call_then_affine(layer, recorder, inputs, training, mask)
    training = tf.get_static_value(tf.convert_to_tensor(keras_internals.batch_norm_training(layer, training)))
    if training is None:
        raise ValueError(
            f"Per-example gradient norms are not available: layer {layer.name!r} gets its training mode as a tensor; "
            "call the model with training=True or False."
        )
    training = bool(training)
    x = tf.cast(inputs, layer.compute_dtype)
    rank, (axis,) = x.shape.rank, layer.axis
    gamma = None if layer.gamma is None else recorder.value(layer.gamma)
    beta = None if layer.beta is None else recorder.value(layer.beta)
    if layer.fused:
        y, mean, variance, inverse = _fused(layer, x, gamma, beta, training)
    else:
        y, mean, variance, inverse = _composed(layer, x, gamma, beta, training, mask)
    if training:
        keras_internals.move_averages(layer, x, mean, variance)
    if gamma is not None:
        y = recorder.record(layer.gamma, y, Scaling(x, mean, inverse, axis))
    if beta is not None:
        broadcast_shape = tuple(x.shape[axis] if i == axis else 1 for i in range(rank))
        y = recorder.record(layer.beta, y, Bias(tuple(layer.beta.shape), broadcast_shape))
    return y


def _axes(layer: Any) -> list[int]:
    """Returns the axes of the inputs on which gamma and beta lie; `layer.axis` counts the axis of virtual batches."""
    return [axis - (layer.virtual_batch_size is not None) for axis in layer.axis]


def _normalizes_otherwise(layer: Any) -> bool:
    """Returns whether the normalized inputs are others than `(x - mean) inverse` with one mean for each channel."""
    synchronized = tf_keras.layers.experimental.SyncBatchNormalization
    base = synchronized if isinstance(layer, synchronized) else tf_keras.layers.BatchNormalization
    return (
        layer.renorm
        or layer.virtual_batch_size is not None
        or layer.adjustment is not None
        or len(layer.axis) > 1
        or overridden_method(type(layer), base, reached_methods(base)) is not None
    )


def _own_call_then_affine(
    layer: Any, recorder: Recorder, inputs: tf.Tensor, training: Any, mask: tf.Tensor | None
) -> tf.Tensor:
    """Returns the layer's own normalization, whatever it does, followed by a scale and an offset for each example."""
    z = type(layer).call(without_scale_and_center(layer), inputs, training=training, mask=mask)
    wide = tf.cast(z, wide_dtype(z))
    axes = _axes(layer)
    sizes = [inputs.shape[axis] if axis in axes else 1 for axis in range(1, inputs.shape.rank)]
    gamma, beta = (
        None if v is None else tf.reshape(recorder.per_example(v, wide.dtype), [recorder.batch_size, *sizes])
        for v in (layer.gamma, layer.beta)
    )
    return tf.ensure_shape(tf.cast(affine(wide, gamma, beta), z.dtype), inputs.shape)


def _fused(
    layer: Any, x: tf.Tensor, gamma: tf.Tensor | None, beta: tf.Tensor | None, training: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """tf_keras's kernel: output, mean, the variance for the moving average, inverse deviation."""
    dtype = layer.moving_mean.dtype
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        x,
        tf.ones(layer.moving_mean.shape, dtype) if gamma is None else gamma,
        tf.zeros(layer.moving_mean.shape, dtype) if beta is None else beta,
        mean=None if training else layer.moving_mean,
        variance=None if training else layer.moving_variance,
        epsilon=layer.epsilon,
        is_training=training,
        data_format=keras_internals.batch_norm_data_format(layer),
    )
    biased = variance
    if training:
        # The kernel gives the unbiased estimate, which tf_keras lets into its moving average, and uses the biased.
        sizes = static_or_dynamic_shape(x)
        count = tf.cast(product(sizes) // sizes[layer.axis[0]], dtype)
        biased = variance * tf.maximum(count - 1.0, 1.0) / count
    else:
        mean, biased = tf.convert_to_tensor(layer.moving_mean), tf.convert_to_tensor(layer.moving_variance)
    return y, mean, variance, tf.math.rsqrt(biased + max(layer.epsilon, SMALLEST_FUSED_EPSILON))


def _composed(
    layer: Any,
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    training: bool,
    mask: tf.Tensor | None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the same in ordinary operations: statistics over all replicas where synchronized, masks, any rank."""
    dtype = layer.moving_mean.dtype
    (axis,) = layer.axis
    wide = tf.cast(x, dtype)
    if training:
        others = [i for i in range(x.shape.rank) if i != axis]
        mean, variance = keras_internals.batch_norm_moments(layer, wide, others, mask)
    else:
        mean, variance = tf.convert_to_tensor(layer.moving_mean), tf.convert_to_tensor(layer.moving_variance)

    def on_axis(t: tf.Tensor | None) -> tf.Tensor | None:
        return None if t is None else tf.reshape(t, [-1 if i == axis else 1 for i in range(x.shape.rank)])

    y = tf.nn.batch_normalization(wide, on_axis(mean), on_axis(variance), on_axis(beta), on_axis(gamma), layer.epsilon)
    return tf.cast(y, x.dtype), mean, variance, tf.math.rsqrt(variance + layer.epsilon)


@TF_KERAS.register(tf_keras.layers.LayerNormalization)
def layer_normalization(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """Computes `y = gamma z + beta` with `z` normalized over the layer's axes; both are repeated for each example."""
    x = tf.cast(inputs, layer.compute_dtype)
    wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
    mean, variance = tf.nn.moments(wide, layer.axis, keepdims=True)
    z = (wide - mean) * tf.math.rsqrt(variance + layer.epsilon)
    gamma, beta = per_example_affine(layer, recorder, wide.dtype, x.shape.rank, list(layer.axis))
    return tf.cast(affine(z, gamma, beta), x.dtype)


@TF_KERAS.register(
    tf_keras.layers.GroupNormalization, methods=("call", "_apply_normalization", "_get_reshaped_weights")
)
def group_normalization(layer: Any, recorder: Recorder, inputs: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """Computes `y = gamma z + beta` with `z` normalized over each group of channels.

    Both are repeated for each example.
    """
    return normalize_then_affine(layer, recorder, inputs, [layer.axis], mask=mask)
