"""Two replicas that meet in the middle of the forward pass measure what one device does with the whole batch.

TensorFlow only: JAX has no replicas.
"""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from paper_settings import paper

from tf_largebatch import CLARS, LargeBatchModel
from tf_largebatch.norms import KERAS, measure

# Keras has it from 3.13 on.
RENORM = {"renorm": True} if "renorm" in inspect.signature(L.BatchNormalization).parameters else {}
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 5, 5, 2)).astype("float32"), RNG.integers(0, 3, (8, 1))


def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5, 5, 2))
    hidden = L.BatchNormalization(synchronized=True)(L.Conv2D(4, 3, padding="same")(inputs))
    hidden = L.BatchNormalization(synchronized=True, **RENORM)(L.Conv2D(3, 3)(L.ReLU()(hidden)))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(hidden)))


def trained(strategy: tf.distribute.Strategy | None) -> tuple[list[np.ndarray], dict[str, float], LargeBatchModel]:
    scope = strategy.scope() if strategy else keras.name_scope("one")
    with scope:
        model = LargeBatchModel(network())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(paper(CLARS, 0.1, eta=0.1), loss, jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    model.fit(data, epochs=3, verbose=0)
    return model.get_weights(), model.optimizer.gradient_norms(), model


@pytest.mark.long
def test_synchronized_batch_norm_equals_one_device(two_replicas):
    weights, norms, model = trained(two_replicas)
    expected_weights, expected_norms, _ = trained(None)
    assert len(norms) == len(expected_norms) > 0
    for found, expected in zip(norms.values(), expected_norms.values(), strict=True):
        # Float32 sums over 8 examples against two over 4, after three steps; biases before batch norm are noise.
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for found, expected in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert all("call" not in vars(layer) for layer in model._flatten_layers())


def test_a_layer_has_its_call_back_if_a_replica_fails(two_replicas):
    with two_replicas.scope():
        model = network()

    def replica():
        number = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)

        def forward():
            output = model(X[:4], training=True)
            if number == 1:
                raise RuntimeError("stop")
            return output

        measure(model, forward, tf.reduce_sum, model.trainable_variables, 4, KERAS)

    with pytest.raises(RuntimeError, match="stop"):
        tf.function(lambda: two_replicas.run(replica), autograph=False)()
    assert all("call" not in vars(layer) for layer in model._flatten_layers())
