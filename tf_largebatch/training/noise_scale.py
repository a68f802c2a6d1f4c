"""Averages over the updates from which the gradient noise scale follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.core.noise_scale import estimates
from tf_largebatch.keras_internals import layers_within
from tf_largebatch.training.differentiate import dense, value_and_gradients


def from_last_batch_norm(model: keras.Model, variables: Sequence[keras.Variable]) -> np.ndarray:
    """Returns of which variables the examples' gradients are independent, as the noise scale assumes.

    Batch normalization in training mode subtracts from the examples' gradients, on their way back, what they have in
    common. Behind it the gradient of the batch is therefore smaller than independent examples would have it, often so
    much that the estimate of `||G||^2` is negative. What the last batch normalization trains, and the layers after it,
    are not affected. The order is that of the model's variables: in Functional and Sequential models that of the layers
    from the inputs to the outputs, in subclassed ones that in which layers were assigned.

    Args:
        model: The network.
        variables: K of its variables.

    Returns:
        bool [K]: True from the last batch normalization on; everywhere, without a trained batch normalization and if
        nothing would be left.
    """
    order = {id(variable): number for number, variable in enumerate(model.variables)}
    normalizations = [
        [order[id(v)] for v in layer.variables if id(v) in order]
        for layer in layers_within(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    last = max((min(numbers) for numbers in normalizations if numbers), default=0)
    kept = np.array([order.get(id(variable), last) >= last for variable in variables], bool)
    return kept if kept.any() else np.ones_like(kept)


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

    def update(self, mean_squares: Any, gradients: Sequence[Any], batch_size: Any, unit: Any) -> None:
        """Adds one batch, or a replica's share of it; to be called in replica context.

        Args:
            mean_squares: From `Measurement.mean_squared_norms`, float32 [K], of the batch.
            gradients: Gradients of the batch, None where the loss does not depend on the variable.
            batch_size: Number of examples.
            unit: The factor by which gradients are multiplied: loss scale over number of replicas.
        """
        unit, batch_size = ops.cast(unit, "float32"), ops.cast(batch_size, "float32")
        squares = ops.stack([self._squared_norm(*pair, unit) for pair in zip(self.trained, gradients, strict=True)])
        found = ops.stack(estimates(mean_squares / ops.square(unit), squares, batch_size))
        counts = ops.logical_and(batch_size > 1, ops.all(ops.isfinite(found)))
        keep = ops.where(counts, ops.cast(self._decay, "float32"), ops.ones((), "float32"))
        weight = (1 - keep) * batch_size
        self._moments.assign(keep * self._moments + weight * ops.where(counts, found, ops.zeros_like(found)))
        self._weight.assign(keep * self._weight + weight)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the averages of `||G||^2` and of `tr(Sigma)`, float64 [K]; NaN before the first update."""
        if not self.variables:
            return np.full(0, np.nan), np.full(0, np.nan)
        weight = float(keras.ops.convert_to_numpy(self._weight))
        moments = np.asarray(keras.ops.convert_to_numpy(self._moments), "float64")
        gradient, trace = moments / weight if weight else np.full_like(moments, np.nan)
        return gradient, trace

    @staticmethod
    def _squared_norm(variable: keras.Variable, gradient: Any, unit: Any) -> Any:
        """Of the examples' mean gradient: without the regularizer's, which belongs to no example."""
        if gradient is None:
            return ops.zeros((), "float32")
        gradient = ops.cast(dense(gradient), "float32") / unit
        if variable.regularizer is not None:
            regularizer = variable.regularizer
            _, (share,), _ = value_and_gradients(lambda: None, lambda _: regularizer(variable), [variable])
            gradient -= ops.cast(dense(share), "float32")
        return ops.sum(ops.square(gradient))
