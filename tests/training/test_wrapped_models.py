"""What a wrapped model overrides of Keras's training: used as without the wrapper, or refused by name."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as L
from selection import long_unless

import tf_largebatch as lb

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 6)).astype("float32"), RNG.normal(size=(8, 1)).astype("float32")


class Plain(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.head = L.Dense(1)

    def call(self, x):
        return self.head(x)


class OwnLoss(Plain):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 100.0 * keras.ops.mean(keras.ops.square(y - y_pred))


class MoreLoss(Plain):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return super().compute_loss(x, y, y_pred, sample_weight) + keras.ops.mean(keras.ops.abs(y_pred))


class OwnMetrics(Plain):
    def __init__(self):
        super().__init__()
        self.largest = keras.metrics.Mean(name="largest")

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.largest.update_state(keras.ops.max(y_pred))
        return {**super().compute_metrics(x, y, y_pred, sample_weight), "constant": 7.0}


class OwnList(Plain):
    def __init__(self):
        super().__init__()
        self.tracker = keras.metrics.Mean(name="tracked")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        self.tracker.update_state(loss)
        return loss

    @property
    def metrics(self):
        return [self.tracker]


class OwnTest(Plain):
    if keras.backend.backend() == "jax":

        def test_step(self, state, data):
            logs, state = super().test_step(state, data)
            return {"answer": 42.0, **logs}, state

        def predict_step(self, state, data):
            outputs, state = super().predict_step(state, data)
            return 2.0 * outputs, state
    else:

        def test_step(self, data):
            return {"answer": 42.0, **super().test_step(data)}

        def predict_step(self, data):
            return 2.0 * super().predict_step(data)


MODELS = [Plain, OwnLoss, MoreLoss, OwnMetrics, OwnList, OwnTest]


@pytest.mark.parametrize("cls", long_unless(MODELS, [MoreLoss, OwnTest]))
def test_they_are_used_as_without_the_wrapper(cls):
    found = []
    for wrap in (False, True):
        keras.utils.set_random_seed(0)
        net = cls()
        net(X[:1])
        model = lb.LargeBatchModel(net) if wrap else net
        model.compile(keras.optimizers.SGD(0.01), "mse", metrics=["mae"], run_eagerly=True)
        logs = model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0).history
        evaluated = model.evaluate(X, Y, verbose=0, return_dict=True)
        found.append((logs, evaluated, model.predict(X, verbose=0), net.get_weights()))
    assert set(found[0][0]) == set(found[1][0]) and set(found[0][1]) == set(found[1][1])
    for logs in (0, 1):
        for name, values in found[0][logs].items():
            np.testing.assert_allclose(found[1][logs][name], values, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=1e-5)
    for one, other in zip(found[0][3], found[1][3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_the_model_is_left_as_it_was():
    net = OwnLoss()
    net.compile("adam", "mae")
    optimizer = net.optimizer
    model = lb.LargeBatchModel(net)
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(X, Y, verbose=0)
    assert net.optimizer is optimizer and net.loss == "mae"


@pytest.mark.parametrize("wrapper", [lb.LargeBatchModel, lb.ConAdvModel])
def test_a_training_step_of_its_own_is_refused(wrapper):
    class OwnStep(Plain):
        def train_step(self, data):
            return super().train_step(data)

    with pytest.raises(ValueError, match=r"without a train_step of its own.*OwnStep.*'net'.*compute_loss"):
        wrapper(OwnStep())
