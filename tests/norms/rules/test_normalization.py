"""The rules of normalization layers by themselves, in eager execution against their equations in NumPy.

A recorder stands in that gives example i the variable's value times i + 1. So a scale or an offset on a wrong axis, or
of another example, changes the output.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops
from selection import ON_JAX

from tf_largebatch.norms.rules.normalization import (
    affine,
    batch_normalization,
    group_normalization,
    layer_normalization,
    own_state,
)

MODULE = sys.modules[batch_normalization.__module__]
SHAPE = (4, 3, 2, 5)
RNG = np.random.default_rng(0)
X = (3.0 * RNG.normal(size=SHAPE) + 1.0).astype("float32")


class PerExample:
    """Stands in for a recorder."""

    def __init__(self, batch: int = SHAPE[0], factors: Any = None) -> None:
        self.batch_size = batch
        self.factors = np.arange(1.0, batch + 1) if factors is None else factors

    def per_example(self, variable: Any, dtype: str) -> Any:
        factors = self.factors.reshape(-1, *[1] * len(variable.shape)).astype(dtype)
        return ops.cast(variable, dtype) * factors

    def unseen(self) -> Any:
        return contextlib.nullcontext()


def with_values(layer: Any, shape: tuple[int, ...] = SHAPE) -> Any:
    """The layer, built, with random weights and averages; variances are positive."""
    layer.build(shape)
    for variable in layer.variables:
        if variable.dtype != "uint32":
            variable.assign(RNG.uniform(0.5, 2.0, variable.shape))
    return layer


def on_axes(variable: Any, axes: tuple[int, ...], factors: np.ndarray | None = None) -> np.ndarray | None:
    """The variable along these axes of the input, times each example's factor."""
    if variable is None:
        return None
    value = np.asarray(ops.convert_to_numpy(variable), "float64")
    shape = [SHAPE[axis] if axis in axes else 1 for axis in range(len(SHAPE))]
    factors = np.arange(1.0, SHAPE[0] + 1) if factors is None else factors
    return value.reshape(shape) * factors.reshape(-1, 1, 1, 1)


def scaled(z: np.ndarray, layer: Any, axes: tuple[int, ...], factors: np.ndarray | None = None) -> np.ndarray:
    z = z if layer.gamma is None else z * on_axes(layer.gamma, axes, factors)
    return z if layer.beta is None else z + on_axes(layer.beta, axes, factors)


def close(found: Any, expected: Any, rtol: float = 2e-5) -> None:
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=rtol, atol=rtol)


@pytest.fixture
def fused(monkeypatch):
    """Notes the calls of TensorFlow's fused kernels."""
    calls: list[int] = []
    if not ON_JAX:
        from tf_largebatch.backend.tensorflow.kernels import fused_batch_norm as kernels

        plain = kernels.fused_batch_norm
        monkeypatch.setattr(kernels, "fused_batch_norm", lambda *arguments: calls.append(1) or plain(*arguments))
    return calls


