"""JAX only: per-example norms and gradients are those of TensorFlow, from equal weights and data."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import norms_run
import numpy as np
import pytest
from selection import long_unless

ROOT = pathlib.Path(__file__).parents[2]
TOLERANCE = 1e-5  # of the largest entry: float32 sums of a few hundred terms in another order


@pytest.fixture(scope="module")
def on_tensorflow(tmp_path_factory):
    pytest.importorskip("tensorflow")
    path = tmp_path_factory.mktemp("norms") / "tensorflow.npz"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, norms_run.__file__, str(path)], env=environment, check=True, cwd=ROOT)
    return dict(np.load(path))


@pytest.fixture(autouse=True)
def optimized():
    """Compiles with optimizations, as training does: `make test-jax` compiles without them, and rounds elsewhere."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.mark.parametrize("model", long_unless(norms_run.MODELS, ["convolutional", "attentive"]))
def test_norms_and_gradients_are_those_of_tensorflow(model, on_tensorflow):
    found = norms_run.norms_and_gradients(model)
    assert set(found) == {name for name in on_tensorflow if name.startswith(f"{model},")}
    largest = max(np.max(value) for name, value in on_tensorflow.items() if name.startswith(f"{model}, norms"))
    for name, value in found.items():
        # A bias before a softmax or a batch norm has gradient zero, of which both give rounding noise.
        size = max(np.max(np.abs(on_tensorflow[name])), 1e-2 * largest)
        np.testing.assert_allclose(value, on_tensorflow[name], rtol=0, atol=TOLERANCE * size, err_msg=name)
