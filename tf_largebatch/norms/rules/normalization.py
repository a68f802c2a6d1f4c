"""Normalizations: `y = gamma z + beta` with `z` normalized; gamma and beta, repeated for each example, give `G_i`.

With `z` known, `G_i = sum_t d_{i,t} z_{i,t}` for gamma and `sum_t d_{i,t}` for beta. Repeating gamma and beta for each
example lets the ordinary backward pass sum over one example's positions where it would have summed over all, so the
norms cost no pass over the activations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from tf_largebatch.norms.device import device
from tf_largebatch.norms.overrides import overridden_method, reached_methods
from tf_largebatch.norms.recorder import Recorder, Tensor
from tf_largebatch.norms.rules.elementwise import wide_dtype
from tf_largebatch.norms.shapes import static_or_dynamic_size
from tf_largebatch.norms.view import view


def without_scale_and_center(layer: Any) -> Any:
    """Returns a view of the layer whose `call` returns the normalized inputs, without scale and offset."""
    plain = {"scale": False, "center": False, "gamma": None, "beta": None}
    return view(layer, **{name: value for name, value in plain.items() if hasattr(layer, name)})


def per_example_affine(layer: Any, recorder: Recorder, dtype: Any, rank: int, axes: list[int]) -> tuple[Any, Any]:
    """Gamma and beta repeated for each example, ready to broadcast; None where the layer has none.

    Args:
        layer: The normalization layer.
        recorder: The record.
        dtype: The dtype in which the layer normalizes.
        rank: The rank of the layer's input.
        axes: The axes of the input, none negative, on which gamma and beta lie.
    """

    def repeated(variable: Any) -> Tensor | None:
        if variable is None:
            return None
        repeated = recorder.per_example(variable, dtype)
        sizes = dict(zip(axes, variable.shape, strict=True))
        return ops.reshape(repeated, [recorder.batch_size, *(sizes.get(axis, 1) for axis in range(1, rank))])

    return repeated(layer.gamma), repeated(layer.beta)


def affine(z: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """Returns `gamma z + beta`, either of which may be None."""
    z = z if gamma is None else z * gamma
    return z if beta is None else z + beta


def normalize_then_affine(layer: Any, recorder: Recorder, inputs: Tensor, axes: list[int], **kwargs: Any) -> Tensor:
    """Returns the layer's own normalization, whatever it does, followed by a scale and an offset for each example."""
    dtype = wide_dtype(inputs)
    rank = len(inputs.shape)
    z = type(layer).call(without_scale_and_center(layer), ops.cast(inputs, dtype), **kwargs)
    gamma, beta = per_example_affine(layer, recorder, dtype, rank, [axis % rank for axis in axes])
    return ops.cast(affine(ops.cast(z, dtype), gamma, beta), layer.compute_dtype)


# The methods that apply scale and offset. The others run as the layer's class has them.
GROUP_NORM_METHODS = ("call", "_apply_normalization", "_create_broadcast_shape")
BATCH_NORM_METHODS = reached_methods(keras.layers.BatchNormalization)


