"""The metrics of every epoch, as a CSV file."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import keras

from tf_largebatch.check import number
from tf_largebatch.files import local_path, naming_damage, replacing
from tf_largebatch.keras_internals import learning_rate_schedule
from tf_largebatch.training.processes import whole
from tf_largebatch.training.trainer import synchronize


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite."""


class MetricsRecorder(keras.callbacks.Callback):
    """Writes one row of metrics for each epoch, and stops a run whose loss is not finite.

    The columns are `epoch` (completed epochs, from 1), `updates` (so far), `learning_rate` (of the last update),
    Keras's logs (`loss`, `accuracy`, `val_loss`, `val_accuracy`, ...; empty in epochs without them),
    `images_per_second` (training only; the first epoch includes compilation) and `seconds` (the whole epoch).

    A model that has already taken steps continues the file: rows of later updates are dropped.

    Args:
        path: The CSV file. It is rewritten at every epoch, whole or not at all.
        images_per_epoch: Number of images trained on in an epoch, for `images_per_second`.

    Raises:
        ValueError: If `images_per_epoch` is not above 0.
        TrainingDiverged: At the end of an epoch whose loss is not finite, after writing its row.
    """

    def __init__(self, path: str | os.PathLike[str], images_per_epoch: int) -> None:
        super().__init__()
        self.path = local_path(path)
        self.images_per_epoch = number("images_per_epoch", images_per_epoch, lambda n: n > 0, "a number above 0")
        self.rows: list[dict[str, Any]] = []

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Reads the rows of the updates that were already taken."""
        updates = updates_taken(self.model)
        self.rows = [row for row in read_metrics(self.path) if row["updates"] <= updates]

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()
        self._trained: float | None = None

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Stops the clock of training, since evaluation begins."""
        if self._trained is None:
            self._trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Writes the row."""
        ended = time.perf_counter()
        updates = updates_taken(self.model)
        row = {
            "epoch": epoch + 1,
            "updates": updates,
            "learning_rate": _last_learning_rate(self.model, updates),
            **{name: float(value) for name, value in (logs or {}).items()},
            "images_per_second": round(self.images_per_epoch / ((self._trained or ended) - self._started), 1),
            "seconds": round(ended - self._started, 3),
        }
        self.rows.append(row)
        with replacing(self.path) as temporary, open(temporary, "w", newline="") as file:
            columns = list(dict.fromkeys(name for known in (row, *self.rows) for name in known))
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        if not math.isfinite(row.get("loss", 0.0)):
            raise TrainingDiverged(
                f"the loss is {row['loss']} in epoch {epoch + 1}, after {updates} updates: lower the learning rate "
                "(base_learning_rate on the command line), or lengthen its warmup (warmup_epochs)."
            )


def updates_taken(model: keras.Model) -> int:
    """Returns how many updates the model's optimizer has taken."""
    synchronize(model)
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.csv` as numbers, NaN for an empty field; no rows if the file is missing.

    Raises:
        ValueError: If the file is damaged; the message names it.
    """
    path = local_path(path)
    if not path.exists():
        return []
    with naming_damage(path), open(path, newline="") as file:
        text = file.read()
        if not text.endswith("\n"):
            raise ValueError("its last row is cut short")
        read = list(csv.DictReader(text.splitlines()))
        if any(value is None for row in read for value in row.values()):
            raise ValueError("a row lacks values")
        rows = [{name: float(value or math.nan) for name, value in row.items()} for row in read]
        return [{**row, "epoch": int(row["epoch"]), "updates": int(row["updates"])} for row in rows]


def _last_learning_rate(model: keras.Model, updates: int) -> float:
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    schedule = learning_rate_schedule(optimizer)
    if schedule is not None:
        return float(schedule(max(updates - 1, 0)))
    rate = optimizer.learning_rate
    return float(whole(rate.value) if isinstance(rate, keras.Variable) else rate)
