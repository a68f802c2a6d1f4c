"""CLARS and LARS with random settings against NumPy, and TensorFlow against JAX: the first difference is named.

tests/tf_keras/test_optimizer_fuzz_in_tf_keras.py runs the same settings in tf_keras.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import optimizer_fuzz
import pytest
from comparing import ON_JAX
from optimizer_fuzz import first_difference, reference_run, run, setting

ROOT = pathlib.Path(__file__).parents[2]
QUICK, QUICK_STEPS = range(2 if ON_JAX else 5), 20
LONG, LONG_STEPS = range(50), 200
# Of a tensor's norm. Float32: 200 steps, each of which rounds by 6e-8 and goes on from the rounded values.
TOLERANCE = 5e-6


def test_a_few_settings_follow_numpy():
    lines = optimizer_fuzz.differences(run, reference_run, [setting(n) for n in QUICK], QUICK_STEPS, TOLERANCE)
    assert not lines, "\n".join(lines)


@pytest.mark.long
def test_fifty_settings_follow_numpy(capsys):
    with capsys.disabled():
        print(f"\n{len(LONG)} settings: {optimizer_fuzz.counted(LONG)}")
    lines = optimizer_fuzz.differences(run, reference_run, [setting(n) for n in LONG], LONG_STEPS, TOLERANCE)
    assert not lines, "\n".join(lines)


@pytest.mark.long
@pytest.mark.skipif(not ON_JAX, reason="runs in the tests on JAX, which start TensorFlow")
def test_fifty_settings_are_the_same_on_tensorflow(tmp_path):
    pytest.importorskip("tensorflow")
    file = tmp_path / "tensorflow.npz"
    command = [sys.executable, optimizer_fuzz.__file__, file, LONG.start, LONG.stop, LONG_STEPS]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(list(map(str, command)), env=environment, check=True)
    saved = dict(np.load(file))

    def on_tensorflow(of, steps):
        return {key.split(": ", 1)[1]: v for key, v in saved.items() if key.startswith(f"{of.number}: ")}

    lines = optimizer_fuzz.differences(run, on_tensorflow, [setting(n) for n in LONG], LONG_STEPS, TOLERANCE)
    assert not lines, "\n".join(lines)


def test_every_feature_is_among_the_settings():
    # That every kind of each choice occurs, and in the few settings of `make test` most of them.
    counts = optimizer_fuzz.counted(LONG)
    kinds = {"CLARS", "LARS", "constant", "warmup and decay", "exponential", "cosine", "clipnorm", "clipvalue"}
    assert set(counts) == kinds | {"global_clipnorm", "average", "accumulated", "scaled loss"}


def test_the_first_difference_is_named():
    right = {"weight a": np.ones((3, 2)), "rate a": np.array([np.nan, 1.0, 1.0])}
    assert first_difference(right, right, 1e-6) is None
    other = {"weight a": np.ones((3, 2)), "rate a": np.array([np.nan, 1.0, 1.1])}
    assert first_difference(other, right, 1e-6).startswith("step 3, rate a: 1.0e-01 of 1.0")
    missing = {"weight a": np.ones((3, 2)), "rate a": np.array([np.nan, np.nan, 1.0])}
    assert first_difference(missing, right, 1e-6).startswith("step 2, rate a")
