"""JAX only: a model saved on one backend goes on training on the other."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import tf_largebatch as lb

ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 6, 6, 2)).astype("float32"), RNG.integers(0, 3, 24)
ON_TENSORFLOW = """
import sys
import keras
import numpy as np
import tf_largebatch
data = np.load(sys.argv[1])
model = keras.models.load_model(sys.argv[2])
model.fit(data["x"], data["y"], batch_size=12, shuffle=False, verbose=0)
model.save(sys.argv[3])
"""


def wrapped():
    stack = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(), layers.Dense(3)]
    model = lb.LargeBatchModel(keras.Sequential([keras.Input((6, 6, 2)), *stack]), norm_examples=7, micro_batch_size=5)
    model.compile(
        lb.CLARS(0.5, eta=0.01, max_rate=None, unadapted_rate_factor=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@pytest.mark.long
def test_there_and_back_again(tmp_path):
    """Two updates here, two on TensorFlow, two here: those of six here.

    keras 20848: a model whose training step is its own is saved after training, with its optimizer.
    """
    straight, first = wrapped(), wrapped()
    first.set_weights(straight.get_weights())
    fit = {"batch_size": 12, "shuffle": False, "verbose": 0}
    straight.fit(X, Y, epochs=3, **fit)
    first.fit(X, Y, **fit)
    first.save(tmp_path / "here.keras")
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    files = [str(tmp_path / name) for name in ("data.npz", "here.keras", "there.keras")]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", ON_TENSORFLOW, *files], env=environment, check=True, capture_output=True)
    second = keras.models.load_model(tmp_path / "there.keras")
    assert int(second.optimizer.iterations) == 4
    second.fit(X, Y, **fit)
    for one, other in zip(second.weights, straight.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=2e-6, err_msg=one.path)
    # The momentum went along.
    for one, other in zip(second.optimizer.variables, straight.optimizer.variables, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-3, atol=2e-6, err_msg=one.path)
