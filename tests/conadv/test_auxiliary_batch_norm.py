"""The sets of batch normalisations: twins that are equal, found everywhere, and stand in without a trace."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from conadv_cases import SHAPE, images, nested, network, subclassed
from keras import layers as L

from tf_largebatch.conadv.auxiliary_batch_norm import BatchNormSet, batch_normalizations

# Keras has it from 3.13 on.
RENORM = {"renorm": True} if "renorm" in inspect.signature(L.BatchNormalization).parameters else {}


@keras.saving.register_keras_serializable(package="test_auxiliary_batch_norm")
class Doubling(L.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


def twins_of(model):
    bn_set = BatchNormSet("wrapper/adversarial", name="adversarial")
    bn_set.create(model)
    return bn_set


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
        lambda: L.BatchNormalization(synchronized=True, gamma_initializer="zeros", beta_regularizer="l2"),
        lambda: L.BatchNormalization(**RENORM),
        lambda: Doubling(),
    ],
)
def test_a_twin_is_its_main_again(layer):
    model = keras.Sequential([keras.Input(SHAPE), layer()], name="net")
    main = model.layers[0]
    rng = np.random.default_rng(0)
    main.set_weights([rng.uniform(1, 2, w.shape) for w in main.get_weights()])
    bn_set = twins_of(model)
    bn_set.equal_to_main()
    (twin,) = bn_set.twins
    assert type(twin) is type(main) and twin.get_config() == main.get_config()
    assert [f"wrapper/adversarial/{v.path}" for v in main.weights] == [v.path for v in twin.weights]
    x = images()[0]
    for training in (False, True):
        with bn_set.standing_in():
            found = model(x, training=training)
        before = main.get_weights()
        np.testing.assert_array_equal(found, model(x, training=training))
    assert "call" not in vars(main)
    # The second training pass moved the main's averages, the first one the twin's: equally.
    for a, b, old in zip(main.get_weights(), twin.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == old.shape


def test_standing_in_moves_the_twins_alone_and_ends_with_an_error_too():
    model = nested()
    bn_set = twins_of(model)
    before = [w.copy() for w in model.get_weights()]
    with bn_set.standing_in():
        model(images()[0], training=True)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.abs(twin.moving_mean.numpy()).max() > 0 for twin in bn_set.twins)
    with pytest.raises(RuntimeError, match="on purpose"), bn_set.standing_in():
        raise RuntimeError("on purpose")
    assert all("call" not in vars(layer) for layer in batch_normalizations(model))


def test_the_distance():
    model = network()
    bn_set = twins_of(model)
    (main,), (twin,) = batch_normalizations(model), bn_set.twins
    bn_set.equal_to_main()
    assert float(bn_set.distance()) == 0.0
    main.moving_variance.assign(np.full(4, 4.0))
    twin.moving_variance.assign(np.full(4, 9.0))
    twin.moving_mean.assign([0.0, 1.0, 2.0, 3.0])
    # Means 0, 1, 2, 3 and deviations 3 - 2 apart, in units of 2.
    expected = np.sqrt(((0 + 1 + 4 + 9) / 4 + 1) / (4 + main.epsilon))
    np.testing.assert_allclose(float(bn_set.distance()), expected, rtol=1e-6)
    assert float(twins_of(network(False)).distance()) == 0.0


def test_the_twins_freeze_with_their_mains():
    model = nested()
    bn_set = twins_of(model)
    model.trainable = False
    bn_set.follow_trainable()
    assert not bn_set.trainable_variables
    model.trainable = True
    bn_set.follow_trainable()
    assert len(bn_set.trainable_variables) == 4
