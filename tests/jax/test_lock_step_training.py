"""JAX only: LargeBatchModel in lock step with TensorFlow, from equal weights and data."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import training_run

ROOT = pathlib.Path(__file__).parents[2]


def on_tensorflow(path, *arguments):
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, training_run.__file__, str(path), *map(str, arguments)]
    subprocess.run(command, env=environment, check=True, cwd=ROOT, capture_output=True)
    return np.load(path)


@pytest.mark.parametrize(
    "micro_batch_size, norm_examples",
    [(7, None), *(pytest.param(*case, marks=pytest.mark.long) for case in ((None, None), (None, 6)))],
)
def test_fifty_steps_equal_those_of_tensorflow(tmp_path, micro_batch_size, norm_examples):
    """Float32 sums in another order make 1e-6; a ReLU whose input is about 0 could make more, so there is none."""
    expected = on_tensorflow(tmp_path / "run.npz", micro_batch_size or 0, norm_examples or 0)
    found = training_run.run(micro_batch_size, norm_examples)
    assert list(found) == list(expected)
    for name, value in found.items():
        size = max(np.max(np.abs(expected[name])), 1e-6)
        difference = np.max(np.abs(value - expected[name])) / size
        step, tensor = name.split("/", 1)
        assert difference < 1e-4, f"the first to differ is {tensor} in step {step}: by {difference:.1e} of its largest"
    assert found["49/loss"] < 0.7 * found["0/loss"]
