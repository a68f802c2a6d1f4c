"""The same network in Keras 3 and tf_keras, from equal weights: ten steps with exact norms, equal weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from paper_settings import paper

import tf_largebatch as lb
from tf_largebatch.norms import measure
from tf_largebatch.tf_keras import optimizers as garden_optimizers
from tf_largebatch.tf_keras.norms import TF_KERAS

STEPS, BATCH = 10, 16


def network(world):
    """Every kind of layer with variables that convolutional networks have; batch norm with one set of statistics."""
    layers = world.layers
    arguments = {"use_bias": False, "padding": "same"}
    return world.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(6, 3, name="stem", **arguments),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, strides=2, name="depthwise", **arguments),
            layers.BatchNormalization(name="other_norm"),
            layers.ReLU(),
            layers.Conv2D(8, 1, name="pointwise"),
            layers.GlobalAveragePooling2D(),
            layers.LayerNormalization(name="layer_norm"),
            layers.Dense(5, name="head"),
        ]
    )


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, BATCH, 8, 8, 3)).astype("float32")
    return x, rng.integers(0, 5, (STEPS, BATCH))


def copy_weights(source, target):
    for layer, other in zip(source.layers, target.layers, strict=True):
        other.set_weights(layer.get_weights())


def train_keras_3(model, optimizer):
    wrapped = lb.LargeBatchModel(model)
    # Tracing takes longer than ten steps.
    wrapped.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    for x, y in zip(*data(), strict=True):
        wrapped.train_on_batch(x, y)


def train_tf_keras(model, optimizer):
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    variables = model.trainable_variables

    @tf.function(autograph=False)
    def step(x, y):
        _, measured = measure(
            model, lambda: model(x, training=True), lambda logits: loss(y, logits), variables, BATCH, TF_KERAS
        )
        if isinstance(optimizer, garden_optimizers.CLARS):
            with optimizer.measured_gradient_norms(measured.gradient_norms().unpack()):
                optimizer.apply_gradients(zip(measured.gradients, variables, strict=True))
        else:
            optimizer.apply_gradients(zip(measured.gradients, variables, strict=True))

    for x, y in zip(*data(), strict=True):
        step(x, y)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("CLARS", {"eta": 0.05, "weight_decay_rate": 1e-3}),
        ("CLARS", {"eta": 0.05, "classic_momentum": False, "max_rate": 0.05, "weight_decay_rate": 1e-3}),
        ("LARS", {"eta": 0.02, "nesterov": True, "weight_decay_rate": 1e-3}),
    ],
)
def test_ten_steps_end_in_the_same_weights(name, arguments):
    one, other = network(keras), network(tf_keras)
    copy_weights(one, other)
    start = [w.copy() for w in one.get_weights()]
    keras_3, garden = (paper(getattr(world, name), 0.5, **arguments) for world in (lb, garden_optimizers))
    train_keras_3(one, keras_3)
    train_tf_keras(other, garden)
    for v, other_v in zip(one.trainable_variables, other.trainable_variables, strict=True):
        # Two sets of kernels in float32 over ten steps; the weights are of size 1.
        np.testing.assert_allclose(v, other_v, rtol=1e-5, atol=1e-5, err_msg=v.path)
    moved = [np.abs(w - before).max() for w, before in zip(one.get_weights(), start, strict=True)]
    assert np.median(moved) > 0.01
    rates, other_rates = (list(optimizer.layerwise_rates().values()) for optimizer in (keras_3, garden))
    assert other_rates == pytest.approx(rates, rel=1e-4)
