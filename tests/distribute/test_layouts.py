"""Checkpoints of one layout in another, and ConAdv's pipeline in our own loop.

TensorFlow only: it tests tf.distribute. tests/jax/test_several_devices.py tests keras.distribution.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from conadv_cases import conadv, images
from conadv_cases import network as conadv_network
from paper_settings import paper
from selection import long

import tf_largebatch as lb
from tf_largebatch.callbacks import load_checkpoint
from tf_largebatch.callbacks.checkpoint import save_checkpoint
from tf_largebatch.distribute.fit import fit

ONE_DEVICE = tf.distribute.get_strategy()
BATCH, STEPS = 8, 2


def batches(epochs):
    x, y = images(BATCH * STEPS)
    return tf.data.Dataset.from_tensor_slices((x / 128 - 1, y)).batch(BATCH).repeat(epochs)


def compiled(strategy, units=4):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(units, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(3)]
    with strategy.scope():
        model = lb.LargeBatchModel(keras.Sequential([keras.Input((6, 6, 2)), *layers], name="net"))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(paper(lb.CLARS, 0.5, eta=0.05), loss, jit_compile=False)
    return model


def trained_on(model, first_epoch, last_epoch):
    settings = {"initial_epoch": first_epoch, "epochs": last_epoch, "steps_per_epoch": STEPS, "verbose": 0}
    fit(model, batches(last_epoch - first_epoch), **settings)
    return model


@pytest.mark.parametrize("from_one_device", [True, long(False)])
def test_a_run_goes_on_in_another_layout(two_replicas, tmp_path, from_one_device):
    layouts = (ONE_DEVICE, two_replicas) if from_one_device else (two_replicas, ONE_DEVICE)
    straight = trained_on(compiled(ONE_DEVICE), 0, 3)
    save_checkpoint(tmp_path / "one.npz", trained_on(compiled(layouts[0]), 0, 1), 1)
    resumed = compiled(layouts[1])
    with layouts[1].scope():
        assert load_checkpoint(tmp_path / "one.npz", resumed) == 1
    trained_on(resumed, 1, 3)
    assert int(resumed.optimizer.iterations.numpy()) == 3 * STEPS
    for one, other in zip(resumed.weights, straight.weights, strict=True):
        # Six updates on sums over 8 examples, or of two over 4.
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_another_model_is_refused_with_the_reason(two_replicas, tmp_path):
    save_checkpoint(tmp_path / "one.npz", compiled(ONE_DEVICE), 0)
    other = compiled(two_replicas, units=5)
    before = [v.numpy() for v in other.weights]
    with two_replicas.scope(), pytest.raises(ValueError, match=r"must hold the variables of .*net.*kernel.* differs"):
        load_checkpoint(tmp_path / "one.npz", other)
    for variable, value in zip(other.weights, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize("staleness", [long(0), long(1)])
def test_conadv_trains_as_by_kerass_fit(two_replicas, staleness):
    data = tf.data.Dataset.from_tensor_slices(images(24)).batch(8)
    models = []
    for _ in range(2):
        with two_replicas.scope():
            models.append(
                conadv(
                    conadv_network(synchronized=True),
                    paper(lb.CLARS, 0.05, eta=0.2),
                    staleness=staleness,
                    compiled=True,
                )
            )
    history = fit(models[0], data.repeat(2), epochs=2, steps_per_epoch=3, verbose=0).history
    # One list of batches for both epochs, as ours is: the last step of an epoch attacks the first batch of the next.
    expected = models[1].fit(data.repeat(2), epochs=2, steps_per_epoch=3, verbose=0).history
    for one, other in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-5, err_msg=one.path)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
