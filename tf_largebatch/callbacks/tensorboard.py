"""Metrics, layer-wise rates and norms for TensorBoard."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import keras

from tf_largebatch.callbacks.layerwise_values import LayerwiseCallback, LayerwiseValues
from tf_largebatch.callbacks.metrics import updates_taken
from tf_largebatch.data.batches import tensorflow_is_installed


class LayerwiseTensorBoard(LayerwiseCallback):
    """Writes the layer-wise rates of CLARS or LARS, and the norms behind them, as TensorBoard scalars.

    For each recorded update and tensor it writes the scalars `rate/<path>`, `weight_norm/<path>`,
    `gradient_norm/<path>`, `batch_gradient_norm/<path>` and `gradient_agreement/<path>` over the number of the update,
    without those that are unknown; `LayerwiseValues` states their meaning and units. The events go to the subdirectory
    `layerwise`, which is a separate run beside those of `keras.callbacks.TensorBoard` with the same `log_dir`. To see
    them: `pip install tensorboard` (writing does not need it) and `tensorboard --logdir=LOG_DIR`.

    Args:
        log_dir: Directory of the event files, or an address that TensorFlow can write to, such as gs://bucket/logs.
        every: Record the first update and every update whose number is a multiple of this; `"epoch"` for the
            last of every epoch.
        batch_gradient_norms: Whether the optimizer keeps the norms of the batch's gradients, from which
            `gradient_agreement` follows: a pass over the gradients in every update.

    Raises:
        ImportError: If TensorFlow is not installed, which writes the events on every backend of Keras.
        ValueError: If `every` is neither a positive integer nor `"epoch"`, and when training begins, if the
            optimizer has no layer-wise rates.
    """

    def __init__(
        self, log_dir: str | os.PathLike[str], every: int | str = "epoch", batch_gradient_norms: bool = False
    ) -> None:
        if importlib.util.find_spec("tensorflow") is None:
            raise ImportError(
                "LayerwiseTensorBoard writes event files with TensorFlow, which is not installed: install tensorflow, "
                "or record the rates with LayerwiseRateRecorder, which writes a CSV file."
            )
        super().__init__(every, batch_gradient_norms)
        self.log_dir = os.path.expanduser(log_dir)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Opens the event file."""
        super().on_train_begin(logs)
        self._writer = _writer(self.log_dir, "layerwise")

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Closes the event file."""
        self._writer.close()

    def record(self, update: int, values: dict[str, LayerwiseValues]) -> None:
        """Writes the update's scalars."""
        found = {
            f"{name}/{path}": number
            for path, value in values.items()
            for name, number in dataclasses.asdict(value).items()
            if number is not None
        }
        _write(self._writer, found, update)


class MetricsTensorBoard(keras.callbacks.Callback):
    """Writes the metrics of every epoch as TensorBoard scalars over the number of updates.

    Unlike `keras.callbacks.TensorBoard` it does not need the package tensorboard, which only reading needs, and it runs
    on every backend. TensorFlow must be installed.

    Args:
        log_dir: Directory of the event files, or an address that TensorFlow can write to.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self.log_dir = os.path.expanduser(log_dir)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Opens the event file."""
        self._writer = _writer(self.log_dir, "metrics")

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Writes the epoch's metrics."""
        _write(self._writer, {name: float(value) for name, value in (logs or {}).items()}, updates_taken(self.model))

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Closes the event file."""
        self._writer.close()


def _writer(log_dir: str, name: str) -> Any:
    """Opens an event file in a directory."""
    if not tensorflow_is_installed():
        raise ValueError("TensorBoard's callbacks need TensorFlow, which writes the events: pip install tensorflow.")
    import tensorflow as tf

    return tf.summary.create_file_writer(tf.io.gfile.join(log_dir, name))


def _write(writer: Any, scalars: Mapping[str, float], update: int) -> None:
    """Writes scalars."""
    import tensorflow as tf

    # Not tf.summary.scalar: since TensorFlow 2.21 it needs the package tensorboard.
    summary = tf.compat.v1.Summary()
    for name, value in scalars.items():
        summary.value.add(tag=name, simple_value=value)
    with writer.as_default():
        tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=update)
    writer.flush()
