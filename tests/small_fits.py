"""A small model and a short fit, for tests of callbacks and of what they write."""

from __future__ import annotations

import keras
import numpy as np


def small_model(optimizer, units=3):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(units, name="d")])
    model.compile(optimizer, "mse")
    return model


def fit(model, epochs=2, callbacks=(), units=3):
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    y = np.ones((12, units), "float32")
    model.fit(x, y, batch_size=4, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))
    return model
