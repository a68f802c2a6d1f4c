"""What tf_largebatch.tf_keras.keras_internals relies on, checked against the installed tf_keras."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from paper_settings import paper
from tf_keras import layers as L

from tf_largebatch.keras_internals import layers_within, without_autocast
from tf_largebatch.tf_keras import keras_internals
from tf_largebatch.tf_keras.optimizers import LARS

LEGACY = tf_keras.optimizers.legacy.Optimizer


def test_layers_are_found_at_any_depth():
    inner = L.Dense(1)
    model = tf_keras.Sequential([L.Input((2, 3)), tf_keras.Sequential([L.TimeDistributed(inner)])])
    assert any(layer is inner for layer in layers_within(model)), "_flatten_layers no longer goes inside"


def test_a_layer_keeps_the_losses_it_adds_apart_from_regularizers():
    class AddsLoss(L.Layer):
        def call(self, x):
            self.add_loss(tf.reduce_sum(x))
            return x

    regularized, adding = L.Dense(1, kernel_regularizer="l2"), AddsLoss()
    for layer in (regularized, adding):
        layer(tf.ones((1, 2)))
    found = [keras_internals.adds_losses(layer) for layer in (regularized, adding)]
    assert found == [False, True], "layers no longer keep what add_loss is given in _losses"


def test_a_batch_normalization_has_its_parts():
    layer = L.BatchNormalization()
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 3, 3, 2)), tf.float32)
    layer(x)
    assert keras_internals.batch_norm_data_format(layer) == "NHWC"
    assert bool(keras_internals.batch_norm_training(layer, True))
    layer.trainable = False
    assert not bool(keras_internals.batch_norm_training(layer, True)), "_get_training_value minds frozen layers no more"
    mean, variance = keras_internals.batch_norm_moments(layer, x, [0, 1, 2], None)
    np.testing.assert_allclose(mean, np.mean(x, (0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(variance, np.var(x, (0, 1, 2)), rtol=1e-5)
    keras_internals.move_averages(layer, x, mean, variance)
    np.testing.assert_allclose(layer.moving_mean, 0.01 * mean, rtol=1e-4, atol=1e-7)


def test_averages_stay_on_a_replica_without_examples(two_replicas):
    with two_replicas.scope():
        layer = L.BatchNormalization()
        layer.build((None, 2))
        nan = tf.fill([2], np.nan)
        two_replicas.run(lambda: keras_internals.move_averages(layer, tf.zeros((0, 2)), nan, nan))
    assert np.all(np.isfinite(layer.moving_mean)), "_assign_moving_average no longer minds an empty batch"


def test_a_variable_has_one_key_in_all_its_forms(two_replicas):
    with two_replicas.scope():
        whole = tf.Variable(1.0)
    keys = {keras_internals.variable_key(v) for v in (whole, *whole.values)}
    assert len(keys) == 1, "_distributed_container no longer leads from a component to the whole"
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    layer = L.Dense(1)
    layer.build((1, 1))
    keys = {keras_internals.variable_key(v) for v in (layer.kernel, layer.kernel._variable)}
    assert len(keys) == 1, "the wrapper that casts no longer hands on _unique_id"
    assert without_autocast(layer.kernel) is layer.kernel._variable, "the wrapper that casts has another name"
    assert without_autocast(layer.kernel._variable) is layer.kernel._variable


def test_an_averaged_optimizer_is_found():
    ema = pytest.importorskip("official.modeling.optimization.ema_optimizer", reason="Model Garden is not installed")
    inner = tf_keras.optimizers.legacy.SGD()
    found = keras_internals.averaged_optimizer(ema.ExponentialMovingAverage(inner))
    assert found is inner, "ExponentialMovingAverage no longer keeps the optimizer inside in _optimizer"
    assert keras_internals.averaged_optimizer(inner) is None


@pytest.mark.parametrize("name", keras_internals.OVERRIDDEN_OPTIMIZER_METHODS)
def test_the_legacy_optimizer_has_the_methods_that_layer_wise_ones_override(name):
    parameters, reason = keras_internals.OVERRIDDEN_OPTIMIZER_METHODS[name]
    method = getattr(LEGACY, name, None)
    assert method is not None, f"tf_keras.optimizers.legacy.Optimizer has no {name} any more, which {reason}"
    found = tuple(inspect.signature(method).parameters)[1:]
    assert found == parameters, f"tf_keras.optimizers.legacy.Optimizer.{name} has new parameters {found}; it {reason}"


@pytest.mark.parametrize("name", keras_internals.CALLED_OPTIMIZER_METHODS)
def test_the_legacy_optimizer_has_the_methods_that_layer_wise_ones_call(name):
    assert callable(getattr(LEGACY, name, None)), f"tf_keras.optimizers.legacy.Optimizer has no {name} any more"


@pytest.mark.parametrize("scaled", [False, True])
def test_a_checkpoint_of_an_optimizer_holds_more_state(scaled, tmp_path):
    optimizer, state = paper(LARS), tf.Module()
    state.variable = tf.Variable(3.0)
    if scaled:
        optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
    keras_internals.save_with_optimizer(optimizer, state, "extra")
    path = tf.train.Checkpoint(optimizer=optimizer).write(str(tmp_path / "checkpoint"))
    assert any("extra/variable" in name for name, _ in tf.train.list_variables(path)), "_track_trackable has changed"
