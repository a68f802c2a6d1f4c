"""The defaults train: README's example at three batch sizes, and bare CLARS() and LARS() beside Adam on the digits.

TensorFlow only: what is tested are numbers, and on JAX each of these runs would be compiled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import re

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_largebatch as lb
from tf_largebatch.core import defaults

README = pathlib.Path(__file__).parents[2] / "README.md"
long = pytest.mark.long


@long  # test_docs.py runs the code as it is printed
@pytest.mark.parametrize("batch_size, epochs", [(128, 10), (512, 40), (1347, 60)])
def test_readmes_example_trains_at_any_batch_size(batch_size, epochs):
    """The code as it is printed, but for its batch size (1,347 are all images) and its number of epochs."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert "512" in code and "40" in code
    code = re.sub(r"\b512\b", str(batch_size), re.sub(r"\b40\b", str(epochs), code))
    keras.utils.set_random_seed(0)
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    model, x_test, y_test = names["model"], names["x_test"], names["y_test"]
    assert model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"] > 0.95


def test_a_default_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        defaults.CLARS.eta = 1.0


@functools.cache
def digits():
    data = load_digits()
    return train_test_split(data.images[..., None] / 16, data.target, random_state=0)


def network(batch_norm):
    layers = [keras.Input((8, 8, 1))]
    for filters, strides in ((16, 1), (32, 2)):
        layers.append(keras.layers.Conv2D(filters, 3, strides=strides, use_bias=not batch_norm))
        layers += [keras.layers.BatchNormalization(momentum=0.9)] if batch_norm else []
        layers.append(keras.layers.ReLU())
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10)])


def accuracies(optimizer, batch_size, batch_norm, wrapped=False):
    """Test accuracy along 96 to 99 updates, at the end of every ninth to twelfth."""
    x, x_test, y, y_test = digits()
    keras.utils.set_random_seed(1)
    model = network(batch_norm)
    model = lb.LargeBatchModel(model) if wrapped else model
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    epochs, every = (9, 1) if batch_size == 128 else (32, 4)
    test = {"validation_data": (x_test, y_test), "validation_freq": every, "validation_batch_size": 512}
    history = model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0, **test).history
    assert np.isfinite(history["loss"]).all()
    return history["val_accuracy"]


@functools.cache
def adams(batch_size, batch_norm):
    return accuracies(keras.optimizers.Adam(1e-3 * (batch_size / 128) ** 0.5), batch_size, batch_norm)


@pytest.mark.long
@pytest.mark.parametrize("batch_norm", [True, pytest.param(False, marks=long)])
@pytest.mark.parametrize("batch_size", [128, pytest.param(512, marks=long)])
@pytest.mark.parametrize("how", ["CLARS", pytest.param("CLARS, plain", marks=long), pytest.param("LARS", marks=long)])
def test_bare_defaults_train_stably_and_no_worse_than_adam(how, batch_size, batch_norm):
    wrapped = how == "CLARS"
    optimizer = lb.LARS() if how == "LARS" else lb.CLARS()
    warns = pytest.warns(UserWarning, match="no per-example gradient norms")
    with warns if how == "CLARS, plain" else contextlib.nullcontext() as caught:
        found = accuracies(optimizer, batch_size, batch_norm, wrapped)
    assert caught is None or len(caught) == 1
    assert found[-1] >= max(found) - 0.02, found
    assert found[-1] >= adams(batch_size, batch_norm)[-1] - 0.03, found