def batch_normalization(
    layer: Any, recorder: Recorder, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
) -> Tensor:
    """Computes `y = gamma (x - mean) / sqrt(variance + epsilon) + beta`, with complete batch statistics in training.

    On CPUs TensorFlow's fused kernels compute it. Elsewhere, and where these do not apply, it is written out, so that
    gamma and beta join the inverse deviation before they meet the activations, as in the ordinary step. Masked inputs,
    batch renormalization and subclasses with a method of their own go the longer way through the layer's own call.
    """
    in_training = bool(training) and layer.trainable
    own_way = overridden_method(type(layer), keras.layers.BatchNormalization, BATCH_NORM_METHODS) is not None
    if mask is not None or own_way or getattr(layer, "renorm", False):
        with _unmoved_by_an_empty_batch(layer, inputs if in_training else None):
            return normalize_then_affine(layer, recorder, inputs, [layer.axis], training=training, mask=mask)
    dtype = wide_dtype(inputs)
    x = ops.cast(inputs, dtype)
    rank = len(x.shape)
    axis = layer.axis % rank
    fuses = keras.backend.backend() == "tensorflow" and device() == "cpu"
    if fuses and in_training and axis == rank - 1 and dtype == "float32" and not layer.synchronized:
        from tf_largebatch.backend.tensorflow.kernels.fused_batch_norm import fused_batch_norm

        sizes = [static_or_dynamic_size(x, 0), x.shape[axis]]
        gamma = ops.ones(sizes, dtype) if layer.gamma is None else recorder.per_example(layer.gamma, dtype)
        beta = ops.zeros(sizes, dtype) if layer.beta is None else recorder.per_example(layer.beta, dtype)
        with recorder.unseen():
            scale = ops.ones(sizes[1:], dtype) if layer.gamma is None else ops.cast(layer.gamma, dtype)
            offset = ops.zeros(sizes[1:], dtype) if layer.beta is None else ops.cast(layer.beta, dtype)
        y, mean, variance = fused_batch_norm(x, gamma, beta, scale, offset, layer.epsilon)
        _move_averages(layer, x, mean, variance)
        return ops.cast(y, layer.compute_dtype)
    if in_training:
        axes = [i for i in range(rank) if i != axis]
        mean, variance = ops.moments(x, axes=axes, synchronized=layer.synchronized)
        _move_averages(layer, x, mean, variance)
    else:
        mean, variance = ops.cast(layer.moving_mean, dtype), ops.cast(layer.moving_variance, dtype)
    shape = [1] * rank
    shape[axis] = x.shape[axis]
    mean, inverse = ops.reshape(mean, shape), ops.reshape(ops.rsqrt(variance + layer.epsilon), shape)
    gamma, beta = per_example_affine(layer, recorder, dtype, rank, [axis])
    inverse = inverse if gamma is None else inverse * gamma
    offset = -mean * inverse if beta is None else beta - mean * inverse
    return ops.cast(x * inverse + offset, layer.compute_dtype)


def _move_averages(layer: Any, x: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Moves the averages that inference uses towards the batch's statistics, in the dtype of x."""
    keep = layer.momentum
    with _unmoved_by_an_empty_batch(layer, None if layer.synchronized else x):
        layer.moving_mean.assign(ops.cast(layer.moving_mean, x.dtype) * keep + mean * (1.0 - keep))
        layer.moving_variance.assign(ops.cast(layer.moving_variance, x.dtype) * keep + variance * (1.0 - keep))


@contextlib.contextmanager
def _unmoved_by_an_empty_batch(layer: Any, x: Tensor | None) -> Iterator[None]:
    """Within it the layer's state does not change if x has no examples, as one replica's share of a last batch may.

    The mean of no examples is NaN, which would stay in the averages for ever.
    """
    rows = 1 if x is None else static_or_dynamic_size(x, 0)
    if isinstance(rows, int) and rows > 0:
        yield
        return
    state = own_state(layer)
    before = [ops.copy(v.value) for v in state]
    yield
    for v, value in zip(state, before, strict=True):
        v.assign(ops.where(ops.equal(rows, 0), value, v.value))


def own_state(layer: Any) -> list[Any]:
    """Returns the variables of a batch normalization that its forward pass changes."""
    names = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
    return [v for v in (getattr(layer, name, None) for name in names) if v is not None]


def layer_normalization(layer: Any, recorder: Recorder, inputs: Tensor) -> Tensor:
    """Computes `y = gamma z + beta` with `z` normalized over the layer's axes."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return normalize_then_affine(layer, recorder, inputs, list(axes))


def group_normalization(layer: Any, recorder: Recorder, inputs: Tensor) -> Tensor:
    """Computes `y = gamma z + beta` with `z` normalized over each group of channels."""
    return normalize_then_affine(layer, recorder, inputs, [layer.axis])
