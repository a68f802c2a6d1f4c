"""Inputs and subclasses that a rule has to mind: an empty batch, integers, negative ids, overridden methods, steps."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import ON_JAX, assert_norms_close, norm_of, norms_of, plain_pass, tensorflow_only
from keras import layers as L

from tf_largebatch.norms import KERAS, brute_force_gradient_norms, measure, per_example_gradient_norms, use_generic
from tf_largebatch.norms.overrides import reached_methods

BATCH = 4
LOSS = keras.losses.MeanSquaredError()
RNG = np.random.default_rng(0)


def assert_agrees(model, x):
    y = RNG.normal(size=model(x).shape).astype("float32")
    found = norms_of(model, x, y, LOSS)
    assert set(found) == {v.path for v in model.trainable_variables}
    assert_norms_close(found, brute_force_gradient_norms(model, x, y, LOSS))


class ManyKinds(keras.Model):
    """Layers of many kinds, none of them convolutional."""

    def __init__(self, axis, masked):
        super().__init__()
        self.masked = masked
        self.dense, self.norm, self.rnn = L.Dense(3), L.BatchNormalization(axis), L.GRU(3, return_sequences=True)
        self.scale, self.heads = L.LayerNormalization(), L.MultiHeadAttention(1, 2)
        self.attention, self.steps = L.Attention(use_scale=True), L.TimeDistributed(L.Dense(2))
        self.table = L.Embedding(5, 3)

    def call(self, x, training=None):
        mask = x[..., 0] > -9.0 if self.masked else None
        h = self.norm(self.dense(x), training=training, mask=mask) + self.table(keras.ops.cast(x[..., 0], "int32") * 0)
        h = self.scale(self.rnn(h))
        return self.steps(self.heads(h, self.attention([h, h])))


@tensorflow_only
@pytest.mark.parametrize("axis, masked", [pytest.param(-1, False, marks=pytest.mark.long), (1, True)])
def test_an_empty_batch_contributes_nothing(axis, masked):
    """As the share of a replica may be. The averages of batch normalization stay, and later batches count."""
    import tensorflow as tf

    model = ManyKinds(axis, masked)
    model(np.ones((2, 3, 3), "float32"))
    before = [v.numpy() for v in model.norm.non_trainable_variables]

    @tf.function(input_signature=[tf.TensorSpec([None, 3, 3])], autograph=False)
    def step(x):
        _, found = measure(
            model,
            lambda: model(x, training=True),
            lambda y: tf.reduce_sum(y**2),
            model.trainable_variables,
            tf.shape(x)[0],
            KERAS,
        )
        return [tf.convert_to_tensor(g) for g in found.gradients], found.squared_norms

    gradients, squares = step(np.zeros((0, 3, 3), "float32"))
    assert not any(np.any(g) for g in gradients)
    assert all(s.shape == (0,) for s in squares)
    for v, value in zip(model.norm.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(v, value)
    gradients, squares = step(np.ones((2, 3, 3), "float32"))
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert np.any(model.norm.moving_mean.numpy() != before[0])


INTEGERS = {
    "dense": lambda: L.Dense(4),
    "einsum": lambda: L.EinsumDense("abc,cd->abd", (3, 4), bias_axes="d"),
    "batch norm": lambda: L.BatchNormalization(),
    "lstm": lambda: L.LSTM(3),
    "time distributed": lambda: L.TimeDistributed(L.Dense(3)),
    "embedding": lambda: L.Embedding(7, 3),
}


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
@pytest.mark.parametrize("layer", INTEGERS)
def test_integer_inputs(layer, dtype):
    model = keras.Sequential([keras.Input((3, 2), dtype=dtype), INTEGERS[layer](), L.Flatten(), L.Dense(2)])
    assert_agrees(model, RNG.integers(0, 7, (BATCH, 3, 2)).astype(dtype))


def test_negative_ids_count_from_the_end_as_in_keras():
    model = keras.Sequential([keras.Input((5,), dtype="int32"), L.Embedding(7, 3), L.Flatten(), L.Dense(2)])
    x = RNG.integers(0, 7, (BATCH, 5))
    x[0] = [-1, 6, -7, 0, 3]  # two rows, each looked up by two names
    assert_agrees(model, x)


class OwnStatistics(L.BatchNormalization):
    def _moments(self, inputs, mask):
        mean, variance = super()._moments(inputs, mask)
        return 0.5 * mean, 2.0 * variance


def test_a_batch_normalization_with_statistics_of_its_own():
    model = keras.Sequential([keras.Input((5,)), L.Dense(4), OwnStatistics(), L.Dense(2)])
    x = RNG.normal(size=(BATCH, 5)).astype("float32")
    assert_agrees(model, x)
    model(x, training=True)
    averages = [v.numpy() for v in model.layers[1].non_trainable_variables]
    for v, start in zip(model.layers[1].non_trainable_variables, (0.0, 1.0), strict=True):
        v.assign(np.full(v.shape, start))
    y = np.ones((BATCH, 2), "float32")
    measure(model, lambda: model(x, training=True), lambda p: LOSS(y, p), model.trainable_variables, BATCH, KERAS)
    for v, value in zip(model.layers[1].non_trainable_variables, averages, strict=True):
        np.testing.assert_allclose(v, value, rtol=1e-6)


class WeightNormalized(L.Dense):
    @property
    def kernel(self):
        return self._kernel / keras.ops.norm(self._kernel)


class OtherProduct(L.Conv1D):
    def convolution_op(self, inputs, kernel):
        return 2.0 * super().convolution_op(inputs, kernel)


@pytest.mark.parametrize(
    "layer, reason",
    [
        (WeightNormalized(2), "WeightNormalized overrides Dense.kernel"),
        (OtherProduct(2, 1), "OtherProduct overrides Conv1D.convolution_op"),
    ],
)
def test_a_method_that_call_reaches_is_guarded(layer, reason):
    layer.build((None, 3, 4))
    assert KERAS.why_not(layer) == reason


def test_the_methods_that_call_reaches():
    assert {"call", "_moments"} <= set(reached_methods(L.BatchNormalization))
    assert "call" in reached_methods(L.ReversibleEmbedding)
    assert {"_calculate_scores", "_apply_scores"} <= set(reached_methods(L.Attention))


STEPS = {
    "conv": ((3, 5, 5, 2), lambda: L.Conv2D(3, 3, padding="same")),
    "conv, causal": ((3, 6, 2), lambda: L.Conv1D(3, 2, padding="causal", dilation_rate=2)),
    "depthwise": ((3, 5, 5, 2), lambda: L.DepthwiseConv2D(3)),
    "transposed conv": ((3, 4, 4, 2), lambda: L.Conv2DTranspose(3, 3)),
    "einsum": ((3, 4, 5), lambda: L.EinsumDense("abc,cd->abd", (4, 4))),
    # The steps' largest outputs are of negative inputs too, so that alpha has a gradient.
    "scales": (
        (3, 6),
        lambda: keras.Sequential([L.Dense(4), L.LayerNormalization(), L.PReLU(keras.initializers.Constant(-1.0))]),
    ),
    "gru": ((3, 4, 2), lambda: L.GRU(3, reset_after=False)),
    "steps of steps": ((2, 3, 4), lambda: L.TimeDistributed(L.Dense(3))),
    "batch norm": ((3, 4), lambda: L.BatchNormalization()),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps(case):
    shape, make = STEPS[case]
    steps, inputs = L.TimeDistributed(make()), keras.Input(shape)
    y = steps(inputs)
    y = keras.ops.reshape(y, (-1, y.shape[1], int(np.prod(steps.compute_output_shape((1, *shape))[2:]))))
    model = keras.Model(inputs, L.Dense(2)(L.GlobalMaxPooling1D()(y)))
    assert_agrees(model, RNG.normal(size=(BATCH, *shape)).astype("float32"))


def _alone(model, take, y, rows):
    """Each example's gradient norms in a batch of its own, [K, B]."""
    found = []
    for i in range(rows):
        _, gradients = plain_pass(model, take(i), lambda p, i=i: keras.ops.mean((y[i : i + 1] - p) ** 2))
        found.append([norm_of(g) for g in gradients])
    return np.transpose(found)


