"""JAX and TensorFlow take the same fifty steps from equal weights, gradients and norms."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import optimizer_lock_step
import pytest

TESTS = pathlib.Path(__file__).parents[1]


def on_tensorflow(script: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    """What a script of tests/ writes when Keras runs on TensorFlow."""
    pytest.importorskip("tensorflow")
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    subprocess.run([sys.executable, TESTS / script, path], env=environment, check=True)
    return dict(np.load(path))


def first_difference(found, expected, tolerance):
    """The first step at which a tensor of either differs by more than this share of its norm, in words."""
    for step in range(len(next(iter(expected.values())))):
        for name, values in expected.items():
            difference, size = np.linalg.norm(found[name][step] - values[step]), np.linalg.norm(values[step])
            if not difference <= tolerance * size:
                return f"step {step + 1}, {name}: {difference:.1e} of {size:.1e}"
    return None


def test_fifty_steps_are_those_of_tensorflow(tmp_path):
    expected = on_tensorflow("optimizer_lock_step.py", tmp_path / "tensorflow.npz")
    found = optimizer_lock_step.run()
    assert list(found) == list(expected)
    assert (difference := first_difference(found, expected, 1e-5)) is None, difference


def test_the_first_difference_is_named():
    some = {"a": np.ones((3, 2)), "b": np.ones((3, 2))}
    other = {"a": np.ones((3, 2)), "b": np.array([[1, 1], [1, 1.1], [1, 1]])}
    assert first_difference(some, some, 1e-5) is None
    assert first_difference(other, some, 1e-5).startswith("step 2, b: 1.0e-01 of 1.4")
