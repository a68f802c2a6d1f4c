"""Layer-wise rates and norms for TensorBoard."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from tf_largebatch.callbacks.layerwise_values import LayerwiseCallback, LayerwiseValues


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
        import tensorflow as tf

        super().on_train_begin(logs)
        self._writer = tf.summary.create_file_writer(tf.io.gfile.join(self.log_dir, "layerwise"))

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Closes the event file."""
        self._writer.close()

    def record(self, update: int, values: dict[str, LayerwiseValues]) -> None:
        """Writes the update's scalars."""
        import tensorflow as tf

        # Not tf.summary.scalar: since TensorFlow 2.21 it needs the package tensorboard, which only reading needs.
        summary = tf.compat.v1.Summary()
        for path, value in values.items():
            for name, number in dataclasses.asdict(value).items():
                if number is not None:
                    summary.value.add(tag=f"{name}/{path}", simple_value=number)
        with self._writer.as_default():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=update)
        self._writer.flush()