def test_none_as_the_first_of_several_inputs():
    class Optional(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(2)

        def call(self, inputs):
            bias, x = inputs
            return self.dense(x if bias is None else x + bias)

    model = Optional()
    x, y = np.random.default_rng(0).normal(size=(3, 4)).astype("float32"), np.ones((3, 2), "float32")
    try:
        model([None, keras.ops.convert_to_tensor(x)])
    except AttributeError:
        if not keras.__version__.startswith("3.12."):
            raise
        pytest.skip("Keras 3.12 cannot call a model whose first input is None")
    found = per_example_gradient_norms(model, [None, x], y, "mse")
    expected = _alone(model, lambda i: [None, keras.ops.convert_to_tensor(x[i : i + 1])], y, 3)
    np.testing.assert_allclose(np.stack(list(found.values())), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*mask")
def test_the_generic_rule_hands_masks_on():
    class MaskedMean(L.Layer):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(2)

        def call(self, x, mask=None):
            weights = keras.ops.cast(mask, x.dtype)[..., None]
            return keras.ops.sum(weights * self.dense(x), axis=1)

    ids = keras.Input((4,), dtype="int32")
    layer = use_generic(MaskedMean())
    model = keras.Model(ids, layer(L.Embedding(5, 3, mask_zero=True)(ids)))
    x, y = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 4, 1, 2]]), np.ones((3, 2), "float32")
    found = per_example_gradient_norms(model, x, y, "mse")
    np.testing.assert_allclose(np.stack(list(found.values())), _alone(model, lambda i: x[i : i + 1], y, 3), rtol=1e-5)


@pytest.mark.skipif(not ON_JAX, reason="JAX only: TensorFlow's sparse tensors are measured")
@pytest.mark.parametrize("layer", [L.Dense(2), L.EinsumDense("ab,bc->ac", 2)])
def test_sparse_arrays_are_refused_on_jax(layer):
    from jax.experimental.sparse import BCOO

    model = keras.Sequential([keras.Input((4,)), layer])
    x, y = BCOO.fromdense(keras.ops.eye(3, 4)), np.ones((3, 2), "float32")
    with pytest.raises(ValueError, match=r"received a BCOO of shape .*on JAX only dense arrays are measured"):
        per_example_gradient_norms(model, x, y, "mse")