@pytest.mark.parametrize("where", ["cpu", "gpu"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("axis", [-1, 1, 3])
@pytest.mark.parametrize("scale, center", [(True, True), (True, False), (False, True), (False, False)])
def test_batch_normalization(axis, scale, center, training, where, fused, monkeypatch):
    monkeypatch.setattr(MODULE, "device", lambda: where)
    layer = with_values(L.BatchNormalization(axis, momentum=0.75, epsilon=0.5, scale=scale, center=center))
    mean, variance = (
        np.asarray(ops.convert_to_numpy(v), "float64") for v in (layer.moving_mean, layer.moving_variance)
    )
    over = tuple(i for i in range(4) if i != axis % 4)
    of_batch = (X.mean(over, dtype="float64"), X.var(over, dtype="float64")) if training else (mean, variance)
    shape = [SHAPE[i] if i == axis % 4 else 1 for i in range(4)]
    z = (X - of_batch[0].reshape(shape)) / np.sqrt(of_batch[1].reshape(shape) + 0.5)
    uses_kernels = where == "cpu" and training and axis != 1 and not ON_JAX
    # The kernels return the layer's output; the repeated values only take the gradient.
    factors = np.ones(SHAPE[0]) if uses_kernels else None
    y = batch_normalization(layer, PerExample(factors=factors), ops.convert_to_tensor(X), training)
    close(y, scaled(z, layer, (axis % 4,), factors))
    assert len(fused) == uses_kernels
    if training:
        mean, variance = (0.75 * old + 0.25 * new for old, new in zip((mean, variance), of_batch, strict=True))
    close(layer.moving_mean, mean)
    close(layer.moving_variance, variance)


@pytest.mark.parametrize("why", ["frozen", "synchronized", "float64", "a mask", "training=None"])
def test_what_the_fused_kernels_do_not_compute_is_written_out(why, fused):
    if ON_JAX and why in ("float64", "synchronized"):
        pytest.skip("JAX has no float64 by default, and Keras does not synchronize there")
    dtype = "float64" if why == "float64" else "float32"
    layer = with_values(L.BatchNormalization(epsilon=0.5, synchronized=why == "synchronized", dtype=dtype))
    layer.trainable = why != "frozen"
    x = X.astype(dtype)
    mask = ops.ones(SHAPE[:-1], "bool") if why == "a mask" else None
    training = None if why == "training=None" else True
    in_training = why not in ("frozen", "training=None")
    mean, variance = (ops.convert_to_numpy(v) for v in (layer.moving_mean, layer.moving_variance))
    if in_training:
        mean, variance = (getattr(X.astype("float64"), name)((0, 1, 2)) for name in ("mean", "var"))
    y = batch_normalization(layer, PerExample(), ops.convert_to_tensor(x), training, mask)
    assert not fused
    close(y, scaled((X - mean) / np.sqrt(variance + 0.5), layer, (3,)))
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype


@pytest.mark.parametrize("axis", [-1, 1])
def test_batch_normalization_in_half_precision_is_computed_in_float32(axis):
    layer = with_values(L.BatchNormalization(axis, dtype=keras.DTypePolicy("mixed_float16")))
    before = [ops.convert_to_numpy(v) for v in own_state(layer)]
    assert len(before) == 2
    factors = np.ones(SHAPE[0])
    y = batch_normalization(layer, PerExample(factors=factors), ops.cast(X, "float16"), training=True)
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    x = X.astype("float16").astype("float64")
    over = tuple(i for i in range(4) if i != axis % 4)
    z = (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + layer.epsilon)
    close(y, scaled(z, layer, (axis % 4,), factors), rtol=2e-3)
    for variable, old, new in zip(own_state(layer), before, (x.mean(over), x.var(over)), strict=True):
        close(variable, layer.momentum * old + (1 - layer.momentum) * new)


@pytest.mark.skipif(ON_JAX, reason="TensorFlow only: JAX has no fused kernels")
def test_a_layer_of_an_older_keras_has_no_batch_renormalization(fused):
    layer = with_values(L.BatchNormalization())
    vars(layer).pop("renorm", None)
    batch_normalization(layer, PerExample(), ops.convert_to_tensor(X), training=True)
    assert fused


@pytest.mark.skipif(ON_JAX, reason="TensorFlow only: JAX has no fused kernels")
def test_the_gradient_through_the_fused_kernels_without_scale_and_offset(fused, monkeypatch):
    import tensorflow as tf

    layer, d = (
        with_values(L.BatchNormalization(scale=False, center=False)),
        tf.constant(RNG.normal(size=SHAPE), tf.float32),
    )

    @tf.function(autograph=False)
    def gradient(x):
        y = batch_normalization(layer, PerExample(), x, training=True)
        return tf.gradients(tf.reduce_sum(d * y), x)[0]

    graph = gradient.get_concrete_function(tf.TensorSpec(SHAPE))
    assert fused
    monkeypatch.setattr(MODULE, "device", lambda: "gpu")
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(d * batch_normalization(layer, PerExample(), x, training=True))
    close(graph(x), tape.gradient(y, x))


class OwnCall(L.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize("kind", [OwnCall, L.BatchNormalization])
def test_a_call_of_its_own_goes_through_the_layer(kind):
    layer = with_values(kind(epsilon=0.5))
    z = (X - X.mean((0, 1, 2))) / np.sqrt(X.var((0, 1, 2)) + 0.5)
    factors = np.ones(SHAPE[0])
    y = batch_normalization(layer, PerExample(factors=factors), ops.convert_to_tensor(X), training=True)
    close(y, scaled((2.0 if kind is OwnCall else 1.0) * z, layer, (3,), factors), rtol=1e-4)


@pytest.mark.parametrize("way", ["fused", "written out", "a mask", "a call of its own"])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_only_a_batch_without_examples_leaves_the_averages(way, batch):
    layer = with_values(
        (OwnCall if way == "a call of its own" else L.BatchNormalization)(1 if way == "written out" else -1)
    )
    before = [ops.convert_to_numpy(v) for v in own_state(layer)]
    mask = ops.ones((batch, *SHAPE[1:-1]), "bool") if way == "a mask" else None
    batch_normalization(layer, PerExample(batch), ops.convert_to_tensor(X[:batch]), training=True, mask=mask)
    for variable, old in zip(own_state(layer), before, strict=True):
        assert np.array_equal(ops.convert_to_numpy(variable), old) == (batch == 0)
        assert np.isfinite(ops.convert_to_numpy(variable)).all()


def test_in_inference_a_masked_batch_does_not_touch_the_averages():
    layer = with_values(L.BatchNormalization())
    before = [ops.convert_to_numpy(v) for v in own_state(layer)]
    for batch in (0, 3):
        mask = ops.ones((batch, *SHAPE[1:-1]), "bool")
        batch_normalization(layer, PerExample(batch), ops.convert_to_tensor(X[:batch]), training=False, mask=mask)
    for variable, old in zip(own_state(layer), before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), old)


@pytest.mark.parametrize("scale, center", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("axis", [-1, 2, (1, 3), [-2, -1]])
def test_layer_normalization(axis, scale, center):
    layer = with_values(L.LayerNormalization(axis, epsilon=0.5, scale=scale, center=center))
    axes = tuple(i % 4 for i in (axis if isinstance(axis, (tuple, list)) else [axis]))
    x = X.astype("float64")
    z = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 0.5)
    close(layer_normalization(layer, PerExample(), ops.convert_to_tensor(X)), scaled(z, layer, axes))


@pytest.mark.parametrize("axis, groups", [(-1, 5), (1, 3), (2, 1), (3, 1)])
def test_group_normalization(axis, groups):
    layer = with_values(L.GroupNormalization(groups, axis, epsilon=0.5))
    axis %= 4
    x = np.moveaxis(X.astype("float64"), axis, -1)
    sizes = x.shape
    x = x.reshape(*sizes[:-1], groups, -1)
    z = (x - x.mean((1, 2, 4), keepdims=True)) / np.sqrt(x.var((1, 2, 4), keepdims=True) + 0.5)
    z = np.moveaxis(z.reshape(sizes), -1, axis)
    close(group_normalization(layer, PerExample(), ops.convert_to_tensor(X)), scaled(z, layer, (axis,)))


def test_normalization_in_half_precision_returns_the_layers_dtype():
    for layer, rule in (L.LayerNormalization, layer_normalization), (L.GroupNormalization, group_normalization):
        made = with_values(layer(**({"groups": 5} if layer is L.GroupNormalization else {}), dtype="mixed_float16"))
        y = rule(made, PerExample(), ops.cast(X, "float16"))
        assert keras.backend.standardize_dtype(y.dtype) == "float16"


@pytest.mark.parametrize(
    "gamma, beta, expected", [(None, None, 3.0), (2.0, None, 6.0), (None, 4.0, 7.0), (2.0, 4.0, 10.0)]
)
def test_scale_and_offset(gamma, beta, expected):
    assert affine(3.0, gamma, beta) == expected
