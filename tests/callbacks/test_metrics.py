"""MetricsRecorder: a file that any epochs may add columns to."""

from __future__ import annotations

import math

import keras
import numpy as np

from tf_largebatch.callbacks import MetricsRecorder
from tf_largebatch.callbacks.metrics import read_metrics


def test_validation_in_some_epochs_leaves_gaps(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 8)), "mse")
    x, y = np.ones((8, 2)), np.ones(8)
    recorder = MetricsRecorder(tmp_path / "metrics.csv", 8)
    model.fit(x, y, batch_size=4, epochs=3, verbose=0, validation_data=(x, y), validation_freq=2, callbacks=[recorder])
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [math.isfinite(row["val_loss"]) for row in rows] == [False, True, False]
    assert [row["updates"] for row in rows] == [2, 4, 6]
    np.testing.assert_allclose(rows[1]["learning_rate"], 0.05 * (1 + math.cos(math.pi * 3 / 8)), rtol=1e-6)
