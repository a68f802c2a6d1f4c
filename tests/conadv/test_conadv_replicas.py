"""Two replicas of MirroredStrategy against one device. TensorFlow only: JAX has no replicas."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from conadv_cases import conadv, images, network
from paper_settings import paper
from selection import long

import tf_largebatch as lb

OPTIMIZERS = {"sgd": lambda: keras.optimizers.SGD(0.05, 0.9), "clars": lambda: paper(lb.CLARS, 0.05, eta=0.2)}


@pytest.mark.parametrize("staleness, optimizer", [long(0, "sgd"), (1, "clars"), long(2, "sgd")])
def test_two_replicas_equal_one_device(two_replicas, staleness, optimizer):
    """With synchronized batch norm, whose replicas meet in the middle of the attack and of every stream's pass."""
    x, y = images(24)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    compiled = optimizer == "sgd"  # tracing takes longer than these few steps
    arguments = {"staleness": staleness, "targeted": False, "random_start": 0.0, "compiled": compiled}
    if staleness != 1:
        arguments["augment"] = lambda x: x[:, :, ::-1]
    make = OPTIMIZERS[optimizer]
    one = conadv(network(synchronized=True), make(), **arguments)
    histories = [one.fit(data, verbose=0).history]
    with two_replicas.scope():
        two = conadv(network(synchronized=True), make(), **arguments)
    histories.append(two.fit(data, verbose=0).history)
    for a, b in zip(one.weights, two.weights, strict=True):
        # Three updates of float32 sums in another order.
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-5, err_msg=a.path)
    assert int(two.stale.step.numpy()) == 3
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.long
def test_replicas_draw_different_numbers_and_count_every_batch(two_replicas):
    x, y = images(17)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)  # the last batch has one image, and a replica none
    with two_replicas.scope():
        model = conadv(network(dropout=0.2), compiled=True)
    model.fit(data, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == int(model.stale.step.numpy()) == 3
    assert all(np.isfinite(v.numpy()).all() for v in model.weights)
    same = (np.repeat(x[:1], 8, 0), np.repeat(y[:1], 8))
    batch = next(iter(two_replicas.experimental_distribute_dataset(tf.data.Dataset.from_tensors(same))))
    first, second = two_replicas.experimental_local_results(two_replicas.run(model.attack_present, (batch,)))
    assert np.abs(first.numpy() - second.numpy()).max() > 0
