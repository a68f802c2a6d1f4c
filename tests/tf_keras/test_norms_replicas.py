"""Exact norms under MirroredStrategy: two logical CPUs equal one, with batch norm synchronized over them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from paper_settings import paper
from selection import long
from tf_keras import layers as L

from tf_largebatch.norms import measure
from tf_largebatch.tf_keras.norms import TF_KERAS
from tf_largebatch.tf_keras.optimizers import CLARS

BATCH, STEPS = 8, 4


def network(sync):
    norm = {
        "layer": lambda: L.BatchNormalization(synchronized=True),
        "experimental": L.experimental.SyncBatchNormalization,
        "none": L.LayerNormalization,
    }[sync]
    return tf_keras.Sequential(
        [
            L.Input((6, 6, 3)),
            L.Conv2D(4, 3, use_bias=False, kernel_initializer=tf_keras.initializers.GlorotUniform(1)),
            norm(),
            L.ReLU(),
            L.Flatten(),
            L.Dense(3, kernel_initializer=tf_keras.initializers.GlorotUniform(2), dtype="float32"),
        ]
    )


def train(strategy, sync, policy):
    tf_keras.mixed_precision.set_global_policy(policy)
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        model = network(sync)
        clars = paper(CLARS, 0.5, eta=0.1, weight_decay_rate=1e-3)
        optimizer = clars
        if policy == "mixed_float16":
            optimizer = tf_keras.mixed_precision.LossScaleOptimizer(clars, dynamic=True, initial_scale=128.0)
    variables = model.trainable_variables

    def step(x, y):
        def loss(logits):
            value = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
            value = tf.reduce_sum(value) / BATCH
            return value if optimizer is clars else optimizer.get_scaled_loss(value)

        forward = lambda: model(x, training=True)  # noqa: E731
        _, measured = measure(model, forward, loss, variables, BATCH // replicas, TF_KERAS)
        gradients, norms = measured.gradients, measured.gradient_norms().unpack()
        if optimizer is not clars:
            gradients, norms = optimizer.get_unscaled_gradients(gradients), optimizer.get_unscaled_gradients(norms)
        with clars.measured_gradient_norms(norms):
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

    @tf.function(autograph=False)
    def run(x, y):
        def share(context):
            i, size = context.replica_id_in_sync_group, BATCH // replicas
            return x[i * size : (i + 1) * size], y[i * size : (i + 1) * size]

        parts = [strategy.experimental_distribute_values_from_function(lambda c, k=k: share(c)[k]) for k in (0, 1)]
        strategy.run(step, parts)

    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        run(tf.constant(rng.normal(size=(BATCH, 6, 6, 3)), tf.float32), tf.constant(rng.integers(0, 3, BATCH)))
    assert int(clars.iterations.numpy()) == STEPS
    return [v.numpy() for v in model.variables], clars.gradient_norms()


@pytest.mark.parametrize("sync", ["layer", long("experimental"), long("none")])
def test_two_replicas_equal_one(sync, two_replicas):
    one = train(tf.distribute.OneDeviceStrategy("CPU:0"), sync, "float32")
    two = train(two_replicas, sync, "float32")
    for found, expected in zip(two[0], one[0], strict=True):
        # Sums over examples in two parts: float32 roundings over four steps.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert list(two[1].values()) == pytest.approx(list(one[1].values()), rel=1e-4)


@pytest.mark.long
def test_two_replicas_in_half_precision_with_loss_scaling(two_replicas):
    one = train(tf.distribute.OneDeviceStrategy("CPU:0"), "layer", "mixed_float16")
    two = train(two_replicas, "layer", "mixed_float16")
    for found, expected in zip(two[0], one[0], strict=True):
        # Roundings of 2^-11 of activations, in another order, over four steps.
        np.testing.assert_allclose(found, expected, atol=3e-3)
    assert list(two[1].values()) == pytest.approx(list(one[1].values()), rel=0.05)


@pytest.mark.long
def test_a_replica_without_examples(two_replicas):
    """Its share is zero, and its batch norms keep their averages: a last batch may be smaller than the replicas."""
    # Side by side: behind a convolution of no examples TensorFlow's kernels for CPUs fail, in plain tf_keras too.
    with two_replicas.scope():
        inputs = L.Input((4, 4, 3))
        layers = [
            L.Conv2D(4, 3),
            L.DepthwiseConv2D(3),
            L.PReLU(),
            L.BatchNormalization(),
            L.BatchNormalization(synchronized=True),
            L.BatchNormalization(renorm=True),
            L.LayerNormalization(),
            L.GroupNormalization(3),
            L.Dense(2),
        ]
        outputs = L.Concatenate()([L.Flatten()(layer(inputs)) for layer in layers])
        model = tf_keras.Model(inputs, L.Dense(3)(outputs))
    images = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype("float32")
    variables = model.trainable_variables

    def step(x):
        def loss(logits):
            return tf.reduce_sum(logits**2)

        _, found = measure(model, lambda: model(x, training=True), loss, variables, tf.shape(x)[0], TF_KERAS)
        return found.gradients, found.gradient_norms().values

    data = iter(two_replicas.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(images).batch(2)))
    run = tf.function(lambda x: two_replicas.run(step, (x,)), input_signature=[data.element_spec], autograph=False)
    gradients, norms = run(next(data))
    shares = [two_replicas.experimental_local_results(value) for value in (*gradients, norms)]
    for one, none in shares:
        assert np.all(np.isfinite(one))
        assert not np.any(none)
    assert np.any(shares[0][0])
    assert all(np.all(np.isfinite(v)) for v in model.non_trainable_variables)
