"""Averages over the updates from which the gradient noise scale follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_largebatch.core.noise_scale import estimates


class NoiseScaleAverages:
    """Exponential moving averages of the estimates of `||G||^2` and `tr(Sigma)`, for each tensor.

        sum    <- decay * sum    + (1 - decay) * B * estimate        both from zero; the average is sum / weight
        weight <- decay * weight + (1 - decay) * B

    A batch counts by its number of examples B: the estimates of a small batch scatter more, about as 1 / B. An update
    whose numbers are not all finite (an overflow of float16) or which saw a single example is left out. Each replica
    estimates from its own share of the batch and keeps sums of its own, of which the mean is read: that is as unbiased
    as an estimate from the whole batch, varies more, and costs no communication.

    The averages are not part of the model: they are not among its weights and not saved with it.

    Args:
        decay: Decay of the averages, at least 0 and below 1.

    Attributes:
        trained: The K variables whose gradients are averaged; empty until `build`.
        variables: What a checkpoint must hold for the averages to go on; empty until `build`.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self.trained: list[keras.Variable] = []
        self.variables: list[keras.Variable] = []

    def build(self, trained: Sequence[keras.Variable]) -> None:
        """Makes the averages, once; in the scope of the strategy under which the model trains."""
        if self.variables:
            return
        self.trained = list(trained)
        settings = {"trainable": False, "dtype": "float32", "aggregation": "mean", "synchronization": "on_read"}
        self._moments = keras.Variable(np.zeros((2, len(self.trained))), name="noise_scale_moments", **settings)
        self._weight = keras.Variable(np.zeros(()), name="noise_scale_weight", **settings)
        self.variables = [self._moments, self._weight]

    def update(self, mean_squares: tf.Tensor, gradients: Sequence[Any], batch_size: Any, unit: Any) -> None:
        """Adds one batch, or a replica's share of it; to be called in replica context.

        Args:
            mean_squares: From `Measurement.mean_squared_norms`, float32 [K], of the batch.
            gradients: Gradients of the batch, None where the loss does not depend on the variable.
            batch_size: Number of examples.
            unit: The factor by which gradients are multiplied: loss scale over number of replicas.
        """
        unit, batch_size = tf.cast(unit, tf.float32), tf.cast(batch_size, tf.float32)
        squares = tf.stack([self._squared_norm(*pair, unit) for pair in zip(self.trained, gradients, strict=True)])
        found = tf.stack(estimates(mean_squares / tf.square(unit), squares, batch_size))
        counts = tf.logical_and(batch_size > 1, tf.reduce_all(tf.math.is_finite(found)))
        keep = tf.where(counts, self._decay, 1.0)
        weight = (1 - keep) * batch_size
        self._moments.assign(keep * self._moments + weight * tf.where(counts, found, 0.0))
        self._weight.assign(keep * self._weight + weight)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """The averages of `||G||^2` and of `tr(Sigma)`, float64 [K]; NaN before the first update."""
        if not self.variables:
            return np.full(0, np.nan), np.full(0, np.nan)
        weight = float(keras.ops.convert_to_numpy(self._weight))
        moments = np.asarray(keras.ops.convert_to_numpy(self._moments), "float64")
        gradient, trace = moments / weight if weight else np.full_like(moments, np.nan)
        return gradient, trace

    @staticmethod
    def _squared_norm(variable: keras.Variable, gradient: Any, unit: tf.Tensor) -> tf.Tensor:
        """Of the examples' mean gradient: without the regularizer's, which belongs to no example."""
        if gradient is None:
            return tf.zeros((), tf.float32)
        gradient = tf.cast(tf.convert_to_tensor(gradient), tf.float32) / unit
        if variable.regularizer is not None:
            with tf.GradientTape() as tape:
                penalty = variable.regularizer(variable)
            gradient -= tf.cast(tf.convert_to_tensor(tape.gradient(penalty, variable.value)), tf.float32)
        return tf.reduce_sum(tf.square(gradient))
