"""TensorFlow only: tf_keras's CLARS and LARS with random settings against NumPy and against those of Keras 3."""

from __future__ import annotations

import pytest
from optimizer_fuzz import differences, reference_run, run, run_tf_keras, setting

# See tests/reliability/test_optimizer_fuzz.py.
TOLERANCE = 5e-6


@pytest.mark.parametrize(
    "numbers, steps", [(range(4), 20), pytest.param(range(50), 200, marks=pytest.mark.long)], ids=["few", "fifty"]
)
def test_random_settings(numbers, steps):
    settings = [setting(number).of_tf_keras for number in numbers]
    lines = differences(run_tf_keras, reference_run, settings, steps, TOLERANCE)
    assert not lines, "against NumPy: " + "\n".join(lines)
    lines = differences(run_tf_keras, run, settings, steps, TOLERANCE)
    assert not lines, "against Keras 3: " + "\n".join(lines)
