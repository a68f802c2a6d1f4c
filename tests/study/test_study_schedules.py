"""The shapes of a study's learning rates."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from tf_largebatch.study.schedules import ShapedSchedule


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("polynomial", lambda p: (1 - p) ** 2),
        ("cosine", lambda p: (1 + math.cos(math.pi * p)) / 2),
        ("constant", lambda p: 1.0),
        ("constant_then_linear", lambda p: min(1.0, 10 * (1 - p))),
        ("sigmoid", lambda p: 1 / (1 + math.exp(10 * (p - 0.5)))),
    ],
)
@pytest.mark.parametrize("warmup", [0, 4])
def test_shapes(shape, expected, warmup):
    schedule = ShapedSchedule(0.5, 24, warmup, shape, power=2.0)
    schedule = ShapedSchedule.from_config(schedule.get_config())
    found = [float(keras.ops.convert_to_numpy(schedule(step))) for step in (0, 2, 4, 11, 22, 24)]
    wanted = [
        0.5 * ((step + 1) / warmup if step < warmup else expected((step - warmup) / (24 - warmup)))
        for step in (0, 2, 4, 11, 22, 24)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
