"""A callback that saves the model of the best epoch."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import keras

from tf_largebatch import data, pretrained
from tf_largebatch.callbacks.metrics import read_metrics, updates_taken
from tf_largebatch.train import final_model, run_directory


class SaveBest(keras.callbacks.Callback):
    """Saves the network after each evaluation that is better than all before, as best.keras.

    A run that continues compares with the epochs in its metrics.csv.

    Args:
        output_dir: Directory of the run.
        metric: `"val_accuracy"`, of which more is better, or `"val_loss"`.
        inner: The network.
        dataset: The data that it is trained on.
    """

    def __init__(self, output_dir: pathlib.Path, metric: str, inner: keras.Model, dataset: data.Dataset) -> None:
        super().__init__()
        self.output_dir, self.metric, self.inner, self.dataset = output_dir, metric, inner, dataset
        self._sign = 1.0 if metric.endswith("accuracy") else -1.0
        self._best = -math.inf

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Reads the best value of the epochs done."""
        done = updates_taken(self.model)
        rows = read_metrics(self.output_dir / run_directory.METRICS)
        values = [self._sign * row[self.metric] for row in rows if row["updates"] <= done]
        self._best = max((value for value in values if not math.isnan(value)), default=-math.inf)

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Saves the network if it is the best."""
        value = self._sign * float((logs or {})[self.metric.removeprefix("val_")])
        if value > self._best:
            self._best = value
            path = self.output_dir / run_directory.BEST_MODEL
            final_model.save(path, self.inner, self.dataset, pretrained.returns_logits(self.inner))
