"""The rule for any layer of tf_keras against the slow reference, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers as L
from tf_keras_norm_reference import assert_measured_right, cross_entropy, measured, randomize, reference

from tf_largebatch.norms import measure
from tf_largebatch.tf_keras.norms import TF_KERAS

GENERIC = TF_KERAS.allowing_generic()
BATCH = 4


class Own(L.Layer):
    """A product with a kernel of its own, through a dense layer inside, and once more without the input."""

    def build(self, shape):
        self.kernel = self.add_weight("kernel", (shape[-1], 3))
        self.inside = L.Dense(3, activation="tanh")

    def call(self, x):
        return self.inside(x @ self.kernel) + tf.reduce_sum(self.kernel, axis=0)


class Listed(Own):
    def build(self, shape):
        self.kernels = [self.add_weight("kernel", (shape[-1], 3))]

    def call(self, x):
        return x @ self.kernels[0]


class Coupled(Own):
    def call(self, x):
        return super().call(x - tf.reduce_mean(x, axis=0))


class WithLoss(Own):
    def call(self, x):
        self.add_loss(tf.reduce_sum(x))
        return super().call(x)


class Counting(Own):
    def build(self, shape):
        super().build(shape)
        self.count = self.add_weight("count", (), trainable=False)


def classifier(layer):
    model = tf_keras.Sequential([L.Input((5, 6)), L.Dense(4), layer, L.Flatten(), L.Dense(3)])
    randomize(model)
    rng = np.random.default_rng(1)
    return model, rng.normal(size=(BATCH, 5, 6)).astype("float32"), rng.integers(0, 3, BATCH)


def test_norms_of_a_layer_without_a_rule():
    model, x, y = classifier(Own())
    kernel = model.layers[1].kernel
    with pytest.raises(ValueError, match=r"Own has no rule.*\(task\.gradient_norms\.allow_generic\)"):
        measured(model, x, y)
    assert_measured_right(model, x, y, registry=GENERIC)
    assert model.layers[1].kernel is kernel and kernel in model.trainable_variables


def test_in_half_precision():
    expected = classifier(Own())
    _, exact = measured(*expected, registry=GENERIC)
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model, x, y = classifier(Own())
    model.set_weights(expected[0].get_weights())
    _, found = measured(model, x, y, registry=GENERIC)
    for squares, other in zip(found.squared_norms, exact.squared_norms, strict=True):
        # bfloat16 has eight bits: 2^-8 in each of a handful of roundings.
        np.testing.assert_allclose(squares, other, rtol=0.1, atol=0.05 * float(tf.reduce_max(other)))


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (Listed, ValueError, r"used elsewhere .*kernel"),
        (Coupled, tf.errors.InvalidArgumentError, r"gives something else for an example alone"),
        (WithLoss, ValueError, r"adds a loss"),
        (Counting, ValueError, r"variables that are not trained"),
    ],
)
def test_what_it_cannot_measure(layer, error, message):
    with pytest.raises(error, match=message):
        measured(*classifier(layer()), registry=GENERIC)


def test_compiled_with_batches_of_several_sizes():
    """An unknown batch size under XLA: a smaller last batch, and none, as the share of a replica may be."""
    model, x, y = classifier(Own())

    @tf.function(jit_compile=True, autograph=False)
    def norms(x, y):
        def loss(logits):
            return cross_entropy(y, logits)

        variables = model.trainable_variables
        return measure(model, lambda: model(x), loss, variables, tf.shape(x)[0], GENERIC)[1].squared_norms

    norms = norms.get_concrete_function(tf.TensorSpec((None, 5, 6)), tf.TensorSpec((None,), tf.int64))
    for size in (4, 3):
        expected = reference(model, x[:size], y[:size])
        for index, squares in enumerate(norms(tf.constant(x[:size]), tf.constant(y[:size]))):
            np.testing.assert_allclose(np.sqrt(squares), expected[index], rtol=1e-4, atol=1e-6)
    assert all(squares.shape == (0,) for squares in norms(tf.constant(x[:0]), tf.constant(y[:0])))


def test_a_layer_that_differentiates_itself_is_measured_where_it_is_marked():
    class Force(L.Layer):
        def build(self, shape):
            self.first, self.second = L.Dense(5, activation="tanh"), L.Dense(3)

        def call(self, x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = self.second(self.first(x))
            return y + tf.reduce_sum(tape.gradient(y, x), axis=-1, keepdims=True)

    force = Force()
    model, x, y = classifier(force)
    with pytest.raises(ValueError, match="loss depends on a derivative that the model takes"):
        measured(model, x, y)
    TF_KERAS.mark_generic(force)
    _, found = measured(model, x, y)
    for i in range(BATCH):
        with tf.GradientTape() as tape:
            value = cross_entropy(y[i : i + 1], model(x[i : i + 1])) / BATCH
        for v, g, squares in zip(
            model.trainable_variables, tape.gradient(value, model.trainable_variables), found.squared_norms, strict=True
        ):
            if g is not None:  # the last bias of a force
                np.testing.assert_allclose(np.sqrt(squares[i]), tf.norm(g), rtol=1e-4, atol=1e-6, err_msg=v.name)
