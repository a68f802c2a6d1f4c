"""Batch normalization by the fused kernels against the equation, differentiated with gamma copied for each example.

TensorFlow only: it tests kernels in TensorFlow. tests/backend/jax tests those in JAX.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from tf_largebatch.backend.tensorflow.kernels.fused_batch_norm import fused_batch_norm
from tf_largebatch.norms import KERAS, measure
from tf_largebatch.norms.device import compiling_for

pytestmark = pytest.mark.each_value


def written_out(x, gamma, beta, epsilon):
    axes = list(range(x.shape.rank - 1))
    mean, variance = tf.nn.moments(x, axes)
    shape = [x.shape[0], *(1,) * (x.shape.rank - 2), x.shape[-1]]
    gamma, beta = tf.reshape(gamma, shape), tf.reshape(beta, shape)
    return gamma * (x - mean) * tf.math.rsqrt(variance + epsilon) + beta, mean, variance


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 5), (6, 4, 3, 5), (3, 2, 3, 4, 5), (1, 3, 3, 2), (1, 4)])
def test_values_and_gradients(shape, jit):
    rng = np.random.default_rng(0)
    x, weight = (tf.constant(rng.normal(size=shape) + 1.0, tf.float32) for _ in range(2))
    gamma, beta = (tf.repeat(tf.constant(rng.normal(size=(1, shape[-1])), tf.float32), shape[0], 0) for _ in range(2))

    def run(form):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma, beta])
            y, mean, variance = form(x, gamma, beta, 0.01)
            target = tf.reduce_sum(weight * y)
        return y, mean, variance, *tape.gradient(target, [x, gamma, beta])

    def fused(x, gamma, beta, epsilon):
        return fused_batch_norm(x, gamma, beta, gamma[0], beta[0], epsilon)

    found = tf.function(run, jit_compile=jit, autograph=False)(fused)
    for f, expected in zip(found, run(written_out), strict=True):
        # float32 sums of at most a hundred terms; the gradient at x nearly cancels for one or two positions.
        np.testing.assert_allclose(f, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("kwargs", [{}, {"scale": False}, {"center": False}, {"axis": 1}], ids=str)
def test_the_rule_is_the_same_on_every_device(kwargs, policy):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential([keras.Input((4, 3, 3)), L.BatchNormalization(**kwargs), L.Flatten(), L.Dense(2)])
    x = np.random.default_rng(0).normal(size=(6, 4, 3, 3))
    start = [v.numpy() for v in model.variables]

    def run(kind):
        for v, value in zip(model.variables, start, strict=True):
            v.assign(value)
        with compiling_for(kind):
            output, found = measure(
                model,
                lambda: model(x, training=True),
                lambda y: tf.reduce_sum(tf.cast(y, tf.float32) ** 2),
                model.trainable_variables,
                6,
                KERAS,
            )
        return [output, *found.gradients, *found.squared_norms, *(v.value for v in model.non_trainable_variables)]

    # Sums in another order; in bfloat16 the outputs may round to the neighbour.
    rtol = 3e-2 if policy == "mixed_bfloat16" else 1e-5
    for cpu, elsewhere in zip(run("cpu"), run("gpu"), strict=True):
        scale = float(tf.reduce_max(tf.abs(tf.cast(elsewhere, tf.float32))))
        np.testing.assert_allclose(
            tf.cast(cpu, tf.float32), tf.cast(elsewhere, tf.float32), rtol=rtol, atol=rtol * scale
        )
