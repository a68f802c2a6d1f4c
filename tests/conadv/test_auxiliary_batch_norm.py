"""Auxiliary batch normalization: equal to the main layers at first, found at any depth, and gone after use."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from conadv_cases import SHAPE, images, nested, network, subclassed
from keras import layers as L
from selection import ON_JAX, long_unless

from tf_largebatch.conadv import ConAdvModel
from tf_largebatch.conadv.auxiliary_batch_norm import (
    AuxiliaryBatchNorms,
    batch_normalizations,
    variables_without_decay,
)

# Keras has renorm from 3.13 on, and synchronized on TensorFlow alone.
SYNCHRONIZED = {"synchronized": True} if keras.backend.backend() == "tensorflow" else {}
RENORM = {"renorm": True} if "renorm" in inspect.signature(L.BatchNormalization).parameters else {}


@keras.saving.register_keras_serializable(package="test_auxiliary_batch_norm")
class Doubling(L.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


def auxiliary_of(model):
    auxiliary_norms = AuxiliaryBatchNorms("wrapper/adversarial", name="adversarial")
    auxiliary_norms.create(model)
    return auxiliary_norms


def test_found_wherever_they_are():
    assert [len(batch_normalizations(model())) for model in (network, nested, lambda: network(False))] == [1, 2, 0]
    model = subclassed()
    model(images()[0])
    assert len(batch_normalizations(model)) == 1
    wrapped = keras.Sequential([keras.Input((3, *SHAPE)), L.TimeDistributed(L.BatchNormalization())])
    assert len(batch_normalizations(wrapped)) == 1


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.BatchNormalization(axis=1, momentum=0.7, epsilon=0.1),
        lambda: L.BatchNormalization(center=False, scale=False),
        lambda: L.BatchNormalization(**SYNCHRONIZED, gamma_initializer="zeros", beta_regularizer="l2"),
        lambda: L.BatchNormalization(**RENORM),
        lambda: Doubling(),
    ],
)
def test_an_auxiliary_layer_equals_its_main_layer(layer):
    model = keras.Sequential([keras.Input(SHAPE), layer()], name="net")
    main = model.layers[0]
    rng = np.random.default_rng(0)
    main.set_weights([rng.uniform(1, 2, w.shape) for w in main.get_weights()])
    auxiliary_norms = auxiliary_of(model)
    auxiliary_norms.copy_from_main()
    (auxiliary,) = auxiliary_norms.layers
    assert type(auxiliary) is type(main) and auxiliary.get_config() == main.get_config()
    assert [f"wrapper/adversarial/{v.path}" for v in main.weights] == [v.path for v in auxiliary.weights]
    x = images()[0]
    for training in (False, True):
        with auxiliary_norms.intercept():
            found = model(x, training=training)
        before = main.get_weights()
        np.testing.assert_array_equal(found, model(x, training=training))
    assert "call" not in vars(main)
    # The second training pass moved the main's averages, the first one the auxiliary layer's, equally.
    for a, b, old in zip(main.get_weights(), auxiliary.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == old.shape


def test_intercept_moves_the_auxiliary_averages_only_and_ends_after_an_error_too():
    model = nested()
    auxiliary_norms = auxiliary_of(model)
    before = [w.copy() for w in model.get_weights()]
    with auxiliary_norms.intercept():
        model(images()[0], training=True)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.abs(layer.moving_mean.numpy()).max() > 0 for layer in auxiliary_norms.layers)
    with pytest.raises(RuntimeError, match="on purpose"), auxiliary_norms.intercept():
        raise RuntimeError("on purpose")
    assert all("call" not in vars(layer) for layer in batch_normalizations(model))


def test_the_distance():
    model = network()
    auxiliary_norms = auxiliary_of(model)
    (main,), (auxiliary,) = batch_normalizations(model), auxiliary_norms.layers
    auxiliary_norms.copy_from_main()
    assert float(auxiliary_norms.distance()) == 0.0
    main.moving_variance.assign(np.full(4, 4.0))
    auxiliary.moving_variance.assign(np.full(4, 9.0))
    auxiliary.moving_mean.assign([0.0, 1.0, 2.0, 3.0])
    # Means 0, 1, 2, 3 and deviations 3 - 2 apart, in units of 2.
    expected = np.sqrt(((0 + 1 + 4 + 9) / 4 + 1) / (4 + main.epsilon))
    np.testing.assert_allclose(float(auxiliary_norms.distance()), expected, rtol=1e-6)
    assert float(auxiliary_of(network(False)).distance()) == 0.0


def test_auxiliary_layers_freeze_with_their_main_layers():
    model = nested()
    auxiliary_norms = auxiliary_of(model)
    model.trainable = False
    auxiliary_norms.follow_trainable()
    assert not auxiliary_norms.trainable_variables
    model.trainable = True
    auxiliary_norms.follow_trainable()
    assert len(auxiliary_norms.trainable_variables) == 4


OPTIMIZERS = [keras.optimizers.SGD, keras.optimizers.AdamW, keras.optimizers.Lamb]


@pytest.mark.parametrize("optimizer", long_unless(OPTIMIZERS, OPTIMIZERS[1:2], condition=ON_JAX))
def test_no_auxiliary_variable_decays(optimizer):
    """One update with zero gradients moves what decays, and nothing else."""
    model = ConAdvModel(nested(), augment=lambda x: x)
    found = optimizer(0.1, weight_decay=0.5)
    found.exclude_from_weight_decay(var_list=variables_without_decay(model))
    found.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(rng.uniform(1, 2, v.shape))
    before = [v.numpy() for v in model.trainable_variables]
    found.apply([np.zeros(v.shape, "float32") for v in model.trainable_variables])
    for v, old in zip(model.trainable_variables, before, strict=True):
        assert (np.abs(v.numpy() - old).max() > 0) == (len(v.shape) > 1), v.path
    listed = {id(v) for v in variables_without_decay(model)}
    auxiliary = [*model.adversarial_batch_norms.trainable_variables, *model.augmented_batch_norms.trainable_variables]
    assert len(auxiliary) == 8 and all(id(v) in listed for v in auxiliary)


def test_an_unbuilt_model_has_no_variables_to_list():
    with pytest.raises(ValueError, match="model must be built, so that its variables exist"):
        variables_without_decay(keras.Sequential([L.Dense(3)]))
