"""Saved, killed, loaded and gone on with: as if nothing had happened."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from conadv_cases import CLASSES, SHAPE, Subclassed, assert_close, conadv, images, nested, network, number, subclassed
from keras import layers as L
from paper_settings import paper

import tf_largebatch as lb

pytestmark = pytest.mark.quick_on_jax("test_every_argument_survives")

BATCH, BATCHES, SAVED_AFTER = 6, 4, 2
X, Y = images(BATCH * BATCHES)


def train(model, first=0, **arguments):
    model.fit(X[first * BATCH :], Y[first * BATCH :], batch_size=BATCH, shuffle=False, verbose=0, **arguments)


def fresh(make, staleness):
    compiled = True if make is subclassed else None
    return conadv(make(), paper(lb.CLARS, 1.0), staleness=staleness, compiled=compiled)


class Whole:
    """The whole model in one file."""

    def save(self, model, path):
        model.save(path / "m.keras")

    def load(self, make, staleness, path):
        return keras.models.load_model(path / "m.keras")


class Weights:
    """Weights and optimizer of an equal model, built by being told its input."""

    def save(self, model, path):
        model.save_weights(path / "m.weights.h5")
        self.optimizer = {}
        model.optimizer.save_own_variables(self.optimizer)

    def load(self, make, staleness, path):
        model = fresh(make, staleness)
        if not model.built:
            model.build((None, *SHAPE))
        model.load_weights(path / "m.weights.h5")
        model.optimizer.build(model.trainable_variables)
        model.optimizer.load_own_variables(self.optimizer)
        return model


class Checkpoint:
    """tf.train.Checkpoint."""

    def save(self, model, path):
        import tensorflow as tf

        self.path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(path / "c"))

    def load(self, make, staleness, path):
        import tensorflow as tf

        model = fresh(make, staleness)
        if not model.built:
            model.build((None, *SHAPE))
        model.optimizer.build(model.trainable_variables)
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).restore(self.path).assert_consumed()
        return model


class SaveAfter(keras.callbacks.Callback):
    """Saves in the middle of an epoch; on JAX `self.model` brings the variables up to date."""

    def __init__(self, way, path):
        super().__init__()
        self.way, self.path = way, path

    def on_train_batch_end(self, batch, logs=None):
        if batch == SAVED_AFTER - 1:
            self.way.save(self.model, self.path)


# XLA compiles the wrapper's program and the model's one each in its own order of sums.
PREDICTIONS = 0.0 if keras.backend.backend() == "tensorflow" else 1e-6
ON_TENSORFLOW = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own file format")


@pytest.mark.parametrize(
    "way, staleness, make",
    [
        pytest.param(Whole, 0, network, marks=pytest.mark.long),
        (Whole, 1, subclassed),
        pytest.param(Whole, 3, nested, marks=pytest.mark.long),
        pytest.param(Weights, 1, network, marks=pytest.mark.long),
        pytest.param(Weights, 2, subclassed, marks=pytest.mark.long),
        pytest.param(Checkpoint, 2, network, marks=ON_TENSORFLOW),
        pytest.param(Checkpoint, 1, subclassed, marks=[ON_TENSORFLOW, pytest.mark.long]),
    ],
)
def test_it_goes_on_as_if_nothing_had_happened(way, staleness, make, tmp_path):
    way = way()
    straight = fresh(make, staleness)
    train(straight, callbacks=[SaveAfter(way, tmp_path)])
    resumed = way.load(make, staleness, tmp_path)
    assert number(resumed.stale.step) == SAVED_AFTER
    train(resumed, SAVED_AFTER)
    assert_close(straight, resumed)


def test_the_model_is_itself(tmp_path):
    net, plain = network(), network()
    paths = [v.path for v in net.weights]
    model = conadv(net)
    train(model)
    assert [v.path for v in net.weights] == paths == [v.path for v in model.weights[: len(paths)]]
    assert type(net) is keras.Sequential and len(net.weights) == len(plain.weights)
    net.save_weights(tmp_path / "net.weights.h5")
    plain.load_weights(tmp_path / "net.weights.h5")
    net.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    for other in (plain, loaded):
        found, expected = other.predict(X, verbose=0), model.predict(X, verbose=0)
        np.testing.assert_allclose(found, expected, rtol=PREDICTIONS, atol=PREDICTIONS)
    assert "tf_largebatch" not in net.to_json()


@ON_TENSORFLOW
def test_the_export_is_the_clean_classifier(tmp_path):
    import tensorflow as tf

    model = conadv(staleness=2)
    train(model)
    model.export(str(tmp_path / "export"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "export"))
    np.testing.assert_allclose(served.serve(X), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)
    stored = [name for name, _ in tf.train.list_variables(str(tmp_path / "export" / "variables" / "variables"))]
    assert not any("adversarial" in name or "stale" in name for name in stored)


ARGUMENTS = {
    "epsilon": 2.5,
    "step_size": 1.5,
    "num_steps": 3,
    "staleness": 2,
    "targeted": False,
    "random_start": 0.25,
    "value_range": [[0.0, 1.0], [-1.0, 2.0]],
    "adversarial_weight": 0.5,
    "num_classes": CLASSES,
    "norm_examples": 4,
    "micro_batch_size": 5,
    "attack": "noise",
    "norm": "l2",
    "seed": -(2**35),
    "allow_generic": True,
    "name": "other",
}


@pytest.mark.parametrize("make", [network, subclassed])
def test_every_argument_survives(make):
    model = lb.ConAdvModel(make(), **ARGUMENTS, augment=L.RandomFlip("vertical", seed=5))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    config, other = model.get_config(), again.get_config()
    assert {name: other[name] for name in ARGUMENTS} == ARGUMENTS == {name: config[name] for name in ARGUMENTS}
    assert isinstance(again.augment, L.RandomFlip) and again.augment.mode == "vertical"
    assert isinstance(again.model, Subclassed if make is subclassed else keras.Sequential)
    defaults = lb.ConAdvModel(make())
    again = lb.ConAdvModel.from_config(defaults.get_config())
    assert again.step_size is None and again.augment is None and again.norm_examples is None
