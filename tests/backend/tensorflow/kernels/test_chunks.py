"""Splitting a batch into chunks changes neither norms nor gradient, whatever the chunk.

TensorFlow only: it tests kernels in TensorFlow. tests/backend/jax tests those in JAX.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from tf_largebatch.backend.tensorflow.kernels import chunks
from tf_largebatch.norms import KERAS, measure

pytestmark = pytest.mark.each_value

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def measured(model, x, y, dynamic, jit=False):
    batch = None if dynamic else len(x)

    specs = [tf.TensorSpec([batch, 6, 6, 3]), tf.TensorSpec([batch], tf.int64)]

    @tf.function(jit_compile=jit, input_signature=specs, autograph=False)
    def run(x, y):
        size = tf.shape(x)[0] if dynamic else x.shape[0]
        loss = lambda y_pred: CROSS_ENTROPY(y, y_pred)  # noqa: E731
        _, found = measure(model, lambda: model(x, training=True), loss, model.trainable_variables, size, KERAS)
        return found.gradients, found.squared_norms

    return run(x, y)


@pytest.mark.parametrize("examples_at_a_time", [1, 3, 4])
@pytest.mark.parametrize("dynamic, jit", [(False, False), (True, False), (False, True)])
def test_chunks(examples_at_a_time, dynamic, jit, monkeypatch):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            L.Conv2D(4, 3, padding="same"),
            L.BatchNormalization(),
            L.Conv2D(5, 1, use_bias=False),
            L.Flatten(),
            L.Dense(3),
        ]
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 6, 6, 3)).astype("float32"), rng.integers(0, 3, 8)
    whole = measured(model, x, y, dynamic)
    monkeypatch.setattr(chunks, "chunk_of", lambda bytes_per_example: examples_at_a_time)
    monkeypatch.setattr("tf_largebatch.backend.tensorflow.kernels.convolution_direct.chunk_of", chunks.chunk_of)
    parts = measured(model, x, y, dynamic, jit)
    for found, expected in zip(tf.nest.flatten(parts), tf.nest.flatten(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_chunk_fits_the_budget():
    assert chunks.chunk_of(chunks.CHUNK_BYTES) == 1
    assert chunks.chunk_of(10 * chunks.CHUNK_BYTES) == 1
    assert chunks.chunk_of(chunks.CHUNK_BYTES // 8) == 8
