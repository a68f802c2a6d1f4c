"""A model that differentiates itself, and a loss that reads weights: measured right or refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import ON_JAX, norms_of, norms_one_by_one, run_traced, tensorflow_only
from keras import layers as L
from keras import ops
from paper_settings import paper

import tf_largebatch as lb
from tf_largebatch import norms
from tf_largebatch.norms import per_example_gradient_norms

pytestmark = pytest.mark.each_value

rng = np.random.default_rng(0)
X, Y = (rng.normal(size=(5, 6, 3)).astype("float32") for _ in range(2))


def derivative(function, x, way="gradient"):
    """Of the examples' outputs [B, 1] with respect to their inputs, by the means of the backend."""
    if ON_JAX:
        import jax

        if way == "forward mode":
            return x * jax.jvp(function, (x,), (ops.ones_like(x),))[1][:, :, None]

        def total(x):
            return ops.sum(function(x), axis=0)

        return jax.jacrev(total)(x)[0] if way == "jacobian" else jax.grad(lambda x: total(x)[0])(x)
    import tensorflow as tf

    if way == "forward mode":
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
            outputs = function(x)
        return x * accumulator.jvp(outputs)[:, :, None]
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = function(x)
    return tape.batch_jacobian(outputs, x)[:, 0] if way == "jacobian" else tape.gradient(outputs, x)


class Force(keras.Model):
    """`-dE/dx`, by different ways."""

    def __init__(self, way="gradient"):
        super().__init__()
        self.way = way
        layers = [L.Conv1D(4, 3, activation="tanh"), L.LayerNormalization(), L.Flatten(), L.Dense(1)]
        self.energy = keras.Sequential([keras.Input((6, 3)), *layers])

    def call(self, x):
        if self.way == "custom gradient":
            import tensorflow as tf

            @tf.custom_gradient
            def energy(x):
                return self.energy(x), lambda d, variables: (d[:, :, None] * x, [tf.zeros_like(v) for v in variables])

            return x * energy(x)[:, :, None]
        force = -derivative(self.energy, x, self.way)
        return self.energy(x * ops.stop_gradient(force))[:, :, None] * x if self.way == "stopped" else force


def force(way):
    keras.utils.set_random_seed(0)
    model = Force(way)
    model(ops.convert_to_tensor(X))
    return model


MEAN_SQUARES = keras.losses.MeanSquaredError()


def fit(model, run_eagerly=False):
    wrapper = lb.LargeBatchModel(model)
    wrapper.compile(paper(lb.CLARS, 0.1), "mse", jit_compile=ON_JAX, run_eagerly=run_eagerly)
    wrapper.fit(X, Y, batch_size=5, verbose=0)


@pytest.mark.parametrize("way", ["gradient", "jacobian", "forward mode"])
def test_a_loss_that_depends_on_an_inner_gradient_is_refused(way):
    model = force(way)
    before = [v.numpy() for v in model.variables]
    for attempt in (lambda: per_example_gradient_norms(model, X, Y, "mse"), lambda: fit(model)):
        forward = ON_JAX and way == "forward mode"  # refused whatever the loss depends on
        what = "takes a derivative in forward mode" if forward else "depends on a derivative that the model takes"
        with pytest.raises(ValueError, match=f"{what} .*use_generic"):
            attempt()
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)


@tensorflow_only  # JAX itself differentiates no function with a backward pass of its own around a model's variables
def test_a_custom_gradient_around_layers_is_refused():
    for attempt in (lambda m: per_example_gradient_norms(m, X, Y, "mse"), fit):
        with pytest.raises(ValueError, match="used elsewhere"):
            attempt(force("custom gradient"))


def test_an_inner_gradient_that_is_not_differentiated_is_measured():
    model = force("stopped")
    found = norms_of(model, X, Y, MEAN_SQUARES)
    for path, expected in norms_one_by_one(model, X, Y, MEAN_SQUARES).items():
        np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-6, err_msg=path)


def test_the_generic_rule_differentiates_twice():
    model = force("gradient")
    norms.use_generic(model)
    found = norms_of(model, X, Y, MEAN_SQUARES)
    for path, expected in norms_one_by_one(model, X, Y, MEAN_SQUARES).items():
        if path in found:  # the loss does not depend on the last bias
            np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_gradient_penalty_in_the_loss_is_refused():
    class Critic(lb.LargeBatchModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            penalty = derivative(lambda x: self.model(x, training=True), x)
            return ops.mean(y_pred) + ops.mean(ops.square(penalty))

    model = Critic(force("gradient").energy)
    model.compile(paper(lb.CLARS, 0.1), jit_compile=ON_JAX)
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
    return ops.mean(keras.losses.sparse_categorical_crossentropy(LABELS, logits, from_logits=True))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("regularizer", [None, "l2"])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_loss_that_multiplies_features_with_a_weight_is_refused(traced, regularizer, stopped):
    model, head = two_headed(kernel_regularizer=regularizer)

    def tied(outputs):
        features = ops.stop_gradient(outputs["features"]) if stopped else outputs["features"]
        return cross_entropy(ops.matmul(features, head.kernel) + outputs["logits"])

    with pytest.raises(ValueError, match=r"used elsewhere .* head/kernel"):
        _measured(model, tied, traced)


@pytest.mark.parametrize("traced", [False, True])
def test_terms_of_weights_alone_count_for_the_gradient_and_for_no_example(traced):
    model, head = two_headed(kernel_regularizer="l2")

    def regularized(outputs):
        by_hand = 0.1 * ops.sum(ops.square(head.kernel))
        return cross_entropy(outputs["logits"]) + by_hand + sum(model.losses)

    plain = _measured(model, lambda outputs: cross_entropy(outputs["logits"]), traced)
    found = _measured(model, regularized, traced)
    for a, b in zip(found[1], plain[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(found[0][-1] - plain[0][-1], 0.22 * head.kernel.numpy(), rtol=1e-4, atol=1e-6)


def _measured(model, loss, traced):
    def run():
        _, found = norms.measure(
            model, lambda: model(ops.convert_to_tensor(IMAGES)), loss, model.trainable_variables, 6, norms.KERAS
        )
        return found.gradients, found.squared_norms

    return run_traced(run) if traced else run()
