"""Every rule for a layer of tf_keras against the slow reference."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from layer_cases import layer_cases
from selection import long_unless
from tf_keras import layers as L
from tf_keras_norm_reference import (
    assert_measured_right,
    assert_norms_in_half_precision,
    measured,
    randomize,
    reference,
)

pytestmark = pytest.mark.each_value

BATCH = 4
BN = L.BatchNormalization


class Attention(L.Layer):
    """Self-attention of two heads; it has no variables but those of the layers inside."""

    def __init__(self):
        super().__init__()
        self.attention = L.MultiHeadAttention(2, 3)

    def call(self, x):
        return self.attention(x, x)


class OwnMoments(BN):
    def _moments(self, inputs, axes, keep_dims=False, mask=None):
        mean, variance = super()._moments(inputs, axes, keep_dims, mask=mask)
        return 0.5 * mean, 2.0 * variance


class OwnKernel(BN):
    def _fused_batch_norm(self, inputs, mask, training):
        return super()._fused_batch_norm(inputs**2, mask, training)


class OwnSynchronized(L.experimental.SyncBatchNormalization):
    def _moments(self, inputs, axes, keep_dims=False, mask=None):
        mean, variance = super()._moments(inputs, axes, keep_dims, mask=mask)
        return 0.5 * mean, variance


def adjustment(shape):
    return tf.range(1.0, 4.0)[tf.newaxis], tf.ones((1, 3))


# What tf_keras alone has, or computes by kernels of its own.
OWN = {
    "einsum, bias on an axis as long as the last": (
        (4, 6),
        lambda: [L.EinsumDense("abc,cd->abd", (4, 4), bias_axes="b")],
    ),
    "einsum heads, any length": ((4, 6), lambda: [L.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de")]),
    "batch norm, gamma of zeros": ((5, 5, 3), lambda: [BN(gamma_initializer="zeros")]),
    "batch norm, large mean": ((5, 5, 3), lambda: [L.Rescaling(1.0, 30.0), BN()]),
    "batch norm, one position": ((1, 1, 3), lambda: [BN()]),
    "batch norm, not fused": ((5, 4, 3), lambda: [BN(fused=False)]),
    "batch norm, frozen": ((5, 5, 3), lambda: [BN(trainable=False), L.Conv2D(4, 3)]),
    "sync batch norm": ((5, 5, 3), lambda: [BN(synchronized=True)]),
    "experimental sync batch norm": ((5, 5, 3), lambda: [L.experimental.SyncBatchNormalization()]),
    "batch renorm": ((5, 5, 3), lambda: [BN(renorm=True)]),
    "batch norm, virtual batches": ((5, 3), lambda: [BN(virtual_batch_size=2)]),
    "batch norm, adjusted": ((3,), lambda: [BN(adjustment=adjustment)]),
    "batch norm, two axes": ((5, 4, 3), lambda: [BN(axis=[1, 3])]),
    "batch norm, own moments": ((5, 4, 3), lambda: [OwnMoments(fused=False)]),
    "batch norm, own kernel": ((5, 4, 3), lambda: [OwnKernel()]),
    "sync batch norm, own moments": ((5, 4, 3), lambda: [OwnSynchronized()]),
    "attention": ((4, 6), lambda: [Attention()]),
}
SHARED = layer_cases(L)
# Of the cases of both worlds: one of each rule, and of each form that tf_keras's layers have.
QUICK = (
    *("dense", "dense over positions, no bias", "conv1d causal dilated", "conv2d patches"),
    *("conv3d, no stride", "depthwise1d", "prelu", "group norm", "layer norm", "layer norm, small epsilon"),
    *("conv2d same, stride 2, activation", "conv2d dilated, no bias", "conv2d pointwise, stride 2"),
    *("depthwise2d multiplier, stride, same", "separable1d valid", "separable2d, one filter a channel"),
    *("batch norm alone", "batch norm, no scale", "batch norm, no center, small epsilon", "batch norm 3d"),
    *("batch norm on features alone", "batch norm, axis 2", "layer norm, two axes, no scale"),
)
CASES = {**SHARED, **OWN}


def classifier(case):
    shape, make = CASES[case]
    model = tf_keras.Sequential([L.Input(shape), *make(), L.Flatten(), L.Dense(3)])
    if "zeros" not in case:
        randomize(model)
    return model


def batch(shape, size=BATCH):
    rng = np.random.default_rng(1)
    return rng.normal(size=(size, *shape)).astype("float32"), rng.integers(0, 3, size)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", long_unless(CASES, [*QUICK, *OWN]))
def test_norms_gradients_output_and_state(case, training):
    model = classifier(case)
    # Batch norm subtracts means 30 times the deviation: 1.5 digits fewer on both sides.
    rtol = 1e-3 if "large mean" in case else 1e-5
    assert_measured_right(model, *batch(CASES[case][0]), training=training, rtol=rtol)
    assert all("call" not in vars(layer) for layer in model._flatten_layers())


def test_a_batch_of_one_and_a_sample():
    model = classifier("conv2d same, stride 2, activation")
    x, y = batch(CASES["conv2d same, stride 2, activation"][0])
    assert_measured_right(model, x[:1], y[:1])
    expected = reference(model, x, y)
    _, sample = measured(model, x, y, examples=2)
    for index, squares in enumerate(sample.squared_norms):
        np.testing.assert_allclose(np.sqrt(squares), expected[index][:2], rtol=1e-5, atol=1e-7)


def test_embedding():
    model = tf_keras.Sequential([L.Input((7,), dtype="int32"), L.Embedding(9, 4), L.Flatten(), L.Dense(3)])
    x, y = np.random.default_rng(0).integers(0, 9, (BATCH, 7)), np.arange(BATCH) % 3
    x[0] = 3  # repeated
    assert_measured_right(model, x, y)


def test_masked_batch_norm():
    model = tf_keras.Sequential(
        [L.Input((6,), dtype="int32"), L.Embedding(8, 4, mask_zero=True), BN(), L.GlobalAveragePooling1D(), L.Dense(3)]
    )
    assert_measured_right(model, np.random.default_rng(0).integers(0, 8, (BATCH, 6)), np.arange(BATCH) % 3)


def test_a_layer_used_twice_adds_contributions_before_the_norm():
    inputs = L.Input((6, 6, 4))
    shared, scale = L.Conv2D(4, 3, padding="same", activation="tanh"), BN()
    model = tf_keras.Model(inputs, L.Dense(3)(L.Flatten()(scale(shared(scale(shared(inputs)))))))
    assert_measured_right(model, *batch((6, 6, 4)))


@pytest.mark.parametrize("policy, rtol", [("mixed_float16", 2e-2), ("mixed_bfloat16", 8e-2)])
@pytest.mark.parametrize("case", ["batch norm", "conv2d valid", "attention", "sync batch norm"])
def test_half_precision(policy, rtol, case):
    tf_keras.mixed_precision.set_global_policy(policy)
    assert_norms_in_half_precision(classifier(case), *batch(CASES[case][0]), rtol)


class TwiceNormalized(BN):
    def call(self, x, training=None):
        return super().call(super().call(x, training=training), training=training)


class PaddedBehind(L.Conv1D):
    def _compute_causal_padding(self, inputs):
        return [[0, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    "layer, reason",
    [
        (
            lambda: L.LSTM(4),
            r"lstm/lstm_cell \(LSTMCell has no rule\)\..*\(tf_largebatch.tf_keras.norms.TF_KERAS.register\)",
        ),
        (lambda: TwiceNormalized(), "overrides BatchNormalization.call"),
        (lambda: PaddedBehind(2, 2, padding="causal"), "overrides Conv1D._compute_causal_padding"),
        (lambda: L.SeparableConv1D(3, 2, padding="causal"), "padding='causal'"),
    ],
)
def test_refusals_name_the_layer(layer, reason):
    model = tf_keras.Sequential([L.Input((4, 3)), layer(), L.Flatten(), L.Dense(3)])
    with pytest.raises(ValueError, match=reason):
        measured(model, *batch((4, 3)))


def test_a_batch_axis_with_scales_is_refused():
    model = tf_keras.Sequential([L.Input((3,), batch_size=BATCH), BN(axis=0), L.Dense(3)])
    with pytest.raises(ValueError, match=r"axis=\[0\]"):
        measured(model, *batch((3,)))


# Examples' contributions of one sign and size 1/64 add up to hundreds, where float16 has steps of 1/4.
MANY = 16_384
SUMS = (
    *(
        "dense over positions, no bias",
        "einsum heads, any length",
        "depthwise2d multiplier, stride, same",
        "separable1d valid",
    ),
    *("prelu", "batch norm alone", "layer norm"),
)


@pytest.mark.parametrize(
    "case", [*SUMS, "batch norm, not fused", "batch renorm", "group norm", "conv1d causal dilated"]
)
def test_sums_over_many_examples_in_half_precision(case):
    shape, make = CASES[case]
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(MANY, *shape)) + 0.5).astype("float16").astype("float32")
    results = []
    for policy in ("mixed_float16", "float32"):
        tf_keras.mixed_precision.set_global_policy(policy)
        model = tf_keras.Sequential([L.Input(shape), *make()])
        randomize(model)
        if not results:
            weights = model.get_weights()
        model.set_weights(weights)
        _, found = measured(model, x, None, loss=lambda _, z: tf.reduce_sum(tf.cast(z, tf.float32)) / 64.0)
        results.append((found.gradients, found.gradient_norms().values))
    (gradients, norms), (exact, exact_norms) = results
    for index, v in enumerate(model.trainable_variables):
        size = max(float(tf.norm(exact[index])), 0.1 * float(exact_norms[index]))
        assert float(tf.norm(gradients[index] - exact[index])) < 2e-3 * size, v.name
        assert float(norms[index]) == pytest.approx(float(exact_norms[index]), rel=2e-3), v.name


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_variable_used_outside_its_layer_is_refused(policy):
    tf_keras.mixed_precision.set_global_policy(policy)

    class Tied(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(5)

        def call(self, x):
            return tf.matmul(self.dense(x), self.dense.kernel, transpose_b=True)

    model = Tied()
    model(np.zeros((2, 4), "float32"))
    with pytest.raises(ValueError, match=r"used elsewhere than in the layer.*kernel"):
        measured(model, *batch((4,)))
