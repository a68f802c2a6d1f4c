"""Classifiers from files, and networks with weights from a file. tests/train/test_train_options.py trains them."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from keras import layers

from tf_largebatch import models, pretrained

SHAPE = (2, 2, 3)


def classifier(last):
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, last(layers.Flatten()(inputs)))


def test_a_file_must_hold_a_classifier_of_these_images(tmp_path):
    path = str(tmp_path / "model.keras")
    classifier(layers.Dense(5)).save(path)
    assert pretrained.from_file(path, SHAPE, 5).output_shape == (None, 5)
    (tmp_path / "damaged.keras").write_bytes(b"no archive")
    for name, shape, classes, message in (
        ("none.keras", SHAPE, 5, "model must be a file that exists"),
        ("damaged.keras", SHAPE, 5, "damaged.keras is damaged, or no model that Keras can load"),
        ("model.keras", (4, 4, 3), 5, "must have inputs of shape (4, 4, 3) for this data set"),
        ("model.keras", SHAPE, 6, "must have outputs of shape (6,) for this data set"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            pretrained.from_file(str(tmp_path / name), shape, classes)


def test_which_classifiers_return_logits():
    softmax = classifier(layers.Dense(5, activation="softmax"))
    assert pretrained.returns_logits(classifier(layers.Dense(5)))
    assert not pretrained.returns_logits(softmax)
    assert not pretrained.returns_logits(keras.Sequential([keras.Input(SHAPE), softmax]))
    assert not pretrained.returns_logits(keras.Sequential([keras.Input((5,)), layers.Softmax()]))


def preprocess_input(x):
    return x / 255.0 - 0.5


def small_network(include_top, weights, input_shape):
    assert not include_top
    inputs = keras.Input(input_shape)
    network = keras.Model(inputs, layers.Dense(4, name="features")(inputs), name="small")
    if weights is not None:
        network.load_weights(weights)
    return network


def test_weights_of_a_file_and_pixels_as_the_network_takes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "applications", lambda: {"small": small_network})
    monkeypatch.setattr(models, "canonical_name", str)
    network, path = small_network(False, None, SHAPE), str(tmp_path / "small.weights.h5")
    network.save_weights(path)
    grey = np.random.default_rng(0).uniform(0, 16, (3, 2, 2, 1)).astype("float32")
    model = pretrained.with_weights("small", path, (2, 2, 1), 5, pixel_scale=16.0)
    features = np.asarray(network(np.repeat(grey, 3, axis=-1) / 16 - 0.5)).mean(axis=(1, 2))
    kernel, bias = model.layers[-1].get_weights()
    np.testing.assert_allclose(np.asarray(model(grey)), features @ kernel + bias, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="must go with grey or RGB images; received images of"):
        pretrained.with_weights("small", path, (2, 2, 2), 5)
    with pytest.raises(ValueError, match=r"model small_network cannot be built with weights='none\.weights\.h5' for"):
        pretrained.with_weights("small", "none.weights.h5", SHAPE, 5)
