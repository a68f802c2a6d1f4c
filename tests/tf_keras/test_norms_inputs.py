"""What is no plain classifier of a batch: other first axes, position tables, weights in the loss, shared paths, XLA."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from paper_settings import paper
from tf_keras import layers as L
from tf_keras_norm_reference import assert_measured_right, cross_entropy, measured, randomize, reference

from tf_largebatch.norms import measure
from tf_largebatch.tf_keras.norms import TF_KERAS
from tf_largebatch.tf_keras.optimizers import CLARS

BATCH = 4


def batch(*shape, size=BATCH):
    rng = np.random.default_rng(1)
    return rng.normal(size=(size, *shape)).astype("float32"), rng.integers(0, 3, size)


def built(model, x):
    model(x)
    randomize(model)
    return model


class TimeMajor(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, x):
        return tf.reduce_mean(self.dense(tf.transpose(x, [1, 0, 2])), axis=0)


def test_as_many_steps_as_examples_do_not_make_a_batch_axis():
    x, y = batch(BATCH, 5)
    with pytest.raises(ValueError, match="need the examples on axis 0"):
        measured(built(TimeMajor(), x), x, y)


class Tokens(tf_keras.Model):
    """Words and positions; the table of positions is looked up once for all examples, or for each (`repeated`)."""

    def __init__(self, positions):
        super().__init__()
        self.words, self.table, self.head = L.Embedding(9, 4), L.Embedding(6, 4), L.Dense(3)
        self.positions = positions

    def call(self, ids):
        return self.head(tf.reduce_mean(tf.tanh(self.words(ids) + self.table(self.positions(ids))), axis=1))


def repeated(ids):
    return tf.tile(tf.range(6)[tf.newaxis], [tf.shape(ids)[0], 1])


@pytest.mark.parametrize("size", [4, 6])
@pytest.mark.parametrize("positions", [lambda ids: tf.range(6), lambda ids: tf.range(6)[tf.newaxis]], ids=["T", "1T"])
def test_a_table_of_positions(positions, size):
    ids = tf.constant(np.random.default_rng(0).integers(0, 9, (size, 6)), tf.int32)
    y = np.arange(size) % 3
    plain = built(Tokens(repeated), ids)
    model = built(Tokens(positions), ids)
    model.set_weights(plain.get_weights())
    squared_norms = tf.function(lambda: measured(model, ids, y)[1].squared_norms, autograph=False)()
    for index, norms in reference(plain, ids, y).items():
        np.testing.assert_allclose(np.sqrt(squared_norms[index]), norms, rtol=1e-5, atol=1e-7)


class Force(tf_keras.Model):
    def __init__(self, stopped):
        super().__init__()
        self.first, self.second, self.stopped = L.Dense(5, activation="tanh"), L.Dense(3), stopped

    def call(self, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = self.second(self.first(x))
        force = tf.reduce_sum(tape.gradient(y, x), axis=-1, keepdims=True)
        return y + (tf.stop_gradient(force) if self.stopped else force)


def test_a_derivative_inside_the_model():
    x, y = batch(4)
    x = tf.constant(x)
    with pytest.raises(ValueError, match="loss depends on a derivative that the model takes"):
        measured(built(Force(stopped=False), x), x, y)
    assert_measured_right(built(Force(stopped=True), x), x, y)


@pytest.mark.parametrize("traced", [False, True])
def test_a_weight_in_the_loss(traced):
    model = tf_keras.Sequential([L.Input((4,)), L.Dense(3, kernel_regularizer="l2")])
    x, y = batch(4)
    kernel = model.layers[0].kernel
    run = tf.function(autograph=False) if traced else lambda function: function

    def of_weights(y, z):
        return cross_entropy(y, z) + tf.add_n(model.losses)

    plain = measured(model, x, y)[1]
    found = run(lambda: [getattr(measured(model, x, y, of_weights)[1], n) for n in ("gradients", "squared_norms")])()
    np.testing.assert_allclose(found[0][0], plain.gradients[0] + 0.02 * kernel, rtol=1e-5)
    np.testing.assert_allclose(found[1][0], plain.squared_norms[0], rtol=1e-5)

    def tied(y, z):
        return tf.reduce_mean((z @ tf.transpose(kernel)) ** 2)

    with pytest.raises(ValueError, match=r"used elsewhere than in the layer that owns them.*kernel"):
        run(lambda: measured(model, x, y, tied)[1].gradients)()


def test_tensors_that_share_a_path():
    inputs = L.Input((4,))
    towers = [tf_keras.Sequential([L.Input((4,)), L.Dense(n, name="dense")], name=f"tower_{n}") for n in (4, 3)]
    model = tf_keras.Model(inputs, towers[1](towers[0](inputs)))
    x, y = batch(4)
    expected = reference(model, x, y)
    _, found = measured(model, x, y)
    optimizer = paper(CLARS, 0.1, exclude_from_layer_adaptation=[])
    with optimizer.measured_gradient_norms(found.gradient_norms()):
        optimizer.apply_gradients(zip(found.gradients, model.trainable_variables, strict=True))
    sums = [expected[index].sum() for index in range(4)]
    labels = ["dense/kernel", "dense/bias", "dense/kernel#2", "dense/bias#2"]
    assert optimizer.gradient_norms() == pytest.approx(dict(zip(labels, sums, strict=True)), rel=1e-5)


def test_compiled_with_batches_of_several_sizes():
    """An unknown batch size under XLA, as users of GPUs have by default: a smaller last batch."""
    layers = [
        L.Conv2D(4, 3, padding="same"),
        L.DepthwiseConv2D(3),
        L.BatchNormalization(),
        L.PReLU(shared_axes=[1, 2]),
        L.Conv2D(3, 1),
        L.LayerNormalization(),
    ]
    model = tf_keras.Sequential([L.Input((5, 5, 3)), *layers, L.Flatten(), L.Dense(3)])
    randomize(model)
    variables = model.trainable_variables

    @tf.function(
        input_signature=[tf.TensorSpec((None, 5, 5, 3)), tf.TensorSpec((None,), tf.int64)],
        jit_compile=True,
        autograph=False,
    )
    def norms(x, y):
        def loss(logits):
            return cross_entropy(y, logits)

        return measure(model, lambda: model(x, training=True), loss, variables, tf.shape(x)[0], TF_KERAS)[
            1
        ].squared_norms

    for size in (5, 3):
        x, y = batch(5, 5, 3, size=size)
        expected = reference(model, x, y)
        largest = max(n.max() for n in expected.values())
        for index, squares in enumerate(norms(x, y)):
            np.testing.assert_allclose(np.sqrt(squares), expected[index], rtol=1e-3, atol=1e-5 * largest)
