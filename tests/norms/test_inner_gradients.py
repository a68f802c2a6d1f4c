"""A model that differentiates itself, and a loss that reads weights: measured right or refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tf_largebatch as lb
from tf_largebatch import norms
from tf_largebatch.norms import per_example_gradient_norms

pytestmark = pytest.mark.each_value

rng = np.random.default_rng(0)
X, Y = (rng.normal(size=(5, 6, 3)).astype("float32") for _ in range(2))


class Force(keras.Model):
    """`-dE/dx`, by different ways."""

    def __init__(self, way="tape"):
        super().__init__()
        self.way = way
        layers = [L.Conv1D(4, 3, activation="tanh"), L.LayerNormalization(), L.Flatten(), L.Dense(1)]
        self.energy = keras.Sequential([keras.Input((6, 3)), *layers])

    def call(self, x):
        if self.way == "forward mode":
            with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
                energy = self.energy(x)
            return x * accumulator.jvp(energy)[:, :, None]
        if self.way == "custom gradient":

            @tf.custom_gradient
            def energy(x):
                return self.energy(x), lambda d, variables: (d[:, :, None] * x, [tf.zeros_like(v) for v in variables])

            return x * energy(x)[:, :, None]
        with tf.GradientTape() as tape:
            tape.watch(x)
            energy = self.energy(x)
        if self.way == "jacobian":
            return tape.batch_jacobian(energy, x)[:, 0]
        force = -tape.gradient(energy, x)
        return self.energy(x * tf.stop_gradient(force))[:, :, None] * x if self.way == "stopped" else force


def force(way):
    keras.utils.set_random_seed(0)
    model = Force(way)
    model(tf.constant(X))
    return model


def one_by_one(model):
    found = {v.path: [] for v in model.trainable_variables}
    for i in range(len(X)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(tf.constant(X[i : i + 1])) - Y[i : i + 1]))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables], unconnected_gradients="zero")
        for v, g in zip(model.trainable_variables, gradients, strict=True):
            found[v.path].append(float(tf.norm(g)))
    return found


def fit(model, run_eagerly=False):
    wrapper = lb.LargeBatchModel(model)
    wrapper.compile(lb.CLARS(0.1), "mse", jit_compile=False, run_eagerly=run_eagerly)
    wrapper.fit(X, Y, batch_size=5, verbose=0)


@pytest.mark.parametrize("way", ["tape", "jacobian", "forward mode"])
def test_a_loss_that_depends_on_an_inner_gradient_is_refused(way):
    model = force(way)
    before = [v.numpy() for v in model.variables]
    for attempt in (lambda: per_example_gradient_norms(model, X, Y, "mse"), lambda: fit(model)):
        with pytest.raises(ValueError, match=r"depends on a derivative that the model takes .*use_generic"):
            attempt()
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)


def test_a_custom_gradient_around_layers_is_refused():
    for attempt in (lambda m: per_example_gradient_norms(m, X, Y, "mse"), fit):
        with pytest.raises(ValueError, match="used elsewhere"):
            attempt(force("custom gradient"))


def test_an_inner_gradient_that_is_not_differentiated_is_measured():
    model = force("stopped")
    found = per_example_gradient_norms(model, X, Y, "mse")
    for path, expected in one_by_one(model).items():
        np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-6, err_msg=path)


def test_the_generic_rule_differentiates_twice():
    model = force("tape")
    norms.use_generic(model)
    found = per_example_gradient_norms(model, X, Y, "mse")
    for path, expected in one_by_one(model).items():
        if path in found:  # the loss does not depend on the last bias
            np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_gradient_penalty_in_the_loss_is_refused():
    class Critic(lb.LargeBatchModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            with tf.GradientTape() as tape:
                tape.watch(x)
                score = self.model(x, training=True)
            return tf.reduce_mean(y_pred) + tf.reduce_mean(tf.square(tape.gradient(score, x)))

    model = Critic(force("tape").energy)
    model.compile(lb.CLARS(0.1), jit_compile=False)
    with pytest.raises(ValueError, match="used elsewhere"):
        model.fit(X, Y, batch_size=5, verbose=0)


# Losses that read weights.


def two_headed(**kwargs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    features = L.Dense(5)(inputs)
    head = L.Dense(3, use_bias=False, name="head", **kwargs)
    return keras.Model(inputs, {"features": features, "logits": head(features)}), head


IMAGES, LABELS = rng.normal(size=(6, 6)).astype("float32"), rng.integers(0, 3, 6)


def cross_entropy(logits):
    return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(LABELS, logits, from_logits=True))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("regularizer", [None, "l2"])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_loss_that_multiplies_features_with_a_weight_is_refused(traced, regularizer, stopped):
    model, head = two_headed(kernel_regularizer=regularizer)

    def tied(outputs):
        features = tf.stop_gradient(outputs["features"]) if stopped else outputs["features"]
        return cross_entropy(tf.matmul(features, tf.convert_to_tensor(head.kernel)) + outputs["logits"])

    with pytest.raises(ValueError, match=r"used elsewhere .* head/kernel"):
        _measured(model, tied, traced)


@pytest.mark.parametrize("traced", [False, True])
def test_terms_of_weights_alone_count_for_the_gradient_and_for_no_example(traced):
    model, head = two_headed(kernel_regularizer="l2")

    def regularized(outputs):
        by_hand = 0.1 * tf.reduce_sum(tf.square(tf.convert_to_tensor(head.kernel)))
        return cross_entropy(outputs["logits"]) + by_hand + sum(model.losses)

    plain = _measured(model, lambda outputs: cross_entropy(outputs["logits"]), traced)
    found = _measured(model, regularized, traced)
    for a, b in zip(found[1], plain[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(found[0][-1] - plain[0][-1], 0.22 * head.kernel.numpy(), rtol=1e-4, atol=1e-6)


def _measured(model, loss, traced):
    def run():
        _, found = norms.measure(
            model, lambda: model(tf.constant(IMAGES)), loss, model.trainable_variables, 6, norms.KERAS
        )
        return found.gradients, found.squared_norms

    return (tf.function(run, autograph=False) if traced else run)()
