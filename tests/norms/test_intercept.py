"""Layers compute by their rules in the thread that traces, and nowhere else; an empty batch has norms of 0."""

from __future__ import annotations

import threading

import keras
import numpy as np
from comparing import run_traced, tensorflow_only
from keras import layers as L
from keras import ops

from tf_largebatch.norms import KERAS, measure

X = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")


def test_another_thread_predicts_with_the_layers_own_calls():
    model = keras.Sequential([keras.Input((5,)), L.Dense(3), L.PReLU(), L.BatchNormalization()])
    expected = ops.convert_to_numpy(model(X))
    seen = []

    def forward():
        output = model(ops.convert_to_tensor(X))
        thread = threading.Thread(target=lambda: seen.append(ops.convert_to_numpy(model(X))))
        thread.start()
        thread.join()
        return output

    def step():
        return measure(model, forward, ops.sum, model.trainable_variables, 4, KERAS)[1].gradient_norms().values

    run_traced(step)
    assert seen
    for found in seen:
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert all("call" not in vars(layer) for layer in model._flatten_layers())


@tensorflow_only
def test_an_empty_batch_has_norms_and_gradients_of_zero():
    import tensorflow as tf

    model = keras.Sequential([keras.Input((5,)), L.Dense(3), L.LayerNormalization(), L.Dense(1)])

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, 5])])
    def step(x):
        _, found = measure(
            model, lambda: model(x), tf.reduce_mean, model.trainable_variables, tf.shape(x)[0], KERAS, examples=2
        )
        norms = found.gradient_norms()
        return norms.values, found.mean_squared_norms(), [tf.convert_to_tensor(g) for g in found.gradients]

    for values in tf.nest.flatten(step(X[:0])):
        np.testing.assert_array_equal(values, np.zeros(values.shape))
    assert all(np.isfinite(v).all() for v in tf.nest.flatten(step(X)))
